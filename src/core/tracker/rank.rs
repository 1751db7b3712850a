//! The rank of a session: sessions of the lowest rank are evicted first.

use super::EndReason;
use crate::core::net::Direction;
use crate::core::session::Session;

/// The rank of a session, the lowest first: how much is lost with it. When the table is full, the longest silent
/// session of the lowest rank is evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// It has ended; only its addresses are kept for a while.
    Ended,
    /// It cannot be read any more, and nothing is open for it. Its mark says so, too.
    Unread,
    /// The server has answered the client's SYN, and the client has sent no data.
    HalfOpen,
    /// No user has logged in.
    NotLoggedIn,
    /// It is encrypted, and a port range is open for it.
    Ranged,
    /// A user is logged in.
    LoggedIn,
}

/// The state of an encrypted session's port range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RangeState {
    /// It opens when the dialogue is long enough for a login.
    Planned,
    Open,
}

impl Rank {
    pub(super) const COUNT: usize = 6;

    /// All of them, the lowest first.
    pub(super) const ALL: [Self; Self::COUNT] =
        [Self::Ended, Self::Unread, Self::HalfOpen, Self::NotLoggedIn, Self::Ranged, Self::LoggedIn];

    /// The rank of a session after a segment of that direction with this many bytes. `before` is its rank before that
    /// segment.
    pub(super) fn of(
        session: &Session,
        ended: Option<EndReason>,
        range: Option<RangeState>,
        before: Self,
        (direction, bytes): (Direction, usize),
    ) -> Self {
        let dialogue = session.dialogue();
        if ended.is_some() {
            Self::Ended
        } else if range == Some(RangeState::Open) {
            Self::Ranged
        } else if range == Some(RangeState::Planned) {
            Self::NotLoggedIn
        } else if dialogue.is_encrypted() || dialogue.is_other_protocol() {
            Self::Unread
        } else if dialogue.is_logged_in() {
            Self::LoggedIn
        } else if before == Self::HalfOpen && !(direction == Direction::FromClient && bytes > 0) {
            Self::HalfOpen
        } else {
            Self::NotLoggedIn
        }
    }

    /// Whether it counts to the share of the table for sessions before a login.
    pub(super) const fn is_before_login(self) -> bool {
        matches!(self, Self::HalfOpen | Self::NotLoggedIn)
    }

    /// Whether it has a login or an open port range.
    pub(super) const fn is_established(self) -> bool {
        matches!(self, Self::Ranged | Self::LoggedIn)
    }
}
