//! Announcements inside of other text, which would be read as announcements if the text in front of them were missing.

use memchr::memmem;

use super::Mode;
use super::notation::Notation;

/// Whether a part of a server's line that reaches to its end may announce something. The time it takes grows with the
/// line's length alone: a client chooses what a server repeats.
pub fn reply_in(text: &[u8]) -> bool {
    Mode::ALL.into_iter().filter(|mode| !mode.is_active()).any(|mode| {
        let word = mode.announced_by().as_bytes();
        let behind = memmem::find(text, word).and_then(|start| text.get(start + word.len()..));
        behind.is_some_and(|behind| Notation::of(mode).is_in(behind))
    })
}

/// Whether a part of a client's line that reaches to its end would announce something.
pub fn command_in(text: &[u8]) -> bool {
    // Once, instead of for each part.
    let text = text.trim_ascii_end();
    (0..text.len()).any(|start| {
        Mode::ALL.into_iter().filter(|mode| mode.is_active()).any(|mode| {
            let word = mode.announced_by().as_bytes();
            let (said, rest) = text[start..].split_at(word.len().min(text.len() - start));
            said.eq_ignore_ascii_case(word) && Notation::of(mode).read(rest).is_some()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcement_after_other_text_is_found() {
        assert!(reply_in(b"550 227 (10,0,0,2,58,231) is no directory"));
        assert!(reply_in(b"550 x229 (|||5000|)"));
        assert!(command_in(b"RETR port 10,0,0,1,13,61"));
        assert!(command_in(b"STOR EPRT |1|10.0.0.1|5000| "));
    }

    /// A quadratic search takes minutes for some of them.
    #[test]
    fn hostile_lines_of_64_kib_take_no_longer_than_others() {
        const LENGTH: usize = 65_536;
        let halves = |front: &str, back: &str| {
            [front.repeat(LENGTH / 2 / front.len()), back.repeat(LENGTH / 2 / back.len())].concat()
        };
        let begun = std::time::Instant::now();
        for (front, back) in
            [("229", "("), ("229", "(!"), ("227", "1,"), ("228", "6,16,"), ("227", "1"), ("PORT", " "), ("EPRT", "|")]
        {
            let line = halves(front, back);
            assert!(!reply_in(line.as_bytes()) && !command_in(line.as_bytes()), "{front} {back}");
            assert!(!command_in([line.as_bytes(), b"x"].concat().as_slice()), "{front} {back}");
        }
        assert!(begun.elapsed() < std::time::Duration::from_secs(2), "{:?}", begun.elapsed());
    }

    #[test]
    fn sizes_and_names_are_no_announcements() {
        assert!(!reply_in(b"226 Transfer complete: 227 bytes in 229 ms."));
        assert!(!reply_in(b"213 1227"));
        assert!(!command_in(b"RETR report.txt"));
        assert!(!command_in(b"CWD port"));
    }
}
