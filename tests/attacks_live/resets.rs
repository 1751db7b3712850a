//! Somebody who sees nothing of a session sends packets in its name.

use std::net::SocketAddr;

use pinhole::lab::{PASSWORD, ServerKind, Shape, USER};

use crate::scene::ServerScene;
use crate::stage::connect;

/// Where a 227 says that the server listens.
fn named(reply: &str) -> SocketAddr {
    let (_, address) = reply.rsplit_once('(').expect("an address");
    let numbers: Vec<u8> = address.split([',', ')']).map_while(|number| number.parse().ok()).collect();
    let [a, b, c, d, high, low] = numbers[..] else { panic!("{reply:?}") };
    SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low])))
}

#[test]
fn reset_far_from_the_next_byte_does_not_stop_the_reading() {
    let scene = ServerScene::new(Shape::ServerHost, ServerKind::Vsftpd, "");
    let client = &scene.stage.topology.client.namespace;
    let mut peer = scene.attacker();
    peer.asks(&format!("USER {USER}"), "331");
    peer.asks(&format!("PASS {PASSWORD}"), "230");
    for off in [30_000, 1, 60_000] {
        peer.send_segment(&peer.reset(off));
        let passive = named(&peer.asks("PASV", "227"));
        connect(client, passive).unwrap_or_else(|error| panic!("{off} bytes off: {passive}: {error}"));
    }
}
