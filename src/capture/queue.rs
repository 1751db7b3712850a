//! Packets from an NFQUEUE, and the verdicts on them.

use std::io;
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use nfq::Message;
use rustix::io::Errno;
use rustix::net::{AddressFamily, netlink, sockopt};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::readers::{own_file, readers};
use crate::netlink::Verdicts;
use crate::policy::{Queues, WhenDown};

/// How many packets may wait in the kernel for a verdict.
const LONGEST: u32 = 4096;
/// The bytes that so many packets of a control connection take at most, as the kernel counts.
const ROOM: usize = LONGEST as usize * 4096;

/// A queue of the kernel that this program reads.
pub struct Queue {
    queue: nfq::Queue,
    number: u16,
    verdicts: Arc<Verdicts>,
}

/// Why a queue cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The kernel does not let this program.
    #[error("cannot read queue {number} of the kernel: not permitted; it needs root, or the capability CAP_NET_ADMIN")]
    NotPermitted {
        /// The queue.
        number: u16,
    },
    /// Somebody reads it already.
    #[error(
        "cannot read queue {number} of the kernel: it is read by {reader}; end that program, or write another number \
         into the policy, as in `capture: {{ queue: {} }}`",
        number.wrapping_add(1)
    )]
    Taken {
        /// The queue.
        number: u16,
        /// By whom.
        reader: Box<str>,
    },
    /// The kernel has no queues, or not with all that is needed.
    #[error(
        "cannot read queue {number} of the kernel: {cause}; the module nfnetlink_queue is needed \
         (CONFIG_NETFILTER_NETLINK_QUEUE)"
    )]
    NoQueues {
        /// The queue.
        number: u16,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Something else.
    #[error("cannot read queue {number} of the kernel: {cause}")]
    Refused {
        /// The queue.
        number: u16,
        /// What the kernel said.
        cause: io::Error,
    },
}

impl QueueError {
    fn new(number: u16, cause: io::Error) -> Self {
        match cause.raw_os_error().map(Errno::from_raw_os_error) {
            // The same answer for two reasons: we may not, or somebody else reads it.
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

/// A packet that waits for its verdict. Any thread may say that, whoever reads the queue meanwhile.
pub struct Waiting {
    message: Message,
    verdicts: Arc<Verdicts>,
}

impl Waiting {
    /// The packet, from its IP header on.
    pub fn packet(&self) -> &[u8] {
        self.message.get_payload()
    }

    /// Lets it go on.
    pub fn accept(self) -> io::Result<()> {
        Ok(self.verdicts.go_on(self.message.get_packet_id(), None)?)
    }

    /// Lets another packet go on in its place: from its IP header on, with all lengths and checksums in it as they have
    /// to be. It may be longer or shorter.
    pub fn accept_as(self, packet: &[u8]) -> io::Result<()> {
        Ok(self.verdicts.go_on(self.message.get_packet_id(), Some(packet))?)
    }
}

impl Queue {
    /// Begins to read a queue. Rules that lead to it may stand already.
    ///
    /// `when_down` is what happens to packets that nobody reads, and so to those that a full queue has no room for: they
    /// go on unread, or they are dropped.
    pub fn open(number: u16, when_down: WhenDown) -> Result<Self, QueueError> {
        let open = || {
            let mut queue = nfq::Queue::open()?;
            make_room()?;
            queue.bind(number)?;
            queue.set_queue_max_len(number, LONGEST)?;
            queue.set_fail_open(number, when_down == WhenDown::Open)?;
            queue.set_recv_enobufs(false)?;
            let verdicts = Arc::new(Verdicts::new(socket_of(number)?, number));
            Ok(Self { queue, number, verdicts })
        };
        open().map_err(|cause| QueueError::new(number, cause))
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Waits for the next packet.
    pub fn next_packet(&mut self) -> io::Result<Waiting> {
        let message = self.queue.recv()?;
        Ok(Waiting { message, verdicts: Arc::clone(&self.verdicts) })
    }

    /// From now on packets go on past what the kernel does for helpers of programs: see [`Verdicts`]. For connections
    /// that have such a helper. What a full queue has no room for does not go on at all, whatever it was opened for: the
    /// kernel would do all that for it.
    pub fn go_past_helpers(&mut self) -> io::Result<()> {
        let readers = readers().ok_or_else(|| missing("the kernel shows no list of queues"))?;
        let is_free = |number: &u16| readers.iter().all(|reader| reader.queue != *number);
        let nobody = (0..=u16::MAX).rev().find(is_free).ok_or_else(|| missing("every queue is read by somebody"))?;
        let verdicts = Verdicts::new(socket_of(self.number)?, self.number).past_helpers(nobody);
        verdicts.close_when_full()?;
        self.verdicts = Arc::new(verdicts);
        Ok(())
    }
}

/// How many processors this program may use.
pub fn processors() -> NonZeroU16 {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(processors).ok().and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MAX)
}

/// Keeps this thread on the processors whose packets come into that queue, one of these: the kernel deals them out by
/// the processor's number. A thread that is not let there reads them from elsewhere, only slower.
pub fn stay_near(number: u16, queues: Queues) {
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

/// The socket through which this process reads that queue. The crate nfq keeps it to itself.
fn socket_of(queue: u16) -> io::Result<OwnedFd> {
    let own = own_file(queue).ok_or_else(|| missing("it is not in /proc/net/netfilter/nfnetlink_queue"))?;
    Ok(pidfd_getfd(pidfd_open(getpid(), PidfdFlags::empty())?, own, PidfdGetfdFlags::empty())?)
}

fn missing(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, what)
}

/// Gives the queue's socket a buffer for as many packets as may wait. With the system's own a hundred fill it, and the
/// kernel lets the next ones pass unread.
///
/// The crate nfq keeps its socket to itself, so it is looked for among the files of this process. Others of its kind
/// may have more room as well.
fn make_room() -> io::Result<()> {
    for socket in sockets()? {
        sockopt::set_socket_recv_buffer_size_force(&socket, ROOM)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, ROOM))?;
    }
    Ok(())
}

/// The sockets of this process through which it talks to netfilter.
fn sockets() -> io::Result<Vec<OwnedFd>> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let mut sockets = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(file) = pidfd_getfd(&own, number, PidfdGetfdFlags::empty()) else { continue };
        if sockopt::socket_domain(&file) == Ok(AddressFamily::NETLINK)
            && sockopt::socket_protocol(&file) == Ok(Some(netlink::NETFILTER))
        {
            sockets.push(file);
        }
    }
    Ok(sockets)
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("number", &self.number).finish_non_exhaustive()
    }
}
