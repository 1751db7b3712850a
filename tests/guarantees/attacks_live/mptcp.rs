//! MPTCP, which spreads one dialogue over several connections, so that none of them has all bytes.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::thread;

use lab::{Family, Namespace, ServerKind, Shape};
use pinhole::core::net::Seq;
use socket2::{Domain, Protocol, Socket, Type};

use super::setup::ServerSetup;
use crate::daemon::TIMEOUT;
use crate::filtered_topology::{FilteredTopology, kernel_counter};
use crate::raw_tcp::{Checksum, RawSegment, packet};

const MPTCP: i32 = 262;
/// The options that request MPTCP in a SYN, and that join such a connection.
const CAPABLE: [u8; 4] = [30, 4, 0x01, 0x01];
const JOIN: [u8; 12] = [30, 12, 0x10, 1, 1, 2, 3, 4, 5, 6, 7, 8];

fn socket(namespace: &Namespace, family: Family, make: impl FnOnce(&Socket) -> io::Result<()> + Send) -> Socket {
    let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
    let open = || {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::from(MPTCP)))?;
        make(&socket).map(|()| socket)
    };
    namespace.run(open).expect("root may enter").expect("a connection of MPTCP or TCP")
}

fn count(namespace: &Namespace, name: &str) -> u64 {
    kernel_counter(namespace, "MPTcpExt", name)
}

#[test]
fn control_connections_use_no_mptcp() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let (client, server) = (&fixture.topology.client, &fixture.topology.server);
    let listeners = [Family::V4, Family::V6].map(|family| {
        let target = fixture.target(family, 21);
        let listener = socket(&server.namespace, family, |socket| {
            socket.bind(&target.into())?;
            socket.listen(8)
        });
        (family, target, listener)
    });
    let uses_mptcp = |family, target: SocketAddr, listener: &Socket| {
        let before = count(&server.namespace, "MPCapableACKRX");
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut control, _) = listener.accept().expect("it comes");
                control.write_all(b"220 Hello.\r\n").expect("it is there");
            });
            let mut control = socket(&client.namespace, family, |socket| {
                socket.set_read_timeout(Some(TIMEOUT))?;
                socket.connect(&target.into())
            });
            let mut greeting = [0; 12];
            control.read_exact(&mut greeting).expect("the greeting comes");
        });
        count(&server.namespace, "MPCapableACKRX") > before
    };
    for (family, target, listener) in &listeners {
        assert!(uses_mptcp(*family, *target, listener), "{family}: without the program it is MPTCP");
    }
    let _daemon = fixture.daemon("");
    for (family, target, listener) in &listeners {
        assert!(!uses_mptcp(*family, *target, listener), "{family}");
    }
}

/// The kernel removes one option; no real client sends several.
#[test]
fn syn_with_two_options_of_mptcp_does_not_arrive() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let host = &fixture.topology.client;
    let target = fixture.target(Family::V4, 21);
    let server = &fixture.topology.server.namespace;
    let _listener = socket(server, Family::V4, |socket| {
        socket.bind(&target.into())?;
        socket.listen(8)
    });
    let raw = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))); // IPPROTO_RAW
    let out = host.namespace.run(raw).expect("root may enter").expect("root may");
    let mut port = 40_000;
    let mut arrives = |options: &[&[u8]]| {
        port += 1;
        let segment = RawSegment {
            seq: Seq::new(7),
            ack: None,
            syn: true,
            fin: false,
            rst: false,
            urgent: None,
            window: 60_000,
            ttl: 64,
            options: Vec::new(),
            raw_options: options.concat(),
            checksum: Checksum::Correct,
            has_ip_options: false,
            payload: b"",
        };
        let from = SocketAddr::new(host.addresses.of(Family::V4), port);
        let asked = || count(server, "MPCapableSYNRX") + count(server, "MPJoinNoTokenFound");
        let before = asked();
        let to = SocketAddr::new(target.ip(), 0);
        out.send_to(&packet(from, target, &segment), &to.into()).expect("it goes");
        // When that is answered, earlier packets have arrived.
        crate::filtered_topology::connect(&host.namespace, target).expect("TCP works");
        asked() > before
    };
    let forms: [&[&[u8]]; 4] = [&[&CAPABLE], &[&JOIN], &[&CAPABLE, &CAPABLE], &[&JOIN, &CAPABLE]];
    for form in forms {
        assert!(arrives(form), "{form:?}: without the program it arrives");
    }
    let _daemon = fixture.daemon("");
    for form in forms {
        assert!(!arrives(form), "{form:?}");
    }
}

/// After the server's answer, a client's SYN belongs to an established connection.
#[test]
fn later_syn_with_mptcp_does_not_arrive() {
    let setup = ServerSetup::new(Shape::Gateway, ServerKind::PureFtpd, "");
    let server = &setup.fixture.topology.server.namespace;
    let rules = "table inet watch {
         counter plain { }
         counter mptcp { }
         chain which { tcp option 30 exists counter name mptcp return; counter name plain; }
         chain hear {
             type filter hook prerouting priority -400;
             tcp dport 21 tcp flags & (syn | ack) == syn jump which;
         }
     }";
    let mut peer = setup.attacker();
    server.nft(rules).unwrap_or_else(|error| panic!("{error}"));
    let syn = RawSegment { syn: true, ack: None, ..peer.segment(b"") };
    peer.send_segment(&syn);
    peer.send_segment(&RawSegment { raw_options: CAPABLE.to_vec(), ..syn });
    // When that is answered, earlier segments have arrived.
    peer.asks("NOOP", "200");
    let counted = |name| {
        let listed = server.nft_output(&["list", "counter", "inet", "watch", name]).expect("nft lists");
        listed.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok()).expect("a number")
    };
    assert_eq!((counted("plain"), counted("mptcp")), (1, 0));
}
