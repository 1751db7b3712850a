//! Reads the rules, which start from the defaults, and checks keys that depend on each other.

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::MAX_RULES;
use super::keys::{Capture, Check, Commands, Keys, Limits, Policy, Rule, Terms, object};
use super::kinds::Kind;
use super::overlap::{RuleOverlap, overlaps};
use super::reader::{Fields, YamlEntry, YamlReader};
use super::settings::{Mechanism, Queues};
use super::source::Quoted;
use super::terms::{Action, Verbs};
use super::word::did_you_mean;
use crate::core::ftp::command;

impl Check for Limits {}
impl Check for Terms {}

impl Check for Commands {
    fn check(&mut self, reader: &mut YamlReader<'_>, fields: &Fields<'_>) {
        let elements = fields.get("deny").into_iter().flat_map(YamlEntry::elements);
        for (entry, verb) in elements.filter_map(|entry| Some((entry, entry.as_text()?))) {
            if Verbs::is_verb(verb) && !command::is_known(verb) {
                let meant = did_you_mean(verb, command::COMMANDS.iter().map(|known| known.name));
                reader.warn(entry, format!("{verb} is no command that FTP is known to have{meant}"), "");
            }
        }
    }
}
impl Check for Rule {}

impl Check for Capture {
    fn check(&mut self, reader: &mut YamlReader<'_>, fields: &Fields<'_>) {
        if let (Some(count), Some(entry)) = (self.queues, fields.get("queues"))
            && Queues::new(self.queue, count).is_none()
        {
            let last = u32::from(self.queue) + u32::from(count.get()) - 1;
            let message = format!("{count} queues from number {} would end at {last}", self.queue);
            reader.error(entry, message, "the last queue to be 65535 or lower");
        }
    }
}

impl Check for Policy {
    fn check(&mut self, reader: &mut YamlReader<'_>, fields: &Fields<'_>) {
        if let Some(entry) =
            fields.get("admit").filter(|_| self.mechanism == Mechanism::Native && !self.admit.is_empty())
        {
            let message =
                "the mechanism native does not need it: the firewall's own rule for related connections counts";
            reader.warn(entry, message, "it with sets or auto only");
        }
        // The defaults are known only now.
        if let Some(entry) = fields.get("rules") {
            self.rules = read_rules(reader, entry, &self.defaults).unwrap_or_default();
        }
    }
}

/// A key that is accepted and has no effect any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeprecatedKey;

impl Kind<Self> for DeprecatedKey {
    fn describe(&self) -> String {
        String::new()
    }

    fn schema(&self) -> Json {
        json!({ "deprecated": true })
    }

    fn is_retired(&self) -> bool {
        true
    }

    fn show(&self, _: &Self) -> String {
        String::new()
    }

    fn read(&self, reader: &mut YamlReader<'_>, entry: YamlEntry<'_>) -> Option<Self> {
        reader.warn(entry, "this has no effect any more: every line is read", "nothing: leave it out");
        None
    }
}

fn lines(pairs: &[(&'static str, String)], before: &str) -> String {
    pairs.iter().map(|(key, text)| format!("{before}{key}: {text}")).collect()
}

/// The rules. A rule prints what differs from the defaults.
pub(super) struct Rules;

impl Rules {
    pub(super) fn show_over(rules: &[Rule], defaults: &Terms) -> String {
        if rules.is_empty() {
            return "[]".into();
        }
        let show = |rule: &Rule| {
            let mut pairs = rule.shown(Some(&Rule::default()));
            pairs.extend(rule.terms.shown(Some(defaults)));
            lines(&pairs, "\n    ").replacen("\n    ", "\n  - ", 1)
        };
        rules.iter().map(show).collect()
    }
}

impl Kind<Vec<Rule>> for Rules {
    fn describe(&self) -> String {
        format!("a list of up to {MAX_RULES} rules")
    }

    fn schema(&self) -> Json {
        let mut rule = object(Rule::rows().into_iter().chain(Terms::rows()).collect());
        rule["required"] = json!(["name"]);
        json!({ "type": "array", "maxItems": MAX_RULES, "items": rule })
    }

    fn show(&self, value: &Vec<Rule>) -> String {
        Self::show_over(value, &Terms::default())
    }

    /// Returns `None`: the rules start from the defaults, so `Policy::check` reads them afterwards.
    fn read(&self, _: &mut YamlReader<'_>, _: YamlEntry<'_>) -> Option<Vec<Rule>> {
        None
    }
}

fn read_rules(reader: &mut YamlReader<'_>, entry: YamlEntry<'_>, defaults: &Terms) -> Option<Vec<Rule>> {
    let (mut rules, mut entries) = (Vec::new(), Vec::new());
    let mut names: HashMap<Box<str>, usize> = HashMap::new();
    for entry in reader.list(entry, 0..=MAX_RULES, &Rules.describe())? {
        let Some((rule, rule_entry)) = read_rule(reader, entry, defaults) else { continue };
        if let Some(first) = names.get(&rule.name) {
            let message = format!("the rule of line {first} has the same name: {}", Quoted(&rule.name));
            reader.error(rule_entry, message, "a different name for each rule");
        } else {
            names.insert(rule.name.clone(), reader.line(rule_entry));
        }
        rules.push(rule);
        entries.push(rule_entry);
    }
    // If a rule could not be read, warnings about which rules are reached would be wrong.
    if reader.problems.errors() == 0 {
        for (index, overlap) in overlaps(&rules) {
            let named = |at: usize| format!("\"{}\" (line {})", Quoted(&rules[at].name), reader.line(entries[at]));
            let (message, expected) = match overlap {
                RuleOverlap::Unreachable { by } => {
                    let message = format!("this rule is never reached: {} matches all that it could", named(by));
                    (message, "the narrower rule first")
                }
                RuleOverlap::Crossing { with, others } => {
                    let more = if others > 0 { format!(", as do {others} more") } else { String::new() };
                    let message = format!("{} takes a part of what this rule matches{more}", named(with));
                    (message, "disjoint or nested rules: here only the order decides")
                }
            };
            reader.warn(entries[index].without_key(), message, expected);
        }
    }
    Some(rules)
}

/// A rule, and the entry at which problems of the whole rule are reported.
fn read_rule<'t>(reader: &mut YamlReader<'_>, entry: YamlEntry<'t>, defaults: &Terms) -> Option<(Rule, YamlEntry<'t>)> {
    let known = [Rule::NAMES, Terms::NAMES].concat();
    let fields = reader.fields(entry, &known, &[], "a rule, such as { name: partners, clients: [192.0.2.0/24] }")?;
    let name = fields.get("name");
    if name.is_none() {
        reader.error(entry.without_key(), "the rule has no name", "name: and a text that people will see in the logs");
    }
    let mut rule = Rule::read(reader, &fields, &Rule::default());
    rule.terms = Terms::read(reader, &fields, defaults);
    if rule.terms.action == Action::Deny {
        for entry in Terms::NAMES.iter().filter(|key| **key != "action").filter_map(|key| fields.get(key)) {
            reader.warn(entry, "this has no effect, because the rule's action is deny", "");
        }
        rule.terms = Terms { action: Action::Deny, ..defaults.clone() };
    }
    (!rule.name.is_empty()).then_some((rule, name.unwrap_or(entry)))
}

/// The index of the rule that applies between two hosts; a session keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleId(u16);

impl RuleId {
    /// No rule matched: the defaults apply.
    pub const DEFAULTS: Self = Self(u16::MAX);

    pub(super) fn of(index: usize) -> Self {
        // `MAX_RULES` is far below `u16::MAX`.
        u16::try_from(index).map_or(Self::DEFAULTS, Self)
    }

    pub(super) fn index(self) -> Option<usize> {
        (self != Self::DEFAULTS).then_some(usize::from(self.0))
    }
}
