//! Control connections in conntrack: which one a packet belongs to, their marks, and their sequence adjustment.

use super::REPLY_TIMEOUT;
use super::errors::ErrorCounter;
use super::netlink::{Conntrack, ConntrackEntry, Error, SequenceAdjustment};
use crate::core::kernel::{Control, ControlBits, LookupFailed, SessionProgress, Synced};
use crate::core::net::{Connection, Direction, Flow, Port, Seq};
use crate::core::policy::{ControlPorts, Policy};
use crate::core::seqadj::{Adjustment, Adjustments, NotAdjusted};

/// The control connections of this host's conntrack.
#[derive(Debug)]
pub(super) struct ControlConnections {
    conntrack: Conntrack,
    ports: ControlPorts,
    bits: ControlBits,
    /// Whether every packet since the marks were set has passed the table's rules, so that the in-sync bits can be
    /// trusted.
    may_be_synced: bool,
    errors: ErrorCounter,
}

impl ControlConnections {
    pub(super) fn open(policy: &Policy, errors: ErrorCounter) -> Result<Self, Error> {
        let conntrack = Conntrack::open(REPLY_TIMEOUT)?;
        let (ports, bits) = (policy.control_ports.clone(), policy.mark.control_bits());
        Ok(Self { conntrack, ports, bits, may_be_synced: false, errors })
    }

    /// Applies another policy.
    pub(super) fn follow(&mut self, policy: &Policy) {
        (self.ports, self.bits) = (policy.control_ports.clone(), policy.mark.control_bits());
    }

    /// The table's rules have been in force ever since the marks were set.
    pub(super) fn trust_synced(&mut self) {
        self.may_be_synced = true;
    }

    /// How much a connection has carried in both directions, if conntrack counts; none if it has ended.
    pub(super) fn bytes_of(&mut self, flow: &Flow) -> Option<Option<u64>> {
        let entry = self.errors.ok(self.conntrack.find(flow))??;
        (entry.is_established || entry.is_opening).then_some(entry.bytes)
    }

    /// The control connection to which packets with these addresses belong, as
    /// [`Firewall::control_connection`](crate::core::kernel::Firewall::control_connection) returns it.
    pub(super) fn find(&mut self, flow: &Flow) -> Result<Option<Control>, LookupFailed> {
        let found = self.conntrack.find(flow);
        Ok(match self.errors.ok(found).ok_or(LookupFailed)? {
            Some(entry) => self.client_to_server(entry.connection).map(|connection| Control {
                connection,
                id: entry.id,
                is_opening: entry.is_opening,
                progress: self.bits.read_progress(entry.mark),
                synced: if self.may_be_synced { self.bits.read_synced(entry.mark) } else { Synced::default() },
                adjustments: adjustments(&entry),
            }),
            // The packet was queued, so its connection is tracked; but not in the default zone, in which Pinhole
            // looks it up. It is read to keep denied commands from the server. Without an ID, nothing opens for it.
            None => self.without_nat(flow).map(|connection| Control {
                connection,
                id: None,
                is_opening: true,
                progress: SessionProgress::Unknown,
                synced: Synced::default(),
                adjustments: Adjustments::default(),
            }),
        })
    }

    /// The established control connections.
    pub(super) fn established(&mut self) -> Result<Vec<Connection>, Error> {
        let ports = &self.ports;
        let is_control =
            |entry: &ConntrackEntry| entry.is_established && ports.contains(entry.connection.original.destination.port);
        Ok(self.conntrack.list(is_control)?.into_iter().map(|entry| entry.connection).collect())
    }

    /// Sets the seqadj offsets of one direction, and reads them back.
    pub(super) fn adjust(
        &mut self,
        connection: &Connection,
        direction: Direction,
        adjustment: &Adjustment,
    ) -> Result<(), NotAdjusted> {
        let Adjustment { position, before, after } = *adjustment;
        let wanted = SequenceAdjustment { position: position.number(), before, after };
        let flow = &connection.original;
        let adjusted = self.conntrack.adjust(flow, direction == Direction::FromClient, &wanted);
        if !self.errors.ok(adjusted).ok_or(NotAdjusted::Failed)? {
            return Err(NotAdjusted::Unknown);
        }
        // The kernel also acknowledges an offset that it cannot keep.
        let found = self.conntrack.find(flow);
        let entry = self.errors.ok(found).ok_or(NotAdjusted::Failed)?.ok_or(NotAdjusted::Unknown)?;
        if adjustments(&entry).of(direction) == Some(*adjustment) { Ok(()) } else { Err(NotAdjusted::NotPrepared) }
    }

    /// Stores a control connection's progress in its mark.
    pub(super) fn record(&mut self, connection: &Connection, progress: SessionProgress) {
        self.mark(connection, self.bits.of(progress), self.bits.progress());
    }

    /// Sets `be_liberal` for these control connections, so that conntrack does not mark their packets as invalid because
    /// of sequence numbers outside the window.
    ///
    /// For connections that continued while the ruleset was gone: without rules that need conntrack, conntrack sees no
    /// packets, and its window becomes outdated. Then it may mark all later packets as invalid, until the connection ends.
    pub(super) fn set_tcp_be_liberal<'a>(&mut self, connections: impl Iterator<Item = &'a Connection>) {
        for connection in connections {
            let set = self.conntrack.set_tcp_be_liberal(&connection.original);
            self.errors.ok(set);
        }
    }

    /// Clears the in-sync bits of these control connections, whose packets may have bypassed the queue while rules of the
    /// table were gone.
    pub(super) fn forget_synced<'a>(&mut self, connections: impl Iterator<Item = &'a Connection>) {
        self.may_be_synced = false;
        let mask = self.bits.synced(Direction::FromClient) | self.bits.synced(Direction::FromServer);
        connections.for_each(|connection| self.mark(connection, 0, mask));
    }

    /// Sets the bits of `mask` in a control connection's mark to `bits`.
    fn mark(&mut self, connection: &Connection, bits: u32, mask: u32) {
        // If conntrack has no entry any more, the connection has ended, and the mark does not matter.
        let marked = self.conntrack.mark(&connection.original, bits, mask);
        self.errors.ok(marked);
    }

    /// The connection in the client's direction, if the server's port is a control port. Conntrack may have picked it
    /// up in the middle, from a packet of the server.
    fn client_to_server(&self, connection: Connection) -> Option<Connection> {
        let Connection { original, reply } = connection;
        let is_control = |flow: &Flow| self.ports.contains(flow.destination.port);
        if is_control(&original) {
            Some(connection)
        } else if is_control(&reply) {
            Some(Connection { original: reply, reply: original })
        } else {
            None
        }
    }

    /// The control connection with these addresses, without NAT.
    fn without_nat(&self, flow: &Flow) -> Option<Connection> {
        let is_control = |port: Port| self.ports.contains(port);
        if is_control(flow.destination.port) {
            Some(Connection::direct(*flow))
        } else if is_control(flow.source.port) {
            Some(Connection::direct(flow.reversed()))
        } else {
            None
        }
    }
}

fn adjustments(entry: &ConntrackEntry) -> Adjustments {
    let read = |found: SequenceAdjustment| {
        let SequenceAdjustment { position, before, after } = found;
        Adjustment { position: Seq::new(position), before, after }
    };
    let [from_client, from_server] = entry.adjustments.map(|found| found.map(read));
    Adjustments { from_client, from_server }
}
