//! `pinhole check`: validates a policy and prints it as understood; with `--host`, or without a file, checks this
//! host.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{Outcome, input};
use crate::core::policy::{Parsed, Policy};
use crate::doctor::{self, Finding, PolicyFile, Weight};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The policy to look at; `-` is standard input. Without one, this host is examined
    #[arg(value_name = "POLICY")]
    policy: Option<PathBuf>,
    /// Examine this host for that policy; without one, for the embedded default
    #[arg(long)]
    host: bool,
    /// Print what was found on this host as a JSON list
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    match &args.policy {
        Some(path) if !args.host && args.json => {
            super::complain(format_args!(
                "`--json` is for what is found on this host: `pinhole check --host --json {}`",
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
    let risks = doctor::risks(&policy, &PolicyFile::look(path));
    let mut out = io::stdout().lock();
    let count = warnings.warnings() + risks.len();
    if !warnings.is_empty() {
        writeln!(io::stderr(), "{}", warnings.to_string().trim_end())?;
    }
    for risk in &risks {
        writeln!(io::stderr(), "{risk}")?;
    }
    if count == 0 {
        writeln!(out, "# {name} is good. As understood:")?;
    } else {
        let plural = if count == 1 { "" } else { "s" };
        writeln!(out, "# {name} is good, with {count} warning{plural}. As understood:")?;
    }
    write!(out, "{policy}")?;
    Ok(Outcome::Good)
}

fn check_host(policy: &Policy, path: Option<&Path>, json: bool) -> anyhow::Result<Outcome> {
    let mut findings = doctor::examine(policy);
    findings.extend(doctor::risks(policy, &path.map(PolicyFile::look).unwrap_or_default()));
    let count = |weight| findings.iter().filter(|finding| finding.weight == weight).count();
    let (problems, warnings) = (count(Weight::Problem), count(Weight::Warning));
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &findings)?;
        writeln!(out)?;
    } else {
        let width = findings.iter().map(|finding| finding.about.len()).max().unwrap_or(0);
        for Finding { weight, about, found, advice } in &findings {
            write!(out, "{weight:7}  {about:width$}  {found}")?;
            advice.iter().try_for_each(|advice| write!(out, "; {advice}"))?;
            writeln!(out)?;
        }
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let ready = if problems == 0 { "This host is ready for `pinhole run`" } else { "`pinhole run` would not work" };
        write!(out, "{ready}: {problems} problem{}, {warnings} warning{}.", plural(problems), plural(warnings))?;
        writeln!(out)?;
    }
    Ok(if problems == 0 { Outcome::Good } else { Outcome::BadInput })
}
