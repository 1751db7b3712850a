//! A firewall that drops by default, the daemon on it, and a server and a client around it.

#![allow(dead_code, reason = "each test takes what it needs")]

use crate::daemon::{Daemon, TIMEOUT};

use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use lab::mini::{MiniClient, MiniOptions, MiniServer};
use lab::{Family, Namespace, Result, Shape, Topology};
use pinhole::core::ftp::Mode;
use pinhole::netfilter::netlink::{self, Expectations, Table, Tables};

pub(crate) const FILE: &str = "readme.txt";
pub(crate) const CONTENT: &[u8] = b"Files are data.\r\n227 Entering Passive Mode (10,21,1,1,0,22)\r\n";
/// The table of Pinhole.
pub(crate) const TABLE: Table<'static> = Table { family: netlink::Family::Inet, name: "pinhole" };
/// The tests' own table.
pub(crate) const FILTER: Table<'static> = Table { family: netlink::Family::Inet, name: "filter" };
/// Long enough that nothing goes because its time is over.
pub(crate) const FOR_HOURS: &str = "defaults: { timeout: 1h }\n";

/// A topology whose firewall admits nothing by default. It rejects, so that a refused client fails at once.
pub(crate) struct FilteredTopology {
    pub(crate) topology: Topology,
}

impl FilteredTopology {
    pub(crate) fn new(shape: Shape) -> Self {
        let topology = Topology::new(shape).unwrap_or_else(|error| panic!("{error}"));
        topology.firewall.nft(&filter(shape)).expect("the rules are right");
        Self { topology }
    }

    pub(crate) fn daemon(&self, more: &str) -> Daemon {
        self.daemon_logging(more, "debug")
    }

    pub(crate) fn daemon_logging(&self, more: &str, log: &'static str) -> Daemon {
        let policy = policy(self.topology.shape, more);
        Daemon::start_logging(self.firewall(), &policy, log).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn firewall(&self) -> &Namespace {
        &self.topology.firewall
    }

    /// Where the two ends of a session are.
    pub(crate) fn ends(&self) -> [&Namespace; 2] {
        [&self.topology.client, &self.topology.server].map(|host| &host.namespace)
    }

    pub(crate) fn target(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.topology.target.of(family), port)
    }

    pub(crate) fn serve(&self, family: Family) -> MiniServer {
        self.serve_with(self.target(family, 21), MiniOptions::default())
    }

    /// With one passive listener per session, for tests with many transfers.
    pub(crate) fn serve_many(&self, family: Family) -> MiniServer {
        self.serve_with(self.target(family, 21), MiniOptions { one_listener: true, ..MiniOptions::default() })
    }

    pub(crate) fn serve_with(&self, address: SocketAddr, options: MiniOptions) -> MiniServer {
        let server = MiniServer::start(&self.topology.server.namespace, address, options)
            .unwrap_or_else(|error| panic!("{error}"));
        server.place(FILE, CONTENT);
        server
    }

    /// Runs `work` where the client is.
    pub(crate) fn as_client<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> T {
        let done = self.topology.client.namespace.run(work).and_then(|result| result);
        done.unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn pinholes(&self) -> usize {
        pinholes(self.firewall())
    }

    pub(crate) fn wait_for_pinholes(&self, count: usize) {
        let what = format!("{count} pinholes in the kernel");
        lab::wait_until(&what, TIMEOUT, || Ok(self.pinholes() == count))
            .unwrap_or_else(|error| panic!("{error}; there are {:?}", listed_pinholes(self.firewall())));
    }
}

/// The lab's rules; control connections to port 2121 may pass as well; who may not connect is refused.
pub(crate) fn filter(shape: Shape) -> String {
    let refuse = "tcp flags & (fin | syn | rst | ack) == syn reject with tcp reset";
    let chains: &[&str] = match shape {
        Shape::Gateway => &["forward"],
        Shape::ServerHost | Shape::ClientHost => &["input", "output"],
    };
    let mut rules = shape.default_drop().to_owned();
    for chain in chains {
        let destination = if (shape, *chain) == (Shape::ServerHost, "output") { "" } else { "tcp dport 2121 accept\n" };
        let destination = if (shape, *chain) == (Shape::ClientHost, "input") { "" } else { destination };
        rules += &format!("table inet filter {{\nchain {chain} {{\n{destination}{refuse}\n}}\n}}\n");
    }
    rules
}

pub(crate) fn policy(shape: Shape, more: &str) -> String {
    let admit = match shape {
        Shape::ServerHost | Shape::ClientHost => "[inet filter input, inet filter output]",
        Shape::Gateway => "[inet filter forward]",
    };
    format!("admit: {admit}\n{more}")
}

pub(crate) fn modes(family: Family) -> &'static [Mode] {
    match family {
        Family::V4 => &[Mode::Port, Mode::Eprt, Mode::Pasv, Mode::Epsv],
        Family::V6 => &[Mode::Eprt, Mode::Epsv],
    }
}

/// The number of pinholes in the kernel, with either mechanism.
pub(crate) fn pinholes(firewall: &Namespace) -> usize {
    listed_pinholes(firewall).len()
}

/// The elements of the sets, and the expectations, as text.
fn listed_pinholes(firewall: &Namespace) -> Vec<String> {
    let listed = firewall.run(|| {
        let mut tables = Tables::open(TIMEOUT)?;
        let in_sets = [tables.elements(TABLE, "pinholes4")?, tables.elements(TABLE, "pinholes6")?].concat();
        let in_sets = in_sets.iter().map(|element| format!("{element:?}"));
        let expected = Expectations::open(TIMEOUT)?.list()?;
        Ok::<_, netlink::Error>(in_sets.chain(expected.iter().map(|one| format!("{one:?}"))).collect())
    });
    listed.expect("root may enter").expect("the sets stand")
}

/// Tries to connect from a namespace.
pub(crate) fn connect(from: &Namespace, to: SocketAddr) -> io::Result<TcpStream> {
    from.run(|| TcpStream::connect_timeout(&to, TIMEOUT)).expect("root may enter")
}

/// Fails unless the firewall refuses the connection. A listener must be there, or the connection would be refused
/// anyway.
#[track_caller]
pub(crate) fn assert_closed(from: &Namespace, to: SocketAddr) {
    match connect(from, to) {
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "from {from} to {to}: {error}"),
        Ok(_) => panic!("a connection from {from} to {to} came through"),
    }
}

/// A counter of the kernel in /proc/net/netstat or /proc/net/snmp.
pub(crate) fn kernel_counter(namespace: &Namespace, group: &str, name: &str) -> u64 {
    let read = |file| namespace.read(&format!("/proc/thread-self/net/{file}")).expect("root may read");
    let text = read("netstat") + &read("snmp");
    let prefix = format!("{group}: ");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let found = names.split(' ').zip(values.split(' ')).find(|(found, _)| *found == name);
    found.expect("there is such a counter").1.parse().expect("a number")
}

/// Data connections whose first packet had to be sent again.
pub(crate) fn sent_again(fixture: &FilteredTopology) -> u64 {
    let Topology { client, server, .. } = &fixture.topology;
    [client, server].map(|host| kernel_counter(&host.namespace, "TcpExt", "TCPSynRetrans")).iter().sum()
}

/// Does something, and sees that the daemon reads so many packets of it; and besides only such as were sent again, as on
/// a busy machine, which are read again.
#[track_caller]
pub(crate) fn assert_read(daemon: &Daemon, ends: &[&Namespace], packets: u64, what: &str, work: impl FnOnce()) {
    let repeated = || ends.iter().map(|end| kernel_counter(end, "Tcp", "RetransSegs")).sum::<u64>();
    let before = (daemon.counted("packets"), repeated());
    work();
    let (read, again) = (daemon.counted("packets") - before.0, repeated() - before.1);
    assert!((packets..=packets + again).contains(&read), "{what}: {read}, and not {packets}; {again} were sent again");
}

pub(crate) fn some_transfers(server: SocketAddr, mode: Mode) -> Result<()> {
    let mut client = MiniClient::log_in(server, TIMEOUT)?;
    let listing = client.list(mode)?;
    assert!(String::from_utf8_lossy(&listing).contains(FILE), "{mode}: the listing lacks the file");
    assert_eq!(client.download(mode, FILE)?, CONTENT, "{mode}");
    client.upload(mode, "upward.txt", CONTENT)?;
    client.quit()
}

/// An unpredictable number below `limit`.
pub(crate) fn random_below(limit: u64) -> u64 {
    RandomState::new().hash_one(limit) % limit
}

pub(crate) fn read_all(mut stream: TcpStream) -> Vec<u8> {
    let mut content = Vec::new();
    stream.read_to_end(&mut content).expect("it sends it all");
    content
}

/// Sets a flag when dropped, after a panic, too.
pub(crate) struct SetOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Serves one control connection after another by hand.
pub(crate) fn serve_by_hand(
    namespace: &Namespace,
    address: SocketAddr,
    mut talk: impl FnMut(TcpStream) -> io::Result<()> + Send,
    visit: impl FnOnce(),
) {
    let listener = namespace.run(|| TcpListener::bind(address)).expect("root may enter").expect("it is free");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // In the namespace, because it makes listeners.
            namespace.run(|| {
                while let Ok((stream, _)) = listener.accept() {
                    if is_over.load(Ordering::SeqCst) {
                        return;
                    }
                    stream.set_nodelay(true).and_then(|()| talk(stream)).expect("the other end stays");
                }
            })
        });
        let _wakes = WakeOnDrop(namespace, address);
        let _ends = SetOnDrop(&is_over);
        visit();
    });
}

/// Connects once more when dropped, so that the accepting thread notices the end.
pub(crate) struct WakeOnDrop<'a>(&'a Namespace, SocketAddr);

impl Drop for WakeOnDrop<'_> {
    fn drop(&mut self) {
        let _ = connect(self.0, self.1);
    }
}
