//! The hosts of the demo, the daemon on the firewall, and the transfers.

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

/// The policy of the daemon.
pub(super) const POLICY: &str = "{mechanism: sets, admit: [inet filter forward]}\n";
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 21, 1, 10);
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 21, 2, 10);
const CONTROL: SocketAddr = SocketAddr::new(IpAddr::V4(SERVER), 21);
/// The rules of the firewall. No rule accepts data connections.
const RULES: &str = include_str!("../../deploy/nftables/gateway.nft");
/// Starts the daemon with its own tmpfs on `/run`, so that its policy and its socket are not on this machine's disk.
const START: &str = "mount -t tmpfs run /run && cat >/run/policy.yaml && exec \"$0\" run --policy /run/policy.yaml";

/// The hosts and their programs. Dropping it ends all of them.
#[derive(Debug)]
pub(super) struct DemoNetwork {
    // Fields are dropped in this order: the daemon has to end before its host.
    service: Option<Service>,
    client: Host,
    firewall: Host,
    _server: Host,
}

/// The result of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// The file arrived; the session took this long.
    Complete { took: Duration },
    /// The client was logged in, but there was no data connection.
    Blocked,
}

/// The result of a connection attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    /// The other end accepted or refused the connection.
    Through,
    /// There was no answer.
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

/// One pinhole, and which connections pass it.
#[derive(Debug)]
pub(super) struct OnePinhole {
    /// The address that the server announced.
    pub(super) announced: SocketAddr,
    /// The set element as nft prints it.
    pub(super) element: String,
    pub(super) unannounced: Connection,
    pub(super) first: Connection,
    pub(super) second: Connection,
}

impl DemoNetwork {
    /// Builds the hosts, loads the rules of the firewall, and starts the server.
    pub(super) fn build() -> Result<Self, DemoError> {
        let (client, firewall, server) = (Host::new()?, Host::new()?, Host::new()?);
        firewall.set("net/ipv4/ip_forward", "1").map_err(failed("cannot forward packets"))?;
        // Kernels before 6.0 can assign their FTP helper automatically. Later kernels have no such sysctl.
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

    /// Fetches the file in a new session.
    pub(super) fn transfer(&self, mode: Mode, timeout: Duration) -> Result<Transfer, DemoError> {
        let begun = Instant::now();
        let fetched = self.client.run(|| Client::log_in(CONTROL)?.fetch(mode, timeout));
        match fetched.map_err(failed("an FTP session failed"))? {
            Some(content) if content == CONTENT => Ok(Transfer::Complete { took: begun.elapsed() }),
            Some(content) => Err(DemoError::Failed(format!("only {} bytes of {FILE} arrived", content.len()))),
            None => Ok(Transfer::Blocked),
        }
    }

    /// Starts the daemon on the firewall. Returns the log lines until its rules are installed.
    pub(super) fn start_service(&mut self, program: &Path, within: Duration) -> Result<Vec<String>, DemoError> {
        let service = Service::start(&self.firewall, program).map_err(failed("cannot start `pinhole run`"))?;
        self.service.insert(service).log_until("`nft list ruleset`", within)
    }

    /// The next log lines of the daemon, until a line contains `word`. Some events reach the daemon a moment later.
    pub(super) fn log_until(&mut self, word: &str, within: Duration) -> Result<Vec<String>, DemoError> {
        self.service.as_mut().map_or_else(|| Ok(Vec::new()), |service| service.log_until(word, within))
    }

    /// The remaining log lines of the daemon.
    pub(super) fn rest_of_log(&mut self) -> String {
        self.service.iter().flat_map(|service| service.log.try_iter()).collect::<Vec<_>>().join("\n")
    }

    /// Ends the daemon with SIGTERM, as systemd does.
    pub(super) fn stop_service(&mut self, within: Duration) -> Result<(), DemoError> {
        let Some(mut service) = self.service.take() else { return Ok(()) };
        service.stop(within)?;
        let left = self.firewall.list(&["ruleset"])?;
        if left.contains("pinhole") {
            return Err(DemoError::Failed(format!("Pinhole has ended and left something in the firewall:\n{left}")));
        }
        Ok(())
    }

    /// Lets the server announce a port, and tries to connect to it and to another port.
    pub(super) fn try_one_pinhole(&self, timeout: Duration) -> Result<OnePinhole, DemoError> {
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
            let connected = self.client.run(|| try_connection(SocketAddr::new(announced.ip(), port), timeout));
            connected.map_err(failed("cannot try a connection"))
        };
        let unannounced = connect(announced.port() ^ 1)?;
        let first = connect(announced.port())?;
        let second = connect(announced.port())?;
        Ok(OnePinhole { announced, element, unannounced, first, second })
    }
}

/// The daemon and its log lines.
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

    /// Sends SIGTERM, and waits until the daemon has ended.
    fn stop(&mut self, within: Duration) -> Result<(), DemoError> {
        let ended = kill_process(Pid::from_child(&self.process), Signal::TERM);
        ended.map_err(|error| failed("cannot end `pinhole run`")(error.into()))?;
        let begun = Instant::now();
        // The log ends when the daemon ends.
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
        // An error can only mean that the process has been waited for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Adds what failed to an error.
fn failed(what: &str) -> impl FnOnce(io::Error) -> DemoError {
    move |error| DemoError::Failed(format!("{what}: {error}"))
}

/// Tries to connect, from the network namespace of the calling thread.
fn try_connection(to: SocketAddr, timeout: Duration) -> io::Result<Connection> {
    match TcpStream::connect_timeout(&to, timeout) {
        Ok(_) => Ok(Connection::Through),
        // A RST from the host behind the firewall.
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

/// The element for connections to `to` in nft's listing of a set. Used elements may still be listed, too.
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
    fn time_and_level_of_a_log_line_are_removed() {
        assert_eq!(message("2026-01-01T00:00:00.1Z  INFO opened a -> b"), "opened a -> b");
        assert_eq!(message("no level"), "no level");
    }

    #[test]
    fn element_is_found_in_a_listing_by_its_port() {
        let listing = "table inet pinhole {\n\tset pinholes4 {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1 . 10.0.0.2 . 5 \
                       timeout 1m expires 59s,\n\t\t\t     10.0.0.1 . 10.0.0.2 . 6 timeout 1m expires 59s }\n\t}\n}";
        let to = |port| SocketAddr::from(([10, 0, 0, 2], port));
        assert_eq!(element(listing, to(6)).as_deref(), Some("10.0.0.1 . 10.0.0.2 . 6 timeout 1m expires 59s"));
        assert_eq!(element(listing, to(7)), None);
        assert_eq!(element("set pinholes4 {\n}", to(5)), None);
    }
}
