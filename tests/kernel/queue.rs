//! NFQUEUE on a real kernel: a verdict with another payload.
//!
//! Needs root and nft.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
use lab::{Family, Shape, Topology};
use pinhole::core::net::{Flags, Segment};
use pinhole::core::policy::{Policy, WhenDown};
use pinhole::netfilter::queue::Queue;

use crate::firewall;

const SAID: &[u8] = b"hello\r\n";
const TIMEOUT: Duration = Duration::from_secs(20);

/// A packet with another payload, its lengths and checksums as they have to be.
fn with_payload(packet: &[u8], payload: &[u8]) -> Vec<u8> {
    let headers = PacketHeaders::from_ip_slice(packet).expect("the kernel sends whole packets");
    let (Some(NetHeaders::Ipv4(mut ip, _)), Some(TransportHeader::Tcp(mut tcp))) = (headers.net, headers.transport)
    else {
        panic!("TCP over IPv4 is queued")
    };
    ip.set_payload_len(tcp.header_len() + payload.len()).expect("it fits");
    ip.header_checksum = ip.calc_header_checksum();
    tcp.checksum = tcp.calc_checksum_ipv4(&ip, payload).expect("it fits");
    let mut bytes = Vec::new();
    ip.write(&mut bytes).and_then(|()| tcp.write(&mut bytes)).expect("there is room");
    bytes.extend_from_slice(payload);
    bytes
}

/// What a server reads when a client sends hello through a queue whose verdict carries `instead`.
fn received_instead(instead: &[u8]) -> Vec<u8> {
    let topology = Topology::new(Shape::ServerHost).expect("namespaces");
    let to = SocketAddr::new(topology.target.of(Family::V4), 21);
    let installed = topology.firewall.run(|| {
        let queue = Queue::open(0, WhenDown::Open).unwrap_or_else(|error| panic!("{error}"));
        (queue, firewall::install(&Policy::embedded()).unwrap_or_else(|error| panic!("{error}")))
    });
    let (mut queue, _sets) = installed.expect("the namespace is there");
    let listener = topology.server.namespace.run(|| TcpListener::bind(to)).expect("the namespace is there");
    let listener = listener.expect("the port is free");
    thread::scope(|scope| {
        // It reads until the client hangs up.
        scope.spawn(move || {
            loop {
                let waiting = queue.next_packet().expect("the queue is ours");
                let segment = Segment::parse(waiting.packet()).expect("TCP is queued");
                let is_last = segment.flags.has(Flags::FIN);
                let other = (segment.payload == SAID).then(|| with_payload(waiting.packet(), instead));
                match other {
                    Some(other) => waiting.accept_as(&other, None).expect("it waits"),
                    None => waiting.accept(None).expect("it waits"),
                }
                if is_last {
                    return;
                }
            }
        });
        let client = topology.client.namespace.run(|| TcpStream::connect(to)).expect("the namespace is there");
        let mut client = client.expect("somebody listens");
        let (mut server, _) = listener.accept().expect("the connection stands");
        server.set_read_timeout(Some(TIMEOUT)).expect("it is a socket");
        client.write_all(SAID).expect("the connection stands");
        let mut heard = vec![0; instead.len()];
        server.read_exact(&mut heard).expect("as much arrives as was let go on");
        heard
    })
}

#[test]
fn verdict_can_carry_a_payload_of_the_same_length() {
    assert_eq!(received_instead(b"HELLO\r\n"), b"HELLO\r\n");
}

#[test]
fn verdict_can_carry_a_longer_payload() {
    assert_eq!(received_instead(b"good morning\r\n"), b"good morning\r\n");
}

#[test]
fn verdict_can_carry_a_shorter_payload() {
    assert_eq!(received_instead(b"hi\r\n"), b"hi\r\n");
}
