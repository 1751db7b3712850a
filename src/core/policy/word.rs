//! Settings whose value is one word of a few, and the names of commands that a policy may deny.
//!
//! The parser, the printer and the test of the schema all use the lists in this file.

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

/// The commands of FTP that some RFC, or a draft that servers took up, defines: RFC 775, 959, 1639, 2228, 2389, 2428,
/// 2577, 2640, 3659, 4217, 7151 and the checksum commands. A verb that is not here may still be denied; the list only
/// serves to notice a misspelt one.
pub(super) const COMMANDS: &[&str] = &[
    "ABOR", "ACCT", "ADAT", "ALLO", "APPE", "AUTH", "AVBL", "CCC", "CDUP", "CONF", "CSID", "CWD", "DELE", "DSIZ",
    "ENC", "EPRT", "EPSV", "FEAT", "HASH", "HELP", "HOST", "LANG", "LIST", "LPRT", "LPSV", "MDTM", "MFCT", "MFF",
    "MFMT", "MIC", "MKD", "MLSD", "MLST", "MODE", "NLST", "NOOP", "OPTS", "PASS", "PASV", "PBSZ", "PORT", "PROT",
    "PWD", "QUIT", "RANG", "REIN", "REST", "RETR", "RMD", "RMDA", "RNFR", "RNTO", "SITE", "SIZE", "SMNT", "SPSV",
    "STAT", "STOR", "STOU", "STRU", "SYST", "THMB", "TYPE", "USER", "XCRC", "XCUP", "XCWD", "XMD5", "XMKD", "XPWD",
    "XRMD", "XSHA", "XSHA1", "XSHA256", "XSHA512",
];

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

    #[test]
    fn the_commands_are_sorted_and_each_there_once() {
        assert!(COMMANDS.is_sorted_by(|a, b| a < b));
    }
}
