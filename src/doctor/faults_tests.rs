use super::*;
use crate::doctor::listeners::Program;
use crate::netfilter::readers::Process;

/// A chain in nft's JSON, in a table of its own, with these rules.
struct Rules<'a> {
    hook: &'a str,
    priority: i32,
    policy: &'a str,
    rules: &'a [&'a str],
}

fn ruleset(all: &[Rules<'_>]) -> Ruleset {
    let mut objects = Vec::new();
    for (index, Rules { hook, priority, policy, rules }) in all.iter().enumerate() {
        objects.push(format!(
            r#"{{"chain": {{"family": "inet", "table": "t{index}", "name": "c", "handle": 1, "type": "filter", "hook": "{hook}",
            "prio": {priority}, "policy": "{policy}"}}}}"#
        ));
        objects.extend(rules.iter().enumerate().map(|(rule, expressions)| {
            format!(
                r#"{{"rule": {{"family": "inet", "table": "t{index}", "chain": "c", "handle": {}, "expr": [{expressions}]}}}}"#,
                rule + 2
            )
        }));
    }
    Ruleset::parse(&format!(r#"{{"nftables": [{}]}}"#, objects.join(", "))).expect("a ruleset")
}

fn found_with(ruleset: &Ruleset, listeners: &[Listener], readers: &[Reader]) -> Vec<String> {
    let policy = Policy::embedded();
    let snapshot =
        Snapshot { policy: &policy, ruleset, listeners, readers, state: State::New, probes: &Probes::default() };
    let findings = faults(&snapshot).into_iter().filter(|finding| finding.severity != Rating::Ok);
    findings.map(|finding| finding.to_string()).collect()
}

fn found(hook: &str, priority: i32, policy: &str, rules: &[&str]) -> Vec<String> {
    found_with(&ruleset(&[Rules { hook, priority, policy, rules }]), &[], &[])
}

#[track_caller]
fn assert_one(found: &[String], parts: &[&str]) {
    assert!(found.len() == 1 && parts.iter().all(|part| found[0].contains(part)), "{parts:?} in {found:#?}");
}

const NONE: [&str; 0] = [];
const ACCEPT: &str = r#"{"accept": null}"#;
const PORT_21: &str =
    r#"{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 21}}"#;
const FROM_21: &str =
    r#"{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "sport"}}, "right": 21}}"#;
const PORT_8080: &str =
    r#"{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 8080}}"#;
const WAN: &str = r#"{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "wan"}}"#;
const ESTABLISHED: &str = r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "established"}}"#;
const MARKED: &str = r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["new", "related"]}},
    {"match": {"op": "==", "left": {"&": [{"ct": {"key": "mark"}}, 268435456]}, "right": 268435456}}"#;
const SET_MARK: &str = r#"{"mangle": {"key": {"ct": {"key": "mark"}}, "value": 1}}"#;
const SAVE_MARK: &str = r#"{"mangle": {"key": {"ct": {"key": "mark"}}, "value": {"meta": {"key": "mark"}}}}"#;
const RESTORE_MARK: &str = r#"{"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"ct": {"key": "mark"}}}}"#;
const KEEP_MARK: &str = r#"{"mangle": {"key": {"ct": {"key": "mark"}}, "value": {"|": [{"ct": {"key": "mark"}}, 1]}}}"#;
const NOTRACK: &str = r#"{"notrack": null}"#;

fn rule(parts: &[&str]) -> String {
    parts.join(", ")
}

#[test]
fn rule_that_overwrites_the_mark_is_found() {
    assert_one(&found("prerouting", 0, "accept", &[SET_MARK]), &["chain inet t0 c", "handle 2 overwrites the mark"]);
    assert_one(&found("forward", -10, "accept", &[&rule(&[WAN, SET_MARK])]), &["under conditions that"]);
    assert_one(&found("prerouting", -150, "accept", &[SAVE_MARK]), &["overwrites the mark"]);
    assert_eq!(found("prerouting", -300, "accept", &[SET_MARK]), NONE, "Pinhole sets its mark later");
    assert_eq!(found("prerouting", 0, "accept", &[KEEP_MARK]), NONE);
    assert_eq!(found("prerouting", -150, "accept", &[RESTORE_MARK, SAVE_MARK]), NONE, "it saves what it restored");
    assert_eq!(found("prerouting", 0, "accept", &[&rule(&[PORT_8080, SET_MARK])]), NONE, "another port");
    assert_eq!(found("prerouting", 0, "accept", &[&rule(&[PORT_21, SET_MARK])]), NONE, "no data connection");
}

#[test]
fn chain_beside_the_filter_that_drops_is_found() {
    assert_one(
        &found("prerouting", -300, "drop", &[&rule(&[PORT_21, ACCEPT])]),
        &["its policy is drop", "not set there"],
    );
    assert_one(&found("postrouting", 0, "accept", &[r#"{"drop": null}"#]), &["handle 2 drops them", "ct mark"]);
    assert_eq!(found("prerouting", -300, "drop", &[&rule(&[WAN, ACCEPT])]), NONE, "it may accept them");
    assert_eq!(found("prerouting", 0, "accept", &[]), NONE);
}

#[test]
fn notrack_of_a_control_port_is_found() {
    assert_one(
        &found("prerouting", -300, "accept", &[&rule(&[PORT_21, NOTRACK])]),
        &["(`notrack`)", "except the control"],
    );
    assert_one(&found("output", -300, "accept", &[&rule(&[FROM_21, NOTRACK])]), &["(`notrack`)"]);
    assert_one(&found("prerouting", -300, "accept", &[NOTRACK]), &["(`notrack`)"]);
    assert_eq!(found("prerouting", -300, "accept", &[&rule(&[PORT_8080, NOTRACK])]), NONE);
    assert_eq!(found("prerouting", -300, "accept", &[&rule(&[WAN, NOTRACK])]), NONE, "for something else");
}

#[test]
fn queue_of_another_program_is_found() {
    let reader = Reader { queue: 5, port_id: 1, process: Some(Process { id: 4711, name: "suricata".into() }) };
    let at = |priority, queue: &str, readers: &[Reader]| {
        let rules = [&*rule(&[PORT_21, queue])];
        found_with(&ruleset(&[Rules { hook: "prerouting", priority, policy: "accept", rules: &rules }]), &[], readers)
    };
    let queue = r#"{"queue": {"num": 5}}"#;
    for priority in [-190, 0] {
        assert_eq!(at(priority, queue, std::slice::from_ref(&reader)), NONE, "both read them");
    }
    // With NAT, it sees rewritten lines.
    let with_nat = |rules: &[&str]| {
        let mut all = ruleset(&[
            Rules { hook: "forward", priority: 0, policy: "accept", rules },
            Rules { hook: "postrouting", priority: 100, policy: "accept", rules: &[r#"{"masquerade": null}"#] },
        ]);
        all.chains[1].base.as_mut().expect("a base chain").kind = NfChainType::NAT;
        found_with(&all, &[], std::slice::from_ref(&reader))
    };
    assert_one(&with_nat(&[queue]), &["chain inet t0 c", "read by suricata", "`stream: inline: no`"]);
    assert_eq!(with_nat(&[&rule(&[PORT_21, queue])]), NONE, "one direction only");
    assert_one(&at(0, queue, &[]), &["no program reads: they are dropped"]);
    assert_eq!(at(0, r#"{"queue": {"num": 5, "flags": ["bypass"]}}"#, &[]), NONE);
    assert_one(&at(0, r#"{"queue": {"num": 0}}"#, &[]), &["which Pinhole reads"]);
}

#[test]
fn queue_below_the_accept_rule_is_found() {
    let reader = Reader { queue: 5, port_id: 1, process: Some(Process { id: 4711, name: "suricata".into() }) };
    let found = |priority, rules: &[&str]| {
        found_with(
            &ruleset(&[
                Rules { hook: "forward", priority: 0, policy: "accept", rules: &[&rule(&[MARKED, ACCEPT])] },
                Rules { hook: "forward", priority, policy: "accept", rules },
            ]),
            &[],
            std::slice::from_ref(&reader),
        )
    };
    let queue = r#"{"queue": {"num": 5}}"#;
    let admit = rule(&[MARKED, ACCEPT]);
    assert_one(
        &found(1, &[&admit, queue]),
        &["chain inet t1 c", "handle 3 sends data connections to queue 5 (read by suricata", "without their SYN"],
    );
    assert_one(&found(1, &[&admit, &rule(&[WAN, queue])]), &["under conditions that", "without their SYN"]);
    assert_eq!(found(1, &[queue, &admit]), NONE, "the queue gets the SYN");
    assert_eq!(found(1, &[queue]), NONE, "a chain of its own");
    assert_eq!(found(1, &[&admit, &rule(&[PORT_8080, queue])]), NONE, "for something else");
    assert_eq!(found(1, &[&admit, &rule(&[PORT_21, queue])]), NONE, "control connections only");
    assert_eq!(found(1, &[&rule(&[ESTABLISHED, ACCEPT]), &admit, queue]), NONE, "nothing of it is queued");
}

fn listener(port: u16, name: &str, has_connections: bool) -> Listener {
    let program = Program { name: name.to_owned(), is_ftp_server: name.contains("ftpd"), has_connections };
    Listener { port, program: Some(program) }
}

#[test]
fn closed_control_port_is_found_where_a_server_is() {
    let closed = ruleset(&[Rules { hook: "input", priority: 0, policy: "drop", rules: &[] }]);
    let server = [listener(21, "vsftpd", false)];
    assert_one(&found_with(&closed, &server, &[]), &["drops control connections to port 21", "tcp dport 21 accept"]);
    assert_eq!(found_with(&closed, &[], &[]), NONE, "there is no server");
    let queued = rule(&[PORT_21, r#"{"queue": {"num": 5, "flags": ["bypass"]}}"#]);
    for accepts in [rule(&[PORT_21, ACCEPT]), rule(&[WAN, ACCEPT]), queued] {
        let open = ruleset(&[Rules { hook: "input", priority: 0, policy: "drop", rules: &[&accepts] }]);
        assert_eq!(found_with(&open, &server, &[]), NONE, "{accepts}");
    }
}

#[test]
fn server_on_another_port_is_found() {
    let found = |listeners: &[Listener]| found_with(&Ruleset::default(), listeners, &[]);
    assert_one(
        &found(&[listener(21, "vsftpd", false), listener(2121, "vsftpd", false)]),
        &["vsftpd listens on port 2121", "`control_ports: [21, 2121]`"],
    );
    assert_eq!(found(&[listener(40_000, "vsftpd", true)]), NONE, "it may wait for a data connection");
    assert_eq!(found(&[listener(2121, "sshd", false), listener(21, "vsftpd", false)]), NONE);
}
