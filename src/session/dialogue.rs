//! What the two ends have said, as far as it decides whether an announcement counts.
//!
//! Lines in, meanings out. Knows nothing of packets, policy or time.

mod excerpted;

use std::fmt::Write as _;
use std::ops::Range;

use super::asked::{Asked, CommandNumber, Unanswered};
use super::excerpt::Excerpt;
use crate::ftp::command::{Command, Said, Verb};
use crate::ftp::notation::{Announced, Found, Notation};
use crate::ftp::reply::{Heard, Meaning, Reply, ReplyReader};
use crate::ftp::{Line, Mode};
use crate::packet::{Direction, Seq};

/// How much of a user's name is kept.
const LONGEST_NAME: usize = 64;

/// `PASV` and a line feed.
const SHORTEST_QUESTION: usize = 5;

/// A line that names where a data connection will go, and how it stands in the dialogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement<'a> {
    /// How it was announced.
    pub mode: Mode,
    /// What it names; none if that cannot be read.
    pub named: Option<Announced>,
    /// Which command it was, where the server's answer will be known as its answer.
    pub number: Option<CommandNumber>,
    /// How it stands.
    pub standing: Standing,
    /// Where it is written; none where it does not stand in one piece.
    pub written: Option<Written<'a>>,
}

/// The bytes of an announcement that name the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written<'a> {
    /// The line.
    pub line: Line<'a>,
    /// Where in its text the address stands.
    pub span: Range<usize>,
}

impl Written<'_> {
    /// Where the address stands in the stream.
    pub fn place(&self) -> Seq {
        self.line.start + self.span.start
    }
}

/// What the dialogue says about an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Both ends have spoken FTP so far.
    pub is_ftp: bool,
    /// The client asked for it; always so where the client itself announces.
    pub asked_for: bool,
    /// Somebody is logged in, as far as we know.
    pub logged_in: bool,
    /// The client said before that it would use nothing but EPSV.
    pub extended_only: bool,
}

/// What a line means to those outside.
#[derive(Debug, PartialEq)]
pub enum Event<'a> {
    /// Nothing that matters here.
    Nothing,
    /// The client gave a command; the argument only where no secret can be in it.
    Said(&'static str, Option<&'a [u8]>),
    /// The client gave a command that FTP does not know: its first word.
    SaidUnknown(&'a [u8]),
    /// One end announced where it listens.
    Announced(Announcement<'a>),
    /// The server refused the announcement that was the command of this number.
    AnnouncementRefused(CommandNumber),
    /// The server let the user in.
    LoggedIn,
    /// What follows is not text any more.
    Encrypted,
    /// This is some other protocol.
    NotFtp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Login {
    Out,
    In,
    /// The session was picked up in the middle, or something that the server said was not heard: it had its chance to log
    /// in.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    /// Nothing has been said that would tell.
    Undecided,
    Ftp,
    Other,
    /// TLS, mostly: nothing can be read.
    Secret,
}

/// One session's dialogue.
#[derive(Debug)]
pub struct Dialogue {
    unanswered: Unanswered,
    replies: ReplyReader,
    login: Login,
    language: Language,
    greeted: bool,
    picked_up: bool,
    extended_only: bool,
    encryption_requested: bool,
    /// Whether all commands and replies were heard, so that it is known which answers which.
    in_step: bool,
    /// A hole in what the server said that the client has no part in.
    hole: Hole,
    /// What waits for an answer where only an excerpt of the dialogue is heard; then it is not `unanswered`.
    excerpt: Option<Box<Excerpt>>,
    user: Option<Box<str>>,
}

/// What is known of bytes that one end has heard and we have not.
#[derive(Debug, Default)]
struct Hole {
    /// Up to where the client has heard the server, if that is farther than we have.
    client_heard: Option<Seq>,
    /// The first command that it gave having heard so much.
    known_behind: Option<(CommandNumber, Seq)>,
    /// Up to where the server has heard the client, if a question for an address may be missing here.
    server_heard: Option<Seq>,
    /// Up to where what is missing has been answered.
    answered: Option<Seq>,
}

impl Hole {
    /// The server answers what was not heard, if there is anything. Whether a question may be among it.
    fn is_answered(&mut self) -> bool {
        let heard = self.server_heard.take();
        self.answered = heard.or(self.answered);
        heard.is_some()
    }

    /// The client goes on after something that it alone has heard; it may have been let in by that. Who only claims to
    /// have heard it gains nothing: a server takes no segment that acknowledges what was never sent.
    fn may_hold_a_login(&self) -> bool {
        self.client_heard.is_some()
    }
}

impl Dialogue {
    /// A dialogue that is heard from its first line on.
    pub fn from_the_start() -> Self {
        Self {
            unanswered: Unanswered::default(),
            replies: ReplyReader::default(),
            login: Login::Out,
            language: Language::Undecided,
            greeted: false,
            picked_up: false,
            extended_only: false,
            encryption_requested: false,
            in_step: true,
            hole: Hole::default(),
            excerpt: None,
            user: None,
        }
    }

    /// A dialogue that was going on before it was heard: it may have been greeted, and somebody may be logged in.
    pub fn from_the_middle() -> Self {
        Self { login: Login::Unknown, greeted: true, picked_up: true, in_step: false, ..Self::from_the_start() }
    }

    /// Whether enough is known to do without whatever announces nothing: both ends talk FTP, whoever has to be is
    /// logged in, and nothing is under way.
    pub fn is_settled(&self) -> bool {
        let is_quiet = self.unanswered.is_empty() && !self.replies.is_inside();
        self.language == Language::Ftp && self.greeted && self.login != Login::Out && is_quiet
    }

    /// Whoever says the following lines has heard the other up to there; of that, `unheard` bytes never came here.
    pub fn speaker_has_heard(&mut self, speaker: Direction, place: Seq, unheard: usize) {
        if let Some(excerpt) = &mut self.excerpt {
            excerpt.speaker_has_heard(place);
            return;
        }
        match speaker {
            Direction::FromClient => self.hole.client_heard = (unheard > 0).then_some(place),
            Direction::FromServer => {
                let unanswered = self
                    .hole
                    .answered
                    .map_or(unheard, |answered| usize::try_from(place - answered).unwrap_or(0).min(unheard));
                self.hole.server_heard = (unanswered >= SHORTEST_QUESTION).then_some(place);
            }
        }
    }

    /// Whether its beginning was not heard.
    pub fn is_picked_up(&self) -> bool {
        self.picked_up
    }

    /// Whether nothing in it can be read any more.
    pub fn is_encrypted(&self) -> bool {
        self.language == Language::Secret
    }

    /// Whether the server is known to have let the user in.
    pub fn is_logged_in(&self) -> bool {
        self.login == Login::In
    }

    /// Whether it is encrypted because the client asked for that.
    pub fn is_encryption_requested(&self) -> bool {
        self.encryption_requested
    }

    /// Whether it turned out not to be FTP.
    pub fn is_other_protocol(&self) -> bool {
        self.language == Language::Other
    }

    /// Reads a little of it, so that all of it is near when it is needed.
    pub(super) fn touch(&self) -> u32 {
        u32::from(self.is_encrypted()) ^ u32::from(self.unanswered.is_beyond()) ^ u32::from(self.user.is_some())
    }

    /// Who the client said it is.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Takes the client's next line.
    pub fn client_says<'a>(&mut self, line: &Line<'a>) -> Event<'a> {
        if self.language == Language::Secret {
            return Event::Nothing;
        }
        let command = match Command::parse(line) {
            Said::Command(command) => command,
            Said::Nothing => {
                self.ask(Asked::Nothing, line);
                return Event::Nothing;
            }
            Said::Unknown(word) => {
                self.ask(Asked::Other, line);
                return self.client_says_something_else(line, word);
            }
        };
        if self.language == Language::Undecided {
            self.language = Language::Ftp;
        }
        self.client_commands(line, &command)
    }

    /// A client of FTP begins with a command of FTP. What begins otherwise is not believed later either: the body
    /// of an HTTP request can hold any line.
    fn client_says_something_else<'a>(&mut self, line: &Line<'a>, word: &'a [u8]) -> Event<'a> {
        // Where the session was picked up, this may be the end of a line; unless no line of FTP holds such bytes.
        let decided = !self.picked_up || line.text.iter().any(u8::is_ascii_control);
        if self.language == Language::Undecided && decided {
            return self.is_not_ftp();
        }
        Event::SaidUnknown(word)
    }

    fn client_commands<'a>(&mut self, line: &Line<'a>, command: &Command<'a>) -> Event<'a> {
        let asked = match command.verb {
            Verb::Announce(mode) => {
                let number = self.ask(Asked::Announce(mode), line);
                let found = Notation::of(mode).read(command.argument).filter(|_| line.whole);
                let before = line.text.len() - command.argument.len();
                return Event::Announced(self.announcement(mode, found, number, true, Some((line, before))));
            }
            Verb::Ask(mode) => Asked::Ask(mode),
            Verb::AskExtendedOnly => {
                self.extended_only = true;
                Asked::ExtendedOnly
            }
            Verb::User => {
                self.user = name(command.argument);
                Asked::User
            }
            Verb::Secret => Asked::Secret,
            Verb::Reinitialize => Asked::Reinitialize,
            Verb::Secure => Asked::Secure,
            Verb::Other => Asked::Other,
        };
        let is_known_later = self.ask(asked, line).is_some();
        if !is_known_later && matches!(asked, Asked::User | Asked::Reinitialize) {
            // Its answer will not be recognised as such. In doubt nobody is logged in.
            self.login = Login::Out;
        }
        Event::Said(command.name, command.is_public.then_some(command.argument))
    }

    /// The client gave a command that will be answered. Its number, if its answer will be known.
    fn ask(&mut self, asked: Asked, line: &Line<'_>) -> Option<CommandNumber> {
        if let Some(excerpt) = &mut self.excerpt {
            return Some(excerpt.push(asked, line.end));
        }
        let number = self.unanswered.push(asked)?;
        let Hole { client_heard, known_behind, .. } = &mut self.hole;
        if let Some(heard) = *client_heard
            && known_behind.is_none_or(|(_, known)| known != heard)
        {
            *known_behind = Some((number, heard));
        }
        Some(number)
    }

    /// Takes the server's next line.
    pub fn server_says<'a>(&mut self, line: &Line<'a>) -> Event<'a> {
        if self.language == Language::Secret {
            return Event::Nothing;
        }
        if let Some(excerpt) = &mut self.excerpt {
            excerpt.line_at(line.start);
        }
        match self.replies.line(line.text) {
            Heard::Reply(reply) => self.server_replies(Some(line), &reply),
            Heard::Part => Event::Nothing,
            Heard::Noise if self.greeted => {
                self.excerpt.iter_mut().for_each(|excerpt| excerpt.break_off());
                Event::Nothing
            }
            Heard::Noise => self.is_not_ftp(),
        }
    }

    /// A reply ended with this line, or was interrupted.
    fn server_replies<'a>(&mut self, line: Option<&Line<'a>>, reply: &Reply<'_>) -> Event<'a> {
        if self.excerpt.is_some() {
            return self.server_replies_in_excerpt(line, reply);
        }
        match reply.meaning {
            Meaning::Preliminary => Event::Nothing,
            _ if !self.greeted => {
                // Nothing else than 220 invites to talk; a server that is full says 421 and hangs up.
                self.greeted = reply.meaning == Meaning::Ready;
                Event::Nothing
            }
            Meaning::Announce(mode) => {
                let was_heard = self.unanswered.pop_through(|kind| kind == Asked::Ask(mode)).is_some();
                // Or the question was not heard, and this is the first that was heard of the server behind it.
                let asked_for = was_heard || self.hole.is_answered();
                if !was_heard {
                    self.unanswered.pop(reply.code, self.in_step);
                }
                self.server_announces(mode, line, reply, asked_for)
            }
            Meaning::LoggedIn => {
                let is_login = |kind| matches!(kind, Asked::User | Asked::Secret | Asked::Reinitialize);
                match self.unanswered.pop_through(is_login) {
                    Some(Asked::User | Asked::Secret) => {}
                    // It should be 220, but there are servers that say 230.
                    Some(_) => {
                        self.start_over();
                        return Event::Nothing;
                    }
                    None => return self.server_answers(reply),
                }
                self.login = Login::In;
                if self.language == Language::Other { Event::Nothing } else { Event::LoggedIn }
            }
            Meaning::Secured => {
                let was_asked = self.unanswered.pop_through(|kind| kind == Asked::Secure).is_some();
                if !was_asked && !self.unanswered.is_beyond() {
                    return self.server_answers(reply);
                }
                self.language = Language::Secret;
                self.encryption_requested = was_asked;
                Event::Encrypted
            }
            Meaning::Ready | Meaning::NeedSecret | Meaning::NotLoggedIn | Meaning::Done | Meaning::Failed => {
                self.server_answers(reply)
            }
        }
    }

    fn server_announces<'a>(
        &self,
        mode: Mode,
        line: Option<&Line<'a>>,
        reply: &Reply<'_>,
        asked_for: bool,
    ) -> Event<'a> {
        let is_whole = line.is_some_and(|line| line.whole);
        let found = Notation::of(mode).find(reply.text).filter(|_| is_whole);
        let line = line.map(|line| (line, line.text.len() - reply.text.len()));
        Event::Announced(self.announcement(mode, found, None, asked_for, line))
    }

    /// A reply that answers the first command that has no answer, whatever that was.
    fn server_answers(&mut self, reply: &Reply<'_>) -> Event<'static> {
        let answered = self.unanswered.pop(reply.code, self.in_step);
        if answered.is_none() {
            // It answers what was not heard.
            self.hole.is_answered();
        }
        let refused = matches!(reply.meaning, Meaning::Failed | Meaning::NotLoggedIn);
        match (answered, reply.meaning) {
            (Some((Asked::User, _)), Meaning::NeedSecret) => self.login = Login::Out,
            // Asking for another user, while logged in, may be refused and change nothing.
            (Some((Asked::User, _)), Meaning::NotLoggedIn) => {}
            (_, Meaning::NotLoggedIn) => self.login = Login::Out,
            (Some((Asked::Reinitialize, _)), Meaning::Ready | Meaning::Done) => self.start_over(),
            (Some((Asked::ExtendedOnly, _)), Meaning::Failed) => self.extended_only = false,
            _ => {}
        }
        match answered {
            Some((Asked::Announce(_), number)) if refused => Event::AnnouncementRefused(number),
            _ => Event::Nothing,
        }
    }

    /// The server took a REIN.
    fn start_over(&mut self) {
        self.login = Login::Out;
        self.extended_only = false;
        self.user = None;
    }

    /// Some of the client's lines were lost. The server's answers will show what they were, or not.
    pub fn client_was_not_heard(&mut self) {
        match &mut self.excerpt {
            Some(excerpt) => excerpt.client_was_not_read(),
            None => self.unanswered.clear(),
        }
        self.in_step = false;
    }

    /// Some of the server's lines were lost, up to there: which commands they answered is unknown, except that they
    /// answered none that the client gave when it had heard them. A passive announcement counts again when it is asked
    /// for again. A reply of several lines that had begun ends here, with what its code says. And what was lost may have let
    /// the user in: a server has no address to announce, and takes none, before that.
    pub fn server_was_not_heard(&mut self, resumes: Seq) -> Event<'static> {
        let event = match self.replies.interrupt() {
            Some(reply) => self.server_replies(None, &reply),
            None => Event::Nothing,
        };
        let known = self.hole.known_behind.take().filter(|(_, heard)| !resumes.is_after(*heard));
        if !known.is_some_and(|(number, _)| self.unanswered.forget_before(number)) {
            self.unanswered.clear();
        }
        if self.login == Login::Out {
            self.login = Login::Unknown;
        }
        self.in_step = false;
        self.greeted = true;
        event
    }

    fn is_not_ftp(&mut self) -> Event<'static> {
        if std::mem::replace(&mut self.language, Language::Other) == Language::Other {
            return Event::Nothing;
        }
        Event::NotFtp
    }

    /// `line` comes with the length of what stands in it before the text in which the announcement was found.
    fn announcement<'a>(
        &self,
        mode: Mode,
        found: Option<Found>,
        number: Option<CommandNumber>,
        asked_for: bool,
        line: Option<(&Line<'a>, usize)>,
    ) -> Announcement<'a> {
        let standing = Standing {
            is_ftp: self.greeted && self.language != Language::Other,
            asked_for,
            logged_in: self.login != Login::Out || self.hole.may_hold_a_login(),
            extended_only: self.extended_only,
        };
        let named = found.as_ref().map(|found| found.announced);
        let written = found.zip(line).filter(|(_, (line, _))| line.verbatim).map(|(found, (line, before))| {
            let Range { start, end } = found.span;
            Written { line: *line, span: before + start..before + end }
        });
        Announcement { mode, named, number, standing, written }
    }
}

/// A name as it may be printed: nothing in it that a terminal or a log would take for more than text.
fn name(argument: &[u8]) -> Option<Box<str>> {
    let argument = argument.trim_ascii();
    let mut name = String::new();
    for letter in String::from_utf8_lossy(&argument[..argument.len().min(LONGEST_NAME)]).chars() {
        if letter.is_control() {
            let _ = write!(name, "{}", letter.escape_default());
        } else {
            name.push(letter);
        }
    }
    (!name.is_empty()).then(|| name.into_boxed_str())
}

#[cfg(test)]
#[path = "dialogue_tests.rs"]
mod tests;
