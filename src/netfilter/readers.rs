//! Which process reads which NFQUEUE (`/proc/net/netfilter/nfnetlink_queue`, `/proc/net/netlink`).
//!
//! The kernel names a reader by the port ID of its netlink socket. The port ID often is the process ID, but the reader
//! chooses it, and a process ID depends on the PID namespace. So a process is named only if it has the socket open.

use std::fmt;
use std::fs;
use std::path::Path;

/// The queues in the network namespace of this thread.
const QUEUES: &str = "/proc/thread-self/net/netfilter/nfnetlink_queue";
const SOCKETS: &str = "/proc/thread-self/net/netlink";
const NETLINK_NETFILTER: &str = "12";

/// A program that reads a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    pub queue: u16,
    /// The port ID of its netlink socket.
    pub port_id: u32,
    /// The process, if it is in this PID namespace and its files can be listed.
    pub process: Option<Process>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub id: u32,
    /// `/proc/PID/comm`.
    pub name: String,
}

impl fmt::Display for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some(Process { id, name }) => write!(f, "{name} (process {id})"),
            None => f.write_str("a program that cannot be seen from here"),
        }
    }
}

/// The readers of all queues; none if the list in `/proc` does not exist or cannot be read.
pub fn readers() -> Option<Vec<Reader>> {
    let list = fs::read_to_string(QUEUES).ok()?;
    let sockets = fs::read_to_string(SOCKETS).unwrap_or_default();
    let reader = |(queue, port_id)| {
        let process = inode(&sockets, port_id).and_then(|inode| holder(Path::new("/proc"), inode));
        Reader { queue, port_id, process }
    };
    Some(queues(&list).map(reader).collect())
}

/// The process that has the netfilter socket with that port ID; none if it cannot be seen from here.
pub fn owner_of_socket(port_id: u32) -> Option<Process> {
    let sockets = fs::read_to_string(SOCKETS).ok()?;
    holder(Path::new("/proc"), inode(&sockets, port_id)?)
}

/// The first two columns of the kernel's list of queues: number and port ID.
fn queues(list: &str) -> impl Iterator<Item = (u16, u32)> {
    list.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    })
}

/// The inode of the netfilter socket with that port ID. The columns of the kernel's list are address, protocol, port ID,
/// and others; the inode is the last one.
fn inode(sockets: &str, port_id: u32) -> Option<u64> {
    let port_id = port_id.to_string();
    let line =
        sockets.lines().find(|line| line.split_whitespace().skip(1).take(2).eq([NETLINK_NETFILTER, &port_id]))?;
    line.split_whitespace().next_back()?.parse().ok()
}

/// The process that has this socket open; of several processes, the one with the lowest ID.
fn holder(proc: &Path, inode: u64) -> Option<Process> {
    let socket = format!("socket:[{inode}]");
    let holds = |id: &u32| {
        let files = fs::read_dir(proc.join(format!("{id}/fd"))).into_iter().flatten().flatten();
        files.into_iter().any(|file| fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == &*socket))
    };
    let processes = fs::read_dir(proc).ok()?.flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let id = ids.filter(holds).min()?;
    let name = fs::read_to_string(proc.join(format!("{id}/comm"))).unwrap_or_default();
    Some(Process { id, name: name.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn reads_the_kernels_list_of_queues() {
        let list =
            "    0 4194304     0 2 65531     0     0        3  1\n   12      1     0 2 65531     0     0        0  1\n";
        assert_eq!(queues(list).collect::<Vec<_>>(), [(0, 4_194_304), (12, 1)]);
        assert_eq!(queues("nonsense\n").next(), None);
    }

    #[test]
    fn finds_the_netfilter_socket_with_a_port_id() {
        let list = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
                    0000000000000000 0   12         00000111 0        0        0     2        0        111\n\
                    0000000000000000 12  1          00000000 0        0        0     2        0        222\n\
                    0000000000000000 12  12         00000000 0        0        0     2        0        333\n";
        assert_eq!(inode(list, 12), Some(333));
        assert_eq!((inode(list, 1), inode(list, 0)), (Some(222), None));
    }

    #[test]
    fn process_is_named_only_if_it_has_the_socket_open() {
        let (one, other) = std::os::unix::net::UnixStream::pair().expect("two sockets");
        let link = fs::read_link(format!("/proc/self/fd/{}", one.as_raw_fd())).expect("it is open");
        let inode = link.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')).expect("a socket");
        let inode = inode.parse().expect("a number");
        assert_eq!(holder(Path::new("/proc"), inode).map(|process| process.id), Some(std::process::id()));
        drop((one, other));
        assert_eq!(holder(Path::new("/proc"), inode), None);
    }
}
