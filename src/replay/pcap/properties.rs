//! Property tests with arbitrary capture files, intact and damaged.

use std::io::{self, Read};

use proptest::prelude::*;
use proptest::sample::Index;

use super::classic::{MICROSECONDS, NANOSECONDS};
use super::error::{CaptureError, OtherFormat};
use super::file::{FileReader, MAX_PACKET};
use super::link::LinkType;
use super::sample::{Bytes, ORDERS, Owned, ShortReads, read, read_all};
use super::write::FileWriter;
use crate::core::time::Timestamp;

const LINKS: [LinkType; 4] = [LinkType::Ethernet, LinkType::Ip, LinkType::Null, LinkType::LinuxCooked2];
/// Time resolutions of pcapng: microseconds, nanoseconds, a coarse and a binary one.
const RESOLUTIONS: [u8; 4] = [6, 9, 2, 0x80 | 20];

/// The beginnings of files that the reader parses further.
const BEGINNINGS: [&[u8]; 3] =
    [b"", b"\xd4\xc3\xb2\xa1\x02\0\x04\0", b"\x0a\x0d\x0d\x0a\x1c\0\0\0\x4d\x3c\x2b\x1a\x01\0"];
/// Lengths around the limits and around overflows.
const NUMBERS: [u32; 12] = {
    let limit = MAX_PACKET as u32;
    [0, 1, 3, 4, 12, 28, 32, limit, limit + 1, 0x8000_0000, 0xffff_fffc, u32::MAX]
};

/// A packet to write: seconds, fraction, data, missing bytes, interface, type of block.
type Packet = (u32, u32, Vec<u8>, u16, Index, u8);

fn packets() -> impl Strategy<Value = Vec<Packet>> {
    let data = prop::collection::vec(any::<u8>(), 0..200);
    prop::collection::vec((any::<u32>(), 0..1_000_000_u32, data, any::<u16>(), any::<Index>(), any::<u8>()), 0..20)
}

/// A classic file in any byte order and resolution, and the offsets at which its records end.
fn classic() -> impl Strategy<Value = (Vec<u8>, Vec<usize>)> {
    let magic = prop::sample::select(&[MICROSECONDS, NANOSECONDS]);
    (prop::sample::select(&ORDERS), magic, prop::sample::select(&LINKS), packets()).prop_map(
        |(order, magic, link, packets)| {
            let mut file = Bytes::new(order).classic_header(magic, link.number().into());
            let mut ends = vec![file.bytes.len()];
            for (seconds, fraction, data, cut, _, _) in packets {
                file = file.record(seconds, fraction, &data, data.len() as u32 + u32::from(cut));
                ends.push(file.bytes.len());
            }
            (file.bytes, ends)
        },
    )
}

/// A pcapng file with one or two sections, up to four interfaces in each, and every kind of block.
fn pcapng() -> impl Strategy<Value = (Vec<u8>, Vec<usize>)> {
    let interface = (prop::sample::select(&LINKS), prop::sample::select(&RESOLUTIONS));
    let interfaces = prop::collection::vec(interface, 1..=4);
    let section = (prop::sample::select(&ORDERS), interfaces, packets());
    prop::collection::vec(section, 1..=2).prop_map(|sections| {
        let mut file = Bytes::new(ORDERS[0]);
        let mut ends = Vec::new();
        for (order, interfaces, packets) in sections {
            file = file.in_order(order).section();
            ends.push(file.bytes.len());
            for (link, resolution) in &interfaces {
                file = file.interface(link.number(), 0, |options| options.option(9, &[*resolution]));
                ends.push(file.bytes.len());
            }
            for (high, low, data, cut, interface, form) in packets {
                let ticks = u64::from(high) << 20 | u64::from(low);
                let interface = interface.index(interfaces.len());
                let original = data.len() as u32 + u32::from(cut);
                file = match form % 8 {
                    0 => file.simple(&data, data.len() as u32),
                    1 => file.obsolete(interface as u16, ticks, &data, original),
                    2 => file.block(u32::from(form) << 8, &vec![form; data.len().next_multiple_of(4)]),
                    _ => file.enhanced(interface as u32, ticks, &data, original),
                };
                ends.push(file.bytes.len());
            }
        }
        (file.bytes, ends)
    })
}

fn any_file() -> impl Strategy<Value = (Vec<u8>, Vec<usize>)> {
    prop_oneof![classic(), pcapng()]
}

/// Reads any bytes, and checks what must hold for them, too.
fn read_within_bounds(file: &[u8]) -> Result<(), TestCaseError> {
    let Ok(mut reader) = FileReader::new(file) else { return Ok(()) };
    let mut before = reader.consumed();
    while let Ok(Some(frame)) = reader.next_frame() {
        prop_assert!(frame.data.len() <= file.len());
        let now = reader.consumed();
        prop_assert!(before < now && now <= file.len() as u64, "each frame moves the reader on");
        before = now;
    }
    // These files are small, so the buffer must not grow, whatever lengths they contain.
    prop_assert!(reader.memory() <= 256 * 1024);
    prop_assert!(matches!(reader.next_frame(), Ok(None)));
    Ok(())
}

proptest! {
    #[test]
    fn written_file_is_read_back(link in prop::sample::select(&LINKS), packets in packets()) {
        let mut writer = FileWriter::new(Vec::new(), link)?;
        let mut expected: Vec<Owned> = Vec::new();
        for (seconds, fraction, data, cut, _, _) in packets {
            let time = Timestamp::from_nanos(u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * 999);
            let original = data.len() as u32 + u32::from(cut);
            writer.write_cut(time, &data, original)?;
            expected.push((time.as_nanos(), link, data, original));
        }
        prop_assert_eq!(read(&writer.finish()?), expected);
    }

    #[test]
    fn size_of_reads_does_not_matter(
        (file, _) in any_file(), pieces in prop::collection::vec(1..100_usize, 1..5)
    ) {
        let (frames, end) = read_all(ShortReads { bytes: &file, pieces: &pieces, next: 0 });
        prop_assert!(end.is_ok());
        prop_assert_eq!(&frames, &read(&file));
        prop_assert_eq!(frames, read_all(ShortReads { bytes: &file, pieces: &[1], next: 0 }).0);
    }

    #[test]
    fn file_cut_anywhere_returns_packets_before_the_cut((file, ends) in any_file(), at in any::<Index>()) {
        let whole = read(&file);
        let length = at.index(file.len());
        let (frames, end) = read_all(&file[..length]);
        prop_assert!(whole.starts_with(&frames));
        match end {
            Ok(()) => prop_assert!(ends.contains(&length)),
            Err(CaptureError::Empty) => prop_assert_eq!(length, 0),
            Err(CaptureError::CutOff { begin, end, .. }) => {
                prop_assert_eq!(end, length as u64);
                let good = ends.iter().copied().rfind(|&boundary| boundary <= length).unwrap_or(0);
                prop_assert!(good < length);
                prop_assert_eq!(begin, good as u64);
                prop_assert_eq!(frames, read_all(&file[..good]).0);
            }
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        }
    }

    #[test]
    fn damage_anywhere_does_no_harm(
        (mut file, _) in any_file(), damage in prop::collection::vec((any::<Index>(), any::<u8>()), 1..10)
    ) {
        for (at, byte) in damage {
            let at = at.index(file.len());
            file[at] = byte;
        }
        read_within_bounds(&file)?;
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(
        start in prop::sample::select(&BEGINNINGS), bytes in prop::collection::vec(any::<u8>(), 0..500),
    ) {
        read_within_bounds(&[start, &bytes].concat())?;
    }

    #[test]
    fn numbers_at_the_limits_do_no_harm(
        (mut file, ends) in any_file(), record in any::<Index>(), field in 0..7_usize,
        number in prop::sample::select(&NUMBERS),
    ) {
        let at = record.get(&ends) + 4 * field;
        if let Some(place) = file.get_mut(at..at + 4) {
            let big: [u8; 4] = number.to_be_bytes();
            place.copy_from_slice(&big);
            read_within_bounds(&file)?;
            file[at..at + 4].copy_from_slice(&number.to_le_bytes());
            read_within_bounds(&file)?;
        }
    }
}

#[test]
fn empty_file_and_other_file_types_are_reported() {
    assert!(matches!(read_all(io::empty()).1, Err(CaptureError::Empty)));
    let (_, end) = read_all(&b"\x1f\x8b\x08\0\0"[..]);
    assert!(matches!(end, Err(CaptureError::NotACapture(OtherFormat::Gzip))), "{end:?}");
    let (_, end) = read_all(&b"{}"[..]);
    assert!(matches!(end, Err(CaptureError::NotACapture(OtherFormat::Json))), "{end:?}");
}

#[test]
fn read_error_is_returned_after_all_packets() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is gone"))
        }
    }
    let file = Bytes::new(ORDERS[0]).classic_header(MICROSECONDS, 1).record(1, 1, b"good", 4).raw(&[0; 5]).bytes;
    let (frames, end) = read_all((&file[..]).chain(Failing));
    assert_eq!(frames.len(), 1);
    let Err(CaptureError::Io { offset, source }) = end else { panic!("{end:?}") };
    assert_eq!((offset, source.to_string()), (file.len() as u64, "the disk is gone".into()));
}

#[test]
fn block_of_four_gigabytes_is_skipped_in_constant_memory() {
    let order = ORDERS[0];
    let length = 0xffff_fff0_u32;
    let before = Bytes::new(order).section().u32(0xbad).u32(length).bytes;
    // Thirteen megabytes of it suffice: it ends too early.
    let source = (&before[..]).chain(io::repeat(0).take(13_000_000));
    let mut reader = FileReader::new(source).expect("a good header");
    assert!(matches!(reader.next_frame(), Err(CaptureError::CutOff { begin: 28, end: 13_000_036, .. })));
    assert_eq!(reader.memory(), 256 * 1024);
}
