//! iptables-nft goes on working in the tables that `admit` names, and its rules with Pinhole's among them.
//!
//! Needs root, nft and iptables, which the lab has.

use crate::daemon::{Daemon, PROGRAM, TIMEOUT};
use crate::filtered_topology::{CONTENT, FILE, modes, some_transfers};

use std::fs;
use std::net::SocketAddr;

use lab::mini::{MiniOptions, MiniServer};
use lab::{Family, Finished, Namespace, Shape, Topology, tools, wait_until};
use nix::sys::signal::Signal;
use pinhole::core::kernel::Mark;
use pinhole::netfilter::table::own_iptables_rule;

/// The rule as `iptables -S` prints it.
const RULE: &str = "-m conntrack --ctstate NEW,RELATED -m connmark --mark 0x10000000/0x10000000 \
                    -m comment --comment \"pinhole: announced data connections, mark 0x10000000\" -j ACCEPT";

/// The rules of a host as its administrator and fail2ban have typed them, without the name of the program.
const RULES: [&str; 9] = [
    "-N f2b-vsftpd",
    "-A f2b-vsftpd -j RETURN",
    "-A INPUT -i lo -j ACCEPT",
    "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT",
    "-A INPUT -p tcp --dport 21 -j ACCEPT",
    "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
    "-A FORWARD -p tcp --dport 21 -m comment --comment FTP -j ACCEPT",
    "-P INPUT DROP",
    "-P FORWARD DROP",
];

/// The programs of a family, and the family in nft.
const PROGRAMS: [(&str, &str); 2] = [("iptables", "ip"), ("ip6tables", "ip6")];

/// Runs a command of iptables as a shell would.
fn run(namespace: &Namespace, command: &str, input: &str) -> Finished {
    let tool = tools::find("iptables", "usr/sbin/xtables-nft-multi").unwrap_or_else(|error| panic!("{error}"));
    let mut shell = namespace.command("sh");
    shell.args(["-c", &format!("exec {} {command}", tool.program.display())]).input(input.as_bytes());
    if let (Some(libraries), Some(root)) = (&tool.libraries, &tool.root) {
        let folders = fs::read_dir(root.join("usr/lib")).expect("iptables has libraries").flatten();
        let extensions = folders.map(|folder| folder.path().join("xtables")).find(|folder| folder.is_dir());
        shell.env("LD_LIBRARY_PATH", libraries).env("XTABLES_LIBDIR", extensions.expect("iptables has extensions"));
    }
    shell.spawn().and_then(|child| child.wait(TIMEOUT)).unwrap_or_else(|error| panic!("{command}: {error}"))
}

/// Runs a command that has to succeed, and returns what it prints.
#[track_caller]
fn typed_with(namespace: &Namespace, command: &str, input: &str) -> String {
    let finished = run(namespace, command, input);
    assert!(finished.status.success(), "{command}: {}", finished.output());
    String::from_utf8_lossy(&finished.stdout).into_owned()
}

#[track_caller]
pub(crate) fn typed(namespace: &Namespace, command: &str) -> String {
    typed_with(namespace, command, "")
}

/// What `iptables-save` prints, without times and counters.
#[track_caller]
fn saved(namespace: &Namespace, program: &str) -> String {
    let text = typed(namespace, &format!("{program}-save"));
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(" [").next().unwrap_or_default().to_owned() + "\n").collect()
}

/// A host with the rules of both programs.
fn host() -> Namespace {
    let namespace = Namespace::new("host").unwrap_or_else(|error| panic!("{error}"));
    for (program, _) in PROGRAMS {
        RULES.iter().for_each(|rule| drop(typed(&namespace, &format!("{program} {rule}"))));
    }
    namespace
}

const ADMIT: &str = "admit: [ip filter INPUT, ip filter FORWARD, ip filter f2b-vsftpd, ip6 filter INPUT, ip6 filter FORWARD, ip6 filter f2b-vsftpd]\n";
const CHAINS: [&str; 3] = ["INPUT", "FORWARD", "f2b-vsftpd"];

fn start(namespace: &Namespace) -> Daemon {
    Daemon::start(namespace, ADMIT).unwrap_or_else(|error| panic!("{error}"))
}

/// Whether the accept rule is the first one of the chain, and nowhere else in it.
#[track_caller]
fn is_on_top(namespace: &Namespace, program: &str, chain: &str) -> bool {
    let rules = typed(namespace, &format!("{program} -S {chain}"));
    let rules: Vec<&str> = rules.lines().filter(|line| line.starts_with("-A")).collect();
    let is_ours = |rule: &&&str| rule.contains("pinhole");
    rules.first().is_some_and(|first| *first == format!("-A {chain} {RULE}"))
        && rules.iter().filter(is_ours).count() == 1
}

#[track_caller]
fn wait_until_on_top(namespace: &Namespace) {
    for (program, _) in PROGRAMS {
        for chain in CHAINS {
            let is_there = || Ok(is_on_top(namespace, program, chain));
            wait_until("the accept rule to be on top", TIMEOUT, is_there)
                .unwrap_or_else(|error| panic!("{error}:\n{}", typed(namespace, &format!("{program} -S"))));
        }
    }
}

#[test]
fn iptables_lists_saves_and_checks_the_accept_rule() {
    let namespace = host();
    let before = PROGRAMS.map(|(program, _)| saved(&namespace, program));
    let mut daemon = start(&namespace);
    for ((program, _), before) in PROGRAMS.iter().zip(&before) {
        for chain in CHAINS {
            assert!(is_on_top(&namespace, program, chain), "{}", typed(&namespace, &format!("{program} -S")));
            assert!(typed(&namespace, &format!("{program} -n -L {chain}")).contains("pinhole"));
            typed(&namespace, &format!("{program} -C {chain} {RULE}"));
        }
        let now = saved(&namespace, program);
        let others: String = now.split_inclusive('\n').filter(|line| !line.contains("pinhole")).collect();
        assert_eq!((&others, now.lines().count()), (before, before.lines().count() + CHAINS.len()));
    }
    daemon.end(Signal::SIGTERM).expect("it ends");
    assert_eq!(PROGRAMS.map(|(program, _)| saved(&namespace, program)), before, "nothing is left");
}

#[test]
fn accept_rule_returns_to_the_top_of_an_iptables_chain() {
    let namespace = host();
    let _daemon = start(&namespace);
    for (program, _) in PROGRAMS {
        let changes = [
            format!("{program} -I INPUT -p tcp -m multiport --dports 21,990 -j f2b-vsftpd"),
            format!("{program} -D INPUT {RULE}"),
            format!("{program} -D FORWARD 1"),
            format!("{program} -F f2b-vsftpd"),
            format!("{program} -A f2b-vsftpd -j RETURN"),
        ];
        for change in changes {
            typed(&namespace, &change);
            wait_until_on_top(&namespace);
        }
        // What fail2ban asks before each ban, and its end.
        assert!(typed(&namespace, &format!("{program} -n -L INPUT")).contains("f2b-vsftpd"));
        typed(&namespace, &format!("{program} -D INPUT -p tcp -m multiport --dports 21,990 -j f2b-vsftpd"));
        wait_until_on_top(&namespace);
    }
}

#[test]
fn saved_and_restored_accept_rule_is_recognised() {
    let namespace = host();
    let before = PROGRAMS.map(|(program, _)| saved(&namespace, program));
    let mut daemon = start(&namespace);
    let with_rule = PROGRAMS.map(|(program, _)| typed(&namespace, &format!("{program}-save -c")));
    let restore = |more: &str| {
        for ((program, _), saved) in PROGRAMS.iter().zip(&with_rule) {
            typed_with(&namespace, &format!("{program}-restore {more}"), saved);
        }
    };
    for more in ["", "-c", "--noflush"] {
        restore(more);
        wait_until_on_top(&namespace);
    }
    // As on the next boot: the rules are there first.
    restore("");
    wait_until_on_top(&namespace);
    daemon.kill().expect("it ends");
    namespace.nft("flush ruleset").expect("it is empty");
    restore("");
    daemon.restart().expect("it starts");
    wait_until_on_top(&namespace);
    daemon.end(Signal::SIGTERM).expect("it ends");
    assert_eq!(PROGRAMS.map(|(program, _)| saved(&namespace, program)), before, "nothing is left");
}

#[test]
fn accept_rule_that_iptables_cannot_read_is_replaced() {
    let namespace = host();
    for (_, family) in PROGRAMS {
        namespace
            .nft(&format!(
                "insert rule {family} filter INPUT ct state new,related ct mark & 0x10000000 == 0x10000000 counter accept \
                 comment \"pinhole: announced data connections, mark 0x10000000\""
            ))
            .expect("nft takes the rule");
    }
    assert!(!run(&namespace, "iptables -S", "").status.success(), "iptables reads a rule with `ct`");
    let _daemon = start(&namespace);
    wait_until_on_top(&namespace);
}

#[test]
fn table_that_nft_wrote_gets_a_rule_of_nft() {
    let namespace = Namespace::new("host").unwrap_or_else(|error| panic!("{error}"));
    let rules =
        "chain INPUT {\ntype filter hook input priority filter; policy drop\nct state established counter accept\n}";
    namespace
        .nft(&format!("table ip filter {{\n{rules}\n}}\ntable ip6 filter {{\n{rules}\n}}"))
        .expect("nft takes them");
    let admit = "admit: [ip filter INPUT, ip6 filter INPUT]\n";
    let _daemon = Daemon::start(&namespace, admit).unwrap_or_else(|error| panic!("{error}"));
    for (_, family) in PROGRAMS {
        let listed = namespace.nft_output(&["--debug=netlink", "list", "table", family, "filter"]).expect("nft lists");
        assert!(listed.contains("ct load mark") && !listed.contains("match name"), "{listed}");
    }
}

#[test]
fn advised_iptables_command_is_right() {
    let namespace = host();
    namespace.forward().expect("it forwards");
    let check = || {
        let mut command = namespace.command(PROGRAM);
        command
            .env("PINHOLE_SOCKET", "/nonexistent/pinhole.sock")
            .args(["check", "--policy", "-"])
            .input(b"mechanism: sets\n");
        let found = command.spawn().and_then(|child| child.wait(TIMEOUT)).unwrap_or_else(|error| panic!("{error}"));
        let said = found.output();
        said.lines().filter(|line| line.starts_with("warning")).map(str::to_owned).collect::<Vec<_>>()
    };
    let warnings = check();
    assert_eq!(warnings.len(), 4, "{warnings:#?}");
    for (program, family) in PROGRAMS {
        for chain in ["INPUT", "FORWARD"] {
            let command = format!("{program} -I {chain} 1 {}", own_iptables_rule(Mark::default()));
            let is_about = |line: &&String| line.contains(&format!("chain {family} filter {chain} "));
            let warning = warnings.iter().find(is_about).expect("each chain is reported");
            assert!(warning.contains(&format!("run `{command}`")), "{warning}");
            assert!(warning.contains(&format!("`admit: [{family} filter {chain}]`")), "{warning}");
            typed(&namespace, &command);
        }
    }
    assert_eq!(check(), [""; 0]);
}

/// Lets in control connections and what is established, and nothing else.
fn default_drop(shape: Shape) -> Vec<String> {
    let chains: &[&str] = if shape == Shape::Gateway { &["FORWARD"] } else { &["INPUT", "OUTPUT"] };
    let mut rules: Vec<String> = chains
        .iter()
        .flat_map(|chain| {
            [
                format!("-P {chain} DROP"),
                format!("-A {chain} -p ipv6-icmp -j ACCEPT"),
                format!("-A {chain} -m conntrack --ctstate ESTABLISHED -j ACCEPT"),
            ]
        })
        .collect();
    rules.push(format!("-A {} -p tcp --dport 21 -j ACCEPT", chains[0]));
    rules
}

#[test]
fn data_connections_are_admitted_by_the_iptables_rule() {
    for shape in [Shape::ServerHost, Shape::Gateway] {
        let topology = Topology::new(shape).unwrap_or_else(|error| panic!("{error}"));
        let firewall = &topology.firewall;
        for (program, _) in PROGRAMS {
            default_drop(shape).iter().for_each(|rule| drop(typed(firewall, &format!("{program} {rule}"))));
        }
        let admit = match shape {
            Shape::Gateway => "[ip filter FORWARD, ip6 filter FORWARD]",
            _ => "[ip filter INPUT, ip filter OUTPUT, ip6 filter INPUT, ip6 filter OUTPUT]",
        };
        let _daemon = Daemon::start(firewall, &format!("admit: {admit}\n")).unwrap_or_else(|error| panic!("{error}"));
        for (family, (program, _)) in Family::ALL.into_iter().zip(PROGRAMS) {
            let address = SocketAddr::new(topology.target.of(family), 21);
            let server = MiniServer::start(&topology.server.namespace, address, MiniOptions::default())
                .unwrap_or_else(|error| panic!("{error}"));
            server.place(FILE, CONTENT);
            for mode in modes(family) {
                let done = topology.client.namespace.run(|| some_transfers(address, *mode)).and_then(|done| done);
                done.unwrap_or_else(|error| panic!("{shape}, {family}, {mode}: {error}"));
            }
            let chain = if shape == Shape::Gateway { "FORWARD" } else { "INPUT" };
            let listed = typed(firewall, &format!("{program} -L {chain} -n -v -x"));
            let first = listed.lines().nth(2).expect("a rule");
            let packets: u64 = first.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a counter");
            // Three transfers in each mode; on a server's host, those of active modes leave by OUTPUT.
            let passive = if family == Family::V4 { 2 } else { 1 };
            let expected = if shape == Shape::Gateway { modes(family).len() } else { passive } * 3;
            assert!(first.contains("pinhole") && packets >= expected as u64, "{listed}");
        }
    }
}
