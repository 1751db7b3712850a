//! The events that the tracker reports to its observer: for the log, the counters and the report of a replay.

use std::fmt;
use std::net::SocketAddr;

use crate::core::expectation::{Closed, Expectation, PortRangePinhole, Refusal};
use crate::core::ftp::Mode;
use crate::core::net::{Connection, Direction, Flow, Seq};
use crate::core::session::reassembly::StreamAnomaly;
use crate::core::time::Timestamp;

/// The number of a session, in the order in which they began; the first one is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionNumber(pub(super) u64);

impl SessionNumber {
    /// Some session of an earlier run, which left something behind.
    pub const EARLIER: Self = Self(0);

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
    /// It began, or was picked up in the middle.
    Began {
        /// Between whom.
        connection: &'a Connection,
        /// Whether its beginning was not seen.
        picked_up: bool,
    },
    /// The client gave a command.
    Said {
        /// Its name.
        command: &'static str,
        /// What stood behind it, where no secret can stand there.
        argument: Option<&'a [u8]>,
    },
    /// The client gave a command that the policy denies.
    Denied {
        /// Its name.
        command: &'a str,
    },
    /// The server let a user in.
    LoggedIn {
        /// Who that is, if that was heard.
        user: Option<&'a str>,
    },
    /// An announced data connection is admitted from now on.
    Expected {
        /// How it was announced.
        mode: Mode,
        /// What is admitted.
        expectation: Expectation,
        /// What was announced, where NAT made the line say something else: where the expectation goes.
        rewritten_from: Option<SocketAddr>,
    },
    /// An announced data connection will not be admitted.
    Refused {
        /// How it was announced.
        mode: Mode,
        /// What was announced, where that can be read.
        to: Option<SocketAddr>,
        /// Why not.
        why: Refusal,
    },
    /// The expected data connection came.
    Used {
        /// How it was announced; none where that is not known, or it came through the port_range of an encrypted session.
        mode: Option<Mode>,
        /// Its addresses.
        flow: Flow,
    },
    /// The expected data connection did not come in time.
    Expired(Expectation),
    /// The data connection is not expected any more, and did not come.
    Closed {
        /// What was admitted.
        expectation: Expectation,
        /// Why it is no longer.
        why: Closed,
    },
    /// The session cannot be read from here on.
    Encrypted {
        /// Where the policy will let its data connections go.
        port_range: Option<PortRangePinhole>,
    },
    /// The encrypted dialogue has come as far as a login: its data connections may go there while the session lasts.
    RangeOpened(PortRangePinhole),
    /// The range that the policy has for an encrypted session was not opened.
    RangeRefused {
        /// Which one.
        port_range: PortRangePinhole,
        /// Why not.
        why: Refusal,
    },
    /// What the two ends talk is not FTP.
    NotFtp,
    /// The session is over.
    Ended(Ended),
    /// Something about its segments that does not happen in a healthy connection.
    Anomaly(StreamAnomaly),
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    /// One end had nothing more to say.
    Finished,
    /// One end aborted it.
    Reset,
    /// A new connection took its addresses.
    Replaced,
    /// Nothing was heard of it for so long that it was forgotten.
    Idle,
    /// The table was full, and it was of the lowest rank, and silent longest.
    Evicted,
    /// Sessions before a login had their share of the table, and it was the one among them that was silent longest.
    EvictedBeforeLogin,
    /// Its client had its share of the table, and it was that client's own that was silent longest.
    EvictedOverShare,
}

impl Ended {
    /// Whether it was forgotten while it went on, to make room.
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

/// Whoever wants to know what happens.
pub trait Observer {
    /// Something happened in a session.
    fn observe(&mut self, at: Timestamp, session: SessionNumber, news: &SessionEvent<'_>);

    /// These bytes of a session were read, the first of which has that sequence number. In the order of the stream.
    fn read(&mut self, _session: SessionNumber, _direction: Direction, _place: Seq, _bytes: &[u8]) {}
}

/// Nobody wants to know.
impl Observer for () {
    fn observe(&mut self, _: Timestamp, _: SessionNumber, _: &SessionEvent<'_>) {}
}

impl<F: FnMut(Timestamp, SessionNumber, &SessionEvent<'_>)> Observer for F {
    fn observe(&mut self, at: Timestamp, session: SessionNumber, news: &SessionEvent<'_>) {
        self(at, session, news);
    }
}
