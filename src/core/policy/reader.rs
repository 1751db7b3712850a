//! Converts values of the tree into typed values, and records an error for each value that is wrong.
//!
//! Each function returns `None` for a wrong value, after recording why, so that the caller goes on with the next
//! one. Knows what numbers, durations, ports and networks look like; not what they are for.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::problem::{Problem, Problems, Severity};
use super::source::{Quoted, Source, Span, harmless};
use super::tree::{IPV6_HINT, Node, Value};
use super::word::{Word, nearest};
use crate::core::net::{Network, NetworkError, Port, PortRange};

/// A value within the tree and how to speak of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'t> {
    /// The key that it is the value of, or an element of the value of.
    pub(crate) key: &'static str,
    pub(super) node: &'t Node,
    /// Where to point if the value has no place of its own.
    near: Span,
}

impl<'t> Entry<'t> {
    /// The whole tree.
    pub(super) const fn root(node: &'t Node) -> Self {
        Self { key: "", node, near: Span { start: 0, end: 0 } }
    }

    /// The same place, where the problem is not in the value of a key.
    pub(crate) fn whole(self) -> Self {
        Self { key: "", ..self }
    }

    fn span(&self) -> Span {
        self.node.span.unwrap_or(self.near)
    }
}

/// The values of a mapping, by key.
#[derive(Debug)]
pub(crate) struct Fields<'t> {
    known: &'static [&'static str],
    found: Vec<Entry<'t>>,
}

impl<'t> Fields<'t> {
    /// The value of `key`, if it is there.
    pub(crate) fn get(&self, key: &'static str) -> Option<Entry<'t>> {
        debug_assert!(self.known.contains(&key), "{key} is read but is not a known key");
        self.found.iter().find(|entry| entry.key == key).copied()
    }

    /// Those that are there.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Entry<'t>> {
        self.found.iter().copied()
    }
}

/// What is read from, and what is wrong with it.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    source: &'a Source<'a>,
    pub(super) problems: Problems,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a Source<'a>) -> Self {
        Self { source, problems: Problems::default() }
    }

    fn note(&mut self, severity: Severity, key: &str, span: Span, message: impl Into<String>, expected: &str) {
        let source = self.source;
        let make = || Problem::new(severity, source, span).key(key).message(message).expected(expected);
        self.problems.add(severity, make);
    }

    /// Notes an error in the value of `entry`.
    pub(crate) fn error(&mut self, entry: Entry<'_>, message: impl Into<String>, expected: &str) {
        self.note(Severity::Error, entry.key, entry.span(), message, expected);
    }

    /// Notes a warning about the value of `entry`.
    pub(crate) fn warn(&mut self, entry: Entry<'_>, message: impl Into<String>, expected: &str) {
        self.note(Severity::Warning, entry.key, entry.span(), message, expected);
    }

    /// The line on which the value of `entry` stands.
    pub(crate) fn line(&self, entry: Entry<'_>) -> usize {
        self.source.line(entry.span().start)
    }

    /// The scalar as it stands in the text.
    fn written(&self, entry: Entry<'_>) -> String {
        match (&entry.node.value, entry.node.span) {
            (Value::Text(text), None) => Quoted(text).to_string(),
            (_, Some(span)) => Quoted(self.source.slice(span)).to_string(),
            _ => "this".into(),
        }
    }

    /// Notes that the value is something else altogether.
    pub(super) fn wrong_type(&mut self, entry: Entry<'_>, expected: &str) {
        let message = match &entry.node.value {
            Value::Null => "there is no value".into(),
            Value::Bool => format!("{} is a truth value", self.written(entry)),
            Value::Integer(_) => format!("{} is a number", self.written(entry)),
            Value::Float => format!("{} is a number with a fraction or an exponent", self.written(entry)),
            Value::Text(text) if text.parse::<u64>().is_ok() => {
                format!("{} is a text, because of its quotes or a leading zero", self.written(entry))
            }
            Value::Text(_) => format!("{} is a text", self.written(entry)),
            Value::List(_) => "this is a list".into(),
            Value::Map(_) => "this is a mapping".into(),
            Value::Tagged => "a value with a tag is not understood".into(),
        };
        self.error(entry, message, expected);
    }

    /// The mapping `entry`; a key that is not in `known`, or is there twice, is noted.
    pub(crate) fn fields<'t>(
        &mut self,
        entry: Entry<'t>,
        known: &'static [&'static str],
        expected: &str,
    ) -> Option<Fields<'t>> {
        let Value::Map(pairs) = &entry.node.value else {
            self.wrong_type(entry, expected);
            return None;
        };
        let mut found: Vec<Entry<'t>> = Vec::new();
        for (key, node) in pairs {
            let near = key.span.unwrap_or(entry.near);
            let name = if let Value::Text(text) = &key.value { Some(text.as_str()) } else { None };
            match known.iter().copied().find(|&known| name == Some(known)) {
                None => self.unknown_key(key, near, known),
                Some(key) => match found.iter().find(|entry| entry.key == key) {
                    None => found.push(Entry { key, node, near }),
                    Some(first) => {
                        let line = self.source.line(first.near.start);
                        let message = format!("the key is there twice; the first time in line {line}");
                        self.note(Severity::Error, key, near, message, "expected each key once");
                    }
                },
            }
        }
        Some(Fields { known, found })
    }

    fn unknown_key(&mut self, key: &Node, span: Span, known: &[&str]) {
        let written = match &key.value {
            Value::Text(text) => text.clone(),
            _ => self.source.slice(span).to_owned(),
        };
        let meant = nearest(&written, known.iter().copied());
        let did_you_mean = meant.map(|word| format!("; did you mean {word}?")).unwrap_or_default();
        let message = if written == "<<" {
            "merge keys (<<) are not understood".into()
        } else {
            format!("unknown key {}{did_you_mean}", Quoted(&written))
        };
        self.note(Severity::Error, "", span, message, &format!("the keys here are {}", known.join(", ")));
    }

    /// The elements of the list `entry`, at most `most`.
    pub(crate) fn list<'t>(
        &mut self,
        entry: Entry<'t>,
        most: usize,
        expected: &str,
    ) -> Option<impl ExactSizeIterator<Item = Entry<'t>> + use<'t>> {
        let Value::List(nodes) = &entry.node.value else {
            self.wrong_type(entry, expected);
            return None;
        };
        if nodes.len() > most {
            self.error(entry, format!("the list has {} elements", nodes.len()), &format!("expected at most {most}"));
            return None;
        }
        Some(nodes.iter().map(move |node| Entry {
            key: entry.key,
            node,
            near: first_place(node).unwrap_or(entry.near),
        }))
    }

    /// The same, for a list that makes no sense without an element.
    pub(crate) fn full_list<'t>(
        &mut self,
        entry: Entry<'t>,
        most: usize,
        expected: &str,
    ) -> Option<impl ExactSizeIterator<Item = Entry<'t>> + use<'t>> {
        let list = self.list(entry, most, expected)?;
        if list.len() == 0 {
            self.error(entry, "the list is empty", expected);
            return None;
        }
        Some(list)
    }

    /// A whole number within `range`.
    pub(crate) fn integer<T: TryFrom<i128>>(&mut self, entry: Entry<'_>, range: RangeInclusive<u32>) -> Option<T> {
        let expected = format!("expected a number from {} to {}", range.start(), range.end());
        let Value::Integer(number) = entry.node.value else {
            self.wrong_type(entry, &expected);
            return None;
        };
        let within = u32::try_from(number).is_ok_and(|number| range.contains(&number));
        let number = T::try_from(number).ok().filter(|_| within);
        if number.is_none() {
            self.error(entry, format!("{} is out of limits", self.written(entry)), &expected);
        }
        number
    }

    /// A text.
    pub(crate) fn text<'t>(&mut self, entry: Entry<'t>, expected: &str) -> Option<&'t str> {
        if let Value::Text(text) = &entry.node.value {
            return Some(text);
        }
        self.wrong_type(entry, expected);
        None
    }

    /// A text that one of `words` stands for.
    pub(crate) fn one_of<T: Copy>(&mut self, entry: Entry<'_>, words: &[(T, &str)]) -> Option<T> {
        let all: Vec<&str> = words.iter().map(|&(_, word)| word).collect();
        let expected = match all.as_slice() {
            [all @ .., last] if !all.is_empty() => format!("expected {} or {last}", all.join(", ")),
            _ => format!("expected {}", all.join("")),
        };
        let text = self.text(entry, &expected)?;
        let found = words.iter().find(|&&(_, word)| word == text);
        if found.is_none() {
            self.unknown_word(entry, text, &all, &expected);
        }
        found.map(|&(value, _)| value)
    }

    /// Notes that `text` is none of `words`.
    pub(crate) fn unknown_word(&mut self, entry: Entry<'_>, text: &str, words: &[&str], expected: &str) {
        let meant = nearest(text, words.iter().copied()).map(|w| format!("; did you mean {w}?")).unwrap_or_default();
        self.error(entry, format!("unknown word {}{meant}", Quoted(text)), expected);
    }

    /// A setting that is one word.
    pub(super) fn word<W: Word>(&mut self, entry: Entry<'_>) -> Option<W> {
        let words: Vec<(W, &str)> = W::ALL.iter().map(|&value| (value, value.word())).collect();
        self.one_of(entry, &words)
    }

    /// A time: whole seconds, or a number with a unit.
    pub(crate) fn duration(&mut self, entry: Entry<'_>, range: RangeInclusive<Duration>) -> Option<Duration> {
        let (least, most) = (show_duration(*range.start()), show_duration(*range.end()));
        let expected =
            format!("expected seconds, or a number with ms, s, m or h such as 500ms or 2m; from {least} to {most}");
        let duration = match &entry.node.value {
            Value::Integer(seconds) => u64::try_from(*seconds).ok().map(Duration::from_secs),
            Value::Text(text) => {
                let digits = text.bytes().take_while(u8::is_ascii_digit).count();
                let (number, unit) = text.split_at(digits);
                let unit = match unit {
                    "ms" => Some(1),
                    "s" => Some(1000),
                    "m" => Some(60_000),
                    "h" => Some(3_600_000),
                    _ => None,
                };
                let Some(unit) = unit.filter(|_| digits > 0) else {
                    self.error(entry, format!("{} is no length of time", self.written(entry)), &expected);
                    return None;
                };
                number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).map(Duration::from_millis)
            }
            _ => {
                self.wrong_type(entry, &expected);
                return None;
            }
        };
        let duration = duration.filter(|duration| range.contains(duration));
        if duration.is_none() {
            self.error(entry, format!("{} is out of limits", self.written(entry)), &expected);
        }
        duration
    }

    /// A port.
    pub(crate) fn port(&mut self, entry: Entry<'_>) -> Option<Port> {
        Port::new(self.integer::<u16>(entry, 1..=65_535)?)
    }

    /// One port, or a range of them.
    pub(crate) fn port_range(&mut self, entry: Entry<'_>) -> Option<PortRange> {
        let expected = "expected a port such as 5000, or LOW-HIGH such as 50000-50100";
        match &entry.node.value {
            Value::Integer(_) => self.port(entry).and_then(|port| PortRange::new(port, port)),
            Value::Text(text) if text.contains('-') => self.range(entry, text),
            Value::Text(text) if text.parse::<u64>().is_err() => {
                self.error(entry, format!("{} is neither a port nor a range", self.written(entry)), expected);
                None
            }
            _ => {
                self.wrong_type(entry, expected);
                None
            }
        }
    }

    /// A range in the form LOW-HIGH, `text` being what says so in `entry`.
    pub(crate) fn range(&mut self, entry: Entry<'_>, text: &str) -> Option<PortRange> {
        let port = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            Port::new(if plain { text.parse().ok()? } else { return None })
        };
        let ends = text.split_once('-').and_then(|(low, high)| Some((port(low.trim())?, port(high.trim())?)));
        let Some((low, high)) = ends else {
            let message = format!("{} is no range of ports", Quoted(text));
            self.error(entry, message, "expected LOW-HIGH with numbers from 1 to 65535, such as 50000-50100");
            return None;
        };
        let range = PortRange::new(low, high);
        if range.is_none() {
            let message = format!("the range is empty: {low}-{high}");
            self.error(entry, message, "expected LOW-HIGH with LOW not above HIGH, such as 50000-50100");
        }
        range
    }

    /// A network, or one address.
    pub(crate) fn network(&mut self, entry: Entry<'_>) -> Option<Network> {
        const EXPECTED: &str = "expected an address or a network such as 10.0.0.5, 192.0.2.0/24 or 2001:db8::/32";
        let text = match &entry.node.value {
            Value::Text(text) => text,
            // `- fd00::` is to YAML a mapping with the key `fd00:`.
            Value::Map(pairs) if pairs.iter().any(|(_, value)| matches!(value.value, Value::Null)) => {
                self.wrong_type(entry, IPV6_HINT);
                return None;
            }
            _ => {
                self.wrong_type(entry, EXPECTED);
                return None;
            }
        };
        let error = match text.parse::<Network>() {
            Ok(network) => return Some(network),
            Err(error) => error,
        };
        let address = text.split('/').next().unwrap_or_default();
        let expected = match error {
            NetworkError::NotAnAddress => EXPECTED.to_owned(),
            NetworkError::PrefixTooLong(bits) => format!("expected {}/0 to /{bits}", harmless(address, 60)),
            NetworkError::HostBits(network) => {
                format!("expected {network}, or {} for that host alone", harmless(address, 60))
            }
        };
        let message = match error {
            NetworkError::HostBits(_) => format!("bits are set behind the prefix: {}", Quoted(text)),
            other => format!("{}: {other}", Quoted(text)),
        };
        self.error(entry, message, &expected);
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

/// A length of time as a policy writes it.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0 => "0s".into(),
        m if m % 3_600_000 == 0 => format!("{}h", m / 3_600_000),
        // A minute is better known as 60 seconds where others count in seconds.
        m if m % 60_000 == 0 && m > 60_000 => format!("{}m", m / 60_000),
        m if m % 1000 == 0 => format!("{}s", m / 1000),
        m => format!("{m}ms"),
    }
}
