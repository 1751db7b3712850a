//! Opens and parses the input files of the command line; `-` is standard input.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::Outcome;
use super::messages::{Priority, Record};
use crate::core::policy::{self, Parsed, Policy, Problems, Severity};
use crate::daemon::POLICY_FILE;
use crate::replay::nat::{self, Nat};

pub(super) struct Input {
    pub(super) source: Box<dyn Read>,
    /// None if the input is not a regular file.
    pub(super) length: Option<u64>,
}

/// Opens a file, or standard input for `-`.
pub(super) fn open(path: &Path) -> io::Result<Input> {
    if path.as_os_str() == "-" {
        return Ok(Input { source: Box::new(io::stdin().lock()), length: None });
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(Input { source: Box::new(file), length: metadata.is_file().then_some(metadata.len()) })
}

/// The policy file of `run`, `check` and `rules`: the named one, or [`POLICY_FILE`] if it exists. None means the embedded
/// policy. A file that exists and cannot be read is an error later, not the embedded policy.
pub(super) fn policy_file(named: Option<&Path>) -> Option<PathBuf> {
    let default = Path::new(POLICY_FILE);
    let is_missing = || default.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    named.map(Path::to_owned).or_else(|| (!is_missing()).then(|| default.to_owned()))
}

/// Reads a policy file and prints every problem in it. Without a path, returns the embedded policy.
pub(super) fn policy(path: Option<&Path>) -> Result<Policy, Outcome> {
    let Some(path) = path else { return Ok(Policy::embedded()) };
    let Parsed { policy, warnings } = parse(path)?;
    if !warnings.is_empty() {
        print_problems(&warnings);
    }
    Ok(policy)
}

/// Reads a policy file and prints its errors. Returns the warnings.
pub(super) fn parse(path: &Path) -> Result<Parsed, Outcome> {
    read(path, "policy", policy::parse_bytes)
}

/// Reads the description of a NAT gateway and prints every problem in it.
pub(super) fn nat(path: &Path) -> Result<Nat, Outcome> {
    read(path, "NAT", nat::parse_bytes)
}

fn read<T>(path: &Path, what: &str, parse: fn(&str, &[u8]) -> Result<T, Problems>) -> Result<T, Outcome> {
    let name = super::name(path);
    let mut bytes = Vec::new();
    let limit = policy::MAX_BYTES as u64 + 1;
    let read = open(path).and_then(|input| input.source.take(limit).read_to_end(&mut bytes));
    if let Err(error) = read {
        super::print_error(format_args!("cannot read the {what} {name}: {error}"));
        return Err(Outcome::BadUsage);
    }
    parse(&name, &bytes).map_err(|problems| {
        print_problems(&problems);
        Outcome::BadUsage
    })
}

/// Prints problems with their source lines, or as records for the journal.
fn print_problems(problems: &Problems) {
    let mut stderr = io::stderr();
    if !super::messages::goes_to_journal() {
        let _ = writeln!(stderr, "{}", problems.to_string().trim_end());
        return;
    }
    for problem in problems {
        let priority = match problem.severity {
            Severity::Error => Priority::Error,
            Severity::Warning => Priority::Warning,
        };
        let _ = writeln!(stderr, "{}", Record(priority, &problem.headline()));
    }
}
