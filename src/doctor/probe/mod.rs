//! Probes: the SYNs of a control connection and of its data connections, sent through a copy of this host.
//!
//! The copy is a network namespace with the host's tables, interfaces, addresses and routes, and with Pinhole's own table, as
//! `run` installs it. The kernel itself decides there about each SYN, and its trace names the rules. Nothing of this host
//! is changed, and no packet leaves it.

mod addresses;
mod namespace;
mod pairs;
mod replica;
mod syn;
mod tables;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

pub use pairs::Pair;
use pairs::Pairs;

use super::filter::Dropped;
use super::listeners::Listener;
use super::ruleset::{ChainName, Ruleset};
use super::{Finding, Rating};
use crate::core::net::Endpoint;
use crate::core::policy::Policy;

/// What the probes found.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    sent: Vec<Probe>,
    /// What of this host the copy lacks.
    left_out: Vec<String>,
    /// Why there are no probes, or not all.
    failed: Option<String>,
    /// The clients are made up: the rules may be for others.
    pub(super) are_guessed: bool,
}

/// A SYN that was sent, and its path.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    kind: Kind,
    from: IpAddr,
    to: Endpoint,
    /// The rules that it matched and the policies that applied to it. The last one may have dropped it.
    steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Control,
    Passive,
    Active,
}

impl Kind {
    pub(super) const fn is_control(self) -> bool {
        matches!(self, Self::Control)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Control => "control",
            Self::Passive => "passive",
            Self::Active => "active",
        })
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} -> {}", self.kind, self.from, self.to)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    chain: ChainName,
    /// The rule of this host, by its handle. None for the policy of a chain, and for a rule of Pinhole.
    handle: Option<u64>,
    is_drop: bool,
}

/// How a base chain decided about probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Passed,
    /// It dropped one, which is described.
    Dropped(Dropped, String),
}

impl Probes {
    /// There are none, because of this.
    pub(super) fn not_sent(why: &str) -> Self {
        Self { failed: Some(why.to_owned()), ..Self::default() }
    }

    /// Sends them between these hosts, or if none are named, between those that are likely to matter.
    pub(super) fn send(policy: &Policy, ruleset: &Ruleset, listeners: &[Listener], named: &[Pair]) -> Self {
        let found = match named {
            [] => pairs::likely(policy, listeners),
            named => Ok(Pairs { pairs: named.to_vec(), are_guessed: false }),
        };
        match found {
            Ok(Pairs { pairs, .. }) if pairs.is_empty() => Self::not_sent(
                "no server listens on a control port here, and no control connection passes this host; \
                 `pinhole check --probe CLIENT SERVER` probes between two hosts",
            ),
            Ok(Pairs { pairs, are_guessed }) => {
                Self { are_guessed, ..syn::send_all(policy, ruleset, listeners, &pairs) }
            }
            Err(why) => Self::not_sent(&why),
        }
    }

    /// What was sent, what of this host the copy lacks, and why nothing was sent.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let about = "probe";
        let sent = self.sent.iter().map(|probe| {
            let result = match probe.steps.iter().find(|step| step.is_drop) {
                None => "no rule drops it".to_owned(),
                Some(step) => format!("dropped in chain {}", step.chain),
            };
            Finding::new(Rating::Ok, about, format_args!("{probe}: {result}"))
        });
        let left_out = self
            .left_out
            .iter()
            .map(|what| Finding::new(Rating::Ok, about, format_args!("the copy of this host lacks {what}")));
        let failed = self.failed.iter().map(|why| {
            let rest = if self.sent.is_empty() { "nothing was sent" } else { "not all was sent" };
            Finding::new(Rating::Ok, about, format_args!("{rest}: {why}"))
                .advising("the rest is judged by reading rules")
        });
        sent.chain(left_out).chain(failed).collect()
    }

    /// The probes that came to a base chain. Those of data connections, or those of control connections.
    fn came_to<'a>(&'a self, chain: &'a ChainName, is_control: bool) -> impl Iterator<Item = &'a Probe> {
        let is_it = move |probe: &&Probe| {
            probe.kind.is_control() == is_control && probe.steps.iter().any(|step| step.chain == *chain)
        };
        self.sent.iter().filter(is_it)
    }

    /// The handles of the rules that probes matched in the table of a base chain. None if no probe came to the chain.
    pub(super) fn matched(&self, chain: &ChainName, is_control: bool) -> Option<BTreeSet<u64>> {
        self.came_to(chain, is_control).next()?;
        let steps = self.came_to(chain, is_control).flat_map(|probe| &probe.steps);
        let in_table = steps.filter(|step| (step.chain.family, &step.chain.table) == (chain.family, &chain.table));
        Some(in_table.filter_map(|step| step.handle).collect())
    }

    /// How a base chain decided about data connections. None if no probe came to it.
    pub(super) fn data(&self, chain: &ChainName, is_base: impl Fn(&ChainName) -> bool) -> Option<Decision> {
        let dropped = self.came_to(chain, false).find_map(|probe| probe.dropped_in(chain, &is_base));
        self.came_to(chain, false).next()?;
        Some(dropped.unwrap_or(Decision::Passed))
    }

    /// How a base chain decided about control connections to a port. It dropped them if it dropped all. None if no probe came
    /// to it.
    pub(super) fn control(
        &self,
        chain: &ChainName,
        port: u16,
        is_base: impl Fn(&ChainName) -> bool,
    ) -> Option<Decision> {
        let mut decided = None;
        for probe in self.came_to(chain, true).filter(|probe| probe.to.port.number() == port) {
            match probe.dropped_in(chain, &is_base) {
                None => return Some(Decision::Passed),
                dropped => decided = decided.or(dropped),
            }
        }
        decided
    }
}

impl Probe {
    /// How a base chain dropped it, itself or by a chain to which it jumps.
    fn dropped_in(&self, chain: &ChainName, is_base: &impl Fn(&ChainName) -> bool) -> Option<Decision> {
        let last = self.steps.last().filter(|step| step.is_drop)?;
        let base = self.steps.iter().rev().find(|step| is_base(&step.chain))?;
        if base.chain != *chain {
            return None;
        }
        let dropped = last.handle.map_or(Dropped::ByPolicy, Dropped::ByRule);
        Some(Decision::Dropped(dropped, self.to_string()))
    }
}
