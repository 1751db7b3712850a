//! Packets with a forged source address from the wrong side. The firewall's routing drops them (martian sources,
//! `rp_filter`), but only after the hook at which they are queued.

use std::io::Write as _;

use lab::{Namespace, ServerKind, Shape, USER};

use super::setup::{ClientSetup, ServerSetup, announced};
use crate::raw_tcp::{RawSegment, RawTcp};

/// A client that is not logged in forges the server's replies: that it is logged in, and where the server listens.
fn forged_replies_open_nothing(shape: Shape) {
    let setup = ServerSetup::new(shape, ServerKind::Vsftpd, "");
    check_sources(setup.fixture.firewall());
    let mut peer = setup.attacker();
    peer.asks(&format!("USER {USER}"), "331");
    // The server cannot say anything; a smaller window counts only behind something new.
    peer.widen_window(0);
    peer.send_until_acknowledged(b"PA");
    peer.send_until_acknowledged(b"SS no\r\nPASV\r\n");
    let login = b"230 In.\r\n";
    peer.forge_reply(&peer.reply(0, login));
    let passive = format!("227 Entering Passive Mode ({}).\r\n", announced(setup.cache));
    peer.forge_reply(&peer.reply(login.len(), passive.as_bytes()));
    // The firewall has handled the forged packets before this one.
    peer.send_until_acknowledged(b"NOOP\r\n");
    setup.assert_cache_is_closed();
}

/// Has the kernel refuse packets whose source is not where they come from.
fn check_sources(firewall: &Namespace) {
    for parameter in ["net/ipv4/conf/all/rp_filter", "net/ipv4/conf/default/rp_filter"] {
        firewall.set(parameter, "1").expect("root may");
    }
}

#[test]
fn replies_from_the_client_side_open_nothing_on_a_server() {
    forged_replies_open_nothing(Shape::ServerHost);
}

#[test]
fn replies_from_the_client_side_open_nothing_on_a_gateway() {
    forged_replies_open_nothing(Shape::Gateway);
}

/// A server of the attacker's says for a browser, which has only connected, that it wants its desktop to be reached.
#[test]
fn commands_from_the_server_side_open_nothing() {
    let setup = ClientSetup::new("");
    check_sources(setup.gateway());
    let (client, mut peer) = setup.visit(0);
    let (from, to) = (client.local_addr().expect("it is connected"), peer.local());
    peer.send(b"220 Hello.\r\n");
    let forge = |peer: &RawTcp, behind: usize, payload: &[u8]| {
        let options = Vec::new();
        let heard =
            RawSegment { seq: peer.expected() + behind, ack: Some(peer.next()), options, ..peer.segment(payload) };
        peer.inject(from, to, &heard);
    };
    let user = b"USER a\r\n";
    forge(&peer, 0, user);
    // It never arrives. It acknowledges bytes that the client has not sent.
    let login = b"230 In.\r\n";
    let ack = Some(peer.expected() + user.len());
    peer.send_segment(&RawSegment { ack, ttl: 1, ..peer.segment(login) });
    peer.skip(login.len());
    forge(&peer, user.len(), setup.port_line().as_bytes());
    // The firewall has handled the forged packets before this one.
    peer.open_window();
    (&client).write_all(b"x").expect("there is room");
    peer.acknowledge();
    peer.wait_for("a byte", |peer| !peer.unread_text().is_empty());
    setup.assert_desktop_is_closed();
}
