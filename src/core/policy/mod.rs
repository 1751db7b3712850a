//! What the administrator allows: the YAML, and the answer to "which terms hold between these two hosts?".
//!
//! Text comes in, and a [`Policy`] or an explanation of everything that is wrong with it comes out. Nothing here opens
//! a file, reads a clock or knows what a packet is.

use std::net::IpAddr;
use std::num::NonZeroU16;

use crate::core::kernel::Mark;

mod file;
mod hosts;
mod overlap;
mod print;
mod problem;
mod reader;
mod rule;
mod schema;
mod services;
mod settings;
mod source;
mod terms;
mod tree;
mod word;

pub use hosts::Hosts;
pub use problem::{Problem, Problems, Severity};
pub use rule::{Rule, RuleId};
pub use schema::schema;
pub use settings::{
    Capture, Chain, ChainError, ChainFamily, ControlPorts, Limits, Mechanism, Pickup, Queues, WhenDown,
};
pub use terms::{Action, Login, PortRanges, PortSet, Terms, ThirdParty, Tls, Verbs};

pub(crate) use reader::{Entry, Reader};
pub(crate) use source::Quoted;
use source::{Source, Span};

/// The longest text that is read as a policy. Whoever reads a file need not read more than one byte beyond.
pub const MAX_BYTES: usize = 1 << 20;

/// The most rules that a policy may have.
pub const MAX_RULES: usize = 1000;

/// The text of the policy that holds where there is no file, with every key and its default explained.
pub const EMBEDDED: &str = include_str!("../../../deploy/policy.yaml");

/// What the administrator allows.
///
/// Read from text by [`parse`], which answers for what the types alone cannot: that each rule has a name of its own,
/// and that the numbers are within the limits of `docs/reference/policy.md`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The ports on which control connections arrive.
    pub control_ports: ControlPorts,
    /// How the kernel holds what it was told to admit.
    pub mechanism: Mechanism,
    /// How packets reach us.
    pub capture: Capture,
    /// Which sessions that went on before they were read are believed.
    pub pickup: Pickup,
    /// The chains at whose top an accept rule is kept, with the mechanism `sets`.
    pub admit: Vec<Chain>,
    /// The bits set in the mark of a connection that is admitted.
    pub mark: Mark,
    /// How much may be kept in memory.
    pub limits: Limits,
    /// The terms where no rule matches.
    pub defaults: Terms,
    /// The rules in the order in which they are tried.
    pub rules: Vec<Rule>,
}

impl Policy {
    /// The policy that holds where there is no file.
    pub fn embedded() -> Self {
        match parse("policy.yaml", EMBEDDED) {
            Ok(parsed) => parsed.policy,
            // It is a part of the program, and a test reads it.
            Err(problems) => panic!("the embedded policy is wrong:\n{problems}"),
        }
    }

    /// The same policy where it is followed: on a machine with so many processors.
    #[must_use]
    pub fn on(mut self, processors: NonZeroU16) -> Self {
        self.capture.queues = self.capture.queues.on(processors);
        self
    }

    /// Which terms hold between `client` and `server`: those of the first rule that names both, or the defaults.
    pub fn match_rule(&self, client: IpAddr, server: IpAddr) -> RuleId {
        let matches = |rule: &Rule| rule.clients.contains(client) && rule.servers.contains(server);
        self.rules.iter().position(matches).map_or(RuleId::DEFAULTS, RuleId::of)
    }

    /// Whether anything that a client says is held back, between any hosts.
    pub fn holds_back(&self) -> bool {
        self.defaults.holds_back() || self.rules.iter().any(|rule| rule.terms.holds_back())
    }

    /// The terms that `rule` stands for. An id from another policy gives one of this policy's terms.
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

/// A policy that holds, and what is perhaps not meant in it.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The policy.
    pub policy: Policy,
    /// Warnings only.
    pub warnings: Problems,
}

/// Reads a policy from the text of a file.
///
/// `name` is what the file is called in the problems.
///
/// # Errors
/// All that is wrong with the text, at least one error among it.
pub fn parse(name: &str, text: &str) -> Result<Parsed, Problems> {
    let (policy, warnings) = read_text(name, text, file::read)?;
    Ok(Parsed { policy, warnings })
}

/// Reads a policy from the bytes of a file, which should be UTF-8.
///
/// # Errors
/// As [`parse`]; bytes that are no text are one more thing that can be wrong.
pub fn parse_bytes(name: &str, bytes: &[u8]) -> Result<Parsed, Problems> {
    let (policy, warnings) = read_bytes(name, bytes, file::read)?;
    Ok(Parsed { policy, warnings })
}

/// Reads a YAML file of any of our kinds, with what `read` makes of it, and the warnings.
pub(crate) fn read_bytes<T>(
    name: &str,
    bytes: &[u8],
    read: impl FnOnce(&mut Reader<'_>, Entry<'_>) -> T,
) -> Result<(T, Problems), Problems> {
    // What lies beyond the limit does not matter, but that there is more does.
    let bytes = &bytes[..bytes.len().min(MAX_BYTES + 1)];
    match std::str::from_utf8(bytes) {
        Ok(text) => read_text(name, text, read),
        Err(error) if bytes.len() > MAX_BYTES && error.error_len().is_none() => {
            read_text(name, &String::from_utf8_lossy(bytes), read)
        }
        Err(error) => {
            // Up to the byte in question the lossy text is the same, byte for byte.
            let text = String::from_utf8_lossy(bytes);
            let source = Source::new(name, &text);
            let at = error.valid_up_to();
            let problem = Problem::new(Severity::Error, &source, Span { start: at, end: at })
                .message(format!("the byte {:#04x} is not UTF-8", bytes[at]))
                .expected("expected a text file in UTF-8");
            Err(problem.into())
        }
    }
}

fn read_text<T>(
    name: &str,
    text: &str,
    read: impl FnOnce(&mut Reader<'_>, Entry<'_>) -> T,
) -> Result<(T, Problems), Problems> {
    // Some editors begin a file with a byte order mark. It says nothing in UTF-8.
    let source = Source::new(name, text.strip_prefix('\u{FEFF}').unwrap_or(text));
    if text.len() > MAX_BYTES {
        let problem = Problem::new(Severity::Error, &source, Span { start: 0, end: 0 })
            .message(format!("the text is too long: {} bytes", text.len()))
            .expected(format!("expected at most {MAX_BYTES} bytes"));
        return Err(problem.into());
    }
    let root = tree::load(&source)?;
    let mut reader = Reader::new(&source);
    let value = read(&mut reader, Entry::root(&root));
    let problems = reader.problems.sorted();
    if problems.errors() > 0 { Err(problems) } else { Ok((value, problems)) }
}
