//! Settings whose value is one word of a few.
//!
//! The parser, the printer and the test of the schema all use the lists that `words!` makes.

use std::fmt;

/// A setting whose value is one of a fixed set of words.
pub(super) trait Word: Copy + fmt::Display + 'static {
    /// Every value, in the order in which the words are listed to people.
    const ALL: &'static [Self];
    /// The word that stands for it in a policy.
    fn word(self) -> &'static str;
}

/// Declares an enum of which each variant is a word of the policy.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $crate::core::policy::word::Word for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str($crate::core::policy::word::Word::word(*self))
            }
        }
    };
}
pub(super) use words;

/// The word of `words` that `text` was most likely meant to be, if any is near enough to say so.
pub(super) fn nearest<'a>(text: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A long text is no misspelling of a short word, and comparing it would only take time.
    if text.len() > 64 {
        return None;
    }
    let allowed = (text.chars().count() / 3).clamp(1, 3);
    words
        .into_iter()
        .map(|word| (distance(text, word), word))
        .filter(|&(distance, _)| distance <= allowed)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, word)| word)
}

/// How many letters to add, drop or change to get from one to the other, upper and lower case being alike.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().map(|c| c.to_ascii_lowercase()).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().map(|c| c.to_ascii_lowercase()).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &b) in b.iter().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_word_that_was_meant() {
        assert_eq!(nearest("data_port", ["data_ports", "timeout"]), Some("data_ports"));
        assert_eq!(nearest("pasv", ["PORT", "PASV"]), Some("PASV"));
        assert_eq!(nearest("tmeout", ["data_ports", "timeout"]), Some("timeout"));
        assert_eq!(nearest("colour", ["data_ports", "timeout"]), None);
        assert_eq!(nearest("", ["tls"]), None);
    }
}
