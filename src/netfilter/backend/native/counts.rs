//! Counts the expectations of each control connection.
//!
//! At a helper's maximum the kernel silently evicts the oldest expectation. This count keeps every connection within the
//! maximum, even if the policy allows more, or if an earlier run left expectations.

use std::hash::RandomState;
use std::net::IpAddr;

use hashbrown::HashMap;

use crate::core::net::{Endpoint, Flow};
use crate::netfilter::netlink::MAX_EXPECTATIONS;

/// An expectation: its source address and its destination.
type Key = (IpAddr, Endpoint);

#[derive(Debug, Default)]
pub(super) struct ExpectationCounts {
    masters: HashMap<Key, Flow, RandomState>,
    counts: HashMap<Flow, u32, RandomState>,
}

impl ExpectationCounts {
    /// Whether one more expectation of this control connection is within the maximum.
    pub(super) fn may_add(&self, key: &Key, master: &Flow) -> bool {
        self.masters.get(key) == Some(master) || self.counts.get(master).is_none_or(|count| *count < MAX_EXPECTATIONS)
    }

    /// Counts an expectation of this control connection.
    pub(super) fn add(&mut self, key: Key, master: Flow) {
        self.remove(&key);
        self.masters.insert(key, master);
        *self.counts.entry(master).or_default() += 1;
    }

    /// Whether an expectation was added, and not removed or used since then.
    pub(super) fn contains(&self, key: &Key) -> bool {
        self.masters.contains_key(key)
    }

    /// Removes an expectation from the count.
    pub(super) fn remove(&mut self, key: &Key) {
        let Some(master) = self.masters.remove(key) else { return };
        if let Some(count) = self.counts.get_mut(&master) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&master);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::net::Port;

    fn endpoint(port: u16) -> Endpoint {
        Endpoint::new(IpAddr::from([10, 0, 0, 1]), Port::new(port).expect("a port"))
    }

    fn master(port: u16) -> Flow {
        Flow { source: endpoint(port), destination: endpoint(21) }
    }

    fn key(number: u32) -> Key {
        (IpAddr::from([10, 0, 0, 2]), endpoint(1 + u16::try_from(number).expect("a small number")))
    }

    #[test]
    fn expectations_may_be_added_up_to_the_maximum() {
        let mut counts = ExpectationCounts::default();
        for number in 0..MAX_EXPECTATIONS {
            assert!(counts.may_add(&key(number), &master(4000)));
            counts.add(key(number), master(4000));
        }
        let more = key(MAX_EXPECTATIONS);
        assert!(!counts.may_add(&more, &master(4000)));
        assert!(counts.may_add(&more, &master(4001)), "each counts for itself");
        assert!(counts.may_add(&key(0), &master(4000)), "in its own place");
        counts.add(key(0), master(4000));
        assert!(!counts.may_add(&more, &master(4000)));
        counts.remove(&key(7));
        counts.remove(&key(7));
        assert!(counts.may_add(&more, &master(4000)));
        counts.add(more, master(4000));
        assert!(!counts.may_add(&key(7), &master(4000)));
        // An expectation that another session announces, too, counts for that session.
        counts.add(key(8), master(4001));
        assert!(counts.may_add(&key(7), &master(4000)));
    }

    #[test]
    fn removed_expectations_leave_nothing_in_memory() {
        let mut counts = ExpectationCounts::default();
        counts.add(key(1), master(4000));
        counts.add(key(1), master(4001));
        counts.remove(&key(1));
        assert!(counts.masters.is_empty() && counts.counts.is_empty());
    }
}
