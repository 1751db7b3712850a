//! Hosts in network namespaces, connected by veth pairs, and commands in them.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{fs, thread};

use pinhole::core::expectation::{Expectation, Mapping};
use pinhole::core::net::{Endpoint, Flow, Port};
use pinhole::core::policy::Policy;
use pinhole::core::time::Timestamp;
use pinhole::netfilter::backend::KernelFirewall;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace; gone with its last use.
pub(crate) struct Host {
    name: String,
}

impl Host {
    pub(crate) fn new(role: &str) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        assert!(rustix::process::geteuid().is_root(), "this test makes network namespaces: run it as root");
        let name = format!("pinhole-{}-{}-{role}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        run(&["ip", "netns", "add", &name], "");
        let host = Self { name };
        // The addresses of a wire's own are usable at once: a router asks for its neighbours from them.
        host.sh(&["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"]);
        host.sh(&["ip", "link", "set", "lo", "up"]);
        host
    }

    /// A client and a host with the firewall, joined: `10.9.0.1`, `fd09::1` and `10.9.0.2`, `fd09::2`.
    pub(crate) fn pair() -> (Self, Self) {
        let (client, host) = (Self::new("client"), Self::new("host"));
        client.join(&host, "wire", "wire");
        for (end, number) in [(&client, 1), (&host, 2)] {
            end.number("wire", &format!("10.9.0.{number}/24"), &format!("fd09::{number}/64"));
        }
        for there in ["10.9.0.2:1", "[fd09::2]:1"] {
            client.reaches(there);
        }
        (client, host)
    }

    /// Lays a wire to another host; both ends have their names.
    pub(crate) fn join(&self, other: &Self, here: &str, there: &str) {
        let (name, to) = (&self.name, &other.name);
        run(&["ip", "-n", name, "link", "add", here, "type", "veth", "peer", there, "netns", to], "");
    }

    /// Gives an end of a wire its addresses, and switches it on.
    pub(crate) fn number(&self, wire: &str, v4: &str, v6: &str) {
        self.sh(&["ip", "address", "add", v4, "dev", wire]);
        self.sh(&["ip", "address", "add", v6, "dev", wire, "nodad"]);
        self.sh(&["ip", "link", "set", wire, "up"]);
    }

    /// Waits until something there says that nothing listens: a wire takes a moment to carry.
    pub(crate) fn reaches(&self, there: &str) {
        let refused = || connects(self, there).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
        assert!((0..20).any(|_| refused()), "{there} cannot be reached");
    }

    /// Does something inside, on a thread of its own. Sockets made there stay there.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            let file = fs::File::open(format!("/var/run/netns/{}", self.name)).expect("a namespace that was made");
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may go there");
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }

    pub(crate) fn sh(&self, command: &[&str]) -> String {
        run(&[&["ip", "netns", "exec", &self.name], command].concat(), "")
    }

    pub(crate) fn nft(&self, rules: &str) {
        run(&["ip", "netns", "exec", &self.name, "nft", "-f", "-"], rules);
    }

    pub(crate) fn ruleset(&self) -> String {
        self.sh(&["nft", "list", "ruleset"])
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

pub(crate) fn run(command: &[&str], input: &str) -> String {
    use std::process::Stdio;
    let mut child = Command::new(command[0]);
    child.args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn port(number: u16) -> Port {
    Port::new(number).expect("not zero")
}

pub(crate) fn expectation(from: &str, to: &str, number: u16, seconds: u64) -> Expectation {
    let to = Endpoint::new(ip(to), port(number));
    let lifetime = Duration::from_secs(seconds);
    Expectation { from: ip(from), to, since: Timestamp::from_secs(0), lifetime, mapping: Mapping::NONE }
}

/// Removes a used pinhole, as the daemon does after the kernel's conntrack event.
pub(crate) fn tidy_up(sets: &mut KernelFirewall, used: &Expectation) {
    sets.used(&Flow { source: Endpoint::new(used.from, used.to.port), destination: used.to });
    sets.sweep();
}

pub(crate) fn flow(from: SocketAddr, to: SocketAddr) -> Flow {
    let end = |address: SocketAddr| Endpoint::new(address.ip(), port(address.port()));
    Flow { source: end(from), destination: end(to) }
}

pub(crate) fn flow_of(stream: &TcpStream) -> Flow {
    flow(stream.local_addr().expect("bound"), stream.peer_addr().expect("connected"))
}

pub(crate) fn connects(client: &Host, to: &str) -> io::Result<TcpStream> {
    let to: SocketAddr = to.parse().expect("an address and port");
    client.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)))
}

pub(crate) fn listens(host: &Host, at: &str) -> TcpListener {
    host.run(|| TcpListener::bind(at)).expect("a free port")
}

pub(crate) const DEFAULT_DROP: &str = "table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        iif lo accept
        meta l4proto ipv6-icmp accept
        ct state established,related accept
        tcp dport 21 accept
    }
}";

pub(crate) fn guarded() -> Policy {
    Policy { admit: vec!["inet filter input".parse().expect("a chain")], ..Policy::embedded() }
}
