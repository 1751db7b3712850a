//! Telnet sequences in a client's lines (RFC 854), and how differently servers read them.

use super::line::IAC;

/// WILL, WON'T, DO, DON'T: one more byte follows, the option.
const OPTION_COMMANDS: std::ops::RangeInclusive<u8> = 251..=254;
/// So many letters of a command does every server compare.
const LONGEST_USUAL: usize = 4;
/// A subnegotiation begins; it ends with IAC SE.
const SUBNEGOTIATION: u8 = 250;
const SUBNEGOTIATION_END: u8 = 240;

/// The text behind Telnet commands at its beginning: clients send some in front of ABOR and STAT.
pub fn behind_commands(text: &[u8]) -> &[u8] {
    match text {
        [IAC, command, _, rest @ ..] if OPTION_COMMANDS.contains(command) => behind_commands(rest),
        [IAC, command, rest @ ..] if *command != SUBNEGOTIATION && *command != IAC => behind_commands(rest),
        _ => text,
    }
}

/// Whether every server takes the beginning of this text for the same word: one of ASCII's letters and digits, no longer
/// than the commands of FTP are.
pub fn begins_plainly(text: &[u8]) -> bool {
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t' | 0x80..=0xfe);
    let word = first_word(text);
    let is_usual = word.len() <= LONGEST_USUAL && word.iter().all(u8::is_ascii_alphanumeric);
    // Pieces without an early end: many bytes at a time.
    let is_all_plain = || text.chunks(64).all(|piece| piece.iter().fold(true, |all, byte| all & is_plain(byte)));
    is_usual && (!word.is_empty() || text.is_empty()) && is_all_plain()
}

/// Whether the first word has letters beyond ASCII, Telnet's commands in front of it apart. FTP has no such command, but
/// servers that change letters to upper case may make one of it: of \u{17f} they make S.
pub fn has_foreign_letters(text: &[u8]) -> bool {
    let mut rest = text;
    while let [IAC, command @ 240..=254, behind @ ..] = rest {
        rest = behind;
        if OPTION_COMMANDS.contains(command) {
            rest = rest.get(1..).unwrap_or_default();
        }
    }
    // Of an IAC alone, the rest may come later.
    rest != [IAC] && !first_word(rest.trim_ascii_start()).is_ascii()
}

/// All words that some server may take for the command of a line, in no order.
pub fn possible_verbs(text: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let readings = [
        text.to_vec(),
        without_sequences(text, Sequence::Whole),
        without_sequences(text, Sequence::TwoBytes),
        without_sequences(text, Sequence::OneByte),
        text.iter().copied().filter(|byte| (b' '..=b'~').contains(byte)).collect(),
    ];
    readings.into_iter().flat_map(|reading| {
        // A bare CR may end a line, a NUL a text.
        let parts = reading.split(|byte| matches!(byte, b'\r' | b'\n' | 0));
        parts.flat_map(verbs).filter(|verb| !verb.is_empty()).collect::<Vec<_>>()
    })
}

/// The first letters and digits; so many of them as a server may compare; and the last ones of the first word, to which
/// some servers look (BusyBox, and pyftpdlib for ABOR, STAT and QUIT).
fn verbs(text: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let letters = text.iter().skip_while(|byte| !byte.is_ascii_alphanumeric());
    let verb: Vec<u8> = letters.take_while(|byte| byte.is_ascii_alphanumeric()).copied().collect();
    let beginning = verb.get(..LONGEST_USUAL).filter(|_| verb.len() > LONGEST_USUAL).map(<[u8]>::to_vec);
    let word = first_word(text.trim_ascii_start());
    let end = word.last_chunk::<LONGEST_USUAL>().filter(|_| word.len() > LONGEST_USUAL).map(|end| end.to_vec());
    [Some(verb), beginning, end].into_iter().flatten()
}

/// The text before the first space.
fn first_word(text: &[u8]) -> &[u8] {
    text.split(u8::is_ascii_whitespace).next().unwrap_or_default()
}

/// How much a reader takes for a Telnet sequence.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sequence {
    /// As RFC 854 has it.
    Whole,
    /// IAC and one byte.
    TwoBytes,
    /// IAC alone.
    OneByte,
}

fn without_sequences(text: &[u8], sequence: Sequence) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, behind)) = rest.split_first() {
        rest = match (byte, sequence, behind) {
            (IAC, Sequence::OneByte, _) => behind,
            (IAC, Sequence::TwoBytes, _) => behind.get(1..).unwrap_or_default(),
            (IAC, Sequence::Whole, [IAC, rest @ ..]) => {
                plain.push(IAC);
                rest
            }
            (IAC, Sequence::Whole, [SUBNEGOTIATION, rest @ ..]) => {
                let end = rest.windows(2).position(|pair| pair == [IAC, SUBNEGOTIATION_END]);
                end.and_then(|end| rest.get(end + 2..)).unwrap_or_default()
            }
            (IAC, Sequence::Whole, [command, _, rest @ ..]) if OPTION_COMMANDS.contains(command) => rest,
            (IAC, Sequence::Whole, _) => behind.get(1..).unwrap_or_default(),
            _ => {
                plain.push(byte);
                behind
            }
        };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_in_front_of_abor_are_passed_over() {
        assert_eq!(behind_commands(b"\xff\xf4\xff\xf2ABOR"), b"ABOR");
        assert_eq!(behind_commands(b"\xff\xfb\x01NOOP"), b"NOOP");
        assert_eq!(behind_commands(b"NOOP\xff\xf4"), b"NOOP\xff\xf4");
        assert_eq!(behind_commands(b"\xff\xffNOOP"), b"\xff\xffNOOP");
        assert_eq!(behind_commands(b"\xff"), b"\xff");
    }

    #[test]
    fn every_reading_of_a_hidden_verb_is_found() {
        for hidden in [
            b"FEAT".as_slice(),
            b"  FEAT x",
            b"\tFEAT",
            b"\xff\xf1FEAT",
            b"FE\xff\xf1AT",
            b"FE\xffAT",
            b"FE\xff\xfb\x01AT",
            b"F\xff\xfaany\xff\xf0EAT",
            b"\xfe\x80FEAT",
            b"FE\x01AT",
            b"FE\0AT",
            b"NOOP\rFEAT",
            b"NOOP\0FEAT",
            b"NOFEAT x",
            b"NO-\xe9FEAT",
            b"FEATURE",
        ] {
            assert!(possible_verbs(hidden).any(|verb| verb == b"FEAT"), "{hidden:?}");
        }
        assert!(!possible_verbs(b"STOR FEAT").any(|verb| verb == b"FEAT"));
        assert!(begins_plainly(b"STOR FEAT \xe9") && begins_plainly(b"PWD") && begins_plainly(b""));
        for text in [b" FEAT".as_slice(), b"FE\xffAT", b"FE\xe9AT", b"NOFEAT", b"FEAT-x"] {
            assert!(!begins_plainly(text), "{text:?}");
        }
    }

    #[test]
    fn letters_beyond_ascii_in_the_first_word_are_foreign() {
        for text in ["\u{17f}TOR x", "LI\u{17f}T", " \u{fb05}OR x", "M\u{212a}D x"] {
            assert!(has_foreign_letters(text.as_bytes()), "{text}");
        }
        assert!(has_foreign_letters(b"\xff\xc5\xff\xbfTOR"));
        for text in
            [b"STOR \xc5\xbf".as_slice(), b"\xff\xf4\xff\xf2ABOR", b"\xff\xf4\xff", b"\xff\xfb\x01NOOP", b"", b" "]
        {
            assert!(!has_foreign_letters(text), "{text:?}");
        }
    }
}
