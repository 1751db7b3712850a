//! The lab's small server and client, with each other and with real ones. Needs root.

use lab::mini::{MiniClient, MiniOptions, MiniServer};
use lab::{ClientKind, Family, KERNEL_HELPER, Result, ServerKind, ServerOptions, Shape, Task, Topology, Visit};
use pinhole::core::ftp::Mode;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(10);
const BRIEF: Duration = Duration::from_millis(500);
const CONTENT: &[u8] = b"Files are data.\r\nPORT 10,21,1,10,0,22\r\n";

fn modes(family: Family) -> &'static [Mode] {
    match family {
        Family::V4 => &[Mode::Port, Mode::Eprt, Mode::Pasv, Mode::Epsv],
        Family::V6 => &[Mode::Eprt, Mode::Epsv],
    }
}

fn topology(shape: Shape) -> Topology {
    Topology::new(shape).unwrap_or_else(|error| panic!("{error}"))
}

fn control(topology: &Topology, family: Family) -> SocketAddr {
    SocketAddr::new(topology.target.of(family), 21)
}

fn serve(topology: &Topology, family: Family, options: MiniOptions) -> MiniServer {
    let server = MiniServer::start(&topology.server.namespace, control(topology, family), options)
        .unwrap_or_else(|error| panic!("{error}"));
    server.place("readme.txt", CONTENT);
    server
}

/// Runs `work` where the client is.
fn as_client<T: Send>(topology: &Topology, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    topology.client.namespace.run(work)?
}

fn three_transfers(server: SocketAddr, mode: Mode) -> Result<()> {
    let mut client = MiniClient::log_in(server, TIMEOUT)?;
    let listing = client.list(mode)?;
    assert!(String::from_utf8_lossy(&listing).contains("readme.txt"), "{mode}: the listing lacks the file");
    assert_eq!(client.download(mode, "readme.txt")?, CONTENT, "{mode}");
    client.upload(mode, "upward.txt", CONTENT)?;
    client.quit()
}

#[test]
fn mini_client_and_server_transfer_in_every_mode() {
    for shape in Shape::ALL {
        let topology = topology(shape);
        for (family, one_listener) in Family::ALL.into_iter().flat_map(|f| [(f, true), (f, false)]) {
            let server = serve(&topology, family, MiniOptions { one_listener, ..MiniOptions::default() });
            for &mode in modes(family) {
                as_client(&topology, || three_transfers(server.address(), mode))
                    .unwrap_or_else(|error| panic!("{shape}, {family}, {mode}: {error}"));
                assert_eq!(server.content("upward.txt").as_deref(), Some(CONTENT));
            }
        }
    }
}

#[test]
fn mini_transfers_need_the_kernel_helper() {
    for shape in Shape::ALL {
        let topology = topology(shape);
        topology.firewall.nft(shape.default_drop()).expect("the rules are right");
        for family in Family::ALL {
            let server = serve(&topology, family, MiniOptions { timeout: BRIEF, ..MiniOptions::default() });
            for &mode in modes(family) {
                let blocked = as_client(&topology, || {
                    let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
                    client.set_timeout(BRIEF)?;
                    Ok(client.list(mode).is_err())
                });
                assert!(blocked.unwrap_or_else(|error| panic!("{error}")), "{shape}, {family}, {mode} came through");
            }
        }
        topology.firewall.nft(KERNEL_HELPER).expect("this kernel has its helper");
        for family in Family::ALL {
            let server = serve(&topology, family, MiniOptions::default());
            for &mode in modes(family) {
                as_client(&topology, || three_transfers(server.address(), mode))
                    .unwrap_or_else(|error| panic!("{shape}, {family}, {mode}: {error}"));
            }
        }
    }
}

#[test]
fn real_clients_work_with_the_mini_server() {
    let topology = topology(Shape::ServerHost);
    for family in Family::ALL {
        let server = serve(&topology, family, MiniOptions::default());
        for client in ClientKind::ALL {
            for &mode in client.modes(family) {
                let visit = Visit {
                    namespace: &topology.client.namespace,
                    server: server.address(),
                    mode,
                    announce: None,
                    tls: None,
                    timeout: TIMEOUT,
                };
                let tasks = [Task::List, Task::Download("readme.txt"), Task::Upload("upward.txt", CONTENT)];
                let tasks = if client.uploads() { &tasks[..] } else { &tasks[..2] };
                let brought = client.visit(&visit, tasks).unwrap_or_else(|error| panic!("{error}"));
                assert!(String::from_utf8_lossy(&brought[0]).contains("readme.txt"), "{client} {mode}");
                assert_eq!(brought[1], CONTENT, "{client} {mode}");
                if client.uploads() {
                    assert_eq!(server.content("upward.txt").as_deref(), Some(CONTENT), "{client} {mode}");
                }
            }
        }
    }
}

#[test]
fn mini_client_works_with_real_servers() {
    let topology = topology(Shape::ServerHost);
    for kind in ServerKind::ALL {
        for family in Family::ALL {
            let options = ServerOptions::on(topology.server.addresses.of(family));
            let server = kind.start(&topology.server.namespace, &options).unwrap_or_else(|error| panic!("{error}"));
            server.place("readme.txt", CONTENT).expect("the home folder takes a file");
            for &mode in modes(family) {
                as_client(&topology, || three_transfers(control(&topology, family), mode))
                    .unwrap_or_else(|error| panic!("{kind}, {family}, {mode}: {error}"));
                server.wait_for_content("upward.txt", CONTENT, TIMEOUT).unwrap_or_else(|error| panic!("{error}"));
            }
        }
    }
}

#[test]
fn mini_server_reads_split_and_pipelined_commands() {
    let topology = topology(Shape::ServerHost);
    let server = serve(&topology, Family::V4, MiniOptions::default());
    let talk = || {
        let mut client = MiniClient::connect(server.address(), TIMEOUT)?;
        client.send_in_pieces(b"USER pinhole\r\nPASS secret\r\n", 1)?;
        client.expect(331)?;
        client.expect(230)?;
        let announced = client.listen()?;
        let line = client.announcement(Mode::Port, announced)?;
        client.send(format!("PWD\r\n{line}\r\nRETR readme.txt\r\nNOOP\r\n").as_bytes())?;
        client.expect(257)?;
        client.expect(200)?;
        client.expect(150)?;
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut client.accept()?, &mut content).expect("the server sends it all");
        client.expect(226)?;
        client.expect(200)?;
        Ok(content)
    };
    assert_eq!(as_client(&topology, talk).unwrap_or_else(|error| panic!("{error}")), CONTENT);
}

#[test]
fn unused_data_connection_is_not_used_for_the_next_transfer() {
    let topology = topology(Shape::ServerHost);
    let options = MiniOptions { one_listener: true, ..MiniOptions::default() };
    let server = serve(&topology, Family::V4, options);
    let talk = || {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        let announced = client.passive(Mode::Pasv)?;
        let stray = client.connect_data(announced)?;
        let content = client.download(Mode::Pasv, "readme.txt")?;
        drop(stray);
        Ok(content)
    };
    assert_eq!(as_client(&topology, talk).unwrap_or_else(|error| panic!("{error}")), CONTENT);
}

#[test]
fn concurrent_sessions_leave_few_ports_in_time_wait() {
    const SESSIONS: usize = 200;
    const TRANSFERS: usize = 50;
    let topology = topology(Shape::Gateway);
    let server = serve(&topology, Family::V4, MiniOptions { one_listener: true, ..MiniOptions::default() });
    let begun = Instant::now();
    topology
        .client
        .namespace
        .run(|| {
            std::thread::scope(|scope| {
                let session = || -> Result<()> {
                    let mut client = MiniClient::log_in(server.address(), Duration::from_secs(30))?;
                    let mut content = Vec::new();
                    for _ in 0..TRANSFERS {
                        content.clear();
                        client.fetch(Mode::Pasv, "RETR readme.txt", &mut content)?;
                        assert_eq!(content, CONTENT);
                    }
                    client.quit()
                };
                let sessions: Vec<_> = (0..SESSIONS).map(|_| scope.spawn(session)).collect();
                for session in sessions {
                    session.join().expect("no panic").unwrap_or_else(|error| panic!("{error}"));
                }
            });
        })
        .unwrap_or_else(|error| panic!("{error}"));
    eprintln_rate(begun.elapsed(), SESSIONS * TRANSFERS);
    let ports: std::collections::BTreeSet<u16> = topology
        .server
        .namespace
        .sockets()
        .expect("root sees them")
        .iter()
        .filter(|socket| socket.time_wait)
        .map(|socket| socket.local_port)
        .collect();
    // A listener a session, and the control port.
    assert!(ports.len() <= SESSIONS + 1, "{} ports wait for stray packets", ports.len());
}

#[allow(clippy::print_stderr, reason = "a number for whoever runs it by hand")]
fn eprintln_rate(took: Duration, transfers: usize) {
    eprintln!("{transfers} transfers in {took:?}");
}
