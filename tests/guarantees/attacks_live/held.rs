//! Packets that are held, and connections that are not inspected, when the policy denies a command.

use lab::{Family, Shape};

use super::denied::{POLICY, Recorder};
use crate::daemon::TIMEOUT;
use crate::filtered_topology::{FilteredTopology, policy};
use crate::raw_tcp::{RawSegment, RawTcp};

/// The share of held packets that one client may use.
const SHARE: usize = 8;

fn connect(fixture: &FilteredTopology, family: Family) -> RawTcp {
    let host = &fixture.topology.client;
    let mut peer = RawTcp::connect(&host.namespace, host.addresses.of(family), fixture.target(family, 21), false);
    peer.read_reply("220");
    peer
}

/// How many packets wait for a verdict.
fn waiting(fixture: &FilteredTopology) -> usize {
    let queues = fixture.firewall().read("/proc/thread-self/net/netfilter/nfnetlink_queue").expect("root may read");
    queues.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<usize>().ok()).sum()
}

#[test]
fn client_with_many_held_packets_leaves_room_for_another() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let server = &fixture.topology.server.namespace;
    let [_first, second] = Family::ALL.map(|family| Recorder::start(server, fixture.target(family, 21)));
    let _daemon = fixture.daemon(POLICY);
    let mut other = connect(&fixture, Family::V6);
    let attackers: Vec<_> = (0..4).map(|_| connect(&fixture, Family::V4)).collect();
    for peer in &attackers {
        for ahead in 1..=4 * SHARE {
            peer.send_segment(&RawSegment { seq: peer.next() + 6 * ahead, ..peer.segment(b"NOOP\r\n") });
        }
    }
    lab::wait_until("packets to be held", TIMEOUT, || Ok(waiting(&fixture) >= SHARE)).expect("they are ahead");
    other.send_segment(&RawSegment { seq: other.next() + 2, ..other.segment(b"OP\r\n") });
    other.send_segment(&other.segment(b"NO"));
    other.skip(6);
    assert!(second.has_received("NOOP", other.local()), "the end of the other client's line was not held");
}

#[test]
fn non_ftp_is_read_after_a_reload_that_denies() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let recorder = Recorder::start(&fixture.topology.server.namespace, fixture.target(Family::V4, 21));
    let daemon = fixture.daemon("");
    let mut peer = connect(&fixture, Family::V4);
    for line in ["HELLO", "HELP"] {
        peer.send_until_acknowledged(format!("{line}\r\n").as_bytes());
        assert!(recorder.has_received(line, peer.local()));
    }
    daemon.write_policy(&policy(Shape::Gateway, POLICY));
    let reloaded = daemon.program(&["reload"]).expect("it runs");
    assert!(reloaded.status.success(), "{}", reloaded.output());
    peer.send_segment(&peer.segment(b"FEAT\r\n"));
    peer.skip(6);
    assert!(!recorder.has_received("FEAT", peer.local()), "FEAT arrives in spite of the policy");
    peer.send_until_acknowledged(b"NOOP\r\n");
    assert!(recorder.has_received("NOOP", peer.local()));
}
