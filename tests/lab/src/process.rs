//! Programs that run inside a namespace and end with the process that started them.
//!
//! Each program gets a PID namespace, whose first process is a `cat` that reads a pipe of ours. Dropping the
//! [`Child`], or the end of this process in whatever way, closes the pipe; `cat` reads the end of the file and ends,
//! and the kernel then kills every process of that namespace. So a server that forks, changes its user or daemonises
//! cannot be left behind, which neither process groups nor `PR_SET_PDEATHSIG` could promise.
//!
//! A program sees other process IDs inside than its parent sees outside. [`Child::id`] is the one outside.

use super::error::{Context, Error, Result, quoted};
use super::namespace::{Namespace, on_a_thread};
use super::private_files::PrivateFiles;
use super::tools;
use super::wait::wait_for;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{self, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A program to run inside a namespace, and how. Its own type, because a plain [`process::Command`] would start it in
/// the namespace of whichever thread spawns it.
#[derive(Debug)]
pub struct Command {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    folder: Option<PathBuf>,
    input: Option<Vec<u8>>,
    namespace: Namespace,
    files: Option<PrivateFiles>,
    cgroup: Option<PathBuf>,
}

impl Command {
    pub(crate) fn new(namespace: Namespace, program: &Path) -> Self {
        Self {
            program: program.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            folder: None,
            input: None,
            namespace,
            files: None,
            cgroup: None,
        }
    }

    /// Adds an argument.
    pub fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(&mut self, arguments: impl IntoIterator<Item = A>) -> &mut Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets a variable of its environment; the others are as in this process.
    pub fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Starts it in this folder.
    pub fn current_dir(&mut self, folder: impl AsRef<Path>) -> &mut Self {
        self.folder = Some(folder.as_ref().to_owned());
        self
    }

    /// Sets its standard input; by default empty.
    pub fn input(&mut self, bytes: &[u8]) -> &mut Self {
        self.input = Some(bytes.to_owned());
        self
    }

    /// Lets it see `files` instead of the machine's.
    pub fn private_files(&mut self, files: &PrivateFiles) -> &mut Self {
        self.files = Some(files.clone());
        self
    }

    /// Puts it into the control group with this folder before it starts.
    pub fn cgroup(&mut self, folder: &Path) -> &mut Self {
        self.cgroup = Some(folder.to_owned());
        self
    }

    /// Starts it. It ends when the [`Child`] is dropped, or this process ends.
    pub fn spawn(&mut self) -> Result<Child> {
        let (init, mut child) = on_a_thread(self.namespace.name(), || self.spawn_here())??;
        if let (Some(mut pipe), Some(bytes)) = (child.stdin.take(), self.input.clone()) {
            // On a thread, because a program may print before it reads. If it ends before it has read everything, its
            // output explains more than our broken pipe.
            thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        let output = collect(child.stdout.take());
        let errors = collect(child.stderr.take());
        Ok(Child { name: self.name(), child, init, output, errors, ended: None })
    }

    /// Runs it to its end, and fails unless it succeeds within that time.
    pub fn output(&mut self, within: Duration) -> Result<Finished> {
        let finished = self.spawn()?.wait(within)?;
        if finished.status.success() {
            return Ok(finished);
        }
        Err(Error::Ended {
            program: self.name(),
            status: finished.status.to_string(),
            output: quoted(finished.output().as_bytes()),
        })
    }

    /// Changes the calling thread's namespaces for good: that thread must be one that ends soon.
    fn spawn_here(&self) -> Result<(NamespaceInit, process::Child)> {
        let program = if self.program.is_absolute() { self.program.clone() } else { tools::on_path(&self.program)? };
        self.namespace.enter()?;
        if let Some(files) = &self.files {
            files.enter()?;
        }
        unshare(CloneFlags::CLONE_NEWPID).doing(|| format!("make a process namespace for {}", self.name()))?;
        let init = NamespaceInit::start()?;
        let mut command = match &self.cgroup {
            None => process::Command::new(program),
            Some(folder) => {
                // A group's sockets are those that its processes make, so it must join before it makes any.
                let mut command = process::Command::new("/bin/sh");
                command.args(["-e", "-c", r#"echo 0 >"$0"; exec "$@""#]).arg(folder.join("cgroup.procs")).arg(program);
                command
            }
        };
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(if self.input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        let child = command.spawn().doing(|| format!("start {} in {}", self.program.display(), self.namespace))?;
        Ok((init, child))
    }

    fn name(&self) -> String {
        self.program.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }
}

/// The first process of a process namespace: when it ends, so does the rest.
#[derive(Debug)]
struct NamespaceInit {
    cat: process::Child,
}

impl NamespaceInit {
    /// Must be the first that the calling thread starts after it has asked for a process namespace.
    fn start() -> Result<Self> {
        let cat = process::Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .doing(|| "start cat, which every program of the lab ends with".to_owned())?;
        Ok(Self { cat })
    }

    /// Lets it end. The kernel then kills the others at once, but the init itself is gone only when all of them
    /// have been waited for.
    fn close_pipe(&mut self) {
        drop(self.cat.stdin.take());
    }
}

impl Drop for NamespaceInit {
    fn drop(&mut self) {
        self.close_pipe();
        // An error can only mean that it has been waited for.
        let _ = self.cat.wait();
    }
}

/// A program that runs inside a namespace. Dropping it ends it and whatever it started.
#[derive(Debug)]
pub struct Child {
    name: String,
    child: process::Child,
    init: NamespaceInit,
    output: Collected,
    errors: Collected,
    ended: Option<ExitStatus>,
}

impl Child {
    /// Its process id, as seen from here.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.status()?.is_none())
    }

    /// Sends it a signal; if it has ended, that is no error.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.status()?.is_some() {
            return Ok(());
        }
        let id = i32::try_from(self.id()).expect("the kernel's process ids are positive");
        kill(Pid::from_raw(id), signal).doing(|| format!("send {signal} to {}", self.name))
    }

    /// Its output so far: standard output, then standard error.
    pub fn output(&self) -> String {
        let mut output = self.output.bytes();
        output.extend(self.errors.bytes());
        String::from_utf8_lossy(&output).into_owned()
    }

    /// Its standard output so far.
    pub fn printed(&self) -> Vec<u8> {
        self.output.bytes()
    }

    /// Waits for its end. When it does not come within that time, the program is ended and that is an error.
    pub fn wait(mut self, within: Duration) -> Result<Finished> {
        let what = format!("{} to end", self.name);
        match wait_for(&what, within, || self.status()) {
            Ok(status) => {
                // Its children must end before its output can be complete.
                self.init.close_pipe();
                Ok(Finished { status, stdout: self.output.complete(), stderr: self.errors.complete() })
            }
            Err(Error::TooLate { what, within, .. }) => {
                self.end();
                Err(Error::TooLate { what, within, output: quoted(self.output().as_bytes()) })
            }
            Err(other) => Err(other),
        }
    }

    /// An error with its output, for a caller that finds it ended unexpectedly.
    pub(crate) fn ended_too_early(&self, status: ExitStatus) -> Error {
        Error::Ended {
            program: self.name.clone(),
            status: status.to_string(),
            output: quoted(self.output().as_bytes()),
        }
    }

    /// How it ended, if it has.
    pub(crate) fn status(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().doing(|| format!("look after {}", self.name))?;
        }
        Ok(self.ended)
    }

    fn end(&mut self) {
        self.init.close_pipe();
        // Its end is certain now. It must be waited for before the init is, which outlasts it in the kernel.
        if let Ok(status) = self.child.wait() {
            self.ended = Some(status);
        }
        self.output.complete();
        self.errors.complete();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

/// A program that has ended, and its output.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// All of its output: standard output, then standard error.
    pub fn output(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.stdout), String::from_utf8_lossy(&self.stderr))
    }
}

/// The output of a program, read continuously so that it never waits for a reader.
#[derive(Debug, Default)]
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> Collected {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let reader = pipe.map(|mut pipe| {
        let bytes = Arc::clone(&bytes);
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut chunk) {
                bytes.lock().unwrap_or_else(PoisonError::into_inner).extend(&chunk[..length]);
            }
        })
    });
    Collected { bytes, reader }
}

impl Collected {
    fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All bytes, once every writer has closed the pipe.
    fn complete(&mut self) -> Vec<u8> {
        if let Some(reader) = self.reader.take() {
            // The thread only reads, so it does not panic; if it did, this is what it had read.
            let _ = reader.join();
        }
        self.bytes()
    }
}

/// The processes below a process.
pub fn descendants(id: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut parents = vec![id];
    while let Some(parent) = parents.pop() {
        let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            let new = children.split_whitespace().filter_map(|word| word.parse().ok()).filter(|&id| found.insert(id));
            parents.extend(new);
        }
    }
    found
}
