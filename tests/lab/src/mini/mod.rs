//! A small FTP server and client, where real ones are too slow, or cannot send what a test needs.
//!
//! They serve the live benchmark and tests that control every byte: blocking, one thread per session, files in memory.
//! They read and write addresses with their own code, not Pinhole's, so that a bug of Pinhole cannot hide behind the
//! same bug here.

mod address;
mod client;
mod pair;
mod server;

pub use client::{MiniClient, Reply};
pub use pair::{Delivery, DeliveryStatus, Pair, Speaker};
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
