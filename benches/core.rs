//! The speed of the core: control packets per second on one core, with 1 to 1,000,000 sessions, and the memory of a
//! session.
//!
//! Each packet is in memory once, as a queue or a capture would deliver it. Sessions are in a random order; a thousand
//! at a time have a transfer under way, packet by packet in turn. Each pinhole is used. Nothing is asserted: the ratios
//! are for a person to read.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

mod support;

use std::time::Duration;

use pinhole::core::kernel::Simulated;
use pinhole::core::net::{Port, Segment};
use pinhole::core::policy::{self, Policy};
use pinhole::core::script::Conversation;
use pinhole::core::time::Timestamp;
use pinhole::core::tracker::{Environment, Tracker, TrackerVerdict};

const PACKETS: usize = 6_000_000;
const ROUNDS: usize = 5;
/// How many packets come at once.
const AT_ONCE: usize = 32;
/// Packets in one buffer, one after the other.
#[derive(Default)]
struct Packets {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Packets {
    fn push(&mut self, packet: &[u8]) {
        self.bytes.extend_from_slice(packet);
        self.ends.push(self.bytes.len());
    }

    fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.ends.len())
            .map(|index| &self.bytes[index.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[index]])
    }
}

struct TrackerFixture {
    policy: Policy,
    tracker: Tracker,
    firewall: Simulated,
    now: Timestamp,
}

impl TrackerFixture {
    fn new() -> Self {
        let policy = policy::parse("bench.yaml", "limits: { sessions: 2000000, sessions_per_client: 2000000, pinholes: 1000000, pinholes_per_client: 1000000, idle: 168h }")
            .expect("the policy is good")
            .policy;
        let firewall = Simulated::new([Port::FTP]);
        Self { policy, tracker: Tracker::default(), firewall, now: Timestamp::from_secs(1) }
    }

    fn take_all<'a>(&mut self, packets: impl Iterator<Item = &'a [u8]>) {
        for segment in packets.filter_map(|packet| Segment::parse(packet).ok()) {
            self.take(&segment);
        }
    }

    fn take_packet(&mut self, packet: &[u8]) {
        self.take_all(std::iter::once(packet));
    }

    fn take(&mut self, segment: &Segment<'_>) {
        let Self { policy, tracker, firewall, now } = self;
        *now = *now + Duration::from_nanos(200);
        let mut env = Environment { now: *now, policy, firewall, observer: &mut () };
        if tracker.next_deadline().is_some_and(|due| due <= *now) {
            tracker.advance(&mut env);
        }
        let is_data = segment.flow.destination.port != Port::FTP;
        if tracker.handle(segment, &mut env) == TrackerVerdict::Untracked && is_data {
            // The kernel would do this by itself: the data connection comes and uses its pinhole up.
            let admitted = env.firewall.admit(env.now, &segment.flow);
            assert!(admitted.is_some() && tracker.admitted(&segment.flow, &mut env).is_some());
        }
    }
}

/// Sessions that are logged in, with the packets that made them so taken.
fn sessions(fixture: &mut TrackerFixture, count: usize) -> Vec<Conversation> {
    let begin = |index| {
        let mut talk = support::conversation(index);
        support::login(&mut talk, |packet| fixture.take_packet(packet));
        talk
    };
    (0..count).map(begin).collect()
}

/// Transfers of all sessions until there are enough packets.
fn transfers(talks: &mut [Conversation]) -> Packets {
    let mut packets = Packets::default();
    let mut order: Vec<usize> = (0..talks.len()).collect();
    while packets.ends.len() < PACKETS {
        support::transfers(talks, &mut order, |packet| packets.push(packet));
    }
    packets
}

/// Resident memory of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

/// The time that this thread has been on a processor: time of other programs does not count.
fn on_processor() -> Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = schedstat.split(' ').next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.expect("Linux says in /proc how long a thread has run"))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Nanoseconds per packet with so many sessions.
fn cost(count: usize) -> f64 {
    let times = (0..ROUNDS).map(|_| {
        let mut fixture = TrackerFixture::new();
        let mut talks = sessions(&mut fixture, count);
        let packets = transfers(&mut talks);
        let began = on_processor();
        let mut all = packets.iter();
        while all.len() > 0 {
            fixture.take_all(all.by_ref().take(AT_ONCE));
        }
        let taken = (on_processor() - began).as_nanos() as f64 / packets.ends.len() as f64;
        assert_eq!(fixture.tracker.sessions(), count);
        assert_eq!(fixture.tracker.expectations(), 0, "each was used");
        taken
    });
    median(times.collect())
}

/// Bytes a session at rest: a million of them, logged in, nothing under way.
fn memory() -> f64 {
    const COUNT: usize = 1_000_000;
    let mut fixture = TrackerFixture::new();
    let before = resident();
    for index in 0..COUNT {
        support::login(&mut support::conversation(index), |packet| fixture.take_packet(packet));
    }
    assert_eq!(fixture.tracker.sessions(), COUNT);
    (resident() - before) as f64 / COUNT as f64
}

fn main() {
    println!("memory: {:.0} bytes per session, with 1,000,000 idle sessions (to reach: 512)", memory());
    println!();
    println!("{:>10}  {:>12}  {:>18}  {:>8}", "sessions", "ns per packet", "million packets/s", "ratio");
    let mut first = None;
    for count in [1, 100, 10_000, 100_000, 1_000_000] {
        let cost = cost(count);
        let ratio = cost / *first.get_or_insert(cost);
        println!("{count:>10}  {cost:>12.1}  {:>18.2}  {ratio:>8.2}", 1000.0 / cost);
    }
    println!("(to reach: 5 million packets/s, and a ratio of at most 1.5)");
}
