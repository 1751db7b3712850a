//! Shared by several tests: replays with their events, and packets in memory.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::path::{Path, PathBuf};

use pinhole::core::policy::{self, Policy};
use pinhole::core::time::Timestamp;
use pinhole::core::tracker::{SessionEvent, SessionNumber};
use pinhole::replay::pcap::file::FileReader;
use pinhole::replay::{Blocked, Counters, Json, Replay, Report, Sink as _};
use serde_json::Value;

/// A policy from a test's text.
pub(crate) fn policy(text: &str) -> Policy {
    policy::parse("policy.yaml", text).expect("the test's policy is good").policy
}

/// The captures of the project.
pub(crate) fn captures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pcaps")
}

/// The output of `pinhole replay --json` for a capture.
pub(crate) fn replay_json(path: &Path, policy: Policy) -> String {
    let file = std::fs::File::open(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    let mut printed = Vec::new();
    let mut replay = Replay::new(policy, Json::new(&mut printed));
    let mut reader = FileReader::new(file).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    while let Some(frame) = reader.next_frame().unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
        replay.frame(&frame);
    }
    let (_, sink) = replay.finish();
    sink.finish().expect("a vector takes everything");
    String::from_utf8(printed).expect("JSON is UTF-8")
}

/// The events and counters of a replay of these packets, one per millisecond.
pub(crate) fn replay_packets<P: AsRef<[u8]>>(
    packets: impl IntoIterator<Item = P>,
    policy: Policy,
) -> (Vec<Value>, Counters) {
    let mut printed = Vec::new();
    let (counters, sink) = feed(packets, Replay::new(policy, Json::new(&mut printed)));
    sink.finish().expect("a vector takes everything");
    (events(&String::from_utf8(printed).expect("JSON is UTF-8")), counters)
}

/// The counters of a replay of many packets.
pub(crate) fn count_packets<P: AsRef<[u8]>>(packets: impl IntoIterator<Item = P>, policy: Policy) -> Counters {
    feed(packets, Replay::new(policy, Silent)).0
}

fn feed<P: AsRef<[u8]>, R: Report>(packets: impl IntoIterator<Item = P>, mut replay: Replay<R>) -> (Counters, R) {
    for (index, packet) in packets.into_iter().enumerate() {
        let time = Timestamp::from_nanos(1_000_000 * (index as u64 + 1));
        replay.packet(time, packet.as_ref());
    }
    replay.finish()
}

/// An observer that ignores all events.
struct Silent;

impl Report for Silent {
    fn event(&mut self, _: Timestamp, _: SessionNumber, _: &SessionEvent<'_>) {}
    fn blocked(&mut self, _: Timestamp, _: SessionNumber, _: &Blocked) {}
    fn summary(&mut self, _: Timestamp, _: &Counters) {}
}

/// The lines of a report.
pub(crate) fn events(json: &str) -> Vec<Value> {
    json.lines().map(|line| serde_json::from_str(line).expect("each line is a JSON object")).collect()
}

/// A field of an event as text; "-" where it is not there.
pub(crate) fn text<'a>(event: &'a Value, field: &str) -> &'a str {
    event[field].as_str().unwrap_or("-")
}
