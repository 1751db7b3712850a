//! The lab: networks, firewalls, servers and clients in namespaces that end with the test.
//!
//! Live tests and the live benchmark build their networks with it. It needs root. Nothing that it makes can outlast the
//! test, not even after a panic or a `kill -9`: open files hold the namespaces, a pipe holds the programs, files are in
//! memory. It knows nothing of Pinhole.

mod choice;
mod client;
mod error;
mod ethtool;
mod kernel;
mod link;
pub mod matrix;
pub mod mini;
mod namespace;
pub mod nat;
mod netlink;
mod pace;
pub mod packet_recorder;
mod private_files;
mod process;
mod rtnetlink;
mod server;
pub mod tools;
mod topology;
mod wait;

pub use client::{ClientKind, Task, Tls, Visit};
pub use error::{Error, Result};
pub use kernel::kernel_lacks;
pub use link::{End, join};
pub use namespace::{Namespace, Socket};
pub use pace::{allow, share_of};
pub use private_files::{HOME_INSIDE, INSIDE, PASSWORD, PrivateFiles, USER};
pub use process::{Child, Command, Finished, descendants};
pub use server::{Server, ServerKind, ServerOptions};
pub use topology::{Addresses, Family, Host, KERNEL_HELPER, Shape, Topology};
pub use wait::{wait_for, wait_until};
