//! A small FTP server and client, for cases where no real one is available, fast enough or odd enough.
//!
//! They serve the load generator and tests that control every byte: blocking, one thread a session, files in memory.
//! They read and write addresses with code of their own, not Pinhole's, so that a mistake of Pinhole's cannot hide behind
//! the same mistake here.

mod address;
mod client;
mod pair;
mod server;

pub use client::{MiniClient, Reply};
pub use pair::{Heard, Hearing, Pair, Speaker};
pub use server::{MiniOptions, MiniServer};

/// Accepts a connection, but does not wait for one for ever.
fn accept_within(
    listener: &std::net::TcpListener,
    within: std::time::Duration,
) -> std::io::Result<(std::net::TcpStream, std::net::SocketAddr)> {
    use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
    use nix::sys::time::TimeVal;
    let micros = i64::from(within.subsec_micros());
    let seconds = i64::try_from(within.as_secs()).unwrap_or(i64::MAX);
    // On Linux a receive timeout of a listener is one for accept.
    setsockopt(listener, ReceiveTimeout, &TimeVal::new(seconds, micros))?;
    listener.accept()
}
