//! The built program as a daemon in a namespace of the lab.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lab::{Child, Command, Finished, Namespace, Result};
use nix::sys::signal::Signal;
use serde_json::Value;

/// How long anything may take that should happen at once.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// The program.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_pinhole");

/// A running daemon in a namespace.
pub(crate) struct Daemon {
    /// Its process.
    pub(crate) child: Child,
    /// Where its policy, `policy.yaml`, and its socket, `control.sock`, lie.
    pub(crate) folder: PathBuf,
    namespace: Namespace,
    log: &'static str,
}

impl Daemon {
    /// Starts it, and waits until its table is installed and its socket answers. It logs at the lowest level.
    pub(crate) fn start(namespace: &Namespace, policy: &str) -> Result<Self> {
        Self::start_logging(namespace, policy, "debug")
    }

    /// The same with another log level, for tests that keep it busy.
    pub(crate) fn start_logging(namespace: &Namespace, policy: &str, log: &'static str) -> Result<Self> {
        let folder = new_folder();
        write_policy(&folder, policy);
        let child = launch(namespace, &folder, log)?;
        Ok(Self { child, folder, namespace: namespace.clone(), log })
    }

    /// Ends it as nothing can prepare for.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL)
    }

    /// Sends it a signal that ends it, and returns when it has ended.
    pub(crate) fn end(&mut self, signal: Signal) -> Result<()> {
        self.child.signal(signal)?;
        lab::wait_until("the daemon ends", TIMEOUT, || Ok(!self.child.is_running()?))
    }

    /// Starts it again after it has ended, with the policy as it is now.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.child = launch(&self.namespace, &self.folder, self.log)?;
        Ok(())
    }

    /// Changes the policy file without a reload.
    pub(crate) fn write_policy(&self, policy: &str) {
        write_policy(&self.folder, policy);
    }

    /// Where its socket lies.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// Its status.
    pub(crate) fn status(&self) -> Value {
        let answer = ask(&self.socket()).unwrap_or_else(|error| panic!("no status: {error}\n{}", self.child.output()));
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    /// The value of its counter of that name.
    pub(crate) fn counted(&self, name: &str) -> u64 {
        self.status()["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name}"))
    }

    /// Runs the program with these arguments, to be answered by this daemon.
    pub(crate) fn program(&self, arguments: &[&str]) -> Result<Finished> {
        let mut command = self.namespace.command(PROGRAM);
        command.args(arguments).env("PINHOLE_SOCKET", self.socket()).spawn()?.wait(TIMEOUT)
    }

    /// Waits until its log contains that text so many times.
    pub(crate) fn wait_for_log(&self, line: &str, times: usize) {
        let says = || Ok(self.child.output().matches(line).count() >= times);
        lab::wait_until(&format!("{line:?} in the log"), TIMEOUT, says)
            .unwrap_or_else(|error| panic!("{error}\n{}", self.child.output()));
    }
}

impl Drop for Daemon {
    #[allow(clippy::print_stderr, reason = "a test that failed says what the daemon said")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let status = ask(&self.socket()).unwrap_or_else(|error| error.to_string());
            eprintln!("the daemon's status: {status}");
            let said = self.child.output();
            let lines: Vec<&str> = said.lines().rev().take(40).collect();
            eprintln!("the end of the daemon's log, backwards:\n{}", lines.join("\n"));
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A new, empty folder.
pub(crate) fn new_folder() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("pinhole-live-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    folder
}

/// The command that runs the service with the policy in that folder.
pub(crate) fn service(namespace: &Namespace, folder: &Path, log: &str) -> Command {
    let mut command = namespace.command(PROGRAM);
    command
        .args(["run", "--policy"])
        .arg(folder.join("policy.yaml"))
        .env("PINHOLE_SOCKET", folder.join("control.sock"))
        .env("RUST_LOG", log);
    command
}

pub(crate) fn write_policy(folder: &Path, policy: &str) {
    std::fs::write(folder.join("policy.yaml"), with_mechanism(policy)).expect("a policy can be written");
}

/// The mechanism of this test run, if the environment names one: whole suites run with each in turn. Otherwise `sets`,
/// which works on every kernel.
pub(crate) fn mechanism() -> String {
    std::env::var("PINHOLE_LAB_MECHANISM").unwrap_or_else(|_| "sets".to_owned())
}

/// The same policy with that mechanism, unless it names one.
pub(crate) fn with_mechanism(policy: &str) -> String {
    let names_one = policy.lines().any(|line| line.starts_with("mechanism:"));
    match policy.trim() {
        _ if names_one => policy.to_owned(),
        "" | "{}" => format!("mechanism: {}\n", mechanism()),
        // Appended, so that an error keeps its line number.
        text if text.starts_with('{') => policy.to_owned(),
        _ => format!("{}\nmechanism: {}\n", policy.trim_end_matches('\n'), mechanism()),
    }
}

/// It answers only once its table is installed.
fn launch(namespace: &Namespace, folder: &Path, log: &str) -> Result<Child> {
    let mut child = service(namespace, folder, log).spawn()?;
    let socket = folder.join("control.sock");
    let stands = || Ok(!child.is_running()? || ask(&socket).is_ok_and(|answer| answer.contains("mechanism")));
    let waited = lab::wait_until("the daemon answers", TIMEOUT, stands);
    if let Err(error) = waited {
        panic!("{error}\n{}", child.output());
    }
    if child.is_running()? {
        return Ok(child);
    }
    let finished = child.wait(TIMEOUT)?;
    panic!("the daemon ended with {}:\n{}", finished.status, finished.output());
}

/// The status of the daemon that listens there.
pub(crate) fn ask(socket: &Path) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"\"json\"")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
