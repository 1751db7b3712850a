use super::*;
use crate::core::policy::Policy;

/// The fate in the chain `forward` of a table `inet filter`, whose rules are these, and in whose chain `own` are those.
fn fate_of(chain_policy: &str, rules: &[&str], own: &[&str], policy: &Policy) -> Fate {
    fate_in(State::New, chain_policy, rules, own, policy)
}

fn fate_in(state: State, chain_policy: &str, rules: &[&str], own: &[&str], policy: &Policy) -> Fate {
    let mut items = vec![
        format!(
            r#"{{"chain": {{"family": "inet", "table": "filter", "name": "forward", "handle": 1, "type": "filter",
            "hook": "forward", "prio": 0, "policy": "{chain_policy}"}}}}"#
        ),
        r#"{"chain": {"family": "inet", "table": "filter", "name": "own", "handle": 2}}"#.to_owned(),
    ];
    for (chain, rules, first) in [("forward", rules, 10), ("own", own, 50)] {
        items.extend(rules.iter().enumerate().map(|(index, rule)| {
            format!(
                r#"{{"rule": {{"family": "inet", "table": "filter", "chain": "{chain}", "handle": {}, "expr": [{rule}]}}}}"#,
                first + index
            )
        }));
    }
    let ruleset = Ruleset::parse(&format!(r#"{{"nftables": [{}]}}"#, items.join(", "))).expect("a ruleset");
    let (chain, base) = ruleset.filters().next().expect("a chain");
    fate(&ruleset, chain, base, policy, state)
}

fn dropped(rules: &[&str], own: &[&str]) -> Option<Dropped> {
    fate_of("drop", rules, own, &Policy::embedded()).dropped
}

const ACCEPT: &str = r#"{"accept": null}"#;
const ESTABLISHED: &str =
    r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}"#;
const MARK: &str =
    r#"{"match": {"op": "==", "left": {"&": [{"ct": {"key": "mark"}}, 268435456]}, "right": 268435456}}"#;
const PORT: &str =
    r#"{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 21}}"#;
const INTERFACE: &str = r#"{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lan"}}"#;

fn rule(parts: &[&str]) -> String {
    parts.join(", ")
}

#[test]
fn a_policy_of_drop_drops_what_no_rule_takes() {
    assert_eq!(dropped(&[&rule(&[ESTABLISHED, ACCEPT]), &rule(&[PORT, ACCEPT])], &[]), Some(Dropped::ByPolicy));
    assert_eq!(fate_of("accept", &[], &[], &Policy::embedded()).dropped, None);
}

#[test]
fn a_last_rule_drops_as_well() {
    let reject = r#"{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}"#;
    let fate = fate_of("accept", &[&rule(&[PORT, ACCEPT]), reject], &[], &Policy::embedded());
    assert_eq!(fate.dropped, Some(Dropped::ByRule(11)));
}

#[test]
fn the_rule_that_is_advised_takes_it() {
    let fate = fate_of("drop", &[&rule(&[MARK, ACCEPT])], &[], &Policy::embedded());
    assert_eq!((fate.dropped, fate.by_mark), (None, true));
}

#[test]
fn a_rule_for_another_mark_does_not() {
    let other = MARK.replace("268435456", "1");
    assert_eq!(dropped(&[&rule(&[&other, ACCEPT])], &[]), Some(Dropped::ByPolicy));
    // Some bit of it is ours, but not all that is asked for.
    let more = MARK.replace("268435456", "268435457");
    assert_eq!(dropped(&[&rule(&[&more, ACCEPT])], &[]), Some(Dropped::ByPolicy));
}

#[test]
fn the_order_of_rules_counts() {
    let drop_new = r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}}, {"drop": null}"#;
    assert_eq!(dropped(&[drop_new, &rule(&[MARK, ACCEPT])], &[]), Some(Dropped::ByRule(10)));
}

#[test]
fn jumps_come_back_and_gotos_do_not() {
    let jump = r#"{"jump": {"target": "own"}}"#;
    let goto = r#"{"goto": {"target": "own"}}"#;
    assert_eq!(dropped(&[jump, ACCEPT], &[&rule(&[PORT, ACCEPT])]), None);
    assert_eq!(dropped(&[goto, ACCEPT], &[&rule(&[PORT, ACCEPT])]), Some(Dropped::ByPolicy));
    assert_eq!(dropped(&[goto], &[&rule(&[MARK, ACCEPT])]), None);
    // A chain that calls itself, which the kernel would not take, ends here too.
    assert_eq!(dropped(&[jump], &[jump]), Some(Dropped::ByPolicy));
}

#[test]
fn a_rule_for_our_mark_under_conditions_is_known_as_such() {
    let fate = fate_of("drop", &[&rule(&[INTERFACE, MARK, ACCEPT])], &[], &Policy::embedded());
    assert_eq!((fate.dropped, fate.by_mark), (Some(Dropped::ByPolicy), true));
}

#[test]
fn a_map_by_state_is_followed() {
    let map = |verdict: &str| {
        format!(
            r#"{{"vmap": {{"key": {{"ct": {{"key": "state"}}}}, "data": {{"set": [["established", {{"accept": null}}],
            ["new", {verdict}]]}}}}}}"#
        )
    };
    assert_eq!(dropped(&[&map(r#"{"jump": {"target": "own"}}"#)], &[&rule(&[MARK, ACCEPT])]), None);
    assert_eq!(dropped(&[&map(r#"{"drop": null}"#), ACCEPT], &[]), Some(Dropped::ByRule(10)));
}

#[test]
fn what_is_for_one_family_only_does_not_help_the_other() {
    let v4 = r#"{"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": "ipv4"}}"#;
    assert_eq!(dropped(&[&rule(&[v4, MARK, ACCEPT])], &[]), Some(Dropped::ByPolicy));
}

#[test]
fn a_chain_that_the_policy_names_takes_it() {
    let mut policy = Policy::embedded();
    policy.admit = vec!["inet filter own".parse().expect("a chain")];
    let fate = fate_of("drop", &[r#"{"jump": {"target": "own"}}"#], &[], &policy);
    assert_eq!((fate.dropped, fate.by_mark), (None, true));
}

#[test]
fn rules_of_iptables_are_told_apart() {
    let fate = fate_of("drop", &[&rule(&[r#"{"xt": null}"#, ACCEPT])], &[], &Policy::embedded());
    assert_eq!((fate.dropped, fate.is_opaque), (Some(Dropped::ByPolicy), true));
}

#[test]
fn what_the_kernel_expects_gets_in_with_what_is_related() {
    let rules = [&*rule(&[ESTABLISHED, ACCEPT]), &*rule(&[PORT, ACCEPT])];
    let fate = |state| fate_in(state, "drop", &rules, &[], &Policy::embedded());
    assert_eq!((fate(State::Related).dropped, fate(State::New).dropped), (None, Some(Dropped::ByPolicy)));
    let established_only = ESTABLISHED.replace(r#"["established", "related"]"#, r#""established""#);
    let rules = [&*rule(&[&established_only, ACCEPT])];
    assert_eq!(fate_in(State::Related, "drop", &rules, &[], &Policy::embedded()).dropped, Some(Dropped::ByPolicy));
}
