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
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, netlink, recvmsg, sockopt};
use socket2::{MsgHdr, SockRef};

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

/// Duplicates a file descriptor by its number: sends it to this process itself (`SCM_RIGHTS`). If the file was closed in the
/// meantime, that is an error. socket2 sends control messages as bytes; rustix requires `BorrowedFd` for them.
fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    let (from, to) = UnixDatagram::pair()?;
    let byte = [IoSlice::new(&[0])];
    let rights = scm_rights(number);
    SockRef::from(&from).sendmsg(&MsgHdr::new().with_buffers(&byte).with_control(&rights), 0)?;
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    recvmsg(&to, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    files.flatten().next().ok_or_else(|| io::Error::other("the file did not arrive"))
}

/// A control message with one file descriptor: the kernel's `struct cmsghdr` and the number.
fn scm_rights(number: RawFd) -> Vec<u8> {
    let length =
        size_of::<usize>() + size_of_val(&libc::SOL_SOCKET) + size_of_val(&libc::SCM_RIGHTS) + size_of::<RawFd>();
    let fields: [&[u8]; 4] = [
        &length.to_ne_bytes(),
        &libc::SOL_SOCKET.to_ne_bytes(),
        &libc::SCM_RIGHTS.to_ne_bytes(),
        &number.to_ne_bytes(),
    ];
    fields.concat()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn duplicate_is_the_same_file_with_another_number() {
        let (one, other) = UnixDatagram::pair().expect("two sockets");
        let duplicate = duplicate(one.as_raw_fd()).expect("it is open");
        assert_ne!(duplicate.as_raw_fd(), one.as_raw_fd());
        drop(one);
        assert_eq!(UnixDatagram::from(duplicate).send(b"x").expect("the pair is still connected"), 1);
        drop(other);
    }

    #[test]
    fn closed_file_cannot_be_duplicated() {
        let error = duplicate(RawFd::MAX).expect_err("no file has this number");
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}
