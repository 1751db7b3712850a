//! The commands that a client sends, and the table of all of them, which the dialogue, the policy and the documents share.
//!
//! Knows nothing of sessions. The dialogue and the policy decide whether a command makes sense or is allowed.

use super::telnet::behind_commands;
use super::{Line, Mode};

/// What the dialogue does with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// The client announces where it listens.
    Announce(Mode),
    /// The client asks the server to listen and to say where.
    Ask(Mode),
    /// `EPSV ALL`: the client will announce in no other form.
    AskExtendedOnly,
    /// `USER`: a login begins.
    User,
    /// `PASS`, `ACCT`: a secret that completes a login.
    Secret,
    /// `REIN`: the session starts over, as if just connected.
    Reinitialize,
    /// `ABOR`: the server is to end the current transfer.
    Abort,
    /// `AUTH`: the client asks for encryption, usually TLS.
    Secure,
    /// The command waits for its reply and has no other effect.
    Other,
}

/// A parsed line of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command<'a> {
    /// Its effect.
    pub verb: Verb,
    /// The name in upper case.
    pub name: &'static str,
    /// The text after the name and one space.
    pub argument: &'a [u8],
    /// Whether the argument may be shown and logged: it can hold no secret.
    pub is_public: bool,
}

/// What a client's line is, by its first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandLine<'a> {
    /// A command of the table.
    Command(Command<'a>),
    /// An empty line.
    Empty,
    /// A word that is not in the table. It may be a mistyped password, so it is never shown.
    Unknown(&'a [u8]),
}

/// An entry of [`COMMANDS`].
pub(crate) struct CommandSpec {
    /// In upper case.
    pub(crate) name: &'static str,
    verb: Verb,
    is_public: bool,
}

const fn public(name: &'static str, verb: Verb) -> CommandSpec {
    CommandSpec { name, verb, is_public: true }
}

const fn secret(name: &'static str, verb: Verb) -> CommandSpec {
    CommandSpec { name, verb, is_public: false }
}

const fn mode(mode: Mode) -> CommandSpec {
    public(mode.command(), if mode.is_active() { Verb::Announce(mode) } else { Verb::Ask(mode) })
}

/// The commands of RFC 775, 959, 1639, 2228, 2389, 2428, 2577, 2640, 3659, 4217 and 7151, and some that servers added.
/// The usual ones come first, because a lookup searches from the start; the others follow in alphabetical order.
pub(crate) const COMMANDS: &[CommandSpec] = &[
    mode(Mode::Pasv),
    mode(Mode::Epsv),
    mode(Mode::Port),
    mode(Mode::Eprt),
    public("RETR", Verb::Other),
    public("LIST", Verb::Other),
    public("STOR", Verb::Other),
    public("TYPE", Verb::Other),
    public("NOOP", Verb::Other),
    public("USER", Verb::User),
    secret("PASS", Verb::Secret),
    secret("ACCT", Verb::Secret),
    public("QUIT", Verb::Other),
    mode(Mode::Lprt),
    mode(Mode::Lpsv),
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
    public("DSIZ", Verb::Other),
    secret("ENC", Verb::Other),
    public("ESTP", Verb::Other),
    public("FEAT", Verb::Other),
    public("HASH", Verb::Other),
    public("HELP", Verb::Other),
    public("HOST", Verb::Other),
    public("LANG", Verb::Other),
    public("MDTM", Verb::Other),
    public("MFCT", Verb::Other),
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
    public("RANG", Verb::Other),
    public("REST", Verb::Other),
    public("RMD", Verb::Other),
    public("RMDA", Verb::Other),
    public("RNFR", Verb::Other),
    public("RNTO", Verb::Other),
    // Some servers change passwords with it.
    secret("SITE", Verb::Other),
    public("SIZE", Verb::Other),
    public("SMNT", Verb::Other),
    public("SPSV", Verb::Other),
    public("STAT", Verb::Other),
    public("STOU", Verb::Other),
    public("STRU", Verb::Other),
    public("SYST", Verb::Other),
    public("THMB", Verb::Other),
    public("XCRC", Verb::Other),
    public("XCUP", Verb::Other),
    public("XCWD", Verb::Other),
    public("XMD5", Verb::Other),
    public("XMKD", Verb::Other),
    public("XPWD", Verb::Other),
    public("XRMD", Verb::Other),
    public("XSHA", Verb::Other),
    public("XSHA1", Verb::Other),
    public("XSHA256", Verb::Other),
    public("XSHA512", Verb::Other),
];

impl<'a> Command<'a> {
    /// Parses a line of the client.
    pub fn parse(line: &Line<'a>) -> CommandLine<'a> {
        let text = behind_commands(line.text);
        let length = text.iter().take_while(|byte| !byte.is_ascii_whitespace()).count();
        if length == 0 {
            return if text.is_empty() && line.whole { CommandLine::Empty } else { CommandLine::Unknown(b"") };
        }
        let (name, _) = text.split_at(length);
        let Some(entry) = word(name).and_then(lookup) else { return CommandLine::Unknown(name) };
        let argument = text.get(length + 1..).unwrap_or_default();
        let verb = match entry.verb {
            Verb::Ask(Mode::Epsv) if argument.trim_ascii().eq_ignore_ascii_case(b"ALL") => Verb::AskExtendedOnly,
            verb => verb,
        };
        CommandLine::Command(Self { verb, name: entry.name, argument, is_public: entry.is_public })
    }
}

/// Whether the table has a command of that name.
pub fn is_known(name: &str) -> bool {
    word(name.as_bytes()).and_then(lookup).is_some()
}

/// Up to eight letters in upper case as one number, which compares faster than text.
const fn word(text: &[u8]) -> Option<u64> {
    if text.len() > 8 {
        return None;
    }
    let mut word = 0;
    let mut index = 0;
    while index < text.len() {
        word = word << 8 | text[index].to_ascii_uppercase() as u64;
        index += 1;
    }
    Some(word)
}

/// The names of [`COMMANDS`] as numbers.
const WORDS: [u64; COMMANDS.len()] = {
    let mut words = [0; COMMANDS.len()];
    let mut index = 0;
    while index < words.len() {
        words[index] = match word(COMMANDS[index].name.as_bytes()) {
            Some(word) => word,
            None => panic!("the name of a command has at most eight letters"),
        };
        index += 1;
    }
    words
};

fn lookup(wanted: u64) -> Option<&'static CommandSpec> {
    WORDS.iter().position(|&word| word == wanted).map(|index| &COMMANDS[index])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::core::net::Seq;

    fn said(text: &str) -> CommandLine<'_> {
        let start = Seq::new(0);
        Command::parse(&Line {
            text: text.as_bytes(),
            start,
            end: start + text.len() + 2,
            begins: true,
            whole: true,
            is_unambiguous: true,
            may_continue: false,
        })
    }

    fn verb(text: &str) -> Option<Verb> {
        match said(text) {
            CommandLine::Command(command) => Some(command.verb),
            CommandLine::Empty | CommandLine::Unknown(_) => None,
        }
    }

    #[test]
    fn command_is_known_in_any_case() {
        assert_eq!(verb("PORT 1,2,3,4,5,6"), Some(Verb::Announce(Mode::Port)));
        assert_eq!(verb("pOrT 1,2,3,4,5,6"), Some(Verb::Announce(Mode::Port)));
        assert_eq!(verb("pasv"), Some(Verb::Ask(Mode::Pasv)));
        assert_eq!(verb("cwd\t/tmp"), Some(Verb::Other));
    }

    #[test]
    fn every_command_of_the_table_is_found_as_itself() {
        for entry in COMMANDS {
            assert!(
                matches!(said(entry.name), CommandLine::Command(command) if command.name == entry.name),
                "{}",
                entry.name
            );
        }
    }

    #[test]
    fn word_that_begins_like_a_command_is_unknown() {
        for text in ["PORTS 1,2,3,4,5,6", "POR 1", " PORT 1,2,3,4,5,6", "\0PAS", "POST / HTTP/1.1", "\u{ff}PORT"] {
            assert!(matches!(said(text), CommandLine::Unknown(_)), "{text:?}");
        }
        assert_eq!(said(""), CommandLine::Empty);
    }

    #[test]
    fn epsv_all_is_a_command_of_its_own() {
        assert_eq!(verb("EPSV"), Some(Verb::Ask(Mode::Epsv)));
        assert_eq!(verb("EPSV 2"), Some(Verb::Ask(Mode::Epsv)));
        assert_eq!(verb("epsv all"), Some(Verb::AskExtendedOnly));
    }

    #[test]
    fn less_usual_names_are_sorted_and_all_are_unique() {
        let others = COMMANDS.iter().skip_while(|entry| entry.name != "ABOR").skip(1).map(|entry| entry.name);
        assert!(others.is_sorted_by(|a, b| a < b));
        assert_eq!(COMMANDS.iter().map(|entry| entry.name).collect::<HashSet<_>>().len(), COMMANDS.len());
        for mode in Mode::ALL {
            assert!(COMMANDS.iter().any(|entry| matches!(entry.verb, Verb::Ask(m) | Verb::Announce(m) if m == mode)));
        }
    }

    fn effect(verb: Verb) -> &'static str {
        match verb {
            Verb::Announce(_) => "announces where the client listens",
            Verb::Ask(_) => "asks the server where it listens",
            Verb::AskExtendedOnly => "only `EPSV` may follow",
            Verb::User => "begins a login",
            Verb::Secret => "completes a login",
            Verb::Reinitialize => "logs out",
            Verb::Abort => "ends a transfer; often sent as urgent data",
            Verb::Secure => "asks for encryption",
            Verb::Other => "waits for its reply",
        }
    }

    #[test]
    fn documented_commands_are_those_of_the_table() {
        let mut rows: Vec<(&str, bool, Vec<String>)> = Vec::new();
        for entry in COMMANDS {
            let name = format!("`{}`", entry.name);
            match rows.iter_mut().find(|row| (row.0, row.1) == (effect(entry.verb), entry.is_public)) {
                Some(row) => row.2.push(name),
                None => rows.push((effect(entry.verb), entry.is_public, vec![name])),
            }
        }
        let mut table = String::from("| commands | effect | argument |\n|---|---|---|\n");
        for (effect, is_public, names) in rows {
            let argument = if is_public { "shown" } else { "may be secret: never shown" };
            table += &format!("| {} | {effect} | {argument} |\n", names.join(", "));
        }
        let page = include_str!("../../../docs/reference/ftp.md");
        assert!(page.contains(&table), "docs/reference/ftp.md should have this table:\n{table}");
    }

    #[test]
    fn no_secret_is_public() {
        for text in ["PASS secret", "ACCT secret", "ADAT c2VjcmV0", "SITE CHPASS secret"] {
            assert!(matches!(said(text), CommandLine::Command(command) if !command.is_public), "{text}");
        }
    }

    #[test]
    fn argument_follows_the_verb() {
        assert!(matches!(said("STOR a b "), CommandLine::Command(command) if command.argument == b"a b "));
        assert!(matches!(said("LIST"), CommandLine::Command(command) if command.argument.is_empty()));
    }
}
