//! Checks whether this host is ready for Pinhole. Reading the host and rating the findings are separate, so that
//! tests of the ratings need no host.
//!
//! Reading changes nothing: features of the kernel are tested in transactions that are not committed.

mod faults;
mod filter;
mod host_state;
mod judge;
mod listeners;
mod manager;
mod packet_mark;
mod probe;
mod risks;
mod ruleset;
mod topology;

use std::fmt;
use std::path::Path;

use serde::Serialize;

pub use host_state::{DaemonState, Helper, HostState, KernelFeatures, Nft, Privileges, Surroundings};
pub use judge::{hindrances, judge, warnings};
pub use manager::Signs;
pub use probe::{Pair, Probes};
pub use risks::{PolicyFile, risks};
pub use ruleset::{BadRuleset, Ruleset};

use crate::core::policy::Policy;
use crate::daemon::POLICY_FILE;
use crate::netfilter::queue::processors;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rating {
    Ok,
    /// The daemon will run, but perhaps not as intended.
    Warning,
    /// The daemon will not run.
    Problem,
}

impl fmt::Display for Rating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        })
    }
}

/// Which connections a fault keeps from working.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hindered {
    ControlConnections,
    DataConnections,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Rating,
    /// What was checked.
    pub check: String,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// None if a fault hinders neither, or this is no fault.
    #[serde(skip)]
    pub hinders: Option<Hindered>,
}

impl Finding {
    fn new(severity: Rating, check: impl fmt::Display, message: impl fmt::Display) -> Self {
        Self { severity, check: check.to_string(), message: message.to_string(), advice: None, hinders: None }
    }

    /// What was checked, what was found and what to do, for a line of the log.
    pub fn message_with_advice(&self) -> String {
        let Self { check, message, advice, .. } = self;
        let advice = advice.as_ref().map(|advice| format!("; {advice}")).unwrap_or_default();
        format!("{check}: {message}{advice}")
    }

    fn advising(self, advice: impl fmt::Display) -> Self {
        Self { advice: Some(advice.to_string()), ..self }
    }

    fn hindering(self, hindered: Hindered) -> Self {
        Self { hinders: Some(hindered), ..self }
    }
}

/// One line, without the columns of a table.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:7}  {}", self.severity, self.message_with_advice())
    }
}

/// Which policy the host is checked for.
pub fn policy_source(file: Option<&Path>) -> Finding {
    let message = match file {
        Some(file) => file.display().to_string(),
        None => format!("the embedded one, as there is no {POLICY_FILE}"),
    };
    Finding::new(Rating::Ok, "policy", message)
}

/// Checks the host for a policy, with probes between these hosts, or if there are none, between those that are likely.
pub fn examine(policy: &Policy, pairs: &[Pair]) -> Vec<Finding> {
    let policy = policy.clone().on(processors());
    judge(&policy, &HostState::probe(&policy, pairs))
}
