//! Pinholes and port ranges as elements of the table's sets.

use std::collections::BTreeMap;
use std::hash::RandomState;
use std::net::IpAddr;
use std::time::Duration;

use hashbrown::HashMap;

use super::PinholeTable;
use super::elements::{
    self, ASKED_HOSTS, PINHOLES, PORT_RANGES, REMOVED_TOGETHER, REWRITTEN, SOURCES, Stored, TARGETS, of_family,
    port_range_element,
};
use super::ruleset::TABLE;
use crate::core::expectation::{Expectation, Mapping, OnSyn, PortRangePinhole};
use crate::core::kernel::NotOpened;
use crate::core::net::{Endpoint, Flow, Seq};
use crate::core::time::Timestamp;
use crate::netfilter::netlink::{Element, Error, Key};

/// A pinhole in the kernel, opened by this run or by an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinhole {
    /// The source address.
    pub from: IpAddr,
    /// The destination.
    pub to: Endpoint,
    /// The NAT of its connection.
    pub mapping: Mapping,
    /// The time for which it was opened.
    pub lifetime: Duration,
    /// The rest of that time.
    pub remaining: Duration,
    /// Whether it has admitted a SYN, and so admits no further one.
    pub syn_came: bool,
}

/// The key of a port range.
pub(super) type PortRangeKey = (IpAddr, IpAddr, OnSyn);

const fn port_range_key(port_range: &PortRangePinhole) -> PortRangeKey {
    (port_range.from, port_range.to, port_range.on_syn)
}

/// Elements by their set.
pub(super) type BySet = BTreeMap<&'static str, Vec<Element>>;

impl PinholeTable {
    /// Opens a pinhole in the sets. They do not record which session announced it.
    pub(in crate::netfilter) fn open(&mut self, expectation: &Expectation) -> Result<(), NotOpened> {
        let come = elements::elements(expectation, expectation.lifetime).ok_or(NotOpened)?;
        self.extend_deadline(expectation.lifetime)?;
        self.used.remove(&(expectation.from, expectation.to));
        self.maps_used |= !expectation.mapping.is_none();
        // The mapping of an earlier pinhole with the same addresses must not outlive that pinhole.
        let mut go = self.map_elements(expectation.from, expectation.to);
        go.retain(|(map, _)| come.iter().all(|(set, _)| set != map));
        self.replace_elements(&go, &come)
    }

    /// Closes a pinhole in the sets. It is no error if it was used or has expired.
    pub(in crate::netfilter) fn close(&mut self, expectation: &Expectation) {
        if let Some(stored) = elements::elements(expectation, expectation.lifetime) {
            self.remove_elements(&stored);
        }
    }

    /// The mapping of the pinhole in the sets that admits a connection, if there is one.
    pub(in crate::netfilter) fn mapping_of(&mut self, from: IpAddr, to: Endpoint) -> Option<Mapping> {
        // A used pinhole admits no connection, although its element exists until the next sweep.
        if self.used.contains(&(from, to)) {
            return None;
        }
        let set = of_family(PINHOLES, from, to.address)?;
        if !self.errors.ok(self.tables.has_element(TABLE, set, &elements::key(from, to)))? {
            return None;
        }
        let mut mapping = Mapping::NONE;
        for (map, place) in self.map_elements(from, to) {
            if let Some(element) = self.errors.ok(self.tables.element(TABLE, map, &place.key))? {
                elements::read_into(&mut mapping, &element);
            }
        }
        Some(mapping)
    }

    /// Whether the pinhole in the sets has admitted a SYN. An element that has timed out does not tell.
    pub(in crate::netfilter) fn syn_came(&mut self, expectation: &Expectation) -> bool {
        let Expectation { from, to, .. } = *expectation;
        let Some(set) = of_family(PINHOLES, from, to.address) else { return false };
        let element = self.errors.ok(self.tables.element(TABLE, set, &elements::key(from, to)));
        element.flatten().is_some_and(|element| elements::syn_came(&element))
    }

    /// The pinholes in the sets.
    pub(in crate::netfilter) fn pinholes(&mut self) -> Result<Vec<Pinhole>, Error> {
        let mappings = self.mappings()?;
        let mut pinholes = Vec::new();
        for set in PINHOLES {
            let found = self.tables.elements(TABLE, set)?;
            pinholes.extend(found.iter().filter_map(|element| elements::pinhole(element, &mappings)));
        }
        Ok(pinholes)
    }

    /// The elements of the maps.
    pub(super) fn mappings(&mut self) -> Result<HashMap<Key, Mapping, RandomState>, Error> {
        let mut mappings = HashMap::<Key, Mapping, RandomState>::default();
        for map in TARGETS.into_iter().chain(SOURCES) {
            for element in self.tables.elements(TABLE, map)? {
                elements::read_into(mappings.entry(element.key).or_default(), &element);
            }
        }
        Ok(mappings)
    }

    /// A pinhole in the sets was used, and admits no further connection: the next [`sweep`](Self::sweep) removes it
    /// and its mapping. Has to be called before the same pinhole is opened again.
    pub(in crate::netfilter) fn used(&mut self, flow: &Flow) {
        self.used.insert((flow.source.address, flow.destination));
    }

    /// Removes the used pinholes.
    pub(in crate::netfilter) fn sweep(&mut self) {
        let used: Vec<_> = self.used.drain().collect();
        for some in used.chunks(REMOVED_TOGETHER) {
            let pinhole = |&(from, to): &(IpAddr, Endpoint)| elements::pinhole_element(from, to);
            let mut go: Vec<Stored> = some.iter().filter_map(pinhole).collect();
            go.extend(some.iter().flat_map(|&(from, to)| self.map_elements(from, to)));
            self.remove_elements(&go);
        }
    }

    /// Opens a port range for one more session.
    pub(in crate::netfilter) fn open_port_range(&mut self, port_range: &PortRangePinhole) -> Result<(), NotOpened> {
        let stored = port_range_element(port_range, PortRangePinhole::LIFETIME).ok_or(NotOpened)?;
        self.extend_deadline(PortRangePinhole::LIFETIME)?;
        self.replace_elements(&[], &[stored])?;
        self.port_ranges.entry(port_range_key(port_range)).or_insert((*port_range, 0)).1 += 1;
        Ok(())
    }

    /// Starts the lifetime of an open port range again.
    pub(in crate::netfilter) fn renew_port_range(&mut self, port_range: &PortRangePinhole) {
        if let Some(stored) = port_range_element(port_range, PortRangePinhole::LIFETIME) {
            // An error has been counted. The next renewal comes before the element times out.
            let extended = self.extend_deadline(PortRangePinhole::LIFETIME);
            let _ = extended.and_then(|()| self.replace_elements(&[], &[stored]));
        }
    }

    /// Closes a port range, unless another session has it open.
    pub(in crate::netfilter) fn close_port_range(&mut self, port_range: &PortRangePinhole) {
        let Some((_, sessions)) = self.port_ranges.get_mut(&port_range_key(port_range)) else { return };
        *sessions -= 1;
        if *sessions == 0 {
            self.port_ranges.remove(&port_range_key(port_range));
            if let Some(stored) = port_range_element(port_range, PortRangePinhole::LIFETIME) {
                self.remove_elements(&[stored]);
            }
        }
    }

    /// The port ranges in the sets.
    pub(in crate::netfilter) fn port_ranges(&mut self) -> Result<Vec<PortRangePinhole>, Error> {
        let mut port_ranges = Vec::new();
        for set in PORT_RANGES {
            port_ranges.extend(self.tables.elements(TABLE, set)?.iter().filter_map(elements::port_range));
        }
        for set in ASKED_HOSTS {
            port_ranges.extend(self.tables.elements(TABLE, set)?.iter().filter_map(elements::asked_hosts));
        }
        Ok(port_ranges)
    }

    /// Adds elements to the set `rewritten4` or `rewritten6`, so that no segment of this flow with one of these sequence
    /// numbers bypasses the queue.
    ///
    /// An error is only counted, because the elements matter only if this run is killed within the next moment.
    pub(in crate::netfilter) fn queue_retransmissions(&mut self, flow: &Flow, places: &[Seq]) {
        let Some(set) = of_family(REWRITTEN, flow.source.address, flow.destination.address) else { return };
        let added: Vec<Element> = places.iter().map(|place| elements::rewritten_element(flow, *place)).collect();
        self.errors.ok(self.tables.insert_all(TABLE, set, &added));
    }

    /// Replaces elements in the kernel, in one transaction.
    fn replace_elements(&mut self, go: &[Stored], come: &[Stored]) -> Result<(), NotOpened> {
        let mut replaced = self.tables.exchange(TABLE, go, come);
        // Another program flushed the ruleset, and its notification has not arrived yet. This announcement cannot
        // wait for it.
        if replaced.as_ref().is_err_and(|error| error.cause.is_missing())
            && matches!(self.reinstall_if_gone(), Ok(true))
        {
            replaced = self.tables.exchange(TABLE, &[], come);
        }
        let Err(error) = replaced else { return Ok(()) };
        self.errors.add(&error);
        if error.cause.is_unknown() {
            // The element may have been added: removes it, so that no unknown pinhole stays open.
            self.remove_elements(come);
        }
        Err(NotOpened)
    }

    /// Removes elements from the kernel, in one transaction.
    fn remove_elements(&mut self, go: &[Stored]) {
        self.errors.ok(self.tables.exchange(TABLE, go, &[]));
    }

    /// The elements of the maps that may belong to a pinhole with these addresses.
    fn map_elements(&self, from: IpAddr, to: Endpoint) -> Vec<Stored> {
        if self.maps_used { elements::map_elements(from, to).collect() } else { Vec::new() }
    }

    /// The elements for the expectations and port ranges that are open.
    pub(super) fn lost_elements<'a>(&mut self, now: Timestamp, open: impl Iterator<Item = &'a Expectation>) -> BySet {
        let mut lost = BySet::new();
        for expectation in open.filter(|expectation| now < expectation.expires()) {
            let remaining = expectation.expires().since(now);
            // An error has been counted. Without a deadline as late as this one the pinhole admits for a shorter time.
            let _ = self.extend_deadline(remaining);
            for (set, element) in elements::elements(expectation, remaining).into_iter().flatten() {
                lost.entry(set).or_default().push(element);
                self.maps_used |= !expectation.mapping.is_none();
            }
        }
        let port_ranges = self.port_ranges.values();
        let element = |(port_range, _): &(_, u32)| port_range_element(port_range, PortRangePinhole::LIFETIME);
        for (set, element) in port_ranges.filter_map(element) {
            lost.entry(set).or_default().push(element);
        }
        lost
    }
}
