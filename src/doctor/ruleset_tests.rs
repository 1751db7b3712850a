use nftables::schema::Nftables;

use super::*;

/// Objects that nft 1.0.6 printed, of a table of nft and of one of iptables-nft; what nft 1.1 prints for several devices.
const LISTING: &str = r#"{"nftables": [
{"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
{"table": {"family": "inet", "name": "t", "handle": 9}},
{"ct helper": {"family": "inet", "name": "std", "table": "t", "handle": 4, "type": "ftp", "protocol": "tcp", "l3proto": "ip"}},
{"ct helper": {"family": "inet", "name": "sip", "table": "t", "handle": 5, "type": "sip", "protocol": "udp", "l3proto": "ip"}},
{"ct expectation": {"family": "inet", "name": "e", "table": "t", "handle": 6, "protocol": "tcp", "dport": 9876, "timeout": 60000, "size": 12, "l3proto": "ip"}},
{"set": {"family": "inet", "name": "s", "table": "t", "type": "ipv4_addr", "handle": 10, "flags": ["timeout"], "timeout": 3600,
 "elem": [{"elem": {"val": "10.0.0.1", "timeout": 30, "expires": 29}}, "10.0.0.2"]}},
{"map": {"family": "inet", "name": "m", "table": "t", "type": "ipv4_addr", "handle": 12, "map": "verdict", "elem": [["10.0.0.1", {"accept": null}]]}},
{"flowtable": {"family": "inet", "name": "ft", "table": "t", "handle": 13, "hook": "ingress", "prio": 0, "dev": ["eth0", "eth1"]}},
{"chain": {"family": "inet", "table": "t", "name": "input", "handle": 1, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
{"chain": {"family": "inet", "table": "t", "name": "other", "handle": 2}},
{"chain": {"family": "netdev", "table": "n", "name": "ingress", "handle": 1, "dev": ["eth0", "eth1"], "type": "filter", "hook": "ingress", "prio": 0, "policy": "accept"}},
{"rule": {"family": "inet", "table": "t", "chain": "input", "handle": 14, "expr": [{"match": {"op": "==", "left": {"meta": {"key": "hour"}}, "right": {"range": ["10:00", "12:00"]}}}, {"accept": null}]}},
{"rule": {"family": "inet", "table": "t", "chain": "input", "handle": 15, "expr": [{"match": {"op": ">", "left": {"ct": {"key": "bytes"}}, "right": 5000000000}}, {"reject": {"type": "icmpx", "expr": "port-unreachable"}}]}},
{"rule": {"family": "inet", "table": "t", "chain": "input", "handle": 16, "expr": [{"flow": {"op": "add", "flowtable": "@ft"}}, {"secmark": "x"}, {"reject": {"type": "icmpv6", "expr": "policy-fail"}}]}},
{"chain": {"family": "ip", "table": "filter", "name": "INPUT", "handle": 1, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
{"rule": {"family": "ip", "table": "filter", "chain": "INPUT", "handle": 2, "expr": [{"xt": {"type": "match", "name": "conntrack"}}, {"counter": {"packets": 0, "bytes": 0}}, {"accept": null}]}},
{"rule": {"family": "ip", "table": "filter", "chain": "INPUT", "handle": 6, "expr": [{"counter": {"packets": 0, "bytes": 0}}, {"xt": null}]}}
]}"#;

/// The names of the statements of all rules, followed by `?` if the schema lacks the statement.
fn statements(ruleset: &Ruleset) -> Vec<String> {
    let name =
        |statement: &Statement| format!("{}{}", statement.name, if statement.content.is_none() { "?" } else { "" });
    let rules = ruleset.chains.iter().flat_map(|chain| &chain.rules);
    rules.map(|rule| rule.statements.iter().map(name).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn unknown_expression_makes_one_statement_unknown() {
    let ruleset = Ruleset::parse(LISTING).expect("a ruleset");
    let expected = ["match? accept", "match? reject", "flow secmark? reject?", "xt counter accept", "counter xt"];
    assert_eq!(statements(&ruleset), expected);
    assert_eq!(
        ruleset.filters().map(|(chain, _)| chain.name.to_string()).collect::<Vec<_>>(),
        ["inet t input", "ip filter INPUT"]
    );
    assert_eq!(ruleset.helpers, ["std in table inet t"]);
}

#[test]
fn type_of_the_crate_fails_at_an_unknown_object() {
    assert!(serde_json::from_str::<Nftables<'_>>(LISTING).is_err());
    for kind in ["chain", "map", "rule"] {
        let listing: Listing = serde_json::from_str(LISTING).expect("JSON");
        let fails = |object: &Value| from_value::<schema::NfListObject<'_>>(object.clone()).is_err();
        let mut objects = listing.nftables.into_iter().filter(|object| object.contains_key(kind)).map(Value::Object);
        assert!(objects.any(|object| fails(&object)), "the schema has every {kind} by now");
    }
}

#[test]
fn text_without_a_listing_is_an_error() {
    assert!(Ruleset::parse("{}").is_err());
    assert!(Ruleset::parse("").is_err());
}
