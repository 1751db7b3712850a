//! Parses the text into a tree of values, each with its position in the text.
//!
//! Knows YAML and nothing of policies. The library reports a position only with an error, so the text is parsed
//! twice: the first time for the values, the second time along the same tree to borrow the text of each scalar. What
//! it lends is a slice of the input, and where that slice begins is the position.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

use serde::de::Visitor;
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, IgnoredAny, MapAccess, SeqAccess, VariantAccess};

use super::problem::{Problem, Problems, Severity};
use super::source::{Quoted, Source, Span, harmless};

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    /// The scalar's own text, quotes included. Unknown for what is no scalar, and for scalars that are not written as
    /// they read (escapes, several lines).
    pub(super) span: Option<Span>,
}

/// What YAML can say.
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
const MOST_VALUES: usize = 200_000;

/// The most levels of lists and mappings; the library's own limit.
const DEEPEST: usize = 128;

/// The most `[` and `{` in a text. The scanner's time grows with the square of how deeply they are nested, before it
/// tells anyone. Counting the open ones finds that out at once, unless some are closed in comments or quotes only;
/// then the number of them all is what bounds the time.
const MOST_BRACKETS: usize = 8192;

/// The tree of the only document in the text.
pub(super) fn load(source: &Source<'_>) -> Result<Node, Problems> {
    check_characters(source)?;
    check_brackets(source)?;
    check_anchors(source)?;
    let text = source.text;
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let count = Cell::new(0);
    let first = documents.next();
    let mut root = match first.map(|document| Build { count: &count }.deserialize(document)) {
        None => Node { value: Value::Null, span: None },
        Some(Ok(root)) => root,
        // Past an error nothing more may be asked of the library: it would go on in the middle of a document.
        Some(Err(error)) => return Err(explain(source, &error, count.get()).into()),
    };
    let seen = Cell::new(0);
    if !matches!(root.value, Value::Null)
        && let Some(document) = serde_yaml::Deserializer::from_str(text).next()
    {
        // The same events again. Should it fail after all, places are less exact and nothing else is lost.
        let _ = Locate { node: &mut root, text, seen: &seen }.deserialize(document);
    }
    if documents.next().is_some() { Err(second_document(source, seen.get()).into()) } else { Ok(root) }
}

fn problem_at(source: &Source<'_>, at: usize, length: usize) -> Problem {
    Problem::new(Severity::Error, source, Span { start: at, end: at + length })
}

/// Only what YAML allows, and no line ends that editors and YAML count differently.
fn check_characters(source: &Source<'_>) -> Result<(), Problems> {
    let allowed = |c| match c {
        '\t' | '\n' | '\r' | ' '..='~' => true,
        '\u{2028}' | '\u{2029}' | '\u{FEFF}' => false,
        c => matches!(c, '\u{A0}'..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..),
    };
    match source.text.char_indices().find(|&(_, c)| !allowed(c)) {
        None => Ok(()),
        Some((at, c)) => Err(problem_at(source, at, c.len_utf8())
            .message(format!("the character {} may not stand in such a file", c.escape_unicode()))
            .expected("expected a text file in UTF-8")
            .into()),
    }
}

fn check_brackets(source: &Source<'_>) -> Result<(), Problems> {
    let (mut open, mut all) = (0_usize, 0);
    for (at, byte) in source.text.bytes().enumerate() {
        match byte {
            b'[' | b'{' => (open, all) = (open + 1, all + 1),
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > DEEPEST {
            return Err(problem_at(source, at, 1)
                .message("too many brackets are open here")
                .expected(format!("expected no more than {DEEPEST} levels of lists and mappings"))
                .into());
        }
        if all > MOST_BRACKETS {
            return Err(problem_at(source, at, 1)
                .message("there are too many brackets")
                .expected(format!("expected at most {MOST_BRACKETS} of [ and {{ in the whole file"))
                .into());
        }
    }
    Ok(())
}

/// No anchor's name twice where an alias uses it: the library would then take one for another.
fn check_anchors(source: &Source<'_>) -> Result<(), Problems> {
    let aliased: HashSet<&str> = references(source.text, '*').map(|(_, name)| name).collect();
    let mut names = HashSet::new();
    for (at, name) in references(source.text, '&').filter(|(_, name)| aliased.contains(name)) {
        if !names.insert(name) {
            return Err(problem_at(source, at, name.len() + 1)
                .message(format!("the anchor &{} is defined twice", Quoted(name)))
                .expected("expected another name for each anchor")
                .into());
        }
    }
    Ok(())
}

/// Where a token may begin with this character, and the name behind it.
///
/// A comment behind something else, or a text in quotes, counts: whether it is one, only the scanner knows.
fn references(text: &str, sign: char) -> impl Iterator<Item = (usize, &str)> {
    let mut start = 0;
    text.split_inclusive(['\n', '\r']).flat_map(move |line| {
        let line_start = start;
        start += line.len();
        let comment = line.trim_start().starts_with('#');
        line.match_indices(sign).filter(move |_| !comment).filter_map(move |(at, _)| {
            let before = line[..at].chars().next_back();
            let begins = before.is_none_or(|c| c.is_whitespace() || "[]{},:".contains(c));
            let rest = &line[at + 1..];
            let name = &rest[..rest.find(|c: char| !(c.is_alphanumeric() || "_-".contains(c))).unwrap_or(rest.len())];
            (begins && !name.is_empty()).then_some((line_start + at, name))
        })
    })
}

fn second_document(source: &Source<'_>, after: usize) -> Problem {
    let rest = source.text.get(after..).unwrap_or_default();
    let mark = ["\n---", "\r---"].iter().find_map(|mark| rest.find(mark));
    let message =
        if mark.is_some() { "a second document begins here" } else { "more follows where the document ended" };
    problem_at(source, mark.map_or(after, |at| after + at + 1), if mark.is_some() { 3 } else { 1 })
        .message(message)
        .expected("expected one document in the file")
}

/// What the library says, and what that often means.
fn explain(source: &Source<'_>, error: &serde_yaml::Error, count: usize) -> Problem {
    let text = source.text;
    let at = error.location().map_or(0, |location| location.index()).min(text.len());
    let problem = problem_at(source, at, 1);
    // The library notices by itself that aliases repeat each other, but not that they repeat something long.
    let mut message = error.to_string();
    if count > MOST_VALUES || message.contains("repetition limit") {
        return problem
            .message("there are too many values, counting again what aliases repeat")
            .expected(format!("expected at most {MOST_VALUES}"));
    }
    if let Some(location) = error.location() {
        let place = format!(" at line {} column {}", location.line(), location.column());
        message = message.replacen(&place, "", 1);
    }
    let line_start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    let hint = if message.contains("recursion limit") {
        "expected no more than 128 levels of lists and mappings"
    } else if text[at..].starts_with('\t') {
        "expected spaces: YAML does not take tabs for indentation"
    } else if line.contains("::") && line.contains('[') {
        IPV6_HINT
    } else if message.starts_with("mapping values are not allowed") {
        "expected one `key: value` on a line; quote a text that holds a colon and a space"
    } else {
        ""
    };
    problem.message(format!("not valid YAML: {}", harmless(&message, 200))).expected(hint)
}

/// What to do about addresses that YAML takes for something else.
pub(super) const IPV6_HINT: &str =
    "expected quotes around an IPv6 address that begins or ends with a colon, such as \"::1\"";

/// Makes the tree; the places are not known yet.
#[derive(Clone, Copy)]
struct Build<'c> {
    count: &'c Cell<usize>,
}

const fn node(value: Value) -> Node {
    Node { value, span: None }
}

impl<'de> DeserializeSeed<'de> for Build<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        self.count.set(self.count.get() + 1);
        if self.count.get() > MOST_VALUES {
            return Err(D::Error::custom("too many values"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Build<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(node(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(node(Value::Null))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(node(Value::Bool))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Node, E> {
        Ok(node(Value::Integer(number.into())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Node, E> {
        Ok(node(Value::Integer(number.into())))
    }

    fn visit_i128<E>(self, number: i128) -> Result<Node, E> {
        Ok(node(Value::Integer(number)))
    }

    fn visit_u128<E>(self, number: u128) -> Result<Node, E> {
        Ok(node(Value::Integer(number.try_into().unwrap_or(i128::MAX))))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(node(Value::Float))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(node(Value::Text(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element_seed(self)? {
            nodes.push(node);
        }
        Ok(node(Value::List(nodes)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(key) = map.next_key_seed(self)? {
            nodes.push((key, map.next_value_seed(self)?));
        }
        Ok(node(Value::Map(nodes)))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Node, A::Error> {
        let (IgnoredAny, contents) = tagged.variant_seed(std::marker::PhantomData::<IgnoredAny>)?;
        let IgnoredAny = contents.newtype_variant()?;
        Ok(node(Value::Tagged))
    }
}

/// Walks the text along the tree and notes where each scalar stands.
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

    /// The texts of all scalars where they were found in `text`, in order.
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
    fn a_scalar_that_is_not_written_as_it_reads_has_no_place() {
        let text = "a: \"b\\x41\"\nc: one\n  two\nd: |\n  text\ne: 'it''s'\n";
        assert_eq!(all_found(text), ["a", "?", "c", "?", "d", "?", "e", "?"]);
    }

    #[test]
    fn a_key_that_is_there_twice_is_kept_twice() {
        assert_eq!(all_found("a: 1\na: 2\n<<: 3\n"), ["a", "1", "a", "2", "<<", "3"]);
    }

    #[test]
    fn a_tag_is_noticed_and_does_not_disturb_the_rest() {
        let text = "a: !secret b\nc: !x [1, {d: e}]\nf: !!str 2\n";
        assert_eq!(all_found(text), ["a", "c", "f", "2"]);
        let Value::Map(pairs) = tree(text).value else { panic!("no mapping") };
        assert!(matches!(pairs[0].1.value, Value::Tagged) && matches!(pairs[1].1.value, Value::Tagged));
        assert!(matches!(&pairs[2].1.value, Value::Text(text) if text == "2"));
    }

    #[test]
    fn the_end_of_the_document_is_the_end() {
        assert!(matches!(tree("a: 1\n...\n").value, Value::Map(_)));
        assert!(matches!(tree("---\na: 1\n").value, Value::Map(_)));
        assert!(matches!(tree("").value, Value::Null) && matches!(tree("# nothing\n").value, Value::Null));
        let expected = "a second document begins here (expected one document in the file)";
        assert_eq!(problem("a: 1\n---\nb: 2\n"), format!("2:1: {expected}"));
        assert_eq!(problem("a: 1\n...\n# more\n---\n[}"), format!("4:1: {expected}"));
    }

    #[test]
    fn syntax_errors_have_a_place_and_a_hint() {
        let tab = "(expected spaces: YAML does not take tabs for indentation)";
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
    fn an_anchor_is_defined_once() {
        assert_eq!(
            problem("a: &x 1\nb: &y 2\nc: &x 3\nd: *x\n"),
            "3:4: the anchor &x is defined twice (expected another name for each anchor)"
        );
        assert_eq!(all_found("# &x\na: &x R&D\nb: R&D & &y D\n"), ["a", "R&D", "b", "R&D & &y D"]);
        // Names that nothing refers to are as good as text, which they may be.
        assert_eq!(all_found("a: \"&x and &x\"\n"), ["a", "\"&x and &x\""]);
    }

    #[test]
    fn what_repeats_itself_without_end_is_refused() {
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
    fn what_is_no_text_is_refused() {
        assert!(problem("a: \0").starts_with("1:4: the character \\u{0}"));
        assert!(problem("a: b\n\u{1b}[31m").starts_with("2:1: the character \\u{1b}"));
        assert!(problem("a: b\u{2028}").starts_with("1:5: the character \\u{2028}"));
    }
}
