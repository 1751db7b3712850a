//! Guarantee: FTP is inspected in every topology and on every control port, and nothing else is taken for FTP.
//!
//! The built program on a real kernel, in namespaces of the lab, with the lab's own small server and client around it
//! and a filter that drops by default. Needs root and nft.

use crate::daemon::TIMEOUT;
use crate::filtered_topology::{
    CONTENT, FILE, FOR_HOURS, FilteredTopology, assert_closed, assert_read, connect, modes, pinholes, serve_by_hand,
    some_transfers,
};

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use lab::mini::{MiniClient, MiniOptions};
use lab::{Family, Shape};
use pinhole::core::ftp::Mode;

#[test]
fn every_mode_works_in_every_topology() {
    for shape in Shape::ALL {
        let fixture = FilteredTopology::new(shape);
        let daemon = fixture.daemon(FOR_HOURS);
        for family in Family::ALL {
            let server = fixture.serve(family);
            for &mode in modes(family) {
                fixture.as_client(|| some_transfers(server.address(), mode));
            }
        }
        assert_eq!(daemon.counted("opened"), 18, "{shape}");
        fixture.wait_for_pinholes(0);
    }
}

#[test]
fn each_line_is_read_once() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let daemon = fixture.daemon("");
    let server = fixture.serve(Family::V4);
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        assert_read(&daemon, &fixture.ends(), 200, "a hundred commands and replies", || say_noop(&mut client, 100));
        assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT);
        client.quit()
    });
}

fn say_noop(client: &mut MiniClient, times: usize) {
    for _ in 0..times {
        client.command("NOOP", 200).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn session_is_read_after_a_restart() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let server = fixture.serve(Family::V4);
    let mut daemon = fixture.daemon("");
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        daemon.kill()?;
        daemon.restart()?;
        assert_eq!(daemon.counted("packets"), 0);
        assert_read(&daemon, &fixture.ends(), 20, "ten commands and replies", || say_noop(&mut client, 10));
        for &mode in modes(Family::V4) {
            assert_eq!(client.download(mode, FILE)?, CONTENT, "{mode}");
        }
        client.quit()
    });
}

#[test]
fn non_ftp_stays_unread_after_a_restart() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let address = fixture.target(Family::V4, 21);
    let mut daemon = fixture.daemon("");
    let listener = fixture.topology.server.namespace.run(|| TcpListener::bind((address.ip(), 0)));
    let listener = listener.expect("root may enter").expect("a port");
    let open = listener.local_addr().expect("it is bound");
    let reply = format!("227 Here (10,21,2,10,{},{})\r\n", open.port() / 256, open.port() % 256);
    let talk = |control: TcpStream| {
        let mut lines = BufReader::new(control.try_clone()?).lines();
        (&control).write_all(b"220 Ready.\r\n")?;
        while lines.next().transpose()?.is_some() {
            (&control).write_all(reply.as_bytes())?;
        }
        Ok(())
    };
    let visit = || {
        let client = &fixture.topology.client.namespace;
        let control = connect(client, address).expect("control connections may pass");
        let mut lines = BufReader::new(control.try_clone().expect("a socket")).lines();
        lines.next().expect("a greeting").expect("a greeting");
        let mut says = |line: &str| {
            (&control).write_all(line.as_bytes()).expect("it is sent");
            lines.next().expect("a reply").expect("a reply");
        };
        says("POST / HTTP/1.1\r\n");
        says("PASV\r\n");
        assert_eq!(daemon.counted("not_ftp"), 1);
        daemon.kill().expect("it can be killed");
        daemon.restart().expect("it comes back");
        // Without the mark this would look like a session in the middle.
        says("PASV\r\n");
        says("PASV\r\n");
        assert_closed(client, open);
        assert_eq!((daemon.counted("packets"), daemon.counted("opened")), (0, 0));
    };
    serve_by_hand(&fixture.topology.server.namespace, address, talk, visit);
}

#[test]
fn encrypted_and_non_ftp_sessions_open_nothing() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let daemon = fixture.daemon("");
    let address = fixture.target(Family::V4, 21);
    let listener = fixture.topology.server.namespace.run(|| TcpListener::bind((address.ip(), 0)));
    let listener = listener.expect("root may enter").expect("a port");
    let open = listener.local_addr().expect("it is bound");
    let numbers = format!("(10,21,2,10,{},{})", open.port() / 256, open.port() % 256);
    let talk = |control: TcpStream| {
        let mut lines = BufReader::new(control.try_clone()?).lines();
        (&control).write_all(b"220 Ready.\r\n")?;
        while let Some(line) = lines.next().transpose()? {
            let reply = match line.split_once(' ').map_or(&*line, |(command, _)| command) {
                "USER" => "331 And?".to_owned(),
                "PASS" => "230 In.".to_owned(),
                "AUTH" => "234 Let us whisper.".to_owned(),
                "PASV" => format!("227 Here {numbers}"),
                _ => "200 Yes.".to_owned(),
            };
            (&control).write_all(format!("{reply}\r\n").as_bytes())?;
        }
        Ok(())
    };
    let visit = || {
        let client = &fixture.topology.client.namespace;
        let says = |dialogue: &[(&str, &str)]| {
            let control = connect(client, address).expect("control connections may pass");
            control.set_nodelay(true).expect("a socket");
            let mut lines = BufReader::new(control.try_clone().expect("a socket")).lines();
            let mut next = || lines.next().expect("a reply").expect("a reply");
            next();
            for (line, reply) in dialogue {
                (&control).write_all(format!("{line}\r\n").as_bytes()).expect("it is sent");
                let heard = next();
                assert!(heard.starts_with(reply), "{heard}");
            }
            assert_closed(client, open);
            assert_eq!(fixture.pinholes(), 0);
        };
        says(&[("AUTH TLS", "234"), ("PASV", "227"), ("PASV", "227")]);
        says(&[("GET / HTTP/1.1", "200"), ("PASV", "227"), ("PASV", "227")]);
        // Nor does an announcement without a login, or one that was not requested.
        says(&[("PASV", "227")]);
        let counters = daemon.status()["counters"].clone();
        assert_eq!((&counters["encrypted"], &counters["not_ftp"]), (&1.into(), &1.into()), "{counters}");
        assert_eq!(counters["opened"], 0);
        // A valid announcement does.
        let control = connect(client, address).expect("control connections may pass");
        let mut lines = BufReader::new(control.try_clone().expect("a socket")).lines();
        for line in ["", "USER a\r\n", "PASS b\r\n", "PASV\r\n"] {
            (&control).write_all(line.as_bytes()).expect("it is sent");
            lines.next().expect("a reply").expect("a reply");
        }
        connect(client, open).expect("it is announced");
    };
    serve_by_hand(&fixture.topology.server.namespace, address, talk, visit);
}

#[test]
fn client_and_server_on_one_host_are_read_once() {
    let fixture = FilteredTopology::new(Shape::ServerHost);
    // The filter drops loopback packets, too.
    let strict = "flush ruleset
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established accept
        tcp dport { 21, 2121 } ct state new accept
        tcp flags & rst == rst accept
        tcp flags & (fin | syn | rst | ack) == syn reject with tcp reset
    }
    chain output {
        type filter hook output priority filter; policy accept;
    }
}";
    let host = fixture.firewall();
    host.nft(strict).expect("the rules are right");
    let daemon = fixture.daemon("control_ports: [21, 2121]\n");
    let addresses: [IpAddr; 4] = [
        Ipv4Addr::LOCALHOST.into(),
        Ipv6Addr::LOCALHOST.into(),
        fixture.topology.server.addresses.v4.into(),
        fixture.topology.server.addresses.v6.into(),
    ];
    let visit_all = || {
        let mut opened = 0;
        // No session ends before the last one was counted: the end of one is read as well, and late on a busy machine.
        let mut open = Vec::new();
        for (address, port) in addresses.into_iter().flat_map(|address| [(address, 21), (address, 2121)]) {
            let server = fixture.serve_with(SocketAddr::new(address, port), MiniOptions::default());
            let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
            // A command and a reply are two packets.
            assert_read(&daemon, &[host], 100, &address.to_string(), || say_noop(&mut client, 50));
            for &mode in modes(if address.is_ipv4() { Family::V4 } else { Family::V6 }) {
                assert_eq!(client.download(mode, FILE)?, CONTENT, "{address}, {mode}");
                opened += 1;
                assert_eq!(daemon.counted("opened"), opened, "{address}, {mode}");
            }
            let announced = client.passive(Mode::Epsv)?;
            opened += 1;
            drop(client.connect_data(announced)?);
            assert_closed(host, announced);
            open.push((client, server));
        }
        assert_eq!(daemon.counted("sessions"), 8);
        open.into_iter().try_for_each(|(client, _server)| client.quit())
    };
    host.run(visit_all).and_then(|result| result).unwrap_or_else(|error| panic!("{error}"));
    // A status request removes used pinholes.
    assert_eq!(pinholes(host), 0);
}

#[test]
fn several_control_ports_work_side_by_side() {
    for shape in Shape::ALL {
        let fixture = FilteredTopology::new(shape);
        let _daemon = fixture.daemon("control_ports: [2121, 21]\n");
        for (family, port) in [(Family::V4, 21), (Family::V4, 2121), (Family::V6, 21), (Family::V6, 2121)] {
            let server = fixture.serve_with(fixture.target(family, port), MiniOptions::default());
            for &mode in modes(family) {
                fixture.as_client(|| some_transfers(server.address(), mode));
            }
        }
    }
}
