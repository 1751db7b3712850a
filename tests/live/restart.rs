//! What a killed daemon leaves in the sets, and what the next one adopts. Expectations are in `native.rs`.
//!
//! Needs root and nft.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::daemon::{Daemon, TIMEOUT};
use lab::mini::{MiniClient, MiniOptions, MiniServer};
use lab::{Result, Shape, Topology};
use nix::sys::signal::Signal;
use pinhole::core::ftp::Mode;
use serde_json::Value;

const POLICY: &str =
    "mechanism: sets\nadmit: [inet filter forward]\ndefaults: { timeout: 10m, tls: range 50000-50100 }\n";

/// A gateway that drops by default, a daemon on it, and a server behind it.
struct RestartFixture {
    topology: Topology,
    daemon: Daemon,
}

impl RestartFixture {
    fn new(policy: &str) -> Self {
        let topology = Topology::new(Shape::Gateway).unwrap_or_else(|error| panic!("{error}"));
        topology.firewall.nft(Shape::Gateway.default_drop()).expect("the rules are right");
        topology.keep_ended_connections().expect("root may");
        let daemon = Daemon::start(&topology.firewall, policy).unwrap_or_else(|error| panic!("{error}"));
        Self { topology, daemon }
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::new(self.topology.target.v4.into(), 21)
    }

    fn serve(&self) -> MiniServer {
        MiniServer::start(&self.topology.server.namespace, self.address(), MiniOptions::default())
            .unwrap_or_else(|error| panic!("{error}"))
    }

    fn restart_after_kill(&mut self) {
        self.daemon.kill().and_then(|()| self.daemon.restart()).unwrap_or_else(|error| panic!("{error}"));
    }

    /// The elements of a set, as nft lists them.
    fn elements(&self, set: &str) -> String {
        let listed = self.topology.firewall.nft_output(&["list", "set", "inet", "pinhole", set]).expect("it stands");
        listed.split_once("elements = ").map(|(_, elements)| elements.to_owned()).unwrap_or_default()
    }

    #[track_caller]
    fn wait_until_no_pinholes(&self, set: &str) {
        lab::wait_until("no elements in the set", TIMEOUT, || Ok(self.elements(set).is_empty()))
            .unwrap_or_else(|error| panic!("{error}: {}", self.elements(set)));
    }

    /// Has a client log in and something be announced to it, and does the rest there, too.
    fn visit(&mut self, then: impl FnOnce(&mut Self, MiniClient, SocketAddr) -> Result<()> + Send) {
        let client = self.topology.client.namespace.clone();
        let visited = client.run(|| {
            let mut client = MiniClient::log_in(self.address(), TIMEOUT)?;
            let announced = client.passive(Mode::Pasv)?;
            then(self, client, announced)
        });
        visited.and_then(|result| result).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn adopted_pinhole_is_shown_restored_and_used() {
    let mut fixture = RestartFixture::new(POLICY);
    let _server = fixture.serve();
    fixture.visit(|fixture, client, announced| {
        fixture.restart_after_kill();
        let status = fixture.daemon.status();
        let pinhole = &status["pinholes"][0];
        assert_eq!((&status["kernel_pinholes"], &status["counters"]["adopted"]), (&1.into(), &1.into()), "{status}");
        assert_eq!((&pinhole["to"], &pinhole["session"]), (&announced.to_string().into(), &Value::Null));
        let lifetime = pinhole["age"].as_f64().expect("seconds") + pinhole["expires_in"].as_f64().expect("seconds");
        assert!((599.0..601.0).contains(&lifetime), "{status}");
        let shown = fixture.daemon.program(&["status"])?.output();
        assert!(shown.contains(", adopted, "), "{shown}");

        fixture.topology.firewall.nft_output(&["delete", "table", "inet", "pinhole"])?;
        fixture.daemon.wait_for_log("restored the table inet pinhole, 1 pinhole", 1);
        assert!(fixture.elements("pinholes4").contains(&announced.port().to_string()));

        client.connect_data(announced)?;
        lab::wait_until("the daemon to hear of it", TIMEOUT, || Ok(fixture.daemon.counted("used") == 1))?;
        assert_eq!(fixture.daemon.status()["pinholes"], serde_json::json!([]));
        Ok(())
    });
}

#[test]
fn restart_keeps_pinholes_and_applies_the_new_policy() {
    let mut fixture = RestartFixture::new(POLICY);
    fixture
        .topology
        .firewall
        .nft("table ip other { chain forward { type filter hook forward priority 5; }; }")
        .expect("it is right");
    let _server = fixture.serve();
    fixture.daemon.write_policy(&POLICY.replace("[inet filter forward]", "[inet filter forward, ip other forward]"));
    fixture
        .daemon
        .end(Signal::SIGUSR2)
        .and_then(|()| fixture.daemon.restart())
        .unwrap_or_else(|error| panic!("{error}"));
    let others =
        |fixture: &RestartFixture| fixture.topology.firewall.nft_output(&["list", "chain", "ip", "other", "forward"]);
    fixture.visit(|fixture, client, announced| {
        assert!(others(fixture)?.contains("pinhole"), "{}", others(fixture)?);
        fixture.daemon.end(Signal::SIGUSR2)?;
        fixture.daemon.write_policy(POLICY);
        assert!(fixture.elements("pinholes4").contains(&announced.port().to_string()));
        fixture.daemon.restart()?;
        assert_eq!(fixture.daemon.counted("adopted"), 1);
        // The chain that is named no more has no rule of ours.
        assert!(!others(fixture)?.contains("pinhole"), "{}", others(fixture)?);
        client.connect_data(announced)?;
        lab::wait_until("the daemon to hear of it", TIMEOUT, || Ok(fixture.daemon.counted("used") == 1))
    });
    fixture.daemon.end(Signal::SIGTERM).expect("it ends");
    assert!(!fixture.topology.firewall.nft_output(&["list", "ruleset"]).expect("nft lists").contains("pinhole"));
}

#[test]
fn adopted_pinhole_is_closed_with_its_session() {
    let mut fixture = RestartFixture::new(POLICY);
    let _server = fixture.serve();
    // One session ends with QUIT, and is picked up by that; one ends without.
    let goes: [fn(MiniClient) -> Result<()>; 2] = [MiniClient::quit, |client| {
        drop(client);
        Ok(())
    }];
    for go in goes {
        fixture.visit(|fixture, client, _| {
            fixture.restart_after_kill();
            assert!(!fixture.elements("pinholes4").is_empty());
            go(client)
        });
        fixture.wait_until_no_pinholes("pinholes4");
        assert_eq!(fixture.daemon.counted("closed"), 1);
    }
}

#[test]
fn pinhole_of_an_ended_session_is_closed_at_start() {
    let mut fixture = RestartFixture::new(POLICY);
    let server = fixture.serve();
    fixture.visit(|fixture, client, _| {
        fixture.daemon.kill()?;
        client.quit()
    });
    lab::wait_until("the server to see it", TIMEOUT, || Ok(server.sessions() == 0)).expect("it does");
    assert!(!fixture.elements("pinholes4").is_empty());
    fixture.daemon.restart().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(fixture.elements("pinholes4"), "");
    fixture
        .daemon
        .wait_for_log("adopted 0 pinholes and 0 port ranges of an earlier run; closed 1: the session had ended", 1);
}

#[test]
fn adopted_pinhole_expires_after_its_timeout() {
    let mut fixture = RestartFixture::new("admit: [inet filter forward]\ndefaults: { timeout: 5s }\n");
    let _server = fixture.serve();
    fixture.visit(|fixture, _client, _| {
        fixture.restart_after_kill();
        assert_eq!(fixture.daemon.counted("adopted"), 1);
        lab::wait_until("it to expire", TIMEOUT, || Ok(fixture.daemon.counted("expired") == 1))?;
        assert_eq!(fixture.elements("pinholes4"), "");
        Ok(())
    });
}

#[test]
fn adopted_port_range_is_closed_with_its_session() {
    let mut fixture = RestartFixture::new(POLICY);
    let address = fixture.address();
    let server = &fixture.topology.server.namespace;
    let listener = server.run(|| TcpListener::bind(address)).expect("root may enter").expect("it is free");
    let client = &fixture.topology.client.namespace;
    let control = client.run(|| TcpStream::connect(address)).expect("root may enter").expect("control may pass");
    let (mut served, _) = listener.accept().expect("it comes");
    let mut says = |command: &str, reply: &str| {
        (&control).write_all(command.as_bytes()).expect("it is sent");
        served.read_exact(&mut vec![0; command.len()]).expect("it comes");
        served.write_all(reply.as_bytes()).expect("it is sent");
        let mut line = String::new();
        BufReader::new(&control).read_line(&mut line).expect("a reply");
    };
    says("", "220 Ready.\r\n");
    says("AUTH TLS\r\n", "234 Let us whisper.\r\n");
    // Records as TLS has them, which end with a line feed.
    says("\x16\x03\x01\0\x02a\n", "\x16\x03\x03\0\x02a\n");
    for _ in 0..2 {
        says("\x17\x03\x03\0\x02a\n", "\x17\x03\x03\0\x02a\n");
    }
    assert_eq!(fixture.elements("port_ranges4"), "");
    says("\x17\x03\x03\0\x02a\n", "\x17\x03\x03\0\x02a\n");
    assert!(fixture.elements("port_ranges4").contains("50000-50100"), "{}", fixture.elements("port_ranges4"));

    fixture.restart_after_kill();
    fixture.daemon.wait_for_log("adopted 0 pinholes and 1 port range ", 1);
    fixture.topology.firewall.nft_output(&["delete", "table", "inet", "pinhole"]).expect("it stands");
    fixture.daemon.wait_for_log("restored the table inet pinhole", 1);
    assert!(fixture.elements("port_ranges4").contains("50000-50100"));
    drop((control, served));
    fixture.wait_until_no_pinholes("port_ranges4");
}
