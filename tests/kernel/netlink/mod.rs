//! The mechanism `sets` on a real kernel: hosts in network namespaces, and what the firewall of one lets in.
//!
//! Needs root, `ip` and `nft`. Every test has namespaces of its own and removes them.

mod adjust;
mod capture;
mod expected;
mod host;
mod nat;
mod ruleset;
mod sets;
