//! The replies that a server sends, three digits and a text, and the table of those that the dialogue distinguishes.
//!
//! Knows nothing of which command a reply answers.

use super::Mode;

/// What a reply means to the dialogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Meaning {
    /// 1xx: the command is not answered yet.
    Preliminary,
    /// The server announces where it listens.
    Announce(Mode),
    /// Ready for a new user.
    Ready,
    /// The user is logged in.
    LoggedIn,
    /// The login needs a password or an account.
    NeedSecret,
    /// What follows is encrypted.
    Secured,
    /// ABOR has ended the transfer.
    Aborted,
    /// A transfer has ended, because of ABOR if the text says so.
    Transferred,
    /// AUTH is to be followed by ADAT.
    NeedSecurityData,
    /// One ADAT is to be followed by another.
    NeedMoreSecurityData,
    /// No user is logged in.
    NotLoggedIn,
    /// Any other 2xx or 3xx.
    Done,
    /// Any other 4xx or 5xx.
    Failed,
}

/// The codes that mean more than their first digit says, in order.
const REPLIES: &[(u16, Meaning)] = &[
    (220, Meaning::Ready),
    (225, Meaning::Aborted),
    (226, Meaning::Transferred),
    (227, Meaning::Announce(Mode::Pasv)),
    (228, Meaning::Announce(Mode::Lpsv)),
    (229, Meaning::Announce(Mode::Epsv)),
    (230, Meaning::LoggedIn),
    (232, Meaning::LoggedIn),
    (234, Meaning::Secured),
    (331, Meaning::NeedSecret),
    (332, Meaning::NeedSecret),
    (334, Meaning::NeedSecurityData),
    (335, Meaning::NeedMoreSecurityData),
    (530, Meaning::NotLoggedIn),
];

/// The last line of a reply; its only one, mostly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The three digits as a number, from 100 to 599.
    pub code: u16,
    /// What they mean.
    pub meaning: Meaning,
    /// The text behind them.
    pub text: &'a [u8],
}

/// A line of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyLine<'a> {
    /// The last line of a reply.
    Reply(Reply<'a>),
    /// Another line of a reply of several lines.
    Part,
    /// A line that belongs to no reply.
    Other,
}

/// Tells replies from the text inside of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReplyReader {
    /// The code that will end the reply of several lines in which we are.
    inside: Option<Code>,
}

/// Three digits of which the first is from 1 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Code([u8; 3]);

impl Code {
    fn of(line: &[u8]) -> Option<Self> {
        let code = *line.first_chunk::<3>()?;
        (matches!(code[0], b'1'..=b'5') && code.iter().all(u8::is_ascii_digit)).then_some(Self(code))
    }

    fn number(self) -> u16 {
        self.0.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0'))
    }

    fn meaning(self) -> Meaning {
        let number = self.number();
        match self.0[0] {
            b'1' => Meaning::Preliminary,
            _ => match REPLIES.iter().find(|(code, _)| *code == number) {
                Some(&(_, meaning)) => meaning,
                None if matches!(self.0[0], b'2' | b'3') => Meaning::Done,
                None => Meaning::Failed,
            },
        }
    }
}

impl Meaning {
    /// What the code means with which a line begins; none if it begins with no code.
    pub fn of(line: &[u8]) -> Option<Self> {
        Code::of(line).map(Code::meaning)
    }
}

impl ReplyReader {
    /// Takes the server's next line.
    pub fn line<'a>(&mut self, text: &'a [u8]) -> ReplyLine<'a> {
        let code = Code::of(text);
        if let Some(inside) = self.inside {
            // Only the same code followed by a space ends it, whatever the other lines look like.
            return match code {
                Some(code) if code == inside && text.get(3) == Some(&b' ') => {
                    self.inside = None;
                    ReplyLine::Reply(reply(code, text))
                }
                _ => ReplyLine::Part,
            };
        }
        match (code, text.get(3)) {
            (Some(code), None | Some(b' ')) => ReplyLine::Reply(reply(code, text)),
            (Some(code), Some(b'-')) => {
                self.inside = Some(code);
                ReplyLine::Part
            }
            _ => ReplyLine::Other,
        }
    }

    /// Whether a reply has begun and not ended.
    pub const fn is_inside(&self) -> bool {
        self.inside.is_some()
    }

    /// The end of the reply in which we are was lost. What is left of it: its code.
    pub fn interrupt(&mut self) -> Option<Reply<'static>> {
        self.inside.take().map(|code| reply(code, b""))
    }
}

fn reply(code: Code, text: &[u8]) -> Reply<'_> {
    Reply { code: code.number(), meaning: code.meaning(), text: text.get(4..).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meanings(lines: &[&str]) -> Vec<Option<(u16, Meaning)>> {
        let mut reader = ReplyReader::default();
        let heard = lines.iter().map(|line| match reader.line(line.as_bytes()) {
            ReplyLine::Reply(reply) => Some((reply.code, reply.meaning)),
            ReplyLine::Part | ReplyLine::Other => None,
        });
        heard.collect()
    }

    #[test]
    fn three_digits_and_a_space_are_a_reply() {
        assert_eq!(meanings(&["220 hello"]), [Some((220, Meaning::Ready))]);
        assert_eq!(meanings(&["220"]), [Some((220, Meaning::Ready))]);
        assert_eq!(meanings(&["150 wait"]), [Some((150, Meaning::Preliminary))]);
        assert_eq!(meanings(&["229 there"]), [Some((229, Meaning::Announce(Mode::Epsv)))]);
        assert_eq!(meanings(&["421 bye"]), [Some((421, Meaning::Failed))]);
    }

    #[test]
    fn passive_forms_are_announced_by_the_replies_of_the_table() {
        for mode in Mode::ALL.into_iter().filter(|mode| !mode.is_active()) {
            assert_eq!(Meaning::of(mode.announced_by().as_bytes()), Some(Meaning::Announce(mode)), "{mode}");
        }
    }

    fn effect(meaning: Meaning) -> &'static str {
        match meaning {
            Meaning::Preliminary => "the command still waits for its reply",
            Meaning::Announce(_) => "announces where the server listens",
            Meaning::Ready => "greets the client; in answer to `REIN`, logs the user out",
            Meaning::LoggedIn => "logs the user in",
            Meaning::NeedSecret => "a new login has begun: logs the previous user out",
            Meaning::Secured => "the rest is encrypted",
            Meaning::Aborted => "answers `ABOR`",
            Meaning::Transferred => "answers `ABOR` if the text names it",
            Meaning::NeedSecurityData => "in answer to `AUTH`: `ADAT` may be long",
            Meaning::NeedMoreSecurityData => "one more `ADAT` may be long",
            Meaning::NotLoggedIn => "logs the user out, except in answer to `USER`",
            Meaning::Done => "answers its command",
            Meaning::Failed => "answers its command, which has failed",
        }
    }

    #[test]
    fn documented_replies_are_those_of_the_table() {
        assert!(REPLIES.is_sorted_by_key(|(code, _)| code));
        let mut rows: Vec<(&str, Vec<String>)> = vec![(effect(Meaning::Preliminary), vec!["1xx".into()])];
        for &(code, meaning) in REPLIES {
            match rows.iter_mut().find(|row| row.0 == effect(meaning)) {
                Some(row) => row.1.push(code.to_string()),
                None => rows.push((effect(meaning), vec![code.to_string()])),
            }
        }
        rows.push((effect(Meaning::Done), vec!["any other 2xx or 3xx".into()]));
        rows.push((effect(Meaning::Failed), vec!["any other 4xx or 5xx".into()]));
        let mut table = String::from("| replies | effect |\n|---|---|\n");
        for (effect, codes) in rows {
            table += &format!("| {} | {effect} |\n", codes.join(", "));
        }
        let page = include_str!("../../../docs/reference/ftp.md");
        assert!(page.contains(&table), "docs/reference/ftp.md should have this table:\n{table}");
    }

    #[test]
    fn line_without_a_code_is_no_reply() {
        for line in ["", "22", "2x0 a", "020 a", "620 a", "2200 a", " 220 a", "227(10,0,0,1,4,5)", "HTTP/1.1 200 OK"] {
            assert_eq!(meanings(&[line]), [None], "{line}");
        }
    }

    #[test]
    fn inside_a_reply_of_several_lines_only_its_own_code_ends_it() {
        let lines = ["230-Welcome", "227 Entering Passive Mode (10,0,0,1,4,5)", "230-more", "", "230 done", "226 next"];
        let expected = [None, None, None, None, Some((230, Meaning::LoggedIn)), Some((226, Meaning::Transferred))];
        assert_eq!(meanings(&lines), expected);
    }
}
