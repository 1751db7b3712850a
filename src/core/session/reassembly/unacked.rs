//! The last bytes that a stream delivered and that the receiver may not have acknowledged, to compare
//! retransmissions with.

use crate::core::net::Seq;

/// The bytes before the current position of the stream.
#[derive(Debug, Default)]
pub(super) struct Unacked {
    bytes: Vec<u8>,
}

impl Unacked {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds the next bytes. If there are more than `limit`, only the last ones are kept.
    pub(super) fn remember(&mut self, bytes: &[u8], limit: usize) {
        let tail = &bytes[bytes.len() - bytes.len().min(limit)..];
        let surplus = (self.bytes.len() + tail.len()).saturating_sub(limit);
        self.bytes.drain(..surplus.min(self.bytes.len()));
        self.bytes.reserve_exact(tail.len());
        self.bytes.extend_from_slice(tail);
    }

    /// The receiver has everything up to `acked`, and will not read that again. The stream continues at `next`.
    pub(super) fn acknowledged(&mut self, next: Seq, acked: Seq) {
        let kept = usize::try_from(next - acked).unwrap_or(0);
        if kept == 0 {
            self.clear();
        } else if kept < self.bytes.len() {
            self.bytes.drain(..self.bytes.len() - kept);
        }
    }

    /// Forgets all bytes, and frees the memory, because most sessions are silent most of the time.
    pub(super) fn clear(&mut self) {
        self.bytes = Vec::new();
    }

    /// Writes the delivered bytes over a copy of them that begins at `seq`. The stream continues at `next`.
    pub(super) fn correct(&self, next: Seq, seq: Seq, copy: &mut [u8]) {
        overlay(next.moved(-(self.bytes.len() as i32)), &self.bytes, seq, copy);
    }
}

/// Writes the bytes of `known`, which begin at `known_at`, over the bytes with the same sequence numbers in `copy`,
/// which begins at `copy_at`.
pub(super) fn overlay(known_at: Seq, known: &[u8], copy_at: Seq, copy: &mut [u8]) {
    let offset = known_at - copy_at;
    let (in_known, in_copy) = match usize::try_from(offset) {
        Ok(later) => (0, later),
        Err(_) => (offset.unsigned_abs() as usize, 0),
    };
    let Some(known) = known.get(in_known..) else { return };
    let Some(copy) = copy.get_mut(in_copy..) else { return };
    let shared = known.len().min(copy.len());
    copy[..shared].copy_from_slice(&known[..shared]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_covers_what_both_have() {
        for (known_at, copy_at, expected) in [
            (0, 0, "ABCDe"),
            (2, 0, "abABC"),
            (0, 2, "CDcde"),
            (0, 4, "abcde"),
            (9, 0, "abcde"),
            (u32::MAX, 0, "BCDde"),
        ] {
            let mut copy = *b"abcde";
            overlay(Seq::new(known_at), b"ABCD", Seq::new(copy_at), &mut copy);
            assert_eq!(copy, expected.as_bytes(), "{known_at} {copy_at}");
        }
    }

    #[test]
    fn only_what_is_not_acknowledged_is_kept() {
        let mut unacked = Unacked::default();
        unacked.remember(b"0123456789", 8);
        assert_eq!(unacked.bytes, b"23456789");
        unacked.remember(b"ab", 8);
        assert_eq!(unacked.bytes, b"456789ab");
        unacked.acknowledged(Seq::new(5), Seq::new(2));
        assert_eq!(unacked.bytes, b"9ab");
        unacked.acknowledged(Seq::new(5), Seq::new(5));
        assert_eq!((unacked.len(), unacked.bytes.capacity()), (0, 0));
    }
}
