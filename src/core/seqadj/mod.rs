//! Replaces bytes of a control connection, by more or fewer bytes.
//!
//! After that, sender and receiver count bytes differently, and the kernel corrects the sequence numbers of every
//! packet. This module computes the offsets that the kernel needs, and what each segment becomes. Knows nothing of
//! FTP, nor how the offsets get to the kernel.

mod adjustment;
mod rewriter;

pub use adjustment::{Adjustment, Adjustments, NotAdjusted};
pub use rewriter::{DirectionRewriter, MOST_WITHHELD, Replaced, RewriteError};

use crate::core::net::{Direction, Seq};

/// The verdict on a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Accept it unchanged.
    #[default]
    Accept,
    /// Accept it with another payload.
    Replace(Replacement),
    /// Drop it: its receiver would ignore it, or read other bytes than Pinhole.
    Drop,
    /// Keep it until the missing segment in front of it has come, and then pass it again.
    Later,
}

/// The replacement of a segment's sequence number and payload.
#[derive(Clone, PartialEq, Eq)]
pub struct Replacement {
    /// The sequence number, before the kernel adds its offset.
    pub seq: Seq,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl std::fmt::Debug for Replacement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} at {:?}", String::from_utf8_lossy(&self.payload), self.seq)
    }
}

/// Both directions of a connection in which bytes may be replaced.
#[derive(Debug, Default)]
pub struct Rewriters {
    client: DirectionRewriter,
    server: DirectionRewriter,
}

impl Rewriters {
    /// Both directions, with the offsets that the kernel has already.
    pub fn found(adjustments: &Adjustments) -> Self {
        let rewriter = |direction| adjustments.of(direction).map(DirectionRewriter::found).unwrap_or_default();
        Self { client: rewriter(Direction::FromClient), server: rewriter(Direction::FromServer) }
    }

    /// One of them, to look at.
    pub const fn get(&self, direction: Direction) -> &DirectionRewriter {
        match direction {
            Direction::FromClient => &self.client,
            Direction::FromServer => &self.server,
        }
    }

    /// One of them.
    pub fn of(&mut self, direction: Direction) -> &mut DirectionRewriter {
        match direction {
            Direction::FromClient => &mut self.client,
            Direction::FromServer => &mut self.server,
        }
    }
}
