//! Real FTP servers: how each is configured, started, and known to be ready.

use super::client::Tls;
use super::error::{Error, Result};
use super::namespace::Namespace;
use super::private_files::{HOME_INSIDE, INSIDE, PASSWORD, PrivateFiles, USER};
use super::process::Child;
use super::tools::{self, Tool};
use super::wait::wait_until;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// How long a server may take until it listens. Generous: it is only ever waited for when something is wrong.
const START: Duration = Duration::from_secs(20);

/// The key and the certificate of every server: nobody checks them.
const CERTIFICATE: &[u8] = include_bytes!("config/server.pem");

/// A real FTP server program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerKind {
    /// vsftpd.
    Vsftpd,
    /// `ProFTPD`.
    Proftpd,
    /// Pure-FTPd.
    PureFtpd,
    /// Python's pyftpdlib.
    Pyftpdlib,
}

impl ServerKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Vsftpd, Self::Proftpd, Self::PureFtpd, Self::Pyftpdlib];

    /// Starts it, with the account [`USER`] and an empty home folder, and returns once it listens.
    pub fn start(self, namespace: &Namespace, options: &ServerOptions) -> Result<Server> {
        let files = PrivateFiles::new()?;
        let mut command = match self {
            Self::Vsftpd => {
                let tool = tools::find("vsftpd", "usr/sbin/vsftpd")?;
                let listen = match options.address {
                    IpAddr::V4(_) => "listen=YES\nlisten_ipv6=NO\nlisten_address",
                    IpAddr::V6(_) => "listen=NO\nlisten_ipv6=YES\nlisten_address6",
                };
                let text = options.fill(include_str!("config/vsftpd.conf")).replace("{listen}", listen);
                let text = text.replace("{announce}", &options.announcing("pasv_address="));
                let text = text.replace("{tls}", &options.vsftpd_tls(&files)?);
                let mut command = tool.command(namespace);
                command.arg(files.write("vsftpd.conf", text.as_bytes())?);
                command
            }
            Self::Proftpd => {
                let tool = tools::find("proftpd", "usr/sbin/proftpd")?;
                let modules = tool
                    .root
                    .as_ref()
                    .map_or_else(String::new, |root| format!("ModulePath {}", root.join("usr/lib/proftpd").display()));
                let text = options.fill(include_str!("config/proftpd.conf")).replace("{modules}", &modules);
                let text = text.replace("{announce}", &options.announcing("MasqueradeAddress "));
                let mut command = tool.command(namespace);
                command.args(["--nodaemon", "--config", &files.write("proftpd.conf", text.as_bytes())?]);
                command
            }
            Self::PureFtpd => {
                let mut command = tools::find("pure-ftpd", "usr/sbin/pure-ftpd")?.command(namespace);
                command
                    .args(["--bind", &options.fill("{address},{port}")])
                    .args(["--passiveportrange", &options.fill("{first}:{last}")])
                    .args(["--pidfile", &format!("{INSIDE}/pure-ftpd.pid")])
                    .args(["--login", "unix", "--minuid", "1", "--noanonymous", "--dontresolve"]);
                if options.tls.is_some() {
                    command.args(["--tls", "2", "--certfile", &files.write("server.pem", CERTIFICATE)?]);
                }
                if let Some(address) = options.announce {
                    command.args(["--forcepassiveip", &address.to_string()]);
                }
                command
            }
            Self::Pyftpdlib => {
                let script = files.write("server.py", include_bytes!("config/pyftpdlib_server.py"))?;
                let mut command = namespace.command(tools::python_with_pyftpdlib()?);
                command
                    .args(["-u", &script])
                    .args(["{address}", "{port}", "{first}", "{last}"].map(|word| options.fill(word)))
                    .args([USER, PASSWORD, HOME_INSIDE, &options.announcing("")]);
                command
            }
        };
        if let Some(cgroup) = &options.cgroup {
            command.cgroup(cgroup);
        }
        let child = command.private_files(&files).current_dir(INSIDE).spawn()?;
        let mut server = Server { child, files, kind: self };
        server.wait_until_it_listens(namespace, options.port)?;
        Ok(server)
    }
}

impl fmt::Display for ServerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vsftpd => "vsftpd",
            Self::Proftpd => "proftpd",
            Self::PureFtpd => "pure-ftpd",
            Self::Pyftpdlib => "pyftpdlib",
        })
    }
}

impl Tool {
    fn command(&self, namespace: &Namespace) -> super::process::Command {
        let mut command = namespace.command(&self.program);
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }
}

/// Where a server listens.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Its address.
    pub address: IpAddr,
    /// Its control port.
    pub port: u16,
    /// The ports of its passive data connections.
    pub passive_ports: RangeInclusive<u16>,
    /// The address in its 227 instead of its own.
    pub announce: Option<Ipv4Addr>,
    /// How its sessions are encrypted; only vsftpd and Pure-FTPd can, and Pure-FTPd only after `AUTH TLS`.
    pub tls: Option<Tls>,
    /// The folder of the control group in which it runs.
    pub cgroup: Option<PathBuf>,
}

impl ServerOptions {
    /// Port 21 of that address, passive ports 50000 to 50100.
    pub const fn on(address: IpAddr) -> Self {
        Self { address, port: 21, passive_ports: 50000..=50100, announce: None, tls: None, cgroup: None }
    }

    fn fill(&self, text: &str) -> String {
        text.replace("{address}", &self.address.to_string())
            .replace("{port}", &self.port.to_string())
            .replace("{first}", &self.passive_ports.start().to_string())
            .replace("{last}", &self.passive_ports.end().to_string())
            .replace("{inside}", INSIDE)
    }

    fn vsftpd_tls(&self, files: &PrivateFiles) -> Result<String> {
        let Some(tls) = self.tls else { return Ok(String::new()) };
        let implicit = if tls == Tls::Implicit { "YES" } else { "NO" };
        let file = files.write("server.pem", CERTIFICATE)?;
        // Clients would have to resume the control connection's TLS session, which not every version of curl does.
        Ok(format!(
            "ssl_enable=YES\nimplicit_ssl={implicit}\nrequire_ssl_reuse=NO\nssl_ciphers=HIGH\n\
             rsa_cert_file={file}\nrsa_private_key_file={file}\n"
        ))
    }

    /// A line of a configuration that is there only if another address is to be announced.
    fn announcing(&self, key: &str) -> String {
        self.announce.map_or_else(String::new, |address| format!("{key}{address}"))
    }
}

/// A server that runs. Dropping it ends it, its sessions and its files.
#[derive(Debug)]
pub struct Server {
    child: Child,
    files: PrivateFiles,
    kind: ServerKind,
}

impl Server {
    /// Which program it is.
    pub const fn kind(&self) -> ServerKind {
        self.kind
    }

    /// Puts a file where clients find it.
    pub fn place(&self, name: &str, content: &[u8]) -> Result<()> {
        self.files.place(name, content)
    }

    /// The content of a file of the user's, if it is there.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.files.home().join(name)).ok()
    }

    /// Returns once a file has this content. The client may have ended before the server has stored all of it.
    pub fn wait_for_content(&self, name: &str, content: &[u8], within: Duration) -> Result<()> {
        wait_until(&format!("{name} to hold what was sent to {}", self.kind), within, || {
            Ok(self.content(name).as_deref() == Some(content))
        })
    }

    /// Its output so far.
    pub fn output(&self) -> String {
        self.child.output()
    }

    fn wait_until_it_listens(&mut self, namespace: &Namespace, port: u16) -> Result<()> {
        let what = format!("{} to listen on port {port} in {namespace}", self.kind);
        let waited = wait_until(&what, START, || match self.child.status()? {
            Some(status) => Err(self.child.ended_too_early(status)),
            None => namespace.is_listening(port),
        });
        waited.map_err(|error| match error {
            Error::TooLate { what, within, .. } => {
                Error::TooLate { what, within, output: super::error::quoted(self.output().as_bytes()) }
            }
            other => other,
        })
    }
}
