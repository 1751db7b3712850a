//! The watchdog process: kills its parent, the daemon, when that has been silent for too long.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, sockopt};
use rustix::process::{PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal};
use tracing::error;

use super::{Message, READY, TICK};
use crate::daemon::sandbox;

#[derive(Debug, thiserror::Error)]
pub enum WatchdogError {
    #[error("only `pinhole run` can start this command")]
    NotByDaemon,
    #[error("cannot open the daemon's process (pidfd_open, Linux 5.3 and later): {0}")]
    Daemon(io::Error),
    #[error("the socket to the daemon failed: {0}")]
    Socket(io::Error),
}

/// Watches the process that started this one, by the socket that is the standard input, until that one has ended.
///
/// `flush` writes what was logged.
pub fn serve(flush: impl Fn()) -> Result<(), WatchdogError> {
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(WatchdogError::Socket)?;
    if sockopt::socket_domain(&socket) != Ok(AddressFamily::UNIX) {
        return Err(WatchdogError::NotByDaemon);
    }
    // systemd and terminals send what is meant for the daemon to all of its processes. This one ends after the daemon.
    let _ = SigSet::all().thread_block();
    let _ = rustix::thread::set_name(c"pinhole");
    let daemon = Daemon::parent().map_err(WatchdogError::Daemon)?;
    // What cannot be had here the daemon says of itself as well.
    let _ = sandbox::enter_watchdog();
    net::send(&socket, READY, SendFlags::NOSIGNAL).map_err(|error| WatchdogError::Socket(error.into()))?;
    watch(&socket, &daemon, flush).map_err(WatchdogError::Socket)
}

/// The daemon, as it can be ended even if its number is another process's by now.
struct Daemon {
    /// As people see it, in `/proc`, which may belong to another process namespace than this process.
    id: String,
    process: OwnedFd,
    status: Option<File>,
}

impl Daemon {
    fn parent() -> io::Result<Self> {
        let gone = || io::Error::other("it has ended");
        let id = getppid().ok_or_else(gone)?;
        let process = pidfd_open(id, PidfdFlags::empty())?;
        // If it had ended before, its number might be another's; then this would be an orphan.
        if getppid() != Some(id) {
            return Err(gone());
        }
        let id = shown_id(&process).unwrap_or_else(|| id.to_string());
        let status = File::open(format!("/proc/{id}/status")).ok();
        Ok(Self { id, process, status })
    }

    /// Its state according to the kernel, for a message.
    fn state(&self) -> String {
        let mut bytes = [0; 1024];
        let read = self.status.as_ref().and_then(|status| status.read_at(&mut bytes, 0).ok()).unwrap_or(0);
        let status = String::from_utf8_lossy(&bytes[..read]);
        let value = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map_or("", str::trim);
        let state = value("State:");
        match (state.bytes().next(), value("TracerPid:")) {
            (_, tracer) if !matches!(tracer, "" | "0") => format!("process {tracer}, such as a debugger, traces it"),
            (Some(b'T' | b't'), _) => "it is stopped (SIGSTOP, SIGTSTP)".to_owned(),
            (Some(_), _) => format!("its main thread's state is {state}"),
            (None, _) => "its state cannot be read".to_owned(),
        }
    }
}

/// The number in `/proc` of a process.
fn shown_id(process: &OwnedFd) -> Option<String> {
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd())).ok()?;
    let id: u32 = about.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
    (id > 0).then(|| id.to_string())
}

#[derive(Debug)]
struct Silence {
    limit: Option<Duration>,
    lasted: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum Finding {
    Well,
    /// It has sent no message for that long.
    Silent(Duration),
    /// It has reported that a thread hangs.
    Hangs {
        queue: u16,
        limit: Duration,
    },
}

impl Silence {
    const fn new() -> Self {
        Self { limit: None, lasted: Duration::ZERO }
    }

    /// So much time has gone by until a message came, or none did.
    ///
    /// Of a wait that was longer than it should have been, no more than that counts: then this process did not run either,
    /// as the host slept or had too much to do, and the daemon gets its time to show itself first.
    fn after(&mut self, waited: Duration, message: Option<Message>) -> Finding {
        match message {
            Some(Message::Runs { limit }) => *self = Self { limit: Some(limit), lasted: Duration::ZERO },
            Some(Message::Hangs { queue, limit }) => return Finding::Hangs { queue, limit },
            None => self.lasted += waited.min(TICK),
        }
        match self.limit {
            Some(limit) if self.lasted >= limit => Finding::Silent(limit),
            _ => Finding::Well,
        }
    }
}

/// Ends when the daemon has.
fn watch(socket: &OwnedFd, daemon: &Daemon, flush: impl Fn()) -> io::Result<()> {
    let mut silence = Silence::new();
    loop {
        let began = Instant::now();
        let message = match next(socket)? {
            Next::Message(message) => Some(message),
            Next::Nothing => None,
            Next::End => return Ok(()),
        };
        let (what, limit) = match silence.after(began.elapsed(), message) {
            Finding::Well => continue,
            Finding::Silent(limit) => (format!("it has not reported; {}", daemon.state()), limit),
            Finding::Hangs { queue, limit } => {
                (format!("its thread that reads queue {queue} has made no progress; {}", daemon.state()), limit)
            }
        };
        // First this: whoever reads the log may keep its writer waiting.
        let ended = pidfd_send_signal(&daemon.process, Signal::KILL);
        let id = &daemon.id;
        match ended {
            Ok(()) => error!(
                "the watchdog killed the daemon (process {id}) after {limit:?}: {what}. It held packets of control \
                 connections, which now pass unread or are dropped, as `when_down` says. systemd restarts it; without \
                 systemd, start `pinhole run`. If the host was overloaded, raise `capture: watchdog`"
            ),
            Err(error) => error!(
                "the watchdog cannot kill the daemon (process {id}): {error}. For {limit:?} it has held packets of control \
                 connections: {what}. Kill it: kill -KILL {id}"
            ),
        }
        flush();
        if !ends_within(socket, limit)? {
            error!(
                "the daemon (process {id}) was killed and has not ended: one of its system calls has not returned ({}). \
                 See `cat /proc/{id}/task/*/stack`; if it never returns, restart the host",
                daemon.state()
            );
            flush();
            while !ends_within(socket, limit)? {}
        }
        return Ok(());
    }
}

enum Next {
    Message(Message),
    Nothing,
    End,
}

/// Waits a tick at most.
fn next(socket: &OwnedFd) -> io::Result<Next> {
    let tick = Timespec::try_from(TICK).expect("it is short");
    if retry_on_intr(|| poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&tick)))? == 0 {
        return Ok(Next::Nothing);
    }
    let mut bytes = [0; Message::LENGTH];
    match retry_on_intr(|| net::recv(socket, &mut bytes, RecvFlags::DONTWAIT)) {
        // No message is empty.
        Ok((_, 0)) | Err(Errno::CONNRESET) => Ok(Next::End),
        Ok((length, _)) => Ok(Message::from_bytes(&bytes[..length]).map_or(Next::Nothing, Next::Message)),
        Err(error) => Err(error.into()),
    }
}

/// Whether the daemon has ended by then.
fn ends_within(socket: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let began = Instant::now();
    while began.elapsed() < limit {
        if matches!(next(socket)?, Next::End) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(3);

    #[test]
    fn silence_counts_from_the_last_sign_of_life() {
        let mut silence = Silence::new();
        for _ in 0..20 {
            assert_eq!(silence.after(TICK, None), Finding::Well, "nothing was announced yet");
        }
        let runs = Some(Message::Runs { limit: LIMIT });
        for _ in 0..3 {
            assert_eq!(silence.after(TICK, runs), Finding::Well);
            for _ in 0..5 {
                assert_eq!(silence.after(TICK, None), Finding::Well);
            }
        }
        assert_eq!(silence.after(TICK, None), Finding::Silent(LIMIT));
    }

    #[test]
    fn time_in_which_the_watchdog_did_not_run_counts_for_one_tick() {
        let mut silence = Silence::new();
        silence.after(TICK, Some(Message::Runs { limit: LIMIT }));
        for _ in 0..5 {
            assert_eq!(silence.after(Duration::from_secs(3600), None), Finding::Well);
        }
        assert_eq!(silence.after(Duration::from_secs(3600), None), Finding::Silent(LIMIT));
    }

    #[test]
    fn daemon_that_says_that_it_hangs_is_believed_at_once() {
        let hangs = Message::Hangs { queue: 3, limit: LIMIT };
        assert_eq!(Silence::new().after(TICK, Some(hangs)), Finding::Hangs { queue: 3, limit: LIMIT });
    }
}
