//! One direction of a TCP connection as bytes in order. Knows nothing of lines.
//!
//! The first copy of a byte wins, because it is the one that was judged and let through. What is out of order waits,
//! within bounds, until the missing part comes, or until the receiver's acknowledgement proves that it has what we
//! never saw: a capture may lose packets, and a queue that overflows lets them pass unread.

mod excerpt;
mod history;
mod waiting;

use excerpt::Heard;
use history::History;
use waiting::Waiting;

use crate::packet::{Flags, Segment, Seq};

/// How far ahead of the stream a segment may lie and still be believed. A control connection's window is far smaller.
const FARTHEST_AHEAD: u32 = 1 << 20;

/// What a [`Stream`] has to say about a segment, in the order of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery<'a> {
    /// The next bytes, and the place of the first of them.
    Bytes(Seq, &'a [u8]),
    /// Bytes are missing here and will not come any more. What follows continues behind the gap, at this place.
    Gap(Seq),
    /// Bytes out of a gap that was passed over, and the place of the first of them: what was delivered last had
    /// overtaken them. What follows continues where it was.
    Overtaken(Seq, &'a [u8]),
}

/// Something about a segment that does not happen in a healthy connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Oddity {
    /// A byte that came before came again with another value.
    DifferingCopy,
    /// The segment lies too far from where the stream is.
    FarAway,
    /// More waits out of order than the limit allows.
    TooMuchWaiting,
    /// Bytes never came, yet the receiver acknowledged them.
    Lost,
}

/// One direction's bytes, put in order.
///
/// Kept small, because there is one for each direction of every session: hence flags instead of options.
#[derive(Debug, Default)]
pub struct Stream {
    begun: bool,
    ack_heard: bool,
    fin_heard: bool,
    /// The place of the first byte that was seen, or that a SYN promised; once it has begun.
    start: Seq,
    /// The place of the next byte to deliver; once it has begun.
    next: Seq,
    /// Up to where the other side has acknowledged; once it has.
    acked: Seq,
    /// Where the sender said that its data ends; once it has.
    fin: Seq,
    history: History,
    /// Allocated only while something is out of order, which is rare.
    waiting: Option<Box<Waiting>>,
    /// What was heard lately, where only excerpts of the stream are brought.
    heard: Option<Box<Heard>>,
}

impl Stream {
    /// The place of the first byte that was seen, or that a SYN promised.
    pub fn start(&self) -> Option<Seq> {
        self.begun.then_some(self.start)
    }

    /// The place of the next byte to deliver; none before the first segment.
    pub fn next(&self) -> Option<Seq> {
        self.begun.then_some(self.next)
    }

    /// Reads a little of it, so that all of it is near when it is needed.
    pub(crate) fn touch(&self) -> u32 {
        self.next.number() ^ u32::from(self.history.touch()) ^ u32::from(self.waiting.is_some())
    }

    /// How many bytes wait for what stands in front of them, with what it takes to hold them.
    pub fn buffered_bytes(&self) -> usize {
        self.waiting.as_ref().map_or(0, |waiting| waiting.held_bytes())
    }

    /// Whether something waits for what stands in front of it.
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// How many bytes the receiver has acknowledged that never came here.
    pub fn unheard_before(&self, ack: Seq) -> usize {
        if self.begun { usize::try_from(ack - self.next).unwrap_or(0) } else { 0 }
    }

    /// Whether bytes are missing in front of this place that the receiver has not acknowledged, so that they may come.
    pub fn misses_before(&self, place: Seq) -> bool {
        let is_acknowledged = self.ack_heard && !self.acked.is_before(place);
        self.begun && place.is_after(self.next) && !is_acknowledged
    }

    /// Gives up what the receiver has acknowledged and never came here.
    pub fn give_up_before(&mut self, ack: Seq, mut deliver: impl FnMut(Delivery<'_>)) {
        if self.unheard_before(ack) > 0 {
            self.skip_to(ack, &mut deliver);
        }
    }

    /// Whether everything up to the sender's FIN has been delivered.
    pub fn has_ended(&self) -> bool {
        self.begun && self.fin_heard && self.fin == self.next
    }

    /// Whether a reset with this sequence number is one that the receiver would believe.
    pub fn believes_reset_at(&self, seq: Seq) -> bool {
        !self.begun || (-1..=i32::from(u16::MAX)).contains(&(seq - self.next))
    }

    /// Begins at this place, unless it has begun: the other side's acknowledgement of a SYN tells it.
    pub fn begin_at(&mut self, seq: Seq) {
        if !self.begun {
            self.begun = true;
            self.start = seq;
            self.next = seq;
        }
    }

    /// Takes a segment of this direction and hands on, in order, all bytes that it completes.
    ///
    /// `limit` bounds the bytes that may wait out of order.
    pub fn segment(
        &mut self,
        segment: &Segment<'_>,
        limit: usize,
        mut deliver: impl FnMut(Delivery<'_>),
    ) -> Option<Oddity> {
        // A SYN takes a place in the stream of its own; its data, if any, follows.
        let seq = if segment.flags.has(Flags::SYN) { segment.seq + 1 } else { segment.seq };
        self.begin_at(seq);
        if self.heard.is_some() {
            return self.excerpt(segment, seq, deliver);
        }
        let next = self.next;
        let end = seq + (segment.payload.len() + segment.missing);
        // The last one counts: one that lies too far ahead cannot hide the real one.
        if segment.flags.has(Flags::FIN) && !end.is_before(next) && (end - next).unsigned_abs() <= FARTHEST_AHEAD {
            self.fin_heard = true;
            self.fin = end;
        }
        let mut oddity = None;
        if seq == next && self.waiting.is_none() {
            if !segment.payload.is_empty() {
                self.deliver(segment.payload, &mut deliver);
            }
        } else if !segment.payload.is_empty() {
            oddity = self.unusual_segment(seq, segment.payload, limit, &mut deliver);
        }
        if segment.missing > 0 && self.next == seq + segment.payload.len() {
            // What the capture did not keep was sent nevertheless.
            self.skip_to(end, &mut deliver);
        }
        oddity
    }

    /// Takes the other side's acknowledgement, which may tell that missing bytes will never come.
    pub fn acknowledged(&mut self, ack: Seq, mut deliver: impl FnMut(Delivery<'_>)) -> Option<Oddity> {
        self.acked = if self.ack_heard { self.acked.later(ack) } else { ack };
        self.ack_heard = true;
        let waits_at = self.waiting.as_ref()?.first();
        if waits_at.is_after(ack) {
            return None;
        }
        self.skip_to(waits_at, &mut deliver);
        Some(Oddity::Lost)
    }

    fn deliver(&mut self, bytes: &[u8], deliver: &mut impl FnMut(Delivery<'_>)) {
        let next = self.next;
        self.history.remember(next, bytes);
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
    ) -> Option<Oddity> {
        let next = self.next;
        let ahead = seq - next;
        if ahead > 0 {
            if self.ack_heard && !self.acked.is_before(seq) {
                // The receiver has everything before this segment: what we miss was lost on the way to us alone.
                let waits_at = self.waiting.as_ref().map(|waiting| waiting.first());
                self.skip_to(waits_at.filter(|first| first.is_before(seq)).unwrap_or(seq), deliver);
                // What waited has brought the stream nearer to this segment, up to it, or beyond it.
                self.unusual_segment(seq, payload, limit, deliver);
                return Some(Oddity::Lost);
            }
            if ahead.unsigned_abs() > FARTHEST_AHEAD {
                return Some(Oddity::FarAway);
            }
            let waiting = self.waiting.get_or_insert_default();
            let differs = waiting.insert(seq, payload);
            if waiting.is_over(limit) {
                let first = waiting.first();
                self.skip_to(first, deliver);
                return Some(Oddity::TooMuchWaiting);
            }
            return differs.then_some(Oddity::DifferingCopy);
        }
        if ahead.unsigned_abs() > FARTHEST_AHEAD {
            return Some(Oddity::FarAway);
        }
        let known = payload.len().min(usize::try_from(-ahead).unwrap_or(0));
        // A keep-alive repeats the last place with a byte of no meaning, or none.
        let keep_alive = payload.len() == 1 && ahead == -1;
        let differs = !keep_alive && self.history.differs(next, seq, &payload[..known]);
        if known < payload.len() {
            // What waits arrived before this segment, so where they overlap, what waits is the first copy.
            let rest = &payload[known..];
            match &mut self.waiting {
                None => self.deliver(rest, deliver),
                Some(waiting) => {
                    let waiting_differs = waiting.insert(next, rest);
                    self.drain(deliver);
                    return (differs || waiting_differs).then_some(Oddity::DifferingCopy);
                }
            }
        }
        differs.then_some(Oddity::DifferingCopy)
    }

    /// Gives up what is missing before `place`, which is not behind the stream.
    fn skip_to(&mut self, place: Seq, deliver: &mut impl FnMut(Delivery<'_>)) {
        self.next = place;
        self.history = History::default();
        deliver(Delivery::Gap(place));
        self.drain(deliver);
    }

    /// Delivers what waits and has become next.
    fn drain(&mut self, deliver: &mut impl FnMut(Delivery<'_>)) {
        while let Some(waiting) = &mut self.waiting
            && let Some(bytes) = waiting.take(self.next)
        {
            self.deliver(&bytes, deliver);
        }
        if self.waiting.as_ref().is_some_and(|waiting| waiting.is_empty()) {
            self.waiting = None;
        }
    }
}

#[cfg(test)]
mod tests;
