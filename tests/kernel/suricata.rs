//! Pinhole beside Suricata, an IDS that reads queues of its own and drops what its rules say.
//!
//! Needs root, nft, and iptables and Suricata, which the lab has.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lab::mini::{MiniClient, MiniOptions, MiniServer};
use lab::nat::{Nat, NatTopology};
use lab::{Child, Family, Namespace, Shape, Topology, tools, wait_until};
use nix::sys::signal::Signal;
use pinhole::core::ftp::Mode;
use pinhole::core::kernel::Mark;
use pinhole::netfilter::table::own_iptables_rule;
use serde_json::Value;

use crate::daemon::{self, Daemon, PROGRAM, TIMEOUT, with_mechanism};
use crate::filtered_topology::{CONTENT, FILE, FilteredTopology, modes, policy, some_transfers};
use crate::iptables::typed;

/// The queue that Suricata reads.
const QUEUE: u16 = 50;
/// How long Suricata may take to start on a busy machine: it reads its configuration and prepares its rules.
const START: Duration = TIMEOUT.saturating_mul(4);
/// How long a transfer waits that must not work.
const SHORT: Duration = Duration::from_secs(1);

/// Suricata with Debian's configuration, as an IPS in a namespace. It ends when dropped.
struct Suricata {
    child: Child,
    folder: PathBuf,
}

impl Suricata {
    /// Starts it with these rules, and waits until it reads its queue. Each setting is `KEY=VALUE` of its configuration.
    fn start(namespace: &Namespace, rules: &str, settings: &[&str]) -> Self {
        let mut suricata = Self::launch(namespace, QUEUE, rules, settings);
        let reads = || {
            assert!(suricata.child.is_running()?, "Suricata ended: {}", suricata.child.output());
            Ok(is_read(namespace, QUEUE))
        };
        wait_until("Suricata to read its queue", START, reads).unwrap_or_else(|error| panic!("{error}"));
        suricata
    }

    fn launch(namespace: &Namespace, queue: u16, rules: &str, settings: &[&str]) -> Self {
        let folder = daemon::new_folder();
        fs::write(folder.join("local.rules"), rules).expect("a file can be written");
        let program = tools::with_own_loader("suricata", "usr/bin/suricata").unwrap_or_else(|error| panic!("{error}"));
        let etc = tools::cache().join("suricata/etc/suricata");
        let mut command = namespace.command(&program[0]);
        command.args(&program[1..]).args(["-q", &queue.to_string(), "--set", "unix-command.enabled=no"]);
        command
            .arg("-c")
            .arg(etc.join("suricata.yaml"))
            .arg("-S")
            .arg(folder.join("local.rules"))
            .arg("-l")
            .arg(&folder);
        for file in ["classification", "reference"] {
            command
                .arg("--set")
                .arg(format!("{file}-config-file={}", etc.join(file).with_extension("config").display()));
        }
        command.arg("--set").arg(format!("threshold-file={}", etc.join("threshold.config").display()));
        for setting in settings {
            command.args(["--set", setting]);
        }
        Self { child: command.spawn().unwrap_or_else(|error| panic!("{error}")), folder }
    }

    /// Ends it, so that it writes its log to the end.
    fn stop(&mut self) {
        self.child.signal(Signal::SIGTERM).unwrap_or_else(|error| panic!("{error}"));
        let has_ended = || Ok(!self.child.is_running()?);
        wait_until("Suricata to end", START, has_ended).unwrap_or_else(|error| panic!("{error}"));
    }

    /// What it has logged of that type.
    fn events(&self, kind: &str) -> Vec<Value> {
        let log = fs::read_to_string(self.folder.join("eve.json")).unwrap_or_default();
        // The last line may not be complete yet.
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| event["event_type"] == kind).collect()
    }

    /// How often it has logged that command of FTP, and that command's data connection.
    fn count(&self, command: &str) -> [usize; 2] {
        [("ftp", command), ("ftp_data", command)]
            .map(|(kind, command)| self.events(kind).iter().filter(|event| event[kind]["command"] == command).count())
    }
}

impl Drop for Suricata {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Whether a program reads the queue.
fn is_read(namespace: &Namespace, queue: u16) -> bool {
    // Missing until the kernel has loaded its module.
    let list = namespace.read("/proc/thread-self/net/netfilter/nfnetlink_queue").unwrap_or_default();
    list.lines().any(|line| line.split_whitespace().next() == Some(&*queue.to_string()))
}

/// For IPv4 and IPv6.
fn iptables(namespace: &Namespace, rule: &str) {
    for program in ["iptables", "ip6tables"] {
        typed(namespace, &format!("{program} {rule}"));
    }
}

/// The warnings of `pinhole check`, and its problems.
fn checked(namespace: &Namespace, policy: &str) -> Vec<String> {
    let mut command = namespace.command(PROGRAM);
    command.args(["check", "--policy", "-"]).input(with_mechanism(policy).as_bytes());
    command.env("PINHOLE_SOCKET", "/nonexistent/pinhole.sock");
    let finished = command.spawn().and_then(|child| child.wait(TIMEOUT)).unwrap_or_else(|error| panic!("{error}"));
    let text = String::from_utf8_lossy(&finished.stdout).into_owned();
    text.lines().filter(|line| line.starts_with("warning") || line.starts_with("problem")).map(str::to_owned).collect()
}

/// With Suricata's queue at these rules of iptables, [`assert_transfers_pass_both`].
#[track_caller]
fn assert_both_work(rules: &[&str], settings: &[&str]) {
    let fixture = FilteredTopology::new(Shape::Gateway);
    rules.iter().for_each(|rule| iptables(fixture.firewall(), rule));
    assert_transfers_pass_both(&fixture, settings);
}

/// Transfers in every mode pass a filter that drops by default, and Suricata sees each. Neither `check` nor the log warns.
#[track_caller]
fn assert_transfers_pass_both(fixture: &FilteredTopology, settings: &[&str]) {
    let mut suricata = Suricata::start(fixture.firewall(), "", settings);
    let warnings = checked(fixture.firewall(), &policy(fixture.topology.shape, ""));
    assert_eq!(warnings, [""; 0]);
    let daemon = fixture.daemon("");
    let mut transfers = 0;
    for family in Family::ALL {
        let server = fixture.serve(family);
        for &mode in modes(family) {
            fixture.as_client(|| some_transfers(server.address(), mode));
            transfers += 1;
        }
    }
    // A listing, a download and an upload each.
    assert_eq!(daemon.counted("used"), 3 * transfers);
    let said = daemon.child.output();
    assert!(!said.contains("overwrites") && !said.contains(" to queue "), "{said}");
    suricata.stop();
    let expected = usize::try_from(transfers).expect("a few");
    for command in ["RETR", "STOR"] {
        assert_eq!(suricata.count(command), [expected; 2], "{command}: {}", suricata.child.output());
    }
}

#[test]
fn documented_queue_for_suricata_passes_transfers() {
    let page = include_str!("../../docs/howto/ids.md");
    let start = page.find("table inet ids {").expect("the page has a table");
    let table = page[start..].split("```").next().expect("it ends");
    let gateway = FilteredTopology::new(Shape::Gateway);
    if gateway.firewall().nft(table).is_err() {
        lab::kernel_lacks("the statement `queue`");
        iptables(gateway.firewall(), "-t security -A FORWARD -j NFQUEUE --queue-num 50 --queue-bypass");
    }
    assert_transfers_pass_both(&gateway, &[]);
    let host = FilteredTopology::new(Shape::ServerHost);
    for chain in ["INPUT", "OUTPUT"] {
        iptables(host.firewall(), &format!("-t mangle -A {chain} -j NFQUEUE --queue-num 50 --queue-bypass"));
    }
    assert_transfers_pass_both(&host, &[]);
}

#[test]
fn suricata_may_read_before_pinhole() {
    assert_both_work(&["-t raw -A PREROUTING -j NFQUEUE --queue-num 50"], &[]);
    assert_both_work(
        &["-t raw -A PREROUTING -m mark ! --mark 1/1 -j NFQUEUE --queue-num 50"],
        &["nfq.mode=repeat", "nfq.repeat-mark=1", "nfq.repeat-mask=1"],
    );
}

#[test]
fn suricata_may_read_after_pinhole() {
    assert_both_work(&["-t mangle -A PREROUTING -j NFQUEUE --queue-num 50"], &[]);
    assert_both_work(&["-t mangle -A FORWARD -j NFQUEUE --queue-num 50"], &[]);
    assert_both_work(
        &["-t mangle -A FORWARD -m mark ! --mark 1/1 -j NFQUEUE --queue-num 50"],
        &["nfq.mode=repeat", "nfq.repeat-mark=1", "nfq.repeat-mask=1"],
    );
}

#[test]
fn suricata_may_save_its_own_bit_in_the_connections_mark() {
    let settings = ["nfq.bypass-mark=1", "nfq.bypass-mask=1", "stream.bypass=yes"];
    let queue = "-t mangle -A FORWARD -m mark ! --mark 1/1 -j NFQUEUE --queue-num 50";
    let rules = |mask: &str| {
        [
            queue.to_owned(),
            format!("-t mangle -A PREROUTING -j CONNMARK --restore-mark {mask}"),
            format!("-t mangle -A POSTROUTING -j CONNMARK --save-mark {mask}"),
        ]
    };
    assert_both_work(&rules("--nfmask 1 --ctmask 1").each_ref().map(|rule| &**rule), &settings);
    // Without masks, as Suricata's documentation has it, all bits are saved; only that rule is at fault.
    let fixture = FilteredTopology::new(Shape::Gateway);
    rules("").iter().skip(1).for_each(|rule| iptables(fixture.firewall(), rule));
    let warnings = checked(fixture.firewall(), &policy(Shape::Gateway, ""));
    let are_named = warnings.iter().all(|line| line.contains("mangle POSTROUTING") && line.contains("--save-mark"));
    assert!(warnings.len() == 2 && are_named, "{warnings:#?}");
}

/// Suricata may hand packets on to another queue, also to one of Pinhole's: those are read twice.
#[test]
fn suricata_may_route_packets_to_another_queue() {
    let rule = "-t mangle -A FORWARD -j NFQUEUE --queue-num 50";
    assert_both_work(&[rule], &["nfq.mode=route", "nfq.route-queue=0"]);
}

#[test]
fn line_that_suricata_drops_opens_nothing() {
    let drop = "drop tcp any any -> any 21 (msg:\"active mode\"; content:\"PORT \"; sid:1; rev:1;)";
    // The chain, and whether Pinhole reads the line.
    for (chain, is_read) in [("raw -A PREROUTING", false), ("mangle -A FORWARD", true)] {
        let fixture = FilteredTopology::new(Shape::Gateway);
        iptables(fixture.firewall(), &format!("-t {chain} -j NFQUEUE --queue-num 50"));
        let mut suricata = Suricata::start(fixture.firewall(), drop, &[]);
        let daemon = fixture.daemon("");
        let server = fixture.serve(Family::V4);
        fixture.as_client(|| {
            let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
            client.set_timeout(SHORT)?;
            client.download(Mode::Port, FILE).expect_err("Suricata drops the line");
            Ok(())
        });
        // What it does not drop still passes.
        fixture.as_client(|| some_transfers(server.address(), Mode::Eprt));
        assert_eq!(daemon.counted("opened"), 3 + u64::from(is_read), "{chain}");
        suricata.stop();
        let alerts = suricata.events("alert");
        assert!(alerts.iter().any(|alert| alert["alert"]["action"] == "blocked"), "{chain}: {alerts:?}");
    }
}

/// A gateway whose filter is one of iptables, with a default that drops.
struct IptablesGateway {
    topology: Topology,
    server: MiniServer,
}

const ADMIT: &str = "admit: [ip filter FORWARD, ip6 filter FORWARD]\n";

impl IptablesGateway {
    fn new() -> Self {
        let topology = Topology::new(Shape::Gateway).unwrap_or_else(|error| panic!("{error}"));
        for rule in [
            "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "-A FORWARD -p tcp --dport 21 -j ACCEPT",
            "-P FORWARD DROP",
        ] {
            iptables(&topology.firewall, rule);
        }
        let address = SocketAddr::new(topology.target.of(Family::V4), 21);
        let server = MiniServer::start(&topology.server.namespace, address, MiniOptions::default())
            .unwrap_or_else(|error| panic!("{error}"));
        server.place(FILE, CONTENT);
        Self { topology, server }
    }

    fn daemon(&self, policy: &str) -> Daemon {
        Daemon::start(&self.topology.firewall, policy).unwrap_or_else(|error| panic!("{error}"))
    }

    fn transfer(&self, mode: Mode, within: Duration) -> lab::Result<()> {
        let transfer = || {
            let mut client = MiniClient::log_in(self.server.address(), TIMEOUT)?;
            client.set_timeout(within)?;
            assert_eq!(client.download(mode, FILE)?, CONTENT, "{mode}");
            Ok(())
        };
        self.topology.client.namespace.run(transfer)?
    }

    #[track_caller]
    fn assert_transfers_work(&self) {
        for &mode in modes(Family::V4) {
            self.transfer(mode, TIMEOUT).unwrap_or_else(|error| panic!("{mode}: {error}"));
        }
    }
}

#[test]
fn queue_below_the_accept_rule_is_named() {
    let gateway = IptablesGateway::new();
    let firewall = &gateway.topology.firewall;
    iptables(firewall, "-I FORWARD 1 -j NFQUEUE --queue-num 50");
    let _suricata = Suricata::start(firewall, "", &[]);
    let warnings = checked(firewall, ADMIT);
    let is_named =
        |line: &String| line.contains("data connections to queue 50 (read by Suricata") && line.contains("ids.md");
    assert!(warnings.len() == 2 && warnings.iter().all(is_named), "{warnings:#?}");
    let daemon = gateway.daemon(ADMIT);
    daemon.wait_for_log("without their SYN, which the accept rule above it admits", 2);
    // Suricata drops the SYN-ACK of a connection whose SYN it has not seen.
    gateway.transfer(Mode::Pasv, SHORT).expect_err("Suricata drops the data connection");
    // As advised.
    iptables(firewall, "-D FORWARD -j NFQUEUE --queue-num 50");
    iptables(firewall, "-t mangle -A FORWARD -j NFQUEUE --queue-num 50");
    gateway.assert_transfers_work();
    drop(daemon);
    assert_eq!(checked(firewall, ADMIT), [""; 0]);
}

#[test]
fn own_accept_rule_may_follow_the_queue_in_repeat_mode() {
    let gateway = IptablesGateway::new();
    let firewall = &gateway.topology.firewall;
    iptables(firewall, &format!("-I FORWARD 1 {}", own_iptables_rule(Mark::default())));
    iptables(firewall, "-I FORWARD 1 -m mark ! --mark 1/1 -j NFQUEUE --queue-num 50");
    let mut suricata = Suricata::start(firewall, "", &["nfq.mode=repeat", "nfq.repeat-mark=1", "nfq.repeat-mask=1"]);
    assert_eq!(checked(firewall, "admit: []\n"), [""; 0]);
    let _daemon = gateway.daemon("admit: []\n");
    gateway.assert_transfers_work();
    suricata.stop();
    assert_eq!(suricata.count("RETR"), [modes(Family::V4).len(); 2]);
}

#[test]
fn queue_that_suricata_reads_is_named() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let firewall = fixture.firewall();
    let on = |queue: u16| policy(Shape::Gateway, &format!("capture: {{ queue: {queue}, queues: 1 }}\n"));
    {
        let _suricata = Suricata::start(firewall, "", &[]);
        let problems = checked(firewall, &on(QUEUE));
        assert!(problems.len() == 1 && problems[0].contains("read by Suricata-Main (process"), "{problems:#?}");
        let folder = daemon::new_folder();
        fs::write(folder.join("policy.yaml"), with_mechanism(&on(QUEUE))).expect("a policy can be written");
        let run = daemon::service(firewall, &folder, "info").spawn().and_then(|child| child.wait(TIMEOUT));
        let run = run.unwrap_or_else(|error| panic!("{error}"));
        let _ = fs::remove_dir_all(folder);
        let said = run.output();
        assert_eq!(run.status.code(), Some(1), "{said}");
        assert!(
            said.contains("it is read by Suricata-Main (process") && said.contains("capture: { queue: 51 }"),
            "{said}"
        );
    }
    // The other way round, Suricata ends and Pinhole goes on.
    wait_until("the queue to be free", TIMEOUT, || Ok(!is_read(firewall, QUEUE)))
        .unwrap_or_else(|error| panic!("{error}"));
    let _daemon = Daemon::start(firewall, &on(QUEUE)).unwrap_or_else(|error| panic!("{error}"));
    let late = Suricata::launch(firewall, QUEUE, "", &[]);
    wait_until("Suricata to find its queue taken", START, || {
        Ok(late.child.output().contains("nfq_create_queue failed"))
    })
    .unwrap_or_else(|error| panic!("{error}: {}", late.child.output()));
    let server = fixture.serve(Family::V4);
    fixture.as_client(|| some_transfers(server.address(), Mode::Pasv));
}

/// Suricata's queue is between the place where Pinhole rewrites a line and the one where the kernel adjusts the sequence
/// numbers of later lines. By default Suricata then replaces bytes of these.
///
/// Not with `native`: see the table in compatibility.md.
#[test]
fn rewritten_lines_pass_suricata_as_documented_without_helper() {
    let (_, settings) = include_str!("../../docs/howto/ids.md").split_once("```yaml\nstream:\n").expect("it is there");
    assert!(settings.starts_with("  inline: no\n"), "{settings}");
    for nat in [Nat::Masquerade, Nat::Dnat] {
        let topology = NatTopology::new(nat).unwrap_or_else(|error| panic!("{error}"));
        let gateway = &topology.gateways[0];
        gateway.namespace.nft(gateway.rules.text).unwrap_or_else(|error| panic!("{error}"));
        iptables(&gateway.namespace, "-t mangle -A FORWARD -j NFQUEUE --queue-num 50");
        let mut suricata = Suricata::start(&gateway.namespace, "", &["stream.inline=no"]);
        let warnings = checked(&gateway.namespace, &gateway.rules.policy());
        let are_named =
            warnings.iter().all(|line| line.contains("mangle FORWARD") && line.contains("`stream: inline: no`"));
        assert!(warnings.len() == 2 && are_named, "{nat}: {warnings:#?}");
        let policy = gateway.rules.policy();
        let daemon = Daemon::start(&gateway.namespace, &policy).unwrap_or_else(|error| panic!("{error}"));
        let address = SocketAddr::new(topology.server.addresses.of(Family::V4), 21);
        let server = MiniServer::start(&topology.server.namespace, address, MiniOptions::default())
            .unwrap_or_else(|error| panic!("{error}"));
        server.place(FILE, CONTENT);
        let target = SocketAddr::new(topology.target.of(Family::V4), 21);
        for &mode in modes(Family::V4) {
            let done = topology.client.namespace.run(|| some_transfers(target, mode)).and_then(|done| done);
            done.unwrap_or_else(|error| panic!("{nat}, {mode}: {error}"));
        }
        assert_eq!(daemon.counted("used"), 12, "{nat}");
        suricata.stop();
        assert!(suricata.count("RETR")[0] > 0, "{nat}: {}", suricata.child.output());
    }
}

#[test]
fn transfers_go_on_without_suricata_where_its_queue_is_bypassed() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    iptables(fixture.firewall(), "-t mangle -A FORWARD -j NFQUEUE --queue-num 50 --queue-bypass");
    let mut suricata = Suricata::start(fixture.firewall(), "", &[]);
    let _daemon = fixture.daemon("");
    let server = fixture.serve(Family::V4);
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT);
        suricata.stop();
        for &mode in modes(Family::V4) {
            assert_eq!(client.download(mode, FILE)?, CONTENT, "{mode}");
        }
        client.quit()
    });
    assert_eq!(
        checked(fixture.firewall(), &policy(Shape::Gateway, "")).iter().filter(|line| line.contains("chain")).count(),
        0
    );
}
