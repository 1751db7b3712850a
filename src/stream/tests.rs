use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::net::Port;
use crate::packet::{Endpoint, Flow};

const LIMIT: usize = 16 * 1024;

fn segment(seq: u32, flags: Flags, payload: &[u8]) -> Segment<'_> {
    let end = Endpoint::new(IpAddr::V4(Ipv4Addr::LOCALHOST), Port::FTP);
    let flow = Flow { source: end, destination: end };
    Segment { flow, seq: Seq::new(seq), ack: Seq::default(), flags, payload, missing: 0 }
}

/// A stream and what it delivered; `|` stands for a gap.
#[derive(Default)]
struct Listener {
    stream: Stream,
    heard: Vec<u8>,
}

impl Listener {
    fn hears(&mut self, seq: u32, payload: &[u8]) -> Option<Oddity> {
        self.takes(&segment(seq, Flags::ACK, payload))
    }

    fn takes(&mut self, segment: &Segment<'_>) -> Option<Oddity> {
        let heard = &mut self.heard;
        self.stream.segment(segment, LIMIT, |delivery| write_down(heard, delivery))
    }

    fn learns_of_ack(&mut self, ack: u32) -> Option<Oddity> {
        let heard = &mut self.heard;
        self.stream.acknowledged(Seq::new(ack), |delivery| write_down(heard, delivery))
    }
}

fn write_down(heard: &mut Vec<u8>, delivery: Delivery<'_>) {
    match delivery {
        Delivery::Bytes(_, bytes) | Delivery::Overtaken(_, bytes) => heard.extend(bytes),
        Delivery::Gap(_) => heard.push(b'|'),
    }
}

#[test]
fn delivers_in_order_what_came_in_order() {
    let mut listener = Listener::default();
    assert_eq!(listener.takes(&segment(99, Flags::SYN, b"")), None);
    assert_eq!(listener.hears(100, b"PA"), None);
    assert_eq!(listener.hears(102, b"SV"), None);
    assert_eq!(listener.heard, b"PASV");
}

#[test]
fn a_long_turn_of_single_bytes_waits_whole_for_the_one_lost_in_front() {
    let turn: Vec<u8> = (0..1000).map(|place| b'a' + (place % 26) as u8).collect();
    let mut listener = Listener::default();
    listener.takes(&segment(99, Flags::SYN, b""));
    for place in (1..turn.len()).rev() {
        assert_eq!(listener.hears(100 + place as u32, &turn[place..=place]), None);
    }
    assert_eq!(listener.hears(100, &turn[..1]), None);
    assert_eq!(listener.heard, turn);
}

#[test]
fn data_in_a_syn_comes_behind_it() {
    let mut listener = Listener::default();
    listener.takes(&segment(99, Flags::SYN, b"PA"));
    listener.hears(102, b"SV");
    assert_eq!(listener.heard, b"PASV");
}

#[test]
fn picks_up_in_the_middle_and_across_the_wrap() {
    let mut listener = Listener::default();
    listener.hears(u32::MAX - 1, b"PA");
    listener.hears(0, b"SV");
    assert_eq!(listener.heard, b"PASV");
}

#[test]
fn puts_reordered_segments_in_order() {
    let mut listener = Listener::default();
    listener.takes(&segment(99, Flags::SYN, b""));
    assert_eq!(listener.hears(104, b"NO"), None);
    assert_eq!(listener.hears(102, b"SV"), None);
    assert_eq!(listener.heard, b"");
    assert_eq!(listener.hears(100, b"PA"), None);
    assert_eq!(listener.heard, b"PASVNO");
    assert!(listener.stream.waiting.is_none(), "nothing is kept once it is delivered");
}

#[test]
fn a_retransmission_is_heard_once() {
    let mut listener = Listener::default();
    listener.hears(100, b"PASV");
    assert_eq!(listener.hears(100, b"PASV"), None);
    assert_eq!(listener.hears(102, b"SV\r\n"), None);
    assert_eq!(listener.heard, b"PASV\r\n");
}

#[test]
fn the_first_copy_wins_and_a_differing_one_is_noticed() {
    let mut listener = Listener::default();
    listener.hears(100, b"PASV");
    assert_eq!(listener.hears(100, b"PORT"), Some(Oddity::DifferingCopy));
    assert_eq!(listener.hears(106, b"!!"), None);
    assert_eq!(listener.hears(104, b"ab??"), Some(Oddity::DifferingCopy));
    assert_eq!(listener.heard, b"PASVab!!");
}

#[test]
fn a_keep_alive_is_no_differing_copy() {
    let mut listener = Listener::default();
    listener.hears(100, b"PASV");
    assert_eq!(listener.hears(103, b"\0"), None);
    assert_eq!(listener.hears(103, b""), None);
    assert_eq!(listener.heard, b"PASV");
}

#[test]
fn a_loss_is_given_up_when_the_receiver_has_moved_on() {
    let mut listener = Listener::default();
    listener.hears(100, b"PASV");
    assert_eq!(listener.hears(110, b"LIST"), None);
    assert_eq!(listener.learns_of_ack(104), None, "the receiver misses it too: it will come again");
    assert_eq!(listener.heard, b"PASV");
    assert_eq!(listener.learns_of_ack(114), Some(Oddity::Lost));
    assert_eq!(listener.heard, b"PASV|LIST");
}

#[test]
fn a_loss_that_was_acknowledged_before_is_given_up_at_once() {
    let mut listener = Listener::default();
    listener.hears(100, b"PASV");
    listener.learns_of_ack(110);
    assert_eq!(listener.hears(110, b"LIST"), Some(Oddity::Lost));
    assert_eq!(listener.heard, b"PASV|LIST");
}

#[test]
fn what_the_capture_cut_off_is_a_gap_at_once() {
    let mut listener = Listener::default();
    listener.takes(&Segment { missing: 20, ..segment(100, Flags::ACK, b"227 Ent") });
    assert_eq!(listener.heard, b"227 Ent|");
    assert_eq!(listener.hears(127, b"150 go"), None);
    assert_eq!(listener.heard, b"227 Ent|150 go");
    listener.takes(&Segment { missing: 3, ..segment(133, Flags::FIN, b"") });
    assert!(listener.stream.has_ended());
}

#[test]
fn nonsense_far_away_is_ignored() {
    let mut listener = Listener::default();
    listener.hears(100, b"PASV");
    assert_eq!(listener.hears(1 << 30, b"x"), Some(Oddity::FarAway));
    assert_eq!(listener.hears(3 << 30, b"x"), Some(Oddity::FarAway));
    listener.hears(104, b"\r\n");
    assert_eq!(listener.heard, b"PASV\r\n");
}

#[test]
fn what_waits_is_bounded() {
    let mut listener = Listener::default();
    listener.hears(100, b"a");
    let mut oddities = Vec::new();
    for index in 0..1000 {
        oddities.extend(listener.hears(200 + 200 * index, &[b'x'; 100]));
        assert!(listener.stream.waiting.as_ref().is_none_or(|waiting| !waiting.is_over(LIMIT)));
    }
    assert!(oddities.contains(&Oddity::TooMuchWaiting));
}

#[test]
fn ends_when_everything_before_the_fin_has_come() {
    let mut listener = Listener::default();
    listener.hears(100, b"QU");
    listener.takes(&segment(104, Flags::ACK.and(Flags::FIN), b""));
    assert!(!listener.stream.has_ended());
    listener.hears(102, b"IT");
    assert!(listener.stream.has_ended());
}

#[test]
fn a_forged_fin_does_not_hide_the_real_one() {
    let mut listener = Listener::default();
    listener.hears(100, b"QUIT");
    listener.takes(&segment(5000, Flags::FIN, b""));
    assert!(!listener.stream.has_ended());
    listener.takes(&segment(104, Flags::FIN, b""));
    assert!(listener.stream.has_ended());
}

#[test]
fn believes_a_reset_in_the_window_only() {
    let mut listener = Listener::default();
    listener.hears(100, b"PASV");
    assert!(listener.stream.believes_reset_at(Seq::new(104)));
    assert!(listener.stream.believes_reset_at(Seq::new(200)));
    assert!(!listener.stream.believes_reset_at(Seq::new(1 << 20)));
    assert!(!listener.stream.believes_reset_at(Seq::new(50)));
}

/// Pieces of a text: where each begins, and how long it is.
fn pieces(length: usize) -> impl Strategy<Value = Vec<(usize, usize)>> {
    proptest::collection::vec((0..length, 1..40usize), 0..40)
}

proptest! {
    #[test]
    fn any_pieces_that_cover_a_text_give_the_text(
        text in proptest::collection::vec(any::<u8>(), 1..300),
        first in any::<u32>(),
        pieces in pieces(300),
    ) {
        let mut listener = Listener::default();
        listener.takes(&segment(first.wrapping_sub(1), Flags::SYN, b""));
        let mut hear = |from: usize, length: usize| {
            let from = from.min(text.len() - 1);
            let to = (from + length).min(text.len());
            let oddity = listener.hears((Seq::new(first) + from).number(), &text[from..to]);
            prop_assert_eq!(oddity, None);
            Ok(())
        };
        for (from, length) in pieces {
            hear(from, length)?;
        }
        // The last word: everything once more, so that nothing is missing.
        for from in (0..text.len()).step_by(7) {
            hear(from, 7)?;
        }
        prop_assert_eq!(listener.heard, text);
    }

    #[test]
    fn any_segments_and_acks_never_panic(
        events in proptest::collection::vec((any::<bool>(), any::<u32>(), 0u8..4, 0usize..3000), 0..60),
        near: bool,
    ) {
        let mut listener = Listener::default();
        for (is_ack, seq, flags, length) in events {
            let seq = if near { seq % 8192 } else { seq };
            if is_ack {
                listener.learns_of_ack(seq);
            } else {
                let flags = [Flags::NONE, Flags::SYN, Flags::FIN, Flags::ACK][usize::from(flags)];
                listener.takes(&segment(seq, flags, &vec![seq as u8; length]));
            }
        }
    }
}
