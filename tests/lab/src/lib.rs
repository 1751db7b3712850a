//! The lab: networks, firewalls, servers and clients, in namespaces that the kernel takes away with us.
//!
//! Live tests and the load generator build what they need from it. It needs root, and nothing that it makes can stay
//! behind: namespaces are held by open files, programs by a pipe, files are in memory. So there is no cleaning up to
//! forget, after a panic or a `kill -9` either. It knows FTP as its clients and servers speak it, and nothing of Pinhole.

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
mod process;
mod room;
mod rtnetlink;
mod server;
pub mod tools;
mod topology;
mod wait;
pub mod witness;

pub use client::{ClientKind, Task, Visit};
pub use error::{Error, Result};
pub use kernel::kernel_lacks;
pub use link::{End, join};
pub use namespace::{Namespace, Socket};
pub use pace::{allow, share_of};
pub use process::{Child, Command, Finished};
pub use room::{HOME_INSIDE, INSIDE, PASSWORD, Room, USER};
pub use server::{Server, ServerKind, ServerOptions};
pub use topology::{Addresses, Family, Host, KERNEL_HELPER, Shape, Topology};
pub use wait::{wait_for, wait_until};
