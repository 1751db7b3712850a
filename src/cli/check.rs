//! `pinhole check`: validates a policy and prints it as understood; with `--host`, or without a file, checks this
//! host.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{Outcome, input};
use crate::core::count::Count;
use crate::core::policy::{Parsed, Policy};
use crate::doctor::{self, Finding, PolicyFile, Rating};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Policy file to check; `-` reads standard input. Without it, check this host
    #[arg(value_name = "POLICY")]
    policy: Option<PathBuf>,
    /// Check this host, for POLICY or the built-in policy
    #[arg(long)]
    host: bool,
    /// Print the findings about this host as a JSON array
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    match &args.policy {
        Some(path) if !args.host && args.json => {
            super::print_error(format_args!(
                "`--json` prints findings about this host: `pinhole check --host --json {}`",
                path.display()
            ));
            Ok(Outcome::BadUsage)
        }
        Some(path) if !args.host => check_policy(path),
        path => match input::policy(path.as_deref()) {
            Ok(policy) => check_host(&policy, path.as_deref(), args.json),
            Err(outcome) => Ok(outcome),
        },
    }
}

fn check_policy(path: &Path) -> anyhow::Result<Outcome> {
    let Parsed { policy, warnings } = match input::parse(path) {
        Ok(parsed) => parsed,
        Err(outcome) => return Ok(outcome),
    };
    let name = super::name(path);
    let risks = doctor::risks(&policy, &PolicyFile::probe(path));
    let mut out = io::stdout().lock();
    let count = warnings.warnings() + risks.len();
    if !warnings.is_empty() {
        writeln!(io::stderr(), "{}", warnings.to_string().trim_end())?;
    }
    for risk in &risks {
        writeln!(io::stderr(), "{risk}")?;
    }
    if count == 0 {
        writeln!(out, "# {name} is valid. As understood:")?;
    } else {
        writeln!(out, "# {name} is valid, with {}. As understood:", Count(count, "warning"))?;
    }
    write!(out, "{policy}")?;
    Ok(Outcome::Good)
}

fn check_host(policy: &Policy, path: Option<&Path>, json: bool) -> anyhow::Result<Outcome> {
    let mut findings = doctor::examine(policy);
    findings.extend(doctor::risks(policy, &path.map(PolicyFile::probe).unwrap_or_default()));
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (problems, warnings) = (count(Rating::Problem), count(Rating::Warning));
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &findings)?;
        writeln!(out)?;
    } else {
        let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
        for Finding { severity, check, message, advice } in &findings {
            write!(out, "{severity:7}  {check:width$}  {message}")?;
            advice.iter().try_for_each(|advice| write!(out, "; {advice}"))?;
            writeln!(out)?;
        }
        let ready = if problems == 0 { "This host is ready for `pinhole run`" } else { "`pinhole run` would not work" };
        writeln!(out, "{ready}: {}, {}.", Count(problems, "problem"), Count(warnings, "warning"))?;
    }
    Ok(if problems == 0 { Outcome::Good } else { Outcome::BadInput })
}
