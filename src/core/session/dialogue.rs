//! The dialogue of both ends: which reply answers which command, and whether a user is logged in.
//!
//! Lines in, events out. Knows nothing of packets, policy or time.

use std::ops::Range;

use memchr::memmem;

use super::announcement::{Announcement, AnnouncementState, Written};
use super::pending::{CommandNumber, PendingCommand, PendingCommands};
use crate::core::ftp::command::{Command, CommandLine, Verb};
use crate::core::ftp::notation::{Found, Notation};
use crate::core::ftp::printable::Printable;
use crate::core::ftp::reply::{Meaning, Reply, ReplyLine, ReplyReader};
use crate::core::ftp::{Line, Mode};
use crate::core::kernel::{SessionProgress, Synced};
use crate::core::net::Direction;

/// How much of a user's name is kept.
const LONGEST_NAME: usize = 64;

/// The type of a TLS record that is part of a handshake, and the first byte of its version.
const TLS_HANDSHAKE: u8 = 22;
const TLS_MAJOR: u8 = 3;

/// The longest line that an FTP client sends before a login.
const LONGEST_BEFORE_LOGIN: usize = 512;

/// The event that a line causes.
#[derive(Debug, PartialEq)]
pub enum Event<'a> {
    /// No event.
    Nothing,
    /// The client sent a command; the argument is given only if it cannot be secret.
    Command(&'static str, Option<&'a [u8]>),
    /// One end announced an address on which it listens.
    Announced(Announcement<'a>),
    /// The server refused the announcing command of this number.
    AnnouncementRefused(CommandNumber),
    /// A user logged in.
    LoggedIn,
    /// The session is encrypted from here on.
    Encrypted,
    /// The client began with a TLS handshake. The server has not answered yet.
    TlsOffered,
    /// The session is not FTP.
    NotFtp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// No user has logged in yet. Until then both ends may send only FTP.
    Undecided,
    Ftp,
    Other,
    /// Encrypted, mostly with TLS: nothing can be read.
    Encrypted,
}

/// One session's dialogue.
#[derive(Debug)]
pub struct Dialogue {
    pending: PendingCommands,
    replies: ReplyReader,
    protocol: Protocol,
    is_logged_in: bool,
    is_greeted: bool,
    /// The client has sent a command of FTP.
    has_commanded: bool,
    /// Its start was read, by this run or by an earlier one.
    has_known_start: bool,
    extended_only: bool,
    /// The client has asked for a list of files in a reply (STAT with a path). A file's name may hold what looks like
    /// the end of that reply and another reply: servers write such names as they are.
    lists_files: bool,
    encryption_requested: bool,
    /// The client began with a TLS handshake, and the server has not answered: its first bytes show whether it uses TLS.
    tls_offered: bool,
    /// The server has asked for security data (RFC 2228).
    awaits_security_data: bool,
    /// Whether all commands and replies were read, so that it is known which answers which.
    synced: bool,
    /// The next reply is the first one of this run; an earlier run may have read the command that it answers.
    may_answer_earlier_run: bool,
    /// The name of the user that is logged in.
    user: Option<Box<str>>,
    /// The name in the latest USER, if the next login can only be that user's.
    login_name: Option<Box<str>>,
}

impl Dialogue {
    /// A dialogue that is read from its start.
    pub fn from_start() -> Self {
        Self {
            pending: PendingCommands::default(),
            replies: ReplyReader::default(),
            protocol: Protocol::Undecided,
            is_logged_in: false,
            is_greeted: false,
            has_commanded: false,
            has_known_start: true,
            extended_only: false,
            lists_files: false,
            encryption_requested: false,
            tls_offered: false,
            awaits_security_data: false,
            synced: true,
            may_answer_earlier_run: false,
            user: None,
            login_name: None,
        }
    }

    /// A picked-up dialogue with this progress.
    pub fn picked_up(progress: SessionProgress, synced: Synced) -> Self {
        Self {
            protocol: match progress {
                SessionProgress::Unknown | SessionProgress::Ftp => Protocol::Undecided,
                SessionProgress::LoggedIn => Protocol::Ftp,
                SessionProgress::Unreadable => Protocol::Other,
            },
            is_logged_in: progress == SessionProgress::LoggedIn,
            is_greeted: true,
            has_commanded: progress != SessionProgress::Unknown,
            has_known_start: match progress {
                SessionProgress::Unknown => false,
                // If a client's bytes passed unread before a login: see `client_gap`.
                SessionProgress::Ftp => synced.client,
                SessionProgress::LoggedIn | SessionProgress::Unreadable => true,
            },
            synced: false,
            may_answer_earlier_run: synced.server,
            ..Self::from_start()
        }
    }

    /// Its progress, for the connection's mark.
    pub fn progress(&self) -> SessionProgress {
        match self.protocol {
            // The server's answer has to be read.
            Protocol::Other if self.tls_offered => SessionProgress::Unknown,
            Protocol::Encrypted | Protocol::Other => SessionProgress::Unreadable,
            _ if !self.has_known_start || self.lists_files => SessionProgress::Unknown,
            Protocol::Ftp | Protocol::Undecided if self.is_logged_in => SessionProgress::LoggedIn,
            Protocol::Ftp | Protocol::Undecided if self.is_greeted && self.has_commanded => SessionProgress::Ftp,
            Protocol::Ftp | Protocol::Undecided => SessionProgress::Unknown,
        }
    }

    /// Whether its start was read, by this run or by an earlier one.
    pub fn has_known_start(&self) -> bool {
        self.has_known_start
    }

    /// Whether it cannot be read any more.
    pub fn is_encrypted(&self) -> bool {
        self.protocol == Protocol::Encrypted
    }

    /// Whether a user is logged in.
    pub fn is_logged_in(&self) -> bool {
        self.is_logged_in
    }

    /// Whether it is encrypted after an AUTH of the client.
    pub fn is_encryption_requested(&self) -> bool {
        self.encryption_requested
    }

    /// Whether it turned out not to be FTP.
    pub fn is_other_protocol(&self) -> bool {
        self.protocol == Protocol::Other
    }

    /// The name of the user that is logged in, where it is certain.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The client has sent bytes. An FTP client waits for the greeting first, unless it uses implicit TLS.
    ///
    /// Until the server answers with TLS, such a session counts as not FTP.
    pub fn client_bytes(&mut self, bytes: &[u8]) -> Event<'static> {
        if self.is_greeted {
            return Event::Nothing;
        }
        if self.has_known_start && self.protocol == Protocol::Undecided && is_client_hello(bytes) {
            self.protocol = Protocol::Other;
            self.tls_offered = true;
            return Event::TlsOffered;
        }
        self.is_not_ftp()
    }

    /// The server has sent bytes.
    pub fn server_bytes(&mut self, bytes: &[u8]) -> Event<'static> {
        if !std::mem::take(&mut self.tls_offered) {
            return Event::Nothing;
        }
        if !matches!(bytes, [TLS_HANDSHAKE, TLS_MAJOR, ..]) {
            return Event::NotFtp;
        }
        self.protocol = Protocol::Encrypted;
        self.encryption_requested = true;
        Event::Encrypted
    }

    /// Handles the client's next line.
    pub fn client_line<'a>(&mut self, line: &Line<'a>) -> Event<'a> {
        if self.protocol == Protocol::Encrypted {
            return Event::Nothing;
        }
        let parsed = Command::parse(line);
        if line.may_continue {
            self.pending.next_may_be_continuation();
        }
        let is_out_of_place = self.protocol == Protocol::Undecided
            && self.has_known_start
            && !is_like_ftp(line, &parsed)
            && !(self.awaits_security_data && is_security_data(line, &parsed));
        // In a picked-up session, too: a header line, or a line that is not text.
        let is_no_command = match parsed {
            CommandLine::Unknown([.., b':']) => true,
            CommandLine::Unknown(_) => !self.has_known_start && line.text.iter().any(u8::is_ascii_control),
            CommandLine::Command(_) | CommandLine::Empty => false,
        };
        if is_out_of_place || is_no_command {
            self.expect_reply(PendingCommand::Other);
            return self.is_not_ftp();
        }
        match parsed {
            CommandLine::Command(command) => {
                self.has_commanded = true;
                self.client_commands(line, &command)
            }
            CommandLine::Empty => {
                self.expect_reply(PendingCommand::EmptyLine);
                Event::Nothing
            }
            CommandLine::Unknown(_) => {
                self.expect_reply(PendingCommand::Other);
                Event::Nothing
            }
        }
    }

    fn client_commands<'a>(&mut self, line: &Line<'a>, command: &Command<'a>) -> Event<'a> {
        self.lists_files |= command.name == "STAT" && !command.argument.is_empty();
        let asked = match command.verb {
            Verb::Announce(mode) => {
                let number = self.expect_reply(PendingCommand::Active(mode));
                let found = Notation::of(mode).read(command.argument).filter(|_| line.whole);
                let before = line.text.len() - command.argument.len();
                return Event::Announced(self.announcement(mode, found, number, true, (line, before)));
            }
            Verb::Ask(mode) => PendingCommand::Passive(mode),
            Verb::AskExtendedOnly => {
                self.extended_only = true;
                PendingCommand::EpsvAll
            }
            Verb::User => {
                // The reply to an earlier USER or PASS must not be taken for one to this.
                let is_only_one = !self.pending.may_have_login();
                self.login_name = is_only_one.then(|| name(command.argument)).flatten();
                PendingCommand::User
            }
            Verb::Secret => PendingCommand::Pass,
            Verb::Reinitialize => PendingCommand::Rein,
            Verb::Secure => PendingCommand::Auth,
            Verb::Abort => PendingCommand::Abor,
            Verb::Other => PendingCommand::Other,
        };
        let is_known_later = self.expect_reply(asked).is_some();
        if !is_known_later && matches!(asked, PendingCommand::User | PendingCommand::Rein) {
            // The reply to it will not be recognised. In doubt no user is logged in.
            self.is_logged_in = false;
        }
        Event::Command(command.name, command.is_public.then_some(command.argument))
    }

    /// Handles a line that may be only the end of a line, so nothing in it counts. If it looks like an announcement,
    /// it is reported: an earlier run may have read the beginning, or else a refusal is logged.
    pub fn may_announce<'a>(&self, line: &Line<'a>, sender: Direction) -> Event<'a> {
        let (mode, text) = match sender {
            Direction::FromClient => match Command::parse(line) {
                CommandLine::Command(Command { verb: Verb::Announce(mode), argument, .. }) => (mode, argument),
                _ => return Event::Nothing,
            },
            Direction::FromServer => match (Meaning::of(line.text), line.text.split_at_checked(4)) {
                (Some(Meaning::Announce(mode)), Some((_, text))) => (mode, text),
                _ => return Event::Nothing,
            },
        };
        let notation = Notation::of(mode);
        let found = match sender {
            Direction::FromClient => notation.read(text),
            Direction::FromServer => notation.find(text),
        };
        let before = line.text.len() - text.len();
        Event::Announced(self.announcement(mode, found, None, mode.is_active(), (line, before)))
    }

    /// The client sent a command that the server will answer. Returns its number, if the reply can be recognised.
    fn expect_reply(&mut self, command: PendingCommand) -> Option<CommandNumber> {
        self.pending.push(command)
    }

    /// Handles the server's next line.
    pub fn server_line<'a>(&mut self, line: &Line<'a>) -> Event<'a> {
        if self.protocol == Protocol::Encrypted {
            return Event::Nothing;
        }
        match self.replies.line(line.text) {
            ReplyLine::Reply(reply) => self.server_replies(line, &reply),
            ReplyLine::Part => Event::Nothing,
            ReplyLine::Other if self.is_greeted => Event::Nothing,
            ReplyLine::Other => self.is_not_ftp(),
        }
    }

    /// Whether the server has answered every command of the client.
    pub fn has_answered_all(&self) -> bool {
        self.synced && self.pending.is_empty()
    }

    /// Whether a reply of several lines has begun and not ended.
    pub fn is_inside_reply(&self) -> bool {
        self.replies.is_inside()
    }

    /// A reply ended with this line.
    fn server_replies<'a>(&mut self, line: &Line<'a>, reply: &Reply<'_>) -> Event<'a> {
        let may_answer_earlier_run = std::mem::take(&mut self.may_answer_earlier_run);
        match reply.meaning {
            Meaning::Preliminary => Event::Nothing,
            _ if !self.is_greeted => match reply.meaning {
                Meaning::Ready => {
                    self.is_greeted = true;
                    Event::Nothing
                }
                // A server that is full sends 421 and closes the connection, which is no event.
                Meaning::Failed | Meaning::NotLoggedIn => {
                    self.is_not_ftp();
                    Event::Nothing
                }
                _ => self.is_not_ftp(),
            },
            Meaning::Announce(mode) => {
                let asked_for = self.pending.pop_through(|kind| kind == PendingCommand::Passive(mode)).is_some();
                if !asked_for {
                    self.pending.pop(reply.code, self.synced);
                }
                self.server_announces(mode, line, reply, asked_for || may_answer_earlier_run)
            }
            Meaning::LoggedIn => {
                let is_login =
                    |kind| matches!(kind, PendingCommand::User | PendingCommand::Pass | PendingCommand::Rein);
                match self.pending.pop_through(is_login) {
                    Some(PendingCommand::User | PendingCommand::Pass) => {}
                    // It should be 220, but there are servers that say 230.
                    Some(_) => {
                        self.start_over();
                        return Event::Nothing;
                    }
                    None => return self.server_answers(reply),
                }
                if self.protocol == Protocol::Other {
                    return Event::Nothing;
                }
                self.is_logged_in = true;
                self.user.clone_from(&self.login_name);
                self.protocol = Protocol::Ftp;
                Event::LoggedIn
            }
            Meaning::Secured => {
                let was_asked = self.pending.pop_through(|kind| kind == PendingCommand::Auth).is_some();
                if !was_asked && !self.pending.is_beyond() {
                    return self.server_answers(reply);
                }
                if self.protocol == Protocol::Other {
                    return Event::Nothing;
                }
                if self.lists_files {
                    // A file's name may look like this reply. If nothing were read any more, denied commands would pass.
                    return self.is_not_ftp();
                }
                self.protocol = Protocol::Encrypted;
                self.encryption_requested = was_asked;
                Event::Encrypted
            }
            Meaning::Aborted | Meaning::Transferred
                if answers_abort(reply) && self.pending.pop_through(|kind| kind == PendingCommand::Abor).is_some() =>
            {
                Event::Nothing
            }
            Meaning::Ready
            | Meaning::NeedSecret
            | Meaning::NotLoggedIn
            | Meaning::Aborted
            | Meaning::Transferred
            | Meaning::NeedSecurityData
            | Meaning::NeedMoreSecurityData
            | Meaning::Done
            | Meaning::Failed => self.server_answers(reply),
        }
    }

    fn server_announces<'a>(&self, mode: Mode, line: &Line<'a>, reply: &Reply<'_>, asked_for: bool) -> Event<'a> {
        let found = Notation::of(mode).find(reply.text).filter(|_| line.whole);
        let before = line.text.len() - reply.text.len();
        Event::Announced(self.announcement(mode, found, None, asked_for, (line, before)))
    }

    /// A reply that answers the first unanswered command, whatever that was.
    fn server_answers(&mut self, reply: &Reply<'_>) -> Event<'static> {
        let answered = self.pending.pop(reply.code, self.synced);
        self.awaits_security_data = match reply.meaning {
            Meaning::NeedSecurityData => matches!(answered, Some((PendingCommand::Auth, _))),
            Meaning::NeedMoreSecurityData => self.awaits_security_data,
            _ => false,
        };
        let refused = matches!(reply.meaning, Meaning::Failed | Meaning::NotLoggedIn);
        match (answered, reply.meaning) {
            (Some((PendingCommand::User, _)), Meaning::NeedSecret) => self.is_logged_in = false,
            // USER during a login may be refused and then changes nothing.
            (Some((PendingCommand::User, _)), Meaning::NotLoggedIn) => {}
            (_, Meaning::NotLoggedIn) => self.is_logged_in = false,
            (
                Some((PendingCommand::Rein, _)),
                Meaning::Ready
                | Meaning::Aborted
                | Meaning::Transferred
                | Meaning::NeedSecurityData
                | Meaning::NeedMoreSecurityData
                | Meaning::Done,
            ) => self.start_over(),
            (Some((PendingCommand::EpsvAll, _)), Meaning::Failed) => self.extended_only = false,
            _ => {}
        }
        match answered {
            Some((PendingCommand::Active(_), number)) if refused => Event::AnnouncementRefused(number),
            _ => Event::Nothing,
        }
    }

    /// The server accepted a REIN.
    fn start_over(&mut self) {
        self.is_logged_in = false;
        self.extended_only = false;
        self.user = None;
    }

    /// Lines of the client were lost. The server's replies may show what they were.
    pub fn client_gap(&mut self) {
        // Before a login, the lost bytes may have been those that show that this is not FTP.
        self.has_known_start &= self.protocol != Protocol::Undecided;
        self.pending.clear();
        self.synced = false;
    }

    /// Lines of the server were lost, so it is unknown which commands they answered. A passive announcement counts
    /// again after the next PASV, EPSV or LPSV.
    pub fn server_gap(&mut self) {
        self.replies = ReplyReader::default();
        self.pending.clear();
        self.synced = false;
    }

    fn is_not_ftp(&mut self) -> Event<'static> {
        if std::mem::replace(&mut self.protocol, Protocol::Other) == Protocol::Other {
            return Event::Nothing;
        }
        self.is_logged_in = false;
        Event::NotFtp
    }

    /// `before` is the length of the line's text before the part in which the address was found.
    fn announcement<'a>(
        &self,
        mode: Mode,
        found: Option<Found>,
        number: Option<CommandNumber>,
        asked_for: bool,
        (line, before): (&Line<'a>, usize),
    ) -> Announcement<'a> {
        let state = AnnouncementState {
            is_ftp: self.is_greeted && self.protocol != Protocol::Other,
            has_known_start: self.has_known_start,
            is_unambiguous: line.is_unambiguous && (mode.is_active() || !self.lists_files),
            asked_for,
            logged_in: self.is_logged_in,
            extended_only: self.extended_only,
        };
        let named = found.as_ref().map(|found| found.announced);
        let written = found.map(|found| {
            let Range { start, end } = found.span;
            Written { line: *line, span: before + start..before + end }
        });
        Announcement { mode, named, number, state, written }
    }
}

/// Whether a client's first bytes are a TLS ClientHello: a record of type handshake, whose first message is of type 1.
fn is_client_hello(bytes: &[u8]) -> bool {
    matches!(bytes, [TLS_HANDSHAKE, TLS_MAJOR, 0..=4, _, _, 1, ..])
}

/// Whether an FTP client may send this line before a login. A program may be made to send nearly any line later (in
/// the body of an HTTP request, say), but not as its first lines.
fn is_like_ftp(line: &Line<'_>, parsed: &CommandLine<'_>) -> bool {
    let is_short = line.whole && line.text.len() <= LONGEST_BEFORE_LOGIN;
    let is_http = memmem::find(line.text, b" HTTP/").is_some();
    is_short && !is_http && !matches!(parsed, CommandLine::Unknown(_))
}

/// Whether this is ADAT and a token in base64, which may be as long as a ticket is.
fn is_security_data(line: &Line<'_>, parsed: &CommandLine<'_>) -> bool {
    let is_token = |argument: &[u8]| {
        argument.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'='))
    };
    line.begins && matches!(parsed, CommandLine::Command(Command { name: "ADAT", argument, .. }) if is_token(argument))
}

/// Whether this reply can only answer ABOR: with 226 a server may also end the transfer, unless the text names ABOR.
fn answers_abort(reply: &Reply<'_>) -> bool {
    reply.meaning == Meaning::Aborted
        || (reply.meaning == Meaning::Transferred && memmem::find(reply.text, b"ABOR").is_some())
}

/// A name, safe to print.
fn name(argument: &[u8]) -> Option<Box<str>> {
    let argument = argument.trim_ascii();
    let name = Printable(&argument[..argument.len().min(LONGEST_NAME)]).to_string();
    (!name.is_empty()).then(|| name.into_boxed_str())
}

#[cfg(test)]
#[path = "dialogue_tests.rs"]
mod tests;
