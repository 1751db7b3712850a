//! `pinhole check`: checks this host for the policy that `run` would take; with a file, validates that file and prints
//! it as understood.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::{Outcome, input};
use crate::core::count::Count;
use crate::core::policy::{Parsed, Policy};
use crate::doctor::{self, Finding, Pair, PolicyFile, Rating};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Validate this policy file and print it as understood, without checking this host; `-` reads standard input
    #[arg(value_name = "FILE", conflicts_with = "policy")]
    file: Option<PathBuf>,
    /// Policy file for which this host is checked; without it, /etc/pinhole/policy.yaml if it exists, else the embedded
    /// policy
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Send probes between this client and this server, which may be another host: the SYNs of a control connection and of
    /// its data connections, through a copy of this host
    #[arg(long, num_args = 2, value_names = ["CLIENT", "SERVER"])]
    probe: Vec<IpAddr>,
    /// With FILE: check this host, too, as `--policy FILE` does
    #[arg(long, hide = true)]
    host: bool,
    /// Print the findings about this host as a JSON array
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    match &args.file {
        Some(file) if !args.host && args.json => {
            super::print_error(format_args!(
                "`--json` prints findings about this host: `pinhole check --json --policy {}`",
                file.display()
            ));
            Ok(Outcome::BadUsage)
        }
        Some(file) if !args.host => check_policy(file),
        file => {
            let source = input::policy_file(file.as_deref().or(args.policy.as_deref()));
            match input::policy(source.as_deref()) {
                Ok(policy) => check_host(&policy, source.as_deref(), args),
                Err(outcome) => Ok(outcome),
            }
        }
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

fn check_host(policy: &Policy, path: Option<&Path>, args: &Args) -> anyhow::Result<Outcome> {
    let mut findings = vec![doctor::policy_source(path)];
    let pairs: Vec<Pair> = match args.probe[..] {
        [client, server] if client.is_ipv4() != server.is_ipv4() => {
            super::print_error(format_args!("`--probe`: {client} and {server} are of different IP versions"));
            return Ok(Outcome::BadUsage);
        }
        [client, server] => vec![Pair { client, server }],
        _ => Vec::new(),
    };
    findings.extend(doctor::examine(policy, &pairs));
    findings.extend(doctor::risks(policy, &path.map(PolicyFile::probe).unwrap_or_default()));
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (problems, warnings) = (count(Rating::Problem), count(Rating::Warning));
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &findings)?;
        writeln!(out)?;
    } else {
        let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
        for Finding { severity, check, message, advice, .. } in &findings {
            write!(out, "{severity:7}  {check:width$}  {message}")?;
            advice.iter().try_for_each(|advice| write!(out, "; {advice}"))?;
            writeln!(out)?;
        }
        let ready = if problems == 0 { "This host is ready for `pinhole run`" } else { "`pinhole run` would not work" };
        writeln!(out, "{ready}: {}, {}.", Count(problems, "problem"), Count(warnings, "warning"))?;
    }
    Ok(if problems == 0 { Outcome::Good } else { Outcome::BadInput })
}
