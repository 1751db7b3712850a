//! Packets from an NFQUEUE, and the verdicts on them.

use std::io;

use nfq::{Message, Verdict};
use rustix::net::{AddressFamily, netlink, sockopt};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// How many packets may wait in the kernel for a verdict.
const LONGEST: u32 = 4096;
/// The bytes that so many packets of a control connection take at most, as the kernel counts.
const ROOM: usize = LONGEST as usize * 4096;

/// A queue of the kernel that this program reads.
pub struct Queue {
    queue: nfq::Queue,
    number: u16,
}

/// Why a queue cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The kernel has no such queues, or we may not.
    #[error("cannot open a queue of the kernel: {0} (is nfnetlink_queue there? does the program run as root?)")]
    Open(#[source] io::Error),
    /// Somebody reads it already.
    #[error("queue {number} is read by another program: {source} (set `capture: queue` to another number)")]
    Taken {
        /// The queue.
        number: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// It does not take a setting.
    #[error("queue {number} does not take its settings: {source}")]
    Settings {
        /// The queue.
        number: u16,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A packet that waits for its verdict.
pub struct Waiting(Message);

impl Waiting {
    /// The packet, from its IP header on.
    pub fn packet(&self) -> &[u8] {
        self.0.get_payload()
    }
}

impl Queue {
    /// Begins to read a queue. Rules that lead to it may stand already: without a reader they let everything pass.
    pub fn open(number: u16) -> Result<Self, QueueError> {
        let mut queue = nfq::Queue::open().map_err(QueueError::Open)?;
        make_room().map_err(QueueError::Open)?;
        queue.bind(number).map_err(|source| QueueError::Taken { number, source })?;
        let settings = queue
            .set_queue_max_len(number, LONGEST)
            // When more comes than we manage, control connections go on unread: no hole opens, nothing breaks.
            .and_then(|()| queue.set_fail_open(number, true))
            .and_then(|()| queue.set_recv_enobufs(false));
        settings.map_err(|source| QueueError::Settings { number, source })?;
        Ok(Self { queue, number })
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Waits for the next packet.
    pub fn next_packet(&mut self) -> io::Result<Waiting> {
        self.queue.recv().map(Waiting)
    }

    /// Lets a packet go on.
    pub fn accept(&mut self, waiting: Waiting) -> io::Result<()> {
        let Waiting(mut message) = waiting;
        message.set_verdict(Verdict::Accept);
        self.queue.verdict(message)
    }

    /// Lets another packet go on in the place of this one: from its IP header on, with all lengths and checksums in it
    /// as they have to be. It may be longer or shorter.
    pub fn accept_as(&mut self, waiting: Waiting, packet: &[u8]) -> io::Result<()> {
        let Waiting(mut message) = waiting;
        message.set_payload(packet);
        message.set_verdict(Verdict::Accept);
        self.queue.verdict(message)
    }
}

/// Gives the queue's socket a buffer for as many packets as may wait. With the system's own a hundred fill it, and the
/// kernel lets the next ones pass unread.
///
/// The crate nfq keeps its socket to itself, so it is looked for among the files of this process. Others of its kind
/// may have more room as well.
fn make_room() -> io::Result<()> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(file) = pidfd_getfd(&own, number, PidfdGetfdFlags::empty()) else { continue };
        if sockopt::socket_domain(&file) == Ok(AddressFamily::NETLINK)
            && sockopt::socket_protocol(&file) == Ok(Some(netlink::NETFILTER))
        {
            sockopt::set_socket_recv_buffer_size_force(&file, ROOM)
                .or_else(|_| sockopt::set_socket_recv_buffer_size(&file, ROOM))?;
        }
    }
    Ok(())
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("number", &self.number).finish_non_exhaustive()
    }
}
