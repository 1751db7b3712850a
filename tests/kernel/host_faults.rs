//! What keeps data connections from working although the daemon runs: each fault is built in a namespace with real rules,
//! and `pinhole check` and the start of `pinhole run` name it. On good rulesets neither warns.
//!
//! Needs root, nft and iptables.

use std::net::TcpListener;
use std::path::Path;

use lab::{Namespace, ServerKind, ServerOptions, Shape, Topology, wait_for};
use nix::sys::signal::Signal;
use pinhole::core::policy::WhenDown;
use pinhole::netfilter::queue::Queue;

use crate::daemon::{Daemon, PROGRAM, TIMEOUT, with_mechanism};
use crate::iptables::typed;

/// A server's host that accepts control connections, and announced data connections by `admit`.
const GOOD: &str = "table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iif lo accept
        tcp dport 21 accept
    }
}";
const ADMIT: &str = "mechanism: sets\nadmit: [inet filter input]\n";

fn host(rules: &str) -> Namespace {
    let namespace = Namespace::new("host").unwrap_or_else(|error| panic!("{error}"));
    namespace.nft(rules).unwrap_or_else(|error| panic!("{error}"));
    namespace
}

/// The warnings of `pinhole check`.
fn checked(namespace: &Namespace, policy: &str) -> Vec<String> {
    let mut command = namespace.command(PROGRAM);
    command.args(["check", "--policy", "-"]).input(policy.as_bytes());
    command.env("PINHOLE_SOCKET", "/nonexistent/pinhole.sock");
    let finished = command.spawn().and_then(|child| child.wait(TIMEOUT)).unwrap_or_else(|error| panic!("{error}"));
    let said = finished.output();
    assert!(said.contains("This host is ready for"), "{said}");
    said.lines().filter(|line| line.starts_with("warning")).map(str::to_owned).collect()
}

/// The warnings that `pinhole run` logs at its start.
fn logged(namespace: &Namespace, policy: &str) -> Vec<String> {
    let mut daemon = Daemon::start(namespace, policy).expect("it starts");
    daemon.end(Signal::SIGTERM).expect("it runs");
    // The last line: all warnings are in front of it.
    daemon.wait_for_log("SIGTERM: removing the table", 1);
    let said = daemon.child.output();
    said.lines().filter(|line| line.contains("WARN") && !line.contains("sandbox")).map(str::to_owned).collect()
}

/// Both name the fault, and nothing else.
#[track_caller]
fn assert_named(namespace: &Namespace, policy: &str, parts: &[&str]) {
    for (by, warnings) in [("check", checked(namespace, policy)), ("run", logged(namespace, policy))] {
        let is_named = warnings.iter().any(|warning| parts.iter().all(|part| warning.contains(part)));
        assert!(is_named && warnings.len() == 1, "`pinhole {by}`: {parts:?} in {warnings:#?}");
    }
}

#[track_caller]
fn assert_good(namespace: &Namespace, policy: &str, what: &str) {
    assert_eq!(checked(namespace, policy), [""; 0], "`pinhole check` on {what}");
    assert_eq!(logged(namespace, policy), [""; 0], "`pinhole run` on {what}");
}

#[test]
fn shipped_rulesets_have_no_faults() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let read =
        |path: &Path| std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut count = 0;
    for ruleset in std::fs::read_dir(deploy.join("nftables")).expect("the folder is there") {
        let path = ruleset.expect("it can be read").path();
        let text = read(&path);
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        // A ruleset for NAT names its policy in a comment.
        let named = text.lines().find_map(|line| line.strip_prefix("#     admit:"));
        let policy = named
            .map_or_else(|| read(&deploy.join(format!("policies/{name}.yaml"))), |admit| format!("admit:{admit}\n"));
        let namespace = host(&text);
        if text.contains("hook forward priority filter; policy drop") {
            namespace.forward().expect("it forwards");
        }
        let policy = with_mechanism(&policy.replace("mechanism: auto", "mechanism: sets"));
        assert_good(&namespace, &policy, &name);
        count += 1;
    }
    assert!(count >= 8, "{count} rulesets");
}

#[test]
fn missing_accept_rule_is_named() {
    assert_named(&host(GOOD), "mechanism: sets\n", &["chain inet filter input", "its policy is drop", "ct mark"]);
    assert_good(&host(GOOD), ADMIT, "a host that admits the mark");
}

#[test]
fn mark_accepted_in_the_wrong_chain_is_named() {
    let rules =
        format!("{GOOD}\ntable inet filter {{ chain forward {{ type filter hook forward priority filter; }}; }}");
    let policy = "mechanism: sets\nadmit: [inet filter forward]\n";
    assert_named(&host(&rules), policy, &["chain inet filter input", "the mark is accepted elsewhere"]);
}

#[test]
fn second_table_that_drops_is_named() {
    let second =
        "table ip other { chain in { type filter hook input priority 10; policy drop; tcp dport 21 accept; }; }";
    assert_named(&host(&format!("{GOOD}\n{second}")), ADMIT, &["chain ip other in", "its policy is drop"]);
}

#[test]
fn chain_before_the_filter_that_drops_is_named() {
    let early = "table ip other { chain pre { type filter hook prerouting priority -50; policy drop;
        ct state established accept; tcp dport 21 accept; }; }";
    assert_named(&host(&format!("{GOOD}\n{early}")), ADMIT, &["chain ip other pre", "would drop data connections"]);
}

#[test]
fn overwritten_mark_is_named() {
    let mark = |rule: &str| {
        host(&format!(
            "{GOOD}\ntable ip mangle {{ chain pre {{ type filter hook prerouting priority -140; {rule}; }}; }}"
        ))
    };
    assert_named(&mark("ct state new ct mark set 0x1"), ADMIT, &["chain ip mangle pre", "overwrites the mark"]);
    assert_good(&mark("ct state new ct mark set ct mark | 0x1"), ADMIT, "a rule that keeps the mark");
}

#[test]
fn notrack_on_the_control_port_is_named() {
    let raw = |rule: &str| {
        host(&format!("{GOOD}\ntable ip raw {{ chain pre {{ type filter hook prerouting priority raw; {rule}; }}; }}"))
    };
    assert_named(&raw("tcp dport 21 notrack"), ADMIT, &["chain ip raw pre", "`notrack`"]);
    assert_good(&raw("tcp dport 80 notrack"), ADMIT, "notrack for another port");
}

#[test]
fn output_that_drops_is_named() {
    let output = "table inet filter { chain output { type filter hook output priority filter; policy drop;
        ct state established,related accept; }; }";
    assert_named(&host(&format!("{GOOD}\n{output}")), ADMIT, &["chain inet filter output", "its policy is drop"]);
}

#[test]
fn closed_control_port_is_named_where_a_server_listens() {
    let namespace = host(&GOOD.replace("tcp dport 21 accept", "tcp dport 22 accept"));
    assert_good(&namespace, ADMIT, "a host without a server");
    let listen = || TcpListener::bind("0.0.0.0:21");
    let _server = namespace.run(listen).expect("root may enter").expect("the port is free");
    assert_named(&namespace, ADMIT, &["chain inet filter input", "drops control connections to port 21"]);
}

#[test]
fn server_on_another_port_is_named() {
    let topology = Topology::new(Shape::ServerHost).unwrap_or_else(|error| panic!("{error}"));
    let namespace = &topology.server.namespace;
    let mut options = ServerOptions::on(topology.server.addresses.of(lab::Family::V4));
    options.port = 2121;
    let _server = ServerKind::Vsftpd.start(namespace, &options).unwrap_or_else(|error| panic!("{error}"));
    let rules = GOOD.replace("tcp dport 21 accept", "tcp dport { 21, 2121 } accept");
    namespace.nft(&rules).expect("nft loads it");
    assert_named(namespace, ADMIT, &["vsftpd listens on port 2121", "`control_ports: [21, 2121]`"]);
    assert_good(namespace, &format!("{ADMIT}control_ports: [21, 2121]\n"), "that port named");
}

#[test]
fn queue_of_another_program_is_named() {
    let namespace = host(GOOD);
    typed(&namespace, "iptables -t raw -A PREROUTING -p tcp --dport 21 -j NFQUEUE --queue-num 77");
    assert_named(&namespace, ADMIT, &["chain ip raw PREROUTING", "queue 77", "no program reads: they are dropped"]);
    let open = || Queue::open(77, WhenDown::Open);
    let _reader = namespace.run(open).expect("root may enter").expect("the queue is free");
    assert_good(&namespace, ADMIT, "a queue that a program reads");
}

#[test]
fn helper_of_the_kernel_is_named() {
    let namespace = host(GOOD);
    // While another test finds out whether the kernel takes a helper `ftp`, it does not load its own.
    let load = || Ok(namespace.nft(lab::KERNEL_HELPER).is_ok().then_some(()));
    wait_for("the kernel's helper to be there", TIMEOUT, load).unwrap_or_else(|error| panic!("{error}"));
    assert_named(&namespace, ADMIT, &["kernel's FTP helper", "bypasses Pinhole's policy"]);
}
