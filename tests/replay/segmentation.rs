//! However the network cuts, repeats, reorders or loses the segments of a dialogue, the decisions are the same.

use std::fs::File;

use crate::support::{captures, policy, replay_packets, text};
use pinhole::core::net::{Direction, Flags, Flow, Segment, Seq};
use pinhole::core::script::packet;
use pinhole::replay::pcap::file::FileReader;
use pinhole::replay::pcap::link;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::Value;

/// Recorded dialogues of every kind: several servers and clients, all announcing forms, refusals, pipelining, multiline
/// replies.
const DIALOGUES: [&str; 8] = [
    "vsftpd-lftp-ipv4",
    "proftpd-curl-ipv4",
    "pure-ftpd-tnftp-ipv6",
    "pyftpdlib-ftplib-ipv4",
    "banner-pyftpdlib",
    "epsv-all-proftpd",
    "port-refused-vsftpd",
    "pipelined-pure-ftpd",
];

/// Something that happened in a control connection, in the order in which it could not have happened otherwise.
#[derive(Clone, Debug)]
enum Turn {
    /// The three packets of the handshake.
    Opens { flow: Flow, client: Seq, server: Seq },
    /// The bytes of one end before the other end replies.
    Says { direction: Direction, seq: Seq, ack: Seq, bytes: Vec<u8> },
}

/// The control connection that a capture begins with, as turns.
fn dialogue(name: &str) -> (Flow, Vec<Turn>) {
    let path = captures().join(format!("{name}.pcap"));
    let mut reader = FileReader::new(File::open(&path).expect("the capture is there")).expect("a capture");
    let mut client_flow = None;
    let mut turns: Vec<Turn> = Vec::new();
    let mut client_first = Seq::default();
    while let Some(frame) = reader.next_frame().expect("the capture is whole") {
        let Some(segment) = link::network_layer(frame.link, frame.data).ok().and_then(|ip| Segment::parse(ip).ok())
        else {
            continue;
        };
        let is_opening = segment.flags.has(Flags::SYN) && !segment.flags.has(Flags::ACK);
        if client_flow.is_none() && is_opening && segment.flow.destination.port.number() == 21 {
            client_flow = Some(segment.flow);
            client_first = segment.seq;
        }
        let Some(flow) = client_flow else { continue };
        let direction = match segment.flow {
            from_client if from_client == flow => Direction::FromClient,
            from_server if from_server == flow.reversed() => Direction::FromServer,
            _ => continue,
        };
        if segment.flags.has(Flags::SYN) && direction == Direction::FromServer {
            turns.push(Turn::Opens { flow, client: client_first, server: segment.seq });
        }
        if segment.payload.is_empty() {
            continue;
        }
        match turns.last_mut() {
            Some(Turn::Says { direction: speaker, bytes, .. }) if *speaker == direction => {
                bytes.extend_from_slice(segment.payload);
            }
            _ => turns.push(Turn::Says {
                direction,
                seq: segment.seq,
                ack: segment.ack,
                bytes: segment.payload.to_vec(),
            }),
        }
    }
    (client_flow.expect("the capture has a session"), turns)
}

/// What the network does to the segments of one turn.
#[derive(Clone, Debug)]
struct NetworkFaults {
    /// How long each segment is.
    cuts: Vec<usize>,
    /// Segments that come twice, or overlap the preceding one.
    repeats: Vec<(Index, usize)>,
    /// Segments that change places with a near one.
    swaps: Vec<(Index, usize)>,
    /// Segments that are lost at first and retransmitted after the others.
    losses: Vec<Index>,
}

fn faults() -> impl Strategy<Value = NetworkFaults> {
    let cuts = proptest::collection::vec(1usize..40, 1..20);
    let repeats = proptest::collection::vec((any::<Index>(), 0usize..30), 0..5);
    let swaps = proptest::collection::vec((any::<Index>(), 1usize..6), 0..5);
    let losses = proptest::collection::vec(any::<Index>(), 0..3);
    (cuts, repeats, swaps, losses).prop_map(|(cuts, repeats, swaps, losses)| NetworkFaults {
        cuts,
        repeats,
        swaps,
        losses,
    })
}

/// The ranges of `length` bytes in the order in which they arrive.
fn arrivals(length: usize, faults: &NetworkFaults) -> Vec<std::ops::Range<usize>> {
    let mut segments = Vec::new();
    let mut from = 0;
    for cut in faults.cuts.iter().cycle() {
        if from == length {
            break;
        }
        let to = (from + cut).min(length);
        segments.push(from..to);
        from = to;
    }
    for (index, overlap) in &faults.repeats {
        let place = index.index(segments.len());
        let again = segments[place].clone();
        segments.insert(place + 1, again.start.saturating_sub(*overlap)..again.end);
    }
    for (index, distance) in &faults.swaps {
        let one = index.index(segments.len());
        let other = (one + distance).min(segments.len() - 1);
        segments.swap(one, other);
    }
    for index in &faults.losses {
        let lost = segments.remove(index.index(segments.len()));
        segments.push(lost);
    }
    segments
}

/// The dialogue as packets, with these faults.
fn packets(flow: &Flow, turns: &[Turn], faults: &[NetworkFaults]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut faults = faults.iter().cycle();
    for turn in turns {
        match turn {
            Turn::Opens { flow, client, server } => {
                packets.push(packet(flow, *client, Seq::default(), Flags::SYN, b""));
                packets.push(packet(&flow.reversed(), *server, *client + 1, Flags::SYN.and(Flags::ACK), b""));
                packets.push(packet(flow, *client + 1, *server + 1, Flags::ACK, b""));
            }
            Turn::Says { direction, seq, ack, bytes } => {
                let flow = if *direction == Direction::FromClient { *flow } else { flow.reversed() };
                let faults = faults.next().expect("it cycles");
                for range in arrivals(bytes.len(), faults) {
                    packets.push(packet(&flow, *seq + range.start, *ack, Flags::ACK, &bytes[range]));
                }
                // The other end's ACKs in the meantime add nothing.
                packets.push(packet(&flow.reversed(), *ack, *seq + bytes.len(), Flags::ACK, b""));
            }
        }
    }
    packets
}

/// Everything that was decided, without when.
fn decisions(flow: &Flow, turns: &[Turn], faults: &[NetworkFaults]) -> Vec<String> {
    let policy = policy("defaults: { modes: [PORT, EPRT, LPRT, PASV, EPSV, LPSV], pinholes_per_session: 100 }");
    let (report, counters) = replay_packets(packets(flow, turns, faults), policy);
    assert_eq!(counters.events.anomalies, 0, "repeating and reordering is no anomaly");
    let decided = report.into_iter().filter(|event| text(event, "event") != "summary").map(|mut event| {
        event["time"] = Value::Null;
        event.to_string()
    });
    decided.collect()
}

const FAIR: NetworkFaults =
    NetworkFaults { cuts: Vec::new(), repeats: Vec::new(), swaps: Vec::new(), losses: Vec::new() };

fn fair() -> NetworkFaults {
    NetworkFaults { cuts: vec![usize::MAX / 2], ..FAIR }
}

#[test]
fn unsplit_dialogue_gives_the_recorded_decisions() {
    for name in DIALOGUES {
        let (flow, turns) = dialogue(name);
        let plain = decisions(&flow, &turns, &[fair()]);
        assert!(plain.iter().any(|event| event.contains("\"event\":\"opened\"")), "{name}: {plain:?}");
    }
}

#[test]
fn one_byte_segments_change_no_decision() {
    for name in DIALOGUES {
        let (flow, turns) = dialogue(name);
        let bytewise = NetworkFaults { cuts: vec![1], ..FAIR };
        assert_eq!(decisions(&flow, &turns, &[bytewise]), decisions(&flow, &turns, &[fair()]), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn loss_reordering_and_splitting_change_no_decision(
        name in proptest::sample::select(DIALOGUES.as_slice()),
        faults in proptest::collection::vec(faults(), 1..8),
    ) {
        let (flow, turns) = dialogue(name);
        prop_assert_eq!(decisions(&flow, &turns, &faults), decisions(&flow, &turns, &[fair()]));
    }
}
