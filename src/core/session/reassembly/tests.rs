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
struct CollectedStream {
    stream: Stream,
    delivered: Vec<u8>,
}

impl CollectedStream {
    fn segment(&mut self, seq: u32, payload: &[u8]) -> Option<StreamAnomaly> {
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
                self.collect(events)
            }
            Acceptance::Corrected(payload) => {
                let corrected = Segment { payload: &payload, ..*segment };
                let events = self.stream.segment(&corrected, LIMIT);
                self.collect(events);
                Some(StreamAnomaly::ChangedRetransmission)
            }
            Acceptance::Refused(anomaly) => Some(anomaly),
        }
    }

    fn check(&self, segment: &Segment<'_>) -> Acceptance {
        self.stream.check_segment(segment, Direction::FromClient, Trust::Acknowledgements, LIMIT)
    }

    fn ack(&mut self, ack: u32) -> Option<StreamAnomaly> {
        let events = self.stream.acknowledged(Seq::new(ack), LIMIT);
        self.collect(events)
    }

    fn collect(&mut self, events: StreamEvents<'_>) -> Option<StreamAnomaly> {
        let mut found = None;
        for event in events {
            match event {
                StreamEvent::Bytes(_, bytes) => self.delivered.extend_from_slice(&bytes),
                StreamEvent::Gap => self.delivered.push(b'|'),
                StreamEvent::Anomaly(anomaly) => found = Some(anomaly),
            }
        }
        found
    }
}

#[test]
fn in_order_segments_are_delivered_in_order() {
    let mut collected = CollectedStream::default();
    assert_eq!(collected.takes(&segment(99, Flags::SYN, b"")), None);
    assert_eq!(collected.segment(100, b"PA"), None);
    assert_eq!(collected.segment(102, b"SV"), None);
    assert_eq!(collected.delivered, b"PASV");
}

#[test]
fn single_byte_segments_wait_for_a_lost_one() {
    let turn: Vec<u8> = (0..1000).map(|place| b'a' + (place % 26) as u8).collect();
    let mut collected = CollectedStream::default();
    collected.takes(&segment(99, Flags::SYN, b""));
    for place in (1..turn.len()).rev() {
        assert_eq!(collected.segment(100 + place as u32, &turn[place..=place]), None);
    }
    assert_eq!(collected.segment(100, &turn[..1]), None);
    assert_eq!(collected.delivered, turn);
}

#[test]
fn data_in_a_syn_is_ignored() {
    let mut collected = CollectedStream::default();
    let refused = Acceptance::Refused(StreamAnomaly::Unacceptable);
    assert_eq!(collected.check(&segment(99, Flags::SYN.and(Flags::ACK), b"PA")), refused);
    collected.takes(&segment(99, Flags::SYN, b""));
    assert_eq!(collected.check(&segment(100, Flags::SYN.and(Flags::ACK), b"PASV")), refused);
    assert_eq!(collected.check(&segment(100, Flags::NONE, b"PASV")), refused, "a segment without ACK is ignored");
}

#[test]
fn differing_copy_is_corrected_to_the_bytes_read() {
    let mut collected = CollectedStream::default();
    collected.segment(100, b"NOOP\r\n");
    let corrected = |text: &[u8]| Acceptance::Corrected(text.to_vec());
    assert_eq!(collected.check(&segment(100, Flags::ACK, b"FEAT\r\n")), corrected(b"NOOP\r\n"));
    assert_eq!(collected.check(&segment(98, Flags::ACK, b"xxFEAT\r\nQUIT\r\n")), corrected(b"xxNOOP\r\nQUIT\r\n"));
    collected.segment(110, b"LIST");
    assert_eq!(collected.check(&segment(104, Flags::ACK, b"ABCDEFGHIJ")), corrected(b"\r\nCDEFLIST"));
    collected.ack(106);
    assert_eq!(collected.check(&segment(100, Flags::ACK, b"FEAT\r\n")), Acceptance::AsSent, "nobody reads it");
}

#[test]
fn copy_of_forgotten_bytes_does_not_pass() {
    let mut collected = CollectedStream::default();
    collected.segment(100, &[b'a'; LIMIT]);
    collected.segment(100 + LIMIT as u32, b"bb");
    let refused = Acceptance::Refused(StreamAnomaly::Unverifiable);
    assert_eq!(collected.check(&segment(100, Flags::ACK, b"aa")), refused);
    assert_eq!(collected.check(&segment(98, Flags::ACK, b"xx")), Acceptance::AsSent, "that was never read");
    collected.ack(102);
    assert_eq!(collected.check(&segment(100, Flags::ACK, b"aa")), Acceptance::AsSent, "nobody reads it");
}

#[test]
fn acknowledged_or_old_bytes_are_overwritten_if_untrusted() {
    let mut collected = CollectedStream::default();
    collected.segment(100, b"NOOP\r\nLIST");
    collected.ack(106);
    let judged = |collected: &CollectedStream, seq, text, start| {
        let segment = segment(seq, Flags::ACK, text);
        collected.stream.check_segment(&segment, Direction::FromClient, Trust::OnlyReadFrom(start), LIMIT)
    };
    let corrected = |text: &[u8]| Acceptance::Corrected(text.to_vec());
    assert_eq!(judged(&collected, 98, b"xxFEAT\r\nabcdQUIT", Start::Known), corrected(b"xxXXXXXXLISTQUIT"));
    assert_eq!(judged(&collected, 98, b"xxFEAT\r\n", Start::Unknown), corrected(b"XXXXXXXX"));
    assert_eq!(judged(&collected, 110, b"QUIT", Start::Unknown), Acceptance::AsSent);
}

#[test]
fn client_segment_beyond_the_buffer_does_not_pass() {
    let mut collected = CollectedStream::default();
    collected.segment(100, b"a");
    collected.segment(102, &[b'x'; LIMIT]);
    let refused = Acceptance::Refused(StreamAnomaly::TooManyOutOfOrder);
    assert_eq!(collected.check(&segment(102 + LIMIT as u32, Flags::ACK, b"x")), refused);
}

#[test]
fn segment_with_a_stale_timestamp_is_ignored() {
    let mut collected = CollectedStream::default();
    let at = |seq, timestamp, text| Segment { timestamp: Some(timestamp), ..segment(seq, Flags::ACK, text) };
    collected.takes(&at(100, u32::MAX, b"NO"));
    collected.takes(&at(102, 5, b"OP"));
    assert_eq!(collected.check(&at(104, 4, b"\r\n")), Acceptance::AsSent, "one tick is tolerated");
    for stale in [3, u32::MAX, 0x8000_0006] {
        let refused = Acceptance::Refused(StreamAnomaly::StaleTimestamp);
        assert_eq!(collected.check(&at(104, stale, b"\r\n")), refused, "{stale}");
    }
    assert_eq!(collected.check(&segment(104, Flags::ACK, b"\r\n")), Acceptance::AsSent, "it need not have one");
}

#[test]
fn urgent_pointer_is_kept_until_the_stream_is_far_past_it() {
    let mut collected = CollectedStream::default();
    let urgent = Segment { urgent: 3, ..segment(100, Flags::ACK.and(Flags::URG), b"AB") };
    collected.takes(&urgent);
    let plain = segment(102, Flags::ACK, b"C");
    assert_eq!(collected.stream.urgent_end_with(&plain), Some(Seq::new(104)));
    collected.takes(&plain);
    assert_eq!(collected.stream.urgent_end_with(&segment(103, Flags::ACK, b"D")), Some(Seq::new(104)));
}

#[test]
fn pickup_works_in_the_middle_and_across_the_wrap() {
    let mut collected = CollectedStream::default();
    collected.segment(u32::MAX - 1, b"PA");
    collected.segment(0, b"SV");
    assert_eq!(collected.delivered, b"PASV");
}

#[test]
fn reordered_segments_are_put_in_order() {
    let mut collected = CollectedStream::default();
    collected.takes(&segment(99, Flags::SYN, b""));
    assert_eq!(collected.segment(104, b"NO"), None);
    assert_eq!(collected.segment(102, b"SV"), None);
    assert_eq!(collected.delivered, b"");
    assert_eq!(collected.segment(100, b"PA"), None);
    assert_eq!(collected.delivered, b"PASVNO");
    assert!(collected.stream.reorder.is_none(), "nothing is kept once it is delivered");
}

#[test]
fn retransmission_is_delivered_once() {
    let mut collected = CollectedStream::default();
    collected.segment(100, b"PASV");
    assert_eq!(collected.segment(100, b"PASV"), None);
    assert_eq!(collected.segment(102, b"SV\r\n"), None);
    assert_eq!(collected.delivered, b"PASV\r\n");
}

#[test]
fn first_copy_wins_and_a_differing_one_is_reported() {
    let mut collected = CollectedStream::default();
    collected.segment(100, b"PASV");
    assert_eq!(collected.segment(100, b"PORT"), Some(StreamAnomaly::ChangedRetransmission));
    assert_eq!(collected.segment(106, b"!!"), None);
    assert_eq!(collected.segment(104, b"ab??"), Some(StreamAnomaly::ChangedRetransmission));
    assert_eq!(collected.delivered, b"PASVab!!");
}

#[test]
fn keep_alive_repeats_the_last_byte() {
    let mut collected = CollectedStream::default();
    collected.segment(100, b"PASV");
    assert_eq!(collected.check(&segment(103, Flags::ACK, b"\0")), Acceptance::Corrected(b"V".to_vec()));
    assert_eq!(collected.segment(103, b""), None);
    assert_eq!(collected.delivered, b"PASV");
}

#[test]
fn loss_is_given_up_when_the_receiver_acknowledged_it() {
    let mut collected = CollectedStream::default();
    collected.segment(100, b"PASV");
    assert_eq!(collected.segment(110, b"LIST"), None);
    assert_eq!(collected.ack(104), None, "the receiver misses it too: it will come again");
    assert_eq!(collected.delivered, b"PASV");
    assert_eq!(collected.ack(114), Some(StreamAnomaly::Lost));
    assert_eq!(collected.delivered, b"PASV|LIST");
}

#[test]
fn loss_acknowledged_before_is_given_up_at_once() {
    let mut collected = CollectedStream::default();
    collected.segment(100, b"PASV");
    collected.ack(110);
    assert_eq!(collected.segment(110, b"LIST"), Some(StreamAnomaly::Lost));
    assert_eq!(collected.delivered, b"PASV|LIST");
}

#[test]
fn bytes_cut_by_the_snaplen_are_a_gap() {
    let mut collected = CollectedStream::default();
    collected.takes(&Segment { missing: 20, ..segment(100, Flags::ACK, b"227 Ent") });
    assert_eq!(collected.delivered, b"227 Ent|");
    assert_eq!(collected.segment(127, b"150 go"), None);
    assert_eq!(collected.delivered, b"227 Ent|150 go");
    collected.takes(&Segment { missing: 3, ..segment(133, Flags::ACK.and(Flags::FIN), b"") });
    collected.ack(137);
    assert!(collected.stream.has_ended());
}

#[test]
fn segment_far_outside_the_window_is_ignored() {
    let mut collected = CollectedStream::default();
    collected.segment(100, b"PASV");
    assert_eq!(collected.segment(1 << 30, b"x"), Some(StreamAnomaly::TooFar));
    assert_eq!(collected.segment(3 << 30, b"x"), Some(StreamAnomaly::TooFar));
    collected.segment(104, b"\r\n");
    assert_eq!(collected.delivered, b"PASV\r\n");
}

#[test]
fn reassembly_buffer_is_bounded() {
    let mut collected = CollectedStream::default();
    collected.segment(100, b"a");
    let mut anomalies = Vec::new();
    for index in 0..1000 {
        anomalies.extend(collected.segment(200 + 200 * index, &[b'x'; 100]));
        assert!(collected.stream.reorder.as_ref().is_none_or(|reorder| !reorder.exceeds(LIMIT)));
    }
    assert!(anomalies.contains(&StreamAnomaly::TooManyOutOfOrder));
}

#[test]
fn stream_ends_when_its_fin_is_acknowledged() {
    let mut collected = CollectedStream::default();
    collected.segment(100, b"QU");
    collected.takes(&segment(104, Flags::ACK.and(Flags::FIN), b""));
    collected.segment(102, b"IT");
    assert!(!collected.stream.has_ended());
    collected.ack(104);
    assert!(!collected.stream.has_ended(), "the receiver has the text, but not the FIN");
    collected.ack(105);
    assert!(collected.stream.has_ended());
}

#[test]
fn fin_that_never_arrives_ends_nothing() {
    let mut collected = CollectedStream::default();
    collected.segment(100, b"NOOP\r\n");
    collected.takes(&segment(106, Flags::ACK.and(Flags::FIN), b""));
    let refused = Some(StreamAnomaly::ContradictsFin);
    assert_eq!(collected.segment(106, b"PASV\r\n"), refused, "a receiver that has got the FIN does not read it");
    collected.ack(106);
    assert!(!collected.stream.has_ended());
    assert_eq!(collected.delivered, b"NOOP\r\n");
}

#[test]
fn fin_before_bytes_already_read_does_not_pass() {
    let mut collected = CollectedStream::default();
    collected.segment(100, b"NOOP\r\n");
    let refused = Acceptance::Refused(StreamAnomaly::ContradictsFin);
    assert_eq!(collected.check(&segment(103, Flags::ACK.and(Flags::FIN), b"")), refused);
    assert_eq!(collected.check(&segment(100, Flags::ACK.and(Flags::FIN), b"NOOP")), refused);
    assert_eq!(collected.check(&segment(100, Flags::ACK.and(Flags::FIN), b"NOOP\r\n")), Acceptance::AsSent);
}

#[test]
fn byte_already_read_does_not_become_urgent() {
    let mut collected = CollectedStream::default();
    collected.segment(100, b"NOOP\r\n");
    let pointing = |seq, urgent, text| Segment { urgent, ..segment(seq, Flags::ACK.and(Flags::URG), text) };
    assert_eq!(collected.check(&pointing(100, 3, b"NOOP\r\n")), Acceptance::Corrected(b"NOOP\r\n".to_vec()));
    assert_eq!(collected.check(&pointing(100, 3, b"")), Acceptance::Corrected(Vec::new()));
    assert_eq!(collected.check(&pointing(106, 3, b"ABOR\r\n")), Acceptance::AsSent);
    collected.takes(&pointing(106, 3, b"ABOR\r\n"));
    assert_eq!(collected.check(&pointing(106, 3, b"ABOR\r\n")), Acceptance::AsSent, "it was urgent before");
}

#[test]
fn segment_half_the_sequence_space_away_is_ignored() {
    let mut collected = CollectedStream::default();
    collected.segment(100, b"PASV");
    collected.ack(104);
    for far in [1 << 31, (1 << 31) + 100, (1 << 31) - 1] {
        assert_eq!(collected.segment(104_u32.wrapping_add(far), b"x"), Some(StreamAnomaly::TooFar));
    }
    assert_eq!(collected.delivered, b"PASV");
}

#[test]
fn reset_counts_only_at_a_possible_next_byte() {
    let mut collected = CollectedStream::default();
    collected.segment(100, b"PASV");
    assert!(collected.stream.accepts_reset_at(Seq::new(104)));
    for other in [105, 99, 200, 30_104, 1 << 20] {
        assert!(!collected.stream.accepts_reset_at(Seq::new(other)), "{other}");
    }
    // The receiver may have got less than was read.
    assert!(collected.stream.accepts_reset_at(Seq::new(102)));
    collected.ack(103);
    assert!(!collected.stream.accepts_reset_at(Seq::new(102)));
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
        let mut collected = CollectedStream::default();
        collected.takes(&segment(first.wrapping_sub(1), Flags::SYN, b""));
        let mut deliver = |from: usize, length: usize| {
            let from = from.min(text.len() - 1);
            let to = (from + length).min(text.len());
            let anomaly = collected.segment((Seq::new(first) + from).number(), &text[from..to]);
            prop_assert_eq!(anomaly, None);
            Ok(())
        };
        for (from, length) in pieces {
            deliver(from, length)?;
        }
        // The last word: everything once more, so that nothing is missing.
        for from in (0..text.len()).step_by(7) {
            deliver(from, 7)?;
        }
        prop_assert_eq!(collected.delivered, text);
    }

    #[test]
    fn any_segments_and_acks_never_panic(
        events in proptest::collection::vec((any::<bool>(), any::<u32>(), 0u8..4, 0usize..3000), 0..60),
        near: bool,
    ) {
        let mut collected = CollectedStream::default();
        for (is_ack, seq, flags, length) in events {
            let seq = if near { seq % 8192 } else { seq };
            if is_ack {
                collected.ack(seq);
            } else {
                let flags = [Flags::NONE, Flags::SYN, Flags::FIN, Flags::ACK][usize::from(flags)];
                collected.takes(&segment(seq, flags, &vec![seq as u8; length]));
            }
        }
    }
}
