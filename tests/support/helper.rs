//! Who helps FTP through a firewall: nobody, the kernel, or Pinhole. The same tests run with each.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::fmt;

use pinhole::lab::{KERNEL_HELPER, Namespace, Result};

use super::daemon::Daemon;

/// Who helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Helper {
    /// Nobody: what needs help fails.
    Nobody,
    /// The kernel's `nf_conntrack_ftp` and `nf_nat_ftp`: the reference.
    Kernel,
    /// The built program.
    Pinhole,
    /// The same with `inspect: announcements`.
    Excerpts,
}

impl Helper {
    /// Begins to help in a namespace whose rules are loaded. The policy is for Pinhole; keep what is returned.
    pub(crate) fn start(self, namespace: &Namespace, policy: &str) -> Result<Option<Daemon>> {
        match self {
            Self::Nobody => Ok(None),
            Self::Kernel => namespace.nft(KERNEL_HELPER).map(|()| None),
            Self::Pinhole => Daemon::start(namespace, policy).map(Some),
            Self::Excerpts => {
                Daemon::start(namespace, &format!("{policy}capture: {{ inspect: announcements }}\n")).map(Some)
            }
        }
    }
}

impl fmt::Display for Helper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nobody => "nobody",
            Self::Kernel => "kernel",
            Self::Pinhole => "Pinhole",
            Self::Excerpts => "Pinhole, announcements only",
        })
    }
}
