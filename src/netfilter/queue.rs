//! Packets from an NFQUEUE, and the verdicts on them.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::num::NonZeroU16;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use nfq::Message;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, netlink, recvmsg,
    socketpair, sockopt,
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::readers::readers;
use crate::core::policy::{Queues, WhenDown};
use crate::netfilter::netlink::Verdicts;

/// How many packets may wait in the kernel for a verdict.
const LONGEST: u32 = 4096;
/// The bytes that so many packets of a control connection take at most, as the kernel counts.
const ROOM: usize = LONGEST as usize * 4096;

/// The hook of the packets that this host sends.
const NF_INET_LOCAL_OUT: u8 = 3;

/// In how many queues from the end is looked for one that nobody reads.
const MOST_TRIED: usize = 1000;

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

    /// Its mark.
    pub fn mark(&self) -> u32 {
        self.message.get_nfmark()
    }

    /// The number of the interface through which it came; 0 if this host sends it.
    pub fn interface(&self) -> u32 {
        if self.is_outgoing() { 0 } else { self.message.get_indev() }
    }

    /// Whether this host sends it, so that it has a route already.
    pub fn is_outgoing(&self) -> bool {
        self.message.get_hook() == NF_INET_LOCAL_OUT
    }

    /// Lets it go on, with another mark if one is given.
    pub fn accept(self, mark: Option<u32>) -> io::Result<()> {
        Ok(self.verdicts.go_on(self.message.get_packet_id(), None, mark)?)
    }

    /// Does not let it go on.
    pub fn discard(self) -> io::Result<()> {
        Ok(self.verdicts.discard(self.message.get_packet_id())?)
    }

    /// Lets another packet go on in its place: from its IP header on, with all lengths and checksums in it as they have
    /// to be. It may be longer or shorter.
    pub fn accept_as(self, packet: &[u8], mark: Option<u32>) -> io::Result<()> {
        Ok(self.verdicts.go_on(self.message.get_packet_id(), Some(packet), mark)?)
    }
}

impl Queue {
    /// Begins to read a queue. Rules that lead to it may stand already.
    ///
    /// `when_down` is what happens to packets that nobody reads, and so to those that a full queue has no room for: they
    /// go on unread, or they are dropped.
    pub fn open(number: u16, when_down: WhenDown) -> Result<Self, QueueError> {
        let open = || {
            let (mut queue, socket) = open_with_socket()?;
            make_room(&socket)?;
            queue.bind(number)?;
            queue.set_queue_max_len(number, LONGEST)?;
            queue.set_fail_open(number, when_down == WhenDown::Open)?;
            queue.set_recv_enobufs(false)?;
            Ok(Self { queue, number, verdicts: Arc::new(Verdicts::new(socket, number)) })
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

    /// What its packets are answered by, from any thread.
    pub fn verdicts(&self) -> Arc<Verdicts> {
        Arc::clone(&self.verdicts)
    }

    /// From now on [`Self::next_packet`] waits no longer than that, and then fails with [`io::ErrorKind::WouldBlock`].
    pub fn wait_at_most(&self, time: Duration) -> io::Result<()> {
        Ok(self.verdicts.wait_at_most(time)?)
    }

    /// From now on packets go on past what the kernel does for helpers of programs: see [`Verdicts`]. For connections
    /// that have such a helper. What a full queue has no room for does not go on at all, whatever it was opened for: the
    /// kernel would do all that for it.
    pub fn go_past_helpers(&mut self) -> io::Result<()> {
        // Whether somebody reads a queue shows when one tries to: the list of readers may be hidden.
        let is_free = |number: &u16| nfq::Queue::open().and_then(|mut queue| queue.bind(*number)).is_ok();
        let nobody = (0..=u16::MAX).rev().take(MOST_TRIED).find(is_free);
        let nobody = nobody.ok_or_else(|| io::Error::other("there is no queue that nobody reads"))?;
        let verdicts = self.verdicts.past_helpers(nobody)?;
        verdicts.close_when_full()?;
        self.verdicts = Arc::new(verdicts);
        Ok(())
    }
}

/// How many processors this program may use. It is found out once: later the files that tell of it cannot be read, and
/// a queue for each processor is bound once as well.
pub fn processors() -> NonZeroU16 {
    static PROCESSORS: OnceLock<NonZeroU16> = OnceLock::new();
    *PROCESSORS.get_or_init(|| {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        u16::try_from(processors).ok().and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MAX)
    })
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

/// Opens a queue of the crate nfq, and finds its socket, which the crate keeps to itself: it is the one that was not
/// there before.
fn open_with_socket() -> io::Result<(nfq::Queue, OwnedFd)> {
    /// One at a time, or it would not be known which is whose.
    static OPENING: Mutex<()> = Mutex::new(());
    let _alone = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    let before = sockets()?;
    let queue = nfq::Queue::open()?;
    let is_new = |(name, _): &(PathBuf, OwnedFd)| before.iter().all(|(known, _)| known != name);
    let found = sockets()?.into_iter().find(is_new);
    let (_, socket) =
        found.ok_or_else(|| io::Error::other("the queue's socket is not among the files of this process"))?;
    Ok((queue, socket))
}

/// Gives a queue's socket a buffer for as many packets as may wait. With the system's own a hundred fill it, and the kernel
/// lets the next ones pass unread.
fn make_room(socket: &OwnedFd) -> io::Result<()> {
    sockopt::set_socket_recv_buffer_size_force(socket, ROOM)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, ROOM))?;
    Ok(())
}

/// The sockets of the crate nfq in this process, each with a name of its own: those to netfilter that programs started
/// from here would inherit. Nobody else opens such.
fn sockets() -> io::Result<Vec<(PathBuf, OwnedFd)>> {
    let mut sockets = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")?.flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // What is gone by now is not meant.
        let Ok(name) = fs::read_link(entry.path()) else { continue };
        if !is_inherited(number) {
            continue;
        }
        let Ok(file) = duplicate(number) else { continue };
        if sockopt::socket_domain(&file) == Ok(AddressFamily::NETLINK)
            && sockopt::socket_protocol(&file) == Ok(Some(netlink::NETFILTER))
        {
            sockets.push((name, file));
        }
    }
    Ok(sockets)
}

/// Another name for an open file of this process that is known by its number alone: this process sends it to itself.
fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    let (from, to) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let byte = [IoSlice::new(&[0])];
    let files = [ControlMessage::ScmRights(&[number])];
    sendmsg::<()>(from.as_raw_fd(), &byte, &files, MsgFlags::empty(), None)?;
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    recvmsg(&to, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    files.flatten().next().ok_or_else(|| io::Error::other("the file did not arrive"))
}

/// Whether programs that are started from here have that file as well.
fn is_inherited(file: RawFd) -> bool {
    let shown = fs::read_to_string(format!("/proc/self/fdinfo/{file}")).unwrap_or_default();
    let flags = shown.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & OFlags::CLOEXEC.bits() == 0)
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("number", &self.number).finish_non_exhaustive()
    }
}
