//! Bytes as IP and TCP, and TCP's own numbers as types. Knows nothing of FTP.

mod flow;
mod replace;
mod segment;
mod seq;

pub use flow::{Connection, Direction, Endpoint, Flow};
pub use replace::{readdressed, replaced};
pub use segment::{Flags, NotSegment, Origin, Segment, has_sound_checksum};
pub use seq::Seq;
