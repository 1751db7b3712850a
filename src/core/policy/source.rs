//! The text of a policy, and how positions in it are shown.
//!
//! The text is safe to print on a terminal: control characters and characters that change the writing direction are
//! escaped.

use std::fmt;

/// A range of the text, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
}

/// The text of a policy, and its file name.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
    /// Where each line begins.
    lines: Vec<usize>,
}

/// A position as an editor numbers it: the first character of the first line is 1:1.
struct Position<'a> {
    line: usize,
    column: usize,
    before: &'a str,
    after: &'a str,
}

/// How much of a line is shown before and after the position.
const BEFORE: usize = 60;
const AFTER: usize = 80;

impl<'a> Source<'a> {
    pub(super) fn new(name: &'a str, text: &'a str) -> Self {
        let bytes = text.as_bytes();
        // CRLF is one line end, counted at its LF.
        let ends = |&(at, &byte): &(usize, &u8)| byte == b'\n' || byte == b'\r' && bytes.get(at + 1) != Some(&b'\n');
        let starts = bytes.iter().enumerate().filter(ends).map(|(at, _)| at + 1);
        Self { name, text, lines: std::iter::once(0).chain(starts).collect() }
    }

    /// The text of `span`.
    pub(super) fn slice(&self, span: Span) -> &'a str {
        self.text.get(span.start..span.end).unwrap_or_default()
    }

    /// The line of the byte `at`.
    pub(super) fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|&start| start <= at)
    }

    /// Line and column of the byte `at`.
    pub(super) fn line_and_column(&self, at: usize) -> (usize, usize) {
        let position = self.position(at);
        (position.line, position.column)
    }

    /// The line of `span` with the span underlined, and its number in the margin.
    pub(super) fn excerpt(&self, span: Span) -> String {
        let position = self.position(span.start);
        let shown = |text: &str| text.chars().map(|c| Shown(c).to_string()).collect::<String>();
        let mut head: Vec<char> = position.before.chars().rev().take(BEFORE + 1).collect();
        head.reverse();
        let cut_before = head.len() > BEFORE;
        let head: String = head.into_iter().skip(usize::from(cut_before)).collect();
        let tail: String = position.after.chars().take(AFTER).collect();
        let cut_after = tail.len() < position.after.len();
        let marked = span.end.saturating_sub(span.start).min(tail.len());
        let marked = tail.get(..marked).unwrap_or(&tail);
        let pad = usize::from(cut_before) + head.chars().map(|c| Shown(c).width()).sum::<usize>();
        let carets = marked.chars().map(|c| Shown(c).width()).sum::<usize>().max(1);
        format!(
            "{line:>5} | {}{}{}{}\n      | {:pad$}{:^<carets$}",
            if cut_before { "…" } else { "" },
            shown(&head),
            shown(&tail),
            if cut_after { "…" } else { "" },
            "",
            "",
            line = position.line,
        )
    }

    fn position(&self, at: usize) -> Position<'a> {
        let at = at.min(self.text.len());
        let at = (0..=at).rev().find(|&at| self.text.is_char_boundary(at)).unwrap_or(0);
        let (before, after) = self.text.split_at(at);
        let line = self.line(at);
        let before = &before[self.lines[line - 1]..];
        let after = after.split(['\n', '\r']).next().unwrap_or_default();
        Position { line, column: before.chars().count() + 1, before, after }
    }
}

/// A character as it is printed: escaped unless it is visible.
#[derive(Clone, Copy)]
struct Shown(char);

impl Shown {
    /// Its width in terminal cells.
    fn width(self) -> usize {
        match self.0 {
            '\t' => 1,
            c if !is_visible(c) => c.escape_unicode().count(),
            '\u{300}'..='\u{36F}' => 0,
            '\u{1100}'..='\u{115F}'
            | '\u{2E80}'..='\u{A4CF}'
            | '\u{AC00}'..='\u{D7A3}'
            | '\u{F900}'..='\u{FAFF}'
            | '\u{FE30}'..='\u{FE6F}'
            | '\u{FF00}'..='\u{FF60}'
            | '\u{FFE0}'..='\u{FFE6}'
            | '\u{1F300}'..='\u{1FAFF}'
            | '\u{20000}'..='\u{3FFFD}' => 2,
            _ => 1,
        }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            '\t' => f.write_str(" "),
            c if is_visible(c) => write!(f, "{c}"),
            c => write!(f, "{}", c.escape_unicode()),
        }
    }
}

/// Whether a character is visible and has no other effect: no control character, no zero-width character that could
/// hide text, none that changes the writing direction.
pub(super) fn is_visible(c: char) -> bool {
    !(c.is_control()
        || matches!(c,
            '\u{AD}' | '\u{61C}' | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF0}'..='\u{FFFB}' | '\u{FFFE}'..='\u{FFFF}'
            | '\u{E0000}'..='\u{E0FFF}'))
}

/// Text of the policy within a message, escaped and shortened.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&harmless(self.0, 60))
    }
}

/// At most `longest` characters of a text, escaped.
pub(super) fn harmless(text: &str, longest: usize) -> String {
    let mut characters = text.chars();
    let mut shown: String = characters.by_ref().take(longest).map(|c| Shown(c).to_string()).collect();
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source<'_> {
        Source::new("policy.yaml", text)
    }

    #[test]
    fn lines_end_as_editors_end_them() {
        let places: Vec<_> = [0, 3, 6, 8].map(|at| source("a\r\nb\n\rü c").line_and_column(at)).into();
        assert_eq!(places, [(1, 1), (2, 1), (4, 1), (4, 2)]);
        assert_eq!(source("a").line_and_column(99), (1, 2));
    }

    #[test]
    fn caret_is_under_the_span() {
        let shown = source("x: 1\n\tk: 5-4 # \u{1b}[31m").excerpt(Span { start: 9, end: 12 });
        assert_eq!(shown, "    2 |  k: 5-4 # \\u{1b}[31m\n      |     ^^^");
    }

    #[test]
    fn excerpt_of_a_long_line_is_cut_at_both_ends() {
        let text = format!("{}here{}", "x".repeat(500), "y".repeat(500));
        let shown = source(&text).excerpt(Span { start: 500, end: 504 });
        let expected = format!("    1 | …{}here{}…\n      | {}^^^^", "x".repeat(60), "y".repeat(76), " ".repeat(61));
        assert_eq!(shown, expected);
    }

    #[test]
    fn printed_text_has_no_control_characters() {
        let all: String = ('\0'..='\u{2FFF}').collect();
        assert!(Quoted(&all[..300]).to_string().chars().all(is_visible));
        assert_eq!(Quoted("\u{202E}\0").to_string(), "\\u{202e}\\u{0}");
    }
}
