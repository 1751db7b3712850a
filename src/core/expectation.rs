//! One expected data connection, and the reasons why an announcement is refused.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::core::net::{Endpoint, Flow, PortRange};
use crate::core::time::Timestamp;

/// A data connection that the kernel admits once: from one address, to one address and port, for a limited time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// The address that connects, from any port.
    pub from: IpAddr,
    /// The address and port to which it connects.
    pub to: Endpoint,
    /// When it was announced.
    pub since: Timestamp,
    /// How long it is admitted, from then on.
    pub lifetime: Duration,
    /// The NAT of the connection. `from` and `to` are its addresses before NAT.
    pub mapping: Mapping,
}

impl Expectation {
    /// When it expires.
    pub fn expires(&self) -> Timestamp {
        self.since + self.lifetime
    }

    /// The address and port to which it goes after NAT.
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

/// The NAT of one data connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// DNAT: the address and port to which it is delivered.
    pub to: Option<Endpoint>,
    /// SNAT: the source address with which it leaves. It keeps its source port if that is free.
    pub from: Option<IpAddr>,
}

impl Mapping {
    /// No NAT.
    pub const NONE: Self = Self { to: None, from: None };

    /// Whether there is no NAT.
    pub const fn is_none(&self) -> bool {
        self.to.is_none() && self.from.is_none()
    }
}

/// Printed after the addresses: ` (to 10.0.0.5:4000, from 192.0.2.1)`; nothing without NAT.
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

/// The ports to which the data connections of an encrypted session may go: any number of them, while the session lasts.
/// Its announcements cannot be read, so the policy gives the ports (`tls: range`), or has each SYN asked about
/// (`tls: service`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRangePinhole {
    /// The client's address.
    pub from: IpAddr,
    /// The server's address.
    pub to: IpAddr,
    /// What happens to a SYN between them.
    pub on_syn: OnSyn,
}

/// What the firewall does with a SYN between the hosts of an encrypted session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnSyn {
    /// It admits a SYN of the client to one of these ports.
    Admit(PortRange),
    /// It queues a SYN of either end, if no pinhole admits it: see [`Testimony`](crate::core::kernel::Testimony).
    Ask,
}

impl PortRangePinhole {
    /// How long it stays open in the firewall unless it is renewed.
    pub const LIFETIME: Duration = Duration::from_secs(3600);

    /// Whether it admits a connection with these addresses.
    pub fn admits(&self, flow: &Flow) -> bool {
        let OnSyn::Admit(ports) = self.on_syn else { return false };
        flow.source.address == self.from && flow.destination.address == self.to && ports.contains(flow.destination.port)
    }

    /// Whether a SYN with these addresses is asked about.
    pub fn asks(&self, flow: &Flow) -> bool {
        let (source, destination) = (flow.source.address, flow.destination.address);
        self.on_syn == OnSyn::Ask && [(source, destination), (destination, source)].contains(&(self.from, self.to))
    }
}

impl fmt::Display for PortRangePinhole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} ports {}", self.from, self.to, self.on_syn)
    }
}

impl fmt::Display for OnSyn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admit(ports) => ports.fmt(f),
            Self::Ask => f.write_str("of the FTP service"),
        }
    }
}

/// Why an announcement is refused.
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
    /// It names a port of a well-known service, and `data_ports` has no entry for that port alone.
    KnownService,
    /// The policy does not allow this mode.
    ModeDenied,
    /// The client did not send the command that this reply would answer.
    NotAskedFor,
    /// No user is logged in.
    NotLoggedIn,
    /// The client sent EPSV ALL before.
    AfterEpsvAll,
    /// A limit on pinholes is reached, or too many commands have no reply.
    TooMany,
    /// The session is not FTP.
    NotFtp,
    /// A rule of the policy denies it.
    ByRule,
    /// The firewall could not open it.
    NotOpened,
    /// No free port was found at the outside address.
    NoPort,
    /// NAT or `passive_address: repair` needs another address in the line, and the line cannot be rewritten.
    CannotRewrite,
    /// The session was picked up in the middle, and its mark does not say that it is FTP.
    PickedUp,
    /// The line can be read in more than one way.
    Ambiguous,
    /// The session has ended.
    SessionOver,
    /// The packets of both ends come from one interface, and by the routes one of the ends is not behind it.
    Forged,
    /// No socket of this host listens where the data connection goes.
    NotListening,
    /// The socket of the data connection on this host belongs to another service.
    OtherService,
    /// The session is encrypted, and neither of its ends is on this host.
    NotOnThisHost,
    /// The session is encrypted, and its socket is in no cgroup of the FTP service alone.
    SharedCgroup,
    /// The session may be a data connection of its client, which is the server of another session.
    DataConnection,
    /// The control connection is in another conntrack zone than the default one.
    Zone,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 27] = [
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
        Self::NotListening,
        Self::OtherService,
        Self::NotOnThisHost,
        Self::SharedCgroup,
        Self::DataConnection,
        Self::Zone,
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
            Self::NotListening => "not-listening",
            Self::OtherService => "other-service",
            Self::NotOnThisHost => "not-on-this-host",
            Self::SharedCgroup => "shared-cgroup",
            Self::DataConnection => "data-connection",
            Self::Zone => "zone",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why an unused pinhole was closed.
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

    /// What happened, for the log.
    pub const fn explanation(self) -> &'static str {
        match self {
            Self::RefusedByServer => "the server refused the command",
            Self::SessionEnded => "its session ended",
        }
    }
}
