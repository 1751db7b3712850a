//! Evaluates what a host's filter does with the first packet of a connection that Pinhole admits: `new` or
//! `related`, TCP, with Pinhole's mark, between unknown hosts and ports.
//!
//! Each condition of a rule holds, does not hold, or is unknown, and so is the verdict. Conditions on anything but
//! state, mark and protocol are unknown.

use serde_json::Value;

use super::ruleset::{Base, Chain, ChainName, Ruleset};
use crate::core::policy;

/// The kernel follows no more jumps than that.
const DEEPEST: usize = 16;

/// What a base chain does with such a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fate {
    /// Where it is dropped for certain, unless a rule above takes it, of which that cannot be said.
    pub(super) dropped: Option<Dropped>,
    /// A rule that looks at our mark accepts it, for certain or under conditions.
    pub(super) by_mark: bool,
    /// Some rules cannot be read: iptables wrote them.
    pub(super) is_opaque: bool,
}

/// The state in which connection tracking sees such a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It is one like others: the mark alone tells.
    New,
    /// The kernel expected it.
    Related,
}

impl State {
    const fn word(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Related => "related",
        }
    }
}

/// What drops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// The policy of the chain.
    ByPolicy,
    /// The rule with that handle.
    ByRule(u64),
}

/// The fate of such a packet in a base chain, in whichever family it is worse.
pub(super) fn fate(ruleset: &Ruleset, chain: &Chain, base: &Base, policy: &policy::Policy, state: State) -> Fate {
    let of = |is_v6| {
        let mut walk = Walk { ruleset, policy, state, is_v6, by_mark: false, is_opaque: false };
        let verdict = walk.chain(chain, 0);
        let dropped = match verdict {
            Verdict::Accepted => None,
            Verdict::Dropped(handle) => Some(Dropped::ByRule(handle)),
            Verdict::Through => (base.policy.as_deref() == Some("drop")).then_some(Dropped::ByPolicy),
        };
        Fate { dropped, by_mark: walk.by_mark, is_opaque: walk.is_opaque }
    };
    match &*chain.name.family {
        "ip" => of(false),
        "ip6" => of(true),
        _ => {
            let (v4, v6) = (of(false), of(true));
            let is_worse = |one: Fate, other: Fate| {
                (one.dropped.is_some(), !one.by_mark) > (other.dropped.is_some(), !other.by_mark)
            };
            if is_worse(v6, v4) { v6 } else { v4 }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Accepted,
    Dropped(u64),
    /// It comes out at the end.
    Through,
}

/// What a statement does where the rule comes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action<'a> {
    Accept,
    Drop,
    Return,
    Jump(&'a str),
    Goto(&'a str),
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Yes,
    No,
    Perhaps,
}

impl From<bool> for Holds {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    policy: &'a policy::Policy,
    state: State,
    is_v6: bool,
    by_mark: bool,
    is_opaque: bool,
}

impl<'a> Walk<'a> {
    fn chain(&mut self, chain: &'a Chain, depth: usize) -> Verdict {
        // As it will be when the service runs: its own rule stands at the top.
        if self.policy.admit.iter().any(|admitted| is_named(admitted, &chain.name)) {
            self.by_mark = true;
            return Verdict::Accepted;
        }
        for rule in &chain.rules {
            let mut sure = true;
            let mut looks_at_mark = false;
            for statement in &rule.statements {
                let Some((kind, content)) = statement.as_object().and_then(|object| object.iter().next()) else {
                    continue;
                };
                if kind == "match" {
                    looks_at_mark |= mentions_mark(&content["left"]);
                    match self.holds(content) {
                        Holds::Yes => {}
                        Holds::No => break,
                        Holds::Perhaps => sure = false,
                    }
                } else if kind == "vmap" {
                    let (mapped, is_sure) = mapped(content, self.state);
                    for action in mapped {
                        let verdict = self.act(action, chain, rule.handle, depth);
                        self.by_mark |= looks_at_mark && action == Action::Accept;
                        if let Some(verdict) = verdict.filter(|_| sure && is_sure) {
                            return verdict;
                        }
                    }
                } else if let Some(action) = action(kind, content) {
                    let verdict = self.act(action, chain, rule.handle, depth);
                    self.by_mark |= looks_at_mark && action == Action::Accept;
                    if let Some(verdict) = verdict.filter(|_| sure) {
                        return verdict;
                    }
                } else if !is_harmless(kind) {
                    self.is_opaque |= kind == "xt";
                    sure = false;
                }
            }
        }
        Verdict::Through
    }

    /// What follows from an action, if that is carried out; nothing if the next rule follows.
    fn act(&mut self, action: Action<'a>, chain: &Chain, handle: u64, depth: usize) -> Option<Verdict> {
        let mut call = |name| match self.ruleset.beside(&chain.name, name) {
            Some(called) if depth < DEEPEST => self.chain(called, depth + 1),
            _ => Verdict::Through,
        };
        match action {
            Action::Accept => Some(Verdict::Accepted),
            Action::Drop => Some(Verdict::Dropped(handle)),
            Action::Return => Some(Verdict::Through),
            Action::Jump(name) => Some(call(name)).filter(|verdict| *verdict != Verdict::Through),
            Action::Goto(name) => Some(call(name)),
        }
    }

    /// Whether a condition holds of the packet.
    fn holds(&self, condition: &Value) -> Holds {
        let (left, right) = (&condition["left"], &condition["right"]);
        let Some(operator) = condition["op"].as_str() else { return Holds::Perhaps };
        if let Some(mark) = mark(left, u64::from(self.policy.mark.bits())) {
            let one_of = |numbers: Vec<&Value>| {
                let numbers: Option<Vec<u64>> = numbers.into_iter().map(Value::as_u64).collect();
                numbers.map(|numbers| numbers.contains(&mark))
            };
            return compare(operator, listed(right).and_then(one_of));
        }
        let ours: &[&str] = match (left["ct"]["key"].as_str(), left["meta"]["key"].as_str()) {
            (Some("state"), _) => &[self.state.word()],
            (Some("direction"), _) => &["original"],
            (_, Some("l4proto")) => &["tcp"],
            (_, Some("nfproto")) if self.is_v6 => &["ipv6"],
            (_, Some("nfproto")) => &["ipv4"],
            _ => match (left["payload"]["protocol"].as_str(), left["payload"]["field"].as_str()) {
                (Some("ip"), _) if self.is_v6 => return Holds::No,
                (Some("ip6"), _) if !self.is_v6 => return Holds::No,
                (Some("ip"), Some("protocol")) | (Some("ip6"), Some("nexthdr")) => &["tcp"],
                (Some("udp" | "udplite" | "icmp" | "icmpv6" | "igmp" | "sctp" | "dccp" | "esp" | "ah" | "comp"), _) => {
                    return Holds::No;
                }
                _ => return Holds::Perhaps,
            },
        };
        let one_of = |words: Vec<&Value>| {
            let words: Option<Vec<&str>> = words.into_iter().map(Value::as_str).collect();
            words.map(|words| words.iter().any(|word| ours.contains(word)))
        };
        compare(operator, listed(right).and_then(one_of))
    }
}

/// Whether a policy's chain is this one.
pub(super) fn is_named(named: &policy::Chain, name: &ChainName) -> bool {
    named.family().to_string() == name.family && (named.table(), named.chain()) == (&*name.table, &*name.chain)
}

fn compare(operator: &str, is_one_of: Option<bool>) -> Holds {
    match (operator, is_one_of) {
        ("==" | "in", Some(is)) => is.into(),
        ("!=", Some(is)) => (!is).into(),
        _ => Holds::Perhaps,
    }
}

/// What is compared with: one value, several, or a set that is written out.
fn listed(right: &Value) -> Option<Vec<&Value>> {
    match right {
        Value::String(name) if name.starts_with('@') => None,
        Value::String(_) | Value::Number(_) => Some(vec![right]),
        Value::Array(several) => Some(several.iter().collect()),
        Value::Object(_) => right["set"].as_array().map(|several| several.iter().collect()),
        _ => None,
    }
}

/// The mark, or bits of it, if that is what is asked for. Nobody else is taken to set bits in it.
fn mark(left: &Value, bits: u64) -> Option<u64> {
    if left["ct"]["key"] == "mark" {
        return Some(bits);
    }
    let (masked, masks) = left["&"].as_array()?.split_first()?;
    masks.iter().try_fold(mark(masked, bits)?, |mark, mask| Some(mark & mask.as_u64()?))
}

fn mentions_mark(left: &Value) -> bool {
    mark(left, 0).is_some()
}

fn action<'a>(kind: &str, content: &'a Value) -> Option<Action<'a>> {
    match kind {
        "accept" => Some(Action::Accept),
        "drop" | "reject" => Some(Action::Drop),
        "return" => Some(Action::Return),
        "jump" => content["target"].as_str().map(Action::Jump),
        "goto" => content["target"].as_str().map(Action::Goto),
        _ => None,
    }
}

/// What a map of verdicts may lead to, and whether it does for certain.
fn mapped(content: &Value, state: State) -> (Vec<Action<'_>>, bool) {
    let by_state = content["key"]["ct"]["key"] == "state";
    let entries = content["data"]["set"].as_array().map(Vec::as_slice).unwrap_or_default();
    let leads = entries.iter().filter(|entry| !by_state || entry[0] == state.word()).filter_map(|entry| {
        let (kind, content) = entry[1].as_object()?.iter().next()?;
        action(kind, content)
    });
    (leads.collect(), by_state)
}

/// Statements that let every packet go on to the next one.
fn is_harmless(kind: &str) -> bool {
    ["counter", "log", "mangle", "comment", "set", "map", "notrack", "continue", "meter", "dup", "last"].contains(&kind)
        || ["ct helper", "ct timeout", "ct expectation", "secmark", "flow"].contains(&kind)
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
