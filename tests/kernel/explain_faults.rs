//! Each fault of `host_faults.rs` is built on the host of a real server, a real client transfers a file, and `pinhole explain`
//! names the fault and its remedy, in text and in JSON.
//!
//! Needs root, nft and iptables.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::{
    ClientKind, Family, KERNEL_HELPER, Server, ServerKind, ServerOptions, Shape, Task, Topology, Visit, wait_for,
};
use pinhole::core::ftp::Mode;
use pinhole::core::policy::WhenDown;
use pinhole::netfilter::queue::Queue;
use serde_json::Value;

use crate::daemon::{Daemon, TIMEOUT};
use crate::iptables::typed;

const FILE: &str = "readme.txt";
const CONTENT: &[u8] = b"Files are data.";
/// How long a client waits for a connection that a fault hinders.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(1);
/// Accepts control connections, and announced data connections by `admit`.
const GOOD: &str = "table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iif lo accept
        tcp dport { 21, 2121 } accept
    }
}";
const ADMIT: &str = "admit: [inet filter input]\n";

/// The host of a server with a fault, a daemon, and a client on another host.
struct Site {
    topology: Topology,
    daemon: Daemon,
    _server: Server,
    server: SocketAddr,
}

impl Site {
    fn new(rules: &str, policy: &str) -> Self {
        Self::on_port(rules, policy, 21)
    }

    fn on_port(rules: &str, policy: &str, port: u16) -> Self {
        let topology = Topology::new(Shape::ServerHost).unwrap_or_else(|error| panic!("{error}"));
        topology.firewall.nft(rules).unwrap_or_else(|error| panic!("{error}"));
        let address = topology.server.addresses.of(Family::V4);
        let options = ServerOptions { port, ..ServerOptions::on(address) };
        let server = ServerKind::Vsftpd.start(&topology.server.namespace, &options);
        let server = server.unwrap_or_else(|error| panic!("{error}"));
        server.place(FILE, CONTENT).expect("it can be written");
        let daemon = Daemon::start(&topology.firewall, policy).expect("it starts");
        Self { topology, daemon, _server: server, server: SocketAddr::new(address, port) }
    }

    /// Fetches a file. Returns whether it arrived.
    fn transfer(&self, mode: Mode) -> bool {
        let namespace = &self.topology.client.namespace;
        let visit = Visit { namespace, server: self.server, mode, announce: None, tls: None, timeout: CLIENT_TIMEOUT };
        match ClientKind::Ftplib.visit(&visit, &[Task::Download(FILE)]) {
            Ok(contents) => contents.concat() == CONTENT,
            Err(_) => false,
        }
    }

    fn explain(&self, more: &[&str]) -> String {
        let client: IpAddr = self.topology.client.addresses.of(Family::V4);
        let hosts = [client.to_string(), self.server.ip().to_string()];
        let arguments = [&["explain", &hosts[0], &hosts[1]], more].concat();
        let finished = self.daemon.program(&arguments).unwrap_or_else(|error| panic!("{error}"));
        assert!(finished.status.success(), "{}", finished.output());
        String::from_utf8_lossy(&finished.stdout).into_owned()
    }

    /// The last line, and the conclusion in JSON, have these parts: what happened, the fault and the remedy.
    #[track_caller]
    fn assert_concluded(&self, parts: &[&str]) {
        let text = self.explain(&[]);
        let last = text.lines().last().unwrap_or_default();
        let json: Value = serde_json::from_str(&self.explain(&["--json"])).expect("JSON");
        let of = |key: &str| json["conclusion"][key].as_str().expect("a string").to_owned();
        let (reason, advice) = (of("reason"), of("advice"));
        assert_eq!(last, format!("{reason}; {advice}"), "{text}");
        for part in parts {
            assert!(last.contains(part), "{part:?} is not in the last line of\n{text}");
        }
    }

    /// A warning names the fault and its remedy, in text and in JSON.
    #[track_caller]
    fn assert_warned(&self, parts: &[&str]) {
        let text = self.explain(&[]);
        let is_named = |line: &str| parts.iter().all(|part| line.contains(part));
        assert!(text.lines().any(|line| line.starts_with("warning") && is_named(line)), "{parts:?} in\n{text}");
        let json: Value = serde_json::from_str(&self.explain(&["--json"])).expect("JSON");
        let findings = json["host"].as_array().expect("a list");
        assert!(findings.iter().any(|finding| is_named(&finding.to_string())), "{parts:?} in {json:#}");
    }

    /// The fault hinders the control connection: the daemon sees no session, and the conclusion says why.
    #[track_caller]
    fn assert_no_session(&self, parts: &[&str]) {
        assert!(!self.transfer(Mode::Pasv), "the transfer works: this is no fault");
        let all = [&["there is no session from 10.21.1.10 to 10.21.1.1"], parts].concat();
        self.assert_concluded(&all);
    }

    /// The login works, the fault hinders the data connection, and the conclusion says why.
    #[track_caller]
    fn assert_dropped(&self, mode: Mode, parts: &[&str]) {
        assert!(!self.transfer(mode), "the transfer works: this is no fault");
        self.daemon.wait_for_log("dropped ", 1);
        let all = [&["the SYN of the data connection came and was admitted, and this host dropped it"], parts].concat();
        self.assert_concluded(&all);
    }
}

#[test]
fn transfer_without_a_fault_is_explained_as_admitted() {
    let site = Site::new(GOOD, ADMIT);
    assert!(site.transfer(Mode::Pasv), "it works");
    site.daemon.wait_for_log("used ", 1);
    site.assert_concluded(&["was admitted and passed this host", "the firewall is not the reason"]);
}

#[test]
fn missing_accept_rule_is_explained() {
    let site = Site::new(GOOD, "admit: []\n");
    let fault = "chain inet filter input: would drop data connections: its policy is drop";
    site.assert_dropped(Mode::Pasv, &[fault, "add to it `ct state new,related ct mark"]);
}

#[test]
fn mark_accepted_in_the_wrong_chain_is_explained() {
    let rules =
        format!("{GOOD}\ntable inet filter {{ chain forward {{ type filter hook forward priority filter; }}; }}");
    let site = Site::new(&rules, "admit: [inet filter forward]\n");
    let parts = ["chain inet filter input", "the mark is accepted elsewhere", "admit: [inet filter input]"];
    site.assert_dropped(Mode::Pasv, &parts);
}

#[test]
fn second_table_that_drops_is_explained() {
    let second = "table ip other { chain in { type filter hook input priority 10; policy drop;
        ct state established accept; tcp dport 21 accept; }; }";
    let site = Site::new(&format!("{GOOD}\n{second}"), ADMIT);
    site.assert_dropped(Mode::Pasv, &["chain ip other in", "its policy is drop", "admit: [ip other in]"]);
}

#[test]
fn chain_before_the_filter_that_drops_is_explained() {
    let early = "table ip other { chain pre { type filter hook prerouting priority -50; policy drop;
        ct state established accept; tcp dport 21 accept; }; }";
    let site = Site::new(&format!("{GOOD}\n{early}"), ADMIT);
    let parts = ["chain ip other pre", "would drop data connections", "add above that `ct state"];
    site.assert_dropped(Mode::Pasv, &parts);
}

#[test]
fn overwritten_mark_is_explained() {
    let mark =
        "table ip mangle { chain pre { type filter hook prerouting priority -140; ct state new ct mark set 0x1; }; }";
    let site = Site::new(&format!("{GOOD}\n{mark}"), ADMIT);
    site.assert_dropped(Mode::Pasv, &["chain ip mangle pre", "overwrites the mark", "keep Pinhole's bits"]);
}

#[test]
fn notrack_on_the_control_port_is_explained() {
    let raw = "table ip raw {
        chain pre { type filter hook prerouting priority raw; tcp dport 21 notrack; }
        chain out { type filter hook output priority raw; tcp sport 21 notrack; }
    }";
    let site = Site::new(&format!("{GOOD}\n{raw}"), ADMIT);
    let parts = ["chain ip raw pre", "`notrack`", "except the control ports from that rule"];
    site.assert_no_session(&parts);
}

#[test]
fn server_on_a_port_that_is_not_read_is_explained() {
    let site = Site::on_port(GOOD, ADMIT, 2121);
    assert!(!site.transfer(Mode::Pasv), "nothing opens for it");
    // Its name is that of an FTP server.
    site.assert_concluded(&["port 2121", "`control_ports"]);
    site.assert_warned(&["vsftpd listens on port 2121", "`control_ports: [21, 2121]`"]);
}

#[test]
fn closed_control_port_is_explained() {
    let site = Site::new(&GOOD.replace("tcp dport { 21, 2121 } accept", "tcp dport 22 accept"), ADMIT);
    let parts = ["chain inet filter input", "drops control connections to port 21", "tcp dport 21"];
    site.assert_no_session(&parts);
}

#[test]
fn output_that_drops_is_explained() {
    let output = "table inet filter { chain output { type filter hook output priority filter; policy drop;
        ct state established,related accept; }; }";
    let site = Site::new(&format!("{GOOD}\n{output}"), ADMIT);
    let parts = ["chain inet filter output", "its policy is drop", "admit: [inet filter output]"];
    site.assert_dropped(Mode::Port, &parts);
}

#[test]
fn queue_that_no_program_reads_is_explained() {
    let site = Site::new(GOOD, ADMIT);
    typed(&site.topology.firewall, "iptables -t raw -A PREROUTING -p tcp --dport 21 -j NFQUEUE --queue-num 77");
    let parts = ["chain ip raw PREROUTING", "queue 77", "no program reads: they are dropped", "`bypass`"];
    site.assert_no_session(&parts);
}

#[test]
fn other_program_that_reads_a_queue_is_explained() {
    let site = Site::new(GOOD, ADMIT);
    typed(&site.topology.firewall, "iptables -t raw -A PREROUTING -p tcp --dport 21 -j NFQUEUE --queue-num 77");
    // It reads nothing.
    let open = || Queue::open(77, WhenDown::Closed);
    let _reader = site.topology.firewall.run(open).expect("root may enter").expect("the queue is free");
    site.assert_no_session(&["queue 77, read by", "before Pinhole reads them", "move its chain"]);
}

#[test]
fn helper_of_the_kernel_is_explained() {
    let site = Site::new(GOOD, ADMIT);
    // While another test finds out whether the kernel takes a helper `ftp`, it does not load its own.
    let load = || Ok(site.topology.firewall.nft(KERNEL_HELPER).is_ok().then_some(()));
    wait_for("the kernel's helper to be there", TIMEOUT, load).unwrap_or_else(|error| panic!("{error}"));
    assert!(site.transfer(Mode::Pasv), "both admit it");
    site.assert_warned(&["kernel's FTP helper", "bypasses Pinhole's policy", "disable it while Pinhole runs"]);
}
