//! What keeps data connections from working although the daemon runs: other rules, other programs, and servers on other
//! ports. To a client all of these look alike: the login works and LIST hangs.
//!
//! Each judge looks at one snapshot of the host for one fault. `pinhole check`, the start of `pinhole run` and `pinhole
//! explain` use the same judges. No I/O.

use std::collections::BTreeSet;

use nftables::types::{NfChainType, NfHook};

use super::filter::{self, Dropped, Effect, EffectKind, Packet, Passage, State, pass, versions};
use super::listeners::Listener;
use super::manager::Manager;
use super::probe::{Decision, Probes};
use super::ruleset::{Base, Chain, ChainName, Ruleset};
use super::{Finding, Hindered, Rating, topology};
use crate::core::policy::Policy;
use crate::netfilter::readers::Reader;

/// The priority at which connection tracking finds the connection of a packet, and at which `notrack` is too late.
pub(super) const CONNTRACK: i32 = -200;
/// The priority at which Pinhole queues control connections and marks data connections.
const OWN: i32 = -150;

/// What the judges look at.
pub(super) struct Snapshot<'a> {
    pub(super) policy: &'a Policy,
    pub(super) ruleset: &'a Ruleset,
    pub(super) listeners: &'a [Listener],
    /// The programs that read queues.
    pub(super) readers: &'a [Reader],
    /// `ct state` of a data connection.
    pub(super) state: State,
    /// Where probes came, they decide, and not what is read.
    pub(super) probes: &'a Probes,
}

type Judge = fn(&Snapshot<'_>) -> Vec<Finding>;

const JUDGES: [Judge; 10] = [
    mark_overwritten,
    early_drop,
    not_tracked,
    other_queue,
    queue_without_first_packet,
    control_port_closed,
    helper_assigned,
    server_on_other_port,
    topology::zones,
    topology::bridges,
];

/// The faults of a host.
pub(super) fn faults(snapshot: &Snapshot<'_>) -> Vec<Finding> {
    JUDGES.iter().flat_map(|judge| judge(snapshot)).collect()
}

impl Snapshot<'_> {
    /// What a chain does with a packet: of IPv4, of IPv6, or of both.
    pub(super) fn passages(&self, chain: &Chain, base: &Base, packet: Packet) -> impl Iterator<Item = Passage> {
        let versions = versions(chain.name.family).iter();
        versions.map(move |is_v6| pass(self.ruleset, chain, base, self.policy, packet, *is_v6))
    }

    /// The effects of the rules of a chain on a packet, each once.
    pub(super) fn effects(&self, chain: &Chain, base: &Base, packet: Packet) -> Vec<Effect> {
        let mut effects: Vec<Effect> = Vec::new();
        for effect in self.passages(chain, base, packet).flat_map(|passage| passage.effects) {
            match effects.iter_mut().find(|known| (known.handle, &known.kind) == (effect.handle, &effect.kind)) {
                Some(known) => known.is_sure |= effect.is_sure,
                None => effects.push(effect),
            }
        }
        let matched = self.probes.matched(&chain.name, packet.probed().unwrap_or(true));
        match (packet.probed(), matched) {
            (Some(_), Some(matched)) => {
                effects.retain(|effect| matched.contains(&effect.handle));
                effects.iter_mut().for_each(|effect| effect.is_sure = true);
            }
            // No probe is a reply to a client. What may concern one is left out where a probe came from a client.
            (None, Some(_)) => effects.retain(|effect| effect.is_sure),
            (_, None) => {}
        }
        effects
    }

    /// How a base chain decided about data connections with the mark. None if no probe came to it.
    pub(super) fn data_decision(&self, chain: &Chain) -> Option<Decision> {
        // A chain that drops a connection whose mark was overwritten is not the fault.
        let decision = self.probes.data(&chain.name, |name| self.is_base(name))?;
        (decision == Decision::Passed || self.marks_overwritten().next().is_none()).then_some(decision)
    }

    /// Whether a chain may accept clients to which no probe belongs.
    fn may_accept_others(&self, chain: &Chain, base: &Base, packet: Packet) -> bool {
        self.probes.are_guessed && self.passages(chain, base, packet).any(|passage| passage.may_accept)
    }

    fn is_base(&self, name: &ChainName) -> bool {
        self.ruleset.chains.iter().any(|chain| chain.name == *name && chain.base.is_some())
    }

    /// The rules behind Pinhole's that clear the mark, with their chains.
    fn marks_overwritten(&self) -> impl Iterator<Item = (&Chain, Effect)> {
        let packet = Packet::data(Some(self.state), self.policy.mark.bits());
        let behind = self.ruleset.bases().filter(|(_, base)| match base.hook {
            NfHook::Prerouting | NfHook::Output => base.priority >= OWN,
            NfHook::Input | NfHook::Forward | NfHook::Postrouting => true,
            _ => false,
        });
        behind.flat_map(move |(chain, base)| {
            let effects = self.effects(chain, base, packet).into_iter();
            let clears = effects
                .filter(|effect| effect.kind == EffectKind::ClearsMark && (effect.is_sure || !effect.by_other_port));
            clears.map(move |effect| (chain, effect))
        })
    }

    /// The packets of control connections, in both directions.
    pub(super) fn control_packets(&self, state: Option<State>) -> impl Iterator<Item = Packet> {
        let ports = self.policy.control_ports.as_slice().iter().map(|port| port.number());
        ports.flat_map(move |port| [Packet::to_control_port(state, port), Packet::from_control_port(state, port)])
    }

    /// Whether a rule has that effect on control connections in both directions.
    fn sees_both_directions(&self, chain: &Chain, base: &Base, effect: &Effect) -> bool {
        let mut directions = self.control_packets(Some(State::Established)).collect::<Vec<_>>();
        directions.retain(|packet| self.effects(chain, base, *packet).iter().any(|it| it.handle == effect.handle));
        let ports = self.policy.control_ports.as_slice().len();
        directions.len() > ports
    }

    /// A program that reads one of these queues.
    fn reader(&self, first: u16, last: u16) -> Option<&Reader> {
        self.readers.iter().find(|reader| (first..=last).contains(&reader.queue))
    }

    /// Whether a program listens on a control port here.
    pub(super) fn listens_here(&self) -> bool {
        let ports = self.policy.control_ports.as_slice();
        self.listeners.iter().any(|listener| ports.iter().any(|port| port.number() == listener.port))
    }

    /// Whether control connections are meant to pass the filter at a hook of these: a rule accepts their port.
    pub(super) fn accepts_control(&self, hooks: &[NfHook]) -> bool {
        let to_server = |port: u16| Packet::to_control_port(Some(State::New), port);
        self.ruleset.filters().filter(|(_, base)| hooks.contains(&base.hook)).any(|(chain, base)| {
            let mut ports = self.policy.control_ports.as_slice().iter();
            ports.any(|port| self.passages(chain, base, to_server(port.number())).any(|passage| passage.by_port))
        })
    }
}

fn queue_numbers(first: u16, last: u16) -> String {
    if first == last { format!("queue {first}") } else { format!("queues {first}-{last}") }
}

/// How to look at the rule of an effect.
pub(super) fn rule_of(effect: &Effect) -> String {
    let condition = if effect.is_sure { "" } else { ", under conditions that `check` cannot evaluate," };
    format!("its rule with handle {}{condition}", effect.handle)
}

pub(super) fn listing(chain: &Chain) -> String {
    format!("`nft -a list chain {}` shows it", chain.name)
}

/// A rule behind Pinhole's clears the mark, so that no rule for the mark matches.
fn mark_overwritten(snapshot: &Snapshot<'_>) -> Vec<Finding> {
    let judge = |(chain, effect): (&Chain, Effect)| {
        let message = format!("{} overwrites the mark of announced data connections (`ct mark set`)", rule_of(&effect));
        let advice = format!(
            "keep Pinhole's bits: `ct mark set ct mark & {mark} | ...` (iptables: `--set-xmark VALUE/MASK`, or `--save-mark \
             --ctmask MASK`, with a MASK without {mark}), or choose another bit in the policy: `mark:`; {}",
            listing(chain),
            mark = snapshot.policy.mark
        );
        Finding::new(Rating::Warning, format_args!("chain {}", chain.name), message)
            .advising(advice)
            .hindering(Hindered::DataConnections)
    };
    snapshot.marks_overwritten().map(judge).collect()
}

/// A chain before or behind the filter drops data connections. The filter itself is judged by itself.
fn early_drop(snapshot: &Snapshot<'_>) -> Vec<Finding> {
    let chains = snapshot.ruleset.bases().filter(|(_, base)| {
        base.kind != NfChainType::NAT && matches!(base.hook, NfHook::Prerouting | NfHook::Postrouting)
            || base.hook == NfHook::Output && base.kind == NfChainType::Route
    });
    let judge = |(chain, base): (&Chain, &Base)| {
        let is_before = base.hook != NfHook::Postrouting && base.priority < OWN;
        let mark = if is_before { 0 } else { snapshot.policy.mark.bits() };
        let state = (base.hook == NfHook::Postrouting || base.priority > CONNTRACK).then_some(snapshot.state);
        let read = || {
            snapshot.passages(chain, base, Packet::data(state, mark)).find_map(|passage| {
                // A policy drop with rules that cannot be evaluated is left to the trace.
                passage.dropped.filter(|dropped| *dropped != Dropped::ByPolicy || !passage.may_accept)
            })
        };
        let (dropped, probe) = match snapshot.data_decision(chain) {
            Some(Decision::Passed) => return None,
            Some(Decision::Dropped(dropped, probe)) => (dropped, format!(" (probe: {probe})")),
            None => (read()?, String::new()),
        };
        let by = match dropped {
            Dropped::ByPolicy => "its policy is drop".to_owned(),
            Dropped::ByRule(handle) => format!("its rule with handle {handle} drops them"),
        };
        let advice = if is_before {
            format!("the mark is not set there yet: let that chain pass new TCP connections; {}", listing(chain))
        } else {
            format!("add above that `{}`; {}", crate::netfilter::table::own_rule(snapshot.policy.mark), listing(chain))
        };
        let message = format!("would drop data connections: {by}{probe}");
        let finding = Finding::new(Rating::Warning, format_args!("chain {}", chain.name), message);
        Some(finding.advising(advice).hindering(Hindered::DataConnections))
    };
    chains.filter_map(judge).collect()
}

/// `notrack` hides control connections from connection tracking, and so from Pinhole.
fn not_tracked(snapshot: &Snapshot<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let before = |base: &Base| matches!(base.hook, NfHook::Prerouting | NfHook::Output) && base.priority < CONNTRACK;
    for (chain, base) in snapshot.ruleset.bases().filter(|(_, base)| before(base)) {
        let mut seen = BTreeSet::new();
        for effect in snapshot.control_packets(None).flat_map(|packet| snapshot.effects(chain, base, packet)) {
            // A rule with unknown conditions that does not name the port is probably for something else.
            let concerns = effect.is_sure || effect.by_port && !topology::has_syn_proxy(snapshot);
            if effect.kind == EffectKind::Notrack && concerns && seen.insert(effect.handle) {
                let message = format!(
                    "{} exempts control connections from connection tracking (`notrack`): Pinhole reads none of them",
                    rule_of(&effect)
                );
                let advice = format!("except the control ports from that rule; {}", listing(chain));
                let about = format!("chain {}", chain.name);
                let finding = Finding::new(Rating::Warning, about, message).advising(advice);
                findings.push(finding.hindering(Hindered::ControlConnections));
            }
        }
    }
    findings
}

/// Another rule queues control connections to another program.
fn other_queue(snapshot: &Snapshot<'_>) -> Vec<Finding> {
    let own: BTreeSet<u16> = snapshot.policy.capture.queues().numbers().collect();
    let mut findings = Vec::new();
    for (chain, base) in snapshot.ruleset.bases() {
        let state = (base.priority >= CONNTRACK || !matches!(base.hook, NfHook::Prerouting | NfHook::Output))
            .then_some(State::New);
        let mut seen = BTreeSet::new();
        for effect in snapshot.control_packets(state).flat_map(|packet| snapshot.effects(chain, base, packet)) {
            let EffectKind::Queue { first, last, bypass } = effect.kind else { continue };
            if !seen.insert(effect.handle) {
                continue;
            }
            let is_before = matches!(base.hook, NfHook::Prerouting | NfHook::Output) && base.priority < OWN;
            let queue = queue_numbers(first, last);
            let reader = snapshot.reader(first, last);
            let rule = rule_of(&effect);
            let about = format!("chain {}", chain.name);
            let finding = if own.iter().any(|number| (first..=last).contains(number)) {
                Finding::new(
                    Rating::Warning,
                    about,
                    format_args!(
                        "{rule} sends control connections to {queue}, which Pinhole reads: it gets them twice"
                    ),
                )
                .advising("choose another queue in the policy, `capture: { queue: N }`, or in that rule")
                .hindering(Hindered::ControlConnections)
            } else if let Some(reader) = reader {
                let order = if is_before {
                    "before Pinhole reads them: Pinhole reads what that program accepts"
                } else {
                    "after Pinhole has read them"
                };
                let message = format!("{rule} sends control connections to {queue}, read by {reader}, {order}");
                if !is_before && snapshot.ruleset.translates() && snapshot.sees_both_directions(chain, base, &effect) {
                    Finding::new(Rating::Warning, about, message).advising(
                        "with NAT, that program sees lines that Pinhole has rewritten before the kernel adjusts their sequence \
                         numbers: set `stream: inline: no` in suricata.yaml, or Suricata replaces bytes of later lines; see \
                         docs/howto/ids.md",
                    )
                } else if is_before {
                    // It works with an IPS. But what that program holds or drops never reaches Pinhole.
                    Finding::new(Rating::Ok, about, message)
                        .advising(format_args!(
                            "if sessions hang, let that program end, or move its chain behind priority {OWN}; {}",
                            listing(chain)
                        ))
                        .hindering(Hindered::ControlConnections)
                } else {
                    Finding::new(Rating::Ok, about, message)
                }
            } else if bypass {
                Finding::new(
                    Rating::Ok,
                    about,
                    format_args!(
                        "{rule} sends control connections to {queue}, which no program reads; they continue (`bypass`)"
                    ),
                )
            } else {
                Finding::new(
                    Rating::Warning,
                    about,
                    format_args!(
                        "{rule} sends control connections to {queue}, which no program reads: they are dropped"
                    ),
                )
                .advising(format_args!("start that program, remove the rule, or add `bypass`; {}", listing(chain)))
                .hindering(Hindered::ControlConnections)
            };
            findings.push(finding);
        }
    }
    findings
}

/// A chain accepts the SYN of a data connection by its mark, and a later rule queues the other packets. A program that
/// follows TCP, such as Suricata as an IPS, drops the packets of a connection whose SYN it has not seen.
fn queue_without_first_packet(snapshot: &Snapshot<'_>) -> Vec<Finding> {
    let own: BTreeSet<u16> = snapshot.policy.capture.queues().numbers().collect();
    let bits = snapshot.policy.mark.bits();
    let mut findings = Vec::new();
    for (chain, base) in snapshot.ruleset.bases().filter(|(_, base)| base.kind != NfChainType::NAT) {
        let syn = Packet::data(Some(snapshot.state), bits);
        let passages: Vec<Passage> = snapshot.passages(chain, base, syn).collect();
        if !passages.iter().any(|passage| passage.by_mark && passage.dropped.is_none()) {
            continue;
        }
        let sees_syn = |handle: u64| passages.iter().flat_map(|passage| &passage.effects).any(|it| it.handle == handle);
        for effect in snapshot.effects(chain, base, Packet::established_data(bits)) {
            let EffectKind::Queue { first, last, .. } = effect.kind else { continue };
            if effect.by_other_port || sees_syn(effect.handle) || own.iter().any(|own| (first..=last).contains(own)) {
                continue;
            }
            let reader = snapshot.reader(first, last).map(|reader| format!(" (read by {reader})")).unwrap_or_default();
            let message = format!(
                "{} sends data connections to {}{reader}, but without their SYN, which the accept rule above it admits: \
                 an IPS drops the rest",
                rule_of(&effect),
                queue_numbers(first, last)
            );
            let advice = format!(
                "queue in a chain of its own: a base chain at another priority, with iptables `-t mangle`; {}; see \
                 docs/howto/ids.md",
                listing(chain)
            );
            let about = format!("chain {}", chain.name);
            findings.push(Finding::new(Rating::Warning, about, message).advising(advice));
        }
    }
    findings
}

/// The filter drops control connections.
fn control_port_closed(snapshot: &Snapshot<'_>) -> Vec<Finding> {
    // With DNAT, the filter sees other ports than clients dial.
    let changes_destinations = snapshot.ruleset.changes_destinations();
    let mut findings = Vec::new();
    for (chain, base) in snapshot.ruleset.bases() {
        for port in snapshot.policy.control_ports.as_slice().iter().map(|port| port.number()) {
            let listens = snapshot.listeners.iter().any(|listener| listener.port == port);
            // Where no server is seen, FTP is meant to pass the chain if it accepts data connections by their mark.
            let is_meant = match base.hook {
                _ if base.kind != NfChainType::Filter => false,
                NfHook::Input => listens,
                NfHook::Forward => {
                    filter::evaluate(snapshot.ruleset, chain, base, snapshot.policy, snapshot.state).by_mark && !listens
                }
                _ => false,
            };
            let packet = Packet::to_control_port(Some(State::New), port);
            let closes = |passage: Passage| passage.dropped.filter(|_| !passage.may_accept);
            let (dropped, probe) = match snapshot.probes.control(&chain.name, port, |name| snapshot.is_base(name)) {
                Some(Decision::Passed) => continue,
                Some(Decision::Dropped(..)) if snapshot.may_accept_others(chain, base, packet) => continue,
                Some(Decision::Dropped(dropped, probe)) => (dropped, format!(" (probe: {probe})")),
                None if !is_meant || changes_destinations => continue,
                None => match snapshot.passages(chain, base, packet).find_map(closes) {
                    Some(dropped) => (dropped, String::new()),
                    None => continue,
                },
            };
            let by = match dropped {
                Dropped::ByPolicy => "its policy is drop, and no rule accepts them".to_owned(),
                Dropped::ByRule(handle) => format!("its rule with handle {handle} drops them"),
            };
            let message = format!("drops control connections to port {port}: {by}{probe}");
            let advice = Manager::of(snapshot.ruleset, chain).port_advice(chain, port);
            let finding = Finding::new(Rating::Warning, format_args!("chain {}", chain.name), message);
            findings.push(finding.advising(advice).hindering(Hindered::ControlConnections));
        }
    }
    findings
}

/// A rule of iptables assigns the kernel's FTP helper. Objects of nft are judged where they are listed.
fn helper_assigned(snapshot: &Snapshot<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (chain, base) in snapshot.ruleset.bases().filter(|(chain, _)| chain.is_of_iptables) {
        let mut seen = BTreeSet::new();
        for effect in snapshot.control_packets(None).flat_map(|packet| snapshot.effects(chain, base, packet)) {
            if effect.kind == EffectKind::Helper("ftp".to_owned()) && seen.insert(effect.handle) {
                let message = format!("{} assigns the kernel's FTP helper to control connections", rule_of(&effect));
                let advice = "what it admits bypasses Pinhole's policy: remove the rule while Pinhole runs";
                findings.push(
                    Finding::new(Rating::Warning, format_args!("chain {}", chain.name), message).advising(advice),
                );
            }
        }
    }
    findings
}

/// An FTP server listens on a port whose connections Pinhole does not read.
fn server_on_other_port(snapshot: &Snapshot<'_>) -> Vec<Finding> {
    let ports = snapshot.policy.control_ports.as_slice();
    let mut found: BTreeSet<(u16, &str)> = BTreeSet::new();
    for Listener { port, program } in snapshot.listeners {
        let is_control = ports.iter().any(|control| control.number() == *port);
        if let Some(program) = program.as_ref().filter(|program| program.is_ftp_server && !program.has_connections)
            && !is_control
        {
            found.insert((*port, &program.name));
        }
    }
    let judge = |(port, name)| {
        let named: Vec<String> =
            ports.iter().map(|port| port.number()).chain([port]).map(|port| port.to_string()).collect();
        Finding::new(
            Rating::Warning,
            "control_ports",
            format_args!("{name} listens on port {port}, which Pinhole does not read"),
        )
        .advising(format_args!(
            "if that is its control port, add it to the policy: `control_ports: [{}]`",
            named.join(", ")
        ))
        .hindering(Hindered::ControlConnections)
    };
    found.into_iter().map(judge).collect()
}

#[cfg(test)]
#[path = "faults_tests.rs"]
mod tests;
