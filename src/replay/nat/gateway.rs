//! A simulated firewall with NAT. Without NAT it is the same as [`Simulated`].

use std::net::IpAddr;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::connections::{Connections, NatConnection};
use super::{Nat, Translated, Way};
use crate::core::expectation::{Expectation, Mapping, PortRangePinhole};
use crate::core::kernel::{
    Admitted, Control, Firewall, LookupFailed, NotOpened, Service, SessionProgress, Simulated, Synced, Testimony,
};
use crate::core::net::{Connection, Direction, Endpoint, Flags, Flow, Segment, Seq};
use crate::core::policy::ControlPorts;
use crate::core::seqadj::{Adjustment, Adjustments, NotAdjusted};
use crate::core::time::Timestamp;

/// Pinholes, translated connections, and their sequence adjustments.
#[derive(Debug)]
pub(in crate::replay) struct Gateway {
    control_ports: ControlPorts,
    simulated: Simulated,
    nat: Option<Nat>,
    connections: Connections,
    /// The destination before DNAT of each expected data connection, by its source address and destination after DNAT.
    expected_dnat: HashMap<(IpAddr, Endpoint), Endpoint, RandomState>,
}

impl Gateway {
    pub(in crate::replay) fn new(control_ports: &ControlPorts, nat: Option<Nat>) -> Self {
        Self {
            control_ports: control_ports.clone(),
            simulated: Simulated::new(control_ports.as_slice().iter().copied()),
            nat,
            connections: Connections::default(),
            expected_dnat: HashMap::default(),
        }
    }

    /// A gateway with the same settings, but without connections and pinholes.
    pub(in crate::replay) fn restarted(&mut self) -> Self {
        Self::new(&self.control_ports, self.nat.take())
    }

    /// The translated connection of a captured segment, and the segment's direction.
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
        let (connection, way) = self.connections.captured(flow)?;
        Some((connection.translated, way))
    }

    /// The translation of a new control connection.
    fn control(&self, flow: &Flow) -> Option<Translated> {
        let nat = self.nat.as_ref()?;
        let out = match (nat.is_inside(flow.source.address), nat.is_inside(flow.destination.address)) {
            (true, false) => *flow,
            (false, true) => flow.reversed(),
            // Between two inside hosts, or between two outside hosts: not translated.
            (true, true) | (false, false) => return None,
        };
        if nat.is_outside(out.destination.address) {
            // Hairpin NAT: the capture has the packets before and after the translation, and no end is outside.
            return None;
        }
        if let Some(before_dnat) = nat.before_dnat(out.source)
            && self.control_ports.contains(before_dnat.port)
        {
            return Some(Translated { inside: out, outside: Flow { source: before_dnat, ..out }, opened: Way::In });
        }
        if !self.control_ports.contains(out.destination.port) {
            return None;
        }
        let address = nat.snat_address(out.destination.address)?;
        Some(Translated { inside: out, outside: self.connections.after_snat(&out, address), opened: Way::Out })
    }

    /// Admits a new data connection if it was expected. Its pinhole is used, and the connection is translated from now
    /// on. Also returns the addresses with which it arrived at the gateway.
    pub(in crate::replay) fn admit(&mut self, now: Timestamp, captured: &Flow) -> Option<(Admitted, Flow)> {
        let before_dnat = self.expected_dnat.get(&(captured.source.address, captured.destination)).copied();
        let arriving = before_dnat.map_or(*captured, |destination| Flow { destination, ..*captured });
        let admitted = self.simulated.admit(now, &arriving)?;
        if let Admitted::Pinhole(pinhole) = &admitted {
            self.forget_expected_dnat(pinhole);
            if before_dnat.is_some() {
                let (inside, outside) = (captured.reversed(), arriving.reversed());
                self.connections.add(Translated { inside, outside, opened: Way::In });
            } else if let Some(address) = pinhole.mapping.from {
                let outside = self.connections.after_snat(captured, address);
                self.connections.add(Translated { inside: *captured, outside, opened: Way::Out });
            }
        }
        Some((admitted, arriving))
    }

    /// The sequence number outside of a segment that the inside end sends.
    pub(in crate::replay) fn adjusted_seq(&self, translated: &Translated, seq: Seq) -> Seq {
        self.adjustment(translated).map_or(seq, |adjustment| adjustment.sequence(seq))
    }

    /// An acknowledgement number that is adjusted to `ack`. It may differ from the one that the outside end sent, because
    /// several numbers are adjusted to the same one.
    pub(in crate::replay) fn ack_before_adjustment(&self, translated: &Translated, ack: Seq) -> Seq {
        let Some(adjustment) = self.adjustment(translated) else { return ack };
        let candidates = [adjustment.after, adjustment.before].map(|by| ack.moved(by));
        candidates.into_iter().find(|sent| adjustment.acknowledgement(*sent) == ack).unwrap_or(candidates[0])
    }

    fn adjustment(&self, translated: &Translated) -> Option<Adjustment> {
        self.connections.captured(&translated.inside).and_then(|(connection, _)| connection.adjustment)
    }

    fn forget_expected_dnat(&mut self, expectation: &Expectation) {
        let key = (expectation.from, expectation.target());
        // A later expectation may have the same source and target.
        if self.expected_dnat.get(&key) == Some(&expectation.to) {
            self.expected_dnat.remove(&key);
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
            self.expected_dnat.insert((expectation.from, expectation.target()), expectation.to);
        }
        Ok(())
    }

    fn close(&mut self, expectation: &Expectation) {
        self.simulated.close(expectation);
        self.forget_expected_dnat(expectation);
    }

    fn syn_came(&mut self, expectation: &Expectation) -> bool {
        self.simulated.syn_came(expectation)
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
        let entry = self.connections.arriving(&connection.original).ok_or(NotAdjusted::NotPrepared)?;
        // The capture has the packets of the outside end as they left the gateway, so their length cannot change any more.
        if entry.translated.outwards() != direction {
            return Err(NotAdjusted::NotPrepared);
        }
        entry.adjustment = Some(*adjustment);
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

    fn open_for_syn(&mut self, expectation: &Expectation) -> Result<(), NotOpened> {
        self.simulated.open_for_syn(expectation)
    }

    fn testimony(&mut self, syn: &Flow, of: &Connection, service: &Service) -> Testimony {
        self.simulated.testimony(syn, of, service)
    }

    fn record(&mut self, connection: &Connection, progress: SessionProgress) {
        match self.connections.arriving(&connection.original) {
            Some(entry) => entry.progress = progress,
            None => self.simulated.record(connection, progress),
        }
    }
}
