use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::core::net::{Endpoint, Flow, Port};

const LIMIT: usize = 16 * 1024;

fn segment(seq: u32, flags: Flags, payload: &[u8]) -> Segment<'_> {
    let end = Endpoint::new(IpAddr::V4(Ipv4Addr::LOCALHOST), Port::FTP);
    let flow = Flow { source: end, destination: end };
    Segment {
        flow,
        seq: Seq::new(seq),
        ack: Seq::default(),
        flags,
        urgent: 0,
        timestamp: None,
        payload,
        missing: 0,
        origin: None,
    }
}

/// A stream and what it delivered; `|` stands for a gap.
#[derive(Default)]
struct Listener {
    stream: Stream,
    heard: Vec<u8>,
}

impl Listener {
    fn hears(&mut self, seq: u32, payload: &[u8]) -> Option<StreamAnomaly> {
        self.takes(&segment(seq, Flags::ACK, payload))
    }

    fn takes(&mut self, segment: &Segment<'_>) -> Option<StreamAnomaly> {
        self.takes_from(Direction::FromServer, segment)
    }

    /// Takes what may go on of a segment.
    fn takes_from(&mut self, direction: Direction, segment: &Segment<'_>) -> Option<StreamAnomaly> {
        match self.stream.check_segment(segment, direction, Trust::Acknowledgements, LIMIT) {
            Acceptance::AsSent => {
                let events = self.stream.segment(segment, LIMIT);
                self.write_down(events)
            }
            Acceptance::Corrected(payload) => {
                let corrected = Segment { payload: &payload, ..*segment };
                let events = self.stream.segment(&corrected, LIMIT);
                self.write_down(events);
                Some(StreamAnomaly::ChangedRetransmission)
            }
            Acceptance::Refused(anomaly) => Some(anomaly),
        }
    }

    fn check(&self, segment: &Segment<'_>) -> Acceptance {
        self.stream.check_segment(segment, Direction::FromClient, Trust::Acknowledgements, LIMIT)
    }

    fn learns_of_ack(&mut self, ack: u32) -> Option<StreamAnomaly> {
        let events = self.stream.acknowledged(Seq::new(ack), LIMIT);
        self.write_down(events)
    }

    fn write_down(&mut self, events: StreamEvents<'_>) -> Option<StreamAnomaly> {
        let mut found = None;
        for event in events {
            match event {
                StreamEvent::Bytes(_, bytes) => self.heard.extend_from_slice(&bytes),
                StreamEvent::Gap => self.heard.push(b'|'),
                StreamEvent::Anomaly(anomaly) => found = Some(anomaly),
            }
        }
        found
    }
}

#[test]
fn in_order_segments_are_delivered_in_order() {
    let mut listener = Listener::default();
    assert_eq!(listener.takes(&segment(99, Flags::SYN, b"")), None);
    assert_eq!(listener.hears(100, b"PA"), None);
    assert_eq!(listener.hears(102, b"SV"), None);
    assert_eq!(listener.heard, b"PASV");
}

#[test]
fn single_byte_segments_wait_for_a_lost_one() {
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
fn data_in_a_syn_is_ignored() {
    let mut listener = Listener::default();
    let refused = Acceptance::Refused(StreamAnomaly::Unacceptable);
    assert_eq!(listener.check(&segment(99, Flags::SYN.and(Flags::ACK), b"PA")), refused);
    listener.takes(&segment(99, Flags::SYN, b""));
    assert_eq!(listener.check(&segment(100, Flags::SYN.and(Flags::ACK), b"PASV")), refused);
    assert_eq!(listener.check(&segment(100, Flags::NONE, b"PASV")), refused, "a segment without ACK is ignored");
}

#[test]
fn differing_copy_is_corrected_to_the_bytes_read() {
    let mut listener = Listener::default();
    listener.hears(100, b"NOOP\r\n");
    let corrected = |text: &[u8]| Acceptance::Corrected(text.to_vec());
    assert_eq!(listener.check(&segment(100, Flags::ACK, b"FEAT\r\n")), corrected(b"NOOP\r\n"));
    assert_eq!(listener.check(&segment(98, Flags::ACK, b"xxFEAT\r\nQUIT\r\n")), corrected(b"xxNOOP\r\nQUIT\r\n"));
    listener.hears(110, b"LIST");
    assert_eq!(listener.check(&segment(104, Flags::ACK, b"ABCDEFGHIJ")), corrected(b"\r\nCDEFLIST"));
    listener.learns_of_ack(106);
    assert_eq!(listener.check(&segment(100, Flags::ACK, b"FEAT\r\n")), Acceptance::AsSent, "nobody reads it");
}

#[test]
fn copy_of_forgotten_bytes_does_not_pass() {
    let mut listener = Listener::default();
    listener.hears(100, &[b'a'; LIMIT]);
    listener.hears(100 + LIMIT as u32, b"bb");
    let refused = Acceptance::Refused(StreamAnomaly::Unverifiable);
    assert_eq!(listener.check(&segment(100, Flags::ACK, b"aa")), refused);
    assert_eq!(listener.check(&segment(98, Flags::ACK, b"xx")), Acceptance::AsSent, "that was never read");
    listener.learns_of_ack(102);
    assert_eq!(listener.check(&segment(100, Flags::ACK, b"aa")), Acceptance::AsSent, "nobody reads it");
}

#[test]
fn acknowledged_or_old_bytes_are_overwritten_if_untrusted() {
    let mut listener = Listener::default();
    listener.hears(100, b"NOOP\r\nLIST");
    listener.learns_of_ack(106);
    let judged = |listener: &Listener, seq, text, start| {
        let segment = segment(seq, Flags::ACK, text);
        listener.stream.check_segment(&segment, Direction::FromClient, Trust::OnlyReadFrom(start), LIMIT)
    };
    let corrected = |text: &[u8]| Acceptance::Corrected(text.to_vec());
    assert_eq!(judged(&listener, 98, b"xxFEAT\r\nabcdQUIT", Start::Known), corrected(b"xxXXXXXXLISTQUIT"));
    assert_eq!(judged(&listener, 98, b"xxFEAT\r\n", Start::Unknown), corrected(b"XXXXXXXX"));
    assert_eq!(judged(&listener, 110, b"QUIT", Start::Unknown), Acceptance::AsSent);
}

#[test]
fn client_segment_beyond_the_buffer_does_not_pass() {
    let mut listener = Listener::default();
    listener.hears(100, b"a");
    listener.hears(102, &[b'x'; LIMIT]);
    let refused = Acceptance::Refused(StreamAnomaly::TooManyOutOfOrder);
    assert_eq!(listener.check(&segment(102 + LIMIT as u32, Flags::ACK, b"x")), refused);
}

#[test]
fn segment_with_a_stale_timestamp_is_ignored() {
    let mut listener = Listener::default();
    let at = |seq, timestamp, text| Segment { timestamp: Some(timestamp), ..segment(seq, Flags::ACK, text) };
    listener.takes(&at(100, u32::MAX, b"NO"));
    listener.takes(&at(102, 5, b"OP"));
    assert_eq!(listener.check(&at(104, 4, b"\r\n")), Acceptance::AsSent, "one tick is tolerated");
    for stale in [3, u32::MAX, 0x8000_0006] {
        let refused = Acceptance::Refused(StreamAnomaly::StaleTimestamp);
        assert_eq!(listener.check(&at(104, stale, b"\r\n")), refused, "{stale}");
    }
    assert_eq!(listener.check(&segment(104, Flags::ACK, b"\r\n")), Acceptance::AsSent, "it need not have one");
}

#[test]
fn urgent_pointer_is_kept_until_the_stream_is_far_past_it() {
    let mut listener = Listener::default();
    let urgent = Segment { urgent: 3, ..segment(100, Flags::ACK.and(Flags::URG), b"AB") };
    listener.takes(&urgent);
    let plain = segment(102, Flags::ACK, b"C");
    assert_eq!(listener.stream.urgent_end_with(&plain), Some(Seq::new(104)));
    listener.takes(&plain);
    assert_eq!(listener.stream.urgent_end_with(&segment(103, Flags::ACK, b"D")), Some(Seq::new(104)));
}

#[test]
fn pickup_works_in_the_middle_and_across_the_wrap() {
    let mut listener = Listener::default();
    listener.hears(u32::MAX - 1, b"PA");
    listener.hears(0, b"SV");
    assert_eq!(listener.heard, b"PASV");
}

#[test]
fn reordered_segments_are_put_in_order() {
    let mut listener = Listener::default();
    listener.takes(&segment(99, Flags::SYN, b""));
    assert_eq!(listener.hears(104, b"NO"), None);
    assert_eq!(listener.hears(102, b"SV"), None);
    assert_eq!(listener.heard, b"");
    assert_eq!(listener.hears(100, b"PA"), None);
    assert_eq!(listener.heard, b"PASVNO");
    assert!(listener.stream.reorder.is_none(), "nothing is kept once it is delivered");
}

#[test]
fn retransmission_is_delivered_once() {
    let mut listener = Listener::default();
    listener.hears(100, b"PASV");
    assert_eq!(listener.hears(100, b"PASV"), None);
    assert_eq!(listener.hears(102, b"SV\r\n"), None);
    assert_eq!(listener.heard, b"PASV\r\n");
}

#[test]
fn first_copy_wins_and_a_differing_one_is_reported() {
    let mut listener = Listener::default();
    listener.hears(100, b"PASV");
    assert_eq!(listener.hears(100, b"PORT"), Some(StreamAnomaly::ChangedRetransmission));
    assert_eq!(listener.hears(106, b"!!"), None);
    assert_eq!(listener.hears(104, b"ab??"), Some(StreamAnomaly::ChangedRetransmission));
    assert_eq!(listener.heard, b"PASVab!!");
}

#[test]
fn keep_alive_repeats_the_last_byte() {
    let mut listener = Listener::default();
    listener.hears(100, b"PASV");
    assert_eq!(listener.check(&segment(103, Flags::ACK, b"\0")), Acceptance::Corrected(b"V".to_vec()));
    assert_eq!(listener.hears(103, b""), None);
    assert_eq!(listener.heard, b"PASV");
}

#[test]
fn loss_is_given_up_when_the_receiver_acknowledged_it() {
    let mut listener = Listener::default();
    listener.hears(100, b"PASV");
    assert_eq!(listener.hears(110, b"LIST"), None);
    assert_eq!(listener.learns_of_ack(104), None, "the receiver misses it too: it will come again");
    assert_eq!(listener.heard, b"PASV");
    assert_eq!(listener.learns_of_ack(114), Some(StreamAnomaly::Lost));
    assert_eq!(listener.heard, b"PASV|LIST");
}

#[test]
fn loss_acknowledged_before_is_given_up_at_once() {
    let mut listener = Listener::default();
    listener.hears(100, b"PASV");
    listener.learns_of_ack(110);
    assert_eq!(listener.hears(110, b"LIST"), Some(StreamAnomaly::Lost));
    assert_eq!(listener.heard, b"PASV|LIST");
}

#[test]
fn bytes_cut_by_the_snaplen_are_a_gap() {
    let mut listener = Listener::default();
    listener.takes(&Segment { missing: 20, ..segment(100, Flags::ACK, b"227 Ent") });
    assert_eq!(listener.heard, b"227 Ent|");
    assert_eq!(listener.hears(127, b"150 go"), None);
    assert_eq!(listener.heard, b"227 Ent|150 go");
    listener.takes(&Segment { missing: 3, ..segment(133, Flags::ACK.and(Flags::FIN), b"") });
    listener.learns_of_ack(137);
    assert!(listener.stream.has_ended());
}

#[test]
fn segment_far_outside_the_window_is_ignored() {
    let mut listener = Listener::default();
    listener.hears(100, b"PASV");
    assert_eq!(listener.hears(1 << 30, b"x"), Some(StreamAnomaly::TooFar));
    assert_eq!(listener.hears(3 << 30, b"x"), Some(StreamAnomaly::TooFar));
    listener.hears(104, b"\r\n");
    assert_eq!(listener.heard, b"PASV\r\n");
}

#[test]
fn reassembly_buffer_is_bounded() {
    let mut listener = Listener::default();
    listener.hears(100, b"a");
    let mut anomalies = Vec::new();
    for index in 0..1000 {
        anomalies.extend(listener.hears(200 + 200 * index, &[b'x'; 100]));
        assert!(listener.stream.reorder.as_ref().is_none_or(|reorder| !reorder.exceeds(LIMIT)));
    }
    assert!(anomalies.contains(&StreamAnomaly::TooManyOutOfOrder));
}

#[test]
fn stream_ends_when_its_fin_is_acknowledged() {
    let mut listener = Listener::default();
    listener.hears(100, b"QU");
    listener.takes(&segment(104, Flags::ACK.and(Flags::FIN), b""));
    listener.hears(102, b"IT");
    assert!(!listener.stream.has_ended());
    listener.learns_of_ack(104);
    assert!(!listener.stream.has_ended(), "the receiver has the text, but not the FIN");
    listener.learns_of_ack(105);
    assert!(listener.stream.has_ended());
}

#[test]
fn fin_that_never_arrives_ends_nothing() {
    let mut listener = Listener::default();
    listener.hears(100, b"NOOP\r\n");
    listener.takes(&segment(106, Flags::ACK.and(Flags::FIN), b""));
    let refused = Some(StreamAnomaly::ContradictsFin);
    assert_eq!(listener.hears(106, b"PASV\r\n"), refused, "a receiver that has got the FIN does not read it");
    listener.learns_of_ack(106);
    assert!(!listener.stream.has_ended());
    assert_eq!(listener.heard, b"NOOP\r\n");
}

#[test]
fn fin_before_bytes_already_read_does_not_pass() {
    let mut listener = Listener::default();
    listener.hears(100, b"NOOP\r\n");
    let refused = Acceptance::Refused(StreamAnomaly::ContradictsFin);
    assert_eq!(listener.check(&segment(103, Flags::ACK.and(Flags::FIN), b"")), refused);
    assert_eq!(listener.check(&segment(100, Flags::ACK.and(Flags::FIN), b"NOOP")), refused);
    assert_eq!(listener.check(&segment(100, Flags::ACK.and(Flags::FIN), b"NOOP\r\n")), Acceptance::AsSent);
}

#[test]
fn byte_already_read_does_not_become_urgent() {
    let mut listener = Listener::default();
    listener.hears(100, b"NOOP\r\n");
    let pointing = |seq, urgent, text| Segment { urgent, ..segment(seq, Flags::ACK.and(Flags::URG), text) };
    assert_eq!(listener.check(&pointing(100, 3, b"NOOP\r\n")), Acceptance::Corrected(b"NOOP\r\n".to_vec()));
    assert_eq!(listener.check(&pointing(100, 3, b"")), Acceptance::Corrected(Vec::new()));
    assert_eq!(listener.check(&pointing(106, 3, b"ABOR\r\n")), Acceptance::AsSent);
    listener.takes(&pointing(106, 3, b"ABOR\r\n"));
    assert_eq!(listener.check(&pointing(106, 3, b"ABOR\r\n")), Acceptance::AsSent, "it was urgent before");
}

#[test]
fn segment_half_the_sequence_space_away_is_ignored() {
    let mut listener = Listener::default();
    listener.hears(100, b"PASV");
    listener.learns_of_ack(104);
    for far in [1 << 31, (1 << 31) + 100, (1 << 31) - 1] {
        assert_eq!(listener.hears(104_u32.wrapping_add(far), b"x"), Some(StreamAnomaly::TooFar));
    }
    assert_eq!(listener.heard, b"PASV");
}

#[test]
fn reset_counts_only_at_a_possible_next_byte() {
    let mut listener = Listener::default();
    listener.hears(100, b"PASV");
    assert!(listener.stream.accepts_reset_at(Seq::new(104)));
    for other in [105, 99, 200, 30_104, 1 << 20] {
        assert!(!listener.stream.accepts_reset_at(Seq::new(other)), "{other}");
    }
    // The receiver may have got less than was read.
    assert!(listener.stream.accepts_reset_at(Seq::new(102)));
    listener.learns_of_ack(103);
    assert!(!listener.stream.accepts_reset_at(Seq::new(102)));
}

/// Pieces of a text: where each begins, and how long it is.
fn pieces(length: usize) -> impl Strategy<Value = Vec<(usize, usize)>> {
    proptest::collection::vec((0..length, 1..40usize), 0..40)
}

proptest! {
    #[test]
    fn any_segmentation_gives_the_text(
        text in proptest::collection::vec(any::<u8>(), 1..300),
        first in any::<u32>(),
        pieces in pieces(300),
    ) {
        let mut listener = Listener::default();
        listener.takes(&segment(first.wrapping_sub(1), Flags::SYN, b""));
        let mut hear = |from: usize, length: usize| {
            let from = from.min(text.len() - 1);
            let to = (from + length).min(text.len());
            let anomaly = listener.hears((Seq::new(first) + from).number(), &text[from..to]);
            prop_assert_eq!(anomaly, None);
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
