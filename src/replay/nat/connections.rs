//! The translated connections, by their addresses on both sides of the gateway.

use std::collections::VecDeque;
use std::net::IpAddr;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::core::kernel::SessionProgress;
use crate::core::net::{Connection, Direction, Endpoint, Flow, Port, Seq};
use crate::core::seqadj::Adjustment;

/// How many connections are remembered at a time, which limits the memory.
const MAX_REMEMBERED: usize = 1 << 16;

/// How many ports are tried for a connection whose source port is taken. The limit keeps the search short for a capture
/// with many connections from one port.
const MAX_PORTS_TRIED: usize = 1024;

/// The direction of a packet through the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::replay) enum Way {
    Out,
    In,
}

/// The addresses of a translated connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::replay) struct Translated {
    /// The flow from the inside end to the outside end, as captured on the inside.
    pub(in crate::replay) inside: Flow,
    /// The same flow on the outside of the gateway.
    pub(in crate::replay) outside: Flow,
    /// The direction of the first SYN.
    pub(in crate::replay) opened: Way,
}

impl Translated {
    /// The addresses with which the packets of both directions arrive at the gateway.
    pub(in crate::replay) const fn connection(&self) -> Connection {
        let (out, back) = (self.inside, self.outside.reversed());
        match self.opened {
            Way::Out => Connection { original: out, reply: back },
            Way::In => Connection { original: back, reply: out },
        }
    }

    /// The addresses with which the packets of this direction arrive at the gateway.
    pub(in crate::replay) const fn arriving(&self, way: Way) -> Flow {
        match way {
            Way::Out => self.inside,
            Way::In => self.outside.reversed(),
        }
    }

    /// The direction of the packets that the inside end sends.
    pub(super) const fn outwards(&self) -> Direction {
        match self.opened {
            Way::Out => Direction::FromClient,
            Way::In => Direction::FromServer,
        }
    }
}

/// A translated connection, with the state that the kernel's conntrack would have.
#[derive(Clone, Copy, Debug)]
pub(super) struct NatConnection {
    pub(super) translated: Translated,
    /// The sequence adjustment of the packets that the inside end sends.
    pub(super) adjustment: Option<Adjustment>,
    pub(super) progress: SessionProgress,
    /// The sequence number of the SYN, if it was captured. A SYN with another number begins a new connection.
    syn: Option<Seq>,
}

#[derive(Debug, Default)]
pub(super) struct Connections {
    by_inside: HashMap<Flow, NatConnection, RandomState>,
    /// From the flow outside to the flow inside.
    by_outside: HashMap<Flow, Flow, RandomState>,
    in_order: VecDeque<Flow>,
}

impl Connections {
    /// The connection of a captured packet, and the packet's direction.
    pub(super) fn captured(&self, flow: &Flow) -> Option<(&NatConnection, Way)> {
        let out = self.by_inside.get(flow).map(|connection| (connection, Way::Out));
        out.or_else(|| self.by_inside.get(&flow.reversed()).map(|connection| (connection, Way::In)))
    }

    /// The connection of a packet that arrives at the gateway with these addresses.
    pub(super) fn arriving(&mut self, flow: &Flow) -> Option<&mut NatConnection> {
        let inside = if self.by_inside.contains_key(flow) { *flow } else { *self.by_outside.get(&flow.reversed())? };
        self.by_inside.get_mut(&inside)
    }

    /// Adds a connection. It replaces a connection with the same addresses inside.
    pub(super) fn add(&mut self, translated: Translated) {
        let Translated { inside, outside, .. } = translated;
        match self.by_inside.get(&inside) {
            Some(before) => {
                self.by_outside.remove(&before.translated.outside);
            }
            None => {
                self.in_order.push_back(inside);
                if self.in_order.len() > MAX_REMEMBERED
                    && let Some(oldest) = self.in_order.pop_front()
                    && let Some(forgotten) = self.by_inside.remove(&oldest)
                {
                    self.by_outside.remove(&forgotten.translated.outside);
                }
            }
        }
        self.by_inside.insert(
            inside,
            NatConnection { translated, adjustment: None, progress: SessionProgress::Unknown, syn: None },
        );
        self.by_outside.insert(outside, inside);
    }

    /// Handles a SYN with this sequence number. Unless it is a retransmission, the connection is a new one without
    /// adjustment.
    pub(super) fn begins(&mut self, flow: &Flow, syn: Seq) {
        let inside = if self.by_inside.contains_key(flow) { *flow } else { flow.reversed() };
        if let Some(connection) = self.by_inside.get_mut(&inside)
            && connection.syn != Some(syn)
        {
            *connection =
                NatConnection { syn: Some(syn), adjustment: None, progress: SessionProgress::Unknown, ..*connection };
        }
    }

    /// The flow outside after SNAT to `address`: with the same source port if that is free, or with another one. If all
    /// tried ports are taken, the source port stays the same.
    pub(super) fn after_snat(&self, inside: &Flow, address: IpAddr) -> Flow {
        let with_port = |port| Flow { source: Endpoint::new(address, port), ..*inside };
        let is_free = |flow: &Flow| self.by_outside.get(flow).is_none_or(|other| other == inside);
        let own = inside.source.port;
        let others = (1024..=u16::MAX).filter_map(Port::new).take(MAX_PORTS_TRIED);
        let mut choices = std::iter::once(own).chain(others).map(with_port);
        choices.find(is_free).unwrap_or_else(|| with_port(own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::script::endpoint;

    #[test]
    fn number_of_ports_tried_for_snat_is_bounded() {
        let mut connections = Connections::default();
        let address = endpoint("198.51.100.1:1").address;
        let mut ports = Vec::new();
        for host in 0..MAX_PORTS_TRIED + 10 {
            let source = endpoint(&format!("10.0.{}.{}:40000", host / 256, host % 256));
            let inside = Flow { source, destination: endpoint("203.0.113.5:21") };
            let outside = connections.after_snat(&inside, address);
            connections.add(Translated { inside, outside, opened: Way::Out });
            ports.push(outside.source.port.number());
        }
        assert_eq!(ports[..3], [40000, 1024, 1025]);
        assert_eq!(ports[MAX_PORTS_TRIED + 1..], [40000; 9], "the same port if all others are taken");
    }
}
