//! `pinhole explain`: why a transfer between two hosts works or not. Asks the daemon what was announced and what became of
//! it, connection tracking which connections there are, and the host which rules are in the way.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::{Outcome, input};
use crate::core::count::Count;
use crate::core::net::Connection;
use crate::core::policy::Policy;
use crate::daemon::control;
use crate::daemon::status::{Explanation, Request, SessionReport};
use crate::doctor::{self, Finding, Hindered, Rating, Surroundings};
use crate::netfilter::netlink::{Conntrack, ConntrackEntry, Table, TraceStep, TracedSyn, Tracer};
use crate::netfilter::nft::Nft;
use crate::netfilter::queue::processors;

const KERNEL_TIMEOUT: Duration = Duration::from_secs(5);
/// What became of an announcement, or refused it.
const RESULTS: [&str; 6] = ["opened", "refused", "used", "expired", "closed", "dropped"];

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The FTP client's address
    client: IpAddr,
    /// The FTP server's address
    server: IpAddr,
    /// The port of a data connection; without it, the latest announcement is explained
    port: Option<u16>,
    /// Wait up to so many seconds for the SYN of a data connection, and trace it through the rules of this host
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=600))]
    wait: Option<u64>,
    /// Print the explanation as a JSON object
    #[arg(long)]
    json: bool,
}

/// What is known, and what follows from it.
#[derive(Debug, Serialize)]
struct Report {
    /// Why the daemon does not answer.
    daemon: Option<String>,
    sessions: Vec<SessionReport>,
    /// The TCP connections between the two hosts in connection tracking.
    connections: Vec<String>,
    /// The warnings about this host, as of `pinhole check`.
    host: Vec<Finding>,
    /// With `--wait`: the chains and rules that a SYN passed, the last one at the end.
    trace: Option<Vec<String>>,
    conclusion: Conclusion,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Conclusion {
    reason: String,
    advice: String,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    // First, so that the answers below are about what came meanwhile.
    let traced = args.wait.map(|seconds| trace(args, Duration::from_secs(seconds))).transpose()?;
    let request = Request::Explain { client: args.client, server: args.server };
    let answer = control::request(request).map_err(anyhow::Error::from).and_then(|answer| {
        match answer.strip_prefix("error: ") {
            None => Ok(serde_json::from_str::<Explanation>(&answer)?),
            Some(problem) => anyhow::bail!("{}", problem.trim_end()),
        }
    });
    let (daemon, explanation) = match answer {
        Ok(explanation) => (None, Some(explanation)),
        Err(error) => (Some(format!("{error:#}")), None),
    };
    let policy_file = match &explanation {
        Some(explanation) => explanation.policy_file.clone().map(PathBuf::from),
        None => input::policy_file(None),
    };
    let policy = match input::policy(policy_file.as_deref().map(Path::new)) {
        Ok(policy) => policy.on(processors()),
        Err(outcome) => return Ok(outcome),
    };
    let (is_related, sessions) =
        explanation.map(|explanation| (explanation.is_related, explanation.sessions)).unwrap_or_default();
    let mut host = doctor::hindrances(&policy, &Surroundings::probe(), is_related);
    let entries = Conntrack::open(KERNEL_TIMEOUT)
        .and_then(|mut conntrack| conntrack.list(|entry| is_between(&entry.connection, args.client, args.server)))?;
    let conclusion = match (&daemon, sessions.last()) {
        (Some(error), _) => Conclusion { reason: error.clone(), advice: "start the daemon".to_owned() },
        (None, None) => without_session(args, &policy, &entries, &host),
        (None, Some(session)) => of_session(session, args.port, &host),
    };
    host.retain(|finding| finding.severity != Rating::Ok);
    let (trace, fate) = traced.unzip();
    let conclusion = fate.unwrap_or(conclusion);
    let connections = entries.iter().map(|entry| entry.connection.original.to_string()).collect();
    let report = Report { daemon, sessions, connections, host, trace, conclusion };
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        print(&report, &mut out)?;
    }
    Ok(if report.daemon.is_none() { Outcome::Good } else { Outcome::BadInput })
}

/// Whether a connection is between the two hosts, by an address that either of them knows, in either direction.
fn is_between(connection: &Connection, client: IpAddr, server: IpAddr) -> bool {
    let Connection { original, reply } = connection;
    let openers = [original.source.address, reply.destination.address];
    let others = [original.destination.address, reply.source.address];
    openers.contains(&client) && others.contains(&server) || openers.contains(&server) && others.contains(&client)
}

fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    for session in &report.sessions {
        let SessionReport { number, client, server, user, rule, ended, events, .. } = session;
        write!(out, "session {number}: {client} -> {server}")?;
        user.iter().try_for_each(|user| write!(out, ", user {user:?}"))?;
        match rule {
            Some(rule) => write!(out, ", rule {rule:?}")?,
            None => write!(out, ", the policy's defaults")?,
        }
        ended.iter().try_for_each(|how| write!(out, ", ended: {how}"))?;
        writeln!(out)?;
        for event in events {
            writeln!(out, "  {:.1} s ago  {}", event.age, event.message)?;
        }
    }
    for connection in &report.connections {
        writeln!(out, "connection {connection}")?;
    }
    for finding in &report.host {
        writeln!(out, "{finding}")?;
    }
    for step in report.trace.iter().flatten() {
        writeln!(out, "SYN in {step}")?;
    }
    let Conclusion { reason, advice } = &report.conclusion;
    writeln!(out, "{reason}; {advice}")
}

/// The path of the next SYN between the two hosts, and what became of it.
fn trace(args: &Args, within: Duration) -> anyhow::Result<(Vec<String>, Conclusion)> {
    let &Args { client, server, port, .. } = args;
    let syns = [
        TracedSyn { source: client, destination: server, port },
        TracedSyn { source: server, destination: client, port },
    ];
    let steps = Tracer::open(&syns, KERNEL_TIMEOUT)?.first(within)?;
    let shown = steps.iter().map(show_step).collect();
    let conclusion = match steps.last() {
        None => Conclusion {
            reason: format!("no SYN between {client} and {server} came in {} s", within.as_secs()),
            advice: "it is lost before this host, or nobody started a transfer".to_owned(),
        },
        Some(last) if last.is_drop => Conclusion {
            reason: format!("the SYN was dropped in {}", show_step(last)),
            advice: "that chain has to accept announced data connections: `pinhole check` prints the rule".to_owned(),
        },
        Some(last) => Conclusion {
            reason: format!("no rule of this host dropped the SYN; its last step was in {}", show_step(last)),
            advice: "look at routing, and at the other end".to_owned(),
        },
    };
    Ok((shown, conclusion))
}

/// A step with the text of its rule.
fn show_step(step: &TraceStep) -> String {
    let TraceStep { family, table, chain, rule, is_drop, .. } = step;
    let place = format!("chain {family} {table} {chain}");
    let Some(handle) = rule else {
        return format!("{place}: its policy is {}", if *is_drop { "drop" } else { "accept" });
    };
    let listed = Nft::find().and_then(|nft| nft.list_chain(Table { family: *family, name: table }, chain));
    let ending = format!("# handle {handle}");
    let text = listed.ok().and_then(|listed| {
        listed.lines().find_map(|line| line.strip_suffix(&*ending)).map(|rule| rule.trim().to_owned())
    });
    match text {
        Some(text) => format!("{place}: `{text}`"),
        None => format!("{place}: the rule with handle {handle}"),
    }
}

impl Conclusion {
    /// The reason is a fault of this host if one was found that hinders such connections; otherwise the advice is `else_`.
    fn blaming(reason: &str, host: &[Finding], hindered: Hindered, else_: &str) -> Self {
        let mut faults = host.iter().filter(|finding| finding.hinders == Some(hindered));
        let Some(Finding { check, message, advice, .. }) = faults.next() else {
            return Self { reason: reason.to_owned(), advice: else_.to_owned() };
        };
        let others = match faults.count() {
            0 => String::new(),
            count => format!(" (and {} above)", Count(count, "warning")),
        };
        let advice = advice.clone().unwrap_or_else(|| else_.to_owned());
        Self { reason: format!("{reason}: {check}: {message}{others}"), advice }
    }
}

/// Why there is no session.
fn without_session(args: &Args, policy: &Policy, entries: &[ConntrackEntry], host: &[Finding]) -> Conclusion {
    let Args { client, server, .. } = args;
    let mut ports: Vec<u16> = Vec::new();
    for entry in entries.iter().filter(|entry| entry.connection.client().address == *client) {
        let port = entry.connection.server().port;
        if policy.control_ports.contains(port) {
            return Conclusion::blaming(
                &format!("Pinhole has not read the control connection {}", entry.connection.original),
                host,
                Hindered::ControlConnections,
                "reconnect: it is older than the daemon, or it passed unread",
            );
        }
        ports.push(port.number());
    }
    if let Some(port) = ports.first() {
        return Conclusion {
            reason: format!("the client has a connection to port {port} of the server, which is no control port"),
            advice: "if it is FTP, add that port to `control_ports` in the policy".to_owned(),
        };
    }
    Conclusion::blaming(
        &format!("there is no session from {client} to {server}, and connection tracking has no connection"),
        host,
        Hindered::ControlConnections,
        "does the control connection pass this host, and to a port in `control_ports`?",
    )
}

/// What became of the latest announcement, or of the latest one of a port.
fn of_session(session: &SessionReport, port: Option<u16>, host: &[Finding]) -> Conclusion {
    let names_port = |message: &str| {
        // The port, and no longer number that begins with it.
        let named = port.map(|port| format!(":{port}"));
        named.is_none_or(|named| {
            message
                .match_indices(&*named)
                .any(|(at, _)| !message.as_bytes().get(at + named.len()).is_some_and(u8::is_ascii_digit))
        })
    };
    let results = session.events.iter().rev().filter(|event| RESULTS.contains(&&*event.event));
    let latest = results.into_iter().find(|event| names_port(&event.message));
    let conclude = |reason: &str, advice: &str| Conclusion { reason: reason.to_owned(), advice: advice.to_owned() };
    let blame = |reason: &str, else_: &str| Conclusion::blaming(reason, host, Hindered::DataConnections, else_);
    let does_it_come =
        "does its SYN reach this host? The counter in `nft list chain inet pinhole admit` counts those that did";
    let Some(latest) = latest else {
        return match (session.not_ftp, session.encrypted, port) {
            (true, ..) => conclude("the session is not FTP: nothing opens for it", "see the log for the session"),
            (_, true, _) => conclude(
                "the session is encrypted: its announcements cannot be read",
                "on the server's host use `tls: service`; elsewhere give the server a passive range, and name it in `tls: range`",
            ),
            (.., Some(port)) => conclude(
                &format!("no announcement of port {port} is recorded"),
                "compare the port with the announcements above",
            ),
            _ => conclude("nothing was announced in this session yet", "start a transfer, then ask again"),
        };
    };
    match &*latest.event {
        "refused" => {
            let by = session.rule.as_ref().map_or("the policy's defaults".to_owned(), |rule| format!("rule {rule:?}"));
            conclude(&latest.message, &format!("the terms are those of {by}; docs/reference/log.md has the remedies"))
        }
        "used" => conclude(
            "the announced data connection was admitted and passed this host",
            "the firewall is not the reason: look at the logs of client and server",
        ),
        "dropped" => blame(
            "the SYN of the data connection came and was admitted, and this host dropped it",
            "another chain of this host, a missing route or the reverse path filter dropped it",
        ),
        "closed" if latest.message.contains("the server refused") => {
            conclude("the server refused the command that announced the port", "the server's log gives the reason")
        }
        "opened" => blame("the pinhole is open, and no data connection has passed this host", does_it_come),
        _ => blame("the pinhole was open, and no data connection passed this host", does_it_come),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::status::EventReport;

    fn session(events: &[(&str, &str)]) -> SessionReport {
        let event = |(event, message): &(&str, &str)| EventReport {
            age: 1.0,
            event: (*event).to_owned(),
            message: (*message).to_owned(),
        };
        SessionReport {
            number: 1,
            client: "10.0.0.1:4000".to_owned(),
            server: "10.0.0.2:21".to_owned(),
            user: None,
            rule: Some("partners".to_owned()),
            picked_up: false,
            encrypted: false,
            not_ftp: false,
            ended: None,
            events: events.iter().map(event).collect(),
        }
    }

    #[test]
    fn latest_result_decides() {
        let used = ("used", "used 10.0.0.1:4001 -> 10.0.0.2:5000, announced by 227");
        let opened = ("opened", "opened 10.0.0.1 -> 10.0.0.2:50001 for 60s, announced by 227");
        let reason = |events: &[_], port| of_session(&session(events), port, &[]).reason;
        assert!(reason(&[used, opened], None).contains("is open, and no data"));
        assert!(reason(&[used, opened], Some(5000)).contains("was admitted"));
        assert!(reason(&[used, opened], Some(500)).contains("no announcement of port 500 "));
        assert!(reason(&[opened, ("expired", "expired ...")], None).contains("was open, and no data"));
        assert!(reason(&[opened, ("dropped", "dropped ...")], None).contains("this host dropped it"));
        let refused = ("closed", "closed 10.0.0.2 -> 10.0.0.1:5000: the server refused the command");
        assert!(reason(&[refused], None).contains("the server refused the command"));
        assert!(reason(&[], None).contains("nothing was announced"));
    }

    #[test]
    fn refusal_names_the_rule_of_the_policy() {
        let conclusion = of_session(&session(&[("refused", "refused PORT 10.0.0.9:5000: third-party")]), None, &[]);
        assert!(conclusion.reason.contains("third-party") && conclusion.advice.contains("rule \"partners\""));
    }

    #[test]
    fn encrypted_session_is_explained() {
        let conclusion = of_session(&SessionReport { encrypted: true, ..session(&[]) }, None, &[]);
        assert!(conclusion.reason.contains("encrypted") && conclusion.advice.contains("tls: range"));
    }
}
