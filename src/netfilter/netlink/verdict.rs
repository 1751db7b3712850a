//! Verdicts on queued packets. The crate that reads queues cannot send a verdict from one thread while another
//! thread waits for packets, and it does not know one of the verdicts: requeue a packet to another queue (NF_QUEUE).
//!
//! When a packet is accepted and its connection has a userspace helper, the kernel corrects its sequence numbers
//! (`nf_confirm_cthelper`), and corrects them again where the packet leaves. A packet that is not accepted but
//! requeued, with bypass, to a queue that nobody reads also goes on, and is corrected once.
//!
//! If a full queue is fail-open, the kernel itself accepts the packets that do not fit (`nfqnl_reinject` in
//! `__nfqnl_enqueue_packet`), and would correct these twice as well. So such a queue has to be fail-closed.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{self, SendFlags};

use super::bytes::{Head, Writer, flags};

const VERDICT: u16 = 0x0301;
const CONFIGURE: u16 = 0x0302;
const VERDICT_HEADER: u16 = 2;
const NFQA_MARK: u16 = 3;
const PAYLOAD: u16 = 10;
const NFQA_CFG_CMD: u16 = 1;
const NFQNL_CFG_CMD_UNBIND: u8 = 2;
const WHICH_FLAGS: u16 = 4;
const FLAGS: u16 = 5;
/// What it has no room for is accepted.
const OPEN_WHEN_FULL: u32 = 1;
const NF_DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// To a queue, whose number is in the upper half; passed by if nobody reads it.
const QUEUE: u32 = 3;
const BYPASS: u32 = 0x8000;

/// The longest packet that an attribute has room for.
const LONGEST: usize = u16::MAX as usize - 4;

/// Says verdicts through the socket by which a queue is read: from another one the kernel takes none.
#[derive(Debug)]
pub struct Verdicts {
    socket: OwnedFd,
    queue: u16,
    verdict: u32,
}

impl Verdicts {
    /// For that queue, read by that socket.
    pub fn new(socket: OwnedFd, queue: u16) -> Self {
        Self { socket, queue, verdict: ACCEPT }
    }

    /// The same, past what the kernel does for helpers of programs. `nobody` is a queue that nobody reads.
    pub fn past_helpers(&self, nobody: u16) -> std::io::Result<Self> {
        let verdict = u32::from(nobody) << 16 | BYPASS | QUEUE;
        Ok(Self { socket: self.socket.try_clone()?, queue: self.queue, verdict })
    }

    /// What the queue has no room for is dropped from now on, and sent again by its sender.
    ///
    /// The kernel is not asked for an answer, which would come among the packets; only a refusal does.
    pub fn close_when_full(&self) -> io::Result<()> {
        let mut message = Writer::default();
        write_closed(&mut message, self.queue);
        self.send(&message)
    }

    /// Gives the queue up, as if the socket were closed: what waits in it is dropped, and what comes passes by if the rules
    /// say so. Takes none of the locks that a change of the ruleset takes.
    pub fn unbind(&self) -> io::Result<()> {
        let mut message = Writer::default();
        write_unbind(&mut message, self.queue);
        self.send(&message)
    }

    /// Whoever waits for a packet of the queue does so no longer than that, and is then told `EAGAIN`.
    pub fn wait_at_most(&self, time: Duration) -> io::Result<()> {
        sockopt::set_socket_timeout(&self.socket, Timeout::Recv, Some(time))
    }

    /// Lets the packet with that number go on, or this one in its place; with another mark if one is given.
    pub fn go_on(&self, packet: u32, instead: Option<&[u8]>, mark: Option<u32>) -> io::Result<()> {
        if instead.is_some_and(|packet| packet.len() > LONGEST) {
            return Err(io::Errno::MSGSIZE);
        }
        let mut message = Writer::default();
        write(&mut message, self.queue, self.verdict, packet, instead, mark);
        self.send(&message)
    }

    /// Drops the packet with that number.
    pub fn discard(&self, packet: u32) -> io::Result<()> {
        let mut message = Writer::default();
        write(&mut message, self.queue, NF_DROP, packet, None, None);
        self.send(&message)
    }

    fn send(&self, message: &Writer) -> io::Result<()> {
        io::retry_on_intr(|| net::send(&self.socket, message.as_bytes(), SendFlags::empty())).map(drop)
    }
}

fn write(message: &mut Writer, queue: u16, verdict: u32, packet: u32, instead: Option<&[u8]>, mark: Option<u32>) {
    let head = Head { kind: VERDICT, flags: flags::REQUEST, sequence: 0, family: 0, resource: queue };
    message.message(head, |w| {
        w.attribute(VERDICT_HEADER, &[verdict.to_be_bytes(), packet.to_be_bytes()].concat());
        if let Some(mark) = mark {
            w.number(NFQA_MARK, mark);
        }
        if let Some(instead) = instead {
            w.attribute(PAYLOAD, instead);
        }
    });
}

fn write_closed(message: &mut Writer, queue: u16) {
    let head = Head { kind: CONFIGURE, flags: flags::REQUEST, sequence: 0, family: 0, resource: queue };
    message.message(head, |w| {
        w.number(WHICH_FLAGS, OPEN_WHEN_FULL);
        w.number(FLAGS, 0);
    });
}

fn write_unbind(message: &mut Writer, queue: u16) {
    let head = Head { kind: CONFIGURE, flags: flags::REQUEST, sequence: 0, family: 0, resource: queue };
    // The command, a byte that is not used, and a protocol family, which the kernel ignores.
    message.message(head, |w| w.attribute(NFQA_CFG_CMD, &[NFQNL_CFG_CMD_UNBIND, 0, 0, 0]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_goes_to_a_queue_that_may_be_passed_by() {
        let (socket, _other) =
            net::socketpair(net::AddressFamily::UNIX, net::SocketType::STREAM, net::SocketFlags::CLOEXEC, None)
                .expect("two sockets");
        let verdicts = Verdicts::new(socket, 7);
        assert_eq!(verdicts.verdict, 1);
        let mut message = Writer::default();
        let verdict = verdicts.past_helpers(0xfffe).expect("a copy").verdict;
        write(&mut message, 7, verdict, 0x0102_0304, Some(b"abc"), Some(0x0506_0708));
        let bytes = message.as_bytes();
        assert_eq!(bytes[16..20], [0, 0, 0, 7]);
        assert_eq!(bytes[24..32], [0xff, 0xfe, 0x80, 3, 1, 2, 3, 4]);
        assert_eq!(bytes[36..40], [5, 6, 7, 8]);
        assert_eq!(bytes[44..], *b"abc\0");
    }

    #[test]
    fn a_full_queue_is_closed_by_taking_one_flag_away() {
        let mut message = Writer::default();
        write_closed(&mut message, 7);
        let bytes = message.as_bytes();
        assert_eq!(bytes[16..20], [0, 0, 0, 7]);
        assert_eq!(bytes[20..], [8, 0, 4, 0, 0, 0, 0, 1, 8, 0, 5, 0, 0, 0, 0, 0]);
    }
}
