//! The clock of the daemon.

use std::time::Instant;

use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};

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

/// The time of day in UTC to the second, as RFC 3339 has it, like in the log.
pub(super) fn time_of_day() -> String {
    let mut text = String::new();
    // A string takes whatever is written.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text.split_once('.').map_or(text.clone(), |(seconds, _)| format!("{seconds}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_day_has_seconds_and_no_fraction() {
        let shape: String = time_of_day().chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
        assert_eq!(shape, "9999-99-99T99:99:99Z");
    }
}
