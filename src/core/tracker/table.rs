//! The sessions by the flows of their packets, by client and by rank.

use std::hash::BuildHasher;
use std::iter;
use std::net::IpAddr;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::client::ClientKey;
use super::list::{Links, List};
use super::memory_budget::Buffered;
use super::origins::Origins;
use super::rank::Rank;
use super::slab::Slab;
use super::{EndReason, LINGER, LONGEST_SILENCE, SessionNumber};
use crate::core::kernel::SessionProgress;
use crate::core::net::{Connection, Direction, Flow};
use crate::core::policy::RuleId;
use crate::core::seqadj::Rewriters;
use crate::core::session::Session;
use crate::core::time::Timestamp;

/// The precision of the order by latest packet: an active session moves in the lists once in this time, not with each
/// packet.
const ORDER_PRECISION: Duration = Duration::from_secs(1);

/// How many sessions of a client are searched for one with a certain server: by default, all that it may have.
const MAX_SEARCHED: usize = 4096;

/// A session as the tracker keeps it.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) connection: Connection,
    /// Conntrack's ID of the connection, where it is known.
    pub(super) id: Option<u32>,
    pub(super) number: SessionNumber,
    pub(super) rule: RuleId,
    /// How it ended, if it did. It stays in the table for a while, so that its last packets begin no new session.
    pub(super) ended: Option<EndReason>,
    pub(super) last_packet: Timestamp,
    pub(super) position: ListPosition,
    pub(super) buffered: Buffered,
    pub(super) session: Session,
    /// The interfaces from which the packets of its client and of its server come, once they are known.
    pub(super) origins: Origins,
    /// It may be a data connection of its client: an attacker may choose what the client sends.
    pub(super) may_be_data: bool,
    /// The progress that the kernel has stored.
    pub(super) recorded: SessionProgress,
    /// Present if bytes may have to be replaced: with NAT, or where the policy denies commands or repairs addresses.
    pub(super) rewriters: Option<Box<Rewriters>>,
}

/// The position of a session in the lists.
#[derive(Debug)]
pub(super) struct ListPosition {
    pub(super) rank: Rank,
    /// When it moved to the end of its lists: less than [`ORDER_PRECISION`] before its latest packet.
    moved: Timestamp,
    /// The slot of its client.
    client: u32,
    by_rank: Links,
    by_client: Links,
}

impl ListPosition {
    pub(super) fn new(rank: Rank, now: Timestamp) -> Self {
        Self { rank, moved: now, client: 0, by_rank: Links::default(), by_client: Links::default() }
    }
}

/// The sessions of one client.
#[derive(Debug)]
struct Client {
    key: ClientKey,
    sessions: u32,
    /// Its sessions before a login, and those after a login, each with the longest silent one first.
    lists: [List; 2],
}

/// The sessions of one rank, the longest silent one first.
#[derive(Debug, Default)]
struct Ranked {
    list: List,
    length: usize,
    /// The earliest time at which the first one may have been silent for too long.
    due: Option<Timestamp>,
}

/// An entry of the hash table of flows: a slot and a direction in one number, to keep the table small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FlowEntry(u32);

impl FlowEntry {
    const fn new(slot: u32, direction: Direction) -> Self {
        Self(slot << 1 | matches!(direction, Direction::FromServer) as u32)
    }

    const fn slot(self) -> u32 {
        self.0 >> 1
    }

    const fn direction(self) -> Direction {
        if self.0 & 1 == 0 { Direction::FromClient } else { Direction::FromServer }
    }
}

/// All sessions.
#[derive(Debug, Default)]
pub(super) struct Table {
    sessions: Slab<Tracked>,
    by_flow: HashTable<FlowEntry>,
    ranks: [Ranked; Rank::COUNT],
    clients: Slab<Client>,
    by_client: HashTable<u32>,
    idle: Duration,
    hasher: RandomState,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn find(&self, flow: &Flow) -> Option<(u32, Direction)> {
        let hash = self.hasher.hash_one(flow);
        let entry = self.by_flow.find(hash, |&entry| flow_at(&self.sessions, entry) == Some(flow))?;
        Some((entry.slot(), entry.direction()))
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Tracked> {
        self.sessions.get(slot)
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Tracked> {
        self.sessions.get_mut(slot)
    }

    pub(super) fn insert(&mut self, mut tracked: Tracked) -> u32 {
        let Connection { original, reply } = tracked.connection;
        tracked.position.client = self.client(ClientKey::of(original.source.address));
        let slot = self.sessions.insert(tracked);
        for (flow, direction) in [(original, Direction::FromClient), (reply, Direction::FromServer)] {
            let Self { sessions, by_flow, hasher, .. } = self;
            let hash_of = |entry: &FlowEntry| flow_at(sessions, *entry).map_or(0, |flow| hasher.hash_one(flow));
            by_flow.insert_unique(hasher.hash_one(flow), FlowEntry::new(slot, direction), hash_of);
        }
        self.append(slot);
        slot
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<Tracked> {
        let Connection { original, reply } = self.sessions.get(slot)?.connection;
        self.unlink(slot);
        for (flow, direction) in [(original, Direction::FromClient), (reply, Direction::FromServer)] {
            let entry = FlowEntry::new(slot, direction);
            if let Ok(found) = self.by_flow.find_entry(self.hasher.hash_one(flow), |&other| other == entry) {
                found.remove();
            }
        }
        let tracked = self.sessions.remove(slot)?;
        self.forget_if_last(tracked.position.client);
        Some(tracked)
    }

    /// The slot of a client that is about to have one more session.
    fn client(&mut self, key: ClientKey) -> u32 {
        let hash = self.hasher.hash_one(key);
        let is_key = |&slot: &u32| self.clients.get(slot).is_some_and(|client| client.key == key);
        if let Some(&slot) = self.by_client.find(hash, is_key) {
            if let Some(client) = self.clients.get_mut(slot) {
                client.sessions += 1;
            }
            return slot;
        }
        let slot = self.clients.insert(Client { key, sessions: 1, lists: [List::default(); 2] });
        let Self { clients, by_client, hasher, .. } = self;
        by_client.insert_unique(hash, slot, |&slot| clients.get(slot).map_or(0, |client| hasher.hash_one(client.key)));
        slot
    }

    /// A client has one session fewer.
    fn forget_if_last(&mut self, slot: u32) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        client.sessions -= 1;
        if client.sessions > 0 {
            return;
        }
        let hash = self.hasher.hash_one(client.key);
        if let Ok(entry) = self.by_client.find_entry(hash, |&other| other == slot) {
            entry.remove();
        }
        self.clients.remove(slot);
    }

    /// How many sessions that client has.
    pub(super) fn count_of_client(&self, key: ClientKey) -> usize {
        self.find_client(key).map_or(0, |client| client.sessions as usize)
    }

    fn find_client(&self, key: ClientKey) -> Option<&Client> {
        let is_key = |&slot: &u32| self.clients.get(slot).is_some_and(|client| client.key == key);
        let slot = self.by_client.find(self.hasher.hash_one(key), is_key)?;
        self.clients.get(*slot)
    }

    /// Whether this client has a session with this server, each by its own address.
    pub(super) fn is_any_between(&self, client: IpAddr, server: IpAddr) -> bool {
        let Some(found) = self.find_client(ClientKey::of(client)) else { return false };
        let is_it = |Connection { original, reply }: &Connection| {
            original.source.address == client && reply.source.address == server
        };
        found.lists.iter().any(|list| {
            let first = list.first().and_then(|slot| self.sessions.get(slot));
            let behind = |tracked: &&Tracked| self.sessions.get(tracked.position.by_client.behind.get()?);
            iter::successors(first, behind).take(MAX_SEARCHED).any(|tracked| is_it(&tracked.connection))
        })
    }

    /// How many sessions have that rank.
    pub(super) fn count_of_rank(&self, rank: Rank) -> usize {
        self.ranks[rank as usize].length
    }

    /// The session of the lowest rank among `ranks` that has been silent longest.
    pub(super) fn next_to_evict(&self, ranks: &[Rank]) -> Option<u32> {
        ranks.iter().find_map(|&rank| self.ranks[rank as usize].list.first())
    }

    /// The session of that client that has been silent longest; one before a login if there is any.
    pub(super) fn next_to_evict_of_client(&self, key: ClientKey) -> Option<u32> {
        self.find_client(key)?.lists.iter().find_map(List::first)
    }

    /// Records that a packet of that session came.
    pub(super) fn touch(&mut self, slot: u32, now: Timestamp) {
        let Some(tracked) = self.sessions.get_mut(slot) else { return };
        tracked.last_packet = now;
        if now.since(tracked.position.moved) < ORDER_PRECISION {
            return;
        }
        tracked.position.moved = now;
        let ListPosition { rank, client, .. } = tracked.position;
        let Self { sessions, ranks, clients, .. } = self;
        let ranked = &mut ranks[rank as usize];
        let was_first = ranked.list.first() == Some(slot);
        ranked.list.move_to_end(sessions, slot, |tracked| &mut tracked.position.by_rank);
        if let Some(client) = clients.get_mut(client) {
            let list = &mut client.lists[usize::from(rank.is_established())];
            list.move_to_end(sessions, slot, |tracked| &mut tracked.position.by_client);
        }
        if was_first {
            self.update_due(rank);
        }
    }

    /// Changes the rank of that session.
    pub(super) fn set_rank(&mut self, slot: u32, rank: Rank, now: Timestamp) {
        if self.sessions.get(slot).is_none_or(|tracked| tracked.position.rank == rank) {
            return;
        }
        self.unlink(slot);
        if let Some(tracked) = self.sessions.get_mut(slot) {
            tracked.position.rank = rank;
            tracked.position.moved = now;
            tracked.last_packet = now;
        }
        self.append(slot);
    }

    fn append(&mut self, slot: u32) {
        let Self { sessions, ranks, clients, .. } = self;
        let Some(&ListPosition { rank, client, .. }) = sessions.get(slot).map(|tracked| &tracked.position) else {
            return;
        };
        let ranked = &mut ranks[rank as usize];
        ranked.list.append(sessions, slot, |tracked| &mut tracked.position.by_rank);
        ranked.length += 1;
        let is_first = ranked.list.first() == Some(slot);
        if let Some(client) = clients.get_mut(client) {
            let list = &mut client.lists[usize::from(rank.is_established())];
            list.append(sessions, slot, |tracked| &mut tracked.position.by_client);
        }
        if is_first {
            self.update_due(rank);
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Self { sessions, ranks, clients, .. } = self;
        let Some(&ListPosition { rank, client, .. }) = sessions.get(slot).map(|tracked| &tracked.position) else {
            return;
        };
        let ranked = &mut ranks[rank as usize];
        let was_first = ranked.list.first() == Some(slot);
        ranked.list.unlink(sessions, slot, |tracked| &mut tracked.position.by_rank);
        ranked.length -= 1;
        if let Some(client) = clients.get_mut(client) {
            let list = &mut client.lists[usize::from(rank.is_established())];
            list.unlink(sessions, slot, |tracked| &mut tracked.position.by_client);
        }
        if was_first {
            self.update_due(rank);
        }
    }

    /// How long a session of that rank may be silent.
    fn longest_silence(&self, rank: Rank) -> Duration {
        match rank {
            Rank::Ended => LINGER,
            // No data of an encrypted session is queued, however active it is; conntrack reports its end.
            Rank::Ranged => self.idle.max(LONGEST_SILENCE),
            Rank::Unread | Rank::HalfOpen | Rank::NotLoggedIn | Rank::LoggedIn => self.idle,
        }
    }

    /// Updates when the first session of that rank is due.
    fn update_due(&mut self, rank: Rank) {
        let first = self.ranks[rank as usize].list.first().and_then(|slot| self.sessions.get(slot));
        let due = first.map(|first| first.position.moved + self.longest_silence(rank));
        self.ranks[rank as usize].due = due;
    }

    /// Sets the time of silence after which sessions are due.
    pub(super) fn set_idle(&mut self, idle: Duration) {
        if self.idle != idle {
            self.idle = idle;
            Rank::ALL.into_iter().for_each(|rank| self.update_due(rank));
        }
    }

    /// A session that has been silent for too long.
    pub(super) fn find_due(&mut self, now: Timestamp) -> Option<u32> {
        for rank in Rank::ALL {
            if self.ranks[rank as usize].due.is_none_or(|due| due > now) {
                continue;
            }
            let slot = self.ranks[rank as usize].list.first()?;
            let due = self.sessions.get(slot)?.last_packet + self.longest_silence(rank);
            if due <= now {
                return Some(slot);
            }
            // It has had a packet since it moved; the sessions behind it are due less than that later.
            self.ranks[rank as usize].due = Some(due);
        }
        None
    }

    /// The earliest time at which a session may be due.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.ranks.iter().filter_map(|ranked| ranked.due).min()
    }

    /// Panics unless every session is in the lists of its rank and of its client, once each, and in their order.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let of_list = |list: &List, which: fn(&Tracked) -> &Links| {
            let mut slots = Vec::new();
            let mut next = list.first();
            while let Some(slot) = next {
                slots.push(slot);
                next = self.sessions.get(slot).and_then(|tracked| which(tracked).behind.get());
            }
            assert!(slots.is_sorted_by_key(|&slot| self.sessions.get(slot).expect("it is there").position.moved));
            slots
        };
        let mut count = 0;
        for rank in Rank::ALL {
            let slots = of_list(&self.ranks[rank as usize].list, |tracked| &tracked.position.by_rank);
            assert!(slots.iter().all(|&slot| self.sessions.get(slot).expect("it is there").position.rank == rank));
            assert_eq!(slots.len(), self.ranks[rank as usize].length);
            count += slots.len();
        }
        assert_eq!(count, self.sessions.len());
        for client in self.clients.iter() {
            let slots = client.lists.iter().map(|list| of_list(list, |tracked| &tracked.position.by_client).len());
            assert_eq!(slots.sum::<usize>(), client.sessions as usize);
            count -= client.sessions as usize;
        }
        assert_eq!((count, self.clients.len()), (0, self.by_client.len()));
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tracked> {
        self.sessions.iter_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Tracked> {
        self.sessions.iter()
    }
}

fn flow_at(sessions: &Slab<Tracked>, entry: FlowEntry) -> Option<&Flow> {
    Some(sessions.get(entry.slot())?.connection.flow(entry.direction()))
}
