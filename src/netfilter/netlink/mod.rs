//! Requests to netfilter over netlink, and its notifications.
//!
//! All netlink system calls are here, except that the crate nfq receives queued packets. When a call returns, the kernel has
//! carried out the request, or the error says whether it may have. Messages are encoded and parsed without sockets, so that
//! tests need no kernel. The module knows tables, sets and connections, not what Pinhole uses them for.

mod bytes;
mod conntrack;
mod element;
mod elements;
mod error;
mod expectations;
mod expression;
#[doc(hidden)]
pub mod fuzzing;
mod helpers;
mod image;
mod marks;
mod objects;
mod sock_diag;
mod socket;
mod socket_filter;
mod tables;
mod trace;
mod tuple;
mod uapi;
mod verdicts;
mod watch;
mod xt;

pub use conntrack::{Conntrack, ConntrackEntry, SequenceAdjustment};
pub use element::{Element, Key, Value};
pub use error::{Cause, Error, Operation};
pub use expectations::{CtExpectation, ExpectationNat, Expectations};
pub use expression::{CtKey, Expression};
pub use helpers::{Helper, Helpers, MAX_EXPECTATIONS};
pub use image::TableImage;
pub use objects::{Object, ObjectKind};
pub use sock_diag::{SocketLookup, TcpState};
pub use tables::{Chain, Family, Hook, Owner, Rule, Table, Tables};
pub use trace::{TraceStep, TracedSyn, Tracer};
pub use verdicts::Verdicts;
pub use watch::{ChangeKind, ConnectionChange, ConnectionWatch, TableChange, TableWatch, WatchEvent};
pub use xt::{Connmark, ConntrackState, Target, XtParts, built_in_tables, is_built_in};
