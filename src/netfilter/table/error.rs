//! The errors of installing or reloading the table.

use super::owner::TableOwner;
use crate::core::policy::Chain;
use crate::netfilter::netlink::Error;
use crate::netfilter::nft::NftError;

/// Why the table was not installed or reloaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    #[error(transparent)]
    Kernel(#[from] Error),
    #[error(transparent)]
    Nft(#[from] NftError),
    /// The kernel has neither the statement `queue` nor the target NFQUEUE.
    #[error(
        "this kernel cannot queue packets from nftables: it has neither nft_queue (CONFIG_NFT_QUEUE) nor the target \
         NFQUEUE for nft_compat (CONFIG_NETFILTER_XT_TARGET_NFQUEUE and CONFIG_NFT_COMPAT); load one of these modules"
    )]
    NoQueue,
    /// The table `inet pinhole` belongs to another program.
    #[error(
        "the table inet pinhole belongs to another program: it has a chain `{chain}`; rename it, or remove it with \
         `nft delete table inet pinhole`"
    )]
    ForeignTable {
        /// A chain that Pinhole's table does not have.
        chain: Box<str>,
    },
    /// A chain that `admit` names does not exist.
    #[error("there is no chain `{0}`, which the policy names in `admit`; see `nft list chains`")]
    NoSuchChain(Chain),
    /// The table of a chain that `admit` names has an owner.
    #[error("cannot add the accept rule to `{chain}`: {owner}; {}", owner.advice(chain))]
    OwnedTable {
        /// The chain.
        chain: Chain,
        owner: TableOwner,
    },
    /// A reload cannot change the queues, which are bound only at the start.
    #[error(
        "`capture: queue` and `queues` cannot change while the program runs: restart it (`systemctl restart pinhole`); \
         control connections, transfers and pinholes outlast that"
    )]
    OtherQueues,
    /// A reload cannot change rules that only the program nft can write.
    #[error(
        "this policy needs other rules in the table inet pinhole, which are only written at the start: restart it \
         (`systemctl restart pinhole`); control connections and transfers go on"
    )]
    OtherRules,
    /// A part of the table was missing after it was installed.
    #[error("the table inet pinhole was installed, but {0} missing; does another program change the ruleset?")]
    Incomplete(&'static str),
}
