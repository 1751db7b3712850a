//! Which helper lets FTP through a firewall: none, the kernel's, conntrackd's, or Pinhole. The same tests run with
//! each.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::fmt;

use lab::{KERNEL_HELPER, Namespace, Result};

use super::conntrackd::Conntrackd;
use super::daemon::Daemon;

/// Who helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Helper {
    /// None: whatever needs a helper fails.
    Nobody,
    /// The kernel's `nf_conntrack_ftp` and `nf_nat_ftp`: the reference.
    Kernel,
    /// conntrackd, with its helper in userspace.
    Conntrackd,
    /// The built program.
    Pinhole,
}

/// A running helper, which ends when this is dropped.
pub(crate) enum Help {
    /// Nothing runs. The kernel's helper is there by its rules.
    Rules,
    Conntrackd(Conntrackd),
    Pinhole(Box<Daemon>),
}

impl Help {
    /// Pinhole, where it is that.
    pub(crate) fn daemon(&mut self) -> Option<&mut Daemon> {
        match self {
            Self::Pinhole(daemon) => Some(daemon),
            Self::Rules | Self::Conntrackd(_) => None,
        }
    }
}

impl Helper {
    /// Begins to help in a namespace whose rules are loaded. The policy is for Pinhole.
    pub(crate) fn start(self, namespace: &Namespace, policy: &str) -> Result<Help> {
        match self {
            Self::Nobody => Ok(Help::Rules),
            Self::Kernel => namespace.nft(KERNEL_HELPER).map(|()| Help::Rules),
            Self::Conntrackd => Conntrackd::start(namespace).map(Help::Conntrackd),
            Self::Pinhole => Daemon::start(namespace, policy).map(|daemon| Help::Pinhole(Box::new(daemon))),
        }
    }
}

impl fmt::Display for Helper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nobody => "nobody",
            Self::Kernel => "kernel",
            Self::Conntrackd => "conntrackd",
            Self::Pinhole => "Pinhole",
        })
    }
}
