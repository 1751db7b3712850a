//! `pinhole check`: is this policy good, and what does it mean?

use std::io::{self, Write};
use std::path::PathBuf;

use super::{Outcome, input};
use crate::policy::Parsed;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The policy to look at; `-` is standard input
    #[arg(value_name = "POLICY")]
    policy: PathBuf,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let Parsed { policy, warnings } = match input::parse(&args.policy) {
        Ok(parsed) => parsed,
        Err(outcome) => return Ok(outcome),
    };
    let name = super::name(&args.policy);
    let mut out = io::stdout().lock();
    if warnings.is_empty() {
        writeln!(out, "# {name} is good. As understood:")?;
    } else {
        writeln!(io::stderr(), "{}", warnings.to_string().trim_end())?;
        let count = warnings.warnings();
        let plural = if count == 1 { "" } else { "s" };
        writeln!(out, "# {name} is good, with {count} warning{plural}. As understood:")?;
    }
    write!(out, "{policy}")?;
    Ok(Outcome::Good)
}
