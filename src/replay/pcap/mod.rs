//! Reads and writes capture files. Knows nothing of FTP.
//!
//! Capture files are read as a stream in constant memory: [`mod@file`] returns one [`file::Frame`] after the other, and
//! [`link`] finds the IP header in it. [`write`](mod@write) writes capture files.

mod buffer;
mod byte_order;
mod classic;
mod clock;
pub mod error;
pub mod file;
pub mod link;
mod pcapng;
pub mod write;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod sample;
