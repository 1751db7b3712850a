//! Conntrack zones, bridges and SYNPROXY in the host's ruleset: Pinhole serves the first two only in part. No I/O.

use std::collections::BTreeSet;

use nftables::types::{NfChainType, NfFamily, NfHook};

use super::faults::{CONNTRACK, Snapshot, listing, rule_of};
use super::filter::{self, EffectKind, Packet, State};
use super::ruleset::{Base, Chain};
use super::{Finding, Rating};

/// A rule puts control connections into a conntrack zone, where Pinhole opens nothing.
pub(super) fn zones(snapshot: &Snapshot<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let before = |base: &Base| matches!(base.hook, NfHook::Prerouting | NfHook::Output) && base.priority < CONNTRACK;
    for (chain, base) in snapshot.ruleset.bases().filter(|(_, base)| before(base)) {
        let mut seen = BTreeSet::new();
        for effect in snapshot.control_packets(None).flat_map(|packet| snapshot.effects(chain, base, packet)) {
            if effect.kind == EffectKind::Zone && !effect.by_other_port && seen.insert(effect.handle) {
                let message = format!(
                    "{} puts control connections into a conntrack zone: Pinhole admits no data connection there, as two \
                     hosts may have the same address in two zones",
                    rule_of(&effect)
                );
                let advice = format!(
                    "leave FTP in the default zone: except its hosts from that rule; or give each zone a network namespace, \
                     with a Pinhole of its own; {}",
                    listing(chain)
                );
                let about = format!("chain {}", chain.name);
                findings.push(Finding::new(Rating::Warning, about, message).advising(advice));
            }
        }
    }
    findings
}

/// A bridge filters FTP by the port of control connections, and would drop data connections.
pub(super) fn bridges(snapshot: &Snapshot<'_>) -> Vec<Finding> {
    let Snapshot { ruleset, policy, .. } = snapshot;
    let filters = ruleset.chains.iter().filter_map(|chain| {
        let base = chain.base.as_ref().filter(|base| {
            base.kind == NfChainType::Filter && matches!(base.hook, NfHook::Input | NfHook::Forward | NfHook::Output)
        });
        base.filter(|_| chain.name.family == NfFamily::Bridge).map(|base| (chain, base))
    });
    let judge = |(chain, base): (&Chain, &Base)| {
        let outcome = filter::evaluate(ruleset, chain, base, policy, snapshot.state);
        let mut ports = policy.control_ports.as_slice().iter().map(|port| port.number());
        let filters_ftp = ports.any(|port| {
            let packet = Packet::to_control_port(Some(State::New), port);
            snapshot.passages(chain, base, packet).any(|passage| passage.by_port)
        });
        if !filters_ftp || outcome.dropped.is_none() || outcome.by_mark {
            return None;
        }
        let rule = format!("`ct mark & {mark} == {mark} accept`", mark = policy.mark);
        let (message, advice) = if ruleset.sees_bridged {
            ("accepts bridged control connections and would drop their data connections".to_owned(), String::new())
        } else {
            (
                "accepts bridged control connections, which Pinhole does not see: it reads packets at the hooks of IP only"
                    .to_owned(),
                "have bridged packets pass those hooks: `modprobe br_netfilter`, `sysctl net.bridge.bridge-nf-call-iptables=1 \
                 net.bridge.bridge-nf-call-ip6tables=1`; and "
                    .to_owned(),
            )
        };
        let advice = format!("{advice}add {rule} to that chain; {}", listing(chain));
        Some(Finding::new(Rating::Warning, format_args!("chain {}", chain.name), message).advising(advice))
    };
    filters.filter_map(judge).collect()
}

/// Whether a rule answers SYNs to a control port (SYNPROXY). It needs a rule that exempts them from connection tracking.
pub(super) fn has_syn_proxy(snapshot: &Snapshot<'_>) -> bool {
    snapshot.ruleset.bases().any(|(chain, base)| {
        let mut packets = snapshot.control_packets(None);
        packets.any(|packet| {
            snapshot.effects(chain, base, packet).iter().any(|effect| {
                effect.kind == EffectKind::SynProxy && !effect.by_other_port && (effect.is_sure || effect.by_port)
            })
        })
    })
}

#[cfg(test)]
#[path = "topology_tests.rs"]
mod tests;
