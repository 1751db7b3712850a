//! The errors of the lab, with their remedies.

use std::io;
use std::time::Duration;

/// Why the lab could not do what a test requested.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Network namespaces are for root.
    #[error(
        "cannot {doing}: {source}. The lab builds networks of its own and needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN)"
    )]
    Privileges {
        /// The action that failed, and on what.
        doing: String,
        /// The system's error.
        source: io::Error,
    },
    /// The system refused something.
    #[error("cannot {doing}: {source}")]
    System {
        /// The action that failed, and on what.
        doing: String,
        /// The system's error.
        source: io::Error,
    },
    /// A program that the lab runs is neither in the lab's cache nor on the machine.
    #[error("there is no {program}, neither in {cache} nor in PATH: {remedy}")]
    Missing {
        /// Its name.
        program: String,
        /// The cache that was looked into.
        cache: String,
        /// The command that installs it.
        remedy: String,
    },
    /// A condition did not come true in time.
    #[error("waited {within:?} in vain for {what}{output}")]
    TooLate {
        /// The condition.
        what: String,
        /// How long it was waited for.
        within: Duration,
        /// The output of the program, on lines of its own; empty if there is none.
        output: String,
    },
    /// A program ended as it should not.
    #[error("{program} ended with {status}{output}")]
    Ended {
        /// Its name.
        program: String,
        /// Its exit status.
        status: String,
        /// Its output, on lines of its own.
        output: String,
    },
    /// The other end of a dialogue sent something unexpected.
    #[error("expected {expected}, got {got:?}")]
    Dialogue {
        /// The expected text.
        expected: String,
        /// The received text.
        got: String,
    },
}

/// The result of the lab's operations.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The output of the program up to the error, if there was one.
    pub fn output(&self) -> &str {
        match self {
            Self::TooLate { output, .. } | Self::Ended { output, .. } => output,
            _ => "",
        }
    }
}

/// Adds to an error of the system what failed.
pub(crate) trait Context<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| {
            let (doing, source) = (what(), error.into());
            if source.kind() == io::ErrorKind::PermissionDenied {
                Error::Privileges { doing, source }
            } else {
                Error::System { doing, source }
            }
        })
    }
}

/// A program's output as the end of a message: on lines of its own, and not without end.
pub(crate) fn quoted(output: &[u8]) -> String {
    const KEPT: usize = 8000;
    let text = String::from_utf8_lossy(&output[output.len().saturating_sub(KEPT)..]).trim().to_owned();
    if text.is_empty() { text } else { format!(":\n{text}") }
}
