//! A firewall in memory, for replay, tests and benchmarks. It admits the same connections as the kernel would.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};

use super::{Control, Firewall, LookupFailed, NotOpened, Service, Testimony};
use crate::core::expectation::{Expectation, Mapping, PortRangePinhole};
use crate::core::kernel::{SessionProgress, Synced};
use crate::core::net::{Connection, Direction, Endpoint, Flow, Port, Seq};
use crate::core::seqadj::{Adjustment, Adjustments, NotAdjusted};
use crate::core::time::Timestamp;

/// What admitted a data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// A pinhole, which is closed by that.
    Pinhole(Expectation),
    /// The port range of an encrypted session.
    PortRangePinhole(PortRangePinhole),
}

/// A firewall in memory. A connection has no NAT unless [`translate`](Self::translate) was called for it.
#[derive(Debug)]
pub struct Simulated {
    control_ports: BTreeSet<Port>,
    pinholes: HashMap<(IpAddr, Endpoint), Expectation, RandomState>,
    port_ranges: Vec<PortRangePinhole>,
    translated: HashMap<Flow, Connection, RandomState>,
    adjustments: HashMap<Flow, Adjustments, RandomState>,
    cannot_adjust: bool,
    /// Whether no connection is in its handshake.
    never_opening: bool,
    recorded: Recorded,
    synced: Synced,
    ids: u32,
    failing_lookups: u32,
    lookups: u64,
    renewals: usize,
    /// Pinholes whose SYN was admitted and then dropped.
    dropped: HashSet<(IpAddr, Endpoint), RandomState>,
    /// What it says of every listener.
    testimony: Testimony,
}

/// The progress of how many connections is kept. The kernel keeps that of all its connections.
const MAX_RECORDED: usize = 1 << 16;

/// The recorded progress of connections.
#[derive(Debug, Default)]
struct Recorded {
    progress: HashMap<Flow, SessionProgress, RandomState>,
    /// The connections in the order in which they were first recorded, to forget the oldest.
    in_order: VecDeque<Flow>,
}

impl Recorded {
    fn get(&self, flow: &Flow) -> SessionProgress {
        self.progress.get(flow).copied().unwrap_or_default()
    }

    fn insert(&mut self, flow: Flow, progress: SessionProgress) {
        if self.progress.insert(flow, progress).is_some() {
            return;
        }
        self.in_order.push_back(flow);
        if self.in_order.len() > MAX_RECORDED
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.progress.remove(&oldest);
        }
    }
}

impl Simulated {
    /// A firewall for servers that listen on these ports.
    pub fn new(control_ports: impl IntoIterator<Item = Port>) -> Self {
        Self {
            control_ports: control_ports.into_iter().collect(),
            pinholes: HashMap::default(),
            port_ranges: Vec::new(),
            translated: HashMap::default(),
            adjustments: HashMap::default(),
            cannot_adjust: false,
            never_opening: false,
            recorded: Recorded::default(),
            synced: Synced::default(),
            ids: 0,
            failing_lookups: 0,
            lookups: 0,
            renewals: 0,
            dropped: HashSet::default(),
            testimony: Testimony::NoControlSocket,
        }
    }

    /// A new connection arrives. If it is expected, it is admitted, and its pinhole is closed.
    pub fn admit(&mut self, now: Timestamp, flow: &Flow) -> Option<Admitted> {
        let key = (flow.source.address, flow.destination);
        match self.pinholes.remove(&key) {
            Some(pinhole) if now < pinhole.expires() => Some(Admitted::Pinhole(pinhole)),
            _ => self
                .port_ranges
                .iter()
                .find(|port_range| port_range.admits(flow))
                .copied()
                .map(Admitted::PortRangePinhole),
        }
    }

    /// A SYN comes that its pinhole admits, and that the host then drops.
    pub fn drop_syn(&mut self, from: IpAddr, to: Endpoint) {
        self.dropped.insert((from, to));
    }

    /// Sets the NAT of a connection: packets of both of its flows belong to it.
    pub fn translate(&mut self, connection: &Connection) {
        for flow in [connection.original, connection.reply] {
            self.translated.insert(flow, *connection);
        }
    }

    /// From now on [`Firewall::adjust`] fails.
    pub const fn refuse_to_adjust(&mut self) {
        self.cannot_adjust = true;
    }

    /// A new ID for each lookup: a connection is looked up only when its session begins.
    pub(crate) const fn next_id(&mut self) -> u32 {
        self.ids = self.ids.wrapping_add(1);
        self.ids
    }

    /// From now on these ends of every connection are in sync.
    pub const fn set_synced(&mut self, synced: Synced) {
        self.synced = synced;
    }

    /// This many of the next lookups of a control connection fail.
    pub const fn fail_next_lookups(&mut self, count: u32) {
        self.failing_lookups = count;
    }

    /// From now on no connection is in its handshake.
    pub const fn treat_all_as_established(&mut self) {
        self.never_opening = true;
    }

    /// From now on this is what it says of every listener.
    pub const fn set_testimony(&mut self, testimony: Testimony) {
        self.testimony = testimony;
    }

    /// The seqadj offsets of a connection.
    pub fn adjustments(&self, connection: &Connection) -> Adjustments {
        self.adjustments.get(&connection.original).copied().unwrap_or_default()
    }

    /// How often an open port range was renewed.
    pub const fn renewals(&self) -> usize {
        self.renewals
    }

    /// How often [`Firewall::mapping_of`] was called.
    pub const fn mapping_lookups(&self) -> u64 {
        self.lookups
    }

    /// How many pinholes there are, including expired ones that were not closed.
    pub fn pinholes(&self) -> usize {
        self.pinholes.len()
    }
}

impl Firewall for Simulated {
    fn control_connection(&mut self, flow: &Flow) -> Result<Option<Control>, LookupFailed> {
        if let Some(left) = self.failing_lookups.checked_sub(1) {
            self.failing_lookups = left;
            return Err(LookupFailed);
        }
        let connection = if let Some(connection) = self.translated.get(flow) {
            if !self.control_ports.contains(&connection.server().port) {
                return Ok(None);
            }
            *connection
        } else if self.control_ports.contains(&flow.destination.port) {
            Connection::direct(*flow)
        } else if self.control_ports.contains(&flow.source.port) {
            Connection::direct(flow.reversed())
        } else {
            return Ok(None);
        };
        Ok(Some(Control {
            connection,
            id: Some(self.next_id()),
            is_opening: !self.never_opening,
            progress: self.recorded.get(&connection.original),
            synced: self.synced,
            adjustments: self.adjustments(&connection),
        }))
    }

    fn open(&mut self, expectation: &Expectation, _: &Connection) -> Result<(), NotOpened> {
        self.pinholes.insert((expectation.from, expectation.to), *expectation);
        Ok(())
    }

    fn close(&mut self, expectation: &Expectation) {
        self.pinholes.remove(&(expectation.from, expectation.to));
        self.dropped.remove(&(expectation.from, expectation.to));
    }

    fn syn_came(&mut self, expectation: &Expectation) -> bool {
        self.dropped.contains(&(expectation.from, expectation.to))
    }

    fn mapping_of(&mut self, from: IpAddr, to: Endpoint) -> Option<Mapping> {
        self.lookups += 1;
        self.pinholes.get(&(from, to)).map(|pinhole| pinhole.mapping)
    }

    fn adjust(
        &mut self,
        connection: &Connection,
        direction: Direction,
        adjustment: &Adjustment,
        _: &[Seq],
    ) -> Result<(), NotAdjusted> {
        if self.cannot_adjust {
            return Err(NotAdjusted::NotPrepared);
        }
        self.adjustments.entry(connection.original).or_default().set(direction, *adjustment);
        Ok(())
    }

    fn open_port_range(&mut self, port_range: &PortRangePinhole) -> Result<(), NotOpened> {
        self.port_ranges.push(*port_range);
        Ok(())
    }

    fn renew_port_range(&mut self, port_range: &PortRangePinhole) {
        self.renewals += usize::from(self.port_ranges.contains(port_range));
    }

    fn close_port_range(&mut self, port_range: &PortRangePinhole) {
        if let Some(index) = self.port_ranges.iter().position(|open| open == port_range) {
            self.port_ranges.swap_remove(index);
        }
    }

    fn open_for_syn(&mut self, expectation: &Expectation) -> Result<(), NotOpened> {
        self.pinholes.insert((expectation.from, expectation.to), *expectation);
        Ok(())
    }

    fn testimony(&mut self, _: &Flow, _: &Connection, _: &Service) -> Testimony {
        self.testimony
    }

    fn record(&mut self, connection: &Connection, progress: SessionProgress) {
        self.recorded.insert(connection.original, progress);
    }
}
