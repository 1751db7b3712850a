//! Reads packets from an NFQUEUE, and sends verdicts on them.

use std::io;
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use nfq::Message;
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::nfq_socket;
use super::readers::readers;
use crate::core::policy::{Queues, WhenDown};
use crate::netfilter::netlink::Verdicts;

/// How many packets may wait in the kernel for a verdict.
const QUEUE_MAXLEN: u32 = 4096;
/// The socket buffer for that many packets of control connections. The default is enough for about a hundred. The kernel
/// treats packets that do not fit into the buffer like packets for a full queue.
const RECEIVE_BUFFER: usize = QUEUE_MAXLEN as usize * 4096;

/// The hook of packets that this host sends (linux/netfilter.h).
const NF_INET_LOCAL_OUT: u8 = 3;

/// How many queue numbers, from the highest down, are tried to find one that no program reads.
const MAX_TRIED: usize = 1000;

/// A queue that this program reads.
pub struct Queue {
    queue: nfq::Queue,
    number: u16,
    verdicts: Arc<Verdicts>,
}

/// Why a queue cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("cannot read queue {number} of the kernel: not permitted; it needs root, or the capability CAP_NET_ADMIN")]
    NotPermitted { number: u16 },
    #[error(
        "cannot read queue {number} of the kernel: it is read by {reader}; end that program, or write another number \
         into the policy, as in `capture: {{ queue: {} }}`",
        number.wrapping_add(1)
    )]
    Taken { number: u16, reader: Box<str> },
    /// The kernel lacks NFQUEUE, or one of the settings.
    #[error(
        "cannot read queue {number} of the kernel: {cause}; the module nfnetlink_queue is needed \
         (CONFIG_NETFILTER_NETLINK_QUEUE)"
    )]
    NoQueues { number: u16, cause: io::Error },
    #[error("cannot read queue {number} of the kernel: {cause}")]
    Refused { number: u16, cause: io::Error },
}

impl QueueError {
    fn new(number: u16, cause: io::Error) -> Self {
        match cause.raw_os_error().map(Errno::from_raw_os_error) {
            // The kernel has one error for a missing privilege and for a queue that another program reads.
            Some(Errno::PERM | Errno::ACCESS | Errno::BUSY) => {
                let readers = readers().into_iter().flatten();
                match readers.into_iter().find(|reader| reader.queue == number) {
                    Some(reader) => Self::Taken { number, reader: reader.to_string().into() },
                    None if cause.kind() == io::ErrorKind::PermissionDenied => Self::NotPermitted { number },
                    None => Self::Taken { number, reader: "another program".into() },
                }
            }
            Some(Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::NOENT | Errno::INVAL | Errno::OPNOTSUPP) => {
                Self::NoQueues { number, cause }
            }
            _ => Self::Refused { number, cause },
        }
    }
}

/// A queued packet without a verdict yet. Any thread may give the verdict.
pub struct QueuedPacket {
    message: Message,
    verdicts: Arc<Verdicts>,
}

impl QueuedPacket {
    /// The packet, from its IP header on.
    pub fn packet(&self) -> &[u8] {
        self.message.get_payload()
    }

    /// The packet mark.
    pub fn mark(&self) -> u32 {
        self.message.get_nfmark()
    }

    /// The index of the interface on which the packet arrived; 0 if this host sends it.
    pub fn interface(&self) -> u32 {
        if self.is_outgoing() { 0 } else { self.message.get_indev() }
    }

    /// The index of the bridge's port on which the packet arrived (br_netfilter); 0 if it came from no bridge.
    pub fn bridge_port(&self) -> u32 {
        if self.is_outgoing() { 0 } else { self.message.get_physindev() }
    }

    /// Whether this host sends the packet (hook output).
    pub fn is_outgoing(&self) -> bool {
        self.message.get_hook() == NF_INET_LOCAL_OUT
    }

    /// Accepts the packet, with another packet mark if `mark` is some.
    pub fn accept(self, mark: Option<u32>) -> io::Result<()> {
        Ok(self.verdicts.accept(self.message.get_packet_id(), None, mark)?)
    }

    /// Has the packet pass the rules of its hook again.
    pub fn repeat(self) -> io::Result<()> {
        Ok(self.verdicts.repeat(self.message.get_packet_id())?)
    }

    pub fn drop_packet(self) -> io::Result<()> {
        Ok(self.verdicts.drop_packet(self.message.get_packet_id())?)
    }

    /// Replaces the packet, from the IP header on, and accepts it. Lengths and checksums have to be correct.
    pub fn accept_as(self, packet: &[u8], mark: Option<u32>) -> io::Result<()> {
        Ok(self.verdicts.accept(self.message.get_packet_id(), Some(packet), mark)?)
    }
}

impl Queue {
    /// Binds a queue. Rules that queue packets to it may exist already.
    ///
    /// `when_down` decides about packets while no program reads the queue, and about packets for a full queue: fail-open or
    /// fail-closed.
    pub fn open(number: u16, when_down: WhenDown) -> Result<Self, QueueError> {
        let open = || {
            let (mut queue, socket) = nfq_socket::open()?;
            set_receive_buffer(&socket)?;
            queue.bind(number)?;
            queue.set_queue_max_len(number, QUEUE_MAXLEN)?;
            queue.set_fail_open(number, when_down == WhenDown::Open)?;
            queue.set_recv_enobufs(false)?;
            Ok(Self { queue, number, verdicts: Arc::new(Verdicts::new(socket, number)) })
        };
        open().map_err(|cause| QueueError::new(number, cause))
    }

    pub fn number(&self) -> u16 {
        self.number
    }

    /// Waits for the next packet.
    pub fn next_packet(&mut self) -> io::Result<QueuedPacket> {
        let message = self.queue.recv()?;
        Ok(QueuedPacket { message, verdicts: Arc::clone(&self.verdicts) })
    }

    /// For threads that send verdicts on packets of this queue.
    pub fn verdicts(&self) -> Arc<Verdicts> {
        Arc::clone(&self.verdicts)
    }

    /// [`Self::next_packet`] will wait no longer than this, and then fail with [`io::ErrorKind::WouldBlock`].
    pub fn set_receive_timeout(&self, timeout: Duration) -> io::Result<()> {
        Ok(self.verdicts.set_receive_timeout(timeout)?)
    }

    /// Makes packets skip the kernel's work for userspace helpers, for connections that have such a helper: see
    /// [`Verdicts`]. A full queue becomes fail-closed, whatever `when_down` is: the kernel would do that work for packets
    /// that it accepts itself.
    pub fn skip_helpers(&mut self) -> io::Result<()> {
        // Binding shows whether a program reads a queue; the list of readers may be hidden.
        let is_free = |number: &u16| nfq::Queue::open().and_then(|mut queue| queue.bind(*number)).is_ok();
        let unread = (0..=u16::MAX).rev().take(MAX_TRIED).find(is_free);
        let unread = unread.ok_or_else(|| io::Error::other("there is no queue that nobody reads"))?;
        let verdicts = self.verdicts.skipping_helpers(unread)?;
        verdicts.clear_fail_open()?;
        self.verdicts = Arc::new(verdicts);
        Ok(())
    }
}

/// How many processors this program may use. Read only once, because the queues are bound only once, and because the
/// sandbox forbids to read it later.
pub fn processors() -> NonZeroU16 {
    static PROCESSORS: OnceLock<NonZeroU16> = OnceLock::new();
    *PROCESSORS.get_or_init(|| {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        u16::try_from(processors).ok().and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MAX)
    })
}

/// Binds this thread to the processors whose packets go to queue `number` of `queues`: the kernel chooses the queue by the
/// number of the processor (fanout). If that is not permitted, the thread only runs slower.
pub fn bind_to_processors(number: u16, queues: Queues) {
    let offset = usize::from(number.saturating_sub(queues.first()));
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let mut near = CpuSet::new();
    for processor in (offset..CpuSet::MAX_CPU).step_by(queues.count().get().into()) {
        if allowed.is_set(processor) {
            near.set(processor);
        }
    }
    if near.count() > 0 {
        let _ = sched_setaffinity(None, &near);
    }
}

fn set_receive_buffer(socket: &OwnedFd) -> io::Result<()> {
    sockopt::set_socket_recv_buffer_size_force(socket, RECEIVE_BUFFER)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, RECEIVE_BUFFER))?;
    Ok(())
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("number", &self.number).finish_non_exhaustive()
    }
}
