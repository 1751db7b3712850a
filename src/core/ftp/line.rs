//! Cuts bytes in order into lines of bounded length. Does not interpret a line.
//!
//! Servers and clients disagree about what ends a line (only CRLF, or a bare LF as well), and about Telnet sequences in
//! it. A client's bytes are cut as the most lenient server cuts them: at every LF. A server's bytes are cut as the
//! strictest client cuts them: at CRLF only. [`Line::is_unambiguous`] says whether all implementations read the same line.

use std::borrow::Cow;
use std::ops::Range;

use memchr::{memchr, memchr3};

use crate::core::net::Seq;

/// Telnet's "interpret as command": what follows is not text (RFC 854).
pub(super) const IAC: u8 = 255;

/// What ends a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineEnding {
    /// Any LF: how the most lenient server reads a client.
    Lf,
    /// CRLF and nothing else: how the strictest client reads a server.
    CrLf,
}

/// A line without its line ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The text as it was sent; only its beginning when the line was longer than the limit.
    pub text: &'a [u8],
    /// The sequence number of the line's first byte.
    pub start: Seq,
    /// Where the next line begins.
    pub end: Seq,
    /// Whether the text starts with the line's first byte: false before the first CRLF after a gap.
    pub begins: bool,
    /// Whether `text` is the complete line.
    pub whole: bool,
    /// Whether all implementations read the same line: it follows a CRLF, ends in CRLF, and has no CR, LF, NUL or
    /// Telnet in between.
    pub is_unambiguous: bool,
    /// Whether the end of the previous line may have been urgent data, so that some receivers read both as one line.
    pub may_continue: bool,
}

/// A line whose end has not arrived.
#[derive(Debug)]
struct Unfinished {
    text: Vec<u8>,
    start: Seq,
    too_long: bool,
    /// Whether some implementations read it differently, also because of bytes beyond the limit.
    is_ambiguous: bool,
    /// Whether the last byte that came was a CR.
    ends_in_cr: bool,
}

/// Bytes of one direction, in stream order, that a [`LineReader`] cuts into lines.
#[derive(Debug)]
pub struct UnreadBytes<'a> {
    bytes: Cow<'a, [u8]>,
    /// The offset of the first unread byte.
    from: usize,
    /// The sequence number of the first unread byte.
    at: Seq,
    /// The byte before this sequence number may be urgent data, which the receiver may not read as text.
    urgent_end: Option<Seq>,
    limit: usize,
    line: LatestLine,
    /// The text of the latest line, if the line began in earlier bytes.
    joined: Option<Box<Unfinished>>,
}

/// Like [`Line`], with the text as a range of the bytes.
#[derive(Debug)]
struct LatestLine {
    text: Range<usize>,
    start: Seq,
    end: Seq,
    begins: bool,
    whole: bool,
    is_unambiguous: bool,
    may_continue: bool,
}

impl<'a> UnreadBytes<'a> {
    /// Bytes of which the first has the sequence number `at`. The last byte before `urgent_end` may be urgent
    /// data, which the receiver may not read as text. Of a line longer than `limit` only the beginning is kept.
    pub fn new(at: Seq, bytes: impl Into<Cow<'a, [u8]>>, urgent_end: Option<Seq>, limit: usize) -> Self {
        let (begins, whole, is_unambiguous, may_continue) = (false, false, false, false);
        let line = LatestLine { text: 0..0, start: at, end: at, begins, whole, is_unambiguous, may_continue };
        Self { bytes: bytes.into(), from: 0, at, urgent_end, limit, line, joined: None }
    }

    /// All bytes, including those that were read.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The latest line that was read.
    pub fn line(&self) -> Line<'_> {
        let LatestLine { ref text, start, end, begins, whole, is_unambiguous, may_continue } = self.line;
        let bytes = self.joined.as_ref().map_or(&*self.bytes, |joined| &joined.text);
        Line { text: &bytes[text.clone()], start, end, begins, whole, is_unambiguous, may_continue }
    }
}

/// Cuts one direction's bytes into lines.
#[derive(Debug)]
pub struct LineReader {
    ending: LineEnding,
    /// Whether all implementations agree that the next byte begins a line.
    is_synced: bool,
    /// Whether the bytes before the next CRLF may be the rest of a line, and do not count.
    is_lost: bool,
    /// Whether the next line follows a CRLF of which a byte may have been urgent data.
    is_behind_urgent: bool,
    /// Allocated only while a line is incomplete.
    unfinished: Option<Box<Unfinished>>,
}

impl LineReader {
    /// A reader at the start of a line.
    pub const fn new(ending: LineEnding) -> Self {
        Self { ending, is_synced: true, is_lost: false, is_behind_urgent: false, unfinished: None }
    }

    /// A reader that may begin within a line: lines count after the first CRLF.
    pub const fn in_the_middle(ending: LineEnding) -> Self {
        Self { ending, is_synced: false, is_lost: true, is_behind_urgent: false, unfinished: None }
    }

    /// Reads up to the end of the next line, which [`UnreadBytes::line`] returns then. Returns false if no further line
    /// ends in these bytes: then all of them have been read.
    ///
    /// The text before the first CRLF after a gap is a line that is not whole.
    pub fn advance(&mut self, unread: &mut UnreadBytes<'_>) -> bool {
        let UnreadBytes { bytes, from, at, urgent_end, limit, line, joined } = unread;
        let rest = &bytes[*from..];
        let Some(length) = self.length_of_line(rest) else {
            if !rest.is_empty() {
                self.keep(*at, rest, *limit);
            }
            *from = bytes.len();
            return false;
        };
        let without_lf = &rest[..length - 1];
        let end = *at + length;
        let (was_synced, was_lost) = (self.is_synced, self.is_lost);
        let may_continue = std::mem::take(&mut self.is_behind_urgent);
        *joined = self.unfinished.take();
        let (start, text, whole, is_unambiguous) = match joined {
            Some(joined) => {
                joined.keep(without_lf, *limit);
                let Unfinished { text, start, too_long, is_ambiguous, ends_in_cr } = &**joined;
                self.ended(*ends_in_cr);
                // In a line that was cut at the limit, a CR at the end does not belong to the CRLF.
                let text = if *ends_in_cr && !*too_long { text.strip_suffix(b"\r").unwrap_or(text) } else { text };
                let whole = !*too_long && text.len() <= *limit;
                (*start, 0..text.len().min(*limit), whole, *ends_in_cr && !is_ambiguous)
            }
            None => {
                let without_cr = without_lf.strip_suffix(b"\r");
                self.ended(without_cr.is_some());
                let text = without_cr.unwrap_or(without_lf);
                let whole = text.len() <= *limit;
                (*at, *from..*from + text.len().min(*limit), whole, without_cr.is_some_and(is_unambiguous))
            }
        };
        let may_lack_end = urgent_end.is_some_and(|urgent| urgent.is_after(start));
        let is_unambiguous = was_synced && is_unambiguous && !may_lack_end;
        *line =
            LatestLine { start, end, text, begins: !was_lost, whole: whole && !was_lost, is_unambiguous, may_continue };
        // A receiver that takes the CR or the LF for urgent data does not see the end of the line.
        if urgent_end.is_some_and(|urgent| urgent.is_after(end.moved(-2))) {
            self.is_behind_urgent = self.is_synced;
            self.is_synced = false;
        }
        *from += length;
        *at = end;
        true
    }

    /// The bytes that follow are encrypted.
    pub fn stop(&mut self) {
        *self = Self::new(self.ending);
    }

    /// The length of the first line with its line ending, if it ends in these bytes.
    fn length_of_line(&self, bytes: &[u8]) -> Option<usize> {
        let mut from = 0;
        loop {
            let at = from + memchr(b'\n', bytes.get(from..)?)?;
            let is_behind_cr = match at.checked_sub(1) {
                Some(before) => bytes[before] == b'\r',
                None => self.unfinished.as_ref().is_some_and(|unfinished| unfinished.ends_in_cr),
            };
            if is_behind_cr || self.ending == LineEnding::Lf {
                return Some(at + 1);
            }
            from = at + 1;
        }
    }

    /// Bytes are missing here: the unfinished line stays incomplete, and the next bytes may be the rest of a line.
    pub fn gap(&mut self) {
        *self = Self::in_the_middle(self.ending);
    }

    /// Whether a line is unfinished.
    pub fn is_in_line(&self) -> bool {
        self.unfinished.is_some()
    }

    /// Whether all implementations agree that the next byte begins a line.
    pub fn is_at_start(&self) -> bool {
        self.unfinished.is_none() && self.is_synced && !self.is_lost
    }

    /// Whether the next byte begins a line, unless the receiver took the previous line ending for urgent data.
    pub fn is_behind_urgent(&self) -> bool {
        self.unfinished.is_none() && self.is_behind_urgent
    }

    /// The receiver has found the end of the previous line, urgent or not.
    pub fn confirm_urgent_end(&mut self) {
        self.is_synced |= std::mem::take(&mut self.is_behind_urgent);
    }

    /// How many bytes are kept.
    pub fn buffered_bytes(&self) -> usize {
        self.unfinished.as_ref().map_or(0, |unfinished| size_of::<Unfinished>() + unfinished.text.capacity())
    }

    /// The unfinished line, as far as it was received.
    pub fn unfinished(&self) -> Option<Line<'_>> {
        let Unfinished { text, start, too_long, is_ambiguous, .. } = self.unfinished.as_deref()?;
        // A CR at the end may be the first byte of the CRLF.
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let is_unambiguous = self.is_synced && !is_ambiguous;
        let end = *start + text.len();
        let (whole, may_continue) = (!too_long && !self.is_lost, self.is_behind_urgent);
        Some(Line { text, start: *start, end, begins: !self.is_lost, whole, is_unambiguous, may_continue })
    }

    /// A line has ended.
    fn ended(&mut self, in_crlf: bool) {
        self.is_synced = in_crlf;
        self.is_lost &= !in_crlf;
    }

    fn keep(&mut self, at: Seq, bytes: &[u8], limit: usize) {
        let unfinished = self.unfinished.get_or_insert_with(|| {
            Box::new(Unfinished {
                text: Vec::new(),
                start: at,
                too_long: false,
                is_ambiguous: false,
                ends_in_cr: false,
            })
        });
        unfinished.keep(bytes, limit);
    }
}

impl Unfinished {
    /// Keeps up to `limit` bytes and one more, which may be the CR of the CRLF.
    fn keep(&mut self, bytes: &[u8], limit: usize) {
        let Some(&last) = bytes.last() else { return };
        let room = (limit + 1).saturating_sub(self.text.len()).min(bytes.len());
        self.text.extend_from_slice(&bytes[..room]);
        self.too_long |= room < bytes.len();
        // A CR at the end may be the first byte of the CRLF, and one that other bytes follow is not.
        self.is_ambiguous |= self.ends_in_cr || !is_unambiguous(bytes.strip_suffix(b"\r").unwrap_or(bytes));
        self.ends_in_cr = last == b'\r';
    }
}

/// Whether all implementations read this text in the same way.
fn is_unambiguous(text: &[u8]) -> bool {
    memchr3(b'\r', b'\n', 0, text).is_none() && memchr(IAC, text).is_none()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 64;

    /// The text of a line, whether it was whole, and whether it was unambiguous.
    type Read = (String, bool, bool);

    /// The lines of `chunks`.
    fn lines<'a>(mut reader: LineReader, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<Read> {
        let mut lines = Vec::new();
        let mut at = Seq::new(u32::MAX - 5);
        let mut expected_start = at;
        for chunk in chunks {
            let mut unread = UnreadBytes::new(at, chunk, None, LIMIT);
            while reader.advance(&mut unread) {
                let line = unread.line();
                assert_eq!(line.start, expected_start);
                expected_start = line.end;
                lines.push((String::from_utf8_lossy(line.text).into_owned(), line.whole, line.is_unambiguous));
            }
            at += chunk.len();
        }
        lines
    }

    fn of_client(text: &[u8]) -> Vec<Read> {
        lines(LineReader::new(LineEnding::Lf), [text])
    }

    fn of_server(text: &[u8]) -> Vec<Read> {
        lines(LineReader::new(LineEnding::CrLf), [text])
    }

    fn read(text: &str, whole: bool, is_unambiguous: bool) -> Read {
        (text.to_owned(), whole, is_unambiguous)
    }

    #[test]
    fn crlf_ends_a_plain_line_of_either_end() {
        let expected = [read("USER a", true, true), read("", true, true), read("PASS b", true, true)];
        assert_eq!(of_client(b"USER a\r\n\r\nPASS b\r\nQU"), expected);
        assert_eq!(of_server(b"USER a\r\n\r\nPASS b\r\nQU"), expected);
    }

    #[test]
    fn bare_lf_ends_a_client_line_and_makes_two_of_them_ambiguous() {
        let expected = [read("TYPE ", true, false), read("PORT 1", true, false), read("NOOP", true, true)];
        assert_eq!(of_client(b"TYPE \nPORT 1\r\nNOOP\r\n"), expected);
    }

    #[test]
    fn bare_lf_does_not_end_a_server_line() {
        assert_eq!(
            of_server(b"504 \n227 (1)\r\n200\r\n"),
            [read("504 \n227 (1)", true, false), read("200", true, true)]
        );
    }

    #[test]
    fn cr_nul_and_telnet_inside_make_a_line_ambiguous() {
        for odd in [b"a\rb".as_slice(), b"a\0b", b"\xff\xf4a", b"a\r", b"\r", b"a\xff"] {
            let text = [odd, b"\r\nNOOP\r\n"].concat();
            for lines in [of_client(&text), of_server(&text)] {
                assert_eq!((lines.len(), lines[0].2, lines[1].2), (2, false, true), "{odd:?}");
            }
        }
    }

    #[test]
    fn lf_ends_a_client_line_after_any_telnet_sequence() {
        for telnet in [b"NOOP \xff\xfa\r\n".as_slice(), b"NOOP \xff\xfb\n", b"NOOP \xff\n"] {
            assert_eq!(of_client(&[telnet, b"FEAT\r\n"].concat())[1].0, "FEAT", "{telnet:?}");
        }
    }

    #[test]
    fn nothing_is_whole_in_front_of_the_first_crlf_after_a_gap() {
        let text = b"227 (1)\r\n227 (2)\r\n".as_slice();
        let expected = [read("227 (1)", false, false), read("227 (2)", true, true)];
        assert_eq!(lines(LineReader::in_the_middle(LineEnding::CrLf), [text]), expected);
        let text = b"rest\nPORT 1\r\nPORT 2\r\n".as_slice();
        let expected = [read("rest", false, false), read("PORT 1", false, false), read("PORT 2", true, true)];
        assert_eq!(lines(LineReader::in_the_middle(LineEnding::Lf), [text]), expected);
    }

    #[test]
    fn overlong_line_is_skipped_to_its_end() {
        let long = [b"STOR ".as_slice(), &[b'x'; 1_000_000], b"\r\nNOOP\r\n"].concat();
        for size in [1, 7, 1000, long.len()] {
            let lines = lines(LineReader::new(LineEnding::Lf), long.chunks(size));
            assert_eq!(lines.len(), 2);
            assert_eq!((lines[0].0.len(), lines[0].1), (LIMIT, false));
            assert_eq!(lines[1], read("NOOP", true, true));
        }
    }

    #[test]
    fn line_as_long_as_the_limit_is_complete() {
        let line = [[b'x'; LIMIT].as_slice(), b"\r\n"].concat();
        for size in [1, LIMIT, LIMIT + 1, LIMIT + 2] {
            let lines = lines(LineReader::new(LineEnding::Lf), line.chunks(size));
            assert_eq!((lines[0].1, lines[0].2), (true, true), "in pieces of {size}");
        }
    }

    #[test]
    fn line_reader_keeps_nothing_between_lines() {
        let mut reader = LineReader::new(LineEnding::Lf);
        assert!(!reader.advance(&mut UnreadBytes::new(Seq::new(0), b"NO", None, LIMIT)));
        assert!(reader.is_in_line());
        assert!(reader.advance(&mut UnreadBytes::new(Seq::new(2), b"OP\r\n", None, LIMIT)));
        assert!(!reader.is_in_line());
    }

    proptest! {
        #[test]
        fn chunk_boundaries_change_nothing(
            text in proptest::collection::vec(prop_oneof![
                // Many a line is longer than the limit.
                20 => b'a'..=b'z',
                1 => any::<u8>(),
                1 => Just(b'\n'),
                1 => Just(b'\r'),
                1 => 240u8..=255,
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
            for ending in [LineEnding::Lf, LineEnding::CrLf] {
                let in_pieces = lines(LineReader::new(ending), chunks.iter().copied());
                prop_assert_eq!(in_pieces, lines(LineReader::new(ending), [text.as_slice()]));
            }
        }
    }
}
