//! Evaluates the host's rules for the first packet of a connection that Pinhole admits, or for a packet of a control
//! connection: the protocol is TCP, the packet comes from another host or goes there, the hosts are unknown.
//!
//! Each condition of a rule holds, does not hold, or is unknown, and so is the verdict. Conditions on anything but
//! state, mark, protocol and ports are unknown.

use nftables::expr::{
    BinaryOperation, CT, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Range, SetItem,
    Verdict as MapVerdict,
};
use nftables::stmt::{Match, Operator, Queue, QueueFlag, Statement as Content, VerdictMap};
use nftables::types::{NfChainPolicy, NfFamily};

use super::packet_mark::{Assigned, assigned};
use super::ruleset::{Base, Chain, ChainName, Ruleset, Statement, family_name};
use crate::core::policy;
use crate::netfilter::netlink::{CtKey, Target};

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
    /// A later packet of the connection.
    Established,
}

impl State {
    const fn word(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Related => "related",
            Self::Established => "established",
        }
    }

    /// Its bit in `ct state`.
    const fn bit(self) -> u32 {
        match self {
            Self::New => CtKey::NEW,
            Self::Related => CtKey::RELATED,
            Self::Established => CtKey::ESTABLISHED,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    ByPolicy,
    /// The rule with that handle.
    ByRule(u64),
}

/// What is known of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    /// The chains of `admit` accept it: a data connection.
    is_admitted: bool,
    /// `ct state`. None if connection tracking has not seen the packet yet.
    state: Option<State>,
    /// `ct mark`.
    mark: u32,
    source: PacketPort,
    destination: PacketPort,
}

/// A port of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PacketPort {
    Is(u16),
    /// Unknown, but none below 1024.
    Unprivileged,
    Unknown,
}

impl Packet {
    /// The SYN of an announced data connection, before or after Pinhole has marked it.
    pub(super) const fn data(state: Option<State>, mark: u32) -> Self {
        let (source, destination) = (PacketPort::Unknown, PacketPort::Unprivileged);
        Self { is_admitted: true, state, mark, source, destination }
    }

    /// A later packet of an announced data connection.
    pub(super) const fn established_data(mark: u32) -> Self {
        let (source, destination) = (PacketPort::Unprivileged, PacketPort::Unprivileged);
        Self { is_admitted: false, state: Some(State::Established), mark, source, destination }
    }

    /// A packet from a client to a control port.
    pub(super) const fn to_control_port(state: Option<State>, port: u16) -> Self {
        let (source, destination) = (PacketPort::Unprivileged, PacketPort::Is(port));
        Self { is_admitted: false, state, mark: 0, source, destination }
    }

    /// A packet from a control port to a client.
    pub(super) const fn from_control_port(state: Option<State>, port: u16) -> Self {
        let (source, destination) = (PacketPort::Is(port), PacketPort::Unprivileged);
        Self { is_admitted: false, state, mark: 0, source, destination }
    }

    /// Whether it is the SYN of a control connection or of a data connection, as probes are. None if it is neither.
    pub(super) const fn probed(self) -> Option<bool> {
        match (self.is_admitted, self.destination) {
            (true, _) => Some(false),
            (false, PacketPort::Is(_)) => Some(true),
            (false, _) => None,
        }
    }
}

impl PacketPort {
    /// Whether the value of a condition is this port. None if that is unknown.
    fn is(self, value: &Expression<'_>) -> Option<bool> {
        let (first, last) = match value {
            Expression::Number(number) => (*number, *number),
            Expression::Range(range) => match &**range {
                Range { range: [Expression::Number(first), Expression::Number(last)] } => (*first, *last),
                Range { .. } => return None,
            },
            _ => return None,
        };
        match self {
            Self::Is(port) => Some((first..=last).contains(&u32::from(port))),
            Self::Unprivileged if last < 1024 => Some(false),
            Self::Unprivileged | Self::Unknown => None,
        }
    }
}

/// What a chain does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Passage {
    pub(super) dropped: Option<Dropped>,
    /// Some rule accepts it, perhaps under further conditions, or it may leave a chain before a rule that drops it.
    pub(super) may_accept: bool,
    /// Such a rule asks for the port of the control connection.
    pub(super) by_port: bool,
    /// A rule that matches Pinhole's mark accepts it, perhaps under further conditions.
    pub(super) by_mark: bool,
    is_opaque: bool,
    /// What rules that the packet reaches do with it.
    pub(super) effects: Vec<Effect>,
}

/// What a rule does with a packet besides a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Effect {
    /// Of the rule.
    pub(super) handle: u64,
    pub(super) kind: EffectKind,
    /// The packet meets all conditions of the rule. Otherwise some are unknown.
    pub(super) is_sure: bool,
    /// One of those that it meets asks for the port of the control connection.
    pub(super) by_port: bool,
    /// One of those that are unknown asks for a port.
    pub(super) by_other_port: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EffectKind {
    /// Clears the bits of Pinhole's mark.
    ClearsMark,
    Notrack,
    /// Puts the connection into another conntrack zone than the default one.
    Zone,
    /// Answers a SYN (`synproxy`).
    SynProxy,
    /// What the program that reads the queue accepts leaves the chain, and so do packets that bypass the queue.
    Queue {
        first: u16,
        last: u16,
        bypass: bool,
    },
    /// Assigns a conntrack helper of this name.
    Helper(String),
}

/// Evaluates a base chain for a packet, of IPv6 or of IPv4.
pub(super) fn pass(
    ruleset: &Ruleset,
    chain: &Chain,
    base: &Base,
    policy: &policy::Policy,
    packet: Packet,
    is_v6: bool,
) -> Passage {
    let mut walk = Walk {
        ruleset,
        policy,
        packet,
        is_v6,
        by_mark: false,
        is_opaque: false,
        may_accept: false,
        by_port: false,
        packet_mark: Assigned::Known(0),
        effects: Vec::new(),
    };
    let verdict = walk.chain(chain, 0);
    let dropped = match verdict {
        Verdict::Accepted => None,
        Verdict::Dropped(handle) => Some(Dropped::ByRule(handle)),
        Verdict::Continue => (base.policy == Some(NfChainPolicy::Drop)).then_some(Dropped::ByPolicy),
    };
    let Walk { by_mark, is_opaque, may_accept, by_port, effects, .. } = walk;
    Passage { dropped, may_accept, by_port, by_mark, is_opaque, effects }
}

/// Whether a chain sees packets of IPv4, and of IPv6.
pub(super) const fn versions(family: NfFamily) -> &'static [bool] {
    match family {
        NfFamily::IP => &[false],
        NfFamily::IP6 => &[true],
        _ => &[false, true],
    }
}

/// Evaluates a base chain for a data connection. If the chain filters IPv4 and IPv6, returns the worse outcome.
pub(super) fn evaluate(
    ruleset: &Ruleset,
    chain: &Chain,
    base: &Base,
    policy: &policy::Policy,
    state: State,
) -> Outcome {
    let packet = Packet::data(Some(state), policy.mark.bits());
    let of = |is_v6: &bool| {
        let Passage { dropped, by_mark, is_opaque, .. } = pass(ruleset, chain, base, policy, packet, *is_v6);
        Outcome { dropped, by_mark, is_opaque }
    };
    let badness = |outcome: &Outcome| (outcome.dropped.is_some(), !outcome.by_mark);
    let outcomes = versions(chain.name.family).iter().map(of);
    // Of two that are as bad, the one of IPv4.
    outcomes.rev().max_by_key(badness).unwrap_or(Outcome { dropped: None, by_mark: false, is_opaque: false })
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
    packet: Packet,
    is_v6: bool,
    by_mark: bool,
    is_opaque: bool,
    may_accept: bool,
    by_port: bool,
    /// `meta mark`, as far as this chain has set it.
    packet_mark: Assigned,
    effects: Vec<Effect>,
}

/// What the conditions of a rule ask for.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    mark: bool,
    port: bool,
    other_port: bool,
}

impl<'a> Walk<'a> {
    fn chain(&mut self, chain: &'a Chain, depth: usize) -> Verdict {
        // While the daemon runs, its accept rule is at the top of this chain.
        if self.packet.is_admitted && self.policy.admit.iter().any(|admitted| is_named(admitted, &chain.name)) {
            self.by_mark = true;
            self.may_accept = true;
            return Verdict::Accepted;
        }
        for rule in &chain.rules {
            let mut sure = true;
            let mut asked = Asked::default();
            let mut is_met = true;
            let xt = rule.xt.as_ref();
            if let Some(connmark) = xt.and_then(|xt| xt.connmark) {
                if !connmark.matches(self.packet.mark) {
                    continue;
                }
                asked.mark = !connmark.is_inverted;
            }
            match (xt.and_then(|xt| xt.state), self.packet.state) {
                (Some(states), Some(state)) if !states.matches(state.bit()) => continue,
                (Some(_), None) => sure = false,
                _ => {}
            }
            let is_xt_read = xt.is_some_and(|xt| !xt.has_other_matches);
            for statement in &rule.statements {
                if let Some(Content::Match(condition)) = &statement.content {
                    asked.mark |= mentions_mark(&condition.left);
                    match self.holds(condition) {
                        Holds::Yes => asked.port |= self.asks_for_port(condition),
                        Holds::No => {
                            is_met = false;
                            break;
                        }
                        Holds::Perhaps => {
                            asked.other_port |= self.port(&condition.left).is_some();
                            sure = false;
                        }
                    }
                } else if let Some(Content::VerdictMap(map)) = &statement.content {
                    let (mapped, is_sure) = mapped(map, self.packet.state);
                    for action in mapped {
                        let verdict = self.act(action, chain, rule.handle, depth, asked);
                        if let Some(verdict) = verdict.filter(|_| sure && is_sure) {
                            return verdict;
                        }
                    }
                } else if let Some(action) = action(statement) {
                    // A later rule drops it only if it does not leave the chain here.
                    self.may_accept |= action == Action::Return && !sure;
                    let verdict = self.act(action, chain, rule.handle, depth, asked);
                    if let Some(verdict) = verdict.filter(|_| sure) {
                        return verdict;
                    }
                } else if matches!(statement.content, Some(Content::Queue(_))) {
                    self.has_effect(statement, rule.handle, sure, asked);
                    if sure {
                        return Verdict::Accepted;
                    }
                } else if statement.name == "xt" && is_xt_read {
                    // All matches of the rule were evaluated above, and its target is evaluated below.
                } else if !self.has_effect(statement, rule.handle, sure, asked) && !is_harmless(&statement.name) {
                    self.is_opaque |= statement.name == "xt";
                    sure = false;
                }
            }
            if is_met
                && let Some(target) = xt.and_then(|xt| xt.target.as_ref())
                && let Some(verdict) = self.target(target, rule.handle, sure, asked).filter(|_| sure)
            {
                return verdict;
            }
        }
        Verdict::Continue
    }

    /// Records what a statement does to the packet. Returns whether the statement is one of those.
    fn has_effect(&mut self, statement: &Statement, handle: u64, is_sure: bool, asked: Asked) -> bool {
        let kind = match &statement.content {
            Some(Content::Queue(Queue { num, flags })) => {
                let (first, last) = queues(num);
                let bypass = flags.as_ref().is_some_and(|flags| flags.contains(&QueueFlag::Bypass));
                self.may_accept = true;
                Some(EffectKind::Queue { first, last, bypass })
            }
            Some(Content::CTHelper(name)) => Some(EffectKind::Helper(name.to_string())),
            Some(Content::Mangle(mangle)) => {
                let value = assigned(&mangle.value, self.packet.mark, self.packet_mark);
                match &mangle.key {
                    Expression::Named(NamedExpression::CT(CT { key, .. })) if key == "mark" => {
                        value.clears(self.policy.mark.bits()).then_some(EffectKind::ClearsMark)
                    }
                    Expression::Named(NamedExpression::CT(CT { key, .. })) if key == "zone" => {
                        (mangle.value != Expression::Number(0)).then_some(EffectKind::Zone)
                    }
                    Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Mark })) => {
                        self.packet_mark = if is_sure { value } else { Assigned::Unknown };
                        None
                    }
                    _ => None,
                }
            }
            _ if statement.name == "notrack" => Some(EffectKind::Notrack),
            _ if statement.name == "synproxy" => Some(EffectKind::SynProxy),
            _ => return false,
        };
        if let Some(kind) = kind {
            self.record(kind, handle, is_sure, asked);
        }
        true
    }

    /// Records what a target of iptables does to the packet. Returns its verdict, if it has one.
    fn target(&mut self, target: &Target, handle: u64, is_sure: bool, asked: Asked) -> Option<Verdict> {
        let bits = self.policy.mark.bits();
        let clears = |mask: u32, value: u32| mask & bits != 0 && value & mask & bits == 0;
        let kind = match target {
            Target::Reject => return Some(Verdict::Dropped(handle)),
            Target::Notrack => EffectKind::Notrack,
            Target::Zone => EffectKind::Zone,
            Target::SynProxy => EffectKind::SynProxy,
            Target::Helper(name) => EffectKind::Helper(name.to_string()),
            Target::Queue { first, count, bypass } => {
                let last = first.saturating_add(count.saturating_sub(1));
                self.may_accept = true;
                self.record(EffectKind::Queue { first: *first, last, bypass: *bypass }, handle, is_sure, asked);
                return Some(Verdict::Accepted);
            }
            Target::SetConnmark { value, mask } if clears(*mask, *value) => EffectKind::ClearsMark,
            Target::SaveConnmark { connection_mask, .. } if clears(*connection_mask, 0) => EffectKind::ClearsMark,
            Target::SetConnmark { .. } | Target::SaveConnmark { .. } => return None,
            Target::Other => {
                self.is_opaque = true;
                return None;
            }
        };
        self.record(kind, handle, is_sure, asked);
        None
    }

    fn record(&mut self, kind: EffectKind, handle: u64, is_sure: bool, asked: Asked) {
        self.effects.push(Effect { handle, kind, is_sure, by_port: asked.port, by_other_port: asked.other_port });
    }

    /// Whether a condition asks for the port of a control connection.
    fn asks_for_port(&self, Match { left, .. }: &Match<'_>) -> bool {
        matches!(self.port(left), Some(PacketPort::Is(_)))
    }

    /// The port of the packet that an expression loads.
    fn port(&self, left: &Expression<'_>) -> Option<PacketPort> {
        let Expression::Named(NamedExpression::Payload(Payload::PayloadField(PayloadField { protocol, field }))) = left
        else {
            return None;
        };
        match (&**protocol, &**field) {
            ("tcp" | "th", "dport") => Some(self.packet.destination),
            ("tcp" | "th", "sport") => Some(self.packet.source),
            _ => None,
        }
    }

    /// The verdict of an action. None if evaluation continues with the next rule.
    fn act(&mut self, action: Action<'a>, chain: &Chain, handle: u64, depth: usize, asked: Asked) -> Option<Verdict> {
        if action == Action::Accept {
            self.by_mark |= asked.mark;
            self.by_port |= asked.port;
            self.may_accept = true;
        }
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
        if let Some(mark) = mark(left, self.packet.mark) {
            return compare(*op, right, |value| match value {
                Expression::Number(number) => Some(*number == mark),
                _ => None,
            });
        }
        if let Some(port) = self.port(left) {
            return compare(*op, right, |value| port.is(value));
        }
        let Expression::Named(left) = left else { return Holds::Perhaps };
        let ours = match left {
            NamedExpression::Meta(Meta { key: MetaKey::Iif | MetaKey::Iifname | MetaKey::Oif | MetaKey::Oifname }) => {
                return compare(*op, right, |value| match value {
                    Expression::String(name) if name == "lo" => Some(false),
                    _ => None,
                });
            }
            NamedExpression::CT(CT { key, .. }) if key == "state" => match self.packet.state {
                Some(state) => state.word(),
                None => return Holds::Perhaps,
            },
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

/// The numbers of the queues in a statement `queue`.
fn queues(number: &Expression<'_>) -> (u16, u16) {
    let number_of = |expression: &Expression<'_>| match expression {
        Expression::Number(number) => u16::try_from(*number).ok(),
        _ => None,
    };
    match number {
        Expression::Range(range) => {
            let Range { range: [first, last] } = &**range;
            (number_of(first).unwrap_or(0), number_of(last).unwrap_or(u16::MAX))
        }
        _ => number_of(number).map_or((0, u16::MAX), |number| (number, number)),
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
fn mapped<'a>(map: &'a VerdictMap<'a>, state: Option<State>) -> (Vec<Action<'a>>, bool) {
    let state = state.map(State::word);
    let by_state =
        state.is_some() && matches!(&map.key, Expression::Named(NamedExpression::CT(CT { key, .. })) if key == "state");
    let Expression::Named(NamedExpression::Set(items)) = &map.data else { return (Vec::new(), by_state) };
    let actions = items.iter().filter_map(|item| {
        // The crate parses a pair of key and verdict as a list.
        let SetItem::Element(Expression::List(pair)) = item else { return None };
        let [key, Expression::Verdict(verdict)] = &**pair else { return None };
        if by_state && !matches!(key, Expression::String(word) if Some(&**word) == state) {
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
