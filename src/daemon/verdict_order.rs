//! Keeps verdicts in order: of two packets from one end of a connection, the kernel gets the verdict first on the one that
//! the engine read first.
//!
//! Threads give verdicts after they have released the engine's lock, and could overtake each other. But the mark that comes
//! with a verdict says whether the end is in sync after *this* packet: the last verdict has to be the one on the last packet.

use std::hash::BuildHasher;
use std::hint;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use foldhash::fast::RandomState;

use crate::core::net::Flow;

/// Flows with one slot wait for each other: a few packets of a thousand.
const SLOTS: usize = 1024;

/// How often a thread looks whether its turn has come, before it lets other threads run in between.
const SPINS: u32 = 200;

/// The verdicts of some flows.
#[derive(Debug, Default)]
struct Slot {
    /// The number of packets that were read.
    read: AtomicU32,
    /// The number of packets whose verdict was given.
    decided: AtomicU32,
}

#[derive(Debug)]
pub(super) struct VerdictOrder {
    slots: Box<[Slot]>,
    hash: RandomState,
}

impl Default for VerdictOrder {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| Slot::default()).collect(), hash: RandomState::default() }
    }
}

impl VerdictOrder {
    /// Takes the next turn among the packets of this flow. Has to be called while the engine is locked; so no two threads
    /// wait for each other.
    pub(super) fn next_turn(&self, flow: &Flow) -> Turn<'_> {
        let index = self.hash.hash_one(flow) % SLOTS as u64;
        let slot = &self.slots[usize::try_from(index).unwrap_or_default()];
        Turn { slot, number: slot.read.fetch_add(1, Ordering::Relaxed) }
    }
}

/// The turn of a packet. Ends when this is dropped.
#[derive(Debug)]
#[must_use = "later packets wait until this is dropped"]
pub(super) struct Turn<'a> {
    slot: &'a Slot,
    number: u32,
}

impl Turn<'_> {
    /// Waits until the verdicts on all earlier packets have been given.
    pub(super) fn wait(&self) {
        let mut spins = 0;
        while self.slot.decided.load(Ordering::Acquire) != self.number {
            if spins < SPINS {
                spins += 1;
                hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.wait();
        self.slot.decided.store(self.number.wrapping_add(1), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::core::script::endpoint;

    fn flow(source: &str) -> Flow {
        Flow { source: endpoint(source), destination: endpoint("10.0.0.2:21") }
    }

    #[test]
    fn verdicts_on_a_flow_keep_the_order_of_its_packets() {
        const THREADS: usize = 4;
        let order = VerdictOrder::default();
        let (read, given) = (Mutex::new(0), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let mut read = read.lock().expect("no thread panics");
                        *read += 1;
                        let number = *read;
                        let turn = order.next_turn(&flow("10.0.0.1:4000"));
                        drop(read);
                        // So that a later packet's thread often gets here first.
                        if number % 3 == 0 {
                            thread::yield_now();
                        }
                        turn.wait();
                        given.lock().expect("no thread panics").push(number);
                    }
                });
            }
        });
        assert!(given.into_inner().expect("no thread panics").is_sorted());
    }

    #[test]
    fn dropped_turn_does_not_block_the_next() {
        let order = VerdictOrder::default();
        let flow = flow("10.0.0.1:4000");
        drop(order.next_turn(&flow));
        order.next_turn(&flow).wait();
    }

    #[test]
    fn flows_do_not_wait_for_each_other() {
        let order = VerdictOrder::default();
        let turns: Vec<Turn<'_>> = (1..60).map(|port| order.next_turn(&flow(&format!("10.0.0.1:{port}")))).collect();
        // Of sixty flows, few share a slot.
        assert!(turns.iter().filter(|turn| turn.number == 0).count() > 40);
        // In the order in which they were taken: a turn waits for earlier ones when it is dropped.
        for turn in turns {
            drop(turn);
        }
    }
}
