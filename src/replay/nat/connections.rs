//! The connections that go through the gateway, by the addresses that they have on either side.

use std::collections::VecDeque;
use std::net::IpAddr;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::core::kernel::Progress;
use crate::core::net::{Connection, Direction, Endpoint, Flow, Port, Seq};
use crate::core::seqadj::Adjustment;

/// How many connections are known at a time; a bound, not a tuning.
const MOST_KNOWN: usize = 1 << 16;

/// How many ports are tried for a connection whose own is taken: a capture may hold as many that want the same as there
/// are ports.
const MOST_TRIED: usize = 1024;

/// Which way a packet goes through the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::replay) enum Way {
    /// The inside end has sent it.
    Out,
    /// The outside end has.
    In,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::replay) struct Translated {
    /// What the inside end sends, as it is captured.
    pub(in crate::replay) inside: Flow,
    /// The same, as the outside end gets it.
    pub(in crate::replay) outside: Flow,
    /// Which way its first packet went.
    pub(in crate::replay) opened: Way,
}

impl Translated {
    /// The addresses with which its packets of either direction arrive at the gateway.
    pub(in crate::replay) const fn connection(&self) -> Connection {
        let (out, back) = (self.inside, self.outside.reversed());
        match self.opened {
            Way::Out => Connection { original: out, reply: back },
            Way::In => Connection { original: back, reply: out },
        }
    }

    /// Those of the packets that go that way.
    pub(in crate::replay) const fn arriving(&self, way: Way) -> Flow {
        match way {
            Way::Out => self.inside,
            Way::In => self.outside.reversed(),
        }
    }

    /// The direction in which the inside end speaks.
    pub(super) const fn outwards(&self) -> Direction {
        match self.opened {
            Way::Out => Direction::FromClient,
            Way::In => Direction::FromServer,
        }
    }
}

/// A connection and what the gateway does to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct NatConnection {
    pub(super) translated: Translated,
    /// How what the inside end says is shifted.
    pub(super) adjustment: Option<Adjustment>,
    pub(super) progress: Progress,
    /// The number of its SYN, if that was seen: one with another begins another connection.
    first: Option<Seq>,
}

#[derive(Debug, Default)]
pub(super) struct Connections {
    by_inside: HashMap<Flow, NatConnection, RandomState>,
    /// What the outside end gets, and which connection that is.
    by_outside: HashMap<Flow, Flow, RandomState>,
    in_order: VecDeque<Flow>,
}

impl Connections {
    /// The connection of a captured packet, and which way that goes.
    pub(super) fn captured(&self, flow: &Flow) -> Option<(&NatConnection, Way)> {
        let out = self.by_inside.get(flow).map(|standing| (standing, Way::Out));
        out.or_else(|| self.by_inside.get(&flow.reversed()).map(|standing| (standing, Way::In)))
    }

    /// The connection of a packet that arrives at the gateway with these addresses.
    pub(super) fn arriving(&mut self, flow: &Flow) -> Option<&mut NatConnection> {
        let inside = if self.by_inside.contains_key(flow) { *flow } else { *self.by_outside.get(&flow.reversed())? };
        self.by_inside.get_mut(&inside)
    }

    /// Adds one, in place of any that had these addresses inside.
    pub(super) fn add(&mut self, translated: Translated) {
        let Translated { inside, outside, .. } = translated;
        match self.by_inside.get(&inside) {
            Some(before) => {
                self.by_outside.remove(&before.translated.outside);
            }
            None => {
                self.in_order.push_back(inside);
                if self.in_order.len() > MOST_KNOWN
                    && let Some(oldest) = self.in_order.pop_front()
                    && let Some(forgotten) = self.by_inside.remove(&oldest)
                {
                    self.by_outside.remove(&forgotten.translated.outside);
                }
            }
        }
        self.by_inside
            .insert(inside, NatConnection { translated, adjustment: None, progress: Progress::Unknown, first: None });
        self.by_outside.insert(outside, inside);
    }

    /// A SYN with that number was captured: if it is not the one that is known, the connection is a new one, of which
    /// nothing has been said yet.
    pub(super) fn begins(&mut self, flow: &Flow, first: Seq) {
        let inside = if self.by_inside.contains_key(flow) { *flow } else { flow.reversed() };
        if let Some(standing) = self.by_inside.get_mut(&inside)
            && standing.first != Some(first)
        {
            *standing =
                NatConnection { first: Some(first), adjustment: None, progress: Progress::Unknown, ..*standing };
        }
    }

    /// What the outside end gets of a connection that leaves with another address: the same port, where that is free, or
    /// one of some others. If all of them are taken, it shares its own.
    pub(super) fn leaving(&self, inside: &Flow, worn: IpAddr) -> Flow {
        let with_port = |port| Flow { source: Endpoint::new(worn, port), ..*inside };
        let is_free = |flow: &Flow| self.by_outside.get(flow).is_none_or(|other| other == inside);
        let own = inside.source.port;
        let others = (1024..=u16::MAX).filter_map(Port::new).take(MOST_TRIED);
        let mut choices = std::iter::once(own).chain(others).map(with_port);
        choices.find(is_free).unwrap_or_else(|| with_port(own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::script::endpoint;

    #[test]
    fn for_a_port_that_many_want_a_bounded_number_of_others_is_tried() {
        let mut connections = Connections::default();
        let worn = endpoint("198.51.100.1:1").address;
        let mut ports = Vec::new();
        for host in 0..MOST_TRIED + 10 {
            let source = endpoint(&format!("10.0.{}.{}:40000", host / 256, host % 256));
            let inside = Flow { source, destination: endpoint("203.0.113.5:21") };
            let outside = connections.leaving(&inside, worn);
            connections.add(Translated { inside, outside, opened: Way::Out });
            ports.push(outside.source.port.number());
        }
        assert_eq!(ports[..3], [40000, 1024, 1025]);
        assert_eq!(ports[MOST_TRIED + 1..], [40000; 9], "it shares its own when those are taken");
    }
}
