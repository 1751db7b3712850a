//! The table `inet pinhole` as text, for a policy and a kernel.
//!
//! The files in `rules/` are the ruleset. This module adds what depends on the policy, and knows nothing of how the
//! ruleset is installed.

use std::fmt::{self, Write as _};

use crate::core::kernel::SessionProgress;
use crate::core::net::{Direction, Port};
use crate::core::policy::{Capture, Limits, Policy, WhenDown};
use crate::netfilter::netlink::{Expression, Family, Object, Table};

pub(super) const TABLE: Table<'static> = Table { family: Family::Inet, name: "pinhole" };

/// The priority of the chains that queue: after connection tracking, which is at -200.
pub(super) const PRIORITY: i32 = -150;

/// All chains of the table. A table with any other chain belongs to another program.
pub(super) const CHAINS: [&str; 26] = [
    "prerouting",
    "output",
    "inspect",
    "data",
    "spoofed_source",
    "after_deadline",
    "admit",
    "queue_packet",
    "queue_failclosed",
    "queue_failopen",
    "prepare_seqadj",
    "new_control",
    "nat_prerouting",
    "nat_output",
    "nat_input",
    "nat_postrouting",
    "targets",
    "sources",
    "late_input",
    "late_postrouting",
    "clamp_mss",
    "connection_edges",
    "rewritten_retransmit",
    "mark_prerouting",
    "mark_output",
    "update_ct_mark",
];

/// The rules that a mechanism adds to the table.
#[derive(Clone, Copy, Debug)]
pub struct MechanismRules {
    /// Rules, as nft reads them.
    pub text: &'static str,
    /// The objects that must exist before nft reads these rules. The chain `prepare_seqadj` applies them to new control
    /// connections.
    pub objects: &'static [Object<'static>],
    /// The rules for a host where control connections need no preparation, and so the mechanism no objects.
    pub unprepared: Option<&'static str>,
}

impl MechanismRules {
    /// These rules for a host that needs control connections prepared or not.
    pub(super) fn on_host(self, needs_preparation: bool) -> Self {
        match self.unprepared {
            Some(text) if !needs_preparation => Self { text, objects: &[], unprepared: None },
            _ => self,
        }
    }
}

const BEGIN: &str = include_str!("../../../rules/begin.nft");
const TABLE_TEXT: &str = include_str!("../../../rules/table.nft");
const NAT: &str = include_str!("../../../rules/nat.nft");
const INSPECT: &str = include_str!("../../../rules/inspect.nft");

/// For `expect`: writing into a string cannot fail.
const TAKES_ALL: &str = "a string takes whatever is written";
/// The placeholders of the control ports in the files, and their replacements: sets, which a reload can fill without
/// replacing a rule.
const PORTS_IN_FILES: [&str; 2] = ["$control_ports", "$guarded_ports"];
const PORTS_IN_TABLE: [&str; 2] = ["@control_ports", "@guarded_ports"];
/// The set of the control ports.
pub(super) const CONTROL_PORTS: &str = "control_ports";
/// The set of the control ports if the policy denies commands or encryption to any client; empty otherwise.
pub(super) const GUARDED_PORTS: &str = "guarded_ports";
/// The rule that removes MPTCP's option from a SYN.
const REMOVE_MPTCP: &str = "\t\treset tcp option mptcp\n";
/// What only a rule has that a kernel without conntrack zones does not know.
const ZONE: &str = "ct zone";
/// The size of the sets of pinholes, and of the maps beside them, as the files have it.
const SIZE: &str = "size 65535";

/// The size of a set of pinholes. A used element counts until the kernel's garbage collection, so there may be more
/// elements than open pinholes.
pub(super) fn set_size(policy: &Policy) -> u32 {
    policy.limits.pinholes.get().saturating_mul(4).max(65_535)
}

/// How this kernel queues a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queueing {
    /// The nf_tables statement `queue`.
    Statement,
    /// The iptables target NFQUEUE, through nft_compat.
    CompatTarget,
}

impl Queueing {
    /// The rule that sends packets to the queues.
    pub(super) fn rule(self, capture: &Capture) -> Expression {
        let (number, count) = (capture.queue, capture.queues().count().get());
        let bypass = matches!(capture.when_down, WhenDown::Open);
        match self {
            Self::Statement => Expression::Queue { number, count, bypass },
            Self::CompatTarget => Expression::CompatQueue { number, count, bypass },
        }
    }
}

impl fmt::Display for Queueing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Statement => "the statement `queue` of nf_tables",
            Self::CompatTarget => "the target NFQUEUE of iptables, as the kernel has no statement `queue`",
        })
    }
}

/// A chain with one rule, which queues packets for the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueChain {
    /// With bypass if the policy says `when_down: open`.
    Packet,
    /// Without bypass, whatever the policy says.
    FailClosed,
    /// With bypass, whatever the policy says.
    FailOpen,
}

impl QueueChain {
    /// All of these chains. With the compat target they must exist before nft reads the ruleset.
    pub const ALL: [Self; 3] = [Self::Packet, Self::FailClosed, Self::FailOpen];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Packet => "queue_packet",
            Self::FailClosed => "queue_failclosed",
            Self::FailOpen => "queue_failopen",
        }
    }

    /// The capture settings for this chain.
    pub(super) const fn of(self, capture: Capture) -> Capture {
        match self {
            Self::Packet => capture,
            Self::FailClosed => Capture { when_down: WhenDown::Closed, ..capture },
            Self::FailOpen => Capture { when_down: WhenDown::Open, ..capture },
        }
    }
}

/// Whether Pinhole's table has a chain of this name.
pub fn is_own_chain(name: &str) -> bool {
    CHAINS.contains(&name)
}

/// The ruleset for a policy, as `nft -f` reads it.
///
/// With the compat target, the text lacks the chains that queue: nft cannot write such a rule.
pub fn text(policy: &Policy, queueing: Queueing, mechanism_rules: MechanismRules) -> String {
    let mark = policy.mark;
    let mut text = format!("define mark_bits = {mark}\n");
    let bits = mark.control_bits();
    for (name, number) in [
        ("progress_bits", bits.progress()),
        ("unreadable", bits.of(SessionProgress::Unreadable)),
        ("client_synced", bits.synced(Direction::FromClient)),
        ("server_synced", bits.synced(Direction::FromServer)),
        ("packet_read", bits.of_read_packet()),
        ("packet_synced", bits.of_packet(0, true)),
    ] {
        // nft has no operator for the complement.
        writeln!(text, "define {name} = {number:#010x}\ndefine all_but_{name} = {:#010x}", !number).expect(TAKES_ALL);
    }
    text.push('\n');
    // nft does not accept variables for sizes, so the number is replaced.
    let sized = |text: &str| text.replace(SIZE, &format!("size {}", set_size(policy)));
    let (ports, queue) = (control_ports(policy), queue(&policy.capture, queueing));
    let rest = [BEGIN, &ports, &queue, &sized(NAT), INSPECT, &sized(TABLE_TEXT), mechanism_rules.text];
    let rest = PORTS_IN_FILES
        .into_iter()
        .zip(PORTS_IN_TABLE)
        .fold(rest.join("\n"), |rest, (file, table)| rest.replace(file, table));
    text.push_str(&rest);
    text
}

/// The ruleset for kernels before 5.18 and versions of nft that cannot remove a TCP option: a SYN with MPTCP is dropped.
pub(super) fn without_removing_options(text: &str) -> String {
    text.replace(REMOVE_MPTCP, "")
}

/// The ruleset for kernels without conntrack zones.
pub(super) fn without_zones(text: &str) -> String {
    text.split_inclusive('\n').filter(|line| !line.contains(ZONE)).collect()
}

/// The part of a ruleset that a reload cannot exchange: everything but control ports, marks, sizes, and bypass. If it
/// is the same for two policies, a reload from one to the other is possible.
pub(super) fn fixed_part(policy: &Policy, queueing: Queueing, mechanism_rules: MechanismRules) -> String {
    let Policy { control_ports, mark, limits, capture, defaults, rules, .. } = Policy::default();
    let capture = Capture { when_down: capture.when_down, ..policy.capture };
    let limits = Limits { pinholes: limits.pinholes, ..policy.limits };
    text(&Policy { control_ports, mark, limits, capture, defaults, rules, ..policy.clone() }, queueing, mechanism_rules)
}

/// The sets and maps whose size follows from the policy.
pub(super) fn sized_sets() -> impl Iterator<Item = &'static str> {
    [NAT, TABLE_TEXT].into_iter().flat_map(|text| {
        let mut name = "";
        text.lines().filter_map(move |line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["set" | "map", of, "{"] => {
                name = of;
                None
            }
            _ => (line.trim() == SIZE).then_some(name),
        })
    })
}

/// The ports in the set of that name.
pub(super) fn ports_of(set: &str, policy: &Policy) -> Vec<Port> {
    if set == GUARDED_PORTS && !policy.holds_back() { Vec::new() } else { policy.control_ports.as_slice().to_vec() }
}

/// The sets of control ports. They are flushed first, because an earlier policy may have had other ports.
fn control_ports(policy: &Policy) -> String {
    let mut text = "# The ports of `control_ports:`, and those where commands or encryption are denied.\n".to_owned();
    for set in [CONTROL_PORTS, GUARDED_PORTS] {
        let ports: Vec<String> = ports_of(set, policy).iter().map(ToString::to_string).collect();
        writeln!(text, "add set inet pinhole {set} {{ type inet_service; }}\nflush set inet pinhole {set}")
            .expect(TAKES_ALL);
        if !ports.is_empty() {
            writeln!(text, "add element inet pinhole {set} {{ {} }}", ports.join(", ")).expect(TAKES_ALL);
        }
    }
    text
}

/// The chains that queue packets for the daemon.
fn queue(capture: &Capture, queueing: Queueing) -> String {
    QueueChain::ALL.map(|chain| queue_chain(chain.name(), &chain.of(*capture), queueing)).join("\n")
}

fn queue_chain(name: &str, capture: &Capture, queueing: Queueing) -> String {
    let queues = capture.queues();
    let (first, count) = (queues.first(), queues.count().get());
    let (several, to) = match count {
        1 => (false, first.to_string()),
        // Each processor has its own queue and thread, because waking a thread on another processor takes longer than
        // everything else. The threads share the sessions, so any of them can read a packet.
        _ => (true, format!("{first}-{}", first + (count - 1))),
    };
    let flags = match (capture.when_down, several) {
        (WhenDown::Open, false) => " flags bypass",
        (WhenDown::Open, true) => " flags bypass,fanout",
        (WhenDown::Closed, true) => " flags fanout",
        (WhenDown::Closed, false) => "",
    };
    let statement = format!("queue{flags} to {to}");
    match queueing {
        Queueing::Statement => format!(
            "add chain inet pinhole {name}\nflush chain inet pinhole {name}\n\n\
             table inet pinhole {{\n\tchain {name} {{\n\t\t{statement}\n\t}}\n}}\n"
        ),
        Queueing::CompatTarget => format!(
            "# The chain {name} is there already. This kernel has no `{statement}`: its one rule does the same, with the\n\
             # target NFQUEUE of iptables, which nft shows but cannot write.\n"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::netfilter::backend::{native, sets};
    use crate::netfilter::table::deadline;

    const SETS: MechanismRules = sets::PROFILE.rules;

    fn policy() -> Policy {
        Policy::embedded()
    }

    #[test]
    fn queue_statement_bypasses_unless_when_down_is_closed() {
        let mut policy = policy();
        assert!(
            text(&policy, Queueing::Statement, SETS)
                .contains("\tchain queue_packet {\n\t\tqueue flags bypass to 0\n\t}\n")
        );
        policy.capture.when_down = WhenDown::Closed;
        assert!(text(&policy, Queueing::Statement, SETS).contains("\tchain queue_packet {\n\t\tqueue to 0\n\t}\n"));
    }

    #[test]
    fn rewritten_line_never_bypasses_the_queue() {
        for when_down in [WhenDown::Open, WhenDown::Closed] {
            let mut policy = policy();
            policy.capture.when_down = when_down;
            let text = text(&policy, Queueing::Statement, SETS);
            assert!(text.contains("\tchain queue_failclosed {\n\t\tqueue to 0\n\t}\n"), "{text}");
        }
    }

    #[test]
    fn spoofed_packet_without_reader_is_not_synced() {
        let policy = policy();
        let bits = policy.mark.control_bits();
        let text = text(&policy, Queueing::Statement, SETS);
        let (_, chain) = text.split_once("\tchain spoofed_source {\n").expect("the chain");
        let (chain, _) = chain.split_once("\n\t}").expect("its end");
        let rules: Vec<&str> = chain.lines().filter(|line| line.contains("meta mark set")).collect();
        assert_eq!(rules.len(), 2);
        for rule in rules {
            let (_, name) = rule.rsplit_once("| $").expect("what the rule adds");
            let define = format!("define {name} = 0x");
            let number = text.lines().find_map(|line| line.strip_prefix(&define)).expect("its definition");
            let mark = u32::from_str_radix(number, 16).expect("a number");
            assert!(bits.is_doubtful(mark), "{rule}");
            assert_ne!(mark & bits.of_packet(0, true), bits.of_packet(0, true), "{rule}");
            assert_eq!(mark & bits.all_of_connection(), 0, "somebody may restore a connection's mark: {rule}");
        }
    }

    #[test]
    fn sets_fit_the_pinholes_that_the_policy_allows() {
        let sizes = |limit| {
            let mut policy = policy();
            policy.limits.pinholes = std::num::NonZeroU32::new(limit).expect("a limit");
            let text = text(&policy, Queueing::Statement, SETS);
            let sizes = text.lines().filter_map(|line| line.trim().strip_prefix("size "));
            let sizes = sizes.map(|size| size.parse::<u32>().expect("a number"));
            // How many lines are rewritten has nothing to do with that.
            sizes.filter(|size| *size != 262_144).collect::<Vec<_>>()
        };
        assert_eq!(sizes(1), [65_535; 8]);
        assert_eq!(sizes(1 << 20), [4 << 20; 8]);
    }

    #[test]
    fn compat_target_is_not_in_the_text() {
        let text = text(&policy(), Queueing::CompatTarget, SETS);
        assert!(!text.contains("chain queue_packet {") && text.contains("goto queue_packet"));
        assert!(!text.contains("flush chain inet pinhole queue_packet"));
    }

    #[test]
    fn each_processor_has_a_queue_of_its_own() {
        let mut policy = policy().on(NonZeroU16::new(2).expect("two"));
        assert!(text(&policy, Queueing::Statement, SETS).contains("\t\tqueue flags bypass,fanout to 0-1\n"));
        (policy.capture.queue, policy.capture.queues) = (7, NonZeroU16::new(3));
        policy.capture.when_down = WhenDown::Closed;
        assert!(text(&policy, Queueing::Statement, SETS).contains("\t\tqueue flags fanout to 7-9\n"));
    }

    #[test]
    fn syn_with_mptcp_is_dropped_where_its_option_cannot_be_removed() {
        let with = text(&policy(), Queueing::Statement, SETS);
        let without = without_removing_options(&with);
        assert!(with.contains("reset tcp option") && !without.contains("reset tcp option"));
        assert_eq!(without.lines().count(), with.lines().count() - 1);
        assert!(without.contains("\t\ttcp option 30 exists drop\n\t\tgoto prepare_seqadj\n"));
    }

    #[test]
    fn kernel_without_zones_gets_no_rule_for_them() {
        let with = text(&policy(), Queueing::Statement, SETS);
        assert_eq!(with.lines().count(), without_zones(&with).lines().count() + 2);
    }

    #[test]
    fn every_chain_is_emptied_before_it_is_filled() {
        for mechanism_rules in [SETS, native::PROFILE.rules] {
            let text = text(&policy(), Queueing::Statement, mechanism_rules);
            for chain in CHAINS {
                if chain == deadline::CHAIN {
                    // Its rule is written over netlink.
                    continue;
                }
                assert!(text.contains(&format!("flush chain inet pinhole {chain}\n")), "{chain}");
                assert!(text.contains(&format!("\tchain {chain} {{\n")), "{chain}");
            }
        }
    }

    #[test]
    fn pinhole_sets_have_the_policys_size() {
        let sized: Vec<&str> = sized_sets().collect();
        for set in ["pinholes4", "pinholes6", "targets4", "targets6", "sources4", "sources6"] {
            assert!(sized.contains(&set), "{set}: {sized:?}");
        }
        assert!(!sized.contains(&"rewritten4"), "its size does not follow from the policy");
    }

    #[test]
    fn reload_can_change_ports_marks_sizes_and_when_down() {
        let fixed = |policy: &Policy| fixed_part(policy, Queueing::Statement, SETS);
        let text = "control_ports: [2121]\nmark: 0x30\nlimits: { pinholes: 50000 }\ncapture: { when_down: closed }\n";
        let exchanged = crate::core::policy::parse("policy.yaml", text).expect("a good policy").policy;
        assert_eq!(fixed(&exchanged), fixed(&Policy::embedded()));
        let mut other = policy();
        (other.capture.queue, other.capture.queues) = (7, NonZeroU16::new(3));
        assert_ne!(fixed(&other), fixed(&Policy::embedded()));
    }
}
