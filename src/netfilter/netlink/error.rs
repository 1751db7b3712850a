//! The errors of netlink requests, and what an administrator can do about each.

use std::fmt;

use rustix::io::Errno;

/// What was asked of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A socket.
    Connect,
    /// To be told of changes.
    Watch,
    /// To add.
    Add,
    /// To remove.
    Remove,
    /// To list or look up.
    Read,
    /// To change.
    Change,
    /// To say whether it could.
    Try,
}

impl Operation {
    const fn words(self) -> &'static str {
        match self {
            Self::Connect => "open",
            Self::Watch => "watch",
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Read => "read",
            Self::Change => "change",
            Self::Try => "try",
        }
    }
}

/// Why it did not happen, or why nobody knows whether it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// The kernel refused.
    #[error("{}", describe(*.0))]
    Refused(Errno),
    /// A system call failed.
    #[error("the system call failed: {0}")]
    SystemCall(Errno),
    /// No answer came in time. It may have happened.
    #[error("the kernel did not answer in time")]
    Late,
    /// The answer was lost because the socket's buffer was full. It may have happened.
    #[error("the kernel's answer was lost, because the socket's buffer was full")]
    Lost,
    /// The answer makes no sense.
    #[error("the kernel's answer cannot be read")]
    Garbled,
    /// Somebody else changed what was being listed, again and again.
    #[error("it kept changing while it was read")]
    Restless,
}

/// Something that the kernel was asked for and that did not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {} {object}: {cause}{}", operation.words(), self.and_advice())]
pub struct Error {
    /// What was asked.
    pub operation: Operation,
    /// Of what.
    pub object: Box<str>,
    /// Why not.
    pub cause: Cause,
}

impl Error {
    /// That could not be done, of that.
    pub fn new(operation: Operation, object: impl fmt::Display, cause: Cause) -> Self {
        Self { operation, object: object.to_string().into(), cause }
    }

    fn and_advice(&self) -> String {
        self.advice().map(|advice| format!("; {advice}")).unwrap_or_default()
    }

    /// What to do about it, where that is known. It is a part of the text, too.
    pub fn advice(&self) -> Option<&'static str> {
        match self.cause {
            Cause::Refused(Errno::PERM) | Cause::SystemCall(Errno::PERM | Errno::ACCESS) => {
                Some("run as root, or with the capability CAP_NET_ADMIN")
            }
            Cause::SystemCall(Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT) => {
                Some("the kernel needs netfilter's netlink interface (CONFIG_NETFILTER_NETLINK)")
            }
            Cause::Refused(Errno::INVAL | Errno::OPNOTSUPP) if self.operation == Operation::Read => {
                Some("the kernel lacks that part of netfilter, or its module cannot be loaded")
            }
            Cause::Refused(Errno::MFILE) => Some("raise net.netfilter.nf_conntrack_expect_max"),
            Cause::Refused(Errno::NFILE) => Some("let fewer elements stand at one time, or for a shorter time"),
            Cause::Late => Some("another program may be loading a large ruleset; it will be tried again"),
            Cause::Lost => Some("if it happens often, raise net.core.rmem_max"),
            _ => None,
        }
    }
}

impl Cause {
    /// Whether the kernel refused because there is no such thing.
    pub const fn is_missing(self) -> bool {
        matches!(self, Self::Refused(Errno::NOENT))
    }

    /// Whether the kernel refused because there is such a thing already.
    pub const fn is_present(self) -> bool {
        matches!(self, Self::Refused(Errno::EXIST))
    }

    /// Whether it may have happened all the same.
    pub const fn is_unknown(self) -> bool {
        matches!(self, Self::Late | Self::Lost | Self::Garbled)
    }
}

fn describe(errno: Errno) -> String {
    match errno {
        Errno::NOENT => "there is no such thing".into(),
        Errno::EXIST => "it is there already".into(),
        Errno::PERM => "not permitted".into(),
        Errno::NFILE | Errno::MFILE => "it is full".into(),
        Errno::BUSY => "it is in use".into(),
        other => format!("the kernel refused: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_was_asked_of_what_and_why_not() {
        let error = Error::new(Operation::Add, "element of set inet pinhole pinholes4", Cause::Refused(Errno::NFILE));
        let text = "cannot add element of set inet pinhole pinholes4: it is full; let fewer elements";
        assert!(error.to_string().starts_with(text), "{error}");
    }

    #[test]
    fn only_a_refusal_is_certain() {
        assert!(Cause::Late.is_unknown() && Cause::Lost.is_unknown());
        assert!(!Cause::Refused(Errno::NOENT).is_unknown());
        assert!(Cause::Refused(Errno::NOENT).is_missing());
        assert!(!Cause::SystemCall(Errno::NOENT).is_missing());
    }
}
