//! Encodes pinholes, mappings and port ranges as elements, and decodes them.
//!
//! A pinhole is an element of a set. The NAT of its connection is in maps under the same key.

use std::hash::RandomState;
use std::net::IpAddr;
use std::time::Duration;

use hashbrown::HashMap;

use super::Pinhole;
use crate::core::expectation::{Expectation, Mapping, OnSyn, PortRangePinhole};
use crate::core::net::{Endpoint, Flow, Port, PortRange, Seq};
use crate::netfilter::netlink::{Element, Key, Value};

/// Sets and maps by their family: IPv4, IPv6.
pub(super) type Names = [&'static str; 2];
pub(super) const PINHOLES: Names = ["pinholes4", "pinholes6"];
pub(super) const TARGETS: Names = ["targets4", "targets6"];
pub(super) const SOURCES: Names = ["sources4", "sources6"];
pub(super) const REWRITTEN: Names = ["rewritten4", "rewritten6"];
pub(super) const PORT_RANGES: Names = ["port_ranges4", "port_ranges6"];

pub(super) const ASKED_HOSTS: Names = ["asked_hosts4", "asked_hosts6"];

pub(super) const SETS: [Names; 6] = [TARGETS, SOURCES, PINHOLES, PORT_RANGES, ASKED_HOSTS, REWRITTEN];

/// How many elements one message removes.
pub(super) const REMOVED_TOGETHER: usize = 128;

/// How much longer the timeout of a mapping is than that of its pinhole: an admitted connection looks up the maps a little
/// later.
const GRACE: Duration = Duration::from_secs(1);

/// How long a retransmission of a rewritten line must not bypass the queue while no daemon runs. The next run has to start
/// within this time.
const RESTART_TIME: Duration = Duration::from_secs(30);

/// The name of a set or map, and an element of it.
pub(super) type Stored = (&'static str, Element);

/// The set of the addresses' family; `None` if the addresses are of different families.
pub(super) fn of_family(names: Names, from: IpAddr, to: IpAddr) -> Option<&'static str> {
    match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => Some(names[0]),
        (IpAddr::V6(_), IpAddr::V6(_)) => Some(names[1]),
        _ => None,
    }
}

pub(super) fn key(from: IpAddr, to: Endpoint) -> Key {
    Key::connection(from, to.address, to.port.number())
}

/// The elements for an expectation with this lifetime; the first one is the pinhole. `None` if the addresses are of
/// different families.
pub(super) fn elements(expectation: &Expectation, lifetime: Duration) -> Option<Vec<Stored>> {
    let Expectation { from, to, mapping, .. } = *expectation;
    let key = key(from, to);
    let mut all = vec![(of_family(PINHOLES, from, to.address)?, Element::new(key, lifetime))];
    let mapped = |names, address: IpAddr, value| {
        of_family(names, from, address).map(|set| (set, Element::mapped(key, value, lifetime + GRACE)))
    };
    if let Some(to) = mapping.to {
        all.push(mapped(TARGETS, to.address, Value::endpoint(to.address, to.port.number()))?);
    }
    if let Some(from) = mapping.from {
        all.push(mapped(SOURCES, from, Value::address(from))?);
    }
    Some(all)
}

/// The element of the pinhole for a connection, to be deleted.
pub(super) fn pinhole_element(from: IpAddr, to: Endpoint) -> Option<Stored> {
    of_family(PINHOLES, from, to.address).map(|set| (set, Element::new(key(from, to), Duration::ZERO)))
}

/// The elements of the maps that may belong to a pinhole with these addresses.
pub(super) fn map_elements(from: IpAddr, to: Endpoint) -> impl Iterator<Item = Stored> {
    let element = Element::new(key(from, to), Duration::ZERO);
    [TARGETS, SOURCES].into_iter().filter_map(move |names| Some((of_family(names, from, to.address)?, element)))
}

/// The element for a segment with this sequence number, which must not bypass the queue.
pub(super) fn rewritten_element(flow: &Flow, place: Seq) -> Element {
    Element::new(Key::segment(flow, place), RESTART_TIME)
}

/// The element for a port range.
pub(super) fn port_range_element(port_range: &PortRangePinhole, lifetime: Duration) -> Option<Stored> {
    let PortRangePinhole { from, to, on_syn } = *port_range;
    match on_syn {
        OnSyn::Admit(ports) => {
            let key = |port: Port| Key::connection(from, to, port.number());
            let element = Element::range(key(ports.first()), key(ports.last()), lifetime);
            Some((of_family(PORT_RANGES, from, to)?, element))
        }
        OnSyn::Ask => Some((of_family(ASKED_HOSTS, from, to)?, Element::new(Key::hosts(from, to), lifetime))),
    }
}

/// The pinhole of an element.
pub(super) fn pinhole(element: &Element, mappings: &HashMap<Key, Mapping, RandomState>) -> Option<Pinhole> {
    let (from, to, port) = element.key.as_connection()?;
    let lifetime = element.timeout?;
    let remaining = element.expiration.unwrap_or(lifetime);
    let mapping = mappings.get(&element.key).copied().unwrap_or_default();
    let to = Endpoint::new(to, Port::new(port)?);
    Some(Pinhole { from, to, mapping, lifetime, remaining, syn_came: syn_came(element) })
}

/// Whether the pinhole of an element has admitted a SYN.
pub(super) fn syn_came(element: &Element) -> bool {
    element.packets.is_some_and(|packets| packets > 0)
}

/// Adds the value of a map's element to a mapping.
pub(super) fn read_into(mapping: &mut Mapping, element: &Element) {
    match element.value.and_then(|value| value.as_address()) {
        Some((to, Some(port))) => mapping.to = Port::new(port).map(|port| Endpoint::new(to, port)),
        Some((from, None)) => mapping.from = Some(from),
        None => {}
    }
}

/// The port range of an element.
pub(super) fn port_range(element: &Element) -> Option<PortRangePinhole> {
    let (from, to, first) = element.key.as_connection()?;
    let (last_from, last_to, last) = element.key_end?.as_connection()?;
    let ports = PortRange::new(Port::new(first)?, Port::new(last)?)?;
    ((from, to) == (last_from, last_to)).then_some(PortRangePinhole { from, to, on_syn: OnSyn::Admit(ports) })
}

/// The hosts of an element whose SYNs are asked about.
pub(super) fn asked_hosts(element: &Element) -> Option<PortRangePinhole> {
    let (from, to) = element.key.as_hosts()?;
    Some(PortRangePinhole { from, to, on_syn: OnSyn::Ask })
}
