//! The counters of a replay.

use crate::core::tracker::SessionEvent;

/// Counts of everything that a summary tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets of all kinds.
    pub packets: u64,
    /// Control connections, picked-up ones included.
    pub sessions: u64,
    /// Sessions that were forgotten because room was needed.
    pub evicted: u64,
    /// Announcements that were admitted.
    pub expectations: u64,
    /// Announcements that were not.
    pub refusals: u64,
    /// Data connections that were expected.
    pub related: u64,
    /// Expectations whose connection did not come in time.
    pub expired: u64,
    /// Connections between the two hosts of a session that were not expected.
    pub blocked: u64,
    /// IP fragments, which are passed unread.
    pub fragments: u64,
    /// Packets that the capture holds only in part.
    pub cut: u64,
    /// Packets with headers that make no sense.
    pub damaged: u64,
    /// Copies that differ, segments out of reach, losses.
    pub oddities: u64,
}

impl Tally {
    /// Everything that a healthy capture of healthy connections does not hold.
    pub const fn anomalies(&self) -> u64 {
        self.fragments + self.cut + self.damaged + self.oddities
    }

    pub(super) fn count(&mut self, news: &SessionEvent<'_>) {
        match news {
            SessionEvent::Began { .. } => self.sessions += 1,
            SessionEvent::Expected { .. } => self.expectations += 1,
            SessionEvent::Refused { .. } | SessionEvent::RangeRefused { .. } => self.refusals += 1,
            SessionEvent::Used { .. } => self.related += 1,
            SessionEvent::Expired(_) => self.expired += 1,
            SessionEvent::Anomaly(_) => self.oddities += 1,
            SessionEvent::Ended(how) if how.is_eviction() => self.evicted += 1,
            SessionEvent::Said { .. }
            | SessionEvent::Denied { .. }
            | SessionEvent::LoggedIn { .. }
            | SessionEvent::Closed { .. }
            | SessionEvent::Encrypted { .. }
            | SessionEvent::RangeOpened(_)
            | SessionEvent::NotFtp
            | SessionEvent::Ended(_) => {}
        }
    }
}
