//! A firewall in memory, for replay, tests and benchmarks. It admits what the kernel would.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::{Control, Firewall, LookupFailed, NotOpened};
use crate::core::expectation::{Corridor, Expectation, Mapping};
use crate::core::kernel::{InStep, Progress};
use crate::core::net::{Connection, Direction, Endpoint, Flow, Port, Seq};
use crate::core::seqadj::{Adjustment, Adjustments, NotAdjusted};
use crate::core::time::Timestamp;

/// Through what a data connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// Through a pinhole, which is closed by it.
    Pinhole(Expectation),
    /// Through the corridor of an encrypted session.
    Corridor(Corridor),
}

/// Pinholes in memory. Connections are not translated, unless somebody says which are.
#[derive(Debug)]
pub struct Simulated {
    control_ports: BTreeSet<Port>,
    pinholes: HashMap<(IpAddr, Endpoint), Expectation, RandomState>,
    corridors: Vec<Corridor>,
    translated: HashMap<Flow, Connection, RandomState>,
    adjustments: HashMap<Flow, Adjustments, RandomState>,
    cannot_adjust: bool,
    /// Whether connections are in the middle, whatever is asked of them.
    nothing_opens: bool,
    recorded: Recorded,
    in_step: InStep,
    ids: u32,
    failing_lookups: u32,
    lookups: u64,
    renewals: usize,
}

/// How many connections are remembered. The kernel remembers all that it has.
const MOST_RECORDED: usize = 1 << 16;

/// How far connections have come.
#[derive(Debug, Default)]
struct Recorded {
    progress: HashMap<Flow, Progress, RandomState>,
    /// In the order in which they came, to forget the oldest.
    in_order: VecDeque<Flow>,
}

impl Recorded {
    fn get(&self, flow: &Flow) -> Progress {
        self.progress.get(flow).copied().unwrap_or_default()
    }

    fn insert(&mut self, flow: Flow, progress: Progress) {
        if self.progress.insert(flow, progress).is_some() {
            return;
        }
        self.in_order.push_back(flow);
        if self.in_order.len() > MOST_RECORDED
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
            corridors: Vec::new(),
            translated: HashMap::default(),
            adjustments: HashMap::default(),
            cannot_adjust: false,
            nothing_opens: false,
            recorded: Recorded::default(),
            in_step: InStep::default(),
            ids: 0,
            failing_lookups: 0,
            lookups: 0,
            renewals: 0,
        }
    }

    /// A new connection arrives. If it was expected it is admitted, and its pinhole is used up.
    pub fn admit(&mut self, now: Timestamp, flow: &Flow) -> Option<Admitted> {
        let key = (flow.source.address, flow.destination);
        match self.pinholes.remove(&key) {
            Some(pinhole) if now < pinhole.expires() => Some(Admitted::Pinhole(pinhole)),
            _ => self.corridors.iter().find(|corridor| corridor.matches(flow)).copied().map(Admitted::Corridor),
        }
    }

    /// NAT makes this of a connection: packets with either of its addresses belong to it.
    pub fn translate(&mut self, connection: &Connection) {
        for flow in [connection.original, connection.reply] {
            self.translated.insert(flow, *connection);
        }
    }

    /// From now on sequence numbers cannot be corrected.
    pub const fn refuse_to_adjust(&mut self) {
        self.cannot_adjust = true;
    }

    /// Whoever asks for a connection gets another one: it is only asked for when one begins.
    pub(crate) const fn next_id(&mut self) -> u32 {
        self.ids = self.ids.wrapping_add(1);
        self.ids
    }

    /// From now on these ends of every connection are in step.
    pub const fn find_in_step(&mut self, in_step: InStep) {
        self.in_step = in_step;
    }

    /// So many of the next lookups of a control connection fail.
    pub const fn fail_next_lookups(&mut self, count: u32) {
        self.failing_lookups = count;
    }

    /// From now on every connection is one in the middle.
    pub const fn finds_nothing_opening(&mut self) {
        self.nothing_opens = true;
    }

    /// How the sequence numbers of a connection are corrected.
    pub fn adjustments(&self, connection: &Connection) -> Adjustments {
        self.adjustments.get(&connection.original).copied().unwrap_or_default()
    }

    /// How often an open corridor was renewed.
    pub const fn renewals(&self) -> usize {
        self.renewals
    }

    /// How often it was asked what NAT makes of a connection.
    pub const fn mapping_lookups(&self) -> u64 {
        self.lookups
    }

    /// How many pinholes stand, expired ones that nobody closed included.
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
            is_opening: !self.nothing_opens,
            progress: self.recorded.get(&connection.original),
            in_step: self.in_step,
            adjustments: self.adjustments(&connection),
        }))
    }

    fn open(&mut self, expectation: &Expectation, _: &Connection) -> Result<(), NotOpened> {
        self.pinholes.insert((expectation.from, expectation.to), *expectation);
        Ok(())
    }

    fn close(&mut self, expectation: &Expectation) {
        self.pinholes.remove(&(expectation.from, expectation.to));
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

    fn open_corridor(&mut self, corridor: &Corridor) -> Result<(), NotOpened> {
        self.corridors.push(*corridor);
        Ok(())
    }

    fn renew_corridor(&mut self, corridor: &Corridor) {
        self.renewals += usize::from(self.corridors.contains(corridor));
    }

    fn close_corridor(&mut self, corridor: &Corridor) {
        if let Some(index) = self.corridors.iter().position(|open| open == corridor) {
            self.corridors.swap_remove(index);
        }
    }

    fn record(&mut self, connection: &Connection, progress: Progress) {
        self.recorded.insert(connection.original, progress);
    }
}
