//! Looks up keys and elements in the tree of a file, and collects what is wrong with them.
//!
//! Each function returns `None` for a wrong value, after recording why, so that the caller continues with the next one.

use std::ops::RangeInclusive;

use super::problem::{Problem, Problems, Severity};
use super::source::{Quoted, Source, Span};
use super::tree::{IPV6_HINT, Node, Value};
use super::word::did_you_mean;

/// A value in the tree, and the key to which it belongs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct YamlEntry<'t> {
    pub(crate) key: &'static str,
    pub(super) node: &'t Node,
    /// Where to point if the value has no place of its own.
    near: Span,
}

impl<'t> YamlEntry<'t> {
    /// The whole tree.
    pub(super) const fn root(node: &'t Node) -> Self {
        Self { key: "", node, near: Span { start: 0, end: 0 } }
    }

    /// The same place without the key, for a problem that is not the value's.
    pub(super) fn without_key(self) -> Self {
        Self { key: "", ..self }
    }

    /// The elements of a list; none of anything else.
    pub(super) fn elements(self) -> Vec<Self> {
        let Value::List(nodes) = &self.node.value else { return Vec::new() };
        nodes.iter().map(|node| Self { node, near: first_place(node).unwrap_or(self.near), ..self }).collect()
    }

    pub(super) fn as_text(self) -> Option<&'t str> {
        if let Value::Text(text) = &self.node.value { Some(text) } else { None }
    }

    fn span(&self) -> Span {
        self.node.span.unwrap_or(self.near)
    }
}

/// The values of a mapping, by key.
#[derive(Debug)]
pub(crate) struct Fields<'t>(Vec<YamlEntry<'t>>);

impl<'t> Fields<'t> {
    /// The value of `key`, if it is there.
    pub(crate) fn get(&self, key: &str) -> Option<YamlEntry<'t>> {
        self.0.iter().find(|entry| entry.key == key).copied()
    }
}

/// Reads one file and collects its problems.
#[derive(Debug)]
pub(crate) struct YamlReader<'a> {
    source: &'a Source<'a>,
    pub(super) problems: Problems,
}

impl<'a> YamlReader<'a> {
    pub(super) fn new(source: &'a Source<'a>) -> Self {
        Self { source, problems: Problems::default() }
    }

    fn note(&mut self, severity: Severity, key: &str, span: Span, message: String, expected: &str) {
        let source = self.source;
        self.problems.add(severity, || Problem::new(severity, source, span, key, message, expected));
    }

    /// Notes a problem with the value of `entry`.
    pub(super) fn problem(
        &mut self,
        severity: Severity,
        entry: YamlEntry<'_>,
        message: impl Into<String>,
        expected: &str,
    ) {
        self.note(severity, entry.key, entry.span(), message.into(), expected);
    }

    /// Notes an error in the value of `entry`.
    pub(crate) fn error(&mut self, entry: YamlEntry<'_>, message: impl Into<String>, expected: &str) {
        self.problem(Severity::Error, entry, message, expected);
    }

    /// Notes a warning about the value of `entry`.
    pub(super) fn warn(&mut self, entry: YamlEntry<'_>, message: impl Into<String>, expected: &str) {
        self.problem(Severity::Warning, entry, message, expected);
    }

    /// The line of `entry`.
    pub(super) fn line(&self, entry: YamlEntry<'_>) -> usize {
        self.source.line(entry.span().start)
    }

    /// The scalar as the file has it.
    pub(super) fn written(&self, entry: YamlEntry<'_>) -> String {
        match (&entry.node.value, entry.node.span) {
            (Value::Text(text), None) => Quoted(text).to_string(),
            (_, Some(span)) => Quoted(self.source.slice(span)).to_string(),
            _ => "this".into(),
        }
    }

    /// Notes that the value is of another type.
    pub(super) fn wrong_type(&mut self, entry: YamlEntry<'_>, expected: &str) {
        let what = match &entry.node.value {
            Value::Null => return self.error(entry, "there is no value", expected),
            Value::Bool => "a truth value",
            Value::Integer(_) => "a number",
            Value::Float => "a number with a fraction or an exponent",
            Value::Text(text) if text.parse::<u64>().is_ok() => "a text, because of its quotes or a leading zero",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
            Value::Tagged => "a value with a tag, which is not supported",
        };
        self.error(entry, format!("{} is {what}", self.written(entry)), expected);
    }

    /// The mapping `entry`. A key that is neither in `known` nor in `retired`, or is there twice, is an error. Messages do not
    /// suggest `retired` keys.
    pub(crate) fn fields<'t>(
        &mut self,
        entry: YamlEntry<'t>,
        known: &[&'static str],
        retired: &[&'static str],
        what: &str,
    ) -> Option<Fields<'t>> {
        let Value::Map(pairs) = &entry.node.value else {
            self.wrong_type(entry, what);
            return None;
        };
        let mut found: Vec<YamlEntry<'t>> = Vec::new();
        for (key, node) in pairs {
            let near = key.span.unwrap_or(entry.near);
            let written = if let Value::Text(text) = &key.value { text } else { self.source.slice(near) };
            let is_text = matches!(key.value, Value::Text(_));
            let Some(key) = known.iter().chain(retired).copied().find(|&key| is_text && written == key) else {
                let message = match written {
                    "<<" => "merge keys (<<) are not supported".into(),
                    _ => format!("unknown key {}{}", Quoted(written), did_you_mean(written, known)),
                };
                self.note(Severity::Error, "", near, message, &format!("one of {}", known.join(", ")));
                continue;
            };
            if let Some(first) = found.iter().find(|entry| entry.key == key) {
                let line = self.source.line(first.near.start);
                let message = format!("the key is there twice; the first time in line {line}");
                self.note(Severity::Error, key, near, message, "each key once");
            } else {
                found.push(YamlEntry { key, node, near });
            }
        }
        Some(Fields(found))
    }

    /// The elements of the list `entry`, so many as `count` allows.
    pub(crate) fn list<'t>(
        &mut self,
        entry: YamlEntry<'t>,
        count: RangeInclusive<usize>,
        what: &str,
    ) -> Option<Vec<YamlEntry<'t>>> {
        let Value::List(nodes) = &entry.node.value else {
            self.wrong_type(entry, what);
            return None;
        };
        if !count.contains(&nodes.len()) {
            self.error(entry, format!("the list has {} elements", nodes.len()), what);
            return None;
        }
        Some(entry.elements())
    }

    /// A text.
    pub(crate) fn text<'t>(&mut self, entry: YamlEntry<'t>, expected: &str) -> Option<&'t str> {
        match &entry.node.value {
            Value::Text(text) => return Some(text),
            // `- fd00::` is to YAML a mapping with the key `fd00:`.
            Value::Map(pairs) if pairs.iter().any(|(_, value)| matches!(value.value, Value::Null)) => {
                self.wrong_type(entry, IPV6_HINT);
            }
            _ => self.wrong_type(entry, expected),
        }
        None
    }
}

/// The first place that is known within `node`.
fn first_place(node: &Node) -> Option<Span> {
    node.span.or_else(|| match &node.value {
        Value::List(nodes) => nodes.iter().find_map(first_place),
        Value::Map(pairs) => pairs.iter().find_map(|(key, value)| first_place(key).or_else(|| first_place(value))),
        _ => None,
    })
}
