//! Packets in somebody else's name, from a side on which that one is not: the firewall's routing drops them (martian
//! sources, `rp_filter`), but only behind the hook at which packets are read.

use pinhole::lab::{ServerKind, Shape, USER};

use crate::raw_tcp::RawSegment;
use crate::scene::{ClientScene, ServerScene, announced};

/// A client that nobody has let in says for the server that it is let in, and where the server listens.
fn forged_replies_open_nothing(shape: Shape) {
    // It takes a second until it says that a password is wrong.
    let scene = ServerScene::new(shape, ServerKind::Vsftpd, "");
    for parameter in ["net/ipv4/conf/all/rp_filter", "net/ipv4/conf/default/rp_filter"] {
        scene.stage.firewall().set(parameter, "1").expect("root may");
    }
    let mut peer = scene.attacker();
    peer.asks(&format!("USER {USER}"), "331");
    peer.send_for_sure(b"PASS no\r\n");
    let login = b"230 In.\r\n";
    peer.forge_reply(&peer.reply(0, login));
    peer.send(b"PASV\r\n");
    let passive = format!("227 Entering Passive Mode ({}).\r\n", announced(scene.cache));
    peer.forge_reply(&peer.reply(login.len(), passive.as_bytes()));
    // The server's own reply comes behind both.
    peer.wait_for("an acknowledgement", |peer| peer.log.last().is_some_and(|last| last.ack == Some(peer.next())));
    scene.assert_cache_is_closed();
}

#[test]
fn replies_that_come_from_the_clients_side_open_nothing_on_a_server() {
    forged_replies_open_nothing(Shape::ServerHost);
}

#[test]
fn replies_that_come_from_the_clients_side_open_nothing_on_a_gateway() {
    forged_replies_open_nothing(Shape::Gateway);
}

/// A server of the attacker's says for a browser, which has only connected, that it wants its desktop to be reached.
#[test]
fn commands_that_come_from_the_servers_side_open_nothing() {
    let scene = ClientScene::new("");
    for parameter in ["net/ipv4/conf/all/rp_filter", "net/ipv4/conf/default/rp_filter"] {
        scene.gateway().set(parameter, "1").expect("root may");
    }
    let (client, mut peer) = scene.visit(0);
    let (from, to) = (client.local_addr().expect("it is connected"), peer.local());
    peer.send(b"220 Hello.\r\n");
    let forge = |peer: &crate::raw_tcp::RawTcp, behind: usize, payload: &[u8]| {
        let heard = RawSegment { seq: peer.expected() + behind, ack: Some(peer.next()), ..peer.segment(payload) };
        peer.inject(from, to, &heard);
    };
    let user = b"USER a\r\n";
    forge(&peer, 0, user);
    // It never arrives: the client has not said what it acknowledges.
    let login = b"230 In.\r\n";
    let ack = Some(peer.expected() + user.len());
    peer.send_segment(&RawSegment { ack, ttl: 1, ..peer.segment(login) });
    peer.skip(login.len());
    forge(&peer, user.len(), scene.port_line().as_bytes());
    peer.idle(std::time::Duration::from_millis(200));
    scene.assert_desktop_is_closed();
}
