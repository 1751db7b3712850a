//! Replays a capture through the real tracker: what would have been opened, refused, used and blocked.
//!
//! The clock is the capture's, the firewall is simulated. Knows nothing of files; the caller supplies frames.

mod blocked;
mod counters;
mod held;
mod json;
pub mod nat;
mod outside;
pub mod pcap;
mod text;

use std::net::SocketAddr;

pub use blocked::Blocked;
pub use counters::{Counters, ReplayCounters};
pub use json::Json;
pub use outside::Outside;
pub use text::Text;

use crate::core::hold::{PendingPacket, PendingPackets};
use crate::core::kernel::Admitted;
use crate::core::net::{Flags, Flow, NotSegment, Segment, Seq, readdressed, replaced};
use crate::core::policy::Policy;
use crate::core::seqadj::Verdict;
use crate::core::time::Timestamp;
use crate::core::tracker::{ClientKey, Handled, Observer, OnGap, SessionEvent, SessionNumber, Tracker, World};
use crate::replay::pcap::file::Frame;
use crate::replay::pcap::link::{self, LinkType, NotIp};
use blocked::DataConnections;
use held::OwnedFrame;
use nat::{Gateway, Nat, Translated, Way};

/// Whoever shows what a replay finds.
pub trait Report {
    fn event(&mut self, at: Timestamp, session: SessionNumber, event: &SessionEvent<'_>);

    /// A connection between the two hosts of a session came without having been expected.
    fn blocked(&mut self, at: Timestamp, session: SessionNumber, blocked: &Blocked);

    fn summary(&mut self, at: Timestamp, counters: &Counters);
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
    firewall: Gateway,
    connections: DataConnections,
    pending: PendingPackets<OwnedFrame>,
    counters: Counters,
    /// Packets that the other side could not be shown as it would have seen them.
    shown_as_captured: u64,
    now: Timestamp,
    report: R,
}

impl<R: Report> Replay<R> {
    pub fn new(policy: Policy, report: R) -> Self {
        Self::behind(policy, None, report)
    }

    /// A replay of what was captured inside of such a NAT.
    pub fn behind(policy: Policy, nat: Option<Nat>, report: R) -> Self {
        let firewall = Gateway::new(&policy.control_ports, nat);
        Self {
            policy,
            tracker: Tracker::default(),
            firewall,
            connections: DataConnections::default(),
            pending: PendingPackets::default(),
            counters: Counters::default(),
            shown_as_captured: 0,
            now: Timestamp::default(),
            report,
        }
    }

    pub fn report(&mut self) -> &mut R {
        &mut self.report
    }

    /// How many packets of translated connections [`Outside`] was shown as they were captured, because they are not whole.
    pub const fn shown_as_captured(&self) -> u64 {
        self.shown_as_captured
    }

    /// The next frame belongs to another capture. If that begins before this one ended, the two have nothing to do
    /// with each other, and all sessions are forgotten; else it goes on where this one stopped.
    pub fn next_capture(&mut self, begins: Timestamp, outside: &mut impl Outside) {
        if begins < self.now {
            self.nothing_more_comes(outside);
            self.tracker.forget_all();
            self.connections = DataConnections::default();
            self.firewall = self.firewall.anew();
            self.now = begins;
        }
    }

    /// That was all: no packet has to wait any longer.
    pub fn nothing_more_comes(&mut self, outside: &mut impl Outside) {
        while let Some(frame) = self.pending.take_oldest() {
            self.handle_again(&frame, OnGap::Continue, outside);
        }
    }

    /// So many packets of a capture came from interfaces of a kind that cannot be read.
    pub fn skipped(&mut self, packets: u64) {
        self.counters.events.packets += packets;
        self.counters.events.damaged += packets;
    }

    #[inline]
    pub fn frame(&mut self, frame: &Frame<'_>) {
        self.frame_for(frame, &mut ());
    }

    /// Takes a frame, and shows the other side what it would have seen of it.
    #[inline]
    pub fn frame_for(&mut self, frame: &Frame<'_>, outside: &mut impl Outside) {
        match link::network_layer(frame.link, frame.data) {
            Ok(packet) => self.captured(frame, packet, outside),
            Err(not_ip) => {
                self.counters.events.packets += 1;
                self.counters.events.damaged += u64::from(not_ip != NotIp::OtherProtocol);
                outside.sees(frame);
            }
        }
    }

    /// Takes a packet that starts with its IP header.
    pub fn packet(&mut self, at: Timestamp, packet: &[u8]) {
        let original_len = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        self.captured(&Frame { time: at, link: LinkType::Ip, data: packet, original_len }, packet, &mut ());
    }

    #[inline]
    fn captured(&mut self, frame: &Frame<'_>, packet: &[u8], outside: &mut impl Outside) {
        self.counters.events.packets += 1;
        // Captures hold packets that are a little out of order; time never runs backwards for the middle.
        self.now = self.now.max(frame.time);
        match Segment::parse(packet) {
            Ok(segment) => return self.segment(frame, packet, &segment, outside),
            Err(NotSegment::Fragment) => self.counters.events.fragments += 1,
            Err(NotSegment::NotTcp) => {}
            Err(NotSegment::NotIp | NotSegment::BadTcp | NotSegment::BadChecksum) => self.counters.events.damaged += 1,
        }
        outside.sees(frame);
    }

    #[inline]
    fn segment(&mut self, frame: &Frame<'_>, packet: &[u8], segment: &Segment<'_>, outside: &mut impl Outside) {
        if segment.missing > 0 {
            self.counters.replay.truncated += 1;
        }
        if self.tracker.next_deadline().is_some_and(|due| due <= self.now) {
            let Self { policy, tracker, firewall, connections, counters, now, report, .. } = self;
            let mut observer = Counting { counters, connections, report };
            tracker.advance(&mut World { now: *now, policy, firewall, observer: &mut observer });
        }
        if !self.pending.is_empty() {
            self.release_before(segment, outside);
        }
        if !self.take(frame, packet, segment, OnGap::Wait, outside) {
            if self.keep(frame, segment) {
                return;
            }
            self.take(frame, packet, segment, OnGap::Continue, outside);
        }
        if !self.pending.is_empty() {
            self.release_behind(&segment.flow, outside);
        }
    }

    /// Hands a segment to the tracker as it arrived at the gateway, and shows the other side what becomes of it. Returns
    /// false if the segment has to wait.
    #[inline]
    fn take(
        &mut self,
        frame: &Frame<'_>,
        packet: &[u8],
        segment: &Segment<'_>,
        on_gap: OnGap,
        outside: &mut impl Outside,
    ) -> bool {
        let mut passes = self.firewall.passes(segment);
        let translated;
        let arrived = match passes {
            None => segment,
            Some(passes) => {
                translated = self.arrived(segment, passes);
                &translated
            }
        };
        let Self { policy, tracker, firewall, connections, counters, now, report, .. } = self;
        let mut observer = Counting { counters, connections, report };
        let mut world = World { now: *now, policy, firewall, observer: &mut observer };
        let verdict = match tracker.handle_on_gap(arrived, on_gap, &mut world) {
            Handled::Session(Verdict::Later) => return false,
            Handled::Session(verdict) => verdict,
            Handled::NotOurs => {
                if opens(segment) {
                    self.connection(&segment.flow);
                    passes = self.firewall.passes(segment);
                }
                Verdict::Accept
            }
        };
        self.show(frame, packet, segment, passes, &verdict, outside);
        true
    }

    /// A captured segment as it arrived at the gateway.
    fn arrived<'a>(&self, segment: &Segment<'a>, (translated, way): (Translated, Way)) -> Segment<'a> {
        let mut arrived = Segment { flow: translated.arriving(way), ..*segment };
        if way == Way::In && !segment.flags.has(Flags::SYN) {
            arrived.ack = self.acknowledged_outside(&translated, segment.ack);
        }
        arrived
    }

    /// What the outside end acknowledged where the inside end hears this.
    fn acknowledged_outside(&self, translated: &Translated, ack: Seq) -> Seq {
        let known = self.tracker.place_for_receiver(&translated.inside, ack);
        known.unwrap_or_else(|| self.firewall.unshifted(translated, ack))
    }

    #[inline]
    fn show<O: Outside>(
        &mut self,
        frame: &Frame<'_>,
        packet: &[u8],
        segment: &Segment<'_>,
        passes: Option<(Translated, Way)>,
        verdict: &Verdict,
        outside: &mut O,
    ) {
        if !O::WANTED {
            return;
        }
        let Some((translated, way)) = passes else { return outside.sees(frame) };
        let seen = match (way, verdict) {
            (Way::In, _) => {
                let is_first = segment.flags.has(Flags::SYN);
                let acknowledged = |ack| if is_first { ack } else { self.acknowledged_outside(&translated, ack) };
                readdressed(packet, &translated.outside.reversed(), segment.seq, acknowledged)
            }
            (Way::Out, Verdict::Replace(other)) => replaced(packet, other.seq, &other.payload).and_then(|packet| {
                let seq = self.firewall.shifted(&translated, other.seq);
                readdressed(&packet, &translated.outside, seq, |ack| ack)
            }),
            (Way::Out, Verdict::Accept | Verdict::Later | Verdict::Drop) => {
                let seq = self.firewall.shifted(&translated, segment.seq);
                readdressed(packet, &translated.outside, seq, |ack| ack)
            }
        };
        match seen {
            Some(seen) => outside::show(frame, packet.len(), &seen, outside),
            None => {
                self.shown_as_captured += 1;
                outside.sees(frame);
            }
        }
    }

    /// Keeps a packet until the missing segment in front of it has come. Returns false if it cannot be kept.
    #[cold]
    fn keep(&mut self, frame: &Frame<'_>, segment: &Segment<'_>) -> bool {
        let arrived = self.firewall.passes(segment).map_or(segment.flow, |(translated, way)| translated.arriving(way));
        let client = self.tracker.client_of(&arrived).unwrap_or_else(|| ClientKey::of(arrived.source.address));
        let place = (segment.flow, segment.seq);
        self.pending.keep(PendingPacket::new(OwnedFrame::new(frame), place, client, self.now)).is_ok()
    }

    /// Handles the kept packets that do not have to wait any longer when this segment comes: those that were kept for too
    /// long, and those in front of which this segment acknowledges everything.
    #[cold]
    fn release_before(&mut self, segment: &Segment<'_>, outside: &mut impl Outside) {
        while let Some(frame) = self.pending.take_expired(self.now).or_else(|| self.pending.take_acknowledged(segment))
        {
            self.handle_again(&frame, OnGap::Continue, outside);
        }
    }

    /// Handles the kept packets of a flow again: the missing segment may have come.
    #[cold]
    fn release_behind(&mut self, flow: &Flow, outside: &mut impl Outside) {
        let mut from = 0;
        while let Some((place, pending)) = self.pending.take_of_flow(flow, from) {
            if self.handle_again(&pending.packet, OnGap::Wait, outside) {
                // It may be the one for which another packet waits.
                from = 0;
            } else {
                self.pending.put_back(place, pending);
                from = place + 1;
            }
        }
    }

    fn handle_again(&mut self, frame: &OwnedFrame, on_gap: OnGap, outside: &mut impl Outside) -> bool {
        let frame = frame.frame(self.now);
        // Both were parsed before.
        let Ok(packet) = link::network_layer(frame.link, frame.data) else { return true };
        let Ok(segment) = Segment::parse(packet) else { return true };
        self.take(&frame, packet, &segment, on_gap, outside)
    }

    /// A connection is being opened that is no control connection.
    fn connection(&mut self, flow: &Flow) {
        let Self { policy, tracker, firewall, connections, counters, now, report, .. } = self;
        if policy.control_ports.contains(flow.destination.port) {
            return;
        }
        // A pinhole first: the addresses of a connection may come again soon, and then were announced again.
        match firewall.admit(*now, flow) {
            Some((Admitted::Pinhole(_) | Admitted::PortRangePinhole(_), arrived)) => {
                connections.remember(*now, flow);
                let mut observer = Counting { counters, connections, report };
                let mut world = World { now: *now, policy, firewall, observer: &mut observer };
                tracker.admitted(&arrived, &mut world);
            }
            None if connections.is_known(*now, flow) => {}
            None => {
                let Some(session) = connections.session_between(flow) else { return };
                connections.remember(*now, flow);
                let blocked = Blocked { from: socket_address(flow.source), to: socket_address(flow.destination) };
                counters.replay.blocked += 1;
                report.blocked(*now, session, &blocked);
            }
        }
    }

    /// That was all: tells the summary, and hands back whoever showed it.
    pub fn finish(mut self) -> (Counters, R) {
        self.nothing_more_comes(&mut ());
        self.report.summary(self.now, &self.counters);
        (self.counters, self.report)
    }
}

fn opens(segment: &Segment<'_>) -> bool {
    segment.flags.has(Flags::SYN) && !segment.flags.has(Flags::ACK)
}

fn socket_address(endpoint: crate::core::net::Endpoint) -> SocketAddr {
    SocketAddr::new(endpoint.address, endpoint.port.number())
}

/// Counts what the tracker tells, and hands it on.
struct Counting<'a, R> {
    counters: &'a mut Counters,
    connections: &'a mut DataConnections,
    report: &'a mut R,
}

impl<R: Report> Observer for Counting<'_, R> {
    fn observe(&mut self, at: Timestamp, session: SessionNumber, event: &SessionEvent<'_>) {
        self.counters.events.count(event);
        match event {
            SessionEvent::Began { connection, .. } => self.connections.session_begins(session, connection),
            SessionEvent::Ended(_) => self.connections.session_ends(session),
            _ => {}
        }
        self.report.event(at, session, event);
    }
}

#[cfg(test)]
mod hold_tests;
