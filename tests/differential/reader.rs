//! Pinhole's reader with a packet queue before it, as in the daemon, and a record of what it reads.

use std::time::Duration;

use pinhole::core::hold::{PendingPacket, PendingPackets};
use pinhole::core::kernel::Simulated;
use pinhole::core::net::{Direction, Flow, NotSegment, Segment, Seq, replace_payload};
use pinhole::core::policy::Policy;
use pinhole::core::seqadj::{Replacement, Verdict};
use pinhole::core::time::Timestamp;
use pinhole::core::tracker::{
    ClientKey, Environment, Observer, OnGap, SessionEvent, SessionNumber, Tracker, TrackerVerdict,
};

/// The bytes that the reader read, and the pinholes that it opened.
#[derive(Debug, Default)]
pub(crate) struct ReadRecord {
    pub(crate) reads: Vec<(SessionNumber, Direction, Seq, Vec<u8>)>,
    pub(crate) opened: Vec<Opened>,
    /// Why announcements were refused, for people.
    pub(crate) refused: Vec<String>,
    /// Whether a FIN or a RST has gone on by now.
    pub(crate) is_closing: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Opened {
    pub(crate) port: u16,
    pub(crate) while_closing: bool,
}

impl Observer for ReadRecord {
    fn observe(&mut self, _: Timestamp, _: SessionNumber, event: &SessionEvent<'_>) {
        match event {
            SessionEvent::Opened { expectation, .. } => {
                let port = expectation.to.port.number();
                self.opened.push(Opened { port, while_closing: self.is_closing });
            }
            // The bytes of a session that turned out to be none are forgotten.
            SessionEvent::Began { picked_up: false, .. } => self.reads.clear(),
            SessionEvent::Refused { why, .. } => self.refused.push(why.to_string()),
            _ => {}
        }
    }

    fn read(&mut self, session: SessionNumber, direction: Direction, place: Seq, bytes: &[u8]) {
        self.reads.push((session, direction, place, bytes.to_vec()));
    }
}

/// Where a packet goes, and with which bytes.
pub(crate) struct Passed {
    pub(crate) packet: Vec<u8>,
    /// Its TTL ends between the reader and the socket.
    pub(crate) is_lost: bool,
}

/// A packet, and whether its TTL ends between the reader and the socket.
type Arrived = (Vec<u8>, bool);

pub(crate) struct TrackerUnderTest<'p> {
    tracker: Tracker,
    firewall: Simulated,
    policy: &'p Policy,
    now: Timestamp,
    pending: PendingPackets<Arrived>,
    pub(crate) record: ReadRecord,
}

impl<'p> TrackerUnderTest<'p> {
    pub(crate) fn new(policy: &'p Policy) -> Self {
        Self {
            tracker: Tracker::default(),
            firewall: Simulated::new(policy.control_ports.as_slice().iter().copied()),
            policy,
            now: Timestamp::from_secs(1000),
            pending: PendingPackets::default(),
            record: ReadRecord::default(),
        }
    }

    /// Conntrack has seen the whole handshake: another SYN-ACK belongs to the same connection.
    pub(crate) fn handshake_is_over(&mut self) {
        self.firewall.treat_all_as_established();
        // A FIN or a RST before that has ended nothing.
        self.record.is_closing = false;
    }

    /// Advances the clock. Returns held packets that are released.
    pub(crate) fn waits(&mut self, seconds: u16) -> Vec<Passed> {
        self.now = self.now + Duration::from_secs(seconds.into());
        self.with(Tracker::advance);
        let mut passed = Vec::new();
        self.release(None, &mut passed);
        passed
    }

    /// Gives a packet to the reader. Returns the packets that pass now: this one, and those that waited for it.
    pub(crate) fn takes(&mut self, packet: Vec<u8>, is_lost: bool) -> Vec<Passed> {
        let place = Segment::parse(&packet).ok().map(|segment| (segment.flow, segment.seq));
        let mut verdict = self.verdict(&packet, OnGap::Wait);
        let mut arrived = (packet, is_lost);
        if verdict == Verdict::Wait
            && let Some(place) = place
        {
            let client = self.tracker.client_of(&place.0).unwrap_or_else(|| ClientKey::of(place.0.source.address));
            match self.pending.keep(PendingPacket::new(arrived, place, client, self.now)) {
                Ok(()) => return Vec::new(),
                Err((refused, _)) => arrived = refused,
            }
            verdict = self.verdict(&arrived.0, OnGap::Continue);
        }
        let mut passed = Vec::new();
        passed.extend(finish(arrived, verdict));
        self.release(place.map(|(flow, _)| flow), &mut passed);
        passed
    }

    fn release(&mut self, flow: Option<Flow>, passed: &mut Vec<Passed>) {
        while let Some((arrived, verdict)) = self.next_released(flow) {
            passed.extend(finish(arrived, verdict));
        }
    }

    fn next_released(&mut self, flow: Option<Flow>) -> Option<(Arrived, Verdict)> {
        if let Some(arrived) = self.pending.take_expired(self.now) {
            let verdict = self.verdict(&arrived.0, OnGap::Continue);
            return Some((arrived, verdict));
        }
        let flow = flow?;
        let mut from = 0;
        while let Some((place, pending)) = self.pending.take_of_flow(&flow, from) {
            let verdict = self.verdict(&pending.packet.0, OnGap::Wait);
            if verdict != Verdict::Wait {
                return Some((pending.packet, verdict));
            }
            self.pending.put_back(place, pending);
            from = place + 1;
        }
        None
    }

    fn verdict(&mut self, packet: &[u8], on_gap: OnGap) -> Verdict {
        let segment = match Segment::parse_verified(packet) {
            Ok(segment) => segment,
            Err(NotSegment::BadChecksum) => return Verdict::Drop,
            Err(_) => return Verdict::Accept,
        };
        self.with(|tracker, env| {
            if tracker.next_deadline().is_some_and(|due| due <= env.now) {
                tracker.advance(env);
            }
            match tracker.handle_on_gap(&segment, on_gap, env) {
                TrackerVerdict::Session(verdict) => verdict,
                TrackerVerdict::Untracked => Verdict::Accept,
            }
        })
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Tracker, &mut Environment<'_, Simulated, ReadRecord>) -> T) -> T {
        let Self { tracker, firewall, policy, now, record, .. } = self;
        act(tracker, &mut Environment { now: *now, policy, firewall, observer: record })
    }
}

/// Carries out a verdict.
fn finish((packet, is_lost): Arrived, verdict: Verdict) -> Option<Passed> {
    let packet = match verdict {
        Verdict::Replace(Replacement { seq, payload }) => replace_payload(&packet, seq, &payload)?,
        Verdict::Accept | Verdict::Wait => packet,
        Verdict::Drop => return None,
    };
    Some(Passed { packet, is_lost })
}
