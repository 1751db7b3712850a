//! The table `inet pinhole`: its rules, and the pinholes in its sets. No other module changes this table.
//!
//! The kernel is the database: the elements outlive the daemon, and the next run reads them back. Knows nothing of
//! queued packets and of the dialogue, nor which mechanism its rules are for.

mod accept_rules;
mod deadline;
mod elements;
mod error;
mod install;
mod manager;
mod owner;
mod pinholes;
mod prepare;
mod reload;
mod restore;
mod ruleset;

use std::hash::RandomState;
use std::net::IpAddr;

use hashbrown::{HashMap, HashSet};

pub use accept_rules::{own_iptables_rule, own_rule, own_rule_for};
pub use error::TableError;
pub use manager::{IptablesTable, iptables_tables};
pub use owner::TableOwner;
pub use pinholes::Pinhole;
pub use prepare::{Preparation, preparation};
pub use restore::Restored;
pub use ruleset::{MechanismRules, QueueChain, Queueing, is_own_chain, text as ruleset};

use super::errors::ErrorCounter;
use crate::core::expectation::PortRangePinhole;
use crate::core::net::Endpoint;
use crate::core::policy::Policy;
use crate::netfilter::netlink::{Error, TableImage, Tables};
use deadline::Deadline;
use pinholes::PortRangeKey;

/// The table `inet pinhole`.
#[derive(Debug)]
pub(super) struct PinholeTable {
    tables: Tables,
    policy: Policy,
    queueing: Queueing,
    /// The rules of the mechanism, for a host that needs control connections prepared.
    mechanism_rules: MechanismRules,
    /// Whether the installed rules prepare control connections.
    prepares: bool,
    /// Whether another table got a chain, perhaps for NAT, or a flowtable, since that was last looked at.
    may_need_preparation: bool,
    /// Whether iptables managed a table that filters when this was installed.
    has_iptables: bool,
    /// Whether the table of an earlier run was kept, so that its rules have been in force all the time.
    was_kept: bool,
    /// The time after which the table admits nothing.
    deadline: Deadline,
    /// The handles of the installed rules, except that of the deadline. If they are unchanged, no other program has changed
    /// the rules.
    installed: Vec<u64>,
    /// The table as installed, from which it is restored.
    image: TableImage,
    /// The table was restored before a packet's verdict, without its elements.
    lacks_elements: bool,
    /// The number of sessions that have each port range open.
    port_ranges: HashMap<PortRangeKey, (PortRangePinhole, u32), RandomState>,
    /// Used pinholes, which admit no further connection, to be removed together.
    used: HashSet<(IpAddr, Endpoint), RandomState>,
    /// Whether the maps may have elements. If not, no request has to look there.
    maps_used: bool,
    errors: ErrorCounter,
}

impl PinholeTable {
    /// How its rules queue packets.
    pub(super) fn queueing(&self) -> Queueing {
        self.queueing
    }

    fn installed_rules(&self) -> MechanismRules {
        self.mechanism_rules.on_host(self.prepares)
    }

    /// The rule that an administrator has to write on this host if `admit` is empty.
    pub(super) fn own_rule(&self) -> String {
        own_rule_for(self.policy.mark, self.has_iptables)
    }

    /// The policy that its rules follow.
    pub(super) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether the table of an earlier run was kept, so that its rules have been in force all the time.
    pub(super) fn was_kept(&self) -> bool {
        self.was_kept
    }

    /// The netlink port ID that changes the table: see [`TableWatch::ignore`].
    ///
    /// [`TableWatch::ignore`]: crate::netfilter::netlink::TableWatch::ignore
    pub(super) fn port_id(&self) -> Result<u32, Error> {
        self.tables.port_id()
    }
}
