//! A netlink socket of netfilter: sends requests and receives answers, with a deadline.
//!
//! The kernel handles a request within the send call, so the answer is mostly there when the call returns, and a
//! request takes two system calls. A kernel that is busy with another program's ruleset blocks the send call. The
//! deadline cannot end that; it ends only the wait for an answer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{self, Errno};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};
use socket2::{SockFilter, SockRef};

use super::bytes::{Head, Message, Messages, Writer, control, flags};
use super::error::Cause;

/// The kernel makes no larger datagram for a dump, and what it tells of changes is smaller.
const LARGEST: usize = 64 * 1024;

/// What answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    /// So many acknowledgements.
    Acknowledgements(usize),
    /// One message.
    Message,
    /// Messages, and then the end of them.
    Dump,
}

/// A socket with its buffers.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    requests: Writer,
    answers: Box<[u8]>,
    sequence: u32,
    /// How long an answer may take.
    patience: Duration,
}

/// Requests that happen together or not at all.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    requests: &'a mut Writer,
    sequence: &'a mut u32,
    awaited: usize,
}

impl Batch<'_> {
    /// Appends a request that will be acknowledged.
    pub(super) fn request(&mut self, kind: u16, more: u16, family: u8, body: impl FnOnce(&mut Writer)) {
        self.append(kind, flags::ACK | more, family, body);
        self.awaited += 1;
    }

    /// Appends a request of which only a refusal is told. Something acknowledged has to come behind it: all of a batch
    /// happens or nothing. Each acknowledgement left out spares a system call.
    pub(super) fn quiet_request(&mut self, kind: u16, more: u16, family: u8, body: impl FnOnce(&mut Writer)) {
        self.append(kind, more, family, body);
    }

    fn append(&mut self, kind: u16, more: u16, family: u8, body: impl FnOnce(&mut Writer)) {
        let sequence = next(self.sequence);
        let flags = flags::REQUEST | more;
        self.requests.message(Head { kind, flags, sequence, family, resource: 0 }, body);
    }
}

fn next(sequence: &mut u32) -> u32 {
    *sequence = sequence.wrapping_add(1);
    *sequence
}

impl Socket {
    /// A socket that hears what is told to `groups`, a mask.
    pub(super) fn open(groups: u32, patience: Duration) -> Result<Self, Cause> {
        let fd =
            net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))
                .map_err(Cause::SystemCall)?;
        net::bind(&fd, &netlink::SocketAddrNetlink::new(0, groups)).map_err(Cause::SystemCall)?;
        let answers = vec![0; LARGEST].into();
        Ok(Self { fd, requests: Writer::default(), answers, sequence: 0, patience })
    }

    /// The number by which the kernel names this socket to those who watch.
    pub(super) fn number(&self) -> Result<u32, Cause> {
        let address = net::getsockname(&self.fd).map_err(Cause::SystemCall)?;
        netlink::SocketAddrNetlink::try_from(address).map(|address| address.pid()).map_err(Cause::SystemCall)
    }

    /// Makes room for so many bytes of what is told; as much as may be, if that is too much.
    pub(super) fn make_room(&self, bytes: usize) {
        if net::sockopt::set_socket_recv_buffer_size_force(&self.fd, bytes).is_err() {
            // Without the privilege the system's own limit holds, and a watcher that misses something is told so.
            let _ = net::sockopt::set_socket_recv_buffer_size(&self.fd, bytes);
        }
    }

    /// From now on hears only what this program of the kernel's packet filter lets through.
    pub(super) fn filter(&self, program: &[SockFilter]) -> Result<(), Cause> {
        SockRef::from(&self.fd)
            .attach_filter(program)
            .map_err(|error| Cause::SystemCall(Errno::from_io_error(&error).unwrap_or(Errno::INVAL)))
    }

    /// Sends one request and awaits its acknowledgement.
    pub(super) fn request(
        &mut self,
        kind: u16,
        more: u16,
        family: u8,
        body: impl FnOnce(&mut Writer),
    ) -> Result<(), Cause> {
        let first = self.begin(kind, flags::REQUEST | flags::ACK | more, family, body);
        self.exchange(first, Awaited::Acknowledgements(1), |_| {})
    }

    /// Sends requests together, which the kernel carries out one after the other, and awaits what became of each: an
    /// error of one does not keep it from the next.
    pub(super) fn requests<const COUNT: usize>(
        &mut self,
        fill: impl FnOnce(&mut Batch<'_>),
    ) -> Result<[Result<(), Errno>; COUNT], Cause> {
        self.requests.clear();
        let first = self.sequence.wrapping_add(1);
        let mut batch = Batch { requests: &mut self.requests, sequence: &mut self.sequence, awaited: 0 };
        fill(&mut batch);
        debug_assert_eq!(batch.awaited, COUNT, "as many requests as answers");
        let mut results = [None; COUNT];
        self.converse(first, |message| {
            if message.kind != control::ERROR {
                return Ok(false);
            }
            let index = usize::try_from(message.sequence.wrapping_sub(first)).ok();
            let place = index.and_then(|index| results.get_mut(index)).ok_or(Cause::Garbled)?;
            *place = Some(match message.status().ok_or(Cause::Garbled)? {
                0 => Ok(()),
                status => Err(Errno::from_raw_os_error(status.wrapping_neg())),
            });
            Ok(results.iter().all(Option::is_some))
        })?;
        Ok(results.map(|result| result.expect("all have come")))
    }

    /// Sends one request and hands its answer to `read`.
    pub(super) fn look_up<T>(
        &mut self,
        kind: u16,
        family: u8,
        body: impl FnOnce(&mut Writer),
        read: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<T, Cause> {
        let first = self.begin(kind, flags::REQUEST, family, body);
        let mut found = None;
        self.exchange(first, Awaited::Message, |message| found = read(message))?;
        found.ok_or(Cause::Garbled)
    }

    /// Asks for a list and hands each of its messages to `hear`. What was heard before an error is not the whole.
    pub(super) fn dump(
        &mut self,
        kind: u16,
        family: u8,
        body: impl FnOnce(&mut Writer),
        hear: impl FnMut(Message<'_>),
    ) -> Result<(), Cause> {
        let first = self.begin(kind, flags::REQUEST | flags::DUMP, family, body);
        self.exchange(first, Awaited::Dump, hear)
    }

    /// Sends what `fill` puts into a batch for a subsystem, and awaits all acknowledgements.
    pub(super) fn batch(&mut self, subsystem: u16, fill: impl FnOnce(&mut Batch<'_>)) -> Result<(), Cause> {
        let (first, awaited) = self.fill(subsystem, fill);
        self.bracket(control::BATCH_END, subsystem);
        self.exchange(first, Awaited::Acknowledgements(awaited), |_| {})
    }

    /// Sends what `fill` puts into a batch, without the end that would make it happen: only the answers come.
    pub(super) fn dry_run(&mut self, subsystem: u16, fill: impl FnOnce(&mut Batch<'_>)) -> Result<(), Cause> {
        let (first, awaited) = self.fill(subsystem, fill);
        self.exchange(first, Awaited::Acknowledgements(awaited), |_| {})
    }

    fn fill(&mut self, subsystem: u16, fill: impl FnOnce(&mut Batch<'_>)) -> (u32, usize) {
        self.requests.clear();
        let first = self.bracket(control::BATCH_BEGIN, subsystem);
        let mut batch = Batch { requests: &mut self.requests, sequence: &mut self.sequence, awaited: 0 };
        fill(&mut batch);
        (first, batch.awaited)
    }

    fn bracket(&mut self, kind: u16, subsystem: u16) -> u32 {
        let sequence = next(&mut self.sequence);
        let head = Head { kind, flags: flags::REQUEST, sequence, family: 0, resource: subsystem };
        self.requests.message(head, |_| {});
        sequence
    }

    fn begin(&mut self, kind: u16, flags: u16, family: u8, body: impl FnOnce(&mut Writer)) -> u32 {
        self.requests.clear();
        let sequence = next(&mut self.sequence);
        self.requests.message(Head { kind, flags, sequence, family, resource: 0 }, body);
        sequence
    }

    /// Sends what was written and reads until it has been answered. The requests are those from `first` on.
    fn exchange(&mut self, first: u32, awaited: Awaited, mut hear: impl FnMut(Message<'_>)) -> Result<(), Cause> {
        let mut acknowledged = 0;
        let mut interrupted = false;
        self.converse(first, |message| {
            interrupted |= message.flags & flags::DUMP_INTERRUPTED != 0;
            match (message.kind, awaited) {
                (control::ERROR | control::DONE, _) if message.status() != Some(0) => {
                    let status = message.status().ok_or(Cause::Garbled)?;
                    Err(Cause::Refused(Errno::from_raw_os_error(status.wrapping_neg())))
                }
                (control::ERROR, Awaited::Acknowledgements(all)) => {
                    acknowledged += 1;
                    Ok(acknowledged == all)
                }
                (control::DONE, Awaited::Dump) if interrupted => Err(Cause::Restless),
                (control::DONE, Awaited::Dump) => Ok(true),
                (control::ERROR | control::DONE, _) => Ok(false),
                (_, Awaited::Message) => {
                    hear(message);
                    Ok(true)
                }
                (_, Awaited::Dump) if message.flags & flags::MULTI != 0 => {
                    hear(message);
                    Ok(false)
                }
                (_, _) => Ok(false),
            }
        })
    }

    /// Sends what was written and hands the answers to the requests from `first` on to `hear`, until that says that it
    /// has all.
    fn converse(&mut self, first: u32, mut hear: impl FnMut(Message<'_>) -> Result<bool, Cause>) -> Result<(), Cause> {
        let newest = self.sequence.wrapping_sub(first);
        io::retry_on_intr(|| net::send(&self.fd, self.requests.as_bytes(), SendFlags::empty()))
            .map_err(Cause::SystemCall)?;
        let mut deadline = None;
        loop {
            let Some(length) = receive(&self.fd, &mut self.answers)? else {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.patience);
                if !wait(self.fd.as_fd(), deadline.saturating_duration_since(Instant::now()))? {
                    return Err(Cause::Late);
                }
                continue;
            };
            let datagram = self.answers.get(..length).ok_or(Cause::Garbled)?;
            for message in Messages::of(datagram) {
                // Answers to an earlier request, that came too late, are of no interest any more.
                if message.sequence.wrapping_sub(first) <= newest && hear(message)? {
                    return Ok(());
                }
            }
        }
    }

    /// The next datagram that was told to the groups; none if none comes in time.
    pub(super) fn hear(&mut self, patience: Duration) -> Result<Option<&[u8]>, Cause> {
        let mut length = receive(&self.fd, &mut self.answers)?;
        if length.is_none() && wait(self.fd.as_fd(), patience)? {
            length = receive(&self.fd, &mut self.answers)?;
        }
        match length {
            None => Ok(None),
            Some(length) => self.answers.get(..length).map(Some).ok_or(Cause::Garbled),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Takes a datagram if one is there. Its length may be more than the buffer holds.
fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> Result<Option<usize>, Cause> {
    match io::retry_on_intr(|| net::recv(fd, &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC)) {
        Ok((_, length)) => Ok(Some(length)),
        Err(Errno::AGAIN) => Ok(None),
        Err(Errno::NOBUFS) => Err(Cause::Lost),
        Err(errno) => Err(Cause::SystemCall(errno)),
    }
}

/// Waits until something can be read, or the time is over. A signal ends the wait early, as if nothing had come.
fn wait(fd: BorrowedFd<'_>, patience: Duration) -> Result<bool, Cause> {
    if patience.is_zero() {
        return Ok(false);
    }
    let timeout = Timespec::try_from(patience).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(true),
        Err(errno) => Err(Cause::SystemCall(errno)),
    }
}
