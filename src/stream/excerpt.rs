//! A direction of which only some segments are brought: what is missing between them is not lost but unread.
//!
//! So a hole is passed over at once. What comes behind one that was brought later is a copy of what was heard, or a
//! segment that another has overtaken: to tell them apart, the places of what was heard lately are kept.

use super::history::History;
use super::{Delivery, FARTHEST_AHEAD, Oddity, Stream};
use crate::packet::{Flags, Segment, Seq};

/// How many stretches are remembered. One segment seldom overtakes another, and never many.
const MOST: usize = 8;

/// The stretches of a stream that were heard lately, in the order in which they were.
#[derive(Debug)]
pub(crate) struct Heard {
    stretches: [(Seq, Seq); MOST],
    count: u8,
    oldest: u8,
    /// What stands in front of this was heard, or is too old to be told.
    floor: Seq,
}

impl Heard {
    /// Everything up to there was heard.
    pub(super) fn all_before(floor: Seq) -> Self {
        Self { stretches: [(floor, floor); MOST], count: 0, oldest: 0, floor }
    }

    fn remember(&mut self, from: Seq, to: Seq) {
        let place = (usize::from(self.oldest) + usize::from(self.count)) % MOST;
        if usize::from(self.count) == MOST {
            let (_, end) = self.stretches[place];
            self.floor = self.floor.later(end);
            self.oldest = (self.oldest + 1) % MOST as u8;
        } else {
            self.count += 1;
        }
        self.stretches[place] = (from, to);
    }

    /// Whether nothing between these places was ever heard.
    fn is_new(&self, from: Seq, to: Seq) -> bool {
        let is_apart = |&(heard_from, heard_to): &(Seq, Seq)| !heard_from.is_before(to) || !from.is_before(heard_to);
        !from.is_before(self.floor) && self.stretches[..usize::from(self.count)].iter().all(is_apart)
    }
}

impl Stream {
    /// From here on only some segments are brought.
    pub(crate) fn expect_excerpts(&mut self) {
        let next = self.next;
        self.heard = Some(Box::new(Heard::all_before(next)));
    }

    /// From here on all segments are brought again: the next one begins the stream anew.
    pub(crate) fn expect_all(&mut self) {
        *self = Self { start: self.start, ..Self::default() };
    }

    /// Takes a segment of which the neighbours may never come.
    pub(super) fn excerpt(
        &mut self,
        segment: &Segment<'_>,
        seq: Seq,
        mut deliver: impl FnMut(Delivery<'_>),
    ) -> Option<Oddity> {
        let payload = segment.payload;
        let next = self.next;
        let ahead = seq - next;
        // A stream that was not read for long may be anywhere.
        let is_behind = ahead < 0 && ahead.unsigned_abs() <= FARTHEST_AHEAD;
        let mut oddity = None;
        if !payload.is_empty() {
            if is_behind {
                oddity = self.behind(seq, payload, &mut deliver);
            } else {
                if ahead != 0 {
                    self.pass_over_to(seq, &mut deliver);
                }
                self.hear(payload, &mut deliver);
            }
        }
        let end = seq + (payload.len() + segment.missing);
        if segment.missing > 0 && end.is_after(self.next) {
            self.pass_over_to(end, &mut deliver);
        }
        if segment.flags.has(Flags::FIN) && !end.is_before(self.next) {
            if end != self.next {
                self.pass_over_to(end, &mut deliver);
            }
            self.fin_heard = true;
            self.fin = end;
        }
        oddity
    }

    /// What begins in front of the end of what was heard.
    fn behind(&mut self, seq: Seq, payload: &[u8], deliver: &mut impl FnMut(Delivery<'_>)) -> Option<Oddity> {
        let next = self.next;
        let end = seq + payload.len();
        if end.is_after(next) {
            let known = usize::try_from(next - seq).unwrap_or(0).min(payload.len());
            let differs = self.history.differs(next, seq, &payload[..known]);
            self.hear(&payload[known..], deliver);
            return differs.then_some(Oddity::DifferingCopy);
        }
        let is_new = self.heard.as_ref().is_some_and(|heard| heard.is_new(seq, end));
        if !is_new {
            let keep_alive = payload.len() == 1 && end == next;
            let differs = !keep_alive && self.history.differs(next, seq, payload);
            return differs.then_some(Oddity::DifferingCopy);
        }
        // What the receiver has already got, it got unread: it will not look at this copy.
        if !self.ack_heard || end.is_after(self.acked) {
            if let Some(heard) = &mut self.heard {
                heard.remember(seq, end);
            }
            deliver(Delivery::Overtaken(seq, payload));
        }
        None
    }

    fn hear(&mut self, bytes: &[u8], deliver: &mut impl FnMut(Delivery<'_>)) {
        let (from, to) = (self.next, self.next + bytes.len());
        if let Some(heard) = &mut self.heard {
            heard.remember(from, to);
        }
        self.deliver(bytes, deliver);
    }

    fn pass_over_to(&mut self, place: Seq, deliver: &mut impl FnMut(Delivery<'_>)) {
        self.next = place;
        self.history = History::default();
        deliver(Delivery::Gap(place));
    }
}

#[cfg(test)]
#[path = "excerpt_tests.rs"]
mod tests;
