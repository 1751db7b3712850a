//! The clock of the daemon.

use std::time::Instant;

use crate::core::time::Timestamp;

/// Monotonic time since the program started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(self) -> Timestamp {
        // Does not start at zero, so that the age of a pinhole of an earlier run can be subtracted.
        Timestamp::from_secs(30 * 24 * 3600) + self.0.elapsed()
    }
}
