//! How fast the machine is, and how tests adapt.
//!
//! On an emulated machine everything takes many times as long. A test covers the same cases there, repeats them less
//! often, and allows more time.

use std::env;
use std::time::Duration;

/// The variable that says how many times as long everything takes.
const VARIABLE: &str = "PINHOLE_LAB_SLOWNESS";

/// How often something is done that is done `full` times on a machine as fast as usual. At least once.
pub fn share_of(full: usize) -> usize {
    full.div_ceil(slowness() as usize)
}

/// The time to allow where `usual` is enough on a normal machine: a quarter of the slowness, as such times are
/// generous, and waiting for what never comes should not take too long.
pub fn allow(usual: Duration) -> Duration {
    usual * slowness().div_ceil(4)
}

/// Whether this is a slow machine.
pub(crate) fn is_slow() -> bool {
    slowness() > 1
}

fn slowness() -> u32 {
    read(env::var(VARIABLE).ok().as_deref())
}

fn read(said: Option<&str>) -> u32 {
    said.map_or(1, |said| match said.parse() {
        Ok(number @ 1..) => number,
        _ => panic!("{VARIABLE} is {said}: a whole number from 1 was expected"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slowness_is_one_by_default() {
        assert_eq!((read(None), read(Some("20"))), (1, 20));
    }

    #[test]
    #[should_panic(expected = "a whole number from 1 was expected")]
    fn slowness_of_zero_is_refused() {
        read(Some("0"));
    }
}
