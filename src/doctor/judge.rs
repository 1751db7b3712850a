//! Rates the findings about a host for a policy. No I/O.

use std::collections::BTreeSet;

use nftables::types::NfHook;

use super::faults::{Snapshot, faults};
use super::filter::{self, Dropped, Outcome, State};
use super::host_state::{DaemonState, Helper, HostState, KernelFeatures, Nft, Privileges, Surroundings};
use super::manager::{Manager, managers};
use super::probe::{Decision, Probes};
use super::ruleset::{Base, Chain, Ruleset};
use super::{Finding, Hindered, Rating};
use crate::core::kernel::Mark;
use crate::core::policy::Policy;
use crate::netfilter::backend::{Choice, NotPossible};
use crate::netfilter::readers::Reader;
use crate::netfilter::table::{Queueing, is_own_chain, own_iptables_rule, own_rule};

/// Earlier versions lack the payload expressions of the ruleset.
const MIN_NFT: [u32; 3] = [1, 0, 1];

/// Rates the state of a host. The first findings are those on which the others depend.
pub fn judge(policy: &Policy, host: &HostState) -> Vec<Finding> {
    let mut findings = vec![privileges(host.privileges), nft(&host.nft), daemon(&host.daemon)];
    if let Some(kernel) = &host.kernel {
        findings.extend(features(kernel));
        findings.push(mechanism(&kernel.mechanism));
        let is_related = kernel.mechanism.as_ref().is_ok_and(|choice| choice.profile.is_related);
        let state = if is_related { State::Related } else { State::New };
        findings.extend(queues(policy, &kernel.readers, &host.daemon));
        findings.push(own_table(kernel.own_table.as_deref(), &host.daemon));
        match &kernel.ruleset {
            Ok(ruleset) => {
                let managed = |by| Finding::new(Rating::Ok, "firewall", format_args!("managed by {by}"));
                findings.extend(managers(ruleset).map(managed));
                findings.extend(policy.admit.iter().map(|chain| admitted(chain, ruleset)));
                let snapshot = Snapshot {
                    policy,
                    ruleset,
                    listeners: &kernel.listeners,
                    readers: &kernel.readers,
                    state,
                    probes: &kernel.probes,
                };
                findings.extend(kernel.probes.findings());
                findings.extend(obstacles(&snapshot, kernel.forwards, kernel.helper));
            }
            Err(why) => findings.push(
                Finding::new(Rating::Warning, "filter", format_args!("cannot be read: {why}")).advising(format_args!(
                    "make sure that it accepts data connections by their mark: `{}`",
                    own_rule(policy.mark)
                )),
            ),
        }
        findings.extend(legacy(policy, &kernel.legacy));
    }
    findings
}

/// What keeps, or could keep, data connections from working although the daemon runs.
fn obstacles(snapshot: &Snapshot<'_>, forwards: bool, by_kernel: Helper) -> Vec<Finding> {
    let mut findings = filters(snapshot, forwards);
    findings.extend(faults(snapshot));
    findings.extend(helper(by_kernel, &snapshot.ruleset.helpers, snapshot.state));
    findings
}

/// The warnings among these for the start of the daemon. With `is_related`, data connections are `related`.
pub fn warnings(policy: &Policy, surroundings: &Surroundings, is_related: bool) -> Vec<Finding> {
    let mut findings = hindrances(policy, surroundings, is_related);
    findings.retain(|finding| finding.severity != Rating::Ok);
    findings
}

/// The same for a daemon that runs, and what may hinder connections although it mostly does not.
pub fn hindrances(policy: &Policy, surroundings: &Surroundings, is_related: bool) -> Vec<Finding> {
    let state = if is_related { State::Related } else { State::New };
    let Surroundings { ruleset, listeners, readers, legacy: legacy_tables, forwards, helper } = surroundings;
    let mut findings = match ruleset {
        Ok(ruleset) => {
            let probes = &Probes::default();
            obstacles(&Snapshot { policy, ruleset, listeners, readers, state, probes }, *forwards, *helper)
        }
        Err(why) => vec![Finding::new(Rating::Warning, "filter", format_args!("cannot be read: {why}"))],
    };
    findings.extend(legacy(policy, legacy_tables));
    findings.retain(|finding| finding.severity != Rating::Ok || finding.hinders.is_some());
    findings
}

fn privileges(privileges: Privileges) -> Finding {
    let about = "privileges";
    match privileges {
        Privileges { is_root: true, may_administer: true } => {
            Finding::new(Rating::Ok, about, "root, with CAP_NET_ADMIN")
        }
        Privileges { is_root: true, may_administer: false } => {
            Finding::new(Rating::Problem, about, "root without the capability CAP_NET_ADMIN")
                .advising("in a container, grant it: `--cap-add NET_ADMIN`")
        }
        Privileges { is_root: false, may_administer } => {
            let more = if may_administer { "" } else { "; the kernel was not checked" };
            Finding::new(Rating::Problem, about, format_args!("not root{more}"))
                .advising("run this and `pinhole run` as root, for example with sudo")
        }
    }
}

fn nft(nft: &Nft) -> Finding {
    let about = "nft";
    match nft {
        Nft::Missing => Finding::new(Rating::Problem, about, "not found").advising("install the package nftables"),
        Nft::Broken { path, why } => {
            Finding::new(Rating::Problem, about, format_args!("{} does not run: {why}", path.display()))
                .advising("reinstall the package nftables")
        }
        Nft::There { path, version } => {
            let found = format!("{version}, {}", path.display());
            match version_number(version) {
                Some(number) if number < MIN_NFT => Finding::new(Rating::Problem, about, found)
                    .advising("too old: Pinhole's ruleset needs 1.0.1 or later"),
                _ => Finding::new(Rating::Ok, about, found),
            }
        }
    }
}

/// The number in `nftables v1.0.6 (Lester Gooch #5)`.
fn version_number(text: &str) -> Option<[u32; 3]> {
    let number = text.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
    let mut parts = number.split('.').map(|part| part.parse().unwrap_or(0));
    Some([parts.next()?, parts.next().unwrap_or(0), parts.next().unwrap_or(0)])
}

fn daemon(daemon: &DaemonState) -> Finding {
    let about = "daemon";
    match daemon {
        DaemonState::NotRunning => Finding::new(Rating::Ok, about, "not running"),
        DaemonState::Running(path) => {
            Finding::new(Rating::Ok, about, format_args!("running, answers at {}", path.display()))
                .advising("a second one would not start; see `pinhole status`")
        }
    }
}

fn features(kernel: &KernelFeatures) -> Vec<Finding> {
    let from = |about: &str, result: &Result<(), String>, good: &str, advice: &str| match result {
        Ok(()) => Finding::new(Rating::Ok, about, good),
        Err(why) => Finding::new(Rating::Problem, about, why).advising(advice),
    };
    let about_queueing = "queueing rule";
    let queueing = match &kernel.queueing {
        Ok(Some(Queueing::Statement)) => Finding::new(Rating::Ok, about_queueing, "the nftables statement `queue`"),
        Ok(Some(Queueing::CompatTarget)) => Finding::new(
            Rating::Ok,
            about_queueing,
            "the iptables target NFQUEUE, as this kernel has no statement `queue`",
        ),
        Ok(None) => Finding::new(Rating::Problem, about_queueing, "this kernel cannot queue packets to a program")
            .advising("load the module nft_queue (CONFIG_NFT_QUEUE), or xt_NFQUEUE together with nft_compat"),
        Err(why) => Finding::new(Rating::Problem, about_queueing, why),
    };
    let mut findings = vec![from(
        "nf_tables",
        &kernel.nf_tables,
        "supported",
        "the kernel needs CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET",
    )];
    if kernel.nf_tables.is_ok() {
        findings.push(queueing);
        findings.push(from(
            "ruleset",
            &kernel.takes_ruleset,
            "accepted by nft and the kernel",
            "the kernel may be older than 5.16 or lack a part of nf_tables; `pinhole rules` prints the ruleset",
        ));
    }
    findings.extend(saved_rulesets(kernel));
    findings.push(from(
        "queues",
        &kernel.reads_queues,
        "can be read",
        "load the module nfnetlink_queue (CONFIG_NETFILTER_NETLINK_QUEUE)",
    ));
    findings.push(from(
        "conntrack",
        &kernel.conntrack,
        "answers over netlink",
        "load the module nf_conntrack_netlink (CONFIG_NF_CT_NETLINK)",
    ));
    findings
}

fn saved_rulesets(kernel: &KernelFeatures) -> Option<Finding> {
    let (Ok(Choice { profile, .. }), Ok(Some(queueing))) = (&kernel.mechanism, &kernel.queueing) else { return None };
    // The daemon itself will run as intended.
    Some(Finding::new(
        Rating::Ok,
        "saved rulesets",
        profile.limit_of_saved_rulesets(*queueing, kernel.needs_preparation),
    ))
}

fn mechanism(choice: &Result<Choice, NotPossible>) -> Finding {
    let about = "mechanism";
    match choice {
        Ok(Choice { profile, because }) => {
            Finding::new(Rating::Ok, about, format_args!("{}, {because}", profile.mechanism))
        }
        Err(NotPossible { mechanism, why }) => {
            Finding::new(Rating::Problem, about, format_args!("{mechanism} is not possible: {why}"))
                .advising("`mechanism: auto` falls back to sets")
        }
    }
}

fn queues(policy: &Policy, readers: &[Reader], daemon: &DaemonState) -> Vec<Finding> {
    let judge = |number: u16| {
        let about = format!("queue {number}");
        let Some(reader) = readers.iter().find(|reader| reader.queue == number) else {
            return Finding::new(Rating::Ok, about, "free");
        };
        if matches!(daemon, DaemonState::Running(_)) {
            return Finding::new(Rating::Ok, about, format_args!("read by {reader}, as the daemon is running"));
        }
        let taken: BTreeSet<u16> = readers.iter().map(|reader| reader.queue).collect();
        let free = (0..u16::MAX).find(|number| !taken.contains(number)).unwrap_or(u16::MAX);
        Finding::new(Rating::Problem, about, format_args!("read by {reader}")).advising(format_args!(
            "end that program, or choose another queue in the policy: `capture: {{ queue: {free} }}`"
        ))
    };
    policy.capture.queues().numbers().map(judge).collect()
}

fn own_table(chains: Option<&[String]>, daemon: &DaemonState) -> Finding {
    let about = "table inet pinhole";
    let Some(chains) = chains else {
        return match daemon {
            DaemonState::NotRunning => Finding::new(Rating::Ok, about, "not installed; the daemon will install it"),
            DaemonState::Running(_) => {
                Finding::new(Rating::Warning, about, "not installed, although a daemon is running")
                    .advising("it may run in another network namespace")
            }
        };
    };
    match (chains.iter().find(|name| !is_own_chain(name)), daemon) {
        (Some(foreign), _) => {
            Finding::new(Rating::Problem, about, format_args!("belongs to another program: it has a chain `{foreign}`"))
                .advising("rename that table, or remove it: `nft delete table inet pinhole`")
        }
        (None, DaemonState::Running(_)) => Finding::new(Rating::Ok, about, "installed"),
        (None, DaemonState::NotRunning) => {
            Finding::new(Rating::Ok, about, "left by an earlier run; the daemon will adopt it with its pinholes")
        }
    }
}

fn admitted(named: &crate::core::policy::Chain, ruleset: &Ruleset) -> Finding {
    let about = format!("admit: {named}");
    if let Some(chain) = ruleset.chains.iter().find(|chain| filter::is_named(named, &chain.name)) {
        if let Some(owner) = ruleset.owner(&chain.name) {
            return Finding::new(Rating::Problem, about, format_args!("the chain exists, but {owner}"))
                .advising(owner.advice(named));
        }
        let by = if chain.is_of_iptables { "; its rules are written as iptables writes them" } else { "" };
        return Finding::new(Rating::Ok, about, format_args!("the chain exists{by}"));
    }
    let there: Vec<String> = ruleset.filters().map(|(chain, _)| chain.name.to_string()).collect();
    let there = if there.is_empty() {
        "no filter is loaded: load your ruleset first".to_owned()
    } else {
        format!("name one of these: {}", there.join(", "))
    };
    Finding::new(Rating::Problem, about, "the chain does not exist").advising(there)
}

/// Whether the host's filter would drop announced data connections.
fn filters(snapshot: &Snapshot<'_>, forwards: bool) -> Vec<Finding> {
    let &Snapshot { policy, ruleset, state, .. } = snapshot;
    let outcomes: Vec<(&Chain, &Base, Outcome)> = ruleset
        .filters()
        .map(|(chain, base)| (chain, base, filter::evaluate(ruleset, chain, base, policy, state)))
        .collect();
    if outcomes.is_empty() {
        return vec![Finding::new(Rating::Ok, "filter", "no chain filters input, output or forwarded packets")];
    }
    let accepts_by_mark = |forwarded: bool| {
        outcomes.iter().any(|(_, base, outcome)| (base.hook == NfHook::Forward) == forwarded && outcome.by_mark)
    };
    // Why a server is known to be on this host, or behind it.
    let place_of_server = |forwarded: bool| match forwarded {
        true => snapshot.accepts_control(&[NfHook::Forward]).then_some("rules forward control connections to a server"),
        false if snapshot.listens_here() => Some("the server is on this host: a program listens on its control port"),
        false => snapshot
            .accepts_control(&[NfHook::Input, NfHook::Output])
            .then_some("rules accept control connections of this host"),
    };
    let judge = |&(chain, base, outcome): &(&Chain, &Base, Outcome)| {
        let about = format!("chain {}", chain.name);
        let decision = snapshot.data_decision(chain);
        let is_decided = decision.is_some();
        let (dropped, probe) = match (decision, outcome.dropped, outcome.by_mark) {
            (Some(Decision::Passed), ..) => {
                return Finding::new(Rating::Ok, about, "passes data connections (probe)");
            }
            (Some(Decision::Dropped(dropped, probe)), ..) => (dropped, format!(" (probe: {probe})")),
            (None, None, true) => return Finding::new(Rating::Ok, about, "accepts data connections by their mark"),
            (None, None, false) => return Finding::new(Rating::Ok, about, "does not drop data connections"),
            (None, Some(_), true) => {
                return Finding::new(
                    Rating::Ok,
                    about,
                    "accepts data connections by their mark, under further conditions",
                );
            }
            (None, Some(dropped), false) => (dropped, String::new()),
        };
        let by = match dropped {
            Dropped::ByPolicy => "its policy is drop".to_owned(),
            Dropped::ByRule(handle) => format!("its rule with handle {handle} drops them"),
        };
        let is_opaque = outcome.is_opaque && !is_decided;
        let opaque = if is_opaque { " (rules made with iptables could not be read)" } else { "" };
        let advice = accept_advice(policy.mark, ruleset, chain, dropped, state);
        let forwarded = base.hook == NfHook::Forward;
        if forwarded && !forwards && !is_decided {
            return Finding::new(Rating::Ok, about, format_args!("{by}; this host does not forward packets"));
        }
        if !is_decided
            && accepts_by_mark(!forwarded)
            && !accepts_by_mark(forwarded)
            && place_of_server(forwarded).is_none()
        {
            // A ruleset that accepts forwarded data connections may not need those of the host itself, and vice versa.
            let whose = if forwarded {
                "this host also forwards FTP"
            } else {
                "this host is itself an FTP client or server, too"
            };
            return Finding::new(Rating::Ok, about, by).advising(format_args!("if {whose}: {advice}"));
        }
        // The mark is accepted for the wrong connections.
        let place = place_of_server(forwarded).filter(|_| !accepts_by_mark(forwarded) && accepts_by_mark(!forwarded));
        let wrong = place.map(|place| format!("; the mark is accepted elsewhere, but {place}")).unwrap_or_default();
        Finding::new(Rating::Warning, about, format_args!("would drop data connections: {by}{opaque}{wrong}{probe}"))
            .advising(advice)
            .hindering(Hindered::DataConnections)
    };
    outcomes.iter().map(judge).collect()
}

/// How to have a chain accept data connections.
fn accept_advice(mark: Mark, ruleset: &Ruleset, chain: &Chain, dropped: Dropped, state: State) -> String {
    let manager = Manager::of(ruleset, chain);
    let related = manager.related_rule(&chain.name).filter(|_| state == State::Related);
    let related = related.map(|rule| format!("accept `related` ({rule}), or ")).unwrap_or_default();
    format!("{related}{}", manager.advice(ruleset, chain, mark, dropped))
}

fn helper(helper: Helper, objects: &[String], state: State) -> Vec<Finding> {
    let about = "kernel's FTP helper";
    let both = "what it admits bypasses Pinhole's policy: disable it while Pinhole runs";
    let mut findings = Vec::new();
    if helper.is_loaded && helper.is_automatic {
        findings.push(
            Finding::new(Rating::Warning, about, "nf_conntrack_ftp is assigned to every connection to port 21")
                .advising(format_args!("{both} (`sysctl net.netfilter.nf_conntrack_helper=0`)")),
        );
    } else if helper.is_loaded {
        findings.push(Finding::new(
            Rating::Ok,
            about,
            "nf_conntrack_ftp is loaded, and used only where a rule assigns it",
        ));
    }
    findings.extend(objects.iter().map(|object| {
        if state == State::Related {
            let found = format_args!("your ruleset has the helper {object}; if its type is ftp, it is Pinhole's own");
            return Finding::new(Rating::Ok, about, found);
        }
        Finding::new(Rating::Warning, about, format_args!("your ruleset has the helper {object}")).advising(both)
    }));
    findings
}

fn legacy(policy: &Policy, tables: &[String]) -> Option<Finding> {
    (!tables.is_empty()).then(|| {
        let found = format!("legacy tables were not checked: {}", tables.join(", "));
        Finding::new(Rating::Warning, "iptables", found).advising(format_args!(
            "`admit` does not reach them: if they drop by default, insert `{}`",
            own_iptables_rule(policy.mark)
        ))
    })
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
