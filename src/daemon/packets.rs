//! Reads packets from the queues, asks the engine about each, and gives the verdict.
//!
//! Each queue has a thread of its own, and the packets of one connection may come through all queues.
//!
//! Knows nothing of FTP, nor why a packet has to wait.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::engine::Decision;
use super::watchdog::{IDLE, Progress};
use super::{Engine, Shared};
use crate::core::net::{Flow, Segment, Seq, replaced};
use crate::core::policy::Queues;
use crate::core::seqadj::{Replacement, Verdict};
use crate::core::tracker::ClientKey;
use crate::netfilter::queue::{Queue, Waiting, stay_near};

/// How many packets may wait for another one in front of them. More than a few are an attack, or a very broken path.
const MOST_HELD: usize = 128;

/// How many of those may be of the sessions of one client.
const MOST_HELD_OF_CLIENT: usize = MOST_HELD / 16;

/// How long one waits. What is missing in front of it is sent again long before; or its sender is gone, and whoever keeps
/// its place keeps it from others.
const LONGEST_HELD: Duration = Duration::from_secs(3);

/// How often in a row the queue may fail: a packet lost here and there is no reason to end.
const MOST_FAILURES: u32 = 100;

/// A packet that waits for what is missing in front of it.
struct HeldPacket {
    waiting: Waiting,
    flow: Flow,
    client: ClientKey,
    seq: Seq,
    since: Instant,
}

/// Those that wait, the one that has waited longest first.
///
/// Whoever decides that a packet has to wait puts it here before another thread can decide about the next one: else what
/// it waits for could come and go in between.
#[derive(Default)]
pub(super) struct Held(Mutex<Vec<HeldPacket>>);

impl Held {
    fn lock(&self) -> MutexGuard<'_, Vec<HeldPacket>> {
        let Self(packets) = self;
        packets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets those go on that have waited too long. Somebody has to ask: a sender on this host does not send again what still
/// waits here, and then no packet comes that would show them.
pub(super) fn let_overdue_go(shared: &Shared, held: &Held) {
    while let Some((waiting, decision)) = next_to_go(shared, None, held) {
        if let Err(error) = finish_and_show(shared, waiting, decision, held) {
            shared.lock().queue_trouble(&error);
        }
    }
}

/// Takes packets of one of the queues until that fails for good; says why.
pub(super) fn take(mut queue: Queue, queues: Queues, shared: &Shared, held: &Held, progress: &Progress) -> String {
    stay_near(queue.number(), queues);
    if let Err(error) = queue.wait_at_most(IDLE) {
        return error.to_string();
    }
    let mut failures = 0;
    loop {
        progress.show();
        let result = match queue.next_packet() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            result => result.and_then(|waiting| go_on(shared, waiting, held)),
        };
        let Err(error) = result else {
            failures = 0;
            continue;
        };
        shared.lock().queue_trouble(&error);
        // That a packet is not there any more says nothing of the queue: the kernel drops all that wait, of this network
        // namespace, when somebody takes away a chain that packets pass.
        if error.kind() == io::ErrorKind::NotFound {
            continue;
        }
        failures += 1;
        if failures == MOST_FAILURES {
            return error.to_string();
        }
    }
}

/// Lets a packet go on, unless it has to wait; and those that waited for it.
fn go_on(shared: &Shared, waiting: Waiting, held: &Held) -> io::Result<()> {
    let mut engine = shared.lock();
    let decision = engine.packet(&waiting);
    let mut packets = held.lock();
    if decision.verdict == Verdict::Later {
        let Some((waiting, decision)) = hold(&mut engine, waiting, &mut packets) else { return Ok(()) };
        drop((packets, engine));
        return finish_and_show(shared, waiting, decision, held);
    }
    let nobody_waits = packets.is_empty();
    drop((packets, engine));
    // The packet goes on only now, when what it announced stands in the kernel; and meanwhile others are read.
    if nobody_waits { finish(waiting, decision) } else { finish_and_show(shared, waiting, decision, held) }
}

/// Keeps a packet until what is missing in front of it has come. If its sender has sent it again by then, that will
/// hardly come, or the queue has let it pass unread: then it is given back, with what is to become of it.
fn hold(engine: &mut Engine, waiting: Waiting, packets: &mut Vec<HeldPacket>) -> Option<(Waiting, Decision)> {
    let Ok(Segment { flow, seq, .. }) = Segment::parse(waiting.packet()) else {
        return Some((waiting, Decision { verdict: Verdict::Accept, read: None }));
    };
    let is_sent_again = packets.iter().any(|one| one.flow == flow && one.seq == seq);
    let client = engine.client_of(&flow);
    if !is_sent_again && has_room_for(client, packets.iter().map(|one| one.client)) {
        packets.push(HeldPacket { waiting, flow, client, seq, since: Instant::now() });
        return None;
    }
    let decision = engine.packet_at_last(&waiting);
    Some((waiting, decision))
}

/// Whether one more packet of that client may wait beside those of these clients.
fn has_room_for(client: ClientKey, waiting: impl ExactSizeIterator<Item = ClientKey>) -> bool {
    waiting.len() < MOST_HELD && waiting.filter(|one| *one == client).count() < MOST_HELD_OF_CLIENT
}

/// Lets a packet go on, and then those that may have waited for it, and those that have waited too long.
fn finish_and_show(shared: &Shared, waiting: Waiting, decision: Decision, held: &Held) -> io::Result<()> {
    let flow = Segment::parse(waiting.packet()).map(|segment| segment.flow);
    finish(waiting, decision)?;
    while let Some((waiting, decision)) = next_to_go(shared, flow.ok(), held) {
        finish(waiting, decision)?;
    }
    Ok(())
}

/// One of those that wait and need not any more, with what is to become of it.
fn next_to_go(shared: &Shared, flow: Option<Flow>, held: &Held) -> Option<(Waiting, Decision)> {
    let mut engine = shared.lock();
    let mut packets = held.lock();
    if packets.first().is_some_and(|oldest| oldest.since.elapsed() > LONGEST_HELD) {
        let HeldPacket { waiting, .. } = packets.remove(0);
        let decision = engine.packet_at_last(&waiting);
        return Some((waiting, decision));
    }
    for index in 0..packets.len() {
        if Some(packets[index].flow) != flow {
            continue;
        }
        let decision = engine.packet(&packets[index].waiting);
        if decision.verdict != Verdict::Later {
            return Some((packets.remove(index).waiting, decision));
        }
    }
    None
}

fn finish(waiting: Waiting, Decision { verdict, read }: Decision) -> io::Result<()> {
    // Routing may follow the mark of a packet that this host sends: one that somebody has marked stays as it is, and
    // what it tells is lost.
    let mark = read.filter(|_| !waiting.is_outgoing() || waiting.mark() == 0).map(|read| read.mark(waiting.mark()));
    match verdict {
        Verdict::Accept | Verdict::Later => waiting.accept(mark),
        Verdict::Drop => waiting.discard(),
        Verdict::Replace(Replacement { seq, payload }) => match replaced(waiting.packet(), seq, &payload) {
            Some(packet) => waiting.accept_as(&packet, mark),
            None => waiting.discard(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn client(number: u8) -> ClientKey {
        ClientKey::of(Ipv4Addr::new(10, 0, 0, number).into())
    }

    #[test]
    fn held_packets_of_one_client_leave_room_for_others() {
        let mut waiting = Vec::new();
        while has_room_for(client(1), waiting.iter().copied()) {
            waiting.push(client(1));
        }
        assert_eq!(waiting.len(), MOST_HELD_OF_CLIENT);
        assert!(has_room_for(client(2), waiting.iter().copied()));
    }

    #[test]
    fn held_packets_of_all_clients_are_bounded() {
        let mut waiting = Vec::new();
        for number in 0..=255 {
            while has_room_for(client(number), waiting.iter().copied()) {
                waiting.push(client(number));
            }
        }
        assert_eq!(waiting.len(), MOST_HELD);
    }
}
