//! The hosts of the demo, the service on the firewall, and the transfers that the demo tries.

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::DemoError;
use super::ftp::{self, CONTENT, Client, FILE};
use super::host::Host;
use crate::core::ftp::Mode;

/// The policy of the service.
pub(super) const POLICY: &str = "{mechanism: sets, admit: [inet filter forward]}\n";
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 21, 1, 10);
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 21, 2, 10);
/// Where the server listens.
const CONTROL: SocketAddr = SocketAddr::new(IpAddr::V4(SERVER), 21);
/// The rules of the firewall, in which nothing lets data connections in.
const RULES: &str = include_str!("../../deploy/nftables/gateway.nft");
/// Starts the service with a `/run` of its own, in memory: neither its policy nor its socket is on this machine's disk.
const START: &str = "mount -t tmpfs run /run && cat >/run/policy.yaml && exec \"$0\" run --policy /run/policy.yaml";

/// The hosts and their programs. Dropping it ends all of them.
#[derive(Debug)]
pub(super) struct Stage {
    // First what runs, then where.
    service: Option<Service>,
    client: Host,
    firewall: Host,
    _server: Host,
}

/// How a transfer went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// The file arrived.
    Whole {
        /// How long the session took.
        took: Duration,
    },
    /// The client was logged in, and there was no data connection.
    Blocked,
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    /// It reached the other end, whatever that one made of it.
    Through,
    /// No answer came.
    Blocked,
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Through => "gets through",
            Self::Blocked => "blocked",
        })
    }
}

/// What was seen of one pinhole.
#[derive(Debug)]
pub(super) struct OnePinhole {
    /// The address that the server announced.
    pub(super) announced: SocketAddr,
    /// The pinhole as nft shows it.
    pub(super) element: String,
    pub(super) unannounced: Connection,
    pub(super) first: Connection,
    pub(super) second: Connection,
}

impl Stage {
    /// Builds the hosts, loads the rules of the firewall, and starts the server.
    pub(super) fn build() -> Result<Self, DemoError> {
        let (client, firewall, server) = (Host::new()?, Host::new()?, Host::new()?);
        firewall.set("net/ipv4/ip_forward", "1").map_err(failed("cannot forward packets"))?;
        // Older kernels can be told to let FTP through by themselves. Newer ones have no such switch.
        let _ = firewall.set("net/netfilter/nf_conntrack_helper", "0");
        for (host, address, interface, gateway) in
            [(&client, CLIENT, "clients", "10.21.1.1"), (&server, SERVER, "servers", "10.21.2.1")]
        {
            firewall.ip(&format!(
                "link add {interface} type veth peer name net netns {}\n\
                 address add {gateway}/24 dev {interface}\nlink set {interface} up\n",
                host.network()
            ))?;
            host.ip(&format!("address add {address}/24 dev net\nlink set net up\nroute add default via {gateway}\n"))?;
        }
        firewall.load(RULES)?;
        server.run(|| ftp::serve(CONTROL)).map_err(failed("cannot start the FTP server"))?;
        Ok(Self { service: None, client, firewall, _server: server })
    }

    /// Fetches the file in a session of its own.
    pub(super) fn transfer(&self, mode: Mode, patience: Duration) -> Result<Transfer, DemoError> {
        let begun = Instant::now();
        let fetched = self.client.run(|| Client::log_in(CONTROL)?.fetch(mode, patience));
        match fetched.map_err(failed("an FTP session failed"))? {
            Some(content) if content == CONTENT => Ok(Transfer::Whole { took: begun.elapsed() }),
            Some(content) => Err(DemoError::Failed(format!("only {} bytes of {FILE} arrived", content.len()))),
            None => Ok(Transfer::Blocked),
        }
    }

    /// Starts this program as the service of the firewall. Returns what it logs until its rules are installed.
    pub(super) fn start_service(&mut self, program: &Path, within: Duration) -> Result<Vec<String>, DemoError> {
        let service = Service::start(&self.firewall, program).map_err(failed("cannot start `pinhole run`"))?;
        self.service.insert(service).log_until("announced data connections carry", within)
    }

    /// What the service logs from now on, until a line contains `word`: the kernel tells it of some events a moment later.
    pub(super) fn log_until(&mut self, word: &str, within: Duration) -> Result<Vec<String>, DemoError> {
        self.service.as_mut().map_or_else(|| Ok(Vec::new()), |service| service.log_until(word, within))
    }

    /// What the service has logged and nobody has asked for.
    pub(super) fn rest_of_log(&mut self) -> String {
        self.service.iter().flat_map(|service| service.log.try_iter()).collect::<Vec<_>>().join("\n")
    }

    /// Ends the service as systemd would.
    pub(super) fn stop_service(&mut self, within: Duration) -> Result<(), DemoError> {
        let Some(mut service) = self.service.take() else { return Ok(()) };
        service.stop(within)?;
        let left = self.firewall.list(&["ruleset"])?;
        if left.contains("pinhole") {
            return Err(DemoError::Failed(format!("Pinhole has ended and left something in the firewall:\n{left}")));
        }
        Ok(())
    }

    /// Has the server announce a port, and tries what gets through.
    pub(super) fn try_one_pinhole(&self, patience: Duration) -> Result<OnePinhole, DemoError> {
        let announced = self.client.run(|| {
            let mut client = Client::log_in(CONTROL)?;
            Ok((client.passive()?, client))
        });
        let (announced, _session) = announced.map_err(failed("an FTP session failed"))?;
        let listing = self.firewall.list(&["set", "inet", "pinhole", "pinholes4"])?;
        let element = element(&listing, announced).ok_or_else(|| {
            DemoError::Failed(format!(
                "the server announced {announced}, and the kernel has no pinhole for it:\n{listing}"
            ))
        })?;
        let connect = |port: u16| {
            let connected = self.client.run(|| try_connection(SocketAddr::new(announced.ip(), port), patience));
            connected.map_err(failed("cannot try a connection"))
        };
        let unannounced = connect(announced.port() ^ 1)?;
        let first = connect(announced.port())?;
        let second = connect(announced.port())?;
        Ok(OnePinhole { announced, element, unannounced, first, second })
    }
}

/// The service, and the lines of its log.
#[derive(Debug)]
struct Service {
    process: Child,
    log: Receiver<String>,
}

impl Service {
    fn start(host: &Host, program: &Path) -> io::Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", START]).arg(program).stdout(Stdio::null());
        command.env("PINHOLE_SOCKET", "/run/control.sock").env("RUST_LOG", "info");
        let mut process = host.start(&mut command)?;
        process.stdin.take().expect("a pipe").write_all(POLICY.as_bytes())?;
        let lines = BufReader::new(process.stderr.take().expect("a pipe")).lines();
        let (sender, log) = mpsc::channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(message(&line).to_owned())));
        Ok(Self { process, log })
    }

    fn log_until(&mut self, word: &str, within: Duration) -> Result<Vec<String>, DemoError> {
        let begun = Instant::now();
        let mut lines = Vec::new();
        while !lines.last().is_some_and(|line: &String| line.contains(word)) {
            match self.log.recv_timeout(within.saturating_sub(begun.elapsed())) {
                Ok(line) => lines.push(line),
                Err(error) => {
                    let what = match error {
                        RecvTimeoutError::Timeout => format!("did not log {word:?} within {within:?}"),
                        RecvTimeoutError::Disconnected => "ended".to_owned(),
                    };
                    return Err(DemoError::Failed(format!("`pinhole run` {what}:\n{}", lines.join("\n"))));
                }
            }
        }
        Ok(lines)
    }

    /// Sends SIGTERM, and waits.
    fn stop(&mut self, within: Duration) -> Result<(), DemoError> {
        let ended = kill_process(Pid::from_child(&self.process), Signal::TERM);
        ended.map_err(|error| failed("cannot end `pinhole run`")(error.into()))?;
        let begun = Instant::now();
        // Its log ends when it does.
        loop {
            match self.log.recv_timeout(within.saturating_sub(begun.elapsed())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(DemoError::Failed(format!("`pinhole run` did not end within {within:?}")));
                }
            }
        }
        self.process.wait().map(drop).map_err(failed("cannot wait for `pinhole run`"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Errors can only mean that it has ended and has been waited for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Says what an error kept from happening.
fn failed(what: &str) -> impl FnOnce(io::Error) -> DemoError {
    move |error| DemoError::Failed(format!("{what}: {error}"))
}

/// Whether a connection comes about, from the namespace of the calling thread.
fn try_connection(to: SocketAddr, patience: Duration) -> io::Result<Connection> {
    match TcpStream::connect_timeout(&to, patience) {
        Ok(_) => Ok(Connection::Through),
        // The host behind the firewall has answered.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Connection::Through),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(Connection::Blocked),
        Err(error) => Err(error),
    }
}

/// A log line without its time and its level.
fn message(line: &str) -> &str {
    let levels = ["INFO ", "WARN ", "ERROR "];
    let begin = levels.iter().filter_map(|level| line.find(level).map(|at| at + level.len())).min();
    line.get(begin.unwrap_or(0)..).unwrap_or(line)
}

/// The element of a set, as nft lists it, for connections to there. One that was used just now may stand beside it.
fn element(listing: &str, to: SocketAddr) -> Option<String> {
    let (_, rest) = listing.split_once("elements = {")?;
    let (elements, _) = rest.split_once('}')?;
    let mut elements = elements.split(',').map(|element| element.split_whitespace().collect::<Vec<_>>().join(" "));
    let to = format!(" . {} . {} ", to.ip(), to.port());
    elements.find(|element| element.contains(&to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_is_told_without_time_and_level() {
        assert_eq!(message("2026-01-01T00:00:00.1Z  INFO opened a -> b"), "opened a -> b");
        assert_eq!(message("no level"), "no level");
    }

    #[test]
    fn finds_the_element_for_a_port_in_a_listing() {
        let listing = "table inet pinhole {\n\tset pinholes4 {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1 . 10.0.0.2 . 5 \
                       timeout 1m expires 59s,\n\t\t\t     10.0.0.1 . 10.0.0.2 . 6 timeout 1m expires 59s }\n\t}\n}";
        let to = |port| SocketAddr::from(([10, 0, 0, 2], port));
        assert_eq!(element(listing, to(6)).as_deref(), Some("10.0.0.1 . 10.0.0.2 . 6 timeout 1m expires 59s"));
        assert_eq!(element(listing, to(7)), None);
        assert_eq!(element("set pinholes4 {\n}", to(5)), None);
    }
}
