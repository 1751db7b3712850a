//! The hosts to which a rule applies.
//!
//! A rule may list a thousand networks, and the start of every session looks them up. So the list is kept a second
//! time as sorted ranges of addresses that do not touch, which makes it fast to look up an address and to compare
//! two lists.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::kinds::Listed;
use crate::core::net::Network;

/// A list of networks as the policy has it; an empty one means every host.
#[derive(Clone, Debug)]
pub struct Hosts {
    networks: Vec<Network>,
    ranges: Vec<(IpAddr, IpAddr)>,
}

impl Hosts {
    /// The hosts of those networks; of none, everyone.
    pub fn new(networks: Vec<Network>) -> Self {
        let mut ranges: Vec<_> = networks.iter().map(|network| (network.first(), network.last())).collect();
        if networks.is_empty() {
            let (v4, v6) = (Ipv4Addr::from_bits, Ipv6Addr::from_bits);
            ranges = vec![(v4(0).into(), v4(u32::MAX).into()), (v6(0).into(), v6(u128::MAX).into())];
        }
        ranges.sort_unstable();
        ranges.dedup_by(|next, kept| {
            let joined = next.0 <= kept.1 || successor(kept.1) == Some(next.0);
            if joined {
                kept.1 = kept.1.max(next.1);
            }
            joined
        });
        Self { networks, ranges }
    }

    /// Every host.
    pub fn everyone() -> Self {
        Self::new(Vec::new())
    }

    /// The networks as they were listed; none means everyone.
    pub fn networks(&self) -> &[Network] {
        &self.networks
    }

    /// Whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        let after = self.ranges.partition_point(|range| range.0 <= address);
        after.checked_sub(1).is_some_and(|at| address <= self.ranges[at].1)
    }

    /// Whether all of `other` are among them.
    pub fn covers(&self, other: &Self) -> bool {
        let mut ours = self.ranges.iter().peekable();
        other.ranges.iter().all(|theirs| {
            while ours.next_if(|range| range.1 < theirs.0).is_some() {}
            ours.peek().is_some_and(|range| range.0 <= theirs.0 && theirs.1 <= range.1)
        })
    }

    /// Whether any host is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let mut ours = self.ranges.iter().peekable();
        other.ranges.iter().any(|theirs| {
            while ours.next_if(|range| range.1 < theirs.0).is_some() {}
            ours.peek().is_some_and(|range| range.0 <= theirs.1)
        })
    }
}

impl Listed for Hosts {
    type Item = Network;

    fn from_items(items: Vec<Network>) -> Option<Self> {
        Some(Self::new(items))
    }

    fn items(&self) -> Vec<Network> {
        self.networks.clone()
    }

    fn repeats(item: &Network, other: &Network, is_earlier: bool) -> bool {
        other.covers(*item) && (is_earlier || item != other)
    }
}

/// Two lists are the same if the same networks were listed in the same order.
impl PartialEq for Hosts {
    fn eq(&self, other: &Self) -> bool {
        self.networks == other.networks
    }
}

impl Eq for Hosts {}

/// The address after it, within its family.
fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => a.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(a) => a.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hosts(networks: &[&str]) -> Hosts {
        Hosts::new(networks.iter().map(|text| text.parse().expect("a network")).collect())
    }

    #[test]
    fn empty_list_contains_every_host() {
        assert!(hosts(&[]).contains("203.0.113.9".parse().expect("an address")));
        assert!(hosts(&[]).contains("::1".parse().expect("an address")));
        assert!(hosts(&[]).covers(&hosts(&["0.0.0.0/0", "::/0"])) && hosts(&["0.0.0.0/0", "::/0"]).covers(&hosts(&[])));
        assert!(!hosts(&["0.0.0.0/0"]).covers(&hosts(&[])));
    }

    #[test]
    fn two_halves_cover_the_whole() {
        assert!(hosts(&["10.128.0.0/9", "10.0.0.0/9"]).covers(&hosts(&["10.0.0.0/8"])));
        assert!(!hosts(&["10.128.0.0/9", "10.0.0.0/10"]).covers(&hosts(&["10.0.0.0/8"])));
    }

    fn some_networks() -> impl Strategy<Value = Vec<Network>> {
        // Few addresses, so that lists meet often.
        let network = (0_u32..16, 28_u8..=32).prop_map(|(low, prefix)| {
            Network::containing(Ipv4Addr::from_bits(0x0A00_0000 | low).into(), prefix).expect("a short prefix")
        });
        prop::collection::vec(network, 1..5)
    }

    proptest! {
        #[test]
        fn ranges_have_the_hosts_of_the_networks(a in some_networks(), b in some_networks()) {
            let all = || (0_u32..16).map(|low| IpAddr::from(Ipv4Addr::from_bits(0x0A00_0000 | low)));
            let within = |networks: &[Network], address| networks.iter().any(|network| network.contains(address));
            let (first, second) = (Hosts::new(a.clone()), Hosts::new(b.clone()));
            prop_assert!(all().all(|address| first.contains(address) == within(&a, address)));
            prop_assert_eq!(first.covers(&second), all().all(|x| within(&a, x) || !within(&b, x)));
            prop_assert_eq!(first.overlaps(&second), all().any(|x| within(&a, x) && within(&b, x)));
        }
    }
}
