//! Text that an attacker makes a server echo, or a browser send, and that looks like a line of FTP.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use lab::{Family, PASSWORD, ServerKind, Shape, USER};
use socket2::SockRef;

use super::setup::{DESKTOP, ServerSetup, announced};
use crate::daemon::TIMEOUT;
use crate::filtered_topology::{FilteredTopology, assert_closed};

/// How long a server may take to answer some commands, if it does.
const ANSWER: Duration = Duration::from_secs(2);

#[test]
fn bare_lf_in_an_echoed_argument_ends_no_reply() {
    let setup = ServerSetup::new(Shape::ServerHost, ServerKind::Pyftpdlib, "");
    let mut peer = setup.attacker();
    peer.asks(&format!("USER {USER}"), "331");
    peer.asks(&format!("PASS {PASSWORD}"), "230");
    peer.send_until_acknowledged(format!("TYPE \n227 ({})\r\nPASV\r\n", announced(setup.cache)).as_bytes());
    let repeated = peer.read_until("227 Entering");
    assert!(repeated.contains("\n227"), "the server repeats nothing: {repeated:?}");
    setup.assert_cache_is_closed();
}

/// vsftpd makes a line feed of a NUL in a name, as RFC 959 wants it, and shows names as they are where it lists files in a
/// reply. So a name ends that reply and says the next one.
#[test]
fn file_name_that_ends_its_list_and_announces_opens_nothing() {
    let setup = ServerSetup::new(Shape::ServerHost, ServerKind::Vsftpd, "");
    let mut peer = setup.attacker();
    peer.asks(&format!("USER {USER}"), "331");
    peer.asks(&format!("PASS {PASSWORD}"), "230");
    peer.asks(&format!("MKD a\r\0213 x\r\0227 ({})", announced(setup.cache)), "257");
    peer.send_until_acknowledged(b"STAT .\r\nPASV\r\n");
    let listed = peer.read_until("227 Entering");
    assert!(listed.contains("\r\n227 ("), "the server does not show the name as it is: {listed:?}");
    setup.assert_cache_is_closed();
}

/// The same with a reply to AUTH: what follows would count as encrypted, and a denied command would pass unread.
#[test]
fn file_name_that_ends_its_list_and_accepts_auth_hides_no_command() {
    let setup = ServerSetup::new(
        Shape::ServerHost,
        ServerKind::Vsftpd,
        "defaults: { tls: deny, commands: { deny: [FEAT] } }\n",
    );
    let mut peer = setup.attacker();
    peer.asks(&format!("USER {USER}"), "331");
    peer.asks(&format!("PASS {PASSWORD}"), "230");
    peer.asks("MKD a\r\x00213 x\r\x00234 x", "257");
    peer.send_until_acknowledged(b"STAT .\r\nAUTH TLS\r\n");
    let listed = peer.read_until("500 ");
    assert!(listed.contains("\r\n234 x"), "the server does not show the name as it is: {listed:?}");
    peer.send_until_acknowledged(b"FEAT\r\nSYST\r\n");
    let said = peer.read_reply("215");
    assert!(!said.contains("211"), "FEAT arrives in spite of the policy: {said:?}");
}

/// Servers treat bytes that other readers take for the end of a line in different ways: none of them can be made to
/// send a reply that an attacker wrote.
#[test]
fn odd_bytes_that_servers_repeat_open_nothing() {
    let odd: &[&[u8]] = &[
        b"",
        b"\n",
        b"\r",
        b"\r\r",
        b"\r\0\n",
        b"\r\r\n",
        b"\0\n",
        b"\0",
        b"\n\r",
        b"\x0b",
        b"\x0c",
        b"\x1a",
        b"\xff\n",
        b"\r\xff\n",
        b"\xff\xfb\n",
        b"\r\xff\xf1\n",
        b"\xff\xfa\r\n\xff\xf0",
        b"\xc2\x85",
        b"\xe2\x80\xa8",
        b"%0d%0a",
        b"\\r\\n",
        b"\"\"\n",
    ];
    let try_all = |kind: ServerKind| {
        let setup = ServerSetup::new(Shape::ServerHost, kind, "");
        let passive = format!("227 ({})", announced(setup.cache)).into_bytes();
        for odd in odd {
            let mut peer = setup.attacker();
            peer.asks(&format!("USER {USER}"), "331");
            peer.asks(&format!("PASS {PASSWORD}"), "230");
            for verb in ["TYPE ", "CWD ", "XY ", "MKD ", "SITE ", "STAT "] {
                peer.send_for(&[verb.as_bytes(), odd, &passive, b"\r\nPASV\r\n"].concat(), ANSWER);
            }
            // Behind some of them a server does not read on, or hangs up.
            peer.send_for(b"SYST\r\n", ANSWER);
            peer.receives_within("215 ", ANSWER);
            setup.assert_cache_is_closed();
        }
    };
    thread::scope(|scope| {
        let servers = ServerKind::ALL.map(|kind| scope.spawn(move || try_all(kind)));
        for server in servers {
            server.join().expect("it has said why");
        }
    });
}

/// An attacker makes a program, for which address, method and body can be chosen, connect to port 21 of the attacker's
/// server. The server answers as an FTP server would, while the body is still being sent.
#[test]
fn http_request_with_an_ftp_command_as_method_opens_nothing() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let _daemon = fixture.daemon("");
    let (client, server) = (&fixture.topology.client, &fixture.topology.server);
    let desktop = SocketAddr::new(client.addresses.of(Family::V4), DESKTOP);
    let _desktop = client.namespace.run(|| TcpListener::bind(desktop)).expect("root may enter").expect("it is free");
    let target = fixture.target(Family::V4, 21);
    let listener = server.namespace.run(|| TcpListener::bind(target)).expect("root may enter").expect("it is free");
    // The body is larger than the server's window.
    SockRef::from(&listener).set_recv_buffer_size(4096).expect("it is a socket");
    let port = format!("PORT {}\r\n", announced(desktop));
    let filling = "a=b&".repeat(200_000);
    let body = format!("{filling}\r\n{port}{filling}");
    let mut curl = client.namespace.command("curl");
    curl.args(["--disable", "--silent", "--http0.9", "-X", "USER", "--data-binary", "@-", "-H", "Expect:"])
        .args(["--max-time", "20", &format!("http://{target}/")])
        .input(body.as_bytes());
    let curl = curl.spawn().unwrap_or_else(|error| panic!("{error}"));
    let (mut control, _) = listener.accept().expect("curl comes");
    control.write_all(b"220 Hello.\r\n").expect("it is connected");
    let mut heard = Vec::new();
    let mut buffer = [0; 4096];
    let mut answered = false;
    control.set_read_timeout(Some(TIMEOUT)).expect("it is a socket");
    while !String::from_utf8_lossy(&heard).contains(&port) {
        let length = control.read(&mut buffer).expect("curl goes on");
        assert!(length > 0, "curl stops: {}", curl.output());
        heard.extend_from_slice(&buffer[..length]);
        if !answered && heard.windows(4).any(|window| window == b"\r\n\r\n") {
            answered = true;
            control.write_all(b"230 In.\r\n").expect("it is connected");
        }
    }
    assert!(answered);
    assert_closed(&server.namespace, desktop);
    drop(curl);
}
