//! Capture files for the tests, in every variant that other programs write. They are built byte by byte, so that the tests
//! of the reader do not depend on the writer.

use std::io::{self, Read};

use super::byte_order::ByteOrder;
use super::error::CaptureError;
use super::file::FileReader;
use super::link::LinkType;
use super::pcapng::{BYTE_ORDER, block};

/// An owned frame: nanoseconds, link type, data, original length.
pub(super) type Owned = (u64, LinkType, Vec<u8>, u32);

pub(super) const ORDERS: [ByteOrder; 2] = [ByteOrder::Little, ByteOrder::Big];

/// Writes numbers in one byte order.
pub(super) struct Bytes {
    pub(super) order: ByteOrder,
    pub(super) bytes: Vec<u8>,
}

impl Bytes {
    pub(super) fn new(order: ByteOrder) -> Self {
        Self { order, bytes: Vec::new() }
    }

    fn put(mut self, little: &[u8]) -> Self {
        match self.order {
            ByteOrder::Little => self.bytes.extend(little),
            ByteOrder::Big => self.bytes.extend(little.iter().rev()),
        }
        self
    }

    pub(super) fn u16(self, number: u16) -> Self {
        self.put(&number.to_le_bytes())
    }

    pub(super) fn u32(self, number: u32) -> Self {
        self.put(&number.to_le_bytes())
    }

    pub(super) fn i64(self, number: i64) -> Self {
        self.put(&number.to_le_bytes())
    }

    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    pub(super) fn padded(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    // The parts of a classic file.

    pub(super) fn classic_header(self, magic: u32, link: u32) -> Self {
        self.u32(magic).u16(2).u16(4).u32(0).u32(0).u32(65535).u32(link)
    }

    pub(super) fn record(self, seconds: u32, fraction: u32, data: &[u8], original: u32) -> Self {
        self.u32(seconds).u32(fraction).u32(len(data)).u32(original).raw(data)
    }

    // The parts of a pcapng file.

    /// A block around a body whose length is a multiple of four.
    pub(super) fn block(self, kind: u32, body: &[u8]) -> Self {
        let length = len(body) + 12;
        self.u32(kind).u32(length).raw(body).u32(length)
    }

    fn body(&self) -> Self {
        Self::new(self.order)
    }

    pub(super) fn section(self) -> Self {
        let body = self.body().u32(BYTE_ORDER).u16(1).u16(0).i64(-1);
        self.block(block::SECTION, &body.bytes)
    }

    pub(super) fn option(self, code: u16, value: &[u8]) -> Self {
        self.u16(code).u16(value.len() as u16).padded(value)
    }

    pub(super) fn interface(self, link: u16, snap_len: u32, options: impl FnOnce(Self) -> Self) -> Self {
        let body = options(self.body().u16(link).u16(0).u32(snap_len));
        self.block(block::INTERFACE, &body.bytes)
    }

    pub(super) fn enhanced(self, interface: u32, ticks: u64, data: &[u8], original: u32) -> Self {
        let body = self.body().u32(interface).u32((ticks >> 32) as u32).u32(ticks as u32);
        let body = body.u32(len(data)).u32(original).padded(data);
        self.block(block::ENHANCED_PACKET, &body.bytes)
    }

    pub(super) fn obsolete(self, interface: u16, ticks: u64, data: &[u8], original: u32) -> Self {
        let body = self.body().u16(interface).u16(0xffff).u32((ticks >> 32) as u32).u32(ticks as u32);
        let body = body.u32(len(data)).u32(original).padded(data);
        self.block(block::PACKET, &body.bytes)
    }

    pub(super) fn simple(self, data: &[u8], original: u32) -> Self {
        let body = self.body().u32(original).padded(data);
        self.block(block::SIMPLE_PACKET, &body.bytes)
    }

    /// Continues in another byte order.
    pub(super) fn in_order(mut self, order: ByteOrder) -> Self {
        self.order = order;
        self
    }
}

fn len(data: &[u8]) -> u32 {
    u32::try_from(data.len()).expect("tests are smaller")
}

/// Reads all frames, and returns them with the final result.
pub(super) fn read_all(source: impl Read) -> (Vec<Owned>, Result<(), CaptureError>) {
    let mut frames = Vec::new();
    let mut reader = match FileReader::new(source) {
        Ok(reader) => reader,
        Err(error) => return (frames, Err(error)),
    };
    loop {
        match reader.next_frame() {
            Ok(Some(frame)) => {
                frames.push((frame.time.as_nanos(), frame.link, frame.data.to_vec(), frame.original_len));
            }
            Ok(None) => return (frames, Ok(())),
            Err(error) => {
                assert!(matches!(reader.next_frame(), Ok(None)), "a reader is finished after {error}");
                return (frames, Err(error));
            }
        }
    }
}

/// Reads a valid file.
pub(super) fn read(file: &[u8]) -> Vec<Owned> {
    let (frames, end) = read_all(file);
    end.expect("a good file");
    frames
}

/// Returns its bytes in pieces of these lengths, which are repeated.
pub(super) struct ShortReads<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) pieces: &'a [usize],
    pub(super) next: usize,
}

impl Read for ShortReads<'_> {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        let piece = self.pieces[self.next % self.pieces.len()].max(1);
        self.next += 1;
        let (now, later) = self.bytes.split_at(piece.min(space.len()).min(self.bytes.len()));
        space[..now.len()].copy_from_slice(now);
        self.bytes = later;
        Ok(now.len())
    }
}
