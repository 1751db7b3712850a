//! Why the table is not what the policy wants.

use crate::core::policy::Chain;
use crate::netfilter::netlink::Error;
use crate::netfilter::nft::NftError;

/// Why the table was not installed or reloaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// The program nft refused something.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// No rule of this kernel can hand a packet to a program.
    #[error(
        "this kernel cannot queue packets from nftables: it has neither nft_queue (CONFIG_NFT_QUEUE) nor the target \
         NFQUEUE for nft_compat (CONFIG_NETFILTER_XT_TARGET_NFQUEUE and CONFIG_NFT_COMPAT); load one of these modules"
    )]
    NoQueue,
    /// Another program has a table `inet pinhole`.
    #[error(
        "the table inet pinhole belongs to another program: it has a chain `{chain}`; rename it, or remove it with \
         `nft delete table inet pinhole`"
    )]
    ForeignTable {
        /// A chain that Pinhole's table does not have.
        chain: Box<str>,
    },
    /// The policy wants a rule in a chain that does not exist.
    #[error("there is no chain `{0}`, which the policy names in `admit`; see `nft list chains`")]
    NoSuchChain(Chain),
    /// A reload cannot change the queues, which are bound once.
    #[error(
        "`capture: queue` and `queues` cannot change while the program runs: restart it (`systemctl restart pinhole`); \
         control connections, transfers and pinholes outlast that"
    )]
    OtherQueues,
    /// A reload cannot change rules that only the program nft could write.
    #[error(
        "this policy needs other rules in the table inet pinhole, which are only written at the start: restart it \
         (`systemctl restart pinhole`); control connections and transfers go on"
    )]
    OtherRules,
    /// A part of the table was missing after it was installed.
    #[error("the table inet pinhole was installed, but {0} missing; does another program change the ruleset?")]
    Incomplete(&'static str),
}
