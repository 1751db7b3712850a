//! Finds the connections of a capture that would have been blocked by a firewall that admits only the control ports and
//! Pinhole's pinholes.
//!
//! A capture contains other traffic, too. Only connections that may belong to FTP count: new connections between the
//! two hosts of an open session.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};

use crate::core::net::{Connection, Flow};
use crate::core::time::Timestamp;
use crate::core::tracker::SessionNumber;

/// How long a connection is remembered, because its SYN may be retransmitted.
const REMEMBERED_FOR: Duration = Duration::from_secs(120);
/// How many connections are remembered at a time, which limits the memory.
const MAX_REMEMBERED: usize = 1 << 16;

/// A connection that would have been blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    pub from: SocketAddr,
    pub to: SocketAddr,
}

/// Two hosts, the lower address first.
type Hosts = (IpAddr, IpAddr);

fn hosts(one: IpAddr, other: IpAddr) -> Hosts {
    if one <= other { (one, other) } else { (other, one) }
}

/// The connections that were admitted or reported as blocked, and the hosts of the open sessions.
#[derive(Debug, Default)]
pub(super) struct DataConnections {
    known: HashSet<Flow, RandomState>,
    in_order: VecDeque<(Timestamp, Flow)>,
    live: HashMap<SessionNumber, Hosts, RandomState>,
    between: HashMap<Hosts, (SessionNumber, usize), RandomState>,
}

impl DataConnections {
    pub(super) fn session_begins(&mut self, session: SessionNumber, connection: &Connection) {
        // The sources of the two flows are the addresses before NAT, which a capture on the inside shows.
        let hosts = hosts(connection.original.source.address, connection.reply.source.address);
        self.live.insert(session, hosts);
        let (latest, count) = self.between.entry(hosts).or_insert((session, 0));
        *latest = session;
        *count += 1;
    }

    pub(super) fn session_ends(&mut self, session: SessionNumber) {
        let Some(hosts) = self.live.remove(&session) else { return };
        if let Some((_, count)) = self.between.get_mut(&hosts) {
            *count -= 1;
            if *count == 0 {
                self.between.remove(&hosts);
            }
        }
    }

    /// The latest session between these two hosts, if there is an open one.
    pub(super) fn session_between(&self, flow: &Flow) -> Option<SessionNumber> {
        let hosts = hosts(flow.source.address, flow.destination.address);
        self.between.get(&hosts).map(|(session, _)| *session)
    }

    /// Whether this connection was handled before: its SYN is retransmitted if the answer is late.
    pub(super) fn is_known(&mut self, now: Timestamp, flow: &Flow) -> bool {
        while let Some((since, old)) = self.in_order.front()
            && now.since(*since) >= REMEMBERED_FOR
        {
            self.known.remove(old);
            self.in_order.pop_front();
        }
        self.known.contains(flow)
    }

    pub(super) fn remember(&mut self, now: Timestamp, flow: &Flow) {
        if self.in_order.len() == MAX_REMEMBERED
            && let Some((_, oldest)) = self.in_order.pop_front()
        {
            self.known.remove(&oldest);
        }
        if self.known.insert(*flow) {
            self.in_order.push_back((now, *flow));
        }
    }
}
