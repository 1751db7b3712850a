//! A client aborts a transfer with `ABOR` as TCP urgent data, and its session continues: Python's ftplib with real
//! servers, without a firewall and through one that drops by default.
//!
//! Needs root, nft, and the programs that `tests/setup test` fetches.

use crate::filtered_topology;
use std::thread;

use crate::daemon::TIMEOUT;
use crate::filtered_topology::FilteredTopology;
use lab::{Family, PASSWORD, ServerKind, ServerOptions, Shape, Topology, USER};
use pinhole::core::ftp::Mode;

/// More than the buffers between the two ends of a data connection hold.
const BIG: usize = 16 << 20;

/// The first digits of a server's last reply after an ABOR, and whether the server reads the ABOR's urgent last byte in
/// line.
const fn answers(kind: ServerKind) -> (&'static str, bool) {
    match kind {
        // 225, or 226 if the server had not noticed before that the client had closed the data connection.
        ServerKind::Vsftpd | ServerKind::Pyftpdlib | ServerKind::PureFtpd => ("22", true),
        ServerKind::Proftpd => ("426", false),
    }
}

/// Aborts transfers of one server in one mode, and transfers more in the same session.
fn visit(topology: &Topology, kind: ServerKind, mode: Mode) -> Result<(), String> {
    let (last_reply, in_line) = answers(kind);
    let address = topology.target.of(Family::V4).to_string();
    let lost = if in_line { "found" } else { "lost" };
    // Pure-FTPd does not always answer an ABOR that comes as the data connection is closed: with connection tracking on the
    // way, and no more than that, too.
    let how = if kind == ServerKind::PureFtpd { "reads" } else { "closes" };
    let arguments = [address.as_str(), "21", USER, PASSWORD, mode.command(), last_reply, lost, how];
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/abort_client.py");
    let python = lab::tools::python().map_err(|error| error.to_string())?;
    let mut client = topology.client.namespace.command(python);
    client.args(["-u", "-I", "-S", script]).args(arguments);
    client.output(TIMEOUT * 2).map(drop).map_err(|error| format!("{kind}, {mode}: {error}"))
}

/// The failures of all servers and modes.
fn failures(visit_all: impl Fn(ServerKind) -> Vec<String> + Sync) -> Vec<String> {
    let visit_all = &visit_all;
    thread::scope(|scope| {
        let visits = ServerKind::ALL.map(|kind| scope.spawn(move || visit_all(kind)));
        visits.into_iter().flat_map(|visit| visit.join().expect("it has said why")).collect()
    })
}

/// Starts a server where clients of this topology find it, and aborts and transfers in all modes.
fn visit_server(topology: &Topology, kind: ServerKind) -> Vec<String> {
    let options = ServerOptions::on(topology.server.addresses.of(Family::V4));
    let server = kind.start(&topology.server.namespace, &options).unwrap_or_else(|error| panic!("{error}"));
    server.place("big", &vec![b'x'; BIG]).and_then(|()| server.place("small", b"small\n")).expect("there is room");
    let modes = filtered_topology::modes(Family::V4).iter();
    modes.filter_map(|mode| visit(topology, kind, *mode).err()).collect()
}

#[track_caller]
fn assert_none(failures: &[String]) {
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n\n"));
}

#[test]
fn session_continues_after_urgent_abor_without_a_firewall() {
    assert_none(&failures(|kind| {
        let topology = Topology::new(Shape::Gateway).unwrap_or_else(|error| panic!("{error}"));
        visit_server(&topology, kind)
    }));
}

#[test]
fn session_continues_after_urgent_abor() {
    assert_none(&failures(|kind| {
        let fixture = FilteredTopology::new(Shape::Gateway);
        let _daemon = fixture.daemon("");
        visit_server(&fixture.topology, kind)
    }));
}
