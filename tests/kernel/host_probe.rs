//! `pinhole check` decides by probes what reading rules does not tell: conditions on addresses, interfaces, sets, maps and
//! matches of iptables. The faults are built on hosts with interfaces, and each line names table, chain and rule.
//!
//! Needs root, nft, ip and iptables.

use std::net::{IpAddr, Ipv4Addr, TcpListener};

use lab::{Family, Namespace, Shape, Topology};
use pinhole::core::policy::WhenDown;
use pinhole::netfilter::queue::Queue;
use serde_json::Value;

use crate::daemon::{Daemon, PROGRAM, TIMEOUT, with_mechanism};
use crate::iptables::typed;

/// The address of the server's host in the lab, and of the client.
const SERVER: &str = "10.21.1.1";
const CLIENT: &str = "10.21.1.10";
const ADMIT: &str = "admit: [inet filter input]\n";
/// Reading cannot tell what it does with a client: it depends on sets, a map, an interface and addresses.
const CONDITIONAL: &str = "table inet filter {
    set inside { type ipv4_addr; flags interval; elements = { 10.21.0.0/16 } }
    set banned { type ipv4_addr; flags timeout; elements = { 10.21.1.66 timeout 1h } }
    map services { type inet_service : verdict; elements = { 21 : goto clients } }
    chain clients { ip saddr @banned drop; iifname \"net\" ip saddr @inside accept; ip6 saddr fd21::/16 accept; }
    chain input {
        type filter hook input priority filter; policy drop;
        ct state vmap { established : accept, related : accept }
        iif lo accept
        tcp dport vmap @services
    }
}";

/// A server's host with interfaces and a program that listens on port 21.
struct Site {
    topology: Topology,
    _listener: Option<TcpListener>,
}

impl Site {
    fn new(rules: &str) -> Self {
        let site = Self::without_server(Shape::ServerHost, rules);
        let listen = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 21));
        let listener = site.host().run(listen).expect("root may enter").expect("the port is free");
        Self { _listener: Some(listener), ..site }
    }

    fn without_server(shape: Shape, rules: &str) -> Self {
        let topology = Topology::new(shape).unwrap_or_else(|error| panic!("{error}"));
        topology.firewall.nft(rules).unwrap_or_else(|error| panic!("{error}"));
        Self { topology, _listener: None }
    }

    fn host(&self) -> &Namespace {
        &self.topology.firewall
    }

    /// The findings of `pinhole check`, which changes nothing on the host.
    fn check(&self, policy: &str, arguments: &[&str]) -> Vec<Finding> {
        let ruleset = || self.host().nft_output(&["-s", "list", "ruleset"]).expect("nft lists");
        let before = ruleset();
        let mut command = self.host().command(PROGRAM);
        command.args(["check", "--json", "--policy", "-"]).args(arguments);
        command.input(with_mechanism(policy).as_bytes()).env("PINHOLE_SOCKET", "/nonexistent/pinhole.sock");
        let finished = command.spawn().and_then(|child| child.wait(TIMEOUT)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(ruleset(), before, "the probe has changed the ruleset");
        let found: Vec<Value> =
            serde_json::from_slice(&finished.stdout).unwrap_or_else(|_| panic!("{}", finished.output()));
        found.iter().map(Finding::of).collect()
    }

    fn check_pair(&self, policy: &str, client: &str, server: &str) -> Vec<Finding> {
        self.check(policy, &["--probe", client, server])
    }

    /// The handle of the rule that contains this text.
    fn handle(&self, chain: &[&str], text: &str) -> String {
        let listed = self.host().nft_output(&[&["-a", "list", "chain"], chain].concat()).expect("nft lists");
        let line = listed.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{text} in {listed}"));
        line.rsplit("# handle ").next().expect("its handle").to_owned()
    }
}

#[derive(Debug)]
struct Finding {
    severity: String,
    text: String,
}

impl Finding {
    fn of(json: &Value) -> Self {
        let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        Self { severity: text("severity"), text: format!("{}: {}; {}", text("check"), text("message"), text("advice")) }
    }
}

#[track_caller]
fn assert_only_warning(found: &[Finding], parts: &[&str]) {
    let warnings: Vec<&Finding> = found.iter().filter(|finding| finding.severity != "ok").collect();
    let [warning] = &*warnings else { panic!("one warning with {parts:?}, not {warnings:#?}\n{found:#?}") };
    assert!(parts.iter().all(|part| warning.text.contains(part)), "{parts:?} in {warning:#?}");
}

#[track_caller]
fn assert_no_warning(found: &[Finding]) {
    assert!(found.iter().all(|finding| finding.severity == "ok"), "{found:#?}");
}

#[track_caller]
fn assert_said(found: &[Finding], parts: &[&str]) {
    let is_it = |finding: &Finding| parts.iter().all(|part| finding.text.contains(part));
    assert!(found.iter().any(is_it), "{parts:?} in {found:#?}");
}

#[test]
fn sets_maps_and_interfaces_are_decided() {
    let site = Site::new(CONDITIONAL);
    let found = site.check_pair("admit: []\n", CLIENT, SERVER);
    let probe = "(probe: passive, 10.21.1.10 -> 10.21.1.1:47321)";
    assert_only_warning(&found, &["chain inet filter input: would drop data connections: its policy is drop", probe]);
    let found = site.check_pair(ADMIT, CLIENT, SERVER);
    assert_no_warning(&found);
    for kind in ["control", "passive", "active"] {
        assert_said(&found, &["probe: ", kind, "no rule drops it"]);
    }
    assert_said(&found, &["chain inet filter input: passes data connections (probe)"]);
}

#[test]
fn element_that_bans_a_client_is_decided_and_its_rule_named() {
    let site = Site::new(CONDITIONAL);
    let found = site.check_pair(ADMIT, "10.21.1.66", SERVER);
    let rule = site.handle(&["inet", "filter", "clients"], "@banned drop");
    let rule = format!("its rule with handle {rule} drops them");
    assert_only_warning(&found, &["chain inet filter input: drops control connections to port 21", &rule]);
}

#[test]
fn client_of_another_network_is_decided() {
    let site = Site::new(CONDITIONAL);
    // Its packets come over the interface, and its address is not in the set.
    let added = site.host().command("ip").args(["route", "add", "192.0.2.0/24", "via", CLIENT]).output(TIMEOUT);
    assert!(added.is_ok_and(|added| added.status.success()), "a route can be added");
    let found = site.check_pair(ADMIT, "192.0.2.7", SERVER);
    assert_only_warning(
        &found,
        &["chain inet filter input: drops control connections to port 21", "its policy is drop"],
    );
}

#[test]
fn likely_pairs_are_probed_without_arguments() {
    let site = Site::new(CONDITIONAL);
    let found = site.check("admit: []\n", &[]);
    assert_only_warning(&found, &["chain inet filter input: would drop data connections", "(probe: passive, 10.21.1."]);
    assert_no_warning(&site.check(ADMIT, &[]));
}

#[test]
fn control_connection_dropped_before_the_filter_is_decided() {
    let early = "table ip other { set some { type ipv4_addr; elements = { 10.21.1.10 }; }
        chain pre { type filter hook prerouting priority -50; ip saddr @some drop; }; }";
    let site = Site::new(&format!("{CONDITIONAL}\n{early}"));
    let rule = format!("its rule with handle {} drops them", site.handle(&["ip", "other", "pre"], "@some"));
    let parts = ["chain ip other pre: drops control connections to port 21", &rule];
    assert_said(&site.check_pair(ADMIT, CLIENT, SERVER), &parts);
}

#[test]
fn second_table_with_conditions_is_decided() {
    let second = |client: &str| {
        format!(
            "{CONDITIONAL}\ntable ip other {{
                set some {{ type ipv4_addr; elements = {{ {client} }}; }}
                chain in {{ type filter hook input priority 10; tcp dport > 1023 ip saddr @some iif net drop; }}
            }}"
        )
    };
    let site = Site::new(&second(CLIENT));
    let rule = format!("its rule with handle {} drops them", site.handle(&["ip", "other", "in"], "@some"));
    assert_only_warning(&site.check_pair(ADMIT, CLIENT, SERVER), &["chain ip other in: would drop", &rule]);
    assert_no_warning(&Site::new(&second("10.21.1.99")).check_pair(ADMIT, CLIENT, SERVER));
}

#[test]
fn chain_before_the_filter_with_conditions_is_decided() {
    let early = "table ip other { set some { type ipv4_addr; elements = { 10.21.1.10 }; }
        chain pre { type filter hook prerouting priority -50; tcp dport > 1023 ip saddr @some drop; }; }";
    let site = Site::new(&format!("{CONDITIONAL}\n{early}"));
    let rule = format!("its rule with handle {} drops them", site.handle(&["ip", "other", "pre"], "@some"));
    assert_only_warning(&site.check_pair(ADMIT, CLIENT, SERVER), &["chain ip other pre: would drop", &rule]);
    let other = site.check_pair(ADMIT, "10.21.1.11", SERVER);
    assert_no_warning(&other);
}

#[test]
fn overwritten_mark_with_conditions_is_decided() {
    let mark = "table ip mangle { set some { type ipv4_addr; elements = { 10.21.1.10 }; }
        chain pre { type filter hook prerouting priority -140; ip saddr @some ct mark set 0x1; }; }";
    let site = Site::new(&format!("{CONDITIONAL}\n{mark}"));
    let rule = format!("its rule with handle {} overwrites the mark", site.handle(&["ip", "mangle", "pre"], "@some"));
    assert_only_warning(&site.check_pair(ADMIT, CLIENT, SERVER), &["chain ip mangle pre: ", &rule]);
    assert_no_warning(&site.check_pair(ADMIT, "10.21.1.11", SERVER));
}

#[test]
fn notrack_with_conditions_is_decided() {
    let raw = "table ip raw { set some { type ipv4_addr; elements = { 10.21.1.10 }; }
        chain pre { type filter hook prerouting priority raw; ip saddr @some tcp dport 21 notrack; }; }";
    let site = Site::new(&format!("{CONDITIONAL}\n{raw}"));
    let rule =
        format!("its rule with handle {} exempts control connections", site.handle(&["ip", "raw", "pre"], "@some"));
    let found = site.check_pair(ADMIT, CLIENT, SERVER);
    let warnings: Vec<&Finding> = found.iter().filter(|finding| finding.severity != "ok").collect();
    assert!(warnings.iter().any(|warning| warning.text.contains(&rule)), "{found:#?}");
    assert_no_warning(&site.check_pair(ADMIT, "10.21.1.11", SERVER));
}

#[test]
fn output_that_drops_is_decided() {
    let output = "table inet filter { chain output { type filter hook output priority filter; policy drop;
        ct state established accept; ip daddr 10.21.1.11 accept; }; }";
    let site = Site::new(&format!("{CONDITIONAL}\n{output}"));
    let probe = "(probe: active, 10.21.1.1 -> 10.21.1.10:47322)";
    assert_only_warning(&site.check_pair(ADMIT, CLIENT, SERVER), &["chain inet filter output: would drop", probe]);
    assert_no_warning(&site.check_pair(ADMIT, "10.21.1.11", SERVER));
}

#[test]
fn closed_control_port_is_decided() {
    let site = Site::new(&CONDITIONAL.replace("21 : goto clients", "22 : goto clients"));
    let parts = ["chain inet filter input: drops control connections to port 21", "its policy is drop"];
    assert_only_warning(&site.check_pair(ADMIT, CLIENT, SERVER), &parts);
}

#[test]
fn queue_of_another_program_with_conditions_is_decided() {
    let site = Site::new(CONDITIONAL);
    typed(
        site.host(),
        "iptables -t raw -A PREROUTING -p tcp -m multiport --dports 20,21 -s 10.21.1.10 -j NFQUEUE --queue-num 77",
    );
    let rule = site.handle(&["ip", "raw", "PREROUTING"], "10.21.1.10");
    let rule = format!("chain ip raw PREROUTING: its rule with handle {rule} sends control connections to queue 77");
    let found = site.check_pair(ADMIT, CLIENT, SERVER);
    assert_only_warning(&found, &[&rule, "no program reads: they are dropped"]);
    // The rest of the path is decided as if that program accepted the packets.
    assert_said(&found, &["probe: passive", "no rule drops it"]);
    let open = || Queue::open(77, WhenDown::Open);
    let _reader = site.host().run(open).expect("root may enter").expect("the queue is free");
    let found = site.check_pair(ADMIT, CLIENT, SERVER);
    assert_said(&found, &[&rule, "before Pinhole reads them"]);
    assert_no_warning(&found);
    assert_no_warning(&site.check_pair(ADMIT, "10.21.1.11", SERVER));
}

#[test]
fn matches_of_iptables_are_decided() {
    let site = Site::new("");
    for rule in [
        "-P INPUT DROP",
        "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        "-A INPUT -p tcp -m multiport --dports 21,22 -m iprange --src-range 10.21.1.1-10.21.1.20 -j ACCEPT",
        "-A INPUT -p tcp -m tcp --dport 1024:65535 -m iprange --src-range 10.21.1.11-10.21.1.12 -j REJECT --reject-with tcp-reset",
    ] {
        typed(site.host(), &format!("iptables {rule}"));
    }
    let policy = "admit: [ip filter INPUT]\n";
    assert_no_warning(&site.check_pair(policy, CLIENT, SERVER));
    let parts = ["chain ip filter INPUT: would drop data connections: its policy is drop", "(probe: passive"];
    assert_only_warning(&site.check_pair("admit: []\n", CLIENT, SERVER), &parts);
    let rule =
        format!("its rule with handle {} drops them", site.handle(&["ip", "filter", "INPUT"], "tcp dport 1024-65535"));
    assert_only_warning(&site.check_pair("admit: []\n", "10.21.1.11", SERVER), &["chain ip filter INPUT", &rule]);
    let parts = ["chain ip filter INPUT: drops control connections to port 21", "its policy is drop"];
    assert_only_warning(&site.check_pair(policy, "10.21.1.99", SERVER), &parts);
}

#[test]
fn ipv6_is_decided() {
    let site = Site::new(CONDITIONAL);
    assert_no_warning(&site.check_pair(ADMIT, "fd21:1::10", "fd21:1::1"));
    let found = site.check_pair("admit: []\n", "fd21:1::10", "fd21:1::1");
    assert_only_warning(&found, &["chain inet filter input", "(probe: passive, fd21:1::10 -> [fd21:1::1]:47321)"]);
}

/// A gateway whose rules depend on interfaces and addresses.
const GATEWAY: &str = "table inet filter {
    set servers { type ipv4_addr; elements = { 10.21.2.10 } }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname \"clients\" oifname \"servers\" ip daddr @servers tcp dport 21 accept
    }
}";

#[test]
fn forwarded_connections_are_decided() {
    let site = Site::without_server(Shape::Gateway, GATEWAY);
    let (client, server) = ("10.21.1.10", "10.21.2.10");
    let found = site.check_pair("admit: []\n", client, server);
    assert_only_warning(
        &found,
        &["chain inet filter forward: would drop", "(probe: passive, 10.21.1.10 -> 10.21.2.10:47321)"],
    );
    let admit = "admit: [inet filter forward]\n";
    let found = site.check_pair(admit, client, server);
    assert_no_warning(&found);
    assert_said(&found, &["probe: active, 10.21.2.10 -> 10.21.1.10:47322: no rule drops it"]);
    let parts = ["chain inet filter forward: drops control connections to port 21"];
    assert_only_warning(&site.check_pair(admit, client, "10.21.2.11"), &parts);
}

#[test]
fn translated_connections_are_decided() {
    let nat = "table ip nat {
        chain pre { type nat hook prerouting priority dstnat; ip daddr 10.21.1.1 tcp dport 21 dnat to 10.21.2.10; }
        chain post { type nat hook postrouting priority srcnat; oifname \"servers\" masquerade; }
    }";
    let site = Site::without_server(Shape::Gateway, &format!("{GATEWAY}\n{nat}"));
    let found = site.check_pair("admit: [inet filter forward]\n", CLIENT, SERVER);
    assert_no_warning(&found);
    for of in ["control, 10.21.1.10 -> 10.21.1.1:21", "passive, 10.21.1.10 -> 10.21.1.1:47321"] {
        assert_said(&found, &[of, "no rule drops it"]);
    }
    // The server opens its data connection to the address that it sees.
    assert_said(&found, &["active, 10.21.2.10 -> 10.21.2.1:47322", "no rule drops it"]);
    let found = site.check_pair("admit: []\n", CLIENT, SERVER);
    assert_only_warning(&found, &["chain inet filter forward: would drop data connections", "(probe: passive"]);
}

#[test]
fn client_on_this_host_is_decided() {
    let rules = Shape::ClientHost.default_drop();
    let site = Site::without_server(Shape::ClientHost, rules);
    let (client, server) = (
        site.topology.client.addresses.of(Family::V4).to_string(),
        site.topology.server.addresses.of(Family::V4).to_string(),
    );
    assert_no_warning(&site.check_pair("admit: [inet filter input, inet filter output]\n", &client, &server));
    let found = site.check_pair("admit: [inet filter output]\n", &client, &server);
    assert_only_warning(&found, &["chain inet filter input: would drop data connections", "(probe: active"]);
}

#[test]
fn probe_uses_the_ends_of_present_control_connections() {
    let site = Site::new(CONDITIONAL);
    let daemon = Daemon::start(site.host(), ADMIT).expect("it starts");
    let client: IpAddr = CLIENT.parse().expect("an address");
    let connect = || std::net::TcpStream::connect((SERVER, 21));
    let connected = site.topology.client.namespace.run(connect).expect("root may enter").expect("it is accepted");
    assert_eq!(connected.local_addr().expect("its address").ip(), client);
    let found = site.check(ADMIT, &[]);
    assert_said(&found, &["probe: control, 10.21.1.10 -> 10.21.1.1:21: no rule drops it"]);
    drop(daemon);
}

#[test]
fn missing_server_is_said_and_rules_are_read() {
    let site = Site::without_server(Shape::ServerHost, CONDITIONAL);
    let found = site.check(ADMIT, &[]);
    assert_said(
        &found,
        &["nothing was sent: no server listens on a control port here", "--probe CLIENT SERVER", "by reading rules"],
    );
}

#[test]
fn table_of_a_bridge_is_left_out_and_said() {
    let site = Site::new(&format!("{CONDITIONAL}\ntable bridge other {{ chain in {{ }}; }}"));
    assert_said(&site.check_pair(ADMIT, CLIENT, SERVER), &["the copy of this host lacks the table bridge other"]);
}

#[test]
fn probe_between_ip_versions_is_a_usage_error() {
    let site = Site::without_server(Shape::ServerHost, "");
    let mut command = site.host().command(PROGRAM);
    command.args(["check", "--probe", CLIENT, "fd21:1::1"]);
    let finished = command.spawn().and_then(|child| child.wait(TIMEOUT)).expect("it ends");
    assert_eq!(finished.status.code(), Some(2));
    assert!(finished.output().contains("different IP versions"), "{}", finished.output());
}
