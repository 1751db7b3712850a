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
mod expectations;
mod list;
mod memory;
mod news;
mod origins;
mod port_search;
mod quotas;
mod ranges;
mod rank;
mod rewriting;
mod slab;
mod table;

use std::time::Duration;

pub use adopt::{ExistingState, RestoreSummary};
pub use client::ClientKey;
pub use news::{Ended, Observer, SessionEvent, SessionNumber};

use crate::core::expectation::{Closed, Expectation};
use crate::core::ftp::Mode;
use crate::core::kernel::{Firewall, LookupFailed, Progress, Synced};
use crate::core::net::{Connection, Direction, Flags, Flow, Segment, Seq};
use crate::core::policy::Policy;
use crate::core::seqadj::{Replacement, Verdict};
use crate::core::session::reassembly::{Acceptance, StreamAnomaly};
use crate::core::session::{Dialogue, Ending, Session, SessionOutput};
use crate::core::time::Timestamp;
use adopt::OrphanedPinholes;
use begin::unknown_connection;
use context::SessionContext;
use expectations::{Expectations, PinholeEntry};
use memory::MemoryBudget;
use port_search::PortSearch;
use ranges::Ranges;
use rank::Rank;
use table::{Table, Tracked};

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
    fn tell(&mut self, session: SessionNumber, news: &SessionEvent<'_>) {
        self.observer.observe(self.now, session, news);
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
    pub fn standing(&self) -> impl Iterator<Item = (SessionNumber, Option<Mode>, &Expectation)> {
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
        let (slot, direction) = match self.sessions.find(&segment.flow) {
            Some((slot, direction)) => {
                if direction == Direction::FromServer
                    && segment.flags.has(Flags::SYN)
                    && !segment.flags.has(Flags::RST)
                    && self.is_another_start(slot, segment)
                {
                    // A client ignores a SYN in the middle of a connection, and a second one during the handshake.
                    // Conntrack knows whether this is a new connection.
                    let known = self.sessions.get(slot).and_then(|tracked| tracked.id);
                    let Ok(control) = world.firewall.control_connection(&segment.flow) else {
                        // The server retransmits it. It must not pass if it may begin a connection that Pinhole would
                        // take for this one.
                        return Handled::Session(Verdict::Drop);
                    };
                    if !control.is_some_and(|control| control.is_opening && control.id.is_some() && control.id != known)
                    {
                        return Handled::Session(Verdict::Accept);
                    }
                    self.end(slot, Ended::Replaced, world);
                    self.remove(slot);
                    return self.handle_on_gap(segment, on_gap, world);
                }
                (slot, direction)
            }
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
            world.tell(tracked.number, &SessionEvent::Anomaly(StreamAnomaly::WrongSide));
            return Handled::NotOurs;
        }
        Handled::Session(self.converse(slot, segment, direction, on_gap, world))
    }

    /// Whether a SYN of the server's is not the one that began this session.
    fn is_another_start(&self, slot: u32, segment: &Segment<'_>) -> bool {
        self.sessions
            .get(slot)
            .is_some_and(|tracked| tracked.ended.is_some() || tracked.session.is_another_start(segment.seq))
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
            Some(standing) => (standing.session, standing.mode),
            None if self.orphaned.admits(flow) => (SessionNumber::EARLIER, None),
            None => {
                let slot = self.ranges.session_of(flow)?;
                (self.sessions.get(slot)?.number, None)
            }
        };
        world.tell(session, &SessionEvent::Used { mode, flow: *flow });
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

    /// Passes a segment to its session and acts on the events.
    fn converse<F: Firewall, O: Observer>(
        &mut self,
        slot: u32,
        segment: &Segment<'_>,
        direction: Direction,
        on_gap: OnGap,
        world: &mut World<'_, F, O>,
    ) -> Verdict {
        self.sessions.heard(slot, world.now);
        let Self { sessions, expectations, ranges, memory, .. } = self;
        let Some(tracked) = sessions.get_mut(slot) else { return Verdict::Accept };
        let Tracked { session, connection, number, rule, ended, origins, recorded, rewriters, buffered, .. } = tracked;
        let mut rewriters = rewriters.as_deref_mut();
        let policy = world.policy;
        let terms = policy.terms(*rule);
        let client = ClientKey::of(connection.client().address);
        let narrowed = memory.narrowed(&policy.limits, client, *buffered, segment.payload.len());
        let limits = narrowed.as_ref().unwrap_or(&policy.limits);
        let corrected = match session.judge(segment, direction, terms.holds_back(), limits) {
            Acceptance::AsSent => None,
            Acceptance::Corrected(payload) => Some(payload),
            Acceptance::Refused(anomaly) => {
                if narrowed.is_some() && anomaly == StreamAnomaly::TooMuchWaiting {
                    memory.note_refusal();
                }
                world.tell(*number, &SessionEvent::Anomaly(anomaly));
                return Verdict::Drop;
            }
        };
        let mut segment = *segment;
        let (seq, bytes) = (segment.seq, segment.payload.len());
        if let Some(payload) = &corrected {
            world.tell(*number, &SessionEvent::Anomaly(StreamAnomaly::DifferingCopy));
            segment.payload = payload;
        }
        if let Some(rewriters) = &mut rewriters {
            if session.is_ahead(&segment, direction) {
                let ack = rewriters.get(direction.opposite()).adjustment().acknowledgement(segment.ack);
                match on_gap {
                    OnGap::Wait => return Verdict::Later,
                    OnGap::Continue if direction == Direction::FromClient && terms.holds_back() => {
                        // A denied command must not pass unread; but a gap that nobody could read will not be
                        // retransmitted.
                        if !session.acknowledges_unread(&Segment { ack, ..segment }, direction) {
                            return Verdict::Drop;
                        }
                        session.give_up_before(&segment, direction);
                    }
                    OnGap::Continue => {}
                }
            }
            if !segment.payload.is_empty() {
                rewriters.of(direction).goes_on_from(segment.seq);
            }
            if segment.flags.has(Flags::ACK) {
                segment.ack = rewriters.of(direction.opposite()).acknowledged(segment.ack);
            }
        }
        let mut about = SessionContext {
            slot,
            number: *number,
            connection,
            terms,
            is_over: ended.is_some(),
            is_forged: origins.are_doubtful(),
            is_known: session.dialogue().is_known(),
            has_refused: false,
            must_drop: false,
            search: PortSearch::new(),
            expectations,
            ranges,
            segment: &segment,
            direction,
            rewriters,
            world,
        };
        about.encrypted_segment(&segment, direction);
        let mut reader = session.segment(&segment, direction, limits);
        while let Some(output) = reader.advance() {
            match output {
                SessionOutput::Bytes(direction, place, bytes) => {
                    about.world.observer.read(about.number, direction, place, bytes);
                }
                SessionOutput::Line(event, line, dialogue) => about.event(event, dialogue, &line),
                SessionOutput::NotFtp => about.not_ftp(),
                SessionOutput::Anomaly(anomaly) => {
                    if narrowed.is_some() && anomaly == StreamAnomaly::TooMuchWaiting {
                        memory.note_refusal();
                    }
                    about.tell(&SessionEvent::Anomaly(anomaly));
                }
            }
        }
        let ending = reader.ending();
        let has_refused = about.has_refused;
        let mut verdict = about.verdict(session);
        if has_refused {
            session.refuse(direction);
        }
        if verdict == Verdict::Accept {
            // A server may leave an urgent byte out of its stream. A replaced packet has no urgent pointer.
            let is_urgent = direction == Direction::FromClient && segment.flags.has(Flags::URG) && terms.holds_back();
            let payload = match corrected {
                None if is_urgent => Some(segment.payload.to_vec()),
                corrected => corrected,
            };
            verdict = payload.map_or(Verdict::Accept, |payload| Verdict::Replace(Replacement { seq, payload }));
        }
        // Of an encrypted session it may matter how far it has come. And where commands are held back, what is not FTP is
        // read on: its server may take it for FTP.
        let may_go_unread =
            if session.dialogue().is_encrypted() { !ranges.is_planned(slot) } else { !terms.holds_back() };
        let progress = match session.dialogue().progress() {
            Progress::Unreadable if !may_go_unread => Progress::Unknown,
            progress => progress,
        };
        if progress != *recorded {
            *recorded = progress;
            world.firewall.record(connection, progress);
        }
        self.classify(slot, (direction, bytes), world.now);
        match ending {
            None => {}
            Some(Ending::Finished) => self.end_for_now(slot, Ended::Finished, world),
            Some(Ending::Reset) => self.end_for_now(slot, Ended::Reset, world),
        }
        verdict
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
            world.tell(number, &SessionEvent::Closed { expectation, why: Closed::SessionEnded });
        }
        if let Some(port_range) = self.ranges.remove(slot) {
            world.firewall.close_port_range(&port_range);
        }
        self.close_orphaned(&flow, world);
        world.tell(number, &SessionEvent::Ended(how));
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
