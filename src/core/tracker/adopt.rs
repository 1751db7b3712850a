//! Adopts the pinholes that an earlier run left in the firewall.
//!
//! The kernel does not record which session announced a pinhole. So an adopted pinhole belongs to all control
//! connections between its two hosts that were open at the start, and is closed with the last of them. This module
//! does not deal with pinholes that sessions of this run announced.

use std::hash::RandomState;
use std::net::IpAddr;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};

use super::expectations::PinholeEntry;
use super::{Environment, SessionEvent, SessionNumber, Tracker};
use crate::core::expectation::{Closed, Expectation, PortRangePinhole};
use crate::core::kernel::Firewall;
use crate::core::net::{Connection, Flow};
use crate::core::policy::ThirdParty;
use crate::core::tracker::Observer;

/// The slot for expectations that belong to no session of this run.
pub(super) const NO_SESSION: u32 = u32::MAX;

/// What is in the firewall when a run begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExistingState {
    /// The pinholes, with the times at which they expire.
    pub pinholes: Vec<Expectation>,
    /// The port ranges of encrypted sessions.
    pub port_ranges: Vec<PortRangePinhole>,
    /// The open control connections, one of which announced each of the pinholes.
    pub connections: Vec<Connection>,
}

/// How many pinholes and port ranges of an earlier run were adopted and closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreSummary {
    /// Adopted pinholes.
    pub pinholes: usize,
    /// Adopted port ranges.
    pub port_ranges: usize,
    /// Pinholes and port ranges that were closed, because their session had ended in the meantime.
    pub closed: usize,
}

impl RestoreSummary {
    /// Whether nothing was adopted or closed.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Two hosts, in an order that does not depend on who connects.
type Hosts = (IpAddr, IpAddr);

/// The adopted pinholes and port ranges, by the hosts between which they are.
#[derive(Debug, Default)]
pub(super) struct OrphanedPinholes {
    /// The control connections that may own any of them, by both of their flows.
    connections: HashMap<Flow, Connection, RandomState>,
    by_hosts: HashMap<Hosts, HostPinholes, RandomState>,
}

/// The adopted pinholes and port ranges between two hosts.
#[derive(Debug, Default)]
struct HostPinholes {
    /// How many control connections between these hosts are still open.
    connections: usize,
    pinholes: Vec<Expectation>,
    port_ranges: Vec<PortRangePinhole>,
}

impl OrphanedPinholes {
    /// Keeps the connections that may own pinholes between these hosts.
    fn of(connections: Vec<Connection>, wanted: &HashSet<Hosts, RandomState>) -> Self {
        let mut orphaned = Self::default();
        for connection in connections {
            let keys: Vec<Hosts> = hosts_of(&connection).filter(|key| wanted.contains(key)).collect();
            if keys.is_empty() || orphaned.connections.insert(connection.original, connection).is_some() {
                continue;
            }
            orphaned.connections.insert(connection.reply, connection);
            for key in keys {
                orphaned.by_hosts.entry(key).or_default().connections += 1;
            }
        }
        orphaned
    }

    /// A control connection has ended. Returns the pinholes and port ranges that have no owner any more.
    fn connection_ended(&mut self, flow: &Flow) -> Vec<HostPinholes> {
        let Some(connection) = self.connections.remove(flow) else { return Vec::new() };
        for flow in [connection.original, connection.reply] {
            self.connections.remove(&flow);
        }
        let mut orphans = Vec::new();
        for key in hosts_of(&connection) {
            let Some(shared) = self.by_hosts.get_mut(&key) else { continue };
            shared.connections -= 1;
            if shared.connections == 0 {
                orphans.extend(self.by_hosts.remove(&key));
            }
        }
        orphans
    }

    /// Whether this port range was adopted and still has an owner.
    pub(super) fn holds(&self, port_range: &PortRangePinhole) -> bool {
        let shared = self.by_hosts.get(&hosts(port_range.from, port_range.to));
        shared.is_some_and(|shared| shared.port_ranges.contains(port_range))
    }

    /// Whether an adopted port range admits a connection with these addresses.
    pub(super) fn admits(&self, flow: &Flow) -> bool {
        let shared = self.by_hosts.get(&hosts(flow.source.address, flow.destination.address));
        shared.is_some_and(|shared| shared.port_ranges.iter().any(|port_range| port_range.admits(flow)))
    }

    /// The open control connections of an earlier run for which a SYN with these addresses is asked about.
    pub(super) fn asked_between(&self, flow: &Flow) -> impl Iterator<Item = &Connection> {
        let hosts = hosts(flow.source.address, flow.destination.address);
        let shared = self.by_hosts.get(&hosts);
        let is_asked = shared.is_some_and(|shared| shared.port_ranges.iter().any(|port_range| port_range.asks(flow)));
        let connections = is_asked.then(|| self.connections.iter()).into_iter().flatten();
        // Each connection is there under both of its flows.
        connections.filter_map(move |(key, connection)| {
            (*key == connection.original && hosts_of(connection).any(|of| of == hosts)).then_some(connection)
        })
    }
}

impl Tracker {
    /// Adopts the existing pinholes and port ranges. From now on they expire, are used and are closed as if this run
    /// had opened them. Pinholes that no open control connection can have announced are closed at once.
    pub fn adopt<F: Firewall, O: Observer>(
        &mut self,
        existing: ExistingState,
        env: &mut Environment<'_, F, O>,
    ) -> RestoreSummary {
        let ExistingState { mut pinholes, port_ranges, connections } = existing;
        let of_pinholes = pinholes.iter().map(|pinhole| hosts(pinhole.from, pinhole.to.address));
        let wanted =
            of_pinholes.chain(port_ranges.iter().map(|port_range| hosts(port_range.from, port_range.to))).collect();
        self.orphaned = OrphanedPinholes::of(connections, &wanted);
        let all_terms = env.policy.rules.iter().map(|rule| &rule.terms).chain([&env.policy.defaults]);
        // For a pinhole to a third party there is no control connection between its two hosts; it expires by itself.
        let may_be_third_party = all_terms.into_iter().any(|terms| terms.third_party == ThirdParty::Allow);
        let mut summary = RestoreSummary::default();
        // Their data connections may have begun while no daemon ran.
        self.note_missing_events(env.now);

        // Sorted by expiry, because expectations of one lifetime must be inserted in that order.
        pinholes.sort_by_key(Expectation::expires);
        for pinhole in pinholes {
            let shared = self.orphaned.by_hosts.get_mut(&hosts(pinhole.from, pinhole.to.address));
            if shared.is_none() && !may_be_third_party {
                summary.closed += 1;
                env.firewall.close(&pinhole);
                let event = SessionEvent::Closed { expectation: pinhole, why: Closed::SessionEnded };
                env.report(SessionNumber::EARLIER, &event);
                continue;
            }
            summary.pinholes += 1;
            let expectation = in_whole_seconds(&pinhole);
            if let Some(shared) = shared {
                shared.pinholes.push(expectation);
            }
            let session = SessionNumber::EARLIER;
            let (owner, client) = (NO_SESSION, None);
            self.expectations.insert(PinholeEntry { expectation, mode: None, owner, session, client, command: None });
        }
        for port_range in port_ranges {
            // Opens it again, so that the firewall counts one more user of it.
            let is_open = env.firewall.open_port_range(&port_range).is_ok();
            match self.orphaned.by_hosts.get_mut(&hosts(port_range.from, port_range.to)) {
                Some(shared) if is_open => {
                    summary.port_ranges += 1;
                    shared.port_ranges.push(port_range);
                    self.ranges.note_adopted(port_range, env.now);
                }
                _ => {
                    summary.closed += 1;
                    env.firewall.close_port_range(&port_range);
                }
            }
        }
        summary
    }

    /// A control connection has ended: closes the adopted pinholes and port ranges that have no other possible owner.
    pub(super) fn close_orphaned<F: Firewall, O: Observer>(&mut self, flow: &Flow, env: &mut Environment<'_, F, O>) {
        for HostPinholes { pinholes, port_ranges, .. } in self.orphaned.connection_ended(flow) {
            for expectation in pinholes {
                // It may have been used; or a session of this run has announced it again and owns it.
                if self.expectations.owner_of(&expectation) == Some(NO_SESSION) {
                    self.expectations.remove(expectation.from, expectation.to);
                    env.firewall.close(&expectation);
                    let event = SessionEvent::Closed { expectation, why: Closed::SessionEnded };
                    env.report(SessionNumber::EARLIER, &event);
                }
            }
            for port_range in port_ranges {
                env.firewall.close_port_range(&port_range);
            }
        }
    }
}

/// The same expectation with its lifetime rounded up to whole seconds, so that there are few different lifetimes. It
/// expires at the same time.
fn in_whole_seconds(pinhole: &Expectation) -> Expectation {
    let seconds = pinhole.lifetime.as_secs() + u64::from(pinhole.lifetime.subsec_nanos() > 0);
    let lifetime = Duration::from_secs(seconds);
    let expires = pinhole.expires();
    let since = expires.before(lifetime);
    Expectation { since, lifetime: expires.since(since), ..*pinhole }
}

fn hosts(one: IpAddr, other: IpAddr) -> Hosts {
    (one.min(other), one.max(other))
}

/// The pairs of hosts between which a control connection's data connections may go, as either end sees the other.
fn hosts_of(connection: &Connection) -> impl Iterator<Item = Hosts> {
    let of = |flow: &Flow| hosts(flow.source.address, flow.destination.address);
    let (original, reply) = (of(&connection.original), of(&connection.reply));
    [Some(original), (reply != original).then_some(reply)].into_iter().flatten()
}
