//! Lines out of bytes in order: CRLF or bare LF ends one, Telnet's own sequences are taken out, length is bounded.
//!
//! Knows nothing of what a line means.

use memchr::memchr;

use crate::packet::Seq;

/// Telnet's "interpret as command": what follows is not text (RFC 854).
const IAC: u8 = 255;
/// WILL, WON'T, DO, DON'T: one more byte follows, the option.
const OPTION_COMMANDS: std::ops::RangeInclusive<u8> = 251..=254;
/// A subnegotiation begins; it ends with IAC SE.
const SUBNEGOTIATION: u8 = 250;
/// A subnegotiation ends.
const SUBNEGOTIATION_END: u8 = 240;

/// A line without what ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The text; only its beginning when the line was longer than the limit.
    pub text: &'a [u8],
    /// Where the line's first byte stands in the stream, whatever Telnet put there.
    pub start: Seq,
    /// Where the next line begins.
    pub end: Seq,
    /// Whether `text` is all of the line.
    pub whole: bool,
    /// Whether `text` stands in the stream exactly so, from `start` on. Not when Telnet was taken out of it.
    pub verbatim: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Telnet {
    #[default]
    Text,
    /// After IAC.
    Command,
    /// After IAC WILL and its like.
    Option,
    /// In a subnegotiation.
    Inside,
    /// In a subnegotiation, after IAC.
    InsideCommand,
}

/// A line of which the end has not come yet.
#[derive(Debug, Default)]
struct Unfinished {
    text: Vec<u8>,
    start: Seq,
    too_long: bool,
    had_telnet: bool,
}

/// Cuts one direction's bytes into lines.
#[derive(Debug, Default)]
pub struct LineReader {
    telnet: Telnet,
    /// Allocated only while a line is incomplete.
    unfinished: Option<Box<Unfinished>>,
}

impl LineReader {
    /// Takes the next bytes, the first of which stands at `at`, and hands on each line that they complete.
    ///
    /// Of a line longer than `limit` only the beginning is kept. The reader stops, and forgets the rest of `bytes`,
    /// when `take` returns false: what follows is not text any more.
    pub fn feed(&mut self, at: Seq, bytes: &[u8], limit: usize, mut take: impl FnMut(Line<'_>) -> bool) {
        let mut at = at;
        let mut rest = bytes;
        while !rest.is_empty() {
            let plain = self.unfinished.is_none() && self.telnet == Telnet::Text;
            let Some(length) = memchr(b'\n', rest) else {
                self.keep(at, rest, limit);
                return;
            };
            let (line, behind) = rest.split_at(length + 1);
            let end = at + line.len();
            let go_on = if plain && memchr(IAC, line).is_none() {
                let whole = without_ending(line);
                let text = &whole[..whole.len().min(limit)];
                take(Line { text, start: at, end, whole: text.len() == whole.len(), verbatim: true })
            } else {
                self.finish(at, line, limit, &mut take)
            };
            if !go_on {
                *self = Self::default();
                return;
            }
            at = end;
            rest = behind;
        }
    }

    /// Bytes are missing here: what was begun will never be whole. Hands on its beginning, if there is one.
    pub fn gap(&mut self, take: impl FnOnce(Line<'_>)) {
        let Self { unfinished, .. } = std::mem::take(self);
        if let Some(unfinished) = unfinished {
            let Unfinished { text, start, had_telnet, .. } = *unfinished;
            take(Line { text: &text, start, end: start + text.len(), whole: false, verbatim: !had_telnet });
        }
    }

    /// How many bytes it keeps of a line that has begun and not ended.
    pub fn buffered_bytes(&self) -> usize {
        self.unfinished.as_ref().map_or(0, |unfinished| size_of::<Unfinished>() + unfinished.text.capacity())
    }

    /// Whether a line has begun and not ended.
    pub fn is_in_line(&self) -> bool {
        self.unfinished.is_some()
    }

    /// The line that has begun and not ended, as far as it has come.
    pub fn unfinished(&self) -> Option<Line<'_>> {
        let Unfinished { text, start, too_long, had_telnet } = self.unfinished.as_deref()?;
        let (start, whole, verbatim) = (*start, !too_long, !had_telnet);
        Some(Line { text, start, end: start + text.len(), whole, verbatim })
    }

    /// Takes bytes that end with a line feed, which may or may not end the line: Telnet may have used it as its own.
    fn finish(&mut self, at: Seq, bytes: &[u8], limit: usize, take: &mut impl FnMut(Line<'_>) -> bool) -> bool {
        self.keep(at, &bytes[..bytes.len() - 1], limit);
        if self.telnet != Telnet::Text {
            self.keep(at + (bytes.len() - 1), b"\n", limit);
            return true;
        }
        let unfinished = self.unfinished.take().unwrap_or_default();
        // Where a line was cut at the limit, a CR in the last place is not the one that ends it.
        let text = if unfinished.too_long { &unfinished.text } else { without_ending(&unfinished.text) };
        take(Line {
            text,
            start: unfinished.start,
            end: at + bytes.len(),
            whole: !unfinished.too_long,
            verbatim: !unfinished.had_telnet,
        })
    }

    fn keep(&mut self, at: Seq, bytes: &[u8], limit: usize) {
        let Self { telnet, unfinished } = self;
        let unfinished = unfinished.get_or_insert_with(|| Box::new(Unfinished { start: at, ..Unfinished::default() }));
        let mut put = |text: &[u8]| {
            let room = limit.saturating_sub(unfinished.text.len()).min(text.len());
            unfinished.text.extend_from_slice(&text[..room]);
            // The CR of the line's end may find no room; it is no part of the text.
            unfinished.too_long |= room < text.len() && text[room..] != *b"\r";
        };
        let mut rest = bytes;
        while let Some((&byte, behind)) = rest.split_first() {
            let next = match (*telnet, byte) {
                (Telnet::Text, IAC) => Telnet::Command,
                (Telnet::Text, _) => {
                    let length = memchr(IAC, rest).unwrap_or(rest.len());
                    put(&rest[..length]);
                    rest = &rest[length..];
                    continue;
                }
                (Telnet::Command, IAC) => {
                    put(&[IAC]);
                    Telnet::Text
                }
                (Telnet::Command, SUBNEGOTIATION) => Telnet::Inside,
                (Telnet::Command, command) if OPTION_COMMANDS.contains(&command) => Telnet::Option,
                (Telnet::Command | Telnet::Option, _) => Telnet::Text,
                (Telnet::Inside, IAC) => Telnet::InsideCommand,
                (Telnet::Inside, _) => Telnet::Inside,
                (Telnet::InsideCommand, SUBNEGOTIATION_END) => Telnet::Text,
                (Telnet::InsideCommand, _) => Telnet::Inside,
            };
            *telnet = next;
            rest = behind;
        }
        unfinished.had_telnet |= *telnet != Telnet::Text || memchr(IAC, bytes).is_some();
    }
}

/// The line without LF and without the CR in front of it.
fn without_ending(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 64;

    /// The lines of `chunks`, each as its text and whether it was whole.
    fn lines<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<(String, bool)> {
        let mut reader = LineReader::default();
        let mut lines = Vec::new();
        let mut at = Seq::new(u32::MAX - 5);
        let mut expected_start = at;
        for chunk in chunks {
            reader.feed(at, chunk, LIMIT, |line| {
                assert_eq!(line.start, expected_start);
                expected_start = line.end;
                lines.push((String::from_utf8_lossy(line.text).into_owned(), line.whole));
                true
            });
            at += chunk.len();
        }
        lines
    }

    fn whole_lines(text: &[u8]) -> Vec<String> {
        let lines = lines([text]);
        assert!(lines.iter().all(|(_, whole)| *whole));
        lines.into_iter().map(|(text, _)| text).collect()
    }

    #[test]
    fn crlf_or_a_bare_line_feed_ends_a_line() {
        assert_eq!(whole_lines(b"USER a\r\nPASS b\n\r\nQU"), ["USER a", "PASS b", ""]);
    }

    #[test]
    fn a_carriage_return_alone_ends_nothing() {
        assert_eq!(whole_lines(b"STOR a\rPORT 1\r\n"), ["STOR a\rPORT 1"]);
    }

    #[test]
    fn telnet_sequences_are_no_text() {
        assert_eq!(whole_lines(b"\xff\xf4\xff\xf2ABOR\r\n"), ["ABOR"]);
        assert_eq!(whole_lines(b"\xff\xfb\x01\xff\xfe\x03NOOP\r\n"), ["NOOP"]);
        assert_eq!(whole_lines(b"NO\xff\xfaany\r\nthing\xff\xff\xff\xf0OP\r\n"), ["NOOP"]);
    }

    #[test]
    fn a_line_feed_that_telnet_uses_ends_nothing() {
        assert_eq!(whole_lines(b"NO\xff\xfd\nOP\r\n"), ["NOOP"]);
    }

    #[test]
    fn a_doubled_iac_is_a_letter() {
        let mut texts = Vec::new();
        let take = |line: Line<'_>| {
            texts.push((line.text.to_vec(), line.verbatim));
            true
        };
        LineReader::default().feed(Seq::new(0), b"RETR \xff\xff\r\nNOOP\r\n", LIMIT, take);
        assert_eq!(texts, [(b"RETR \xff".to_vec(), false), (b"NOOP".to_vec(), true)]);
    }

    #[test]
    fn an_overlong_line_is_passed_over_to_its_end() {
        let long = [b"STOR ".as_slice(), &[b'x'; 1_000_000], b"\r\nNOOP\r\n"].concat();
        for size in [1, 7, 1000, long.len()] {
            let lines = lines(long.chunks(size));
            assert_eq!(lines.len(), 2);
            assert_eq!((lines[0].0.len(), lines[0].1), (LIMIT, false));
            assert_eq!(lines[1], ("NOOP".to_owned(), true));
        }
    }

    #[test]
    fn a_line_as_long_as_the_limit_is_whole() {
        let line = [[b'x'; LIMIT].as_slice(), b"\r\n"].concat();
        for size in [1, LIMIT, LIMIT + 1, LIMIT + 2] {
            assert!(lines(line.chunks(size))[0].1, "in pieces of {size}");
        }
    }

    #[test]
    fn a_carriage_return_at_the_limit_is_not_the_lines_end() {
        let line = [[b'x'; LIMIT - 1].as_slice(), b"\rmore\r\n"].concat();
        for size in [1, LIMIT, 1000] {
            assert_eq!(lines(line.chunks(size))[0].0.len(), LIMIT, "in pieces of {size}");
        }
    }

    #[test]
    fn nothing_is_kept_between_lines() {
        let mut reader = LineReader::default();
        reader.feed(Seq::new(0), b"NO", LIMIT, |_| true);
        assert!(reader.is_in_line());
        reader.feed(Seq::new(2), b"OP\r\n", LIMIT, |_| true);
        assert!(!reader.is_in_line());
    }

    #[test]
    fn stops_where_the_text_ends() {
        let mut count = 0;
        LineReader::default().feed(Seq::new(0), b"234 go on\r\n\x16\x03\n\x01\n", LIMIT, |_| {
            count += 1;
            false
        });
        assert_eq!(count, 1);
    }

    #[test]
    fn after_a_gap_a_line_is_known_by_its_beginning_only() {
        let mut reader = LineReader::default();
        reader.feed(Seq::new(0), b"STOR a", LIMIT, |_| true);
        reader.gap(|line| assert_eq!((line.text, line.whole), (b"STOR a".as_slice(), false)));
        reader.gap(|_| panic!("nothing was begun"));
        reader.feed(Seq::new(9), b"NOOP\r\n", LIMIT, |line| {
            assert_eq!(line.text, b"NOOP");
            true
        });
    }

    proptest! {
        #[test]
        fn the_cut_of_the_chunks_changes_nothing(
            text in proptest::collection::vec(prop_oneof![
                4 => any::<u8>(),
                2 => Just(b'\n'),
                2 => Just(b'\r'),
                2 => 240u8..=255,
            ], 0..400),
            cuts in proptest::collection::vec(1usize..50, 1..40),
        ) {
            let mut chunks = Vec::new();
            let mut rest = text.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, behind) = rest.split_at((*cut).min(rest.len()));
                chunks.push(chunk);
                rest = behind;
            }
            prop_assert_eq!(lines(chunks), lines([text.as_slice()]));
        }
    }
}
