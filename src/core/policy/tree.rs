//! Parses the text into a tree of values, each with its position in the text.
//!
//! Knows YAML and nothing of policies. serde_yaml reports a position only with an error. So the text is parsed twice:
//! first for the values, then along the same tree to borrow each scalar's text. That text is a slice of the input, and
//! the offset of the slice is the position.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

use serde::de::Visitor;
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, IgnoredAny, MapAccess, SeqAccess, VariantAccess};

use super::problem::{Problem, Problems, Severity};
use super::source::{Quoted, Source, Span, harmless};

/// A value and its position.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    /// The range of a scalar's text, with its quotes. Unknown for lists and mappings, and for scalars with escapes or
    /// on several lines.
    pub(super) span: Option<Span>,
}

/// The kinds of YAML values.
#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool,
    Integer(i128),
    Float,
    Text(String),
    List(Vec<Node>),
    /// In the order of the text; a key may be there twice.
    Map(Vec<(Node, Node)>),
    /// Something with a tag, such as `!secret x`.
    Tagged,
}

/// The most values that a text may hold, counting again what an alias repeats.
const MAX_VALUES: usize = 200_000;

/// The most levels of lists and mappings; the library's own limit.
const MAX_DEPTH: usize = 128;

/// The most `[` and `{` in a text. The scanner's time grows with the square of the nesting depth, and the scanner
/// reports the depth only afterwards. Counting the open brackets finds it at once, unless brackets in comments or
/// quotes seem to close them; then this limit bounds the time.
const MAX_BRACKETS: usize = 8192;

/// The tree of the only document in the text.
pub(super) fn load(source: &Source<'_>) -> Result<Node, Problems> {
    if let Some(problem) = check_text(source).or_else(|| check_anchors(source)) {
        return Err(problem.into());
    }
    let text = source.text;
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let count = Cell::new(0);
    let mut root = match documents.next().map(|document| Build { count: &count }.deserialize(document)) {
        None => Node { value: Value::Null, span: None },
        Some(Ok(root)) => root,
        // After an error the library must not be used further: it would continue in the middle of a document.
        Some(Err(error)) => return Err(explain(source, &error, count.get()).into()),
    };
    let seen = Cell::new(0);
    if !matches!(root.value, Value::Null)
        && let Some(document) = serde_yaml::Deserializer::from_str(text).next()
    {
        // The second pass sees the same events. If it fails nevertheless, positions are less exact, and that is all.
        let _ = Locate { node: &mut root, text, seen: &seen }.deserialize(document);
    }
    if documents.next().is_some() {
        let mark = ["\n---", "\r---"].iter().find_map(|mark| text.get(seen.get()..)?.find(mark));
        let (at, length) = mark.map_or((seen.get(), 1), |mark| (seen.get() + mark + 1, 3));
        return Err(problem_at(source, at, length, "a second document begins here", "one document in the file").into());
    }
    Ok(root)
}

fn problem_at(source: &Source<'_>, at: usize, length: usize, message: impl Into<String>, expected: &str) -> Problem {
    Problem::new(Severity::Error, source, Span { start: at, end: at + length }, "", message, expected)
}

/// Finds characters that YAML does not allow, line ends that editors and YAML count differently, and too many brackets.
fn check_text(source: &Source<'_>) -> Option<Problem> {
    let (mut open, mut all) = (0_usize, 0);
    for (at, c) in source.text.char_indices() {
        match c {
            '[' | '{' => (open, all) = (open + 1, all + 1),
            ']' | '}' => open = open.saturating_sub(1),
            '\t'
            | '\n'
            | '\r'
            | ' '..='~'
            | '\u{A0}'..='\u{2027}'
            | '\u{202A}'..='\u{FEFE}'
            | '\u{FF00}'..='\u{FFFD}' => {}
            '\u{10000}'.. => {}
            c => {
                let message = format!("the character {} is not allowed in a YAML file", c.escape_unicode());
                return Some(problem_at(source, at, c.len_utf8(), message, "a text file in UTF-8"));
            }
        }
        if open > MAX_DEPTH {
            return Some(problem_at(source, at, 1, "too many brackets are open here", TOO_DEEP));
        }
        if all > MAX_BRACKETS {
            let expected = format!("at most {MAX_BRACKETS} of [ and {{ in the whole file");
            return Some(problem_at(source, at, 1, "there are too many brackets", &expected));
        }
    }
    None
}

/// Finds an anchor that is defined twice and used by an alias: the library would confuse the two.
fn check_anchors(source: &Source<'_>) -> Option<Problem> {
    let aliased: HashSet<&str> = references(source.text, '*').map(|(_, name)| name).collect();
    let mut names = HashSet::new();
    let mut anchors = references(source.text, '&').filter(|(_, name)| aliased.contains(name));
    let (at, name) = anchors.find(|(_, name)| !names.insert(*name))?;
    let message = format!("the anchor &{} is defined twice", Quoted(name));
    Some(problem_at(source, at, name.len() + 1, message, "another name for each anchor"))
}

/// The offsets at which a token may begin with this character, and the name that follows it.
///
/// Comments at the end of a line, and texts in quotes, are included: only the scanner recognizes them.
fn references(text: &str, sign: char) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.split_inclusive(['\n', '\r']).filter(|line| !line.trim_start().starts_with('#'));
    lines.flat_map(move |line| line.match_indices(sign).map(move |(at, _)| (line, at))).filter_map(move |(line, at)| {
        let before = line[..at].chars().next_back();
        let begins = before.is_none_or(|c| c.is_whitespace() || "[]{},:".contains(c));
        let name = line[at + 1..].split(|c: char| !(c.is_alphanumeric() || "_-".contains(c))).next()?;
        let place = line.as_ptr() as usize - text.as_ptr() as usize + at;
        (begins && !name.is_empty()).then_some((place, name))
    })
}

/// The library's error as a problem, with a hint at the usual cause.
fn explain(source: &Source<'_>, error: &serde_yaml::Error, count: usize) -> Problem {
    let text = source.text;
    let at = error.location().map_or(0, |location| location.index()).min(text.len());
    let mut message = error.to_string();
    // The library detects aliases that repeat each other, but not aliases that repeat a long list.
    if count > MAX_VALUES || message.contains("repetition limit") {
        let message = "there are too many values, counting again what aliases repeat";
        return problem_at(source, at, 1, message, &format!("at most {MAX_VALUES}"));
    }
    if let Some(location) = error.location() {
        let place = format!(" at line {} column {}", location.line(), location.column());
        message = message.replacen(&place, "", 1);
    }
    let line_start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    let hint = if message.contains("recursion limit") {
        TOO_DEEP
    } else if text[at..].starts_with('\t') {
        "spaces: YAML does not take tabs for indentation"
    } else if line.contains("::") && line.contains('[') {
        IPV6_HINT
    } else if message.starts_with("mapping values are not allowed") {
        "one `key: value` on a line; quote a text that holds a colon and a space"
    } else {
        ""
    };
    problem_at(source, at, 1, format!("not valid YAML: {}", harmless(&message, 200)), hint)
}

const TOO_DEEP: &str = "no more than 128 levels of lists and mappings";

/// How to write an IPv6 address that YAML would read as another kind of value.
pub(super) const IPV6_HINT: &str = "quotes around an IPv6 address that begins or ends with a colon, such as \"::1\"";

/// Builds the tree, without positions.
#[derive(Clone, Copy)]
struct Build<'c> {
    count: &'c Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Build<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        self.count.set(self.count.get() + 1);
        if self.count.get() > MAX_VALUES {
            return Err(D::Error::custom("too many values"));
        }
        deserializer.deserialize_any(self)
    }
}

/// Visitor methods, each of which makes a node of one kind of value.
macro_rules! visits {
    ($($visit:ident($($of:ident: $type:ty)?) => $value:expr;)*) => {
        $(fn $visit<E>(self $(, $of: $type)?) -> Result<Node, E> {
            Ok(Node { value: $value, span: None })
        })*
    };
}

impl<'de> Visitor<'de> for Build<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    visits! {
        visit_unit() => Value::Null;
        visit_none() => Value::Null;
        visit_bool(_value: bool) => Value::Bool;
        visit_i64(number: i64) => Value::Integer(number.into());
        visit_u64(number: u64) => Value::Integer(number.into());
        visit_i128(number: i128) => Value::Integer(number);
        visit_u128(number: u128) => Value::Integer(number.try_into().unwrap_or(i128::MAX));
        visit_f64(_number: f64) => Value::Float;
        visit_str(text: &str) => Value::Text(text.to_owned());
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element_seed(self)? {
            nodes.push(node);
        }
        Ok(Node { value: Value::List(nodes), span: None })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(key) = map.next_key_seed(self)? {
            nodes.push((key, map.next_value_seed(self)?));
        }
        Ok(Node { value: Value::Map(nodes), span: None })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Node, A::Error> {
        let (IgnoredAny, contents) = tagged.variant::<IgnoredAny>()?;
        let IgnoredAny = contents.newtype_variant()?;
        Ok(Node { value: Value::Tagged, span: None })
    }
}

/// Parses the text again along the tree, and records the position of each scalar.
struct Locate<'n, 't> {
    node: &'n mut Node,
    text: &'t str,
    /// Where the last scalar ended.
    seen: &'n Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Locate<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.node.value {
            Value::List(_) => deserializer.deserialize_seq(self),
            Value::Map(_) => deserializer.deserialize_map(self),
            Value::Tagged => deserializer.deserialize_ignored_any(IgnoredAny).map(drop),
            _ => deserializer.deserialize_str(self),
        }
    }
}

impl<'de> Visitor<'de> for Locate<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the same value as before")
    }

    fn visit_borrowed_str<E>(self, piece: &'de str) -> Result<(), E> {
        let start = (piece.as_ptr() as usize).wrapping_sub(self.text.as_ptr() as usize);
        let end = start.wrapping_add(piece.len());
        if self.text.get(start..end) == Some(piece) {
            let bytes = self.text.as_bytes();
            let quote = start.checked_sub(1).map(|at| bytes[at]).filter(|byte| matches!(byte, b'"' | b'\''));
            let quoted = usize::from(quote.is_some() && bytes.get(end).copied() == quote);
            self.node.span = Some(Span { start: start - quoted, end: end + quoted });
            self.seen.set(self.seen.get().max(end + quoted));
        }
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Value::List(nodes) = &mut self.node.value else { return Ok(()) };
        for node in nodes {
            list.next_element_seed(Locate { node, text: self.text, seen: self.seen })?;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Value::Map(nodes) = &mut self.node.value else { return Ok(()) };
        for (key, value) in nodes {
            map.next_key_seed(Locate { node: key, text: self.text, seen: self.seen })?;
            map.next_value_seed(Locate { node: value, text: self.text, seen: self.seen })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Node {
        let source = Source::new("policy.yaml", text);
        load(&source).unwrap_or_else(|problems| panic!("{text:?}: {problems}"))
    }

    fn problem(text: &str) -> String {
        let source = Source::new("policy.yaml", text);
        let problems = load(&source).expect_err("a problem");
        let first = problems.iter().next().expect("a problem");
        assert_eq!(problems.iter().count(), 1, "{problems}");
        format!("{}:{}: {} ({})", first.line, first.column, first.message, first.expected)
    }

    /// The texts of all scalars at their positions in `text`, in order.
    fn found<'t>(text: &'t str, node: &Node, into: &mut Vec<&'t str>) {
        match &node.value {
            Value::List(nodes) => nodes.iter().for_each(|node| found(text, node, into)),
            Value::Map(pairs) => pairs.iter().for_each(|(key, value)| {
                found(text, key, into);
                found(text, value, into);
            }),
            Value::Tagged => {}
            _ => into.push(node.span.map_or("?", |span| &text[span.start..span.end])),
        }
    }

    fn all_found(text: &str) -> Vec<&str> {
        let mut all = Vec::new();
        found(text, &tree(text), &mut all);
        all
    }

    #[test]
    fn every_scalar_knows_its_own_text() {
        let text = "ä: [1, 0x10 , \"two\",'three']\r\n? b\n: - -5-6 # 7\n  - { c : yes, d: }\n\"e\": &x  1.5\nf: *x\n";
        let all =
            ["ä", "1", "0x10", "\"two\"", "'three'", "b", "-5-6", "c", "yes", "d", "", "\"e\"", "1.5", "f", "1.5"];
        assert_eq!(all_found(text), all);
    }

    #[test]
    fn scalar_with_escapes_or_several_lines_has_no_position() {
        let text = "a: \"b\\x41\"\nc: one\n  two\nd: |\n  text\ne: 'it''s'\n";
        assert_eq!(all_found(text), ["a", "?", "c", "?", "d", "?", "e", "?"]);
    }

    #[test]
    fn repeated_key_is_kept_twice() {
        assert_eq!(all_found("a: 1\na: 2\n<<: 3\n"), ["a", "1", "a", "2", "<<", "3"]);
    }

    #[test]
    fn tagged_value_keeps_later_positions_right() {
        let text = "a: !secret b\nc: !x [1, {d: e}]\nf: !!str 2\n";
        assert_eq!(all_found(text), ["a", "c", "f", "2"]);
        let Value::Map(pairs) = tree(text).value else { panic!("no mapping") };
        assert!(matches!(pairs[0].1.value, Value::Tagged) && matches!(pairs[1].1.value, Value::Tagged));
        assert!(matches!(&pairs[2].1.value, Value::Text(text) if text == "2"));
    }

    #[test]
    fn second_document_is_an_error() {
        assert!(matches!(tree("a: 1\n...\n").value, Value::Map(_)));
        assert!(matches!(tree("---\na: 1\n").value, Value::Map(_)));
        assert!(matches!(tree("").value, Value::Null) && matches!(tree("# nothing\n").value, Value::Null));
        let expected = "a second document begins here (one document in the file)";
        assert_eq!(problem("a: 1\n---\nb: 2\n"), format!("2:1: {expected}"));
        assert_eq!(problem("a: 1\n...\n# more\n---\n[}"), format!("4:1: {expected}"));
    }

    #[test]
    fn syntax_errors_have_a_position_and_a_hint() {
        let tab = "(spaces: YAML does not take tabs for indentation)";
        assert!(problem("capture:\n\tqueue: 1\n").starts_with("2:1: not valid YAML: found character"));
        assert!(problem("capture:\n\tqueue: 1\n").ends_with(tab));
        assert!(problem("a: [::1]").starts_with("1:5: not valid YAML") && problem("a: [::1]").contains("IPv6"));
        assert!(problem("a: [fd00::]").contains("IPv6"));
        assert!(problem("a: b: c").starts_with("1:5: not valid YAML: mapping values are not allowed"));
        assert!(problem("a: 'b").starts_with("1:6: not valid YAML: found unexpected end of stream"));
        assert!(problem("\na: *b").starts_with("2:4: not valid YAML: unknown anchor ("));
        assert!(problem("{").starts_with("1:2: not valid YAML"));
    }

    #[test]
    fn anchor_defined_twice_is_an_error() {
        assert_eq!(
            problem("a: &x 1\nb: &y 2\nc: &x 3\nd: *x\n"),
            "3:4: the anchor &x is defined twice (another name for each anchor)"
        );
        assert_eq!(all_found("# &x\na: &x R&D\nb: R&D & &y D\n"), ["a", "R&D", "b", "R&D & &y D"]);
        // Anchors that no alias uses may be text.
        assert_eq!(all_found("a: \"&x and &x\"\n"), ["a", "\"&x and &x\""]);
    }

    #[test]
    fn endless_repetition_is_refused() {
        let mut laughs = String::from("a: &a [lol]\n");
        for (of, name) in ('a'..'i').zip('b'..) {
            laughs += &format!("{name}: &{name} [{}]\n", vec![format!("*{of}"); 9].join(", "));
        }
        assert!(problem(&laughs).contains("too many values"), "{}", problem(&laughs));
        let long = format!("a: &a [{}]\nb: [{}]\n", "1, ".repeat(10_000), "*a, ".repeat(1000));
        assert!(problem(&long).contains("too many values"), "{}", problem(&long));
        assert!(problem("a: &a [*a, *a]").contains("recursion limit"), "{}", problem("a: &a [*a, *a]"));
    }

    #[test]
    fn deep_nesting_is_refused() {
        assert!(problem(&"[".repeat(1 << 20)).starts_with("1:129: too many brackets are open here"));
        assert!(problem(&"- ".repeat(2000)).contains("128 levels"));
        assert!(problem(&"[a: ".repeat(1 << 18)).starts_with("1:513: too many brackets are open here"));
        assert!(problem(&"[]\n".repeat(1 << 18)).starts_with("8193:1: there are too many brackets"));
    }

    #[test]
    fn control_characters_are_refused() {
        assert!(problem("a: \0").starts_with("1:4: the character \\u{0}"));
        assert!(problem("a: b\n\u{1b}[31m").starts_with("2:1: the character \\u{1b}"));
        assert!(problem("a: b\u{2028}").starts_with("1:5: the character \\u{2028}"));
    }
}
