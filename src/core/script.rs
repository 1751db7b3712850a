//! Writes conversations as packets, for tests, benchmarks and fuzz targets of the tracker.
//!
//! It keeps TCP's sequence numbers and knows nothing of FTP: the caller supplies the lines.

use std::net::IpAddr;

use etherparse::PacketBuilder;

use crate::core::net::{Direction, Endpoint, Flags, Flow, Port, Seq};

/// One TCP connection, written packet by packet. Each packet starts with its IP header.
#[derive(Clone, Debug)]
pub struct Conversation {
    flow: Flow,
    client_next: Seq,
    server_next: Seq,
}

/// Parses an endpoint such as `10.0.0.1:4000` or `[fd00::1]:21`.
///
/// # Panics
/// If the text is no address with a port: it is for constants in code.
pub fn endpoint(text: &str) -> Endpoint {
    let address: std::net::SocketAddr = text.parse().expect("an address and a port");
    Endpoint::new(address.ip(), Port::new(address.port()).expect("a port that is not zero"))
}

impl Conversation {
    /// A connection that `client` opens to `server`, with these first sequence numbers.
    pub fn new(client: Endpoint, server: Endpoint, client_first: u32, server_first: u32) -> Self {
        Self {
            flow: Flow { source: client, destination: server },
            client_next: Seq::new(client_first),
            server_next: Seq::new(server_first),
        }
    }

    /// The addresses of the client's packets.
    pub const fn flow(&self) -> Flow {
        self.flow
    }

    /// SYN, SYN-ACK, ACK.
    pub fn handshake(&mut self) -> [Vec<u8>; 3] {
        let syn = self.packet(Direction::FromClient, Flags::SYN, b"");
        self.client_next += 1;
        let syn_ack = self.packet(Direction::FromServer, Flags::SYN.and(Flags::ACK), b"");
        self.server_next += 1;
        [syn, syn_ack, self.ack(Direction::FromClient)]
    }

    /// A segment with that text.
    pub fn says(&mut self, who: Direction, text: impl AsRef<[u8]>) -> Vec<u8> {
        let text = text.as_ref();
        let packet = self.packet(who, Flags::ACK, text);
        *self.next_of(who) += text.len();
        packet
    }

    /// An acknowledgement of everything so far.
    pub fn ack(&self, who: Direction) -> Vec<u8> {
        self.packet(who, Flags::ACK, b"")
    }

    /// A FIN.
    pub fn closes(&mut self, who: Direction) -> Vec<u8> {
        let packet = self.packet(who, Flags::FIN.and(Flags::ACK), b"");
        *self.next_of(who) += 1;
        packet
    }

    /// A RST.
    pub fn resets(&self, who: Direction) -> Vec<u8> {
        self.packet(who, Flags::RST, b"")
    }

    /// Skips bytes, as if the packets with them had been lost.
    pub fn loses(&mut self, who: Direction, bytes: usize) {
        *self.next_of(who) += bytes;
    }

    fn next_of(&mut self, who: Direction) -> &mut Seq {
        match who {
            Direction::FromClient => &mut self.client_next,
            Direction::FromServer => &mut self.server_next,
        }
    }

    fn packet(&self, who: Direction, flags: Flags, payload: &[u8]) -> Vec<u8> {
        let (flow, seq, ack) = match who {
            Direction::FromClient => (self.flow, self.client_next, self.server_next),
            Direction::FromServer => (self.flow.reversed(), self.server_next, self.client_next),
        };
        packet(&flow, seq, ack, flags, payload)
    }
}

/// One packet with right checksums.
///
/// # Panics
/// If the two addresses are of different families, or the payload is longer than a packet can be.
pub fn packet(flow: &Flow, seq: Seq, ack: Seq, flags: Flags, payload: &[u8]) -> Vec<u8> {
    let ip = match (flow.source.address, flow.destination.address) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => PacketBuilder::ipv4(source.octets(), destination.octets(), 64),
        (IpAddr::V6(source), IpAddr::V6(destination)) => PacketBuilder::ipv6(source.octets(), destination.octets(), 64),
        _ => panic!("both ends of a connection have addresses of the same family"),
    };
    let mut tcp = ip.tcp(flow.source.port.number(), flow.destination.port.number(), seq.number(), 64_000);
    if flags.has(Flags::ACK) {
        tcp = tcp.ack(ack.number());
    }
    if flags.has(Flags::SYN) {
        tcp = tcp.syn();
    }
    if flags.has(Flags::FIN) {
        tcp = tcp.fin();
    }
    if flags.has(Flags::RST) {
        tcp = tcp.rst();
    }
    let mut packet = Vec::with_capacity(tcp.size(payload.len()));
    tcp.write(&mut packet, payload).expect("a vector takes everything, and the payload fits a packet");
    packet
}
