//! Reassembles one direction of a TCP connection. Knows nothing of lines.
//!
//! The first copy of a byte that was read counts. A segment that repeats the byte with another value is corrected or
//! dropped, so that the receiver cannot read anything else. A segment that the receiver would ignore does not count
//! either. Segments out of order are buffered, within bounds, until the missing part comes, or until the receiver
//! acknowledges the missing part although it was never read: a capture may lose packets, and a full queue lets them
//! pass unread.

mod reorder;
mod unacked;
mod urgent;

use reorder::ReorderBuffer;
use unacked::Unacked;

use crate::core::net::{Direction, Flags, Segment, Seq};

/// How far ahead of the stream a segment may lie and still be believed. A control connection's window is far smaller.
const FARTHEST_AHEAD: u32 = 1 << 20;

/// How far ahead a segment may lie whose receiver has acknowledged all before it: nothing is known of what passed unread,
/// but sequence numbers mean something only while they are not half of all of them apart.
const FARTHEST_GAP: u32 = 1 << 30;

/// By how much a timestamp may lie before the latest one: what Linux tolerates (`TCP_PAWS_WINDOW`).
const TIMESTAMP_TOLERANCE: i32 = 1;

/// How many bytes that the receiver has not acknowledged are kept whatever the limit: nearly every line.
const USUAL_UNACKED: usize = 1024;

/// What stands in place of bytes that must not be read in another version than before, and are not known any more. No
/// command of FTP becomes another one by it.
pub const OVERWRITTEN: u8 = b'X';

/// What is believed of bytes that come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The receiver does not read again what it has acknowledged.
    Acknowledgements,
    /// An acknowledgement may be forged: only what was read here and is known still comes again as it was.
    OnlyReadFrom(Start),
}

/// Whether the first byte that was read is known to be the first one of the stream. A client may send the segment that
/// begins a picked-up session ahead of others, which it sends then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// It is: nothing stands in front of it.
    Known,
    /// It may not be.
    Unknown,
}

/// What a [`Stream`] delivers, in the order of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery<'a> {
    /// The next bytes, and the sequence number of the first of them.
    Bytes(Seq, &'a [u8]),
    /// Bytes are missing here and will not come any more. What follows continues behind the gap.
    Gap,
}

/// Something about a segment that does not happen in a healthy connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamAnomaly {
    /// A byte that was read before came again with another value.
    DifferingCopy,
    /// The segment lies too far from where the stream is.
    FarAway,
    /// More waits out of order than the limit allows.
    TooMuchWaiting,
    /// Bytes never came, yet the receiver acknowledged them.
    Lost,
    /// A segment that a receiver ignores: without ACK, or with a SYN in the middle of the connection.
    Unacceptable,
    /// The segment's timestamp is older than the latest one (PAWS, RFC 7323).
    StaleTimestamp,
    /// The segment ends in front of what was read, or goes on behind where it has ended.
    BesideFin,
    /// The segment comes from the side of its receiver.
    WrongSide,
    /// The segment repeats bytes that the receiver may not have, and what they were is not known any more.
    Unverifiable,
}

/// What a segment may bring to its receiver, so that the receiver reads what was read here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acceptance {
    /// Its payload as it is.
    AsSent,
    /// This payload instead.
    Corrected(Vec<u8>),
    /// Nothing of it.
    Refused(StreamAnomaly),
}

/// One direction's bytes, put in order.
///
/// Kept small, because there is one for each direction of every session: hence flags instead of options.
#[derive(Debug, Default)]
pub struct Stream {
    begun: bool,
    has_acked: bool,
    has_fin: bool,
    has_timestamp: bool,
    has_urgent: bool,
    has_doubt: bool,
    /// Whether bytes passed unread in the middle.
    has_gap: bool,
    /// The sequence number of the first byte that was seen, or that a SYN promised; once it has begun.
    start: Seq,
    /// The sequence number of the next byte to deliver; once it has begun.
    next: Seq,
    /// What stands in front of this was never read.
    read_from: Seq,
    /// Up to where the receiver has acknowledged; once it has.
    acked: Seq,
    /// Where the sender said that its data ends; once it has.
    fin: Seq,
    /// The timestamp of the latest segment in order; once there was one.
    timestamp: u32,
    /// Up to where what is read is doubtful; where anything is.
    doubted_to: Seq,
    /// Where urgent data ended, at the farthest; once there was any.
    urgent_end: Seq,
    unacked: Unacked,
    /// Allocated only while something is out of order, which is rare.
    reorder: Option<Box<ReorderBuffer>>,
}

impl Stream {
    /// The sequence number of the first byte that was seen, or that a SYN promised.
    pub fn start(&self) -> Option<Seq> {
        self.begun.then_some(self.start)
    }

    /// The sequence number of the next byte to deliver; none before the first segment.
    pub fn next(&self) -> Option<Seq> {
        self.begun.then_some(self.next)
    }

    /// Whether something waits for what is missing in front of it.
    pub fn is_waiting(&self) -> bool {
        self.reorder.is_some()
    }

    /// How many bytes are kept of it, with what it takes to keep them, beyond the few that nearly every stream keeps.
    pub fn buffered_bytes(&self) -> usize {
        let reorder = self.reorder.as_ref().map_or(0, |reorder| reorder.held_bytes());
        self.unacked.len().saturating_sub(USUAL_UNACKED) + reorder
    }

    /// Whether bytes are missing in front of this place that the receiver has not acknowledged, so that they may come.
    pub fn misses_before(&self, place: Seq) -> bool {
        self.begun && place.is_after(self.next) && !self.is_acknowledged(place)
    }

    /// Whether the receiver has acknowledged everything up to this place.
    pub fn is_acknowledged(&self, place: Seq) -> bool {
        self.has_acked && !self.acked.is_before(place)
    }

    /// Whether everything up to the sender's FIN has been delivered.
    pub fn is_at_fin(&self) -> bool {
        self.begun && self.has_fin && self.fin == self.next
    }

    /// And whether the receiver has acknowledged the FIN.
    pub fn has_ended(&self) -> bool {
        self.is_at_fin() && self.has_acked && self.acked.is_after(self.fin)
    }

    /// Whether a reset with this sequence number is one that the receiver believes at once (RFC 5961): at the next byte,
    /// which is the first one that it has not acknowledged where it has not got all that was read.
    pub fn believes_reset_at(&self, seq: Seq) -> bool {
        self.begun && !seq.is_after(self.next) && !seq.is_before(self.first_unacked())
    }

    /// The sequence number of the first byte that the receiver may not have.
    fn first_unacked(&self) -> Seq {
        let first = if self.has_acked { self.read_from.later(self.acked) } else { self.read_from };
        if first.is_after(self.next) { self.next } else { first }
    }

    /// What is read up to there is doubtful: the receiver may not take it.
    pub fn doubt_before(&mut self, place: Seq) {
        self.doubted_to = if self.has_doubt { self.doubted_to.later(place) } else { place };
        self.has_doubt = true;
    }

    /// Up to where what is read is doubtful, if anything is.
    pub fn doubted_to(&self) -> Option<Seq> {
        self.has_doubt.then_some(self.doubted_to)
    }

    /// Begins at this place, unless it has begun: the other side's acknowledgement of a SYN tells it.
    pub fn begin_at(&mut self, seq: Seq) {
        if !self.begun {
            self.begun = true;
            self.start = seq;
            self.next = seq;
            self.read_from = seq;
        }
    }

    /// What of a segment may go on, so that the receiver reads nothing else than what was read here and will be read
    /// from [`segment`](Self::segment).
    ///
    /// `limit` bounds the bytes that may be kept.
    pub fn judge(&self, segment: &Segment<'_>, direction: Direction, trust: Trust, limit: usize) -> Acceptance {
        let Segment { flags, payload, .. } = segment;
        let says_something =
            !payload.is_empty() || segment.missing > 0 || flags.has(Flags::FIN) || flags.has(Flags::URG);
        if !says_something {
            return Acceptance::AsSent;
        }
        if flags.has(Flags::SYN) || (!flags.has(Flags::ACK) && !flags.has(Flags::RST)) {
            return Acceptance::Refused(StreamAnomaly::Unacceptable);
        }
        if self.has_timestamp
            && let Some(timestamp) = segment.timestamp
            && (self.timestamp.wrapping_sub(timestamp)).cast_signed() > TIMESTAMP_TOLERANCE
        {
            return Acceptance::Refused(StreamAnomaly::StaleTimestamp);
        }
        if !self.begun {
            return Acceptance::AsSent;
        }
        // Where a FIN has gone on, or would stand in front of what was read, its receiver may read less than was read.
        let end = segment.seq + (payload.len() + segment.missing);
        let read_to = self.reorder.as_ref().map_or(self.next, |reorder| self.next.later(reorder.end()));
        let ends_before = flags.has(Flags::FIN) && end.is_before(read_to);
        if ends_before {
            return Acceptance::Refused(StreamAnomaly::BesideFin);
        }
        if self.has_fin && end.is_after(self.fin) {
            // What stands in front of it may be missing still.
            let before = usize::try_from(self.fin - segment.seq).ok().filter(|before| *before > 0);
            return match before.and_then(|before| payload.get(..before)) {
                Some(payload) if !flags.has(Flags::FIN) => {
                    match self.judge(&Segment { payload, missing: 0, ..*segment }, direction, trust, limit) {
                        Acceptance::AsSent => Acceptance::Corrected(payload.to_vec()),
                        judged => judged,
                    }
                }
                _ => Acceptance::Refused(StreamAnomaly::BesideFin),
            };
        }
        // And an urgent byte that was read as another one.
        let is_urgent = flags.has(Flags::URG) && self.makes_urgent_what_was_read(segment);
        if segment.seq == self.next && self.reorder.is_none() && !is_urgent {
            return Acceptance::AsSent;
        }
        self.judge_unusual(segment, direction, trust, limit)
    }

    #[cold]
    fn judge_unusual(&self, segment: &Segment<'_>, direction: Direction, trust: Trust, limit: usize) -> Acceptance {
        let (seq, payload) = (segment.seq, segment.payload);
        let ahead = seq - self.next;
        if ahead.unsigned_abs() > FARTHEST_GAP {
            return Acceptance::Refused(StreamAnomaly::FarAway);
        }
        let is_acknowledged = self.is_acknowledged(seq);
        if ahead > 0 && !is_acknowledged {
            if ahead.unsigned_abs() > FARTHEST_AHEAD {
                return Acceptance::Refused(StreamAnomaly::FarAway);
            }
            let waits = self.reorder.as_ref();
            // A client's commands must not pass unread. Of a server's, whose replies may be long and whose
            // acknowledgements may pass unseen, what is missing is given up instead.
            if direction == Direction::FromClient
                && waits.is_some_and(|waits| waits.would_be_over(payload.len(), limit))
            {
                return Acceptance::Refused(StreamAnomaly::TooMuchWaiting);
            }
        }
        let mut corrected = payload.to_vec();
        match trust {
            Trust::Acknowledgements => {
                if direction == Direction::FromClient && self.repeats_unverifiable(seq, seq + payload.len()) {
                    return Acceptance::Refused(StreamAnomaly::Unverifiable);
                }
            }
            Trust::OnlyReadFrom(start) => {
                let known = usize::try_from(self.next - seq).unwrap_or(0).min(corrected.len());
                let never_read = usize::try_from(self.read_from - seq).unwrap_or(0).min(known);
                let kept = if start == Start::Known && !self.has_gap { never_read } else { 0 };
                corrected[kept..known].fill(OVERWRITTEN);
            }
        }
        self.unacked.correct(self.next, seq, &mut corrected);
        if let Some(reorder) = &self.reorder {
            reorder.correct(seq, &mut corrected);
        }
        let is_urgent = segment.flags.has(Flags::URG) && self.makes_urgent_what_was_read(segment);
        if corrected == payload && !is_urgent { Acceptance::AsSent } else { Acceptance::Corrected(corrected) }
    }

    /// Whether these bytes have some among them that were read, that the receiver may not have, and that are not known
    /// any more: it must not read them in another version.
    fn repeats_unverifiable(&self, from: Seq, to: Seq) -> bool {
        let known_from = self.next.moved(-(self.unacked.len() as i32));
        let from = from.later(self.read_from);
        let from = if self.has_acked { from.later(self.acked) } else { from };
        let to = if to.is_before(known_from) { to } else { known_from };
        from.is_before(to)
    }

    /// Takes a segment of this direction, as it goes on, and delivers in order all bytes that it completes.
    ///
    /// `limit` bounds the bytes that may be kept.
    pub fn segment(
        &mut self,
        segment: &Segment<'_>,
        limit: usize,
        mut deliver: impl FnMut(Delivery<'_>),
    ) -> Option<StreamAnomaly> {
        // A SYN takes a place in the stream of its own.
        let seq = if segment.flags.has(Flags::SYN) { segment.seq + 1 } else { segment.seq };
        self.begin_at(seq);
        let next = self.next;
        let end = seq + (segment.payload.len() + segment.missing);
        // Only what brings something new, or nothing in the right place, tells the time.
        let is_next = !seq.is_after(next) && (end.is_after(next) || (end == next && seq == next));
        if let Some(timestamp) = segment.timestamp
            && is_next
        {
            let is_later = timestamp.wrapping_sub(self.timestamp).cast_signed() > 0;
            self.timestamp = if self.has_timestamp && !is_later { self.timestamp } else { timestamp };
            self.has_timestamp = true;
        }
        if let Some(urgent_end) = self.urgent_end_with(segment) {
            self.urgent_end = urgent_end;
            // Long after it, a wrapped sequence number must not look like one before it.
            self.has_urgent = next - urgent_end <= FARTHEST_AHEAD as i32;
        }
        self.has_doubt &= next - self.doubted_to <= FARTHEST_AHEAD as i32;
        // The last one counts: one that lies too far ahead cannot hide the real one.
        if segment.flags.has(Flags::FIN) && !end.is_before(next) && (end - next).unsigned_abs() <= FARTHEST_AHEAD {
            self.has_fin = true;
            self.fin = end;
        }
        let mut anomaly = None;
        if seq == next && self.reorder.is_none() {
            if !segment.payload.is_empty() {
                self.deliver(segment.payload, limit, &mut deliver);
            }
        } else if !segment.payload.is_empty() {
            anomaly = self.unusual_segment(seq, segment.payload, limit, &mut deliver);
        }
        if segment.missing > 0 && self.next == seq + segment.payload.len() {
            // What the capture did not keep was sent nevertheless.
            self.skip_to(end, limit, &mut deliver);
        }
        // A FIN in front of bytes that follow was not one.
        self.has_fin &= !self.next.is_after(self.fin);
        anomaly
    }

    /// Gives up what is missing before this place, and what waits before it.
    pub fn give_up_before(&mut self, place: Seq) {
        if place.is_after(self.next) {
            self.next = place;
            self.read_from = place;
            self.has_gap = true;
            self.unacked.clear();
            self.reorder = None;
        }
    }

    /// Takes the other side's acknowledgement, which may tell that missing bytes will never come.
    pub fn acknowledged(
        &mut self,
        ack: Seq,
        limit: usize,
        mut deliver: impl FnMut(Delivery<'_>),
    ) -> Option<StreamAnomaly> {
        self.acked = if self.has_acked { self.acked.later(ack) } else { ack };
        self.has_acked = true;
        self.unacked.acknowledged(self.next, self.acked);
        let waits_at = self.reorder.as_ref()?.first();
        if waits_at.is_after(ack) {
            return None;
        }
        self.skip_to(waits_at, limit, &mut deliver);
        Some(StreamAnomaly::Lost)
    }

    fn deliver(&mut self, bytes: &[u8], limit: usize, deliver: &mut impl FnMut(Delivery<'_>)) {
        let next = self.next;
        self.unacked.remember(bytes, limit.max(USUAL_UNACKED));
        self.next = next + bytes.len();
        deliver(Delivery::Bytes(next, bytes));
    }

    /// Everything but the plain next segment: copies, overlaps, gaps. Kept out of line for the plain one's sake.
    #[cold]
    fn unusual_segment(
        &mut self,
        seq: Seq,
        payload: &[u8],
        limit: usize,
        deliver: &mut impl FnMut(Delivery<'_>),
    ) -> Option<StreamAnomaly> {
        let ahead = seq - self.next;
        if ahead.unsigned_abs() > FARTHEST_GAP {
            return Some(StreamAnomaly::FarAway);
        }
        if ahead > 0 {
            if self.is_acknowledged(seq) {
                // The receiver has everything before this segment: what is missing here was lost on the way here alone.
                let waits_at = self.reorder.as_ref().map(|reorder| reorder.first());
                self.skip_to(waits_at.filter(|first| first.is_before(seq)).unwrap_or(seq), limit, deliver);
                // What waited has brought the stream nearer to this segment, up to it, or beyond it.
                self.unusual_segment(seq, payload, limit, deliver);
                return Some(StreamAnomaly::Lost);
            }
            if ahead.unsigned_abs() > FARTHEST_AHEAD {
                return Some(StreamAnomaly::FarAway);
            }
            let reorder = self.reorder.get_or_insert_default();
            reorder.insert(seq, payload);
            if reorder.is_over(limit) {
                let first = reorder.first();
                self.skip_to(first, limit, deliver);
                return Some(StreamAnomaly::TooMuchWaiting);
            }
            return None;
        }
        if ahead.unsigned_abs() > FARTHEST_AHEAD {
            return Some(StreamAnomaly::FarAway);
        }
        let known = payload.len().min(usize::try_from(-ahead).unwrap_or(0));
        let rest = &payload[known..];
        if !rest.is_empty() {
            match &mut self.reorder {
                None => self.deliver(rest, limit, deliver),
                Some(reorder) => {
                    reorder.insert(self.next, rest);
                    self.drain(limit, deliver);
                }
            }
        }
        None
    }

    /// Gives up what is missing before `place`, which is not behind the stream.
    fn skip_to(&mut self, place: Seq, limit: usize, deliver: &mut impl FnMut(Delivery<'_>)) {
        self.next = place;
        self.read_from = place;
        self.has_gap = true;
        self.unacked.clear();
        deliver(Delivery::Gap);
        self.drain(limit, deliver);
    }

    /// Delivers what waits and has become next.
    fn drain(&mut self, limit: usize, deliver: &mut impl FnMut(Delivery<'_>)) {
        while let Some(reorder) = &mut self.reorder
            && let Some(bytes) = reorder.take(self.next)
        {
            self.deliver(&bytes, limit, deliver);
        }
        if self.reorder.as_ref().is_some_and(|reorder| reorder.is_empty()) {
            self.reorder = None;
        }
    }
}

#[cfg(test)]
mod tests;
