//! Errors of netlink requests, and what an administrator can do about each.

use std::fmt;

use rustix::io::Errno;

/// What a request was to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Connect,
    Watch,
    Add,
    Remove,
    /// List or look up something.
    Read,
    Change,
    /// Check whether the kernel has a feature.
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

/// Why a request failed, or why it is unknown whether it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    #[error("{}", describe(*.0))]
    Refused(Errno),
    #[error("the system call failed: {0}")]
    SystemCall(Errno),
    /// The kernel did not answer in time. It may have carried out the request.
    #[error("the kernel did not answer in time")]
    Timeout,
    /// The socket's receive buffer was full (`ENOBUFS`). The kernel may have carried out the request.
    #[error("the kernel's answer was lost, because the socket's buffer was full")]
    Overrun,
    #[error("the kernel's answer cannot be read")]
    Malformed,
    /// Another program changed the list during each attempt to dump it (`NLM_F_DUMP_INTR`).
    #[error("it kept changing while it was read")]
    Interrupted,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {} {object}: {cause}{}", operation.words(), self.and_advice())]
pub struct Error {
    /// What the request was to do.
    pub operation: Operation,
    /// The object of the request.
    pub object: Box<str>,
    pub cause: Cause,
}

impl Error {
    /// The failure of `operation` on `object`.
    pub fn new(operation: Operation, object: impl fmt::Display, cause: Cause) -> Self {
        Self { operation, object: object.to_string().into(), cause }
    }

    fn and_advice(&self) -> String {
        self.advice().map(|advice| format!("; {advice}")).unwrap_or_default()
    }

    /// What an administrator can do about it, where that is known. The error's text ends with it.
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
            Cause::Refused(Errno::NFILE) => Some("too many are open: find out who opens them, and shorten `timeout`"),
            Cause::Timeout => Some("another program may be loading a large ruleset; it will be tried again"),
            Cause::Overrun => Some("if it happens often, raise net.core.rmem_max"),
            _ => None,
        }
    }
}

impl Cause {
    /// Whether the kernel refused because the object does not exist.
    pub const fn is_missing(self) -> bool {
        matches!(self, Self::Refused(Errno::NOENT))
    }

    /// Whether the kernel refused because the object exists already.
    pub const fn is_present(self) -> bool {
        matches!(self, Self::Refused(Errno::EXIST))
    }

    /// Whether the kernel may have carried out the request all the same.
    pub const fn is_unknown(self) -> bool {
        matches!(self, Self::Timeout | Self::Overrun | Self::Malformed)
    }
}

/// `Some` if the request succeeded, `None` if its object does not exist.
pub(super) fn existing<T>(result: Result<T, Cause>) -> Result<Option<T>, Cause> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(cause) if cause.is_missing() => Ok(None),
        Err(cause) => Err(cause),
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
    fn error_names_operation_object_cause_and_advice() {
        let error = Error::new(Operation::Add, "element of set inet pinhole pinholes4", Cause::Refused(Errno::NFILE));
        let text = "cannot add element of set inet pinhole pinholes4: it is full; too many are open";
        assert!(error.to_string().starts_with(text), "{error}");
    }

    #[test]
    fn only_a_refusal_means_that_nothing_happened() {
        assert!(Cause::Timeout.is_unknown() && Cause::Overrun.is_unknown());
        assert!(!Cause::Refused(Errno::NOENT).is_unknown());
        assert!(Cause::Refused(Errno::NOENT).is_missing());
        assert!(!Cause::SystemCall(Errno::NOENT).is_missing());
    }
}
