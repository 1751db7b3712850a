//! One expected data connection, and the reasons for which an announcement is refused.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::core::net::{Endpoint, Flow, PortRange};
use crate::core::time::Timestamp;

/// A data connection that the kernel is told to admit: once, from exactly there to exactly here, for so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Who will connect, from whichever port.
    pub from: IpAddr,
    /// Where to.
    pub to: Endpoint,
    /// When it was announced.
    pub since: Timestamp,
    /// How long it is admitted.
    pub lifetime: Duration,
    /// What NAT makes of its addresses. Those above are the ones with which it arrives.
    pub mapping: Mapping,
}

impl Expectation {
    /// The moment from which it is not admitted any more.
    pub fn expires(&self) -> Timestamp {
        self.since + self.lifetime
    }

    /// Where it is delivered in the end.
    pub fn target(&self) -> Endpoint {
        self.mapping.to.unwrap_or(self.to)
    }

    /// Whether a connection with these addresses is the expected one.
    pub fn matches(&self, flow: &Flow) -> bool {
        flow.source.address == self.from && flow.destination == self.to
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}{}", self.from, self.to, self.mapping)
    }
}

/// What is done to the addresses of one data connection, so that both ends find whom they expect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// Where it is delivered, instead of where it goes.
    pub to: Option<Endpoint>,
    /// The address that it leaves with, instead of the one with which it came. It keeps its source port where that is
    /// free, and gets another one where it is not.
    pub from: Option<IpAddr>,
}

impl Mapping {
    /// Nothing is done to them.
    pub const NONE: Self = Self { to: None, from: None };

    /// Whether nothing is done to them.
    pub const fn is_none(&self) -> bool {
        self.to.is_none() && self.from.is_none()
    }
}

/// What follows the addresses: ` (to 10.0.0.5:4000, from 192.0.2.1)`, and nothing where nothing is done.
impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.to, self.from) {
            (None, None) => Ok(()),
            (Some(to), None) => write!(f, " (to {to})"),
            (None, Some(from)) => write!(f, " (from {from})"),
            (Some(to), Some(from)) => write!(f, " (to {to}, from {from})"),
        }
    }
}

/// Where an encrypted session's data connections may go, as they cannot be read: any number of them, while the
/// session lasts. Only a policy opens one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRangePinhole {
    /// Who may connect.
    pub from: IpAddr,
    /// Where to.
    pub to: IpAddr,
    /// On which ports.
    pub ports: PortRange,
}

impl PortRangePinhole {
    /// How long one lasts in the firewall unless it is renewed.
    pub const LIFETIME: Duration = Duration::from_secs(3600);

    /// Whether a connection with these addresses goes through it.
    pub fn matches(&self, flow: &Flow) -> bool {
        flow.source.address == self.from
            && flow.destination.address == self.to
            && self.ports.contains(flow.destination.port)
    }
}

impl fmt::Display for PortRangePinhole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} ports {}", self.from, self.to, self.ports)
    }
}

/// Why an announced data connection will not be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// The address cannot be read.
    BadSyntax,
    /// It names a host that is neither end of the session.
    ThirdParty,
    /// It names an address of the other family than the session's.
    WrongFamily,
    /// It names port zero.
    PortZero,
    /// It names a port below 1024 that the policy does not name.
    LowPort,
    /// It names a port that the policy does not name.
    PortNotAllowed,
    /// It names a port of a well-known service that the policy does not name by itself.
    KnownService,
    /// The policy does not allow this way of announcing.
    ModeDenied,
    /// The server announced something that the client did not ask for.
    NotAskedFor,
    /// Nobody is logged in.
    NotLoggedIn,
    /// The client said `EPSV ALL` before.
    AfterEpsvAll,
    /// The session, or all of them together, have as many expectations as allowed.
    TooMany,
    /// The two ends do not talk FTP.
    NotFtp,
    /// A rule of the policy denies it by name.
    ByRule,
    /// The firewall could not open it.
    NotOpened,
    /// The ports under which it could be announced outside are taken, as far as they were tried.
    NoPort,
    /// NAT would have to write another address, and the line cannot be changed.
    CannotRewrite,
    /// The session was picked up in the middle, and no earlier run left word that it is FTP.
    PickedUp,
    /// The line may be read in more than one way.
    Ambiguous,
    /// The session has ended.
    SessionOver,
    /// Both ends speak from the same side, where one of them cannot be.
    Forged,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::BadSyntax,
        Self::ThirdParty,
        Self::WrongFamily,
        Self::PortZero,
        Self::LowPort,
        Self::PortNotAllowed,
        Self::KnownService,
        Self::ModeDenied,
        Self::NotAskedFor,
        Self::NotLoggedIn,
        Self::AfterEpsvAll,
        Self::TooMany,
        Self::NotFtp,
        Self::ByRule,
        Self::NotOpened,
        Self::NoPort,
        Self::CannotRewrite,
        Self::PickedUp,
        Self::Ambiguous,
        Self::SessionOver,
        Self::Forged,
    ];

    /// Its name, as logs, counters and JSON have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadSyntax => "bad-syntax",
            Self::ThirdParty => "third-party",
            Self::WrongFamily => "wrong-family",
            Self::PortZero => "port-zero",
            Self::LowPort => "low-port",
            Self::PortNotAllowed => "port-not-allowed",
            Self::KnownService => "known-service",
            Self::ModeDenied => "mode-denied",
            Self::NotAskedFor => "not-asked-for",
            Self::NotLoggedIn => "not-logged-in",
            Self::AfterEpsvAll => "after-epsv-all",
            Self::TooMany => "too-many",
            Self::NotFtp => "not-ftp",
            Self::ByRule => "by-rule",
            Self::NotOpened => "not-opened",
            Self::NoPort => "no-port",
            Self::CannotRewrite => "cannot-rewrite",
            Self::PickedUp => "picked-up",
            Self::Ambiguous => "ambiguous",
            Self::SessionOver => "session-over",
            Self::Forged => "forged",
        }
    }

    /// What happened and what to do about it, for a person.
    pub const fn explanation(self) -> &'static str {
        match self {
            Self::BadSyntax => "its address cannot be read",
            Self::ThirdParty => {
                "its address is not the sender's own (correct the address that the server announces; for FXP set \
                 `third_party: allow`)"
            }
            Self::WrongFamily => "its address is of the other IP version than the session",
            Self::PortZero => "its port is 0",
            Self::LowPort => "its port is below 1024 and not named in `data_ports`",
            Self::PortNotAllowed => {
                "its port is not in `data_ports` (give `data_ports` and the server's passive range the same ports)"
            }
            Self::KnownService => {
                "its port belongs to a well-known service (give the server a passive range without it, or name the port \
                 by itself in `data_ports`)"
            }
            Self::ModeDenied => "the policy's `modes` do not include this command",
            Self::NotAskedFor => "the client did not send the command that this reply would answer",
            Self::NotLoggedIn => "no user is logged in (if the server needs no login, set `login: optional`)",
            Self::AfterEpsvAll => "the client sent EPSV ALL before",
            Self::TooMany => {
                "`pinholes_per_session`, `limits: pinholes` or `limits: pinholes_per_client` is reached, or too many \
                 commands have no reply yet"
            }
            Self::NotFtp => "the session is not FTP",
            Self::ByRule => "a rule of the policy denies it",
            Self::NotOpened => "the kernel did not accept the pinhole (the line `the kernel: ...` says why)",
            Self::NoPort => "no free port of `data_ports` was found at the outside address",
            Self::CannotRewrite => {
                "NAT needs another address in the line, but the kernel cannot adjust the sequence numbers of this session, \
                 or part of the line has been sent already (reconnect)"
            }
            Self::PickedUp => {
                "the start of the session was not read, so it may not be FTP (reconnect; see `pickup` in the policy)"
            }
            Self::Ambiguous => {
                "the line can be read in more than one way: bytes before it passed unread, it ends in a bare LF or follows \
                 one, or it contains CR, NUL, Telnet or urgent data (try again); or a reply to the client listed files \
                 (STAT with a path), and a file's name may look like this line (reconnect)"
            }
            Self::SessionOver => "the session has ended",
            Self::Forged => {
                "the packets of both ends come from one interface, and by the routes one of the ends is not behind it: a \
                 host there sends in its name"
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a pinhole that nobody used does not stand any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Closed {
    /// The server refused the command that announced it.
    RefusedByServer,
    /// Its session ended.
    SessionEnded,
}

impl Closed {
    /// Its name, as logs and JSON have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RefusedByServer => "refused-by-server",
            Self::SessionEnded => "session-ended",
        }
    }

    /// What happened, for a person.
    pub const fn explanation(self) -> &'static str {
        match self {
            Self::RefusedByServer => "the server refused the command",
            Self::SessionEnded => "its session ended",
        }
    }
}
