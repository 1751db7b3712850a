//! Who is due when.

use std::collections::BTreeSet;

use crate::time::Timestamp;

/// Slots of a table in the order in which they become due. Ties are in the order of the slots.
#[derive(Debug, Default)]
pub(super) struct Deadlines(BTreeSet<(Timestamp, u32)>);

impl Deadlines {
    pub(super) fn set(&mut self, slot: u32, at: Timestamp) {
        self.0.insert((at, slot));
    }

    pub(super) fn clear(&mut self, slot: u32, at: Timestamp) {
        self.0.remove(&(at, slot));
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.0.first().map(|&(at, _)| at)
    }

    /// The one that is due first.
    pub(super) fn first(&self) -> Option<u32> {
        self.0.first().map(|&(_, slot)| slot)
    }
}
