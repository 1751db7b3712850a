//! The expectations that stand, of all sessions.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use hashbrown::HashTable;

use super::SessionNumber;
use super::deadlines::Deadlines;
use super::slab::Slab;
use crate::expectation::Expectation;
use crate::ftp::Mode;
use crate::packet::Endpoint;
use crate::session::CommandNumber;
use crate::time::Timestamp;

/// An expectation and whose it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) expectation: Expectation,
    pub(super) mode: Mode,
    /// The slot of the session that announced it last.
    pub(super) owner: u32,
    pub(super) session: SessionNumber,
    /// The command that announced it, if a refusal of it would be recognised.
    pub(super) command: Option<CommandNumber>,
}

/// Expectations by address, by session and by the time when they expire.
#[derive(Debug, Default)]
pub(super) struct Expectations {
    standing: Slab<Standing>,
    by_address: HashTable<u32>,
    by_owner: BTreeSet<(u32, u32)>,
    expiry: Deadlines,
    hasher: RandomState,
}

impl Expectations {
    pub(super) fn len(&self) -> usize {
        self.standing.len()
    }

    pub(super) fn count_of(&self, owner: u32) -> usize {
        self.slots_of(owner).count()
    }

    /// Whether one with the same addresses stands already, in that session or in another one.
    pub(super) fn has(&self, expectation: &Expectation) -> Option<u32> {
        self.slot(expectation.from, expectation.to).and_then(|slot| Some(self.standing.get(slot)?.owner))
    }

    /// Adds one. One with the same addresses is replaced: there is only one such hole in the firewall.
    pub(super) fn insert(&mut self, standing: Standing) {
        let Standing { expectation, owner, .. } = standing;
        self.remove(expectation.from, expectation.to);
        let slot = self.standing.insert(standing);
        let hash = self.hash(expectation.from, expectation.to);
        let Self { standing, by_address, hasher, .. } = self;
        by_address.insert_unique(hash, slot, |&slot| rehash(standing, hasher, slot));
        self.by_owner.insert((owner, slot));
        self.expiry.set(slot, expectation.expires());
    }

    /// Removes the one with these addresses.
    pub(super) fn remove(&mut self, from: IpAddr, to: Endpoint) -> Option<Standing> {
        self.remove_slot(self.slot(from, to)?)
    }

    /// Removes one that has expired by `now`.
    pub(super) fn pop_expired(&mut self, now: Timestamp) -> Option<Standing> {
        if self.expiry.next()? > now {
            return None;
        }
        self.remove_slot(self.expiry.first()?)
    }

    /// When the next one expires.
    pub(super) fn next_expiry(&self) -> Option<Timestamp> {
        self.expiry.next()
    }

    /// Removes one of that session's.
    pub(super) fn pop_of(&mut self, owner: u32) -> Option<Standing> {
        let slot = self.slots_of(owner).next()?;
        self.remove_slot(slot)
    }

    /// Removes the one that this command of the session announced.
    pub(super) fn remove_of_command(&mut self, owner: u32, command: CommandNumber) -> Option<Standing> {
        let announced = |slot: &u32| self.standing.get(*slot).is_some_and(|one| one.command == Some(command));
        let slot = self.slots_of(owner).find(announced)?;
        self.remove_slot(slot)
    }

    /// All that stand, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Standing> {
        self.by_address.iter().filter_map(|&slot| self.standing.get(slot))
    }

    fn slots_of(&self, owner: u32) -> impl Iterator<Item = u32> {
        self.by_owner.range((owner, 0)..=(owner, u32::MAX)).map(|&(_, slot)| slot)
    }

    fn remove_slot(&mut self, slot: u32) -> Option<Standing> {
        let standing = self.standing.get(slot)?;
        let Expectation { from, to, .. } = standing.expectation;
        let hash = self.hash(from, to);
        if let Ok(entry) = self.by_address.find_entry(hash, |&other| other == slot) {
            entry.remove();
        }
        self.by_owner.remove(&(standing.owner, slot));
        self.expiry.clear(slot, standing.expectation.expires());
        self.standing.remove(slot)
    }

    fn slot(&self, from: IpAddr, to: Endpoint) -> Option<u32> {
        let is_it = |&slot: &u32| {
            self.standing.get(slot).is_some_and(|one| one.expectation.from == from && one.expectation.to == to)
        };
        self.by_address.find(self.hash(from, to), is_it).copied()
    }

    fn hash(&self, from: IpAddr, to: Endpoint) -> u64 {
        self.hasher.hash_one((from, to))
    }
}

fn rehash(standing: &Slab<Standing>, hasher: &RandomState, slot: u32) -> u64 {
    standing.get(slot).map_or(0, |one| hasher.hash_one((one.expectation.from, one.expectation.to)))
}
