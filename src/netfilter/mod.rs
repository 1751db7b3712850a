//! The interface to the kernel: netlink, NFQUEUE, and the mechanisms that keep pinholes there.

pub mod backend;
pub mod netlink;
pub mod queue;
pub mod readers;
