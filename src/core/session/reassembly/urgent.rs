//! Urgent data: which bytes the receiver may leave out of what it reads.

use super::Stream;
use crate::core::net::{Flags, Segment, Seq};

impl Stream {
    /// The farthest end of urgent data with this segment: the receiver may read the stream without the last byte
    /// before it.
    pub fn urgent_end_with(&self, segment: &Segment<'_>) -> Option<Seq> {
        // Systems differ on whether the pointer points at the last urgent byte or after it.
        let here = segment.flags.has(Flags::URG).then(|| segment.seq + usize::from(segment.urgent) + 1);
        match (self.urgent_end(), here) {
            (Some(before), Some(here)) => Some(before.later(here)),
            (before, here) => before.or(here),
        }
    }

    /// The farthest end of urgent data, if there was any.
    pub fn urgent_end(&self) -> Option<Seq> {
        self.has_urgent.then_some(self.urgent_end)
    }

    /// The receiver has read all bytes up to the current position, urgent or not.
    pub fn confirm_urgent_end(&mut self) {
        if self.has_urgent && self.urgent_end == self.next + 1 {
            self.urgent_end = self.next;
        }
    }

    /// Whether this segment's urgent pointer points at a byte that was read as a normal one.
    pub(super) fn makes_read_byte_urgent(&self, segment: &Segment<'_>) -> bool {
        let end = segment.seq + usize::from(segment.urgent) + 1;
        let was_urgent = self.has_urgent && !end.is_after(self.urgent_end);
        !was_urgent && end.is_after(self.first_unacked()) && (end.moved(-2)).is_before(self.next)
    }
}
