//! Packets that a replay keeps until a missing segment comes.

use std::time::Duration;

use super::*;
use crate::core::net::Direction::FromClient;
use crate::core::script::{Conversation, endpoint};

const NAT: &[u8] = b"inside: [10.0.0.1]\noutside: [198.51.100.100]\n";

struct Silent;

impl Report for Silent {
    fn event(&mut self, _: Timestamp, _: SessionNumber, _: &SessionEvent<'_>) {}
    fn blocked(&mut self, _: Timestamp, _: SessionNumber, _: &Blocked) {}
    fn summary(&mut self, _: Timestamp, _: &Counters) {}
}

/// The times at which frames left the gateway.
#[derive(Default)]
struct Times(Vec<Timestamp>);

impl Outside for Times {
    fn frame(&mut self, frame: &Frame<'_>) {
        self.0.push(frame.time);
    }
}

fn show(replay: &mut Replay<Silent>, time: Timestamp, packet: &[u8], outside: &mut Times) {
    let original_len = u32::try_from(packet.len()).expect("short");
    replay.frame_for(&Frame { time, link: LinkType::Ip, data: packet, original_len }, outside);
}

#[test]
fn kept_frame_expires_after_three_seconds_of_the_capture() {
    let nat = nat::parse_bytes("nat.yaml", NAT).expect("it is sound");
    let mut replay = Replay::with_nat(Policy::default(), Some(nat), Silent);
    let mut outside = Times::default();
    let mut talk = Conversation::new(endpoint("10.0.0.1:4000"), endpoint("203.0.113.5:21"), 7, 9);
    let start = Timestamp::from_secs(1);
    for packet in talk.handshake() {
        show(&mut replay, start, &packet, &mut outside);
    }
    let _missing = talk.says(FromClient, "NO");
    let early = talk.says(FromClient, "OP\r\n");
    show(&mut replay, start, &early, &mut outside);
    assert_eq!(outside.0.len(), 3, "the segment behind the missing one waits");
    let mut other = Conversation::new(endpoint("10.0.0.1:5000"), endpoint("203.0.113.5:21"), 7, 9);
    let [syn, syn_ack, _] = other.handshake();
    let late = start + Duration::from_secs(3);
    show(&mut replay, late, &syn, &mut outside);
    assert_eq!(outside.0.len(), 4, "it still waits");
    let later = late + Duration::from_millis(1);
    show(&mut replay, later, &syn_ack, &mut outside);
    assert_eq!(outside.0[4..], [later, later], "it expired");
}
