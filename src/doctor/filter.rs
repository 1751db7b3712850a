//! Evaluates what a host's filter does with the first packet of a connection that Pinhole admits: `new` or
//! `related`, TCP, with Pinhole's mark, between unknown hosts and ports.
//!
//! Each condition of a rule holds, does not hold, or is unknown, and so is the verdict. Conditions on anything but
//! state, mark and protocol are unknown.

use nftables::expr::{
    BinaryOperation, CT, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, SetItem,
    Verdict as MapVerdict,
};
use nftables::stmt::{Match, Operator, Statement as Content, VerdictMap};
use nftables::types::{NfChainPolicy, NfFamily};

use super::ruleset::{Base, Chain, ChainName, Ruleset, Statement, family_name};
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
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
            Verdict::Through => (base.policy == Some(NfChainPolicy::Drop)).then_some(Dropped::ByPolicy),
        };
        Fate { dropped, by_mark: walk.by_mark, is_opaque: walk.is_opaque }
    };
    match chain.name.family {
        NfFamily::IP => of(false),
        NfFamily::IP6 => of(true),
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
                if let Some(Content::Match(condition)) = &statement.content {
                    looks_at_mark |= mentions_mark(&condition.left);
                    match self.holds(condition) {
                        Holds::Yes => {}
                        Holds::No => break,
                        Holds::Perhaps => sure = false,
                    }
                } else if let Some(Content::VerdictMap(map)) = &statement.content {
                    let (mapped, is_sure) = mapped(map, self.state);
                    for action in mapped {
                        let verdict = self.act(action, chain, rule.handle, depth);
                        self.by_mark |= looks_at_mark && action == Action::Accept;
                        if let Some(verdict) = verdict.filter(|_| sure && is_sure) {
                            return verdict;
                        }
                    }
                } else if let Some(action) = action(statement) {
                    let verdict = self.act(action, chain, rule.handle, depth);
                    self.by_mark |= looks_at_mark && action == Action::Accept;
                    if let Some(verdict) = verdict.filter(|_| sure) {
                        return verdict;
                    }
                } else if !is_harmless(&statement.name) {
                    self.is_opaque |= statement.name == "xt";
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
    fn holds(&self, Match { left, right, op }: &Match<'_>) -> Holds {
        if let Some(mark) = mark(left, self.policy.mark.bits()) {
            return compare(*op, right, |value| match value {
                Expression::Number(number) => Some(*number == mark),
                _ => None,
            });
        }
        let Expression::Named(left) = left else { return Holds::Perhaps };
        let ours = match left {
            NamedExpression::CT(CT { key, .. }) if key == "state" => self.state.word(),
            NamedExpression::CT(CT { key, .. }) if key == "direction" => "original",
            NamedExpression::Meta(Meta { key: MetaKey::L4proto }) => "tcp",
            NamedExpression::Meta(Meta { key: MetaKey::Nfproto }) if self.is_v6 => "ipv6",
            NamedExpression::Meta(Meta { key: MetaKey::Nfproto }) => "ipv4",
            NamedExpression::Payload(Payload::PayloadField(PayloadField { protocol, field })) => {
                match (&**protocol, &**field) {
                    ("ip", _) if self.is_v6 => return Holds::No,
                    ("ip6", _) if !self.is_v6 => return Holds::No,
                    ("ip", "protocol") | ("ip6", "nexthdr") => "tcp",
                    ("udp" | "udplite" | "icmp" | "icmpv6" | "igmp" | "sctp" | "dccp" | "esp" | "ah" | "comp", _) => {
                        return Holds::No;
                    }
                    _ => return Holds::Perhaps,
                }
            }
            _ => return Holds::Perhaps,
        };
        compare(*op, right, |value| match value {
            Expression::String(word) => Some(word == ours),
            _ => None,
        })
    }
}

/// Whether a policy's chain is this one.
pub(super) fn is_named(named: &policy::Chain, name: &ChainName) -> bool {
    named.family().to_string() == family_name(name.family)
        && (named.table(), named.chain()) == (&*name.table, &*name.chain)
}

/// `is_ours` says of each value on the right whether it is the packet's; none if that cannot be said.
fn compare(operator: Operator, right: &Expression<'_>, is_ours: impl Fn(&Expression<'_>) -> Option<bool>) -> Holds {
    let is_among = values(right).and_then(|values| {
        values.into_iter().map(is_ours).try_fold(false, |is_among, is_ours| Some(is_among | is_ours?))
    });
    match (operator, is_among) {
        (Operator::EQ | Operator::IN, Some(is_among)) => is_among.into(),
        (Operator::NEQ, Some(is_among)) => (!is_among).into(),
        _ => Holds::Perhaps,
    }
}

/// The values on the right of a comparison: one, a list, or those of an anonymous set.
fn values<'a>(right: &'a Expression<'a>) -> Option<Vec<&'a Expression<'a>>> {
    match right {
        Expression::String(name) if name.starts_with('@') => None,
        Expression::String(_) | Expression::Number(_) => Some(vec![right]),
        Expression::List(values) => Some(values.iter().collect()),
        Expression::Named(NamedExpression::Set(items)) => items
            .iter()
            .map(|item| match item {
                SetItem::Element(value) => Some(value),
                SetItem::Mapping(..) | SetItem::MappingStatement(..) => None,
            })
            .collect(),
        _ => None,
    }
}

/// The mark, or bits of it, if that is what is asked for. Nobody else is taken to set bits in it.
fn mark(left: &Expression<'_>, bits: u32) -> Option<u32> {
    match left {
        Expression::Named(NamedExpression::CT(CT { key, .. })) if key == "mark" => Some(bits),
        Expression::BinaryOperation(operation) => match &**operation {
            BinaryOperation::AND(masked, Expression::Number(mask)) => Some(mark(masked, bits)? & mask),
            _ => None,
        },
        _ => None,
    }
}

fn mentions_mark(left: &Expression<'_>) -> bool {
    mark(left, 0).is_some()
}

fn action<'a>(statement: &'a Statement) -> Option<Action<'a>> {
    match &statement.content {
        Some(Content::Accept(_)) => Some(Action::Accept),
        Some(Content::Drop(_) | Content::Reject(_)) => Some(Action::Drop),
        Some(Content::Return(_)) => Some(Action::Return),
        Some(Content::Jump(target)) => Some(Action::Jump(&target.target)),
        Some(Content::Goto(target)) => Some(Action::Goto(&target.target)),
        // The schema lacks some of the codes with which nft rejects.
        None if statement.name == "reject" => Some(Action::Drop),
        _ => None,
    }
}

/// What a map of verdicts may lead to, and whether it does for certain.
fn mapped<'a>(map: &'a VerdictMap<'a>, state: State) -> (Vec<Action<'a>>, bool) {
    let by_state = matches!(&map.key, Expression::Named(NamedExpression::CT(CT { key, .. })) if key == "state");
    let Expression::Named(NamedExpression::Set(items)) = &map.data else { return (Vec::new(), by_state) };
    let actions = items.iter().filter_map(|item| {
        // The crate reads a pair of key and verdict as a list.
        let SetItem::Element(Expression::List(pair)) = item else { return None };
        let [key, Expression::Verdict(verdict)] = &**pair else { return None };
        if by_state && !matches!(key, Expression::String(word) if word == state.word()) {
            return None;
        }
        match verdict {
            MapVerdict::Accept => Some(Action::Accept),
            MapVerdict::Drop => Some(Action::Drop),
            MapVerdict::Return => Some(Action::Return),
            MapVerdict::Jump(target) => Some(Action::Jump(&target.target)),
            MapVerdict::Goto(target) => Some(Action::Goto(&target.target)),
            MapVerdict::Continue => None,
        }
    });
    (actions.collect(), by_state)
}

/// Statements that let every packet go on to the next one.
fn is_harmless(kind: &str) -> bool {
    ["counter", "log", "mangle", "comment", "set", "map", "notrack", "continue", "meter", "dup", "last"].contains(&kind)
        || ["ct helper", "ct timeout", "ct expectation", "secmark", "flow"].contains(&kind)
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
