//! Acts on the events of a session: opens and closes pinholes, refuses announcements, reports events.

use super::expectations::{Expectations, PinholeEntry};
use super::port_search::PortSearch;
use super::ranges::Ranges;
use super::{Observer, SessionEvent, SessionNumber, World};
use crate::core::expectation::{Closed, Expectation, Refusal};
use crate::core::ftp::Line;
use crate::core::kernel::Firewall;
use crate::core::net::{Connection, Direction, Segment};
use crate::core::policy::Terms;
use crate::core::seqadj::Rewriters;
use crate::core::session::{Announcement, Dialogue, Event};
use crate::core::tracker::admission;

/// A session while its events are handled, with everything that this needs.
pub(super) struct SessionContext<'a, 'w, F, O> {
    pub(super) slot: u32,
    pub(super) number: SessionNumber,
    pub(super) connection: &'a Connection,
    pub(super) terms: &'a Terms,
    /// The session has ended: announcements are refused.
    pub(super) is_over: bool,
    /// One end seems to have sent packets in the other's name.
    pub(super) is_forged: bool,
    /// The session was read from its start, or the connection's mark says that an earlier run did.
    pub(super) is_known: bool,
    /// The segment holds an announcement that was refused.
    pub(super) has_refused: bool,
    /// The segment contains bytes that must not reach the receiver, and could not be replaced.
    pub(super) must_drop: bool,
    /// What is left for the segment's announcements of the search for outside ports.
    pub(super) search: PortSearch,
    pub(super) expectations: &'a mut Expectations,
    pub(super) ranges: &'a mut Ranges,
    /// The segment with the events.
    pub(super) segment: &'a Segment<'a>,
    pub(super) direction: Direction,
    pub(super) rewriters: Option<&'a mut Rewriters>,
    pub(super) world: &'a mut World<'w, F, O>,
}

impl<F: Firewall, O: Observer> SessionContext<'_, '_, F, O> {
    pub(super) fn tell(&mut self, news: &SessionEvent<'_>) {
        self.world.tell(self.number, news);
    }

    pub(super) fn event(&mut self, event: Event<'_>, dialogue: &Dialogue, line: &Line<'_>) {
        let is_announcement = matches!(event, Event::Announced(_));
        match event {
            Event::Nothing => {}
            Event::Said(command, argument) => self.tell(&SessionEvent::Said { command, argument }),
            Event::Announced(announcement) => self.announced(&announcement),
            Event::AnnouncementRefused(command) => {
                if let Some(PinholeEntry { expectation, .. }) = self.expectations.remove_of_command(self.slot, command)
                {
                    self.world.firewall.close(&expectation);
                    self.tell(&SessionEvent::Closed { expectation, why: Closed::RefusedByServer });
                }
            }
            Event::LoggedIn => self.tell(&SessionEvent::LoggedIn { user: dialogue.user() }),
            Event::Encrypted => self.encrypted(dialogue.is_encryption_requested()),
            Event::NotFtp => self.not_ftp(),
        }
        if self.direction == Direction::FromClient
            && let Some(command) = self.hold_back_denied(line)
            && !is_announcement
        {
            self.tell(&SessionEvent::Denied { command: &command });
        }
    }

    /// The dialogue is not FTP.
    pub(super) fn not_ftp(&mut self) {
        self.tell(&SessionEvent::NotFtp);
    }

    fn announced(&mut self, announcement: &Announcement<'_>) {
        let mode = announcement.mode;
        match self.expect(announcement) {
            Ok(expectation) => {
                let named = announcement.named.filter(|named| admission::instead(named, &expectation).is_some());
                let rewritten_from = named.and_then(|_| admission::named(announcement, self.connection));
                self.tell(&SessionEvent::Expected { mode, expectation, rewritten_from });
            }
            Err(why) => {
                let to = admission::named(announcement, self.connection);
                self.has_refused = true;
                self.tell(&SessionEvent::Refused { mode, to, why });
            }
        }
    }

    fn expect(&mut self, announcement: &Announcement<'_>) -> Result<Expectation, Refusal> {
        if self.is_over {
            return Err(Refusal::SessionOver);
        }
        if self.is_forged {
            return Err(Refusal::Forged);
        }
        let decide = |announcement: &_| admission::decide(announcement, self.connection, self.terms, self.world.now);
        let expectation = match decide(announcement) {
            // An earlier run rewrote this line, so it had read the whole line and the command before it.
            Err(Refusal::NotAskedFor | Refusal::Ambiguous) if self.was_replaced_before(announcement) => {
                let mut known = announcement.clone();
                known.standing.asked_for = true;
                known.standing.is_plain = true;
                decide(&known)
            }
            decided => decided,
        }?;
        if self.connection.is_translated() {
            return self.expect_translated(announcement, expectation);
        }
        self.admit(announcement, &expectation)?;
        Ok(expectation)
    }
}
