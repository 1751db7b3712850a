//! Packets from a queue: each is shown to the engine, and goes on as that says.
//!
//! Knows nothing of FTP, nor why a packet has to wait.

use std::io;
use std::time::{Duration, Instant};

use super::Shared;
use crate::capture::queue::{Queue, Waiting};
use crate::packet::{Flow, Segment, Seq, replaced};
use crate::rewrite::{Replacement, Verdict};

/// How many packets may wait for another one in front of them. More than a few are an attack, or a very broken path.
const MOST_HELD: usize = 32;

/// How long one waits. What is missing in front of it is sent again long before; or its sender is gone, and whoever keeps
/// its place keeps it from others.
const LONGEST_HELD: Duration = Duration::from_secs(3);

/// How often in a row the queue may fail: a packet lost here and there is no reason to end.
const MOST_FAILURES: u32 = 100;

/// A packet that waits for what is missing in front of it.
struct Held {
    waiting: Waiting,
    flow: Flow,
    seq: Seq,
    since: Instant,
}

/// Takes packets until that fails for good; says why.
pub(super) fn take(mut queue: Queue, shared: &Shared) -> String {
    let mut failures = 0;
    let mut held = Vec::new();
    loop {
        let result = queue.next_packet().and_then(|waiting| go_on(&mut queue, shared, waiting, &mut held));
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
fn go_on(queue: &mut Queue, shared: &Shared, waiting: Waiting, held: &mut Vec<Held>) -> io::Result<()> {
    let verdict = shared.lock().packet(waiting.packet());
    // The packet goes on only now, when what it announced stands in the kernel.
    if verdict == Verdict::Later {
        return hold(queue, shared, waiting, held);
    }
    if held.is_empty() {
        return finish(queue, waiting, verdict);
    }
    let flow = Segment::parse(waiting.packet()).map(|segment| segment.flow);
    finish(queue, waiting, verdict)?;
    let_go_of_old(queue, shared, held)?;
    flow.map_or(Ok(()), |flow| show_again(queue, shared, flow, held))
}

/// Lets those go that have waited too long. The first is the oldest.
fn let_go_of_old(queue: &mut Queue, shared: &Shared, held: &mut Vec<Held>) -> io::Result<()> {
    while held.first().is_some_and(|oldest| oldest.since.elapsed() > LONGEST_HELD) {
        let Held { waiting, .. } = held.remove(0);
        let verdict = shared.lock().packet_at_last(waiting.packet());
        finish(queue, waiting, verdict)?;
    }
    Ok(())
}

/// Keeps a packet until what is missing in front of it has come. If its sender has sent it again by then, that will
/// hardly come, or the queue has let it pass unread.
fn hold(queue: &mut Queue, shared: &Shared, waiting: Waiting, held: &mut Vec<Held>) -> io::Result<()> {
    let Ok(Segment { flow, seq, .. }) = Segment::parse(waiting.packet()) else {
        return queue.accept(waiting);
    };
    let is_sent_again = held.iter().any(|one| one.flow == flow && one.seq == seq);
    if !is_sent_again && held.len() < MOST_HELD {
        held.push(Held { waiting, flow, seq, since: Instant::now() });
        return Ok(());
    }
    let verdict = shared.lock().packet_at_last(waiting.packet());
    finish(queue, waiting, verdict)?;
    show_again(queue, shared, flow, held)
}

/// Shows those again that wait in that flow: what was missing may have come.
fn show_again(queue: &mut Queue, shared: &Shared, flow: Flow, held: &mut Vec<Held>) -> io::Result<()> {
    let mut index = 0;
    while let Some(one) = held.get(index) {
        if one.flow != flow {
            index += 1;
            continue;
        }
        match shared.lock().packet(one.waiting.packet()) {
            Verdict::Later => index += 1,
            verdict => {
                let one = held.remove(index);
                finish(queue, one.waiting, verdict)?;
                // It may be what another one waited for.
                index = 0;
            }
        }
    }
    Ok(())
}

fn finish(queue: &mut Queue, waiting: Waiting, verdict: Verdict) -> io::Result<()> {
    let Verdict::Replace(Replacement { seq, payload }) = verdict else { return queue.accept(waiting) };
    match replaced(waiting.packet(), seq, &payload) {
        Some(packet) => queue.accept_as(waiting, &packet),
        None => queue.accept(waiting),
    }
}
