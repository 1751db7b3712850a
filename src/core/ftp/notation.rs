//! The four ways in which FTP writes an address and a port, read and printed.
//!
//! Knows nothing of the lines around them, nor of what is allowed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use memchr::memchr_iter;

use super::Mode;

/// How many digits a number may have.
const LONGEST_NUMBER: usize = 5;

/// More bytes than the three fields of an announcement have.
const LONGEST_FIELDS: usize = 64;

/// What a line announces. The port may be zero here: that is readable, and refused for what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The address; the notation of 229 has none, it means the server itself.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

/// An announcement, and where in the text it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What the bytes announce.
    pub announced: Announced,
    /// The bytes, so that they can be replaced.
    pub span: Range<usize>,
}

/// A way of writing an address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Notation {
    /// `10,0,0,1,19,137`: IPv4, six numbers from 0 to 255 (RFC 959).
    Six,
    /// `4,4,10,0,0,1,2,19,137`: family, length, address, length, port (RFC 1639).
    Long,
    /// `|1|10.0.0.1|5001|`: family, address and port as text between any delimiters (RFC 2428).
    Extended,
    /// `(|||5001|)`: the same with nothing but the port, in parentheses (RFC 2428).
    ExtendedPort,
}

impl Notation {
    /// The one that announcements of this mode use.
    pub const fn of(mode: Mode) -> Self {
        match mode {
            Mode::Port | Mode::Pasv => Self::Six,
            Mode::Lprt | Mode::Lpsv => Self::Long,
            Mode::Eprt => Self::Extended,
            Mode::Epsv => Self::ExtendedPort,
        }
    }

    /// Reads the argument of a command, which is nothing but the announcement.
    pub fn read(self, argument: &[u8]) -> Option<Found> {
        let argument = argument.trim_ascii_end();
        let start = argument.len() - argument.trim_ascii_start().len();
        let (announced, length) = self.read_at(&argument[start..])?;
        (start + length == argument.len()).then_some(Found { announced, span: start..start + length })
    }

    /// Finds the announcement in the text of a reply, whatever text surrounds it.
    pub fn find(self, text: &[u8]) -> Option<Found> {
        match self {
            Self::Six | Self::Long => {
                let mut start = 0;
                while start < text.len() {
                    if text[start].is_ascii_digit() {
                        if let Some((announced, length)) = self.read_at(&text[start..]) {
                            return Some(Found { announced, span: start..start + length });
                        }
                        // What begins in the middle of a list, or of a number, is not what was meant.
                        let is_list = |byte: &&u8| byte.is_ascii_digit() || **byte == b',';
                        start += text[start..].iter().take_while(is_list).count();
                    } else {
                        start += 1;
                    }
                }
                None
            }
            Self::Extended | Self::ExtendedPort => memchr_iter(b'(', text).find_map(|open| {
                let (announced, length) = self.read_at(&text[open + 1..])?;
                let span = open + 1..open + 1 + length;
                (text.get(span.end) == Some(&b')')).then_some(Found { announced, span })
            }),
        }
    }

    /// Whether any part of a text is an announcement.
    pub fn is_in(self, text: &[u8]) -> bool {
        (0..text.len()).any(|start| match self {
            Self::Six | Self::Long => text[start].is_ascii_digit() && self.read_at(&text[start..]).is_some(),
            Self::Extended | Self::ExtendedPort => text[start] == b'(' && self.read_at(&text[start + 1..]).is_some(),
        })
    }

    /// What the text begins with, and how many bytes of it say so.
    fn read_at(self, text: &[u8]) -> Option<(Announced, usize)> {
        match self {
            Self::Six => {
                let mut numbers = Numbers::of(text);
                let address = Ipv4Addr::from(numbers.take::<4>()?);
                let port = u16::from_be_bytes(numbers.take()?);
                numbers.end(text, Announced { address: Some(address.into()), port })
            }
            Self::Long => {
                let mut numbers = Numbers::of(text);
                let address = match numbers.take()? {
                    [4, 4] => IpAddr::from(numbers.take::<4>()?),
                    [6, 16] => IpAddr::from(numbers.take::<16>()?),
                    _ => return None,
                };
                let [2] = numbers.take()? else { return None };
                let port = u16::from_be_bytes(numbers.take()?);
                numbers.end(text, Announced { address: Some(address), port })
            }
            Self::Extended => {
                let ([family, address, port], length) = fields(text)?;
                let address = std::str::from_utf8(address).ok()?;
                let address = match family {
                    b"1" => IpAddr::V4(address.parse().ok()?),
                    b"2" => IpAddr::V6(address.parse().ok()?),
                    _ => return None,
                };
                Some((Announced { address: Some(address), port: decimal(port)? }, length))
            }
            Self::ExtendedPort => {
                let ([b"", b"", port], length) = fields(text)? else { return None };
                Some((Announced { address: None, port: decimal(port)? }, length))
            }
        }
    }

    /// Prints an announcement so that reading it gives the same again; nothing if the notation cannot say it.
    pub fn print(self, announced: &Announced) -> Option<String> {
        let Announced { address, port } = *announced;
        let [high, low] = port.to_be_bytes();
        Some(match (self, address) {
            (Self::Six, Some(IpAddr::V4(address))) => format!("{},{high},{low}", Commas(&address.octets())),
            (Self::Long, Some(IpAddr::V4(address))) => format!("4,4,{},2,{high},{low}", Commas(&address.octets())),
            (Self::Long, Some(IpAddr::V6(address))) => format!("6,16,{},2,{high},{low}", Commas(&address.octets())),
            (Self::Extended, Some(IpAddr::V4(address))) => format!("|1|{address}|{port}|"),
            (Self::Extended, Some(IpAddr::V6(address))) => format!("|2|{address}|{port}|"),
            (Self::ExtendedPort, None) => format!("|||{port}|"),
            (Self::Six | Self::Extended, _) | (Self::Long, None) | (Self::ExtendedPort, Some(_)) => return None,
        })
    }
}

/// Numbers from 0 to 255 with commas between them.
struct Numbers<'a> {
    rest: &'a [u8],
    is_first: bool,
}

impl<'a> Numbers<'a> {
    fn of(text: &'a [u8]) -> Self {
        Self { rest: text, is_first: true }
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut numbers = [0; N];
        for number in &mut numbers {
            if !std::mem::take(&mut self.is_first) {
                self.rest = self.rest.strip_prefix(b",")?;
            }
            let digits = self.rest.iter().take(LONGEST_NUMBER + 1).take_while(|byte| byte.is_ascii_digit()).count();
            *number = u8::try_from(decimal(&self.rest[..digits])?).ok()?;
            self.rest = &self.rest[digits..];
        }
        Some(numbers)
    }

    /// The announcement and its length, if the list of numbers ends here.
    fn end(self, text: &[u8], announced: Announced) -> Option<(Announced, usize)> {
        (self.rest.first() != Some(&b',')).then_some((announced, text.len() - self.rest.len()))
    }
}

/// Three fields, each between two of whatever byte the text begins with, and how long all of it is.
fn fields(text: &[u8]) -> Option<([&[u8]; 3], usize)> {
    let text = &text[..text.len().min(LONGEST_FIELDS)];
    let (&delimiter, _) = text.split_first()?;
    if !delimiter.is_ascii_graphic() || delimiter.is_ascii_alphanumeric() {
        return None;
    }
    let mut fields = [b"".as_slice(); 3];
    let mut start = 1;
    for field in &mut fields {
        let length = text[start..].iter().position(|&byte| byte == delimiter)?;
        *field = &text[start..start + length];
        start += length + 1;
    }
    Some((fields, start))
}

/// A number of one to five digits that fits a port.
fn decimal(digits: &[u8]) -> Option<u16> {
    if digits.is_empty() || digits.len() > LONGEST_NUMBER {
        return None;
    }
    let number = digits
        .iter()
        .try_fold(0u32, |number, digit| digit.is_ascii_digit().then(|| number * 10 + u32::from(digit - b'0')))?;
    u16::try_from(number).ok()
}

/// Bytes as decimal numbers with commas between them.
struct Commas<'a>(&'a [u8]);

impl fmt::Display for Commas<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{byte}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Notation; 4] = [Notation::Six, Notation::Long, Notation::Extended, Notation::ExtendedPort];

    fn read(notation: Notation, text: &str) -> Option<String> {
        notation.read(text.as_bytes()).map(|found| show(&found))
    }

    fn find(notation: Notation, text: &str) -> Option<String> {
        notation.find(text.as_bytes()).map(|found| show(&found))
    }

    fn show(found: &Found) -> String {
        let Announced { address, port } = found.announced;
        format!("{} {port}", address.map_or("-".to_owned(), |address| address.to_string()))
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn six_numbers_name_an_address_and_a_port() {
        assert_eq!(read(Notation::Six, "10,0,0,1,19,137"), some("10.0.0.1 5001"));
        assert_eq!(read(Notation::Six, " 010,0,0,001,19,137 "), some("10.0.0.1 5001"));
        assert_eq!(read(Notation::Six, "10,0,0,1,0,0"), some("10.0.0.1 0"));
    }

    #[test]
    fn anything_but_six_numbers_to_255_is_no_address() {
        for text in [
            "",
            "10,0,0,1,19",
            "10,0,0,1,19,137,1",
            "10,0,0,256,1,1",
            "10,0,0,1,19,-1",
            "10.0.0.1,19,137",
            "10, 0,0,1,19,137",
            "10,0,0,1,19,137x",
            "10,,0,1,19,137",
            "99999999999,0,0,1,1,1",
            "+1,0,0,1,1,1",
        ] {
            assert_eq!(read(Notation::Six, text), None, "{text}");
        }
    }

    #[test]
    fn reply_text_around_the_numbers_is_free() {
        for text in [
            "Entering Passive Mode (10,0,0,1,19,137).",
            "=10,0,0,1,19,137",
            "10,0,0,1,19,137",
            "Mode 2 (10,0,0,1,19,137)",
            "Passive mode OK (127.0.0.1, 10,0,0,1,19,137)",
            "1110,0,0,1 10,0,0,1,19,137",
        ] {
            assert_eq!(find(Notation::Six, text), some("10.0.0.1 5001"), "{text}");
        }
        for text in ["Entering Passive Mode", "(10,0,0,1,19)", "1110,0,0,1,19,137", "(10,0,0,1,19,137,3)"] {
            assert_eq!(find(Notation::Six, text), None, "{text}");
        }
    }

    #[test]
    fn long_notation_has_lengths_and_families() {
        assert_eq!(read(Notation::Long, "4,4,10,0,0,1,2,19,137"), some("10.0.0.1 5001"));
        let six = "6,16,253,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,2,19,137";
        assert_eq!(read(Notation::Long, six), some("fd00::1 5001"));
        assert_eq!(find(Notation::Long, &format!("Entering Long Passive Mode ({six})")), some("fd00::1 5001"));
        for text in ["4,16,10,0,0,1,2,19,137", "6,4,10,0,0,1,2,19,137", "4,4,10,0,0,1,3,19,137", "4,4,10,0,0,1,2,19"] {
            assert_eq!(read(Notation::Long, text), None, "{text}");
        }
    }

    #[test]
    fn extended_notation_accepts_any_delimiter() {
        assert_eq!(read(Notation::Extended, "|1|10.0.0.1|5001|"), some("10.0.0.1 5001"));
        assert_eq!(read(Notation::Extended, "|2|fd00::1|5001|"), some("fd00::1 5001"));
        assert_eq!(read(Notation::Extended, "!1!10.0.0.1!5001!"), some("10.0.0.1 5001"));
        for text in [
            "|1|10.0.0.1|5001",
            "|3|10.0.0.1|5001|",
            "|1|fd00::1|5001|",
            "|2|10.0.0.1|5001|",
            "|1||5001|",
            "|1|10.0.0.1|65536|",
            "|1|10.0.0.1||",
            "|1|10.0.0.1|5001|x",
            "1110.0.0.115001",
            ":2:fd00::1:5001:",
        ] {
            assert_eq!(read(Notation::Extended, text), None, "{text}");
        }
    }

    #[test]
    fn extended_reply_has_only_a_port() {
        assert_eq!(find(Notation::ExtendedPort, "Entering Extended Passive Mode (|||5001|)"), some("- 5001"));
        assert_eq!(find(Notation::ExtendedPort, "Mode (extended) (!!!5001!)."), some("- 5001"));
        for text in ["(|1|10.0.0.1|5001|)", "|||5001|", "(|||5001)", "(|||5001|", "(|||x|)", "(|||99999|)"] {
            assert_eq!(find(Notation::ExtendedPort, text), None, "{text}");
        }
    }

    #[test]
    fn span_covers_the_replaced_text() {
        let text = b"Entering Passive Mode (10,0,0,1,19,137).";
        let span = Notation::Six.find(text).expect("found").span;
        assert_eq!(&text[span], b"10,0,0,1,19,137");
        let text = b"Entering Extended Passive Mode (|||5001|)";
        let span = Notation::ExtendedPort.find(text).expect("found").span;
        assert_eq!(&text[span], b"|||5001|");
    }

    proptest! {
        #[test]
        fn reading_what_was_printed_gives_the_same(address in proptest::option::of(any::<IpAddr>()), port: u16) {
            let announced = Announced { address, port };
            for notation in ALL {
                if let Some(text) = notation.print(&announced) {
                    let whole = 0..text.len();
                    let expected = Some(Found { announced, span: whole });
                    prop_assert_eq!(notation.read(text.as_bytes()), expected, "{}", text);
                    let reply = format!("Entering some mode ({text}).");
                    let found = notation.find(reply.as_bytes()).map(|found| found.announced);
                    prop_assert_eq!(found, Some(announced), "{}", reply);
                }
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9,|().:a-f =!x-]{0,60}") {
            for notation in ALL {
                for found in notation.read(text.as_bytes()).into_iter().chain(notation.find(text.as_bytes())) {
                    prop_assert!(found.span.end <= text.len());
                    let again = &text.as_bytes()[found.span];
                    prop_assert_eq!(notation.read(again).map(|found| found.announced), Some(found.announced));
                }
            }
        }
    }
}
