//! What the log, the status and the JSON say about a session: who, by which rule of the policy, what and why.
//!
//! Needs root, nft, and the programs that `tests/setup test` fetches.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use lab::mini::MiniClient;
use lab::{ClientKind, Family, ServerKind, ServerOptions, Shape, Task, Visit};
use pinhole::core::ftp::Mode;

use crate::daemon::TIMEOUT;
use crate::filtered_topology::{self, FilteredTopology, serve_by_hand};

/// A rule for the lab's client.
fn rules(name: &str, terms: &str) -> String {
    format!("rules:\n  - {{ name: {name}, clients: [10.21.1.10], {terms} }}\n")
}

#[test]
fn log_and_status_name_the_rule_of_a_session() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let daemon = fixture.daemon(&rules("partners", "timeout: 1h"));
    let server = fixture.serve(Family::V4);
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        client.passive(Mode::Pasv)?;
        daemon.wait_for_log(r#", user "pinhole", rule "partners")"#, 1);
        assert_eq!(daemon.status()["pinholes"][0]["rule"], "partners");
        let text = daemon.program(&["status"])?;
        assert!(text.output().contains(r#", rule "partners", "#), "{}", text.output());

        daemon.write_policy(&filtered_topology::policy(Shape::Gateway, &rules("guests", "data_ports: 7-8")));
        daemon.program(&["reload"])?;
        client.command("PASV", 227)?;
        daemon.wait_for_log(
            r#"port-not-allowed, its port is not in `data_ports` (7-8) (give the server's passive range"#,
            1,
        );
        daemon.wait_for_log(r#", rule "guests")"#, 2);

        daemon.write_policy(&filtered_topology::policy(Shape::Gateway, &rules("guests", "servers: [192.0.2.1]")));
        daemon.program(&["reload"])?;
        client.passive(Mode::Epsv)?;
        daemon.wait_for_log(r#", user "pinhole", no rule)"#, 1);
        Ok(())
    });
}

#[test]
fn foreign_address_of_a_real_server_points_to_its_configuration() {
    for kind in [ServerKind::Vsftpd, ServerKind::Proftpd, ServerKind::PureFtpd] {
        let fixture = FilteredTopology::new(Shape::Gateway);
        let daemon = fixture.daemon("");
        let options = ServerOptions {
            announce: Some(Ipv4Addr::new(198, 51, 100, 7)),
            ..ServerOptions::on(fixture.topology.server.addresses.of(Family::V4))
        };
        let _server = kind.start(&fixture.topology.server.namespace, &options).expect("a server");
        let visit = Visit {
            namespace: &fixture.topology.client.namespace,
            server: fixture.target(Family::V4, 21),
            mode: Mode::Pasv,
            announce: None,
            tls: None,
            timeout: std::time::Duration::from_secs(3),
        };
        // Some clients connect to the server's own address instead.
        let _ = ClientKind::Ftplib.visit(&visit, &[Task::List]);
        daemon.wait_for_log(" WARN refused 227 198.51.100.7:", 1);
        let said = daemon.child.output();
        let line = said.lines().find(|line| line.contains("refused 227")).expect("it was waited for");
        assert!(line.contains("`pasv_address`") && !line.contains("third_party"), "{kind}: {line}");
        assert!(line.contains(" -> 10.21.2.10:21, user "), "{kind}: {line}");
    }
}

#[test]
fn implicit_tls_is_logged_as_encrypted() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    fixture.firewall().nft("insert rule inet filter forward tcp dport 990 accept").expect("the chain is there");
    let daemon = fixture.daemon("control_ports: [21, 990]\n");
    let answer = |mut stream: TcpStream| -> io::Result<()> {
        let mut record = [0; 10];
        stream.read_exact(&mut record)?;
        stream.write_all(b"\x16\x03\x03\0\x05\x02\0\0\x01a")?;
        stream.read_to_end(&mut Vec::new()).map(drop)
    };
    let address = fixture.target(Family::V4, 990);
    serve_by_hand(&fixture.topology.server.namespace, address, answer, || {
        let mut stream =
            filtered_topology::connect(&fixture.topology.client.namespace, address).expect("port 990 is open");
        stream.write_all(b"\x16\x03\x01\0\x05\x01\0\0\x01a").expect("the server reads");
        stream.read_exact(&mut [0; 10]).expect("the server answers");
        daemon.wait_for_log(" WARN encrypted (implicit TLS): its announcements cannot be read", 1);
        // The server by hand serves one connection after another.
        drop(stream);
    });
    assert_eq!((daemon.counted("encrypted"), daemon.counted("not_ftp")), (1, 0));
}
