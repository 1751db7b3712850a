//! Guarantee: a command or a reply may come in any number of segments, and a segment may hold any number of them.
//!
//! The built program on a real kernel, in namespaces of the lab, with the lab's own small server and client around it
//! and a filter that drops by default. Needs root and nft.

use crate::daemon::{Daemon, TIMEOUT};
use crate::filtered_topology::{CONTENT, FILE, FilteredTopology, read_all, serve_by_hand};

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use lab::mini::MiniClient;
use lab::{Family, PASSWORD, Result, Shape, USER};
use pinhole::core::ftp::Mode;

/// Makes each write to a socket a segment of its own.
fn keep_segments_apart(fixture: &FilteredTopology) {
    for host in [&fixture.topology.client, &fixture.topology.server] {
        host.namespace.set("net/ipv4/tcp_autocorking", "0").expect("a parameter of the namespace");
    }
}

/// Repeats an exchange until the daemon has read at least that many packets of it: on a slow machine a segment may be
/// taken for lost, and then TCP retransmits several writes in one segment.
fn repeat_until_queued<T>(packets: u64, daemon: &Daemon, mut say: impl FnMut() -> Result<T>) -> Result<T> {
    let mut seen = Vec::new();
    while seen.len() < 20 {
        let before = daemon.counted("packets");
        let reply = say()?;
        seen.push(daemon.counted("packets") - before);
        if seen.last() >= Some(&packets) {
            return Ok(reply);
        }
    }
    panic!("it never came in {packets} packets, but in {seen:?}");
}

#[test]
fn commands_may_be_split_at_every_byte() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    keep_segments_apart(&fixture);
    let daemon = fixture.daemon_logging("", "info");
    for (family, mode) in [(Family::V4, Mode::Port), (Family::V6, Mode::Eprt), (Family::V4, Mode::Pasv)] {
        let server = fixture.serve(family);
        fixture.as_client(|| {
            let mut client = MiniClient::connect(server.address(), TIMEOUT)?;
            client.send_in_pieces(format!("USER {USER}\r\nPASS {PASSWORD}\r\n").as_bytes(), 1)?;
            client.expect(331)?;
            client.expect(230)?;
            let address = client.listen()?;
            let line = if mode.is_active() { client.announcement(mode, address)? } else { mode.command().to_owned() };
            let line = format!("{line}\r\n");
            for at in 0..line.len() {
                // The reply is one more. At 0, each byte goes by itself; of very many small segments some wait for the
                // first to be acknowledged, and go together.
                let reply = repeat_until_queued(if at == 0 { 6 } else { 3 }, &daemon, || {
                    if at == 0 {
                        client.send_in_pieces(line.as_bytes(), 1)?;
                    } else {
                        client.send(&line.as_bytes()[..at])?;
                        client.send(&line.as_bytes()[at..])?;
                    }
                    client.reply()
                })?;
                let data = if mode.is_active() {
                    client.send(format!("RETR {FILE}\r\n").as_bytes())?;
                    client.expect(150)?;
                    client.accept()?
                } else {
                    let numbers = reply.text.rsplit_once('(').expect("an address").1;
                    let port = numbers.trim_end_matches(['.', ')', '\r', '\n']).split(',').skip(4);
                    let port = port.fold(0, |port, number| port * 256 + number.parse::<u16>().expect("a number"));
                    let data = client.connect_data(SocketAddr::new(server.address().ip(), port))?;
                    client.send(format!("RETR {FILE}\r\n").as_bytes())?;
                    client.expect(150)?;
                    data
                };
                assert_eq!(read_all(data), CONTENT, "{mode}, split at {at}");
                client.expect(226)?;
            }
            client.quit()
        });
    }
}

#[test]
fn commands_may_be_pipelined() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let _daemon = fixture.daemon("");
    for family in Family::ALL {
        let server = fixture.serve_many(family);
        let mode = if family == Family::V4 { Mode::Port } else { Mode::Eprt };
        fixture.as_client(|| {
            let mut client = MiniClient::connect(server.address(), TIMEOUT)?;
            client.send(format!("USER {USER}\r\nPASS {PASSWORD}\r\nTYPE I\r\nEPSV\r\nPWD\r\n").as_bytes())?;
            for code in [331, 230, 200] {
                client.expect(code)?;
            }
            let reply = client.expect(229)?;
            client.expect(257)?;
            let port = reply.text.split('|').nth(3).and_then(|port| port.parse().ok()).expect("a port");
            let data = client.connect_data(SocketAddr::new(server.address().ip(), port))?;
            let line = client.listen().and_then(|address| client.announcement(mode, address))?;
            // A download over the existing connection, and another over one that the server opens.
            client.send(format!("RETR {FILE}\r\nNOOP\r\n{line}\r\nRETR {FILE}\r\nPWD\r\n").as_bytes())?;
            assert_eq!(read_all(data), CONTENT);
            for code in [150, 226, 200, 200, 150] {
                client.expect(code)?;
            }
            assert_eq!(read_all(client.accept()?), CONTENT);
            for code in [226, 257] {
                client.expect(code)?;
            }
            client.quit()
        });
    }
}

#[test]
fn replies_may_be_split_at_every_byte() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    keep_segments_apart(&fixture);
    let daemon = fixture.daemon_logging("", "info");
    let address = fixture.target(Family::V4, 21);
    const LENGTH: usize = 50;
    let talk = |control: TcpStream| {
        let mut lines = BufReader::new(control.try_clone()?).lines();
        let listener = TcpListener::bind((address.ip(), 0))?;
        let port = listener.local_addr()?.port();
        let reply = format!("227 Entering Passive Mode (10,21,2,10,{},{})", port / 256, port % 256);
        let reply = format!("{reply:.<LENGTH$}\r\n");
        let mut split_at = None;
        (&control).write_all(b"220 Ready.\r\n")?;
        while let Some(line) = lines.next().transpose()? {
            match line.split_once(' ').map_or(&*line, |(command, _)| command) {
                "USER" => (&control).write_all(b"331 And?\r\n")?,
                "PASS" => (&control)
                    .write_all(b"230-Welcome.\r\n227 Entering Passive Mode (10,21,2,10,9,9)\r\n230 In.\r\n")?,
                // The client says where the reply to its next PASV is split; at 0, each byte goes by itself.
                "NOOP" => {
                    split_at = line.split_once(' ').and_then(|(_, at)| at.parse().ok());
                    (&control).write_all(b"200 Yes.\r\n")?;
                }
                "PASV" => {
                    let at = split_at.take();
                    let (first, second) = reply.as_bytes().split_at(at.unwrap_or(0));
                    let step = if at == Some(0) { 1 } else { reply.len() };
                    for piece in [first, second].into_iter().flat_map(|part| part.chunks(step)) {
                        (&control).write_all(piece)?;
                    }
                }
                "RETR" => {
                    (&control).write_all(b"150 Here.\r\n")?;
                    listener.accept()?.0.write_all(CONTENT)?;
                    (&control).write_all(b"226 There.\r\n")?;
                }
                "QUIT" => return (&control).write_all(b"221 Bye.\r\n"),
                _ => (&control).write_all(b"200 Yes.\r\n")?,
            }
        }
        Ok(())
    };
    let visit = || {
        fixture.as_client(|| {
            let mut client = MiniClient::log_in(address, TIMEOUT)?;
            let mut asked = 0;
            for at in 0..LENGTH + 2 {
                // NOOP, its reply, and PASV are three.
                repeat_until_queued(if at == 0 { 12 } else { 5 }, &daemon, || {
                    asked += 1;
                    client.command(&format!("NOOP {at}"), 200)?;
                    client.passive(Mode::Pasv).map(drop)
                })?;
                asked += 1;
                assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT, "split at {at}");
            }
            assert_eq!(daemon.counted("opened"), asked);
            client.quit()
        });
    };
    serve_by_hand(&fixture.topology.server.namespace, address, talk, visit);
}
