//! A network namespace of this program's own. It exists as long as this value or a socket in it, so the kernel removes it when
//! the program ends, however it ends.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::addresses::ip_program;

/// What a program reads as the namespace that is its standard output.
pub(super) const OTHER: &str = "/proc/self/fd/1";

#[derive(Debug)]
pub(super) struct Namespace(File);

impl Namespace {
    pub(super) fn new() -> Result<Self, String> {
        // The thread ends, and the namespace stays as long as the file.
        let made = thread::scope(|scope| {
            let inside = || {
                unshare_network()?;
                File::open("/proc/thread-self/ns/net")
            };
            scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        made.map(Self).map_err(|error| format!("cannot make a network namespace: {error}"))
    }

    /// Runs `work` on a thread in this namespace. Its sockets, and the programs that it starts, stay there.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, String> {
        let inside = || {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|error| format!("cannot enter a network namespace: {error}"))?;
            Ok(work())
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }

    /// Sets a kernel parameter, named by its path below `/proc/sys`.
    pub(super) fn set(&self, parameter: &str, value: &str) -> Result<(), String> {
        let written = self.run(|| fs::write(format!("/proc/sys/{parameter}"), value))?;
        written.map_err(|error| format!("cannot set {parameter}: {error}"))
    }

    /// Configures interfaces with commands of `ip`, one per line, each even if an earlier one fails. Commands can name another
    /// namespace as [`OTHER`].
    pub(super) fn ip(&self, commands: &str, other: Option<&Self>) -> Result<(), String> {
        self.ip_with(&[], commands, other)
    }

    /// The same for commands about IPv6 that do not name an address.
    pub(super) fn ip6(&self, commands: &str) -> Result<(), String> {
        self.ip_with(&["-6"], commands, None)
    }

    fn ip_with(&self, options: &[&str], commands: &str, other: Option<&Self>) -> Result<(), String> {
        let program = ip_program()?;
        let output = match other {
            Some(Self(file)) => {
                Stdio::from(file.try_clone().map_err(|error| format!("cannot name a network namespace: {error}"))?)
            }
            None => Stdio::null(),
        };
        let configure = || -> io::Result<()> {
            let mut command = Command::new(program);
            command
                .args(options)
                .args(["-force", "-batch", "-"])
                .stdin(Stdio::piped())
                .stdout(output)
                .stderr(Stdio::null());
            let mut child = command.spawn()?;
            let written = child.stdin.take().map(|mut input| input.write_all(commands.as_bytes()));
            child.wait()?;
            written.unwrap_or(Ok(()))
        };
        self.run(configure)?.map_err(|error| format!("cannot configure interfaces with `ip`: {error}"))
    }
}

/// Moves the calling thread into a new network namespace.
#[allow(unsafe_code)]
fn unshare_network() -> io::Result<()> {
    // SAFETY: only `UnshareFlags::FILES` is unsafe, because threads would no longer share their files.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}
