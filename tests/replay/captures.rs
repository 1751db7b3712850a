//! The project's own captures, recorded from real servers and clients, replayed.
//!
//! Each is compared with two files: the truth, which states what client and server really did and was not made from
//! FTP's text; and the golden report, which shows every change of the output. After an intended change,
//! `UPDATE_GOLDEN=1 cargo test --test replay captures::` writes the reports.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::support::{captures, events, policy, replay_json, text};
use serde_json::Value;

/// The default policy, but with the rarely used ways of announcing as well.
const ALL_MODES: &str = "defaults: { modes: [PORT, EPRT, LPRT, PASV, EPSV, LPSV] }";

fn recorded() -> Vec<(PathBuf, Value)> {
    let mut recorded = Vec::new();
    for entry in std::fs::read_dir(captures()).expect("the captures are in pcaps/") {
        let truth = entry.expect("a folder can be read").path();
        let Some(name) = truth.to_str().and_then(|path| path.strip_suffix(".truth.json")) else { continue };
        let text = std::fs::read_to_string(&truth).expect("a truth file can be read");
        let truth: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}.truth.json: {error}"));
        let capture = captures().join(truth["capture"].as_str().expect("the truth names its capture"));
        recorded.push((capture, truth));
    }
    recorded.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(recorded.len() > 60, "only {} captures in {}", recorded.len(), captures().display());
    recorded
}

/// The outcome of a session, in comparable text.
#[derive(Debug, Default, PartialEq, Eq)]
struct SessionSummary {
    user: String,
    picked_up: bool,
    encrypted: bool,
    /// Data connections that were let through, and how they had been announced.
    through: Vec<String>,
    /// Expectations, used or not.
    expected: Vec<String>,
    refused: Vec<String>,
    blocked: Vec<String>,
}

impl SessionSummary {
    fn sorted(mut self) -> Self {
        for list in [&mut self.through, &mut self.expected, &mut self.refused, &mut self.blocked] {
            list.sort();
        }
        self
    }
}

/// Sessions by the addresses of their control connections, in order.
type SessionSummaries = Vec<(String, SessionSummary)>;

fn reported_sessions(report: &[Value]) -> SessionSummaries {
    let mut sessions: BTreeMap<u64, (String, SessionSummary)> = BTreeMap::new();
    for event in report {
        let Some(session) = event["session"].as_u64() else { continue };
        let (name, summary) = sessions.entry(session).or_default();
        match text(event, "event") {
            "session-began" => {
                *name = format!("{} -> {}", text(event, "client"), text(event, "server"));
                summary.picked_up = event["picked_up"] == Value::Bool(true);
            }
            "logged-in" => summary.user = text(event, "user").to_owned(),
            "encrypted" => summary.encrypted = true,
            "used" => summary.through.push(connection(event)),
            "blocked" => summary.blocked.push(format!("{} -> {}", text(event, "from"), text(event, "to"))),
            "opened" => summary.expected.push(announced(event)),
            "refused" => summary.refused.push(format!("{}: {}", announced(event), text(event, "reason"))),
            _ => {}
        }
    }
    sessions.into_values().map(|(name, summary)| (name, summary.sorted())).collect()
}

fn sessions_of_truth(truth: &Value) -> SessionSummaries {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let sessions = list(&truth["sessions"]).into_iter().map(|session| {
        let mut summary = SessionSummary {
            user: session["user"].as_str().unwrap_or_default().to_owned(),
            picked_up: session["picked_up"] == Value::Bool(true),
            encrypted: session["tls"] == Value::Bool(true),
            ..SessionSummary::default()
        };
        for data in list(&session["data"]) {
            if data["readable"] == Value::Bool(true) && data["announced_by"].is_string() {
                summary.through.push(connection(&data));
                summary.expected.push(announced(&data));
            } else {
                summary.blocked.push(format!("{} -> {}", text(&data, "from"), text(&data, "to")));
            }
        }
        summary.expected.extend(list(&session["unused"]).iter().map(announced));
        for refused in list(&session["refused"]) {
            summary.refused.push(format!("{}: {}", announced(&refused), text(&refused, "reason")));
        }
        let name = format!("{} -> {}", text(&session, "from"), text(&session, "to"));
        (name, summary.sorted())
    });
    sessions.collect()
}

fn connection(event: &Value) -> String {
    format!("{} {} -> {}", text(event, "announced_by"), text(event, "from"), text(event, "to"))
}

fn announced(event: &Value) -> String {
    format!("{} {}", text(event, "announced_by"), text(event, "to"))
}

#[test]
fn every_capture_matches_its_truth() {
    for (path, truth) in recorded() {
        let report = events(&replay_json(&path, policy(ALL_MODES)));
        let mut reported = reported_sessions(&report);
        let mut wanted = sessions_of_truth(&truth);
        reported.sort_by(|a, b| a.0.cmp(&b.0));
        wanted.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(reported, wanted, "{}", path.display());
        let packets = &report.last().expect("a summary comes last")["packets"];
        assert_eq!(packets, &truth["packets"], "{}", path.display());
    }
}

/// The capture may begin in the middle of a line, so the first reply is ignored as well.
#[test]
fn pickup_trust_uses_all_but_the_first_lines() {
    let path = captures().join("late-start.pcap");
    let [(_, summary)] = &reported_sessions(&events(&replay_json(&path, policy("pickup: trust"))))[..] else {
        panic!("one session")
    };
    let expected = ["229 10.21.0.1:50039", "EPRT 10.21.0.10:38189", "PORT 10.21.0.10:39931"];
    assert_eq!((&summary.expected[..], summary.through.len()), (&expected.map(String::from)[..], 3));
    assert_eq!(summary.refused, ["227 10.21.0.1:50057: ambiguous"]);
}

/// A reply that was cut hides where the next one begins: with it, this capture hides the login.
#[test]
fn without_required_login_a_partial_capture_opens() {
    let path = captures().join("snaplen-96.pcap");
    let sessions = reported_sessions(&events(&replay_json(&path, policy("defaults: { login: optional }"))));
    let through: Vec<_> = sessions.iter().map(|(_, summary)| summary.through.len()).collect();
    assert_eq!(through, [3, 3, 0, 0]);
}

#[test]
fn every_report_matches_its_golden_file() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for (path, _) in recorded() {
        let golden = golden(&path);
        let report = replay_json(&path, policy(ALL_MODES));
        if update {
            std::fs::write(&golden, &report).expect("the golden report can be written");
        }
        let expected = std::fs::read_to_string(&golden)
            .unwrap_or_else(|error| panic!("{}: {error} (UPDATE_GOLDEN=1 makes it)", golden.display()));
        assert!(report == expected, "{}: {}", golden.display(), first_difference(&report, &expected));
    }
}

fn golden(capture: &Path) -> PathBuf {
    capture.with_extension("golden.jsonl")
}

fn first_difference(report: &str, expected: &str) -> String {
    let differing = report.lines().zip(expected.lines()).find(|(is, was)| is != was);
    match differing {
        Some((is, was)) => format!("\n  was {was}\n  is  {is}"),
        None => format!("{} lines instead of {}", report.lines().count(), expected.lines().count()),
    }
}

#[test]
fn no_password_of_a_capture_is_reported() {
    for (path, _) in recorded() {
        for line in replay_json(&path, policy(ALL_MODES)).lines() {
            assert!(!line.contains("secret"), "{}: {line}", path.display());
        }
    }
}
