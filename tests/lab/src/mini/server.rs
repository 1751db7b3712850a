//! The server: one thread per session, files in memory.

use super::accept_within;
use super::address::{classic, read_classic, read_extended};
use crate::error::{Context, Result};
use crate::namespace::Namespace;
use crate::private_files::{PASSWORD, USER};
use nix::sys::socket::{Shutdown, shutdown};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Sessions need little, and there may be ten thousand.
const STACK: usize = 128 * 1024;
/// A longer line ends its session.
const LONGEST_LINE: u64 = 4096;

/// How a [`MiniServer`] behaves.
#[derive(Clone, Debug)]
pub struct MiniOptions {
    /// The ports of passive data connections; by default any free port.
    pub passive_ports: Option<RangeInclusive<u16>>,
    /// One passive listener serves a session to its end. Otherwise each announcement has a new one, as usual; then the
    /// ports of past transfers accumulate in TIME_WAIT, and slow everything down.
    pub one_listener: bool,
    /// The address in a 227 instead of the server's own.
    pub announce: Option<Ipv4Addr>,
    /// How long it waits for a data connection.
    pub timeout: Duration,
}

impl Default for MiniOptions {
    fn default() -> Self {
        Self { passive_ports: None, one_listener: false, announce: None, timeout: Duration::from_secs(10) }
    }
}

/// A server that runs. Dropping it ends it and its sessions.
#[derive(Debug)]
pub struct MiniServer {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug)]
struct Shared {
    options: MiniOptions,
    files: Mutex<BTreeMap<String, Arc<[u8]>>>,
    sessions: Mutex<Sessions>,
}

/// The control connections that are open, by number, so that they can be closed.
#[derive(Debug, Default)]
struct Sessions {
    next: u64,
    open: BTreeMap<u64, Arc<TcpStream>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Data behind these locks is never left half changed, so a panic of another holder does no harm.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MiniServer {
    /// Starts one in `namespace`. It listens when this returns. Port 0 is any that is free.
    pub fn start(namespace: &Namespace, address: SocketAddr, options: MiniOptions) -> Result<Self> {
        let doing = || format!("listen on {address} in {namespace}");
        let listener = Arc::new(namespace.run(|| TcpListener::bind(address))?.doing(doing)?);
        let address = listener.local_addr().doing(doing)?;
        let shared = Arc::new(Shared { options, files: Mutex::default(), sessions: Mutex::default() });
        let (accepting, with) = (Arc::clone(&listener), Arc::clone(&shared));
        let thread = namespace.start(move || serve(&accepting, &with))?;
        Ok(Self { address, listener, shared, thread: Some(thread) })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Puts a file where clients find it.
    pub fn place(&self, name: &str, content: impl Into<Arc<[u8]>>) {
        lock(&self.shared.files).insert(name.to_owned(), content.into());
    }

    /// The content of a file, if there is one. Uploads are here once the client has the reply that ends them.
    pub fn content(&self, name: &str) -> Option<Arc<[u8]>> {
        lock(&self.shared.files).get(name).cloned()
    }

    /// How many sessions are open.
    pub fn sessions(&self) -> usize {
        lock(&self.shared.sessions).open.len()
    }
}

impl Drop for MiniServer {
    fn drop(&mut self) {
        // Wakes the thread in accept; an error can only mean that it has ended.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in lock(&self.shared.sessions).open.values() {
            // Each session then reads the end of its control connection, and ends by itself.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Accepts until the listener is shut down.
fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        let (control, peer) = match listener.accept() {
            Ok((control, peer)) => (Arc::new(control), peer),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(_) => return,
        };
        let number = {
            let mut sessions = lock(&shared.sessions);
            sessions.next += 1;
            let number = sessions.next;
            sessions.open.insert(number, Arc::clone(&control));
            number
        };
        let with = Arc::clone(shared);
        let session = move || {
            // If a session ends early, the other end caused it, and notices.
            let _ = Session::new(&control, peer, &with).and_then(|mut session| session.run());
            lock(&with.sessions).open.remove(&number);
        };
        if thread::Builder::new().stack_size(STACK).spawn(session).is_err() {
            // Closes it, as a server does that is full.
            lock(&shared.sessions).open.remove(&number);
        }
    }
}

/// Where the next data connection comes from or goes to.
enum Data {
    Unannounced,
    Passive,
    Active(SocketAddr),
}

struct Session<'a> {
    shared: &'a Shared,
    lines: BufReader<&'a TcpStream>,
    control: &'a TcpStream,
    local: IpAddr,
    peer: IpAddr,
    user: Option<String>,
    logged_in: bool,
    data: Data,
    listener: Option<TcpListener>,
}

impl<'a> Session<'a> {
    fn new(control: &'a TcpStream, peer: SocketAddr, shared: &'a Shared) -> io::Result<Self> {
        control.set_nodelay(true)?;
        Ok(Self {
            shared,
            lines: BufReader::new(control),
            local: control.local_addr()?.ip(),
            control,
            peer: peer.ip(),
            user: None,
            logged_in: false,
            data: Data::Unannounced,
            listener: None,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        self.reply("220 Pinhole lab ready.")?;
        let mut line = Vec::new();
        loop {
            line.clear();
            (&mut self.lines).take(LONGEST_LINE).read_until(b'\n', &mut line)?;
            let Some(line) = line.strip_suffix(b"\n") else { return Ok(()) };
            // Telnet's sequences in front of an ABOR have their highest bit set, and nothing else here has.
            let text: String = line.iter().filter(|b| b.is_ascii() && **b != b'\r').map(|b| char::from(*b)).collect();
            let (command, argument) = text.split_once(' ').unwrap_or((&text, ""));
            let command = command.to_ascii_uppercase();
            if command == "QUIT" {
                return self.reply("221 Goodbye.");
            }
            self.answer(&command, argument)?;
        }
    }

    fn answer(&mut self, command: &str, argument: &str) -> io::Result<()> {
        match command {
            "USER" => {
                self.user = Some(argument.to_owned());
                self.logged_in = false;
                self.reply("331 Password, please.")
            }
            "PASS" => {
                self.logged_in = self.user.as_deref() == Some(USER) && argument == PASSWORD;
                self.reply(if self.logged_in { "230 Logged in." } else { "530 Wrong." })
            }
            "NOOP" => self.reply("200 Still here."),
            "ABOR" => self.reply("226 Nothing to break off."),
            "SYST" => self.reply("215 UNIX Type: L8"),
            "FEAT" => self.reply("211-Features:\r\n EPRT\r\n EPSV\r\n SIZE\r\n211 End."),
            _ if !self.logged_in => self.reply("530 Log in first."),
            "TYPE" | "MODE" | "STRU" | "OPTS" => self.reply("200 As you like."),
            "PWD" => self.reply("257 \"/\""),
            "CWD" | "CDUP" => self.reply("250 There is one folder only."),
            "SIZE" => match self.file(argument) {
                Some(content) => self.reply(&format!("213 {}", content.len())),
                None => self.reply("550 No such file."),
            },
            "PORT" => self.announced(read_classic(argument)),
            "EPRT" => self.announced(read_extended(argument)),
            "EPSV" if argument.eq_ignore_ascii_case("ALL") => self.reply("200 Only EPSV from now on."),
            "PASV" => self.passive(false),
            "EPSV" => self.passive(true),
            "LIST" | "NLST" => {
                let listing = self.listing(command == "LIST");
                self.give(listing.as_bytes())
            }
            "RETR" => match self.file(argument) {
                Some(content) => self.give(&content),
                None => self.reply("550 No such file."),
            },
            "STOR" => self.take(argument),
            _ => self.reply("502 Not here."),
        }
    }

    fn reply(&mut self, text: &str) -> io::Result<()> {
        // In one write, so that it is one segment.
        self.control.write_all(format!("{text}\r\n").as_bytes())
    }

    fn file(&self, name: &str) -> Option<Arc<[u8]>> {
        lock(&self.shared.files).get(name.trim_start_matches('/')).cloned()
    }

    fn listing(&self, long: bool) -> String {
        let mut listing = String::new();
        for (name, content) in lock(&self.shared.files).iter() {
            let written = if long {
                write!(listing, "-rw-r--r-- 1 pinhole pinhole {:>12} Jan  1 00:00 {name}\r\n", content.len())
            } else {
                write!(listing, "{name}\r\n")
            };
            written.expect("a String takes what is written to it");
        }
        listing
    }

    fn announced(&mut self, address: Option<SocketAddr>) -> io::Result<()> {
        match address {
            Some(address) if address.ip() == self.peer => {
                self.data = Data::Active(address);
                self.reply("200 Active.")
            }
            Some(_) => self.reply("500 Not to others."),
            None => self.reply("501 Not an address."),
        }
    }

    fn passive(&mut self, with_port_only: bool) -> io::Result<()> {
        match &self.listener {
            Some(listener) if self.shared.options.one_listener => {
                if matches!(self.data, Data::Passive) {
                    // The last announcement was not used up: who followed it must not be taken for the next.
                    listener.set_nonblocking(true)?;
                    while listener.accept().is_ok() {}
                    listener.set_nonblocking(false)?;
                }
            }
            _ => self.listener = Some(self.listen()?),
        }
        let port = self.listener.as_ref().map_or(Ok(0), |listener| listener.local_addr().map(|a| a.port()))?;
        self.data = Data::Passive;
        let own = match self.local {
            IpAddr::V4(own) => Some(own),
            IpAddr::V6(own) => own.to_ipv4_mapped(),
        };
        match (with_port_only, self.shared.options.announce.or(own)) {
            (true, _) => self.reply(&format!("229 Entering Extended Passive Mode (|||{port}|)")),
            (false, Some(address)) => self.reply(&format!("227 Entering Passive Mode ({}).", classic(address, port))),
            (false, None) => {
                self.data = Data::Unannounced;
                self.reply("522 Not by this family: use EPSV.")
            }
        }
    }

    fn listen(&self) -> io::Result<TcpListener> {
        let Some(ports) = self.shared.options.passive_ports.clone() else { return TcpListener::bind((self.local, 0)) };
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for port in ports {
            match TcpListener::bind((self.local, port)) {
                Ok(listener) => return Ok(listener),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The announced data connection.
    fn connection(&mut self) -> io::Result<TcpStream> {
        let timeout = self.shared.options.timeout;
        match std::mem::replace(&mut self.data, Data::Unannounced) {
            Data::Unannounced => Err(io::ErrorKind::NotConnected.into()),
            Data::Active(address) => TcpStream::connect_timeout(&address, timeout),
            Data::Passive => {
                let listener = self.listener.take().ok_or(io::ErrorKind::NotConnected)?;
                let accepted = accept_within(&listener, timeout);
                if self.shared.options.one_listener {
                    self.listener = Some(listener);
                }
                let (stream, peer) = accepted?;
                // As real servers do: a data connection has the address of its control connection.
                if peer.ip() == self.peer { Ok(stream) } else { Err(io::ErrorKind::PermissionDenied.into()) }
            }
        }
    }

    fn give(&mut self, content: &[u8]) -> io::Result<()> {
        let Ok(mut data) = self.connection() else { return self.reply("425 No data connection.") };
        self.reply("150 Here it comes.")?;
        let sent = data.write_all(content);
        drop(data);
        self.reply(if sent.is_ok() { "226 Sent." } else { "426 Broken off." })
    }

    fn take(&mut self, name: &str) -> io::Result<()> {
        let Ok(mut data) = self.connection() else { return self.reply("425 No data connection.") };
        self.reply("150 Let it come.")?;
        let mut content = Vec::new();
        let received = data.read_to_end(&mut content);
        drop(data);
        if received.is_err() {
            return self.reply("426 Broken off.");
        }
        lock(&self.shared.files).insert(name.trim_start_matches('/').to_owned(), content.into());
        self.reply("226 Stored.")
    }
}
