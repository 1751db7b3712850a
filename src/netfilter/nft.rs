//! Runs the program nft: loads or checks a ruleset written as text, and lists the ruleset of the host as JSON.
//!
//! No shell is involved. Text goes to nft through its standard input. The crate `nftables` has no function for that: its
//! own always pass `-j`, and with `-j -f -` nft 1.0.6 loads no text and reports success.

use std::env;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};

use rustix::fs::{Access, access};

use super::netlink::Table;

/// Directories of system programs, which a user's search path may lack.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];
/// How nft names its standard input in error messages.
const STDIN_NAME: &str = "/dev/stdin:";

/// Why nft failed. No part of the ruleset was loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NftError {
    #[error("the program nft was not found; install the package nftables")]
    NotFound,
    /// The error text of nft.
    #[error("nft refused the ruleset: {0}; `pinhole check` tries each part of it, `pinhole rules` prints it")]
    Refused(Box<str>),
    #[error("cannot run nft: {0}")]
    NotRun(Box<str>),
}

impl NftError {
    /// The error text of nft or of the system, without advice.
    pub fn reason(&self) -> String {
        match self {
            Self::NotFound => self.to_string(),
            Self::Refused(reason) | Self::NotRun(reason) => reason.to_string(),
        }
    }
}

/// The program nft.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nft {
    path: PathBuf,
}

impl Nft {
    pub fn find() -> Result<Self, NftError> {
        find_program("nft").map(|path| Self { path }).ok_or(NftError::NotFound)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The line that `nft --version` prints.
    pub fn version(&self) -> Result<String, NftError> {
        self.run(&["--version"], "").map(|line| line.trim().to_owned())
    }

    /// Loads a ruleset in one transaction.
    pub fn load(&self, ruleset: &str) -> Result<(), NftError> {
        self.run(&["-f", "-"], ruleset).map(drop)
    }

    /// Has the kernel check a ruleset in a transaction that is not committed.
    pub fn check(&self, ruleset: &str) -> Result<(), NftError> {
        self.run(&["--check", "-f", "-"], ruleset).map(drop)
    }

    /// The ruleset of the host, as JSON.
    pub fn list_ruleset(&self) -> Result<String, NftError> {
        self.run(&["-j", "list", "ruleset"], "")
    }

    /// A chain with the handles of its rules, as text.
    pub fn list_chain(&self, table: Table<'_>, chain: &str) -> Result<String, NftError> {
        self.run(&["-a", "list", "chain", &table.family.to_string(), table.name, chain], "")
    }

    fn run(&self, arguments: &[&str], input: &str) -> Result<String, NftError> {
        let output = self.output(arguments, input).map_err(|error| NftError::NotRun(error.to_string().into()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let text = error_text(&String::from_utf8_lossy(&output.stderr));
        Err(NftError::Refused(if text.is_empty() { silent_end(output.status) } else { text }.into()))
    }

    fn output(&self, arguments: &[&str], input: &str) -> io::Result<Output> {
        let mut child = Command::new(&self.path)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // If nft exits before it has read everything, its error message says why.
            let _ = stdin.write_all(input.as_bytes());
        }
        child.wait_with_output()
    }
}

/// What the end of an nft that printed no error means. nft 1.0.6 crashes where nft 1.1.3 loaded a verdict map by `ct state`.
fn silent_end(status: ExitStatus) -> String {
    match status.signal() {
        Some(_) => format!(
            "nft crashed ({status}), perhaps because a newer nft loaded tables that this one cannot read: install the newer \
             one here"
        ),
        None => status.to_string(),
    }
}

/// Finds a program in the search path or in the directories of system programs. Skips relative directories, because they
/// depend on the current directory.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let search_path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&search_path)
        .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|path| path.is_file() && access(path, Access::EXEC_OK).is_ok())
}

/// The error messages of nft in one line, without the lines of the ruleset that nft quotes between them.
fn error_text(stderr: &str) -> String {
    let text = stderr.replace(STDIN_NAME, "line ");
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let errors: Vec<&str> = lines().filter(|line| line.contains("rror: ")).collect();
    if errors.is_empty() { lines().collect::<Vec<_>>().join(" ") } else { errors.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_messages_of_nft_become_one_line() {
        let stderr = "/dev/stdin:3:2-6: Error: No such file or directory\n\t\tqueue\n\t\t^^^^^\n\
                      /dev/stdin:9:1-3: Error: syntax error\n";
        assert_eq!(error_text(stderr), "line 3:2-6: Error: No such file or directory; line 9:1-3: Error: syntax error");
        assert_eq!(error_text("nft: cannot\nload a library\n"), "nft: cannot load a library");
    }

    #[test]
    fn crash_of_nft_names_a_reason() {
        let crash = silent_end(ExitStatus::from_raw(11));
        assert!(crash.contains("SIGSEGV") && crash.contains("install the newer"), "{crash}");
        assert_eq!(silent_end(ExitStatus::from_raw(1 << 8)), "exit status: 1");
    }

    #[test]
    fn nft_refuses_text_that_is_no_ruleset() {
        let nft = Nft::find().expect("nft is installed");
        let Err(NftError::Refused(text)) = nft.load("this is no ruleset\n") else { panic!("nft loaded it") };
        assert!(text.starts_with("line 1:") && text.contains("Error: ") && !text.contains('\n'), "{text}");
    }
}
