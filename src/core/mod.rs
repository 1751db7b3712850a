//! All decisions of Pinhole, as pure code: packets, the time and the kernel's answers are arguments, decisions are
//! results.
//!
//! Nothing here opens a socket or a file, reads a clock, or starts a thread or a process, and nothing here uses a
//! module outside `core`. `tests/cli/architecture.rs` checks that.

pub mod count;
pub mod expectation;
pub mod ftp;
pub mod hold;
pub mod kernel;
pub mod metrics;
pub mod net;
pub mod policy;
pub mod script;
pub mod seqadj;
pub mod session;
pub mod time;
pub mod tracker;
