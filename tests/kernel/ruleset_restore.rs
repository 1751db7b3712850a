//! The restored table is identical to the installed one. Needs root and nft.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use lab::Namespace;
use pinhole::core::expectation::{Expectation, Mapping};
use pinhole::core::kernel::Firewall as _;
use pinhole::core::net::{Endpoint, Port};
use pinhole::core::policy::{self, Policy, WhenDown};
use pinhole::core::time::Timestamp;

use crate::firewall;

const TIMEOUT: Duration = Duration::from_secs(10);
const NOW: Timestamp = Timestamp::from_secs(1);

fn policies() -> Vec<Policy> {
    let mut policies = vec![Policy::embedded()];
    let text = "control_ports: [21, 2121]\ncapture: { when_down: closed }\n";
    let mut other = policy::parse("policy.yaml", text).expect("a good policy").policy;
    assert_eq!(other.capture.when_down, WhenDown::Closed);
    (other.capture.queue, other.capture.queues) = (3, NonZeroU16::new(4));
    policies.push(other);
    policies
}

fn pinholes(count: u16) -> Vec<Expectation> {
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    let port = |number: u16| Port::new(number).expect("a port");
    let pair = |number: u16| {
        let hosts = if number.is_multiple_of(2) { ["10.0.0.1", "10.0.0.2"] } else { ["fd00::1", "fd00::2"] };
        let [from, to] = hosts.map(address);
        let to = Endpoint::new(to, port(1024 + number));
        // Every third one is mapped.
        let is_mapped = number.is_multiple_of(3);
        let mapped = Mapping { to: Some(Endpoint::new(from, to.port)), from: Some(to.address) };
        let mapping = if is_mapped { mapped } else { Mapping::NONE };
        Expectation { from, to, mapping, since: NOW, lifetime: Duration::from_secs(3600) }
    };
    (0..count).map(pair).collect()
}

fn ruleset(namespace: &Namespace) -> String {
    namespace.nft_output(&["-s", "list", "ruleset"]).expect("nft lists")
}

/// The ruleset without the elements of its sets, and without its deadline, which moves with them.
fn without_elements(ruleset: &str) -> String {
    ruleset
        .lines()
        .filter(|line| !line.contains("expires") && !line.contains("meta time"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn restored_table_is_identical_to_the_installed_one() {
    for policy in policies() {
        let namespace = Namespace::new("host").expect("a namespace");
        let mut sets = namespace.run(|| firewall::install(&policy)).expect("root may enter").expect("installed");
        let before = ruleset(&namespace);
        for pinholes in [pinholes(0), pinholes(3), pinholes(2000)] {
            namespace.nft("flush ruleset").expect("it is empty");
            assert_eq!(sets.is_intact(), Ok(false));
            let restored = sets.restore(NOW, pinholes.iter()).expect("it is restored");
            assert_eq!((restored.table, restored.elements), (true, pinholes.len()));
            // While the kernel spreads many over a larger table, it shows them in pieces that do not fit together.
            let expected = (pinholes.len(), pinholes.iter().filter(|pinhole| !pinhole.mapping.is_none()).count());
            let stand = || {
                let standing = sets.pinholes().expect("the sets stand");
                Ok((standing.len(), standing.iter().filter(|pinhole| !pinhole.mapping.is_none()).count()) == expected)
            };
            lab::wait_until("what was pending stands, and is mapped", TIMEOUT, stand).expect("it does");
            pinholes.iter().for_each(|pinhole| sets.close(pinhole));
            assert_eq!(without_elements(&ruleset(&namespace)), without_elements(&before));
            assert_eq!(sets.is_intact(), Ok(true));
        }
        assert_eq!(sets.take_refused().count, 0, "the kernel took what it had shown");
        sets.remove().expect("it stands");
        assert_eq!(ruleset(&namespace), "");
    }
}

#[test]
fn damaged_table_is_restored_and_its_elements_stay() {
    for policy in policies() {
        let namespace = Namespace::new("host").expect("a namespace");
        let mut sets = namespace.run(|| firewall::install(&policy)).expect("root may enter").expect("installed");
        let before = ruleset(&namespace);
        let [kept, _] = pinholes(2)[..] else { panic!("two") };
        firewall::open(&mut sets, &kept).expect("opened");
        for damage in ["inspect", "queue_packet", "data", "prerouting"] {
            namespace.nft(&format!("flush chain inet pinhole {damage}")).expect("there is such a chain");
            assert_eq!(sets.is_intact(), Ok(false));
            let restored = sets.restore(NOW, pinholes(8).iter()).expect("it is restored");
            assert_eq!((restored.table, restored.elements), (true, 0), "what was used up stays so");
            assert_eq!(sets.is_intact(), Ok(true));
        }
        assert_eq!(sets.pinholes().expect("the sets stand").len(), 1);
        sets.close(&kept);
        assert_eq!(without_elements(&ruleset(&namespace)), without_elements(&before));
        assert_eq!(sets.take_refused().count, 0, "the kernel took what it had shown");
    }
}

#[test]
fn pinhole_opened_while_the_table_is_gone_restores_it() {
    let namespace = Namespace::new("host").expect("a namespace");
    let mut sets =
        namespace.run(|| firewall::install(&Policy::embedded())).expect("root may enter").expect("installed");
    let pinholes = pinholes(3);
    pinholes[..2].iter().for_each(|pinhole| firewall::open(&mut sets, pinhole).expect("opened"));
    namespace.nft("flush ruleset").expect("it is empty");
    firewall::open(&mut sets, &pinholes[2]).expect("opened, nevertheless");
    assert_eq!(sets.pinholes().expect("the sets stand").len(), 1);
    let restored = sets.restore(NOW, pinholes.iter()).expect("it is restored");
    assert_eq!((restored.table, restored.elements), (true, 3));
    assert_eq!(sets.pinholes().expect("the sets stand").len(), 3);
    assert!(sets.restore(NOW, pinholes.iter()).expect("nothing is to do").is_nothing());
    assert_eq!(sets.take_refused().count, 0);
}

/// A ruleset without the sizes of its sets, which not every kernel can change, and without elements that expire.
fn rules_and_ports(namespace: &Namespace) -> String {
    let ruleset = ruleset(namespace);
    let is_size = |line: &str| line.trim().starts_with("size ");
    let is_element = |line: &str| line.contains("elements = ") && line.contains(" timeout ");
    let is_deadline = |line: &str| line.contains("meta time");
    ruleset
        .lines()
        .filter(|line| !is_size(line) && !is_element(line) && !is_deadline(line))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn reloaded_table_is_identical_to_an_installed_one() {
    let policy = |text: &str| policy::parse("policy.yaml", text).expect("a good policy").policy;
    let policies = [
        "{}",
        "control_ports: [2121]",
        "control_ports: [21, 990, 2121]\nmark: 0x3",
        "mark: 0xc0000000\ncapture: { when_down: closed }\nlimits: { pinholes: 40000 }",
        "mark: 0x00010100",
    ]
    .map(policy);
    let installed = policies.each_ref().map(|policy| {
        let namespace = Namespace::new("host").expect("a namespace");
        let _sets = namespace.run(|| firewall::install(policy)).expect("root may enter").expect("installed");
        rules_and_ports(&namespace)
    });
    let namespace = Namespace::new("host").expect("a namespace");
    let mut sets = namespace.run(|| firewall::install(&policies[0])).expect("root may enter").expect("installed");
    let [kept, _] = pinholes(2)[..] else { panic!("two") };
    firewall::open(&mut sets, &kept).expect("opened");
    // There and back: from each to each that follows.
    let order = [1, 2, 3, 4, 3, 2, 4, 1, 0];
    for number in order {
        sets.reload(&policies[number]).unwrap_or_else(|error| panic!("{number}: {error}"));
        assert_eq!(rules_and_ports(&namespace), installed[number], "{number}");
        assert_eq!(sets.pinholes().expect("the sets stand").len(), 1, "{number}: what stands stays");
        namespace.nft("flush ruleset").expect("it is empty");
        sets.restore(NOW, [kept].iter()).expect("it is restored");
        assert_eq!(rules_and_ports(&namespace), installed[number], "{number}, restored");
    }
    assert_eq!(sets.take_refused().count, 0);
}

#[test]
fn changed_control_ports_are_restored() {
    let namespace = Namespace::new("host").expect("a namespace");
    let mut sets =
        namespace.run(|| firewall::install(&Policy::embedded())).expect("root may enter").expect("installed");
    let before = ruleset(&namespace);
    let changes = [
        "add element inet pinhole control_ports { 80 }",
        "flush set inet pinhole control_ports",
        "flush set inet pinhole control_ports\nadd element inet pinhole control_ports { 80 }\nflush chain inet pinhole data",
    ];
    for change in changes {
        namespace.nft(change).expect("it stands");
        assert_eq!(sets.is_intact(), Ok(false), "{change}");
        assert!(sets.restore(NOW, [].iter()).expect("it is restored").table, "{change}");
        assert_eq!((sets.is_intact(), ruleset(&namespace)), (Ok(true), before.clone()), "{change}");
    }
}
