//! `kill -9` between any two packets of a session behind NAT, or at any other moment, breaks nothing.
//!
//! The worst moment is in `nat_crash_mid_rewrite.rs`.
//!
//! Needs root and nft.

#![allow(clippy::print_stdout, reason = "figures for whoever runs it by hand")]

use crate::daemon::{Daemon, TIMEOUT};
use crate::disturbance::{Disturbance, transfer_under};
use crate::filtered_topology::{CONTENT, FILE, SetOnDrop};

use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::thread;

use lab::mini::{MiniClient, MiniOptions, MiniServer};
use lab::nat::{Nat, NatTopology};
use lab::{Family, Result};
use pinhole::core::ftp::Mode;

/// Lines that change their length, and some that need not be rewritten, in sessions of their own.
const SESSIONS: [(Family, Mode); 4] =
    [(Family::V4, Mode::Port), (Family::V4, Mode::Pasv), (Family::V6, Mode::Eprt), (Family::V6, Mode::Epsv)];

/// Connections without a pinhole are rejected, so that a client fails at once. (The shipped rules drop them.)
const REFUSALS: &str = "table inet refusals {
    chain refuse { ct mark & 0x10000000 == 0 tcp dport != 21 reject with tcp reset; }
    chain forward { type filter hook forward priority -1; ct state new meta l4proto tcp jump refuse; }
    chain input { type filter hook input priority -1; ct state new meta l4proto tcp jump refuse; }
}";

fn kill_under_transfers(nat: Nat) {
    let kills = lab::share_of(100);
    let topology = NatTopology::new(nat).unwrap_or_else(|error| panic!("{error}"));
    let [gateway] = &topology.gateways[..] else { panic!("{nat} has one gateway") };
    for rules in [gateway.rules.text, REFUSALS] {
        gateway.namespace.nft(rules).expect("the rules are right");
    }
    let mut daemon = Daemon::start_logging(&gateway.namespace, &gateway.rules.policy(), "warn").expect("it starts");
    for host in [&topology.client, &topology.server] {
        for (name, value) in [("tcp_tw_reuse", "1"), ("ip_local_port_range", "1024 65535")] {
            host.namespace.set(&format!("net/ipv4/{name}"), value).expect("a parameter of the namespace");
        }
    }
    let _servers = Family::ALL.map(|family| {
        let address = SocketAddr::new(topology.server.addresses.of(family), 21);
        let options = MiniOptions { one_listener: true, ..MiniOptions::default() };
        let server = MiniServer::start(&topology.server.namespace, address, options).expect("it listens");
        server.place(FILE, CONTENT);
        server
    });
    let (disturbance, is_over) = (&Disturbance::default(), &AtomicBool::new(false));
    let client = &topology.client.namespace;
    thread::scope(|scope| {
        let sessions = SESSIONS.map(|(family, mode)| {
            let destination = SocketAddr::new(topology.target.of(family), 21);
            let transfers = move || transfer_under(disturbance, is_over, destination, mode);
            (mode, scope.spawn(move || client.run(transfers).and_then(|result| result)))
        });
        {
            let _ends = SetOnDrop(is_over);
            disturbance.wait_for_logins(SESSIONS.len());
            disturbance.kill_repeatedly(&mut daemon, kills);
        }
        for (mode, session) in sessions {
            let done = session.join().expect("no panic").unwrap_or_else(|error| panic!("{nat}, {mode}: {error}"));
            // A client that was interrupted may wait for its data until the end; then it continues.
            println!("{nat}, {mode}: {} transfers, {} hit", done.transfers, done.hit);
        }
    });
}

#[test]
fn kill_breaks_no_session_of_a_masqueraded_client() {
    kill_under_transfers(Nat::Masquerade);
}

#[test]
fn kill_breaks_no_session_of_a_server_behind_dnat() {
    kill_under_transfers(Nat::Dnat);
}

/// Transfers in one session, with a new daemon between each line and the next, and before the data comes.
fn kill_between_the_lines(nat: Nat, family: Family, mode: Mode) -> Result<()> {
    let topology = NatTopology::new(nat)?;
    let [gateway] = &topology.gateways[..] else { panic!("{nat} has one gateway") };
    gateway.namespace.nft(gateway.rules.text)?;
    let mut daemon = Daemon::start_logging(&gateway.namespace, &gateway.rules.policy(), "warn")?;
    let mut another_daemon = || {
        daemon.kill()?;
        daemon.restart()
    };
    let address = SocketAddr::new(topology.server.addresses.of(family), 21);
    let server = MiniServer::start(&topology.server.namespace, address, MiniOptions::default())?;
    server.place(FILE, CONTENT);
    let destination = SocketAddr::new(topology.target.of(family), 21);
    let visit = || {
        let mut client = MiniClient::log_in(destination, TIMEOUT)?;
        for _ in 0..lab::share_of(8) {
            another_daemon()?;
            let mut data = if mode.is_active() {
                client.active(mode)?;
                another_daemon()?;
                client.command(&format!("RETR {FILE}"), 150)?;
                client.accept()?
            } else {
                let announced = client.passive(mode)?;
                another_daemon()?;
                let data = client.connect_data(announced)?;
                another_daemon()?;
                client.command(&format!("RETR {FILE}"), 150)?;
                data
            };
            another_daemon()?;
            let mut content = Vec::new();
            data.read_to_end(&mut content).expect("it comes");
            assert_eq!(content, CONTENT);
            client.expect(226)?;
            another_daemon()?;
            client.command("NOOP", 200)?;
        }
        client.quit()
    };
    topology.client.namespace.run(visit).and_then(|result| result)
}

#[test]
fn kill_between_any_two_lines_breaks_no_session() {
    for nat in [Nat::Masquerade, Nat::Dnat] {
        for (family, mode) in SESSIONS {
            kill_between_the_lines(nat, family, mode).unwrap_or_else(|error| panic!("{nat}, {mode}: {error}"));
        }
    }
}
