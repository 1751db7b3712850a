//! A network of its own: interfaces, addresses, sockets, conntrack, nftables.
//!
//! A namespace of the lab has no name in the file system. It is held by an open file of this process, so that
//! nothing has to be cleaned up: when the last holder ends, `kill -9` included, the kernel takes the namespace away,
//! and with it its interfaces, rules and connections. It knows nothing of FTP.

use super::error::{Context, Error, Result};
use super::ethtool::set_offloads;
use super::process::Command;
use super::rtnetlink::Rtnetlink;
use super::wait::wait_until;
use nix::sched::{CloneFlags, setns, unshare};
use std::fmt;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A network namespace. Clones share it; it ends with the last of them and the last process inside.
#[derive(Clone)]
pub struct Namespace(Arc<Held>);

struct Held {
    name: String,
    file: File,
}

impl Namespace {
    /// A new one, with loopback up and nothing else. `role` is for people: it becomes part of its name.
    pub fn new(role: &str) -> Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("ph-{}-{}-{role}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let file = on_a_thread(&name, || {
            unshare(CloneFlags::CLONE_NEWNET).doing(|| format!("make the network namespace {name}"))?;
            File::open("/proc/thread-self/ns/net").doing(|| format!("hold the network namespace {name}"))
        })??;
        let namespace = Self(Arc::new(Held { name, file }));
        // Inherited by every interface made from now on: addresses are usable at once, and no interface has
        // addresses or routes that the test did not set.
        for (setting, value) in [("accept_dad", "0"), ("addr_gen_mode", "1"), ("accept_ra", "0")] {
            namespace.set(&format!("net/ipv6/conf/default/{setting}"), value)?;
        }
        namespace.configure("lo", &[])?;
        Ok(namespace)
    }

    /// Its name: `ph-`, the process, a number, its role. Only people and messages use it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Runs `work` inside, on a thread of its own, and waits for it. A panic in it passes on.
    ///
    /// Sockets that it makes stay in this namespace wherever they are used afterwards, and so do threads it starts.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_a_thread(self.name(), || self.enter().map(|()| work()))?
    }

    /// Starts `work` inside on a thread of its own, and does not wait for it.
    pub fn start<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<Result<T>>> {
        let namespace = self.clone();
        thread::Builder::new()
            .name(self.name().to_owned())
            .spawn(move || namespace.enter().map(|()| work()))
            .doing(|| format!("start a thread in {self}"))
    }

    /// Moves the calling thread inside. Private: a thread that forgot to leave would be a riddle.
    pub(crate) fn enter(&self) -> Result<()> {
        setns(&self.0.file, CloneFlags::CLONE_NEWNET).doing(|| format!("enter {self}"))
    }

    /// A program that will run inside.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        Command::new(self.clone(), program.as_ref())
    }

    /// Loads nftables rules, all or none of them.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.command("nft").args(["-f", "-"]).input(rules.as_bytes()).output(Duration::from_secs(20)).map(drop)
    }

    /// The output of `nft` with these arguments, for example `["list", "ruleset"]`.
    pub fn nft_output(&self, arguments: &[&str]) -> Result<String> {
        let done = self.command("nft").args(arguments).output(Duration::from_secs(20))?;
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Sets a kernel parameter of this namespace, named by its path below `/proc/sys`.
    pub fn set(&self, parameter: &str, value: &str) -> Result<()> {
        // /proc/sys/net shows the namespace of the thread that looks.
        self.run(|| fs::write(Path::new("/proc/sys").join(parameter), value))?
            .doing(|| format!("set {parameter} to {value} in {self}"))
    }

    /// The content of a file of the kernel, for example `/proc/thread-self/net/stat/nf_conntrack`.
    pub fn read(&self, path: &str) -> Result<String> {
        self.run(|| fs::read_to_string(path))?.doing(|| format!("read {path} in {self}"))
    }

    /// Passes packets on between its interfaces, both families.
    pub fn forward(&self) -> Result<()> {
        self.set("net/ipv4/ip_forward", "1")?;
        self.set("net/ipv6/conf/all/forwarding", "1")
    }

    /// Whether a TCP port has a listener, on any address of either family.
    pub fn is_listening(&self, port: u16) -> Result<bool> {
        Ok(self.sockets()?.iter().any(|socket| socket.listening && socket.local_port == port))
    }

    /// Returns once something listens on a TCP port.
    pub fn wait_for_listener(&self, port: u16, within: Duration) -> Result<()> {
        wait_until(&format!("something to listen on port {port} in {self}"), within, || self.is_listening(port))
    }

    /// The TCP sockets of both families that are inside, closed ones in their last state too.
    pub fn sockets(&self) -> Result<Vec<Socket>> {
        let read = |table: &str| fs::read_to_string(format!("/proc/thread-self/net/{table}"));
        let tables = self
            .run(|| Ok::<_, std::io::Error>([read("tcp")?, read("tcp6")?]))?
            .doing(|| format!("list the sockets of {self}"))?;
        Ok(tables.iter().flat_map(|table| table.lines().skip(1)).filter_map(Socket::parse).collect())
    }

    /// Gives an interface addresses, and brings it up.
    pub(crate) fn configure(&self, interface: &str, addresses: &[(IpAddr, u8)]) -> Result<()> {
        self.run(|| -> std::io::Result<()> {
            let index = nix::net::if_::if_nametoindex(interface)?;
            let mut netlink = Rtnetlink::open()?;
            for &(address, prefix) in addresses {
                netlink.add_address(index, address, prefix)?;
            }
            netlink.set_up(index)
        })?
        .doing(|| format!("configure {interface} in {self}"))
    }

    /// Makes a switch, called `switch`, of some of its interfaces.
    pub(crate) fn switch(&self, ports: &[&str]) -> Result<()> {
        self.run(|| -> std::io::Result<()> {
            let mut netlink = Rtnetlink::open()?;
            netlink.add_bridge("switch")?;
            let bridge = nix::net::if_::if_nametoindex("switch")?;
            for &port in ports {
                netlink.plug_in(nix::net::if_::if_nametoindex(port)?, bridge)?;
            }
            netlink.set_up(bridge)
        })?
        .doing(|| format!("make a switch of {} in {self}", ports.join(", ")))
    }

    /// How many packets its connection tracking found to belong to no connection and to begin none.
    ///
    /// Without the redirects of IPv6 that it has sent itself, which happens where a packet leaves by the way it came:
    /// connection tracking takes them for invalid, always, and nothing is wrong with them.
    pub fn invalid_packets(&self) -> Result<u64> {
        // A line of names, then a line of hexadecimal numbers for each processor.
        let table = self.read("/proc/thread-self/net/stat/nf_conntrack")?;
        let counts = self.read("/proc/thread-self/net/snmp6")?;
        let mut lines = table.lines();
        let names = lines.next().unwrap_or_default();
        let column = names.split_whitespace().position(|name| name == "invalid");
        let invalid = |line: &str| u64::from_str_radix(line.split_whitespace().nth(column?)?, 16).ok();
        let invalid: Option<u64> = lines.map(invalid).sum();
        let redirects = counts.lines().find_map(|line| line.strip_prefix("Icmp6OutRedirects")?.trim().parse().ok());
        match (invalid, redirects) {
            (Some(invalid), Some(redirects)) => Ok(invalid.saturating_sub(redirects)),
            _ => Err(Error::Dialogue {
                expected: "the kernel's counts of invalid packets and of redirects".to_owned(),
                got: table + &counts,
            }),
        }
    }

    /// Sets the default route to `gateway`.
    pub fn route_by(&self, gateway: IpAddr) -> Result<()> {
        self.run(|| Rtnetlink::open()?.add_default_route(gateway))?.doing(|| format!("route by {gateway} in {self}"))
    }

    /// Lets an interface pass large segments with open checksums, which is fast and the default, or makes its packets
    /// as they would be on a cable.
    pub fn set_offloads(&self, interface: &str, on: bool) -> Result<()> {
        self.run(|| set_offloads(interface, on))?
            .doing(|| format!("turn the offloads of {interface} in {self} {}", if on { "on" } else { "off" }))
    }

    /// Whether an interface passes packets, or is about to.
    pub(crate) fn is_operational(&self, interface: &str) -> Result<bool> {
        self.run(|| {
            let index = nix::net::if_::if_nametoindex(interface)?;
            Rtnetlink::open()?.is_operational(index)
        })?
        .doing(|| format!("look at {interface} in {self}"))
    }

    /// Whether no IPv6 address is still being tried.
    pub(crate) fn has_usable_addresses(&self) -> Result<bool> {
        const TENTATIVE: u32 = 0x40;
        let addresses = self.read("/proc/thread-self/net/if_inet6")?;
        // Address, interface, prefix length, scope, flags, name; all but the name hexadecimal.
        let flags = addresses.lines().filter_map(|line| line.split_whitespace().nth(4));
        Ok(flags.filter_map(|flags| u32::from_str_radix(flags, 16).ok()).all(|flags| flags & TENTATIVE == 0))
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}

/// A TCP socket as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Its own port.
    pub local_port: u16,
    /// The other end's port; 0 where there is none.
    pub remote_port: u16,
    /// Whether it waits for connections.
    pub listening: bool,
    /// Whether it is past its end and only waits for stray packets.
    pub time_wait: bool,
}

impl Socket {
    /// From a line of `/proc/net/tcp`: number, local address:port, remote address:port, state, all hexadecimal.
    fn parse(line: &str) -> Option<Self> {
        let port = |end: &str| u16::from_str_radix(end.rsplit_once(':')?.1, 16).ok();
        let mut words = line.split_whitespace().skip(1);
        let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
        Some(Self {
            local_port: port(local)?,
            remote_port: port(remote)?,
            listening: state == "0A",
            time_wait: state == "06",
        })
    }
}

/// Runs `work` on a new thread, so that the caller stays in its own namespaces.
pub(crate) fn on_a_thread<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, work)
            .doing(|| format!("start a thread for {name}"))?;
        match thread.join() {
            Ok(answer) => Ok(answer),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
