//! The open expectations of all sessions.
//!
//! A hash table finds them by address; lists through the entries find them by session and by what is due next. Adding,
//! using or closing an expectation costs the same, however many are open.

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

/// The first question to the firewall whether a SYN has come. A data connection that is not dropped comes sooner.
const FIRST_CHECK: Duration = Duration::from_secs(2);

/// How long before the end the firewall is asked for the last time. Deadlines are handled up to a second late.
const LAST_CHECK: Duration = Duration::from_secs(2);

/// How long after a SYN came conntrack may take to report its connection.
const CONFIRMATION: Duration = Duration::from_millis(250);

/// What has to be done next about an open expectation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// To ask the firewall whether a SYN has come; how often it was asked before.
    Check(u8),
    /// A SYN has come, and the connection was not reported in time.
    Unconfirmed,
    /// Its lifetime has ended.
    Expiry,
}

impl Due {
    /// What follows a check, and the age at which it is due: the firewall is asked at an age of 2, 4, 8 seconds and so on,
    /// and once more shortly before the end.
    fn check(lifetime: Duration, times: u8) -> (Self, Duration) {
        let first = FIRST_CHECK.min(lifetime / 2);
        let last = lifetime - LAST_CHECK.min(lifetime / 4);
        let age = |times: u8| first.saturating_mul(1 << times.min(31));
        match times.checked_sub(1).map(age) {
            Some(previous) if previous >= last => (Self::Expiry, lifetime),
            _ => (Self::Check(times), age(times).min(last)),
        }
    }
}

/// An open expectation and its neighbours in both lists.
#[derive(Debug)]
struct ScheduledPinhole {
    pinhole: PinholeEntry,
    of_owner: Links,
    by_due: Links,
    due: Due,
    /// When that is due.
    at: Timestamp,
}

/// A list and its length.
#[derive(Clone, Copy, Debug, Default)]
struct CountedList {
    list: List,
    length: usize,
}

/// Expectations by address, by session and by the time when something is due.
#[derive(Debug, Default)]
pub(super) struct Expectations {
    entries: Slab<ScheduledPinhole>,
    by_address: HashTable<u32>,
    /// Contains only sessions that have any.
    by_owner: HashMap<u32, CountedList, RandomState>,
    /// How many are open for each client; contains only clients that have any.
    by_client: HashMap<ClientKey, usize, RandomState>,
    /// Expectations of one lifetime for which the same is due, in the order in which they were inserted, which is that
    /// of the times. There are few lifetimes: one per rule.
    by_due: Vec<((Duration, Due), CountedList)>,
    next_due: Option<Timestamp>,
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
        let (due, age) = Due::check(lifetime, 0);
        let at = pinhole.expectation.since + age;
        let slot = self.entries.insert(ScheduledPinhole { pinhole, of_owner: links, by_due: links, due, at });
        let hash = self.hash(from, to);
        let Self { entries, by_address, by_owner, hasher, .. } = self;
        by_address.insert_unique(hash, slot, |&slot| rehash(entries, hasher, slot));
        by_owner.entry(pinhole.owner).or_default().append(entries, slot, |entry| &mut entry.of_owner);
        self.schedule(slot, due, at);
        if let Some(client) = pinhole.client {
            *self.by_client.entry(client).or_default() += 1;
        }
        if let Some(target) = pinhole.expectation.mapping.to {
            self.delivered.entry(to).or_insert((target, 0)).1 += 1;
        }
    }

    /// Appends an entry that is in no such list to the list of what is due for it.
    fn schedule(&mut self, slot: u32, due: Due, at: Timestamp) {
        let Self { entries, by_due, .. } = self;
        let Some(entry) = entries.get_mut(slot) else { return };
        (entry.due, entry.at) = (due, at);
        let key = (entry.pinhole.expectation.lifetime, due);
        let place = by_due.iter().position(|(of, _)| *of == key).unwrap_or_else(|| {
            by_due.push((key, CountedList::default()));
            by_due.len() - 1
        });
        by_due[place].1.append(entries, slot, |entry| &mut entry.by_due);
        self.next_due = Some(self.next_due.map_or(at, |next| next.min(at)));
    }

    /// Takes an entry out of the list of what is due for it.
    fn unschedule(&mut self, slot: u32) {
        let Self { entries, by_due, .. } = self;
        let Some(&ScheduledPinhole { due, at, pinhole: PinholeEntry { expectation, .. }, .. }) = entries.get(slot)
        else {
            return;
        };
        if let Some(place) = by_due.iter().position(|(of, _)| *of == (expectation.lifetime, due)) {
            let list = &mut by_due[place].1;
            list.unlink(entries, slot, |entry| &mut entry.by_due);
            if list.length == 0 {
                by_due.swap_remove(place);
            }
        }
        if self.next_due == Some(at) {
            self.next_due = self.first_due().map(|(at, _)| at);
        }
    }

    /// Removes the expectation with these addresses.
    pub(super) fn remove(&mut self, from: IpAddr, to: Endpoint) -> Option<PinholeEntry> {
        self.remove_slot(self.slot(from, to)?)
    }

    /// What is due by `now`, the earliest first. The caller removes an entry that has expired or is unconfirmed, and may
    /// call [`syn_came`](Self::syn_came) for one to be checked.
    pub(super) fn next_overdue(&mut self, now: Timestamp) -> Option<(u32, Due, Expectation)> {
        while self.next_due? <= now {
            let (_, slot) = self.first_due()?;
            let &ScheduledPinhole { due, pinhole: PinholeEntry { expectation, .. }, .. } = self.entries.get(slot)?;
            let Due::Check(times) = due else { return Some((slot, due, expectation)) };
            let has_expired = expectation.expires() <= now;
            // One after the other, also if several are overdue: so each list stays in the order of the times.
            let (next, age) = Due::check(expectation.lifetime, times.saturating_add(1));
            self.unschedule(slot);
            self.schedule(slot, next, expectation.since + age);
            if !has_expired {
                return Some((slot, due, expectation));
            }
        }
        None
    }

    /// A SYN has come for an expectation: it is unconfirmed unless conntrack reports a connection soon.
    pub(super) fn syn_came(&mut self, slot: u32, now: Timestamp) {
        self.unschedule(slot);
        self.schedule(slot, Due::Unconfirmed, now + CONFIRMATION);
    }

    /// When the next thing is due.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.next_due
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

    pub(super) fn remove_slot(&mut self, slot: u32) -> Option<PinholeEntry> {
        self.unschedule(slot);
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
        Some(self.entries.remove(slot)?.pinhole)
    }

    fn first_due(&self) -> Option<(Timestamp, u32)> {
        let firsts = self.by_due.iter().filter_map(|(_, counted)| counted.list.first());
        firsts.filter_map(|slot| Some((self.entries.get(slot)?.at, slot))).min()
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

fn rehash(entries: &Slab<ScheduledPinhole>, hasher: &RandomState, slot: u32) -> u64 {
    entries.get(slot).map_or(0, |entry| {
        let Expectation { from, to, .. } = entry.pinhole.expectation;
        hasher.hash_one((from, to))
    })
}

impl CountedList {
    fn append(&mut self, entries: &mut Slab<ScheduledPinhole>, slot: u32, which: Which<ScheduledPinhole>) {
        self.list.append(entries, slot, which);
        self.length += 1;
    }

    fn unlink(&mut self, entries: &mut Slab<ScheduledPinhole>, slot: u32, which: Which<ScheduledPinhole>) {
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

    #[test]
    fn firewall_is_asked_early_and_shortly_before_the_end() {
        let ages = |lifetime: Duration| {
            let of = |times| match Due::check(lifetime, times) {
                (Due::Check(_), age) => Some(age.as_secs_f64()),
                _ => None,
            };
            (0..).map_while(of).collect::<Vec<_>>()
        };
        assert_eq!(ages(Duration::from_secs(60)), [2.0, 4.0, 8.0, 16.0, 32.0, 58.0]);
        assert_eq!(ages(Duration::from_secs(2)), [1.0, 1.5]);
        assert_eq!(ages(Duration::from_millis(10)), [0.005, 0.0075]);
        assert_eq!(ages(Duration::ZERO), [0.0]);
        assert_eq!(ages(Duration::from_secs(3600)).len(), 12);
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
                        let mut checked = std::collections::BTreeMap::<u32, u32>::new();
                        while let Some((slot, due, expectation)) = all.next_overdue(now) {
                            prop_assert!(expectation.since < now);
                            match due {
                                Due::Check(_) => *checked.entry(slot).or_default() += 1,
                                Due::Unconfirmed => unreachable!("no SYN came"),
                                Due::Expiry => times.push(all.remove_slot(slot).expect("one").expectation.expires()),
                            }
                        }
                        prop_assert!(checked.values().all(|times| *times <= 3));
                        prop_assert_eq!(times.len(), count);
                        prop_assert!(times.is_sorted());
                    }
                }
                prop_assert_eq!(all.len(), plain.len());
                prop_assert_eq!(all.iter().count(), plain.len());
                prop_assert!(all.by_client.len() <= plain.len());
                let expires = plain.iter().map(|one| one.expectation.expires()).min();
                prop_assert_eq!(all.next_due().is_some(), expires.is_some());
                prop_assert!(all.next_due() <= expires, "a check precedes each expiry");
                prop_assert_eq!(all.by_due.iter().map(|(_, list)| list.length).sum::<usize>(), plain.len());
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
