//! Reassembles one direction of a TCP connection. It does not know lines.
//!
//! The first copy of a byte that was read counts. A segment that repeats the byte with another value is corrected or
//! dropped, so that the receiver cannot read anything else. A segment that the receiver would ignore does not count
//! either. Segments out of order are buffered, within bounds, until the missing part comes, or until the receiver
//! acknowledges the missing part although it was never read: a capture may lose packets, and a full queue lets them
//! pass unread.

mod reorder;
mod unacked;
mod urgent;

use std::borrow::Cow;
use std::collections::VecDeque;

use reorder::ReorderBuffer;
use unacked::Unacked;

use crate::core::net::{Direction, Flags, Segment, Seq};

/// How far ahead of the stream a segment may be. The window of a control connection is far smaller.
const FARTHEST_AHEAD: u32 = 1 << 20;

/// The same for a segment whose preceding bytes the receiver has acknowledged. Any number of bytes may have passed
/// unread, but sequence numbers cannot be compared over more than half of their range.
const FARTHEST_GAP: u32 = 1 << 30;

/// How much older than the latest timestamp a segment's may be: what Linux tolerates (`TCP_PAWS_WINDOW`).
const TIMESTAMP_TOLERANCE: i32 = 1;

/// How many unacknowledged bytes are kept, whatever the limit: enough for nearly every line.
const USUAL_UNACKED: usize = 1024;

/// Overwrites retransmitted bytes whose first copy is no longer kept. It turns no FTP command into another one.
pub const OVERWRITTEN: u8 = b'X';

/// Which retransmitted bytes may pass although their first copy is no longer kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Those that the receiver has acknowledged: it does not read them again.
    Acknowledgements,
    /// None: an acknowledgement may be forged, so only bytes whose first copy is still kept pass unchanged.
    OnlyReadFrom(Start),
}

/// Whether the first byte that was read is the first one of the stream. A picked-up session may begin with a segment
/// that its client sent out of order: the client sends the bytes in front of it later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// It is the first one.
    Known,
    /// Other bytes may be in front of it.
    Unknown,
}

/// An event of a [`Stream`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEvent<'a> {
    /// The next bytes of the stream, and the sequence number of the first of them.
    Bytes(Seq, Cow<'a, [u8]>),
    /// Bytes are missing here and will not come. The next bytes continue after the gap.
    Gap,
    /// An anomaly of the segment.
    Anomaly(StreamAnomaly),
}

/// The events that a segment causes in a [`Stream`], in stream order. There is rarely more than one.
#[derive(Debug, Default)]
pub struct StreamEvents<'a> {
    first: Option<StreamEvent<'a>>,
    others: VecDeque<StreamEvent<'a>>,
}

impl<'a> StreamEvents<'a> {
    fn push(&mut self, event: StreamEvent<'a>) {
        if self.first.is_none() && self.others.is_empty() {
            self.first = Some(event);
        } else {
            self.others.push_back(event);
        }
    }
}

impl<'a> Iterator for StreamEvents<'a> {
    type Item = StreamEvent<'a>;

    fn next(&mut self) -> Option<StreamEvent<'a>> {
        self.first.take().or_else(|| self.others.pop_front())
    }
}

/// An anomaly of a segment, which does not occur in a healthy connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamAnomaly {
    /// A byte was retransmitted with another value.
    ChangedRetransmission,
    /// The segment is too far from the current position of the stream.
    TooFar,
    /// More bytes are out of order than the limit allows.
    TooManyOutOfOrder,
    /// Bytes were never read, but the receiver acknowledged them.
    Lost,
    /// A segment that a receiver ignores: without ACK, or with a SYN in the middle of the connection.
    Unacceptable,
    /// The segment's timestamp is older than the latest one (PAWS, RFC 7323).
    StaleTimestamp,
    /// The segment's FIN is before bytes that were read, or the segment continues after an earlier FIN.
    ContradictsFin,
    /// The segment came from the interface of its receiver.
    WrongInterface,
    /// The segment repeats bytes that the receiver may not have, and their first copy is not kept any more.
    Unverifiable,
}

/// What may pass of a segment, so that the receiver reads the bytes that were read here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acceptance {
    /// The payload as it was sent.
    AsSent,
    /// This payload instead.
    Corrected(Vec<u8>),
    /// Nothing.
    Refused(StreamAnomaly),
}

/// Reassembles one direction.
///
/// It is small, because each session has two: hence flags instead of options.
#[derive(Debug, Default)]
pub struct Stream {
    begun: bool,
    has_acked: bool,
    has_fin: bool,
    has_timestamp: bool,
    has_urgent: bool,
    has_doubt: bool,
    /// Whether the stream has a gap.
    has_gap: bool,
    /// The sequence number of the first byte that was seen, or that a SYN promised; once it has begun.
    start: Seq,
    /// The sequence number of the next byte to deliver; once it has begun.
    next: Seq,
    /// Bytes before this sequence number were never read.
    read_from: Seq,
    /// The receiver's latest acknowledgement, if there was one.
    acked: Seq,
    /// The sequence number of the sender's FIN, if there was one.
    fin: Seq,
    /// The timestamp of the latest segment in order; once there was one.
    timestamp: u32,
    /// Bytes before this sequence number are doubtful, if any are.
    doubted_to: Seq,
    /// The farthest end of urgent data, if there was any.
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

    /// Whether bytes are buffered out of order.
    pub fn has_buffered(&self) -> bool {
        self.reorder.is_some()
    }

    /// How many bytes are buffered, with their overhead, beyond the few that nearly every stream keeps.
    pub fn buffered_bytes(&self) -> usize {
        let reorder = self.reorder.as_ref().map_or(0, |reorder| reorder.held_bytes());
        self.unacked.len().saturating_sub(USUAL_UNACKED) + reorder
    }

    /// Whether bytes before this sequence number are missing and not acknowledged, so that they may still come.
    pub fn misses_before(&self, seq: Seq) -> bool {
        self.begun && seq.is_after(self.next) && !self.is_acknowledged(seq)
    }

    /// Whether the receiver has acknowledged everything before this sequence number.
    pub fn is_acknowledged(&self, seq: Seq) -> bool {
        self.has_acked && !self.acked.is_before(seq)
    }

    /// Whether everything up to the sender's FIN has been delivered.
    pub fn is_at_fin(&self) -> bool {
        self.begun && self.has_fin && self.fin == self.next
    }

    /// Whether everything up to the sender's FIN has been delivered, and the receiver has acknowledged the FIN.
    pub fn has_ended(&self) -> bool {
        self.is_at_fin() && self.has_acked && self.acked.is_after(self.fin)
    }

    /// Whether the receiver accepts a RST with this sequence number at once (RFC 5961): it has to be the next byte
    /// that the receiver expects, which is the first unacknowledged one if the receiver does not have all bytes that
    /// were read.
    pub fn accepts_reset_at(&self, seq: Seq) -> bool {
        self.begun && !seq.is_after(self.next) && !seq.is_before(self.first_unacked())
    }

    /// The first byte that the receiver may not have.
    fn first_unacked(&self) -> Seq {
        let first = if self.has_acked { self.read_from.later(self.acked) } else { self.read_from };
        if first.is_after(self.next) { self.next } else { first }
    }

    /// Marks the bytes before this sequence number as doubtful: the receiver may not accept them.
    pub fn doubt_before(&mut self, seq: Seq) {
        self.doubted_to = if self.has_doubt { self.doubted_to.later(seq) } else { seq };
        self.has_doubt = true;
    }

    /// The end of the doubtful bytes, if there are any.
    pub fn doubted_to(&self) -> Option<Seq> {
        self.has_doubt.then_some(self.doubted_to)
    }

    /// Begins the stream at this sequence number, unless it has begun.
    pub fn begin_at(&mut self, seq: Seq) {
        if !self.begun {
            self.begun = true;
            self.start = seq;
            self.next = seq;
            self.read_from = seq;
        }
    }

    /// Decides what may pass of a segment, so that the receiver reads the same bytes as this stream reads with
    /// [`segment`](Self::segment).
    ///
    /// `limit` bounds the bytes that may be kept.
    pub fn check_segment(&self, segment: &Segment<'_>, direction: Direction, trust: Trust, limit: usize) -> Acceptance {
        let Segment { flags, payload, .. } = segment;
        let has_content = !payload.is_empty() || segment.missing > 0 || flags.has(Flags::FIN) || flags.has(Flags::URG);
        if !has_content {
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
        // If a FIN has passed, or would be before bytes that were read, the receiver may read fewer bytes than this
        // stream.
        let end = segment.seq + (payload.len() + segment.missing);
        let read_to = self.reorder.as_ref().map_or(self.next, |reorder| self.next.later(reorder.end()));
        let ends_before = flags.has(Flags::FIN) && end.is_before(read_to);
        if ends_before {
            return Acceptance::Refused(StreamAnomaly::ContradictsFin);
        }
        if self.has_fin && end.is_after(self.fin) {
            // The bytes before the FIN may still be missing.
            let before = usize::try_from(self.fin - segment.seq).ok().filter(|before| *before > 0);
            return match before.and_then(|before| payload.get(..before)) {
                Some(payload) if !flags.has(Flags::FIN) => {
                    match self.check_segment(&Segment { payload, missing: 0, ..*segment }, direction, trust, limit) {
                        Acceptance::AsSent => Acceptance::Corrected(payload.to_vec()),
                        checked => checked,
                    }
                }
                _ => Acceptance::Refused(StreamAnomaly::ContradictsFin),
            };
        }
        // An urgent pointer must not point to a byte that was read as normal data.
        let is_urgent = flags.has(Flags::URG) && self.makes_read_byte_urgent(segment);
        if segment.seq == self.next && self.reorder.is_none() && !is_urgent {
            return Acceptance::AsSent;
        }
        self.check_unusual_segment(segment, direction, trust, limit)
    }

    #[cold]
    fn check_unusual_segment(
        &self,
        segment: &Segment<'_>,
        direction: Direction,
        trust: Trust,
        limit: usize,
    ) -> Acceptance {
        let (seq, payload) = (segment.seq, segment.payload);
        let ahead = seq - self.next;
        if ahead.unsigned_abs() > FARTHEST_GAP {
            return Acceptance::Refused(StreamAnomaly::TooFar);
        }
        let is_acknowledged = self.is_acknowledged(seq);
        if ahead > 0 && !is_acknowledged {
            if ahead.unsigned_abs() > FARTHEST_AHEAD {
                return Acceptance::Refused(StreamAnomaly::TooFar);
            }
            let buffer = self.reorder.as_ref();
            // A client's commands must not pass unread. In a server's direction, whose replies may be long and whose
            // acknowledgements may pass unseen, the missing bytes are given up instead.
            if direction == Direction::FromClient
                && buffer.is_some_and(|buffer| buffer.would_exceed(payload.len(), limit))
            {
                return Acceptance::Refused(StreamAnomaly::TooManyOutOfOrder);
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
        let is_urgent = segment.flags.has(Flags::URG) && self.makes_read_byte_urgent(segment);
        if corrected == payload && !is_urgent { Acceptance::AsSent } else { Acceptance::Corrected(corrected) }
    }

    /// Whether some of these bytes were read, may not have reached the receiver, and are not kept any more: the
    /// receiver must not get another version of them.
    fn repeats_unverifiable(&self, from: Seq, to: Seq) -> bool {
        let known_from = self.next.moved(-(self.unacked.len() as i32));
        let from = from.later(self.read_from);
        let from = if self.has_acked { from.later(self.acked) } else { from };
        let to = if to.is_before(known_from) { to } else { known_from };
        from.is_before(to)
    }

    /// Handles a segment of this direction as it is passed on. Returns in order all bytes that it completes.
    ///
    /// `limit` bounds the bytes that may be kept.
    pub fn segment<'a>(&mut self, segment: &Segment<'a>, limit: usize) -> StreamEvents<'a> {
        let mut events = StreamEvents::default();
        // A SYN takes one sequence number.
        let seq = if segment.flags.has(Flags::SYN) { segment.seq + 1 } else { segment.seq };
        self.begin_at(seq);
        let next = self.next;
        let end = seq + (segment.payload.len() + segment.missing);
        // Only a segment with new bytes, or an empty one with the next sequence number, updates the timestamp.
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
            // Otherwise a wrapped sequence number, long after it, would look like one before it.
            self.has_urgent = next - urgent_end <= FARTHEST_AHEAD as i32;
        }
        self.has_doubt &= next - self.doubted_to <= FARTHEST_AHEAD as i32;
        // The last FIN counts, so that a FIN too far ahead cannot hide the real one.
        if segment.flags.has(Flags::FIN) && !end.is_before(next) && (end - next).unsigned_abs() <= FARTHEST_AHEAD {
            self.has_fin = true;
            self.fin = end;
        }
        let mut anomaly = None;
        if seq == next && self.reorder.is_none() {
            if !segment.payload.is_empty() {
                self.deliver(Cow::Borrowed(segment.payload), limit, &mut events);
            }
        } else if !segment.payload.is_empty() {
            anomaly = self.unusual_segment(seq, segment.payload, limit, &mut events);
        }
        if segment.missing > 0 && self.next == seq + segment.payload.len() {
            // The bytes that the capture cut off were sent nevertheless.
            self.skip_to(end, limit, &mut events);
        }
        // A FIN before bytes that were read was not valid.
        self.has_fin &= !self.next.is_after(self.fin);
        if let Some(anomaly) = anomaly {
            events.push(StreamEvent::Anomaly(anomaly));
        }
        events
    }

    /// Gives up the missing and the buffered bytes before this sequence number.
    pub fn give_up_before(&mut self, seq: Seq) {
        if seq.is_after(self.next) {
            self.next = seq;
            self.read_from = seq;
            self.has_gap = true;
            self.unacked.clear();
            self.reorder = None;
        }
    }

    /// Handles the other end's acknowledgement, which may show that missing bytes will never come.
    pub fn acknowledged(&mut self, ack: Seq, limit: usize) -> StreamEvents<'static> {
        let mut events = StreamEvents::default();
        self.acked = if self.has_acked { self.acked.later(ack) } else { ack };
        self.has_acked = true;
        self.unacked.acknowledged(self.next, self.acked);
        let buffered_from = self.reorder.as_ref().map(|reorder| reorder.first());
        if let Some(buffered_from) = buffered_from.filter(|from| !from.is_after(ack)) {
            self.skip_to(buffered_from, limit, &mut events);
            events.push(StreamEvent::Anomaly(StreamAnomaly::Lost));
        }
        events
    }

    fn deliver<'a>(&mut self, bytes: Cow<'a, [u8]>, limit: usize, events: &mut StreamEvents<'a>) {
        let next = self.next;
        self.unacked.remember(&bytes, limit.max(USUAL_UNACKED));
        self.next = next + bytes.len();
        events.push(StreamEvent::Bytes(next, bytes));
    }

    /// Handles everything but the next segment in order: copies, overlaps, gaps. Out of line, so that the usual case
    /// is fast.
    #[cold]
    fn unusual_segment<'a>(
        &mut self,
        seq: Seq,
        payload: &'a [u8],
        limit: usize,
        events: &mut StreamEvents<'a>,
    ) -> Option<StreamAnomaly> {
        let ahead = seq - self.next;
        if ahead.unsigned_abs() > FARTHEST_GAP {
            return Some(StreamAnomaly::TooFar);
        }
        if ahead > 0 {
            if self.is_acknowledged(seq) {
                // The receiver has everything before this segment: the missing bytes were only lost on the way here.
                let buffered_from = self.reorder.as_ref().map(|reorder| reorder.first());
                self.skip_to(buffered_from.filter(|from| from.is_before(seq)).unwrap_or(seq), limit, events);
                // The buffered bytes have brought the stream nearer to this segment, up to it, or beyond it.
                self.unusual_segment(seq, payload, limit, events);
                return Some(StreamAnomaly::Lost);
            }
            if ahead.unsigned_abs() > FARTHEST_AHEAD {
                return Some(StreamAnomaly::TooFar);
            }
            let reorder = self.reorder.get_or_insert_default();
            reorder.insert(seq, payload);
            if reorder.exceeds(limit) {
                let first = reorder.first();
                self.skip_to(first, limit, events);
                return Some(StreamAnomaly::TooManyOutOfOrder);
            }
            return None;
        }
        if ahead.unsigned_abs() > FARTHEST_AHEAD {
            return Some(StreamAnomaly::TooFar);
        }
        let known = payload.len().min(usize::try_from(-ahead).unwrap_or(0));
        let rest = &payload[known..];
        if !rest.is_empty() {
            match &mut self.reorder {
                None => self.deliver(Cow::Borrowed(rest), limit, events),
                Some(reorder) => {
                    reorder.insert(self.next, rest);
                    self.drain(limit, events);
                }
            }
        }
        None
    }

    /// Gives up the missing bytes before `seq`, which is not before the current position.
    fn skip_to(&mut self, seq: Seq, limit: usize, events: &mut StreamEvents<'_>) {
        self.next = seq;
        self.read_from = seq;
        self.has_gap = true;
        self.unacked.clear();
        events.push(StreamEvent::Gap);
        self.drain(limit, events);
    }

    /// Delivers the buffered bytes that are next now.
    fn drain(&mut self, limit: usize, events: &mut StreamEvents<'_>) {
        while let Some(reorder) = &mut self.reorder
            && let Some(bytes) = reorder.take(self.next)
        {
            self.deliver(Cow::Owned(bytes), limit, events);
        }
        if self.reorder.as_ref().is_some_and(|reorder| reorder.is_empty()) {
            self.reorder = None;
        }
    }
}

#[cfg(test)]
mod tests;
