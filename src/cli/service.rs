//! `pinhole run` and `rules`, and the commands that use the control socket: `status`, `reload`.

use std::path::PathBuf;
use std::time::Duration;

use rustix::thread::{CapabilitySet, capabilities};

use super::{Outcome, input};
use crate::daemon::control;
use crate::daemon::status::{Format, Request};
use crate::doctor::{self, Finding, Surroundings};
use crate::netfilter::backend::sets;
use crate::netfilter::netlink::Tables;
use crate::netfilter::queue::processors;
use crate::netfilter::table::{Queueing, ruleset};

const KERNEL_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// Policy file; without it, /etc/pinhole/policy.yaml if it exists, else the embedded policy
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct RulesArgs {
    /// Policy file; without it, /etc/pinhole/policy.yaml if it exists, else the embedded policy
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// How the kernel queues packets; without it, as this kernel does (needs root)
    #[arg(long, value_name = "HOW")]
    queueing: Option<QueueingArg>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum QueueingArg {
    /// The nftables statement `queue`
    Statement,
    /// The iptables target NFQUEUE, through nft_compat
    Target,
}

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Print the status as a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct MetricsArgs {
    /// The format of the text; node_exporter reads only `prometheus` from a file
    #[arg(long, value_name = "FORMAT", default_value = "openmetrics")]
    format: FormatArg,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum FormatArg {
    /// OpenMetrics 1.0
    Openmetrics,
    /// Prometheus' text format 0.0.4
    Prometheus,
}

pub(super) fn run(args: &RunArgs) -> anyhow::Result<Outcome> {
    let source = input::policy_file(args.policy.as_deref());
    let policy = match input::policy(source.as_deref()) {
        Ok(policy) => policy,
        Err(outcome) => return Ok(outcome),
    };
    if !may_change_firewall() {
        super::print_error(format_args!(
            "`pinhole run` changes the firewall of this host: run it as root, or with the capability CAP_NET_ADMIN"
        ));
        return Ok(Outcome::BadUsage);
    }
    let log = super::messages::start_log();
    // Before the daemon changes anything, and while it may still start nft.
    let surroundings = Surroundings::probe();
    let judged = policy.clone().on(processors());
    let warnings = |is_related| {
        let findings = doctor::warnings(&judged, &surroundings, is_related);
        findings.iter().map(Finding::message_with_advice).collect()
    };
    crate::daemon::run(policy, source.as_deref(), warnings, || log.start_writing())?;
    Ok(Outcome::Good)
}

/// Root may lack the capability; then `run` fails with the kernel's error.
fn may_change_firewall() -> bool {
    let has_capability = || capabilities(None).is_ok_and(|has| has.effective.contains(CapabilitySet::NET_ADMIN));
    rustix::process::geteuid().is_root() || has_capability()
}

pub(super) fn rules(args: &RulesArgs) -> anyhow::Result<Outcome> {
    let source = input::policy_file(args.policy.as_deref());
    let policy = match input::policy(source.as_deref()) {
        Ok(policy) => policy,
        Err(outcome) => return Ok(outcome),
    };
    let detect = || Tables::open(KERNEL_TIMEOUT).and_then(|mut tables| Queueing::of_kernel(&mut tables));
    let (queueing, whose) = match args.queueing {
        Some(QueueingArg::Statement) => (Queueing::Statement, "a kernel".to_owned()),
        Some(QueueingArg::Target) => (Queueing::CompatTarget, "a kernel".to_owned()),
        None => match detect() {
            Ok(Some(queueing)) => (queueing, "this kernel".to_owned()),
            Ok(None) => (Queueing::Statement, "a kernel (this one cannot queue packets)".to_owned()),
            Err(error) => (Queueing::Statement, format!("a kernel (this one was not asked: {error})")),
        },
    };
    let text = ruleset(&policy.on(processors()), queueing, sets::PROFILE.rules);
    super::print(&format!("# What `pinhole run` installs on {whose} that queues by {queueing}.\n\n{text}"))
}

pub(super) fn status(args: &StatusArgs) -> anyhow::Result<Outcome> {
    print_answer(if args.json { Request::Json } else { Request::Status })
}

pub(super) fn metrics(args: &MetricsArgs) -> anyhow::Result<Outcome> {
    print_answer(Request::Metrics(match args.format {
        FormatArg::Openmetrics => Format::OpenMetrics,
        FormatArg::Prometheus => Format::Prometheus,
    }))
}

fn print_answer(request: Request) -> anyhow::Result<Outcome> {
    let answer = control::request(request)?;
    match answer.strip_prefix("error: ") {
        None => super::print(&answer),
        Some(problem) => anyhow::bail!("{}", problem.trim_end()),
    }
}

pub(super) fn watchdog() -> anyhow::Result<Outcome> {
    let log = super::messages::start_log();
    crate::daemon::watchdog::serve(|| log.write())?;
    Ok(Outcome::Good)
}

pub(super) fn reload() -> anyhow::Result<Outcome> {
    let answer = control::request(Request::Reload)?;
    match answer.strip_prefix("error: ") {
        None => super::print(&answer),
        Some(problem) => {
            super::print_error(format_args!("reload failed, the old policy stays in force: {}", problem.trim_end()));
            Ok(Outcome::BadUsage)
        }
    }
}
