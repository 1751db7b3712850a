//! The command line: arguments, output and exit status.
//!
//! Exit status: 0 success; 1 an input cannot be read or is damaged, or the host is not ready; 2 the command line or
//! the policy is wrong.

mod check;
mod demo;
mod explain;
mod input;
mod log;
mod messages;
mod outside;
mod progress;
mod replay;
mod service;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use messages::{Priority, Record};

/// Lets FTP through a stateful Linux firewall: opens one pinhole for each announced data connection.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what Pinhole would open, refuse and block in capture files
    ///
    /// Runs pcap and pcapng files through the code of the daemon, with the capture's clock and a simulated firewall. Needs
    /// no privileges. Files that follow one another in time are one capture.
    ///
    /// With --nat, the captures were taken inside a NAT gateway: the report shows what is rewritten and where data
    /// connections are delivered, and --write writes the packets as they are outside.
    Replay(replay::Args),
    /// Check whether this host is ready, or a policy file
    ///
    /// Checks this host for the policy that `run` would take: privileges, kernel features, queues, filter chains, other
    /// rules and programs that keep data connections from working, with a remedy for each problem. Most of that needs root.
    /// Changes nothing: kernel features are tested in transactions that are not committed, and probes, the SYNs of an FTP
    /// session, go through a copy of this host in a network namespace, where the kernel decides about them by this host's
    /// rules.
    ///
    /// With FILE, reads that policy file only, and prints it as understood, or every error in it.
    ///
    /// Exit status: 0 ready; 1 the daemon would not run on this host; 2 the policy is wrong.
    Check(check::Args),
    /// Explain why a transfer between a client and a server works or not
    ///
    /// Asks the daemon for the sessions between the two hosts, what was announced in them and what became of it; connection
    /// tracking for their connections; and this host for rules and programs that are in the way. Ends with the reason and
    /// what to do. Needs root.
    Explain(explain::Args),
    /// Print the JSON Schema of the policy
    Schema,
    /// Run the daemon
    ///
    /// Reads control connections from NFQUEUE, and opens a pinhole for each announced data connection. Needs root or
    /// CAP_NET_ADMIN.
    ///
    /// SIGTERM, SIGINT: remove the table inet pinhole and exit. SIGHUP: reload the policy. SIGUSR2: exit, and leave the
    /// table and all pinholes to the next start.
    Run(service::RunArgs),
    /// Print the nftables ruleset that `run` installs
    Rules(service::RulesArgs),
    /// Show the daemon's sessions, open pinholes and counters
    Status(service::StatusArgs),
    /// Print the daemon's counters and gauges for Prometheus
    Metrics(service::MetricsArgs),
    /// Make the daemon reload its policy
    Reload,
    /// Kill the daemon if it hangs; `run` starts this
    #[command(name = crate::daemon::watchdog::SUBCOMMAND, hide = true)]
    Watchdog,
    /// Demonstrate FTP through a firewall, blocked without Pinhole and working with it
    ///
    /// Builds a client, a firewall and a server in network namespaces, and removes them at the end, after a few seconds.
    /// Changes nothing on this host. Needs root and the programs ip and nft.
    Demo,
}

/// The exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Good,
    /// An input could not be read completely, or the host is not ready.
    BadInput,
    /// The command line or the policy is wrong.
    BadUsage,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Good => 0,
            Outcome::BadInput => 1,
            Outcome::BadUsage => 2,
        })
    }
}

/// Runs the program with the arguments of its process.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Replay(args) => replay::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Schema => print(&crate::core::policy::schema()),
        Command::Run(args) => service::run(&args),
        Command::Rules(args) => service::rules(&args),
        Command::Status(args) => service::status(&args),
        Command::Metrics(args) => service::metrics(&args),
        Command::Reload => service::reload(),
        Command::Watchdog => service::watchdog(),
        Command::Demo => demo::run(),
    };
    match result {
        Ok(outcome) => outcome.into(),
        // The reader of the output has closed the pipe.
        Err(error) if is_broken_pipe(&error) => Outcome::Good.into(),
        Err(error) => {
            print_error(format_args!("{error:#}"));
            Outcome::BadInput.into()
        }
    }
}

fn print(text: &str) -> anyhow::Result<Outcome> {
    io::stdout().write_all(text.as_bytes())?;
    Ok(Outcome::Good)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes an error to standard error, as a record if that is the journal.
fn print_error(what: std::fmt::Arguments<'_>) {
    let _ = if messages::goes_to_journal() {
        writeln!(io::stderr(), "{}", Record(Priority::Error, &what.to_string()))
    } else {
        writeln!(io::stderr(), "pinhole: {what}")
    };
}

/// The name of an input file in messages.
fn name(path: &Path) -> String {
    if path.as_os_str() == "-" { "standard input".to_owned() } else { path.display().to_string() }
}
