//! The events that the tracker reports to its observer: for the log, the counters and the report of a replay.

use std::fmt;
use std::net::SocketAddr;

use crate::core::expectation::{Closed, Expectation, PortRangePinhole, Refusal};
use crate::core::ftp::Mode;
use crate::core::net::{Connection, Direction, Flow, Seq};
use crate::core::policy::Terms;
use crate::core::session::reassembly::StreamAnomaly;
use crate::core::time::Timestamp;

/// The number of a session: 1 for the first session since the start, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionNumber(pub(super) u64);

impl SessionNumber {
    /// The number of all sessions of an earlier run that left a pinhole.
    pub const EARLIER: Self = Self(0);

    /// The number of the session that begins after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SessionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Something that happened in a session.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SessionEvent<'a> {
    /// The session began, or was picked up in the middle.
    Began {
        /// Its addresses.
        connection: &'a Connection,
        /// Whether its beginning was not seen.
        picked_up: bool,
        /// The name of the policy's rule for it; `None` if no rule matches.
        rule: Option<&'a str>,
    },
    /// The policy was reloaded, and its rule was looked up again.
    RuleFound {
        /// The name of the policy's rule for it; `None` if no rule matches.
        rule: Option<&'a str>,
    },
    /// The client sent a command.
    Command {
        /// Its name.
        command: &'static str,
        /// Its argument, unless it may be secret.
        argument: Option<&'a [u8]>,
    },
    /// The client sent a command that the policy denies.
    Denied {
        /// Its name; `implicit TLS` if the client began with a TLS handshake.
        command: &'a str,
    },
    /// A user logged in.
    LoggedIn {
        /// The user's name, if USER was read.
        user: Option<&'a str>,
    },
    /// A pinhole was opened for an announced data connection.
    Opened {
        /// How it was announced.
        mode: Mode,
        /// The admitted connection.
        expectation: Expectation,
        /// The announced address, if it was rewritten to the expectation's address: for NAT, or because it is wrong.
        rewritten_from: Option<SocketAddr>,
        /// Whether the server announced a wrong address (`passive_address: repair`).
        is_repaired: bool,
    },
    /// A pinhole was opened for a SYN of an encrypted session: a socket of the FTP service listens at its destination.
    OpenedForSyn(Expectation),
    /// No pinhole was opened for a SYN between the hosts of an encrypted session. It may belong to another program.
    SynRefused {
        /// Its addresses.
        flow: Flow,
        /// Why not.
        why: Refusal,
        /// The terms that apply to the session.
        terms: &'a Terms,
    },
    /// An announcement was refused.
    Refused {
        /// How it was announced.
        mode: Mode,
        /// The announced address, if it can be read.
        to: Option<SocketAddr>,
        /// Why not.
        why: Refusal,
        /// The session's addresses: it may have ended.
        connection: &'a Connection,
        /// The terms that apply to it.
        terms: &'a Terms,
    },
    /// The expected data connection came: its pinhole was used.
    Used {
        /// How it was announced; `None` if that is not known, or if it came through the port range of an encrypted
        /// session.
        mode: Option<Mode>,
        /// Its addresses.
        flow: Flow,
    },
    /// The expected data connection did not come in time: its pinhole expired.
    Expired(Expectation),
    /// The SYN of the expected data connection came and was admitted, and the host dropped it after that.
    Dropped(Expectation),
    /// The pinhole was closed before the data connection came.
    Closed {
        /// The closed expectation.
        expectation: Expectation,
        /// Why it was closed.
        why: Closed,
    },
    /// The session cannot be read from here on.
    Encrypted {
        /// The port range of the policy for its data connections.
        port_range: Option<PortRangePinhole>,
        /// Whether it was encrypted from its start, without AUTH.
        is_implicit: bool,
    },
    /// The encrypted dialogue is long enough for a login: the port range was opened for the rest of the session.
    RangeOpened(PortRangePinhole),
    /// The port range of the policy for an encrypted session was refused.
    RangeRefused {
        /// The port range.
        port_range: PortRangePinhole,
        /// Why not.
        why: Refusal,
        /// The terms that apply to the session.
        terms: &'a Terms,
    },
    /// The dialogue is not FTP.
    NotFtp,
    /// The session has ended.
    Ended(EndReason),
    /// An anomaly in its segments.
    Anomaly(StreamAnomaly),
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// It ended with FIN.
    Finished,
    /// It was aborted with RST.
    Reset,
    /// A new connection has its addresses.
    Replaced,
    /// No packet came for the time of `limits: idle`.
    Idle,
    /// The table was full, and this session was the one of the lowest rank that had been silent longest.
    Evicted,
    /// The share of the table for sessions before a login was full, and this session had been silent longest among
    /// them.
    EvictedBeforeLogin,
    /// The client's share of the table was full, and this session of the client had been silent longest.
    EvictedOverShare,
}

impl EndReason {
    /// Whether a session was forgotten to make room, although its connection continues.
    pub const fn is_eviction(self) -> bool {
        matches!(self, Self::Evicted | Self::EvictedBeforeLogin | Self::EvictedOverShare)
    }

    /// Its name, as logs and JSON have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Reset => "reset",
            Self::Replaced => "replaced",
            Self::Idle => "idle",
            Self::Evicted => "evicted",
            Self::EvictedBeforeLogin => "evicted-before-login",
            Self::EvictedOverShare => "evicted-over-share",
        }
    }
}

/// Receives the events of all sessions.
pub trait Observer {
    /// An event of a session.
    fn observe(&mut self, at: Timestamp, session: SessionNumber, event: &SessionEvent<'_>);

    /// Bytes of a session were read, in stream order, the first of them with this sequence number.
    fn read(&mut self, _session: SessionNumber, _direction: Direction, _seq: Seq, _bytes: &[u8]) {}
}

/// Ignores all events.
impl Observer for () {
    fn observe(&mut self, _: Timestamp, _: SessionNumber, _: &SessionEvent<'_>) {}
}

impl<F: FnMut(Timestamp, SessionNumber, &SessionEvent<'_>)> Observer for F {
    fn observe(&mut self, at: Timestamp, session: SessionNumber, event: &SessionEvent<'_>) {
        self(at, session, event);
    }
}
