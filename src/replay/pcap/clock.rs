//! The clock of a pcapng interface: converts ticks to nanoseconds.

use crate::core::time::Timestamp;

const NANOS_PER_SEC: u64 = 1_000_000_000;
/// The bit of `if_tsresol` that is set if the resolution is a negative power of two; otherwise it is one of ten.
const POWER_OF_TWO: u8 = 0x80;
/// The exponent of ten of a nanosecond.
const NANO: u8 = 9;

/// The duration of a tick.
#[derive(Clone, Copy, Debug)]
enum Tick {
    /// Nanoseconds per tick.
    Nanos(u64),
    /// Ticks per nanosecond.
    PerNano(u64),
    /// The binary logarithm of the ticks per second.
    PowerOfTwo(u8),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    tick: Tick,
    /// `if_tsoffset` in nanoseconds.
    offset: i128,
}

impl Default for Clock {
    /// Microseconds since the Unix epoch, for an interface without the options.
    fn default() -> Self {
        Self { tick: Tick::Nanos(1000), offset: 0 }
    }
}

impl Clock {
    /// Sets the resolution to that of the option `if_tsresol`.
    pub(super) fn with_resolution(self, if_tsresol: u8) -> Self {
        let exponent = if_tsresol & !POWER_OF_TWO;
        let tick = if if_tsresol & POWER_OF_TWO != 0 {
            Tick::PowerOfTwo(exponent)
        } else if exponent <= NANO {
            Tick::Nanos(10_u64.pow(u32::from(NANO - exponent)))
        } else {
            // With 2^64 ticks per nanosecond or more, every time that fits the field is below one nanosecond.
            Tick::PerNano(10_u64.checked_pow(u32::from(exponent - NANO)).unwrap_or(u64::MAX))
        };
        Self { tick, ..self }
    }

    /// Sets the seconds between the Unix epoch and tick zero, the option `if_tsoffset`.
    pub(super) fn with_offset(self, if_tsoffset: i64) -> Self {
        Self { offset: i128::from(if_tsoffset) * i128::from(NANOS_PER_SEC), ..self }
    }

    /// The time of a tick. Times before 1970 or after 2554 become the earliest or latest timestamp.
    #[inline]
    pub(super) fn moment(&self, ticks: u64) -> Timestamp {
        let nanos = match self.tick {
            Tick::Nanos(count) => u128::from(ticks) * u128::from(count),
            Tick::PerNano(count) => u128::from(ticks / count),
            Tick::PowerOfTwo(exponent) => (u128::from(ticks) * u128::from(NANOS_PER_SEC)) >> exponent,
        };
        // Below 2^94, and the offset is between -2^93 and 2^93: no overflow.
        let nanos = nanos.cast_signed() + self.offset;
        Timestamp::from_nanos(u64::try_from(nanos.max(0)).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nanos(clock: Clock, ticks: u64) -> u64 {
        clock.moment(ticks).as_nanos()
    }

    #[test]
    fn ticks_are_microseconds_by_default() {
        assert_eq!(nanos(Clock::default(), 1_500_000), 1_500_000_000);
    }

    #[test]
    fn resolution_is_a_power_of_ten_or_of_two() {
        let clock = |resolution| Clock::default().with_resolution(resolution);
        assert_eq!(nanos(clock(0), 3), 3_000_000_000);
        assert_eq!(nanos(clock(3), 1500), 1_500_000_000);
        assert_eq!(nanos(clock(9), 1_500_000_001), 1_500_000_001);
        assert_eq!(nanos(clock(12), 1_500_000_001_999), 1_500_000_001);
        assert_eq!(nanos(clock(127), u64::MAX - 1), 0);
        assert_eq!(nanos(clock(0x80), 7), 7_000_000_000);
        assert_eq!(nanos(clock(0x80 | 10), 1536), 1_500_000_000);
        assert_eq!(nanos(clock(0x80 | 32), (1 << 32) + (1 << 31)), 1_500_000_000);
        assert_eq!(nanos(clock(0xff), u64::MAX), 0);
    }

    #[test]
    fn offset_may_be_positive_or_negative() {
        assert_eq!(nanos(Clock::default().with_offset(10), 5), 10_000_005_000);
        assert_eq!(nanos(Clock::default().with_offset(-10), 11_000_000), 1_000_000_000);
        // In any order.
        assert_eq!(nanos(Clock::default().with_offset(1).with_resolution(9), 5), 1_000_000_005);
    }

    #[test]
    fn time_out_of_range_becomes_the_nearest_timestamp() {
        assert_eq!(nanos(Clock::default().with_offset(i64::MIN), u64::MAX), 0);
        assert_eq!(nanos(Clock::default().with_offset(i64::MAX).with_resolution(0), u64::MAX), u64::MAX);
        assert_eq!(nanos(Clock::default().with_offset(-1), 0), 0);
        // Out of range without the offset, but not with it.
        let far = Clock::default().with_resolution(0).with_offset(-i64::MAX);
        assert_eq!(nanos(far, i64::MAX.cast_unsigned() + 2), 2_000_000_000);
    }
}
