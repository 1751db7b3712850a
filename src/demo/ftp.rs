//! A small FTP server and client: a login, PASV or PORT, and one file.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::core::ftp::Mode;
use crate::core::ftp::notation::{Announced, Notation};

/// The file that the server offers.
pub(super) const FILE: &str = "hello.txt";
/// The content of the file; longer than a segment.
pub(super) const CONTENT: &[u8] = &[b'.'; 50_000];
/// The limit for a step of the dialogue.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Serves each client on its own thread, in the network namespace of the calling thread, until this process ends.
pub(super) fn serve(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    thread::spawn(move || {
        for control in listener.incoming().flatten() {
            // The client reports errors of the session.
            thread::spawn(move || drop(session(control)));
        }
    });
    Ok(())
}

enum DataConnection {
    Passive(TcpListener),
    Active(SocketAddr),
}

fn session(mut control: TcpStream) -> io::Result<()> {
    let address = control.local_addr()?.ip();
    let lines = BufReader::new(control.try_clone()?).lines();
    let mut data_connection = None;
    control.write_all(b"220 Ready\r\n")?;
    for line in lines {
        let line = line?;
        let (command, argument) = line.split_once(' ').unwrap_or((&line, ""));
        let reply = match command {
            "USER" => "331 Password?".to_owned(),
            "PASS" => "230 Logged in".to_owned(),
            "PASV" => {
                let listener = listen(address)?;
                let reply = format!("227 Entering Passive Mode ({})", print(listener.local_addr()?)?);
                data_connection = Some(DataConnection::Passive(listener));
                reply
            }
            "PORT" => {
                data_connection = Some(DataConnection::Active(read(argument)?));
                "200 PORT understood".to_owned()
            }
            "RETR" => {
                control.write_all(b"150 Here it comes\r\n")?;
                let connected = match data_connection.take() {
                    Some(DataConnection::Passive(listener)) => listener.accept().map(|(data, _)| data),
                    Some(DataConnection::Active(to)) => TcpStream::connect_timeout(&to, TIMEOUT),
                    None => Err(io::ErrorKind::NotConnected.into()),
                };
                match connected.and_then(|mut data| data.write_all(CONTENT)) {
                    Ok(()) => "226 Done".to_owned(),
                    Err(_) => "425 No data connection".to_owned(),
                }
            }
            _ => "502 Not here".to_owned(),
        };
        control.write_all(format!("{reply}\r\n").as_bytes())?;
    }
    Ok(())
}

/// A client that has logged in.
#[derive(Debug)]
pub(super) struct Client {
    control: BufReader<TcpStream>,
}

impl Client {
    pub(super) fn log_in(server: SocketAddr) -> io::Result<Self> {
        let control = TcpStream::connect_timeout(&server, TIMEOUT)?;
        control.set_read_timeout(Some(TIMEOUT))?;
        let mut client = Self { control: BufReader::new(control) };
        client.expect("220")?;
        client.command("USER demo", "331")?;
        client.command("PASS demo", "230")?;
        Ok(client)
    }

    /// Sends PASV, and returns the announced address.
    pub(super) fn passive(&mut self) -> io::Result<SocketAddr> {
        let reply = self.command("PASV", "227")?;
        read(reply.split(['(', ')']).nth(1).unwrap_or_default())
    }

    /// Fetches the file. Returns none if there is no data connection within `timeout`.
    pub(super) fn fetch(&mut self, mode: Mode, timeout: Duration) -> io::Result<Option<Vec<u8>>> {
        let connected = if mode.is_active() {
            let listener = listen(self.control.get_ref().local_addr()?.ip())?;
            self.command(&format!("PORT {}", print(listener.local_addr()?)?), "200")?;
            self.command(&format!("RETR {FILE}"), "150")?;
            // On Linux, the receive timeout of a listening socket applies to accept.
            set_socket_timeout(&listener, Timeout::Recv, Some(timeout))?;
            listener.accept().map(|(data, _)| data)
        } else {
            let address = self.passive()?;
            let data = TcpStream::connect_timeout(&address, timeout);
            if data.is_ok() {
                self.command(&format!("RETR {FILE}"), "150")?;
            }
            data
        };
        let mut data = match connected {
            Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
                return Ok(None);
            }
            connected => connected?,
        };
        let mut content = Vec::new();
        data.set_read_timeout(Some(TIMEOUT))?;
        data.read_to_end(&mut content)?;
        self.expect("226")?;
        Ok(Some(content))
    }

    fn command(&mut self, line: &str, code: &str) -> io::Result<String> {
        self.control.get_mut().write_all(format!("{line}\r\n").as_bytes())?;
        self.expect(code)
    }

    fn expect(&mut self, code: &str) -> io::Result<String> {
        let mut reply = String::new();
        self.control.read_line(&mut reply)?;
        if reply.starts_with(code) { Ok(reply) } else { Err(nonsense(&reply)) }
    }
}

fn listen(address: IpAddr) -> io::Result<TcpListener> {
    TcpListener::bind((address, 0))
}

/// The address in the notation of PORT and 227.
fn print(address: SocketAddr) -> io::Result<String> {
    let announced = Announced { address: Some(address.ip()), port: address.port() };
    Notation::Six.print(&announced).ok_or_else(|| nonsense(&address.to_string()))
}

fn read(text: &str) -> io::Result<SocketAddr> {
    let found = Notation::Six.read(text.as_bytes()).ok_or_else(|| nonsense(text))?;
    let address = found.announced.address.ok_or_else(|| nonsense(text))?;
    Ok(SocketAddr::new(address, found.announced.port))
}

fn nonsense(text: &str) -> io::Error {
    io::Error::other(format!("unexpected in the FTP dialogue: {text:?}"))
}
