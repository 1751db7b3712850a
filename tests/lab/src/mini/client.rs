//! The client: transfers in any mode, and the bytes of the dialogue for tests that need them.

use super::accept_within;
use super::address::{classic, extended, read_classic, read_extended_port};
use crate::error::{Context, Error, Result};
use crate::private_files::{PASSWORD, USER};
use pinhole::core::ftp::Mode;
use std::io::{BufRead, BufReader, Read, Write};
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// A session with an FTP server.
///
/// It lives in the namespace of the thread that made it, and stays on that thread: use it inside
/// [`Namespace::run`](crate::Namespace::run).
#[derive(Debug)]
pub struct MiniClient {
    control: BufReader<TcpStream>,
    server: SocketAddr,
    own: IpAddr,
    timeout: Duration,
    /// For active modes: one a session, for the same reason as the server's.
    listener: Option<TcpListener>,
    /// Data connections are made by the calling thread, in its namespace: another thread's could be another.
    stays_here: PhantomData<*const ()>,
}

/// A server's reply to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Its code.
    pub code: u16,
    /// All of it, code and line ends included.
    pub text: String,
}

impl MiniClient {
    /// Connects, and returns once the server has greeted. Anything that takes longer than `timeout` is an error.
    pub fn connect(server: SocketAddr, timeout: Duration) -> Result<Self> {
        let doing = || format!("connect to {server}");
        let control = TcpStream::connect_timeout(&server, timeout).doing(doing)?;
        control.set_nodelay(true).doing(doing)?;
        let own = control.local_addr().doing(doing)?.ip();
        let mut client =
            Self { control: BufReader::new(control), server, own, timeout, listener: None, stays_here: PhantomData };
        client.set_timeout(timeout)?;
        client.expect(220)?;
        Ok(client)
    }

    /// Changes how long it waits for anything from now on.
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<()> {
        self.timeout = timeout;
        set_timeouts(self.control.get_ref(), timeout)
    }

    /// Connects, logs in as the lab's user, and asks for files as they are.
    pub fn log_in(server: SocketAddr, timeout: Duration) -> Result<Self> {
        let mut client = Self::connect(server, timeout)?;
        client.command(&format!("USER {USER}"), 331)?;
        client.command(&format!("PASS {PASSWORD}"), 230)?;
        // Some servers take the default seriously and change line ends.
        client.command("TYPE I", 200)?;
        Ok(client)
    }

    /// Its own end of the control connection.
    pub fn local_address(&self) -> Result<SocketAddr> {
        self.control.get_ref().local_addr().doing(|| "look at a control connection".to_owned())
    }

    /// Sends a command, and reads its reply, whose code must be that.
    pub fn command(&mut self, line: &str, code: u16) -> Result<Reply> {
        self.send(format!("{line}\r\n").as_bytes())?;
        self.expect(code)
    }

    /// Sends bytes as they are, in one segment if they fit.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.control.get_mut().write_all(bytes).doing(|| format!("send to {}", self.server))
    }

    /// Sends bytes in segments of at most `length`. The kernel may put them together again only when it has to send
    /// them once more, or while the other end's window is full.
    pub fn send_in_pieces(&mut self, bytes: &[u8], length: usize) -> Result<()> {
        bytes.chunks(length.max(1)).try_for_each(|piece| self.send(piece))
    }

    /// Reads the next reply, of however many lines.
    pub fn reply(&mut self) -> Result<Reply> {
        let mut text = String::new();
        loop {
            let start = text.len();
            let length = self.control.read_line(&mut text).doing(|| format!("read a reply of {}", self.server))?;
            let line = &text[start..];
            if length == 0 || !line.ends_with('\n') {
                return Err(Error::Dialogue { expected: "a reply".to_owned(), got: text });
            }
            let last = line.len() > 4 && line.as_bytes()[3] != b'-' && line.get(..3) == text.get(..3);
            if last && line.as_bytes()[3].is_ascii_whitespace() {
                let code = text.get(..3).and_then(|code| code.parse().ok());
                return match code {
                    Some(code) => Ok(Reply { code, text }),
                    None => Err(Error::Dialogue { expected: "a reply with a code".to_owned(), got: text }),
                };
            }
        }
    }

    /// Waits until the next reply has come, and does not read it.
    pub fn wait_for_reply(&self) -> Result<()> {
        self.control.get_ref().peek(&mut [0]).map(drop).doing(|| format!("wait for a reply of {}", self.server))
    }

    /// Reads the next reply, whose code must be that.
    pub fn expect(&mut self, code: u16) -> Result<Reply> {
        let reply = self.reply()?;
        if reply.code == code { Ok(reply) } else { Err(self.unexpected(&code.to_string(), reply)) }
    }

    /// Has the server announce where it listens, by PASV or EPSV.
    pub fn passive(&mut self, mode: Mode) -> Result<SocketAddr> {
        if mode == Mode::Epsv {
            let reply = self.command("EPSV", 229)?;
            let port = read_extended_port(&reply.text);
            return port.map(|port| SocketAddr::new(self.server.ip(), port)).ok_or_else(|| unreadable(reply));
        }
        let reply = self.command(mode.command(), 227)?;
        read_classic(reply.text.get(4..).unwrap_or_default()).ok_or_else(|| unreadable(reply))
    }

    /// Announces where this client listens, by PORT or EPRT.
    pub fn active(&mut self, mode: Mode) -> Result<SocketAddr> {
        let address = self.listen()?;
        let line = self.announcement(mode, address)?;
        self.command(&line, 200)?;
        Ok(address)
    }

    /// Listens for data connections, if it does not yet, and says where.
    pub fn listen(&mut self) -> Result<SocketAddr> {
        let doing = || format!("listen on {}", self.own);
        let listener = match self.listener.take() {
            Some(listener) => listener,
            None => TcpListener::bind((self.own, 0)).doing(doing)?,
        };
        let address = listener.local_addr().doing(doing)?;
        self.listener = Some(listener);
        Ok(address)
    }

    /// The line that announces `address` in that mode, without its end, for callers that send it themselves.
    pub fn announcement(&self, mode: Mode, address: SocketAddr) -> Result<String> {
        match (mode, address.ip()) {
            (Mode::Port, IpAddr::V4(ip)) => Ok(format!("PORT {}", classic(ip, address.port()))),
            (Mode::Eprt, _) => Ok(format!("EPRT {}", extended(address))),
            _ => Err(Error::Dialogue {
                expected: "PORT with an IPv4 address, or EPRT".to_owned(),
                got: format!("{mode} with {address}"),
            }),
        }
    }

    /// Waits for the server's data connection.
    pub fn accept(&mut self) -> Result<TcpStream> {
        self.listen()?;
        let listener = self.listener.as_ref().expect("`listen` has just put it there");
        let (data, _) =
            accept_within(listener, self.timeout).doing(|| format!("wait for data from {}", self.server))?;
        self.with_timeout(data)
    }

    /// Connects to where the server has announced to listen.
    pub fn connect_data(&self, to: SocketAddr) -> Result<TcpStream> {
        let data = TcpStream::connect_timeout(&to, self.timeout).doing(|| format!("connect to {to} for data"))?;
        self.with_timeout(data)
    }

    /// The listing of the home folder.
    pub fn list(&mut self, mode: Mode) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        self.fetch(mode, "LIST", &mut content)?;
        Ok(content)
    }

    /// The content of a file.
    pub fn download(&mut self, mode: Mode, name: &str) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        self.fetch(mode, &format!("RETR {name}"), &mut content)?;
        Ok(content)
    }

    /// Downloads by any command, and appends to `content`, without an allocation for callers that do so ten thousand
    /// times.
    pub fn fetch(&mut self, mode: Mode, command: &str, content: &mut Vec<u8>) -> Result<()> {
        let mut data = self.begin(mode, command)?;
        data.read_to_end(content).doing(|| format!("read data of {}", self.server))?;
        drop(data);
        self.expect(226).map(drop)
    }

    /// Stores a file.
    pub fn upload(&mut self, mode: Mode, name: &str, content: &[u8]) -> Result<()> {
        let mut data = self.begin(mode, &format!("STOR {name}"))?;
        data.write_all(content).doing(|| format!("send data to {}", self.server))?;
        drop(data);
        self.expect(226).map(drop)
    }

    /// Says goodbye.
    pub fn quit(mut self) -> Result<()> {
        self.command("QUIT", 221).map(drop)
    }

    /// Announces, asks for a transfer, and returns its data connection once the server says that it begins.
    fn begin(&mut self, mode: Mode, command: &str) -> Result<TcpStream> {
        let command = format!("{command}\r\n");
        if mode.is_active() {
            self.active(mode)?;
            self.send(command.as_bytes())?;
            // A server that cannot connect says so here, and then nothing comes.
            self.expect_beginning()?;
            return self.accept();
        }
        let address = self.passive(mode)?;
        let data = self.connect_data(address)?;
        self.send(command.as_bytes())?;
        self.expect_beginning()?;
        Ok(data)
    }

    fn expect_beginning(&mut self) -> Result<()> {
        let reply = self.reply()?;
        // A server replies 125 if its data connection was open before the command came.
        if matches!(reply.code, 125 | 150) { Ok(()) } else { Err(self.unexpected("150", reply)) }
    }

    fn unexpected(&self, code: &str, reply: Reply) -> Error {
        Error::Dialogue { expected: format!("reply {code} of {}", self.server), got: reply.text }
    }

    fn with_timeout(&self, data: TcpStream) -> Result<TcpStream> {
        set_timeouts(&data, self.timeout)?;
        Ok(data)
    }
}

fn set_timeouts(stream: &TcpStream, timeout: Duration) -> Result<()> {
    stream
        .set_read_timeout(Some(timeout))
        .and_then(|()| stream.set_write_timeout(Some(timeout)))
        .doing(|| "set the timeouts of a connection".to_owned())
}

fn unreadable(reply: Reply) -> Error {
    Error::Dialogue { expected: "an address".to_owned(), got: reply.text }
}
