//! Announcements inside of other text, which would be read as announcements if the text in front of them were missing.

use super::Mode;
use super::notation::Notation;

/// Whether a part of a server's line that reaches to its end would announce something.
pub fn reply_in(text: &[u8]) -> bool {
    is_in(text, |mode| !mode.is_active(), |notation, rest| notation.find(rest).is_some())
}

/// Whether a part of a client's line that reaches to its end would announce something.
pub fn command_in(text: &[u8]) -> bool {
    is_in(text, Mode::is_active, |notation, rest| notation.read(rest).is_some())
}

fn is_in(text: &[u8], is_meant: fn(Mode) -> bool, announces: impl Fn(Notation, &[u8]) -> bool) -> bool {
    (0..text.len()).any(|start| {
        Mode::ALL.into_iter().filter(|&mode| is_meant(mode)).any(|mode| {
            let word = mode.announced_by().as_bytes();
            let (said, rest) = text[start..].split_at(word.len().min(text.len() - start));
            said.eq_ignore_ascii_case(word) && announces(Notation::of(mode), rest)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcement_behind_other_text_is_found() {
        assert!(reply_in(b"550 227 (10,0,0,2,58,231) is no directory"));
        assert!(reply_in(b"550 x229 (|||5000|)"));
        assert!(command_in(b"RETR port 10,0,0,1,13,61"));
        assert!(command_in(b"STOR EPRT |1|10.0.0.1|5000|"));
    }

    #[test]
    fn sizes_and_names_are_no_announcements() {
        assert!(!reply_in(b"226 Transfer complete: 227 bytes in 229 ms."));
        assert!(!reply_in(b"213 1227"));
        assert!(!command_in(b"RETR report.txt"));
        assert!(!command_in(b"CWD port"));
    }
}
