//! An FTP server in a Docker container that publishes port 21 and nothing else.
//!
//! Needs root, and the programs that `tests/setup test` fetches: dockerd, iptables and vsftpd.

use crate::daemon::{Daemon, TIMEOUT};
use crate::filtered_topology::modes;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{fs, io};

use lab::mini::MiniClient;
use lab::{Child, End, Family, Namespace, Result, join, tools, wait_until};
use nix::sys::signal::Signal;
use pinhole::core::ftp::Mode;

const POLICY: &str = "admit: [ip filter DOCKER-USER, ip6 filter FORWARD]\n";
/// Docker and its container take their time on a busy machine.
const START: Duration = Duration::from_secs(300);
const FILE: &str = "readme.txt";
const CONTENT: &[u8] = b"In a container.\n";

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn addresses(v4: &str, v6: &str) -> [(IpAddr, u8); 2] {
    [(address(v4), 24), (address(v6), 64)]
}

/// The host's own address.
fn host(family: Family) -> IpAddr {
    address(if family == Family::V4 { "203.0.113.1" } else { "2001:db8:113::1" })
}

/// The address of the first container.
fn container(family: Family) -> IpAddr {
    address(if family == Family::V4 { "172.17.0.2" } else { "fd00:d0c::242:ac11:2" })
}

/// A host that runs Docker, and a client outside.
struct Containers {
    host: Namespace,
    client: Namespace,
    docker: Option<Child>,
    cgroup: String,
}

impl Containers {
    /// With these options of dockerd, and this line in the server's configuration.
    fn new(options: &[&str], setting: &str) -> Self {
        Self::start(options, setting).unwrap_or_else(|error| panic!("{error}"))
    }

    fn start(options: &[&str], setting: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (host, client) = (Namespace::new("host")?, Namespace::new("client")?);
        join(
            End { namespace: &host, interface: "outside", addresses: &addresses("203.0.113.1", "2001:db8:113::1") },
            End { namespace: &client, interface: "net", addresses: &addresses("203.0.113.9", "2001:db8:113::9") },
        )?;
        // For IPv4 Docker does that itself, and only then sets the policy of FORWARD to DROP.
        host.set("net/ipv6/conf/all/forwarding", "1")?;
        let roots = [
            tools::find("docker", "usr/sbin/dockerd")?,
            tools::find("iptables", "usr/sbin/xtables-nft-multi")?,
            tools::find("vsftpd", "usr/sbin/vsftpd")?,
        ];
        let cgroup = format!("pinhole-lab-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut command = host.command("unshare");
        command.args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            include_str!("../support/docker.sh"),
            "docker.sh",
        ]);
        command.args(roots.into_iter().map(|tool| tool.root.expect("it is in the lab's cache")));
        let docker = command.args([&cgroup, setting]).args(options).spawn()?;
        let mut containers = Self { host, client, docker: Some(docker), cgroup };
        containers.wait_until_published()?;
        Ok(containers)
    }

    fn wait_until_published(&mut self) -> Result<()> {
        let docker = self.docker.as_mut().expect("it was started");
        wait_until("a container to publish port 21", START, || {
            assert!(docker.is_running()?, "Docker ended: {}", docker.output());
            Ok(docker.printed().ends_with(b"published\n"))
        })?;
        let host = self.host.clone();
        // The server inside needs a moment to listen.
        wait_until("the server in the container to listen", START, || {
            let greets = || MiniClient::connect(SocketAddr::new(container(Family::V4), 21), TIMEOUT).is_ok();
            host.run(greets)
        })
    }

    fn daemon(&self, more: &str) -> Daemon {
        Daemon::start(&self.host, &format!("{POLICY}{more}")).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A client in the network of the containers, as a container of its own has it.
    fn neighbour(&self) -> Namespace {
        let neighbour = Namespace::new("neighbour").unwrap_or_else(|error| panic!("{error}"));
        let own = [(address("172.17.0.77"), 16), (address("fd00:d0c::77"), 64)];
        join(
            End { namespace: &self.host, interface: "neighbour", addresses: &[] },
            End { namespace: &neighbour, interface: "net", addresses: &own },
        )
        .unwrap_or_else(|error| panic!("{error}"));
        let mut command = self.host.command("ip");
        command.args(["link", "set", "neighbour", "master", "docker0"]);
        let done = command.output(TIMEOUT).unwrap_or_else(|error| panic!("{error}"));
        assert!(done.status.success(), "{}", done.output());
        for gateway in ["172.17.0.1", "fd00:d0c::1"] {
            neighbour.route_by(address(gateway)).unwrap_or_else(|error| panic!("{error}"));
        }
        neighbour
    }
}

/// Kills all that Docker has started, and removes its cgroups.
impl Drop for Containers {
    fn drop(&mut self) {
        drop(self.docker.take());
        let mine = cgroups(&self.cgroup);
        for folder in mine.iter().filter(|folder| folder.is_dir()) {
            let _ = wait_until("an empty cgroup", TIMEOUT, || Ok(remove_cgroup(folder).is_ok()));
        }
    }
}

/// The cgroups of that name below the ones of this process, one in each hierarchy.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies: Vec<PathBuf> = fs::read_dir(root).into_iter().flatten().flatten().map(|it| it.path()).collect();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own: Vec<&str> = own.lines().filter_map(|line| line.splitn(3, ':').nth(2)).chain(["/"]).collect();
    let below = |hierarchy: &PathBuf| -> Vec<PathBuf> {
        own.iter().map(|path| hierarchy.join(path.trim_start_matches('/')).join(name)).collect()
    };
    hierarchies.iter().chain([&root.to_owned()]).flat_map(below).collect()
}

fn remove_cgroup(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path())?;
    }
    fs::remove_dir(folder)
}

/// Fetches the file from a server in that mode. The client connects to whatever address the server announces.
fn fetch(from: &Namespace, server: IpAddr, mode: Mode) -> Result<()> {
    from.run(|| {
        let mut client = MiniClient::connect(SocketAddr::new(server, 21), TIMEOUT)?;
        client.command("USER ftp", 230)?;
        assert_eq!(client.download(mode, FILE)?, CONTENT);
        client.quit()
    })?
}

#[track_caller]
fn assert_all_modes_work(from: &Namespace, server: IpAddr, what: &str) {
    let family = if server.is_ipv4() { Family::V4 } else { Family::V6 };
    for &mode in modes(family) {
        fetch(from, server, mode).unwrap_or_else(|error| panic!("{what}, {server}, {mode}: {error}"));
    }
}

#[test]
fn published_port_21_is_enough_from_outside_and_from_the_host() {
    let containers = Containers::new(&[], "");
    let Containers { host: here, client, .. } = &containers;
    for family in Family::ALL {
        fetch(client, host(family), Mode::Epsv).expect_err("only port 21 is published");
    }
    let _daemon = containers.daemon("");
    for family in Family::ALL {
        assert_all_modes_work(client, host(family), "outside");
        assert_all_modes_work(here, host(family), "the host, its own address");
        assert_all_modes_work(here, container(family), "the host, the container's address");
    }
    // docker-proxy accepts this connection, and passes port 21 only. (A client that connects to the address in a 227
    // reaches the container itself.)
    let proxied = [("127.0.0.1", Mode::Epsv), ("127.0.0.1", Mode::Port), ("::1", Mode::Epsv), ("::1", Mode::Eprt)];
    for (loopback, mode) in proxied {
        fetch(here, address(loopback), mode).expect_err("docker-proxy listens on no data port");
    }
}

#[test]
fn hairpin_and_loopback_work_without_the_userland_proxy() {
    let containers = Containers::new(&["--userland-proxy=false"], "");
    let _daemon = containers.daemon("");
    let neighbour = containers.neighbour();
    assert_all_modes_work(&containers.host, address("127.0.0.1"), "the host, loopback");
    for family in Family::ALL {
        assert_all_modes_work(&containers.client, host(family), "outside");
        assert_all_modes_work(&neighbour, host(family), "another container, the host's address");
        assert_all_modes_work(&neighbour, container(family), "another container, the container's address");
    }
}

/// A vsftpd that listens on IPv6 announces 0.0.0.0 to clients of IPv4, whatever its `pasv_address` is.
#[test]
fn wrong_address_of_a_server_in_a_container_is_repaired() {
    let containers = Containers::new(&[], "pasv_address=192.0.2.7");
    let mut daemon = containers.daemon("");
    fetch(&containers.client, host(Family::V4), Mode::Pasv).expect_err("the client connects to itself");
    daemon.end(Signal::SIGTERM).unwrap_or_else(|error| panic!("{error}"));
    let daemon = containers.daemon("defaults: { passive_address: repair }\n");
    assert_all_modes_work(&containers.client, host(Family::V4), "outside");
    daemon.wait_for_log("announced by 227, rewritten from 0.0.0.0:", 1);
}
