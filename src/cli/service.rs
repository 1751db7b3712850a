//! `pinhole run` and the commands that talk to the service: `rules`, `status`, `reload`.

use std::path::PathBuf;
use std::time::Duration;

use rustix::thread::{CapabilitySet, capabilities};

use super::{Outcome, input};
use crate::daemon::control;
use crate::daemon::status::Request;
use crate::netfilter::backend::sets;
use crate::netfilter::netlink::Tables;
use crate::netfilter::queue::processors;
use crate::netfilter::table::{Queueing, ruleset};

/// How long the kernel may take to say what it can do.
const PATIENCE: Duration = Duration::from_secs(5);

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
    /// For a kernel that queues in that way; without it, for this kernel, which only root may ask
    #[arg(long, value_name = "HOW")]
    queueing: Option<QueueingArg>,
}

/// What hands packets to the program.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum QueueingArg {
    /// The statement `queue` of nf_tables
    Statement,
    /// The target NFQUEUE of iptables, through nf_tables
    Target,
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
    if !may_change_firewall() {
        super::complain(format_args!(
            "`pinhole run` changes the firewall of this host: run it as root, or with the capability CAP_NET_ADMIN"
        ));
        return Ok(Outcome::BadUsage);
    }
    let log = super::messages::begin();
    crate::daemon::run(policy, args.policy.as_deref(), || log.start_writing())?;
    Ok(Outcome::Good)
}

/// Whether this process is root, or some user that was given what it takes. Root may lack it, and is told by the kernel.
fn may_change_firewall() -> bool {
    let has_capability = || capabilities(None).is_ok_and(|has| has.effective.contains(CapabilitySet::NET_ADMIN));
    rustix::process::geteuid().is_root() || has_capability()
}

pub(super) fn rules(args: &RulesArgs) -> anyhow::Result<Outcome> {
    let policy = match input::policy(args.policy.as_deref()) {
        Ok(policy) => policy,
        Err(outcome) => return Ok(outcome),
    };
    let ask = || Tables::open(PATIENCE).and_then(|mut tables| Queueing::of_kernel(&mut tables));
    let (queueing, whose) = match args.queueing {
        Some(QueueingArg::Statement) => (Queueing::Statement, "a kernel".to_owned()),
        Some(QueueingArg::Target) => (Queueing::CompatTarget, "a kernel".to_owned()),
        None => match ask() {
            Ok(Some(queueing)) => (queueing, "this kernel".to_owned()),
            Ok(None) => (Queueing::Statement, "a kernel (this one has no way to queue)".to_owned()),
            Err(error) => (Queueing::Statement, format!("a kernel (this one was not asked: {error})")),
        },
    };
    let text = ruleset(&policy.on(processors()), queueing, sets::PROFILE.rules);
    super::print(&format!("# What `pinhole run` installs on {whose} that queues by {queueing}.\n\n{text}"))
}

pub(super) fn status(args: &StatusArgs) -> anyhow::Result<Outcome> {
    let answer = control::request(if args.json { Request::Json } else { Request::Status })?;
    match answer.strip_prefix("error: ") {
        None => super::print(&answer),
        Some(problem) => anyhow::bail!("{}", problem.trim_end()),
    }
}

pub(super) fn watchdog() -> anyhow::Result<Outcome> {
    let log = super::messages::begin();
    crate::daemon::watchdog::serve(|| log.write())?;
    Ok(Outcome::Good)
}

pub(super) fn reload() -> anyhow::Result<Outcome> {
    let answer = control::request(Request::Reload)?;
    match answer.strip_prefix("error: ") {
        None => super::print(&answer),
        Some(problem) => {
            super::complain(format_args!("reload failed, the old policy stays in force: {}", problem.trim_end()));
            Ok(Outcome::BadUsage)
        }
    }
}
