//! Attacks on the running daemon, with real servers, clients and kernels: closed ports stay closed, and denied commands
//! are not executed.
//!
//! Needs root, nft, curl, and the programs that `tests/setup test` fetches.

mod data_as_control;
mod denied;
mod forged;
mod held;
mod lines;
mod mptcp;
mod pick_up;
mod resets;
mod setup;
