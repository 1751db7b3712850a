//! The dialogue where only an excerpt of it is heard: what names an address or answers it, and what changes who is
//! logged in.
//!
//! Which command a reply answers cannot be counted then. Where the two stand has to do.

use super::{Asked, Dialogue, Event, Hole, Language, Login};
use crate::ftp::Line;
use crate::ftp::command::{Command, Said, Verb};
use crate::ftp::reply::{Meaning, Reply};
use crate::session::asked::Unanswered;
use crate::session::excerpt::{Excerpt, is_about_files};

impl Dialogue {
    /// From here on only an excerpt is heard: what names an address or answers it, and what changes who is logged in.
    pub fn expect_excerpts(&mut self) {
        self.hole = Hole::default();
        self.excerpt = Some(Box::new(Excerpt::new(self.unanswered.next_number())));
    }

    /// Excerpts were all that was heard for some time. Whoever read the start of it found it to be FTP.
    pub fn continue_in_excerpts(&mut self) {
        if self.language == Language::Undecided {
            self.language = Language::Ftp;
        }
        self.client_was_not_heard();
    }

    /// From here on all is heard again.
    pub fn expect_all(&mut self) {
        if let Some(excerpt) = self.excerpt.take() {
            self.unanswered = Unanswered::starting_at(excerpt.next_number());
            self.replies.interrupt();
            self.in_step = false;
        }
    }

    /// Whether only an excerpt is heard.
    pub fn is_excerpt(&self) -> bool {
        self.excerpt.is_some()
    }

    /// Takes the beginning of a client's line whose end was not read.
    pub fn client_broke_off<'a>(&mut self, line: &Line<'a>) -> Event<'a> {
        match Command::parse(line) {
            Said::Command(Command { verb: Verb::Announce(_), .. }) => self.client_says(line),
            _ => Event::Nothing,
        }
    }

    /// Some of the server's lines were not read. A reply of several lines that had begun counts by its code.
    pub fn server_was_not_read(&mut self) -> Event<'static> {
        self.excerpt.iter_mut().for_each(|excerpt| excerpt.break_off());
        match self.replies.interrupt() {
            Some(reply) => self.server_replies(None, &reply),
            None => Event::Nothing,
        }
    }

    /// A reply ended with this line, or was interrupted. There is no counting which command a reply answers; what the reply
    /// says, and where it stands, has to do.
    pub(super) fn server_replies_in_excerpt<'a>(&mut self, line: Option<&Line<'a>>, reply: &Reply<'_>) -> Event<'a> {
        let Some(excerpt) = &mut self.excerpt else { return Event::Nothing };
        let Some(end) = line.map(|line| line.end) else {
            excerpt.break_off();
            return self.server_means_in_excerpt(reply, None);
        };
        match reply.meaning {
            Meaning::Preliminary => {
                excerpt.pass_over(end);
                Event::Nothing
            }
            Meaning::Announce(mode) => {
                let asked_for = excerpt.answers_question(mode);
                excerpt.answer(reply.code, end);
                self.server_announces(mode, line, reply, asked_for)
            }
            _ => {
                let answered = excerpt.answer(reply.code, end);
                let was_announced = answered.filter(|answered| {
                    let is_refusal = matches!(reply.meaning, Meaning::Failed | Meaning::NotLoggedIn)
                        && (answered.is_sure || !is_about_files(reply.code));
                    matches!(answered.kind, Asked::Announce(_)) && is_refusal
                });
                let event = self.server_means_in_excerpt(reply, answered.map(|answered| answered.kind));
                was_announced.map_or(event, |answered| Event::AnnouncementRefused(answered.number))
            }
        }
    }

    /// What a reply that names no address changes, whichever command it answers, if that is not known.
    fn server_means_in_excerpt(&mut self, reply: &Reply<'_>, answered: Option<Asked>) -> Event<'static> {
        let Some(excerpt) = &mut self.excerpt else { return Event::Nothing };
        match reply.meaning {
            Meaning::LoggedIn if excerpt.has_begun_anew() => self.start_over(),
            Meaning::LoggedIn => {
                // The command that it answers, PASS, is among what is not read.
                let is_news = std::mem::take(&mut excerpt.user_was_given) || self.login != Login::In;
                self.login = Login::In;
                return if is_news { Event::LoggedIn } else { Event::Nothing };
            }
            Meaning::NeedSecret => {
                if excerpt.has_begun_anew() {
                    self.extended_only = false;
                }
                if std::mem::take(&mut excerpt.user_was_given) {
                    self.login = Login::Out;
                }
            }
            Meaning::NotLoggedIn => {
                // Asking for another user, while logged in, may be refused and change nothing.
                if !(std::mem::take(&mut excerpt.user_was_given) && self.login == Login::In) {
                    self.login = Login::Out;
                }
            }
            Meaning::Ready | Meaning::Done => {
                let is_meant = reply.meaning == Meaning::Ready || answered == Some(Asked::Reinitialize);
                if is_meant && excerpt.has_begun_anew() {
                    self.start_over();
                }
            }
            // Nobody asked: the beginning of this segment is not that of a reply.
            Meaning::Secured if !excerpt.wants_secrecy => {}
            Meaning::Secured => {
                self.language = Language::Secret;
                return Event::Encrypted;
            }
            Meaning::Failed => match answered {
                Some(Asked::ExtendedOnly) => self.extended_only = false,
                Some(Asked::Reinitialize) => excerpt.begins_anew = false,
                Some(Asked::User) => excerpt.user_was_given = false,
                Some(Asked::Secure) => excerpt.wants_secrecy = false,
                _ => {}
            },
            Meaning::Preliminary | Meaning::Announce(_) => {}
        }
        Event::Nothing
    }
}
