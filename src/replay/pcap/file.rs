//! Reads a capture file as a stream: pcap and pcapng, from any source, in constant memory.
//!
//! The formats themselves are in `classic` and `pcapng`, which do no I/O: they parse the buffered bytes, and return a
//! record or the number of bytes that they need. They replace a library because the available ones lack something that a
//! replay needs: exact times if an interface's clock is not in microseconds, the offset at which a file is damaged,
//! bounded memory, or speed. Nothing here knows what is in a packet; [`super::link`] parses the link layer.

use std::io::{self, Read};

use super::buffer::Buffer;
use super::classic::Classic;
use super::error::{CaptureError, FormatError, OtherFormat, Part};
use super::link::LinkType;
use super::pcapng::Pcapng;
use crate::core::time::Timestamp;

/// The longest packet in a file. A longer one is an error; real packets are far shorter.
pub const MAX_PACKET: usize = 16 * 1024 * 1024;

/// A packet as it was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The time of the capture. A pcapng Simple Packet has none and gets the time of the previous packet.
    pub time: Timestamp,
    pub link: LinkType,
    /// The captured bytes.
    pub data: &'a [u8],
    /// The length on the wire; more than that of `data` if the packet is longer than the snap length.
    pub original_len: u32,
}

/// Returns the packets of a capture file, one after the other.
///
/// Uses 256 KiB of memory; more, up to little over [`MAX_PACKET`], only if a packet really is that long.
pub struct FileReader<R> {
    buffer: Buffer<R>,
    format: Format,
    finished: bool,
}

enum Format {
    Classic(Classic),
    Pcapng(Pcapng),
}

/// What the buffered bytes begin with.
pub(super) enum Step {
    /// An incomplete `part`, which needs `count` bytes.
    Need {
        count: usize,
        part: Part,
    },
    Frame(Located),
    /// A pcapng block without a packet. It is `length` bytes long and must end in `trailer`, the encoded length.
    Skip {
        length: u32,
        trailer: [u8; 4],
    },
}

/// A packet, and its position in the buffered bytes.
pub(super) struct Located {
    pub(super) time: Timestamp,
    pub(super) link: LinkType,
    pub(super) original_len: u32,
    /// The offset of the data in the record.
    pub(super) data_start: usize,
    pub(super) data_len: usize,
    pub(super) record_len: usize,
}

impl<R: Read> FileReader<R> {
    /// Reads the header of a capture file.
    ///
    /// `source` need not be buffered.
    pub fn new(source: R) -> Result<Self, CaptureError> {
        let mut buffer = Buffer::new(source);
        fill(&mut buffer, MAGIC_LEN)?;
        let format = match magic(buffer.available())? {
            Magic::Pcapng => Format::Pcapng(Pcapng::new()),
            Magic::Classic => {
                if !fill(&mut buffer, Classic::HEADER_LEN)? {
                    return Err(cut_off(&buffer, 0, Part::FileHeader));
                }
                let header = buffer.available().first_chunk().expect("that many are there");
                let classic = Classic::new(header)?;
                buffer.take(Classic::HEADER_LEN);
                Format::Classic(classic)
            }
        };
        let mut reader = Self { buffer, format, finished: false };
        if let Format::Pcapng(_) = reader.format {
            // So that a file without a complete first section header is refused here, as in the other format.
            reader.read_section_header()?;
        }
        Ok(reader)
    }

    /// The next packet; `None` at the end of the file. After an error the reader is at its end.
    ///
    /// If the file is cut off or damaged, all packets before that offset have been returned.
    #[inline(always)]
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, CaptureError> {
        if self.finished {
            return Ok(None);
        }
        match self.locate() {
            Ok(Some(located)) => {
                let Located { time, link, original_len, data_start, data_len, record_len } = located;
                let record = self.buffer.take(record_len);
                Ok(Some(Frame { time, link, data: &record[data_start..data_start + data_len], original_len }))
            }
            Ok(None) => {
                self.finished = true;
                Ok(None)
            }
            Err(error) => {
                self.finished = true;
                Err(error)
            }
        }
    }

    /// How many bytes of the file have been read, the latest frame included.
    pub fn consumed(&self) -> u64 {
        self.buffer.position()
    }

    /// How many packets were skipped because the link type of their interface is not supported.
    ///
    /// Only a pcapng file can have several link types; in a classic file an unsupported one is an error at once.
    pub fn skipped(&self) -> u64 {
        match &self.format {
            Format::Classic(_) => 0,
            Format::Pcapng(pcapng) => pcapng.skipped(),
        }
    }

    // Everything from `next_frame` down to the formats is force-inlined: returning a `Step` through memory would double
    // the time per packet.
    #[inline(always)]
    fn locate(&mut self) -> Result<Option<Located>, CaptureError> {
        loop {
            match self.step()? {
                Step::Frame(located) => return Ok(Some(located)),
                Step::Skip { length, trailer } => self.skip(length, trailer)?,
                Step::Need { count, part } => {
                    if !fill(&mut self.buffer, count)? {
                        return self.end(part).map(|()| None);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn step(&mut self) -> Result<Step, CaptureError> {
        let bytes = self.buffer.available();
        match &mut self.format {
            Format::Classic(classic) => classic.step(bytes),
            Format::Pcapng(pcapng) => pcapng.step(bytes),
        }
        .map_err(|what| CaptureError::Damaged { offset: self.buffer.position(), what })
    }

    /// The source has ended in the middle of `part`, or at its beginning.
    fn end(&self, part: Part) -> Result<(), CaptureError> {
        if part != Part::RecordHeader || !self.buffer.available().is_empty() {
            return Err(cut_off(&self.buffer, self.buffer.position(), part));
        }
        match &self.format {
            Format::Pcapng(pcapng) => pcapng.end(),
            Format::Classic(_) => Ok(()),
        }
    }

    fn skip(&mut self, length: u32, trailer: [u8; 4]) -> Result<(), CaptureError> {
        let begin = self.buffer.position();
        let body = u64::from(length) - trailer.len() as u64;
        let body_skipped = self.buffer.skip(body).map_err(|source| failed(&self.buffer, source))?;
        if !body_skipped || !fill(&mut self.buffer, trailer.len())? {
            return Err(cut_off(&self.buffer, begin, Part::Block));
        }
        if self.buffer.take(trailer.len()) != trailer {
            return Err(CaptureError::Damaged { offset: begin, what: FormatError::BlockLengthsDiffer });
        }
        Ok(())
    }

    fn read_section_header(&mut self) -> Result<(), CaptureError> {
        loop {
            match self.step()? {
                Step::Skip { length, trailer } => return self.skip(length, trailer),
                Step::Need { count, .. } => {
                    if !fill(&mut self.buffer, count)? {
                        return Err(cut_off(&self.buffer, 0, Part::FileHeader));
                    }
                }
                Step::Frame(_) => unreachable!("the magic number of the file is the type of a section header"),
            }
        }
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.buffer.capacity()
    }
}

fn fill<R: Read>(buffer: &mut Buffer<R>, count: usize) -> Result<bool, CaptureError> {
    buffer.fill(count).map_err(|source| failed(buffer, source))
}

fn failed<R: Read>(buffer: &Buffer<R>, source: io::Error) -> CaptureError {
    CaptureError::Io { offset: buffer.read(), source }
}

fn cut_off<R: Read>(buffer: &Buffer<R>, begin: u64, part: Part) -> CaptureError {
    CaptureError::CutOff { part, begin, end: buffer.read() }
}

const MAGIC_LEN: usize = 4;

enum Magic {
    Classic,
    Pcapng,
}

/// Detects the format by the first four bytes of a file; fewer if the file is shorter.
fn magic(bytes: &[u8]) -> Result<Magic, CaptureError> {
    if bytes.is_empty() {
        return Err(CaptureError::Empty);
    }
    let begins = |magic: &[u8; MAGIC_LEN]| magic.starts_with(&bytes[..bytes.len().min(MAGIC_LEN)]);
    let known = if begins(&Pcapng::MAGIC) {
        Magic::Pcapng
    } else if Classic::MAGICS.iter().any(begins) {
        Magic::Classic
    } else {
        return Err(CaptureError::NotACapture(OtherFormat::recognise(bytes)));
    };
    if bytes.len() < MAGIC_LEN {
        return Err(CaptureError::CutOff { part: Part::FileHeader, begin: 0, end: bytes.len() as u64 });
    }
    Ok(known)
}
