//! Bounds how long a packet waits for a daemon that hangs.
//!
//! The kernel lets packets bypass a queue only while no socket has it bound, and drops the packets in the queue when
//! that socket is closed. So a daemon that hangs has to release its queues, in one of two ways:
//!
//! - A thread of the daemon, `supervise`, sees that a thread which reads a queue makes no progress, and unbinds the
//!   queues. That works even while the other thread is in a system call that no signal ends.
//! - The [watchdog process](serve) sees that the daemon as a whole makes no progress (SIGSTOP), and kills it with
//!   SIGKILL.
//!
//! The watchdog process is this program again. `pinhole run` starts it before everything else, so that it inherits
//! no socket of a queue. A socket connects it with the daemon, and it ends when the daemon's end of that socket is
//! closed.

mod process;
mod progress;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub use process::{WatchdogError, serve};
pub(super) use progress::{Progress, Reader, supervise};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, shutdown};
use rustix::thread::{CapabilitySet, capability_is_in_ambient_set, configure_capability_in_ambient_set};

/// The hidden subcommand of the process.
pub const SUBCOMMAND: &str = "watchdog";

/// How often the daemon shows that it runs, and how often everybody looks. Less than half of the shortest limit.
const TICK: Duration = Duration::from_millis(500);

/// A thread that has nothing to do shows that often that it could: more often than once in half a second.
pub const IDLE: Duration = Duration::from_millis(400);

/// The limit until the threads run. `nft` installs the table meanwhile.
const START: Duration = Duration::from_secs(30);

/// How long the process may take to begin and to end.
const PATIENCE: Duration = Duration::from_secs(5);

const READY: &[u8] = b"ready";

/// What the daemon tells the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    /// It runs. So long it may be silent from now on.
    Runs { limit: Duration },
    /// The thread that reads that queue has not made progress for so long.
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

/// The process, as the daemon knows it. Dropping it ends the process.
#[derive(Debug)]
pub(super) struct Watchdog {
    socket: OwnedFd,
    child: Child,
}

impl Watchdog {
    /// Starts the process and waits until it watches. It inherits the files that are open without `O_CLOEXEC`.
    pub(super) fn start() -> io::Result<Self> {
        let (socket, other) = net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // Not by its path, where another version may lie by now.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("pinhole").arg(SUBCOMMAND).env_clear().current_dir("/");
        if let Some(stream) = std::env::var_os("JOURNAL_STREAM") {
            command.env("JOURNAL_STREAM", stream);
        }
        // What is sent to the daemon's process group, by a terminal for example, is not meant for it.
        command.process_group(0).stdin(Stdio::from(other)).stdout(Stdio::null());
        let child = without_ambient_capability(|| command.spawn())??;
        // It has its end of the socket alone: this process keeps none in `command`.
        drop(command);
        let started = Self { socket, child };
        let mut answer = [0; READY.len()];
        match started.wait(PollFlags::IN)? {
            true if net::recv(&started.socket, &mut answer, RecvFlags::empty())?.1 == READY.len() => Ok(started),
            true => Err(io::Error::other("it has ended")),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// From now on the daemon may hold packets.
    pub(super) fn begin(&self) -> io::Result<Link> {
        let link = Link(self.socket.try_clone()?);
        link.tell(Message::Runs { limit: START })?;
        Ok(link)
    }

    /// Whether something of that came in time.
    fn wait(&self, what: PollFlags) -> io::Result<bool> {
        let patience = Timespec::try_from(PATIENCE).expect("it is short");
        Ok(rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&self.socket, what)], Some(&patience)))? > 0)
    }
}

/// Does something while programs that are started do not get the daemon's capability: a service manager may refuse them
/// the call by which they could give it up (`capset`). Only while there is one thread.
fn without_ambient_capability<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    let capability = CapabilitySet::NET_ADMIN;
    if !capability_is_in_ambient_set(capability).unwrap_or(false) {
        return Ok(work());
    }
    configure_capability_in_ambient_set(capability, false)?;
    let done = work();
    // `nft`, which is started later, needs it.
    configure_capability_in_ambient_set(capability, true)?;
    Ok(done)
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // It reads the end of the messages, and ends. One that does not in time is left to whoever is its next parent.
        let _ = shutdown(&self.socket, Shutdown::Write);
        if self.wait(PollFlags::empty()).unwrap_or(false) {
            let _ = self.child.wait();
        }
    }
}

/// How the daemon's threads talk to the process.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

impl Link {
    /// Never waits: a process that does not read is stopped itself.
    fn tell(&self, message: Message) -> io::Result<()> {
        let Self(socket) = self;
        let send = || net::send(socket, &message.to_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        match rustix::io::retry_on_intr(send) {
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
