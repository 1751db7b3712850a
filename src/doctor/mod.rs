//! Checks whether this host is ready for Pinhole. Reading the host and rating the findings are separate, so that
//! tests of the ratings need no host.
//!
//! Reading changes nothing: features of the kernel are tested in transactions that are not committed.

mod filter;
mod judge;
mod look;
mod risks;
mod ruleset;

use std::fmt;

use serde::Serialize;

pub use judge::judge;
pub use look::{Helper, Instance, Kernel, Nft, Privileges, Seen};
pub use risks::{PolicyFile, risks};
pub use ruleset::{BadRuleset, Ruleset};

use crate::core::policy::Policy;
use crate::netfilter::queue::processors;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// As it should be.
    Ok,
    /// The service runs, and perhaps not as is wanted.
    Warning,
    /// The service will not run.
    Problem,
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        })
    }
}

/// Something found on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub weight: Weight,
    /// What it is about.
    pub about: String,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn new(weight: Weight, about: impl fmt::Display, found: impl fmt::Display) -> Self {
        Self { weight, about: about.to_string(), found: found.to_string(), advice: None }
    }

    fn advising(self, advice: impl fmt::Display) -> Self {
        Self { advice: Some(advice.to_string()), ..self }
    }
}

/// One line, without the padding that a table of them has.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { weight, about, found, advice } = self;
        write!(f, "{weight:7}  {about}: {found}")?;
        advice.iter().try_for_each(|advice| write!(f, "; {advice}"))
    }
}

/// Looks at the host and says what of it suits a policy, and what does not.
pub fn examine(policy: &Policy) -> Vec<Finding> {
    let policy = policy.clone().on(processors());
    judge(&policy, &Seen::look(&policy))
}
