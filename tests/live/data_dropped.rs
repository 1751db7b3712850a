//! A data connection that Pinhole admits and a later chain of the host drops is told from one that never came.
//!
//! Needs root, nft, and the programs that `tests/setup test` fetches.

use std::net::TcpStream;
use std::time::Duration;

use lab::mini::MiniClient;
use lab::{ClientKind, Family, ServerKind, ServerOptions, Shape, Task, Visit};
use pinhole::core::ftp::Mode;
use serde_json::Value;

use crate::daemon::{Daemon, TIMEOUT};
use crate::filtered_topology::FilteredTopology;

/// Drops data connections behind Pinhole's accept rule: an accept in one chain does not overrule a drop in another.
fn drop_data(fixture: &FilteredTopology) {
    let hook = match fixture.topology.shape {
        Shape::Gateway => "forward",
        Shape::ServerHost | Shape::ClientHost => "input",
    };
    let rules = format!(
        "add table inet later
        add chain inet later later {{ type filter hook {hook} priority 10; }}
        add rule inet later later tcp flags & (syn | ack) == syn tcp dport != 21 drop"
    );
    fixture.firewall().nft(&rules).expect("the rules are right");
}

fn pinholes(daemon: &Daemon) -> Vec<Value> {
    daemon.status()["pinholes"].as_array().expect("a list").clone()
}

fn warnings(daemon: &Daemon, word: &str) -> usize {
    daemon.child.output().lines().filter(|line| line.contains(&format!(" WARN {word} "))).count()
}

#[test]
fn dropped_syn_is_logged_for_a_real_server_and_client() {
    for (shape, mode) in [(Shape::Gateway, Mode::Pasv), (Shape::Gateway, Mode::Port), (Shape::ServerHost, Mode::Epsv)] {
        let fixture = FilteredTopology::new(shape);
        drop_data(&fixture);
        let daemon = fixture.daemon("");
        let options = ServerOptions::on(fixture.topology.server.addresses.of(Family::V4));
        let _server = ServerKind::Vsftpd.start(&fixture.topology.server.namespace, &options).expect("a server");
        let visit = Visit {
            namespace: &fixture.topology.client.namespace,
            server: fixture.target(Family::V4, 21),
            mode,
            announce: None,
            tls: None,
            timeout: Duration::from_secs(4),
        };
        let listed = ClientKind::Ftplib.visit(&visit, &[Task::List]);
        assert!(listed.is_err(), "{shape}, {mode}: the data connection came through");
        let said = daemon.child.output();
        assert!(said.contains(" WARN dropped "), "{shape}, {mode}: {said}");
        assert!(said.contains("its SYN came and was admitted, but your ruleset or routing dropped it"), "{said}");
        assert_eq!((daemon.counted("dropped"), daemon.counted("used")), (1, 0), "{shape}, {mode}");
    }
}

#[test]
fn open_pinhole_shows_whether_its_syn_came() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    drop_data(&fixture);
    let daemon = fixture.daemon("");
    let server = fixture.serve(Family::V4);
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        let announced = client.passive(Mode::Pasv)?;
        assert_eq!(pinholes(&daemon)[0]["syn_came"], Value::Bool(false));
        let came_through = TcpStream::connect_timeout(&announced, Duration::from_millis(300)).is_ok();
        assert!(!came_through, "a later chain drops it");
        lab::wait_until("the SYN in the status", TIMEOUT, || {
            let open = pinholes(&daemon);
            Ok(open.is_empty() || open[0]["syn_came"] == Value::Bool(true))
        })?;
        daemon.wait_for_log(" WARN dropped ", 1);
        Ok(())
    });
    assert_eq!(daemon.counted("dropped"), 1);
}

#[test]
fn pinhole_to_which_nobody_connects_expires() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    drop_data(&fixture);
    let daemon = fixture.daemon("defaults: { timeout: 4s }\n");
    let server = fixture.serve(Family::V4);
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        client.passive(Mode::Pasv)?;
        daemon.wait_for_log("no data connection came", 1);
        Ok(())
    });
    assert_eq!((daemon.counted("dropped"), daemon.counted("expired"), warnings(&daemon, "dropped")), (0, 1, 0));
}

#[test]
fn used_pinhole_is_not_reported_as_dropped() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let daemon = fixture.daemon("");
    let server = fixture.serve(Family::V4);
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        let announced = client.passive(Mode::Pasv)?;
        let _data = client.connect_data(announced)?;
        let unused = client.passive(Mode::Epsv)?;
        // Longer than the first question to the kernel takes.
        lab::wait_until("the first question", TIMEOUT, || {
            let open = pinholes(&daemon);
            Ok(open.iter().any(|one| one["to"] == unused.to_string() && one["age"].as_f64() > Some(4.5)))
        })
    });
    assert_eq!((daemon.counted("dropped"), daemon.counted("used")), (0, 1));
}
