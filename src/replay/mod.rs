//! A capture through the real middle: what would have been opened, refused, used and blocked.
//!
//! The clock is the capture's, the firewall is simulated. Knows nothing of files; frames are handed to it.

mod blocked;
mod json;
mod tally;
mod text;

use std::net::SocketAddr;

pub use blocked::Blocked;
pub use json::Json;
pub use tally::Tally;
pub use text::Text;

use crate::capture::file::Frame;
use crate::capture::link::{self, NotIp};
use crate::firewall::{Admitted, Simulated};
use crate::packet::{Flags, Flow, NotSegment, Segment};
use crate::policy::Policy;
use crate::time::Timestamp;
use crate::tracker::{Handled, News, Observer, SessionNumber, Tracker, World};
use blocked::DataConnections;

/// Whoever shows what a replay finds.
pub trait Report {
    /// Something happened in a session.
    fn news(&mut self, at: Timestamp, session: SessionNumber, news: &News<'_>);

    /// A connection between the two hosts of a session came without having been expected.
    fn blocked(&mut self, at: Timestamp, session: SessionNumber, blocked: &Blocked);

    /// That was all.
    fn summary(&mut self, at: Timestamp, tally: &Tally);
}

/// A report that writes to somewhere, which can fail: the reader of a pipe may go away.
pub trait Sink: Report {
    /// Whether a write has failed, so that going on is in vain.
    fn has_failed(&self) -> bool;

    /// Writes what is left, or tells what failed first.
    fn finish(self) -> std::io::Result<()>;
}

/// The middle, a simulated firewall, and what came of the frames so far.
#[derive(Debug)]
pub struct Replay<R> {
    policy: Policy,
    tracker: Tracker,
    firewall: Simulated,
    connections: DataConnections,
    tally: Tally,
    now: Timestamp,
    report: R,
}

impl<R: Report> Replay<R> {
    /// A replay under this policy.
    pub fn new(policy: Policy, report: R) -> Self {
        let firewall = Simulated::new(policy.control_ports.as_slice().iter().copied());
        Self {
            policy,
            tracker: Tracker::default(),
            firewall,
            connections: DataConnections::default(),
            tally: Tally::default(),
            now: Timestamp::default(),
            report,
        }
    }

    /// What was counted so far.
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Whoever shows it.
    pub fn report(&mut self) -> &mut R {
        &mut self.report
    }

    /// The next frame belongs to another capture. If that begins before this one ended, the two have nothing to do
    /// with each other, and all sessions are forgotten; else it goes on where this one stopped.
    pub fn next_capture(&mut self, begins: Timestamp) {
        if begins < self.now {
            self.tracker.forget();
            self.connections = DataConnections::default();
            self.firewall = Simulated::new(self.policy.control_ports.as_slice().iter().copied());
            self.now = begins;
        }
    }

    /// So many packets of a capture came from interfaces of a kind that cannot be read.
    pub fn skipped(&mut self, packets: u64) {
        self.tally.packets += packets;
        self.tally.damaged += packets;
    }

    /// Takes a frame.
    #[inline]
    pub fn frame(&mut self, frame: &Frame<'_>) {
        match link::network_layer(frame.link, frame.data) {
            Ok(packet) => self.packet(frame.time, packet),
            Err(NotIp::OtherProtocol) => self.tally.packets += 1,
            Err(NotIp::Truncated | NotIp::TooManyTags) => {
                self.tally.packets += 1;
                self.tally.damaged += 1;
            }
        }
    }

    /// Takes a packet that starts with its IP header.
    pub fn packet(&mut self, at: Timestamp, packet: &[u8]) {
        self.tally.packets += 1;
        // Captures hold packets that are a little out of order; time never runs backwards for the middle.
        self.now = self.now.max(at);
        match Segment::parse(packet) {
            Ok(segment) => self.segment(&segment),
            Err(NotSegment::Fragment) => self.tally.fragments += 1,
            Err(NotSegment::NotTcp) => {}
            Err(NotSegment::NotIp | NotSegment::BadTcp) => self.tally.damaged += 1,
        }
    }

    fn segment(&mut self, segment: &Segment<'_>) {
        if segment.missing > 0 {
            self.tally.cut += 1;
        }
        let Self { policy, tracker, firewall, connections, tally, now, report } = self;
        let mut observer = Counting { tally, connections, report };
        let mut world = World { now: *now, policy, firewall, observer: &mut observer };
        if tracker.next_deadline().is_some_and(|due| due <= *now) {
            tracker.advance(&mut world);
        }
        if tracker.handle(segment, &mut world) == Handled::NotOurs && opens(segment) {
            self.connection(&segment.flow);
        }
    }

    /// A connection is being opened that is no control connection.
    fn connection(&mut self, flow: &Flow) {
        let Self { policy, tracker, firewall, connections, tally, now, report } = self;
        if policy.control_ports.contains(flow.destination.port) {
            return;
        }
        // A pinhole first: the addresses of a connection may come again soon, and then were announced again.
        match firewall.admit(*now, flow) {
            Some(Admitted::Pinhole(_) | Admitted::Corridor(_)) => {
                connections.remember(*now, flow);
                let mut observer = Counting { tally, connections, report };
                let mut world = World { now: *now, policy, firewall, observer: &mut observer };
                tracker.admitted(flow, &mut world);
            }
            None if connections.is_known(*now, flow) => {}
            None => {
                let Some(session) = connections.session_between(flow) else { return };
                connections.remember(*now, flow);
                let blocked = Blocked { from: socket_address(flow.source), to: socket_address(flow.destination) };
                tally.blocked += 1;
                report.blocked(*now, session, &blocked);
            }
        }
    }

    /// That was all: tells the summary, and hands back whoever showed it.
    pub fn finish(mut self) -> (Tally, R) {
        self.report.summary(self.now, &self.tally);
        (self.tally, self.report)
    }
}

fn opens(segment: &Segment<'_>) -> bool {
    segment.flags.has(Flags::SYN) && !segment.flags.has(Flags::ACK)
}

fn socket_address(endpoint: crate::packet::Endpoint) -> SocketAddr {
    SocketAddr::new(endpoint.address, endpoint.port.number())
}

/// Counts what the tracker tells, and hands it on.
struct Counting<'a, R> {
    tally: &'a mut Tally,
    connections: &'a mut DataConnections,
    report: &'a mut R,
}

impl<R: Report> Observer for Counting<'_, R> {
    fn observe(&mut self, at: Timestamp, session: SessionNumber, news: &News<'_>) {
        self.tally.count(news);
        match news {
            News::Began { connection, .. } => self.connections.session_begins(session, connection),
            News::Ended(_) => self.connections.session_ends(session),
            _ => {}
        }
        self.report.news(at, session, news);
    }
}
