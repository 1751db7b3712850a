//! The part of the watchdog inside the daemon: checks whether the threads that read queues make progress.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use super::{Link, Message, TICK};
use crate::core::policy::Queues;
use crate::netfilter::netlink::Verdicts;
use crate::netfilter::queue::bind_to_processors;

/// A flag that a thread that reads a queue sets between two packets.
#[derive(Clone, Debug, Default)]
pub(in crate::daemon) struct ThreadHeartbeat(Arc<AtomicBool>);

impl ThreadHeartbeat {
    pub(in crate::daemon) fn report(&self) {
        let Self(reported) = self;
        // Written once per tick, not once per packet, because another processor shares the cache line.
        if !reported.load(Ordering::Relaxed) {
            reported.store(true, Ordering::Relaxed);
        }
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// A thread that reads a queue.
#[derive(Debug)]
pub(in crate::daemon) struct QueueThread {
    queue: u16,
    verdicts: Arc<Verdicts>,
    progress: ThreadHeartbeat,
    /// The ticks since the last progress. Time in which this process did not run does not count.
    ticks: u32,
    /// The progress of a short-lived thread on the same processors.
    probe: Option<ThreadHeartbeat>,
}

impl QueueThread {
    pub(in crate::daemon) fn new(queue: u16, verdicts: Arc<Verdicts>, progress: ThreadHeartbeat) -> Self {
        Self { queue, verdicts, progress, ticks: 0, probe: None }
    }

    /// Called once per tick. Returns whether the thread has made no progress for as long as the limit.
    ///
    /// The thread is bound to processors that may be overloaded. So after half of the limit, a tick counts only if a thread
    /// that `start_probe` started has run on these processors.
    fn hangs_after_tick(&mut self, limit: Duration, start_probe: impl FnOnce(u16) -> ThreadHeartbeat) -> bool {
        if self.progress.take() {
            (self.ticks, self.probe) = (0, None);
            return false;
        }
        if TICK * self.ticks * 2 >= limit {
            if !self.probe.as_ref().is_some_and(ThreadHeartbeat::take) {
                self.probe.get_or_insert_with(|| start_probe(self.queue));
                return false;
            }
            self.probe = Some(start_probe(self.queue));
        }
        self.ticks += 1;
        TICK * self.ticks >= limit
    }
}

/// Starts a thread on the processors of the thread that reads this queue. It reports progress, and ends.
fn start_probe(queue: u16, queues: Queues) -> ThreadHeartbeat {
    let progress = ThreadHeartbeat::default();
    let of_probe = progress.clone();
    let started = thread::Builder::new().name("probe".to_owned()).spawn(move || {
        bind_to_processors(queue, queues);
        of_probe.report();
    });
    if started.is_err() {
        // Without a probe, the processors count as not overloaded.
        progress.report();
    }
    progress
}

/// Reports to the watchdog process that the daemon runs. If a thread hangs, unbinds all queues and returns the reason why the
/// daemon cannot continue.
///
/// `limit` is in milliseconds; a reload changes it.
pub(in crate::daemon) fn supervise(
    mut readers: Vec<QueueThread>,
    queues: Queues,
    limit: &AtomicU32,
    link: Option<&Link>,
) -> String {
    loop {
        let limit = Duration::from_millis(limit.load(Ordering::Relaxed).into());
        let hangs = |reader: &mut QueueThread| reader.hangs_after_tick(limit, |queue| start_probe(queue, queues));
        // Every reader is called, because each of them counts its ticks.
        let hanging: Vec<u16> = readers.iter_mut().filter_map(|reader| hangs(reader).then_some(reader.queue)).collect();
        if let [queue, ..] = hanging[..] {
            // The kernel drops the queued packets, and their senders retransmit them. From now on `when_down` applies, as
            // while no daemon runs.
            for reader in &readers {
                let _ = reader.verdicts.unbind();
            }
            if let Some(link) = link {
                // If this fails, the watchdog process is stopped. The queues are unbound already.
                let _ = link.send(Message::Hangs { queue, limit });
            }
            return format!("no progress for {limit:?}; unbound queue {queue} and all others");
        }
        if let Some(Err(error)) = link.map(|link| link.send(Message::Runs { limit })) {
            return format!("the watchdog process: {error}");
        }
        thread::sleep(TICK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

    fn reader() -> (QueueThread, ThreadHeartbeat) {
        let (socket, _) =
            net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("two sockets");
        let progress = ThreadHeartbeat::default();
        (QueueThread::new(7, Arc::new(Verdicts::new(socket, 7)), progress.clone()), progress)
    }

    /// A probe that has run, as on a host that is not overloaded.
    fn runs(_: u16) -> ThreadHeartbeat {
        let progress = ThreadHeartbeat::default();
        progress.report();
        progress
    }

    /// The tick after which the thread hangs, or none if it does not hang within `ticks`.
    fn hangs_after(reader: &mut QueueThread, ticks: u32, probe: fn(u16) -> ThreadHeartbeat) -> Option<u32> {
        (1..=ticks).find(|_| reader.hangs_after_tick(TICK * 4, probe))
    }

    #[test]
    fn thread_hangs_only_after_the_whole_limit_without_progress() {
        let (mut reader, progress) = reader();
        for _ in 0..3 {
            assert_eq!(hangs_after(&mut reader, 3, runs), None);
            progress.report();
            assert_eq!(hangs_after(&mut reader, 1, runs), None);
        }
        // One tick more than the limit, until the first probe has run.
        assert_eq!(hangs_after(&mut reader, 10, runs), Some(5));
    }

    #[test]
    fn thread_on_overloaded_processors_does_not_hang() {
        let (mut reader, _progress) = reader();
        assert_eq!(hangs_after(&mut reader, 100, |_| ThreadHeartbeat::default()), None);
    }
}
