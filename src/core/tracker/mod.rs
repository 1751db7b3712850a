//! The table of sessions, and what their announcements lead to.
//!
//! Segments and the time come in; pinholes are opened and closed through a [`Firewall`], and events go to an
//! [`Observer`]. Everything is bounded by the policy's limits, and the cost of a packet does not depend on the
//! number of sessions. Knows nothing of where packets come from, nor of how the kernel holds a pinhole.

mod admission;
mod adopt;
mod begin;
mod client;
mod context;
mod encrypted;
mod event;
mod event_text;
mod expectations;
mod list;
mod memory;
mod origins;
mod port_search;
mod quotas;
mod ranges;
mod rank;
mod rewriting;
mod segment;
mod slab;
mod table;

use std::time::Duration;

pub use adopt::{ExistingState, RestoreSummary};
pub use client::ClientKey;
pub use event::{Ended, Observer, SessionEvent, SessionNumber};

use crate::core::expectation::{Closed, Expectation};
use crate::core::ftp::Mode;
use crate::core::kernel::{Control, Firewall, LookupFailed, Progress, Synced};
use crate::core::net::{Connection, Direction, Flags, Flow, Segment, Seq};
use crate::core::policy::Policy;
use crate::core::seqadj::Verdict;
use crate::core::session::reassembly::StreamAnomaly;
use crate::core::session::{Dialogue, Session};
use crate::core::time::Timestamp;
use adopt::OrphanedPinholes;
use begin::unknown_connection;
use expectations::{Expectations, PinholeEntry};
use memory::MemoryBudget;
use ranges::Ranges;
use rank::Rank;
use table::Table;

/// How long a session is followed after its end, unless conntrack forgets its connection earlier: longer than
/// conntrack keeps a connection that both ends have closed.
const LINGER: Duration = Duration::from_secs(150);

/// How long a session with an open port range may be silent: as long as conntrack keeps a silent connection.
const LONGEST_SILENCE: Duration = Duration::from_secs(5 * 24 * 3600);

/// What the caller passes to a [`Tracker`] with every packet.
#[derive(Debug)]
pub struct World<'a, F, O> {
    /// The time.
    pub now: Timestamp,
    /// What the administrator allows.
    pub policy: &'a Policy,
    /// The firewall that admits data connections.
    pub firewall: &'a mut F,
    /// Receives the events.
    pub observer: &'a mut O,
}

impl<F: Firewall, O: Observer> World<'_, F, O> {
    fn report(&mut self, session: SessionNumber, event: &SessionEvent<'_>) {
        self.observer.observe(self.now, session, event);
    }
}

/// The result of handling a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handled {
    /// The segment belongs to a session, and this is the verdict on it.
    Session(Verdict),
    /// The segment belongs to no control connection, or to one that has ended.
    NotOurs,
}

/// What happens to a segment in front of which another one is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnGap {
    /// It waits for the missing segment: its verdict is `Later`.
    Wait,
    /// It cannot wait: the missing bytes count as lost, or it is dropped if the policy denies something.
    Continue,
}

/// All sessions and their expectations.
#[derive(Debug, Default)]
pub struct Tracker {
    sessions: Table,
    expectations: Expectations,
    /// The port ranges of encrypted sessions; only where a policy allows any.
    ranges: Ranges,
    /// The memory that the buffers of all sessions use.
    memory: MemoryBudget,
    /// The adopted pinholes of an earlier run.
    orphaned: OrphanedPinholes,
    sessions_begun: u64,
}

impl Tracker {
    /// How many sessions are in the table, those that have just ended included.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// How many expectations are open.
    pub fn expectations(&self) -> usize {
        self.expectations.len()
    }

    /// All open expectations, the sessions that announced them, and by which mode, where that is known.
    pub fn pinholes(&self) -> impl Iterator<Item = (SessionNumber, Option<Mode>, &Expectation)> {
        self.expectations.iter().map(|one| (one.session, one.mode, &one.expectation))
    }

    /// All sessions that have not ended: number, addresses and dialogue.
    pub fn live(&self) -> impl Iterator<Item = (SessionNumber, &Connection, &Dialogue)> {
        let live = self.sessions.iter().filter(|tracked| tracked.ended.is_none());
        live.map(|tracked| (tracked.number, &tracked.connection, tracked.session.dialogue()))
    }

    /// Forgets everything but the number of sessions so far. Closes no pinhole and reports no event.
    pub fn forget_all(&mut self) {
        *self = Self { sessions_begun: self.sessions_begun, ..Self::default() };
    }

    /// The moment at which [`advance`](Self::advance) will have something to do, at the earliest.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        [self.expectations.next_expiry(), self.sessions.next_due(), self.ranges.next_renewal()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Handles a segment as it was captured. When this returns, every pinhole that the segment announces is open.
    ///
    /// The caller keeps a segment whose verdict is `Later`, and passes it again after another segment of the same
    /// flow.
    pub fn handle<F: Firewall, O: Observer>(&mut self, segment: &Segment<'_>, world: &mut World<'_, F, O>) -> Handled {
        self.handle_on_gap(segment, OnGap::Wait, world)
    }

    /// The same, where the caller says whether the segment may wait.
    pub fn handle_on_gap<F: Firewall, O: Observer>(
        &mut self,
        segment: &Segment<'_>,
        on_gap: OnGap,
        world: &mut World<'_, F, O>,
    ) -> Handled {
        if let Some(verdict) = self.end_replaced(segment, world) {
            return Handled::Session(verdict);
        }
        let (slot, direction) = match self.sessions.find(&segment.flow) {
            Some(found) => found,
            None => match self.begin(segment, world) {
                Ok(Some(begun)) => begun,
                Err(LookupFailed) => return unknown_connection(on_gap, world.policy),
                Ok(None) => {
                    // Adopted pinholes are closed too early rather than too late.
                    if segment.flags.has(Flags::FIN) || segment.flags.has(Flags::RST) {
                        self.close_orphaned(&segment.flow, world);
                    }
                    return Handled::NotOurs;
                }
            },
        };
        if let Some(tracked) = self.sessions.get_mut(slot)
            && tracked.origins.is_forged(direction, segment.origin)
        {
            // Routing may drop this packet. Or the routes have changed: then the connection continues unread.
            world.report(tracked.number, &SessionEvent::Anomaly(StreamAnomaly::WrongSide));
            return Handled::NotOurs;
        }
        Handled::Session(self.segment(slot, segment, direction, on_gap, world))
    }

    /// Ends the session of a segment that begins another connection with the same addresses. Returns the verdict on a
    /// SYN of the server that is not the first one of the session, and begins no other connection.
    ///
    /// A client ignores a SYN in the middle of a connection, and a second one during the handshake. Conntrack knows
    /// whether this is a new connection.
    fn end_replaced<F: Firewall, O: Observer>(
        &mut self,
        segment: &Segment<'_>,
        world: &mut World<'_, F, O>,
    ) -> Option<Verdict> {
        if !segment.flags.has(Flags::SYN) || segment.flags.has(Flags::RST) {
            return None;
        }
        let (slot, Direction::FromServer) = self.sessions.find(&segment.flow)? else { return None };
        let tracked = self.sessions.get(slot)?;
        if tracked.ended.is_none() && !tracked.session.is_another_start(segment.seq) {
            return None;
        }
        let Ok(control) = world.firewall.control_connection(&segment.flow) else {
            // The server retransmits it. It must not pass if it may begin a connection that Pinhole would take for this
            // one.
            return Some(Verdict::Drop);
        };
        let is_new = |control: &Control| control.is_opening && control.id.is_some() && control.id != tracked.id;
        if !control.as_ref().is_some_and(is_new) {
            return Some(Verdict::Accept);
        }
        self.end(slot, Ended::Replaced, world);
        self.remove(slot);
        None
    }

    /// The receiver's sequence number for the sender's sequence number `place`, in packets with these addresses;
    /// `None` if they belong to no known session.
    pub fn place_for_receiver(&self, flow: &Flow, place: Seq) -> Option<Seq> {
        let (slot, direction) = self.sessions.find(flow)?;
        let tracked = self.sessions.get(slot)?;
        Some(tracked.rewriters.as_ref().map_or(place, |rewriters| rewriters.get(direction).place_for_receiver(place)))
    }

    /// Whether the sender of packets with these addresses is in sync: all that it sent has been read, and its next
    /// byte begins a line. `None` if they belong to no known session.
    pub fn is_synced(&self, flow: &Flow) -> Option<bool> {
        let (slot, direction) = self.sessions.find(flow)?;
        Some(self.sessions.get(slot)?.session.is_synced(direction))
    }

    /// The client of the session to which packets with these addresses belong; `None` if no such session is known.
    pub fn client_of(&self, flow: &Flow) -> Option<ClientKey> {
        let (slot, _) = self.sessions.find(flow)?;
        Some(ClientKey::of(self.sessions.get(slot)?.connection.client().address))
    }

    /// Handles all deadlines up to now.
    pub fn advance<F: Firewall, O: Observer>(&mut self, world: &mut World<'_, F, O>) {
        let now = world.now;
        while let Some(PinholeEntry { expectation, session, .. }) = self.expectations.pop_expired(now) {
            world.firewall.close(&expectation);
            world.observer.observe(expectation.expires(), session, &SessionEvent::Expired(expectation));
        }
        self.renew_ranges(world);
        self.sessions.set_idle(world.policy.limits.idle);
        while let Some(slot) = self.sessions.find_due(now) {
            self.forget(slot, Ended::Idle, world);
        }
    }

    /// The firewall admitted a data connection. Returns the session that announced it, if it was expected.
    pub fn admitted<F: Firewall, O: Observer>(
        &mut self,
        flow: &Flow,
        world: &mut World<'_, F, O>,
    ) -> Option<SessionNumber> {
        let (session, mode) = match self.expectations.remove(flow.source.address, flow.destination) {
            Some(entry) => (entry.session, entry.mode),
            None if self.orphaned.admits(flow) => (SessionNumber::EARLIER, None),
            None => {
                let slot = self.ranges.session_of(flow)?;
                (self.sessions.get(slot)?.number, None)
            }
        };
        world.report(session, &SessionEvent::Used { mode, flow: *flow });
        Some(session)
    }

    /// A reload: looks up the rule of each session again. Open pinholes stay open.
    ///
    /// A session that is not FTP is read from now on if its rule denies something, because the server may take it for
    /// FTP. An encrypted session stays unread.
    pub fn follow<F: Firewall, O: Observer>(&mut self, world: &mut World<'_, F, O>) {
        let policy = world.policy;
        for tracked in self.sessions.iter_mut() {
            let Connection { original, .. } = tracked.connection;
            tracked.rule = policy.match_rule(original.source.address, original.destination.address);
            if tracked.rewriters.is_none() && policy.terms(tracked.rule).holds_back() {
                // The connection has no NAT, and no byte of it was replaced.
                tracked.rewriters = Some(Box::default());
            }
            let is_unread = tracked.recorded == Progress::Unreadable && !tracked.session.dialogue().is_encrypted();
            if is_unread && policy.terms(tracked.rule).holds_back() {
                // Bytes may have passed unread in the meantime.
                tracked.session = Session::from_the_middle(Progress::Unknown, Synced::default());
                tracked.recorded = Progress::Unknown;
                world.firewall.record(&tracked.connection, Progress::Unknown);
            }
        }
    }

    /// Conntrack has removed the connection with these addresses: its session, if there is one, has ended.
    pub fn forgotten<F: Firewall, O: Observer>(&mut self, flow: &Flow, world: &mut World<'_, F, O>) {
        if let Some((slot, _)) = self.sessions.find(flow) {
            self.end(slot, Ended::Finished, world);
            self.remove(slot);
        }
        self.close_orphaned(flow, world);
    }

    /// Ends a session, and remembers its addresses for a while.
    fn end_for_now<F: Firewall, O: Observer>(&mut self, slot: u32, how: Ended, world: &mut World<'_, F, O>) {
        self.end(slot, how, world);
        self.sessions.set_rank(slot, Rank::Ended, world.now);
    }

    /// Closes all pinholes and port ranges of a session.
    fn end<F: Firewall, O: Observer>(&mut self, slot: u32, how: Ended, world: &mut World<'_, F, O>) {
        let Some(tracked) = self.sessions.get_mut(slot) else { return };
        if tracked.ended.replace(how).is_some() {
            return;
        }
        let (number, flow) = (tracked.number, tracked.connection.original);
        while let Some(PinholeEntry { expectation, .. }) = self.expectations.pop_of(slot) {
            world.firewall.close(&expectation);
            world.report(number, &SessionEvent::Closed { expectation, why: Closed::SessionEnded });
        }
        if let Some(port_range) = self.ranges.remove(slot) {
            world.firewall.close_port_range(&port_range);
        }
        self.close_orphaned(&flow, world);
        world.report(number, &SessionEvent::Ended(how));
    }

    /// Ends and forgets a session whose connection may still be in conntrack. A session that ended before is not
    /// trusted when it is picked up again.
    fn forget(&mut self, slot: u32, how: Ended, world: &mut World<'_, impl Firewall, impl Observer>) {
        if let Some(tracked) = self.sessions.get(slot)
            && tracked.ended.is_some()
            && !matches!(tracked.recorded, Progress::Unknown | Progress::Unreadable)
        {
            world.firewall.record(&tracked.connection, Progress::Unknown);
        }
        self.end(slot, how, world);
        self.remove(slot);
    }

    /// Forgets a session that has ended.
    fn remove(&mut self, slot: u32) {
        self.release_memory(slot);
        self.sessions.remove(slot);
    }
}

#[cfg(test)]
mod nat_tests;
#[cfg(test)]
mod tests;
