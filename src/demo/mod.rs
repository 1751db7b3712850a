//! `pinhole demo`: FTP through a firewall that drops by default, first without Pinhole and then with it.
//!
//! The hosts are network namespaces, and the daemon is this program, started in one of them. This module prints what
//! happens; `network` does the work. All namespaces and processes end with this process, however it ends.

mod ftp;
mod host;
mod network;

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use crate::core::ftp::Mode;
use ftp::{CONTENT, FILE};
use network::{CLIENT, Connection, DemoNetwork, SERVER, Transfer};

/// After this time without a data connection, a transfer counts as blocked.
const BLOCKED_AFTER: Duration = Duration::from_secs(1);
/// The limit for operations that should take a moment.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A passive and an active transfer.
const MODES: [Mode; 2] = [Mode::Pasv, Mode::Port];

#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("the demo builds networks of its own, and needs root: run `sudo pinhole demo`")]
    NotRoot,
    #[error("the demo needs the program {program}: install the package {package}")]
    Missing { program: &'static str, package: &'static str },
    #[error("cannot find the file of this program: {0}")]
    NoProgram(#[source] io::Error),
    /// A step failed, or had another result than the demo shows.
    #[error("{0}")]
    Failed(String),
    /// The output could not be written.
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// Runs the demo and describes it in `out`.
pub fn run(out: &mut impl Write) -> Result<(), DemoError> {
    if !rustix::process::geteuid().is_root() {
        return Err(DemoError::NotRoot);
    }
    for (program, package) in [("nft", "nftables"), ("ip", "iproute2")] {
        host::find(program).ok_or(DemoError::Missing { program, package })?;
    }
    let program = std::env::current_exe().map_err(DemoError::NoProgram)?;
    let mut network = DemoNetwork::build()?;
    introduce(out)?;
    without(out, &network)?;
    start(out, &mut network, &program)?;
    with(out, &mut network)?;
    one_pinhole(out, &network)?;
    end(out, network)
}

fn introduce(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "Three hosts, in network namespaces that end with this demo:\n")?;
    writeln!(out, "  client {CLIENT}  ──────  firewall  ──────  server {SERVER}")?;
    writeln!(out, "  The firewall lets connections to port 21 through, and drops everything else that is new.")?;
    writeln!(out, "  The FTP server and the FTP client are built into the demo.")?;
    out.flush()
}

fn without(out: &mut impl Write, network: &DemoNetwork) -> Result<(), DemoError> {
    writeln!(out, "\nWithout Pinhole, a login works and a transfer does not:")?;
    for mode in MODES {
        match network.transfer(mode, BLOCKED_AFTER)? {
            Transfer::Blocked => writeln!(out, "  {}  blocked: no data within {BLOCKED_AFTER:?}", describe(mode))?,
            Transfer::Complete { .. } => {
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

fn start(out: &mut impl Write, network: &mut DemoNetwork, program: &Path) -> Result<(), DemoError> {
    writeln!(out, "\nNow `pinhole run` starts on the firewall, with the policy `{}`:", network::POLICY.trim_end())?;
    print_log(out, &network.start_service(program, TIMEOUT)?)?;
    Ok(())
}

fn with(out: &mut impl Write, network: &mut DemoNetwork) -> Result<(), DemoError> {
    writeln!(out, "\nWith Pinhole, the same transfers, and what its log says meanwhile:")?;
    for mode in MODES {
        match network.transfer(mode, TIMEOUT)? {
            Transfer::Complete { took } => {
                let bytes = CONTENT.len();
                let took = took.as_millis();
                writeln!(out, "  {}  works: {FILE} arrived, all {bytes} bytes of it, in {took} ms", describe(mode))?;
            }
            Transfer::Blocked => {
                return Err(DemoError::Failed(format!(
                    "the transfer with {mode} did not work with Pinhole either. What its log says:\n{}",
                    network.rest_of_log()
                )));
            }
        }
        print_log(out, &network.log_until("used ", TIMEOUT)?)?;
        out.flush()?;
    }
    Ok(())
}

fn one_pinhole(out: &mut impl Write, network: &DemoNetwork) -> Result<(), DemoError> {
    writeln!(
        out,
        "\nA pinhole is for one connection. The server announces a port, and the kernel then holds this element:"
    )?;
    let shown = network.try_one_pinhole(BLOCKED_AFTER / 2)?;
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

fn end(out: &mut impl Write, mut network: DemoNetwork) -> Result<(), DemoError> {
    network.stop_service(TIMEOUT)?;
    writeln!(out, "\nPinhole ends, and takes its table with it; so do the hosts. Nothing of this remains.")?;
    drop(network);
    writeln!(out, "`pinhole check` tells whether this host is ready. Then: `pinhole run`.")?;
    Ok(())
}

fn print_log(out: &mut impl Write, lines: &[String]) -> io::Result<()> {
    lines.iter().try_for_each(|line| writeln!(out, "    | {line}"))
}

fn describe(mode: Mode) -> String {
    let who = if mode.is_active() { "active, the server connects" } else { "passive, the client connects" };
    format!("{:35}", format!("{mode} ({who})"))
}
