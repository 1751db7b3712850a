//! The service: reads packets from the queues, shows them to the tracker, and keeps pinholes in the kernel.
//!
//! A thread for each queue reads packets. One thread watches the ruleset, another the connections. They share the
//! [`Engine`] behind a lock. The first thread runs a small runtime for signals, the control socket and systemd; no
//! packet waits for it. Before any other thread starts, the daemon enters its [`sandbox`]. A [`watchdog`] bounds how
//! long packets wait for a daemon that hangs.

mod clock;
pub mod control;
mod engine;
mod journal;
mod log_limit;
mod packets;
pub mod sandbox;
pub mod status;
mod threads;
pub mod watchdog;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use control::End;
pub use engine::Engine;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
pub use status::Status;
use tracing::{info, warn};
use watchdog::{Progress, Reader, Watchdog, supervise};

use crate::core::policy::Policy;
use crate::netfilter::backend::SetupError;
use crate::netfilter::netlink::{ConnectionWatch, Error, Heard, TableWatch};
use crate::netfilter::queue::{Queue, QueueError, processors};

/// How long a watcher waits before it looks whether anything is to be done without being told.
const WATCH: Duration = Duration::from_secs(1);

/// How long news of connections gathers before somebody is woken for it.
const GATHER: Duration = Duration::from_millis(10);

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The table cannot be installed.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The queue cannot be read.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The queue's socket was not found again.
    #[error("cannot let packets go on past the helper: {0}; `mechanism: sets` needs none of this")]
    Verdicts(std::io::Error),
    /// The kernel does not tell of changes.
    #[error(transparent)]
    Watch(#[from] Error),
    /// The control socket cannot be made.
    #[error(transparent)]
    Control(#[from] control::ControlError),
    /// The watchdog process has ended at once.
    #[error("cannot talk to the watchdog process: {0}; start the service again")]
    Watchdog(std::io::Error),
    /// The runtime of the control plane cannot be started.
    #[error("cannot start the control plane: {0}; are there too many open files?")]
    Runtime(std::io::Error),
    /// It ran, and a part of it ended that must not.
    #[error("the service cannot go on: {0}; the table inet pinhole stays, and the next start adopts it")]
    Ended(String),
}

/// How often a thread looks whether the engine is free before it sleeps until it is: some ten microseconds.
const SPINS: usize = 300;

/// The engine as the threads share it.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Mutex<Engine>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Engine> {
        // Whoever has it is done in a few microseconds. To sleep and be woken takes longer.
        for _ in 0..SPINS {
            match self.0.try_lock() {
                Ok(engine) => return engine,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
            }
        }
        // A thread that panicked in the middle left whole sessions behind: each step of the engine is one packet.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs until SIGTERM or SIGINT, then removes what was installed; or until SIGUSR2, and leaves it to the next start.
///
/// `source` is where the policy came from, to read it anew. `write_log` is called once log lines may be written by a
/// thread of their own: only now, so that it is as confined as all others.
pub fn run(policy: Policy, source: Option<&Path>, write_log: impl FnOnce()) -> Result<(), StartError> {
    // Before there is anything that the process could inherit. It outlasts everything that is dropped below.
    let watchdog = Watchdog::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Runtime)?;
    let policy = policy.on(processors());
    // A second instance must find out before it changes anything.
    let listener = runtime.block_on(async { control::listen() })?;
    let link = watchdog.as_ref().ok().map(Watchdog::begin).transpose().map_err(StartError::Watchdog)?;
    let all_queues = policy.capture.queues();
    let open = |number| Queue::open(number, policy.capture.when_down);
    let mut queues = all_queues.numbers().map(open).collect::<Result<Vec<_>, _>>()?;
    // From before the table is made, so that no change to it goes unnoticed.
    let tables = TableWatch::open()?;
    let connections = ConnectionWatch::begins_and_ends()?;
    let news = connections.as_fd().try_clone_to_owned().map_err(StartError::Runtime)?;
    let engine = Engine::start(policy, connections)?;
    if engine.has_helper() {
        queues.iter_mut().try_for_each(Queue::go_past_helpers).map_err(StartError::Verdicts)?;
    }
    tables.ignore(engine.port_id()?)?;
    // From here on no program is run and no file is opened but the policy. No thread has been started yet, so this holds
    // for all of them.
    let missing = sandbox::enter(&sandbox::Files { policy: source, socket: &control::path() });
    write_log();
    for line in engine.introduction() {
        info!("{line}");
    }
    for part in missing {
        warn!("the sandbox is not complete: {part}");
    }
    if let Err(error) = &watchdog {
        warn!(
            "there is no watchdog process: {error}; if the daemon is stopped, control connections stand still until systemd \
             or somebody else ends it"
        );
    }
    let hang_limit = engine.hang_limit();
    let shared = Shared(Arc::new(Mutex::new(engine)));
    let (mut threads, crew) = threads::crew();
    let mut readers = Vec::new();
    for queue in queues {
        let (shared, progress) = (shared.clone(), Progress::default());
        readers.push(Reader::new(queue.number(), queue.verdicts(), progress.clone()));
        crew.start("reading the queue", move || packets::read_queue(queue, all_queues, &shared, &progress));
    }
    crew.start("watching the threads that read queues", move || {
        supervise(readers, all_queues, &hang_limit, link.as_ref())
    });
    crew.start("watching the ruleset", {
        let shared = shared.clone();
        move || watch_tables(tables, &shared)
    });
    crew.start("watching connections", {
        let shared = shared.clone();
        move || watch_connections(&news, &shared)
    });
    let ended_by = runtime.block_on(async {
        tokio::select! {
            end = control::serve(&listener, &shared, source) => end.map_err(|error| format!("hearing signals: {error}")),
            why = threads.first_end() => Err(why),
        }
    });
    match ended_by.map_err(StartError::Ended)? {
        End::ForGood(signal) => {
            info!("{signal}: removing the table inet pinhole");
            shared.lock().stop()?;
        }
        End::ForTheNext => info!("SIGUSR2: ends, and leaves the table inet pinhole and all pinholes to the next start"),
    }
    Ok(())
}

/// Puts back what others remove, as soon as the kernel tells of it.
fn watch_tables(mut watch: TableWatch, shared: &Shared) -> String {
    loop {
        match watch.next(WATCH) {
            Ok(Heard::Change(change)) => shared.lock().ruleset_changed(&change),
            Ok(Heard::Missed) => shared.lock().restore(),
            Ok(Heard::Nothing) => shared.lock().pass_time(),
            Err(error) => return error.to_string(),
        }
    }
}

/// Handles conntrack events (used pinholes, ended sessions) while no packet comes, and releases packets that were kept for
/// too long.
fn watch_connections(news: &OwnedFd, shared: &Shared) -> String {
    let patience = Timespec::try_from(WATCH).expect("a second is not too long");
    loop {
        match poll(&mut [PollFd::new(news, PollFlags::IN)], Some(&patience)) {
            // A packet may have taken the news before this woke up: what was used then is still to be removed.
            Ok(0) => shared.lock().catch_up(),
            Ok(_) => {
                // A busy server has news all the time; whoever is in a hurry for it takes it before this wakes up.
                thread::sleep(GATHER);
                shared.lock().catch_up();
            }
            Err(Errno::INTR) => {}
            Err(error) => return error.to_string(),
        }
        if let Some(error) = shared.lock().take_deafness() {
            return error.to_string();
        }
        packets::release_expired(shared);
    }
}
