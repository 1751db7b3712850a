//! Encodes pinholes, mappings and port ranges as elements, and decodes them.
//!
//! A pinhole is an element of a set. The NAT of its connection is in maps under the same key.

use std::hash::RandomState;
use std::net::IpAddr;
use std::time::Duration;

use hashbrown::HashMap;

use super::Pinhole;
use crate::core::expectation::{Expectation, Mapping, PortRangePinhole};
use crate::core::net::{Endpoint, Flow, Port, Seq};
use crate::netfilter::netlink::{Element, Key, Value};

/// Sets and maps by their family: IPv4, IPv6.
pub(super) type Names = [&'static str; 2];
pub(super) const PINHOLES: Names = ["pinholes4", "pinholes6"];
pub(super) const TARGETS: Names = ["targets4", "targets6"];
pub(super) const SOURCES: Names = ["sources4", "sources6"];
pub(super) const REWRITTEN: Names = ["rewritten4", "rewritten6"];
pub(super) const PORT_RANGES: Names = ["port_ranges4", "port_ranges6"];

/// All of them.
pub(super) const SETS: [Names; 5] = [TARGETS, SOURCES, PINHOLES, PORT_RANGES, REWRITTEN];

/// How much longer a mapping stays than its pinhole: a connection that came in time meets the maps a little later.
const GRACE: Duration = Duration::from_secs(1);

/// How long a rewritten line does not go on unread if it is sent again: so long somebody may be away. Senders wait half as
/// long again each time, so what is short for them is short here.
const ABSENCE: Duration = Duration::from_secs(30);

/// An element and where it belongs.
pub(super) type Stored = (&'static str, Element);

/// The one of two sets that is for a connection between these; none if no connection can be.
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

/// All that stands for an expectation which is admitted for so long: its pinhole first. None if its addresses are not
/// all of one family.
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

/// The place of the pinhole for such a connection.
pub(super) fn bare(from: IpAddr, to: Endpoint) -> Option<Stored> {
    of_family(PINHOLES, from, to.address).map(|set| (set, Element::new(key(from, to), Duration::ZERO)))
}

/// The places in the maps where a mapping may stand for a connection with these addresses.
pub(super) fn places(from: IpAddr, to: Endpoint) -> impl Iterator<Item = Stored> {
    let element = Element::new(key(from, to), Duration::ZERO);
    [TARGETS, SOURCES].into_iter().filter_map(move |names| Some((of_family(names, from, to.address)?, element)))
}

/// What stands for a segment that begins there and must not go on unread.
pub(super) fn repeated(flow: &Flow, place: Seq) -> Element {
    Element::new(Key::segment(flow, place), ABSENCE)
}

/// The ports from the first to the last of a port_range, for so long.
pub(super) fn range(port_range: &PortRangePinhole, lifetime: Duration) -> Option<Stored> {
    let PortRangePinhole { from, to, ports } = *port_range;
    let set = of_family(PORT_RANGES, from, to)?;
    let key = |port: Port| Key::connection(from, to, port.number());
    Some((set, Element::range(key(ports.first()), key(ports.last()), lifetime)))
}

/// What stands for a pinhole.
pub(super) fn pinhole(element: &Element, mappings: &HashMap<Key, Mapping, RandomState>) -> Option<Pinhole> {
    let (from, to, port) = element.key.as_connection()?;
    let lifetime = element.timeout?;
    let remaining = element.remaining.unwrap_or(lifetime);
    let mapping = mappings.get(&element.key).copied().unwrap_or_default();
    Some(Pinhole { from, to: Endpoint::new(to, Port::new(port)?), mapping, lifetime, remaining })
}

/// Adds what an element of a map says to a mapping.
pub(super) fn read_into(mapping: &mut Mapping, element: &Element) {
    match element.value.and_then(|value| value.as_address()) {
        Some((to, Some(port))) => mapping.to = Port::new(port).map(|port| Endpoint::new(to, port)),
        Some((from, None)) => mapping.from = Some(from),
        None => {}
    }
}
