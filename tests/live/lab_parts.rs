//! The parts of the lab: namespaces, links, programs, and their errors. Needs root.

use lab::mini::{MiniClient, MiniOptions, MiniServer};
use lab::packet_recorder::PacketRecorder;
use lab::{Error, Family, KERNEL_HELPER, Namespace, Result, Shape, Topology, tools, wait_until};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

fn namespace(role: &str) -> Namespace {
    Namespace::new(role).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn namespaces_are_separate_and_have_unique_names() {
    let (one, other) = (namespace("one"), namespace("other"));
    assert!(one.name().starts_with(&format!("ph-{}-", std::process::id())) && one.name().ends_with("-one"));
    let port = |namespace: &Namespace| namespace.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 21)));
    let _first = port(&one).expect("inside").expect("the port is free");
    let _second = port(&other).expect("inside").expect("the port is free here, too");
    assert!(port(&one).expect("inside").is_err());
    assert!(one.is_listening(21).expect("root sees it"));
    // Inside a process only the thread that enters is there.
    assert!(TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, 21)), SOON).is_err());
}

#[test]
fn panic_inside_a_namespace_is_propagated() {
    let inside = namespace("panic");
    let caught = std::panic::catch_unwind(|| inside.run(|| panic!("as it should")));
    let panic = caught.expect_err("it panicked");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"as it should"));
}

/// Whether each end of a new topology reaches the other with its first packet: a second is sent after a second only.
fn reaches_at_once(shape: Shape) -> std::io::Result<()> {
    let at_once = Duration::from_millis(900);
    let topology = Topology::new(shape).unwrap_or_else(|error| panic!("{error}"));
    for (from, to) in [(&topology.client, &topology.server), (&topology.server, &topology.client)] {
        for family in Family::ALL {
            let address = to.addresses.of(family);
            let _listener = to.namespace.run(|| TcpListener::bind((address, 7))).expect("inside").expect("listens");
            let stream = from.namespace.run(|| TcpStream::connect_timeout(&(address, 7).into(), at_once));
            let stream = stream.expect("inside")?;
            assert_eq!(stream.local_addr().expect("connected").ip(), from.addresses.of(family));
        }
    }
    Ok(())
}

#[test]
fn every_host_reaches_every_other_host() {
    for shape in Shape::ALL {
        // A busy machine may be that slow once; a lab that is not ready when it says so is it every time.
        let attempts: Vec<_> = (0..3).map(|_| reaches_at_once(shape)).take_while(std::io::Result::is_err).collect();
        assert!(attempts.len() < 3, "{shape}: {attempts:?}");
    }
}

#[test]
fn dropped_guard_ends_program_and_children() {
    let inside = namespace("guard");
    let script = "sleep 600 & setsid sleep 600 & echo started; wait";
    let child = inside.command("sh").args(["-c", script]).spawn().unwrap_or_else(|error| panic!("{error}"));
    wait_until("the script to start", SOON, || Ok(child.output() == "started\n")).expect("it prints");
    let id = child.id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).expect("it runs");
    assert_eq!(children.split_whitespace().count(), 2);
    drop(child);
    for id in children.split_whitespace().chain([id.to_string().as_str()]) {
        assert!(std::fs::read_link(format!("/proc/{id}/exe")).is_err(), "process {id} is still there");
    }
}

#[test]
fn failed_program_is_reported_with_its_output() {
    let inside = namespace("fails");
    let script = "echo out; echo err >&2; exit 3";
    let error = inside.command("sh").args(["-c", script]).output(SOON).expect_err("it fails");
    assert_eq!(error.to_string(), "sh ended with exit status: 3:\nout\nerr");
    let brief = Duration::from_secs(1);
    let error = inside.command("sh").args(["-c", "echo on; sleep 600"]).output(brief).expect_err("it is too slow");
    assert_eq!(error.to_string(), "waited 1s in vain for sh to end:\non");
    let error = inside.nft("add rule inet nowhere input accept").expect_err("there is no such table");
    assert!(error.to_string().contains("No such file or directory"), "{error}");
}

#[test]
fn missing_program_is_reported_with_a_remedy() {
    let inside = namespace("missing");
    let error = inside.command("no-such-ftpd").spawn().expect_err("there is none");
    assert!(matches!(error, Error::Missing { .. }), "{error}");
    assert!(error.to_string().contains("tests/setup"), "{error}");
    assert!(matches!(tools::find("no-such-package", "usr/sbin/no-such-ftpd"), Err(Error::Missing { .. })));
}

#[test]
fn program_reads_its_input() {
    let inside = namespace("reads");
    // More than a pipe holds, both ways at once.
    let input = vec![b'x'; 1_000_000];
    let done = inside.command("cat").input(&input).output(SOON).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(done.stdout, input);
}

#[test]
fn without_offloads_segments_fit_the_mtu() {
    let topology = Topology::new(Shape::Gateway).unwrap_or_else(|error| panic!("{error}"));
    let address = SocketAddr::new(topology.target.of(Family::V4), 21);
    let server = MiniServer::start(&topology.server.namespace, address, MiniOptions::default()).expect("it listens");
    server.place("large", vec![7; 3_000_000]);
    // Counted by the firewall: segments from the server that are larger than an Ethernet frame can be.
    topology
        .firewall
        .nft(
            "table inet count {
                 counter large {
                 }
                 chain forward {
                     type filter hook forward priority filter;
                     meta length > 1500 counter name large
                 }
             }",
        )
        .expect("the rules are right");
    let large_segments = || -> Result<bool> {
        topology.firewall.nft_output(&["reset", "counters"])?;
        topology
            .client
            .namespace
            .run(|| MiniClient::log_in(address, SOON)?.download(pinhole::core::ftp::Mode::Epsv, "large"))??;
        Ok(!topology.firewall.nft_output(&["list", "counters"])?.contains("packets 0 "))
    };
    assert!(large_segments().expect("it transfers"), "with offloads");
    topology.set_offloads(false).unwrap_or_else(|error| panic!("{error}"));
    assert!(!large_segments().expect("it transfers"), "without offloads");
    topology.set_offloads(true).unwrap_or_else(|error| panic!("{error}"));
    assert!(large_segments().expect("it transfers"), "with offloads again");
}

#[test]
fn packet_recorder_records_all_packets_and_finds_bad_checksums() {
    let topology = Topology::new(Shape::Gateway).unwrap_or_else(|error| panic!("{error}"));
    for (family, is_as_on_a_cable) in Family::ALL.into_iter().flat_map(|family| [(family, false), (family, true)]) {
        topology.set_offloads(!is_as_on_a_cable).unwrap_or_else(|error| panic!("{error}"));
        let address = SocketAddr::new(topology.target.of(family), 21);
        let server =
            MiniServer::start(&topology.server.namespace, address, MiniOptions::default()).expect("it listens");
        server.place("large", vec![7; 300_000]);
        topology.firewall.nft(Shape::Gateway.default_drop()).expect("the rules are right");
        topology.firewall.nft(KERNEL_HELPER).expect("this kernel has its helper");
        let ends = [("client", &topology.client.namespace), ("server", &topology.server.namespace)];
        let recorder = PacketRecorder::start(&ends, &[&topology.firewall]).unwrap_or_else(|error| panic!("{error}"));
        topology
            .client
            .namespace
            .run(|| MiniClient::log_in(address, SOON)?.download(pinhole::core::ftp::Mode::Epsv, "large"))
            .and_then(|done| done)
            .unwrap_or_else(|error| panic!("{error}"));
        let report = recorder.end().unwrap_or_else(|error| panic!("{error}"));
        for (name, packets) in &report.ends {
            let login = packets.iter().filter(|packet| packet.bytes.ends_with(b"PASS secret\r\n")).count();
            assert_eq!(login, 1, "at the {name}");
            assert!(packets.iter().map(|packet| packet.bytes.len()).sum::<usize>() > 300_000);
        }
        let problems = report.problems();
        assert_eq!(problems.is_empty(), is_as_on_a_cable, "{problems:?}");
        assert!(problems.iter().all(|problem| problem.contains("checksum")), "{problems:?}");
    }
}

#[test]
fn packet_recorder_finds_packets_that_conntrack_calls_invalid() {
    let topology = Topology::new(Shape::Gateway).unwrap_or_else(|error| panic!("{error}"));
    let address = SocketAddr::new(topology.target.of(Family::V4), 21);
    let server = MiniServer::start(&topology.server.namespace, address, MiniOptions::default()).expect("it listens");
    let recorder = topology
        .client
        .namespace
        .run(|| {
            let mut client = MiniClient::connect(address, SOON)?;
            // Conntrack starts with the first rule that needs it, and here does not pick up connections in the middle.
            topology.firewall.set("net/netfilter/nf_conntrack_tcp_loose", "0")?;
            topology.firewall.nft(Shape::Gateway.default_drop())?;
            let recorder = PacketRecorder::start(&[], &[&topology.firewall])?;
            client.send(b"NOOP\r\n")?;
            wait_until("a packet to be invalid", SOON, || Ok(topology.firewall.invalid_packets()? > 0))?;
            Ok::<_, Error>(recorder)
        })
        .and_then(|done| done)
        .unwrap_or_else(|error| panic!("{error}"));
    let problems = recorder.end().unwrap_or_else(|error| panic!("{error}")).problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("invalid"), "{problems:?}");
    drop(server);
}
