//! Attacks on the running program, with real servers, clients and kernels: what must stay closed stays closed, and what
//! is denied is not carried out.
//!
//! Needs root, nft, curl, and the programs that `tests/setup test` fetches.

mod denied;
mod forged;
mod held;
mod lines;
mod mptcp;
mod pick_up;
mod resets;
mod scene;
