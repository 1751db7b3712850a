//! The clock of one interface of a pcapng file: from its ticks to nanoseconds.

use crate::core::time::Timestamp;

const NANOS_PER_SEC: u64 = 1_000_000_000;
/// Set in `if_tsresol` when the resolution is a negative power of two, clear when it is one of ten.
const POWER_OF_TWO: u8 = 0x80;
/// The exponent of ten of a nanosecond.
const NANO: u8 = 9;

/// How long a tick is.
#[derive(Clone, Copy, Debug)]
enum Tick {
    /// That many nanoseconds.
    Nanos(u64),
    /// That many of them make a nanosecond.
    PerNano(u64),
    /// That power of two of them makes a second.
    PowerOfTwo(u8),
}

/// How long a tick is, and which moment tick zero is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    tick: Tick,
    /// Nanoseconds to add; all of `i64` seconds fit.
    offset: i128,
}

impl Default for Clock {
    /// Microseconds since the Unix epoch: what holds for an interface that says nothing.
    fn default() -> Self {
        Self { tick: Tick::Nanos(1000), offset: 0 }
    }
}

impl Clock {
    /// The clock with ticks as the option `if_tsresol` says.
    pub(super) fn with_resolution(self, if_tsresol: u8) -> Self {
        let exponent = if_tsresol & !POWER_OF_TWO;
        let tick = if if_tsresol & POWER_OF_TWO != 0 {
            Tick::PowerOfTwo(exponent)
        } else if exponent <= NANO {
            Tick::Nanos(10_u64.pow(u32::from(NANO - exponent)))
        } else {
            // Finer than 2^64 ticks a nanosecond: every moment that fits the field is within the first nanosecond.
            Tick::PerNano(10_u64.checked_pow(u32::from(exponent - NANO)).unwrap_or(u64::MAX))
        };
        Self { tick, ..self }
    }

    /// The clock whose tick zero is `if_tsoffset` seconds after the Unix epoch.
    pub(super) fn with_offset(self, if_tsoffset: i64) -> Self {
        Self { offset: i128::from(if_tsoffset) * i128::from(NANOS_PER_SEC), ..self }
    }

    /// The moment of that tick; the nearest one that can be told if it lies before 1970 or after 2554.
    #[inline]
    pub(super) fn moment(&self, ticks: u64) -> Timestamp {
        let nanos = match self.tick {
            Tick::Nanos(count) => u128::from(ticks) * u128::from(count),
            Tick::PerNano(count) => u128::from(ticks / count),
            Tick::PowerOfTwo(exponent) => (u128::from(ticks) * u128::from(NANOS_PER_SEC)) >> exponent,
        };
        // Below 2^94, and the offset within 2^93 of zero: the sum is far from the ends of its type.
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
    fn ticks_are_microseconds_unless_said_otherwise() {
        assert_eq!(nanos(Clock::default(), 1_500_000), 1_500_000_000);
    }

    #[test]
    fn a_resolution_is_a_power_of_ten_or_of_two() {
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
    fn an_offset_moves_the_epoch_either_way() {
        assert_eq!(nanos(Clock::default().with_offset(10), 5), 10_000_005_000);
        assert_eq!(nanos(Clock::default().with_offset(-10), 11_000_000), 1_000_000_000);
        // In any order.
        assert_eq!(nanos(Clock::default().with_offset(1).with_resolution(9), 5), 1_000_000_005);
    }

    #[test]
    fn a_moment_that_cannot_be_told_becomes_the_nearest_that_can() {
        assert_eq!(nanos(Clock::default().with_offset(i64::MIN), u64::MAX), 0);
        assert_eq!(nanos(Clock::default().with_offset(i64::MAX).with_resolution(0), u64::MAX), u64::MAX);
        assert_eq!(nanos(Clock::default().with_offset(-1), 0), 0);
        // Too late by itself, but not with its offset.
        let far = Clock::default().with_resolution(0).with_offset(-i64::MAX);
        assert_eq!(nanos(far, i64::MAX.cast_unsigned() + 2), 2_000_000_000);
    }
}
