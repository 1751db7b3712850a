//! Pinhole lets FTP through a stateful Linux firewall from userspace.
//!
//! It reads FTP control connections, understands what the two ends announce, and has the kernel admit exactly the one
//! data connection that was announced.
//!
//! [`core`] decides and is pure: packets, the time and the kernel's answers come in, decisions go out. [`netfilter`] is
//! the kernel's side, [`daemon`] runs the two as a service, [`replay`] runs `core` on capture files, [`doctor`] judges a
//! host before the daemon runs there.
//!
//! ```text
//! cli ─► daemon ─► netfilter ─► core
//!     ├► doctor ─► netfilter      ▲
//!     └► replay ──────────────────┘
//! ```

pub mod cli;
pub mod core;
pub mod daemon;
pub mod demo;
pub mod doctor;
pub mod netfilter;
pub mod replay;
