//! Both ends of a control connection in one test, for dialogues that no real server and client would have.

use super::accept_within;
use crate::error::{Context, Result};
use crate::namespace::Namespace;
use crate::pace::allow;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// How often the sender's kernel may retransmit before a line counts as lost: about three seconds. Each further
/// retransmission doubles that, so that a slow machine needs few more.
const REPETITIONS: u32 = 4;
/// How long nothing may come at all.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks at how often the sender has repeated itself.
const LOOK: Duration = Duration::from_millis(50);

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Speaker {
    /// Who has connected.
    Client,
    /// Who was connected to.
    Server,
}

/// The fate of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryStatus {
    /// It arrived, at once or after its sender had repeated some of it.
    Whole,
    /// It did not arrive, however often its sender repeated it.
    Lost,
}

/// What the other end received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// In which way.
    pub how: DeliveryStatus,
    /// What was received of it. A firewall on the way may have rewritten it.
    pub bytes: Vec<u8>,
}

/// The two ends.
#[derive(Debug)]
pub struct Pair {
    client: (Namespace, TcpStream),
    server: (Namespace, TcpStream),
}

impl Pair {
    /// Connects from one namespace to a listener in the other, at the address `destination`. Each write becomes a segment.
    pub fn connect(
        client: &Namespace,
        destination: SocketAddr,
        server: &Namespace,
        listens: SocketAddr,
    ) -> Result<Self> {
        for namespace in [client, server] {
            namespace.set("net/ipv4/tcp_autocorking", "0")?;
        }
        let doing = || format!("connect from {client} to {destination}, where {listens} in {server} should be");
        let listener = server.run(|| TcpListener::bind(listens))?.doing(doing)?;
        let ours = client.run(|| TcpStream::connect_timeout(&destination, TIMEOUT))?.doing(doing)?;
        let (theirs, _) = accept_within(&listener, TIMEOUT).doing(doing)?;
        for stream in [&ours, &theirs] {
            stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(LOOK))).doing(doing)?;
        }
        Ok(Self { client: (client.clone(), ours), server: (server.clone(), theirs) })
    }

    /// From now on an end sends a small piece only when all before it has been acknowledged, as Nagle wants it.
    pub fn enable_nagle(&self, speaker: Speaker) -> Result<()> {
        let (_, stream) = if speaker == Speaker::Client { &self.client } else { &self.server };
        stream.set_nodelay(false).doing(|| "set an option of a control connection".to_owned())
    }

    /// Sends lines from one end, each piece in its own segment. Returns when the other end has received as many lines,
    /// or when they count as lost.
    pub fn says(&mut self, speaker: Speaker, pieces: &[&[u8]]) -> Result<Delivery> {
        let ((namespace, from), (_, to)) = match speaker {
            Speaker::Client => (&self.client, &mut self.server),
            Speaker::Server => (&self.server, &mut self.client),
        };
        let before = repetitions(namespace)?;
        let most = REPETITIONS + allow(Duration::from_secs(1)).as_secs().ilog2();
        let mut from = from;
        for piece in pieces {
            from.write_all(piece).doing(|| format!("say something in {namespace}"))?;
        }
        let lines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count();
        let said: usize = pieces.iter().map(|piece| lines(piece)).sum();
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        let deadline = Instant::now() + allow(TIMEOUT);
        while lines(&bytes) < said {
            match to.read(&mut buffer) {
                Ok(0) => return Ok(Delivery { how: DeliveryStatus::Lost, bytes }),
                Ok(length) => bytes.extend(&buffer[..length]),
                Err(_) if repetitions(namespace)? >= before + u64::from(most) || Instant::now() > deadline => {
                    return Ok(Delivery { how: DeliveryStatus::Lost, bytes });
                }
                Err(_) => {}
            }
        }
        Ok(Delivery { how: DeliveryStatus::Whole, bytes })
    }

    /// Both ends close, the client first. Returns when both have received the other's FIN.
    pub fn end(&mut self) -> Result<()> {
        self.hang_up()?;
        let doing = || "end a control connection".to_owned();
        self.server.1.shutdown(Shutdown::Write).doing(doing)?;
        let client = &mut self.client.1;
        client.set_read_timeout(Some(TIMEOUT)).doing(doing)?;
        client.read_to_end(&mut Vec::new()).doing(doing).map(drop)
    }

    /// The client closes. Returns when the server has received its FIN.
    pub fn hang_up(&mut self) -> Result<()> {
        let doing = || "end a control connection".to_owned();
        self.client.1.shutdown(Shutdown::Write).doing(doing)?;
        let server = &mut self.server.1;
        server.set_read_timeout(Some(TIMEOUT)).doing(doing)?;
        server.read_to_end(&mut Vec::new()).doing(doing).map(drop)
    }
}

/// How many segments the kernel of a namespace has sent again.
fn repetitions(namespace: &Namespace) -> Result<u64> {
    // A line of names, then a line of numbers.
    let table = namespace.read("/proc/thread-self/net/snmp")?;
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, numbers) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let found = names.split(' ').zip(numbers.split(' ')).find(|(name, _)| *name == "RetransSegs");
    Ok(found.and_then(|(_, number)| number.parse().ok()).unwrap_or_default())
}
