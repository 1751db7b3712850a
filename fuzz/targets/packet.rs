//! Packets that are rewritten.

use pinhole::core::net::{Segment, Seq, replace_addresses, replace_payload};

use super::input::Input;

/// A whole TCP segment of either family, with these options and payload, and without checksums.
fn built(is_ipv4: bool, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut tcp = vec![0x0f, 0xa0, 0, 21, 0xff, 0xff, 0xff, 0xf0, 0, 0, 1, 0, 0, 0x10, 4, 0, 0, 0, 0, 0];
    tcp.extend(options);
    tcp.resize(tcp.len().next_multiple_of(4), 0);
    tcp[12] = u8::try_from(tcp.len() / 4).expect("at most 60 bytes") << 4;
    tcp.extend(payload);
    let length = u16::try_from(tcp.len()).expect("short");
    let mut packet = if is_ipv4 {
        let [high, low] = (length + 20).to_be_bytes();
        vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]
    } else {
        let [high, low] = length.to_be_bytes();
        let mut header = vec![0x60, 0, 0, 0, high, low, 6, 64];
        header.extend([0xfd; 32]);
        header
    };
    packet.extend(tcp);
    packet
}

/// Whether all checksums of a packet are right, whose IP header has no options.
fn is_sound(packet: &[u8]) -> bool {
    let is_ipv4 = packet[0] >> 4 == 4;
    let (header, addresses) = if is_ipv4 { (20, &packet[12..20]) } else { (40, &packet[8..40]) };
    let segment = &packet[header..];
    let pseudo = sum(addresses) + 6 + segment.len() as u32;
    (!is_ipv4 || folded(sum(&packet[..20])) == 0xffff) && folded(pseudo + sum(segment)) == 0xffff
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | word.get(1).copied().map_or(0, u32::from)).sum()
}

fn folded(mut sum: u32) -> u32 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// A packet whose payload or addresses are replaced: it carries the new ones, all else stays, its checksums are right,
/// and replacing them back gives the original packet.
pub fn replacement(data: &[u8]) {
    // As it came, it is mostly no segment.
    let mut input = Input::new(data);
    let seq = Seq::new(u32::from(input.byte()) << 24 | u32::from(input.byte()));
    let _ = replace_payload(data, seq, b"x");
    if let Ok(segment) = Segment::parse(data) {
        let _ = replace_addresses(data, &segment.flow.reversed(), seq, |ack| ack + 1);
    }

    let is_ipv4 = input.byte() & 1 == 0;
    let options = input.below(41);
    let options = input.bytes(options);
    let length = input.below(1200);
    let payload = input.bytes(length);
    let other = input.bytes(1200);
    let before = built(is_ipv4, options, payload);
    let segment = Segment::parse(&before).expect("a whole segment");
    assert_eq!(segment.payload, payload);

    let after = replace_payload(&before, seq, other).expect("a whole segment");
    assert!(is_sound(&after));
    let read = Segment::parse(&after).expect("a whole segment");
    assert_eq!((read.flow, read.seq, read.ack, read.payload), (segment.flow, seq, segment.ack, other));
    let back = replace_payload(&after, segment.seq, payload).expect("a whole segment");
    // A packet with correct checksums does not depend on the code that writes it.
    let right = replace_payload(&before, segment.seq, payload).expect("a whole segment");
    assert_eq!(back, right);
    // Options and everything before them.
    let headers = before.len() - payload.len();
    assert_eq!(
        right[headers - options.len().next_multiple_of(4)..headers],
        after[headers - options.len().next_multiple_of(4)..headers]
    );

    let reversed = segment.flow.reversed();
    let by = i32::from(input.byte());
    let away = replace_addresses(&before, &reversed, seq, |ack| ack.moved(by)).expect("a whole segment");
    assert!(is_sound(&away));
    let read = Segment::parse(&away).expect("a whole segment");
    assert_eq!((read.flow, read.seq, read.ack, read.payload), (reversed, seq, segment.ack.moved(by), payload));
    let back = replace_addresses(&away, &segment.flow, segment.seq, |ack| ack.moved(-by)).expect("a whole segment");
    assert_eq!(back, right);
}
