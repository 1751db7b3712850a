//! Who is due when.

use std::collections::BTreeSet;

use crate::time::Timestamp;

/// Slots of a table in the order in which they become due. Ties are in the order of the slots.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    in_order: BTreeSet<(Timestamp, u32)>,
    /// The first of them, which every packet asks for.
    next: Option<Timestamp>,
}

impl Deadlines {
    pub(super) fn set(&mut self, slot: u32, at: Timestamp) {
        self.in_order.insert((at, slot));
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    pub(super) fn clear(&mut self, slot: u32, at: Timestamp) {
        self.in_order.remove(&(at, slot));
        if self.next == Some(at) {
            self.next = self.in_order.first().map(|&(at, _)| at);
        }
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.next
    }

    /// The one that is due first.
    pub(super) fn first(&self) -> Option<u32> {
        self.in_order.first().map(|&(_, slot)| slot)
    }
}
