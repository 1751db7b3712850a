//! The commands that a client sends: the table of commands.
//!
//! Knows nothing of sessions. The dialogue and the policy decide whether a command makes sense or is allowed.

use super::telnet::behind_commands;
use super::{Line, Mode};

/// A command that matters to us, or [`Verb::Other`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// The client announces where it listens.
    Announce(Mode),
    /// The client asks the server to listen and to say where.
    Ask(Mode),
    /// `EPSV ALL`: from now on no other way of announcing will be used.
    AskExtendedOnly,
    /// `USER`.
    User,
    /// `PASS`, `ACCT`: a secret that completes a login.
    Secret,
    /// `REIN`: start over, as if just connected.
    Reinitialize,
    /// `ABOR`: the server is to end the transfer that goes on.
    Abort,
    /// `AUTH`: the client wants to speak some other way, mostly TLS.
    Secure,
    /// Every other command of FTP.
    Other,
}

/// A line of the client, understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command<'a> {
    /// What it asks.
    pub verb: Verb,
    /// The verb as FTP writes it.
    pub name: &'static str,
    /// What stands behind the verb.
    pub argument: &'a [u8],
    /// Whether a person may see the argument: no secret can stand there.
    pub is_public: bool,
}

/// What the first word of a client's line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// A command of FTP.
    Command(Command<'a>),
    /// Nothing at all.
    Nothing,
    /// A word that FTP does not know. It may be anything, a mistyped password too: not for showing.
    Unknown(&'a [u8]),
}

struct Entry {
    name: &'static str,
    verb: Verb,
    is_public: bool,
}

const fn public(name: &'static str, verb: Verb) -> Entry {
    Entry { name, verb, is_public: true }
}

const fn secret(name: &'static str, verb: Verb) -> Entry {
    Entry { name, verb, is_public: false }
}

/// The commands of RFC 959, 1639, 2228, 2389, 2428, 2640, 3659, 7151 and some that servers added, in order of use.
const COMMANDS: [Entry; 65] = [
    public("PASV", Verb::Ask(Mode::Pasv)),
    public("EPSV", Verb::Ask(Mode::Epsv)),
    public("PORT", Verb::Announce(Mode::Port)),
    public("EPRT", Verb::Announce(Mode::Eprt)),
    public("RETR", Verb::Other),
    public("LIST", Verb::Other),
    public("STOR", Verb::Other),
    public("TYPE", Verb::Other),
    public("NOOP", Verb::Other),
    public("USER", Verb::User),
    secret("PASS", Verb::Secret),
    secret("ACCT", Verb::Secret),
    public("QUIT", Verb::Other),
    public("LPRT", Verb::Announce(Mode::Lprt)),
    public("LPSV", Verb::Ask(Mode::Lpsv)),
    public("REIN", Verb::Reinitialize),
    public("AUTH", Verb::Secure),
    public("ABOR", Verb::Abort),
    secret("ADAT", Verb::Other),
    public("ALLO", Verb::Other),
    public("APPE", Verb::Other),
    public("AVBL", Verb::Other),
    public("CCC", Verb::Other),
    public("CDUP", Verb::Other),
    public("CLNT", Verb::Other),
    secret("CONF", Verb::Other),
    public("CSID", Verb::Other),
    public("CWD", Verb::Other),
    public("DELE", Verb::Other),
    secret("ENC", Verb::Other),
    public("ESTP", Verb::Other),
    public("FEAT", Verb::Other),
    public("HASH", Verb::Other),
    public("HELP", Verb::Other),
    public("HOST", Verb::Other),
    public("LANG", Verb::Other),
    public("MDTM", Verb::Other),
    public("MFF", Verb::Other),
    public("MFMT", Verb::Other),
    secret("MIC", Verb::Other),
    public("MKD", Verb::Other),
    public("MLSD", Verb::Other),
    public("MLST", Verb::Other),
    public("MODE", Verb::Other),
    public("NLST", Verb::Other),
    public("OPTS", Verb::Other),
    public("PBSZ", Verb::Other),
    public("PROT", Verb::Other),
    public("PWD", Verb::Other),
    public("REST", Verb::Other),
    public("RMD", Verb::Other),
    public("RNFR", Verb::Other),
    public("RNTO", Verb::Other),
    // Some servers change passwords by it.
    secret("SITE", Verb::Other),
    public("SIZE", Verb::Other),
    public("SMNT", Verb::Other),
    public("STAT", Verb::Other),
    public("STOU", Verb::Other),
    public("STRU", Verb::Other),
    public("SYST", Verb::Other),
    public("XCUP", Verb::Other),
    public("XCWD", Verb::Other),
    public("XMKD", Verb::Other),
    public("XPWD", Verb::Other),
    public("XRMD", Verb::Other),
];

impl<'a> Command<'a> {
    /// Understands a line of the client.
    pub fn parse(line: &Line<'a>) -> Said<'a> {
        let text = behind_commands(line.text);
        let length = text.iter().take_while(|byte| !byte.is_ascii_whitespace()).count();
        if length == 0 {
            return if text.is_empty() && line.whole { Said::Nothing } else { Said::Unknown(b"") };
        }
        let (name, _) = text.split_at(length);
        let Some(entry) = word(name).and_then(lookup) else { return Said::Unknown(name) };
        let argument = text.get(length + 1..).unwrap_or_default();
        let verb = match entry.verb {
            Verb::Ask(Mode::Epsv) if argument.trim_ascii().eq_ignore_ascii_case(b"ALL") => Verb::AskExtendedOnly,
            verb => verb,
        };
        Said::Command(Self { verb, name: entry.name, argument, is_public: entry.is_public })
    }
}

/// Whether FTP knows a command of that name.
pub fn is_known(name: &str) -> bool {
    word(name.as_bytes()).and_then(lookup).is_some()
}

/// Up to four letters in upper case as one number, which compares faster than text.
const fn word(text: &[u8]) -> Option<u32> {
    if text.len() > 4 {
        return None;
    }
    let mut word = 0;
    let mut index = 0;
    while index < text.len() {
        word = word << 8 | text[index].to_ascii_uppercase() as u32;
        index += 1;
    }
    Some(word)
}

/// The names of [`COMMANDS`] as numbers.
const WORDS: [u32; COMMANDS.len()] = {
    let mut words = [0; COMMANDS.len()];
    let mut index = 0;
    while index < words.len() {
        words[index] = match word(COMMANDS[index].name.as_bytes()) {
            Some(word) => word,
            None => panic!("a command of FTP has at most four letters"),
        };
        index += 1;
    }
    words
};

fn lookup(wanted: u32) -> Option<&'static Entry> {
    WORDS.iter().position(|&word| word == wanted).map(|index| &COMMANDS[index])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::net::Seq;

    fn said(text: &str) -> Said<'_> {
        let start = Seq::new(0);
        Command::parse(&Line {
            text: text.as_bytes(),
            start,
            end: start + text.len() + 2,
            begins: true,
            whole: true,
            plain: true,
            may_continue: false,
        })
    }

    fn verb(text: &str) -> Option<Verb> {
        match said(text) {
            Said::Command(command) => Some(command.verb),
            Said::Nothing | Said::Unknown(_) => None,
        }
    }

    #[test]
    fn a_command_is_known_in_any_case() {
        assert_eq!(verb("PORT 1,2,3,4,5,6"), Some(Verb::Announce(Mode::Port)));
        assert_eq!(verb("pOrT 1,2,3,4,5,6"), Some(Verb::Announce(Mode::Port)));
        assert_eq!(verb("pasv"), Some(Verb::Ask(Mode::Pasv)));
        assert_eq!(verb("cwd\t/tmp"), Some(Verb::Other));
    }

    #[test]
    fn every_command_of_the_table_is_found_as_itself() {
        for entry in &COMMANDS {
            assert!(matches!(said(entry.name), Said::Command(command) if command.name == entry.name), "{}", entry.name);
        }
    }

    #[test]
    fn a_word_that_only_begins_like_a_command_is_none() {
        for text in ["PORTS 1,2,3,4,5,6", "POR 1", " PORT 1,2,3,4,5,6", "\0PAS", "POST / HTTP/1.1", "\u{ff}PORT"] {
            assert!(matches!(said(text), Said::Unknown(_)), "{text:?}");
        }
        assert_eq!(said(""), Said::Nothing);
    }

    #[test]
    fn epsv_all_is_a_command_of_its_own() {
        assert_eq!(verb("EPSV"), Some(Verb::Ask(Mode::Epsv)));
        assert_eq!(verb("EPSV 2"), Some(Verb::Ask(Mode::Epsv)));
        assert_eq!(verb("epsv all"), Some(Verb::AskExtendedOnly));
    }

    #[test]
    fn no_secret_is_public() {
        for text in ["PASS secret", "ACCT secret", "ADAT c2VjcmV0", "SITE CHPASS secret"] {
            assert!(matches!(said(text), Said::Command(command) if !command.is_public), "{text}");
        }
    }

    #[test]
    fn the_argument_is_what_stands_behind_the_verb() {
        assert!(matches!(said("STOR a b "), Said::Command(command) if command.argument == b"a b "));
        assert!(matches!(said("LIST"), Said::Command(command) if command.argument.is_empty()));
    }
}
