//! How fast the pure middle is: control packets a second on one core, from 1 to 1,000,000 sessions, and what a session
//! costs in memory.
//!
//! Packets stand in memory, each once, as a queue or a capture would bring them. Sessions come in a random order, a
//! thousand of them with a transfer under way at a time, packet by packet in turn; each pinhole is used. Nothing is
//! asserted; the ratios are for a person to read.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::net::Ipv4Addr;
use std::time::Duration;

use pinhole::firewall::Simulated;
use pinhole::net::Port;
use pinhole::packet::Direction::{FromClient, FromServer};
use pinhole::packet::{Endpoint, Flags, Flow, Segment, Seq};
use pinhole::policy::{self, Policy};
use pinhole::script::{self, Conversation};
use pinhole::time::Timestamp;
use pinhole::tracker::{Handled, Tracker, World};

const PACKETS: usize = 6_000_000;
const ROUNDS: usize = 5;
/// How many transfers are under way at a time.
const UNDER_WAY: usize = 1000;
/// How many packets come at once.
const AT_ONCE: usize = 32;
/// What one transfer is on the control connection.
const TURNS: usize = 6;
/// Packets taken in between, so that what they cost is counted in: the data connections.
const DATA_PORT: u16 = 51_200;

/// Packets one behind the other.
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

struct Stage {
    policy: Policy,
    tracker: Tracker,
    firewall: Simulated,
    now: Timestamp,
}

impl Stage {
    fn new() -> Self {
        let policy = policy::parse("bench.yaml", "limits: { sessions: 2000000, pinholes: 1000000, idle: 168h }")
            .expect("the policy is good")
            .policy;
        let firewall = Simulated::new([Port::FTP]);
        Self { policy, tracker: Tracker::default(), firewall, now: Timestamp::from_secs(1) }
    }

    /// Takes packets that came at once, as a queue under load delivers them.
    fn take_all<'a>(&mut self, packets: impl Iterator<Item = &'a [u8]>) {
        let segments: Vec<Segment<'_>> = packets.filter_map(|packet| Segment::parse(packet).ok()).collect();
        let flows: Vec<Flow> = segments.iter().map(|segment| segment.flow).collect();
        self.tracker.anticipate(&flows);
        for segment in &segments {
            self.take(segment);
        }
    }

    fn take_packet(&mut self, packet: &[u8]) {
        self.take_all(std::iter::once(packet));
    }

    fn take(&mut self, segment: &Segment<'_>) {
        let Self { policy, tracker, firewall, now } = self;
        *now = *now + Duration::from_nanos(200);
        let mut world = World { now: *now, policy, firewall, observer: &mut () };
        if tracker.next_deadline().is_some_and(|due| due <= *now) {
            tracker.advance(&mut world);
        }
        if tracker.handle(segment, &mut world) == Handled::NotOurs {
            // The kernel would do this by itself: the data connection comes and uses its pinhole up.
            let admitted = world.firewall.admit(world.now, &segment.flow);
            assert!(admitted.is_some() && tracker.admitted(&segment.flow, &mut world).is_some());
        }
    }
}

fn client(index: usize) -> Endpoint {
    let address = Ipv4Addr::from(0x0a00_0000 + index as u32 / 50_000);
    let port = Port::new(10_000 + (index % 50_000) as u16).expect("from 10000 on");
    Endpoint::new(address.into(), port)
}

/// Sessions that are logged in, with the packets that made them so taken.
fn sessions(stage: &mut Stage, count: usize) -> Vec<Conversation> {
    let server = script::endpoint("192.0.2.1:21");
    let mut talks = Vec::with_capacity(count);
    for index in 0..count {
        let mut talk = Conversation::new(client(index), server, index as u32, !(index as u32));
        for packet in talk.handshake() {
            stage.take_packet(&packet);
        }
        for (who, line) in [
            (FromServer, "220 ready\r\n"),
            (FromClient, "USER anonymous\r\n"),
            (FromServer, "331 password please\r\n"),
            (FromClient, "PASS a@example.org\r\n"),
            (FromServer, "230 welcome\r\n"),
        ] {
            stage.take_packet(&talk.says(who, line));
        }
        talks.push(talk);
    }
    talks
}

/// Transfers of all sessions, in an order that no cache foresees, until there are enough packets.
fn transfers(talks: &mut [Conversation]) -> Packets {
    let mut packets = Packets::default();
    let mut order: Vec<usize> = (0..talks.len()).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    while packets.ends.len() < PACKETS {
        for place in (1..order.len()).rev() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            order.swap(place, (random >> 33) as usize % (place + 1));
        }
        for under_way in order.chunks(UNDER_WAY) {
            for turn in 0..TURNS {
                for (place, &index) in under_way.iter().enumerate() {
                    transfer(&mut talks[index], turn, place as u16, &mut packets);
                }
            }
        }
    }
    packets
}

/// What a transfer does in its turn.
fn transfer(talk: &mut Conversation, turn: usize, place: u16, packets: &mut Packets) {
    let port = DATA_PORT + place;
    let packet = match turn {
        0 => talk.says(FromClient, "PASV\r\n"),
        1 => {
            let line = format!("227 Entering Passive Mode (192,0,2,1,{},{}).\r\n", port / 256, port % 256);
            talk.says(FromServer, line)
        }
        2 => {
            let Flow { source, destination } = talk.flow();
            let to = Endpoint::new(destination.address, Port::new(port).expect("from 51200 on"));
            packets.push(&script::packet(&Flow { source, destination: to }, Seq::new(1), Seq::new(0), Flags::SYN, b""));
            talk.says(FromClient, "RETR some/file/of/the/server.txt\r\n")
        }
        3 => talk.says(FromServer, "150 Opening BINARY mode data connection.\r\n"),
        4 => talk.says(FromServer, "226 Transfer complete.\r\n"),
        _ => talk.ack(FromClient),
    };
    packets.push(&packet);
}

/// Resident memory of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

/// How long this thread has been on a processor: what others do meanwhile does not count.
fn on_processor() -> Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = schedstat.split(' ').next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.expect("Linux says in /proc how long a thread has run"))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Nanoseconds a packet with so many sessions.
fn cost(count: usize) -> f64 {
    let times = (0..ROUNDS).map(|_| {
        let mut stage = Stage::new();
        let mut talks = sessions(&mut stage, count);
        let packets = transfers(&mut talks);
        let began = on_processor();
        let mut all = packets.iter();
        while all.len() > 0 {
            stage.take_all(all.by_ref().take(AT_ONCE));
        }
        let taken = (on_processor() - began).as_nanos() as f64 / packets.ends.len() as f64;
        assert_eq!(stage.tracker.sessions(), count);
        assert_eq!(stage.tracker.expectations(), 0, "each was used");
        taken
    });
    median(times.collect())
}

/// Bytes a session at rest: a million of them, logged in, nothing under way.
fn memory() -> f64 {
    const COUNT: usize = 1_000_000;
    let mut stage = Stage::new();
    let before = resident();
    let server = script::endpoint("192.0.2.1:21");
    for index in 0..COUNT {
        let mut talk = Conversation::new(client(index), server, index as u32, 1);
        for packet in talk.handshake() {
            stage.take_packet(&packet);
        }
        stage.take_packet(&talk.says(FromServer, "220 ready\r\n"));
        stage.take_packet(&talk.says(FromClient, "USER anonymous\r\n"));
        stage.take_packet(&talk.says(FromServer, "230 welcome\r\n"));
    }
    assert_eq!(stage.tracker.sessions(), COUNT);
    (resident() - before) as f64 / COUNT as f64
}

fn main() {
    println!("memory: {:.0} bytes a session, of 1,000,000 at rest (to reach: 512)", memory());
    println!();
    println!("{:>10}  {:>12}  {:>18}  {:>8}", "sessions", "ns a packet", "million packets/s", "ratio");
    let mut first = None;
    for count in [1, 100, 10_000, 100_000, 1_000_000] {
        let cost = cost(count);
        let ratio = cost / *first.get_or_insert(cost);
        println!("{count:>10}  {cost:>12.1}  {:>18.2}  {ratio:>8.2}", 1000.0 / cost);
    }
    println!("(to reach: 5 million packets/s, and a ratio of at most 1.5)");
}
