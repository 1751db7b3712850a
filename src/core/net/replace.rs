//! Reoffsets the payload or the addresses of a packet, and corrects its lengths and checksums.

use std::net::IpAddr;

use etherparse::LaxIpSlice;
use pnet::packet::ipv4::{self, MutableIpv4Packet};
use pnet::packet::ipv6::MutableIpv6Packet;
use pnet::packet::tcp::{self, MutableTcpPacket, TcpFlags};

use super::{Flow, Seq};

/// The packet with another sequence number and payload. IP and TCP options are kept; URG and the urgent pointer are
/// cleared.
///
/// None if the packet is not a complete TCP segment, or would become too long for IP.
pub fn replace_payload(packet: &[u8], seq: Seq, payload: &[u8]) -> Option<Vec<u8>> {
    let offsets = Offsets::of(packet)?;
    let mut bytes = Vec::with_capacity(offsets.payload + payload.len());
    bytes.extend_from_slice(packet.get(..offsets.payload)?);
    bytes.extend_from_slice(payload);
    let mut tcp = MutableTcpPacket::new(&mut bytes[offsets.tcp..])?;
    tcp.set_sequence(seq.number());
    tcp.set_flags(tcp.get_flags() & !TcpFlags::URG);
    tcp.set_urgent_ptr(0);
    finish(&mut bytes, offsets)?;
    Some(bytes)
}

/// The packet with other addresses and another sequence number. `acknowledged` maps its acknowledgement and the edges
/// of its SACK blocks.
///
/// None if the packet is not a complete TCP segment, or the addresses are of the other family.
pub fn replace_addresses(packet: &[u8], flow: &Flow, seq: Seq, acknowledged: impl Fn(Seq) -> Seq) -> Option<Vec<u8>> {
    let offsets = Offsets::of(packet)?;
    let mut bytes = packet.get(..offsets.end)?.to_vec();
    match (flow.source.address, flow.destination.address, offsets.is_ipv4) {
        (IpAddr::V4(source), IpAddr::V4(destination), true) => {
            let mut ip = MutableIpv4Packet::new(&mut bytes)?;
            ip.set_source(source);
            ip.set_destination(destination);
        }
        (IpAddr::V6(source), IpAddr::V6(destination), false) => {
            let mut ip = MutableIpv6Packet::new(&mut bytes)?;
            ip.set_source(source);
            ip.set_destination(destination);
        }
        _ => return None,
    }
    let mut tcp = MutableTcpPacket::new(&mut bytes[offsets.tcp..])?;
    tcp.set_source(flow.source.port.number());
    tcp.set_destination(flow.destination.port.number());
    tcp.set_sequence(seq.number());
    if tcp.get_flags() & TcpFlags::ACK != 0 {
        tcp.set_acknowledgement(acknowledged(Seq::new(tcp.get_acknowledgement())).number());
    }
    for offset in sack_edges(bytes.get(offsets.tcp + HEADER..offsets.payload)?) {
        let edge = bytes.get_mut(offsets.tcp + HEADER + offset..)?.first_chunk_mut::<4>()?;
        *edge = acknowledged(Seq::new(u32::from_be_bytes(*edge))).number().to_be_bytes();
    }
    finish(&mut bytes, offsets)?;
    Some(bytes)
}

/// The length of a TCP header without options.
const HEADER: usize = 20;

/// TCP option kinds.
mod option {
    pub(super) const END: u8 = 0;
    pub(super) const NOP: u8 = 1;
    pub(super) const SACK: u8 = 5;
}

/// The offsets of the edges of the SACK blocks in a segment's options.
fn sack_edges(options: &[u8]) -> Vec<usize> {
    let mut edges = Vec::new();
    let mut at = 0;
    loop {
        match options.get(at..) {
            None | Some([] | [option::END, ..]) => return edges,
            Some([option::NOP, ..]) => at += 1,
            Some([kind, length, ..]) if *length >= 2 => {
                let end = at + usize::from(*length);
                if *kind == option::SACK && end <= options.len() {
                    edges.extend((at + 2..end).step_by(4).filter(|edge| edge + 4 <= end));
                }
                at = end;
            }
            Some(_) => return edges,
        }
    }
}

/// The offsets of the parts of a packet.
#[derive(Clone, Copy, Debug)]
struct Offsets {
    is_ipv4: bool,
    tcp: usize,
    payload: usize,
    /// Only padding follows.
    end: usize,
}

impl Offsets {
    fn of(packet: &[u8]) -> Option<Self> {
        let (ip, _) = LaxIpSlice::from_slice(packet).ok()?;
        let content = ip.payload();
        if content.fragmented || content.incomplete {
            return None;
        }
        let segment = etherparse::TcpSlice::from_slice(content.payload).ok()?;
        let (is_ipv4, end) = match &ip {
            LaxIpSlice::Ipv4(ip) => (true, usize::from(ip.header().total_len())),
            LaxIpSlice::Ipv6(ip) => (false, ip.header().slice().len() + usize::from(ip.header().payload_length())),
        };
        let tcp = end.checked_sub(content.payload.len())?;
        Some(Self { is_ipv4, tcp, payload: tcp + segment.header_len(), end })
    }
}

/// Sets the lengths and checksums of a packet without padding.
fn finish(bytes: &mut [u8], offsets: Offsets) -> Option<()> {
    let Offsets { is_ipv4, tcp, .. } = offsets;
    let (headers, segment) = bytes.split_at_mut(tcp);
    let length = headers.len() + segment.len();
    let mut segment = MutableTcpPacket::new(segment)?;
    if is_ipv4 {
        let mut ip = MutableIpv4Packet::new(headers)?;
        ip.set_total_length(u16::try_from(length).ok()?);
        ip.set_checksum(ipv4::checksum(&ip.to_immutable()));
        let checksum = tcp::ipv4_checksum(&segment.to_immutable(), &ip.get_source(), &ip.get_destination());
        segment.set_checksum(checksum);
    } else {
        let mut ip = MutableIpv6Packet::new(headers)?;
        ip.set_payload_length(u16::try_from(length - MutableIpv6Packet::minimum_packet_size()).ok()?);
        let checksum = tcp::ipv6_checksum(&segment.to_immutable(), &ip.get_source(), &ip.get_destination());
        segment.set_checksum(checksum);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use etherparse::{Ipv4HeaderSlice, PacketBuilder, SlicedPacket, TransportSlice};

    use super::*;
    use crate::core::net::{Flags, Segment};
    use crate::core::script::{endpoint, packet};

    fn flow(family: u8) -> Flow {
        match family {
            4 => Flow { source: endpoint("10.0.0.1:4000"), destination: endpoint("10.0.0.2:21") },
            _ => Flow { source: endpoint("[fd00::1]:4000"), destination: endpoint("[fd00::2]:21") },
        }
    }

    /// Whether the checksums of a packet are right.
    fn has_right_checksums(packet: &[u8]) -> bool {
        let sliced = SlicedPacket::from_ip(packet).expect("a packet");
        let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else { panic!("TCP") };
        let checksum = tcp.checksum();
        match &sliced.net {
            Some(etherparse::NetSlice::Ipv4(ip)) => {
                let header = Ipv4HeaderSlice::from_slice(packet).expect("a header").to_header();
                header.calc_header_checksum() == header.header_checksum
                    && tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()) == Ok(checksum)
            }
            Some(etherparse::NetSlice::Ipv6(ip)) => {
                tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()) == Ok(checksum)
            }
            _ => false,
        }
    }

    #[test]
    fn payload_of_any_length_gets_right_checksums() {
        for family in [4, 6] {
            let before = packet(&flow(family), Seq::new(7), Seq::new(9), Flags::ACK, b"PORT 10,0,0,1,15,160\r\n");
            for payload in [b"PORT 192,168,100,200,15,160\r\n".as_slice(), b"x", b"", &[7; 1300]] {
                let after = replace_payload(&before, Seq::new(u32::MAX), payload).expect("a segment");
                assert!(has_right_checksums(&after), "IPv{family}, {} bytes", payload.len());
                let segment = Segment::parse(&after).expect("a segment");
                assert_eq!((segment.seq, segment.ack, segment.payload), (Seq::new(u32::MAX), Seq::new(9), payload));
                assert_eq!(segment.flow, flow(family));
            }
        }
    }

    #[test]
    fn options_are_kept_and_padding_is_removed() {
        let mut before = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(4000, 21, 7, 1024)
            .options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
            .expect("options fit")
            .write(&mut before, b"NOOP\r\n")
            .expect("a vector takes everything");
        before.extend([0; 9]);
        let after = replace_payload(&before, Seq::new(7), b"NO\r\n").expect("a segment");
        assert!(has_right_checksums(&after));
        assert_eq!(after.len(), 20 + 32 + 4);
        assert_eq!(after[40..52], [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    }

    #[test]
    fn other_addresses_get_right_checksums() {
        for family in [4, 6] {
            let before = packet(&flow(family), Seq::new(7), Seq::new(9), Flags::ACK, b"NOOP\r\n");
            let other = flow(family).reversed();
            let after = replace_addresses(&before, &other, Seq::new(8), |ack| ack + 1).expect("a segment");
            assert!(has_right_checksums(&after));
            let segment = Segment::parse(&after).expect("a segment");
            assert_eq!((segment.flow, segment.seq, segment.ack), (other, Seq::new(8), Seq::new(10)));
            assert_eq!(replace_addresses(&before, &flow(10 - family), Seq::new(8), |ack| ack), None);
        }
    }

    #[test]
    fn sack_edges_are_mapped_like_acknowledgements() {
        let mut before = Vec::new();
        let sack = [[1, 1, 5, 18].as_slice(), &[0, 0, 1, 0, 0, 0, 2, 0, 255, 255, 255, 250, 0, 0, 0, 4]].concat();
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(4000, 21, 7, 1024)
            .ack(100)
            .options_raw(&sack)
            .expect("options fit")
            .write(&mut before, b"")
            .expect("a vector takes everything");
        let after =
            replace_addresses(&before, &flow(4).reversed(), Seq::new(7), |ack| ack.moved(6)).expect("a segment");
        assert!(has_right_checksums(&after));
        assert_eq!(after[40..], [1, 1, 5, 18, 0, 0, 1, 6, 0, 0, 2, 6, 0, 0, 0, 0, 0, 0, 0, 10]);
        assert_eq!(Segment::parse(&after).expect("a segment").ack, Seq::new(106));
    }

    #[test]
    fn damaged_options_are_not_changed() {
        for options in [&[5, 10, 0, 0][..], &[5, 0, 1, 1], &[0, 5, 10, 1], &[5], &[2, 4, 5, 180, 5, 7, 1, 1, 1, 1, 1]] {
            let edges = sack_edges(options);
            assert!(edges.iter().all(|edge| edge + 4 <= options.len()), "{options:?}: {edges:?}");
        }
        assert_eq!(sack_edges(&[2, 4, 5, 180, 5, 7, 1, 1, 1, 1, 1]), [6]);
    }

    #[test]
    fn incomplete_segment_is_not_replaced() {
        let whole = packet(&flow(4), Seq::new(7), Seq::new(9), Flags::ACK, b"NOOP\r\n");
        assert_eq!(replace_payload(&whole[..whole.len() - 1], Seq::new(7), b"x"), None);
        assert_eq!(replace_payload(b"", Seq::new(7), b"x"), None);
        assert_eq!(replace_payload(&whole, Seq::new(7), &[0; 65_536]), None);
    }
}
