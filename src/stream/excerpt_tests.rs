use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::net::Port;
use crate::packet::{Endpoint, Flow};

fn segment(seq: u32, flags: Flags, payload: &[u8]) -> Segment<'_> {
    let end = Endpoint::new(IpAddr::V4(Ipv4Addr::LOCALHOST), Port::FTP);
    let flow = Flow { source: end, destination: end };
    Segment { flow, seq: Seq::new(seq), ack: Seq::default(), flags, payload, missing: 0 }
}

/// What a stream delivered: `|` stands for a hole, and what was overtaken stands in brackets.
struct Listener {
    stream: Stream,
    heard: String,
}

impl Listener {
    /// One that has heard everything up to byte 100.
    fn new() -> Self {
        let mut stream = Stream::default();
        stream.begin_at(Seq::new(100));
        stream.expect_excerpts();
        Self { stream, heard: String::new() }
    }

    fn takes(&mut self, segment: &Segment<'_>) -> Option<Oddity> {
        let heard = &mut self.heard;
        self.stream.segment(segment, 1000, |delivery| match delivery {
            Delivery::Bytes(_, bytes) => heard.push_str(&String::from_utf8_lossy(bytes)),
            Delivery::Overtaken(_, bytes) => {
                heard.push('[');
                heard.push_str(&String::from_utf8_lossy(bytes));
                heard.push(']');
            }
            Delivery::Gap(_) => heard.push('|'),
        })
    }

    fn hears(&mut self, seq: u32, text: &str) -> Option<Oddity> {
        self.takes(&segment(seq, Flags::ACK, text.as_bytes()))
    }
}

#[test]
fn a_hole_is_passed_over_at_once() {
    let mut listener = Listener::new();
    assert_eq!(listener.hears(108, "PASV"), None);
    assert_eq!(listener.hears(112, "\r\n"), None);
    assert_eq!(listener.hears(5_000_000, "PORT"), None);
    assert_eq!(listener.heard, "|PASV\r\n|PORT");
}

#[test]
fn a_copy_is_heard_once_wherever_the_stream_is_by_now() {
    let mut listener = Listener::new();
    listener.hears(108, "PASV\r\n");
    assert_eq!(listener.hears(108, "PASV\r\n"), None);
    listener.hears(120, "PORT 1\r\n");
    assert_eq!(listener.hears(108, "PASV\r\n"), None);
    assert_eq!(listener.hears(90, "before it began"), None);
    assert_eq!(listener.heard, "|PASV\r\n|PORT 1\r\n");
}

#[test]
fn a_copy_that_goes_on_brings_only_what_is_new() {
    let mut listener = Listener::new();
    listener.hears(108, "PASV\r\n");
    assert_eq!(listener.hears(108, "PASV\r\nRETR x\r\n"), None);
    assert_eq!(listener.hears(108, "PORT\r\nRETR x\r\n"), Some(Oddity::DifferingCopy));
    assert_eq!(listener.heard, "|PASV\r\nRETR x\r\n");
}

#[test]
fn what_was_overtaken_is_heard_once() {
    let mut listener = Listener::new();
    listener.hears(120, "PORT 1\r\n");
    listener.hears(108, "PASV\r\n");
    listener.hears(108, "PASV\r\n");
    assert_eq!(listener.heard, "|PORT 1\r\n[PASV\r\n]");
    assert_eq!(listener.hears(128, "EPSV\r\n"), None);
    assert_eq!(listener.heard, "|PORT 1\r\n[PASV\r\n]EPSV\r\n");
}

#[test]
fn what_the_receiver_has_got_unread_is_not_heard_when_it_comes_again() {
    let mut listener = Listener::new();
    listener.hears(120, "PORT 1\r\n");
    listener.stream.acknowledged(Seq::new(120), |_| {});
    listener.hears(108, "PASV\r\n");
    assert_eq!(listener.heard, "|PORT 1\r\n");
}

#[test]
fn a_keep_alive_is_no_differing_copy() {
    let mut listener = Listener::new();
    listener.hears(108, "PASV\r\n");
    assert_eq!(listener.hears(113, "\0"), None);
    assert_eq!(listener.heard, "|PASV\r\n");
}

#[test]
fn a_fin_ends_it_whatever_was_unread_in_front() {
    let mut listener = Listener::new();
    listener.takes(&segment(114, Flags::ACK.and(Flags::FIN), b"221 Bye\r\n"));
    assert!(listener.stream.has_ended());
    assert_eq!(listener.heard, "|221 Bye\r\n");
}

#[test]
fn where_all_is_brought_again_the_next_segment_begins_anew() {
    let mut listener = Listener::new();
    listener.hears(108, "PASV\r\n");
    listener.stream.expect_all();
    listener.hears(300, "NOOP\r\n");
    listener.hears(308, "later");
    assert_eq!(listener.heard, "|PASV\r\nNOOP\r\n", "a hole is a loss again");
}

proptest! {
    /// Whichever segments are brought, and however often and in what order, each is heard once at most, and in the
    /// order of the stream unless it was overtaken.
    #[test]
    fn nothing_is_heard_twice(
        arrivals in proptest::collection::vec(0u32..40, 0..80),
        first in any::<u32>(),
    ) {
        let mut stream = Stream::default();
        stream.begin_at(Seq::new(first));
        stream.expect_excerpts();
        let mut heard = Vec::new();
        for number in arrivals {
            // Every segment has its number in each of its four bytes.
            let payload = [number as u8; 4];
            let seq = first.wrapping_add(4 * number);
            let oddity = stream.segment(&segment(seq, Flags::ACK, &payload), 0, |delivery| match delivery {
                Delivery::Bytes(_, bytes) | Delivery::Overtaken(_, bytes) => heard.extend_from_slice(bytes),
                Delivery::Gap(_) => {}
            });
            prop_assert_eq!(oddity, None);
        }
        for number in 0..40u8 {
            prop_assert!(matches!(heard.iter().filter(|byte| **byte == number).count(), 0 | 4), "{}", number);
        }
    }

    #[test]
    fn any_segments_and_acks_never_panic(
        events in proptest::collection::vec((any::<bool>(), any::<u32>(), 0u8..4, 0usize..3000), 0..60),
        near: bool,
    ) {
        let mut listener = Listener::new();
        for (is_ack, seq, flags, length) in events {
            let seq = if near { seq % 8192 } else { seq };
            if is_ack {
                listener.stream.acknowledged(Seq::new(seq), |_| {});
            } else {
                let flags = [Flags::NONE, Flags::SYN, Flags::FIN, Flags::ACK][usize::from(flags)];
                listener.takes(&segment(seq, flags, &vec![b'x'; length]));
            }
        }
    }
}
