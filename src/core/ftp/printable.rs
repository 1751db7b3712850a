//! Text from the network, made safe to print: a terminal shows it as it was sent.

use std::fmt::{self, Write as _};

/// Escapes control characters, and those that change the order of letters, end a line or are not seen.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in String::from_utf8_lossy(self.0).chars() {
            // `escape_debug` knows what Unicode calls printable; it escapes quotes and backslashes, too.
            let is_printable =
                if letter.is_ascii() { !letter.is_control() } else { letter.escape_debug().count() == 1 };
            if is_printable { f.write_char(letter)? } else { write!(f, "{}", letter.escape_default())? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_not_show_is_escaped() {
        for (text, shown) in [
            ("a \"b\\c'", "a \"b\\c'"),
            ("gr\u{fc}n \u{4e2d}", "gr\u{fc}n \u{4e2d}"),
            ("\x1b[31m\r\n\0\x7f", "\\u{1b}[31m\\r\\n\\u{0}\\u{7f}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("txt.\u{202e}exe", "txt.\\u{202e}exe"),
            ("a\u{2028}b\u{200b}", "a\\u{2028}b\\u{200b}"),
        ] {
            assert_eq!(Printable(text.as_bytes()).to_string(), shown);
        }
        assert_eq!(Printable(b"a\xff").to_string(), "a\u{fffd}");
    }
}
