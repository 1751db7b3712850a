//! What an incomplete line may become.
//!
//! Where a line may have to be rewritten, the part from the address on is withheld until the line is complete.

use super::command::{Command, CommandLine, Verb};
use super::reply::Meaning;
use super::{Line, Mode};

/// Where in the beginning of a client's line an address begins, or will begin, if the line is to announce one.
pub fn address_in_command(text: &[u8]) -> Option<usize> {
    let verb = text.get(..4).filter(|_| text.len() > 4)?;
    let line = Line {
        text: verb,
        start: Default::default(),
        end: Default::default(),
        begins: true,
        whole: true,
        is_unambiguous: true,
        may_continue: false,
    };
    let CommandLine::Command(Command { verb: Verb::Announce(_), .. }) = Command::parse(&line) else { return None };
    let spaces = text[4..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    (spaces > 0).then_some(4 + spaces)
}

/// Where in the beginning of a server's line an address begins, or will begin, if the line is to announce one.
pub fn address_in_reply(text: &[u8]) -> Option<usize> {
    let Meaning::Announce(mode) = Meaning::of(text)? else { return None };
    if text.get(3) != Some(&b' ') {
        return None;
    }
    let words = &text[4..];
    let begins = |byte: &u8| match mode {
        Mode::Epsv | Mode::Eprt => *byte == b'(',
        Mode::Port | Mode::Pasv | Mode::Lprt | Mode::Lpsv => byte.is_ascii_digit(),
    };
    Some(4 + words.iter().position(begins).unwrap_or(words.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_begins_after_the_verb() {
        assert_eq!(address_in_command(b"PORT 10,0"), Some(5));
        assert_eq!(address_in_command(b"eprt  |1|"), Some(6));
        assert_eq!(address_in_command(b"LPRT "), Some(5));
        for text in [b"PORT".as_slice(), b"POR", b"PORTS 1", b"RETR 10,0", b"PASV ", b"", b" PORT 1"] {
            assert_eq!(address_in_command(text), None, "{text:?}");
        }
    }

    #[test]
    fn address_begins_at_a_digit_or_parenthesis() {
        assert_eq!(address_in_reply(b"227 Entering Passive Mode (10,"), Some(27));
        assert_eq!(address_in_reply(b"227 =1"), Some(5));
        assert_eq!(address_in_reply(b"227 Entering Pass"), Some(17));
        assert_eq!(address_in_reply(b"229 Extended 1 (|"), Some(15));
        assert_eq!(address_in_reply(b"228 Long (4,"), Some(10));
        for text in [b"227".as_slice(), b"227-1", b"226 1", b"22", b""] {
            assert_eq!(address_in_reply(text), None, "{text:?}");
        }
    }
}
