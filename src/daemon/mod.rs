//! The daemon: reads packets from the queues, passes them to the tracker, and keeps pinholes in the kernel.
//!
//! A thread for each queue reads packets. One thread watches the ruleset, another the connections. They share the
//! [`Engine`] behind a lock. The first thread runs a small runtime for signals, the control socket and systemd; no
//! packet waits for it. Before any other thread starts, the daemon enters its [`sandbox`]. A [`watchdog`] bounds how
//! long packets wait for a daemon that hangs.

mod clock;
pub mod control;
mod engine;
mod event_log;
mod history;
mod live_session;
mod log_limit;
mod open_metrics;
mod packets;
pub mod sandbox;
pub mod status;
mod threads;
mod verdict_order;
pub mod watchdog;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use control::Shutdown;
pub use engine::Engine;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use status::Service;
pub use status::Status;
use tracing::{info, warn};
use verdict_order::VerdictOrder;
use watchdog::{QueueThread, ThreadHeartbeat, Watchdog, supervise};

use crate::core::policy::Policy;
use crate::netfilter::backend::SetupError;
use crate::netfilter::netlink::{ConnectionWatch, Error, TableWatch, WatchEvent};
use crate::netfilter::queue::{Queue, QueueError, processors};

/// The policy file of `run` and `check` if the command line names none.
pub const POLICY_FILE: &str = "/etc/pinhole/policy.yaml";

/// How often a watching thread looks for work if there was no event.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How long conntrack events are collected before they are handled together.
const BATCH_DELAY: Duration = Duration::from_millis(10);

/// Why the daemon could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("cannot set verdicts that pass by the helper: {0}; `mechanism: sets` does not need them")]
    Verdicts(std::io::Error),
    #[error(transparent)]
    Watch(#[from] Error),
    #[error(transparent)]
    Control(#[from] control::ControlError),
    #[error("cannot talk to the watchdog process: {0}; start the service again")]
    Watchdog(std::io::Error),
    #[error("cannot start the control plane: {0}; are there too many open files?")]
    Runtime(std::io::Error),
    #[error("the daemon cannot continue: {0}; the table inet pinhole stays, and the next start adopts it")]
    Ended(String),
}

/// How often a thread tries to lock the engine before it sleeps: some ten microseconds.
const SPINS: usize = 300;

/// The engine as the threads share it.
#[derive(Clone, Debug)]
pub struct Shared {
    engine: Arc<Mutex<Engine>>,
    verdicts: Arc<VerdictOrder>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Engine> {
        // The lock is held for a few microseconds; to sleep and wake up takes longer.
        for _ in 0..SPINS {
            match self.engine.try_lock() {
                Ok(engine) => return engine,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
            }
        }
        // The sessions are consistent even if a thread has panicked with the lock: a panic affects one packet only.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs until SIGTERM or SIGINT, and then removes the table; or until SIGUSR2, and leaves the table to the next start.
///
/// `source` is the policy's file, for reloads. `warnings` returns what is to be warned of at the start; its argument is whether
/// data connections are `related`. `write_log` starts the thread that writes the log; it is called in the
/// sandbox, which then applies to that thread, too.
pub fn run(
    policy: Policy,
    source: Option<&Path>,
    warnings: impl FnOnce(bool) -> Vec<String>,
    write_log: impl FnOnce(),
) -> Result<(), StartError> {
    // First, so that the watchdog process inherits no socket. It runs until everything below is dropped.
    let watchdog = Watchdog::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Runtime)?;
    let policy = policy.on(processors());
    // Before anything is changed: this fails if another instance runs.
    let socket = control::path();
    let listener = runtime.block_on(async { control::listen(&socket) })?;
    let link = watchdog.as_ref().ok().map(Watchdog::begin).transpose().map_err(StartError::Watchdog)?;
    let all_queues = policy.capture.queues();
    let open = |number| Queue::open(number, policy.capture.when_down);
    let mut queues = all_queues.numbers().map(open).collect::<Result<Vec<_>, _>>()?;
    // Before the table is installed, so that every change to it is noticed.
    let tables = TableWatch::open()?;
    let connections = ConnectionWatch::begins_and_ends()?;
    let events = connections.as_fd().try_clone_to_owned().map_err(StartError::Runtime)?;
    let engine = Engine::start(policy, Service::start(source), connections)?;
    if engine.has_helper() {
        queues.iter_mut().try_for_each(Queue::skip_helpers).map_err(StartError::Verdicts)?;
    }
    tables.ignore(engine.port_id()?)?;
    // From here on the daemon executes no program and opens no file but the policy. No thread has been started yet, so the
    // sandbox applies to all threads.
    let missing = sandbox::enter(&sandbox::Files { policy: source, socket: &socket });
    write_log();
    for line in engine.startup_lines() {
        info!("{line}");
    }
    for warning in warnings(engine.is_related()) {
        warn!("{warning}");
    }
    for part in missing {
        warn!("the sandbox is not complete: {part}");
    }
    if let Err(error) = &watchdog {
        warn!(
            "no watchdog process: {error}; if the daemon hangs, control connections stall until systemd or an administrator \
             kills it"
        );
    }
    let hang_limit = engine.hang_limit();
    let shared = Shared { engine: Arc::new(Mutex::new(engine)), verdicts: Arc::default() };
    let (workers, mut first_exit) = threads::workers();
    let mut readers = Vec::new();
    for queue in queues {
        let (shared, progress) = (shared.clone(), ThreadHeartbeat::default());
        readers.push(QueueThread::new(queue.number(), queue.verdicts(), progress.clone()));
        workers.start("reading the queue", move || packets::read_queue(queue, all_queues, &shared, &progress));
    }
    workers.start("watching the threads that read queues", move || {
        supervise(readers, all_queues, &hang_limit, link.as_ref())
    });
    workers.start("watching the ruleset", {
        let shared = shared.clone();
        move || watch_tables(tables, &shared)
    });
    workers.start("watching connections", {
        let shared = shared.clone();
        move || watch_connections(&events, &shared)
    });
    let ended_by = runtime.block_on(async {
        tokio::select! {
            end = control::serve(&listener, &socket, &shared, source) => end.map_err(|error| format!("waiting for signals: {error}")),
            why = first_exit.wait() => Err(why),
        }
    });
    match ended_by.map_err(StartError::Ended)? {
        Shutdown::Remove(signal) => {
            info!("{signal}: removing the table inet pinhole");
            shared.lock().stop()?;
        }
        Shutdown::HandOver => {
            info!("SIGUSR2: exiting; the table inet pinhole and all pinholes stay for the next start");
        }
    }
    Ok(())
}

/// Restores what other programs change, as soon as the kernel reports it.
fn watch_tables(mut watch: TableWatch, shared: &Shared) -> String {
    loop {
        match watch.next(POLL_INTERVAL) {
            Ok(WatchEvent::Change(change)) => shared.lock().ruleset_changed(&change),
            Ok(WatchEvent::Overrun) => shared.lock().restore(),
            Ok(WatchEvent::Timeout) => shared.lock().expire(),
            Err(error) => return error.to_string(),
        }
    }
}

/// Handles conntrack events (used pinholes, ended sessions) while no packet comes, and releases packets that were kept
/// for too long.
fn watch_connections(events: &OwnedFd, shared: &Shared) -> String {
    let timeout = Timespec::try_from(POLL_INTERVAL).expect("a second is not too long");
    loop {
        match poll(&mut [PollFd::new(events, PollFlags::IN)], Some(&timeout)) {
            // A packet may have handled the events already; used pinholes still have to be removed from the kernel.
            Ok(0) => shared.lock().handle_conntrack_events(),
            Ok(_) => {
                // On a busy server events arrive all the time. Before a packet is handled, its thread reads the events.
                thread::sleep(BATCH_DELAY);
                shared.lock().handle_conntrack_events();
            }
            Err(Errno::INTR) => {}
            Err(error) => return error.to_string(),
        }
        if let Some(error) = shared.lock().take_watch_error() {
            return error.to_string();
        }
        packets::release_expired(shared);
    }
}
