//! Denied commands in lines that arrive in many segments.

use crate::core::kernel::Simulated;
use crate::core::net::Direction::{self, FromClient, FromServer};
use crate::core::net::{Port, Segment};
use crate::core::policy::{self, Policy};
use crate::core::script::{Conversation, endpoint};
use crate::core::seqadj::{Replacement, Verdict};
use crate::core::time::Timestamp;
use crate::core::tracker::{Environment, Tracker, TrackerVerdict};

/// A session of a logged-in user under a policy that denies FEAT.
struct Denying {
    tracker: Tracker,
    firewall: Simulated,
    policy: Policy,
    conversation: Conversation,
}

impl Denying {
    fn new(line_bytes: usize) -> Self {
        let text = format!("defaults: {{ commands: {{ deny: [FEAT] }} }}\nlimits: {{ line_bytes: {line_bytes} }}");
        let policy = policy::parse("policy.yaml", &text).expect("a good policy").policy;
        let conversation = Conversation::new(endpoint("10.0.0.1:4000"), endpoint("10.0.0.2:21"), 1, 1);
        let firewall = Simulated::new([Port::FTP]);
        let mut session = Self { tracker: Tracker::default(), firewall, policy, conversation };
        for packet in session.conversation.handshake() {
            session.arriving(&packet);
        }
        for (who, line) in [(FromServer, "220 a\r\n"), (FromClient, "USER a\r\n"), (FromServer, "230 b\r\n")] {
            assert_eq!(session.says(who, line.as_bytes()), line.as_bytes());
        }
        session
    }

    /// The payload that arrives.
    fn says(&mut self, who: Direction, text: &[u8]) -> Vec<u8> {
        let packet = self.conversation.says(who, text);
        self.arriving(&packet)
    }

    fn arriving(&mut self, packet: &[u8]) -> Vec<u8> {
        let segment = Segment::parse(packet).expect("a segment");
        let Self { tracker, firewall, policy, .. } = self;
        let mut env = Environment { now: Timestamp::from_secs(1), policy, firewall, observer: &mut () };
        match tracker.handle(&segment, &mut env) {
            TrackerVerdict::Session(Verdict::Replace(Replacement { payload, .. })) => payload,
            TrackerVerdict::Session(Verdict::Drop | Verdict::Wait) => Vec::new(),
            TrackerVerdict::Session(Verdict::Accept) | TrackerVerdict::Untracked => segment.payload.to_vec(),
        }
    }

    /// What arrives of a line of the client, of which each byte has a segment of its own.
    fn byte_by_byte(&mut self, line: &[u8]) -> Vec<u8> {
        line.iter().flat_map(|byte| self.says(FromClient, &[*byte])).collect()
    }
}

#[test]
fn little_of_an_odd_line_is_searched_again() {
    for odd in [0, 0xff, b'\r', b'A', b' '] {
        let line = [odd; 65_536];
        assert_eq!(super::searched(&line, true).len(), 128, "{odd}");
        assert_eq!(super::searched(&line, false).len(), line.len(), "{odd}");
    }
    let plain = [&b"STOR "[..], &[b'a'; 1000]].concat();
    assert_eq!(super::searched(&plain, true), plain);
}

#[test]
fn rest_of_a_long_odd_line_in_pieces_is_overwritten() {
    let mut session = Denying::new(1024);
    let arrived = session.byte_by_byte(&[&[0; 150][..], b"FEAT\r\n"].concat());
    assert_eq!(arrived[..150], [&[0; 128][..], &[b'X'; 22]].concat());
    assert!(!arrived[150..].contains(&b'F') && arrived.ends_with(b"\n"), "{:?}", String::from_utf8_lossy(&arrived));
    assert_eq!(session.says(FromClient, b"NOOP\r\n"), b"NOOP\r\n");
}

/// A server that looks at the end of a word must not find a command in overwritten bytes and those behind them.
#[test]
fn command_behind_overwritten_bytes_does_not_arrive() {
    for end in ["FEAT\r\n", "a bFEAT\r\n", "\0FEAT x\r\n"] {
        for pieces in [1, 2, 7] {
            let mut session = Denying::new(1024);
            let mut arrived = session.says(FromClient, &[0xff; 1]);
            let rest = [&[0; 150][..], b"a b", end.as_bytes()].concat();
            for piece in rest.chunks(rest.len().div_ceil(pieces)) {
                arrived.extend(session.says(FromClient, piece));
            }
            assert!(!arrived.windows(4).any(|bytes| bytes == b"FEAT"), "{pieces} {end:?} {arrived:?}");
        }
    }
}

#[test]
fn long_plain_line_in_pieces_arrives_unchanged() {
    let mut session = Denying::new(1024);
    let line = [b"STOR ", &[b'a'; 900][..], b" \xe9.txt\r\n"].concat();
    assert_eq!(session.byte_by_byte(&line), line);
}

#[test]
fn long_odd_line_in_one_segment_arrives_unchanged() {
    let mut session = Denying::new(1024);
    let line = [b"STOR ", &[0xff; 600][..], b".txt\r\n"].concat();
    assert_eq!(session.says(FromClient, &line), line);
}

/// The odd byte is at the end of a line that was plain so far.
#[test]
fn odd_byte_behind_a_long_plain_beginning_is_overwritten() {
    let mut session = Denying::new(1024);
    let line = [b"STOR ", &[b'a'; 300][..], b"\0FEAT\r\n"].concat();
    let arrived = session.byte_by_byte(&line);
    assert_eq!(arrived[..305], line[..305]);
    assert!(!arrived[305..].contains(&0) && !arrived.ends_with(b"FEAT\r\n"), "{arrived:?}");
}
