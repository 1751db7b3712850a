//! The last bytes that a stream delivered, to notice when a second copy of them differs.

use crate::packet::Seq;

/// How far back a copy is compared. One announcement fits; older copies are believed to be the same.
const REACH: usize = 64;

/// A ring in which a byte's place follows from its sequence number, so that it needs no position of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct History {
    bytes: [u8; REACH],
    filled: u8,
}

impl Default for History {
    fn default() -> Self {
        Self { bytes: [0; REACH], filled: 0 }
    }
}

impl History {
    /// Remembers the end of `bytes`, the first of which stands at `at`.
    pub(super) fn remember(&mut self, at: Seq, bytes: &[u8]) {
        let tail = bytes.len().min(REACH);
        let from = slot(at + (bytes.len() - tail));
        let (_, tail_bytes) = bytes.split_at(bytes.len() - tail);
        let (before_wrap, after_wrap) = tail_bytes.split_at(tail.min(REACH - from));
        self.bytes[from..from + before_wrap.len()].copy_from_slice(before_wrap);
        self.bytes[..after_wrap.len()].copy_from_slice(after_wrap);
        self.filled = (usize::from(self.filled) + tail).min(REACH) as u8;
    }

    /// Reads a little of it: its first and last byte, which may lie in two cache lines.
    pub(super) fn touch(&self) -> u8 {
        self.bytes[0] ^ self.filled
    }

    /// Whether `copy`, which stands at `at` and ends at or before `next`, differs from what was delivered there.
    pub(super) fn differs(&self, next: Seq, at: Seq, copy: &[u8]) -> bool {
        copy.iter().enumerate().any(|(offset, &byte)| {
            let place = at + offset;
            let age = next - place;
            (1..=i32::from(self.filled)).contains(&age) && self.bytes[slot(place)] != byte
        })
    }
}

const fn slot(place: Seq) -> usize {
    place.number() as usize % REACH
}
