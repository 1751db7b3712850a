//! The classic pcap format: a file header, then packets with a record header each. Does no I/O.

use super::byte_order::ByteOrder;
use super::error::{CaptureError, FormatError, Part};
use super::file::{Located, MAX_PACKET, Step};
use super::link::LinkType;
use crate::core::time::Timestamp;

/// Offsets in the file header.
mod header {
    pub(super) const MAJOR: usize = 4;
    pub(super) const MINOR: usize = 6;
    pub(super) const LINK_TYPE: usize = 20;
}

/// Offsets in a record header.
mod record {
    pub(super) const SECONDS: usize = 0;
    pub(super) const FRACTION: usize = 4;
    pub(super) const CAPTURED: usize = 8;
    pub(super) const ORIGINAL: usize = 12;
    pub(super) const LEN: usize = 16;
}

/// The magic number of a file with times in microseconds.
pub(super) const MICROSECONDS: u32 = 0xa1b2_c3d4;
/// The magic number of a file with times in nanoseconds.
pub(super) const NANOSECONDS: u32 = 0xa1b2_3c4d;

/// The bits of the link type field that are the link type. The bits above describe the length of the frame check sequence,
/// which does not matter here: IP has a length field.
const LINK_TYPE_BITS: u32 = 0x03ff_ffff;

/// The only version since 1998.
pub(super) const MAJOR: u16 = 2;
/// Earlier minor versions have the two lengths of a record in the other order.
const OLDEST_MINOR: u16 = 3;

/// A file header.
pub(super) struct Classic {
    order: ByteOrder,
    /// The unit of the fraction of a second.
    nanos_per_tick: u64,
    link: LinkType,
}

impl Classic {
    pub(super) const HEADER_LEN: usize = 24;
    pub(super) const MAGICS: [[u8; 4]; 4] =
        [MICROSECONDS.to_le_bytes(), NANOSECONDS.to_le_bytes(), MICROSECONDS.to_be_bytes(), NANOSECONDS.to_be_bytes()];

    /// Reads a file header, which must begin with one of [`Self::MAGICS`].
    pub(super) fn new(bytes: &[u8; Self::HEADER_LEN]) -> Result<Self, CaptureError> {
        let big = ByteOrder::Big.u32_at(bytes, 0);
        let order = if [MICROSECONDS, NANOSECONDS].contains(&big) { ByteOrder::Big } else { ByteOrder::Little };
        let nanos_per_tick = if order.u32_at(bytes, 0) == NANOSECONDS { 1 } else { 1000 };
        let (major, minor) = (order.u16_at(bytes, header::MAJOR), order.u16_at(bytes, header::MINOR));
        if major != MAJOR || minor < OLDEST_MINOR {
            return Err(CaptureError::UnsupportedVersion { major, minor });
        }
        let number = order.u32_at(bytes, header::LINK_TYPE) & LINK_TYPE_BITS;
        let link = LinkType::from_number(number).ok_or(CaptureError::UnsupportedLinkType(number))?;
        Ok(Self { order, nanos_per_tick, link })
    }

    /// Parses the record at the beginning of `bytes`.
    #[inline(always)]
    pub(super) fn step(&self, bytes: &[u8]) -> Result<Step, FormatError> {
        let Some(header) = bytes.first_chunk::<{ record::LEN }>() else {
            return Ok(Step::Need { count: record::LEN, part: Part::RecordHeader });
        };
        let captured = self.order.u32_at(header, record::CAPTURED);
        let data_len = captured as usize;
        if data_len > MAX_PACKET {
            return Err(FormatError::RecordTooLong(captured));
        }
        let record_len = record::LEN + data_len;
        if bytes.len() < record_len {
            return Ok(Step::Need { count: record_len, part: Part::Packet });
        }
        let seconds = u64::from(self.order.u32_at(header, record::SECONDS));
        let fraction = u64::from(self.order.u32_at(header, record::FRACTION));
        // Both factors have at most 32 bits: no overflow. A fraction of more than a second is accepted.
        let nanos = seconds * 1_000_000_000 + fraction * self.nanos_per_tick;
        Ok(Step::Frame(Located {
            time: Timestamp::from_nanos(nanos),
            link: self.link,
            original_len: self.order.u32_at(header, record::ORIGINAL),
            data_start: record::LEN,
            data_len,
            record_len,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::pcap::sample::{Bytes, ORDERS, read, read_all};

    const ETHERNET: u32 = 1;

    #[test]
    fn every_byte_order_and_resolution_is_read() {
        for order in ORDERS {
            for (magic, nanos_per_tick) in [(MICROSECONDS, 1000), (NANOSECONDS, 1)] {
                let file = Bytes::new(order)
                    .classic_header(magic, ETHERNET)
                    .record(1, 999_999, b"first", 5)
                    .record(u32::MAX, 0, b"", 1500)
                    .bytes;
                let expected = [
                    (1_000_000_000 + 999_999 * nanos_per_tick, LinkType::Ethernet, b"first".to_vec(), 5),
                    (u64::from(u32::MAX) * 1_000_000_000, LinkType::Ethernet, vec![], 1500),
                ];
                assert_eq!(read(&file), expected);
            }
        }
    }

    #[test]
    fn fcs_length_does_not_change_the_link_type() {
        for order in ORDERS {
            let file = Bytes::new(order).classic_header(MICROSECONDS, 0x4400_0000 | ETHERNET).record(0, 0, b"x", 1);
            assert_eq!(read(&file.bytes).len(), 1);
        }
    }

    #[test]
    fn file_without_packets_is_valid() {
        let file = Bytes::new(ByteOrder::Big).classic_header(MICROSECONDS, ETHERNET);
        assert_eq!(read(&file.bytes), []);
    }

    #[test]
    fn link_type_without_ip_is_reported() {
        let file = Bytes::new(ByteOrder::Big).classic_header(MICROSECONDS, 220).record(0, 0, b"usb", 3);
        let (frames, end) = read_all(&file.bytes[..]);
        assert!(frames.is_empty());
        assert!(matches!(end, Err(CaptureError::UnsupportedLinkType(220))));
    }

    #[test]
    fn unsupported_version_is_refused() {
        for (major, minor) in [(1, 0), (2, 2), (3, 0), (543, 0)] {
            let file = Bytes::new(ByteOrder::Little).u32(MICROSECONDS).u16(major).u16(minor).raw(&[0; 16]);
            let (_, end) = read_all(&file.bytes[..]);
            let Err(CaptureError::UnsupportedVersion { major: a, minor: b }) = end else { panic!("{end:?}") };
            assert_eq!((a, b), (major, minor));
        }
    }

    #[test]
    fn packet_above_the_limit_is_damage() {
        let limit = MAX_PACKET as u32;
        let start = || Bytes::new(ByteOrder::Little).classic_header(NANOSECONDS, ETHERNET).record(0, 0, b"good", 4);
        for claim in [limit + 1, u32::MAX] {
            let file = start().u32(0).u32(0).u32(claim).u32(claim).raw(&[0; 100]);
            let (frames, end) = read_all(&file.bytes[..]);
            assert_eq!(frames.len(), 1);
            let Err(CaptureError::Damaged { offset: 44, what }) = end else { panic!("{end:?}") };
            assert_eq!(what, FormatError::RecordTooLong(claim));
        }
        let file = start().record(0, 0, &vec![7; MAX_PACKET], limit).record(0, 0, b"after", 5);
        assert_eq!(read(&file.bytes).iter().map(|frame| frame.2.len()).collect::<Vec<_>>(), [4, MAX_PACKET, 5]);
    }

    #[test]
    fn cut_off_file_reports_part_and_offset() {
        let file = Bytes::new(ByteOrder::Little)
            .classic_header(NANOSECONDS, ETHERNET)
            .record(0, 0, b"good", 4)
            .record(0, 0, b"lost", 4)
            .bytes;
        for (length, packets, expected) in [
            (1, 0, Some((Part::FileHeader, 0))),
            (23, 0, Some((Part::FileHeader, 0))),
            (24, 0, None),
            (25, 0, Some((Part::RecordHeader, 24))),
            (40, 0, Some((Part::Packet, 24))),
            (44, 1, None),
            (59, 1, Some((Part::RecordHeader, 44))),
            (60, 1, Some((Part::Packet, 44))),
            (63, 1, Some((Part::Packet, 44))),
        ] {
            let (frames, result) = read_all(&file[..length]);
            assert_eq!(frames.len(), packets, "{length}");
            match (result, expected) {
                (Ok(()), None) => {}
                (Err(CaptureError::CutOff { part, begin, end }), Some(expected)) => {
                    assert_eq!(((part, begin), end), (expected, length as u64));
                }
                other => panic!("{length}: {other:?}"),
            }
        }
    }
}
