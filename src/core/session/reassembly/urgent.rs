//! Urgent data: which bytes the receiver may leave out of what it reads.

use super::Stream;
use crate::core::net::{Flags, Segment, Seq};

impl Stream {
    /// Where urgent data ends, at the farthest, if this segment comes: its last byte may be missing in what the receiver
    /// reads.
    pub fn urgent_end_with(&self, segment: &Segment<'_>) -> Option<Seq> {
        // Whether the pointer points at the last byte or behind it, systems do not agree.
        let here = segment.flags.has(Flags::URG).then(|| segment.seq + usize::from(segment.urgent) + 1);
        match (self.urgent_end(), here) {
            (Some(before), Some(here)) => Some(before.later(here)),
            (before, here) => before.or(here),
        }
    }

    /// Where urgent data ended, at the farthest, if there was any.
    pub fn urgent_end(&self) -> Option<Seq> {
        self.has_urgent.then_some(self.urgent_end)
    }

    /// What ends where the stream is has been read by the receiver, urgent or not.
    pub fn believe_urgent_end(&mut self) {
        if self.has_urgent && self.urgent_end == self.next + 1 {
            self.urgent_end = self.next;
        }
    }

    /// Whether this segment points at urgent data in what was read when nothing there was urgent.
    pub(super) fn makes_urgent_what_was_read(&self, segment: &Segment<'_>) -> bool {
        let end = segment.seq + usize::from(segment.urgent) + 1;
        let was_urgent = self.has_urgent && !end.is_after(self.urgent_end);
        !was_urgent && end.is_after(self.first_unacked()) && (end.moved(-2)).is_before(self.next)
    }
}
