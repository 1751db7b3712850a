//! Every IP packet that a namespace sends or receives, on any interface.

use crate::error::{Context, Result};
use crate::namespace::Namespace;
use crate::pace::allow;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike};
use pinhole::core::time::Timestamp;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The size of the kernel's buffer.
const KEPT: usize = 16 << 20;
/// The longest packet that there can be.
const LONGEST: usize = 1 << 17;
/// How often the thread looks whether it is over, while nothing comes.
const LOOK: Duration = Duration::from_millis(10);

/// A packet, from its IP header on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// When it was read.
    pub time: Timestamp,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// A thread that records. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Recorder {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Packet>>>,
}

impl Recorder {
    /// Packets that pass after this has returned are recorded.
    pub(super) fn start(namespace: &Namespace) -> Result<Self> {
        let socket = namespace.run(open)?.doing(|| format!("record packets in {namespace}"))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        let thread = thread::Builder::new()
            .name(format!("record {namespace}"))
            .spawn(move || record(&socket, &until))
            .doing(|| format!("start a thread that records in {namespace}"))?;
        Ok(Self { is_over, thread: Some(thread) })
    }

    /// All that passed until now.
    pub(super) fn end(mut self) -> Vec<Packet> {
        self.stop()
    }

    fn stop(&mut self) -> Vec<Packet> {
        self.is_over.store(true, Ordering::SeqCst);
        // The thread does nothing that panics.
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A socket for the packets of all interfaces of the calling thread's namespace, in and out, without link headers.
fn open() -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    setsockopt(&socket, RcvBufForce, &KEPT)?;
    let look = i64::try_from(allow(LOOK).as_millis()).unwrap_or(i64::MAX);
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(look))?;
    Ok(socket)
}

fn record(socket: &OwnedFd, is_over: &AtomicBool) -> Vec<Packet> {
    let mut packets = Vec::new();
    let mut buffer = vec![0; LONGEST];
    loop {
        // Read before the last packets, so that all packets up to the stop are recorded.
        let is_last = is_over.load(Ordering::SeqCst);
        let flags = if is_last { MsgFlags::MSG_DONTWAIT } else { MsgFlags::empty() };
        match recv(socket.as_raw_fd(), &mut buffer, flags) {
            Ok(length) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let time = Timestamp::from_nanos(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
                packets.push(Packet { time, bytes: buffer[..length].to_owned() });
            }
            Err(Errno::EAGAIN) if is_last => return packets,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // The interfaces went with their namespaces, or went down.
            Err(_) if is_last => return packets,
            Err(_) => {}
        }
    }
}
