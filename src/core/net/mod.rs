//! Ports, sequence numbers and flows; IP and TCP segments, parsed and rewritten. Knows nothing of FTP.

mod flow;
mod ports;
mod replace;
mod segment;
mod seq;

pub use flow::{Connection, Direction, Endpoint, Flow};
pub use ports::*;
pub use replace::{replace_addresses, replace_payload};
pub use segment::{Flags, NotSegment, Origin, Segment};
pub use seq::Seq;
