//! Telnet sequences in a client's lines (RFC 854), and how differently servers read them.

use super::line::IAC;

/// WILL, WON'T, DO, DON'T: one more byte follows, the option.
const OPTION_COMMANDS: std::ops::RangeInclusive<u8> = 251..=254;
/// A subnegotiation begins; it ends with IAC SE.
const SUBNEGOTIATION: u8 = 250;
const SUBNEGOTIATION_END: u8 = 240;

/// What stands behind Telnet commands at the beginning of a text: clients send some in front of ABOR and STAT.
pub fn behind_commands(text: &[u8]) -> &[u8] {
    match text {
        [IAC, command, _, rest @ ..] if OPTION_COMMANDS.contains(command) => behind_commands(rest),
        [IAC, command, rest @ ..] if *command != SUBNEGOTIATION && *command != IAC => behind_commands(rest),
        _ => text,
    }
}

/// Whether every server takes the beginning of this text for the same word.
pub fn begins_plainly(text: &[u8]) -> bool {
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t' | 0x80..=0xfe);
    text.first().is_none_or(u8::is_ascii_alphanumeric) && text.iter().all(is_plain)
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
        parts.map(verb).filter(|verb| !verb.is_empty()).collect::<Vec<_>>()
    })
}

/// The first letters and digits.
fn verb(text: &[u8]) -> Vec<u8> {
    let letters = text.iter().skip_while(|byte| !byte.is_ascii_alphanumeric());
    letters.take_while(|byte| byte.is_ascii_alphanumeric()).copied().collect()
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
        ] {
            assert!(possible_verbs(hidden).any(|verb| verb == b"FEAT"), "{hidden:?}");
        }
        assert!(!possible_verbs(b"STOR FEAT").any(|verb| verb == b"FEAT"));
        assert!(begins_plainly(b"STOR FEAT \xe9") && !begins_plainly(b" FEAT") && !begins_plainly(b"FE\xffAT"));
    }
}
