//! Intrusive doubly linked lists: the links are in the entries of a slab, so that adding and removing an entry takes the
//! same time in a list of any length.

use super::slab::Slab;

/// The slots of the entries before and behind one in a list.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Links {
    before: Slot,
    pub(super) behind: Slot,
}

/// The ends of a list.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct List {
    first: Slot,
    last: Slot,
}

/// A slot, or none, in four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u32);

impl Slot {
    const NONE: Self = Self(u32::MAX);

    pub(super) fn get(self) -> Option<u32> {
        (self != Self::NONE).then_some(self.0)
    }
}

impl Default for Slot {
    fn default() -> Self {
        Self::NONE
    }
}

/// Which of its links an entry uses in a list.
pub(super) type Which<T> = fn(&mut T) -> &mut Links;

impl List {
    /// The slot of the first entry.
    pub(super) fn first(&self) -> Option<u32> {
        self.first.get()
    }

    /// Whether that entry is the last one.
    pub(super) fn ends_with(&self, slot: u32) -> bool {
        self.last == Slot(slot)
    }

    /// Adds an entry that is in no such list.
    pub(super) fn append<T>(&mut self, entries: &mut Slab<T>, slot: u32, which: Which<T>) {
        let last = std::mem::replace(&mut self.last, Slot(slot));
        match last.get().and_then(|last| entries.get_mut(last)) {
            Some(last) => which(last).behind = Slot(slot),
            None => self.first = Slot(slot),
        }
        if let Some(entry) = entries.get_mut(slot) {
            *which(entry) = Links { before: last, behind: Slot::NONE };
        }
    }

    /// Removes an entry that is in this list.
    pub(super) fn unlink<T>(&mut self, entries: &mut Slab<T>, slot: u32, which: Which<T>) {
        let Some(entry) = entries.get_mut(slot) else { return };
        let Links { before, behind } = std::mem::take(which(entry));
        match before.get().and_then(|before| entries.get_mut(before)) {
            Some(before) => which(before).behind = behind,
            None => self.first = behind,
        }
        match behind.get().and_then(|behind| entries.get_mut(behind)) {
            Some(behind) => which(behind).before = before,
            None => self.last = before,
        }
    }

    /// Makes an entry of this list the last one.
    pub(super) fn move_to_end<T>(&mut self, entries: &mut Slab<T>, slot: u32, which: Which<T>) {
        if !self.ends_with(slot) {
            self.unlink(entries, slot, which);
            self.append(entries, slot, which);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_keeps_its_order_after_moves() {
        let mut slab = Slab::default();
        let mut list = List::default();
        let slots: Vec<u32> = (0..4).map(|_| slab.insert(Links::default())).collect();
        let itself: Which<Links> = |links| links;
        for slot in &slots {
            list.append(&mut slab, *slot, itself);
        }
        list.move_to_end(&mut slab, 1, itself);
        list.move_to_end(&mut slab, 0, itself);
        list.move_to_end(&mut slab, 0, itself);
        list.unlink(&mut slab, 3, itself);
        let mut order = Vec::new();
        let mut next = list.first();
        while let Some(slot) = next {
            order.push(slot);
            next = slab.get(slot).and_then(|links| links.behind.get());
        }
        assert_eq!(order, [2, 1, 0]);
        for slot in order {
            list.unlink(&mut slab, slot, itself);
        }
        assert!(list.first().is_none() && list.last == Slot::NONE);
    }
}
