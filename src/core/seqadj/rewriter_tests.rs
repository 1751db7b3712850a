use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::core::net::{Endpoint, Flow, Port};

const FIRST: u32 = u32::MAX - 40;

fn segment(at: usize, payload: &[u8]) -> Segment<'_> {
    let end = Endpoint::new(IpAddr::V4(Ipv4Addr::LOCALHOST), Port::FTP);
    let flow = Flow { source: end, destination: end };
    Segment {
        flow,
        seq: Seq::new(FIRST) + at,
        ack: Seq::default(),
        flags: Flags::ACK,
        urgent: 0,
        timestamp: None,
        payload,
        missing: 0,
        origin: None,
    }
}

/// The text in the stream, and what the receiver should get.
#[derive(Clone, Debug)]
struct Change {
    start: usize,
    length: usize,
    text: Vec<u8>,
}

/// A connection through a gateway whose kernel shifts as it is told, one direction of it.
struct Path {
    rewriter: DirectionRewriter,
    kernel: Adjustment,
    sent: Vec<u8>,
    changes: Vec<Change>,
    /// How many of the changes have been made.
    made: usize,
    /// How much of the sender's bytes the gateway has seen.
    seen: usize,
    received: Vec<Option<u8>>,
    acked: usize,
}

impl Path {
    fn new(sent: Vec<u8>, changes: Vec<Change>) -> Self {
        Self {
            rewriter: DirectionRewriter::default(),
            kernel: Adjustment { position: Seq::default(), before: 0, after: 0 },
            sent,
            changes,
            made: 0,
            seen: 0,
            received: Vec::new(),
            acked: 0,
        }
    }

    /// What the receiver is to have in the end.
    fn meant(&self) -> Vec<u8> {
        let mut meant = Vec::new();
        let mut done = 0;
        for Change { start, length, text } in &self.changes {
            meant.extend_from_slice(&self.sent[done..*start]);
            meant.extend_from_slice(text);
            done = start + length;
        }
        meant.extend_from_slice(&self.sent[done..]);
        meant
    }

    /// The gateway learns what a segment completes, as a reader of lines would tell it.
    fn learn(&mut self, segment: &Segment<'_>, from: usize, to: usize) {
        if to <= self.seen {
            return;
        }
        let kernel = &mut self.kernel;
        let mut adjust = |adjustment: &Adjustment| {
            *kernel = *adjustment;
            Ok(())
        };
        while let Some(Change { start, length, text }) = self.changes.get(self.made)
            && start + length <= to
        {
            let before = self.sent[start - 1];
            let replaced = Edit { start: Seq::new(FIRST) + *start, length: *length, text: text.clone(), before };
            self.rewriter.replace(segment, replaced, &mut adjust).expect("nothing prevents it");
            self.made += 1;
        }
        if let Some(Change { start, .. }) = self.changes.get(self.made)
            && *start < to
        {
            let before = self.sent[start - 1];
            let place = Seq::new(FIRST) + *start;
            self.rewriter.withhold(segment, place, before, &mut adjust).expect("nothing prevents it");
        }
        assert!(from <= self.seen, "the sender leaves nothing out");
        self.seen = to;
    }

    /// The sender sends its bytes from one place to another.
    fn send(&mut self, from: usize, to: usize, is_lost: bool) {
        let bytes = self.sent[from..to].to_vec();
        let segment = segment(from, &bytes);
        self.learn(&segment, from, to);
        let (seq, payload) = match self.rewriter.verdict(&segment) {
            Verdict::Accept => (segment.seq, bytes.clone()),
            Verdict::Replace(Replacement { seq, payload }) => (seq, payload),
            Verdict::Wait | Verdict::Drop => unreachable!("a rewriter lets nothing wait, and drops nothing"),
        };
        assert!(!payload.is_empty(), "a segment without payload would not be answered");
        if is_lost {
            return;
        }
        let at = self.kernel.sequence(seq) - Seq::new(FIRST);
        let at = usize::try_from(at).expect("within the stream");
        for (offset, byte) in payload.into_iter().enumerate() {
            let place = at + offset;
            if self.received.len() <= place {
                self.received.resize(place + 1, None);
            }
            let before = self.received[place].replace(byte);
            assert!(
                before.is_none_or(|before| before == byte),
                "the receiver gets two values of one byte: {place} of {bytes:?} at {from}, {:?}, {:?}",
                self.kernel,
                self.rewriter
            );
        }
    }

    /// How much of what the receiver has is whole.
    fn whole(&self) -> usize {
        self.received.iter().take_while(|byte| byte.is_some()).count()
    }

    /// The receiver says what it has, and the gateway may hear it.
    fn acknowledge(&mut self, is_heard: bool) {
        let ack = Seq::new(FIRST) + self.whole();
        if is_heard {
            self.rewriter.acknowledged(ack);
        }
        let heard = self.kernel.acknowledgement(ack) - Seq::new(FIRST);
        let heard = usize::try_from(heard).unwrap_or(0);
        assert!(heard <= self.seen, "more was acknowledged than was sent");
        self.acked = self.acked.max(heard);
    }
}

fn changes(length: usize) -> impl Strategy<Value = Vec<Change>> {
    let text = proptest::collection::vec(b'a'..=b'z', 1..30);
    proptest::collection::vec((2usize..60, 1usize..25, text), 0..40).prop_map(move |plan| {
        let mut changes = Vec::new();
        let mut at = 0;
        for (gap, span, text) in plan {
            if at + gap + span > length {
                break;
            }
            changes.push(Change { start: at + gap, length: span, text });
            at += gap + span;
        }
        changes
    })
}

/// One thing that happens on the way.
#[derive(Clone, Debug)]
enum Happening {
    /// The sender sends so many new bytes; they may be lost behind the gateway.
    Sends(usize, bool),
    /// The sender sends again from what is acknowledged, so many bytes.
    Repeats(usize, bool),
    /// The receiver acknowledges; the gateway may hear it.
    Acknowledges(bool),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (1usize..40, proptest::bool::weighted(0.2)).prop_map(|(n, lost)| Happening::Sends(n, lost)),
        1 => (1usize..60, any::<bool>()).prop_map(|(n, lost)| Happening::Repeats(n, lost)),
        3 => any::<bool>().prop_map(Happening::Acknowledges),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn receiver_gets_the_intended_bytes_despite_loss_and_repeats(
        (sent, changes) in (200usize..900).prop_flat_map(|length| {
            (proptest::collection::vec(b'A'..=b'Z', length), changes(length))
        }),
        happenings in proptest::collection::vec(happening(), 1..120),
    ) {
        let mut path = Path::new(sent, changes);
        let length = path.sent.len();
        for happening in happenings {
            match happening {
                Happening::Sends(bytes, is_lost) => {
                    let from = path.seen;
                    if from < length {
                        path.send(from, (from + bytes).min(length), is_lost);
                    }
                }
                Happening::Repeats(bytes, is_lost) => {
                    let to = (path.acked + bytes).min(path.seen);
                    if path.acked < to {
                        path.send(path.acked, to, is_lost);
                    }
                }
                Happening::Acknowledges(is_heard) => path.acknowledge(is_heard),
            }
        }
        // In the end everything comes through: the sender goes back, and then on, as after a timeout.
        for _ in 0..50 {
            let mut from = path.acked;
            while from < length {
                let to = if from < path.seen { path.seen.min(from + 50) } else { length.min(from + 7) };
                path.send(from, to, false);
                path.acknowledge(true);
                from = to.max(path.acked);
            }
        }
        prop_assert_eq!(path.acked, length, "the sender hears that all has come");
        let received: Vec<u8> = path.received.iter().map(|byte| byte.unwrap_or(b'?')).collect();
        prop_assert_eq!(String::from_utf8_lossy(&received).into_owned(), String::from_utf8_lossy(&path.meant()).into_owned());
    }
}

#[test]
fn unknown_earlier_replacement_keeps_the_length_in_the_kernel() {
    let sent = b"PORT 10,21,1,10,15,161\r\nNOOP\r\n";
    for (growth, becomes) in [(2, "PORT 10,21,1,10,15,161  \r\nNOOP\r\n"), (-3, "PORT 10,21,1,10,15,\r\nNOOP\r\n")] {
        let begin = Seq::new(FIRST);
        let text = 17 + growth;
        let position = begin + (5 + text.min(17) - 1) as usize;
        let adjustment = Adjustment { position, before: 0, after: growth };
        for cut in [0, 5, 12] {
            let mut rewriter = DirectionRewriter::with_adjustment(adjustment);
            let again = segment(cut, &sent[cut..]);
            let Verdict::Replace(Replacement { seq, payload }) = rewriter.verdict(&again) else { panic!("it goes on") };
            assert_eq!(
                (adjustment.sequence(seq), String::from_utf8_lossy(&payload).as_ref()),
                (begin + cut, &becomes[cut..])
            );
            // Once more it is the same, and what follows is where the kernel has it.
            assert_eq!(rewriter.verdict(&again), Verdict::Replace(Replacement { seq, payload }));
            assert_eq!(rewriter.verdict(&segment(sent.len(), b"QUIT\r\n")), Verdict::Accept);
        }
        // What comes behind it is none of that.
        assert_eq!(
            DirectionRewriter::with_adjustment(adjustment).verdict(&segment(sent.len(), b"QUIT\r\n")),
            Verdict::Accept
        );
    }
}

#[test]
fn bytes_that_the_receiver_has_are_not_replaced() {
    let sent = b"PORT 10,21,1,10,15,161\r\n";
    let again = segment(0, sent);
    let mut rewriter = DirectionRewriter::default();
    // It answers what went on while nobody was here to read it.
    rewriter.acknowledged(Seq::new(FIRST) + sent.len());
    let text = b"203,0,113,1,15,161".to_vec();
    let replaced = Edit { start: Seq::new(FIRST) + 5, length: 17, text, before: b' ' };
    let mut adjust = |_: &Adjustment| panic!("nothing is to be moved");
    assert_eq!(rewriter.replace(&again, replaced, &mut adjust), Err(RewriteError::AlreadyPassed));
    assert_eq!(rewriter.verdict(&again), Verdict::Accept);
}
