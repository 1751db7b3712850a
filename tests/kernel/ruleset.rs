//! What is installed for a policy, what `pinhole rules` prints of it, and what a reload changes.
//!
//! Needs root and nft.

use crate::daemon::{Daemon, PROGRAM, TIMEOUT};
use lab::{Finished, Namespace};

fn namespace() -> Namespace {
    Namespace::new("host").unwrap_or_else(|error| panic!("{error}"))
}

fn start(namespace: &Namespace, policy: &str) -> Daemon {
    Daemon::start(namespace, policy).unwrap_or_else(|error| panic!("{error}"))
}

/// The output of `pinhole rules` there.
fn printed(namespace: &Namespace, before: &[&str], arguments: &[&str]) -> String {
    let all = [before, &[PROGRAM, "rules"], arguments].concat();
    let finished = namespace.command(all[0]).args(&all[1..]).output(TIMEOUT).unwrap_or_else(|error| panic!("{error}"));
    String::from_utf8(finished.stdout).expect("text")
}

fn reload(daemon: &Daemon, policy: &str) -> Finished {
    daemon.write_policy(policy);
    daemon.program(&["reload"]).unwrap_or_else(|error| panic!("{error}"))
}

/// A set's size, as nft lists it. Some kernels add one.
fn size(namespace: &Namespace) -> u32 {
    let listed = namespace.nft_output(&["list", "set", "inet", "pinhole", "pinholes4"]).expect("it stands");
    let size = listed.lines().find_map(|line| line.trim().strip_prefix("size "));
    size.and_then(|size| size.parse().ok()).unwrap_or_else(|| panic!("no size in {listed}"))
}

#[test]
fn rules_are_printed_for_this_kernel_or_for_a_named_one() {
    const STATEMENT: &str = "queue flags bypass";
    let namespace = namespace();
    let daemon = start(&namespace, "{}");
    let has_statement = daemon.status()["queued_by"] == "nft_queue";
    let here = printed(&namespace, &[], &[]);
    assert!(here.starts_with("# What `pinhole run` installs on this kernel that queues by "), "{here}");
    assert_eq!(here.contains(&format!("\t\t{STATEMENT}")), has_statement, "{here}");
    assert!(printed(&namespace, &[], &["--queueing", "statement"]).contains(&format!("\t\t{STATEMENT}")));
    let target = printed(&namespace, &[], &["--queueing", "target"]);
    assert!(!target.contains(&format!("\t\t{STATEMENT}")) && target.contains("target NFQUEUE of iptables"), "{target}");
    // Without the permission to query the kernel, the output says that the kernel was not queried.
    let unasked = printed(&namespace, &["setpriv", "--bounding-set=-net_admin"], &[]);
    assert!(unasked.lines().next().is_some_and(|line| line.contains("this one was not asked")), "{unasked}");
    assert!(unasked.contains(&format!("\t\t{STATEMENT}")));
}

#[test]
fn set_sizes_follow_the_policy_at_the_latest_after_a_restart() {
    let namespace = namespace();
    let daemon = start(&namespace, "{}");
    assert!((65_535..=65_536).contains(&size(&namespace)));
    let more = "limits: { pinholes: 100000 }\n";
    let reloaded = reload(&daemon, more);
    assert_eq!(reloaded.status.code(), Some(0), "{}", reloaded.output());
    let mut daemon = daemon;
    daemon.end(nix::sys::signal::Signal::SIGTERM).and_then(|()| daemon.restart()).expect("it starts again");
    assert!((400_000..=400_001).contains(&size(&namespace)));
}

#[test]
fn reload_changes_ports_and_chains_but_not_queues() {
    let namespace = namespace();
    namespace
        .nft("table inet filter { chain one { type filter hook input priority 0; }; chain two {}; }")
        .expect("the rules are right");
    let daemon = start(&namespace, "admit: [inet filter one]\n");
    let chain = |name: &str| namespace.nft_output(&["list", "chain", "inet", "filter", name]).expect("it stands");
    assert!(chain("one").contains("pinhole: announced"));

    let done = reload(&daemon, "admit: [inet filter two]\ncontrol_ports: [21, 2121]\nmark: 0x20000000\n");
    assert_eq!(done.status.code(), Some(0), "{}", done.output());
    assert!(!chain("one").contains("pinhole") && chain("two").contains("mark 0x20000000"));
    let ports = namespace.nft_output(&["list", "set", "inet", "pinhole", "control_ports"]).expect("it stands");
    assert!(ports.contains("elements = { 21, 2121 }"), "{ports}");

    let before = namespace.nft_output(&["-s", "list", "ruleset"]).expect("nft lists");
    let refused = reload(&daemon, "capture: { queue: 7 }\n");
    assert_eq!(refused.status.code(), Some(2), "{}", refused.output());
    let said = refused.output();
    assert!(said.contains("systemctl restart pinhole") && said.contains("the old policy stays in force"), "{said}");
    assert_eq!(namespace.nft_output(&["-s", "list", "ruleset"]).expect("nft lists"), before);
}

#[test]
fn table_of_another_version_is_replaced_and_elements_stay() {
    let namespace = namespace();
    let old = "table inet pinhole {
        set pinholes4 {
            type ipv4_addr . ipv4_addr . inet_service
            flags dynamic, timeout
            elements = { 192.0.2.1 . 192.0.2.2 . 4001 timeout 1h, 192.0.2.1 . 192.0.2.2 . 4002 timeout 1h }
        }
        chain admit { ct mark set ct mark | 0x10000000; }
        chain prerouting {
            type filter hook prerouting priority -150;
            ip saddr . ip daddr . tcp dport @pinholes4 goto admit
        }
    }";
    namespace.nft(old).expect("the rules are right");
    let policy = "mechanism: sets\ndefaults: { third_party: allow }\n";
    let daemon = start(&namespace, policy);
    let status = daemon.status();
    assert_eq!((&status["kernel_pinholes"], &status["counters"]["adopted"]), (&2.into(), &2.into()), "{status}");
    let listed = namespace.nft_output(&["list", "set", "inet", "pinhole", "pinholes4"]).expect("it stands");
    assert!(!listed.contains("dynamic") && listed.contains("192.0.2.1 . 192.0.2.2 . 4001"), "{listed}");
    assert_eq!(status["counters"]["kernel_errors"], 0);
}
