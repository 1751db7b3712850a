//! Talking to the kernel's netfilter: messages, and the sockets that carry them.
//!
//! Every system call of that kind is here. What is asked has been done when a call returns, or the error says whether
//! it may have been. Encoding and decoding are apart from the sockets, so that they can be tested without a kernel.
//! Knows what the kernel's tables, sets and connections are, and not what anybody wants with them.

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
