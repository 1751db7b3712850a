//! The command line: arguments, output and exit status.
//!
//! Exit status: 0 success; 1 an input cannot be read or is damaged, or the host is not ready; 2 the command line or
//! the policy is wrong.

mod check;
mod demo;
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

/// Lets FTP through a stateful Linux firewall, one announced data connection at a time.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows what would have been opened, refused and blocked in captures
    ///
    /// Reads pcap and pcapng files, runs them through the same code that watches live connections, with the capture's
    /// own clock and a simulated firewall. Several files that follow one another in time are one capture.
    ///
    /// With `--nat` the captures are those of the inside of a gateway that translates addresses: shown is what would have
    /// been rewritten and where data connections are delivered, and `--write` writes what the outside would have seen.
    Replay(replay::Args),
    /// Says whether a policy is good and what it means; without one, whether this host is ready
    ///
    /// With POLICY: says that it is good and prints it as understood, or explains what is wrong with it. Without, or with
    /// `--host POLICY`: examines this host, a line for each finding, with what to do about it. Nothing is changed: what
    /// the kernel can do is tried in transactions that are not carried out. Needs root for most of it. Ends with status
    /// 0, or 1 if there are problems with which the service would not run.
    Check(check::Args),
    /// Prints the JSON Schema of the policy
    Schema,
    /// Runs the service: reads control connections from the kernel and opens what they announce
    ///
    /// Needs root. Ends with SIGTERM or Ctrl-C and removes what it installed; SIGHUP loads the policy anew. With SIGUSR2 it
    /// ends, too, and leaves all that stands to the next start.
    Run(service::RunArgs),
    /// Prints the ruleset that would be installed for a policy
    Rules(service::RulesArgs),
    /// Shows how the service that runs here stands
    Status(service::StatusArgs),
    /// Has the service that runs here load its policy anew
    Reload,
    /// Ends the daemon where that hangs; `pinhole run` starts it
    #[command(name = crate::daemon::watchdog::SUBCOMMAND, hide = true)]
    Watchdog,
    /// Shows it all in a small network of its own: FTP blocked by a firewall, and let through by Pinhole
    ///
    /// Needs root and the program nft, and nothing else: where vsftpd or curl are not installed, a built-in server and
    /// client take their part. It touches nothing of this host, and leaves nothing behind. It takes a few seconds.
    Demo,
}

/// How a command went, short of a reason to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Good,
    /// An input could not be read, or not to its end; or the host is not ready.
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
        Command::Schema => print(&crate::core::policy::schema()),
        Command::Run(args) => service::run(&args),
        Command::Rules(args) => service::rules(&args),
        Command::Status(args) => service::status(&args),
        Command::Reload => service::reload(),
        Command::Watchdog => service::watchdog(),
        Command::Demo => demo::run(),
    };
    match result {
        Ok(outcome) => outcome.into(),
        // Whoever read our output has seen enough of it.
        Err(error) if is_broken_pipe(&error) => Outcome::Good.into(),
        Err(error) => {
            complain(format_args!("{error:#}"));
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

/// Says on standard error what went wrong. If even that fails there is nobody to tell.
fn complain(what: std::fmt::Arguments<'_>) {
    let _ = if messages::goes_to_journal() {
        writeln!(io::stderr(), "{}", Record(Priority::Error, &what.to_string()))
    } else {
        writeln!(io::stderr(), "pinhole: {what}")
    };
}

/// How a file is called in messages.
fn name(path: &Path) -> String {
    if path.as_os_str() == "-" { "standard input".to_owned() } else { path.display().to_string() }
}
