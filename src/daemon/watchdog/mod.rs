//! Bounds how long a packet waits for a daemon that hangs.
//!
//! The kernel lets packets bypass a queue only while no socket is bound to it, and drops the packets in the queue when
//! that socket is closed. So the queues of a daemon that hangs have to be released, in one of two ways:
//!
//! - A thread of the daemon, `supervise`, detects that a thread that reads a queue makes no progress, and unbinds the
//!   queues. That works even while the other thread is in an uninterruptible system call.
//! - The [watchdog process](serve) detects that the whole daemon makes no progress (SIGSTOP), and kills it with
//!   SIGKILL.
//!
//! The watchdog process runs the same program. `pinhole run` starts it before everything else, so that it inherits
//! no socket of a queue. A socket pair connects it with the daemon, and it ends when the daemon's end of the pair is
//! closed.

mod process;
mod progress;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub use process::{WatchdogError, serve};
pub(super) use progress::{QueueThread, ThreadHeartbeat, supervise};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, shutdown};
use rustix::thread::{CapabilitySet, capability_is_in_ambient_set, configure_capability_in_ambient_set};

/// The hidden subcommand that runs the watchdog process.
pub const SUBCOMMAND: &str = "watchdog";

/// How often the daemon reports to the watchdog process, and how often progress is checked. Less than half of the shortest
/// limit.
const TICK: Duration = Duration::from_millis(500);

/// How long a thread that reads a queue waits for a packet before it reports progress. Less than a tick.
pub const IDLE: Duration = Duration::from_millis(400);

/// The limit during startup, while `nft` installs the table.
const STARTUP_LIMIT: Duration = Duration::from_secs(30);

/// How long the watchdog process may take to start, and to end.
const TIMEOUT: Duration = Duration::from_secs(5);

const READY: &[u8] = b"ready";

/// A message from the daemon to the watchdog process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    /// The daemon runs. Its next message comes within the limit.
    Runs { limit: Duration },
    /// The thread that reads this queue has made no progress for as long as the limit.
    Hangs { queue: u16, limit: Duration },
}

impl Message {
    const LENGTH: usize = 7;

    fn to_bytes(self) -> [u8; Self::LENGTH] {
        let (kind, queue, limit) = match self {
            Self::Runs { limit } => (0, 0, limit),
            Self::Hangs { queue, limit } => (1, queue, limit),
        };
        let [a, b, c, d] = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX).to_be_bytes();
        let [high, low] = queue.to_be_bytes();
        [kind, high, low, a, b, c, d]
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let [kind, high, low, a, b, c, d] = *bytes else { return None };
        let limit = Duration::from_millis(u32::from_be_bytes([a, b, c, d]).into());
        match kind {
            0 => Some(Self::Runs { limit }),
            1 => Some(Self::Hangs { queue: u16::from_be_bytes([high, low]), limit }),
            _ => None,
        }
    }
}

/// The daemon's handle of the watchdog process. Dropping it ends the process.
#[derive(Debug)]
pub(super) struct Watchdog {
    socket: OwnedFd,
    child: Child,
}

impl Watchdog {
    /// Starts the process and waits until it is ready. It inherits the files that are open without `O_CLOEXEC`.
    pub(super) fn start() -> io::Result<Self> {
        let (socket, other) = net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // Not by the program's path, where another version may have been installed.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("pinhole").arg(SUBCOMMAND).env_clear().current_dir("/");
        if let Some(stream) = std::env::var_os("JOURNAL_STREAM") {
            command.env("JOURNAL_STREAM", stream);
        }
        // A signal to the daemon's process group, for example by a terminal, must not end the watchdog process.
        command.process_group(0).stdin(Stdio::from(other)).stdout(Stdio::null());
        let child = without_ambient_capability(|| command.spawn())??;
        // `command` has a copy of the child's end of the socket. Without that copy, the socket reports when the child ends.
        drop(command);
        let started = Self { socket, child };
        let mut message = [0; READY.len()];
        match started.wait(PollFlags::IN)? {
            true if net::recv(&started.socket, &mut message, RecvFlags::empty())?.1 == READY.len() => Ok(started),
            true => Err(io::Error::other("it has ended")),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Starts the supervision: from now on the daemon may hold packets.
    pub(super) fn begin(&self) -> io::Result<Link> {
        let link = Link(self.socket.try_clone()?);
        link.send(Message::Runs { limit: STARTUP_LIMIT })?;
        Ok(link)
    }

    /// Waits for one of these events on the socket. Returns false after the timeout.
    fn wait(&self, events: PollFlags) -> io::Result<bool> {
        let timeout = Timespec::try_from(TIMEOUT).expect("it is short");
        Ok(rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&self.socket, events)], Some(&timeout)))? > 0)
    }
}

/// Calls `work` with an empty ambient set, so that a program started by it does not inherit the daemon's capability. That
/// program could not always drop the capability itself: a service manager may refuse `capset`. Only while there is one
/// thread.
fn without_ambient_capability<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    let capability = CapabilitySet::NET_ADMIN;
    if !capability_is_in_ambient_set(capability).unwrap_or(false) {
        return Ok(work());
    }
    configure_capability_in_ambient_set(capability, false)?;
    let done = work();
    // `nft`, which is started later, needs the capability.
    configure_capability_in_ambient_set(capability, true)?;
    Ok(done)
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // The process ends when it reads the end of the stream. If it does not end in time, it is not waited for.
        let _ = shutdown(&self.socket, Shutdown::Write);
        if self.wait(PollFlags::empty()).unwrap_or(false) {
            let _ = self.child.wait();
        }
    }
}

/// Sends messages to the watchdog process.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

impl Link {
    /// Never blocks. If the socket's buffer is full, the watchdog process does not read, so it is stopped.
    fn send(&self, message: Message) -> io::Result<()> {
        let Self(socket) = self;
        let attempt = || net::send(socket, &message.to_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        match rustix::io::retry_on_intr(attempt) {
            Ok(_) => Ok(()),
            Err(Errno::PIPE | Errno::CONNRESET) => Err(io::Error::other("it has ended")),
            Err(Errno::AGAIN) => Err(io::Error::other("it is stopped")),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_survives_the_socket() {
        for message in [
            Message::Runs { limit: Duration::from_millis(2500) },
            Message::Hangs { queue: 0xfffe, limit: Duration::from_secs(3600) },
        ] {
            assert_eq!(Message::from_bytes(&message.to_bytes()), Some(message));
        }
        assert_eq!(Message::from_bytes(&[2, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(Message::from_bytes(b""), None);
    }
}
