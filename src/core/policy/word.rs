//! Settings whose value is one word of a few, and suggestions for misspelt words.

use std::fmt;

/// A setting whose value is one of a fixed set of words.
pub(super) trait Word: Copy + PartialEq + fmt::Display + 'static {
    /// Every value, in the order in which the words are listed to people.
    const ALL: &'static [Self];
}

/// Declares an enum of which each variant is a word of the policy.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $crate::core::policy::word::Word for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$variant => $word,)+ })
            }
        }
    };
}
pub(super) use words;

/// `; did you mean WORD?` with the one of `words` that `text` was most likely meant to be, or nothing.
pub(super) fn did_you_mean(text: &str, words: impl IntoIterator<Item = impl fmt::Display>) -> String {
    // A long text is no misspelling of a short word, and comparing it would only take time.
    if text.len() > 64 {
        return String::new();
    }
    let allowed = (text.chars().count() / 3).clamp(1, 3);
    let near = words.into_iter().map(|word| word.to_string()).map(|word| {
        let distance = strsim::osa_distance(&text.to_ascii_lowercase(), &word.to_ascii_lowercase());
        (distance, word)
    });
    let nearest = near.filter(|&(distance, _)| distance <= allowed).min_by_key(|&(distance, _)| distance);
    nearest.map(|(_, word)| format!("; did you mean {word}?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_word_is_suggested() {
        assert_eq!(did_you_mean("data_port", ["data_ports", "timeout"]), "; did you mean data_ports?");
        assert_eq!(did_you_mean("pasv", ["PORT", "PASV"]), "; did you mean PASV?");
        assert_eq!(did_you_mean("tmeout", ["data_ports", "timeout"]), "; did you mean timeout?");
        assert_eq!(did_you_mean("dnta", ["dnat", "inside"]), "; did you mean dnat?");
        assert_eq!(did_you_mean("colour", ["data_ports", "timeout"]), "");
        assert_eq!(did_you_mean("", ["tls"]), "");
    }
}
