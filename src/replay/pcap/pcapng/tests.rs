//! Valid and invalid blocks of pcapng files.

use super::*;
use crate::replay::pcap::sample::{Bytes, ORDERS, read, read_all};

const ETHERNET: u16 = 1;
const RAW: u16 = 101;
const USB: u16 = 220;

/// A section with one Ethernet interface without options.
fn plain(order: ByteOrder) -> Bytes {
    Bytes::new(order).section().interface(ETHERNET, 0, |options| options)
}

fn damage(file: &Bytes) -> (usize, u64, FormatError) {
    match read_all(&file.bytes[..]) {
        (frames, Err(CaptureError::Damaged { offset, what })) => (frames.len(), offset, what),
        (_, end) => panic!("{end:?}"),
    }
}

#[test]
fn every_kind_of_packet_block_is_read_in_either_byte_order() {
    for order in ORDERS {
        let file = plain(order)
            .enhanced(0, 1_000_001, b"first", 1500)
            .simple(b"simple", 6)
            .obsolete(0, (1 << 32) + 2, b"old", 3)
            .enhanced(0, 5, b"", 0);
        let expected = [
            (1_000_001_000, LinkType::Ethernet, b"first".to_vec(), 1500),
            // A Simple Packet has no time.
            (1_000_001_000, LinkType::Ethernet, b"simple".to_vec(), 6),
            (((1 << 32) + 2) * 1000, LinkType::Ethernet, b"old".to_vec(), 3),
            (5000, LinkType::Ethernet, vec![], 0),
        ];
        assert_eq!(read(&file.bytes), expected);
    }
}

#[test]
fn each_interface_has_its_own_clock_and_link_type() {
    for order in ORDERS {
        let file = Bytes::new(order)
            .section()
            .interface(ETHERNET, 0, |options| options.option(2, b"eth0").option(option::TIME_RESOLUTION, &[9]))
            .interface(RAW, 0, |options| {
                let offset = Bytes::new(order).i64(-2).bytes;
                options
                    .option(option::TIME_RESOLUTION, &[0x80 | 1])
                    .option(option::TIME_OFFSET, &offset)
                    .option(option::END, b"")
                    // After the end of the options, so it is ignored.
                    .option(option::TIME_RESOLUTION, &[0])
            })
            .enhanced(1, 7, b"half seconds", 12)
            .enhanced(0, 7, b"nanoseconds", 11);
        let expected = [
            (1_500_000_000, LinkType::Ip, b"half seconds".to_vec(), 12),
            (7, LinkType::Ethernet, b"nanoseconds".to_vec(), 11),
        ];
        assert_eq!(read(&file.bytes), expected);
    }
}

#[test]
fn new_section_has_its_own_interfaces_and_byte_order() {
    for [first, second] in [ORDERS, [ORDERS[1], ORDERS[0]]] {
        let file = plain(first).enhanced(0, 1, b"a", 1).in_order(second).section();
        let with_interface = Bytes { bytes: file.bytes.clone(), order: second }
            .interface(RAW, 0, |options| options)
            .enhanced(0, 2, b"b", 1);
        let expected = [(1000, LinkType::Ethernet, b"a".to_vec(), 1), (2000, LinkType::Ip, b"b".to_vec(), 1)];
        assert_eq!(read(&with_interface.bytes), expected);

        let offset = file.bytes.len() as u64;
        assert_eq!(damage(&file.enhanced(0, 2, b"b", 1)), (1, offset, FormatError::UnknownInterface(0)));
    }
}

#[test]
fn snap_length_limits_a_simple_packet() {
    for order in ORDERS {
        let file = Bytes::new(order).section().interface(RAW, 5, |options| options).simple(b"12345", 1500);
        assert_eq!(read(&file.bytes), [(0, LinkType::Ip, b"12345".to_vec(), 1500)]);
    }
}

#[test]
fn options_and_blocks_of_other_types_are_skipped() {
    let order = ByteOrder::Big;
    let body = Bytes::new(order).u32(0).u32(0).u32(9).u32(2).u32(2).padded(b"ok");
    let body = body.option(1, b"a comment").option(option::END, b"");
    let file = plain(order)
        .block(5, &[0; 16])
        .block(block::ENHANCED_PACKET, &body.bytes)
        .block(0x0000_0bad, b"")
        .block(0x8000_0001, &vec![0xff; 1 << 20])
        .enhanced(0, 10, b"last", 4);
    assert_eq!(read(&file.bytes).iter().map(|frame| frame.0).collect::<Vec<_>>(), [9000, 10_000]);
}

#[test]
fn packets_of_a_non_ip_interface_are_counted_and_skipped() {
    let file = Bytes::new(ByteOrder::Little)
        .section()
        .interface(USB, 0, |options| options)
        .interface(ETHERNET, 0, |options| options)
        .enhanced(0, 1, b"usb", 3)
        .simple(b"also usb", 8)
        .enhanced(1, 2, b"ethernet", 8);
    let mut reader = crate::replay::pcap::file::FileReader::new(&file.bytes[..]).expect("a good header");
    assert_eq!(reader.next_frame().expect("a good file").map(|frame| frame.data), Some(&b"ethernet"[..]));
    assert!(reader.next_frame().expect("a good file").is_none());
    assert_eq!((reader.skipped(), reader.consumed()), (2, file.bytes.len() as u64));
}

#[test]
fn file_without_supported_packets_is_an_error() {
    let start = || Bytes::new(ByteOrder::Little).section().interface(USB, 0, |options| options);
    assert_eq!(read(&start().bytes), []);
    let (_, end) = read_all(&start().enhanced(0, 1, b"usb", 3).bytes[..]);
    assert!(matches!(end, Err(CaptureError::UnsupportedLinkType(220))), "{end:?}");
}

#[test]
fn invalid_length_is_damage() {
    for order in ORDERS {
        let start = || plain(order).enhanced(0, 1, b"good", 4);
        let offset = start().bytes.len() as u64;
        for (kind, length, what) in [
            (5, 0, FormatError::BlockLength(0)),
            (5, 11, FormatError::BlockLength(11)),
            (5, 17, FormatError::BlockLength(17)),
            (block::ENHANCED_PACKET, 28, FormatError::BlockLength(28)),
            (block::PACKET, 28, FormatError::BlockLength(28)),
            (block::SIMPLE_PACKET, 12, FormatError::BlockLength(12)),
            (block::INTERFACE, 16, FormatError::BlockLength(16)),
            (block::SECTION, 24, FormatError::BlockLength(24)),
            (block::ENHANCED_PACKET, 0xffff_fffc, FormatError::RecordTooLong(0xffff_fffc)),
            (block::SIMPLE_PACKET, 0xffff_fffc, FormatError::RecordTooLong(0xffff_fffc)),
            (block::INTERFACE, 0xffff_fffc, FormatError::RecordTooLong(0xffff_fffc)),
        ] {
            let file = start().u32(kind).u32(length).u32(BYTE_ORDER).raw(&[0; 40]);
            assert_eq!(damage(&file), (1, offset, what), "type {kind}");
            // Too short for the header of a packet block, but long enough to be recognised as invalid.
            let brief = start().u32(kind).u32(length);
            if kind != block::SECTION {
                assert_eq!(damage(&brief), (1, offset, what), "type {kind}");
            }
        }
    }
}

#[test]
fn packet_longer_than_its_block_is_damage() {
    let body = |captured| Bytes::new(ByteOrder::Little).u32(0).u32(0).u32(0).u32(captured).u32(4).raw(b"data").bytes;
    let start = || plain(ByteOrder::Little);
    let offset = start().bytes.len() as u64;
    for (captured, what) in [
        (5, FormatError::PacketLongerThanBlock { packet: 5, block: 36 }),
        (MAX_PACKET as u32, FormatError::PacketLongerThanBlock { packet: MAX_PACKET as u32, block: 36 }),
        (u32::MAX, FormatError::RecordTooLong(u32::MAX)),
    ] {
        for kind in [block::ENHANCED_PACKET, block::PACKET] {
            assert_eq!(damage(&start().block(kind, &body(captured))), (0, offset, what));
        }
    }
    let simple = start().simple(b"data", 5);
    assert_eq!(damage(&simple), (0, offset, FormatError::PacketLongerThanBlock { packet: 5, block: 20 }));
}

#[test]
fn block_must_end_in_its_own_length() {
    for order in ORDERS {
        let start = plain(order).enhanced(0, 1, b"good", 4);
        let offset = start.bytes.len();
        for block in [
            start.body_of(|file| file.enhanced(0, 1, b"bad", 3)),
            start.body_of(|file| file.block(5, &[0; 8])),
            start.body_of(Bytes::section),
            start.body_of(|file| file.interface(1, 0, |options| options)),
        ] {
            let mut file = start.bytes.clone();
            file.extend(block);
            let last = file.len() - 1;
            file[last] ^= 4;
            let file = Bytes { order, bytes: file };
            assert_eq!(damage(&file), (1, offset as u64, FormatError::BlockLengthsDiffer));
        }
    }
}

impl Bytes {
    /// What `more` writes, by itself.
    fn body_of(&self, more: impl FnOnce(Self) -> Self) -> Vec<u8> {
        more(Self::new(self.order)).bytes
    }
}

#[test]
fn option_with_invalid_length_is_damage() {
    for (code, value) in
        [(option::TIME_RESOLUTION, &b""[..]), (option::TIME_RESOLUTION, b"12"), (option::TIME_OFFSET, b"1234567")]
    {
        let file = Bytes::new(ByteOrder::Big).section().interface(1, 0, |options| options.option(code, value));
        assert_eq!(damage(&file), (0, 28, FormatError::OptionLength(code)));
    }
    let file = Bytes::new(ByteOrder::Big).section().interface(1, 0, |options| options.u16(2).u16(5).raw(b"eth0"));
    assert_eq!(damage(&file), (0, 28, FormatError::OptionLength(2)));
}

#[test]
fn memory_for_interfaces_is_bounded() {
    let mut file = Bytes::new(ByteOrder::Little).section();
    for _ in 0..MAX_INTERFACES {
        file = file.interface(ETHERNET, 0, |options| options);
    }
    let last = MAX_INTERFACES as u32 - 1;
    let good = Bytes { bytes: file.bytes.clone(), order: file.order }.enhanced(last, 1, b"x", 1);
    assert_eq!(read(&good.bytes).len(), 1);
    let offset = file.bytes.len() as u64;
    assert_eq!(damage(&file.interface(1, 0, |options| options)), (0, offset, FormatError::TooManyInterfaces));
}

#[test]
fn section_needs_byte_order_and_supported_version() {
    let section = |order: u32, major| Bytes::new(ByteOrder::Big).u32(order).u16(major).u16(0).i64(-1).bytes;
    let file = Bytes::new(ByteOrder::Big).block(block::SECTION, &section(0x0102_0304, 1));
    assert_eq!(damage(&file), (0, 0, FormatError::NoByteOrder));
    let file = Bytes::new(ByteOrder::Big).block(block::SECTION, &section(BYTE_ORDER, 2));
    assert_eq!(damage(&file), (0, 0, FormatError::SectionVersion { major: 2, minor: 0 }));
}

#[test]
fn cut_off_file_reports_part_and_offset() {
    let file = plain(ByteOrder::Little).block(5, &[0; 8]).enhanced(0, 1, b"data", 4).bytes;
    for (length, expected) in [
        (3, Some((Part::FileHeader, 0))),
        (23, Some((Part::FileHeader, 0))),
        (27, Some((Part::Block, 0))),
        (28, None),
        (30, Some((Part::RecordHeader, 28))),
        (36, Some((Part::Block, 28))),
        (47, Some((Part::Block, 28))),
        (48, None),
        (60, Some((Part::Block, 48))),
        (67, Some((Part::Block, 48))),
        (68, None),
        (76, Some((Part::Packet, 68))),
        (103, Some((Part::Packet, 68))),
    ] {
        match (read_all(&file[..length]).1, expected) {
            (Ok(()), None) => {}
            (Err(CaptureError::CutOff { part, begin, end }), Some(expected)) => {
                assert_eq!(((part, begin), end), (expected, length as u64));
            }
            other => panic!("{length}: {other:?}"),
        }
    }
}
