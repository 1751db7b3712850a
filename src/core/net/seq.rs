//! TCP sequence numbers.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

/// A TCP sequence number.
///
/// It wraps, so it has no total order and deliberately no `<`: two of them are compared by their distance, which
/// means something only while they are less than 2³¹ apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Seq(u32);

impl Seq {
    /// The number as in a TCP header.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number as in a TCP header.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Whether this place comes after `other`.
    pub const fn is_after(self, other: Self) -> bool {
        self.distance_from(other) > 0
    }

    /// Whether this place comes before `other`.
    pub const fn is_before(self, other: Self) -> bool {
        self.distance_from(other) < 0
    }

    /// The later of two places.
    #[must_use]
    pub const fn later(self, other: Self) -> Self {
        if self.is_after(other) { self } else { other }
    }

    /// The place so many bytes further on, or back.
    #[must_use]
    pub const fn moved(self, by: i32) -> Self {
        Self(self.0.wrapping_add_signed(by))
    }

    const fn distance_from(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0) as i32
    }
}

/// A place so many bytes further on.
impl Add<usize> for Seq {
    type Output = Self;

    fn add(self, bytes: usize) -> Self {
        // Streams wrap at 2³² by design, so only the low bits of the count matter.
        Self(self.0.wrapping_add(bytes as u32))
    }
}

impl AddAssign<usize> for Seq {
    fn add_assign(&mut self, bytes: usize) {
        *self = *self + bytes;
    }
}

/// How many bytes this place is behind `earlier`; negative when it comes before it.
impl Sub for Seq {
    type Output = i32;

    fn sub(self, earlier: Self) -> i32 {
        self.distance_from(earlier)
    }
}

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_the_wrap() {
        let before = Seq::new(u32::MAX - 1);
        let after = before + 4;
        assert_eq!(after.number(), 2);
        assert!(after.is_after(before) && before.is_before(after));
        assert_eq!(after - before, 4);
        assert_eq!(before - after, -4);
        assert_eq!(before.later(after), after);
    }
}
