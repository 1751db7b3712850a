//! Running the program nft, once for a whole ruleset.
//!
//! The crate `nftables` calls it with `-j` and would have it read JSON. Given a plain ruleset that way, nft 1.0.6
//! installs nothing and reports success. It also lets nft's messages go to wherever this program's own go. So the
//! crate is given a shell that calls nft for plain text, and hands its messages back as output.

use nftables::helper::{NftablesError, apply_ruleset_raw};

/// What the shell does; the crate's own arguments behind it are not used. In the directories for administrators too,
/// as not everybody has them in the search path.
const SCRIPT: &str =
    "PATH=$PATH:/usr/sbin:/sbin; command -v nft >/dev/null || { echo NO-NFT; exit 127; }; exec nft -f - 2>&1";

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
    match apply_ruleset_raw(ruleset, Some("/bin/sh"), ["-c", SCRIPT]) {
        Ok(_) => Ok(()),
        Err(NftablesError::NftFailed { stdout, .. }) if stdout.trim() == "NO-NFT" => Err(NftError::NotFound),
        Err(NftablesError::NftFailed { stdout, .. }) => Err(NftError::Refused(in_one_line(&stdout).into())),
        Err(error) => Err(NftError::NotRun(error.to_string().into())),
    }
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
        let quoted = "/dev/stdin:3:2-6: Error: No such file or directory\n\t\tqueue\n\t\t^^^^^\n/dev/stdin:9:1-3: Error: syntax error\n";
        assert_eq!(
            in_one_line(quoted),
            "/dev/stdin:3:2-6: Error: No such file or directory; /dev/stdin:9:1-3: Error: syntax error"
        );
        assert_eq!(in_one_line("nft: cannot\nload a library\n"), "nft: cannot load a library");
    }

    #[test]
    fn a_ruleset_that_is_no_ruleset_is_refused_in_one_line() {
        let Err(NftError::Refused(complaint)) = apply("this is no ruleset\n") else { panic!("it is taken") };
        assert!(complaint.contains("Error: ") && !complaint.contains('\n'), "{complaint}");
    }
}
