//! The interface to the kernel: netlink, NFQUEUE, the program nft, and the mechanisms that keep pinholes there.

pub mod backend;
pub mod netlink;
pub mod nft;
pub mod queue;
pub mod readers;
pub mod table;
