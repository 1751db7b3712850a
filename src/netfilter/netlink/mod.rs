//! Talks to the kernel's netfilter: messages, and the sockets that carry them.
//!
//! All netlink system calls are here. When a call returns, the kernel has done what it asks, or the error says
//! whether the kernel may have done it. Encoding and decoding are separate from the sockets, so that tests need no
//! kernel. Knows what tables, sets and connections are, and not what they are used for.

mod bytes;
mod conntrack;
mod definitions;
mod element;
mod elements;
mod error;
mod expected;
mod expression;
mod filter;
#[doc(hidden)]
pub mod fuzzing;
mod helper;
mod image;
mod marks;
mod socket;
mod tables;
mod tuple;
mod verdict;
mod watch;

pub use conntrack::{Conntrack, Entry, SequenceAdjustment};
pub use definitions::{Object, ObjectKind};
pub use element::{Element, Key, Value};
pub use error::{Cause, Error, Operation};
pub use expected::{Expectations, Expected, Translated};
pub use expression::{About, Expression};
pub use helper::{Helper, Helpers, MOST_EXPECTATIONS};
pub use image::TableImage;
pub use tables::{Chain, Family, Hook, Rule, Table, Tables};
pub use verdict::Verdicts;
pub use watch::{ChangeKind, ConnectionChange, ConnectionWatch, Heard, TableChange, TableWatch};
