//! Rewrites bytes of a control connection, possibly with another length.
//!
//! Then a byte has one sequence number for its sender and another one for its receiver, and the kernel's seqadj
//! extension adjusts the numbers of every packet. This module computes the offsets for seqadj, and the bytes of each
//! segment. It does not know FTP, or how the offsets get to the kernel.

mod adjustment;
mod rewriter;

pub use adjustment::{Adjustment, Adjustments, NotAdjusted};
pub use rewriter::{DirectionRewriter, Edit, MAX_WITHHELD, RewriteError};

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
    Wait,
}

/// Another sequence number and payload for a segment.
#[derive(Clone, PartialEq, Eq)]
pub struct Replacement {
    /// The sequence number, before the kernel adds its offset.
    pub seq: Seq,
    /// The payload.
    pub payload: Vec<u8>,
}

impl std::fmt::Debug for Replacement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} at {:?}", String::from_utf8_lossy(&self.payload), self.seq)
    }
}

/// The rewriters of both directions of a connection.
#[derive(Debug, Default)]
pub struct Rewriters {
    client: DirectionRewriter,
    server: DirectionRewriter,
}

impl Rewriters {
    /// Rewriters for a connection that has these seqadj offsets already.
    pub fn with_adjustments(adjustments: &Adjustments) -> Self {
        let rewriter =
            |direction| adjustments.of(direction).map(DirectionRewriter::with_adjustment).unwrap_or_default();
        Self { client: rewriter(Direction::FromClient), server: rewriter(Direction::FromServer) }
    }

    /// The rewriter of that direction.
    pub const fn get(&self, direction: Direction) -> &DirectionRewriter {
        match direction {
            Direction::FromClient => &self.client,
            Direction::FromServer => &self.server,
        }
    }

    /// The rewriter of that direction.
    pub fn get_mut(&mut self, direction: Direction) -> &mut DirectionRewriter {
        match direction {
            Direction::FromClient => &mut self.client,
            Direction::FromServer => &mut self.server,
        }
    }
}
