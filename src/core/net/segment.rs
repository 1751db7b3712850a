//! Parses one TCP segment out of an IP packet.
//!
//! Parsing is lax where a capture may have cut a packet off: it yields the bytes that are there. It is strict where
//! an attacker could gain: no length reaches beyond the packet, and a fragment is not a segment.

use std::net::IpAddr;

use etherparse::{IpNumber, LaxIpSlice, TcpSlice};

use super::{Endpoint, Flow, Seq};
use crate::core::net::Port;

/// The TCP flags that Pinhole reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// The sender has no more data.
    pub const FIN: Self = Self(0x01);
    /// A connection is being opened.
    pub const SYN: Self = Self(0x02);
    /// The connection is aborted.
    pub const RST: Self = Self(0x04);
    /// The acknowledgement number counts.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer counts.
    pub const URG: Self = Self(0x20);

    /// Whether all of `other` are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the segment asks for a new connection: the first of the handshake.
    pub const fn is_first_syn(self) -> bool {
        self.has(Self::SYN) && self.0 & (Self::ACK.0 | Self::RST.0 | Self::FIN.0) == 0
    }

    /// The flags that either of them has.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A TCP segment: its addresses, its sequence number and its payload.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// The addresses that it carried when it was seen.
    pub flow: Flow,
    /// The place of the first byte of `payload`, or of the SYN.
    pub seq: Seq,
    /// What the sender expects next from the other side; means something with [`Flags::ACK`] only.
    pub ack: Seq,
    /// SYN, ACK, FIN, RST, URG.
    pub flags: Flags,
    /// How far behind `seq` urgent data ends; means something with [`Flags::URG`] only.
    pub urgent: u16,
    /// The sender's timestamp (RFC 7323), where the segment has one.
    pub timestamp: Option<u32>,
    /// The bytes; fewer than were sent if the capture cut the packet.
    pub payload: &'a [u8],
    /// How many bytes of payload follow that the capture did not keep.
    pub missing: usize,
    /// Where it came from, if that is known.
    pub origin: Option<Origin>,
}

/// Where this host got a packet from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The number of the interface; 0 is this host itself.
    pub interface: u32,
    /// The number of the bridge's port, if the interface is a bridge and the packet came from a port of it; else 0.
    pub port: u32,
    /// This host would send nothing to the packet's source through that interface.
    pub is_doubtful: bool,
}

/// Why a packet is not a readable TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSegment {
    /// Neither IPv4 nor IPv6, or the header is damaged.
    #[error("no readable IP header")]
    NotIp,
    /// A piece of a larger packet. The kernel puts them together before it queues; a capture may hold them apart.
    #[error("a fragment")]
    Fragment,
    /// UDP, ICMP and all the others.
    #[error("not TCP")]
    NotTcp,
    /// It says that it is TCP, but the header is cut off, inconsistent, or names port zero.
    #[error("a damaged TCP header")]
    BadTcp,
    /// The TCP checksum is wrong. Only [`Segment::parse_verified`] looks at it.
    #[error("a wrong TCP checksum")]
    BadChecksum,
}

impl<'a> Segment<'a> {
    /// Parses a packet that starts with its IP header. Bytes after the packet's own length are padding and ignored.
    pub fn parse(packet: &'a [u8]) -> Result<Self, NotSegment> {
        Self::parse_with_header(packet).map(|(segment, ..)| segment)
    }

    /// Parses a packet of which all bytes are there, and verifies its TCP checksum. A capture often holds packets of
    /// which the network card had not written the checksum yet; a queue does not.
    pub fn parse_verified(packet: &'a [u8]) -> Result<Self, NotSegment> {
        let (segment, ip, tcp) = Self::parse_with_header(packet)?;
        let calculated = match &ip {
            LaxIpSlice::Ipv4(ip) => tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()),
            LaxIpSlice::Ipv6(ip) => tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()),
        };
        if calculated == Ok(tcp.checksum()) { Ok(segment) } else { Err(NotSegment::BadChecksum) }
    }

    #[inline]
    fn parse_with_header(packet: &'a [u8]) -> Result<(Self, LaxIpSlice<'a>, TcpSlice<'a>), NotSegment> {
        let (ip, stopped_at) = LaxIpSlice::from_slice(packet).map_err(|_| NotSegment::NotIp)?;
        let (source, destination): (IpAddr, IpAddr) = match &ip {
            LaxIpSlice::Ipv4(ip) => {
                let header = ip.header();
                (header.source_addr().into(), header.destination_addr().into())
            }
            LaxIpSlice::Ipv6(ip) => {
                let header = ip.header();
                (header.source_addr().into(), header.destination_addr().into())
            }
        };
        let content = ip.payload();
        let missing = if content.incomplete { packet_length(&ip).saturating_sub(packet.len()) } else { 0 };
        if content.fragmented {
            return Err(NotSegment::Fragment);
        }
        if content.ip_number != IpNumber::TCP {
            return Err(if stopped_at.is_some() { NotSegment::NotIp } else { NotSegment::NotTcp });
        }
        let tcp = TcpSlice::from_slice(content.payload).map_err(|_| NotSegment::BadTcp)?;
        let port = |number| Port::new(number).ok_or(NotSegment::BadTcp);
        let source = Endpoint::new(source, port(tcp.source_port())?);
        let destination = Endpoint::new(destination, port(tcp.destination_port())?);
        // All flags are in one byte of the header; reading the byte is faster than asking for each.
        let flags = Flags(tcp.slice()[FLAGS_OFFSET] & 0x37);
        let segment = Self {
            flow: Flow { source, destination },
            seq: Seq::new(tcp.sequence_number()),
            ack: Seq::new(tcp.acknowledgment_number()),
            flags,
            urgent: tcp.urgent_pointer(),
            timestamp: timestamp(tcp.options()),
            payload: tcp.payload(),
            missing,
            origin: None,
        };
        Ok((segment, ip, tcp))
    }
}

/// How long the packet says that it is.
fn packet_length(ip: &LaxIpSlice<'_>) -> usize {
    match ip {
        LaxIpSlice::Ipv4(ip) => usize::from(ip.header().total_len()),
        LaxIpSlice::Ipv6(ip) => ip.header().slice().len() + usize::from(ip.header().payload_length()),
    }
}

/// The value of the timestamp option, where there is one.
fn timestamp(options: &[u8]) -> Option<u32> {
    // The order in which nearly every system writes them.
    if let [1, 1, TIMESTAMP, TIMESTAMP_LENGTH, a, b, c, d, ..] = *options {
        return Some(u32::from_be_bytes([a, b, c, d]));
    }
    let mut rest = options;
    loop {
        rest = match *rest {
            [TIMESTAMP, TIMESTAMP_LENGTH, a, b, c, d, ..] => return Some(u32::from_be_bytes([a, b, c, d])),
            [END, ..] | [] => return None,
            [NO_OPERATION, ..] => &rest[1..],
            [_, length, ..] if length >= 2 => rest.get(usize::from(length)..)?,
            _ => return None,
        };
    }
}

/// Kinds of TCP options.
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const TIMESTAMP: u8 = 8;
const TIMESTAMP_LENGTH: u8 = 10;

/// The offset of the flags in a TCP header.
const FLAGS_OFFSET: usize = 13;

#[cfg(test)]
mod tests {
    use etherparse::{IpFragOffset, Ipv4Header, Ipv6Header, PacketBuilder};
    use proptest::prelude::*;

    use super::*;

    fn ipv4(payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(4000, 21, 7, 1024)
            .ack(9)
            .options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
            .expect("options fit")
            .write(&mut packet, payload)
            .expect("a vector takes everything");
        packet
    }

    fn ipv6_with_extensions(payload: &[u8]) -> Vec<u8> {
        let mut tcp = Vec::new();
        PacketBuilder::ipv6([1; 16], [2; 16], 64)
            .tcp(4000, 21, 7, 1024)
            .write(&mut tcp, payload)
            .expect("a vector takes everything");
        let segment = tcp.split_off(40);
        // Hop-by-hop options, then destination options, then TCP.
        let extensions = [60, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0];
        let mut header = Ipv6Header::from_slice(&tcp).expect("just written").0;
        header.next_header = IpNumber::IPV6_HEADER_HOP_BY_HOP;
        header.payload_length = u16::try_from(extensions.len() + segment.len()).expect("short");
        [header.to_bytes().as_slice(), &extensions, &segment].concat()
    }

    #[test]
    fn reads_a_segment_with_any_options() {
        let packet = ipv4(b"NOOP\r\n");
        let segment = Segment::parse(&packet).expect("a segment");
        assert_eq!(segment.flow.to_string(), "10.0.0.1:4000 -> 10.0.0.2:21");
        assert_eq!((segment.seq, segment.ack), (Seq::new(7), Seq::new(9)));
        assert!(segment.flags.has(Flags::ACK) && !segment.flags.has(Flags::SYN));
        assert_eq!(segment.payload, b"NOOP\r\n");
        assert_eq!(segment.timestamp, Some(1));
    }

    #[test]
    fn extension_headers_that_a_receiver_accepts_are_skipped() {
        const HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const OPTIONS: u8 = 60;
        for chain in [
            &[OPTIONS, OPTIONS][..],
            &[HOP, OPTIONS, OPTIONS, OPTIONS],
            &[HOP, OPTIONS, ROUTING, OPTIONS, OPTIONS],
            &[ROUTING, ROUTING],
            &[OPTIONS, ROUTING, OPTIONS, ROUTING, OPTIONS],
            &[OPTIONS; 12],
            &[OPTIONS; 100],
        ] {
            let mut tcp = Vec::new();
            PacketBuilder::ipv6([1; 16], [2; 16], 64)
                .tcp(4000, 21, 7, 1024)
                .write(&mut tcp, b"FEAT\r\n")
                .expect("a vector takes everything");
            let segment = tcp.split_off(40);
            let mut extensions = Vec::new();
            for next in chain[1..].iter().copied().chain([6]) {
                extensions.extend([next, 0, 1, 4, 0, 0, 0, 0]);
            }
            let mut header = Ipv6Header::from_slice(&tcp).expect("just written").0;
            header.next_header = IpNumber(chain[0]);
            header.payload_length = u16::try_from(extensions.len() + segment.len()).expect("short");
            let packet = [header.to_bytes().as_slice(), &extensions, &segment].concat();
            let read = Segment::parse(&packet).map(|segment| segment.payload.to_vec());
            assert_eq!(read, Ok(b"FEAT\r\n".to_vec()), "{chain:?}");
            assert!(Segment::parse_verified(&packet).is_ok(), "{chain:?}");
        }
    }

    #[test]
    fn timestamp_is_found_in_any_order_of_options() {
        assert_eq!(timestamp(&[2, 4, 5, 180, 8, 10, 0, 0, 0, 9, 0, 0, 0, 2, 1, 3, 3, 7]), Some(9));
        for options in
            [&[][..], &[0, 8, 10, 0, 0, 0, 9, 0, 0, 0, 2], &[8, 9, 0, 0, 0, 9], &[5, 0, 8], &[2], &[8, 10, 0]]
        {
            assert_eq!(timestamp(options), None, "{options:?}");
        }
    }

    #[test]
    fn transport_header_follows_extension_headers() {
        let packet = ipv6_with_extensions(b"NOOP\r\n");
        assert_eq!(Segment::parse(&packet).expect("a segment").payload, b"NOOP\r\n");
    }

    #[test]
    fn padding_after_the_packet_is_not_payload() {
        let mut packet = ipv4(b"");
        packet.extend([0; 6]);
        assert_eq!(Segment::parse(&packet).expect("a segment").payload, b"");
    }

    #[test]
    fn one_changed_bit_makes_the_checksum_wrong() {
        for packet in [ipv4(b"NOOP\r\n"), ipv6_with_extensions(b"NOOP\r\n")] {
            assert!(Segment::parse_verified(&packet).is_ok());
            for at in packet.len() - 26..packet.len() {
                let mut damaged = packet.clone();
                damaged[at] ^= 0x10;
                assert!(Segment::parse_verified(&damaged).is_err(), "{at}");
            }
        }
    }

    #[test]
    fn truncated_packet_has_the_captured_payload() {
        let packet = ipv4(b"PORT 10,0,0,1,4,5\r\n");
        let segment = Segment::parse(&packet[..packet.len() - 7]).expect("a segment");
        assert_eq!(segment.payload, b"PORT 10,0,0,");
        assert_eq!(segment.missing, 7);
    }

    #[test]
    fn truncated_ipv6_packet_reports_missing_bytes() {
        let packet = ipv6_with_extensions(b"EPSV\r\n");
        assert_eq!(Segment::parse(&packet[..packet.len() - 2]).expect("a segment").missing, 2);
        assert_eq!(Segment::parse(&packet).expect("a segment").missing, 0);
    }

    #[test]
    fn fragment_is_no_segment() {
        let packet = ipv4(b"NOOP\r\n");
        let mut header = Ipv4Header::from_slice(&packet).expect("just written").0;
        header.fragment_offset = IpFragOffset::try_new(3).expect("in range");
        let fragment = [header.to_bytes().as_slice(), &packet[20..]].concat();
        assert_eq!(Segment::parse(&fragment).expect_err("a fragment"), NotSegment::Fragment);
    }

    #[test]
    fn port_zero_is_damage() {
        let mut packet = ipv4(b"");
        packet[22..24].copy_from_slice(&[0, 0]);
        assert_eq!(Segment::parse(&packet).expect_err("port 0"), NotSegment::BadTcp);
    }

    #[test]
    fn other_protocols_are_not_reported_as_damage() {
        let mut packet = ipv4(b"");
        packet[9] = 17;
        assert_eq!(Segment::parse(&packet).expect_err("UDP"), NotSegment::NotTcp);
        assert_eq!(Segment::parse(b"").expect_err("nothing"), NotSegment::NotIp);
        assert_eq!(Segment::parse(&ipv4(b"")[..30]).expect_err("half a header"), NotSegment::BadTcp);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Segment::parse(&bytes);
        }

        #[test]
        fn damaged_packet_never_panics(at in 0usize..60, value: u8, cut in 0usize..80) {
            for mut packet in [ipv4(b"PORT 10,0,0,1,4,5\r\n"), ipv6_with_extensions(b"EPSV\r\n")] {
                let place = at % packet.len();
                packet[place] = value;
                packet.truncate(cut);
                let _ = Segment::parse(&packet);
            }
        }
    }
}
