//! Packets from an NFQUEUE, and the verdicts on them.

use std::io;
use std::os::fd::OwnedFd;

use nfq::{Message, Verdict};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, netlink, sockopt};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::readers::readers;
use crate::netlink::Verdicts;
use crate::policy::WhenDown;

/// How many packets may wait in the kernel for a verdict.
const LONGEST: u32 = 4096;
/// The bytes that so many packets of a control connection take at most, as the kernel counts.
const ROOM: usize = LONGEST as usize * 4096;

/// A queue of the kernel that this program reads.
pub struct Queue {
    queue: nfq::Queue,
    number: u16,
    /// Where packets must not be accepted to go on.
    verdicts: Option<Verdicts>,
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

/// A packet that waits for its verdict.
pub struct Waiting(Message);

impl Waiting {
    /// The packet, from its IP header on.
    pub fn packet(&self) -> &[u8] {
        self.0.get_payload()
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
            Ok(Self { queue, number, verdicts: None })
        };
        open().map_err(|cause| QueueError::new(number, cause))
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Waits for the next packet.
    pub fn next_packet(&mut self) -> io::Result<Waiting> {
        self.queue.recv().map(Waiting)
    }

    /// From now on packets go on past what the kernel does for helpers of programs: see [`Verdicts`]. For connections
    /// that have such a helper. What a full queue has no room for does not go on at all, whatever it was opened for: the
    /// kernel would do all that for it.
    pub fn go_past_helpers(&mut self) -> io::Result<()> {
        let missing = |what| io::Error::new(io::ErrorKind::NotFound, what);
        let readers = readers().ok_or_else(|| missing("the kernel shows no list of queues"))?;
        let own = readers.iter().find(|reader| reader.queue == self.number);
        let port = own.ok_or_else(|| missing("the queue is not in the kernel's list"))?.port;
        let is_own = |socket: &OwnedFd| {
            let address = net::getsockname(socket).and_then(netlink::SocketAddrNetlink::try_from);
            address.is_ok_and(|address| address.pid() == port)
        };
        let socket = sockets()?.into_iter().find(is_own).ok_or_else(|| missing("the queue's socket is not here"))?;
        let is_free = |number: &u16| readers.iter().all(|reader| reader.queue != *number);
        let nobody = (0..=u16::MAX).rev().find(is_free).ok_or_else(|| missing("every queue is read by somebody"))?;
        let mut verdicts = Verdicts::new(socket, self.number, nobody);
        verdicts.close_when_full()?;
        self.verdicts = Some(verdicts);
        Ok(())
    }

    /// Lets a packet go on.
    pub fn accept(&mut self, waiting: Waiting) -> io::Result<()> {
        let Waiting(mut message) = waiting;
        if let Some(verdicts) = &mut self.verdicts {
            return Ok(verdicts.go_on(message.get_packet_id(), None)?);
        }
        message.set_verdict(Verdict::Accept);
        self.queue.verdict(message)
    }

    /// Lets another packet go on in the place of this one: from its IP header on, with all lengths and checksums in it
    /// as they have to be. It may be longer or shorter.
    pub fn accept_as(&mut self, waiting: Waiting, packet: &[u8]) -> io::Result<()> {
        let Waiting(mut message) = waiting;
        if let Some(verdicts) = &mut self.verdicts {
            return Ok(verdicts.go_on(message.get_packet_id(), Some(packet))?);
        }
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
