//! The policy: read from YAML, printed as YAML, and asked which terms apply between two hosts.
//!
//! [`parse`] returns a [`Policy`], or all problems of the text. Nothing here opens a file, reads a clock or knows
//! packets.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

mod hosts;
mod keys;
mod kinds;
mod overlap;
mod problem;
mod reader;
mod rules;
mod services;
mod settings;
mod source;
mod terms;
mod tree;
mod word;

pub use hosts::Hosts;
pub use keys::{Capture, Commands, Limits, Policy, Rule, Terms, schema};
pub use problem::{Problem, Problems, Severity};
pub use rules::{DeprecatedKey, RuleId};
pub use settings::{Chain, ChainFamily, ControlPorts, Mechanism, Pickup, Queues, WhenDown};
pub use terms::{Action, Login, PassiveAddress, PortRanges, PortSet, ThirdParty, Tls, Verbs};

use keys::Keys;
pub(crate) use keys::network;
use kinds::{BLOCK, Kind};
pub(crate) use reader::{YamlEntry, YamlReader};
use rules::Rules;
pub(crate) use source::Quoted;
use source::{Source, Span};

/// The longest text that is read as a policy. A caller that reads a file need not read more than one byte beyond it.
pub const MAX_BYTES: usize = 1 << 20;

/// The most rules that a policy may have.
pub const MAX_RULES: usize = 1000;

/// Readers of more queues than this wait for each other rather than for packets.
const MAX_AUTOMATIC_QUEUES: NonZeroU16 = NonZeroU16::new(8).expect("not zero");

/// The text of the policy that applies without a file, with every key and its default explained.
pub const EMBEDDED: &str = include_str!("../../../deploy/policy.yaml");

/// The policy as YAML with every setting. If that is read, the policy is the same. A rule has only the terms that
/// differ from the defaults.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, text) in self.shown(None) {
            let text = if key == "rules" { Rules::show_over(&self.rules, &self.defaults) } else { text };
            let space = if text.starts_with('\n') { "" } else { " " };
            writeln!(f, "{key}:{space}{text}")?;
        }
        Ok(())
    }
}

impl Capture {
    /// The queues to which the kernel sends packets. `auto` means one until [`Policy::on`] has set the number.
    pub fn queues(&self) -> Queues {
        self.queues.and_then(|count| Queues::new(self.queue, count)).unwrap_or(Queues::one(self.queue))
    }
}

impl Policy {
    /// The policy that applies without a file.
    pub fn embedded() -> Self {
        match parse("policy.yaml", EMBEDDED) {
            Ok(parsed) => parsed.policy,
            // The text is part of the program, and a test reads it.
            Err(problems) => panic!("the embedded policy is wrong:\n{problems}"),
        }
    }

    /// The policy on a machine with this many processors. `queues: auto` becomes one queue for each processor, so that a
    /// packet is read on the processor on which it arrived, but not more than eight.
    #[must_use]
    pub fn on(mut self, processors: NonZeroU16) -> Self {
        let free_numbers = NonZeroU16::MIN.saturating_add(u16::MAX - self.capture.queue);
        self.capture.queues.get_or_insert(processors.min(MAX_AUTOMATIC_QUEUES).min(free_numbers));
        self
    }

    /// Which terms apply between `client` and `server`: those of the first rule that matches both, or the defaults.
    pub fn match_rule(&self, client: IpAddr, server: IpAddr) -> RuleId {
        let matches = |rule: &Rule| rule.clients.contains(client) && rule.servers.contains(server);
        self.rules.iter().position(matches).map_or(RuleId::DEFAULTS, RuleId::of)
    }

    /// Whether any terms deny commands or TLS.
    pub fn holds_back(&self) -> bool {
        self.defaults.holds_back() || self.rules.iter().any(|rule| rule.terms.holds_back())
    }

    /// The terms of `rule`. The ID of a rule of another policy gives some terms of this policy.
    pub fn terms(&self, rule: RuleId) -> &Terms {
        self.rule(rule).map_or(&self.defaults, |rule| &rule.terms)
    }

    /// The name of `rule`; the defaults have none.
    pub fn rule_name(&self, rule: RuleId) -> Option<&str> {
        self.rule(rule).map(|rule| &*rule.name)
    }

    fn rule(&self, id: RuleId) -> Option<&Rule> {
        id.index().and_then(|index| self.rules.get(index))
    }
}

/// A valid policy, and the warnings about it.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The policy.
    pub policy: Policy,
    /// Warnings only.
    pub warnings: Problems,
}

/// Reads a policy from the text of a file.
///
/// `name` is the name of the file in the problems.
///
/// # Errors
/// All problems of the text, at least one of them an error.
pub fn parse(name: &str, text: &str) -> Result<Parsed, Problems> {
    let (policy, warnings) = read_text(name, text, read)?;
    Ok(Parsed { policy, warnings })
}

/// Reads a policy from the bytes of a file, which should be UTF-8.
///
/// # Errors
/// Like [`parse`], and if the bytes are not UTF-8.
pub fn parse_bytes(name: &str, bytes: &[u8]) -> Result<Parsed, Problems> {
    let (policy, warnings) = read_bytes(name, bytes, read)?;
    Ok(Parsed { policy, warnings })
}

fn read(reader: &mut YamlReader<'_>, root: YamlEntry<'_>) -> Policy {
    BLOCK.read(reader, root).unwrap_or_default()
}

/// Reads a YAML file with `read`: a policy, or another file that is checked in the same way. Returns the warnings, too.
pub(crate) fn read_bytes<T>(
    name: &str,
    bytes: &[u8],
    read: impl FnOnce(&mut YamlReader<'_>, YamlEntry<'_>) -> T,
) -> Result<(T, Problems), Problems> {
    // One byte beyond the limit shows that the text is too long.
    let bytes = &bytes[..bytes.len().min(MAX_BYTES + 1)];
    match std::str::from_utf8(bytes) {
        Ok(text) => read_text(name, text, read),
        Err(error) if bytes.len() > MAX_BYTES && error.error_len().is_none() => {
            read_text(name, &String::from_utf8_lossy(bytes), read)
        }
        Err(error) => {
            // Before the invalid byte, the lossy text has the same bytes.
            let text = String::from_utf8_lossy(bytes);
            let source = Source::new(name, &text);
            let at = error.valid_up_to();
            let message = format!("the byte {:#04x} is not UTF-8", bytes[at]);
            let span = Span { start: at, end: at };
            let problem = Problem::new(Severity::Error, &source, span, "", message, "a text file in UTF-8");
            Err(problem.into())
        }
    }
}

fn read_text<T>(
    name: &str,
    text: &str,
    read: impl FnOnce(&mut YamlReader<'_>, YamlEntry<'_>) -> T,
) -> Result<(T, Problems), Problems> {
    // Some editors begin a file with a byte order mark, which has no meaning in UTF-8.
    let source = Source::new(name, text.strip_prefix('\u{FEFF}').unwrap_or(text));
    if text.len() > MAX_BYTES {
        let message = format!("the text is too long: {} bytes", text.len());
        let expected = format!("at most {MAX_BYTES} bytes");
        let problem = Problem::new(Severity::Error, &source, Span { start: 0, end: 0 }, "", message, &expected);
        return Err(problem.into());
    }
    let root = tree::load(&source)?;
    let mut reader = YamlReader::new(&source);
    let value = read(&mut reader, YamlEntry::root(&root));
    let problems = reader.problems.sorted();
    if problems.errors() > 0 { Err(problems) } else { Ok((value, problems)) }
}
