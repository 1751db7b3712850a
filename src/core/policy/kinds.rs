//! The kinds of values that a key may have: how each is read, printed and described.

use std::fmt::Display;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::keys::{Keys, object};
use super::problem::Severity;
use super::reader::{YamlEntry, YamlReader};
use super::source::{Quoted, is_visible};
use super::terms::Verbs;
use super::tree::Value;
use super::word::{Word, did_you_mean};
use crate::core::net::{Port, PortRange};

/// How values of the type `T` are read, printed and described.
pub(super) trait Kind<T> {
    /// What a value looks like, for the documents and for errors: "a number from 1 to 10".
    fn describe(&self) -> String;
    /// Its JSON Schema.
    fn schema(&self) -> Json;
    /// Whether the key is accepted and has no effect any more.
    fn is_retired(&self) -> bool {
        false
    }
    /// The value as YAML: on one line, or in lines that each begin with a line feed.
    fn show(&self, value: &T) -> String;
    /// Reads `entry`. Problems are added to `reader`.
    fn read(&self, reader: &mut YamlReader<'_>, entry: YamlEntry<'_>) -> Option<T>;
}

/// A whole number from a minimum to a maximum.
pub(super) struct Number(pub(super) u32, pub(super) u32);

impl<T: FromStr<Err: Display> + Display> Kind<T> for Number {
    fn describe(&self) -> String {
        format!("a number from {} to {}", self.0, self.1)
    }

    fn schema(&self) -> Json {
        json!({ "type": "integer", "minimum": self.0, "maximum": self.1 })
    }

    fn show(&self, value: &T) -> String {
        value.to_string()
    }

    fn read(&self, reader: &mut YamlReader<'_>, entry: YamlEntry<'_>) -> Option<T> {
        let expected = Kind::<T>::describe(self);
        let Value::Integer(number) = entry.node.value else {
            reader.wrong_type(entry, &expected);
            return None;
        };
        let is_within = (self.0.into()..=self.1.into()).contains(&number);
        let error = match number.to_string().parse() {
            Ok(value) if is_within => return Some(value),
            Err(error) if is_within => format!("{}: {error}", reader.written(entry)),
            _ => format!("{} is out of limits", reader.written(entry)),
        };
        reader.error(entry, error, &expected);
        None
    }
}

/// The number of a port.
pub(super) const PORT: Number = Number(1, 65_535);

/// A length of time from a minimum to a maximum.
pub(super) struct Time(pub(super) Duration, pub(super) Duration);

const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl Kind<Duration> for Time {
    fn describe(&self) -> String {
        format!("a time from {} to {}", self.show(&self.0), self.show(&self.1))
    }

    fn schema(&self) -> Json {
        json!({ "oneOf": [{ "type": "integer", "minimum": 0 }, { "type": "string", "pattern": "^[0-9]+(ms|s|m|h)$" }] })
    }

    fn show(&self, value: &Duration) -> String {
        let millis = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
        // One minute is printed as `60s`.
        let suits = |&&(unit, length): &&(&str, u64)| millis % length == 0 && !(unit == "m" && millis == length);
        UNITS.iter().find(suits).map_or_else(String::new, |(unit, length)| format!("{}{unit}", millis / length))
    }

    fn read(&self, reader: &mut YamlReader<'_>, entry: YamlEntry<'_>) -> Option<Duration> {
        let expected = format!("{}, in seconds or with a unit: 500ms, 60s, 2m, 1h", self.describe());
        let (number, unit) = match &entry.node.value {
            Value::Integer(seconds) => (seconds.to_string(), "s"),
            Value::Text(text) => {
                let (number, unit) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
                (number.to_owned(), unit)
            }
            _ => {
                reader.wrong_type(entry, &expected);
                return None;
            }
        };
        let Some((_, length)) = UNITS.iter().find(|known| known.0 == unit && !number.is_empty()) else {
            reader.error(entry, format!("{} is no length of time", reader.written(entry)), &expected);
            return None;
        };
        let millis = number.parse::<u64>().ok().and_then(|number| number.checked_mul(*length));
        let time = millis.map(Duration::from_millis).filter(|time| (self.0..=self.1).contains(time));
        if time.is_none() {
            reader.error(entry, format!("{} is out of limits", reader.written(entry)), &expected);
        }
        time
    }
}

/// One of the words of an enum.
pub(super) struct Keyword;

impl<W: Word> Kind<W> for Keyword {
    fn describe(&self) -> String {
        let words: Vec<String> = W::ALL.iter().map(|word| format!("`{word}`")).collect();
        let (last, others) = words.split_last().expect("there are words to choose from");
        format!("{} or {last}", others.join(", "))
    }

    fn schema(&self) -> Json {
        json!({ "enum": W::ALL.iter().map(ToString::to_string).collect::<Vec<_>>() })
    }

    fn show(&self, value: &W) -> String {
        value.to_string()
    }

    fn read(&self, reader: &mut YamlReader<'_>, entry: YamlEntry<'_>) -> Option<W> {
        let expected = Kind::<W>::describe(self);
        let text = reader.text(entry, &expected)?;
        let found = W::ALL.iter().copied().find(|word| word.to_string() == text);
        if found.is_none() {
            let message = format!("unknown word {}{}", Quoted(text), did_you_mean(text, W::ALL));
            reader.error(entry, message, &expected);
        }
        found
    }
}

/// A text that is parsed: its description, and a pattern that it matches.
pub(super) struct Parsed(pub(super) &'static str, pub(super) &'static str);

impl<T: FromStr<Err: Display> + Display> Kind<T> for Parsed {
    fn describe(&self) -> String {
        self.0.into()
    }

    fn schema(&self) -> Json {
        json!({ "type": "string", "pattern": self.1 })
    }

    fn show(&self, value: &T) -> String {
        let text = value.to_string();
        // An address with a colon at either end would be something else to YAML.
        if text.contains(':') { format!("\"{text}\"") } else { text }
    }

    fn read(&self, reader: &mut YamlReader<'_>, entry: YamlEntry<'_>) -> Option<T> {
        let text = reader.text(entry, self.0)?;
        let parsed = text.parse();
        parsed.map_err(|error| reader.error(entry, format!("{error}: {}", Quoted(text)), self.0)).ok()
    }
}

/// One port, or a range.
pub(super) struct Ports;

const RANGE: Parsed = Parsed("a port, or a range such as 50000-50100", r"^\s*[0-9]+\s*-\s*[0-9]+\s*$");

impl Kind<PortRange> for Ports {
    fn describe(&self) -> String {
        RANGE.0.into()
    }

    fn schema(&self) -> Json {
        json!({ "oneOf": [Kind::<Port>::schema(&PORT), Kind::<PortRange>::schema(&RANGE)] })
    }

    fn show(&self, value: &PortRange) -> String {
        value.to_string()
    }

    fn read(&self, reader: &mut YamlReader<'_>, entry: YamlEntry<'_>) -> Option<PortRange> {
        match &entry.node.value {
            Value::Integer(_) => PORT.read(reader, entry).and_then(|port: Port| PortRange::new(port, port)),
            Value::Text(text) if text.parse::<u64>().is_err() => RANGE.read(reader, entry),
            _ => {
                reader.wrong_type(entry, RANGE.0);
                None
            }
        }
    }
}

/// A text: its description, its pattern in the schema, and a check that returns an error.
pub(super) struct Text(pub(super) &'static str, pub(super) &'static str, pub(super) fn(&str) -> Option<&'static str>);

/// The name of a rule.
pub(super) const NAME: Text = Text("a text of 1 to 64 visible characters", "^.{1,64}$", |text| {
    let is_long = text.chars().count() > 64;
    match text.trim() {
        "" => Some("the name is empty"),
        _ if is_long => Some("the name is too long"),
        _ => (!text.chars().all(is_visible)).then_some("the name holds characters that cannot be seen"),
    }
});

/// The name of a command, which FTP need not define.
pub(super) const VERB: Text =
    Text("one to eight letters or digits in upper case, such as DELE", "^[A-Z][A-Z0-9]{0,7}$", |text| {
        (!Verbs::is_verb(text)).then_some("this is no command")
    });

impl Kind<Box<str>> for Text {
    fn describe(&self) -> String {
        self.0.into()
    }

    fn schema(&self) -> Json {
        json!({ "type": "string", "pattern": self.1 })
    }

    /// In quotes. The text holds no control characters.
    fn show(&self, value: &Box<str>) -> String {
        format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
    }

    fn read(&self, reader: &mut YamlReader<'_>, entry: YamlEntry<'_>) -> Option<Box<str>> {
        let text = reader.text(entry, self.0)?;
        match self.2(text) {
            None => Some(text.into()),
            Some(wrong) => {
                reader.error(entry, wrong, self.0);
                None
            }
        }
    }
}

/// A type that is read from a list of values, and printed as one.
pub(super) trait Listed: Sized {
    type Item: Display + PartialEq;
    /// The value with these items; `None` if there are too few of them.
    fn from_items(items: Vec<Self::Item>) -> Option<Self>;
    fn items(&self) -> Vec<Self::Item>;
    /// Whether `item` adds nothing to `other`. `is_earlier`: `other` is before `item` in the list.
    fn repeats(item: &Self::Item, other: &Self::Item, is_earlier: bool) -> bool {
        is_earlier && item == other
    }
}

/// A list of at least `least` and at most `most` values.
pub(super) struct List<K> {
    pub(super) of: K,
    pub(super) what: &'static str,
    pub(super) least: usize,
    pub(super) most: usize,
    /// The severity of a repeated value; `None` if values may repeat.
    pub(super) repeated: Option<Severity>,
}

impl<L: Listed, K: Kind<L::Item>> Kind<L> for List<K> {
    fn describe(&self) -> String {
        let Self { what, least, most, .. } = self;
        if *least > 0 {
            format!("a list of {least} to {most} {what}")
        } else {
            format!("a list of up to {most} {what}")
        }
    }

    fn schema(&self) -> Json {
        let unique = self.repeated == Some(Severity::Error);
        json!({
            "type": "array", "items": self.of.schema(), "minItems": self.least, "maxItems": self.most, "uniqueItems": unique,
        })
    }

    fn show(&self, value: &L) -> String {
        let items: Vec<String> = value.items().iter().map(|item| self.of.show(item)).collect();
        format!("[{}]", items.join(", "))
    }

    fn read(&self, reader: &mut YamlReader<'_>, entry: YamlEntry<'_>) -> Option<L> {
        let entries = reader.list(entry, self.least..=self.most, &Kind::<L>::describe(self))?;
        let read = entries.into_iter().filter_map(|entry| Some((self.of.read(reader, entry)?, entry)));
        let (items, entries): (Vec<L::Item>, Vec<YamlEntry<'_>>) = read.unzip();
        for (index, item) in items.iter().enumerate() {
            let Some(severity) = self.repeated else { break };
            let repeats = |&(at, other): &(usize, &L::Item)| at != index && L::repeats(item, other, at < index);
            if let Some((_, other)) = items.iter().enumerate().find(repeats) {
                let (item, other) = (item.to_string(), other.to_string());
                let how = if item == other { "is there twice".into() } else { format!("overlaps {other}") };
                reader.problem(severity, entries[index], format!("{item} {how}"), "each once");
            }
        }
        L::from_items(items)
    }
}

/// A list, or its only element.
pub(super) struct OneOrList<K>(pub(super) List<K>);

impl<L: Listed, K: Kind<L::Item>> Kind<L> for OneOrList<K> {
    fn describe(&self) -> String {
        format!("{}, or {}", self.0.of.describe(), Kind::<L>::describe(&self.0))
    }

    fn schema(&self) -> Json {
        json!({ "oneOf": [self.0.of.schema(), Kind::<L>::schema(&self.0)] })
    }

    fn show(&self, value: &L) -> String {
        if let [one] = value.items().as_slice() { self.0.of.show(one) } else { self.0.show(value) }
    }

    fn read(&self, reader: &mut YamlReader<'_>, entry: YamlEntry<'_>) -> Option<L> {
        if matches!(entry.node.value, Value::List(_)) {
            return self.0.read(reader, entry);
        }
        L::from_items(vec![self.0.of.read(reader, entry)?])
    }
}

/// A word for one particular value, or another kind for all others.
pub(super) struct WordOr<T, K>(pub(super) &'static str, pub(super) fn() -> T, pub(super) K);

impl<T: PartialEq, K: Kind<T>> Kind<T> for WordOr<T, K> {
    fn describe(&self) -> String {
        format!("`{}`, or {}", self.0, self.2.describe())
    }

    fn schema(&self) -> Json {
        json!({ "oneOf": [{ "const": self.0 }, self.2.schema()] })
    }

    fn show(&self, value: &T) -> String {
        if *value == self.1() { self.0.into() } else { self.2.show(value) }
    }

    fn read(&self, reader: &mut YamlReader<'_>, entry: YamlEntry<'_>) -> Option<T> {
        match &entry.node.value {
            Value::Text(text) if text == self.0 => Some(self.1()),
            Value::Text(_) => {
                reader.wrong_type(entry, &self.describe());
                None
            }
            _ => self.2.read(reader, entry),
        }
    }
}

/// A number of queues. [`WordOr`] has the word for `None`.
pub(super) struct Count;

impl Kind<Option<NonZeroU16>> for Count {
    fn describe(&self) -> String {
        Kind::<u16>::describe(&Number(1, 65_535))
    }

    fn schema(&self) -> Json {
        Kind::<u16>::schema(&Number(1, 65_535))
    }

    fn show(&self, value: &Option<NonZeroU16>) -> String {
        value.map_or_else(String::new, |count| count.to_string())
    }

    fn read(&self, reader: &mut YamlReader<'_>, entry: YamlEntry<'_>) -> Option<Option<NonZeroU16>> {
        Number(1, 65_535).read(reader, entry).map(Some)
    }
}

/// A mapping with keys of its own, printed in lines or on one line.
pub(super) struct Mapping {
    pub(super) is_inline: bool,
    /// The key that is not allowed here.
    pub(super) except: &'static str,
}

/// Printed in lines.
pub(super) const BLOCK: Mapping = Mapping { is_inline: false, except: "" };

impl<T: Keys> Kind<T> for Mapping {
    fn describe(&self) -> String {
        "a mapping".into()
    }

    fn schema(&self) -> Json {
        object(T::rows().into_iter().filter(|row| row.key != self.except).collect())
    }

    fn show(&self, value: &T) -> String {
        let shown = value.shown(None).into_iter().filter(|(key, _)| *key != self.except);
        let pairs = shown.map(|(key, text)| format!("{key}: {text}"));
        match self.is_inline {
            true => format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", ")),
            false => pairs.map(|pair| format!("\n  {pair}")).collect(),
        }
    }

    fn read(&self, reader: &mut YamlReader<'_>, entry: YamlEntry<'_>) -> Option<T> {
        let names = T::NAMES.iter().copied().filter(|key| *key != self.except);
        let (retired, known): (Vec<_>, Vec<_>) = names.partition(|key| T::is_retired(key));
        let fields = reader.fields(entry, &known, &retired, &format!("a mapping with keys such as {}", known[0]))?;
        let mut value = T::read(reader, &fields, &T::default());
        value.check(reader, &fields);
        Some(value)
    }
}
