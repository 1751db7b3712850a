use super::*;
use crate::core::policy::Policy;

/// The outcome of the chain `forward` of a table `inet filter` with these rules, and with these rules in the chain `own`.
fn evaluated(chain_policy: &str, rules: &[&str], own: &[&str], policy: &Policy) -> Outcome {
    evaluated_in(State::New, chain_policy, rules, own, policy)
}

fn evaluated_in(state: State, chain_policy: &str, rules: &[&str], own: &[&str], policy: &Policy) -> Outcome {
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
    evaluate(&ruleset, chain, base, policy, state)
}

fn dropped(rules: &[&str], own: &[&str]) -> Option<Dropped> {
    evaluated("drop", rules, own, &Policy::embedded()).dropped
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
fn policy_drop_drops_what_no_rule_accepts() {
    assert_eq!(dropped(&[&rule(&[ESTABLISHED, ACCEPT]), &rule(&[PORT, ACCEPT])], &[]), Some(Dropped::ByPolicy));
    assert_eq!(evaluated("accept", &[], &[], &Policy::embedded()).dropped, None);
}

#[test]
fn last_rule_that_rejects_drops() {
    let reject = r#"{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}"#;
    let outcome = evaluated("accept", &[&rule(&[PORT, ACCEPT]), reject], &[], &Policy::embedded());
    assert_eq!(outcome.dropped, Some(Dropped::ByRule(11)));
}

#[test]
fn advised_rule_accepts() {
    let outcome = evaluated("drop", &[&rule(&[MARK, ACCEPT])], &[], &Policy::embedded());
    assert_eq!((outcome.dropped, outcome.by_mark), (None, true));
}

#[test]
fn rule_for_another_mark_does_not_accept() {
    let other = MARK.replace("268435456", "1");
    assert_eq!(dropped(&[&rule(&[&other, ACCEPT])], &[]), Some(Dropped::ByPolicy));
    // The rule requires the bit of the mark and another bit.
    let more = MARK.replace("268435456", "268435457");
    assert_eq!(dropped(&[&rule(&[&more, ACCEPT])], &[]), Some(Dropped::ByPolicy));
}

#[test]
fn first_matching_rule_decides() {
    let drop_new = r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}}, {"drop": null}"#;
    assert_eq!(dropped(&[drop_new, &rule(&[MARK, ACCEPT])], &[]), Some(Dropped::ByRule(10)));
}

#[test]
fn jump_returns_and_goto_does_not() {
    let jump = r#"{"jump": {"target": "own"}}"#;
    let goto = r#"{"goto": {"target": "own"}}"#;
    assert_eq!(dropped(&[jump, ACCEPT], &[&rule(&[PORT, ACCEPT])]), None);
    assert_eq!(dropped(&[goto, ACCEPT], &[&rule(&[PORT, ACCEPT])]), Some(Dropped::ByPolicy));
    assert_eq!(dropped(&[goto], &[&rule(&[MARK, ACCEPT])]), None);
    // A chain that jumps to itself, which the kernel would refuse, ends here, too.
    assert_eq!(dropped(&[jump], &[jump]), Some(Dropped::ByPolicy));
}

#[test]
fn rule_for_the_mark_with_conditions_counts_as_by_mark() {
    let outcome = evaluated("drop", &[&rule(&[INTERFACE, MARK, ACCEPT])], &[], &Policy::embedded());
    assert_eq!((outcome.dropped, outcome.by_mark), (Some(Dropped::ByPolicy), true));
}

#[test]
fn verdict_map_by_state_is_evaluated() {
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
fn rule_for_one_family_does_not_accept_the_other() {
    let v4 = r#"{"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": "ipv4"}}"#;
    assert_eq!(dropped(&[&rule(&[v4, MARK, ACCEPT])], &[]), Some(Dropped::ByPolicy));
}

#[test]
fn chain_that_the_policy_names_accepts() {
    let mut policy = Policy::embedded();
    policy.admit = vec!["inet filter own".parse().expect("a chain")];
    let outcome = evaluated("drop", &[r#"{"jump": {"target": "own"}}"#], &[], &policy);
    assert_eq!((outcome.dropped, outcome.by_mark), (None, true));
}

#[test]
fn rules_of_iptables_are_opaque() {
    let outcome = evaluated("drop", &[&rule(&[r#"{"xt": null}"#, ACCEPT])], &[], &Policy::embedded());
    assert_eq!((outcome.dropped, outcome.is_opaque), (Some(Dropped::ByPolicy), true));
}

#[test]
fn expected_connection_is_accepted_as_related() {
    let rules = [&*rule(&[ESTABLISHED, ACCEPT]), &*rule(&[PORT, ACCEPT])];
    let outcome = |state| evaluated_in(state, "drop", &rules, &[], &Policy::embedded());
    assert_eq!((outcome(State::Related).dropped, outcome(State::New).dropped), (None, Some(Dropped::ByPolicy)));
    let established_only = ESTABLISHED.replace(r#"["established", "related"]"#, r#""established""#);
    let rules = [&*rule(&[&established_only, ACCEPT])];
    assert_eq!(evaluated_in(State::Related, "drop", &rules, &[], &Policy::embedded()).dropped, Some(Dropped::ByPolicy));
}
