//! Real FTP clients, and how to make each of them use one mode and do some transfers in one session.

use super::error::{Error, Result, quoted};
use super::namespace::Namespace;
use super::private_files::{INSIDE, PASSWORD, PrivateFiles, USER};
use super::process::Command;
use super::tools::{self, Tool};
use super::topology::Family;
use pinhole::core::ftp::Mode;
use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A real FTP client program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientKind {
    /// curl.
    Curl,
    /// lftp.
    Lftp,
    /// `NetBSD`'s ftp.
    Tnftp,
    /// Python's ftplib.
    Ftplib,
    /// GNU wget. It stores nothing, and has a session for each task.
    Wget,
}

/// How a session is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tls {
    /// After `AUTH TLS`.
    Explicit,
    /// From its start.
    Implicit,
}

/// A session of a client with a server.
#[derive(Clone, Debug)]
pub struct Visit<'a> {
    /// Where the client runs.
    pub namespace: &'a Namespace,
    /// Where the server is.
    pub server: SocketAddr,
    /// How data connections are announced.
    pub mode: Mode,
    /// The address that the client announces in active mode instead of its own. Not every client supports that.
    pub announce: Option<IpAddr>,
    /// How the session is encrypted; only curl and lftp can.
    pub tls: Option<Tls>,
    /// How long the client bears that nothing happens before it gives up. In whole seconds for some.
    pub timeout: Duration,
}

/// A task of a client, with one data connection.
#[derive(Clone, Copy, Debug)]
pub enum Task<'a> {
    /// Lists the home folder.
    List,
    /// Fetches a file.
    Download(&'a str),
    /// Stores this content under that name.
    Upload(&'a str, &'a [u8]),
}

impl ClientKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Curl, Self::Lftp, Self::Tnftp, Self::Ftplib, Self::Wget];

    /// Whether it can store files.
    pub const fn uploads(self) -> bool {
        !matches!(self, Self::Wget)
    }

    /// Whether it has an option to announce another address than its own.
    pub const fn announces_what_it_is_told(self) -> bool {
        matches!(self, Self::Curl | Self::Ftplib)
    }

    /// The modes that it supports.
    pub const fn modes(self, family: Family) -> &'static [Mode] {
        match (family, self) {
            // It sends PORT even with ftp:prefer-epsv.
            (Family::V4, Self::Lftp) => &[Mode::Port, Mode::Pasv, Mode::Epsv],
            // It chooses the command by the address family.
            (Family::V4, Self::Wget) => &[Mode::Port, Mode::Pasv],
            (Family::V4, _) => &[Mode::Port, Mode::Eprt, Mode::Pasv, Mode::Epsv],
            // The classic commands have no notation for it.
            (Family::V6, _) => &[Mode::Eprt, Mode::Epsv],
        }
    }

    /// Runs these tasks in one session (wget: one each), and returns the content of each (nothing for an upload).
    ///
    /// If one fails, all fail; the error holds the client's output, the dialogue included.
    pub fn visit(self, visit: &Visit<'_>, tasks: &[Task<'_>]) -> Result<Vec<Vec<u8>>> {
        let files = PrivateFiles::new()?;
        for (number, task) in tasks.iter().enumerate() {
            if let Task::Upload(_, content) = task {
                files.write(&format!("{number}.in"), content)?;
            }
        }
        let mut command = match self {
            Self::Curl => curl(visit, tasks)?,
            Self::Lftp => lftp(visit, tasks)?,
            Self::Tnftp => tnftp(visit, tasks)?,
            Self::Ftplib => ftplib(visit, tasks, &files)?,
            Self::Wget => wget(visit, tasks)?,
        };
        command.env("HOME", INSIDE).env("LC_ALL", "C.UTF-8").private_files(&files).current_dir(INSIDE);
        // Its own timeout should do, and lets it say why; this is for one that hangs all the same.
        let within = visit.timeout * u32::try_from(tasks.len() + 2).unwrap_or(u32::MAX) + Duration::from_secs(5);
        let done = command.output(within)?;
        let output = done.output();
        let brought = tasks.iter().enumerate().map(|(number, task)| match task {
            Task::Upload(..) => self.uploads().then(Vec::new),
            Task::List | Task::Download(_) => fs::read(files.folder().join(format!("{number}.out"))).ok(),
        });
        let brought: Option<Vec<_>> = brought.collect();
        // tnftp's exit status says nothing: the replies do.
        let complete = self != Self::Tnftp || output.lines().filter(|l| l.starts_with("226 ")).count() >= tasks.len();
        brought.filter(|_| complete).ok_or_else(|| Error::Ended {
            program: self.to_string(),
            status: format!("{} and without all of the transfers", done.status),
            output: quoted(output.as_bytes()),
        })
    }

    /// The listing of the home folder.
    pub fn list(self, visit: &Visit<'_>) -> Result<String> {
        let listing = self.visit(visit, &[Task::List])?.concat();
        Ok(String::from_utf8_lossy(&listing).into_owned())
    }

    /// The content of a file.
    pub fn download(self, visit: &Visit<'_>, name: &str) -> Result<Vec<u8>> {
        Ok(self.visit(visit, &[Task::Download(name)])?.concat())
    }

    /// Stores a file.
    pub fn upload(self, visit: &Visit<'_>, name: &str, content: &[u8]) -> Result<()> {
        self.visit(visit, &[Task::Upload(name, content)]).map(drop)
    }
}

impl fmt::Display for ClientKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Curl => "curl",
            Self::Lftp => "lftp",
            Self::Tnftp => "tnftp",
            Self::Ftplib => "ftplib",
            Self::Wget => "wget",
        })
    }
}

impl Visit<'_> {
    const fn is_extended(&self) -> bool {
        matches!(self.mode, Mode::Eprt | Mode::Epsv)
    }

    fn whole_seconds(&self) -> String {
        self.timeout.as_secs_f64().ceil().to_string()
    }

    fn url(&self) -> String {
        let scheme = if self.tls == Some(Tls::Implicit) { "ftps" } else { "ftp" };
        format!("{scheme}://{}/", self.server)
    }
}

fn command(visit: &Visit<'_>, tool: &Tool) -> Command {
    let mut command = visit.namespace.command(&tool.program);
    if let Some(libraries) = &tool.libraries {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command
}

fn curl(visit: &Visit<'_>, tasks: &[Task<'_>]) -> Result<Command> {
    let mut command = command(visit, &tools::find("curl", "usr/bin/curl")?);
    let announce = visit.announce.map_or_else(|| "-".to_owned(), |address| address.to_string());
    // Only as the first argument it means: no .curlrc.
    command.arg("--disable");
    // One curl with several transfers reuses its control connection.
    for (number, task) in tasks.iter().enumerate() {
        command.args(if number == 0 { ["--fail-early"] } else { ["--next"] });
        command.args(["--verbose", "--silent", "--show-error", "--user", &format!("{USER}:{PASSWORD}")]);
        command.args(["--max-time", &visit.timeout.as_secs_f64().to_string()]);
        if visit.tls.is_some() {
            command.args(["--ssl-reqd", "--insecure"]);
        }
        match visit.mode {
            Mode::Port => command.args(["--ftp-port", &announce, "--disable-eprt"]),
            Mode::Pasv => command.arg("--disable-epsv"),
            Mode::Epsv => &mut command,
            _ => command.args(["--ftp-port", &announce]),
        };
        match task {
            Task::List => command.args(["--output", &format!("{number}.out"), &visit.url()]),
            Task::Download(name) => {
                command.args(["--output", &format!("{number}.out"), &format!("{}{name}", visit.url())])
            }
            Task::Upload(name, _) => {
                command.args(["--upload-file", &format!("{number}.in"), &format!("{}{name}", visit.url())])
            }
        };
    }
    Ok(command)
}

fn lftp(visit: &Visit<'_>, tasks: &[Task<'_>]) -> Result<Command> {
    let yes = |is: bool| if is { "yes" } else { "no" };
    let mut script = vec![
        "debug 5".to_owned(),
        "set cmd:fail-exit yes".to_owned(),
        // Otherwise it would wait half a minute and try once more, and only then say that it failed.
        "set net:max-retries 1".to_owned(),
        "set net:reconnect-interval-base 0".to_owned(),
        format!("set net:timeout {}", visit.whole_seconds()),
        format!("set ftp:ssl-allow {}", yes(visit.tls.is_some())),
        format!("set ftp:ssl-force {}", yes(visit.tls.is_some())),
        "set ftp:ssl-protect-data yes".to_owned(),
        "set ssl:verify-certificate no".to_owned(),
        format!("set ftp:passive-mode {}", yes(!visit.mode.is_active())),
        format!("set ftp:prefer-epsv {}", yes(visit.is_extended())),
        format!("open -u {USER},{PASSWORD} {}", visit.url()),
    ];
    script.extend(tasks.iter().enumerate().map(|(number, task)| match task {
        Task::List => format!("ls > {number}.out"),
        Task::Download(name) => format!("get {name} -o {number}.out"),
        Task::Upload(name, _) => format!("put {number}.in -o {name}"),
    }));
    script.push("quit".to_owned());
    let mut command = command(visit, &tools::find("lftp", "usr/bin/lftp")?);
    command.args(["--norc", "-c", &script.join("; ")]);
    Ok(command)
}

fn tnftp(visit: &Visit<'_>, tasks: &[Task<'_>]) -> Result<Command> {
    let mut script = Vec::new();
    if !visit.is_extended() {
        // Extended commands are on until they are toggled.
        script.push(if visit.server.is_ipv4() { "epsv4" } else { "epsv6" }.to_owned());
    }
    script.push(format!("open {} {}", visit.server.ip(), visit.server.port()));
    script.push(format!("user {USER} {PASSWORD}"));
    script.push("binary".to_owned());
    script.extend(tasks.iter().enumerate().map(|(number, task)| match task {
        Task::List => format!("ls . {number}.out"),
        Task::Download(name) => format!("get {name} {number}.out"),
        Task::Upload(name, _) => format!("put {number}.in {name}"),
    }));
    script.push("quit\n".to_owned());
    let mut command = command(visit, &tools::find("tnftp", "usr/bin/tnftp")?);
    command
        .args(["-n", "-i", "-v", if visit.mode.is_active() { "-A" } else { "-p" }])
        .args(["-q", &visit.whole_seconds()])
        .input(script.join("\n").as_bytes());
    Ok(command)
}

fn ftplib(visit: &Visit<'_>, tasks: &[Task<'_>], files: &PrivateFiles) -> Result<Command> {
    let script = files.write("client.py", include_bytes!("config/ftplib_client.py"))?;
    let mut command = visit.namespace.command(tools::python()?);
    // It uses only Python's standard library, and starts faster when it does not look for other packages.
    command.args(["-u", "-I", "-S", &script, &visit.server.ip().to_string(), &visit.server.port().to_string()]).args([
        visit.mode.command(),
        &visit.timeout.as_secs_f64().to_string(),
        USER,
        PASSWORD,
        &visit.announce.map_or_else(String::new, |address| address.to_string()),
    ]);
    for (number, task) in tasks.iter().enumerate() {
        let number = number.to_string();
        match task {
            Task::List => command.args(["list", &number]),
            Task::Download(name) => command.args(["get", &number, name]),
            Task::Upload(name, _) => command.args(["put", &number, name]),
        };
    }
    Ok(command)
}

fn wget(visit: &Visit<'_>, tasks: &[Task<'_>]) -> Result<Command> {
    let tool = tools::find("wget", "usr/bin/wget")?;
    let url = visit.url();
    let passive = if visit.mode.is_active() { "--no-passive-ftp" } else { "--passive-ftp" };
    let timeout = visit.whole_seconds();
    let wget = format!(
        "{} --no-config --server-response --tries=1 --timeout={timeout} --user={USER} --password={PASSWORD} {passive}",
        tool.program.display()
    );
    let script = tasks.iter().enumerate().map(|(number, task)| match task {
        // Its listing of a folder is HTML; the original listing is kept beside it.
        Task::List => {
            format!("{wget} --no-remove-listing --output-document=index.html {url}; mv .listing {number}.out")
        }
        Task::Download(name) => format!("{wget} --output-document={number}.out {url}{name}"),
        Task::Upload(..) => "false".to_owned(),
    });
    let script: Vec<String> = script.collect();
    let mut shell = visit.namespace.command("sh");
    if let Some(libraries) = &tool.libraries {
        shell.env("LD_LIBRARY_PATH", libraries);
    }
    shell.args(["-e", "-c", &script.join("; ")]);
    Ok(shell)
}
