//! Reads what an earlier run left in the kernel: pinholes, port ranges, and the control connections to which they
//! may belong.

use super::elements::PORT_RANGES;
use super::{Pinhole, Sets, TABLE};
use crate::core::expectation::{Expectation, PortRangePinhole};
use crate::core::net::{Port, PortRange};
use crate::core::time::Timestamp;
use crate::core::tracker::ExistingState;
use crate::netfilter::netlink::{Element, Error};

impl Sets {
    /// The state that an earlier run left, for [`Tracker::adopt`](crate::core::tracker::Tracker::adopt).
    pub fn existing_state(&mut self, now: Timestamp) -> Result<ExistingState, Error> {
        let pinholes = self.pinholes()?;
        self.existing_state_among(now, &pinholes)
    }

    /// The same, with these pinholes.
    pub(in crate::netfilter) fn existing_state_among(
        &mut self,
        now: Timestamp,
        all: &[Pinhole],
    ) -> Result<ExistingState, Error> {
        let mut pinholes = Vec::new();
        for &Pinhole { from, to, mapping, lifetime, remaining } in all {
            let expires = now + remaining;
            let since = expires.before(lifetime);
            pinholes.push(Expectation { from, to, since, lifetime: expires.since(since), mapping });
        }
        let mut port_ranges = Vec::new();
        for set in PORT_RANGES {
            port_ranges.extend(self.tables.elements(TABLE, set)?.iter().filter_map(port_range));
        }
        let mut connections = Vec::new();
        if !(pinholes.is_empty() && port_ranges.is_empty()) {
            let ports = &self.policy.control_ports;
            let is_control = |entry: &crate::netfilter::netlink::Entry| {
                entry.is_established && ports.contains(entry.connection.original.destination.port)
            };
            connections.extend(self.conntrack.list(is_control)?.into_iter().map(|entry| entry.connection));
        }
        Ok(ExistingState { pinholes, port_ranges, connections })
    }
}

/// The port range of an element.
fn port_range(element: &Element) -> Option<PortRangePinhole> {
    let (from, to, first) = element.key.as_connection()?;
    let (last_from, last_to, last) = element.last?.as_connection()?;
    let ports = PortRange::new(Port::new(first)?, Port::new(last)?)?;
    ((from, to) == (last_from, last_to)).then_some(PortRangePinhole { from, to, ports })
}
