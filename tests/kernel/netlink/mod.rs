//! The mechanism `sets` on a real kernel: hosts in network namespaces, and what the firewall of one admits.
//!
//! Needs root, `ip` and `nft`. Each test has its own namespaces and removes them.

mod adjust;
mod capture;
mod expected;
mod host;
mod nat;
mod ruleset;
mod sets;
mod sockets;
