//! FTP as text: lines, commands, replies and the notations of an address.
//!
//! Everything here works on bytes that arrived in order. It knows nothing of packets, sessions or the kernel.

pub mod command;
pub mod embedded;
pub mod line;
pub mod mode;
pub mod notation;
pub mod printable;
pub mod reply;
pub mod telnet;
pub mod unfinished;

pub use line::{Line, LineEnding, LineReader, UnreadBytes};
pub use mode::{Mode, Modes};
