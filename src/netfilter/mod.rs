//! The kernel's side: netlink, NFQUEUE, and what admits data connections there.

pub mod backend;
pub mod netlink;
pub mod queue;
pub mod readers;
