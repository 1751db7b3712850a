//! The trait `Backend`, which a mechanism implements.

use std::fmt::Debug;
use std::net::IpAddr;
use std::time::Duration;

use crate::core::expectation::{Expectation, Mapping};
use crate::core::kernel::NotOpened;
use crate::core::net::{Connection, Endpoint, Flow};
use crate::core::policy::{Mechanism, Policy};
use crate::netfilter::netlink::Error;
use crate::netfilter::table::{MechanismRules, Pinhole, PinholeTable, Queueing};

/// The properties of a mechanism that other modules use.
#[derive(Debug)]
pub struct Profile {
    pub mechanism: Mechanism,
    /// The rules that it adds to the table.
    pub rules: MechanismRules,
    /// Whether conntrack expects data connections, which makes them `ct state related`; otherwise they are `new`.
    pub is_related: bool,
    /// Whether control connections have a userspace helper, so that a verdict has to avoid the kernel's second
    /// correction of sequence numbers.
    pub has_helper: bool,
}

impl Profile {
    /// What of a ruleset that is saved while the daemon runs may not load later, and what to do. `prepares`: whether
    /// control connections are prepared for NAT or flowtables.
    pub const fn limit_of_saved_rulesets(&self, queueing: Queueing, prepares: bool) -> &'static str {
        match queueing {
            _ if !self.has_helper && prepares => {
                "what `nft list ruleset` prints while Pinhole runs does not load again, as nft cannot write the objects \
                 no_expectation4 and no_expectation6, which NAT and flowtables need: save your own tables one by one (`nft list table inet filter`)"
            }
            Queueing::Statement if !self.has_helper => {
                "what `nft list ruleset` prints while Pinhole runs loads again, and admits no data connection then"
            }
            Queueing::CompatTarget => {
                "what `nft list ruleset` prints while Pinhole runs may not load again, as nft cannot write the target \
                 NFQUEUE: load the module nft_queue, or save your own tables one by one (`nft list table inet filter`)"
            }
            Queueing::Statement => {
                "what `nft list ruleset` prints while Pinhole runs loads without it only where the kernel has \
                 nf_conntrack_ftp, as it names the helper `ftp`: save your own tables one by one (`nft list table inet \
                 filter`)"
            }
        }
    }
}

/// Why a mechanism cannot work on this host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`mechanism: {mechanism}` is not possible: {why}; `mechanism: auto` falls back to sets")]
pub struct NotPossible {
    pub mechanism: Mechanism,
    pub why: Box<str>,
}

/// A mechanism that keeps pinholes in the kernel. The default methods keep them in the sets of the table.
pub(super) trait Backend: Debug + Send {
    fn profile(&self) -> &'static Profile;

    /// Makes sure that the objects exist to which the table's rules refer, before the table is reloaded or restored.
    fn prepare(&mut self, _: &Policy) -> Result<(), NotPossible> {
        Ok(())
    }

    /// Reads the state that an earlier run left, after the table was installed.
    fn adopt(&mut self, _: &mut PinholeTable) -> Result<(), Error> {
        Ok(())
    }

    /// Opens a pinhole for an expectation of this control connection. Replaces an open one with the same addresses.
    fn open(&mut self, table: &mut PinholeTable, pinhole: &Expectation, _: &Connection) -> Result<(), NotOpened> {
        table.open(pinhole)
    }

    /// Opens a pinhole for a SYN that conntrack has seen already, so that an expectation would not find it any more.
    fn open_for_syn(&mut self, table: &mut PinholeTable, pinhole: &Expectation) -> Result<(), NotOpened> {
        table.open(pinhole)
    }

    /// Closes a pinhole. It is no error if it was used or has expired.
    fn close(&mut self, table: &mut PinholeTable, pinhole: &Expectation) {
        table.close(pinhole);
    }

    /// The NAT of a connection, if a pinhole admits it.
    fn mapping_of(&mut self, table: &mut PinholeTable, from: IpAddr, to: Endpoint) -> Option<Mapping> {
        table.mapping_of(from, to)
    }

    /// Whether a SYN has come for this open pinhole, and was admitted. Asked before its lifetime ends.
    fn syn_came(&mut self, table: &mut PinholeTable, pinhole: &Expectation) -> bool {
        table.syn_came(pinhole)
    }

    /// The pinholes in the kernel.
    fn pinholes(&mut self, table: &mut PinholeTable) -> Result<Vec<Pinhole>, Error> {
        table.pinholes()
    }

    /// A pinhole was used, and admits no further connection.
    fn used(&mut self, table: &mut PinholeTable, flow: &Flow) {
        table.used(flow);
    }

    /// Whether a pinhole is in the sets, so that it is lost with the table.
    fn is_in_sets(&self, _: &Expectation) -> bool {
        true
    }

    /// Closes all pinholes that are not in the table.
    fn close_all(&mut self, _: &PinholeTable) -> Result<(), Error> {
        Ok(())
    }

    /// Removes the mechanism's objects outside the table, after the table was removed. Waits for the kernel to release them,
    /// no longer than `within`. If an object has to stay, returns a message that says so.
    fn remove(&mut self, _within: Duration) -> Result<Option<&'static str>, Error> {
        Ok(None)
    }
}
