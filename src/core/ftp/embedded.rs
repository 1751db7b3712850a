//! Announcements inside of other text, which would be read as announcements if the text in front of them were missing.

use super::Mode;
use super::notation::Notation;

/// Replies and commands that announce, with their modes.
const REPLIES: [(&[u8], Mode); 3] = [(b"227", Mode::Pasv), (b"228", Mode::Lpsv), (b"229", Mode::Epsv)];
const COMMANDS: [(&[u8], Mode); 3] = [(b"PORT", Mode::Port), (b"EPRT", Mode::Eprt), (b"LPRT", Mode::Lprt)];

/// Whether a part of a server's line that reaches to its end would announce something.
pub fn reply_in(text: &[u8]) -> bool {
    is_in(text, &REPLIES, |mode, rest| Notation::of(mode).find(rest).is_some())
}

/// Whether a part of a client's line that reaches to its end would announce something.
pub fn command_in(text: &[u8]) -> bool {
    is_in(text, &COMMANDS, |mode, rest| Notation::of(mode).read(rest).is_some())
}

fn is_in(text: &[u8], words: &[(&[u8], Mode)], announces: impl Fn(Mode, &[u8]) -> bool) -> bool {
    (0..text.len()).any(|start| {
        words.iter().any(|(word, mode)| {
            let (said, rest) = text[start..].split_at(word.len().min(text.len() - start));
            said.eq_ignore_ascii_case(word) && announces(*mode, rest)
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
