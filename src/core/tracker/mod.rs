//! All sessions and their pinholes.
//!
//! Segments and the time come in; pinholes are opened and closed through a [`Firewall`], and events go to an
//! [`Observer`]. Everything is bounded by the policy's limits, and the cost of a packet does not depend on the
//! number of sessions. It does not know where packets come from, or how the kernel keeps a pinhole.

mod admission;
mod adopt;
mod asked_syn;
mod client;
mod context;
mod encrypted_dialogue;
mod event;
mod event_text;
mod expectations;
mod line_rewrite;
mod list;
mod memory_budget;
mod new_session;
mod origins;
mod port_search;
mod quotas;
mod ranges;
mod rank;
mod refusal_text;
mod segment;
mod slab;
mod syn_proxy;
mod table;

use std::time::Duration;

pub use adopt::{ExistingState, RestoreSummary};
pub use asked_syn::SynVerdict;
pub use client::ClientKey;
pub use event::{EndReason, Observer, SessionEvent, SessionNumber};

use crate::core::expectation::{Closed, Expectation};
use crate::core::ftp::Mode;
use crate::core::kernel::{Control, Firewall, LookupFailed, SessionProgress, Synced};
use crate::core::net::{Connection, Direction, Flags, Flow, Segment, Seq};
use crate::core::policy::Policy;
use crate::core::seqadj::Verdict;
use crate::core::session::reassembly::StreamAnomaly;
use crate::core::session::{Dialogue, Session};
use crate::core::time::Timestamp;
use adopt::OrphanedPinholes;
use expectations::{Due, Expectations, PinholeEntry};
use memory_budget::MemoryBudget;
use new_session::unknown_connection;
use ranges::Ranges;
use rank::Rank;
use table::Table;

/// How long a session is followed after its end, unless conntrack forgets its connection earlier: longer than
/// conntrack keeps a connection that both ends have closed.
const LINGER: Duration = Duration::from_secs(150);

/// How long a session with an open port range may be silent: as long as conntrack keeps a silent connection.
const LONGEST_SILENCE: Duration = Duration::from_secs(5 * 24 * 3600);

/// What the caller passes to a [`Tracker`] with every call.
#[derive(Debug)]
pub struct Environment<'a, F, O> {
    /// The current time.
    pub now: Timestamp,
    /// The policy in force.
    pub policy: &'a Policy,
    /// The firewall that admits data connections.
    pub firewall: &'a mut F,
    /// Receives the events.
    pub observer: &'a mut O,
}

impl<F: Firewall, O: Observer> Environment<'_, F, O> {
    fn report(&mut self, session: SessionNumber, event: &SessionEvent<'_>) {
        self.observer.observe(self.now, session, event);
    }
}

/// The verdict on a segment, if it belongs to a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrackerVerdict {
    /// The segment belongs to a session, and this is the verdict on it.
    Session(Verdict),
    /// The segment belongs to no control connection, or to one that has ended.
    Untracked,
}

/// What happens to a segment if an earlier segment is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnGap {
    /// It waits for the missing segment: its verdict is `Wait`.
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
    /// When conntrack events were missing for the last time.
    events_missing: Option<Timestamp>,
}

impl Tracker {
    /// How many sessions are in the table, including those that have just ended.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// How many expectations are open.
    pub fn expectations(&self) -> usize {
        self.expectations.len()
    }

    /// All open expectations, each with the session that announced it and the mode, where that is known.
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

    /// The earliest time at which [`advance`](Self::advance) has something to do.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        [self.expectations.next_due(), self.sessions.next_due(), self.ranges.next_renewal()].into_iter().flatten().min()
    }

    /// Handles a segment as it was captured. When this returns, every pinhole that the segment announces is open.
    ///
    /// The caller keeps a segment whose verdict is `Wait`, and passes it again after another segment of the same
    /// flow.
    pub fn handle<F: Firewall, O: Observer>(
        &mut self,
        segment: &Segment<'_>,
        env: &mut Environment<'_, F, O>,
    ) -> TrackerVerdict {
        self.handle_on_gap(segment, OnGap::Wait, env)
    }

    /// Like [`handle`](Self::handle); `on_gap` says whether the segment may wait.
    pub fn handle_on_gap<F: Firewall, O: Observer>(
        &mut self,
        segment: &Segment<'_>,
        on_gap: OnGap,
        env: &mut Environment<'_, F, O>,
    ) -> TrackerVerdict {
        if let Some(verdict) = self.end_replaced(segment, env) {
            return TrackerVerdict::Session(verdict);
        }
        let (slot, direction) = match self.sessions.find(&segment.flow) {
            Some(found) => found,
            None => match self.begin(segment, env) {
                Ok(Some(begun)) => begun,
                Err(LookupFailed) => return unknown_connection(on_gap, env.policy),
                Ok(None) => {
                    // Adopted pinholes are closed too early rather than too late.
                    if segment.flags.has(Flags::FIN) || segment.flags.has(Flags::RST) {
                        self.close_orphaned(&segment.flow, env);
                    }
                    return TrackerVerdict::Untracked;
                }
            },
        };
        if let Some(tracked) = self.sessions.get_mut(slot)
            && tracked.origins.is_forged(direction, segment.origin)
        {
            // Routing may drop this packet. Or the routes have changed: then the connection continues unread, unless a denied
            // command could.
            env.report(tracked.number, &SessionEvent::Anomaly(StreamAnomaly::WrongInterface));
            let may_be_denied = direction == Direction::FromClient && env.policy.terms(tracked.rule).holds_back();
            return if may_be_denied { TrackerVerdict::Session(Verdict::Drop) } else { TrackerVerdict::Untracked };
        }
        TrackerVerdict::Session(self.segment(slot, segment, direction, on_gap, env))
    }

    /// Ends the session of a segment that begins another connection with the same addresses. Returns the verdict on a
    /// SYN of the server that is not the first one of the session, and begins no other connection.
    ///
    /// A client ignores a SYN in the middle of a connection, and a second one during the handshake. Conntrack knows
    /// whether this is a new connection.
    fn end_replaced<F: Firewall, O: Observer>(
        &mut self,
        segment: &Segment<'_>,
        env: &mut Environment<'_, F, O>,
    ) -> Option<Verdict> {
        if !segment.flags.has(Flags::SYN) || segment.flags.has(Flags::RST) {
            return None;
        }
        let (slot, Direction::FromServer) = self.sessions.find(&segment.flow)? else { return None };
        let tracked = self.sessions.get(slot)?;
        if tracked.ended.is_none() && !tracked.session.is_another_start(segment.seq) {
            return None;
        }
        let Ok(control) = env.firewall.control_connection(&segment.flow) else {
            // The server retransmits it. It must not pass if it may begin a connection that Pinhole would take for this
            // one.
            return Some(Verdict::Drop);
        };
        let is_new = |control: &Control| control.is_opening && control.id.is_some() && control.id != tracked.id;
        if !control.as_ref().is_some_and(is_new) {
            return Some(Verdict::Accept);
        }
        self.end(slot, EndReason::Replaced, env);
        self.remove(slot);
        None
    }

    /// The receiver's sequence number for the sender's `seq`, in packets with these addresses; `None` if they belong to
    /// no known session.
    pub fn receiver_seq(&self, flow: &Flow, seq: Seq) -> Option<Seq> {
        let (slot, direction) = self.sessions.find(flow)?;
        let tracked = self.sessions.get(slot)?;
        Some(tracked.rewriters.as_ref().map_or(seq, |rewriters| rewriters.get(direction).receiver_seq(seq)))
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
    pub fn advance<F: Firewall, O: Observer>(&mut self, env: &mut Environment<'_, F, O>) {
        let now = env.now;
        self.advance_pinholes(env);
        self.renew_ranges(env);
        self.sessions.set_idle(env.policy.limits.idle);
        while let Some(slot) = self.sessions.find_due(now) {
            self.forget(slot, EndReason::Idle, env);
        }
    }

    /// Closes the pinholes that have expired, and those whose SYN came and was dropped later in the kernel.
    fn advance_pinholes<F: Firewall, O: Observer>(&mut self, env: &mut Environment<'_, F, O>) {
        while let Some((slot, due, expectation)) = self.expectations.next_overdue(env.now) {
            if let Due::Check(_) = due {
                if env.firewall.syn_came(&expectation) {
                    self.expectations.syn_came(slot, env.now);
                }
                continue;
            }
            let Some(PinholeEntry { session, .. }) = self.expectations.remove_slot(slot) else { continue };
            env.firewall.close(&expectation);
            let is_dropped = due == Due::Unconfirmed && self.knows_connections_since(expectation.since);
            let event =
                if is_dropped { SessionEvent::Dropped(expectation) } else { SessionEvent::Expired(expectation) };
            env.observer.observe(expectation.expires().min(env.now), session, &event);
        }
    }

    /// Conntrack events were lost or not handled yet, so that a data connection may have begun without a report of it.
    pub const fn note_missing_events(&mut self, now: Timestamp) {
        self.events_missing = Some(now);
    }

    /// Whether every data connection that began since then was reported.
    fn knows_connections_since(&self, then: Timestamp) -> bool {
        self.events_missing.is_none_or(|missing| missing < then)
    }

    /// The firewall admitted a data connection. Returns the session that announced it, if it was expected.
    pub fn admitted<F: Firewall, O: Observer>(
        &mut self,
        flow: &Flow,
        env: &mut Environment<'_, F, O>,
    ) -> Option<SessionNumber> {
        let (session, mode) = match self.expectations.remove(flow.source.address, flow.destination) {
            Some(entry) => (entry.session, entry.mode),
            None if self.orphaned.admits(flow) => (SessionNumber::EARLIER, None),
            None => {
                let slot = self.ranges.session_of(flow)?;
                (self.sessions.get(slot)?.number, None)
            }
        };
        env.report(session, &SessionEvent::Used { mode, flow: *flow });
        Some(session)
    }

    /// Applies a new policy: looks up the rule of each session again. Open pinholes stay open.
    ///
    /// A session that is not FTP is read from now on if its rule denies something, because the server may take it for
    /// FTP. An encrypted session stays unread.
    pub fn follow<F: Firewall, O: Observer>(&mut self, env: &mut Environment<'_, F, O>) {
        let policy = env.policy;
        for tracked in self.sessions.iter_mut() {
            let Connection { original, .. } = tracked.connection;
            tracked.rule = policy.match_rule(original.source.address, original.destination.address);
            if tracked.ended.is_none() {
                let event = SessionEvent::RuleFound { rule: policy.rule_name(tracked.rule) };
                env.observer.observe(env.now, tracked.number, &event);
            }
            if tracked.rewriters.is_none() && policy.terms(tracked.rule).may_change_lines() {
                // The connection has no NAT, and no byte of it was replaced.
                tracked.rewriters = Some(Box::default());
            }
            let is_unread =
                tracked.recorded == SessionProgress::Unreadable && !tracked.session.dialogue().is_encrypted();
            if is_unread && policy.terms(tracked.rule).holds_back() {
                // Bytes may have passed unread in the meantime.
                tracked.session = Session::picked_up(SessionProgress::Unknown, Synced::default());
                tracked.recorded = SessionProgress::Unknown;
                env.firewall.record(&tracked.connection, SessionProgress::Unknown);
            }
        }
    }

    /// Conntrack has removed the connection with these addresses: its session, if there is one, has ended.
    pub fn forgotten<F: Firewall, O: Observer>(&mut self, flow: &Flow, env: &mut Environment<'_, F, O>) {
        if let Some((slot, _)) = self.sessions.find(flow) {
            self.end(slot, EndReason::Finished, env);
            self.remove(slot);
        }
        self.close_orphaned(flow, env);
    }

    /// Ends a session, and keeps its addresses for [`LINGER`].
    fn end_and_linger<F: Firewall, O: Observer>(&mut self, slot: u32, how: EndReason, env: &mut Environment<'_, F, O>) {
        self.end(slot, how, env);
        self.sessions.set_rank(slot, Rank::Ended, env.now);
    }

    /// Closes all pinholes and port ranges of a session.
    fn end<F: Firewall, O: Observer>(&mut self, slot: u32, how: EndReason, env: &mut Environment<'_, F, O>) {
        let Some(tracked) = self.sessions.get_mut(slot) else { return };
        if tracked.ended.replace(how).is_some() {
            return;
        }
        let (number, flow) = (tracked.number, tracked.connection.original);
        while let Some(PinholeEntry { expectation, .. }) = self.expectations.pop_of(slot) {
            // A client whose data connection is rejected ends the session at once.
            let is_dropped = self.knows_connections_since(expectation.since) && env.firewall.syn_came(&expectation);
            env.firewall.close(&expectation);
            let closed = SessionEvent::Closed { expectation, why: Closed::SessionEnded };
            env.report(number, &if is_dropped { SessionEvent::Dropped(expectation) } else { closed });
        }
        if let Some(port_range) = self.ranges.remove(slot) {
            env.firewall.close_port_range(&port_range);
        }
        self.close_orphaned(&flow, env);
        env.report(number, &SessionEvent::Ended(how));
    }

    /// Ends and forgets a session whose connection may still be in conntrack. A session that ended before is not
    /// trusted when it is picked up again.
    fn forget(&mut self, slot: u32, how: EndReason, env: &mut Environment<'_, impl Firewall, impl Observer>) {
        if let Some(tracked) = self.sessions.get(slot)
            && tracked.ended.is_some()
            && !matches!(tracked.recorded, SessionProgress::Unknown | SessionProgress::Unreadable)
        {
            env.firewall.record(&tracked.connection, SessionProgress::Unknown);
        }
        self.end(slot, how, env);
        self.remove(slot);
    }

    /// Forgets a session that has ended.
    fn remove(&mut self, slot: u32) {
        self.release_memory(slot);
        self.sessions.remove(slot);
    }
}

#[cfg(test)]
mod tests;
