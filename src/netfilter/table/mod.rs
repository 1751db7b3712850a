//! The mechanism `sets`: pinholes as elements of nftables sets, in Pinhole's own table.
//!
//! The kernel is the database: the elements outlive the daemon, and the next run reads them back. Knows nothing of
//! how packets come out of the queue, nor of the dialogue in them.

mod accept_rules;
mod elements;
mod existing;
mod install;
mod ruleset;

use std::collections::BTreeMap;
use std::hash::RandomState;
use std::net::IpAddr;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};

pub use accept_rules::own_rule;
pub use install::{Restored, SetupError};
pub use ruleset::{Holder, QueueChain, Queueing, is_own_chain, text as ruleset};

use crate::core::expectation::{Expectation, Mapping, PortRangePinhole};
use crate::core::kernel::{Control, Firewall, LookupFailed, NotOpened, Progress, Synced};
use crate::core::net::{Connection, Direction, Endpoint, Flow, Port, PortRange, Seq};
use crate::core::policy::Policy;
use crate::core::seqadj::{Adjustment, Adjustments, NotAdjusted};
use crate::netfilter::netlink::{Conntrack, Element, Entry, Error, Key, SequenceAdjustment, TableImage, Tables};
use elements::{PINHOLES, REWRITTEN, SOURCES, Stored, TARGETS, of_family, port_range_element};
use ruleset::TABLE;

/// How many used pinholes one message removes.
const REMOVED_TOGETHER: usize = 128;

/// A pinhole in the kernel, opened by this run or by an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinhole {
    /// Who may connect.
    pub from: IpAddr,
    /// Where to.
    pub to: Endpoint,
    /// The NAT of its connection.
    pub mapping: Mapping,
    /// The time for which it was opened.
    pub lifetime: Duration,
    /// The rest of that time.
    pub remaining: Duration,
}

/// The requests that the kernel refused since the last call of `take_refused`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefusedRequests {
    /// Their number.
    pub count: u64,
    /// The latest error.
    pub latest: Option<Error>,
}

/// Pinholes in the sets of the table `inet pinhole`.
#[derive(Debug)]
pub struct Sets {
    tables: Tables,
    pub(in crate::netfilter) conntrack: Conntrack,
    pub(in crate::netfilter) policy: Policy,
    queueing: Queueing,
    holder: Holder,
    /// The handles of the table's rules as installed: while they are the same, no other program has changed the
    /// rules.
    installed: Vec<u64>,
    /// The table as installed, to be restored.
    image: TableImage,
    /// The table was restored in a hurry, without its elements.
    lacks_elements: bool,
    /// The number of sessions that have each port range open.
    port_ranges: HashMap<PortRangeKey, (PortRangePinhole, u32), RandomState>,
    /// Used pinholes, which admit no further connection, to be removed together.
    used: HashSet<(IpAddr, Endpoint), RandomState>,
    /// Whether every packet since the marks were set has passed the table's rules, so that the in-sync bits can be
    /// trusted.
    may_be_synced: bool,
    /// Whether the maps may have elements. If not, no request has to look there.
    maps_used: bool,
    troubles: RefusedRequests,
}

impl Sets {
    /// How this kernel queues.
    pub fn queueing(&self) -> Queueing {
        self.queueing
    }

    /// The pinholes in the sets.
    pub fn pinholes(&mut self) -> Result<Vec<Pinhole>, Error> {
        let mappings = self.mappings()?;
        let mut pinholes = Vec::new();
        for set in PINHOLES {
            let elements = self.tables.elements(TABLE, set)?;
            pinholes.extend(elements.iter().filter_map(|element| elements::pinhole(element, &mappings)));
        }
        Ok(pinholes)
    }

    /// The elements of the maps.
    fn mappings(&mut self) -> Result<HashMap<Key, Mapping, RandomState>, Error> {
        let mut mappings = HashMap::<Key, Mapping, RandomState>::default();
        for map in TARGETS.into_iter().chain(SOURCES) {
            for element in self.tables.elements(TABLE, map)? {
                elements::read_into(mappings.entry(element.key).or_default(), &element);
            }
        }
        Ok(mappings)
    }

    /// A pinhole was used, and admits no further connection: the next [`sweep`](Self::sweep) removes it and its
    /// mapping. Has to be called before the same pinhole is opened again.
    pub fn used(&mut self, flow: &Flow) {
        self.used.insert((flow.source.address, flow.destination));
    }

    /// Removes the used pinholes.
    pub fn sweep(&mut self) {
        let used: Vec<_> = self.used.drain().collect();
        for some in used.chunks(REMOVED_TOGETHER) {
            let pinhole = |&(from, to): &(IpAddr, Endpoint)| elements::pinhole_element(from, to);
            let mut go: Vec<Stored> = some.iter().filter_map(pinhole).collect();
            go.extend(some.iter().flat_map(|&(from, to)| self.map_elements(from, to)));
            self.take(&go);
        }
    }

    /// The netlink port ID that opens and closes pinholes: see [`TableWatch::ignore`].
    ///
    /// [`TableWatch::ignore`]: crate::netfilter::netlink::TableWatch::ignore
    pub fn number(&self) -> Result<u32, Error> {
        self.tables.number()
    }

    /// The requests that the kernel refused since the last call.
    pub fn take_refused(&mut self) -> RefusedRequests {
        std::mem::take(&mut self.troubles)
    }

    /// Sets `be_liberal` for these control connections, so that conntrack calls none of their packets invalid because
    /// of its sequence numbers.
    ///
    /// For connections that continued while the ruleset was gone: without rules that need conntrack, the kernel sees
    /// no packets, and may judge the next one so wrongly that it takes all later ones for invalid. Then neither end
    /// gets the other's packets any more, as long as the connection lasts.
    pub fn set_tcp_be_liberal<'a>(&mut self, connections: impl Iterator<Item = &'a Connection>) {
        for connection in connections {
            let judged = self.conntrack.set_tcp_be_liberal(&connection.original);
            self.note(judged);
        }
    }

    /// Control connections may have continued unseen while rules of the table were gone: clears their in-sync bits.
    pub fn forget_synced<'a>(&mut self, connections: impl Iterator<Item = &'a Connection>) {
        self.may_be_synced = false;
        let bits = self.policy.mark.control_bits();
        let mask = bits.synced(Direction::FromClient) | bits.synced(Direction::FromServer);
        connections.for_each(|connection| self.mark(connection, 0, mask));
    }

    /// Sets the bits of `mask` in a control connection's mark to `bits`.
    fn mark(&mut self, connection: &Connection, bits: u32, mask: u32) {
        // A connection that is not in conntrack any more has no packets either.
        let marked = self.conntrack.mark(&connection.original, bits, mask);
        self.note(marked);
    }

    /// Returns the result; counts an error.
    pub(in crate::netfilter) fn note<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        result.inspect_err(|error| self.trouble(error)).ok()
    }

    pub(in crate::netfilter) fn trouble(&mut self, error: &Error) {
        self.troubles.count += 1;
        self.troubles.latest = Some(error.clone());
    }

    /// Opens a pinhole. The sets do not record which session announced it.
    pub fn open(&mut self, expectation: &Expectation) -> Result<(), NotOpened> {
        let come = elements::elements(expectation, expectation.lifetime).ok_or(NotOpened)?;
        self.used.remove(&(expectation.from, expectation.to));
        self.maps_used |= !expectation.mapping.is_none();
        // The mapping of an earlier pinhole with the same addresses must not outlive that pinhole.
        let mut go = self.map_elements(expectation.from, expectation.to);
        go.retain(|(map, _)| come.iter().all(|(set, _)| set != map));
        self.put(&go, &come)
    }

    /// Replaces elements in the kernel, in one transaction.
    fn put(&mut self, go: &[Stored], come: &[Stored]) -> Result<(), NotOpened> {
        let mut put = self.tables.exchange(TABLE, go, come);
        // Another program flushed the ruleset, and its notification has not arrived yet. This announcement cannot
        // wait for it.
        if put.as_ref().is_err_and(|error| error.cause.is_missing()) && matches!(self.reinstall_if_gone(), Ok(true)) {
            put = self.tables.exchange(TABLE, &[], come);
        }
        let Err(error) = put else { return Ok(()) };
        self.trouble(&error);
        if error.cause.is_unknown() {
            // The element may have been added: removes it, so that no unknown pinhole stays open.
            self.take(come);
        }
        Err(NotOpened)
    }

    /// Removes elements from the kernel, in one transaction.
    fn take(&mut self, go: &[Stored]) {
        let taken = self.tables.exchange(TABLE, go, &[]);
        self.note(taken);
    }

    /// Adds elements to the set `rewritten4` or `rewritten6`, so that no segment of this flow that begins at one of
    /// these places bypasses the queue.
    ///
    /// An error is only counted: the elements matter only if this run ends within the next moment.
    fn hold(&mut self, flow: &Flow, places: &[Seq]) {
        let Some(set) = of_family(REWRITTEN, flow.source.address, flow.destination.address) else { return };
        let elements: Vec<Element> = places.iter().map(|place| elements::rewritten_element(flow, *place)).collect();
        let held = self.tables.insert_all(TABLE, set, &elements);
        self.note(held);
    }

    /// The elements of the maps that may belong to a pinhole with these addresses.
    fn map_elements(&self, from: IpAddr, to: Endpoint) -> Vec<Stored> {
        if self.maps_used { elements::map_elements(from, to).collect() } else { Vec::new() }
    }

    /// The connection in the client's direction, if the server's port is a control port. Conntrack may have picked it
    /// up in the middle, from a packet of the server.
    fn control_end(&self, connection: Connection) -> Option<Connection> {
        let Connection { original, reply } = connection;
        let is_control = |flow: &Flow| self.policy.control_ports.contains(flow.destination.port);
        if is_control(&original) {
            Some(connection)
        } else if is_control(&reply) {
            Some(Connection { original: reply, reply: original })
        } else {
            None
        }
    }

    /// The control connection with these addresses, without NAT.
    fn direct(&self, flow: &Flow) -> Option<Connection> {
        let is_control = |port: Port| self.policy.control_ports.contains(port);
        if is_control(flow.destination.port) {
            Some(Connection::direct(*flow))
        } else if is_control(flow.source.port) {
            Some(Connection::direct(flow.reversed()))
        } else {
            None
        }
    }
}

impl Firewall for Sets {
    fn control_connection(&mut self, flow: &Flow) -> Result<Option<Control>, LookupFailed> {
        let found = self.conntrack.find(flow);
        Ok(match self.note(found).ok_or(LookupFailed)? {
            Some(entry) => self.control_end(entry.connection).map(|connection| {
                let bits = self.policy.mark.control_bits();
                let progress = bits.read_progress(entry.mark);
                let synced = if self.may_be_synced { bits.read_synced(entry.mark) } else { Synced::default() };
                let is_opening = entry.is_opening;
                let id = entry.id;
                Control { connection, id, is_opening, progress, synced, adjustments: adjustments(&entry) }
            }),
            // The packet was queued, so its connection is tracked; but not in the default zone, in which Pinhole
            // looks it up. Marks and offsets cannot be kept in another zone.
            None => {
                let adjustments = Adjustments::default();
                let (progress, synced) = (Progress::Unknown, Synced::default());
                let control =
                    |connection| Control { connection, id: None, is_opening: true, progress, synced, adjustments };
                self.direct(flow).map(control)
            }
        })
    }

    fn open(&mut self, expectation: &Expectation, _: &Connection) -> Result<(), NotOpened> {
        self.open(expectation)
    }

    fn close(&mut self, expectation: &Expectation) {
        if let Some(stored) = elements::elements(expectation, expectation.lifetime) {
            self.take(&stored);
        }
    }

    fn mapping_of(&mut self, from: IpAddr, to: Endpoint) -> Option<Mapping> {
        // A used pinhole admits no connection, although its element exists until the next sweep.
        if self.used.contains(&(from, to)) {
            return None;
        }
        let set = of_family(PINHOLES, from, to.address)?;
        let found = self.tables.has_element(TABLE, set, &elements::key(from, to));
        if !self.note(found)? {
            return None;
        }
        let mut mapping = Mapping::NONE;
        for (map, place) in self.map_elements(from, to) {
            let found = self.tables.element(TABLE, map, &place.key);
            if let Some(element) = self.note(found)? {
                elements::read_into(&mut mapping, &element);
            }
        }
        Some(mapping)
    }

    fn adjust(
        &mut self,
        connection: &Connection,
        direction: Direction,
        adjustment: &Adjustment,
        held: &[Seq],
    ) -> Result<(), NotAdjusted> {
        let Adjustment { position, before, after } = *adjustment;
        let wanted = SequenceAdjustment { position: position.number(), before, after };
        // These elements come first, so that no retransmission can bypass the queue once the offset is set.
        self.hold(connection.flow(direction), held);
        let flow = &connection.original;
        let adjusted = self.conntrack.adjust(flow, direction == Direction::FromClient, &wanted);
        if !self.note(adjusted).ok_or(NotAdjusted::Failed)? {
            return Err(NotAdjusted::Unknown);
        }
        // The kernel also acknowledges an offset that it cannot keep.
        let found = self.conntrack.find(flow);
        let entry = self.note(found).ok_or(NotAdjusted::Failed)?.ok_or(NotAdjusted::Unknown)?;
        if adjustments(&entry).of(direction) == Some(*adjustment) { Ok(()) } else { Err(NotAdjusted::NotPrepared) }
    }

    fn open_port_range(&mut self, port_range: &PortRangePinhole) -> Result<(), NotOpened> {
        let stored = port_range_element(port_range, PortRangePinhole::LIFETIME).ok_or(NotOpened)?;
        self.put(&[], &[stored])?;
        self.port_ranges.entry(port_range_key(port_range)).or_insert((*port_range, 0)).1 += 1;
        Ok(())
    }

    fn renew_port_range(&mut self, port_range: &PortRangePinhole) {
        if let Some(stored) = port_range_element(port_range, PortRangePinhole::LIFETIME) {
            // An error has been counted, and there is time for another attempt.
            let _ = self.put(&[], &[stored]);
        }
    }

    fn close_port_range(&mut self, port_range: &PortRangePinhole) {
        let Some((_, sessions)) = self.port_ranges.get_mut(&port_range_key(port_range)) else { return };
        *sessions -= 1;
        if *sessions == 0 {
            self.port_ranges.remove(&port_range_key(port_range));
            if let Some(stored) = port_range_element(port_range, PortRangePinhole::LIFETIME) {
                self.take(&[stored]);
            }
        }
    }

    fn record(&mut self, connection: &Connection, progress: Progress) {
        let bits = self.policy.mark.control_bits();
        self.mark(connection, bits.of(progress), bits.progress());
    }
}

fn adjustments(entry: &Entry) -> Adjustments {
    let read = |found: SequenceAdjustment| {
        let SequenceAdjustment { position, before, after } = found;
        Adjustment { position: Seq::new(position), before, after }
    };
    let [from_client, from_server] = entry.adjustments.map(|found| found.map(read));
    Adjustments { from_client, from_server }
}

/// The key of a port range.
type PortRangeKey = (IpAddr, IpAddr, PortRange);

const fn port_range_key(port_range: &PortRangePinhole) -> PortRangeKey {
    (port_range.from, port_range.to, port_range.ports)
}

/// Elements by their set.
type BySet = BTreeMap<&'static str, Vec<Element>>;
