//! A firewall in memory with NAT, as far as a replay needs it. Without NAT it is the simulated firewall.

use std::net::IpAddr;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::connections::{Connections, NatConnection};
use super::{Nat, Translated, Way};
use crate::core::expectation::{Expectation, Mapping, PortRangePinhole};
use crate::core::kernel::{Admitted, Control, Firewall, LookupFailed, NotOpened, Progress, Simulated, Synced};
use crate::core::net::{Connection, Direction, Endpoint, Flags, Flow, Segment, Seq};
use crate::core::policy::ControlPorts;
use crate::core::seqadj::{Adjustment, Adjustments, NotAdjusted};
use crate::core::time::Timestamp;

/// Pinholes, the connections that are translated, and how they are shifted.
#[derive(Debug)]
pub(in crate::replay) struct Gateway {
    control_ports: ControlPorts,
    simulated: Simulated,
    nat: Option<Nat>,
    connections: Connections,
    /// Who will be delivered where, and to where he connects for that.
    delivered: HashMap<(IpAddr, Endpoint), Endpoint, RandomState>,
}

impl Gateway {
    pub(in crate::replay) fn new(control_ports: &ControlPorts, nat: Option<Nat>) -> Self {
        Self {
            control_ports: control_ports.clone(),
            simulated: Simulated::new(control_ports.as_slice().iter().copied()),
            nat,
            connections: Connections::default(),
            delivered: HashMap::default(),
        }
    }

    /// The same, which has seen nothing yet.
    pub(in crate::replay) fn anew(&mut self) -> Self {
        Self::new(&self.control_ports, self.nat.take())
    }

    /// The translated connection to which a captured segment belongs, and which way it goes.
    #[inline]
    pub(in crate::replay) fn passes(&mut self, segment: &Segment<'_>) -> Option<(Translated, Way)> {
        self.nat.as_ref()?;
        self.passes_nat(segment)
    }

    fn passes_nat(&mut self, segment: &Segment<'_>) -> Option<(Translated, Way)> {
        let flow = &segment.flow;
        if self.connections.captured(flow).is_none() {
            let control = self.control(flow)?;
            self.connections.add(control);
        }
        if segment.flags.has(Flags::SYN) && !segment.flags.has(Flags::ACK) {
            self.connections.begins(flow, segment.seq);
        }
        let (standing, way) = self.connections.captured(flow)?;
        Some((standing.translated, way))
    }

    /// What the NAT makes of a control connection that has been captured for the first time.
    fn control(&self, flow: &Flow) -> Option<Translated> {
        let nat = self.nat.as_ref()?;
        let out = match (nat.is_inside(flow.source.address), nat.is_inside(flow.destination.address)) {
            (true, false) => *flow,
            (false, true) => flow.reversed(),
            // What goes from one host to another inside does not pass the gateway; what goes by it does not either.
            (true, true) | (false, false) => return None,
        };
        if nat.is_outside(out.destination.address) {
            // From inside to inside, by an outside address: the capture has both halves of it, and neither is outside.
            return None;
        }
        if let Some(dialled) = nat.reached_by(out.source)
            && self.control_ports.contains(dialled.port)
        {
            return Some(Translated { inside: out, outside: Flow { source: dialled, ..out }, opened: Way::In });
        }
        if !self.control_ports.contains(out.destination.port) {
            return None;
        }
        let worn = nat.worn_towards(out.destination.address)?;
        Some(Translated { inside: out, outside: self.connections.leaving(&out, worn), opened: Way::Out })
    }

    /// A new data connection was captured. If it was expected it is admitted, its pinhole is used up, and it is
    /// translated from now on. Says, too, with which addresses it arrived.
    pub(in crate::replay) fn admit(&mut self, now: Timestamp, captured: &Flow) -> Option<(Admitted, Flow)> {
        let dialled = self.delivered.get(&(captured.source.address, captured.destination)).copied();
        let arriving = dialled.map_or(*captured, |destination| Flow { destination, ..*captured });
        let admitted = self.simulated.admit(now, &arriving)?;
        if let Admitted::Pinhole(pinhole) = &admitted {
            self.forget_delivery(pinhole);
            if dialled.is_some() {
                let (inside, outside) = (captured.reversed(), arriving.reversed());
                self.connections.add(Translated { inside, outside, opened: Way::In });
            } else if let Some(worn) = pinhole.mapping.from {
                let outside = self.connections.leaving(captured, worn);
                self.connections.add(Translated { inside: *captured, outside, opened: Way::Out });
            }
        }
        Some((admitted, arriving))
    }

    /// What becomes of the sequence number of a segment that the inside end sends.
    pub(in crate::replay) fn shifted(&self, translated: &Translated, seq: Seq) -> Seq {
        self.adjustment(translated).map_or(seq, |adjustment| adjustment.sequence(seq))
    }

    /// What an acknowledgement was that the inside end gets as this one, if nobody knows better.
    pub(in crate::replay) fn unshifted(&self, translated: &Translated, ack: Seq) -> Seq {
        let Some(adjustment) = self.adjustment(translated) else { return ack };
        let candidates = [adjustment.after, adjustment.before].map(|by| ack.moved(by));
        candidates.into_iter().find(|sent| adjustment.acknowledgement(*sent) == ack).unwrap_or(candidates[0])
    }

    fn adjustment(&self, translated: &Translated) -> Option<Adjustment> {
        self.connections.captured(&translated.inside).and_then(|(standing, _)| standing.adjustment)
    }

    fn forget_delivery(&mut self, expectation: &Expectation) {
        let key = (expectation.from, expectation.target());
        // Another one may be delivered to the same place by now.
        if self.delivered.get(&key) == Some(&expectation.to) {
            self.delivered.remove(&key);
        }
    }
}

impl Firewall for Gateway {
    fn control_connection(&mut self, flow: &Flow) -> Result<Option<Control>, LookupFailed> {
        let Some(NatConnection { translated, adjustment, progress, .. }) = self.connections.arriving(flow) else {
            return self.simulated.control_connection(flow);
        };
        let connection = translated.connection();
        let mut adjustments = Adjustments::default();
        if let Some(adjustment) = adjustment {
            adjustments.set(translated.outwards(), *adjustment);
        }
        let synced = Synced::default();
        let control = Control {
            connection,
            id: Some(self.simulated.next_id()),
            is_opening: true,
            progress: *progress,
            synced,
            adjustments,
        };
        Ok(self.control_ports.contains(connection.server().port).then_some(control))
    }

    fn open(&mut self, expectation: &Expectation, of: &Connection) -> Result<(), NotOpened> {
        self.simulated.open(expectation, of)?;
        if expectation.mapping.to.is_some() {
            self.delivered.insert((expectation.from, expectation.target()), expectation.to);
        }
        Ok(())
    }

    fn close(&mut self, expectation: &Expectation) {
        self.simulated.close(expectation);
        self.forget_delivery(expectation);
    }

    fn mapping_of(&mut self, from: IpAddr, to: Endpoint) -> Option<Mapping> {
        self.simulated.mapping_of(from, to)
    }

    fn adjust(
        &mut self,
        connection: &Connection,
        direction: Direction,
        adjustment: &Adjustment,
        _: &[Seq],
    ) -> Result<(), NotAdjusted> {
        let standing = self.connections.arriving(&connection.original).ok_or(NotAdjusted::NotPrepared)?;
        // What the outside end says is in the capture as it came out of the gateway: its length is settled.
        if standing.translated.outwards() != direction {
            return Err(NotAdjusted::NotPrepared);
        }
        standing.adjustment = Some(*adjustment);
        Ok(())
    }

    fn open_port_range(&mut self, port_range: &PortRangePinhole) -> Result<(), NotOpened> {
        self.simulated.open_port_range(port_range)
    }

    fn renew_port_range(&mut self, port_range: &PortRangePinhole) {
        self.simulated.renew_port_range(port_range);
    }

    fn close_port_range(&mut self, port_range: &PortRangePinhole) {
        self.simulated.close_port_range(port_range);
    }

    fn record(&mut self, connection: &Connection, progress: Progress) {
        match self.connections.arriving(&connection.original) {
            Some(standing) => standing.progress = progress,
            None => self.simulated.record(connection, progress),
        }
    }
}
