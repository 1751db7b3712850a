//! The watchdog process: kills its parent, the daemon, if the daemon has sent no message for too long.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::ptr;
use std::time::{Duration, Instant};

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

/// Watches the parent process, the daemon, until it has ended. Standard input is the socket to it.
///
/// `flush` writes the buffered log lines.
pub fn serve(flush: impl Fn()) -> Result<(), WatchdogError> {
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(WatchdogError::Socket)?;
    if sockopt::socket_domain(&socket) != Ok(AddressFamily::UNIX) {
        return Err(WatchdogError::NotByDaemon);
    }
    // systemd sends a signal of `systemctl kill` to all processes of the service. The daemon ends if this process ends.
    block_signals();
    let _ = rustix::thread::set_name(c"pinhole");
    let daemon = Daemon::parent().map_err(WatchdogError::Daemon)?;
    // Errors are ignored: the daemon logs the missing parts of its own sandbox, which are the same.
    let _ = sandbox::enter_watchdog();
    net::send(&socket, READY, SendFlags::NOSIGNAL).map_err(|error| WatchdogError::Socket(error.into()))?;
    watch(&socket, &daemon, flush).map_err(WatchdogError::Socket)
}

/// Blocks all signals that can be blocked.
///
/// The mask cannot be inherited, because `Command` starts a process with an empty one. Handlers are no substitute: SIGTTOU,
/// with `stty tostop`, would keep this process from writing its log lines. No dependency has a safe function for the mask.
#[allow(unsafe_code)]
fn block_signals() {
    let mut all = MaybeUninit::uninit();
    // SAFETY: `sigfillset` initialises the set before `pthread_sigmask` reads it. Both pointers are valid during the calls,
    // which do not keep them, and the third argument may be null.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), ptr::null_mut());
    }
}

struct Daemon {
    /// The process ID in `/proc`, which may show another PID namespace than that of this process.
    id: String,
    /// A pidfd, so that no other process is killed if the ID is used again.
    process: OwnedFd,
    /// `/proc/ID/status`.
    status: Option<File>,
}

impl Daemon {
    fn parent() -> io::Result<Self> {
        let ended = || io::Error::other("it has ended");
        let id = getppid().ok_or_else(ended)?;
        let process = pidfd_open(id, PidfdFlags::empty())?;
        // If the daemon ended before pidfd_open, its ID may belong to another process. Then this process has another parent.
        if getppid() != Some(id) {
            return Err(ended());
        }
        let id = id_in_proc(&process).unwrap_or_else(|| id.to_string());
        let status = File::open(format!("/proc/{id}/status")).ok();
        Ok(Self { id, process, status })
    }

    /// The daemon's state according to the kernel, for a log line.
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

/// The ID of the process in the PID namespace that `/proc` shows.
fn id_in_proc(process: &OwnedFd) -> Option<String> {
    let fdinfo = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd())).ok()?;
    let id: u32 = fdinfo.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
    (id > 0).then(|| id.to_string())
}

/// How long the daemon has sent no message.
#[derive(Debug)]
struct Silence {
    limit: Option<Duration>,
    lasted: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum Health {
    Healthy,
    /// The daemon has sent no message for as long as this limit.
    Silent(Duration),
    /// The daemon has reported that a thread hangs.
    Hangs {
        queue: u16,
        limit: Duration,
    },
}

impl Silence {
    const fn new() -> Self {
        Self { limit: None, lasted: Duration::ZERO }
    }

    /// Called after each wait for a message.
    ///
    /// One wait counts for one tick at most. If it took longer, this process did not run either, because the host was
    /// suspended or overloaded, and the daemon gets the time to send a message first.
    fn after(&mut self, waited: Duration, message: Option<Message>) -> Health {
        match message {
            Some(Message::Runs { limit }) => *self = Self { limit: Some(limit), lasted: Duration::ZERO },
            Some(Message::Hangs { queue, limit }) => return Health::Hangs { queue, limit },
            None => self.lasted += waited.min(TICK),
        }
        match self.limit {
            Some(limit) if self.lasted >= limit => Health::Silent(limit),
            _ => Health::Healthy,
        }
    }
}

/// Returns when the daemon has ended.
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
            Health::Healthy => continue,
            Health::Silent(limit) => (format!("it has not reported; {}", daemon.state()), limit),
            Health::Hangs { queue, limit } => {
                (format!("its thread that reads queue {queue} has made no progress; {}", daemon.state()), limit)
            }
        };
        // Before the log line, because the reader of the log may block its writer.
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

/// Waits one tick at most.
fn next(socket: &OwnedFd) -> io::Result<Next> {
    let tick = Timespec::try_from(TICK).expect("it is short");
    if retry_on_intr(|| poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&tick)))? == 0 {
        return Ok(Next::Nothing);
    }
    let mut bytes = [0; Message::LENGTH];
    match retry_on_intr(|| net::recv(socket, &mut bytes, RecvFlags::DONTWAIT)) {
        // A message is never empty, so this is the end of the stream.
        Ok((_, 0)) | Err(Errno::CONNRESET) => Ok(Next::End),
        Ok((length, _)) => Ok(Message::from_bytes(&bytes[..length]).map_or(Next::Nothing, Next::Message)),
        Err(error) => Err(error.into()),
    }
}

/// Waits until the daemon has ended. Returns false if it has not ended within the limit.
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
    fn silence_counts_from_the_last_message() {
        let mut silence = Silence::new();
        for _ in 0..20 {
            assert_eq!(silence.after(TICK, None), Health::Healthy, "nothing was announced yet");
        }
        let runs = Some(Message::Runs { limit: LIMIT });
        for _ in 0..3 {
            assert_eq!(silence.after(TICK, runs), Health::Healthy);
            for _ in 0..5 {
                assert_eq!(silence.after(TICK, None), Health::Healthy);
            }
        }
        assert_eq!(silence.after(TICK, None), Health::Silent(LIMIT));
    }

    #[test]
    fn time_in_which_the_watchdog_did_not_run_counts_for_one_tick() {
        let mut silence = Silence::new();
        silence.after(TICK, Some(Message::Runs { limit: LIMIT }));
        for _ in 0..5 {
            assert_eq!(silence.after(Duration::from_secs(3600), None), Health::Healthy);
        }
        assert_eq!(silence.after(Duration::from_secs(3600), None), Health::Silent(LIMIT));
    }

    #[test]
    fn reported_hang_counts_at_once() {
        let hangs = Message::Hangs { queue: 3, limit: LIMIT };
        assert_eq!(Silence::new().after(TICK, Some(hangs)), Health::Hangs { queue: 3, limit: LIMIT });
    }
}
