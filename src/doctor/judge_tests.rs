use std::path::PathBuf;

use super::*;
use crate::netfilter::backend::sets;
use crate::netfilter::readers::Process;

/// A host on which all is well and nothing is loaded.
fn good() -> HostState {
    HostState {
        privileges: Privileges { is_root: true, may_administer: true },
        nft: Nft::There { path: PathBuf::from("/usr/sbin/nft"), version: "nftables v1.0.6 (Lester Gooch #5)".into() },
        daemon: DaemonState::NotRunning,
        kernel: Some(KernelFeatures {
            nf_tables: Ok(()),
            queueing: Ok(Some(Queueing::Statement)),
            takes_ruleset: Ok(()),
            mechanism: Ok(Choice { profile: &sets::PROFILE, because: "as the policy says".to_owned() }),
            reads_queues: Ok(()),
            conntrack: Ok(()),
            readers: Vec::new(),
            own_table: None,
            ruleset: Ok(Ruleset::default()),
            legacy: Vec::new(),
            forwards: true,
            helper: Helper::default(),
        }),
    }
}

fn change(change: impl FnOnce(&mut KernelFeatures)) -> HostState {
    let mut host = good();
    change(host.kernel.as_mut().expect("it was looked at"));
    host
}

/// A ruleset with a base chain for each of these hooks, with that policy.
fn filter(chains: &[(&str, &str)]) -> Ruleset {
    let chains: Vec<String> = chains
        .iter()
        .map(|(hook, policy)| {
            format!(
                r#"{{"chain": {{"family": "inet", "table": "filter", "name": "{hook}", "handle": 1, "type": "filter",
                "hook": "{hook}", "prio": 0, "policy": "{policy}"}}}}"#
            )
        })
        .collect();
    Ruleset::parse(&format!(r#"{{"nftables": [{}]}}"#, chains.join(", "))).expect("a ruleset")
}

fn admitting(chains: &[&str]) -> Policy {
    let mut policy = Policy::embedded();
    policy.admit = chains.iter().map(|chain| chain.parse().expect("a chain")).collect();
    policy
}

/// What is not as it should be, as lines.
fn troubles(policy: &Policy, host: &HostState) -> Vec<String> {
    let troubles = judge(policy, host).into_iter().filter(|finding| finding.severity != Rating::Ok);
    troubles.map(|finding| finding.to_string()).collect()
}

fn only_trouble(policy: &Policy, host: &HostState) -> String {
    match troubles(policy, host).as_slice() {
        [trouble] => trouble.clone(),
        others => panic!("not one trouble: {others:#?}"),
    }
}

#[test]
fn a_good_host_has_no_troubles() {
    assert_eq!(troubles(&Policy::embedded(), &good()), [""; 0]);
}

#[test]
fn who_is_not_root_is_told_so_and_nothing_else() {
    let host = HostState { privileges: Privileges { is_root: false, may_administer: false }, kernel: None, ..good() };
    let trouble = only_trouble(&Policy::embedded(), &host);
    assert!(trouble.starts_with("problem  privileges: not root") && trouble.contains("sudo"), "{trouble}");
}

#[test]
fn nft_must_be_there_and_not_too_old() {
    let host = HostState { nft: Nft::Missing, ..good() };
    assert!(only_trouble(&Policy::embedded(), &host).contains("install the package nftables"));
    let there = |version: &str| HostState {
        nft: Nft::There { path: PathBuf::from("/sbin/nft"), version: version.to_owned() },
        ..good()
    };
    assert!(only_trouble(&Policy::embedded(), &there("nftables v0.9.8 (E.D.S.)")).contains("too old"));
    assert_eq!(troubles(&Policy::embedded(), &there("nftables v1.1.3 (Commodore Bullmoose #4)")), [""; 0]);
}

#[test]
fn a_kernel_that_cannot_queue_is_a_problem_with_a_remedy() {
    let trouble = only_trouble(&Policy::embedded(), &change(|kernel| kernel.queueing = Ok(None)));
    assert!(trouble.starts_with("problem  queueing rule") && trouble.contains("nft_queue"), "{trouble}");
    let trouble = only_trouble(&Policy::embedded(), &change(|kernel| kernel.conntrack = Err("no".into())));
    assert!(trouble.contains("nf_conntrack_netlink"), "{trouble}");
}

#[test]
fn a_queue_that_is_taken_is_a_problem_unless_we_have_taken_it() {
    let reader = Reader { queue: 0, port_id: 77, process: Some(Process { id: 4711, name: "suricata".into() }) };
    let mut host = change(|kernel| kernel.readers = vec![reader]);
    let trouble = only_trouble(&Policy::embedded(), &host);
    assert!(trouble.starts_with("problem  queue 0: read by suricata (process 4711)"), "{trouble}");
    assert!(trouble.contains("`capture: { queue: 1 }`"), "{trouble}");
    host.daemon = DaemonState::Running(PathBuf::from("/run/pinhole/control.sock"));
    host.kernel.as_mut().expect("a kernel").own_table = Some(vec!["prerouting".into()]);
    assert_eq!(troubles(&Policy::embedded(), &host), [""; 0]);
}

#[test]
fn a_table_of_our_name_may_be_ours_or_not() {
    let with = |chain: &str| change(|kernel| kernel.own_table = Some(vec!["prerouting".into(), chain.into()]));
    assert_eq!(troubles(&Policy::embedded(), &with("queue_failclosed")), [""; 0]);
    let trouble = only_trouble(&Policy::embedded(), &with("input"));
    assert!(
        trouble.starts_with("problem  table inet pinhole: belongs to another program") && trouble.contains("`input`")
    );
}

#[test]
fn a_chain_that_is_not_there_cannot_admit() {
    let host = change(|kernel| kernel.ruleset = Ok(filter(&[("input", "accept")])));
    let trouble = only_trouble(&admitting(&["inet filter forward"]), &host);
    assert!(trouble.starts_with("problem  admit: inet filter forward: the chain does not exist"), "{trouble}");
    assert!(trouble.ends_with("name one of these: inet filter input"), "{trouble}");
}

#[test]
fn a_filter_that_would_drop_is_a_warning_with_the_line_to_add() {
    let host = change(|kernel| kernel.ruleset = Ok(filter(&[("forward", "drop"), ("output", "accept")])));
    let trouble = only_trouble(&Policy::embedded(), &host);
    for part in [
        "warning  chain inet filter forward: would drop",
        "`ct state new,related ct mark & 0x10000000 == 0x10000000 accept`",
        "`admit: [inet filter forward]`",
    ] {
        assert!(trouble.contains(part), "{part} is not in {trouble}");
    }
    assert_eq!(troubles(&admitting(&["inet filter forward"]), &host), [""; 0]);
    let mut elsewhere = host;
    elsewhere.kernel.as_mut().expect("a kernel").forwards = false;
    assert_eq!(troubles(&Policy::embedded(), &elsewhere), [""; 0]);
}

#[test]
fn who_has_seen_to_one_side_is_only_reminded_of_the_other() {
    let host = change(|kernel| kernel.ruleset = Ok(filter(&[("input", "drop"), ("forward", "drop")])));
    let policy = admitting(&["inet filter forward"]);
    assert_eq!(troubles(&policy, &host), [""; 0]);
    let reminded = judge(&policy, &host).iter().any(|finding| {
        finding.check == "chain inet filter input"
            && finding.advice.as_ref().is_some_and(|a| a.starts_with("if this host"))
    });
    assert!(reminded);
}

#[test]
fn the_kernels_own_helper_is_told_of() {
    let helper = Helper { is_loaded: true, is_automatic: false };
    assert_eq!(troubles(&Policy::embedded(), &change(|kernel| kernel.helper = helper)), [""; 0]);
    let helper = Helper { is_automatic: true, ..helper };
    let trouble = only_trouble(&Policy::embedded(), &change(|kernel| kernel.helper = helper));
    assert!(trouble.contains("nf_conntrack_helper=0"), "{trouble}");
}

#[test]
fn iptables_beside_is_told_of() {
    let trouble =
        only_trouble(&Policy::embedded(), &change(|kernel| kernel.legacy = vec!["iptables-legacy -t filter".into()]));
    assert!(trouble.contains("--mark 0x10000000/0x10000000"), "{trouble}");
}
