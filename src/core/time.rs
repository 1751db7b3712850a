//! A timestamp, as the caller passes it in.
//!
//! Nothing here reads a clock: the daemon passes its own clock's time, a replay the time in the capture file.

use std::fmt;
use std::ops::Add;
use std::time::Duration;

/// Nanoseconds since an epoch that only the one who made it knows.
///
/// Time never runs backwards for those who use it: a difference with a later moment is zero, not an error, because
/// captures do contain packets out of order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The moment `nanoseconds` after the epoch.
    pub const fn from_nanos(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// The moment `seconds` after the epoch.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000))
    }

    /// Nanoseconds since the epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The moment that long before this one; the epoch if there is none.
    pub const fn before(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(if by.as_nanos() > u64::MAX as u128 { u64::MAX } else { by.as_nanos() as u64 }))
    }

    /// How long after `earlier` this moment is; zero if it is not after it.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Seconds with nine decimals, as captures are usually printed.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_since_a_later_timestamp_is_zero() {
        let early = Timestamp::from_secs(1);
        let late = early + Duration::from_millis(1500);
        assert_eq!(late.since(early), Duration::from_millis(1500));
        assert_eq!(early.since(late), Duration::ZERO);
    }

    #[test]
    fn prints_as_decimal_seconds() {
        assert_eq!(Timestamp::from_nanos(1_500_000_001).to_string(), "1.500000001");
    }

    #[test]
    fn largest_timestamp_does_not_overflow() {
        let end = Timestamp::from_nanos(u64::MAX);
        assert_eq!(end + Duration::MAX, end);
    }
}
