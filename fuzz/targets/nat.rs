//! A control connection behind NAT, with the kernel's sequence adjustment, or without NAT and with a server whose wrong address is
//! repaired; with both ends' TCP.

use std::collections::BTreeMap;
use std::time::Duration;

use pinhole::core::kernel::Simulated;
use pinhole::core::net::{Connection, Direction, Flags, Flow, Port, Segment, Seq};
use pinhole::core::policy::{self, Policy};
use pinhole::core::script::{endpoint, packet};
use pinhole::core::seqadj::{Replacement, Verdict};
use pinhole::core::time::Timestamp;
use pinhole::core::tracker::{Environment, Tracker, TrackerVerdict};

use super::input::Input;

/// The lines of the two ends, whole and in pieces.
const TEXTS: [&str; 24] = [
    "PORT 192,168,0,9,15,161\r\n",
    "EPRT |1|192.168.0.9|4001|\r\n",
    "PORT 192,168,0,9,",
    "PORT 192,1",
    "68,0,9,15,162\r\n",
    "15,163\r\n",
    "PO",
    "RT 192,168,0,9,4,1\r\n",
    "NOOP\r\n",
    "PASV\r\n",
    "EPSV\r\n",
    "LIST\r\nPORT 192,168,0,9,15,164\r\nNOOP\r\n",
    "\r\n",
    "\n",
    "227 Entering Passive Mode (10,0,0,5,15,161).\r\n",
    "227 Entering Passive Mode (10,0,",
    "0,5,15,162).\r\n",
    "229 Extended (|||4002|)\r\n",
    "200 good\r\n",
    "500 no\r\n",
    "220-hello\r\n",
    "220 ",
    "DELE x\r\n",
    "QUIT\r\n",
];

/// How much of a stream is sent at most.
const MAX_SENT: usize = 4000;

/// One direction: the bytes that its sender has sent, and those that its receiver has.
#[derive(Default)]
struct Way {
    first: Seq,
    sent: Vec<u8>,
    /// How much of that the sender knows to be received.
    acknowledged: usize,
    /// The receiver's bytes, by its own sequence numbers.
    received: BTreeMap<usize, u8>,
}

impl Way {
    /// Up to where the receiver has everything.
    fn next(&self) -> usize {
        (0..).find(|place| !self.received.contains_key(place)).unwrap_or_default()
    }
}

/// Whose address NAT changes.
#[derive(Clone, Copy)]
enum Translated {
    Client,
    Server,
    Nobody,
}

struct Gateway {
    tracker: Tracker,
    firewall: Simulated,
    policy: Policy,
    connection: Connection,
    client: Way,
    server: Way,
    now: Timestamp,
}

impl Gateway {
    fn new(nat: Translated, policy: &str) -> Self {
        let flow = |source, destination| Flow { source: endpoint(source), destination: endpoint(destination) };
        let connection = match nat {
            Translated::Client => Connection {
                original: flow("192.168.0.9:4000", "203.0.113.5:21"),
                reply: flow("203.0.113.5:21", "198.51.100.100:6000"),
            },
            Translated::Server => Connection {
                original: flow("192.0.2.9:4000", "203.0.113.5:21"),
                reply: flow("10.0.0.5:2121", "192.0.2.9:4000"),
            },
            Translated::Nobody => Connection::direct(flow("192.168.0.9:4000", "203.0.113.5:21")),
        };
        let mut firewall = Simulated::new([Port::FTP]);
        match nat {
            Translated::Client | Translated::Server => firewall.translate(&connection),
            Translated::Nobody => firewall.refuse_to_adjust(),
        }
        let way = |first| Way { first: Seq::new(first), ..Way::default() };
        Self {
            tracker: Tracker::default(),
            firewall,
            policy: policy::parse("policy.yaml", policy).expect("a good policy").policy,
            connection,
            client: way(u32::MAX - 100),
            server: way(7000),
            now: Timestamp::from_secs(1000),
        }
    }

    fn way(&mut self, who: Direction) -> &mut Way {
        match who {
            Direction::FromClient => &mut self.client,
            Direction::FromServer => &mut self.server,
        }
    }

    /// A packet passes. A byte that its receiver has must never change.
    fn passes(&mut self, who: Direction, seq: Seq, flags: Flags, payload: &[u8]) {
        let heard = self.way(who.opposite());
        let ack = heard.first + heard.next();
        let bytes = packet(self.connection.flow(who), seq, ack, flags, payload);
        let segment = Segment::parse(&bytes).expect("a segment");
        let Self { tracker, firewall, policy, now, .. } = self;
        let mut env = Environment { now: *now, policy, firewall, observer: &mut () };
        let verdict = match tracker.handle(&segment, &mut env) {
            TrackerVerdict::Session(verdict) => verdict,
            TrackerVerdict::Untracked => Verdict::Accept,
        };
        let adjustments = self.firewall.adjustments(&self.connection);
        let (seq, payload) = match verdict {
            Verdict::Accept => (seq, payload.to_vec()),
            Verdict::Replace(Replacement { seq, payload }) => (seq, payload),
            // It is sent again.
            Verdict::Wait | Verdict::Drop => return,
        };
        if !flags.has(Flags::SYN) {
            let place = adjustments.of(who).map_or(seq, |adjustment| adjustment.sequence(seq));
            let way = self.way(who);
            for (offset, byte) in payload.iter().enumerate() {
                let place = usize::try_from(place - way.first + offset as i32).expect("nothing in front of the stream");
                let known = *way.received.entry(place).or_insert(*byte);
                assert_eq!(known, *byte, "the byte at {place} is sent again with another value");
            }
        }
        // The ACK reaches the sender of the other direction.
        let acknowledged = adjustments.of(who.opposite()).map_or(ack, |adjustment| adjustment.acknowledgement(ack));
        let heard = self.way(who.opposite());
        let acknowledged = usize::try_from(acknowledged - heard.first).unwrap_or(0);
        assert!(acknowledged <= heard.sent.len(), "{acknowledged} bytes of {} are acknowledged", heard.sent.len());
        heard.acknowledged = heard.acknowledged.max(acknowledged);
    }

    fn sends(&mut self, who: Direction, from: usize, length: usize) {
        let way = self.way(who);
        let to = (from + length).min(way.sent.len());
        let (seq, payload) = (way.first + from, way.sent[from..to].to_vec());
        self.passes(who, seq, Flags::ACK, &payload);
    }

    fn says(&mut self, who: Direction, text: &[u8]) {
        let way = self.way(who);
        let from = way.sent.len();
        way.sent.extend(text);
        self.sends(who, from, text.len());
    }

    fn acknowledges(&mut self, who: Direction) {
        let way = self.way(who);
        let seq = way.first + way.sent.len();
        self.passes(who, seq, Flags::ACK, b"");
    }

    fn begins(&mut self) {
        let (client, server) = (self.client.first.moved(-1), self.server.first.moved(-1));
        self.passes(Direction::FromClient, client, Flags::SYN, b"");
        self.passes(Direction::FromServer, server, Flags::SYN.and(Flags::ACK), b"");
        self.acknowledges(Direction::FromClient);
        let lines = [
            (Direction::FromServer, "220 hello\r\n"),
            (Direction::FromClient, "USER ftp\r\n"),
            (Direction::FromServer, "230 in\r\n"),
        ];
        for (who, line) in lines {
            self.says(who, line.as_bytes());
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.byte();
        let who = if what & 1 == 0 { Direction::FromClient } else { Direction::FromServer };
        match what >> 1 & 7 {
            0..=2 => {
                let text = input.text(&TEXTS);
                if self.way(who).sent.len() + text.len() < MAX_SENT {
                    self.says(who, text);
                }
            }
            3 | 4 => {
                let way = self.way(who);
                let (from, length) = (way.acknowledged, way.sent.len() - way.acknowledged);
                let from = from + input.below(length + 1);
                self.sends(who, from, usize::from(input.byte()));
            }
            5 => self.acknowledges(who),
            // It does not come through.
            6 => {
                let text = input.text(&TEXTS);
                let way = self.way(who);
                if way.sent.len() + text.len() < MAX_SENT {
                    way.sent.extend(text);
                }
            }
            _ => self.now = self.now + Duration::from_secs(u64::from(input.byte())),
        }
    }

    /// Everything that is missing is sent again until it is there.
    fn ends(&mut self) {
        for who in [Direction::FromClient, Direction::FromServer] {
            // Of a line that has not ended, some may be withheld.
            self.says(who, b"\r\n");
            for _ in 0..MAX_SENT {
                let way = self.way(who);
                let (from, end) = (way.acknowledged, way.sent.len());
                if from == end {
                    break;
                }
                self.sends(who, from, 500);
                self.acknowledges(who.opposite());
            }
            let way = self.way(who);
            assert_eq!(way.acknowledged, way.sent.len(), "{who:?} waits for ever for the rest to be acknowledged");
            assert_eq!(way.next(), way.received.len(), "the receiver has all that was sent");
            let received: Vec<u8> = way.received.values().copied().collect();
            assert_eq!(others(&way.sent), others(&received), "only announcements are rewritten");
        }
    }
}

/// The lines that announce nothing.
fn others(stream: &[u8]) -> Vec<String> {
    let lines = stream.split(|byte| *byte == b'\n').map(|line| String::from_utf8_lossy(line).into_owned());
    lines.filter(|line| !line.contains(',') && !line.contains('|')).collect()
}

/// The ends of a connection behind NAT send, lose and retransmit: both make progress, no byte changes once it has been
/// sent, and nothing is acknowledged that was not sent.
pub fn nat(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.byte();
    let nat = match kind & 5 {
        0 => Translated::Client,
        1 => Translated::Server,
        _ => Translated::Nobody,
    };
    let is_repaired = kind & 2 != 0 || matches!(nat, Translated::Nobody);
    let policy = if is_repaired { "defaults: { passive_address: repair }" } else { "control_ports: [21]" };
    let mut gateway = Gateway::new(nat, policy);
    gateway.begins();
    while !input.is_empty() {
        gateway.step(&mut input);
    }
    gateway.ends();
}
