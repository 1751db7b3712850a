//! Rates the findings about a host for a policy. No I/O.

use std::collections::BTreeSet;

use nftables::types::NfHook;

use super::filter::{self, Dropped, Fate, State};
use super::look::{Helper, Instance, Kernel, Nft, Privileges, Seen};
use super::ruleset::{Base, Chain, Ruleset};
use super::{Finding, Weight};
use crate::core::policy::Policy;
use crate::netfilter::backend::{Choice, NotPossible};
use crate::netfilter::readers::Reader;
use crate::netfilter::table::{Queueing, is_own_chain, own_rule};

/// Older ones do not know the payload expressions of our rules.
const OLDEST_NFT: [u32; 3] = [1, 0, 1];

/// Judges what was seen, from what everything else needs to what only concerns some.
pub fn judge(policy: &Policy, seen: &Seen) -> Vec<Finding> {
    let mut findings = vec![privileges(seen.privileges), nft(&seen.nft), instance(&seen.instance)];
    if let Some(kernel) = &seen.kernel {
        findings.extend(features(kernel));
        findings.push(mechanism(&kernel.mechanism));
        let is_related = kernel.mechanism.as_ref().is_ok_and(|choice| choice.profile.is_related);
        let state = if is_related { State::Related } else { State::New };
        findings.extend(queues(policy, &kernel.readers, &seen.instance));
        findings.push(own_table(kernel.own_table.as_deref(), &seen.instance));
        match &kernel.ruleset {
            Ok(ruleset) => {
                findings.extend(policy.admit.iter().map(|chain| admitted(chain, ruleset)));
                findings.extend(filters(policy, ruleset, kernel.forwards, state));
                findings.extend(helper(kernel.helper, &ruleset.helpers, state));
            }
            Err(why) => findings.push(
                Finding::new(Weight::Warning, "your filter", format_args!("cannot be read: {why}"))
                    .advising(format_args!("see to it that it accepts the mark: `{}`", own_rule(policy.mark))),
            ),
        }
        findings.extend(legacy(policy, &kernel.legacy));
    }
    findings
}

fn privileges(privileges: Privileges) -> Finding {
    let about = "privileges";
    match privileges {
        Privileges { is_root: true, may_administer: true } => {
            Finding::new(Weight::Ok, about, "root, with CAP_NET_ADMIN")
        }
        Privileges { is_root: true, may_administer: false } => {
            Finding::new(Weight::Problem, about, "root, but without the capability CAP_NET_ADMIN")
                .advising("in a container, grant it: `--cap-add NET_ADMIN`")
        }
        Privileges { is_root: false, may_administer } => {
            let more = if may_administer { "" } else { "; the kernel was not looked at" };
            Finding::new(Weight::Problem, about, format_args!("not root{more}"))
                .advising("run this and `pinhole run` as root, for instance with sudo")
        }
    }
}

fn nft(nft: &Nft) -> Finding {
    let about = "nft";
    match nft {
        Nft::Missing => {
            Finding::new(Weight::Problem, about, "there is no such program").advising("install the package nftables")
        }
        Nft::Broken { path, why } => {
            Finding::new(Weight::Problem, about, format_args!("{} does not run: {why}", path.display()))
                .advising("install the package nftables anew")
        }
        Nft::There { path, version } => {
            let found = format!("{version}, {}", path.display());
            match version_number(version) {
                Some(number) if number < OLDEST_NFT => Finding::new(Weight::Problem, about, found)
                    .advising("it is too old for the rules of Pinhole: 1.0.1 or newer is needed"),
                _ => Finding::new(Weight::Ok, about, found),
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

fn instance(instance: &Instance) -> Finding {
    let about = "service";
    match instance {
        Instance::None => Finding::new(Weight::Ok, about, "does not run at the moment"),
        Instance::Runs(path) => {
            Finding::new(Weight::Ok, about, format_args!("runs, and answers at {}", path.display()))
                .advising("a second one would not start; `pinhole status` shows its state")
        }
    }
}

fn features(kernel: &Kernel) -> Vec<Finding> {
    let from = |about: &str, result: &Result<(), String>, good: &str, advice: &str| match result {
        Ok(()) => Finding::new(Weight::Ok, about, good),
        Err(why) => Finding::new(Weight::Problem, about, why).advising(advice),
    };
    let about_queueing = "queueing rule";
    let queueing = match &kernel.queueing {
        Ok(Some(Queueing::Statement)) => Finding::new(Weight::Ok, about_queueing, "by nftables' own statement `queue`"),
        Ok(Some(Queueing::CompatTarget)) => Finding::new(
            Weight::Ok,
            about_queueing,
            "by the target NFQUEUE of iptables, as the kernel has no statement `queue`",
        ),
        Ok(None) => {
            Finding::new(Weight::Problem, about_queueing, "the kernel has none that hands packets to a program")
                .advising("load the module nft_queue (CONFIG_NFT_QUEUE), or xt_NFQUEUE together with nft_compat")
        }
        Err(why) => Finding::new(Weight::Problem, about_queueing, why),
    };
    let mut findings = vec![from(
        "nf_tables",
        &kernel.nf_tables,
        "the kernel has it",
        "the kernel needs CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET",
    )];
    if kernel.nf_tables.is_ok() {
        findings.push(queueing);
        findings.push(from(
            "ruleset",
            &kernel.takes_ruleset,
            "nft and the kernel take it: sets with timeouts, marks, payload",
            "the kernel may be older than 5.16, or lack a part of nf_tables; `pinhole rules` prints the ruleset",
        ));
    }
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

fn mechanism(choice: &Result<Choice, NotPossible>) -> Finding {
    let about = "mechanism";
    match choice {
        Ok(Choice { profile, because }) => {
            Finding::new(Weight::Ok, about, format_args!("{}, {because}", profile.mechanism))
        }
        Err(NotPossible { mechanism, why }) => {
            Finding::new(Weight::Problem, about, format_args!("{mechanism} is not possible: {why}"))
                .advising("with `mechanism: auto` the service goes on with sets")
        }
    }
}

fn queues(policy: &Policy, readers: &[Reader], instance: &Instance) -> Vec<Finding> {
    let judge = |number: u16| {
        let about = format!("queue {number}");
        let Some(reader) = readers.iter().find(|reader| reader.queue == number) else {
            return Finding::new(Weight::Ok, about, "nobody reads it");
        };
        if matches!(instance, Instance::Runs(_)) {
            return Finding::new(Weight::Ok, about, format_args!("{reader} reads it, as the service runs"));
        }
        let taken: BTreeSet<u16> = readers.iter().map(|reader| reader.queue).collect();
        let free = (0..u16::MAX).find(|number| !taken.contains(number)).unwrap_or(u16::MAX);
        Finding::new(Weight::Problem, about, format_args!("{reader} reads it")).advising(format_args!(
            "end that program, or take another queue in the policy: `capture: {{ queue: {free} }}`"
        ))
    };
    policy.capture.queues().numbers().map(judge).collect()
}

fn own_table(chains: Option<&[String]>, instance: &Instance) -> Finding {
    let about = "table inet pinhole";
    let Some(chains) = chains else {
        return match instance {
            Instance::None => Finding::new(Weight::Ok, about, "is not there; the service installs it"),
            Instance::Runs(_) => Finding::new(Weight::Warning, about, "is not there, though a service runs")
                .advising("does it run in another network namespace?"),
        };
    };
    match (chains.iter().find(|name| !is_own_chain(name)), instance) {
        (Some(foreign), _) => {
            Finding::new(Weight::Problem, about, format_args!("belongs to another program: it has a chain `{foreign}`"))
                .advising("rename it, or remove it with `nft delete table inet pinhole`")
        }
        (None, Instance::Runs(_)) => Finding::new(Weight::Ok, about, "is installed"),
        (None, Instance::None) => {
            Finding::new(Weight::Ok, about, "is there from an earlier run; the service adopts it, with its pinholes")
        }
    }
}

fn admitted(named: &crate::core::policy::Chain, ruleset: &Ruleset) -> Finding {
    let about = format!("admit: {named}");
    if ruleset.chains.iter().any(|chain| filter::is_named(named, &chain.name)) {
        return Finding::new(Weight::Ok, about, "there is such a chain");
    }
    let there: Vec<String> = ruleset.filters().map(|(chain, _)| chain.name.to_string()).collect();
    let there = if there.is_empty() {
        "no filter is loaded; load your ruleset first".to_owned()
    } else {
        format!("name one of these: {}", there.join(", "))
    };
    Finding::new(Weight::Problem, about, "there is no such chain").advising(there)
}

/// Whether the user's own filter would drop what was announced.
fn filters(policy: &Policy, ruleset: &Ruleset, forwards: bool, state: State) -> Vec<Finding> {
    let fates: Vec<(&Chain, &Base, Fate)> = ruleset
        .filters()
        .map(|(chain, base)| (chain, base, filter::fate(ruleset, chain, base, policy, state)))
        .collect();
    if fates.is_empty() {
        return vec![Finding::new(
            Weight::Ok,
            "your filter",
            "no chain filters what arrives, leaves or passes through",
        )];
    }
    let is_cared_for =
        |passing: bool| fates.iter().any(|(_, base, fate)| (base.hook == NfHook::Forward) == passing && fate.by_mark);
    let judge = |&(chain, base, fate): &(&Chain, &Base, Fate)| {
        let about = format!("chain {}", chain.name);
        let dropped = match (fate.dropped, fate.by_mark) {
            (None, true) => return Finding::new(Weight::Ok, about, "lets in what Pinhole admits, by its mark"),
            (None, false) => return Finding::new(Weight::Ok, about, "does not stop what Pinhole admits"),
            (Some(_), true) => {
                return Finding::new(Weight::Ok, about, "lets in what Pinhole admits, under conditions of your own");
            }
            (Some(dropped), false) => dropped,
        };
        let by = match dropped {
            Dropped::ByPolicy => "its policy is drop".to_owned(),
            Dropped::ByRule(handle) => format!("its rule with handle {handle} drops"),
        };
        let opaque = if fate.is_opaque { " (rules made with iptables could not be read)" } else { "" };
        let place = if dropped == Dropped::ByPolicy { "to it" } else { "above that" };
        let related = if state == State::Related { "`ct state related accept`, or " } else { "" };
        let advice = format!(
            "add {place} {related}`{}`, or have it added by the policy: `admit: [{}]`",
            own_rule(policy.mark),
            chain.name
        );
        let passing = base.hook == NfHook::Forward;
        if passing && !forwards {
            return Finding::new(Weight::Ok, about, format_args!("{by}; this host does not pass packets on"));
        }
        if is_cared_for(!passing) && !is_cared_for(passing) {
            // Somebody who has seen to one side of a gateway may well want nothing of the other.
            let whose = if passing { "FTP also passes through this host" } else { "this host itself also talks FTP" };
            return Finding::new(Weight::Ok, about, by).advising(format_args!("if {whose}: {advice}"));
        }
        Finding::new(Weight::Warning, about, format_args!("would drop what Pinhole admits: {by}{opaque}"))
            .advising(advice)
    };
    fates.iter().map(judge).collect()
}

fn helper(helper: Helper, objects: &[String], state: State) -> Vec<Finding> {
    let about = "kernel's FTP helper";
    let both = "where both admit, Pinhole's policy is not the last word: remove it when Pinhole runs";
    let mut findings = Vec::new();
    if helper.is_loaded && helper.is_automatic {
        findings.push(
            Finding::new(Weight::Warning, about, "nf_conntrack_ftp is given to every connection to port 21")
                .advising(format_args!("{both} (`sysctl net.netfilter.nf_conntrack_helper=0`)")),
        );
    } else if helper.is_loaded {
        findings.push(Finding::new(Weight::Ok, about, "nf_conntrack_ftp is loaded; it acts only where a rule says so"));
    }
    findings.extend(objects.iter().map(|object| {
        if state == State::Related {
            let found = format_args!("your ruleset has the helper {object}; if its type is ftp, that is Pinhole's own");
            return Finding::new(Weight::Ok, about, found);
        }
        Finding::new(Weight::Warning, about, format_args!("your ruleset has the helper {object}")).advising(both)
    }));
    findings
}

fn legacy(policy: &Policy, tables: &[String]) -> Option<Finding> {
    (!tables.is_empty()).then(|| {
        let mark = policy.mark;
        let found = format!("there are rules beside nftables, which were not read: {}", tables.join(", "));
        Finding::new(Weight::Warning, "iptables", found)
            .advising(format_args!("if they drop by default, they have to accept `-m connmark --mark {mark}/{mark}`"))
    })
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
