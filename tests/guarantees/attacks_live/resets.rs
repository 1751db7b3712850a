//! An off-path attacker sends forged packets of a session.

use std::net::SocketAddr;

use etherparse::TcpOptionElement;
use lab::{PASSWORD, ServerKind, Shape, USER};
use nix::sys::signal::Signal;

use super::setup::ServerSetup;
use crate::daemon::TIMEOUT;
use crate::filtered_topology::connect;
use crate::raw_tcp::RawSegment;

/// Where a 227 says that the server listens.
fn named(reply: &str) -> SocketAddr {
    let (_, address) = reply.rsplit_once('(').expect("an address");
    let numbers: Vec<u8> = address.split([',', ')']).map_while(|number| number.parse().ok()).collect();
    let [a, b, c, d, high, low] = numbers[..] else { panic!("{reply:?}") };
    SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low])))
}

#[test]
fn inexact_reset_does_not_stop_inspection() {
    let setup = ServerSetup::new(Shape::ServerHost, ServerKind::Vsftpd, "");
    let client = &setup.fixture.topology.client.namespace;
    let mut peer = setup.attacker();
    peer.asks(&format!("USER {USER}"), "331");
    peer.asks(&format!("PASS {PASSWORD}"), "230");
    for off in [30_000, 1, 60_000] {
        peer.send_segment(&peer.reset(off));
        let passive = named(&peer.asks("PASV", "227"));
        connect(client, passive).unwrap_or_else(|error| panic!("{off} bytes off: {passive}: {error}"));
    }
}

/// The receiver has all of these bytes already, and ignores the timestamp.
#[test]
fn old_segment_with_future_timestamp_does_not_stop_inspection() {
    let setup = ServerSetup::new(Shape::ServerHost, ServerKind::Vsftpd, "");
    let mut peer = setup.attacker_with(true);
    peer.asks(&format!("USER {USER}"), "331");
    peer.asks(&format!("PASS {PASSWORD}"), "230");
    let old = RawSegment { seq: peer.next().moved(-10), ..peer.segment(b"x") };
    peer.send_segment(&RawSegment { options: vec![TcpOptionElement::Timestamp(2_000_000_000, 0)], ..old });
    let passive = named(&peer.asks("PASV", "227"));
    connect(&setup.fixture.topology.client.namespace, passive).unwrap_or_else(|error| panic!("{passive}: {error}"));
}

/// Unless the policy says otherwise, control connections matter more than denied commands: a daemon that hangs counts
/// as down.
#[test]
fn stopped_daemon_does_not_stop_control_connections() {
    let mut setup = ServerSetup::new(Shape::Gateway, ServerKind::Vsftpd, "capture: { when_down: open }\n");
    let mut before = setup.attacker();
    before.asks(&format!("USER {USER}"), "331");
    setup.daemon.child.signal(Signal::SIGSTOP).expect("it runs");
    // An existing connection and a new one.
    let goes_on = before.send_for(format!("PASS {PASSWORD}\r\n").as_bytes(), TIMEOUT);
    let begins = std::thread::scope(|scope| scope.spawn(|| setup.attacker()).join().is_ok());
    assert!(goes_on && begins, "while it is stopped: a session goes on: {goes_on}, one begins: {begins}");
    assert!(!setup.daemon.child.is_running().expect("it is ours"), "it was not ended");
}
