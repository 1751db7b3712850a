//! Which outside ports are tried for the announcements of one segment, and how many.
//!
//! A lookup in the kernel takes up to three system calls, and all other packets wait for it. So the number of ports per
//! segment, which may hold dozens of announcements, is bounded, and the tracker's own table, a fast lookup, comes
//! first.

use crate::core::net::Port;
use crate::core::policy::Terms;

/// How many ports are looked up in the kernel for one segment.
const MAX_KERNEL_LOOKUPS: u32 = 32;

/// How many ports are looked up among the tracker's own pinholes for one segment.
const MAX_LOOKUPS: u32 = 2048;

/// How many ports are tried in all, most of them only to find that the line would change its length.
const MAX_PORTS: u32 = 2 * 65_536;

/// The search for an outside port: its next port, and the rest of its bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct PortSearch {
    kernel_lookups: u32,
    lookups: u32,
    ports: u32,
    state: u64,
}

impl PortSearch {
    /// A search that has all of its bounds left.
    pub(super) const fn new() -> Self {
        Self { kernel_lookups: MAX_KERNEL_LOOKUPS, lookups: MAX_LOOKUPS, ports: MAX_PORTS, state: 0 }
    }

    /// The search for another announcement. Its random ports depend on `seed`, so that two announcements of the same
    /// port try different ones.
    pub(super) const fn seeded(self, seed: u64) -> Self {
        Self { state: seed, ..self }
    }

    /// Whether one more port may be looked up in the kernel.
    pub(super) const fn may_ask_kernel(&mut self) -> bool {
        take(&mut self.kernel_lookups)
    }

    /// Whether one more port may be looked up among the tracker's own pinholes.
    pub(super) const fn may_look_up(&mut self) -> bool {
        take(&mut self.lookups)
    }

    /// Whether one more port may be tried.
    pub(super) const fn may_try(&mut self) -> bool {
        take(&mut self.ports)
    }

    /// A random port of these terms. The last port was taken, and the program that uses it may use the next ports, too.
    pub(super) fn random_port(&mut self, terms: &Terms) -> Port {
        // SplitMix64.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let ranges = terms.data_ports.as_slice();
        let length = |index: usize| u64::from(ranges[index].last().number() - ranges[index].first().number()) + 1;
        let mut offset = mixed % (0..ranges.len()).map(length).sum::<u64>().max(1);
        for (index, range) in ranges.iter().enumerate() {
            if offset < length(index) {
                let number = u64::from(range.first().number()) + offset;
                return u16::try_from(number).ok().and_then(Port::new).unwrap_or(range.first());
            }
            offset -= length(index);
        }
        Port::FTP
    }
}

const fn take(left: &mut u32) -> bool {
    let is_left = *left > 0;
    *left = left.saturating_sub(1);
    is_left
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::core::policy;

    #[test]
    fn random_ports_are_those_of_the_policy() {
        let policy = policy::parse("p", "defaults: { data_ports: [20, 5000-5009, 65535] }").expect("good").policy;
        let mut search = PortSearch::new().seeded(7);
        let reached: HashSet<u16> = (0..500).map(|_| search.random_port(&policy.defaults).number()).collect();
        let all: HashSet<u16> = [20, 65_535].into_iter().chain(5000..5010).collect();
        assert_eq!(reached, all);
    }

    #[test]
    fn kernel_lookups_are_bounded() {
        let mut search = PortSearch::new().seeded(7);
        assert_eq!((0..100).filter(|_| search.may_ask_kernel()).count(), 32);
    }
}
