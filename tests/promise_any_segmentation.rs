//! The promise: a command or a reply may come in any number of segments, and any number of them in one.
//!
//! The built program on a real kernel, in namespaces of the lab, with the lab's own small server and client around it
//! and a filter that drops by default. Needs root and nft.

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/stage.rs"]
mod stage;

use daemon::PATIENCE;
use stage::{CONTENT, FILE, Stage, read_all, serve_by_hand};

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use pinhole::ftp::Mode;
use pinhole::lab::mini::MiniClient;
use pinhole::lab::{Family, PASSWORD, Shape, USER};

/// Makes each write to a socket a segment of its own.
fn keep_segments_apart(stage: &Stage) {
    for host in [&stage.topology.client, &stage.topology.server] {
        host.namespace.set("net/ipv4/tcp_autocorking", "0").expect("a parameter of the namespace");
    }
}

#[test]
fn commands_may_be_split_at_every_byte() {
    let stage = Stage::new(Shape::Gateway);
    keep_segments_apart(&stage);
    let daemon = stage.daemon_logging("", "info");
    for (family, mode) in [(Family::V4, Mode::Port), (Family::V6, Mode::Eprt), (Family::V4, Mode::Pasv)] {
        let server = stage.serve(family);
        stage.as_client(|| {
            let mut client = MiniClient::connect(server.address(), PATIENCE)?;
            client.send_in_pieces(format!("USER {USER}\r\nPASS {PASSWORD}\r\n").as_bytes(), 1)?;
            client.expect(331)?;
            client.expect(230)?;
            let address = client.listen()?;
            let line = if mode.is_active() { client.announcement(mode, address)? } else { mode.command().to_owned() };
            let line = format!("{line}\r\n");
            for at in 0..line.len() {
                let before = daemon.counted("packets");
                if at == 0 {
                    client.send_in_pieces(line.as_bytes(), 1)?;
                } else {
                    client.send(&line.as_bytes()[..at])?;
                    client.send(&line.as_bytes()[at..])?;
                }
                let reply = client.reply()?;
                // The reply is one more. Of very many small segments some may wait for the first to be acknowledged,
                // and go together.
                let packets = daemon.counted("packets") - before;
                assert!(packets >= 3 && (at > 0 || packets > 5), "{mode}, split at {at}: {packets} packets");
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
fn commands_may_come_several_in_a_segment_and_before_the_replies_to_those_before() {
    let stage = Stage::new(Shape::Gateway);
    let _daemon = stage.daemon("");
    for family in Family::ALL {
        let server = stage.serve_many(family);
        let mode = if family == Family::V4 { Mode::Port } else { Mode::Eprt };
        stage.as_client(|| {
            let mut client = MiniClient::connect(server.address(), PATIENCE)?;
            client.send(format!("USER {USER}\r\nPASS {PASSWORD}\r\nTYPE I\r\nEPSV\r\nPWD\r\n").as_bytes())?;
            for code in [331, 230, 200] {
                client.expect(code)?;
            }
            let reply = client.expect(229)?;
            client.expect(257)?;
            let port = reply.text.split('|').nth(3).and_then(|port| port.parse().ok()).expect("a port");
            let data = client.connect_data(SocketAddr::new(server.address().ip(), port))?;
            let line = client.listen().and_then(|address| client.announcement(mode, address))?;
            // A download to the connection that stands, and another that the server begins.
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
    let stage = Stage::new(Shape::Gateway);
    keep_segments_apart(&stage);
    let daemon = stage.daemon_logging("", "info");
    let address = stage.target(Family::V4, 21);
    const LENGTH: usize = 50;
    let talk = |control: TcpStream| {
        let mut lines = BufReader::new(control.try_clone()?).lines();
        let listener = TcpListener::bind((address.ip(), 0))?;
        let port = listener.local_addr()?.port();
        let reply = format!("227 Entering Passive Mode (10,21,2,10,{},{})", port / 256, port % 256);
        let reply = format!("{reply:.<LENGTH$}\r\n");
        // Every other one is whole.
        let (mut at, mut is_whole) = (0, true);
        (&control).write_all(b"220 Ready.\r\n")?;
        while let Some(line) = lines.next().transpose()? {
            match line.split_once(' ').map_or(&*line, |(command, _)| command) {
                "USER" => (&control).write_all(b"331 And?\r\n")?,
                "PASS" => (&control)
                    .write_all(b"230-Welcome.\r\n227 Entering Passive Mode (10,21,2,10,9,9)\r\n230 In.\r\n")?,
                "PASV" => {
                    let (first, second) = reply.as_bytes().split_at(if is_whole { at } else { 0 });
                    let step = if is_whole && at == 0 { 1 } else { reply.len() };
                    for piece in [first, second].into_iter().flat_map(|part| part.chunks(step)) {
                        (&control).write_all(piece)?;
                    }
                    is_whole = !is_whole;
                    at += usize::from(is_whole);
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
        stage.as_client(|| {
            let mut client = MiniClient::log_in(address, PATIENCE)?;
            for at in 0..LENGTH + 2 {
                let before = daemon.counted("packets");
                client.passive(Mode::Pasv).map(drop)?;
                let packets = daemon.counted("packets") - before;
                // Some come twice where the machine is slow: their acknowledgement takes longer than their sender waits.
                assert!(packets >= if at == 0 { 10 } else { 3 }, "split at {at}: {packets} packets");
                assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT, "split at {at}");
            }
            client.quit()
        });
        assert_eq!(daemon.counted("opened"), 2 * (LENGTH as u64 + 2));
    };
    serve_by_hand(&stage.topology.server.namespace, address, talk, visit);
}
