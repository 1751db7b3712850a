//! Which reply answers which command, where only an excerpt of both is heard.
//!
//! Two things can be told. A question for an address waits until the reply comes that only it can have: nothing else
//! answers it. And the first bytes that the server says behind what the client had heard when it gave a command answer
//! that command, if the server had it by then. What comes behind unread bytes answers nobody knows what.

use std::collections::VecDeque;

use super::asked::{Asked, CommandNumber};
use crate::ftp::Mode;
use crate::packet::Seq;

/// How many questions wait, and how many commands are known in order.
const MOST: usize = 16;

/// A command for an address that has not been answered.
#[derive(Clone, Copy, Debug)]
struct Question {
    mode: Mode,
    /// Where its line ends.
    end: Seq,
    /// What the client had heard of the server when it asked.
    behind: Seq,
}

#[derive(Clone, Copy, Debug)]
struct Given {
    kind: Asked,
    number: CommandNumber,
    end: Seq,
}

/// What the server answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    pub(super) kind: Asked,
    pub(super) number: CommandNumber,
    /// Nothing unread was said in front of the command, so nothing unread can be what was answered.
    pub(super) is_sure: bool,
}

/// The commands that were heard, and where their answers may stand.
#[derive(Debug)]
pub(super) struct Excerpt {
    questions: VecDeque<Question>,
    /// Commands with nothing unread between them.
    given: VecDeque<Given>,
    /// Where the answer to the first of them begins.
    answer_at: Seq,
    /// Something unread was said in front of them.
    behind_unread: bool,
    next_number: CommandNumber,
    /// How far whoever speaks now has heard the other.
    speaker_heard: Seq,
    /// Where the reply begins whose lines are being heard.
    reply_at: Option<Seq>,
    /// A user's name was given, and the server has neither let it in nor asked for more.
    pub(super) user_was_given: bool,
    /// The client wants to begin anew, and the server has not said that it did.
    pub(super) begins_anew: bool,
    /// The client wants to speak so that nobody can read it, and the server has neither agreed nor refused.
    pub(super) wants_secrecy: bool,
}

impl Excerpt {
    /// One whose first command has this number.
    pub(super) fn new(next_number: CommandNumber) -> Self {
        Self {
            questions: VecDeque::new(),
            given: VecDeque::new(),
            answer_at: Seq::default(),
            behind_unread: false,
            next_number,
            speaker_heard: Seq::default(),
            reply_at: None,
            user_was_given: false,
            begins_anew: false,
            wants_secrecy: false,
        }
    }

    /// The number of the next command.
    pub(super) fn next_number(&self) -> CommandNumber {
        self.next_number
    }

    /// Whoever says the following lines has heard the other up to there.
    pub(super) fn speaker_has_heard(&mut self, place: Seq) {
        self.speaker_heard = place;
    }

    /// The client gave a command whose line ends there.
    pub(super) fn push(&mut self, kind: Asked, end: Seq) -> CommandNumber {
        let (number, behind) = (self.next_number, self.speaker_heard);
        self.next_number = number.next();
        if let Asked::Ask(mode) = kind {
            // Who asks again after it has heard something does not wait for the first answer any more.
            self.questions.retain(|question| question.mode != mode || question.behind == behind);
            if self.questions.len() == MOST {
                self.questions.pop_front();
            }
            self.questions.push_back(Question { mode, end, behind });
        }
        match kind {
            Asked::User => self.user_was_given = true,
            Asked::Reinitialize => self.begins_anew = true,
            Asked::Secure => self.wants_secrecy = true,
            _ => {}
        }
        if self.given.len() == MOST {
            self.client_was_not_read();
        }
        if self.given.is_empty() {
            self.answer_at = behind;
        }
        self.given.push_back(Given { kind, number, end });
        number
    }

    /// Some of what the client said was not read.
    pub(super) fn client_was_not_read(&mut self) {
        self.given.clear();
        self.behind_unread = true;
    }

    /// A line of the server's begins there, which may be in the middle of a reply.
    pub(super) fn line_at(&mut self, start: Seq) {
        self.reply_at.get_or_insert(start);
    }

    /// The reply whose lines were heard has ended there without saying anything that counts.
    pub(super) fn pass_over(&mut self, end: Seq) {
        if self.reply_at.take() == Some(self.answer_at) {
            self.answer_at = end;
        }
    }

    /// A reply of several lines broke off.
    pub(super) fn break_off(&mut self) {
        self.reply_at = None;
    }

    /// The reply whose lines were heard has ended there. Which command it answers, where that can be told.
    pub(super) fn answer(&mut self, code: u16, end: Seq) -> Option<Answered> {
        let start = self.reply_at.take()?;
        if start.is_after(self.answer_at) {
            // Something unread stands in between.
            self.client_was_not_read();
        }
        if start != self.answer_at {
            return None;
        }
        self.answer_at = end;
        let &first = self.given.front()?;
        if first.end.is_after(self.speaker_heard) {
            // The server had not got it: so there was one before, and its answer follows.
            self.behind_unread = true;
            return None;
        }
        let is_unanswered = first.kind == Asked::Nothing && !(500..=504).contains(&code);
        if is_unanswered {
            self.given.pop_front();
        }
        let Given { kind, number, end } = self.given.pop_front()?;
        let is_sure = !self.behind_unread;
        if matches!(kind, Asked::Ask(_)) && code >= 400 && (is_sure || !is_about_files(code)) {
            self.questions.retain(|question| question.end != end);
        }
        Some(Answered { kind, number, is_sure })
    }

    /// The server names an address. Whether it was asked for.
    pub(super) fn answers_question(&mut self, mode: Mode) -> bool {
        let had = self.speaker_heard;
        let found = self.questions.iter().position(|question| question.mode == mode && !question.end.is_after(had));
        if let Some(found) = found {
            // Answers come in order: those before it have had theirs.
            self.questions.drain(..=found);
        }
        found.is_some()
    }

    /// The server begins anew, or has done so.
    pub(super) fn has_begun_anew(&mut self) -> bool {
        std::mem::take(&mut self.begins_anew)
    }
}

/// Replies of the kind x5x are about files: none of them answers a command for an address, but one may answer an unread
/// command in front of it.
pub(super) const fn is_about_files(code: u16) -> bool {
    code / 10 % 10 == 5
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: Asked = Asked::Announce(Mode::Port);
    const PASV: Asked = Asked::Ask(Mode::Pasv);

    /// The client gives a command that ends there, and had heard so much of the server.
    fn says(excerpt: &mut Excerpt, kind: Asked, end: u32, heard: u32) -> CommandNumber {
        excerpt.speaker_has_heard(Seq::new(heard));
        excerpt.push(kind, Seq::new(end))
    }

    /// The server replies between two places, and had heard so much of the client.
    fn replies(excerpt: &mut Excerpt, code: u16, (from, to): (u32, u32), heard: u32) -> Option<Asked> {
        excerpt.speaker_has_heard(Seq::new(heard));
        excerpt.line_at(Seq::new(from));
        excerpt.answer(code, Seq::new(to)).map(|answered| answered.kind)
    }

    fn new() -> Excerpt {
        Excerpt::new(CommandNumber::default())
    }

    #[test]
    fn what_follows_what_the_client_had_heard_answers_it() {
        let mut excerpt = new();
        says(&mut excerpt, PORT, 120, 500);
        assert_eq!(replies(&mut excerpt, 500, (500, 510), 120), Some(PORT));
        assert_eq!(replies(&mut excerpt, 500, (510, 520), 120), None, "it was answered");
    }

    #[test]
    fn a_reply_behind_unread_ones_answers_nobody_knows_what() {
        let mut excerpt = new();
        says(&mut excerpt, PORT, 120, 500);
        assert_eq!(replies(&mut excerpt, 550, (520, 530), 140), None);
        assert_eq!(replies(&mut excerpt, 550, (530, 540), 140), None);
    }

    #[test]
    fn a_reply_by_a_server_that_had_not_got_the_command_answers_one_before() {
        let mut excerpt = new();
        says(&mut excerpt, PORT, 120, 500);
        assert_eq!(replies(&mut excerpt, 500, (500, 510), 100), None);
        assert_eq!(replies(&mut excerpt, 500, (510, 520), 120), Some(PORT));
    }

    #[test]
    fn commands_with_nothing_unread_between_them_are_answered_in_order() {
        let mut excerpt = new();
        says(&mut excerpt, PORT, 120, 500);
        says(&mut excerpt, PASV, 126, 500);
        assert_eq!(replies(&mut excerpt, 500, (500, 510), 126), Some(PORT));
        assert_eq!(replies(&mut excerpt, 502, (510, 520), 126), Some(PASV));
        assert!(!excerpt.answers_question(Mode::Pasv), "it was refused");
    }

    #[test]
    fn with_something_unread_between_them_the_first_is_not_known_any_more() {
        let mut excerpt = new();
        says(&mut excerpt, PORT, 120, 500);
        excerpt.client_was_not_read();
        says(&mut excerpt, PASV, 140, 560);
        assert_eq!(replies(&mut excerpt, 500, (500, 510), 140), None, "that was before");
        assert_eq!(replies(&mut excerpt, 502, (560, 570), 140), Some(PASV));
    }

    #[test]
    fn a_question_waits_for_its_own_answer_and_counts_once() {
        let mut excerpt = new();
        says(&mut excerpt, PASV, 106, 500);
        replies(&mut excerpt, 425, (520, 530), 106);
        excerpt.client_was_not_read();
        assert!(!excerpt.answers_question(Mode::Epsv));
        assert!(excerpt.answers_question(Mode::Pasv));
        assert!(!excerpt.answers_question(Mode::Pasv));
    }

    #[test]
    fn no_server_answers_what_it_has_not_got() {
        let mut excerpt = new();
        says(&mut excerpt, PASV, 106, 500);
        excerpt.speaker_has_heard(Seq::new(100));
        assert!(!excerpt.answers_question(Mode::Pasv));
        excerpt.speaker_has_heard(Seq::new(106));
        assert!(excerpt.answers_question(Mode::Pasv));
    }

    #[test]
    fn asked_again_the_first_question_is_void_unless_both_were_asked_at_once() {
        for (second_heard, counts) in [(500, true), (550, false)] {
            let mut excerpt = new();
            says(&mut excerpt, PASV, 106, 500);
            excerpt.client_was_not_read();
            says(&mut excerpt, PASV, 112, second_heard);
            excerpt.speaker_has_heard(Seq::new(112));
            assert!(excerpt.answers_question(Mode::Pasv));
            assert_eq!(excerpt.answers_question(Mode::Pasv), counts);
        }
    }

    #[test]
    fn a_reply_about_files_refuses_no_question_where_something_unread_was_in_front() {
        for (code, still_waits) in [(550, true), (502, false)] {
            let mut excerpt = new();
            excerpt.client_was_not_read();
            says(&mut excerpt, PASV, 106, 500);
            replies(&mut excerpt, code, (500, 510), 106);
            assert_eq!(excerpt.answers_question(Mode::Pasv), still_waits, "{code}");
        }
    }

    #[test]
    fn whatever_comes_there_is_never_more_than_the_bound() {
        let mut excerpt = new();
        for number in 0..1000 {
            says(&mut excerpt, PASV, 106 + number, 500);
            assert!(excerpt.questions.len() <= MOST && excerpt.given.len() <= MOST);
        }
    }
}
