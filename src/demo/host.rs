//! A host of the demo: a network namespace, and a PID namespace for the programs in it.
//!
//! The init process of the PID namespace is a `cat` that reads a pipe from this process. When this process ends, even by
//! SIGKILL, the pipe is closed and `cat` ends. The kernel then kills all other processes of the PID namespace, and removes
//! the interfaces and the rules. So nothing has to be cleaned up.

use std::env;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::DemoError;

#[derive(Debug)]
pub(super) struct Host {
    keeper: Child,
    network: File,
    processes: File,
}

impl Host {
    pub(super) fn new() -> Result<Self, DemoError> {
        let new = || -> io::Result<Self> {
            let mut unshare = Command::new("unshare");
            unshare.args(["--net", "--pid", "--fork", "cat"]);
            let mut keeper = unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            // Once `cat` echoes this, the namespaces exist.
            keeper.stdin.as_mut().expect("a pipe").write_all(b"\n")?;
            keeper.stdout.as_mut().expect("a pipe").read_exact(&mut [0])?;
            let namespace = |name: &str| File::open(format!("/proc/{}/ns/{name}", keeper.id()));
            let (network, processes) = (namespace("net")?, namespace("pid_for_children")?);
            Ok(Self { keeper, network, processes })
        };
        new().map_err(|error| DemoError::Failed(format!("cannot make a network namespace with `unshare`: {error}")))
    }

    /// Runs `work` on a thread in this host's network namespace. Its sockets and threads stay there.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let inside = || {
            move_into_link_name_space(self.network.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }

    /// Starts a program on this host, with pipes to its standard input and error output.
    pub(super) fn start(&self, command: &mut Command) -> io::Result<Child> {
        self.run(|| {
            move_into_link_name_space(self.processes.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
            command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()
        })
    }

    /// Sets a kernel parameter, named by its path below `/proc/sys`.
    pub(super) fn set(&self, parameter: &str, value: &str) -> io::Result<()> {
        self.run(|| fs::write(format!("/proc/sys/{parameter}"), value))
    }

    /// Configures interfaces with commands of `ip`, one per line.
    pub(super) fn ip(&self, commands: &str) -> Result<(), DemoError> {
        self.output("ip", &["-batch", "-"], commands).map(drop)
    }

    pub(super) fn load(&self, ruleset: &str) -> Result<(), DemoError> {
        self.output("nft", &["-f", "-"], ruleset).map(drop)
    }

    /// Runs `nft list`.
    pub(super) fn list(&self, arguments: &[&str]) -> Result<String, DemoError> {
        self.output("nft", &[&["list"], arguments].concat(), "")
    }

    /// The path of this host's network namespace, for `ip`.
    pub(super) fn network(&self) -> String {
        format!("/proc/{}/ns/net", self.keeper.id())
    }

    fn output(&self, program: &str, arguments: &[&str], input: &str) -> Result<String, DemoError> {
        let run = || -> io::Result<Output> {
            let path = find(program).ok_or(io::ErrorKind::NotFound)?;
            let mut child = self.start(Command::new(path).args(arguments).stdout(Stdio::piped()))?;
            child.stdin.take().expect("a pipe").write_all(input.as_bytes())?;
            child.wait_with_output()
        };
        let failed = |why: &dyn fmt::Display| DemoError::Failed(format!("`{program}` failed: {why}"));
        let output = run().map_err(|error| failed(&error))?;
        if !output.status.success() {
            return Err(failed(&String::from_utf8_lossy(&output.stderr).trim()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // An error can only mean that the process has been waited for.
        let _ = self.keeper.wait();
    }
}

/// The path of a program. The search path of a user may lack the directories of system programs.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let search_path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&search_path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    directories.map(|directory| directory.join(program)).find(|path| path.is_absolute() && path.is_file())
}
