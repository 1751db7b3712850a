//! Real servers that announce a wrong address, and clients that believe it: `passive_address: repair`, without NAT.
//!
//! Needs root, and the programs that `tests/setup test` fetches.

use crate::daemon::TIMEOUT;
use crate::filtered_topology::{CONTENT, FILE, FilteredTopology, some_transfers};

use std::net::{Ipv4Addr, SocketAddr};

use lab::mini::MiniClient;
use lab::{ClientKind, Family, Namespace, Server, ServerKind, ServerOptions, Shape, tools};
use pinhole::core::ftp::Mode;

const REPAIR: &str = "defaults: { passive_address: repair }\n";
const PRIVATE: Ipv4Addr = Ipv4Addr::new(192, 168, 200, 100);
const FOREIGN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

/// A server that announces this address.
fn announcing(fixture: &FilteredTopology, kind: ServerKind, wrong: Ipv4Addr) -> Server {
    let mut options = ServerOptions::on(fixture.topology.server.addresses.of(Family::V4));
    options.announce = Some(wrong);
    let server = kind.start(&fixture.topology.server.namespace, &options).unwrap_or_else(|error| panic!("{error}"));
    server.place(FILE, CONTENT).expect("the home folder takes a file");
    server
}

/// Downloads the file with a curl that connects to the address in the 227, and returns whether that worked.
fn believing_curl(client: &Namespace, server: SocketAddr) -> Result<(), String> {
    let curl = tools::find("curl", "usr/bin/curl").unwrap_or_else(|error| panic!("{error}"));
    let mut command = client.command(&curl.program);
    let account = format!("{}:{}", lab::USER, lab::PASSWORD);
    command.args(["--disable", "--verbose", "--silent", "--show-error", "--max-time", "20", "--user", &account]);
    command.args(["--disable-epsv", "--no-ftp-skip-pasv-ip", &format!("ftp://{server}/{FILE}")]);
    let done = command.spawn().and_then(|child| child.wait(TIMEOUT)).unwrap_or_else(|error| panic!("{error}"));
    if done.status.success() && done.stdout == CONTENT { Ok(()) } else { Err(done.output()) }
}

#[test]
fn transfers_work_although_the_server_announces_a_wrong_address() {
    for (shape, kind, wrong) in [
        (Shape::ServerHost, ServerKind::Vsftpd, PRIVATE),
        (Shape::ServerHost, ServerKind::Vsftpd, Ipv4Addr::UNSPECIFIED),
        (Shape::Gateway, ServerKind::Vsftpd, FOREIGN),
        (Shape::Gateway, ServerKind::Proftpd, PRIVATE),
        (Shape::ServerHost, ServerKind::PureFtpd, FOREIGN),
        (Shape::ClientHost, ServerKind::Pyftpdlib, FOREIGN),
    ] {
        let fixture = FilteredTopology::new(shape);
        let server = announcing(&fixture, kind, wrong);
        let daemon = fixture.daemon(REPAIR);
        let (client, address) = (&fixture.topology.client.namespace, fixture.target(Family::V4, 21));
        fixture.as_client(|| some_transfers(address, Mode::Pasv));
        believing_curl(client, address).unwrap_or_else(|said| panic!("{shape}, {kind}, {wrong}: {said}"));
        for program in [ClientKind::Tnftp, ClientKind::Lftp] {
            let visit = lab::Visit {
                namespace: client,
                server: address,
                mode: Mode::Pasv,
                announce: None,
                tls: None,
                timeout: TIMEOUT,
            };
            let brought = program.download(&visit, FILE).unwrap_or_else(|error| panic!("{kind}, {program}: {error}"));
            assert_eq!(brought, CONTENT, "{kind}, {program}");
        }
        daemon.wait_for_log(&format!("announced by 227, rewritten from {wrong}:"), 6);
        daemon.wait_for_log("correct its `pasv_address` or the like", 6);
        drop(server);
    }
}

#[test]
fn repaired_announcement_opens_the_called_address_only() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let _server = announcing(&fixture, ServerKind::Vsftpd, FOREIGN);
    let _daemon = fixture.daemon(REPAIR);
    let address = fixture.target(Family::V4, 21);
    let announced = fixture.as_client(|| MiniClient::log_in(address, TIMEOUT)?.passive(Mode::Pasv));
    assert_eq!(announced.ip(), address.ip());
    let pinholes =
        fixture.topology.firewall.nft_output(&["list", "set", "inet", "pinhole", "pinholes4"]).expect("a set");
    assert!(!pinholes.contains(&FOREIGN.to_string()), "{pinholes}");
}

/// The check of the tests above: the client believes the address.
#[test]
fn wrong_address_without_repair_is_refused() {
    let fixture = FilteredTopology::new(Shape::ServerHost);
    let _server = announcing(&fixture, ServerKind::Vsftpd, FOREIGN);
    let daemon = fixture.daemon("");
    let address = fixture.target(Family::V4, 21);
    believing_curl(&fixture.topology.client.namespace, address).expect_err("nobody has that address");
    daemon.wait_for_log(&format!("refused 227 {FOREIGN}:"), 1);
}
