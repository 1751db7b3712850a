//! A server's data connection to a control port of the attacker's: what the server sends in it, a file of the attacker's,
//! could be read as a dialogue in which the server is the client.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;

use lab::{PASSWORD, ServerKind, Shape, USER};

use super::setup::{ServerSetup, announced};
use crate::filtered_topology::connect;
use crate::raw_tcp::{RawListener, RawTcp};

/// A second control port, one that servers accept in a PORT.
const CONTROL: u16 = 2121;

/// Uploads a file, and returns what the server says about it.
fn upload(setup: &ServerSetup, peer: &mut RawTcp, name: &str, content: &[u8]) {
    let passive = peer.asks("PASV", "227");
    let numbers: Vec<u16> = passive
        .rsplit_once('(')
        .and_then(|(_, rest)| rest.split_once(')'))
        .map(|(numbers, _)| numbers.split(',').map(|number| number.parse().expect("a number")).collect())
        .expect("six numbers in parentheses");
    let address = SocketAddr::new(setup.cache.ip(), numbers[4] << 8 | numbers[5]);
    peer.send_until_acknowledged(format!("STOR {name}\r\n").as_bytes());
    let mut data = connect(&setup.fixture.topology.client.namespace, address).expect("it was announced");
    data.write_all(content).expect("the server reads");
    data.shutdown(std::net::Shutdown::Write).expect("it is connected");
    let _ = data.read(&mut [0; 1]);
    peer.read_reply("226");
}

/// The attacker's end of the data connection lets the server send line by line, and answers as a server does.
#[test]
fn file_that_a_server_sends_to_a_control_port_opens_nothing() {
    let setup = ServerSetup::new(Shape::Gateway, ServerKind::Vsftpd, "control_ports: [21, 2121]\n");
    let mut peer = setup.attacker();
    peer.asks(&format!("USER {USER}"), "331");
    peer.asks(&format!("PASS {PASSWORD}"), "230");
    peer.asks("TYPE I", "200");
    let lines = [("USER a\r\n", "331 And?\r\n"), ("PASS b\r\n", "230 In.\r\n")];
    let port = format!("PORT {}\r\n", announced(setup.cache));
    // More than the server's socket buffers: otherwise it closes the connection before it is answered.
    let filling = "a=b&".repeat(1_000_000);
    let content = lines.map(|(line, _)| line).concat() + &port + &filling;
    upload(&setup, &mut peer, "dialogue", content.as_bytes());

    let own = SocketAddr::new(peer.local().ip(), CONTROL);
    let listener = RawListener::bind(&setup.fixture.topology.client.namespace, own);
    peer.asks(&format!("PORT {}", announced(own)), "200");
    peer.send_until_acknowledged(b"RETR dialogue\r\n");
    let mut data = listener.accept(0);
    data.send_until_acknowledged(b"220 Hello.\r\n");
    for (line, answer) in lines {
        data.widen_window(line.len());
        data.acknowledge();
        data.read_until(line);
        data.send_until_acknowledged(answer.as_bytes());
    }
    data.open_window();
    data.acknowledge();
    data.read_until(&port);
    setup.daemon.wait_for_log(" WARN refused PORT 10.21.2.10:15079: data-connection", 1);
    setup.assert_cache_is_closed();
}
