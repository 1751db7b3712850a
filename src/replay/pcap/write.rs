//! Writes capture files: classic pcap with nanoseconds, which all programs can read.

use std::io::{self, ErrorKind, Write};

use super::classic::{MAJOR, NANOSECONDS};
use super::link::LinkType;
use crate::core::time::Timestamp;

/// The longest packet that is written: other programs refuse longer ones.
pub const MAX_WRITTEN: usize = 256 * 1024;

const MINOR: u16 = 4;
const NANOS_PER_SEC: u64 = 1_000_000_000;

/// Writes packets to a capture file.
///
/// Each packet causes two small writes, so `sink` should be a [`std::io::BufWriter`].
pub struct FileWriter<W> {
    sink: W,
}

impl<W: Write> FileWriter<W> {
    /// Writes the file header.
    pub fn new(mut sink: W, link: LinkType) -> io::Result<Self> {
        let mut header = Vec::with_capacity(24);
        header.extend(NANOSECONDS.to_le_bytes());
        header.extend(MAJOR.to_le_bytes());
        header.extend(MINOR.to_le_bytes());
        // The time zone and the accuracy, which are always zero.
        header.extend([0; 8]);
        header.extend((MAX_WRITTEN as u32).to_le_bytes());
        header.extend(u32::from(link.number()).to_le_bytes());
        sink.write_all(&header)?;
        Ok(Self { sink })
    }

    /// Appends a packet that was captured completely.
    pub fn write(&mut self, time: Timestamp, data: &[u8]) -> io::Result<()> {
        self.write_cut(time, data, u32::try_from(data.len()).unwrap_or(u32::MAX))
    }

    /// Appends a packet of which only `data` was captured, out of `original_len` bytes.
    ///
    /// A packet that is longer than [`MAX_WRITTEN`], or later than 2106, the maximum of the format, is an error and is not
    /// written.
    pub fn write_cut(&mut self, time: Timestamp, data: &[u8], original_len: u32) -> io::Result<()> {
        let refused = |why| io::Error::new(ErrorKind::InvalidInput, why);
        if data.len() > MAX_WRITTEN {
            return Err(refused("the packet is too long for a capture file"));
        }
        let seconds = u32::try_from(time.as_nanos() / NANOS_PER_SEC)
            .map_err(|_| refused("the time is too late for a capture file"))?;
        let nanos = (time.as_nanos() % NANOS_PER_SEC) as u32;
        let mut header = [0; 16];
        for (field, number) in header.chunks_exact_mut(4).zip([seconds, nanos, data.len() as u32, original_len]) {
            field.copy_from_slice(&number.to_le_bytes());
        }
        self.sink.write_all(&header)?;
        self.sink.write_all(data)
    }

    /// Ends the file: flushes the sink and gives it back.
    pub fn finish(mut self) -> io::Result<W> {
        self.sink.flush()?;
        Ok(self.sink)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::pcap::file::FileReader;

    #[test]
    fn packet_beyond_the_format_is_refused() {
        let mut writer = FileWriter::new(Vec::new(), LinkType::Ip).expect("a vector takes it");
        let too_late = Timestamp::from_secs(1 << 32);
        for refused in [writer.write(too_late, b"late"), writer.write(Timestamp::default(), &vec![0; MAX_WRITTEN + 1])]
        {
            assert_eq!(refused.expect_err("it does not fit").kind(), ErrorKind::InvalidInput);
        }
        writer.write_cut(Timestamp::from_nanos(7), &vec![1; MAX_WRITTEN], 1 << 20).expect("it fits");
        let file = writer.finish().expect("a vector takes it");
        let mut reader = FileReader::new(&file[..]).expect("a good header");
        let frame = reader.next_frame().expect("a good packet").expect("there is one");
        assert_eq!((frame.time.as_nanos(), frame.data.len(), frame.original_len), (7, MAX_WRITTEN, 1 << 20));
        assert!(reader.next_frame().expect("a clean end").is_none());
    }
}
