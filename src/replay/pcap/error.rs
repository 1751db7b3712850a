//! The errors of reading a capture file.

use std::fmt;
use std::io;

use crate::replay::pcap::file::MAX_PACKET;

/// Why a capture file could not be read completely.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("the file is empty")]
    Empty,
    #[error("not a capture file but {0}")]
    NotACapture(OtherFormat),
    /// The version is older than 1998, or newer than this program.
    #[error("version {major}.{minor} of the capture format is not supported")]
    UnsupportedVersion { major: u16, minor: u16 },
    /// In a pcapng file, this is reported at its end, and only if no packet has a supported link type.
    #[error("link type {0} is not supported")]
    UnsupportedLinkType(u32),
    /// The file ends too early. All packets before were returned.
    #[error("cut off at byte {end}, in the middle of {part} that begins at byte {begin}")]
    CutOff {
        part: Part,
        /// The offset of the incomplete part.
        begin: u64,
        end: u64,
    },
    /// A record or block is invalid, so the position of the next packet is unknown. All packets before were returned.
    #[error("damaged at byte {offset}: {what}")]
    Damaged {
        /// The offset of the record or block.
        offset: u64,
        what: FormatError,
    },
    /// All packets before were returned.
    #[error("cannot read on after byte {offset}: {source}")]
    Io { offset: u64, source: io::Error },
}

/// The type of a file that is not a capture file, according to its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherFormat {
    Gzip,
    Zstd,
    Xz,
    Bzip2,
    Lz4,
    Zip,
    /// A capture in the format of Solaris' snoop.
    Snoop,
    /// A capture in the format of Microsoft's Network Monitor.
    NetworkMonitor,
    /// A capture in the variant of pcap that some Linux distributions of the 1990s wrote.
    ModifiedPcap,
    /// Text that begins with a brace or bracket.
    Json,
    Markup,
    Text,
    /// The first four bytes of a file of another type, padded with zeros.
    Unknown([u8; 4]),
}

/// How many bytes are checked for text.
const TEXT_SAMPLE: usize = 512;

impl OtherFormat {
    const BEGINNINGS: &[(&[u8], Self)] = &[
        (b"\x1f\x8b", Self::Gzip),
        (b"\x28\xb5\x2f\xfd", Self::Zstd),
        (b"\xfd7zXZ\0", Self::Xz),
        (b"BZh", Self::Bzip2),
        (b"\x04\x22\x4d\x18", Self::Lz4),
        (b"PK\x03\x04", Self::Zip),
        (b"snoop\0\0\0", Self::Snoop),
        (b"GMBU", Self::NetworkMonitor),
        (b"\xa1\xb2\xcd\x34", Self::ModifiedPcap),
        (b"\x34\xcd\xb2\xa1", Self::ModifiedPcap),
    ];

    /// Detects the type of a file that begins with `bytes`.
    pub(super) fn recognise(bytes: &[u8]) -> Self {
        if let Some((_, known)) = Self::BEGINNINGS.iter().find(|(beginning, _)| bytes.starts_with(beginning)) {
            return *known;
        }
        let sample = &bytes[..bytes.len().min(TEXT_SAMPLE)];
        let text = match std::str::from_utf8(sample) {
            Ok(text) => Some(text),
            // The last character may be incomplete because the sample ends.
            Err(error) if error.error_len().is_none() => std::str::from_utf8(&sample[..error.valid_up_to()]).ok(),
            Err(_) => None,
        };
        let text = text.filter(|text| !text.contains(|c: char| c.is_control() && !c.is_whitespace()));
        match text.map(|text| text.trim_start_matches('\u{feff}').trim_start()) {
            Some(text) if text.starts_with(['{', '[']) => Self::Json,
            Some(text) if text.starts_with('<') => Self::Markup,
            Some(_) => Self::Text,
            None => {
                let mut first = [0; 4];
                first.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                Self::Unknown(first)
            }
        }
    }
}

impl fmt::Display for OtherFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip data: decompress it first (gzip -dc FILE | …)",
            Self::Zstd => "Zstandard data: decompress it first (zstd -dc FILE | …)",
            Self::Xz => "xz data: decompress it first (xz -dc FILE | …)",
            Self::Bzip2 => "bzip2 data: decompress it first (bzip2 -dc FILE | …)",
            Self::Lz4 => "LZ4 data: decompress it first (lz4 -dc FILE | …)",
            Self::Zip => "a zip archive: unpack it first",
            Self::Snoop => "a snoop capture: convert it first (editcap -F pcapng FILE NEW)",
            Self::NetworkMonitor => "a Network Monitor capture: convert it first (editcap -F pcapng FILE NEW)",
            Self::ModifiedPcap => "a modified pcap of old: convert it first (editcap -F pcapng FILE NEW)",
            Self::Json => "JSON text",
            Self::Markup => "XML or HTML text",
            Self::Text => "text",
            Self::Unknown([a, b, c, d]) => {
                return write!(f, "something unknown that begins with the bytes {a:02x} {b:02x} {c:02x} {d:02x}");
            }
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The header at the beginning of the file.
    FileHeader,
    /// The header in front of a packet, or of a pcapng block.
    RecordHeader,
    Packet,
    /// A pcapng block that holds no packet.
    Block,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FileHeader => "a file header",
            Self::RecordHeader => "a record header",
            Self::Packet => "a packet",
            Self::Block => "a block",
        })
    }
}

/// Why a record or block is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A packet, its block, or an interface description is longer than any real one.
    #[error("a record of {0} bytes; none is longer than {MAX_PACKET}")]
    RecordTooLong(u32),
    /// The length of a pcapng block is less than that of its header, or not a multiple of four.
    #[error("a block of {0} bytes cannot be")]
    BlockLength(u32),
    /// The two lengths of a pcapng block, at its beginning and at its end, differ.
    #[error("the block has one length at its beginning and another at its end")]
    BlockLengthsDiffer,
    /// A packet is longer than the pcapng block that holds it.
    #[error("a packet of {packet} bytes in a block of {block}")]
    PacketLongerThanBlock {
        packet: u32,
        /// The block's length with all its headers.
        block: u32,
    },
    /// A packet names an interface that its section does not describe.
    #[error("a packet of interface {0}, which nothing describes")]
    UnknownInterface(u32),
    /// A section describes more interfaces than the limit.
    #[error("too many interfaces")]
    TooManyInterfaces,
    /// An option of an interface's description has a length that it cannot have.
    #[error("option {0} of an interface has an impossible length")]
    OptionLength(u16),
    /// The version of a section is not supported.
    #[error("a section of version {major}.{minor} of pcapng, which is not supported")]
    SectionVersion { major: u16, minor: u16 },
    /// A section header without a valid byte-order magic.
    #[error("a section header without a byte order")]
    NoByteOrder,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_of_another_file_is_detected() {
        for (bytes, expected) in [
            (&b"\x1f\x8b\x08\0"[..], OtherFormat::Gzip),
            (b"\x28\xb5\x2f\xfd\x24", OtherFormat::Zstd),
            (b"PK\x03\x04", OtherFormat::Zip),
            (b"snoop\0\0\0\0\0\0\x02", OtherFormat::Snoop),
            (b"\x34\xcd\xb2\xa1\x02\0\x04\0", OtherFormat::ModifiedPcap),
            (b" \n{\"event\": 1}", OtherFormat::Json),
            (b"\xef\xbb\xbf[]", OtherFormat::Json),
            (b"<!DOCTYPE html>", OtherFormat::Markup),
            (b"220 ready\r\n", OtherFormat::Text),
            ("€".as_bytes().split_last().expect("three bytes").1, OtherFormat::Text),
            (b"\x7fELF\x02\x01", OtherFormat::Unknown(*b"\x7fELF")),
            (b"\xff", OtherFormat::Unknown([0xff, 0, 0, 0])),
        ] {
            assert_eq!(OtherFormat::recognise(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn character_cut_by_the_end_of_the_sample_is_text() {
        let text = "ä".repeat(TEXT_SAMPLE);
        assert_eq!(OtherFormat::recognise(&[b"x", text.as_bytes()].concat()), OtherFormat::Text);
    }

    #[test]
    fn messages_have_offset_and_reason() {
        let cut = CaptureError::CutOff { part: Part::Packet, begin: 40, end: 99 };
        assert_eq!(cut.to_string(), "cut off at byte 99, in the middle of a packet that begins at byte 40");
        let damaged = CaptureError::Damaged { offset: 24, what: FormatError::RecordTooLong(u32::MAX) };
        assert_eq!(
            damaged.to_string(),
            "damaged at byte 24: a record of 4294967295 bytes; none is longer than 16777216"
        );
        let foreign = CaptureError::NotACapture(OtherFormat::Unknown([0xde, 0xad, 0xbe, 0xef]));
        assert_eq!(
            foreign.to_string(),
            "not a capture file but something unknown that begins with the bytes de ad be ef"
        );
    }
}
