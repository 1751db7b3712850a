//! Finds errors in the TCP connections of a recording.

use super::recorder::Packet;
use etherparse::{NetSlice, SlicedPacket, TcpSlice, TransportSlice};
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// A stream is compared with its own repetitions up to here.
const COMPARED: usize = 1 << 20;

/// One direction of a connection.
type Flow = (SocketAddr, SocketAddr);

/// Something that TCP would not do by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A packet that no receiver takes.
    Checksum {
        /// Whose.
        flow: Flow,
        /// Its offset in the stream.
        at: u32,
    },
    /// Bytes that never came, though later ones did.
    Gap {
        /// Whose.
        flow: Flow,
        /// The offset of the first of them in the stream.
        at: u32,
    },
    /// It acknowledges bytes that the other end has not sent.
    AcknowledgesTooMuch {
        /// Whose.
        flow: Flow,
        /// By how many bytes.
        by: u32,
    },
    /// The same place in the stream held other bytes before.
    Changed {
        /// Whose.
        flow: Flow,
        /// The first such place.
        at: u32,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Checksum { flow: (from, to), .. }
        | Self::Gap { flow: (from, to), .. }
        | Self::AcknowledgesTooMuch { flow: (from, to), .. }
        | Self::Changed { flow: (from, to), .. }) = self;
        write!(f, "from {from} to {to}: ")?;
        match self {
            Self::Checksum { at, .. } => write!(f, "the checksum of the segment at byte {at} is wrong"),
            Self::Gap { at, .. } => write!(f, "byte {at} is missing, and later ones came"),
            Self::AcknowledgesTooMuch { by, .. } => write!(f, "acknowledges {by} bytes that were not sent"),
            Self::Changed { at, .. } => write!(f, "byte {at} was sent twice, and not the same"),
        }
    }
}

/// One direction, as far as it was recorded.
#[derive(Debug, Default)]
struct Stream {
    /// The number of the byte before the first one: the SYN's.
    first: u32,
    /// The bytes that have come, by their place.
    bytes: Vec<Option<u8>>,
    /// How far the peer may acknowledge: the SYN, the bytes, the FIN.
    sent: u32,
    changed: Option<u32>,
}

impl Stream {
    /// Adds a segment's bytes.
    fn add(&mut self, at: u32, payload: &[u8]) {
        for (place, &byte) in (at as usize..COMPARED).zip(payload) {
            if self.bytes.len() <= place {
                self.bytes.resize(place + 1, None);
            }
            if self.bytes[place].is_some_and(|before| before != byte) {
                self.changed.get_or_insert(place as u32);
            }
            self.bytes[place].get_or_insert(byte);
        }
    }

    fn gap(&self) -> Option<u32> {
        self.bytes.iter().position(Option::is_none).map(|place| place as u32)
    }
}

/// All faults of a recording, of connections whose beginning is in it.
pub fn faults(packets: &[Packet]) -> Vec<Fault> {
    let mut streams: HashMap<Flow, Stream> = HashMap::new();
    let mut faults = Vec::new();
    for (flow, tcp, is_whole) in packets.iter().filter_map(read) {
        if tcp.syn() {
            let first = tcp.sequence_number();
            // The addresses may be reused by a new connection; otherwise the SYN is a retransmission.
            if streams.get(&flow).is_some_and(|stream| stream.first != first) {
                let before = streams.remove(&flow);
                faults.extend(before.iter().flat_map(|stream| at_the_end(flow, stream)));
            }
            streams.entry(flow).or_insert(Stream { first, sent: 1, ..Stream::default() });
        }
        let (peer_first, peer_sent) =
            streams.get(&(flow.1, flow.0)).map_or((None, 0), |peer| (Some(peer.first), peer.sent));
        let Some(stream) = streams.get_mut(&flow) else { continue };
        let at = tcp.sequence_number().wrapping_sub(stream.first).wrapping_sub(u32::from(!tcp.syn()));
        if !is_whole {
            faults.push(Fault::Checksum { flow, at });
        }
        if tcp.rst() {
            continue;
        }
        // Keep-alives repeat the byte before the next: further back than this stream is long they are none of it.
        if (at as usize) < COMPARED {
            stream.add(at, tcp.payload());
        }
        let length = u32::try_from(tcp.payload().len()).unwrap_or(u32::MAX);
        let end = at.wrapping_add(length).wrapping_add(1 + u32::from(tcp.fin()));
        if end.wrapping_sub(stream.sent) < 1 << 31 {
            stream.sent = end;
        }
        if let Some(first) = peer_first.filter(|_| tcp.ack()) {
            let too_much = tcp.acknowledgment_number().wrapping_sub(first).wrapping_sub(peer_sent);
            if (1..1 << 31).contains(&too_much) {
                faults.push(Fault::AcknowledgesTooMuch { flow, by: too_much });
            }
        }
    }
    for (flow, stream) in &streams {
        faults.extend(at_the_end(*flow, stream));
    }
    faults
}

fn at_the_end(flow: Flow, stream: &Stream) -> impl Iterator<Item = Fault> {
    let gap = stream.gap().map(|at| Fault::Gap { flow, at });
    let changed = stream.changed.map(|at| Fault::Changed { flow, at });
    gap.into_iter().chain(changed)
}

/// The TCP segment in a packet, and whether its checksums are right.
fn read(packet: &Packet) -> Option<(Flow, TcpSlice<'_>, bool)> {
    let sliced = SlicedPacket::from_ip(&packet.bytes).ok()?;
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { return None };
    let (from, to, is_whole): (IpAddr, IpAddr, bool) = match sliced.net? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let expected = tcp.calc_checksum_ipv4(header.source(), header.destination()).ok();
            let is_whole = is_same(expected, tcp.checksum())
                && is_same(Some(header.to_header().calc_header_checksum()), header.header_checksum());
            (header.source_addr().into(), header.destination_addr().into(), is_whole)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let expected = tcp.calc_checksum_ipv6(header.source(), header.destination()).ok();
            (header.source_addr().into(), header.destination_addr().into(), is_same(expected, tcp.checksum()))
        }
        NetSlice::Arp(_) => return None,
    };
    let flow = (SocketAddr::new(from, tcp.source_port()), SocketAddr::new(to, tcp.destination_port()));
    Some((flow, tcp, is_whole))
}

/// In the arithmetic of checksums zero has two ways of writing, and the kernel uses both.
fn is_same(expected: Option<u16>, found: u16) -> bool {
    expected.is_some_and(|expected| expected == found || [expected, found].iter().all(|sum| matches!(sum, 0 | 0xffff)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use pinhole::core::time::Timestamp;

    const CLIENT: ([u8; 4], u16) = ([10, 21, 1, 10], 40000);
    const SERVER: ([u8; 4], u16) = ([10, 21, 1, 1], 21);

    /// A segment from the client (or the server) with these numbers; with a SYN if it acknowledges nothing or says so.
    fn segment(from_client: bool, seq: u32, ack: Option<u32>, syn: bool, payload: &[u8]) -> Packet {
        let (from, to) = if from_client { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
        let mut builder = PacketBuilder::ipv4(from.0, to.0, 64).tcp(from.1, to.1, seq, 1000);
        if let Some(ack) = ack {
            builder = builder.ack(ack);
        }
        if syn {
            builder = builder.syn();
        }
        let mut bytes = Vec::new();
        builder.write(&mut bytes, payload).expect("a vector takes it");
        Packet { time: Timestamp::default(), bytes }
    }

    /// A handshake in which the client begins just before the numbers wrap around.
    fn handshake() -> Vec<Packet> {
        vec![
            segment(true, u32::MAX - 1, None, true, b""),
            segment(false, 500, Some(u32::MAX), true, b""),
            segment(true, u32::MAX, Some(501), false, b""),
        ]
    }

    fn after_handshake(more: impl IntoIterator<Item = Packet>) -> Vec<String> {
        let packets: Vec<_> = handshake().into_iter().chain(more).collect();
        faults(&packets).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn retransmission_and_reordering_are_no_faults() {
        let packets = [
            segment(true, 3, Some(501), false, b" a\r\n"),
            segment(true, u32::MAX, Some(501), false, b"USER"),
            segment(true, u32::MAX, Some(501), false, b"USER a\r\n"),
            segment(false, 501, Some(7), false, b"331\r\n"),
        ];
        // The letters of USER have the numbers MAX, 0, 1 and 2.
        assert_eq!(after_handshake(packets), Vec::<String>::new());
    }

    #[test]
    fn retransmitted_syn_after_data_starts_no_connection() {
        let packets = [
            segment(false, 501, Some(u32::MAX), false, b"220 "),
            segment(false, 500, Some(u32::MAX), true, b""),
            segment(false, 505, Some(u32::MAX), false, b"Ready.\r\n"),
        ];
        assert_eq!(after_handshake(packets), Vec::<String>::new());
    }

    #[test]
    fn every_fault_is_found() {
        let gap = after_handshake([segment(true, 1, Some(501), false, b"USER")]);
        assert_eq!(gap, ["from 10.21.1.10:40000 to 10.21.1.1:21: byte 0 is missing, and later ones came"]);
        let too_much = after_handshake([segment(false, 501, Some(2), false, b"")]);
        assert_eq!(too_much, ["from 10.21.1.1:21 to 10.21.1.10:40000: acknowledges 3 bytes that were not sent"]);
        let changed = after_handshake([
            segment(true, u32::MAX, Some(501), false, b"USER a\r\n"),
            segment(true, u32::MAX, Some(501), false, b"USER b\r\n"),
        ]);
        assert_eq!(changed, ["from 10.21.1.10:40000 to 10.21.1.1:21: byte 5 was sent twice, and not the same"]);
        let mut broken = segment(true, u32::MAX, Some(501), false, b"USER a\r\n");
        *broken.bytes.last_mut().expect("it has bytes") ^= 1;
        let checksum = after_handshake([broken]);
        assert_eq!(checksum, ["from 10.21.1.10:40000 to 10.21.1.1:21: the checksum of the segment at byte 0 is wrong"]);
    }

    #[test]
    fn connection_without_a_recorded_start_has_no_faults() {
        let packets = [segment(true, 7, Some(501), false, b"late"), segment(true, 99, Some(501), false, b"later")];
        assert_eq!(faults(&packets), []);
    }
}
