//! FTP as text: lines, commands, replies and the notations of an address.
//!
//! Everything here works on bytes that arrived in order. It knows nothing of packets, sessions or the kernel.

pub mod mode;

pub use mode::{Mode, Modes};
