//! Capture files.

use pinhole::core::net::Segment;
use pinhole::replay::pcap::file::FileReader;
use pinhole::replay::pcap::link::{self, LinkType};
use pinhole::replay::pcap::write::FileWriter;

/// A capture file: no packet is longer than the file, nor are all packets together; reading ends; written packets are
/// read back unchanged.
pub fn captures(data: &[u8]) {
    let Ok(mut reader) = FileReader::new(data) else { return };
    let mut total = 0;
    let mut writer = FileWriter::new(Vec::new(), LinkType::Ip).expect("a vector takes it");
    let mut written = Vec::new();
    while let Ok(Some(frame)) = reader.next_frame() {
        total += frame.data.len();
        if let Ok(packet) = link::network_layer(frame.link, frame.data) {
            assert!(packet.len() <= frame.data.len());
            let _ = Segment::parse(packet);
        }
        if writer.write_cut(frame.time, frame.data, frame.original_len).is_ok() {
            written.push((frame.time, frame.data.to_vec(), frame.original_len));
        }
    }
    assert!(total <= data.len(), "{total} bytes of packets in a file of {}", data.len());
    assert!(reader.consumed() <= data.len() as u64);
    assert!(matches!(reader.next_frame(), Ok(None)), "behind its end there is nothing");
    let file = writer.finish().expect("a vector takes it");
    let mut reader = FileReader::new(file.as_slice()).expect("what was written is a capture");
    for (time, data, original_len) in written {
        let frame = reader.next_frame().expect("it is whole").expect("it is there");
        assert_eq!(
            (frame.time, frame.data, frame.original_len),
            (time, data.as_slice(), original_len.max(frame.original_len))
        );
    }
}
