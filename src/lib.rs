//! Pinhole lets FTP through a stateful Linux firewall from userspace.
//!
//! It reads FTP control connections, understands what the two ends announce, and has a firewall admit exactly the
//! one data connection that was announced. The middle is pure: packets and the time come in, decisions go out, and
//! no module below knows a socket, a clock or a file unless its own comment says so.
//!
//! ```text
//! capture → packet → session (stream → line → dialogue) → announcement
//!                      ↑ kept by the tracker                   ↓
//!                      │                       policy → decision → expectation → firewall
//!                      └──────────────────────── news ────────────────────────────┘
//! ```

pub mod capture;
pub mod cli;
pub mod daemon;
pub mod decision;
pub mod demo;
pub mod expectation;
pub mod firewall;
pub mod ftp;
pub mod host;
pub mod lab;
pub mod net;
pub mod netlink;
pub mod packet;
pub mod policy;
pub mod replay;
pub mod rewrite;
pub mod script;
pub mod session;
pub mod stream;
pub mod time;
pub mod tracker;
