//! Reads packets from the queues, asks the engine for each verdict, and sends it to the kernel.
//!
//! Each queue has its own thread, and the packets of one connection may come through any queue.
//!
//! Knows nothing of FTP, nor why a packet has to wait.

use std::io;

use super::Shared;
use super::engine::Decision;
use super::verdict_order::Turn;
use super::watchdog::{IDLE, ThreadHeartbeat};
use crate::core::net::{Flow, Segment, replace_payload};
use crate::core::policy::Queues;
use crate::core::seqadj::{Replacement, Verdict};
use crate::netfilter::queue::{Queue, QueuedPacket, bind_to_processors};

/// After how many errors in a row a thread gives up its queue.
const MAX_FAILURES: u32 = 100;

/// Reads the packets of one queue until too many errors have occurred in a row. Returns the reason.
pub(super) fn read_queue(mut queue: Queue, queues: Queues, shared: &Shared, progress: &ThreadHeartbeat) -> String {
    bind_to_processors(queue.number(), queues);
    if let Err(error) = queue.set_receive_timeout(IDLE) {
        return error.to_string();
    }
    let mut failures = 0;
    loop {
        progress.report();
        let result = match queue.next_packet() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            result => result.and_then(|packet| handle(shared, packet)),
        };
        let Err(error) = result else {
            failures = 0;
            continue;
        };
        shared.lock().report_queue_error(&error);
        // ENOENT does not mean that the queue has failed: when another program removes a chain with a hook, the kernel
        // drops all queued packets of the network namespace.
        if error.kind() == io::ErrorKind::NotFound {
            continue;
        }
        failures += 1;
        if failures == MAX_FAILURES {
            return error.to_string();
        }
    }
}

/// Gives the verdict on a packet, or keeps the packet; then gives the verdicts on the kept packets that waited for it.
fn handle(shared: &Shared, packet: QueuedPacket) -> io::Result<()> {
    let segment = Segment::parse_verified(packet.packet());
    let place = segment.map(|segment| (segment.flow, segment.seq)).ok();
    let mut engine = shared.lock();
    let decision = engine.packet(&packet, &segment);
    let (packet, decision) = match place {
        Some(place) if decision.verdict == Verdict::Wait => {
            let Some(refused) = engine.keep(packet, place) else { return Ok(()) };
            refused
        }
        _ => (packet, decision),
    };
    let has_pending = engine.has_pending();
    let turn = place.map(|(flow, _)| shared.verdicts.next_turn(&flow));
    drop(engine);
    // The announced pinhole is open now. The lock is released, so that other threads continue while the kernel takes the
    // verdict.
    give_verdict(packet, decision, turn)?;
    if has_pending { release(shared, place.map(|(flow, _)| flow)) } else { Ok(()) }
}

/// Gives the verdicts on packets that were kept for too long, and on kept packets of this flow that do not have to wait
/// any longer.
fn release(shared: &Shared, flow: Option<Flow>) -> io::Result<()> {
    loop {
        let mut engine = shared.lock();
        let Some((packet, decision)) = engine.next_released(flow) else { return Ok(()) };
        let turn = Segment::parse(packet.packet()).ok().map(|segment| shared.verdicts.next_turn(&segment.flow));
        drop(engine);
        give_verdict(packet, decision, turn)?;
    }
}

/// Releases packets that were kept for too long while no other packet comes. A sender on this host does not retransmit a
/// packet that is kept here.
pub(super) fn release_expired(shared: &Shared) {
    while let Err(error) = release(shared, None) {
        shared.lock().report_queue_error(&error);
    }
}

/// Gives the verdict on a packet when its turn has come.
fn give_verdict(packet: QueuedPacket, decision: Decision, turn: Option<Turn<'_>>) -> io::Result<()> {
    let turn = turn.inspect(Turn::wait);
    let Decision { verdict, mark, is_repeated } = decision;
    let given = match verdict {
        Verdict::Accept if is_repeated => packet.repeat(),
        Verdict::Accept | Verdict::Wait => packet.accept(mark),
        Verdict::Drop => packet.drop_packet(),
        Verdict::Replace(Replacement { seq, payload }) => match replace_payload(packet.packet(), seq, &payload) {
            Some(other) => packet.accept_as(&other, mark),
            None => packet.drop_packet(),
        },
    };
    drop(turn);
    given
}
