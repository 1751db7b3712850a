//! Packets from an NFQUEUE, and the verdicts on them.

use std::io;

use nfq::{Message, Verdict};

/// How many packets may wait in the kernel for a verdict.
const LONGEST: u32 = 4096;

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
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("number", &self.number).finish_non_exhaustive()
    }
}
