use std::path::PathBuf;

use super::super::listeners::{Listener, Program};
use super::*;
use crate::netfilter::backend::{native, sets};
use crate::netfilter::netlink::{Connmark, Family, Rule, XtParts};
use crate::netfilter::readers::Process;
use crate::netfilter::table::IptablesTable;

/// A host without problems, on which nothing is loaded.
fn good() -> HostState {
    HostState {
        privileges: Privileges { is_root: true, may_administer: true },
        nft: Nft::There { path: PathBuf::from("/usr/sbin/nft"), version: "nftables v1.0.6 (Lester Gooch #5)".into() },
        daemon: DaemonState::NotRunning,
        kernel: Some(KernelFeatures {
            nf_tables: Ok(()),
            queueing: Ok(Some(Queueing::Statement)),
            needs_preparation: false,
            takes_ruleset: Ok(()),
            mechanism: Ok(Choice { profile: &sets::PROFILE, because: "as the policy says".to_owned() }),
            reads_queues: Ok(()),
            conntrack: Ok(()),
            readers: Vec::new(),
            listeners: Vec::new(),
            own_table: None,
            ruleset: Ok(Ruleset::default()),
            legacy: Vec::new(),
            forwards: true,
            helper: Helper::default(),
            probes: Probes::default(),
        }),
    }
}

fn change(change: impl FnOnce(&mut KernelFeatures)) -> HostState {
    let mut host = good();
    change(host.kernel.as_mut().expect("the kernel was probed"));
    host
}

/// A ruleset with a base chain for each of these hooks and policies. `forward` accepts control connections.
fn filter(chains: &[(&str, &str)]) -> Ruleset {
    let mut objects: Vec<String> = chains
        .iter()
        .map(|(hook, policy)| {
            format!(
                r#"{{"chain": {{"family": "inet", "table": "filter", "name": "{hook}", "handle": 1, "type": "filter",
                "hook": "{hook}", "prio": 0, "policy": "{policy}"}}}}"#
            )
        })
        .collect();
    let control = r#"{"rule": {"family": "inet", "table": "filter", "chain": "forward", "handle": 2, "expr": [{"match": {
        "op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 21}}, {"accept": null}]}}"#;
    objects.push(control.to_owned());
    Ruleset::parse(&format!(r#"{{"nftables": [{}]}}"#, objects.join(", "))).expect("a ruleset")
}

fn admitting(chains: &[&str]) -> Policy {
    let mut policy = Policy::embedded();
    policy.admit = chains.iter().map(|chain| chain.parse().expect("a chain")).collect();
    policy
}

/// The warnings and problems, as lines.
fn not_ok(policy: &Policy, host: &HostState) -> Vec<String> {
    let not_ok = judge(policy, host).into_iter().filter(|finding| finding.severity != Rating::Ok);
    not_ok.map(|finding| finding.to_string()).collect()
}

fn only_finding(policy: &Policy, host: &HostState) -> String {
    match not_ok(policy, host).as_slice() {
        [finding] => finding.clone(),
        others => panic!("not one finding: {others:#?}"),
    }
}

#[test]
fn good_host_has_no_warnings() {
    assert_eq!(not_ok(&Policy::embedded(), &good()), [""; 0]);
}

#[test]
fn missing_root_is_the_only_problem() {
    let host = HostState { privileges: Privileges { is_root: false, may_administer: false }, kernel: None, ..good() };
    let finding = only_finding(&Policy::embedded(), &host);
    assert!(finding.starts_with("problem  privileges: not root") && finding.contains("sudo"), "{finding}");
}

#[test]
fn missing_or_old_nft_is_a_problem() {
    let host = HostState { nft: Nft::Missing, ..good() };
    assert!(only_finding(&Policy::embedded(), &host).contains("install the package nftables"));
    let there = |version: &str| HostState {
        nft: Nft::There { path: PathBuf::from("/sbin/nft"), version: version.to_owned() },
        ..good()
    };
    assert!(only_finding(&Policy::embedded(), &there("nftables v0.9.8 (E.D.S.)")).contains("too old"));
    assert_eq!(not_ok(&Policy::embedded(), &there("nftables v1.1.3 (Commodore Bullmoose #4)")), [""; 0]);
}

#[test]
fn kernel_that_cannot_queue_is_a_problem_with_advice() {
    let finding = only_finding(&Policy::embedded(), &change(|kernel| kernel.queueing = Ok(None)));
    assert!(finding.starts_with("problem  queueing rule") && finding.contains("nft_queue"), "{finding}");
    let finding = only_finding(&Policy::embedded(), &change(|kernel| kernel.conntrack = Err("no".into())));
    assert!(finding.contains("nf_conntrack_netlink"), "{finding}");
}

#[test]
fn saved_ruleset_that_may_not_load_is_reported_with_what_to_do() {
    let about = |change: &HostState| {
        let found = judge(&Policy::embedded(), change).into_iter().map(|finding| finding.to_string());
        found.filter(|line| line.contains("saved rulesets")).collect::<Vec<_>>().join("\n")
    };
    let native = || Ok(Choice { profile: &native::PROFILE, because: "as this kernel can".to_owned() });
    let native_by_target = |kernel: &mut KernelFeatures| {
        (kernel.mechanism, kernel.queueing) = (native(), Ok(Some(Queueing::CompatTarget)));
    };
    for (host, reason) in [
        (change(|kernel| kernel.needs_preparation = true), "no_expectation4"),
        (change(native_by_target), "the target NFQUEUE"),
        (change(|kernel| kernel.mechanism = native()), "nf_conntrack_ftp"),
    ] {
        let line = about(&host);
        assert!(line.contains(reason) && line.contains("`nft list table inet filter`"), "{line}");
    }
    assert!(about(&good()).contains("loads again"), "without NAT there is nothing that nft cannot write");
}

#[test]
fn queue_of_another_program_is_a_problem() {
    let reader = Reader { queue: 0, port_id: 77, process: Some(Process { id: 4711, name: "suricata".into() }) };
    let mut host = change(|kernel| kernel.readers = vec![reader]);
    let finding = only_finding(&Policy::embedded(), &host);
    assert!(finding.starts_with("problem  queue 0: read by suricata (process 4711)"), "{finding}");
    assert!(finding.contains("`capture: { queue: 1 }`"), "{finding}");
    host.daemon = DaemonState::Running(PathBuf::from("/run/pinhole/control.sock"));
    host.kernel.as_mut().expect("a kernel").own_table = Some(vec!["prerouting".into()]);
    assert_eq!(not_ok(&Policy::embedded(), &host), [""; 0]);
}

#[test]
fn table_of_another_program_is_a_problem() {
    let with = |chain: &str| change(|kernel| kernel.own_table = Some(vec!["prerouting".into(), chain.into()]));
    assert_eq!(not_ok(&Policy::embedded(), &with("queue_failclosed")), [""; 0]);
    let finding = only_finding(&Policy::embedded(), &with("input"));
    assert!(
        finding.starts_with("problem  table inet pinhole: belongs to another program") && finding.contains("`input`")
    );
}

#[test]
fn missing_admit_chain_is_a_problem() {
    let host = change(|kernel| kernel.ruleset = Ok(filter(&[("input", "accept")])));
    let finding = only_finding(&admitting(&["inet filter forward"]), &host);
    assert!(finding.starts_with("problem  admit: inet filter forward: the chain does not exist"), "{finding}");
    assert!(finding.ends_with("name one of these: inet filter input"), "{finding}");
}

#[test]
fn filter_that_drops_is_a_warning_with_the_rule_to_add() {
    let host = change(|kernel| kernel.ruleset = Ok(filter(&[("forward", "drop"), ("output", "accept")])));
    let finding = only_finding(&Policy::embedded(), &host);
    for part in [
        "warning  chain inet filter forward: would drop",
        "`ct state new,related ct mark & 0x10000000 == 0x10000000 accept`",
        "`admit: [inet filter forward]`",
    ] {
        assert!(finding.contains(part), "{part} is not in {finding}");
    }
    assert_eq!(not_ok(&admitting(&["inet filter forward"]), &host), [""; 0]);
    let mut elsewhere = host;
    elsewhere.kernel.as_mut().expect("a kernel").forwards = false;
    assert_eq!(not_ok(&Policy::embedded(), &elsewhere), [""; 0]);
}

#[test]
fn filter_that_accepts_on_one_side_is_only_advised() {
    let host = change(|kernel| kernel.ruleset = Ok(filter(&[("input", "drop"), ("forward", "drop")])));
    let policy = admitting(&["inet filter forward"]);
    assert_eq!(not_ok(&policy, &host), [""; 0]);
    let reminded = judge(&policy, &host).iter().any(|finding| {
        finding.check == "chain inet filter input"
            && finding.advice.as_ref().is_some_and(|a| a.starts_with("if this host"))
    });
    assert!(reminded);
}

#[test]
fn mark_that_is_accepted_for_the_wrong_connections_is_a_warning() {
    let program = Program { name: "vsftpd".to_owned(), is_ftp_server: true, has_connections: false };
    let host = change(|kernel| {
        kernel.ruleset = Ok(filter(&[("input", "drop"), ("forward", "drop")]));
        kernel.listeners = vec![Listener { port: 21, program: Some(program) }];
    });
    let findings = not_ok(&admitting(&["inet filter forward"]), &host);
    let is_found = |finding: &String| {
        finding.starts_with("warning  chain inet filter input: would drop data connections")
            && finding.contains("the server is on this host")
            && finding.contains("`admit: [inet filter input]`")
    };
    assert!(findings.iter().any(is_found), "{findings:#?}");
    // The other way round: rules forward control connections.
    let host = change(|kernel| kernel.ruleset = Ok(filter(&[("input", "drop"), ("forward", "drop")])));
    let finding = only_finding(&admitting(&["inet filter input"]), &host);
    assert!(
        finding.contains("chain inet filter forward") && finding.contains("forward control connections"),
        "{finding}"
    );
}

#[test]
fn kernels_helper_is_reported() {
    let helper = Helper { is_loaded: true, is_automatic: false };
    assert_eq!(not_ok(&Policy::embedded(), &change(|kernel| kernel.helper = helper)), [""; 0]);
    let helper = Helper { is_automatic: true, ..helper };
    let finding = only_finding(&Policy::embedded(), &change(|kernel| kernel.helper = helper));
    assert!(finding.contains("nf_conntrack_helper=0"), "{finding}");
}

#[test]
fn legacy_iptables_is_reported() {
    let finding =
        only_finding(&Policy::embedded(), &change(|kernel| kernel.legacy = vec!["iptables-legacy -t filter".into()]));
    assert!(finding.contains("--mark 0x10000000/0x10000000"), "{finding}");
}

/// A table of iptables-nft whose chain `INPUT` drops by default, with these statements in its rule.
fn iptables(family: &str, rule: &str, connmark: Option<Connmark>) -> Ruleset {
    let chain = format!(r#""family": "{family}", "table": "filter""#);
    let text = format!(
        r#"{{"nftables": [{{"chain": {{{chain}, "name": "INPUT", "handle": 1, "type": "filter", "hook": "input",
        "prio": 0, "policy": "drop"}}}}, {{"rule": {{{chain}, "chain": "INPUT", "handle": 2, "expr": [{rule}]}}}}]}}"#
    );
    let family = if family == "ip6" { Family::Ip6 } else { Family::Ip };
    let rule = Rule {
        chain: "INPUT".into(),
        handle: 2,
        comment: None,
        is_readable_by_iptables: true,
        has_counter: true,
        xt: XtParts { connmark, ..XtParts::default() },
    };
    let table = IptablesTable { family, name: "filter", rules: vec![rule] };
    Ruleset::parse(&text).expect("a ruleset").with_iptables(&[table])
}

const CONNTRACK: &str = r#"{"xt": {"type": "match", "name": "conntrack"}}, {"counter": {"packets": 0, "bytes": 0}}"#;

#[test]
fn iptables_chain_that_drops_is_a_warning_with_the_command() {
    for (family, program) in [("ip", "iptables"), ("ip6", "ip6tables")] {
        let host =
            change(|kernel| kernel.ruleset = Ok(iptables(family, &format!("{CONNTRACK}, {{\"drop\": null}}"), None)));
        let finding = only_finding(&Policy::embedded(), &host);
        let command = format!(
            "run `{program} -I INPUT 1 -m conntrack --ctstate NEW,RELATED -m connmark --mark 0x10000000/0x10000000 \
             -j ACCEPT`, or let Pinhole add it: `admit: [{family} filter INPUT]`"
        );
        assert!(finding.ends_with(&command), "{finding}");
        assert_eq!(not_ok(&admitting(&[&format!("{family} filter INPUT")]), &host), [""; 0]);
    }
}

#[test]
fn iptables_rule_for_the_mark_accepts() {
    let accept = format!("{CONNTRACK}, {{\"accept\": null}}");
    let with = |connmark| change(|kernel| kernel.ruleset = Ok(iptables("ip", &accept, Some(connmark))));
    let connmark = Connmark { value: 0x1000_0000, mask: 0x1000_0000, is_inverted: false };
    assert_eq!(not_ok(&Policy::embedded(), &with(connmark)), [""; 0]);
    for other in [Connmark { value: 1, mask: 1, ..connmark }, Connmark { is_inverted: true, ..connmark }] {
        let finding = only_finding(&Policy::embedded(), &with(other));
        assert!(finding.starts_with("warning  chain ip filter INPUT: would drop"), "{finding}");
    }
}
