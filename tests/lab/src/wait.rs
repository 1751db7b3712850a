//! Waits for a condition, never for a fixed time.

use super::error::{Error, Result};
use super::pace::allow;
use std::thread;
use std::time::{Duration, Instant};

/// Between the first two looks at a condition. Short, because most conditions of the lab come true within milliseconds.
const SHORTEST: Duration = Duration::from_millis(2);
/// And between any two.
const LONGEST: Duration = Duration::from_millis(50);

/// Returns as soon as `condition` gives something, and fails when it has not within `within`, or longer on a slow machine.
///
/// Pauses grow with the time waited: a check may be expensive, and on a slow machine frequent checks would take the
/// processor from what they wait for.
///
/// `what` completes "waited in vain for …".
pub fn wait_for<T>(what: &str, within: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let within = allow(within);
    let begun = Instant::now();
    loop {
        // Ask once more after the deadline: the machine may have been too busy to let us ask in time.
        let late = begun.elapsed() >= within;
        if let Some(answer) = condition()? {
            return Ok(answer);
        }
        if late {
            return Err(Error::TooLate { what: what.to_owned(), within, output: String::new() });
        }
        thread::sleep((begun.elapsed() / 8).clamp(SHORTEST, LONGEST));
    }
}

/// Returns as soon as `condition` holds, and fails when it has not within `within`.
pub fn wait_until(what: &str, within: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_for(what, within, || Ok(condition()?.then_some(())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_returns_the_value_of_the_condition() {
        let mut looks = 0;
        let answer = wait_for("the third look", Duration::from_secs(5), || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(answer.ok(), Some(3));
    }

    #[test]
    fn timeout_error_names_the_condition() {
        let error = wait_until("better days", Duration::ZERO, || Ok(false)).expect_err("it never comes true");
        assert_eq!(error.to_string(), "waited 0ns in vain for better days");
    }
}
