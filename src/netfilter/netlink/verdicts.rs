//! Verdicts on queued packets (nfnetlink_queue, linux/netfilter/nfnetlink_queue.h). The crate nfq cannot send a verdict
//! while another thread waits for packets, and lacks one verdict: to requeue a packet with bypass (`NF_QUEUE`).
//!
//! When a packet is accepted and its connection has a userspace helper, the kernel adjusts its sequence numbers
//! (`nf_confirm_cthelper`), and adjusts them again when the packet leaves. A packet that is requeued, with bypass, to a
//! queue that no program reads continues, too, and is adjusted only once.
//!
//! If a full queue is fail-open, the kernel itself accepts the packets that do not fit (`nfqnl_reinject` in
//! `__nfqnl_enqueue_packet`), and would adjust these twice as well. So such a queue has to be fail-closed.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{self, SendFlags};

use super::bytes::{Head, Writer, message_type};
use super::uapi::*;

/// The longest packet that fits into an attribute.
const MAX_PAYLOAD: usize = u16::MAX as usize - NLA_ALIGNTO;

/// Sends verdicts through the socket that bound the queue: the kernel takes none from another one.
#[derive(Debug)]
pub struct Verdicts {
    socket: OwnedFd,
    queue: u16,
    /// The verdict that accepts.
    accept: u32,
}

impl Verdicts {
    /// For a queue that this socket has bound.
    pub fn new(socket: OwnedFd, queue: u16) -> Self {
        Self { socket, queue, accept: NF_ACCEPT }
    }

    /// The same, but accepted packets skip the kernel's work for userspace helpers. No program reads the queue `unread`.
    pub fn skipping_helpers(&self, unread: u16) -> std::io::Result<Self> {
        let accept = u32::from(unread) << 16 | NF_VERDICT_FLAG_QUEUE_BYPASS | NF_QUEUE;
        Ok(Self { socket: self.socket.try_clone()?, queue: self.queue, accept })
    }

    /// Makes the full queue fail-closed: the kernel drops packets that do not fit, and their senders retransmit them.
    ///
    /// Asks for no acknowledgement, which would arrive among the packets; the kernel only reports an error.
    pub fn clear_fail_open(&self) -> io::Result<()> {
        self.send(NFQNL_MSG_CONFIG, |w| {
            w.u32(NFQA_CFG_MASK, NFQA_CFG_F_FAIL_OPEN);
            w.u32(NFQA_CFG_FLAGS, 0);
        })
    }

    /// Unbinds the queue, as if the socket were closed: packets in the queue are dropped, and later ones pass if the rules
    /// have `bypass`. Takes none of the locks that a change of the ruleset takes.
    pub fn unbind(&self) -> io::Result<()> {
        // struct nfqnl_msg_config_cmd: command, padding, protocol family, which the kernel ignores.
        self.send(NFQNL_MSG_CONFIG, |w| w.bytes(NFQA_CFG_CMD, &[NFQNL_CFG_CMD_UNBIND, 0, 0, 0]))
    }

    /// A thread that waits for a packet waits no longer than this, and then gets `EAGAIN`.
    pub fn set_receive_timeout(&self, timeout: Duration) -> io::Result<()> {
        sockopt::set_socket_timeout(&self.socket, Timeout::Recv, Some(timeout))
    }

    /// Accepts the packet with this ID, or another packet in its place, with another packet mark if `mark` has one.
    pub fn accept(&self, packet_id: u32, replacement: Option<&[u8]>, mark: Option<u32>) -> io::Result<()> {
        if replacement.is_some_and(|packet| packet.len() > MAX_PAYLOAD) {
            return Err(io::Errno::MSGSIZE);
        }
        self.send(NFQNL_MSG_VERDICT, |w| write_verdict(w, self.accept, packet_id, replacement, mark))
    }

    /// Has the packet with this ID pass the hook that queued it again, from the hook's first rule on.
    pub fn repeat(&self, packet_id: u32) -> io::Result<()> {
        self.send(NFQNL_MSG_VERDICT, |w| write_verdict(w, NF_REPEAT, packet_id, None, None))
    }

    /// Drops the packet with this ID.
    pub fn drop_packet(&self, packet_id: u32) -> io::Result<()> {
        self.send(NFQNL_MSG_VERDICT, |w| write_verdict(w, NF_DROP, packet_id, None, None))
    }

    fn send(&self, message: u16, body: impl FnOnce(&mut Writer)) -> io::Result<()> {
        let mut writer = Writer::default();
        writer.message(head(message, self.queue), body);
        io::retry_on_intr(|| net::send(&self.socket, writer.as_bytes(), SendFlags::empty())).map(drop)
    }
}

fn head(message: u16, queue: u16) -> Head {
    let kind = message_type(NFNL_SUBSYS_QUEUE, message);
    Head { kind, flags: NLM_F_REQUEST, res_id: queue, ..Head::default() }
}

fn write_verdict(w: &mut Writer, verdict: u32, packet_id: u32, replacement: Option<&[u8]>, mark: Option<u32>) {
    w.bytes(NFQA_VERDICT_HDR, &[verdict.to_be_bytes(), packet_id.to_be_bytes()].concat());
    if let Some(mark) = mark {
        w.u32(NFQA_MARK, mark);
    }
    if let Some(packet) = replacement {
        w.bytes(NFQA_PAYLOAD, packet);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(send: impl FnOnce(&Verdicts) -> io::Result<()>) -> Vec<u8> {
        let (socket, other) =
            net::socketpair(net::AddressFamily::UNIX, net::SocketType::DGRAM, net::SocketFlags::CLOEXEC, None)
                .expect("two sockets");
        send(&Verdicts::new(socket, 7)).expect("it is sent");
        let mut buffer = [0; 128];
        let (length, _) = net::recv(&other, &mut buffer, net::RecvFlags::DONTWAIT).expect("a message");
        buffer[..length].to_vec()
    }

    #[test]
    fn skipping_helpers_requeues_with_bypass() {
        let bytes = sent(|verdicts| {
            let verdicts = verdicts.skipping_helpers(0xfffe).expect("a copy");
            verdicts.accept(0x0102_0304, Some(b"abc"), Some(0x0506_0708))
        });
        assert_eq!(bytes[16..20], [0, 0, 0, 7]);
        assert_eq!(bytes[24..32], [0xff, 0xfe, 0x80, 3, 1, 2, 3, 4]);
        assert_eq!(bytes[36..40], [5, 6, 7, 8]);
        assert_eq!(bytes[44..], *b"abc\0");
    }

    #[test]
    fn accept_and_drop_are_the_kernels_numbers() {
        let accepted = sent(|verdicts| verdicts.accept(9, None, None));
        let dropped = sent(|verdicts| verdicts.drop_packet(9));
        assert_eq!((&accepted[24..], &dropped[24..]), (&[0, 0, 0, 1, 0, 0, 0, 9][..], &[0, 0, 0, 0, 0, 0, 0, 9][..]));
    }

    #[test]
    fn clearing_fail_open_changes_one_flag() {
        let bytes = sent(Verdicts::clear_fail_open);
        assert_eq!(bytes[16..20], [0, 0, 0, 7]);
        if cfg!(target_endian = "little") {
            assert_eq!(bytes[20..], [8, 0, 4, 0, 0, 0, 0, 1, 8, 0, 5, 0, 0, 0, 0, 0]);
        }
    }
}
