//! Prints a policy as it was understood: YAML again, which gives the same policy when it is read.

use std::fmt::{self, Display, Formatter};

use super::Policy;
use super::hosts::Hosts;
use super::reader::show_duration;
use super::rule::Rule;
use super::terms::{Action, PortRanges, Terms, Tls};

/// Every setting, whether it was given or not; a rule shows what differs from the defaults.
impl Display for Policy {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "control_ports: {}", List(self.control_ports.as_slice()))?;
        writeln!(f, "mechanism: {}", self.mechanism)?;
        let capture = self.capture;
        writeln!(f, "capture:")?;
        writeln!(f, "  queue: {}", capture.queues.first())?;
        match capture.queues.wanted() {
            Some(count) => writeln!(f, "  queues: {count}")?,
            None => writeln!(f, "  queues: auto")?,
        }
        writeln!(f, "  when_down: {}", capture.when_down)?;
        writeln!(f, "  watchdog: {}", show_duration(capture.watchdog))?;
        writeln!(f, "pickup: {}", self.pickup)?;
        writeln!(f, "admit: {}", List(&self.admit))?;
        writeln!(f, "mark: {}", self.mark)?;
        let limits = self.limits;
        writeln!(f, "limits:")?;
        writeln!(f, "  sessions: {}", limits.sessions)?;
        writeln!(f, "  sessions_per_client: {}", limits.sessions_per_client)?;
        writeln!(f, "  pinholes: {}", limits.pinholes)?;
        writeln!(f, "  pinholes_per_client: {}", limits.pinholes_per_client)?;
        writeln!(f, "  line_bytes: {}", limits.line_bytes)?;
        writeln!(f, "  reorder_bytes: {}", limits.reorder_bytes)?;
        writeln!(f, "  buffered_bytes: {}", limits.buffered_bytes)?;
        writeln!(f, "  idle: {}", show_duration(limits.idle))?;
        writeln!(f, "defaults:")?;
        terms(f, "  ", &self.defaults, None)?;
        if self.rules.is_empty() {
            return writeln!(f, "rules: []");
        }
        writeln!(f, "rules:")?;
        self.rules.iter().try_for_each(|one| rule(f, one, &self.defaults))
    }
}

fn rule(f: &mut Formatter<'_>, rule: &Rule, defaults: &Terms) -> fmt::Result {
    writeln!(f, "  - name: {}", Text(&rule.name))?;
    for (key, hosts) in [("clients", &rule.clients), ("servers", &rule.servers)] {
        if !hosts.networks().is_empty() {
            writeln!(f, "    {key}: {}", networks(hosts))?;
        }
    }
    if rule.action() != Action::Allow {
        writeln!(f, "    action: {}", rule.action())?;
    }
    terms(f, "    ", &rule.terms, Some(defaults))
}

/// The terms that are not the same in `unlike`.
fn terms(f: &mut Formatter<'_>, indent: &str, terms: &Terms, unlike: Option<&Terms>) -> fmt::Result {
    let shown = |same: fn(&Terms, &Terms) -> bool| unlike.is_none_or(|unlike| !same(terms, unlike));
    if shown(|a, b| a.modes == b.modes) {
        writeln!(f, "{indent}modes: {}", List(&terms.modes.iter().collect::<Vec<_>>()))?;
    }
    if shown(|a, b| a.data_ports == b.data_ports) {
        writeln!(f, "{indent}data_ports: {}", ports(&terms.data_ports))?;
    }
    if shown(|a, b| a.known_services == b.known_services) {
        if terms.known_services == Terms::default().known_services {
            writeln!(f, "{indent}known_services: default")?;
        } else {
            writeln!(f, "{indent}known_services: {}", List(terms.known_services.as_slice()))?;
        }
    }
    if shown(|a, b| a.timeout == b.timeout) {
        writeln!(f, "{indent}timeout: {}", show_duration(terms.timeout))?;
    }
    if shown(|a, b| a.pinholes_per_session == b.pinholes_per_session) {
        writeln!(f, "{indent}pinholes_per_session: {}", terms.pinholes_per_session)?;
    }
    if shown(|a, b| a.third_party == b.third_party) {
        writeln!(f, "{indent}third_party: {}", terms.third_party)?;
    }
    if shown(|a, b| a.login == b.login) {
        writeln!(f, "{indent}login: {}", terms.login)?;
    }
    if shown(|a, b| a.tls == b.tls) {
        writeln!(f, "{indent}tls: {}", terms.tls)?;
    }
    if shown(|a, b| a.denied_commands == b.denied_commands) {
        let verbs: Vec<Text<'_>> = terms.denied_commands.iter().map(Text).collect();
        writeln!(f, "{indent}commands: {{ deny: {} }}", List(&verbs))?;
    }
    Ok(())
}

impl Display for Tls {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("pass"),
            Self::Deny => f.write_str("deny"),
            Self::Range(range) => write!(f, "range {}-{}", range.first(), range.last()),
        }
    }
}

fn ports(ports: &PortRanges) -> String {
    match ports.entries().as_slice() {
        [one] => one.to_string(),
        several => List(several).to_string(),
    }
}

fn networks(hosts: &Hosts) -> String {
    let texts: Vec<String> = hosts.networks().iter().map(ToString::to_string).collect();
    // An address with a colon at either end would be something else to YAML.
    let quoted = texts.iter().map(|text| if text.contains(':') { format!("\"{text}\"") } else { text.clone() });
    List(&quoted.collect::<Vec<_>>()).to_string()
}

/// A list on one line.
struct List<'a, T>(&'a [T]);

impl<T: Display> Display for List<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, item) in self.0.iter().enumerate() {
            write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

/// A text in quotes. It holds no control characters: a policy refuses them in names.
struct Text<'a>(&'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.replace('\\', "\\\\").replace('"', "\\\""))
    }
}
