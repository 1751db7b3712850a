//! `pinhole explain` with a real daemon, control connections and rulesets.
//!
//! Needs root and nft.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::mini::{MiniClient, MiniOptions, MiniServer};
use lab::{Child, Family, Finished, Result, Shape, Topology, wait_until};
use nix::sys::signal::Signal;
use pinhole::core::ftp::Mode;
use serde_json::Value;

use crate::daemon::{Daemon, PROGRAM, TIMEOUT};

/// How long something may take that must not happen.
const SHORT: Duration = Duration::from_millis(300);

/// A server's host with a daemon, and a client.
struct Site {
    topology: Topology,
    daemon: Daemon,
    _server: MiniServer,
    client: IpAddr,
    server: SocketAddr,
}

impl Site {
    fn new(policy: &str, port: u16) -> Self {
        let topology = Topology::new(Shape::ServerHost).unwrap_or_else(|error| panic!("{error}"));
        let rules = Shape::ServerHost.default_drop().replace("tcp dport 21 ", "tcp dport { 21, 2121 } ");
        topology.firewall.nft(&rules).expect("nft loads it");
        let server = SocketAddr::new(topology.server.addresses.of(Family::V4), port);
        let listening = MiniServer::start(&topology.server.namespace, server, MiniOptions::default());
        let listening = listening.unwrap_or_else(|error| panic!("{error}"));
        listening.place("readme.txt", *b"Files are data.");
        let client = topology.client.addresses.of(Family::V4);
        let daemon = Daemon::start(&topology.firewall, policy).expect("it starts");
        Self { topology, daemon, _server: listening, client, server }
    }

    /// Does something with a client that has logged in.
    fn with_client(&self, work: impl FnOnce(&mut MiniClient) + Send) {
        let visit = || work(&mut MiniClient::log_in(self.server, TIMEOUT).unwrap_or_else(|error| panic!("{error}")));
        self.topology.client.namespace.run(visit).expect("root may enter");
    }

    fn explain(&self, more: &[&str]) -> Finished {
        let hosts = [self.client.to_string(), self.server.ip().to_string()];
        let arguments = [&["explain", &hosts[0], &hosts[1]], more].concat();
        self.daemon.program(&arguments).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The last line: the reason and the advice.
    #[track_caller]
    fn assert_explained(&self, parts: &[&str]) {
        let said = self.explain(&[]).output();
        let last = said.lines().last().unwrap_or_default();
        assert!(parts.iter().all(|part| last.contains(part)), "{parts:?} in the last line of\n{said}");
    }
}

const ADMIT: &str = "admit: [inet filter input, inet filter output]\n";

#[test]
fn used_pinhole_is_explained_as_admitted() {
    let site = Site::new(ADMIT, 21);
    site.assert_explained(&["there is no session", "connection tracking has no connection"]);
    site.with_client(|client| {
        assert_eq!(client.download(Mode::Pasv, "readme.txt").expect("it works"), b"Files are data.");
        site.daemon.wait_for_log("used ", 1);
        site.assert_explained(&["was admitted and passed this host", "logs of client and server"]);
        let json: Value = serde_json::from_slice(&site.explain(&["--json"]).stdout).expect("JSON");
        let events = json["sessions"][0]["events"].as_array().expect("a list");
        let names: Vec<_> = events.iter().filter_map(|event| event["event"].as_str()).collect();
        assert_eq!(names, ["opened", "used"]);
        assert!(json["host"].as_array().expect("a list").is_empty() && json["daemon"].is_null(), "{json}");
        assert_eq!(json["sessions"][0]["user"], lab::USER);
    });
}

#[test]
fn refused_announcement_is_explained_with_its_rule() {
    let rule = "rules:\n  - { name: \"old clients\", servers: [0.0.0.0/0], modes: [PORT] }\n";
    let site = Site::new(&format!("{ADMIT}{rule}"), 21);
    site.with_client(|client| {
        client.passive(Mode::Pasv).expect("the server answers");
        site.daemon.wait_for_log("refused ", 1);
        site.assert_explained(&["refused 227", "rule \"old clients\""]);
    });
}

#[test]
fn dropped_data_connection_is_explained_by_the_ruleset() {
    let site = Site::new("admit: []\n", 21);
    site.with_client(|client| {
        client.set_timeout(SHORT).expect("a timeout can be set");
        let announced = client.passive(Mode::Pasv).expect("the server answers");
        client.connect_data(announced).expect_err("no rule accepts it");
        let port = announced.port().to_string();
        let said = site.explain(&[&port]).output();
        let fault = "no data connection has passed this host: chain inet filter input: would drop data connections";
        for part in ["warning  chain inet filter input: would drop data connections", fault] {
            assert!(said.contains(part), "{part} is not in\n{said}");
        }
    });
}

#[test]
fn control_connection_to_another_port_is_explained() {
    let site = Site::new(ADMIT, 2121);
    site.with_client(|_| {
        site.assert_explained(&["port 2121 of the server, which is no control port", "`control_ports`"]);
    });
}

#[test]
fn explain_without_a_daemon_says_so() {
    let mut site = Site::new(ADMIT, 21);
    site.daemon.kill().expect("it ends");
    let explained = site.explain(&[]);
    assert_eq!(explained.status.code(), Some(1));
    assert!(explained.output().contains("no daemon answers at"), "{}", explained.output());
}

impl Site {
    /// Starts `pinhole explain --wait`, and returns when its table is installed.
    fn start_trace(&self) -> Child {
        let hosts = [self.client.to_string(), self.server.ip().to_string()];
        let mut command = self.topology.firewall.command(PROGRAM);
        command.args(["explain", &hosts[0], &hosts[1], "--wait", "60"]).env("PINHOLE_SOCKET", self.daemon.socket());
        let child = command.spawn().expect("it starts");
        wait_until("the trace to begin", TIMEOUT, || self.is_tracing()).unwrap_or_else(|error| panic!("{error}"));
        child
    }

    fn is_tracing(&self) -> Result<bool> {
        let listed = self.topology.firewall.nft_output(&["list", "table", "inet", "pinhole-trace"]);
        Ok(listed.is_ok_and(|listed| listed.matches("nftrace set 1").count() == 4))
    }
}

#[test]
fn trace_names_the_chain_that_drops_a_syn() {
    let site = Site::new("admit: []\n", 21);
    site.with_client(|client| {
        client.set_timeout(SHORT).expect("a timeout can be set");
        let announced = client.passive(Mode::Pasv).expect("the server answers");
        let explain = site.start_trace();
        client.connect_data(announced).expect_err("no rule accepts it");
        let said = explain.wait(TIMEOUT).expect("it ends").output();
        let last = said.lines().last().unwrap_or_default();
        assert!(last.contains("dropped in chain inet filter input: its policy is drop"), "{said}");
        assert!(said.contains("SYN in chain inet pinhole prerouting: `"), "{said}");
    });
    assert!(!site.is_tracing().expect("nft lists"), "the table is left");
}

#[test]
fn trace_says_that_no_rule_dropped_the_syn() {
    let site = Site::new(ADMIT, 21);
    site.with_client(|client| {
        let explain = site.start_trace();
        client.download(Mode::Pasv, "readme.txt").expect("it works");
        let said = explain.wait(TIMEOUT).expect("it ends").output();
        assert!(said.contains("no rule of this host dropped the SYN"), "{said}");
    });
}

#[test]
fn killed_trace_leaves_no_table() {
    let site = Site::new(ADMIT, 21);
    let mut explain = site.start_trace();
    explain.signal(Signal::SIGKILL).expect("it runs");
    let is_gone = || Ok(!site.is_tracing()? && !explain.is_running()?);
    wait_until("the table to be removed", TIMEOUT, is_gone).unwrap_or_else(|error| panic!("{error}"));
}
