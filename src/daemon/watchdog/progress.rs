//! The part inside the daemon: whether the threads that read queues make progress.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use super::{Link, Message, TICK};
use crate::netlink::Verdicts;

/// What a thread sets whenever it is not in the middle of something.
#[derive(Clone, Debug, Default)]
pub(in crate::daemon) struct Progress(Arc<AtomicBool>);

impl Progress {
    pub(in crate::daemon) fn show(&self) {
        let Self(is_shown) = self;
        // Written to once a tick, not once a packet: the memory is shared with another processor.
        if !is_shown.load(Ordering::Relaxed) {
            is_shown.store(true, Ordering::Relaxed);
        }
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// A thread that reads a queue.
#[derive(Debug)]
pub(in crate::daemon) struct Reader {
    queue: u16,
    verdicts: Arc<Verdicts>,
    progress: Progress,
    /// For how long it has shown none, in ticks: time in which this process did not run does not count.
    ticks: u32,
}

impl Reader {
    pub(in crate::daemon) fn new(queue: u16, verdicts: Arc<Verdicts>, progress: Progress) -> Self {
        Self { queue, verdicts, progress, ticks: 0 }
    }

    /// A tick has gone by. Whether the thread has hung for that long.
    fn hangs_after_tick(&mut self, limit: Duration) -> bool {
        self.ticks = if self.progress.take() { 0 } else { self.ticks + 1 };
        TICK * self.ticks >= limit
    }
}

/// Tells the process that the daemon runs, until a thread hangs: then unbinds all queues. Says why the daemon cannot go on.
///
/// `limit` is in milliseconds; a reload changes it.
pub(in crate::daemon) fn supervise(mut readers: Vec<Reader>, limit: &AtomicU32, link: Option<&Link>) -> String {
    loop {
        let limit = Duration::from_millis(limit.load(Ordering::Relaxed).into());
        let hanging = readers.iter_mut().filter_map(|reader| reader.hangs_after_tick(limit).then_some(reader.queue));
        // All of them: each has a tick more.
        let hanging: Vec<u16> = hanging.collect();
        if let [queue, ..] = hanging[..] {
            // What waits is dropped, and sent again by its sender. From now on the rules decide, as while no daemon runs.
            for reader in &readers {
                let _ = reader.verdicts.unbind();
            }
            if let Some(link) = link {
                // It is stopped if this fails. Nothing waits for it.
                let _ = link.tell(Message::Hangs { queue, limit });
            }
            return format!("no progress for {limit:?}; queue {queue} and all others were given up");
        }
        if let Some(Err(error)) = link.map(|link| link.tell(Message::Runs { limit })) {
            return format!("the watchdog process: {error}");
        }
        thread::sleep(TICK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

    fn reader() -> (Reader, Progress) {
        let (socket, _) =
            net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("two sockets");
        let progress = Progress::default();
        (Reader::new(7, Arc::new(Verdicts::new(socket, 7)), progress.clone()), progress)
    }

    #[test]
    fn thread_hangs_only_after_the_whole_limit_without_progress() {
        let (mut reader, progress) = reader();
        let limit = TICK * 4;
        for _ in 0..3 {
            for _ in 0..3 {
                assert!(!reader.hangs_after_tick(limit));
            }
            progress.show();
            assert!(!reader.hangs_after_tick(limit));
        }
        for _ in 0..3 {
            assert!(!reader.hangs_after_tick(limit));
        }
        assert!(reader.hangs_after_tick(limit));
    }
}
