//! The table `inet pinhole` as text, for a policy and a kernel.
//!
//! The files in `rules/` are the ruleset; here they get what depends on the policy. Knows nothing of how it is
//! installed.

use std::fmt::{self, Write as _};

use crate::netlink::{Expression, Family, Object, ObjectKind, Table};
use crate::policy::{Capture, Inspect, Policy, WhenDown};

/// The table that is Pinhole's own.
pub(super) const TABLE: Table<'static> = Table { family: Family::Inet, name: "pinhole" };

/// Where the capture begins, and behind what it must be: connection tracking is at -200.
pub(super) const PRIORITY: i32 = -150;

/// The chains of the table, without those that queue. The first two are called by the kernel.
pub(super) const CHAINS: [&str; 19] = [
    "prerouting",
    "output",
    "inspect",
    "data",
    "admit",
    "deliver",
    "insist",
    "prepare",
    "nat_prerouting",
    "nat_output",
    "nat_input",
    "nat_postrouting",
    "targets",
    "sources",
    "late_input",
    "late_postrouting",
    "shorten",
    "bounds",
    "repeated",
];

/// Who holds the pinholes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// The sets of the table.
    Sets,
    /// Connection tracking, with a helper; the sets have only what that cannot hold.
    Conntrack,
}

impl Holder {
    const fn text(self) -> &'static str {
        match self {
            Self::Sets => include_str!("../../../rules/sets.nft"),
            Self::Conntrack => include_str!("../../../rules/native.nft"),
        }
    }

    /// What has to stand before the ruleset is read.
    pub(super) const fn objects(self) -> &'static [Object<'static>] {
        match self {
            Self::Sets => &[
                Object { name: "adjustable4", kind: ObjectKind::Place(Family::Ip) },
                Object { name: "adjustable6", kind: ObjectKind::Place(Family::Ip6) },
            ],
            Self::Conntrack => &[Object { name: "ftp", kind: ObjectKind::Helper("ftp") }],
        }
    }
}

const BEGIN: &str = include_str!("../../../rules/begin.nft");
const TABLE_TEXT: &str = include_str!("../../../rules/table.nft");
const NAT: &str = include_str!("../../../rules/nat.nft");
const DIALOGUE: &str = include_str!("../../../rules/dialogue.nft");
const ANNOUNCEMENTS: &str = include_str!("../../../rules/announcements.nft");

/// Why writing into a string cannot fail.
const TAKES_ALL: &str = "a string takes whatever is written";
/// The size of the sets of pinholes, and of the maps beside them, as the files have it.
const SIZE: &str = "size 65535";

/// How many elements a set of pinholes has room for. What was used counts until the kernel sweeps it out, so there are
/// more than may stand at one time.
fn set_size(policy: &Policy) -> u32 {
    policy.limits.pinholes.get().saturating_mul(4).max(65_535)
}

/// How this kernel can be told to queue a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queueing {
    /// With nf_tables' own statement.
    Statement,
    /// With the target of iptables, through nf_tables.
    CompatTarget,
}

impl Queueing {
    /// The rule that sends packets to a queue.
    pub(super) const fn rule(self, number: u16, when_down: WhenDown) -> Expression {
        let bypass = matches!(when_down, WhenDown::Open);
        match self {
            Self::Statement => Expression::Queue { number, bypass },
            Self::CompatTarget => Expression::CompatQueue { number, bypass },
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

/// A chain whose one rule sends packets to a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueChain {
    /// Which queue.
    pub(super) number: u16,
    /// Whether nothing goes past it, whatever the policy says of other packets.
    pub(super) insists: bool,
}

impl QueueChain {
    const PREFIXES: [&str; 2] = ["queue", "insist"];

    pub(super) fn name(self) -> String {
        format!("{}{}", Self::PREFIXES[usize::from(self.insists)], self.number)
    }

    /// What becomes of its packets when nobody reads the queue.
    pub(super) const fn when_down(self, capture: &Capture) -> WhenDown {
        if self.insists { WhenDown::Closed } else { capture.when_down }
    }

    /// Those of a capture.
    pub(super) fn all(capture: &Capture) -> impl Iterator<Item = Self> {
        let numbers = capture.queues.numbers();
        numbers.flat_map(|number| [false, true].map(|insists| Self { number, insists }))
    }
}

/// The names of the chains that queue. Where the compat target does it, they have to stand before the ruleset is read.
pub fn queue_chains(capture: &Capture) -> impl Iterator<Item = String> {
    QueueChain::all(capture).map(QueueChain::name)
}

/// Whether a chain of that name is one of ours.
pub(super) fn is_own_chain(name: &str) -> bool {
    let number = QueueChain::PREFIXES.into_iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or_default();
    let is_of = |number| [false, true].into_iter().any(|insists| QueueChain { number, insists }.name() == name);
    CHAINS.contains(&name) || number.parse::<u16>().is_ok_and(is_of)
}

/// The ruleset for a policy, as `nft -f` reads it.
///
/// Where the compat target queues, the chains with it are missing here: nft cannot write such a rule.
pub fn text(policy: &Policy, queueing: Queueing, holder: Holder) -> String {
    let inspect = match policy.capture.inspect {
        Inspect::Dialogue => DIALOGUE,
        Inspect::Announcements => ANNOUNCEMENTS,
    };
    let ports: Vec<String> = policy.control_ports.as_slice().iter().map(ToString::to_string).collect();
    let mark = policy.mark;
    let mut text = format!("define mark_bits = {mark}\ndefine control_ports = {{ {} }}\n", ports.join(", "));
    writeln!(text, "define settled_bit = {:#010x}", mark.settled_bit()).expect(TAKES_ALL);
    writeln!(text, "define unread_bit = {:#010x}\n", mark.unread_bit()).expect(TAKES_ALL);
    // nft knows no names for sizes, so this one number is exchanged.
    let sized = |text: &str| text.replace(SIZE, &format!("size {}", set_size(policy)));
    let rest = [BEGIN, &queue(&policy.capture, queueing), &sized(NAT), inspect, &sized(TABLE_TEXT), holder.text()];
    text.push_str(&rest.join("\n"));
    text
}

/// The chains `deliver` and `insist`, which choose among the queues, and the chains of the queues.
fn queue(capture: &Capture, queueing: Queueing) -> String {
    let mut begin = String::new();
    let mut chains = String::from("table inet pinhole {\n");
    for chain in QueueChain::all(capture) {
        let flags = match chain.when_down(capture) {
            WhenDown::Open => "queue flags bypass",
            WhenDown::Closed => "queue",
        };
        let (name, number) = (chain.name(), chain.number);
        let result = match queueing {
            Queueing::Statement => write!(begin, "add chain inet pinhole {name}\nflush chain inet pinhole {name}\n")
                .and_then(|()| write!(chains, "\tchain {name} {{\n\t\t{flags} to {number}\n\t}}\n")),
            Queueing::CompatTarget => writeln!(
                chains,
                "\t# This kernel has no `{flags}`. The chain {name} is there already; its one rule does the same, with the\n\
                 \t# target NFQUEUE of iptables, which nft shows but cannot write."
            ),
        };
        result.expect(TAKES_ALL);
    }
    for (chooses, insists) in [("deliver", false), ("insist", true)] {
        let name = |number| QueueChain { number, insists }.name();
        let choice = match capture.queues.count().get() {
            1 => format!("goto {}", name(capture.queues.first())),
            count => {
                let numbers = capture.queues.numbers().enumerate();
                let choices: Vec<String> =
                    numbers.map(|(index, number)| format!("{index} : goto {}", name(number))).collect();
                // Both directions of a connection have to meet in one queue, whatever NAT makes of their addresses.
                format!("jhash ct id mod {count} vmap {{ {} }}", choices.join(", "))
            }
        };
        write!(begin, "add chain inet pinhole {chooses}\nflush chain inet pinhole {chooses}\n")
            .and_then(|()| write!(chains, "\tchain {chooses} {{\n\t\t{choice}\n\t}}\n"))
            .expect(TAKES_ALL);
    }
    format!("{begin}\n{chains}}}\n")
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::policy::Queues;

    fn policy() -> Policy {
        Policy::embedded()
    }

    #[test]
    fn the_statement_bypasses_unless_the_policy_closes() {
        let mut policy = policy();
        assert!(
            text(&policy, Queueing::Statement, Holder::Sets)
                .contains("\tchain queue0 {\n\t\tqueue flags bypass to 0\n\t}\n")
        );
        policy.capture.when_down = WhenDown::Closed;
        assert!(text(&policy, Queueing::Statement, Holder::Sets).contains("\tchain queue0 {\n\t\tqueue to 0\n\t}\n"));
    }

    #[test]
    fn a_rewritten_line_never_goes_past_the_queue() {
        for when_down in [WhenDown::Open, WhenDown::Closed] {
            let mut policy = policy();
            policy.capture.when_down = when_down;
            let text = text(&policy, Queueing::Statement, Holder::Sets);
            assert!(text.contains("\tchain insist0 {\n\t\tqueue to 0\n\t}\n\tchain deliver {"), "{text}");
        }
    }

    #[test]
    fn the_sets_have_room_for_as_many_pinholes_as_the_policy_allows() {
        let sizes = |limit| {
            let mut policy = policy();
            policy.limits.pinholes = std::num::NonZeroU32::new(limit).expect("a limit");
            let text = text(&policy, Queueing::Statement, Holder::Sets);
            let sizes = text.lines().filter_map(|line| line.trim().strip_prefix("size "));
            let sizes = sizes.map(|size| size.parse::<u32>().expect("a number"));
            // How many lines are rewritten has nothing to do with that.
            sizes.filter(|size| *size != 262_144).collect::<Vec<_>>()
        };
        assert_eq!(sizes(1), [65_535; 6]);
        assert_eq!(sizes(1 << 20), [4 << 20; 6]);
    }

    #[test]
    fn the_compat_target_is_not_written_as_text() {
        let text = text(&policy(), Queueing::CompatTarget, Holder::Sets);
        assert!(!text.contains("chain queue0 {") && text.contains("goto queue0"));
        assert!(!text.contains("flush chain inet pinhole queue0"));
    }

    #[test]
    fn several_queues_share_by_connection() {
        let mut policy = policy();
        policy.capture.queues = Queues::new(7, NonZeroU16::new(2).expect("two")).expect("queues");
        let text = text(&policy, Queueing::Statement, Holder::Sets);
        assert!(text.contains("jhash ct id mod 2 vmap { 0 : goto queue7, 1 : goto queue8 }"));
        assert!(text.contains("jhash ct id mod 2 vmap { 0 : goto insist7, 1 : goto insist8 }"));
    }

    #[test]
    fn every_chain_is_emptied_before_it_is_filled() {
        for holder in [Holder::Sets, Holder::Conntrack] {
            let text = text(&policy(), Queueing::Statement, holder);
            for chain in CHAINS {
                assert!(text.contains(&format!("flush chain inet pinhole {chain}\n")), "{chain}");
                assert!(text.contains(&format!("\tchain {chain} {{\n")), "{chain}");
            }
        }
    }

    #[test]
    fn knows_its_own_chains() {
        assert!(is_own_chain("deliver") && is_own_chain("queue12") && is_own_chain("inspect"));
        assert!(
            is_own_chain("insist") && is_own_chain("insist0") && !is_own_chain("queue") && !is_own_chain("insist01")
        );
        assert!(!is_own_chain("queue012") && !is_own_chain("queue70000") && !is_own_chain("input"));
    }
}
