//! A connection that looks closed, or new, but continues: nothing in it may open a pinhole.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use lab::{Family, ServerKind, Shape};

use super::setup::{
    ClientSetup, DESKTOP, LINGER, ServerSetup, announced, forget_resets_soon, visit, wait_until_forgotten,
};
use crate::daemon::TIMEOUT;
use crate::filtered_topology::{FilteredTopology, assert_closed};
use crate::raw_tcp::{RawSegment, RawTcp};

/// A client that is not logged in makes a real server send a line that begins with 227. `between` runs when the reply
/// to the user's name has been cut just before that line.
fn cut_reply_opens_nothing(
    shape: Shape,
    early: fn(&mut RawTcp) -> bool,
    between: impl FnOnce(&mut ServerSetup, &mut RawTcp),
) {
    let mut setup = ServerSetup::new(shape, ServerKind::PureFtpd, "");
    let mut peer = setup.attacker();
    let goes_on = early(&mut peer);
    let before_the_227 = "331 User ";
    peer.widen_window(before_the_227.len());
    // A smaller window counts only behind something new.
    assert_eq!(peer.send_for(b"US", if goes_on { TIMEOUT } else { ARRIVAL }), goes_on);
    if !goes_on {
        setup.assert_cache_is_closed();
        return;
    }
    peer.send_until_acknowledged(format!("ER 227 ({})\r\n", announced(setup.cache)).as_bytes());
    peer.wait_for("the beginning of a reply", |peer| peer.unread_text() == before_the_227);
    between(&mut setup, &mut peer);
    peer.send_until_acknowledged(b"PASV\r\n");
    peer.open_window();
    peer.acknowledge();
    assert!(peer.read_until("\r\n").contains("227 (10,21,"));
    setup.assert_cache_is_closed();
}

/// A web page has a browser send a form to a server of the attacker's. `between` happens when the form's head has come.
fn posted_port_opens_nothing(
    early: impl FnOnce(&mut ClientSetup, &mut RawTcp),
    between: impl FnOnce(&mut ClientSetup, &mut RawTcp),
) {
    let mut setup = ClientSetup::new("");
    let (mut client, mut peer) = setup.visit(0);
    let port = setup.port_line();
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", port.len());
    early(&mut setup, &mut peer);
    client.write_all(format!("{head}{port}").as_bytes()).expect("there is room");
    peer.widen_window(head.len());
    peer.acknowledge();
    peer.read_until("\r\n\r\n");
    between(&mut setup, &mut peer);
    peer.open_window();
    peer.acknowledge();
    peer.read_until("\r\n");
    setup.assert_desktop_is_closed();
}

/// A reset with an inexact sequence number is answered with an ACK and ignored; the connection continues.
fn reset_that_is_ignored(peer: &mut RawTcp) -> bool {
    peer.send_segment(&peer.reset(1));
    true
}

/// It passes the firewall's conntrack, and no further. Later segments do not pass either.
fn fin_that_never_arrives(peer: &mut RawTcp) -> bool {
    peer.send_segment(&RawSegment { fin: true, ttl: 1, ..peer.segment(b"") });
    false
}

/// How long a segment that must not arrive is retransmitted.
const ARRIVAL: Duration = Duration::from_secs(5);

fn a_minute<T>(_: &mut T, peer: &mut RawTcp) {
    peer.idle(LINGER);
}

/// Waits longer than a minute, because the attack does: all that has to is in here, side by side.
#[test]
fn session_that_seems_closed_is_not_picked_up_later() {
    let attacks: [(&str, fn()); 4] = [
        ("a reset that the server ignores", || {
            cut_reply_opens_nothing(Shape::ServerHost, reset_that_is_ignored, a_minute);
        }),
        ("a FIN that never reaches the server", || {
            cut_reply_opens_nothing(Shape::Gateway, fin_that_never_arrives, a_minute);
        }),
        ("a reset that the browser ignores", || {
            posted_port_opens_nothing(|_, peer| assert!(reset_that_is_ignored(peer)), a_minute);
        }),
        ("a FIN that never reaches the browser", || {
            posted_port_opens_nothing(|_, peer| assert!(!fin_that_never_arrives(peer)), a_minute);
        }),
    ];
    let failed: Vec<&str> = thread::scope(|scope| {
        let running = attacks.map(|(name, attack)| (name, scope.spawn(attack)));
        running.into_iter().filter_map(|(name, thread)| thread.join().is_err().then_some(name)).collect()
    });
    assert!(failed.is_empty(), "something is open behind {failed:?}");
}

#[test]
fn reply_cut_before_a_restart_opens_nothing() {
    cut_reply_opens_nothing(
        Shape::ServerHost,
        |_| true,
        |setup, _| {
            setup.daemon.kill().and_then(|()| setup.daemon.restart()).unwrap_or_else(|error| panic!("{error}"));
        },
    );
}

#[test]
fn post_begun_while_the_daemon_is_down_opens_nothing() {
    posted_port_opens_nothing(
        |setup, _| setup.daemon.kill().unwrap_or_else(|error| panic!("{error}")),
        |setup, _| setup.daemon.restart().unwrap_or_else(|error| panic!("{error}")),
    );
}

/// The reset has the next sequence number, so that conntrack accepts it; it never arrives. For the kernel alone, the
/// client's next segments are then a new connection.
#[test]
fn connection_that_conntrack_forgot_is_not_picked_up_as_ftp() {
    let setup = ClientSetup::new("");
    forget_resets_soon(setup.gateway());
    let (mut client, mut peer) = setup.visit(1000);
    client.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n").expect("there is room");
    peer.read_until("\r\n\r\n");
    peer.open_window();
    peer.send_segment(&RawSegment { ttl: 1, ..peer.reset(0) });
    wait_until_forgotten(setup.gateway(), client.local_addr().expect("it is connected").port());
    client.write_all(b"text=a\r\n").expect("there is room");
    peer.read_until("a\r\n");
    client.write_all(setup.port_line().as_bytes()).expect("there is room");
    peer.read_until("PORT");
    setup.assert_desktop_is_closed();
}

/// The attacker's server sends another SYN-ACK, which the browser's kernel ignores. The form's head lies before the
/// start of the session that this SYN-ACK suggests, and its body looks like FTP from the start. `between` runs after
/// the SYN-ACK. The window was closed before.
fn send_form_behind_a_syn_ack(client: &mut TcpStream, peer: &mut RawTcp, port: &str, between: impl FnOnce()) {
    let user = "USER a\r\n";
    let length = user.len() + port.len();
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    let start = peer.next() + 1000;
    let body = peer.expected() + head.len();
    peer.send_segment(&RawSegment { syn: true, seq: peer.next() + 999, ack: Some(body), ..peer.segment(b"") });
    between();
    client.write_all(format!("{head}{user}{port}").as_bytes()).expect("there is room");
    // Segments that never arrive at the browser.
    let invented = |peer: &RawTcp, at: usize, text: &'static str| {
        peer.send_segment(&RawSegment { seq: start + at, ttl: 1, ..peer.segment(text.as_bytes()) });
    };
    peer.wait_for("an acknowledgement of the browser's", |peer| !peer.log.is_empty());
    invented(peer, 0, "220 Hello.\r\n");
    peer.widen_window(head.len());
    peer.acknowledge();
    peer.read_until("\r\n\r\n");
    peer.widen_window(user.len());
    peer.acknowledge();
    peer.read_until(user);
    invented(peer, 12, "230 In.\r\n");
    peer.open_window();
    peer.acknowledge();
    peer.read_until("\r\n");
}

#[test]
fn syn_ack_in_the_middle_begins_no_session() {
    let setup = ClientSetup::new("");
    let (mut client, mut peer) = setup.visit(0);
    send_form_behind_a_syn_ack(&mut client, &mut peer, &setup.port_line(), || {});
    setup.assert_desktop_is_closed();
}

/// The first SYN-ACK has not been acknowledged: conntrack says still that the connection is opening.
#[test]
fn second_syn_ack_during_the_handshake_begins_no_session() {
    let setup = ClientSetup::new("");
    let inside = &setup.topology.client.namespace;
    // The way to the client is long. Its acknowledgements take their time.
    let slow = "chain output { type filter hook output priority 0; tcp dport 21 tcp flags & (syn | ack) == ack drop; }";
    inside.nft(&format!("table inet slow {{ {slow}; }}")).expect("the rules are right");
    let (mut client, mut peer) = setup.visit_slowly(0);
    let arrive = || inside.nft("delete table inet slow").expect("it is there");
    send_form_behind_a_syn_ack(&mut client, &mut peer, &setup.port_line(), arrive);
    setup.assert_desktop_is_closed();
}

/// Where conntrack keeps connections in a zone, it cannot be asked about them.
#[test]
fn syn_ack_in_the_middle_begins_no_session_in_a_zone() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let zone = "chain zone { type filter hook prerouting priority raw; ct zone set 7; }";
    fixture.firewall().nft(&format!("table inet zones {{ {zone}; }}")).expect("the rules are right");
    let _daemon = fixture.daemon("");
    let inside = &fixture.topology.client;
    let desktop = SocketAddr::new(inside.addresses.of(Family::V4), DESKTOP);
    let _desktop = inside.namespace.run(|| TcpListener::bind(desktop)).expect("root may enter").expect("it is free");
    let server = &fixture.topology.server.namespace;
    let (mut client, mut peer) =
        visit(&inside.namespace, server, fixture.target(Family::V4, 21), |listener| listener.accept(0));
    let port = format!("PORT {}\r\n", announced(desktop));
    send_form_behind_a_syn_ack(&mut client, &mut peer, &port, || {});
    assert_closed(server, desktop);
}

/// TCP Fast Open: the server acknowledges data in the SYN before anything else is sent.
#[test]
fn request_whose_head_is_in_the_syn_opens_nothing() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let _daemon = fixture.daemon("");
    let (client, server) = (&fixture.topology.client, &fixture.topology.server);
    server.namespace.set("net/ipv4/tcp_fastopen", "1538").expect("root may"); // 0x602
    let target = fixture.target(Family::V4, 21);
    let listener = server.namespace.run(|| TcpListener::bind(target)).expect("root may enter").expect("it is free");
    let own = client.addresses.of(Family::V4);
    let desktop = SocketAddr::new(own, DESKTOP);
    let _desktop = client.namespace.run(|| TcpListener::bind(desktop)).expect("root may enter").expect("it is free");
    let said = format!("PORT {}\r\n", announced(desktop));
    // The server plays its part, and closes when all bytes have arrived.
    let last = said.clone();
    thread::spawn(move || {
        let Ok((mut control, _)) = listener.accept() else { return };
        let _ = control.write_all(b"220 Hello.\r\n");
        let (mut heard, mut buffer, mut is_in) = (String::new(), [0; 1000], false);
        while let Ok(length @ 1..) = control.read(&mut buffer) {
            heard += &String::from_utf8_lossy(&buffer[..length]);
            if !is_in && heard.contains("USER a") {
                is_in = true;
                let _ = control.write_all(b"230 In.\r\n");
            }
            if heard.ends_with(&last) {
                let _ = control.write_all(b"200 Yes.\r\n");
            }
        }
    });
    let head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n";
    let mut peer = RawTcp::connect_with(&client.namespace, own, target, false, 60_000, head);
    peer.read_reply("220");
    peer.send_until_acknowledged(b"USER a\r\n");
    peer.read_reply("230");
    peer.send_until_acknowledged(said.as_bytes());
    peer.read_reply("200");
    assert_closed(&server.namespace, desktop);
}
