//! Pinhole's reader with the queue of packets in front of it, as the daemon has them, and a tap on what it reads.

use std::time::Duration;

use pinhole::core::kernel::Simulated;
use pinhole::core::net::{Direction, Flow, Segment, Seq, has_sound_checksum, replaced};
use pinhole::core::policy::Policy;
use pinhole::core::seqadj::{Replacement, Verdict};
use pinhole::core::time::Timestamp;
use pinhole::core::tracker::{Handled, Observer, SessionEvent, SessionNumber, Tracker, World};

/// As in the daemon.
const MOST_HELD: usize = 32;
const LONGEST_HELD: Duration = Duration::from_secs(3);

/// What the reader read and opened.
#[derive(Debug, Default)]
pub(crate) struct Tap {
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

impl Observer for Tap {
    fn observe(&mut self, _: Timestamp, _: SessionNumber, news: &SessionEvent<'_>) {
        match news {
            SessionEvent::Expected { expectation, .. } => {
                let port = expectation.to.port.number();
                self.opened.push(Opened { port, while_closing: self.is_closing });
            }
            // What a session read that turned out to be none is forgotten.
            SessionEvent::Began { picked_up: false, .. } => self.reads.clear(),
            SessionEvent::Refused { why, .. } => self.refused.push(why.to_string()),
            _ => {}
        }
    }

    fn read(&mut self, session: SessionNumber, direction: Direction, place: Seq, bytes: &[u8]) {
        self.reads.push((session, direction, place, bytes.to_vec()));
    }
}

/// Where a packet goes, and what of it goes there.
pub(crate) struct Passed {
    pub(crate) packet: Vec<u8>,
    /// Its time to live ends behind the reader.
    pub(crate) is_lost: bool,
}

struct HeldPacket {
    packet: Vec<u8>,
    is_lost: bool,
    flow: Flow,
    seq: Seq,
    since: Timestamp,
}

pub(crate) struct Reader<'p> {
    tracker: Tracker,
    firewall: Simulated,
    policy: &'p Policy,
    now: Timestamp,
    held: Vec<HeldPacket>,
    pub(crate) tap: Tap,
}

impl<'p> Reader<'p> {
    pub(crate) fn new(policy: &'p Policy) -> Self {
        Self {
            tracker: Tracker::default(),
            firewall: Simulated::new(policy.control_ports.as_slice().iter().copied()),
            policy,
            now: Timestamp::from_secs(1000),
            held: Vec::new(),
            tap: Tap::default(),
        }
    }

    /// Conntrack has seen the whole handshake: what looks like another one belongs to the same connection.
    pub(crate) fn handshake_is_over(&mut self) {
        self.firewall.finds_nothing_opening();
        // A FIN or a RST before that has ended nothing.
        self.tap.is_closing = false;
    }

    /// Lets time pass. Packets that have waited too long go on.
    pub(crate) fn waits(&mut self, seconds: u16) -> Vec<Passed> {
        self.now = self.now + Duration::from_secs(seconds.into());
        self.with(Tracker::advance);
        let mut passed = Vec::new();
        self.next_to_go(None, &mut passed);
        passed
    }

    /// Shows a packet to the reader. What goes on now: this packet, and those that waited for it.
    pub(crate) fn takes(&mut self, packet: Vec<u8>, is_lost: bool) -> Vec<Passed> {
        let segment = Segment::parse(&packet).ok().map(|segment| (segment.flow, segment.seq));
        let mut verdict = self.verdict(&packet, Tracker::handle);
        if verdict == Verdict::Later
            && let Some((flow, seq)) = segment
        {
            let is_sent_again = self.held.iter().any(|one| one.flow == flow && one.seq == seq);
            if !is_sent_again && self.held.len() < MOST_HELD {
                let since = self.now;
                self.held.push(HeldPacket { packet, is_lost, flow, seq, since });
                return Vec::new();
            }
            verdict = self.verdict(&packet, Tracker::handle_at_last);
        }
        let mut passed = Vec::new();
        passed.extend(finish(packet, is_lost, verdict));
        self.next_to_go(segment.map(|(flow, _)| flow), &mut passed);
        passed
    }

    fn next_to_go(&mut self, flow: Option<Flow>, passed: &mut Vec<Passed>) {
        'again: loop {
            if self.held.first().is_some_and(|oldest| self.now.since(oldest.since) > LONGEST_HELD) {
                let HeldPacket { packet, is_lost, .. } = self.held.remove(0);
                let verdict = self.verdict(&packet, Tracker::handle_at_last);
                passed.extend(finish(packet, is_lost, verdict));
                continue;
            }
            for index in 0..self.held.len() {
                if Some(self.held[index].flow) != flow {
                    continue;
                }
                let packet = self.held[index].packet.clone();
                let verdict = self.verdict(&packet, Tracker::handle);
                if verdict != Verdict::Later {
                    let HeldPacket { packet, is_lost, .. } = self.held.remove(index);
                    passed.extend(finish(packet, is_lost, verdict));
                    continue 'again;
                }
            }
            return;
        }
    }

    fn verdict(
        &mut self,
        packet: &[u8],
        handle: fn(&mut Tracker, &Segment<'_>, &mut World<'_, Simulated, Tap>) -> Handled,
    ) -> Verdict {
        let Ok(segment) = Segment::parse(packet) else { return Verdict::Accept };
        if !has_sound_checksum(packet) {
            return Verdict::Drop;
        }
        self.with(|tracker, world| {
            if tracker.next_deadline().is_some_and(|due| due <= world.now) {
                tracker.advance(world);
            }
            match handle(tracker, &segment, world) {
                Handled::Session(verdict) => verdict,
                Handled::NotOurs => Verdict::Accept,
            }
        })
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Tracker, &mut World<'_, Simulated, Tap>) -> T) -> T {
        let Self { tracker, firewall, policy, now, tap, .. } = self;
        act(tracker, &mut World { now: *now, policy, firewall, observer: tap })
    }
}

/// Carries out a verdict.
fn finish(packet: Vec<u8>, is_lost: bool, verdict: Verdict) -> Option<Passed> {
    let packet = match verdict {
        Verdict::Replace(Replacement { seq, payload }) => replaced(&packet, seq, &payload)?,
        Verdict::Accept | Verdict::Later => packet,
        Verdict::Drop => return None,
    };
    Some(Passed { packet, is_lost })
}
