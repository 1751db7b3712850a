//! Which session is evicted when another one begins, and to which quotas each session counts.

use super::client::ClientKey;
use super::expectations::Expectations;
use super::ranges::Ranges;
use super::rank::{RangeState, Rank};
use super::{EndReason, Environment, Observer, Tracker};
use crate::core::expectation::Expectation;
use crate::core::kernel::Firewall;
use crate::core::net::{Direction, Flags, Segment};
use crate::core::policy::{Limits, Terms};
use crate::core::session::Session;
use crate::core::time::Timestamp;

/// All sessions before a login together may fill 1/4 of the table.
const BEFORE_LOGIN_DIVISOR: usize = 4;

/// Their minimum share, for a small table.
const MIN_BEFORE_LOGIN: usize = 64;

/// The ranks before a login, the lowest first.
const BEFORE_LOGIN: [Rank; 2] = [Rank::HalfOpen, Rank::NotLoggedIn];

/// How many sessions before a login there may be.
fn max_before_login(limits: &Limits) -> usize {
    let all = limits.sessions.get() as usize;
    (all / BEFORE_LOGIN_DIVISOR).max(MIN_BEFORE_LOGIN).min(all)
}

/// The rank of a session that begins with this segment.
pub(super) fn first_rank(session: &Session, segment: &Segment<'_>, direction: Direction) -> Rank {
    let is_new = segment.flags.has(Flags::SYN);
    let before = if is_new { Rank::HalfOpen } else { Rank::NotLoggedIn };
    Rank::of(session, None, None, before, (direction, segment.payload.len()))
}

/// How many pinholes a session, its client and all clients may have open.
pub(super) struct PinholeQuota<'a> {
    pub(super) terms: &'a Terms,
    pub(super) limits: &'a Limits,
}

impl PinholeQuota<'_> {
    /// Whether one more pinhole of that session may open. One that replaces another one does not count twice.
    pub(super) fn has_room(
        &self,
        expectation: &Expectation,
        session: u32,
        client: ClientKey,
        (expectations, ranges): (&Expectations, &Ranges),
    ) -> bool {
        let Self { terms, limits } = self;
        let owner = expectations.owner_of(expectation);
        if owner == Some(session) {
            return true;
        }
        let of_client = expectations.count_of_client(client) + ranges.count_of_client(client);
        let in_all = expectations.len() + ranges.len();
        expectations.count_of(session) < usize::from(terms.pinholes_per_session.get())
            && of_client < limits.pinholes_per_client.get() as usize
            && (owner.is_some() || in_all < limits.pinholes.get() as usize)
    }
}

impl Tracker {
    /// Makes room for one more session of that client, which begins with that rank.
    ///
    /// A client over its share loses one of its own sessions. Otherwise the session of the lowest rank is evicted. So
    /// no number of SYNs closes the pinholes of a user who is logged in while there is a session of a lower rank.
    pub(super) fn make_room<F: Firewall, O: Observer>(
        &mut self,
        client: ClientKey,
        rank: Rank,
        env: &mut Environment<'_, F, O>,
    ) {
        let limits = env.policy.limits;
        self.sessions.set_idle(limits.idle);
        while self.sessions.count_of_client(client) >= limits.sessions_per_client.get() as usize
            && let Some(slot) = self.sessions.next_to_evict_of_client(client)
        {
            self.evict(slot, EndReason::EvictedOverShare, env);
        }
        while rank.is_before_login()
            && self.sessions_before_login() >= max_before_login(&limits)
            && let Some(slot) = self.sessions.next_to_evict(&BEFORE_LOGIN)
        {
            self.evict(slot, EndReason::EvictedBeforeLogin, env);
        }
        while self.sessions.len() >= limits.sessions.get() as usize
            && let Some(slot) = self.sessions.next_to_evict(&Rank::ALL)
        {
            self.evict(slot, EndReason::Evicted, env);
        }
    }

    fn sessions_before_login(&self) -> usize {
        BEFORE_LOGIN.into_iter().map(|rank| self.sessions.count_of_rank(rank)).sum()
    }

    fn evict<F: Firewall, O: Observer>(&mut self, slot: u32, how: EndReason, env: &mut Environment<'_, F, O>) {
        self.forget(slot, how, env);
    }

    /// Updates the rank of a session, and the memory of its buffers, after a segment of this direction with this many
    /// bytes.
    pub(super) fn classify(&mut self, slot: u32, segment: (Direction, usize), now: Timestamp) {
        let range = if self.ranges.is_open(slot) {
            Some(RangeState::Open)
        } else {
            self.ranges.is_planned(slot).then_some(RangeState::Planned)
        };
        let Some(tracked) = self.sessions.get_mut(slot) else { return };
        let before = tracked.position.rank;
        let rank = Rank::of(&tracked.session, tracked.ended, range, before, segment);
        let client = ClientKey::of(tracked.connection.client().address);
        let bytes = tracked.session.buffered_bytes();
        self.memory.count(client, &mut tracked.buffered, bytes, !rank.is_established());
        if rank != before {
            self.sessions.set_rank(slot, rank, now);
        }
    }

    /// The buffers of a session are freed.
    pub(super) fn release_memory(&mut self, slot: u32) {
        let Some(tracked) = self.sessions.get_mut(slot) else { return };
        let client = ClientKey::of(tracked.connection.client().address);
        self.memory.count(client, &mut tracked.buffered, 0, false);
    }

    /// The bytes in the buffers of all sessions: bytes out of order, and unfinished lines.
    pub fn buffered_bytes(&self) -> usize {
        self.memory.used()
    }

    /// How often a session dropped bytes because the buffers of all sessions, or those of its client, were full.
    pub fn buffer_refusals(&self) -> u64 {
        self.memory.refusals()
    }
}
