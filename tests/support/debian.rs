//! A Debian with the real ufw, firewalld, fail2ban, iptables and netfilter-persistent, in a network namespace of the lab.
//!
//! Its files are those that `tests/setup` has unpacked; its changes to them are in memory. `debian.sh` sets it up.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use lab::{Child, Namespace, Result, tools};

use crate::daemon::{PROGRAM, TIMEOUT};

/// How long commands may take: firewall-cmd and ufw are programs in Python, and each takes a second or more.
const LIMIT: Duration = TIMEOUT.saturating_mul(4);

/// It runs until it is dropped, which ends all of its processes.
pub(crate) struct Debian {
    first: Child,
}

impl Debian {
    pub(crate) fn start(network: &Namespace) -> Result<Self> {
        let folder = tools::cache().join("managers");
        assert!(folder.join("usr/sbin/ufw").exists(), "{} is missing: run `tests/setup test`", folder.display());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/debian.sh");
        let mut first = network
            .command("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "sh"])
            .arg(script)
            .arg(folder)
            .arg(PROGRAM)
            .spawn()?;
        let ready = format!("/proc/{}/root/mnt/root/run/ready", first.id());
        lab::wait_until("the Debian to be ready", TIMEOUT, || Ok(Path::new(&ready).exists() || !first.is_running()?))?;
        assert!(first.is_running()?, "it has ended: {}", first.output());
        Ok(Self { first })
    }

    /// Runs lines of a shell.
    ///
    /// Not started with the lab's `Command`: from the PID namespace of such a process, this one's could not be entered.
    pub(crate) fn try_sh(&self, lines: &str) -> Output {
        let namespaces = format!("/proc/{}/ns", self.first.id());
        Command::new("nsenter")
            .arg(format!("--mount={namespaces}/mnt"))
            .arg(format!("--pid={namespaces}/pid_for_children"))
            .arg(format!("--net={namespaces}/net"))
            .args(["timeout", &lab::allow(LIMIT).as_secs().to_string()])
            .args(["env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin", "chroot", "/mnt/root", "sh", "-euc", lines])
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("nsenter does not start: {error}"))
    }

    /// Runs commands that have to succeed, and returns their output.
    #[track_caller]
    pub(crate) fn sh(&self, lines: &str) -> String {
        let done = self.try_sh(lines);
        let said = [&done.stdout, &done.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat();
        assert!(done.status.success(), "{lines}: {}\n{said}", done.status);
        String::from_utf8_lossy(&done.stdout).trim_end().to_owned()
    }

    /// Where a file of it lies for this process.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/mnt/root{inside}", self.first.id()))
    }

    /// Starts firewalld, and D-Bus before it.
    pub(crate) fn start_firewalld(&self) {
        self.sh("[ -e /run/dbus/system_bus_socket ] || dbus-daemon --system --fork --nopidfile >/dev/null 2>&1
                 firewalld >/dev/null 2>&1");
        let is_running = || Ok(self.try_sh("firewall-cmd --state").status.success());
        lab::wait_until("firewalld to run", LIMIT, is_running).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Ends it as systemd does.
    pub(crate) fn stop_firewalld(&self) {
        self.sh("kill $(pgrep -x firewalld); while pgrep -x firewalld; do sleep 0.1; done");
    }
}
