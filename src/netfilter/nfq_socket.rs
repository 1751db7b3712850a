//! The netlink socket of a queue that the crate nfq reads.
//!
//! The kernel takes verdicts only from the socket that bound the queue (`verdict_instance_lookup` in
//! `net/netfilter/nfnetlink_queue.c`), and threads send verdicts while another one waits for a packet. In nfq 0.2.5 both need
//! `&mut Queue`, and `Queue` does not implement `AsFd`. So this module finds the socket among the open files of the process
//! and duplicates it. With `AsFd` in the crate, `open` becomes two lines.
//!
//! Not used: `pidfd_getfd`, which the default seccomp profile of Docker forbids; opening `/proc/self/fd/N`, which fails for
//! sockets; `BorrowedFd::borrow_raw`, which is unsafe.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::fs::OFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, netlink, recvmsg,
    socketpair, sockopt,
};

/// Opens a queue, and duplicates its socket: the one that was not open before.
pub(super) fn open() -> io::Result<(nfq::Queue, OwnedFd)> {
    /// If two threads opened queues at the same time, each of them would find both sockets.
    static OPENING: Mutex<()> = Mutex::new(());
    let _alone = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    let before = nfq_sockets()?;
    let queue = nfq::Queue::open()?;
    let is_new = |(link, _): &(PathBuf, OwnedFd)| before.iter().all(|(known, _)| known != link);
    let (_, socket) = nfq_sockets()?
        .into_iter()
        .find(is_new)
        .ok_or_else(|| io::Error::other("the queue's socket is not among the open files of this process"))?;
    Ok((queue, socket))
}

/// Duplicates of the sockets of the crate nfq, each with its link in `/proc/self/fd`, which contains the inode. They are
/// recognised by their protocol, and by the missing `O_CLOEXEC`: all other netlink sockets of this process have it.
fn nfq_sockets() -> io::Result<Vec<(PathBuf, OwnedFd)>> {
    let mut sockets = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")?.flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Another thread may have closed the file.
        let Ok(link) = fs::read_link(entry.path()) else { continue };
        if is_close_on_exec(number) {
            continue;
        }
        let Ok(file) = duplicate(number) else { continue };
        if sockopt::socket_domain(&file) == Ok(AddressFamily::NETLINK)
            && sockopt::socket_protocol(&file) == Ok(Some(netlink::NETFILTER))
        {
            sockets.push((link, file));
        }
    }
    Ok(sockets)
}

fn is_close_on_exec(file: RawFd) -> bool {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{file}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_none_or(|flags| flags & OFlags::CLOEXEC.bits() != 0)
}

/// Duplicates a file descriptor by its number: sends it to this process itself (`SCM_RIGHTS`). nix accepts numbers there;
/// rustix requires `BorrowedFd`.
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
