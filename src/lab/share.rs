//! How often a test does the same thing again.
//!
//! On an emulated machine everything takes some twenty times as long. There a test covers the same, less often.

use std::env;

/// The variable that says which share of the full number is enough: 20 means a twentieth.
const VARIABLE: &str = "PINHOLE_LAB_SHARE";

/// How often something is done that is done `full` times on a machine as fast as usual. At least once.
pub fn share_of(full: usize) -> usize {
    full.div_ceil(divisor(env::var(VARIABLE).ok().as_deref()))
}

/// What of a list is done, of which all is done on a machine as fast as usual. Of a list in which several things take
/// turns, each of them comes up as long as none of them takes turns by five.
pub(super) fn some_of<T>(full: &[T]) -> impl Iterator<Item = &T> {
    full.iter().step_by(if share_of(full.len()) < full.len() { 5 } else { 1 })
}

fn divisor(said: Option<&str>) -> usize {
    said.map_or(1, |said| match said.parse() {
        Ok(number @ 1..) => number,
        _ => panic!("{VARIABLE} is {said}: a number from 1 was expected"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_says_nothing_does_everything() {
        assert_eq!((divisor(None), divisor(Some("20"))), (1, 20));
    }

    #[test]
    fn some_of_a_list_has_something_of_everything() {
        // Three, four and two things that take turns, as the matrix has them.
        let all: Vec<(u32, u32, u32)> = (0..24).map(|n| (n / 8, n / 2 % 4, n % 2)).collect();
        let fifth: Vec<_> = all.iter().step_by(5).collect();
        for wanted in 0..4 {
            assert!(fifth.iter().any(|(a, ..)| *a == wanted % 3));
            assert!(fifth.iter().any(|(_, b, _)| *b == wanted));
            assert!(fifth.iter().any(|(.., c)| *c == wanted % 2));
        }
    }

    #[test]
    #[should_panic(expected = "a number from 1 was expected")]
    fn nothing_at_all_is_no_share() {
        divisor(Some("0"));
    }
}
