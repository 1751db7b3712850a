//! A machine whose first process is a real systemd, in its own namespaces and control group.
//!
//! It has the files of this machine; its changes to them are invisible outside. Its network is a namespace of the lab.
//! `machine.sh` sets it up.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use lab::{Child, Namespace, Result};
use serde_json::Value;

use crate::daemon::{PROGRAM, TIMEOUT};

/// A machine that runs. Dropping it ends it and all of its processes.
pub(crate) struct Machine {
    network: Namespace,
    // Taken only when it ends.
    first: Option<Child>,
}

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Who said it: `systemd`, or the program's name.
    pub(crate) by: String,
    /// As syslog counts: 3 an error, 4 a warning, 6 an information.
    pub(crate) level: u8,
    pub(crate) text: String,
}

impl Machine {
    /// Boots one that has nothing to do yet, and returns when it has.
    pub(crate) fn boot(network: &Namespace) -> Result<Self> {
        let make = ["make", network.name(), env!("CARGO_MANIFEST_DIR"), PROGRAM];
        let mut first = script(network, &["--mount", "--uts", "--ipc"], &make)?;
        // Before the machine is ready, its files, and so its systemd, are those of the host.
        let root = format!("/proc/{}/root", first.id());
        let is_there = |file: &str| Path::new(&format!("{root}/{file}")).exists();
        lab::wait_until("systemd to listen", TIMEOUT, || {
            Ok(is_there("mnt/ready") && is_there("run/systemd/private") || !first.is_running()?)
        })?;
        assert!(first.is_running()?, "systemd has ended: {}", first.output());
        let machine = Self { network: network.clone(), first: Some(first) };
        assert_eq!(machine.sh("systemctl is-system-running --wait"), "running");
        Ok(machine)
    }

    /// Runs lines of a shell on it, in the folder of the project's checkout.
    ///
    /// Not started with the lab's `Command`: from the PID namespace of such a process, this one's could not be entered.
    pub(crate) fn try_sh(&self, lines: &str) -> Output {
        let namespaces = format!("/proc/{}/ns", self.id());
        Command::new("nsenter")
            .arg(format!("--mount={namespaces}/mnt"))
            .arg(format!("--pid={namespaces}/pid_for_children"))
            .arg(format!("--net={namespaces}/net"))
            .args(["timeout", &lab::allow(TIMEOUT).as_secs().to_string()])
            .args(["sh", "-euc", &format!("cd /mnt/project\n{lines}")])
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("nsenter does not start: {error}"))
    }

    /// Runs commands that have to succeed, and returns their output.
    #[track_caller]
    pub(crate) fn sh(&self, lines: &str) -> String {
        let done = self.try_sh(lines);
        assert!(done.status.success(), "{lines}: {}\n{}", done.status, output_of(&done));
        String::from_utf8_lossy(&done.stdout).trim_end().to_owned()
    }

    /// Properties of a unit, in the order of the names.
    #[track_caller]
    pub(crate) fn properties<const N: usize>(&self, unit: &str, names: [&str; N]) -> [String; N] {
        let shown = self.sh(&format!("systemctl show --property {} {unit}", names.join(",")));
        let find = |name: &str| shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        names.map(|name| find(name).unwrap_or_else(|| panic!("no {name} in {shown}")).to_owned())
    }

    /// The processes of a service, by the numbers that they have outside.
    pub(crate) fn processes(&self, unit: &str) -> Vec<String> {
        let listed = std::fs::read_to_string(self.path(&format!("/sys/fs/cgroup/system.slice/{unit}/cgroup.procs")));
        // Without a process it has no group.
        listed.unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Where a file of the machine lies for this process.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.id()))
    }

    /// The journal of a unit, with systemd's lines about it.
    pub(crate) fn journal(&self, unit: &str) -> Vec<Line> {
        let printed = self.sh(&format!("journalctl --unit {unit} --output json --all --no-pager"));
        let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let line = |line: &str| -> Line {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let level = text(&line, "PRIORITY").parse().unwrap_or_else(|_| panic!("no level: {line}"));
            Line { by: text(&line, "SYSLOG_IDENTIFIER"), level, text: text(&line, "MESSAGE") }
        };
        printed.lines().map(line).collect()
    }

    /// Waits until the journal of a unit has a line with that in it.
    #[track_caller]
    pub(crate) fn wait_for_journal(&self, unit: &str, said: &str) -> Line {
        let find = || Ok(self.journal(unit).into_iter().find(|line| line.text.contains(said)));
        lab::wait_for(&format!("{said:?} in the journal of {unit}"), TIMEOUT, find)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Of the process that made the namespaces, whose only child is systemd. It is in all of them but the process
    /// namespace.
    fn id(&self) -> u32 {
        self.first.as_ref().expect("it is there until it is dropped").id()
    }
}

impl Drop for Machine {
    #[allow(clippy::print_stderr, reason = "a test that failed says what was said on the machine")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = self.try_sh("journalctl --no-pager --lines 60");
            eprintln!("the end of the machine's journal:\n{}", output_of(&journal));
        }
        drop(self.first.take());
        let removed = script(&self.network, &["--mount"], &["remove", self.network.name()])
            .and_then(|child| child.wait(Duration::from_secs(10)));
        match removed {
            Ok(done) if done.status.success() => {}
            other => eprintln!("the machine's control groups are left: {other:?}"),
        }
    }
}

/// All that a program printed.
pub(crate) fn output_of(done: &Output) -> String {
    [&done.stdout, &done.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

/// Runs `machine.sh` with some namespaces of its own.
fn script(network: &Namespace, namespaces: &[&str], arguments: &[&str]) -> Result<Child> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/machine.sh");
    network.command("unshare").args(namespaces).arg("sh").arg(script).args(arguments).spawn()
}
