//! What the events of a session lead to: pinholes, refusals, news.

use super::expectations::{Expectations, Standing};
use super::ranges::Ranges;
use super::{News, Observer, SessionNumber, World};
use crate::decision;
use crate::expectation::{Closed, Expectation, Refusal};
use crate::firewall::Firewall;
use crate::ftp::Line;
use crate::packet::{Connection, Direction, Segment};
use crate::policy::Terms;
use crate::rewrite::Courses;
use crate::session::{Announcement, Dialogue, Event};

/// A session whose events are being acted on, and what that takes.
pub(super) struct About<'a, 'w, F, O> {
    pub(super) slot: u32,
    pub(super) number: SessionNumber,
    pub(super) connection: &'a Connection,
    pub(super) terms: &'a Terms,
    pub(super) expectations: &'a mut Expectations,
    pub(super) ranges: &'a mut Ranges,
    /// The segment that brought them.
    pub(super) segment: &'a Segment<'a>,
    pub(super) direction: Direction,
    pub(super) courses: Option<&'a mut Courses>,
    pub(super) world: &'a mut World<'w, F, O>,
}

impl<F: Firewall, O: Observer> About<'_, '_, F, O> {
    pub(super) fn tell(&mut self, news: &News<'_>) {
        self.world.tell(self.number, news);
    }

    pub(super) fn event(&mut self, event: Event<'_>, dialogue: &Dialogue, line: Option<&Line<'_>>) {
        match event {
            Event::Nothing => {}
            Event::Said(command, argument) => {
                self.tell(&News::Said { command, argument });
                if self.is_denied(command) {
                    self.deny(command, line);
                }
            }
            Event::SaidUnknown(word) => {
                let command = std::str::from_utf8(word).ok();
                if let Some(command) = command.and_then(|command| self.terms.denied(command)) {
                    self.deny(command, line);
                }
            }
            Event::Announced(announcement) => {
                self.announced(&announcement);
                let command = announcement.mode.command();
                if announcement.mode.is_active()
                    && self.is_denied(command)
                    && let Some(line) = line
                {
                    self.hold_back(line, command.len());
                }
            }
            Event::AnnouncementRefused(command) => {
                if let Some(Standing { expectation, .. }) = self.expectations.remove_of_command(self.slot, command) {
                    self.world.firewall.close(&expectation);
                    self.tell(&News::Closed { expectation, why: Closed::RefusedByServer });
                }
            }
            Event::LoggedIn => self.tell(&News::LoggedIn { user: dialogue.user() }),
            Event::Encrypted => self.encrypted(dialogue.is_encryption_requested()),
            Event::NotFtp => {
                self.world.firewall.stop_reading(self.connection);
                self.tell(&News::NotFtp);
            }
        }
    }

    fn deny(&mut self, command: &str, line: Option<&Line<'_>>) {
        if let Some(line) = line {
            self.hold_back(line, command.len());
        }
        self.tell(&News::Denied { command });
    }

    fn announced(&mut self, announcement: &Announcement<'_>) {
        let mode = announcement.mode;
        match self.expect(announcement) {
            Ok(expectation) => {
                let named = announcement.named.filter(|named| decision::instead(named, &expectation).is_some());
                let rewritten_from = named.and_then(|_| decision::named(announcement, self.connection));
                self.tell(&News::Expected { mode, expectation, rewritten_from });
            }
            Err(why) => {
                let to = decision::named(announcement, self.connection);
                self.tell(&News::Refused { mode, to, why });
            }
        }
    }

    fn expect(&mut self, announcement: &Announcement<'_>) -> Result<Expectation, Refusal> {
        let decide = |announcement: &_| decision::decide(announcement, self.connection, self.terms, self.world.now);
        let expectation = match decide(announcement) {
            // Whoever rewrote it before has heard the question.
            Err(Refusal::NotAskedFor) if self.was_replaced_before(announcement) => {
                let mut asked_for = announcement.clone();
                asked_for.standing.asked_for = true;
                decide(&asked_for)
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
