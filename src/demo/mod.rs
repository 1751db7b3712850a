//! `pinhole demo`: FTP through a firewall that drops by default, without Pinhole and with it, with a commentary.
//!
//! Everything happens in network namespaces of its own, and the service is this program, started in one of them.
//! This module prints the commentary; `stage` does the work. Nothing of it outlives this process, however the
//! process ends.

mod ftp;
mod host;
mod stage;

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use crate::core::ftp::Mode;
use ftp::{CONTENT, FILE};
use stage::{CLIENT, Connection, SERVER, Stage, Transfer};

/// How long a client waits for data that does not come.
const BLOCKED_AFTER: Duration = Duration::from_secs(1);
/// How long anything may take that should happen at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// A passive and an active transfer.
const MODES: [Mode; 2] = [Mode::Pasv, Mode::Port];

/// Why the demo did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Namespaces are for root.
    #[error("the demo builds networks of its own, and needs root: run `sudo pinhole demo`")]
    NotRoot,
    /// The networks are built by ip, the rules are loaded by nft.
    #[error("the demo needs the program {program}: install the package {package}")]
    Missing {
        /// The program.
        program: &'static str,
        /// Debian's package of it.
        package: &'static str,
    },
    /// The program that is to run as the service cannot be found.
    #[error("cannot find the file of this program: {0}")]
    NoProgram(#[source] io::Error),
    /// A part of it failed, or it shows something else than it promises.
    #[error("{0}")]
    Failed(String),
    /// The commentary could not be written.
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// Plays the demo and tells it to `out`.
pub fn run(out: &mut impl Write) -> Result<(), DemoError> {
    if !rustix::process::geteuid().is_root() {
        return Err(DemoError::NotRoot);
    }
    for (program, package) in [("nft", "nftables"), ("ip", "iproute2")] {
        host::find(program).ok_or(DemoError::Missing { program, package })?;
    }
    let program = std::env::current_exe().map_err(DemoError::NoProgram)?;
    let mut stage = Stage::build()?;
    introduce(out)?;
    without(out, &stage)?;
    start(out, &mut stage, &program)?;
    with(out, &mut stage)?;
    one_pinhole(out, &stage)?;
    end(out, stage)
}

fn introduce(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "Three hosts, in network namespaces that end with this demo:\n")?;
    writeln!(out, "  client {CLIENT}  ──────  firewall  ──────  server {SERVER}")?;
    writeln!(out, "  The firewall lets connections to port 21 through, and drops everything else that is new.")?;
    writeln!(out, "  The FTP server and the FTP client are built into the demo.")?;
    out.flush()
}

fn without(out: &mut impl Write, stage: &Stage) -> Result<(), DemoError> {
    writeln!(out, "\nWithout Pinhole, a login works and a transfer does not:")?;
    for mode in MODES {
        match stage.transfer(mode, BLOCKED_AFTER)? {
            Transfer::Blocked => writeln!(out, "  {}  blocked: no data within {BLOCKED_AFTER:?}", describe(mode))?,
            Transfer::Whole { .. } => {
                return Err(DemoError::Failed(format!(
                    "{FILE} came through the firewall without Pinhole: something else on this host lets FTP through, \
                     for instance the kernel's own helper (is net.netfilter.nf_conntrack_helper 1?)"
                )));
            }
        }
        out.flush()?;
    }
    Ok(())
}

fn start(out: &mut impl Write, stage: &mut Stage, program: &Path) -> Result<(), DemoError> {
    writeln!(out, "\nNow `pinhole run` starts on the firewall, with the policy `{}`:", stage::POLICY.trim_end())?;
    tell(out, &stage.start_service(program, PATIENCE)?)?;
    Ok(())
}

fn with(out: &mut impl Write, stage: &mut Stage) -> Result<(), DemoError> {
    writeln!(out, "\nWith Pinhole, the same transfers, and what its log says meanwhile:")?;
    for mode in MODES {
        match stage.transfer(mode, PATIENCE)? {
            Transfer::Whole { took } => {
                let bytes = CONTENT.len();
                let took = took.as_millis();
                writeln!(out, "  {}  works: {FILE} arrived, all {bytes} bytes of it, in {took} ms", describe(mode))?;
            }
            Transfer::Blocked => {
                return Err(DemoError::Failed(format!(
                    "the transfer with {mode} did not work with Pinhole either. What its log says:\n{}",
                    stage.rest_of_log()
                )));
            }
        }
        tell(out, &stage.log_until("used ", PATIENCE)?)?;
        out.flush()?;
    }
    Ok(())
}

fn one_pinhole(out: &mut impl Write, stage: &Stage) -> Result<(), DemoError> {
    writeln!(
        out,
        "\nA pinhole is for one connection. The server announces a port, and the kernel then holds this element:"
    )?;
    let shown = stage.try_one_pinhole(BLOCKED_AFTER / 2)?;
    let port = shown.announced.port();
    writeln!(out, "  {}", shown.element)?;
    for (what, expected, found) in [
        ("from the client to a port that nobody announced", Connection::Blocked, shown.unannounced),
        (&format!("from the client to port {port}, the first time"), Connection::Through, shown.first),
        (&format!("from the client to port {port}, once more"), Connection::Blocked, shown.second),
    ] {
        if found != expected {
            return Err(DemoError::Failed(format!("the connection {what} is {found}, and should be {expected}")));
        }
        writeln!(out, "  {what:47}  {found}")?;
    }
    Ok(())
}

fn end(out: &mut impl Write, mut stage: Stage) -> Result<(), DemoError> {
    stage.stop_service(PATIENCE)?;
    writeln!(out, "\nPinhole ends, and takes its table with it; so do the hosts. Nothing of this remains.")?;
    drop(stage);
    writeln!(out, "Is this host ready for it? `pinhole check` says so. Then: `pinhole run`.")?;
    Ok(())
}

/// Lines of the service's log.
fn tell(out: &mut impl Write, lines: &[String]) -> io::Result<()> {
    lines.iter().try_for_each(|line| writeln!(out, "    | {line}"))
}

fn describe(mode: Mode) -> String {
    let who = if mode.is_active() { "active, the server connects" } else { "passive, the client connects" };
    format!("{:35}", format!("{mode} ({who})"))
}
