//! The clock of the daemon.

use std::time::Instant;

use crate::core::time::Timestamp;

/// Time since the program began; it never runs backwards.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(self) -> Timestamp {
        // Not zero, so that a pinhole that stood already is not older than the beginning of time.
        Timestamp::from_secs(30 * 24 * 3600) + self.0.elapsed()
    }
}
