//! Real servers and clients in one situation, in every mode.

#![allow(dead_code, reason = "each test takes what it needs")]

use lab::matrix::{MatrixSetup as _, RunningSetup, Setup};
use lab::nat::{Nat, NatSetup, RunningNatSetup};
use lab::{ClientKind, Error, Family, Namespace, Result, ServerKind, Shape};
use pinhole::core::ftp::Mode;

use crate::daemon::{Daemon, TIMEOUT};
use crate::filtered_topology::{modes, policy};

/// A client that uses every mode.
const CLIENT: ClientKind = ClientKind::Ftplib;

/// vsftpd behind a gateway that drops by default.
pub(crate) fn gateway(family: Family) -> RunningSetup {
    let setup = Setup { shape: Shape::Gateway, server: ServerKind::Vsftpd, family };
    let running = setup.set_up().unwrap_or_else(|error| panic!("{error}"));
    load(&running.topology.firewall, Shape::Gateway.default_drop());
    running
}

/// vsftpd and a gateway with this NAT, and its rules as users copy them.
pub(crate) fn nat(nat: Nat, family: Family) -> RunningNatSetup {
    let setup = NatSetup { nat, server: ServerKind::Vsftpd, family };
    let running = setup.set_up().unwrap_or_else(|error| panic!("{error}"));
    for gateway in &running.topology.gateways {
        load(&gateway.namespace, gateway.rules.text);
    }
    running
}

pub(crate) fn load(namespace: &Namespace, rules: &str) {
    namespace.nft(rules).unwrap_or_else(|error| panic!("{error}"));
}

/// The daemon on a gateway without NAT.
pub(crate) fn daemon_on(running: &RunningSetup, more: &str) -> Daemon {
    let policy = policy(running.setup.shape, more);
    Daemon::start(&running.topology.firewall, &policy).unwrap_or_else(|error| panic!("{error}"))
}

/// The daemons on the gateways with NAT.
pub(crate) fn daemons_on(running: &RunningNatSetup) -> Vec<Daemon> {
    let gateways = running.topology.gateways.iter();
    let started = gateways.map(|gateway| Daemon::start(&gateway.namespace, &gateway.rules.policy()));
    started.collect::<Result<_>>().unwrap_or_else(|error| panic!("{error}"))
}

/// A listing, a download and an upload in each mode.
#[track_caller]
pub(crate) fn assert_all_modes_work(family: Family, transfer: impl Fn(ClientKind, Mode) -> Result<()>) {
    for &mode in modes(family) {
        transfer(CLIENT, mode).unwrap_or_else(|error| panic!("{family}, {mode}: {error}"));
    }
}

/// The same through a gateway without NAT.
#[track_caller]
pub(crate) fn assert_transfers(running: &RunningSetup) {
    assert_all_modes_work(running.setup.family, |client, mode| running.transfer(client, mode, TIMEOUT));
}

/// The same through a gateway with NAT.
#[track_caller]
pub(crate) fn assert_nat_transfers(running: &RunningNatSetup) {
    assert_all_modes_work(running.setup.family, |client, mode| running.transfer(client, mode, TIMEOUT));
}

/// The output of a program that has to succeed.
#[track_caller]
pub(crate) fn run(namespace: &Namespace, command: &str) -> String {
    let done = namespace.command("sh").args(["-c", command]).output(TIMEOUT);
    let done = done.unwrap_or_else(|error: Error| panic!("{command}: {error}"));
    assert!(done.status.success(), "{command}: {}", done.output());
    String::from_utf8_lossy(&done.stdout).into_owned()
}
