//! What the live benchmark measures: a gateway in namespaces with one of several ways to let FTP through, and the load.

use std::fmt;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use lab::mini::{MiniClient, MiniOptions, MiniServer};
use lab::{Child, Family, KERNEL_HELPER, Namespace, Result, Shape, Topology, wait_until};
use pinhole::core::ftp::Mode;
use pinhole::core::policy::{self, WhenDown};
use pinhole::netfilter::backend::KernelFirewall;
use pinhole::netfilter::queue::{Queue, bind_to_processors, processors};

use crate::figures::{percentile, timed};
use crate::firewall;

/// How long anything may take that should happen at once.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Transfers of a session before the clock starts.
pub(crate) const WARM_UP: usize = 20;
/// The file of the small transfers, and how long it is.
const SMALL: (&str, usize) = ("small.bin", 1024);
/// The file of the bulk transfer.
const LARGE: &str = "large.bin";

/// The way in which data connections get through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Nothing: the filter accepts everything.
    Plain,
    /// The kernel's own helper.
    Kernel,
    /// A queue whose reader accepts every packet unread, for nothing but the server's 227: the minimum that any program
    /// has to read. The filter accepts everything.
    QueueOne,
    /// The same with all packets that Pinhole queues: the minimum cost of reading them.
    QueueAll,
    /// Pinhole.
    Pinhole,
}

impl Side {
    pub(crate) const ALL: [Self; 5] = [Self::Plain, Self::Kernel, Self::QueueOne, Self::QueueAll, Self::Pinhole];

    fn rules(self) -> String {
        let filter = Shape::Gateway.default_drop();
        match self {
            Self::Plain | Self::QueueOne | Self::QueueAll => filter.replace("policy drop", "policy accept"),
            Self::Kernel => format!("{filter}{KERNEL_HELPER}"),
            Self::Pinhole => filter.to_owned(),
        }
    }

    /// The policy of Pinhole.
    fn policy(self) -> Option<String> {
        if matches!(self, Self::Plain | Self::Kernel) {
            return None;
        }
        let queues = std::env::var("PINHOLE_BENCH_QUEUES").unwrap_or_else(|_| "auto".to_owned());
        Some(format!("admit: [inet filter forward]\ncapture: {{ queues: {queues} }}\n"))
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Plain => "no helper",
            Self::Kernel => "kernel helper",
            Self::QueueOne => "queue, 227",
            Self::QueueAll => "queue, all",
            Self::Pinhole => "Pinhole",
        })
    }
}

/// A gateway with a client in front of it and a server behind it.
pub(crate) struct TestGateway {
    /// Who is where.
    topology: Topology,
    daemon: Option<Daemon>,
    /// The kernel's state without a daemon.
    _installed: Option<KernelFirewall>,
    /// The threads that read the queues in its place.
    readers: Vec<i32>,
}

impl TestGateway {
    /// Builds it in fresh namespaces.
    pub(crate) fn new(side: Side) -> Result<Self> {
        Self::with(side, "")
    }

    /// The same, with the client behind a masquerading gateway.
    pub(crate) fn masquerading(side: Side) -> Result<Self> {
        let rules = "table ip nat { chain postrouting { type nat hook postrouting priority srcnat; \
                     oifname \"servers\" masquerade; }; }\n";
        Self::with(side, rules)
    }

    fn with(side: Side, more_rules: &str) -> Result<Self> {
        let topology = Topology::new(Shape::Gateway)?;
        topology.firewall.nft(&format!("{}{more_rules}", side.rules()))?;
        let (mut daemon, mut installed, mut readers) = (None, None, Vec::new());
        match side {
            Side::Plain | Side::Kernel => {}
            Side::Pinhole => {
                let policy = side.policy().expect("Pinhole has a policy");
                daemon = Some(Daemon::start(&topology.firewall, &policy)?);
            }
            Side::QueueOne | Side::QueueAll => {
                let (sets, threads) = accept_all(&topology.firewall, side)?;
                (installed, readers) = (Some(sets), threads);
            }
        }
        Ok(Self { topology, daemon, _installed: installed, readers })
    }

    /// A server with the files of the load, `large` one of them, and one passive listener a session or a new one for
    /// each transfer.
    pub(crate) fn serve(&self, large: &Arc<[u8]>, one_listener: bool) -> Result<MiniServer> {
        let options = MiniOptions { one_listener, ..MiniOptions::default() };
        let server = MiniServer::start(&self.topology.server.namespace, self.control(), options)?;
        server.place(SMALL.0, vec![b'x'; SMALL.1]);
        server.place(LARGE, Arc::clone(large));
        Ok(server)
    }

    fn control(&self) -> SocketAddr {
        SocketAddr::new(self.topology.target.of(Family::V4), 21)
    }

    /// Transfers per second: concurrent sessions, each with so many small transfers, in these modes in turn.
    pub(crate) fn transfers(&self, sessions: usize, each: usize, modes: &[Mode]) -> Result<f64> {
        let server = self.control();
        let barrier = Barrier::new(sessions + 1);
        let session = || {
            let prepared = Session::begin(server, modes);
            // Reached in any case, so that no thread waits for a failed one.
            barrier.wait();
            prepared?.transfers(each, modes)
        };
        self.topology.client.namespace.run(|| {
            thread::scope(|scope| {
                let sessions: Vec<_> = (0..sessions).map(|_| scope.spawn(session)).collect();
                barrier.wait();
                let began = Instant::now();
                let count = sessions.len() * each;
                sessions.into_iter().try_for_each(|session| session.join().expect("a session does not panic"))?;
                Ok(count as f64 / began.elapsed().as_secs_f64())
            })
        })?
    }

    /// The median round trip of a line without an announcement, in microseconds.
    pub(crate) fn round_trip(&self, times: usize) -> Result<f64> {
        let server = self.control();
        self.topology.client.namespace.run(|| {
            let mut client = MiniClient::log_in(server, TIMEOUT)?;
            let mut one = || {
                let (taken, replied) = timed(|| client.command("NOOP", 200));
                replied.map(|_| taken)
            };
            let taken = (0..times).map(|_| one()).collect::<Result<Vec<f64>>>()?;
            Ok(percentile(taken, 50))
        })?
    }

    /// Megabytes a second of one large download.
    pub(crate) fn bulk(&self) -> Result<f64> {
        let server = self.control();
        self.topology.client.namespace.run(|| {
            let mut client = MiniClient::log_in(server, TIMEOUT)?;
            let address = client.passive(Mode::Pasv)?;
            let mut data = client.connect_data(address)?;
            let mut chunk = vec![0; 256 * 1024];
            let began = Instant::now();
            client.command(&format!("RETR {LARGE}"), 150)?;
            let mut received = 0_u64;
            loop {
                match data.read(&mut chunk).expect("the data connection stands") {
                    0 => break,
                    length => received += length as u64,
                }
            }
            let taken = began.elapsed().as_secs_f64();
            client.expect(226)?;
            Ok(received as f64 / 1e6 / taken)
        })?
    }

    /// The end of the daemon's log.
    pub(crate) fn output(&self) -> String {
        let said = self.daemon.as_ref().map_or_else(String::new, |daemon| daemon.child.output());
        let lines: Vec<&str> = said.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Processor time that the reader of the queue has taken, in microseconds; zero where there is none.
    pub(crate) fn processor(&self) -> f64 {
        let task = |path: PathBuf| {
            let times = std::fs::read_to_string(path).unwrap_or_default();
            times.split(' ').next().and_then(|first| first.parse::<f64>().ok()).unwrap_or(0.0) / 1000.0
        };
        let Some(daemon) = &self.daemon else {
            return self.readers.iter().map(|reader| task(format!("/proc/self/task/{reader}/schedstat").into())).sum();
        };
        let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.child.id())).into_iter().flatten().flatten();
        tasks.map(|one| task(one.path().join("schedstat"))).sum()
    }

    /// Resident memory of the daemon, in bytes.
    pub(crate) fn resident(&self) -> usize {
        let daemon = self.daemon.as_ref().expect("this side has a daemon");
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", daemon.child.id())).unwrap_or_default();
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
    }

    /// Begins so many sessions, each logged in and with one unused announcement. They last until the result is dropped.
    pub(crate) fn hold(&self, sessions: usize) -> Result<Held> {
        let Topology { client, server, .. } = &self.topology;
        // The client's FINs and RSTs are dropped, so its sockets can be closed: one open file per session is enough.
        client.namespace.nft(
            "table inet hold { chain output { type filter hook output priority filter; \
             meta l4proto tcp tcp flags & (fin | rst) != 0 drop; }; }",
        )?;
        let to = self.control();
        let listener = server.namespace.run(|| TcpListener::bind(to))?.expect("the port is free");
        client.namespace.run(|| Held((0..sessions).map(|index| Pair::log_in(&listener, to, index).server).collect()))
    }
}

/// Installs the rules that Pinhole would install for that side, with a thread per queue that accepts every packet.
///
/// The threads end with this process; their queues have their namespace to themselves.
fn accept_all(firewall: &Namespace, side: Side) -> Result<(KernelFirewall, Vec<i32>)> {
    let policy = policy::parse("bench.yaml", &side.policy().expect("Pinhole has one")).expect("it is good").policy;
    let policy = policy.on(processors());
    let queues = policy.capture.queues();
    let read = |number| {
        let mut queue = Queue::open(number, WhenDown::Open).unwrap_or_else(|error| panic!("{error}"));
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            bind_to_processors(number, queues);
            sender.send(rustix::thread::gettid().as_raw_nonzero().get()).expect("somebody wants to know");
            loop {
                let waiting = queue.next_packet().expect("the queue is ours");
                waiting.accept(None).expect("the packet waits");
            }
        });
        receiver.recv().expect("the thread says it first")
    };
    firewall.run(|| {
        let readers = queues.numbers().map(read).collect();
        let sets = firewall::install(&policy).unwrap_or_else(|error| panic!("{error}"));
        if side == Side::QueueOne {
            let only =
                "flush chain inet pinhole inspect\nadd rule inet pinhole inspect @ih,0,24 0x323237 goto queue_packet\n";
            firewall.nft(only)?;
        }
        Ok((sets, readers))
    })?
}

/// Many sessions, the server's end of each.
#[derive(Debug)]
pub(crate) struct Held(Vec<TcpStream>);

impl Held {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Both ends of a control connection, in the hands of one thread: ten thousand of them need no ten thousand threads.
#[derive(Debug)]
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn log_in(listener: &TcpListener, to: SocketAddr, index: usize) -> Self {
        let client = TcpStream::connect(to).expect("control connections are let through");
        let (server, _) = listener.accept().expect("the connection stands");
        for end in [&client, &server] {
            end.set_nodelay(true).and_then(|()| end.set_read_timeout(Some(TIMEOUT))).expect("it is a socket");
        }
        let pair = Self { client, server };
        let port = 10_000 + index % 50_000;
        pair.server_says("220 Ready.");
        for (command, reply) in [
            ("USER anonymous", "331 Password?"),
            ("PASS a@example.org", "230 Welcome."),
            ("PASV", &format!("227 Entering Passive Mode (10,21,2,10,{},{}).", port / 256, port % 256)),
        ] {
            pair.client_says(command);
            pair.server_says(reply);
        }
        pair
    }

    fn client_says(&self, line: &str) {
        say(&self.client, &self.server, line);
    }

    fn server_says(&self, line: &str) {
        say(&self.server, &self.client, line);
    }
}

/// Sends a line, and returns once it has arrived.
fn say(mut from: &TcpStream, to: &TcpStream, line: &str) {
    from.write_all(format!("{line}\r\n").as_bytes()).expect("the connection stands");
    let mut heard = String::new();
    // Nothing follows the line, so the buffer holds nothing back.
    BufReader::with_capacity(256, to).read_line(&mut heard).expect("the line arrives");
    assert_eq!(heard.trim_end(), line);
}

/// A client of the load.
struct Session {
    client: MiniClient,
    content: Vec<u8>,
}

impl Session {
    fn begin(server: SocketAddr, modes: &[Mode]) -> Result<Self> {
        let client = MiniClient::log_in(server, TIMEOUT)?;
        let mut session = Self { client, content: Vec::new() };
        session.transfers(WARM_UP, modes)?;
        Ok(session)
    }

    fn transfers(&mut self, count: usize, modes: &[Mode]) -> Result<()> {
        let command = format!("RETR {}", SMALL.0);
        modes.iter().cycle().take(count).try_for_each(|&mode| {
            self.content.clear();
            self.client.fetch(mode, &command, &mut self.content)?;
            assert_eq!(self.content.len(), SMALL.1, "{mode}");
            Ok(())
        })
    }
}

/// The program as a service in a namespace.
struct Daemon {
    child: Child,
    folder: PathBuf,
}

impl Daemon {
    fn start(namespace: &Namespace, policy: &str) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("pinhole-bench-{}", namespace.name()));
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        let file = folder.join("policy.yaml");
        std::fs::write(&file, policy).expect("a policy can be written");
        let socket = folder.join("control.sock");
        let log = std::env::var("PINHOLE_BENCH_LOG").unwrap_or_else(|_| "info".to_owned());
        let child = namespace
            .command(std::env::var("PINHOLE_BENCH_PROGRAM").as_deref().unwrap_or(env!("CARGO_BIN_EXE_pinhole")))
            .args(["run", "--policy"])
            .arg(&file)
            .env("PINHOLE_SOCKET", &socket)
            .env("RUST_LOG", log)
            .spawn()?;
        let mut daemon = Self { child, folder };
        wait_until("the daemon answers", TIMEOUT, || {
            assert!(daemon.child.is_running()?, "{}", daemon.child.output());
            Ok(ask_status(&socket))
        })?;
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Whether the control socket answers: the table is installed by then.
fn ask_status(socket: &std::path::Path) -> bool {
    let ask = || {
        let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(b"\"status\"")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)
    };
    ask().is_ok_and(|length| length > 0)
}
