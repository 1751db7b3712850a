//! `pinhole run` and the commands that talk to the service: `rules`, `status`, `reload`.

use std::path::PathBuf;

use super::{Outcome, input};
use crate::daemon::control;
use crate::daemon::status::Request;
use crate::firewall::sets::{Queueing, ruleset};

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// The policy; without one, the embedded default
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct RulesArgs {
    /// The policy; without one, the embedded default
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &RunArgs) -> anyhow::Result<Outcome> {
    let policy = match input::policy(args.policy.as_deref()) {
        Ok(policy) => policy,
        Err(outcome) => return Ok(outcome),
    };
    if !nix::unistd::geteuid().is_root() {
        super::complain(format_args!("`pinhole run` changes the firewall of this host: run it as root"));
        return Ok(Outcome::BadUsage);
    }
    super::messages::begin();
    crate::daemon::run(policy, args.policy.as_deref())?;
    Ok(Outcome::Good)
}

pub(super) fn rules(args: &RulesArgs) -> anyhow::Result<Outcome> {
    match input::policy(args.policy.as_deref()) {
        Ok(policy) => super::print(&ruleset(&policy, Queueing::Statement)),
        Err(outcome) => Ok(outcome),
    }
}

pub(super) fn status(args: &StatusArgs) -> anyhow::Result<Outcome> {
    super::print(&control::ask(if args.json { Request::Json } else { Request::Status })?)
}

pub(super) fn reload() -> anyhow::Result<Outcome> {
    let answer = control::ask(Request::Reload)?;
    match answer.strip_prefix("error: ") {
        None => super::print(&answer),
        Some(problem) => {
            super::complain(format_args!("the policy is not loaded, the old one stays: {}", problem.trim_end()));
            Ok(Outcome::BadUsage)
        }
    }
}
