//! The hosts of the demo, the programs on them, and the transfers that it tries.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::DemoError;
use crate::core::ftp::Mode;
use crate::lab::mini::{MiniClient, MiniOptions, MiniServer};
use crate::lab::{self, Child, ClientKind, Family, Room, Server, ServerKind, ServerOptions, Shape, Topology, Visit};

/// The policy of the service.
pub(super) const POLICY: &str = "{mechanism: sets, admit: [inet filter forward]}\n";
/// The file that is fetched.
pub(super) const FILE: &str = "hello.txt";
/// What is in it; longer than a segment, so that it is a transfer worth the name.
const CONTENT: &[u8] = &[b'.'; 50_000];
/// A port of the server that nobody announces: outside of those that vsftpd is told to use.
const UNANNOUNCED: u16 = 40_000;
const SHAPE: Shape = Shape::Gateway;

/// A server that is on the machine, or the lab's own.
#[derive(Debug)]
enum AnyServer {
    Real(Server),
    Mini(#[allow(dead_code, reason = "it runs until it is dropped")] MiniServer),
}

/// The hosts and their programs. Dropping it ends all of them.
#[derive(Debug)]
pub(super) struct Stage {
    // First what runs, then where.
    service: Option<Child>,
    server: AnyServer,
    client: Option<ClientKind>,
    room: Room,
    topology: Topology,
    /// How much of the service's log has been told.
    told: usize,
}

/// How a transfer went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// The file came as it is.
    Whole {
        /// Its length.
        bytes: usize,
        /// How long the session took.
        took: Duration,
    },
    /// Somebody was logged in, and no data came.
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
    pub(super) fn build() -> lab::Result<Self> {
        let topology = Topology::new(SHAPE)?;
        // Older kernels can be told to let FTP through by themselves. A kernel without that switch needs no turning.
        let _ = topology.firewall.set("net/netfilter/nf_conntrack_helper", "0");
        topology.firewall.nft(SHAPE.default_drop())?;
        let server = AnyServer::start(&topology)?;
        let client = lab::tools::find("curl", "usr/bin/curl").is_ok().then_some(ClientKind::Curl);
        Ok(Self { service: None, server, client, room: Room::new()?, topology, told: 0 })
    }

    pub(super) fn client_address(&self) -> IpAddr {
        self.topology.client.addresses.of(Family::V4)
    }

    pub(super) fn server_address(&self) -> IpAddr {
        self.topology.server.addresses.of(Family::V4)
    }

    pub(super) fn server_name(&self) -> String {
        match &self.server {
            AnyServer::Real(server) => server.kind().to_string(),
            AnyServer::Mini(_) => "a built-in one, as vsftpd is not installed".to_owned(),
        }
    }

    pub(super) fn client_name(&self) -> String {
        self.client.map_or_else(|| "a built-in one, as curl is not installed".to_owned(), |client| client.to_string())
    }

    fn control(&self) -> SocketAddr {
        SocketAddr::new(self.server_address(), 21)
    }

    /// Fetches the file in a session of its own.
    pub(super) fn transfer(&self, mode: Mode, patience: Duration) -> Result<Transfer, DemoError> {
        let begun = Instant::now();
        let namespace = &self.topology.client.namespace;
        let fetched = match self.client {
            Some(client) => {
                let visit = Visit { namespace, server: self.control(), mode, announce: None, patience };
                match client.download(&visit, FILE) {
                    // The login went well, so it is the data that did not come.
                    Err(error) if error.said().contains("230 ") => Err(error),
                    result => Ok(result?),
                }
            }
            None => namespace.run(|| {
                let mut client = MiniClient::log_in(self.control(), patience)?;
                lab::Result::Ok(client.download(mode, FILE))
            })??,
        };
        match fetched {
            Ok(content) if content == CONTENT => Ok(Transfer::Whole { bytes: content.len(), took: begun.elapsed() }),
            Ok(content) => Err(DemoError::Unexpected(format!("only {} bytes of {FILE} came", content.len()))),
            Err(_) => Ok(Transfer::Blocked),
        }
    }

    /// Starts this program as the service of the firewall, and waits until its rules stand.
    pub(super) fn start_service(&mut self, program: PathBuf, within: Duration) -> lab::Result<()> {
        let policy = self.room.write("policy.yaml", POLICY.as_bytes())?;
        // In a room, /run is its own: neither the policy nor the socket of the service is on the machine's disk.
        let mut service = self
            .topology
            .firewall
            .command(program)
            .args(["run", "--policy", &policy])
            .env("PINHOLE_SOCKET", format!("{}/control.sock", lab::INSIDE))
            .env("RUST_LOG", "info")
            .room(&self.room)
            .spawn()?;
        let socket = self.room.folder().join("control.sock");
        let waited = lab::wait_until("pinhole to start", within, || {
            let has_begun = || service.said().contains("installed table") && socket.exists();
            Ok(has_begun() || !service.is_running()?)
        });
        let fails = waited.is_err() || !service.is_running()?;
        if fails {
            waited?;
            // Waiting for what has ended gives its status and all that it said.
            let finished = service.wait(within)?;
            return Err(lab::Error::Ended {
                program: "`pinhole run`".to_owned(),
                status: finished.status.to_string(),
                said: format!(":\n{}", finished.said().trim_end()),
            });
        }
        self.service = Some(service);
        Ok(())
    }

    /// Ends the service as systemd would.
    pub(super) fn stop_service(&mut self, within: Duration) -> Result<(), DemoError> {
        let Some(mut service) = self.service.take() else { return Ok(()) };
        service.signal(Signal::SIGTERM)?;
        service.wait(within)?;
        let left = self.topology.firewall.nft_says(&["list", "ruleset"])?;
        if left.contains("pinhole") {
            return Err(DemoError::Unexpected(format!(
                "Pinhole has ended and left something in the firewall:\n{left}"
            )));
        }
        Ok(())
    }

    /// All that the service has said.
    pub(super) fn log(&self) -> String {
        self.service.as_ref().map(Child::said).unwrap_or_default()
    }

    /// What the service has said since this was asked last.
    pub(super) fn news(&mut self) -> Vec<String> {
        let log = self.log();
        // A line that is still being written belongs to the next time.
        let end = log.rfind('\n').map_or(0, |end| end + 1);
        let begin = self.told;
        self.told = end.max(begin);
        log.get(begin..end).unwrap_or_default().lines().map(message).map(str::to_owned).collect()
    }

    /// The same once a line of it has `word` in it: what the kernel tells the service comes a moment later.
    pub(super) fn news_until(&mut self, word: &str, within: Duration) -> lab::Result<Vec<String>> {
        lab::wait_until("the log of pinhole", within, || {
            let log = self.log();
            Ok(log.get(self.told..).unwrap_or_default().lines().any(|line| line.contains(word)))
        })?;
        Ok(self.news())
    }

    /// Has the server announce a port, and tries what gets through.
    pub(super) fn try_one_pinhole(&self, patience: Duration) -> Result<OnePinhole, DemoError> {
        let namespace = &self.topology.client.namespace;
        namespace.run(|| {
            let mut client = MiniClient::log_in(self.control(), Duration::from_secs(10))?;
            let announced = client.passive(Mode::Pasv)?;
            let standing = self.topology.firewall.nft_says(&["list", "set", "inet", "pinhole", "pinholes4"])?;
            let element = element(&standing, announced).ok_or_else(|| {
                DemoError::Unexpected(format!(
                    "the server announced {announced}, and the kernel has no pinhole for it:\n{standing}"
                ))
            })?;
            let to = |port: u16| try_connection(SocketAddr::new(announced.ip(), port), patience);
            let unannounced = to(UNANNOUNCED)?;
            let first = to(announced.port())?;
            let second = to(announced.port())?;
            Ok(OnePinhole { announced, element, unannounced, first, second })
        })?
    }
}

impl AnyServer {
    /// vsftpd if it is there and starts, otherwise the built-in one.
    fn start(topology: &Topology) -> lab::Result<Self> {
        let namespace = &topology.server.namespace;
        let address = topology.server.addresses.of(Family::V4);
        if lab::tools::find("vsftpd", "usr/sbin/vsftpd").is_ok()
            && let Ok(server) = ServerKind::Vsftpd.start(namespace, &ServerOptions::on(address))
        {
            server.place(FILE, CONTENT)?;
            return Ok(Self::Real(server));
        }
        let options = MiniOptions { patience: Duration::from_secs(2), ..MiniOptions::default() };
        let server = MiniServer::start(namespace, SocketAddr::new(address, 21), options)?;
        server.place(FILE, CONTENT);
        Ok(Self::Mini(server))
    }
}

/// Whether a connection comes about, from the namespace of the calling thread.
fn try_connection(to: SocketAddr, patience: Duration) -> Result<Connection, DemoError> {
    match std::net::TcpStream::connect_timeout(&to, patience) {
        Ok(_) => Ok(Connection::Through),
        // Somebody behind the firewall has answered.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Connection::Through),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(Connection::Blocked),
        Err(error) => Err(error.into()),
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
