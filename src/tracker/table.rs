//! The sessions by the addresses of their packets, in either direction.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::deadlines::Deadlines;
use super::slab::Slab;
use super::{Ended, SessionNumber};
use crate::packet::{Connection, Direction, Flow};
use crate::policy::RuleId;
use crate::rewrite::Courses;
use crate::session::{Progress, Session};
use crate::time::Timestamp;

/// A session as the tracker keeps it.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) connection: Connection,
    pub(super) number: SessionNumber,
    pub(super) rule: RuleId,
    /// How it ended, if it did: it stays for a while, so that the last packets of it do not look like a new one.
    pub(super) ended: Option<Ended>,
    pub(super) last_heard: Timestamp,
    /// The moment at which it stands among the deadlines; it may be later by now.
    pub(super) due: Timestamp,
    pub(super) session: Session,
    /// What the kernel knows of how far it has come.
    pub(super) recorded: Progress,
    /// Where something of what is said may have to be changed: behind NAT, or under a rule that holds commands back.
    pub(super) courses: Option<Box<Courses>>,
}

/// A slot and a direction in one number, to keep the index small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place(u32);

impl Place {
    const fn new(slot: u32, direction: Direction) -> Self {
        Self(slot << 1 | matches!(direction, Direction::FromServer) as u32)
    }

    const fn slot(self) -> u32 {
        self.0 >> 1
    }

    const fn direction(self) -> Direction {
        if self.0 & 1 == 0 { Direction::FromClient } else { Direction::FromServer }
    }
}

/// All sessions.
#[derive(Debug, Default)]
pub(super) struct Table {
    sessions: Slab<Tracked>,
    by_flow: HashTable<Place>,
    deadlines: Deadlines,
    hasher: RandomState,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn find(&self, flow: &Flow) -> Option<(u32, Direction)> {
        let hash = self.hasher.hash_one(flow);
        let place = self.by_flow.find(hash, |&place| flow_at(&self.sessions, place) == Some(flow))?;
        Some((place.slot(), place.direction()))
    }

    /// Brings near what packets with these addresses will need.
    ///
    /// With many sessions nearly all of a packet's cost is waiting for memory. Here the loads of one step do not
    /// depend on each other, so the processor waits for all of them at once, not for one after the other.
    pub(super) fn anticipate(&self, flows: &[Flow]) {
        const AT_ONCE: usize = 32;
        let mut hashes = [0; AT_ONCE];
        let mut slots = [None; AT_ONCE];
        for flows in flows.chunks(AT_ONCE) {
            for (hash, flow) in hashes.iter_mut().zip(flows) {
                *hash = self.hasher.hash_one(flow);
            }
            for (slot, hash) in slots.iter_mut().zip(&hashes[..flows.len()]) {
                // Whoever has a similar hash is most likely the right one; a mistake costs nothing but time.
                *slot = self.by_flow.find(*hash, |_| true).map(|place| place.slot());
            }
            let near = slots[..flows.len()].iter().flatten().filter_map(|&slot| self.sessions.get(slot));
            let sum = near.fold(0, |sum, tracked| {
                sum ^ tracked.session.touch()
                    ^ u32::from(tracked.connection.original.source.port.number())
                    ^ u32::from(tracked.connection.reply.source.port.number())
                    ^ u32::from(tracked.ended.is_some())
                    ^ u32::from(tracked.last_heard > tracked.due)
            });
            std::hint::black_box(sum);
        }
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Tracked> {
        self.sessions.get(slot)
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Tracked> {
        self.sessions.get_mut(slot)
    }

    pub(super) fn insert(&mut self, tracked: Tracked) -> u32 {
        let Connection { original, reply } = tracked.connection;
        let due = tracked.due;
        let slot = self.sessions.insert(tracked);
        self.deadlines.set(slot, due);
        for (flow, direction) in [(original, Direction::FromClient), (reply, Direction::FromServer)] {
            let Self { sessions, by_flow, hasher, .. } = self;
            let hash_of = |place: &Place| flow_at(sessions, *place).map_or(0, |flow| hasher.hash_one(flow));
            by_flow.insert_unique(hasher.hash_one(flow), Place::new(slot, direction), hash_of);
        }
        slot
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<Tracked> {
        let tracked = self.sessions.get(slot)?;
        let Connection { original, reply } = tracked.connection;
        self.deadlines.clear(slot, tracked.due);
        for (flow, direction) in [(original, Direction::FromClient), (reply, Direction::FromServer)] {
            let place = Place::new(slot, direction);
            if let Ok(entry) = self.by_flow.find_entry(self.hasher.hash_one(flow), |&other| other == place) {
                entry.remove();
            }
        }
        self.sessions.remove(slot)
    }

    /// Moves a session to another place among the deadlines.
    pub(super) fn set_due(&mut self, slot: u32, due: Timestamp) {
        if let Some(tracked) = self.sessions.get_mut(slot) {
            self.deadlines.clear(slot, tracked.due);
            tracked.due = due;
            self.deadlines.set(slot, due);
        }
    }

    /// The session that is due first, and when. It may have been heard of since that was written down.
    pub(super) fn first_due(&self) -> Option<(u32, &Tracked)> {
        let slot = self.deadlines.first()?;
        Some((slot, self.sessions.get(slot)?))
    }

    /// When the first session is due, at the earliest.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.deadlines.next()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tracked> {
        self.sessions.iter_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Tracked> {
        self.sessions.iter()
    }
}

fn flow_at(sessions: &Slab<Tracked>, place: Place) -> Option<&Flow> {
    Some(sessions.get(place.slot())?.connection.flow(place.direction()))
}
