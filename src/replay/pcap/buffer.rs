//! A buffer in front of a source of bytes: large reads, no copy for each record, bounded memory.
//!
//! Knows nothing of capture formats.

use std::io::{self, ErrorKind, Read};

/// The size of a read. Small enough for the second-level cache, so that bytes that were just copied from the page cache are
/// parsed there. Neither smaller nor larger sizes were faster.
const WINDOW: usize = 256 * 1024;

/// The bytes of `source` from the current position on, as far as they have been read.
pub(super) struct Buffer<R> {
    source: R,
    /// The source has ended. It is not read again, because a terminal could continue after its end.
    ended: bool,
    /// Only `start..end` is used.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// How many bytes were read from the source.
    read: u64,
}

impl<R: Read> Buffer<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, ended: false, bytes: vec![0; WINDOW], start: 0, end: 0, read: 0 }
    }

    /// The buffered bytes.
    #[inline]
    pub(super) fn available(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The offset in the source of the first buffered byte.
    #[inline]
    pub(super) fn position(&self) -> u64 {
        self.read - (self.end - self.start) as u64
    }

    /// How many bytes were read from the source; its length, once it has ended.
    pub(super) fn read(&self) -> u64 {
        self.read
    }

    /// Takes the first `count` buffered bytes.
    #[inline]
    pub(super) fn take(&mut self, count: usize) -> &[u8] {
        let taken = &self.bytes[self.start..self.end][..count];
        self.start += count;
        taken
    }

    /// Reads until at least `wanted` bytes are buffered. Returns false if the source ends before.
    ///
    /// The buffer grows only when it is full of bytes from the source, never because of a length in a header.
    #[cold]
    pub(super) fn fill(&mut self, wanted: usize) -> io::Result<bool> {
        // The buffered bytes are less than one record, so moving them is cheap, and keeps every read large.
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

    /// Skips `count` bytes without buffering them. Returns false if the source ends before.
    pub(super) fn skip(&mut self, count: u64) -> io::Result<bool> {
        let mut left = count;
        loop {
            let now = left.min((self.end - self.start) as u64);
            // `now` is at most the length of the buffer, so the cast loses nothing.
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
                // A faulty source may return more than the length of `space`. That must not cause a panic.
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
    fn buffer_grows_only_with_bytes_from_the_source() {
        let mut buffer = Buffer::new(io::repeat(1).take(1000));
        assert!(!buffer.fill(16 << 20).expect("no I/O here"));
        assert_eq!(buffer.available().len(), 1000);
        assert_eq!(buffer.capacity(), WINDOW);

        let mut buffer = Buffer::new(io::repeat(1));
        assert!(buffer.fill(WINDOW + 1).expect("no I/O here"));
        assert_eq!(buffer.capacity(), WINDOW + 1);
    }

    #[test]
    fn skip_does_not_grow_the_buffer() {
        let mut buffer = Buffer::new(io::repeat(1).take(5_000_000));
        assert!(buffer.fill(10).expect("no I/O here"));
        assert!(buffer.skip(4_999_999).expect("no I/O here"));
        assert_eq!((buffer.position(), buffer.capacity()), (4_999_999, WINDOW));
        assert!(!buffer.skip(2).expect("no I/O here"));
        assert_eq!(buffer.position(), 5_000_000);
    }

    #[test]
    fn ended_source_is_not_read_again() {
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
    fn interrupted_read_is_repeated_and_too_large_result_is_limited() {
        struct Faulty(u32);
        impl Read for Faulty {
            fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                if self.0 == 1 { Err(ErrorKind::Interrupted.into()) } else { Ok(space.len() + 1) }
            }
        }
        let mut buffer = Buffer::new(Faulty(0));
        assert!(buffer.fill(1).expect("the read is repeated"));
        assert_eq!(buffer.available().len(), WINDOW);
    }
}
