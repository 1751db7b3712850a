//! Builds the [`Policy`] from the tree of a policy file, or lists everything that is wrong in the file.
//!
//! [`keys`] lists the keys of each level. Any other key is an error. The schema lists the same keys.

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::time::Duration;

use super::hosts::Hosts;
use super::overlap::{Clash, clashes};
use super::reader::{Entry, Fields, Reader};
use super::rule::Rule;
use super::settings::{Capture, Chain, ChainError, ControlPorts, Limits, Mechanism, Pickup, Queues};
use super::source::{Quoted, is_visible};
use super::terms::{Action, PortRanges, PortSet, Terms, Tls, Verbs};
use super::tree::Value;
use super::word::nearest;
use super::{MAX_RULES, Policy};
use crate::core::ftp::command;
use crate::core::ftp::mode::{Mode, Modes};
use crate::core::kernel::Mark;
use crate::core::net::Network;

/// The keys that a policy may have, level by level.
pub(super) mod keys {
    pub(crate) const POLICY: &[&str] =
        &["control_ports", "mechanism", "capture", "pickup", "admit", "mark", "limits", "defaults", "rules"];
    pub(crate) const CAPTURE: &[&str] = &["queue", "queues", "inspect", "when_down", "watchdog"];
    pub(crate) const LIMITS: &[&str] = &[
        "sessions",
        "sessions_per_client",
        "pinholes",
        "pinholes_per_client",
        "line_bytes",
        "reorder_bytes",
        "buffered_bytes",
        "idle",
    ];
    pub(crate) const TERMS: &[&str] = &[
        "modes",
        "data_ports",
        "known_services",
        "timeout",
        "pinholes_per_session",
        "third_party",
        "login",
        "tls",
        "commands",
    ];
    pub(crate) const RULE: &[&str] = &[
        "name",
        "clients",
        "servers",
        "action",
        "modes",
        "data_ports",
        "known_services",
        "timeout",
        "pinholes_per_session",
        "third_party",
        "login",
        "tls",
        "commands",
    ];
    pub(crate) const COMMANDS: &[&str] = &["deny"];
}

/// The most ports, port ranges, chains or verbs in one list.
const MOST_LISTED: usize = 64;
/// The most ports and port ranges of known services.
const MOST_SERVICES: usize = 256;
/// The most networks in one list.
const MOST_NETWORKS: usize = 1000;
/// The most characters in the name of a rule.
const LONGEST_NAME: usize = 64;

/// Reads the policy; what is wrong is left in `reader`.
pub(super) fn read(reader: &mut Reader<'_>, root: Entry<'_>) -> Policy {
    let fields = reader.fields(root, keys::POLICY, "expected keys such as control_ports; {} keeps every default");
    let Some(fields) = fields else { return Policy::default() };
    let mechanism = value(&fields, "mechanism", Mechanism::Auto, |entry| reader.word(entry));
    let defaults = fields.get("defaults").map(|entry| {
        let own = reader.fields(entry, keys::TERMS, "expected a mapping of the terms that hold unless a rule differs");
        own.map_or_else(Terms::default, |own| read_terms(reader, &own, &Terms::default()))
    });
    let defaults = defaults.unwrap_or_default();
    Policy {
        control_ports: value(&fields, "control_ports", ControlPorts::default(), |entry| control_ports(reader, entry)),
        mechanism,
        capture: value(&fields, "capture", Capture::default(), |entry| capture(reader, entry)),
        pickup: value(&fields, "pickup", Pickup::default(), |entry| reader.word(entry)),
        admit: value(&fields, "admit", Vec::new(), |entry| admit(reader, entry, mechanism)),
        mark: value(&fields, "mark", Mark::default(), |entry| mark(reader, entry)),
        limits: value(&fields, "limits", Limits::default(), |entry| limits(reader, entry)),
        rules: value(&fields, "rules", Vec::new(), |entry| rules(reader, entry, &defaults)),
        defaults,
    }
}

/// The value of `key` as `read` has it, or else the default.
fn value<'t, T>(fields: &Fields<'t>, key: &'static str, default: T, read: impl FnOnce(Entry<'t>) -> Option<T>) -> T {
    fields.get(key).and_then(read).unwrap_or(default)
}

fn control_ports(reader: &mut Reader<'_>, entry: Entry<'_>) -> Option<ControlPorts> {
    let mut ports = Vec::new();
    for entry in reader.full_list(entry, MOST_LISTED, "expected a list of ports such as [21]")? {
        let Some(port) = reader.port(entry) else { continue };
        if ports.contains(&port) {
            reader.error(entry, format!("port {port} is there twice"), "expected each port once");
        }
        ports.push(port);
    }
    ControlPorts::new(ports)
}

fn queues(reader: &mut Reader<'_>, entry: Entry<'_>, first: u16) -> Option<Queues> {
    let count = match &entry.node.value {
        Value::Text(text) if text == "auto" => return None,
        Value::Integer(_) => reader.integer(entry, 1..=65_535).and_then(NonZeroU16::new)?,
        _ => {
            reader.wrong_type(entry, "expected auto, or a number from 1 to 65535");
            return None;
        }
    };
    let queues = Queues::new(first, count);
    if queues.is_none() {
        let last = u32::from(first) + u32::from(count.get()) - 1;
        let message = format!("{count} queues from number {first} would end at {last}");
        reader.error(entry, message, "expected the last queue to be 65535 or lower");
    }
    queues
}

fn capture(reader: &mut Reader<'_>, entry: Entry<'_>) -> Option<Capture> {
    let fields = reader.fields(entry, keys::CAPTURE, "expected a mapping with keys such as queue")?;
    let default = Capture::default();
    let first = value(&fields, "queue", default.queues.first(), |entry| reader.integer(entry, 0..=65_535));
    let queues = fields.get("queues").and_then(|entry| queues(reader, entry, first));
    if let Some(entry) = fields.get("inspect") {
        reader.warn(entry, "this has no effect any more: every line is read", "expected nothing: leave it out");
    }
    Some(Capture {
        queues: queues.unwrap_or(Queues::automatic(first)),
        when_down: value(&fields, "when_down", default.when_down, |entry| reader.word(entry)),
        watchdog: value(&fields, "watchdog", default.watchdog, |entry| {
            reader.duration(entry, Duration::from_secs(2)..=Duration::from_secs(3600))
        }),
    })
}

fn admit(reader: &mut Reader<'_>, entry: Entry<'_>, mechanism: Mechanism) -> Option<Vec<Chain>> {
    const EXPECTED: &str = "expected chains as \"FAMILY TABLE CHAIN\", such as [inet filter input]";
    let mut chains: Vec<Chain> = Vec::new();
    let list = reader.list(entry, MOST_LISTED, EXPECTED)?;
    if list.len() > 0 && mechanism == Mechanism::Native {
        let message = "the mechanism native does not need it: the firewall's own rule for related connections counts";
        reader.warn(entry, message, "expected it with sets or auto only");
    }
    for entry in list {
        let Some(text) = reader.text(entry, EXPECTED) else { continue };
        match text.parse::<Chain>() {
            Ok(chain) if chains.contains(&chain) => {
                reader.error(entry, format!("the chain {chain} is there twice"), "expected each chain once");
            }
            Ok(chain) => chains.push(chain),
            Err(error) => {
                let expected = match error {
                    ChainError::Family => "expected ip, ip6 or inet, then a table and a chain",
                    ChainError::OwnTable => "expected a chain of your own firewall's tables",
                    _ => EXPECTED,
                };
                reader.error(entry, format!("{} names no chain: {error}", Quoted(text)), expected);
            }
        }
    }
    Some(chains)
}

fn mark(reader: &mut Reader<'_>, entry: Entry<'_>) -> Option<Mark> {
    let bits = reader.integer(entry, 1..=u32::MAX)?;
    let mark = Mark::new(bits);
    if mark.is_none() {
        let message = format!("{bits:#010x} leaves fewer than five bits for the marks of control connections");
        reader.error(entry, message, "expected at most 27 bits, such as the one of 0x10000000");
    }
    mark
}

fn limits(reader: &mut Reader<'_>, entry: Entry<'_>) -> Option<Limits> {
    let fields = reader.fields(entry, keys::LIMITS, "expected a mapping with keys such as sessions")?;
    let default = Limits::default();
    let mut number = |key, default, range| {
        value(&fields, key, default, |entry| reader.integer::<u32>(entry, range).and_then(|n| n.try_into().ok()))
    };
    Some(Limits {
        sessions: number("sessions", default.sessions, 1..=4_194_304),
        sessions_per_client: number("sessions_per_client", default.sessions_per_client, 1..=4_194_304),
        pinholes: number("pinholes", default.pinholes, 1..=1_048_576),
        pinholes_per_client: number("pinholes_per_client", default.pinholes_per_client, 1..=1_048_576),
        line_bytes: number("line_bytes", default.line_bytes, 128..=65_536),
        reorder_bytes: number("reorder_bytes", default.reorder_bytes, 1024..=1_048_576),
        buffered_bytes: number("buffered_bytes", default.buffered_bytes, 65_536..=1_073_741_824),
        idle: value(&fields, "idle", default.idle, |entry| {
            reader.duration(entry, Duration::from_secs(1)..=Duration::from_secs(168 * 3600))
        }),
    })
}

/// The terms of a mapping; what it does not say is as in `base`.
fn read_terms(reader: &mut Reader<'_>, fields: &Fields<'_>, base: &Terms) -> Terms {
    let base = base.clone();
    Terms {
        action: base.action,
        modes: value(fields, "modes", base.modes, |entry| modes(reader, entry)),
        data_ports: value(fields, "data_ports", base.data_ports, |entry| data_ports(reader, entry)),
        known_services: value(fields, "known_services", base.known_services, |entry| known_services(reader, entry)),
        timeout: value(fields, "timeout", base.timeout, |entry| {
            reader.duration(entry, Duration::from_millis(10)..=Duration::from_secs(3600))
        }),
        pinholes_per_session: value(fields, "pinholes_per_session", base.pinholes_per_session, |entry| {
            reader.integer(entry, 1..=1024).and_then(NonZeroU16::new)
        }),
        third_party: value(fields, "third_party", base.third_party, |entry| reader.word(entry)),
        login: value(fields, "login", base.login, |entry| reader.word(entry)),
        tls: value(fields, "tls", base.tls, |entry| tls(reader, entry)),
        denied_commands: value(fields, "commands", base.denied_commands, |entry| commands(reader, entry)),
    }
}

fn modes(reader: &mut Reader<'_>, entry: Entry<'_>) -> Option<Modes> {
    let words = Mode::ALL.map(|mode| (mode, mode.command()));
    let list = reader.full_list(
        entry,
        MOST_LISTED,
        "expected a list such as [PASV, EPSV]; to refuse all, use a rule \
                                                     with action: deny",
    )?;
    let mut modes = Vec::new();
    for entry in list {
        let Some(mode) = reader.one_of(entry, &words) else { continue };
        if modes.contains(&mode) {
            reader.warn(entry, format!("{mode} is there twice"), "expected each mode once");
        }
        modes.push(mode);
    }
    Some(modes.into_iter().collect())
}

fn data_ports(reader: &mut Reader<'_>, entry: Entry<'_>) -> Option<PortRanges> {
    if !matches!(entry.node.value, Value::List(_)) {
        return reader.port_range(entry).map(PortRanges::from);
    }
    let mut ranges: Vec<crate::core::net::PortRange> = Vec::new();
    for entry in reader.full_list(entry, MOST_LISTED, "expected ports such as 50000-50100, or a list of such")? {
        let Some(range) = reader.port_range(entry) else { continue };
        // A port within a range may be named beside it, because it may be a known service's.
        let is_single = |range: crate::core::net::PortRange| range.first() == range.last();
        let overlaps = |r: &&crate::core::net::PortRange| {
            r.first() <= range.last() && range.first() <= r.last() && is_single(**r) == is_single(range)
        };
        if let Some(other) = ranges.iter().find(overlaps) {
            let message = format!("{range} overlaps {other}, which is in the list already");
            reader.warn(entry, message, "expected each port once");
        }
        ranges.push(range);
    }
    PortRanges::new(ranges)
}

fn known_services(reader: &mut Reader<'_>, entry: Entry<'_>) -> Option<PortSet> {
    const EXPECTED: &str = "expected default, or a list of ports such as [3306, 5900-5909]; [] for none";
    if matches!(&entry.node.value, Value::Text(text) if text == "default") {
        return Some(Terms::default().known_services);
    }
    let list = reader.list(entry, MOST_SERVICES, EXPECTED)?;
    Some(PortSet::new(list.filter_map(|entry| reader.port_range(entry))))
}

fn tls(reader: &mut Reader<'_>, entry: Entry<'_>) -> Option<Tls> {
    const EXPECTED: &str = "expected pass, deny, or range LOW-HIGH such as range 50000-50100";
    match reader.text(entry, EXPECTED)? {
        "pass" => Some(Tls::Pass),
        "deny" => Some(Tls::Deny),
        text => match text.split_once(' ') {
            Some(("range", range)) => reader.range(entry, range).map(Tls::Range),
            _ => {
                reader.unknown_word(entry, text, &["pass", "deny", "range"], EXPECTED);
                None
            }
        },
    }
}

fn commands(reader: &mut Reader<'_>, entry: Entry<'_>) -> Option<Verbs> {
    const EXPECTED: &str = "expected a list of commands such as [SITE, DELE]";
    let fields = reader.fields(entry, keys::COMMANDS, "expected a mapping such as { deny: [SITE, DELE] }")?;
    let mut verbs = Vec::new();
    if let Some(entry) = fields.get("deny") {
        for entry in reader.list(entry, MOST_LISTED, EXPECTED)? {
            let Some(verb) = reader.text(entry, EXPECTED) else { continue };
            if !Verbs::is_verb(verb) {
                let message = format!("{} is no command", Quoted(verb));
                reader.error(entry, message, "expected one to eight letters or digits in upper case, such as DELE");
                continue;
            }
            if verbs.contains(&verb) {
                reader.warn(entry, format!("{verb} is there twice"), "expected each command once");
            } else if !command::is_known(verb) {
                let meant = nearest(verb, command::COMMANDS.iter().map(|known| known.name));
                let meant = meant.map(|word| format!("; did you mean {word}?")).unwrap_or_default();
                reader.warn(entry, format!("{verb} is no command that FTP is known to have{meant}"), "");
            }
            verbs.push(verb);
        }
    }
    Verbs::new(verbs)
}

fn rules(reader: &mut Reader<'_>, entry: Entry<'_>, defaults: &Terms) -> Option<Vec<Rule>> {
    let list = reader.list(entry, MAX_RULES, "expected a list of rules, each with a name")?;
    let mut rules = Vec::with_capacity(list.len());
    let mut places = Vec::with_capacity(list.len());
    let mut names: HashMap<Box<str>, usize> = HashMap::new();
    for entry in list {
        let Some((rule, place)) = rule(reader, entry, defaults) else { continue };
        let line = reader.line(place);
        if let Some(first) = names.get(&rule.name) {
            let message = format!("the rule of line {first} has the same name: {}", Quoted(&rule.name));
            reader.error(place, message, "expected a different name for each rule");
        } else {
            names.insert(rule.name.clone(), line);
        }
        rules.push(rule);
        places.push(place);
    }
    // With a rule missing or half read, it would be wrong to say what the others leave to it.
    if reader.problems.errors() == 0 {
        for (index, clash) in clashes(&rules) {
            let named = |index: usize| {
                let rule: &Rule = &rules[index];
                format!("\"{}\" (line {})", Quoted(&rule.name), reader.line(places[index]))
            };
            let place = places[index].whole();
            match clash {
                Clash::Unreachable { by } => {
                    let message = format!("this rule is never reached: {} matches all that it could", named(by));
                    reader.warn(place, message, "expected the narrower rule first");
                }
                Clash::Crossing { with, others } => {
                    let more = if others > 0 { format!(", as do {others} more") } else { String::new() };
                    let message = format!("{} takes a part of what this rule matches{more}", named(with));
                    reader.warn(
                        place,
                        message,
                        "expected rules that are apart, or one within the other: which one \
                                                 decides now depends on their order alone",
                    );
                }
            }
        }
    }
    Some(rules)
}

/// A rule, and where to point when it is spoken of.
fn rule<'t>(reader: &mut Reader<'_>, entry: Entry<'t>, defaults: &Terms) -> Option<(Rule, Entry<'t>)> {
    let fields =
        reader.fields(entry, keys::RULE, "expected a rule, such as { name: partners, clients: [192.0.2.0/24] }")?;
    let name = fields.get("name");
    if name.is_none() {
        reader.error(
            entry.whole(),
            "the rule has no name",
            "expected name: and a text that people will see in the logs",
        );
    }
    let named = name.and_then(|entry| rule_name(reader, entry));
    let action = value(&fields, "action", Action::Allow, |entry| reader.word(entry));
    let own = read_terms(reader, &fields, defaults);
    let terms = match action {
        Action::Allow => own,
        Action::Deny => {
            for entry in fields.iter().filter(|entry| keys::TERMS.contains(&entry.key)) {
                reader.warn(entry, "this has no effect, because the rule's action is deny", "");
            }
            Terms { action, ..defaults.clone() }
        }
    };
    let clients = value(&fields, "clients", Hosts::everyone(), |entry| hosts(reader, entry));
    let servers = value(&fields, "servers", Hosts::everyone(), |entry| hosts(reader, entry));
    Some((Rule { name: named?.into(), clients, servers, terms }, name.unwrap_or(entry)))
}

fn rule_name<'t>(reader: &mut Reader<'_>, entry: Entry<'t>) -> Option<&'t str> {
    const EXPECTED: &str = "expected a text of 1 to 64 characters that can be seen";
    let text = reader.text(entry, EXPECTED)?;
    let wrong = if text.trim().is_empty() {
        "the name is empty"
    } else if text.chars().count() > LONGEST_NAME {
        "the name is too long"
    } else if !text.chars().all(is_visible) {
        "the name holds characters that cannot be seen"
    } else {
        return Some(text);
    };
    reader.error(entry, wrong, EXPECTED);
    None
}

fn hosts(reader: &mut Reader<'_>, entry: Entry<'_>) -> Option<Hosts> {
    const EXPECTED: &str = "expected a list of networks such as [192.0.2.0/24]; leave the key out to mean everyone";
    let list = reader.full_list(entry, MOST_NETWORKS, EXPECTED)?;
    let networks: Vec<(Network, Entry<'_>)> = list.filter_map(|e| Some((reader.network(e)?, e))).collect();
    for (index, other) in repeated(&networks.iter().map(|&(network, _)| network).collect::<Vec<_>>()) {
        let (network, entry) = networks[index];
        let message = if network == other {
            format!("{network} is there twice")
        } else {
            format!("{network} is already within {other}")
        };
        reader.warn(entry, message, "expected networks that do not overlap");
    }
    Some(Hosts::new(networks.into_iter().map(|(network, _)| network).collect()))
}

/// The indices of the networks that others of the list cover, each with the one that does.
fn repeated(networks: &[Network]) -> Vec<(usize, Network)> {
    // Sorted so that what covers a network comes before it, nothing else in between: two networks never cross.
    let mut order: Vec<usize> = (0..networks.len()).collect();
    order.sort_by_key(|&i| (networks[i].first(), std::cmp::Reverse(networks[i].last()), i));
    let mut widest: Option<Network> = None;
    let mut found = Vec::new();
    for i in order {
        match widest {
            Some(wide) if wide.covers(networks[i]) => found.push((i, wide)),
            _ => widest = Some(networks[i]),
        }
    }
    found
}
