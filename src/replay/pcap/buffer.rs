//! A window over a source of bytes: large reads, no copy for each record, bounded memory.
//!
//! Knows nothing of capture formats.

use std::io::{self, ErrorKind, Read};

/// How much is asked of the source at a time. Small enough to stay in a processor's second-level cache, where the copy
/// out of the page cache and the reading that follows meet; neither smaller nor larger windows were faster.
const WINDOW: usize = 256 * 1024;

/// The bytes of `source` from the current position on, as far as they have been read.
pub(super) struct Buffer<R> {
    source: R,
    /// Whether the source has said that it is at its end. It is not asked again: a terminal might go on.
    ended: bool,
    /// Initialised throughout; only `start..end` is meaningful.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// How many bytes the source has given in all.
    read: u64,
}

impl<R: Read> Buffer<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, ended: false, bytes: vec![0; WINDOW], start: 0, end: 0, read: 0 }
    }

    /// What can be looked at without asking the source.
    #[inline]
    pub(super) fn available(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The offset in the source of the first available byte.
    #[inline]
    pub(super) fn position(&self) -> u64 {
        self.read - (self.end - self.start) as u64
    }

    /// How many bytes the source has given so far; where it ended, once it has.
    pub(super) fn read(&self) -> u64 {
        self.read
    }

    /// Takes the first `count` bytes of what is available.
    #[inline]
    pub(super) fn take(&mut self, count: usize) -> &[u8] {
        let taken = &self.bytes[self.start..self.end][..count];
        self.start += count;
        taken
    }

    /// Makes at least `wanted` bytes available; `false` if the source ends before.
    ///
    /// The window grows only when it is full of bytes that really came, never because of what a header claims.
    #[cold]
    pub(super) fn fill(&mut self, wanted: usize) -> io::Result<bool> {
        // What is left is less than one record, so that moving it costs next to nothing and every read is a large one.
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while self.end < wanted && !self.ended {
            if self.end == self.bytes.len() {
                let larger = wanted.min(2 * self.bytes.len());
                self.bytes.reserve_exact(larger - self.bytes.len());
                self.bytes.resize(larger, 0);
            }
            self.read_once()?;
        }
        Ok(self.end >= wanted)
    }

    /// Passes over `count` bytes, however many they are, without keeping them; `false` if the source ends before.
    pub(super) fn skip(&mut self, count: u64) -> io::Result<bool> {
        let mut left = count;
        loop {
            let now = left.min((self.end - self.start) as u64);
            // `now` is at most the length of the window, so nothing is lost.
            self.start += now as usize;
            left -= now;
            if left == 0 {
                return Ok(true);
            }
            if self.ended {
                return Ok(false);
            }
            self.start = 0;
            self.end = 0;
            self.read_once()?;
        }
    }

    fn read_once(&mut self) -> io::Result<()> {
        let space = &mut self.bytes[self.end..];
        let count = loop {
            match self.source.read(space) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A source that claims more than it was given room for is wrong, but that must not end the program.
                other => break other?.min(space.len()),
            }
        };
        self.ended = count == 0;
        self.end += count;
        self.read += count as u64;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_only_as_far_as_bytes_really_come() {
        let mut buffer = Buffer::new(io::repeat(1).take(1000));
        assert!(!buffer.fill(16 << 20).expect("no I/O here"));
        assert_eq!(buffer.available().len(), 1000);
        assert_eq!(buffer.capacity(), WINDOW);

        let mut buffer = Buffer::new(io::repeat(1));
        assert!(buffer.fill(WINDOW + 1).expect("no I/O here"));
        assert_eq!(buffer.capacity(), WINDOW + 1);
    }

    #[test]
    fn skips_more_than_it_can_hold_without_growing() {
        let mut buffer = Buffer::new(io::repeat(1).take(5_000_000));
        assert!(buffer.fill(10).expect("no I/O here"));
        assert!(buffer.skip(4_999_999).expect("no I/O here"));
        assert_eq!((buffer.position(), buffer.capacity()), (4_999_999, WINDOW));
        assert!(!buffer.skip(2).expect("no I/O here"));
        assert_eq!(buffer.position(), 5_000_000);
    }

    #[test]
    fn an_ended_source_is_not_asked_again() {
        struct Terminal(u32);
        impl Read for Terminal {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                assert_eq!(self.0, 1, "asked after its end");
                Ok(0)
            }
        }
        let mut buffer = Buffer::new(Terminal(0));
        assert!(!buffer.fill(1).expect("no I/O here"));
        assert!(!buffer.fill(1).expect("no I/O here"));
        assert!(!buffer.skip(1).expect("no I/O here"));
    }

    #[test]
    fn an_interrupted_read_is_tried_again_and_a_lying_one_not_believed() {
        struct Odd(u32);
        impl Read for Odd {
            fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                if self.0 == 1 { Err(ErrorKind::Interrupted.into()) } else { Ok(space.len() + 1) }
            }
        }
        let mut buffer = Buffer::new(Odd(0));
        assert!(buffer.fill(1).expect("the interruption is passed over"));
        assert_eq!(buffer.available().len(), WINDOW);
    }
}
