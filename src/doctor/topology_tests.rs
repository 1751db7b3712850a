use super::super::faults::faults;
use super::*;
use crate::core::policy::Policy;
use crate::doctor::Probes;
use crate::doctor::ruleset::Ruleset;

const PORT_21: &str =
    r#"{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 21}}"#;
const PORT_8080: &str =
    r#"{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 8080}}"#;
const SYN: &str = r#"{"match": {"op": "==", "left": {"&": [{"payload": {"protocol": "tcp", "field": "flags"}},
    ["fin", "syn", "rst", "ack"]]}, "right": "syn"}}"#;
const WAN: &str = r#"{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "wan"}}"#;
const MARKED: &str =
    r#"{"match": {"op": "==", "left": {"&": [{"ct": {"key": "mark"}}, 268435456]}, "right": 268435456}}"#;
const ACCEPT: &str = r#"{"accept": null}"#;
const NOTRACK: &str = r#"{"notrack": null}"#;
const SYNPROXY: &str = r#"{"synproxy": {"mss": 1460, "wscale": 7, "flags": ["timestamp", "sack-perm"]}}"#;

fn zone(number: u16) -> String {
    format!(r#"{{"mangle": {{"key": {{"ct": {{"key": "zone"}}}}, "value": {number}}}}}"#)
}

/// Chains of that family in nft's JSON: hook, priority, policy and rules.
fn ruleset(family: &str, chains: &[(&str, i32, &str, &[&[&str]])]) -> Ruleset {
    let mut objects = Vec::new();
    for (index, (hook, priority, policy, rules)) in chains.iter().enumerate() {
        let of = format!(r#""family": "{family}", "table": "t{index}""#);
        objects.push(format!(
            r#"{{"chain": {{{of}, "name": "c", "handle": 1, "type": "filter", "hook": "{hook}", "prio": {priority}, "policy": "{policy}"}}}}"#
        ));
        objects.extend(rules.iter().enumerate().map(|(rule, parts)| {
            let (handle, parts) = (rule + 2, parts.join(", "));
            format!(r#"{{"rule": {{{of}, "chain": "c", "handle": {handle}, "expr": [{parts}]}}}}"#)
        }));
    }
    Ruleset::parse(&format!(r#"{{"nftables": [{}]}}"#, objects.join(", "))).expect("a ruleset")
}

fn found(ruleset: &Ruleset) -> Vec<String> {
    let policy = Policy::embedded();
    let probes = &Probes::default();
    let snapshot = Snapshot { policy: &policy, ruleset, listeners: &[], readers: &[], state: State::New, probes };
    let findings = faults(&snapshot).into_iter().filter(|finding| finding.severity != Rating::Ok);
    findings.map(|finding| finding.to_string()).collect()
}

#[track_caller]
fn assert_one(found: &[String], parts: &[&str]) {
    assert!(found.len() == 1 && parts.iter().all(|part| found[0].contains(part)), "{parts:?} in {found:#?}");
}

#[test]
fn zone_of_control_connections_is_found() {
    let at = |priority, rule: &[&str]| found(&ruleset("inet", &[("prerouting", priority, "accept", &[rule])]));
    assert_one(&at(-300, &[&zone(7)]), &["chain inet t0 c", "handle 2 puts", "conntrack zone"]);
    assert_one(&at(-300, &[WAN, &zone(7)]), &["under conditions"]);
    assert_eq!(at(-300, &[&zone(0)]), [""; 0], "the default zone");
    assert_eq!(at(-300, &[PORT_8080, &zone(7)]), [""; 0], "another port");
    assert_eq!(at(-150, &[&zone(7)]), [""; 0], "too late to have an effect");
}

#[test]
fn notrack_of_syn_proxy_is_no_fault() {
    let syn: &[&[&str]] = &[&[PORT_21, SYN, NOTRACK]];
    let with = |rules: &[&[&str]]| {
        found(&ruleset("inet", &[("prerouting", -300, "accept", syn), ("forward", -5, "accept", rules)]))
    };
    assert_one(&with(&[]), &["(`notrack`)"]);
    assert_eq!(with(&[&[PORT_21, SYNPROXY]]), [""; 0]);
    assert_one(&with(&[&[PORT_8080, SYNPROXY]]), &["(`notrack`)"]);
    let all: &[&[&str]] = &[&[PORT_21, NOTRACK]];
    let proxied: &[&[&str]] = &[&[PORT_21, SYNPROXY]];
    let chains = [("prerouting", -300, "accept", all), ("forward", -5, "accept", proxied)];
    assert_one(&found(&ruleset("inet", &chains)), &["(`notrack`)"]);
}

#[test]
fn bridge_that_filters_ftp_is_found() {
    let with = |policy, rules: &[&[&str]]| ruleset("bridge", &[("forward", -200, policy, rules)]);
    let ftp: &[&[&str]] = &[&[PORT_21, ACCEPT]];
    assert_one(
        &found(&with("drop", ftp)),
        &["chain bridge t0 c", "does not see", "modprobe br_netfilter", "ct mark &"],
    );
    let seen = found(&with("drop", ftp).with_bridged(true));
    assert_one(&seen, &["would drop their data connections", "ct mark &"]);
    assert_eq!(found(&with("accept", ftp)), [""; 0]);
    assert_eq!(found(&with("drop", &[&[PORT_8080, ACCEPT]])), [""; 0], "no FTP passes there");
    assert_eq!(found(&with("drop", &[&[MARKED, ACCEPT], &[PORT_21, ACCEPT]])), [""; 0]);
}
