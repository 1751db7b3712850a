//! The part of the watchdog inside the daemon: checks whether the threads that read queues make progress.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use super::{Link, Message, TICK};
use crate::core::policy::Queues;
use crate::netfilter::netlink::Verdicts;
use crate::netfilter::queue::stay_near;

/// A flag that a thread sets between two packets.
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

#[derive(Debug)]
pub(in crate::daemon) struct Reader {
    queue: u16,
    verdicts: Arc<Verdicts>,
    progress: Progress,
    /// For how long it has shown none, in ticks: time in which this process did not run does not count.
    ticks: u32,
    /// Of a short-lived thread on the same processors.
    probe: Option<Progress>,
}

impl Reader {
    pub(in crate::daemon) fn new(queue: u16, verdicts: Arc<Verdicts>, progress: Progress) -> Self {
        Self { queue, verdicts, progress, ticks: 0, probe: None }
    }

    /// Called once a tick. Whether the thread has hung for as long as the limit.
    ///
    /// It stays on processors that may have too much to do. So from half of the limit on a tick counts only if a thread that
    /// `start_probe` started meanwhile has run there.
    fn hangs_after_tick(&mut self, limit: Duration, start_probe: impl FnOnce(u16) -> Progress) -> bool {
        if self.progress.take() {
            (self.ticks, self.probe) = (0, None);
            return false;
        }
        if TICK * self.ticks * 2 >= limit {
            if !self.probe.as_ref().is_some_and(Progress::take) {
                self.probe.get_or_insert_with(|| start_probe(self.queue));
                return false;
            }
            self.probe = Some(start_probe(self.queue));
        }
        self.ticks += 1;
        TICK * self.ticks >= limit
    }
}

/// Starts a thread on the processors on which the one is that reads that queue. It shows that it runs, and ends.
fn start_probe(queue: u16, queues: Queues) -> Progress {
    let progress = Progress::default();
    let shown = progress.clone();
    let started = thread::Builder::new().name("probe".to_owned()).spawn(move || {
        stay_near(queue, queues);
        shown.show();
    });
    if started.is_err() {
        // Without a probe, the processors count as free.
        progress.show();
    }
    progress
}

/// Tells the process that the daemon runs, until a thread hangs: then unbinds all queues. Returns why the daemon cannot continue.
///
/// `limit` is in milliseconds; a reload changes it.
pub(in crate::daemon) fn supervise(
    mut readers: Vec<Reader>,
    queues: Queues,
    limit: &AtomicU32,
    link: Option<&Link>,
) -> String {
    loop {
        let limit = Duration::from_millis(limit.load(Ordering::Relaxed).into());
        let hangs = |reader: &mut Reader| reader.hangs_after_tick(limit, |queue| start_probe(queue, queues));
        // All of them are asked: each has a tick more.
        let hanging: Vec<u16> = readers.iter_mut().filter_map(|one| hangs(one).then_some(one.queue)).collect();
        if let [queue, ..] = hanging[..] {
            // What waits is dropped, and sent again by its sender. From now on the rules decide, as while no daemon runs.
            for reader in &readers {
                let _ = reader.verdicts.unbind();
            }
            if let Some(link) = link {
                // It is stopped if this fails. Nothing waits for it.
                let _ = link.tell(Message::Hangs { queue, limit });
            }
            return format!("no progress for {limit:?}; unbound queue {queue} and all others");
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

    /// A probe that has run, as on a host that has processors to spare.
    fn runs(_: u16) -> Progress {
        let progress = Progress::default();
        progress.show();
        progress
    }

    /// After how many ticks it hangs, of so many.
    fn hangs_after(reader: &mut Reader, ticks: u32, probe: fn(u16) -> Progress) -> Option<u32> {
        (1..=ticks).find(|_| reader.hangs_after_tick(TICK * 4, probe))
    }

    #[test]
    fn thread_hangs_only_after_the_whole_limit_without_progress() {
        let (mut reader, progress) = reader();
        for _ in 0..3 {
            assert_eq!(hangs_after(&mut reader, 3, runs), None);
            progress.show();
            assert_eq!(hangs_after(&mut reader, 1, runs), None);
        }
        // A tick more than the limit: it is one until the first probe has run.
        assert_eq!(hangs_after(&mut reader, 10, runs), Some(5));
    }

    #[test]
    fn thread_whose_processors_run_nothing_does_not_hang() {
        let (mut reader, _progress) = reader();
        assert_eq!(hangs_after(&mut reader, 100, |_| Progress::default()), None);
    }
}
