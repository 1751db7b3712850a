//! The firewall of this host's kernel, and the mechanisms that keep pinholes there.

mod firewall;
mod mechanism;
pub mod native;
mod probe;
pub mod sets;

pub use firewall::{KernelFirewall, SetupError};
pub use mechanism::{NotPossible, Profile};
pub use probe::{Choice, probe};

pub use super::errors::RefusedRequests;
