//! The mechanism `sets`: pinholes as elements of nftables sets, in a table of our own.
//!
//! The kernel is the database: what stands there outlives this program, and is found again by the next one. Knows
//! nothing of how packets come out of the queue, nor of what is said in them.

mod admit;
mod install;
mod nft;
mod ruleset;

use std::collections::BTreeMap;
use std::hash::RandomState;
use std::net::IpAddr;
use std::time::Duration;

use hashbrown::HashMap;

pub use install::{Restored, SetupError};
pub use nft::NftError;
pub use ruleset::{Queueing, text as ruleset};

use super::{Control, Firewall, NotOpened};
use crate::expectation::{Corridor, Expectation};
use crate::net::{Port, PortRange};
use crate::netlink::{Conntrack, Element, Error, Key, TableImage, Tables};
use crate::packet::{Connection, Endpoint, Flow};
use crate::policy::Policy;
use ruleset::TABLE;

/// How long the kernel may take to answer. It answers at once, unless something is very wrong.
const PATIENCE: Duration = Duration::from_secs(1);

/// A pinhole as it stands in the kernel, whoever put it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinhole {
    /// Who may connect.
    pub from: IpAddr,
    /// Where to.
    pub to: Endpoint,
    /// For how long it was opened.
    pub lifetime: Duration,
    /// How much of that is left.
    pub remaining: Duration,
}

/// What the kernel refused since somebody last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// How often.
    pub count: u64,
    /// The last time.
    pub latest: Option<Error>,
}

/// Pinholes in the sets of the table `inet pinhole`.
#[derive(Debug)]
pub struct Sets {
    tables: Tables,
    conntrack: Conntrack,
    policy: Policy,
    queueing: Queueing,
    /// The rules of our table as they were installed: nobody has touched them while they are the same.
    installed: Vec<u64>,
    /// All of our table as it was installed, to be put back.
    image: TableImage,
    /// The table was put back in a hurry, and what stood in its sets was not.
    sets_are_lost: bool,
    /// How many sessions have each corridor open.
    corridors: HashMap<CorridorKey, (Corridor, u32), RandomState>,
    troubles: Troubles,
}

impl Sets {
    /// How this kernel queues.
    pub fn queueing(&self) -> Queueing {
        self.queueing
    }

    /// The pinholes that stand.
    pub fn pinholes(&mut self) -> Result<Vec<Pinhole>, Error> {
        let mut pinholes = Vec::new();
        for set in PINHOLES {
            pinholes.extend(self.tables.elements(TABLE, set)?.iter().filter_map(pinhole));
        }
        Ok(pinholes)
    }

    /// Whether a pinhole stands through which this connection would come.
    pub fn admits(&mut self, flow: &Flow) -> bool {
        let Flow { source, destination } = *flow;
        let Some(set) = of_family(PINHOLES, source.address, destination.address) else { return false };
        let key = Key::connection(source.address, destination.address, destination.port.number());
        let found = self.tables.has_element(TABLE, set, &key);
        self.note(found).unwrap_or(false)
    }

    /// What was refused since the last time that this was asked.
    pub fn take_troubles(&mut self) -> Troubles {
        std::mem::take(&mut self.troubles)
    }

    /// Sets a bit in the mark of a control connection; what that means to the capture is said in `rules/`.
    fn mark(&mut self, connection: &Connection, bit: u32) {
        // A connection that the kernel has forgotten brings no packets either.
        let marked = self.conntrack.mark(&connection.original, bit, bit);
        self.note(marked);
    }

    /// The result, unless it is trouble, which is kept.
    fn note<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        result.inspect_err(|error| self.trouble(error)).ok()
    }

    fn trouble(&mut self, error: &Error) {
        self.troubles.count += 1;
        self.troubles.latest = Some(error.clone());
    }

    fn insert(&mut self, set: &str, element: &Element) -> Result<(), NotOpened> {
        let mut inserted = self.tables.insert(TABLE, set, element);
        if inserted.as_ref().is_err_and(|error| error.cause.is_missing()) {
            // Somebody flushed the ruleset, and the news of that is not here yet. This announcement cannot wait for it.
            if matches!(self.put_back_if_gone(), Ok(true)) {
                inserted = self.tables.insert(TABLE, set, element);
            }
        }
        let Err(error) = inserted else { return Ok(()) };
        self.trouble(&error);
        if error.cause.is_unknown() {
            // Nothing stays open that nobody knows of, as far as that is in our hands.
            self.remove_element(set, element);
        }
        Err(NotOpened)
    }

    fn remove_element(&mut self, set: &str, element: &Element) {
        let removed = self.tables.remove(TABLE, set, element);
        self.note(removed);
    }

    /// The control connection with these addresses, where nothing translates them.
    fn direct(&self, flow: &Flow) -> Option<Connection> {
        let is_control = |port: Port| self.policy.control_ports.contains(port);
        if is_control(flow.destination.port) {
            Some(Connection::direct(*flow))
        } else if is_control(flow.source.port) {
            Some(Connection::direct(flow.reversed()))
        } else {
            None
        }
    }
}

impl Firewall for Sets {
    fn control_connection(&mut self, flow: &Flow) -> Option<Control> {
        let found = self.conntrack.find(flow);
        match self.note(found)? {
            Some(entry) => {
                let connection = entry.connection;
                let is_unread = entry.mark & self.policy.mark.unread_bit() != 0;
                let is_settled = entry.mark & self.policy.mark.settled_bit() != 0;
                let is_control = self.policy.control_ports.contains(connection.server().port);
                is_control.then_some(Control { connection, is_unread, is_settled })
            }
            // It is tracked, or its packet had not come here; but not where we can ask: in another zone.
            None => {
                let control = |connection| Control { connection, is_unread: false, is_settled: false };
                self.direct(flow).map(control)
            }
        }
    }

    fn open(&mut self, expectation: &Expectation) -> Result<(), NotOpened> {
        let (set, key) = place(expectation).ok_or(NotOpened)?;
        self.insert(set, &Element::new(key, expectation.lifetime))
    }

    fn close(&mut self, expectation: &Expectation) {
        if let Some((set, key)) = place(expectation) {
            self.remove_element(set, &Element::new(key, expectation.lifetime));
        }
    }

    fn open_corridor(&mut self, corridor: &Corridor) -> Result<(), NotOpened> {
        let (set, element) = range(corridor, self.policy.limits.idle).ok_or(NotOpened)?;
        self.insert(set, &element)?;
        self.corridors.entry(corridor_key(corridor)).or_insert((*corridor, 0)).1 += 1;
        Ok(())
    }

    fn close_corridor(&mut self, corridor: &Corridor) {
        let Some((_, sessions)) = self.corridors.get_mut(&corridor_key(corridor)) else { return };
        *sessions -= 1;
        if *sessions == 0 {
            self.corridors.remove(&corridor_key(corridor));
            if let Some((set, element)) = range(corridor, self.policy.limits.idle) {
                self.remove_element(set, &element);
            }
        }
    }

    fn settled(&mut self, connection: &Connection) {
        self.mark(connection, self.policy.mark.settled_bit());
    }

    fn stop_reading(&mut self, connection: &Connection) {
        self.mark(connection, self.policy.mark.unread_bit());
    }
}

const PINHOLES: [&str; 2] = ["pinholes4", "pinholes6"];
const CORRIDORS: [&str; 2] = ["corridors4", "corridors6"];

/// The one of two sets that is for a connection between these; none if no connection can be.
fn of_family(sets: [&'static str; 2], from: IpAddr, to: IpAddr) -> Option<&'static str> {
    match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => Some(sets[0]),
        (IpAddr::V6(_), IpAddr::V6(_)) => Some(sets[1]),
        _ => None,
    }
}

fn place(expectation: &Expectation) -> Option<(&'static str, Key)> {
    let Expectation { from, to, .. } = *expectation;
    let set = of_family(PINHOLES, from, to.address)?;
    Some((set, Key::connection(from, to.address, to.port.number())))
}

fn range(corridor: &Corridor, lifetime: Duration) -> Option<(&'static str, Element)> {
    let Corridor { from, to, ports } = *corridor;
    let set = of_family(CORRIDORS, from, to)?;
    let key = |port: Port| Key::connection(from, to, port.number());
    Some((set, Element::range(key(ports.first()), key(ports.last()), lifetime)))
}

fn pinhole(element: &Element) -> Option<Pinhole> {
    let (from, to, port) = element.key.as_connection()?;
    let lifetime = element.timeout?;
    let remaining = element.remaining.unwrap_or(lifetime);
    Some(Pinhole { from, to: Endpoint::new(to, Port::new(port)?), lifetime, remaining })
}

/// What tells corridors apart.
type CorridorKey = (IpAddr, IpAddr, PortRange);

const fn corridor_key(corridor: &Corridor) -> CorridorKey {
    (corridor.from, corridor.to, corridor.ports)
}

/// Elements by the set they belong into.
type BySet = BTreeMap<&'static str, Vec<Element>>;
