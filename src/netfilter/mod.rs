//! The interface to the kernel: netlink, NFQUEUE, the program nft, the table `inet pinhole`, and the mechanisms that keep
//! pinholes there.

pub mod backend;
mod connections;
mod errors;
pub mod netlink;
mod nfq_socket;
pub mod nft;
pub mod queue;
pub mod readers;
pub mod table;
mod witness;

use std::time::Duration;

/// The timeout for a reply of the kernel, which normally comes at once.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);
