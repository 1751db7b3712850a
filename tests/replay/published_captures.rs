//! Captures that other projects published. They are not ours to copy, so they lie beside the project: in the folder
//! that `PINHOLE_PUBLISHED_PCAPS` names, or `../shared/pcaps`. Where there is no such folder, that is said and nothing
//! is tested, except in CI, where it must be there.

#![allow(clippy::print_stdout, reason = "a test that is left out says so")]

use std::path::PathBuf;

use crate::support::{events, replay_json, text};
use pinhole::core::policy::Policy;
use serde_json::Value;

/// The report on a published capture; none where there are none.
fn report(name: &str) -> Option<Vec<Value>> {
    let folder = std::env::var_os("PINHOLE_PUBLISHED_PCAPS")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/pcaps")), PathBuf::from);
    if !folder.is_dir() {
        assert!(
            std::env::var_os("CI").is_none(),
            "there is no folder {}: set PINHOLE_PUBLISHED_PCAPS to where the published captures are",
            folder.display()
        );
        println!("left out: there is no folder {}", folder.display());
        return None;
    }
    Some(events(&replay_json(&folder.join(name), Policy::embedded())))
}

fn count(report: &[Value], event: &str, announced_by: &str) -> usize {
    let is_it = |one: &&Value| text(one, "event") == event && text(one, "announced_by") == announced_by;
    report.iter().filter(is_it).count()
}

fn total(report: &[Value], field: &str) -> u64 {
    let count = &report.last().expect("a summary comes last")[field];
    let by_reason = || count.as_object().map(|counts| counts.values().filter_map(Value::as_u64).sum());
    count.as_u64().or_else(by_reason).unwrap_or_else(|| panic!("{field} is no count: {count}"))
}

#[test]
fn zeek_ipv4_data_connections_match_their_announcements() {
    let Some(report) = report("zeek-ipv4.pcap") else { return };
    assert_eq!((count(&report, "used", "227"), count(&report, "used", "PORT")), (2, 2));
    assert_eq!((total(&report, "opened"), total(&report, "refused"), total(&report, "blocked")), (4, 0, 0));
}

#[test]
fn zeek_ipv6_data_connections_match_their_announcements() {
    let Some(report) = report("zeek-ipv6.pcap") else { return };
    assert_eq!((count(&report, "used", "229"), count(&report, "used", "EPRT")), (3, 2));
    assert_eq!((total(&report, "opened"), total(&report, "refused"), total(&report, "blocked")), (5, 0, 0));
}

#[test]
fn zeek_auth_tls_is_unreadable_after_its_234() {
    let Some(report) = report("zeek-auth-tls.pcap") else { return };
    assert_eq!(report.iter().filter(|event| text(event, "event") == "encrypted").count(), 1);
    assert_eq!((total(&report, "opened"), total(&report, "refused")), (0, 0));
}

#[test]
fn zeek_foreign_address_opens_nothing() {
    let Some(report) = report("zeek-foreign-address.pcap") else { return };
    let because = |reason| report.iter().filter(|event| text(event, "reason") == reason).count();
    // One of them follows packets that are missing in the capture.
    assert_eq!((because("third-party"), because("ambiguous")), (688, 1));
    assert_eq!((total(&report, "refused"), total(&report, "opened")), (689, 0));
}

#[test]
fn zeek_invalid_reply_code_is_no_reply() {
    let Some(report) = report("zeek-invalid-reply-code.pcap") else { return };
    assert_eq!((total(&report, "sessions"), total(&report, "opened")), (1, 0));
}

#[test]
fn suricata_data_connections_match_their_announcements() {
    let Some(report) = report("suricata-all-data-ipv4.pcap") else { return };
    assert_eq!((count(&report, "used", "227"), count(&report, "used", "PORT")), (7, 7));
    assert_eq!((total(&report, "opened"), total(&report, "refused"), total(&report, "blocked")), (14, 0, 0));
}

#[test]
fn suricata_bounce_is_refused_and_the_valid_port_opens() {
    let Some(report) = report("suricata-bounce.pcap") else { return };
    assert_eq!((count(&report, "opened", "PORT"), count(&report, "refused", "PORT")), (1, 1));
    let refusal = report.iter().find(|event| text(event, "event") == "refused").expect("there is one");
    assert_eq!(text(refusal, "reason"), "third-party");
    assert!(text(refusal, "to").ends_with(":80"));
}
