//! What each fuzz target does with its input. The fuzzer calls these functions, and so do the ordinary tests
//! (`tests/replay/fuzz_targets.rs`), which include this file.
//!
//! Each also checks a property of the result that holds for every input.

use std::time::Duration;

use pinhole::core::ftp::command::Command;
use pinhole::core::ftp::notation::Notation;
use pinhole::core::ftp::reply::ReplyReader;
use pinhole::core::ftp::{LineEnding, LineReader, Mode, UnreadBytes};
use pinhole::core::kernel::Simulated;
use pinhole::core::net::{Direction, Segment, Seq};
use pinhole::core::policy::Policy;
use pinhole::core::script::{Conversation, endpoint};
use pinhole::core::time::Timestamp;
use pinhole::core::tracker::{Environment, SessionEvent, SessionNumber, Tracker};

#[path = "targets/captures.rs"]
mod captures;
#[path = "targets/input.rs"]
mod input;
#[path = "targets/nat.rs"]
mod nat;
#[path = "targets/packet.rs"]
mod packet;
#[path = "targets/sessions.rs"]
mod sessions;

pub use captures::captures;
pub use nat::nat;
pub use packet::replacement;
pub use sessions::{pickup, time};

/// How long a line may be here: short, so that the limit is reached often.
const LIMIT: usize = 128;

/// A tracker with a simulated firewall whose books must agree, and to which nothing foreign may be opened.
struct Middle {
    tracker: Tracker,
    firewall: Simulated,
    policy: Policy,
    now: Timestamp,
}

impl Middle {
    fn new() -> Self {
        let policy = Policy::embedded();
        let firewall = Simulated::new(policy.control_ports.as_slice().iter().copied());
        Self { tracker: Tracker::default(), firewall, policy, now: Timestamp::from_secs(1) }
    }

    fn takes(&mut self, packet: &[u8]) {
        self.now = self.now + Duration::from_millis(100);
        let Ok(segment) = Segment::parse(packet) else { return };
        let flow = segment.flow;
        let mut judge = |_: Timestamp, _: SessionNumber, event: &SessionEvent<'_>| {
            if let SessionEvent::Opened { expectation, .. } = event {
                let hosts = [flow.source.address, flow.destination.address];
                assert!(hosts.contains(&expectation.from) && hosts.contains(&expectation.to.address));
                assert!(expectation.to.port.number() >= 1024);
            }
        };
        let Self { tracker, firewall, policy, now } = self;
        let mut env = Environment { now: *now, policy, firewall, observer: &mut judge };
        tracker.advance(&mut env);
        let _ = tracker.handle(&segment, &mut env);
        assert_eq!(self.tracker.expectations(), self.firewall.pinholes());
        assert!(self.tracker.pinholes().all(|(.., expectation)| expectation.expires() > self.now));
    }
}

/// A capture's worth of packets, through the whole middle: each is preceded by its length in one byte.
pub fn packets(data: &[u8]) {
    let mut middle = Middle::new();
    let mut rest = data;
    while let Some((&length, behind)) = rest.split_first() {
        let (packet, behind) = behind.split_at(usize::from(length).min(behind.len()));
        middle.takes(packet);
        rest = behind;
    }
}

/// What a client sends: lines and commands, and the same as a dialogue with a server that agrees to all of it.
pub fn lines(data: &[u8]) {
    let at = Seq::new(u32::MAX - 10);
    let mut whole = Vec::new();
    let mut reader = LineReader::new(LineEnding::Lf);
    let mut unread = UnreadBytes::new(at, data, None, LIMIT);
    while reader.advance(&mut unread) {
        let line = unread.line();
        let _ = Command::parse(&line);
        for notation in Mode::ALL.map(Notation::of) {
            let _ = notation.read(line.text);
        }
        whole.push((line.text.to_vec(), line.start, line.end, line.whole, line.is_unambiguous));
    }
    // Byte by byte the lines are the same.
    let mut piecewise = Vec::new();
    let mut reader = LineReader::new(LineEnding::Lf);
    for (index, byte) in data.iter().enumerate() {
        let mut unread = UnreadBytes::new(at + index, std::slice::from_ref(byte), None, LIMIT);
        while reader.advance(&mut unread) {
            let line = unread.line();
            piecewise.push((line.text.to_vec(), line.start, line.end, line.whole, line.is_unambiguous));
        }
    }
    assert_eq!(whole, piecewise);
    dialogue(Direction::FromClient, data, &["230 in\r\n", "200 ok\r\n", "227 (10,0,0,2,4,1)\r\n"]);
}

/// What a server sends: replies of one line and of several, and the same as a dialogue with a curious client.
pub fn replies(data: &[u8]) {
    let mut replies = ReplyReader::default();
    let mut reader = LineReader::new(LineEnding::CrLf);
    let mut unread = UnreadBytes::new(Seq::new(0), data, None, LIMIT);
    while reader.advance(&mut unread) {
        let line = unread.line();
        let _ = replies.line(line.text);
        for notation in Mode::ALL.map(Notation::of) {
            if let Some(found) = notation.find(line.text) {
                let said = &line.text[found.span];
                assert_eq!(notation.read(said).map(|again| again.announced), Some(found.announced));
            }
        }
    }
    dialogue(Direction::FromServer, data, &["USER a\r\n", "PASV\r\n", "EPSV\r\n", "PORT 10,0,0,1,4,1\r\n"]);
}

/// One end says `data`, in pieces, and the other one says `answers` over and over in between.
fn dialogue(who: Direction, data: &[u8], answers: &[&str]) {
    let mut middle = Middle::new();
    let mut talk = Conversation::new(endpoint("10.0.0.1:4000"), endpoint("10.0.0.2:21"), 7, 9);
    for packet in talk.handshake() {
        middle.takes(&packet);
    }
    middle.takes(&talk.says(Direction::FromServer, "220 ready\r\n"));
    let mut answers = answers.iter().cycle();
    for piece in data.chunks(40) {
        middle.takes(&talk.says(who, piece));
        if let Some(answer) = answers.next() {
            middle.takes(&talk.says(who.opposite(), answer));
        }
    }
    middle.takes(&talk.closes(who));
    middle.takes(&talk.ack(who.opposite()));
    assert_eq!(middle.tracker.expectations(), 0, "what was open ends with its session");
}

/// A policy file: whatever is accepted is printed as an equal policy.
pub fn policy(data: &[u8]) {
    match pinhole::core::policy::parse_bytes("policy.yaml", data) {
        Ok(parsed) => {
            let printed = parsed.policy.to_string();
            let again = pinhole::core::policy::parse("printed.yaml", &printed).expect("what is printed is a policy");
            assert_eq!(again.policy, parsed.policy);
        }
        Err(problems) => assert!(problems.errors() > 0 && !problems.to_string().is_empty()),
    }
}

/// A datagram from the kernel, by whatever reads such: there are no more messages in it than have room, and each element
/// of a set is the same when it is written and read again.
pub fn netlink(data: &[u8]) {
    let (messages, _) = pinhole::netfilter::netlink::fuzzing::read_datagram(data);
    assert!(messages <= data.len() / 16, "{messages} messages in {} bytes", data.len());
}
