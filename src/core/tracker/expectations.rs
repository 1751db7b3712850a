//! The open expectations of all sessions.
//!
//! A hash table finds them by address; lists through the entries find them by session and by age. Adding, using or
//! closing an expectation costs the same, however many are open.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashTable};

use super::SessionNumber;
use super::client::ClientKey;
use super::list::{Links, List, Which};
use super::slab::Slab;
use crate::core::expectation::Expectation;
use crate::core::ftp::Mode;
use crate::core::net::Endpoint;
use crate::core::session::CommandNumber;
use crate::core::time::Timestamp;

/// An expectation and its owner.
#[derive(Clone, Copy, Debug)]
pub(super) struct PinholeEntry {
    pub(super) expectation: Expectation,
    /// By which mode it was announced, where that is known.
    pub(super) mode: Option<Mode>,
    /// The slot of the session that announced it last.
    pub(super) owner: u32,
    pub(super) session: SessionNumber,
    /// The client whose share it counts against, where that is known.
    pub(super) client: Option<ClientKey>,
    /// The command that announced it, if a refusal of it would be recognised.
    pub(super) command: Option<CommandNumber>,
}

/// An open expectation and its neighbours in both lists.
#[derive(Debug)]
struct Entry {
    pinhole: PinholeEntry,
    of_owner: Links,
    by_age: Links,
}

/// A list and its length.
#[derive(Clone, Copy, Debug, Default)]
struct CountedList {
    list: List,
    length: usize,
}

/// Expectations by address, by session and by the time when they expire.
#[derive(Debug, Default)]
pub(super) struct Expectations {
    entries: Slab<Entry>,
    by_address: HashTable<u32>,
    /// Contains only sessions that have any.
    by_owner: HashMap<u32, CountedList, RandomState>,
    /// How many are open for each client; contains only clients that have any.
    by_client: HashMap<ClientKey, usize, RandomState>,
    /// Expectations of one lifetime expire in the order in which they were inserted. There are few lifetimes: one per
    /// rule.
    by_lifetime: Vec<(Duration, CountedList)>,
    next_expiry: Option<Timestamp>,
    /// Of the expectations with DNAT: the delivery address by the announced address, and how many expectations have
    /// it.
    delivered: HashMap<Endpoint, (Endpoint, usize), RandomState>,
    hasher: RandomState,
}

impl Expectations {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn count_of(&self, owner: u32) -> usize {
        self.by_owner.get(&owner).map_or(0, |list| list.length)
    }

    /// How many are open for that client.
    pub(super) fn count_of_client(&self, client: ClientKey) -> usize {
        self.by_client.get(&client).copied().unwrap_or(0)
    }

    /// The session that owns an expectation with the same addresses, if one is open.
    pub(super) fn owner_of(&self, expectation: &Expectation) -> Option<u32> {
        let slot = self.slot(expectation.from, expectation.to)?;
        Some(self.entries.get(slot)?.pinhole.owner)
    }

    /// Whether an open expectation with the same announced address and port is delivered elsewhere by NAT.
    pub(super) fn is_taken(&self, expectation: &Expectation) -> bool {
        let Expectation { from, to, .. } = *expectation;
        let is_other = |target: Endpoint| target != expectation.target();
        let known = self.slot(from, to).and_then(|slot| self.entries.get(slot));
        known.is_some_and(|entry| is_other(entry.pinhole.expectation.target()))
            || self.delivered.get(&to).is_some_and(|(target, _)| is_other(*target))
    }

    /// Adds an expectation. It replaces one with the same addresses, because the firewall has one pinhole for them.
    pub(super) fn insert(&mut self, pinhole: PinholeEntry) {
        let Expectation { from, to, lifetime, .. } = pinhole.expectation;
        self.remove(from, to);
        let links = Links::default();
        let slot = self.entries.insert(Entry { pinhole, of_owner: links, by_age: links });
        let hash = self.hash(from, to);
        let Self { entries, by_address, by_owner, by_lifetime, hasher, .. } = self;
        by_address.insert_unique(hash, slot, |&slot| rehash(entries, hasher, slot));
        by_owner.entry(pinhole.owner).or_default().append(entries, slot, |entry| &mut entry.of_owner);
        let place = by_lifetime.iter().position(|(of, _)| *of == lifetime).unwrap_or_else(|| {
            by_lifetime.push((lifetime, CountedList::default()));
            by_lifetime.len() - 1
        });
        by_lifetime[place].1.append(entries, slot, |entry| &mut entry.by_age);
        if let Some(client) = pinhole.client {
            *self.by_client.entry(client).or_default() += 1;
        }
        if let Some(target) = pinhole.expectation.mapping.to {
            self.delivered.entry(to).or_insert((target, 0)).1 += 1;
        }
        let expires = pinhole.expectation.expires();
        self.next_expiry = Some(self.next_expiry.map_or(expires, |next| next.min(expires)));
    }

    /// Removes the expectation with these addresses.
    pub(super) fn remove(&mut self, from: IpAddr, to: Endpoint) -> Option<PinholeEntry> {
        self.remove_slot(self.slot(from, to)?)
    }

    /// Removes an expectation that has expired by `now`, the oldest first.
    pub(super) fn pop_expired(&mut self, now: Timestamp) -> Option<PinholeEntry> {
        if self.next_expiry? > now {
            return None;
        }
        let (_, slot) = self.first_to_expire()?;
        self.remove_slot(slot)
    }

    /// When the next expectation expires.
    pub(super) fn next_expiry(&self) -> Option<Timestamp> {
        self.next_expiry
    }

    /// Removes an expectation of that session, the oldest first.
    pub(super) fn pop_of(&mut self, owner: u32) -> Option<PinholeEntry> {
        let slot = self.by_owner.get(&owner)?.list.first()?;
        self.remove_slot(slot)
    }

    /// Removes the expectation that this command of the session announced.
    pub(super) fn remove_of_command(&mut self, owner: u32, command: CommandNumber) -> Option<PinholeEntry> {
        let mut place = self.by_owner.get(&owner)?.list.first();
        while let Some(slot) = place {
            let entry = self.entries.get(slot)?;
            if entry.pinhole.command == Some(command) {
                return self.remove_slot(slot);
            }
            place = entry.of_owner.behind.get();
        }
        None
    }

    /// All open expectations, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &PinholeEntry> {
        self.entries.iter().map(|entry| &entry.pinhole)
    }

    fn remove_slot(&mut self, slot: u32) -> Option<PinholeEntry> {
        let PinholeEntry { expectation, owner, client, .. } = self.entries.get(slot)?.pinhole;
        let hash = self.hash(expectation.from, expectation.to);
        if let Ok(found) = self.by_address.find_entry(hash, |&other| other == slot) {
            found.remove();
        }
        if let Some(list) = self.by_owner.get_mut(&owner) {
            list.unlink(&mut self.entries, slot, |entry| &mut entry.of_owner);
            if list.length == 0 {
                self.by_owner.remove(&owner);
            }
        }
        if let Some(place) = self.by_lifetime.iter().position(|(of, _)| *of == expectation.lifetime) {
            let list = &mut self.by_lifetime[place].1;
            list.unlink(&mut self.entries, slot, |entry| &mut entry.by_age);
            if list.length == 0 {
                self.by_lifetime.swap_remove(place);
            }
        }
        if let Some(client) = client
            && let Some(count) = self.by_client.get_mut(&client)
        {
            *count -= 1;
            if *count == 0 {
                self.by_client.remove(&client);
            }
        }
        if expectation.mapping.to.is_some()
            && let Some((_, count)) = self.delivered.get_mut(&expectation.to)
        {
            *count -= 1;
            if *count == 0 {
                self.delivered.remove(&expectation.to);
            }
        }
        if self.next_expiry == Some(expectation.expires()) {
            self.next_expiry = self.first_to_expire().map(|(expires, _)| expires);
        }
        Some(self.entries.remove(slot)?.pinhole)
    }

    fn first_to_expire(&self) -> Option<(Timestamp, u32)> {
        let firsts = self.by_lifetime.iter().filter_map(|(_, counted)| counted.list.first());
        firsts.filter_map(|slot| Some((self.entries.get(slot)?.pinhole.expectation.expires(), slot))).min()
    }

    fn slot(&self, from: IpAddr, to: Endpoint) -> Option<u32> {
        let is_key = |&slot: &u32| {
            let known = self.entries.get(slot).map(|entry| &entry.pinhole.expectation);
            known.is_some_and(|expectation| expectation.from == from && expectation.to == to)
        };
        self.by_address.find(self.hash(from, to), is_key).copied()
    }

    fn hash(&self, from: IpAddr, to: Endpoint) -> u64 {
        self.hasher.hash_one((from, to))
    }
}

fn rehash(entries: &Slab<Entry>, hasher: &RandomState, slot: u32) -> u64 {
    entries.get(slot).map_or(0, |entry| {
        let Expectation { from, to, .. } = entry.pinhole.expectation;
        hasher.hash_one((from, to))
    })
}

impl CountedList {
    fn append(&mut self, entries: &mut Slab<Entry>, slot: u32, which: Which<Entry>) {
        self.list.append(entries, slot, which);
        self.length += 1;
    }

    fn unlink(&mut self, entries: &mut Slab<Entry>, slot: u32, which: Which<Entry>) {
        self.list.unlink(entries, slot, which);
        self.length -= 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::expectation::Mapping;
    use crate::core::script::endpoint;

    fn entry(owner: u32, port: u16, since: u64, lifetime: u64) -> PinholeEntry {
        let expectation = Expectation {
            from: endpoint("10.0.0.1:1").address,
            to: endpoint(&format!("10.0.0.2:{port}")),
            since: Timestamp::from_secs(since),
            lifetime: Duration::from_secs(lifetime),
            mapping: Mapping::NONE,
        };
        let client = (owner > 0).then(|| client(owner));
        PinholeEntry { expectation, mode: Some(Mode::Pasv), owner, session: SessionNumber(1), client, command: None }
    }

    /// Two of the sessions are of one client.
    fn client(owner: u32) -> ClientKey {
        ClientKey::of(std::net::Ipv4Addr::from(owner / 2).into())
    }

    #[derive(Clone, Debug)]
    enum Act {
        Insert { owner: u32, port: u16, lifetime: u64 },
        Remove { port: u16 },
        PopOf { owner: u32 },
        Wait { seconds: u64 },
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (0u32..4, 1u16..20, 1u64..4).prop_map(|(owner, port, lifetime)| Act::Insert { owner, port, lifetime }),
            2 => (1u16..20).prop_map(|port| Act::Remove { port }),
            1 => (0u32..4).prop_map(|owner| Act::PopOf { owner }),
            2 => (0u64..3).prop_map(|seconds| Act::Wait { seconds }),
        ]
    }

    proptest! {
        /// After any operations, the tables agree with a plain list.
        #[test]
        fn lists_agree_with_a_simple_model(acts in proptest::collection::vec(act(), 0..200)) {
            let mut all = Expectations::default();
            let mut plain: Vec<PinholeEntry> = Vec::new();
            let mut now = 0;
            for act in acts {
                match act {
                    Act::Insert { owner, port, lifetime } => {
                        let new = entry(owner, port, now, lifetime);
                        plain.retain(|one| one.expectation.to != new.expectation.to);
                        plain.push(new);
                        all.insert(new);
                    }
                    Act::Remove { port } => {
                        let one = entry(0, port, 0, 0).expectation;
                        let was = plain.iter().any(|other| other.expectation.to == one.to);
                        plain.retain(|other| other.expectation.to != one.to);
                        prop_assert_eq!(all.remove(one.from, one.to).is_some(), was);
                    }
                    Act::PopOf { owner } => {
                        let first = plain.iter().position(|one| one.owner == owner).map(|index| plain.remove(index));
                        let popped = all.pop_of(owner).map(|one| one.expectation);
                        prop_assert_eq!(popped, first.map(|one| one.expectation));
                    }
                    Act::Wait { seconds } => {
                        now += seconds;
                        let now = Timestamp::from_secs(now);
                        let count = plain.iter().filter(|one| one.expectation.expires() <= now).count();
                        plain.retain(|one| one.expectation.expires() > now);
                        let mut times = Vec::new();
                        while let Some(expired) = all.pop_expired(now) {
                            times.push(expired.expectation.expires());
                        }
                        prop_assert_eq!(times.len(), count);
                        prop_assert!(times.is_sorted());
                    }
                }
                prop_assert_eq!(all.len(), plain.len());
                prop_assert_eq!(all.iter().count(), plain.len());
                prop_assert!(all.by_client.len() <= plain.len());
                prop_assert_eq!(all.next_expiry(), plain.iter().map(|one| one.expectation.expires()).min());
                for owner in 0..4 {
                    let count = plain.iter().filter(|one| one.owner == owner).count();
                    prop_assert_eq!(all.count_of(owner), count);
                    let of_client = plain.iter().filter(|one| one.client == Some(client(owner))).count();
                    prop_assert_eq!(all.count_of_client(client(owner)), of_client);
                }
            }
        }
    }
}
