//! A netlink socket of netfilter (linux/netlink.h, linux/netfilter/nfnetlink.h): sends requests and receives answers
//! within a deadline.
//!
//! The kernel handles a request within the system call `send`, so that most answers have come when the call returns, and
//! a request takes two system calls. While the kernel loads another program's ruleset, `send` blocks. The deadline only
//! limits the wait for an answer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{self, Errno};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};
use socket2::{SockFilter, SockRef};

use super::bytes::{Head, Message, Messages, Writer, message_type};
use super::error::{Cause, Error, Operation};
use super::uapi::*;

/// The kernel makes no larger datagram for a dump, and notifications are smaller.
const MAX_DATAGRAM: usize = 64 * 1024;
/// More datagrams than the answer to any request has: a dump has some sixty conntrack entries in each.
const MAX_DATAGRAMS: usize = 1 << 20;
/// How often a list is dumped anew because another program changed it during the dump.
const DUMP_ATTEMPTS: usize = 16;

/// What the kernel answers to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// This many acknowledgements (`NLMSG_ERROR`, often with status zero).
    Acknowledgements(usize),
    /// One message.
    Message,
    /// Messages, and `NLMSG_DONE` behind them.
    Dump,
}

/// A socket for requests to one subsystem, with its buffers.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    /// `NFNL_SUBSYS_*`.
    subsystem: u16,
    requests: Writer,
    answers: Box<[u8]>,
    sequence: u32,
    /// How long the kernel may take to answer.
    timeout: Duration,
}

/// Requests that are sent together.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    requests: &'a mut Writer,
    subsystem: u16,
    sequence: &'a mut u32,
    acknowledgements: usize,
}

impl Batch<'_> {
    /// Appends a request that the kernel acknowledges.
    pub(super) fn request(&mut self, message: u16, flags: u16, family: u8, body: impl FnOnce(&mut Writer)) {
        self.append(message, NLM_F_ACK | flags, family, body);
        self.acknowledgements += 1;
    }

    /// Appends a request that the kernel answers only if it refuses it. In a transaction, where all requests succeed or
    /// none, one acknowledged request behind it is enough. Each acknowledgement left out saves a system call.
    pub(super) fn quiet_request(&mut self, message: u16, flags: u16, family: u8, body: impl FnOnce(&mut Writer)) {
        self.append(message, flags, family, body);
    }

    fn append(&mut self, message: u16, flags: u16, family: u8, body: impl FnOnce(&mut Writer)) {
        let kind = message_type(self.subsystem, message);
        let sequence = next(self.sequence);
        self.requests.message(Head { kind, flags: NLM_F_REQUEST | flags, sequence, family, res_id: 0 }, body);
    }
}

fn next(sequence: &mut u32) -> u32 {
    *sequence = sequence.wrapping_add(1);
    *sequence
}

impl Socket {
    /// A socket for requests; `object` names the subsystem in errors.
    pub(super) fn open(subsystem: u16, object: &str, timeout: Duration) -> Result<Self, Error> {
        Self::subscribe(subsystem, &[], timeout).map_err(|cause| Error::new(Operation::Connect, object, cause))
    }

    /// A socket that also receives the notifications of these groups (`NFNLGRP_*`).
    pub(super) fn subscribe(subsystem: u16, groups: &[u32], timeout: Duration) -> Result<Self, Cause> {
        Self::connect(netlink::NETFILTER, subsystem, groups, timeout)
    }

    /// A socket of a netlink protocol.
    pub(super) fn connect(
        protocol: net::Protocol,
        subsystem: u16,
        groups: &[u32],
        timeout: Duration,
    ) -> Result<Self, Cause> {
        let fd = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))
            .map_err(Cause::SystemCall)?;
        let groups = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        net::bind(&fd, &netlink::SocketAddrNetlink::new(0, groups)).map_err(Cause::SystemCall)?;
        let answers = vec![0; MAX_DATAGRAM].into();
        Ok(Self { fd, subsystem, requests: Writer::default(), answers, sequence: 0, timeout })
    }

    /// The port ID, by which notifications name the socket that caused them.
    pub(super) fn port_id(&self) -> Result<u32, Cause> {
        let address = net::getsockname(&self.fd).map_err(Cause::SystemCall)?;
        netlink::SocketAddrNetlink::try_from(address).map(|address| address.pid()).map_err(Cause::SystemCall)
    }

    pub(super) fn set_receive_buffer(&self, bytes: usize) {
        if net::sockopt::set_socket_recv_buffer_size_force(&self.fd, bytes).is_err() {
            // Without the privilege, net.core.rmem_max limits the size. A watcher learns when notifications are lost.
            let _ = net::sockopt::set_socket_recv_buffer_size(&self.fd, bytes);
        }
    }

    /// Makes room for a request of this many bytes. It never shrinks the buffer that the kernel gives.
    pub(super) fn set_send_buffer(&self, bytes: usize) -> Result<(), Cause> {
        let present = net::sockopt::socket_send_buffer_size(&self.fd).map_err(Cause::SystemCall)?;
        if bytes <= present {
            return Ok(());
        }
        // The kernel doubles the number.
        net::sockopt::set_socket_send_buffer_size_force(&self.fd, bytes).map_err(Cause::SystemCall)
    }

    /// From now on receives only what this classic BPF program lets through.
    pub(super) fn attach_filter(&self, program: &[SockFilter]) -> Result<(), Cause> {
        SockRef::from(&self.fd)
            .attach_filter(program)
            .map_err(|error| Cause::SystemCall(Errno::from_io_error(&error).unwrap_or(Errno::INVAL)))
    }

    /// Sends one request and waits for its acknowledgement.
    pub(super) fn request(
        &mut self,
        message: u16,
        flags: u16,
        family: u8,
        body: impl FnOnce(&mut Writer),
    ) -> Result<(), Cause> {
        let first = self.begin(message, NLM_F_ACK | flags, family, body);
        self.exchange(first, Answer::Acknowledgements(1), |_| {})
    }

    /// Sends requests together, and waits for the result of each. An error of one does not keep the kernel from the
    /// next.
    pub(super) fn requests<const COUNT: usize>(
        &mut self,
        fill: impl FnOnce(&mut Batch<'_>),
    ) -> Result<[Result<(), Errno>; COUNT], Cause> {
        self.requests.clear();
        let first = self.sequence.wrapping_add(1);
        let acknowledgements = self.fill(fill);
        debug_assert_eq!(acknowledgements, COUNT, "as many requests as answers");
        let mut results = [None; COUNT];
        self.converse(first, |message| {
            if message.kind != NLMSG_ERROR {
                return Ok(false);
            }
            let index = usize::try_from(message.sequence.wrapping_sub(first)).ok();
            let result = index.and_then(|index| results.get_mut(index)).ok_or(Cause::Malformed)?;
            *result = Some(match message.status().ok_or(Cause::Malformed)? {
                0 => Ok(()),
                status => Err(Errno::from_raw_os_error(status.wrapping_neg())),
            });
            Ok(results.iter().all(Option::is_some))
        })?;
        Ok(results.map(|result| result.expect("each has its result")))
    }

    /// Sends one request and reads its answer.
    pub(super) fn look_up<T>(
        &mut self,
        message: u16,
        family: u8,
        body: impl FnOnce(&mut Writer),
        read: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<T, Cause> {
        let first = self.begin(message, 0, family, body);
        self.read_answer(first, read)
    }

    /// The same in a protocol that has no `struct nfgenmsg`.
    pub(super) fn look_up_raw<T>(
        &mut self,
        kind: u16,
        body: impl FnOnce(&mut Writer),
        read: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<T, Cause> {
        self.requests.clear();
        let sequence = next(&mut self.sequence);
        self.requests.raw_message(kind, NLM_F_REQUEST, sequence, body);
        self.read_answer(sequence, read)
    }

    fn read_answer<T>(&mut self, first: u32, read: impl Fn(Message<'_>) -> Option<T>) -> Result<T, Cause> {
        let mut found = None;
        self.exchange(first, Answer::Message, |message| found = read(message))?;
        found.ok_or(Cause::Malformed)
    }

    /// Dumps a list, anew if another program changes it meanwhile.
    pub(super) fn list<T, I: IntoIterator<Item = T>>(
        &mut self,
        message: u16,
        family: u8,
        body: impl Fn(&mut Writer),
        read: impl Fn(Message<'_>) -> I,
    ) -> Result<Vec<T>, Cause> {
        let mut list = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            list.clear();
            let first = self.begin(message, NLM_F_DUMP, family, &body);
            match self.exchange(first, Answer::Dump, |message| list.extend(read(message))) {
                Err(Cause::Interrupted | Cause::Refused(Errno::INTR)) => {}
                result => return result.map(|()| list),
            }
        }
        Err(Cause::Interrupted)
    }

    /// Sends what `fill` appends as a transaction: all requests succeed or none.
    pub(super) fn transaction(&mut self, fill: impl FnOnce(&mut Batch<'_>)) -> Result<(), Cause> {
        let (first, acknowledgements) = self.begin_transaction(fill);
        self.bracket(NFNL_MSG_BATCH_END);
        self.exchange(first, Answer::Acknowledgements(acknowledgements), |_| {})
    }

    /// Sends a transaction without `NFNL_MSG_BATCH_END`: the kernel answers, and commits nothing.
    pub(super) fn dry_run(&mut self, fill: impl FnOnce(&mut Batch<'_>)) -> Result<(), Cause> {
        let (first, acknowledgements) = self.begin_transaction(fill);
        self.exchange(first, Answer::Acknowledgements(acknowledgements), |_| {})
    }

    fn begin_transaction(&mut self, fill: impl FnOnce(&mut Batch<'_>)) -> (u32, usize) {
        self.requests.clear();
        let first = self.bracket(NFNL_MSG_BATCH_BEGIN);
        (first, self.fill(fill))
    }

    fn fill(&mut self, fill: impl FnOnce(&mut Batch<'_>)) -> usize {
        let Self { requests, subsystem, sequence, .. } = self;
        let mut batch = Batch { requests, subsystem: *subsystem, sequence, acknowledgements: 0 };
        fill(&mut batch);
        batch.acknowledgements
    }

    fn bracket(&mut self, kind: u16) -> u32 {
        let sequence = next(&mut self.sequence);
        let head = Head { kind, flags: NLM_F_REQUEST, sequence, family: NFPROTO_UNSPEC, res_id: self.subsystem };
        self.requests.message(head, |_| {});
        sequence
    }

    fn begin(&mut self, message: u16, flags: u16, family: u8, body: impl FnOnce(&mut Writer)) -> u32 {
        self.requests.clear();
        let kind = message_type(self.subsystem, message);
        let sequence = next(&mut self.sequence);
        self.requests.message(Head { kind, flags: NLM_F_REQUEST | flags, sequence, family, res_id: 0 }, body);
        sequence
    }

    /// Sends the requests, the first of which has the sequence number `first`, and reads until they are answered.
    fn exchange(&mut self, first: u32, answer: Answer, mut read: impl FnMut(Message<'_>)) -> Result<(), Cause> {
        let mut acknowledged = 0;
        let mut interrupted = false;
        self.converse(first, |message| {
            interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match (message.kind, answer) {
                (NLMSG_ERROR | NLMSG_DONE, _) if message.status() != Some(0) => {
                    let status = message.status().ok_or(Cause::Malformed)?;
                    Err(Cause::Refused(Errno::from_raw_os_error(status.wrapping_neg())))
                }
                (NLMSG_ERROR, Answer::Acknowledgements(all)) => {
                    acknowledged += 1;
                    Ok(acknowledged == all)
                }
                (NLMSG_DONE, Answer::Dump) if interrupted => Err(Cause::Interrupted),
                (NLMSG_DONE, Answer::Dump) => Ok(true),
                (NLMSG_ERROR | NLMSG_DONE, _) => Ok(false),
                (_, Answer::Message) => {
                    read(message);
                    Ok(true)
                }
                (_, Answer::Dump) if message.flags & NLM_F_MULTI != 0 => {
                    read(message);
                    Ok(false)
                }
                (_, _) => Ok(false),
            }
        })
    }

    /// Sends the requests, and hands the answers to `read` until it says that it has all.
    fn converse(&mut self, first: u32, mut read: impl FnMut(Message<'_>) -> Result<bool, Cause>) -> Result<(), Cause> {
        let newest = self.sequence.wrapping_sub(first);
        io::retry_on_intr(|| net::send(&self.fd, self.requests.as_bytes(), SendFlags::empty()))
            .map_err(Cause::SystemCall)?;
        let mut deadline = None;
        for _ in 0..MAX_DATAGRAMS {
            let Some(length) = receive(&self.fd, &mut self.answers)? else {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.timeout);
                if !wait(self.fd.as_fd(), deadline.saturating_duration_since(Instant::now()))? {
                    return Err(Cause::Timeout);
                }
                continue;
            };
            let datagram = self.answers.get(..length).ok_or(Cause::Malformed)?;
            for message in Messages::of(datagram) {
                // Skips late answers to an earlier request, which has failed.
                if message.sequence.wrapping_sub(first) <= newest && read(message)? {
                    return Ok(());
                }
            }
        }
        Err(Cause::Malformed)
    }

    /// The next datagram of notifications; none if none comes in time.
    pub(super) fn receive(&mut self, timeout: Duration) -> Result<Option<&[u8]>, Cause> {
        let mut length = receive(&self.fd, &mut self.answers)?;
        if length.is_none() && wait(self.fd.as_fd(), timeout)? {
            length = receive(&self.fd, &mut self.answers)?;
        }
        match length {
            None => Ok(None),
            Some(length) => self.answers.get(..length).map(Some).ok_or(Cause::Malformed),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Receives a datagram if one has come. Its length may be greater than the buffer's.
fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> Result<Option<usize>, Cause> {
    match io::retry_on_intr(|| net::recv(fd, &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC)) {
        Ok((_, length)) => Ok(Some(length)),
        Err(Errno::AGAIN) => Ok(None),
        Err(Errno::NOBUFS) => Err(Cause::Overrun),
        Err(errno) => Err(Cause::SystemCall(errno)),
    }
}

/// Waits until the socket is readable, at most for `timeout`. A signal ends the wait early.
fn wait(fd: BorrowedFd<'_>, timeout: Duration) -> Result<bool, Cause> {
    if timeout.is_zero() {
        return Ok(false);
    }
    let timespec = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    match poll(&mut fds, Some(&timespec)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(true),
        Err(errno) => Err(Cause::SystemCall(errno)),
    }
}
