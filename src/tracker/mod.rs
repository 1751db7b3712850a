//! The table of sessions, and what their announcements lead to.
//!
//! Segments and the time come in; pinholes are opened and closed through a [`Firewall`], and whoever watches is told.
//! Everything is bounded by the policy's limits, and what a packet costs does not depend on how many sessions there
//! are. Knows nothing of where packets come from, nor of how the kernel holds a pinhole.

mod deadlines;
mod expectations;
mod news;
mod slab;
mod table;

use std::collections::BTreeMap;
use std::time::Duration;

pub use news::{Ended, News, Observer, SessionNumber};

use crate::decision;
use crate::expectation::{Closed, Corridor, Expectation, Refusal};
use crate::firewall::{Control, Firewall};
use crate::ftp::Mode;
use crate::packet::{Connection, Direction, Flags, Flow, Segment};
use crate::policy::{Policy, Terms, Tls};
use crate::session::{Announcement, Dialogue, Ending, Event, Session, Told};
use crate::time::Timestamp;
use expectations::{Expectations, Standing};
use table::{Table, Tracked};

/// How long the addresses of a session that ended are remembered: its last packets may still be under way.
const LINGER: Duration = Duration::from_secs(60);

/// How long a session may be silent for which a corridor is open: as long as the kernel remembers a silent connection.
const LONGEST_SILENCE: Duration = Duration::from_secs(5 * 24 * 3600);

/// What a [`Tracker`] is handed with every packet.
#[derive(Debug)]
pub struct World<'a, F, O> {
    /// The time.
    pub now: Timestamp,
    /// What the administrator allows.
    pub policy: &'a Policy,
    /// What admits data connections.
    pub firewall: &'a mut F,
    /// Whoever wants to know.
    pub observer: &'a mut O,
}

impl<F: Firewall, O: Observer> World<'_, F, O> {
    fn tell(&mut self, session: SessionNumber, news: &News<'_>) {
        self.observer.observe(self.now, session, news);
    }
}

/// What a [`Tracker`] made of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// It belongs to a session.
    Session,
    /// It belongs to no control connection, or to one that is over.
    NotOurs,
}

/// All sessions and their expectations.
#[derive(Debug, Default)]
pub struct Tracker {
    sessions: Table,
    expectations: Expectations,
    /// The corridors of encrypted sessions, by slot; only where a policy allows any.
    corridors: BTreeMap<u32, Corridor>,
    sessions_begun: u64,
}

impl Tracker {
    /// How many sessions are in the table, those that have just ended included.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// How many expectations stand.
    pub fn expectations(&self) -> usize {
        self.expectations.len()
    }

    /// All expectations that stand, and the sessions that announced them.
    pub fn standing(&self) -> impl Iterator<Item = (SessionNumber, Mode, &Expectation)> {
        self.expectations.iter().map(|one| (one.session, one.mode, &one.expectation))
    }

    /// All sessions that have not ended: number, addresses, and what was said.
    pub fn live(&self) -> impl Iterator<Item = (SessionNumber, &Connection, &Dialogue)> {
        let live = self.sessions.iter().filter(|tracked| tracked.ended.is_none());
        live.map(|tracked| (tracked.number, &tracked.connection, tracked.session.dialogue()))
    }

    /// Forgets everything but how many sessions there have been. Nothing is closed and nobody is told.
    pub fn forget(&mut self) {
        *self = Self { sessions_begun: self.sessions_begun, ..Self::default() };
    }

    /// The moment at which [`advance`](Self::advance) will have something to do, at the earliest.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        [self.expectations.next_expiry(), self.sessions.next_due()].into_iter().flatten().min()
    }

    /// Takes a segment as it was seen. Before it goes on, every pinhole that it announces stands.
    pub fn handle<F: Firewall, O: Observer>(&mut self, segment: &Segment<'_>, world: &mut World<'_, F, O>) -> Handled {
        let (slot, direction) = match self.sessions.find(&segment.flow) {
            Some(found) => found,
            None => match self.begin(segment, world) {
                Some(begun) => begun,
                None => return Handled::NotOurs,
            },
        };
        let Some(tracked) = self.sessions.get(slot) else { return Handled::NotOurs };
        let is_opened = segment.flags.has(Flags::SYN) && segment.flags.has(Flags::ACK);
        let reopens = is_opened && tracked.ended.is_some();
        if reopens || tracked.session.is_superseded_by(segment, direction) {
            self.end(slot, Ended::Replaced, world);
            self.sessions.remove(slot);
            return self.handle(segment, world);
        }
        if tracked.ended.is_some() {
            return Handled::NotOurs;
        }
        self.converse(slot, segment, direction, world);
        Handled::Session
    }

    /// Packets with these addresses will be handled next. Worth calling where several of them are at hand; it changes
    /// nothing but how long that will take.
    pub fn anticipate(&self, flows: &[Flow]) {
        self.sessions.anticipate(flows);
    }

    /// Lets time pass: what is due expires.
    pub fn advance<F: Firewall, O: Observer>(&mut self, world: &mut World<'_, F, O>) {
        let now = world.now;
        while let Some(Standing { expectation, session, .. }) = self.expectations.pop_expired(now) {
            world.firewall.close(&expectation);
            world.observer.observe(expectation.expires(), session, &News::Expired(expectation));
        }
        while self.sessions.next_due().is_some_and(|due| due <= now)
            && let Some(slot) = self.oldest(world.policy)
            && let Some(tracked) = self.sessions.get(slot)
            && tracked.due <= now
        {
            self.end(slot, Ended::Idle, world);
            self.sessions.remove(slot);
        }
    }

    /// The firewall admitted a data connection. Whose it is, if it was expected.
    pub fn admitted<F: Firewall, O: Observer>(
        &mut self,
        flow: &Flow,
        world: &mut World<'_, F, O>,
    ) -> Option<SessionNumber> {
        let (session, mode) = match self.expectations.remove(flow.source.address, flow.destination) {
            Some(standing) => (standing.session, Some(standing.mode)),
            None => {
                let (&slot, _) = self.corridors.iter().find(|(_, corridor)| corridor.matches(flow))?;
                (self.sessions.get(slot)?.number, None)
            }
        };
        world.tell(session, &News::Used { mode, flow: *flow });
        Some(session)
    }

    /// The policy is another one now: each session's rule is looked up anew. What stands goes on standing.
    pub fn follow(&mut self, policy: &Policy) {
        for tracked in self.sessions.iter_mut() {
            let Connection { original, .. } = tracked.connection;
            tracked.rule = policy.match_rule(original.source.address, original.destination.address);
        }
    }

    /// The kernel has forgotten the connection with these addresses: if it was a session, that is over.
    pub fn forgotten<F: Firewall, O: Observer>(&mut self, flow: &Flow, world: &mut World<'_, F, O>) {
        if let Some((slot, _)) = self.sessions.find(flow) {
            self.end(slot, Ended::Finished, world);
            self.sessions.remove(slot);
        }
    }

    /// Begins a session with a segment that belongs to none, if it belongs to a control connection at all.
    fn begin<F: Firewall, O: Observer>(
        &mut self,
        segment: &Segment<'_>,
        world: &mut World<'_, F, O>,
    ) -> Option<(u32, Direction)> {
        // The acknowledgements and resets that end a connection say nothing of one that would be worth following, and
        // a SYN alone costs its sender nothing: the server's answer to it begins a session.
        let is_opened = segment.flags.has(Flags::SYN) && segment.flags.has(Flags::ACK);
        if segment.flags.has(Flags::RST) || (!is_opened && segment.payload.is_empty()) {
            return None;
        }
        let Control { connection, is_unread, is_settled } = world.firewall.control_connection(&segment.flow)?;
        if is_unread && !segment.flags.has(Flags::SYN) {
            return None;
        }
        let direction = connection.direction_of(&segment.flow)?;
        while self.sessions.len() >= world.policy.limits.sessions.get() as usize {
            let oldest = self.oldest(world.policy)?;
            self.end(oldest, Ended::Evicted, world);
            self.sessions.remove(oldest);
        }
        self.sessions_begun += 1;
        let number = SessionNumber(self.sessions_begun);
        let session = Session::new(segment, is_settled);
        let picked_up = session.dialogue().is_picked_up();
        let rule = world.policy.match_rule(connection.client().address, connection.server().address);
        let due = world.now + world.policy.limits.idle;
        let slot = self.sessions.insert(Tracked {
            connection,
            number,
            rule,
            ended: None,
            last_heard: world.now,
            due,
            session,
        });
        world.tell(number, &News::Began { connection: &connection, picked_up });
        Some((slot, direction))
    }

    /// Hands a segment to its session and acts on what that tells.
    fn converse<F: Firewall, O: Observer>(
        &mut self,
        slot: u32,
        segment: &Segment<'_>,
        direction: Direction,
        world: &mut World<'_, F, O>,
    ) {
        let Self { sessions, expectations, corridors, .. } = self;
        let Some(tracked) = sessions.get_mut(slot) else { return };
        tracked.last_heard = world.now;
        let Tracked { session, connection, number, rule, .. } = tracked;
        let policy = world.policy;
        let terms = policy.terms(*rule);
        let mut about = About { slot, number: *number, connection, terms, expectations, corridors, world };
        let ending = session.segment(segment, direction, &policy.limits, policy.capture.inspect, |told| match told {
            Told::Event(Event::Nothing, _) => {}
            Told::Event(event, dialogue) => about.event(event, dialogue),
            Told::Odd(oddity) => about.tell(&News::Odd(oddity)),
            Told::Settled => about.world.firewall.settled(about.connection),
        });
        match ending {
            None => {}
            Some(Ending::Finished) => self.end_for_now(slot, Ended::Finished, world),
            Some(Ending::Reset) => self.end_for_now(slot, Ended::Reset, world),
        }
    }

    /// Ends a session but remembers its addresses for a while.
    fn end_for_now<F: Firewall, O: Observer>(&mut self, slot: u32, how: Ended, world: &mut World<'_, F, O>) {
        self.end(slot, how, world);
        self.sessions.set_due(slot, world.now + LINGER);
    }

    /// Closes whatever a session had open.
    fn end<F: Firewall, O: Observer>(&mut self, slot: u32, how: Ended, world: &mut World<'_, F, O>) {
        let Some(tracked) = self.sessions.get_mut(slot) else { return };
        if tracked.ended.replace(how).is_some() {
            return;
        }
        let number = tracked.number;
        while let Some(Standing { expectation, .. }) = self.expectations.pop_of(slot) {
            world.firewall.close(&expectation);
            world.tell(number, &News::Closed { expectation, why: Closed::SessionEnded });
        }
        if let Some(corridor) = self.corridors.remove(&slot) {
            world.firewall.close_corridor(&corridor);
        }
        world.tell(number, &News::Ended(how));
    }

    /// The session that was silent longest, with its deadline brought up to date.
    ///
    /// Deadlines are not moved with every packet, only when they are looked at: then those that turn out to be later
    /// are put where they belong. Each packet causes one such move at most, however the calls come.
    fn oldest(&mut self, policy: &Policy) -> Option<u32> {
        loop {
            let (slot, tracked) = self.sessions.first_due()?;
            let patience = match tracked.ended {
                Some(_) => LINGER,
                // An encrypted session is silent here however busy it is; its end is told from elsewhere.
                None if self.corridors.contains_key(&slot) => policy.limits.idle.max(LONGEST_SILENCE),
                None => policy.limits.idle,
            };
            let due = tracked.last_heard + patience;
            if due <= tracked.due {
                return Some(slot);
            }
            self.sessions.set_due(slot, due);
        }
    }
}

/// A session whose events are being acted on, and what that takes.
struct About<'a, 'w, F, O> {
    slot: u32,
    number: SessionNumber,
    connection: &'a Connection,
    terms: &'a Terms,
    expectations: &'a mut Expectations,
    corridors: &'a mut BTreeMap<u32, Corridor>,
    world: &'a mut World<'w, F, O>,
}

impl<F: Firewall, O: Observer> About<'_, '_, F, O> {
    fn tell(&mut self, news: &News<'_>) {
        self.world.tell(self.number, news);
    }

    fn event(&mut self, event: Event<'_>, dialogue: &Dialogue) {
        match event {
            Event::Nothing => {}
            Event::Said(command, argument) => {
                self.tell(&News::Said { command, argument });
                let secures = command == "AUTH" && self.terms.tls == Tls::Deny;
                if secures || self.terms.denies(command) {
                    self.tell(&News::Denied { command });
                }
            }
            Event::SaidUnknown(word) => {
                if let Some(command) = std::str::from_utf8(word).ok().and_then(|word| self.terms.denied(word)) {
                    self.tell(&News::Denied { command });
                }
            }
            Event::Announced(announcement) => self.announced(&announcement),
            Event::AnnouncementRefused(command) => {
                if let Some(Standing { expectation, .. }) = self.expectations.remove_of_command(self.slot, command) {
                    self.world.firewall.close(&expectation);
                    self.tell(&News::Closed { expectation, why: Closed::RefusedByServer });
                }
            }
            Event::LoggedIn => self.tell(&News::LoggedIn { user: dialogue.user() }),
            Event::Encrypted => self.encrypted(),
            Event::NotFtp => {
                self.world.firewall.stop_reading(self.connection);
                self.tell(&News::NotFtp);
            }
        }
    }

    fn announced(&mut self, announcement: &Announcement) {
        let mode = announcement.mode;
        match self.expect(announcement) {
            Ok(expectation) => self.tell(&News::Expected { mode, expectation }),
            Err(why) => {
                let to = decision::named(announcement, self.connection);
                self.tell(&News::Refused { mode, to, why });
            }
        }
    }

    fn expect(&mut self, announcement: &Announcement) -> Result<Expectation, Refusal> {
        let expectation = decision::decide(announcement, self.connection, self.terms, self.world.now)?;
        let owner = self.expectations.owner_of(&expectation);
        let per_session = usize::from(self.terms.pinholes_per_session.get());
        let in_all = self.world.policy.limits.pinholes.get() as usize;
        // One that replaces another takes no more room than that had.
        let is_full_here = owner != Some(self.slot) && self.expectations.count_of(self.slot) >= per_session;
        let is_full = owner.is_none() && self.expectations.len() >= in_all;
        // Behind so many commands the server's refusal of this one would not be recognised as such.
        let is_beyond = announcement.mode.is_active() && announcement.number.is_none();
        if is_full_here || is_full || is_beyond {
            return Err(Refusal::TooMany);
        }
        self.world.firewall.open(&expectation).map_err(|_| Refusal::NotOpened)?;
        self.expectations.insert(Standing {
            expectation,
            mode: announcement.mode,
            owner: self.slot,
            session: self.number,
            command: announcement.number,
        });
        Ok(expectation)
    }

    fn encrypted(&mut self) {
        let corridor = match self.terms.tls {
            Tls::Pass | Tls::Deny => None,
            Tls::Range(ports) => {
                let Connection { original, .. } = *self.connection;
                let corridor = Corridor { from: original.source.address, to: original.destination.address, ports };
                self.world.firewall.open_corridor(&corridor).is_ok().then_some(corridor)
            }
        };
        self.corridors.extend(corridor.map(|corridor| (self.slot, corridor)));
        self.world.firewall.stop_reading(self.connection);
        self.tell(&News::Encrypted { corridor });
    }
}

#[cfg(test)]
mod tests;
