//! Evaluates the host's filter for the first packet of a connection that Pinhole admits: `ct state` is `new` or
//! `related`, the protocol is TCP, the mark is Pinhole's, hosts and ports are unknown.
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
use crate::netfilter::netlink::CtKey;

/// The kernel's limit for nested jumps (`NFT_JUMP_STACK_SIZE`).
const MAX_JUMPS: usize = 16;

/// What a base chain does with a data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Where it is dropped, unless an earlier rule accepts it under conditions that are unknown.
    pub(super) dropped: Option<Dropped>,
    /// A rule that matches Pinhole's mark accepts it, perhaps under further conditions.
    pub(super) by_mark: bool,
    /// Some rules cannot be evaluated, because iptables wrote them.
    pub(super) is_opaque: bool,
}

/// The conntrack state (`ct state`) of a data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    New,
    /// With the mechanism `native`: conntrack expected the connection.
    Related,
}

impl State {
    const fn word(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Related => "related",
        }
    }

    /// Its bit in `ct state`.
    const fn bit(self) -> u32 {
        match self {
            Self::New => CtKey::NEW,
            Self::Related => CtKey::RELATED,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    ByPolicy,
    /// The rule with that handle.
    ByRule(u64),
}

/// Evaluates a base chain for a data connection. If the chain filters IPv4 and IPv6, returns the worse outcome.
pub(super) fn evaluate(
    ruleset: &Ruleset,
    chain: &Chain,
    base: &Base,
    policy: &policy::Policy,
    state: State,
) -> Outcome {
    let of = |is_v6| {
        let mut walk = Walk { ruleset, policy, state, is_v6, by_mark: false, is_opaque: false };
        let verdict = walk.chain(chain, 0);
        let dropped = match verdict {
            Verdict::Accepted => None,
            Verdict::Dropped(handle) => Some(Dropped::ByRule(handle)),
            Verdict::Continue => (base.policy == Some(NfChainPolicy::Drop)).then_some(Dropped::ByPolicy),
        };
        Outcome { dropped, by_mark: walk.by_mark, is_opaque: walk.is_opaque }
    };
    match chain.name.family {
        NfFamily::IP => of(false),
        NfFamily::IP6 => of(true),
        _ => {
            let (v4, v6) = (of(false), of(true));
            let badness = |outcome: Outcome| (outcome.dropped.is_some(), !outcome.by_mark);
            if badness(v6) > badness(v4) { v6 } else { v4 }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Accepted,
    Dropped(u64),
    /// The end of the chain was reached.
    Continue,
}

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
        // While the daemon runs, its accept rule is at the top of this chain.
        if self.policy.admit.iter().any(|admitted| is_named(admitted, &chain.name)) {
            self.by_mark = true;
            return Verdict::Accepted;
        }
        for rule in &chain.rules {
            let mut sure = true;
            let mut looks_at_mark = false;
            let xt = rule.xt.unwrap_or_default();
            if let Some(connmark) = xt.connmark {
                if !connmark.matches(self.policy.mark.bits()) {
                    continue;
                }
                looks_at_mark = !connmark.is_inverted;
            }
            if xt.state.is_some_and(|state| !state.matches(self.state.bit())) {
                continue;
            }
            let is_xt_read = rule.xt.is_some_and(|xt| !xt.has_others);
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
                } else if statement.name == "xt" && is_xt_read {
                    // All matches of the rule were evaluated above.
                } else if !is_harmless(&statement.name) {
                    self.is_opaque |= statement.name == "xt";
                    sure = false;
                }
            }
        }
        Verdict::Continue
    }

    /// The verdict of an action. None if evaluation continues with the next rule.
    fn act(&mut self, action: Action<'a>, chain: &Chain, handle: u64, depth: usize) -> Option<Verdict> {
        let mut call = |name| match self.ruleset.in_same_table(&chain.name, name) {
            Some(called) if depth < MAX_JUMPS => self.chain(called, depth + 1),
            _ => Verdict::Continue,
        };
        match action {
            Action::Accept => Some(Verdict::Accepted),
            Action::Drop => Some(Verdict::Dropped(handle)),
            Action::Return => Some(Verdict::Continue),
            Action::Jump(name) => Some(call(name)).filter(|verdict| *verdict != Verdict::Continue),
            Action::Goto(name) => Some(call(name)),
        }
    }

    /// Whether the packet meets a condition.
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

/// Whether the policy names this chain.
pub(super) fn is_named(named: &policy::Chain, name: &ChainName) -> bool {
    named.family().to_string() == family_name(name.family)
        && (named.table(), named.chain()) == (&*name.table, &*name.chain)
}

/// `is_ours` returns whether a value is that of the packet; none if that is unknown.
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

/// The values on the right of a comparison: a single value, a list, or the elements of an anonymous set.
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

/// The value of `left` for the packet, if it is the connection's mark or bits of the mark. Other programs are assumed to set
/// no bits of it.
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
        // The schema lacks some ICMP codes of `reject`.
        None if statement.name == "reject" => Some(Action::Drop),
        _ => None,
    }
}

/// The possible actions of a verdict map, and whether they are certain.
fn mapped<'a>(map: &'a VerdictMap<'a>, state: State) -> (Vec<Action<'a>>, bool) {
    let by_state = matches!(&map.key, Expression::Named(NamedExpression::CT(CT { key, .. })) if key == "state");
    let Expression::Named(NamedExpression::Set(items)) = &map.data else { return (Vec::new(), by_state) };
    let actions = items.iter().filter_map(|item| {
        // The crate parses a pair of key and verdict as a list.
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

/// Whether evaluation continues with the next statement for every packet.
fn is_harmless(kind: &str) -> bool {
    ["counter", "log", "mangle", "comment", "set", "map", "notrack", "continue", "meter", "dup", "last"].contains(&kind)
        || ["ct helper", "ct timeout", "ct expectation", "secmark", "flow"].contains(&kind)
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
