//! The six ways in which FTP announces a data connection.

use std::fmt;

/// A way to announce where a data connection will go, named by the command that starts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Mode {
    /// `PORT`: the client listens, IPv4 (RFC 959).
    Port,
    /// `EPRT`: the client listens, either family (RFC 2428).
    Eprt,
    /// `LPRT`: the client listens, either family (RFC 1639).
    Lprt,
    /// `PASV`, announced by 227: the server listens, IPv4 (RFC 959).
    Pasv,
    /// `EPSV`, announced by 229: the server listens, same address (RFC 2428).
    Epsv,
    /// `LPSV`, announced by 228: the server listens, either family (RFC 1639).
    Lpsv,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Port, Self::Eprt, Self::Lprt, Self::Pasv, Self::Epsv, Self::Lpsv];

    /// The command that asks for it, as a policy names it.
    pub const fn command(self) -> &'static str {
        match self {
            Self::Port => "PORT",
            Self::Eprt => "EPRT",
            Self::Lprt => "LPRT",
            Self::Pasv => "PASV",
            Self::Epsv => "EPSV",
            Self::Lpsv => "LPSV",
        }
    }

    /// What starts the line that announces the address: the command itself, or the code of the reply.
    pub const fn announced_by(self) -> &'static str {
        match self {
            Self::Port | Self::Eprt | Self::Lprt => self.command(),
            Self::Pasv => "227",
            Self::Epsv => "229",
            Self::Lpsv => "228",
        }
    }

    /// Whether the client listens and the server connects.
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Port | Self::Eprt | Self::Lprt)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.command())
    }
}

/// A set of [`Mode`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Modes(u8);

impl Modes {
    /// Whether `mode` is one of them.
    pub const fn contains(self, mode: Mode) -> bool {
        self.0 & (1 << mode as u8) != 0
    }

    /// Those of them that exist, in a fixed order.
    pub fn iter(self) -> impl Iterator<Item = Mode> {
        Mode::ALL.into_iter().filter(move |&mode| self.contains(mode))
    }
}

impl FromIterator<Mode> for Modes {
    fn from_iter<I: IntoIterator<Item = Mode>>(modes: I) -> Self {
        Self(modes.into_iter().fold(0, |set, mode| set | 1 << mode as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_contains_inserted_modes() {
        let modes: Modes = [Mode::Epsv, Mode::Port].into_iter().collect();
        assert_eq!(modes.iter().collect::<Vec<_>>(), [Mode::Port, Mode::Epsv]);
        assert!(!modes.contains(Mode::Pasv));
    }
}
