//! Runs the program nft, once for the whole ruleset, while the daemon starts.
//!
//! No shell is involved. The crate `nftables` passes `-j` to nft; nft finds that its input is not JSON, and reads it
//! again as plain text. Standard input cannot be read a second time (nft 1.0.6 then installs nothing and reports
//! success), so the ruleset is a file in memory. The function of the crate that runs a command, unlike the one that
//! applies a ruleset, also returns the error messages of nft.

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use nftables::helper::{NftablesError, get_current_ruleset_raw};
use rustix::fs::{Access, MemfdFlags, access, memfd_create};

/// Where administrators' programs are, as not everybody has them in the search path.
const MORE_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Why a ruleset was not installed. Nothing of it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NftError {
    /// There is no such program.
    #[error("the program nft was not found; install the package nftables")]
    NotFound,
    /// It says that something is wrong.
    #[error("nft refused the ruleset: {0}; `pinhole check` tries each part of it, `pinhole rules` prints it")]
    Refused(Box<str>),
    /// It could not be run.
    #[error("cannot run nft: {0}")]
    NotRun(Box<str>),
}

/// Installs a ruleset, written as nft reads it, all at once or not at all.
pub(super) fn apply(ruleset: &str) -> Result<(), NftError> {
    let program = find().ok_or(NftError::NotFound)?;
    let file = in_memory(ruleset).map_err(|error| NftError::NotRun(error.to_string().into()))?;
    // nft inherits the file, under the same number.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    match get_current_ruleset_raw(Some(&program), ["-f", &path]) {
        Ok(_) => Ok(()),
        Err(NftablesError::NftFailed { stdout, stderr, .. }) => {
            let complaints = format!("{stdout}\n{stderr}").replace(&format!("{path}:"), "line ");
            Err(NftError::Refused(in_one_line(&complaints).into()))
        }
        Err(error) => Err(NftError::NotRun(error.to_string().into())),
    }
}

/// A file that has no name, for programs that are started from here as well.
fn in_memory(content: &str) -> io::Result<File> {
    let name = "pinhole ruleset";
    // Kernels before 6.3 do not know the flag, and later ones may insist on it.
    let file = memfd_create(name, MemfdFlags::NOEXEC_SEAL).or_else(|_| memfd_create(name, MemfdFlags::empty()))?;
    let mut file = File::from(file);
    file.write_all(content.as_bytes())?;
    Ok(file)
}

/// Where the program is. What stands in the search path without a leading slash depends on the current directory, and is
/// passed over.
fn find() -> Option<PathBuf> {
    let search_path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&search_path).chain(MORE_DIRECTORIES.map(PathBuf::from));
    let programs = directories.filter(|directory| directory.is_absolute()).map(|directory| directory.join("nft"));
    programs.into_iter().find(|program| program.is_file() && access(program, Access::EXEC_OK).is_ok())
}

/// What nft complains of, without the lines of the ruleset that it quotes between.
fn in_one_line(complaints: &str) -> String {
    let lines = || complaints.lines().map(str::trim).filter(|line| !line.is_empty());
    let errors: Vec<&str> = lines().filter(|line| line.contains("rror: ")).collect();
    if errors.is_empty() { lines().collect::<Vec<_>>().join(" ") } else { errors.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nft_complains_of_is_one_line() {
        let quoted =
            "line 3:2-6: Error: No such file or directory\n\t\tqueue\n\t\t^^^^^\nline 9:1-3: Error: syntax error\n";
        assert_eq!(
            in_one_line(quoted),
            "line 3:2-6: Error: No such file or directory; line 9:1-3: Error: syntax error"
        );
        assert_eq!(in_one_line("nft: cannot\nload a library\n"), "nft: cannot load a library");
    }

    #[test]
    fn a_ruleset_that_is_no_ruleset_is_refused_in_one_line() {
        let Err(NftError::Refused(complaint)) = apply("this is no ruleset\n") else { panic!("it is taken") };
        assert!(
            complaint.starts_with("line 1:") && complaint.contains("Error: ") && !complaint.contains('\n'),
            "{complaint}"
        );
    }
}
