//! Bytes out of order, until the bytes before them come.

use std::collections::VecDeque;

use super::unacked::overlay;
use crate::core::net::Seq;

/// How many separate pieces may be buffered: each takes more memory than its bytes.
const MAX_PIECES: usize = 64;

/// Pieces in stream order, none overlapping or adjacent to another: bytes that were sent one at a time after a lost
/// segment make one piece.
#[derive(Debug, Default)]
pub(super) struct ReorderBuffer {
    pieces: VecDeque<(Seq, Vec<u8>)>,
    bytes: usize,
}

impl ReorderBuffer {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The bytes, and the overhead of each piece.
    pub(super) fn held_bytes(&self) -> usize {
        const PIECE: usize = size_of::<(Seq, Vec<u8>)>() + 16;
        self.bytes + self.pieces.capacity().max(1) * PIECE
    }

    pub(super) fn exceeds(&self, limit: usize) -> bool {
        self.bytes > limit || self.pieces.len() > MAX_PIECES
    }

    /// Whether this many more bytes may exceed the limit.
    pub(super) fn would_exceed(&self, bytes: usize, limit: usize) -> bool {
        self.bytes + bytes > limit || self.pieces.len() >= MAX_PIECES
    }

    /// Writes the buffered bytes over a copy of them that begins at `seq`.
    pub(super) fn correct(&self, seq: Seq, copy: &mut [u8]) {
        for (at, piece) in &self.pieces {
            overlay(*at, piece, seq, copy);
        }
    }

    /// The sequence number of the first piece; zero for an empty buffer, which is never kept.
    pub(super) fn first(&self) -> Seq {
        self.pieces.front().map_or(Seq::default(), |(at, _)| *at)
    }

    /// The end of the last piece.
    pub(super) fn end(&self) -> Seq {
        self.pieces.back().map_or(Seq::default(), |(at, piece)| *at + piece.len())
    }

    /// Removes and returns the piece that begins at `next` or before it.
    pub(super) fn take(&mut self, next: Seq) -> Option<Vec<u8>> {
        let (at, _) = self.pieces.front()?;
        if at.is_after(next) {
            return None;
        }
        let (at, mut piece) = self.pieces.pop_front()?;
        self.bytes -= piece.len();
        let known = usize::try_from(next - at).unwrap_or(0).min(piece.len());
        piece.drain(..known);
        Some(piece)
    }

    /// Adds those of `bytes` that are not buffered yet.
    pub(super) fn insert(&mut self, at: Seq, bytes: &[u8]) {
        let mut at = at;
        let mut rest = bytes;
        let mut index = 0;
        while !rest.is_empty() {
            let Some((piece_at, piece)) = self.pieces.get(index) else {
                self.add(index, at, rest);
                break;
            };
            let before = usize::try_from(*piece_at - at).unwrap_or(0).min(rest.len());
            if before > 0 {
                self.add(index, at, &rest[..before]);
                at += before;
                rest = &rest[before..];
                index += 1;
                continue;
            }
            // `at` is in this piece or after it.
            let offset = usize::try_from(at - *piece_at).unwrap_or(0).min(piece.len());
            let shared = rest.len().min(piece.len() - offset);
            at += shared;
            rest = &rest[shared..];
            index += 1;
        }
        self.join();
    }

    /// Merges adjacent pieces.
    fn join(&mut self) {
        let mut index = 1;
        while let Some((at, _)) = self.pieces.get(index) {
            let at = *at;
            let (before_at, before) = &mut self.pieces[index - 1];
            if *before_at + before.len() != at {
                index += 1;
            } else if let Some((_, piece)) = self.pieces.remove(index) {
                self.pieces[index - 1].1.extend(piece);
            }
        }
    }

    fn add(&mut self, index: usize, at: Seq, bytes: &[u8]) {
        self.bytes += bytes.len();
        self.pieces.insert(index, (at, bytes.to_vec()));
    }
}
