//! Replays a capture with the tracker that the daemon uses: which pinholes would have been opened and used, which
//! announcements refused, and which connections blocked.
//!
//! The time is that of the capture, the firewall is simulated. Opens no file; the caller supplies frames.

mod blocked;
mod counters;
mod json;
pub mod nat;
mod outside;
mod owned_frame;
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
use crate::core::net::{Flags, Flow, NotSegment, Segment, Seq, replace_addresses, replace_payload};
use crate::core::policy::Policy;
use crate::core::seqadj::Verdict;
use crate::core::time::Timestamp;
use crate::core::tracker::{
    ClientKey, Environment, Observer, OnGap, SessionEvent, SessionNumber, Tracker, TrackerVerdict,
};
use crate::replay::pcap::file::Frame;
use crate::replay::pcap::link::{self, LinkType, NotIp};
use blocked::DataConnections;
use nat::{Gateway, Nat, Translated, Way};
use owned_frame::OwnedFrame;

/// Receives the events of a replay.
pub trait Report {
    fn event(&mut self, at: Timestamp, session: SessionNumber, event: &SessionEvent<'_>);

    /// A connection between the two hosts of a session was not expected.
    fn blocked(&mut self, at: Timestamp, session: SessionNumber, blocked: &Blocked);

    fn summary(&mut self, at: Timestamp, counters: &Counters);
}

/// A report that writes its output. Writing can fail, for example if the reader of a pipe has ended.
pub trait Sink: Report {
    /// Whether a write has failed. Then the replay can stop.
    fn has_failed(&self) -> bool;

    /// Flushes the output, or returns the first error.
    fn finish(self) -> std::io::Result<()>;
}

/// A tracker with a simulated firewall that is given the frames of a capture.
#[derive(Debug)]
pub struct Replay<R> {
    policy: Policy,
    tracker: Tracker,
    firewall: Gateway,
    connections: DataConnections,
    pending: PendingPackets<OwnedFrame>,
    counters: Counters,
    /// Packets that could not be translated for [`Outside`].
    untranslated: u64,
    now: Timestamp,
    report: R,
}

impl<R: Report> Replay<R> {
    pub fn new(policy: Policy, report: R) -> Self {
        Self::with_nat(policy, None, report)
    }

    /// With NAT, the capture has to be one that was taken on the inside of the gateway.
    pub fn with_nat(policy: Policy, nat: Option<Nat>, report: R) -> Self {
        let firewall = Gateway::new(&policy.control_ports, nat);
        Self {
            policy,
            tracker: Tracker::default(),
            firewall,
            connections: DataConnections::default(),
            pending: PendingPackets::default(),
            counters: Counters::default(),
            untranslated: 0,
            now: Timestamp::default(),
            report,
        }
    }

    pub fn report(&mut self) -> &mut R {
        &mut self.report
    }

    /// How many packets of translated connections were passed to [`Outside`] untranslated, because they are truncated.
    pub const fn untranslated(&self) -> u64 {
        self.untranslated
    }

    /// The next frame belongs to another capture. If that capture begins before this one ended, the two are unrelated,
    /// and all sessions are forgotten. Otherwise it continues this capture.
    pub fn next_capture(&mut self, begins: Timestamp, outside: &mut impl Outside) {
        if begins < self.now {
            self.release_pending(outside);
            self.tracker.forget_all();
            self.connections = DataConnections::default();
            self.firewall = self.firewall.restarted();
            self.now = begins;
        }
    }

    /// Handles the kept packets at the end of a capture: the missing segments will not come.
    pub fn release_pending(&mut self, outside: &mut impl Outside) {
        while let Some(frame) = self.pending.take_oldest() {
            self.handle_again(&frame, OnGap::Continue, outside);
        }
    }

    /// Counts packets of a capture whose link type is not supported.
    pub fn skipped(&mut self, packets: u64) {
        self.counters.events.packets += packets;
        self.counters.events.damaged += packets;
    }

    #[inline]
    pub fn frame(&mut self, frame: &Frame<'_>) {
        self.frame_for(frame, &mut ());
    }

    /// Handles a frame, and passes it to `outside` as it would look outside the gateway.
    #[inline]
    pub fn frame_for(&mut self, frame: &Frame<'_>, outside: &mut impl Outside) {
        match link::network_layer(frame.link, frame.data) {
            Ok(packet) => self.captured(frame, packet, outside),
            Err(not_ip) => {
                self.counters.events.packets += 1;
                self.counters.events.damaged += u64::from(not_ip != NotIp::OtherProtocol);
                outside.frame(frame);
            }
        }
    }

    /// Handles a packet that starts with its IP header.
    pub fn packet(&mut self, at: Timestamp, packet: &[u8]) {
        let original_len = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        self.captured(&Frame { time: at, link: LinkType::Ip, data: packet, original_len }, packet, &mut ());
    }

    #[inline]
    fn captured(&mut self, frame: &Frame<'_>, packet: &[u8], outside: &mut impl Outside) {
        self.counters.events.packets += 1;
        // Timestamps in captures may be out of order; the tracker's time must not decrease.
        self.now = self.now.max(frame.time);
        match Segment::parse(packet) {
            Ok(segment) => return self.segment(frame, packet, &segment, outside),
            Err(NotSegment::Fragment) => self.counters.events.fragments += 1,
            Err(NotSegment::NotTcp) => {}
            Err(NotSegment::NotIp | NotSegment::BadTcp | NotSegment::BadChecksum) => self.counters.events.damaged += 1,
        }
        outside.frame(frame);
    }

    #[inline]
    fn segment(&mut self, frame: &Frame<'_>, packet: &[u8], segment: &Segment<'_>, outside: &mut impl Outside) {
        if segment.missing > 0 {
            self.counters.replay.truncated += 1;
        }
        if self.tracker.next_deadline().is_some_and(|due| due <= self.now) {
            let Self { policy, tracker, firewall, connections, counters, now, report, .. } = self;
            let mut observer = Counting { counters, connections, report };
            tracker.advance(&mut Environment { now: *now, policy, firewall, observer: &mut observer });
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
            self.release_after(&segment.flow, outside);
        }
    }

    /// Passes a segment to the tracker as it arrived at the gateway, and to `outside` as it left the gateway. Returns
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
        let mut env = Environment { now: *now, policy, firewall, observer: &mut observer };
        let verdict = match tracker.handle_on_gap(arrived, on_gap, &mut env) {
            TrackerVerdict::Session(Verdict::Wait) => return false,
            TrackerVerdict::Session(verdict) => verdict,
            TrackerVerdict::Untracked => {
                if is_first_syn(segment) {
                    self.connection(&segment.flow);
                    passes = self.firewall.passes(segment);
                }
                Verdict::Accept
            }
        };
        self.emit(frame, packet, segment, passes, &verdict, outside);
        true
    }

    /// A captured segment as it arrived at the gateway.
    fn arrived<'a>(&self, segment: &Segment<'a>, (translated, way): (Translated, Way)) -> Segment<'a> {
        let mut arrived = Segment { flow: translated.arriving(way), ..*segment };
        if way == Way::In && !segment.flags.has(Flags::SYN) {
            arrived.ack = self.ack_outside(&translated, segment.ack);
        }
        arrived
    }

    /// The acknowledgement number that the outside end sent, if the inside end received `ack`.
    fn ack_outside(&self, translated: &Translated, ack: Seq) -> Seq {
        let known = self.tracker.receiver_seq(&translated.inside, ack);
        known.unwrap_or_else(|| self.firewall.ack_before_adjustment(translated, ack))
    }

    #[inline]
    fn emit<O: Outside>(
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
        let Some((translated, way)) = passes else { return outside.frame(frame) };
        let packet_outside = match (way, verdict) {
            (Way::In, _) => {
                let is_first = segment.flags.has(Flags::SYN);
                let acknowledged = |ack| if is_first { ack } else { self.ack_outside(&translated, ack) };
                replace_addresses(packet, &translated.outside.reversed(), segment.seq, acknowledged)
            }
            (Way::Out, Verdict::Replace(other)) => {
                replace_payload(packet, other.seq, &other.payload).and_then(|packet| {
                    let seq = self.firewall.adjusted_seq(&translated, other.seq);
                    replace_addresses(&packet, &translated.outside, seq, |ack| ack)
                })
            }
            (Way::Out, Verdict::Accept | Verdict::Wait | Verdict::Drop) => {
                let seq = self.firewall.adjusted_seq(&translated, segment.seq);
                replace_addresses(packet, &translated.outside, seq, |ack| ack)
            }
        };
        match packet_outside {
            Some(translated) => outside::emit(frame, packet.len(), &translated, outside),
            None => {
                self.untranslated += 1;
                outside.frame(frame);
            }
        }
    }

    /// Keeps a packet until the missing earlier segment has come. Returns false if too many packets are kept.
    #[cold]
    fn keep(&mut self, frame: &Frame<'_>, segment: &Segment<'_>) -> bool {
        let arrived = self.firewall.passes(segment).map_or(segment.flow, |(translated, way)| translated.arriving(way));
        let client = self.tracker.client_of(&arrived).unwrap_or_else(|| ClientKey::of(arrived.source.address));
        let place = (segment.flow, segment.seq);
        self.pending.keep(PendingPacket::new(OwnedFrame::new(frame), place, client, self.now)).is_ok()
    }

    /// Handles kept packets before this segment: packets that were kept for too long, and packets whose missing earlier
    /// segment this segment acknowledges.
    #[cold]
    fn release_before(&mut self, segment: &Segment<'_>, outside: &mut impl Outside) {
        while let Some(frame) = self.pending.take_expired(self.now).or_else(|| self.pending.take_acknowledged(segment))
        {
            self.handle_again(&frame, OnGap::Continue, outside);
        }
    }

    /// Handles the kept packets of a flow again: the missing segment may have come.
    #[cold]
    fn release_after(&mut self, flow: &Flow, outside: &mut impl Outside) {
        let mut from = 0;
        while let Some((place, pending)) = self.pending.take_of_flow(flow, from) {
            if self.handle_again(&pending.packet, OnGap::Wait, outside) {
                // It may be the missing segment of another kept packet.
                from = 0;
            } else {
                self.pending.put_back(place, pending);
                from = place + 1;
            }
        }
    }

    fn handle_again(&mut self, frame: &OwnedFrame, on_gap: OnGap, outside: &mut impl Outside) -> bool {
        let frame = frame.frame(self.now);
        // Both were parsed when the packet was kept.
        let Ok(packet) = link::network_layer(frame.link, frame.data) else { return true };
        let Ok(segment) = Segment::parse(packet) else { return true };
        self.take(&frame, packet, &segment, on_gap, outside)
    }

    /// Handles the SYN of a connection that is not a session: admits a data connection, or reports it as blocked.
    fn connection(&mut self, flow: &Flow) {
        let Self { policy, tracker, firewall, connections, counters, now, report, .. } = self;
        if policy.control_ports.contains(flow.destination.port) {
            return;
        }
        // The pinhole is checked first: the same addresses may be announced and used again soon.
        match firewall.admit(*now, flow) {
            Some((Admitted::Pinhole(_) | Admitted::PortRangePinhole(_), arrived)) => {
                connections.remember(*now, flow);
                let mut observer = Counting { counters, connections, report };
                let mut env = Environment { now: *now, policy, firewall, observer: &mut observer };
                tracker.admitted(&arrived, &mut env);
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

    /// Reports the summary.
    pub fn finish(mut self) -> (Counters, R) {
        self.release_pending(&mut ());
        self.report.summary(self.now, &self.counters);
        (self.counters, self.report)
    }
}

fn is_first_syn(segment: &Segment<'_>) -> bool {
    segment.flags.has(Flags::SYN) && !segment.flags.has(Flags::ACK)
}

fn socket_address(endpoint: crate::core::net::Endpoint) -> SocketAddr {
    SocketAddr::new(endpoint.address, endpoint.port.number())
}

/// Counts the tracker's events and forwards them to the report.
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
