//! The kernel as a witness: whether a data connection goes to a socket of an FTP service, or comes from one.

use std::fmt;
use std::str::FromStr;

/// Which sockets of this host belong to the FTP service, as the policy says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Service {
    /// Those in the cgroup of the session's control socket: with systemd, the unit of the server.
    #[default]
    SameCgroup,
    /// Those in the cgroup of a systemd unit.
    Unit(Box<str>),
    /// Those in the cgroup with this path, below the root of the hierarchy.
    Cgroup(Box<str>),
    /// Those of the user with this ID.
    User(u32),
}

/// The longest name of a unit, and the longest path of a cgroup.
const MAX_NAME: usize = 255;
const MAX_PATH: usize = 1024;

/// What the kernel says of the socket of this host that would accept a data connection, or that opens it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Testimony {
    /// It is one of the FTP service.
    Vouches,
    /// There is none.
    NotListening,
    /// It does not belong to the FTP service.
    OtherService,
    /// No socket of this host is an end of the control connection.
    NoControlSocket,
    /// The socket of the control connection is in no cgroup of the FTP service alone, so that its cgroup says nothing.
    SharedCgroup,
    /// The kernel did not answer. The firewall has reported why.
    Unknown,
}

/// In the words of the policy, behind `service`: nothing, or ` unit vsftpd.service` and the like.
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SameCgroup => Ok(()),
            Self::Unit(name) => write!(f, " unit {name}"),
            Self::Cgroup(path) => write!(f, " cgroup {path}"),
            Self::User(id) => write!(f, " uid {id}"),
        }
    }
}

impl FromStr for Service {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let mut words = text.split_whitespace();
        let service = match (words.next(), words.next()) {
            (None, _) => Self::SameCgroup,
            (Some("unit"), Some(name)) if is_unit(name) => Self::Unit(name.into()),
            (Some("unit"), _) => return Err("`unit` needs the name of a systemd unit such as vsftpd.service"),
            (Some("cgroup"), Some(path)) if is_cgroup(path) => Self::Cgroup(path.into()),
            (Some("cgroup"), _) => return Err("`cgroup` needs an absolute path such as /system.slice/vsftpd.service"),
            (Some("uid"), Some(id)) => match id.parse() {
                Ok(id) => Self::User(id),
                Err(_) => return Err("`uid` needs the number of a user"),
            },
            _ => return Err("`service` may be followed by `unit NAME`, `cgroup PATH` or `uid NUMBER`"),
        };
        if words.next().is_some() { Err("there are words too many") } else { Ok(service) }
    }
}

fn is_unit(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    name.len() <= MAX_NAME && name.contains('.') && !name.starts_with('.') && name.bytes().all(is_allowed)
}

/// The root, to which every process may belong, is none.
fn is_cgroup(path: &str) -> bool {
    let Some(path) = path.strip_prefix('/') else { return false };
    path.len() < MAX_PATH && path.split('/').all(|name| !matches!(name, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_is_read_as_it_is_printed() {
        for text in ["", " unit vsftpd.service", " unit ftp@x.service", " cgroup /a/b", " uid 0", " uid 65534"] {
            let service: Service = text.parse().expect(text);
            assert_eq!(service.to_string(), text);
        }
    }

    #[test]
    fn service_has_no_way_out_of_the_hierarchy() {
        for text in [
            "unit",
            "unit vsftpd",
            "unit ../x.service",
            "unit a/b.service",
            "cgroup",
            "cgroup a/b",
            "cgroup /",
            "cgroup /a/../b",
            "cgroup /a//b",
            "cgroup /a/",
            "uid",
            "uid -1",
            "uid ftp",
            "uid 4294967296",
            "user ftp",
            "uid 1 2",
        ] {
            assert!(text.parse::<Service>().is_err(), "{text}");
        }
    }
}
