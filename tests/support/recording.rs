//! Recordings of both sides of a gateway: their streams, and what tshark finds in them.
//!
//! Streams are read with other code than Pinhole's, so that a bug of Pinhole cannot hide behind the same bug here.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use lab::packet_recorder::Packet;
use pinhole::replay::pcap::file::FileReader;
use pinhole::replay::pcap::link;

/// The faults that tshark looks for.
const FIELDS: [&str; 10] = [
    "tcp.analysis.retransmission",
    "tcp.analysis.out_of_order",
    "tcp.analysis.lost_segment",
    "tcp.analysis.ack_lost_segment",
    "tcp.analysis.duplicate_ack",
    "tcp.analysis.window_full",
    "tcp.checksum_bad.expert",
    "ip.checksum_bad.expert",
    "_ws.malformed",
    "tcp.analysis.keep_alive",
];

/// How often tshark finds each of them in a capture.
pub(crate) fn analysis(path: &Path) -> BTreeMap<&'static str, usize> {
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(path).args(["-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]);
    tshark.args(["-T", "fields", "-E", "separator=;", "-E", "occurrence=f"]);
    tshark.args(FIELDS.iter().flat_map(|field| ["-e", field]));
    let output = tshark.output().expect("tshark is installed: see tests/setup");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut found: BTreeMap<_, _> = FIELDS.map(|field| (field, 0)).into();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        for (field, value) in FIELDS.iter().zip(line.split(';')) {
            *found.get_mut(field).expect("all are there") += usize::from(!value.is_empty());
        }
    }
    found
}

/// Allowed for a split line: withheld bytes become retransmissions of the byte before them, each of which is
/// acknowledged at once.
pub(crate) const IN_PIECES: &[&str] = &["tcp.analysis.keep_alive", "tcp.analysis.duplicate_ack"];

/// Fails if tshark finds more faults in `after` than in `before`, except the allowed ones.
#[track_caller]
pub(crate) fn assert_nothing_new(before: &Path, after: &Path, may_be: &[&str]) {
    let (was, mut is) = (analysis(before), analysis(after));
    for (field, times) in &mut is {
        if may_be.contains(field) {
            *times = was[field].min(*times);
        }
    }
    assert_eq!(is, was, "{} and {}", after.display(), before.display());
}

/// The IP packets of a capture file.
pub(crate) fn packets(path: &Path) -> Vec<Packet> {
    let file = std::fs::File::open(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    let mut reader = FileReader::new(file).expect("it is a capture");
    let mut packets = Vec::new();
    while let Some(frame) = reader.next_frame().expect("it is whole") {
        let Ok(packet) = link::network_layer(frame.link, frame.data) else { continue };
        packets.push(Packet { time: frame.time, bytes: packet.to_vec() });
    }
    packets
}

/// Who said something to whom.
pub(crate) type Flow = (SocketAddr, SocketAddr);

/// The text in each direction of each connection with a recorded SYN. Of repeated bytes the first copy counts.
///
/// A question mark replaces each missing byte.
pub(crate) fn streams(packets: &[Packet]) -> BTreeMap<Flow, Vec<String>> {
    let mut open: BTreeMap<Flow, (u32, Vec<Option<u8>>)> = BTreeMap::new();
    let mut said: BTreeMap<Flow, Vec<String>> = BTreeMap::new();
    let text = |bytes: Vec<Option<u8>>| bytes.into_iter().map(|byte| char::from(byte.unwrap_or(b'?'))).collect();
    for (flow, seq, is_first, payload) in packets.iter().filter_map(read) {
        if is_first && open.get(&flow).is_none_or(|(first, _)| *first != seq) {
            let before = open.insert(flow, (seq, Vec::new()));
            said.entry(flow).or_default().extend(before.map(|(_, bytes)| text(bytes)));
        }
        let Some((first, bytes)) = open.get_mut(&flow) else { continue };
        let at = seq.wrapping_sub(*first).wrapping_sub(u32::from(!is_first)) as usize;
        for (place, byte) in (at..1 << 24).zip(payload) {
            if bytes.len() <= place {
                bytes.resize(place + 1, None);
            }
            bytes[place].get_or_insert(byte);
        }
    }
    for (flow, (_, bytes)) in open {
        said.entry(flow).or_default().push(text(bytes));
    }
    said
}

fn read(packet: &Packet) -> Option<(Flow, u32, bool, Vec<u8>)> {
    let sliced = SlicedPacket::from_ip(&packet.bytes).ok()?;
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { return None };
    let (from, to): (IpAddr, IpAddr) = match sliced.net? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    };
    let flow = (SocketAddr::new(from, tcp.source_port()), SocketAddr::new(to, tcp.destination_port()));
    Some((flow, tcp.sequence_number(), tcp.syn(), tcp.payload().to_vec()))
}
