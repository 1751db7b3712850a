//! The policy as an administrator uses it: a text is parsed into a policy, or into error messages.

use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use pinhole::core::ftp::mode::{Mode, Modes};
use pinhole::core::kernel::Mark;
use pinhole::core::net::{Network, Port, PortRange};
use pinhole::core::policy::{
    self, Action, Capture, Commands, ControlPorts, EMBEDDED, Hosts, Limits, Login, MAX_BYTES, Mechanism,
    PassiveAddress, Pickup, Policy, PortRanges, PortSet, Problems, Rule, RuleId, Severity, Terms, ThirdParty, Tls,
    Verbs, WhenDown,
};
use proptest::prelude::*;

/// The example of the design.
const EXAMPLE: &str = "\
control_ports: [21, 2121]
mechanism: auto            # native | sets
capture:
  queue: 0                 # first queue; queues: how many
  queues: 1
  when_down: open          # closed
pickup: marked             # never | trust
admit: [inet filter input, inet filter forward]   # sets only
mark: 0x10000000
defaults:
  modes: [PORT, EPRT, PASV, EPSV]
  data_ports: 1024-65535
  timeout: 60s
  pinholes_per_session: 8
  third_party: deny        # allow
  login: required          # optional: an announcement before a login opens as well
  tls: pass                # deny | range 50000-50100
rules:                     # first match wins
  - name: partners upload only
    clients: [203.0.113.0/24, 2001:db8::/32]
    servers: [10.0.0.5]
    modes: [PASV, EPSV]
    data_ports: 50000-50100
    commands: { deny: [SITE, DELE, RMD] }
";

fn good(text: &str) -> Policy {
    let parsed = policy::parse("policy.yaml", text).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(parsed.warnings.is_empty(), "{}", parsed.warnings);
    parsed.policy
}

fn bad(text: &str) -> Problems {
    match policy::parse("policy.yaml", text) {
        Ok(parsed) => panic!("this was taken for a policy:\n{text}\n{}", parsed.policy),
        Err(problems) => problems,
    }
}

fn warnings(text: &str) -> Problems {
    policy::parse("policy.yaml", text).unwrap_or_else(|problems| panic!("{problems}")).warnings
}

/// The first line of each problem, without the name of the file.
fn lines(problems: &Problems) -> Vec<String> {
    let line = |problem: &policy::Problem| {
        let text = problem.to_string();
        text.lines().next().unwrap_or_default().strip_prefix("policy.yaml:").unwrap_or_default().to_owned()
    };
    problems.iter().map(line).collect()
}

/// Asserts that the text has exactly one problem, which begins like this.
#[track_caller]
fn one(problems: &Problems, begins: &str) {
    let lines = lines(problems);
    assert!(lines.len() == 1 && lines[0].starts_with(begins), "not {begins:?} but {lines:#?}");
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn port(number: u16) -> Port {
    Port::new(number).expect("not zero")
}

fn range(first: u16, last: u16) -> PortRange {
    PortRange::new(port(first), port(last)).expect("not empty")
}

#[test]
fn full_example_is_parsed() {
    let policy = good(EXAMPLE);
    assert_eq!(policy.control_ports.as_slice(), [Port::FTP, port(2121)]);
    assert_eq!(
        policy.admit.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["inet filter input", "inet filter forward"]
    );
    let capture = Capture { queues: Some(NonZeroU16::MIN), ..Capture::default() };
    assert_eq!((&policy.defaults, policy.capture, policy.mark), (&Terms::default(), capture, Mark::default()));
    let [rule] = policy.rules.as_slice() else { panic!("{policy}") };
    assert_eq!(rule.terms.modes, [Mode::Pasv, Mode::Epsv].into_iter().collect());
    assert_eq!(rule.terms.data_ports, range(50_000, 50_100).into());
    assert!(rule.terms.denies("SITE") && !rule.terms.denies("STOR"));
    assert_eq!((rule.terms.timeout, rule.terms.login), (Duration::from_secs(60), Login::Required));
}

#[test]
fn embedded_policy_states_every_default() {
    assert_eq!(good(EMBEDDED), Policy::default());
    assert_eq!(good("{}"), Policy::default());
    assert_eq!(Policy::embedded(), Policy::default());
    for key in ["control_ports", "queues", "reorder_bytes", "idle", "pinholes_per_session", "commands", "rules"] {
        assert!(EMBEDDED.contains(&format!("{key}: ")), "{key} is not explained");
    }
}

#[test]
fn example_in_the_embedded_policy_is_valid() {
    let start = EMBEDDED.find("#   - name:").expect("an example");
    let example = EMBEDDED[start..].lines().filter_map(|line| line.strip_prefix("# ")).collect::<Vec<_>>().join("\n");
    assert_eq!(good(&format!("rules:\n{example}")).rules.len(), 2);
}

#[test]
fn first_matching_rule_decides() {
    let policy = good(
        "defaults: { timeout: 5 }
rules:
  - { name: one host, clients: [10.0.0.5], servers: [192.0.2.1], timeout: 1m }
  - { name: to one server, clients: [10.0.0.0/8], servers: [192.0.2.1, \"2001:db8::1\"], action: deny }
  - { name: the rest of them, clients: [10.0.0.0/8, 2001:db8::/32] }
",
    );
    let rule = |client, server| policy.match_rule(address(client), address(server));
    let name = |client, server| policy.rule_name(rule(client, server));
    assert_eq!(name("10.0.0.5", "192.0.2.1"), Some("one host"));
    assert_eq!(name("10.0.0.6", "192.0.2.1"), Some("to one server"));
    assert_eq!(name("10.0.0.6", "192.0.2.2"), Some("the rest of them"));
    assert_eq!(name("2001:db8::9", "2001:db8::1"), Some("the rest of them"));
    assert_eq!(rule("203.0.113.1", "192.0.2.1"), RuleId::DEFAULTS);
    assert_eq!(policy.rule_name(RuleId::DEFAULTS), None);
    assert_eq!(policy.terms(rule("10.0.0.5", "192.0.2.1")).timeout, Duration::from_secs(60));
    assert!(policy.terms(rule("10.0.0.6", "192.0.2.1")).denies_all());
    assert_eq!(policy.terms(rule("10.0.0.6", "192.0.2.2")).timeout, Duration::from_secs(5));
    assert_eq!(policy.terms(RuleId::DEFAULTS), &policy.defaults);
}

#[test]
fn rule_can_close_known_services_that_defaults_open() {
    let policy = good("defaults: { known_services: [] }\nrules: [{ name: x, known_services: default }]");
    assert!(policy.defaults.may_use(port(3306)) && !policy.rules[0].terms.may_use(port(3306)));
    assert!(
        policy.to_string().contains("known_services: []\n") && policy.to_string().contains("known_services: default\n")
    );
    assert_eq!(good(&policy.to_string()), policy);
}

#[test]
fn rule_can_allow_commands_that_defaults_deny() {
    let policy = good(
        "defaults: { commands: { deny: [SITE] } }
rules: [{ name: trusted, clients: [192.0.2.1], commands: { deny: [] } }]",
    );
    assert!(policy.defaults.denies("site") && !policy.rules[0].terms.denies("site"));
    assert_eq!(good(&policy.to_string()), policy);
}

#[test]
fn all_errors_are_reported_at_once_and_in_order() {
    let problems = bad("control_ports: [21, 0, \"990\", 70000, 21]
mechanizm: native
capture: { queue: 65535, queues: 2, when_down: all }
admit: [filter input, inet pinhole x]
mark: 0
defaults:
  modes: [PORT, pasv]
  data_ports: 5000-400
  timeout: 2 minutes
  timeout: 60s
  tls: range 1
rules:
  - clients: [10.0.0.1/8, 10.0.0.0/33]
  - { name: x, servers: [], action: reject }
  - { name: x }
");
    let expected = "\
1:21: error: control_ports: 0 is out of limits (expected a number from 1 to 65535)
1:24: error: control_ports: \"990\" is a text, because of its quotes or a leading zero (expected a number from 1 to 65535)
1:31: error: control_ports: 70000 is out of limits (expected a number from 1 to 65535)
1:38: error: control_ports: 21 is there twice (expected each once)
2:1: error: unknown key mechanizm; did you mean mechanism? (expected one of control_ports, mechanism, capture, pickup, \
admit, mark, limits, defaults, rules)
3:34: error: queues: 2 queues from number 65535 would end at 65536 (expected the last queue to be 65535 or lower)
3:48: error: when_down: unknown word all (expected open or closed)
4:9: error: admit: not three words: filter input (expected FAMILY TABLE CHAIN, such as inet filter input)
4:23: error: admit: the table inet pinhole is Pinhole's own: inet pinhole x (expected FAMILY TABLE CHAIN, such as inet \
filter input)
5:7: error: mark: 0 is out of limits (expected a number from 1 to 4294967295)
7:17: error: modes: unknown word pasv; did you mean PASV? (expected PORT, EPRT, LPRT, PASV, EPSV or LPSV)
8:15: error: data_ports: the range is empty: 5000-400 (expected a port, or a range such as 50000-50100)
9:12: error: timeout: 2 minutes is no length of time (expected a time from 10ms to 1h, in seconds or with a unit: 500ms, \
60s, 2m, 1h)
10:3: error: timeout: the key is there twice; the first time in line 9 (expected each key once)
11:8: error: tls: neither a port nor a range: range 1 (expected pass, deny, service, or a range such as range 50000-50100)
13:5: error: the rule has no name (expected name: and a text that people will see in the logs)
13:15: error: clients: bits are set behind the prefix, the network being 10.0.0.0/8: 10.0.0.1/8 (expected an address or a \
network such as 192.0.2.0/24)
13:27: error: clients: the prefix length must be a number from 0 to 32: 10.0.0.0/33 (expected an address or a network \
such as 192.0.2.0/24)
14:16: error: servers: the list has 0 elements (expected a list of 1 to 1000 addresses or networks)
14:37: error: action: unknown word reject (expected allow or deny)
15:13: error: name: the rule of line 14 has the same name: x (expected a different name for each rule)";
    assert_eq!(lines(&problems), expected.lines().collect::<Vec<_>>());
    assert_eq!(problems.errors(), 21);
    assert!(problems.to_string().ends_with("\n\n21 errors"));
}

#[test]
fn error_shows_line_and_column() {
    let problems = bad("defaults:\n    data_ports: 5000-400\n");
    assert_eq!(
        problems.to_string(),
        "policy.yaml:2:17: error: data_ports: the range is empty: 5000-400 (expected a port, or a range such as \
         50000-50100)\n    2 |     data_ports: 5000-400\n      |                 ^^^^^^^^\n\n1 error"
    );
    let problem = problems.iter().next().expect("a problem");
    assert_eq!(
        (problem.severity, problem.key.as_str(), problem.text.as_str()),
        (Severity::Error, "data_ports", "5000-400")
    );
}

#[test]
fn wrong_type_is_named_in_the_error() {
    one(
        &bad("control_ports: 21"),
        "1:16: error: control_ports: 21 is a number (expected a list of 1 to 64 ports such as [21])",
    );
    one(&bad("control_ports: [21.5]"), "1:17: error: control_ports: 21.5 is a number with a fraction");
    one(&bad("control_ports: []"), "1:1: error: control_ports: the list has 0 elements");
    one(&bad("mechanism: true"), "1:12: error: mechanism: true is a truth value (expected auto, native or sets)");
    one(&bad("mechanism:"), "1:11: error: mechanism: there is no value (expected auto, native or sets)");
    one(&bad("mechanism: [auto]"), "1:1: error: mechanism: this is a list");
    one(&bad("mark: !hex 10"), "1:1: error: mark: this is a value with a tag, which is not supported");
    one(&bad("mark: \"0x10\""), "1:7: error: mark: \"0x10\" is a text (expected a number from 1 to 4294967295)");
    one(&bad("mark: 0x1_0000_0000"), "1:7: error: mark: 0x1_0000_0000 is a text");
    one(&bad("mark: 99999999999999999999999999999999999999"), "1:7: error: mark: 999999999");
    one(&bad("limits: 5"), "1:9: error: limits: 5 is a number (expected a mapping");
    one(
        &bad("defaults: { commands: [SITE] }"),
        "1:13: error: commands: this is a list (expected a mapping with keys such as deny",
    );
    one(&bad("rules: [partners]"), "1:9: error: rules: partners is a text (expected a rule, such as");
    one(
        &bad("rules: [{ name: 5 }]"),
        "1:17: error: name: 5 is a number (expected a text of 1 to 64 visible characters",
    );
    one(&bad("- control_ports"), "1:1: error: this is a list (expected a mapping with keys such as control_ports");
    one(&bad(""), "1:1: error: there is no value (expected a mapping with keys such as control_ports)");
}

#[test]
fn values_beyond_a_limit_are_refused_and_at_it_accepted() {
    for (inside, outside) in [
        ("capture: { queue: 65535 }", "capture: { queue: 65536 }"),
        ("capture: { queue: 1, queues: 65535 }", "capture: { queue: 2, queues: 65535 }"),
        ("capture: { queues: auto }", "capture: { queues: all }"),
        ("capture: { watchdog: 2s }", "capture: { watchdog: 1999ms }"),
        ("capture: { watchdog: 1h }", "capture: { watchdog: 3601s }"),
        ("mark: 0xffffffe0", "mark: 0x100000000"),
        ("mark: 0xffffffe0", "mark: 0xfffffff0"),
        ("limits: { sessions: 4194304 }", "limits: { sessions: 4194305 }"),
        ("limits: { sessions: 1 }", "limits: { sessions: 0 }"),
        ("limits: { pinholes: 1048576 }", "limits: { pinholes: -1 }"),
        ("limits: { line_bytes: 128 }", "limits: { line_bytes: 127 }"),
        ("limits: { reorder_bytes: 1048576 }", "limits: { reorder_bytes: 1048577 }"),
        ("limits: { sessions_per_client: 1 }", "limits: { sessions_per_client: 0 }"),
        ("limits: { pinholes_per_client: 1048576 }", "limits: { pinholes_per_client: 1048577 }"),
        ("limits: { buffered_bytes: 65536 }", "limits: { buffered_bytes: 65535 }"),
        ("limits: { idle: 168h }", "limits: { idle: 169h }"),
        ("limits: { idle: 1 }", "limits: { idle: 0 }"),
        ("defaults: { timeout: 10ms }", "defaults: { timeout: 9ms }"),
        ("defaults: { timeout: 1h }", "defaults: { timeout: 3601 }"),
        ("defaults: { timeout: 60m }", "defaults: { timeout: 99999999999999999999h }"),
        ("defaults: { pinholes_per_session: 1024 }", "defaults: { pinholes_per_session: 1025 }"),
        ("defaults: { data_ports: 1-65535 }", "defaults: { data_ports: 0-65535 }"),
        ("defaults: { data_ports: [1, 65535] }", "defaults: { data_ports: [1, 65536] }"),
        ("defaults: { known_services: [1, 65535] }", "defaults: { known_services: [1, 65536] }"),
        ("defaults: { known_services: [] }", "defaults: { known_services: none }"),
        ("defaults: { known_services: default }", "defaults: { known_services: 3306 }"),
        ("defaults: { commands: { deny: [XSHA512] } }", "defaults: { commands: { deny: [XSHA51234] } }"),
    ] {
        good(inside);
        assert_eq!(bad(outside).errors(), 1, "{outside}");
    }
}

#[test]
fn ports_can_be_numbers_ranges_or_lists() {
    let ports = |text: &str| good(&format!("defaults: {{ data_ports: {text} }}")).defaults.data_ports;
    assert_eq!(ports("5000"), range(5000, 5000).into());
    assert_eq!(ports("5000-5009"), range(5000, 5009).into());
    assert_eq!(ports("\"5000 - 5009\""), range(5000, 5009).into());
    assert_eq!(Some(ports("[20, 5000-5009]")), PortRanges::new([range(20, 20), range(5000, 5009)]));
    for wrong in ["\"5000\"", "05000", "+5-6", "5-", "-5", "5-6-7", "any", "[]", "{ from: 5 }", "70000", "1e3", "５-６"]
    {
        assert_eq!(bad(&format!("defaults: {{ data_ports: {wrong} }}")).errors(), 1, "{wrong}");
    }
    one(
        &warnings("defaults: { data_ports: [5000-5009, 5009-6000] }"),
        "1:37: warning: data_ports: 5009-6000 overlaps 5000-5009 (expected each once)",
    );
    // A known service is named beside the range that has it.
    let named = good("defaults: { data_ports: [3000-4000, 3306] }").defaults.data_ports;
    assert!(named.names(port(3306)) && !named.names(port(3389)) && named.contains(port(3389)));
}

#[test]
fn addresses_that_yaml_misreads_are_explained() {
    let text = |list: &str| format!("rules:\n  - name: x\n    clients: {list}\n");
    assert!(bad(&text("[::1]")).to_string().contains("quotes around an IPv6 address"));
    assert!(bad(&text("[fd00::]")).to_string().contains("quotes around an IPv6 address"));
    one(&bad("rules:\n- name: x\n  clients:\n  - fd00::\n"), "4:5: error: clients: this is a mapping (expected quotes");
    good(&text("[\"::1\", \"fd00::\", 2001:db8::/32]"));
    good("rules:\n- name: x\n  clients:\n  - ::1\n");
    one(&bad(&text("[localhost]")), "3:15: error: clients: not an IP address: localhost (expected an address or a");
    one(&bad(&text("[10.1]")), "3:15: error: clients: 10.1 is a number with a fraction or an exponent");
    one(
        &bad(&text("[192.0.2.0/x]")),
        "3:15: error: clients: the prefix length must be a number from 0 to 32: 192.0.2.0/x",
    );
}

#[test]
fn unknown_command_is_a_warning_and_malformed_one_an_error() {
    let deny = |list: &str| format!("defaults:\n  commands: {{ deny: {list} }}\n");
    one(
        &warnings(&deny("[DEL]")),
        "2:22: warning: deny: DEL is no command that FTP is known to have; did you mean DELE?",
    );
    one(&warnings(&deny("[DELE, DELE]")), "2:28: warning: deny: DELE is there twice");
    one(
        &bad(&deny("[dele]")),
        "2:22: error: deny: this is no command (expected one to eight letters or digits in upper",
    );
    one(&bad(&deny("[\"SITE CHMOD\"]")), "2:22: error: deny: this is no command");
    one(&bad("defaults: { commands: { allow: [SITE] } }"), "1:25: error: unknown key allow (expected one of deny)");
}

#[test]
fn overlapping_rules_are_a_warning() {
    let text = "rules:
  - { name: the office, clients: [10.0.0.0/8], timeout: 30s }
  - { name: one desk, clients: [10.1.2.3], servers: [192.0.2.1] }
  - { name: one server, servers: [192.0.2.1], action: deny }
  - { name: everybody }
";
    assert_eq!(
        lines(&warnings(text)),
        [
            "3:13: warning: this rule is never reached: \"the office\" (line 2) matches all that it could (expected the \
         narrower rule first)",
            "4:13: warning: \"the office\" (line 2) takes a part of what this rule matches (expected disjoint or \
         nested rules: here only the order decides)",
        ]
    );
}

#[test]
fn network_within_another_of_its_list_is_a_warning() {
    let text = "rules:
  - name: x
    clients: [10.1.0.0/16, 192.0.2.1, 10.0.0.0/8, 10.1.2.3, 192.0.2.1, 2001:db8::/32]
";
    assert_eq!(
        lines(&warnings(text)),
        [
            "3:15: warning: clients: 10.1.0.0/16 overlaps 10.0.0.0/8 (expected each once)",
            "3:51: warning: clients: 10.1.2.3 overlaps 10.1.0.0/16 (expected each once)",
            "3:61: warning: clients: 192.0.2.1 is there twice (expected each once)",
        ]
    );
}

#[test]
fn setting_without_effect_is_a_warning() {
    one(
        &warnings("mechanism: native\nadmit: [inet filter input]"),
        "2:1: warning: admit: the mechanism native does not need it",
    );
    one(
        &warnings("rules: [{ name: x, action: deny, modes: [PASV], clients: [192.0.2.1] }]"),
        "1:34: warning: modes: this has no effect, because the rule's action is deny",
    );
    one(
        &warnings("capture: { inspect: announcements }"),
        "1:21: warning: inspect: this has no effect any more: every line is read (expected nothing: leave it out)",
    );
}

#[test]
fn rule_names_are_printable_and_of_limited_length() {
    let named = |name: &str| format!("rules: [{{ name: {name} }}]");
    good(&named(&"ü".repeat(64)));
    one(&bad(&named(&"x".repeat(65))), "1:17: error: name: the name is too long");
    one(&bad(&named("\" \"")), "1:17: error: name: the name is empty");
    one(&bad(&named("\"a\\e[31m\"")), "1:11: error: name: the name holds characters that cannot be seen");
    one(&bad(&named("a\u{202E}b")), "1:17: error: name: the name holds characters that cannot be seen");
}

#[test]
fn crlf_and_byte_order_marks_are_accepted() {
    assert_eq!(good(&EXAMPLE.replace('\n', "\r\n")), good(EXAMPLE));
    assert_eq!(good(&format!("\u{FEFF}{EXAMPLE}")), good(EXAMPLE));
    one(&bad("\u{FEFF}mark: 0\r\n"), "1:7: error: mark: 0 is out of limits");
    one(&bad("capture:\r\n  queue: -1\r\n"), "2:10: error: queue: -1 is out of limits");
}

#[test]
fn anchors_and_aliases_work() {
    let policy = good(
        "rules:
  - { name: a, clients: &offices [192.0.2.0/24, 198.51.100.0/24], servers: [10.0.0.1] }
  - { name: b, clients: *offices, servers: [10.0.0.2] }
",
    );
    assert_eq!(policy.rules[0].clients, policy.rules[1].clients);
}

#[test]
fn invalid_text_is_refused_with_a_reason() {
    let problems = |bytes: &[u8]| policy::parse_bytes("policy.yaml", bytes).expect_err("no policy");
    one(&problems(b"mark: 1\nrules: \xFF"), "2:8: error: the byte 0xff is not UTF-8");
    one(&problems(b"\xFF\xFEm\0a\0r\0k\0"), "1:1: error: the byte 0xff is not UTF-8");
    one(&problems(b"mark: 1\n\0"), "2:1: error: the character \\u{0} is not allowed in a YAML file");
    one(&problems(&vec![b'#'; MAX_BYTES + 1]), "1:1: error: the text is too long");
    one(&problems(&"ä".repeat(MAX_BYTES).into_bytes()), "1:1: error: the text is too long");
    assert!(policy::parse_bytes("policy.yaml", format!("{{}} {}", "#".repeat(MAX_BYTES - 3)).as_bytes()).is_ok());
}

#[test]
fn control_characters_are_not_printed() {
    let problems = policy::parse("\u{1b}]0;x\u{7}.yaml", "mark: \"\\e[31m\" # \u{202E}\n").expect_err("no policy");
    let text = problems.to_string();
    assert!(text.chars().all(|c| c == '\n' || !(c.is_control() || c == '\u{202E}')), "{text:?}");
}

#[test]
fn number_of_printed_errors_is_limited() {
    let text: String = (0..5000).map(|i| format!("key{i}: 1\n")).collect();
    let problems = bad(&text);
    assert_eq!((problems.errors(), problems.iter().count()), (5000, Problems::MAX_LISTED));
}

/// The YAML blocks of a page, in order.
fn yaml_blocks(page: &str) -> Vec<&str> {
    page.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("yaml\n")).collect()
}

/// `tests/cli/documents.rs` checks the output of `pinhole check` for them.
#[test]
fn examples_of_the_policy_page_behave_as_documented() {
    let page = include_str!("../../docs/reference/policy.md");
    let [first, repair, implicit, example, wrong, doubtful] = yaml_blocks(page)[..] else {
        panic!("the page has other examples than this test knows");
    };
    assert_eq!(good(first).rules.len(), 2);
    assert_eq!(good(implicit).control_ports.as_slice().len(), 2);
    assert_eq!(good(repair).rules[0].terms.passive_address, PassiveAddress::Repair);
    assert_eq!(good(example).rules.len(), 3);
    assert_eq!(bad(wrong).errors(), 5);
    assert_eq!(warnings(doubtful).iter().count(), 2);
}

prop_compose! {
    fn some_ports()(
        ends in prop::collection::vec((1_u16.., 1_u16..), 1..4),
        single in prop::collection::vec(1_u16.., 0..3),
    ) -> PortRanges {
        let ranges = ends.into_iter().map(|(a, b)| range(a.min(b), a.max(b)));
        PortRanges::new(ranges.chain(single.into_iter().map(|port| range(port, port)))).expect("not empty")
    }
}

fn some_hosts() -> impl Strategy<Value = Hosts> {
    let v4 = (any::<u32>(), 0_u8..=32).prop_map(|(bits, prefix)| (IpAddr::V4(bits.into()), prefix));
    let v6 = (any::<u128>(), 0_u8..=128).prop_map(|(bits, prefix)| (IpAddr::V6(bits.into()), prefix));
    let network = prop_oneof![v4, v6].prop_map(|(a, prefix)| Network::containing(a, prefix).expect("a short prefix"));
    prop::collection::vec(network, 0..4).prop_map(Hosts::new)
}

fn some_terms() -> impl Strategy<Value = Terms> {
    let modes = prop::sample::subsequence(Mode::ALL.to_vec(), 1..=6).prop_map(|m| m.into_iter().collect::<Modes>());
    let tls = prop_oneof![
        Just(Tls::Pass),
        Just(Tls::Deny),
        (1_u16.., 1_u16..).prop_map(|(a, b)| Tls::Range(range(a.min(b), a.max(b))))
    ];
    let verbs = prop::collection::vec("[A-Z][A-Z0-9]{0,7}", 0..4);
    let services = prop::option::of(prop::collection::vec((1_u16.., 0_u16..3), 0..9));
    (modes, some_ports(), services, 10_u64..=3_600_000, 1_u16..=1024, any::<[bool; 3]>(), tls, verbs).prop_map(
        |(modes, data_ports, services, millis, most, [third_party, login, repair], tls, verbs)| Terms {
            action: Action::Allow,
            modes,
            data_ports,
            known_services: services.map_or(Terms::default().known_services, |services| {
                PortSet::new(services.into_iter().map(|(first, more)| range(first, first.saturating_add(more))))
            }),
            timeout: Duration::from_millis(millis),
            pinholes_per_session: NonZeroU16::new(most).expect("not zero"),
            third_party: if third_party { ThirdParty::Allow } else { ThirdParty::Deny },
            passive_address: if repair { PassiveAddress::Repair } else { PassiveAddress::Keep },
            login: if login { Login::Required } else { Login::Optional },
            tls,
            commands: Commands { deny: Verbs::new(verbs.iter().map(String::as_str)).expect("verbs") },
        },
    )
}

fn some_rules(defaults: Terms) -> impl Strategy<Value = (Terms, Vec<Rule>)> {
    let terms = {
        let defaults = defaults.clone();
        some_terms().prop_flat_map(move |terms| {
            let deny = Terms { action: Action::Deny, ..defaults.clone() };
            prop_oneof![Just(terms), Just(deny), Just(defaults.clone())]
        })
    };
    // Text with a special meaning for YAML or for a terminal.
    let name = "[ -~äßΩ漢🙂]{0,40}";
    let rule = (name, some_hosts(), some_hosts(), terms);
    prop::collection::vec(rule, 0..5).prop_map(move |rules| {
        let numbered = rules.into_iter().enumerate();
        let rules = numbered.map(|(i, (name, clients, servers, terms))| Rule {
            name: format!("{name}{i}").into(),
            clients,
            servers,
            terms,
        });
        (defaults.clone(), rules.collect())
    })
}

prop_compose! {
    fn some_policy()(
        ports in prop::collection::btree_set(1_u16.., 1..5),
        mechanism in prop::sample::select(vec![Mechanism::Auto, Mechanism::Native, Mechanism::Sets]),
        (queue, queues) in (0_u16.., prop::option::of(1_u16..)),
        closed in any::<bool>(),
        pickup in prop::sample::select(vec![Pickup::Marked, Pickup::Never, Pickup::Trust]),
        admit in prop::collection::btree_set("(ip|ip6|inet) [a-zA-Z_.][a-zA-Z0-9_./-]{0,9} [a-zA-Z_.][a-zA-Z0-9_./-]{0,9}", 0..4),
        mark in (1_u32..).prop_filter("two bits are left", |bits| bits.count_zeros() >= 2),
        (sessions, pinholes, line, reorder) in (1_u32..=4_194_304, 1_u32..=1_048_576, 128_u32..=65_536, 1024_u32..=1_048_576),
        (of_client, opened, buffered) in (1_u32..=4_194_304, 1_u32..=1_048_576, 65_536_u32..=1_073_741_824),
        idle in 1_u64..=168 * 3600,
        watchdog in 2000_u64..=3_600_000,
        (defaults, rules) in some_terms().prop_flat_map(some_rules),
    ) -> Policy {
        let nonzero = |number| NonZeroU32::new(number).expect("not zero");
        let several = |count: u16| NonZeroU16::new(count.min((u16::MAX - queue).saturating_add(1)));
        Policy {
            control_ports: ControlPorts::new(ports.into_iter().map(port)).expect("not empty"),
            mechanism,
            capture: Capture {
                queue,
                queues: queues.and_then(several),
                when_down: if closed { WhenDown::Closed } else { WhenDown::Open },
                watchdog: Duration::from_millis(watchdog),
                ..Capture::default()
            },
            pickup,
            admit: admit.iter().map(|chain| chain.parse().expect("a chain")).collect(),
            mark: Mark::new(mark).expect("not zero"),
            limits: Limits {
                sessions: nonzero(sessions),
                sessions_per_client: nonzero(of_client),
                pinholes: nonzero(pinholes),
                pinholes_per_client: nonzero(opened),
                line_bytes: nonzero(line),
                reorder_bytes: nonzero(reorder),
                buffered_bytes: nonzero(buffered),
                idle: Duration::from_secs(idle),
            },
            defaults,
            rules,
        }
    }
}

proptest! {
    #[test]
    fn printed_policy_is_parsed_back_unchanged(policy in some_policy()) {
        let printed = policy.to_string();
        match policy::parse("printed", &printed) {
            Ok(parsed) => prop_assert_eq!(parsed.policy, policy, "{}", printed),
            Err(problems) => prop_assert!(false, "{}\n{}", printed, problems),
        }
    }

    #[test]
    fn arbitrary_bytes_parse_or_give_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = policy::parse_bytes("any", &bytes).map_err(|problems| problems.to_string());
    }

    #[test]
    fn arbitrary_text_parses_or_gives_an_error(text in "(\\PC|[\\[\\]{}:,&*!|>?%@'\"#\\\\\n\r\t -]){0,200}") {
        let _ = policy::parse("any", &text).map_err(|problems| problems.to_string());
    }

    #[test]
    fn mutated_policy_parses_or_gives_an_error(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..8, "(\\PC|[\\[\\]{}:,&*!|>?'\"#\n -]){0,3}"), 1..6),
    ) {
        let mut text: Vec<char> = EXAMPLE.chars().collect();
        for (at, drop, put) in edits {
            let at = at.index(text.len().max(1)).min(text.len());
            let end = (at + drop).min(text.len());
            text.splice(at..end, put.chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(problems) = policy::parse("edited", &text) {
            prop_assert!(problems.errors() > 0);
            let lines = text.split('\n').count();
            let inside = problems.iter().all(|problem| (1..=lines).contains(&problem.line) && problem.column >= 1);
            prop_assert!(inside, "{}", problems);
        }
    }
}
