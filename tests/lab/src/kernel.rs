//! What the kernel under test may lack.

use std::env;

/// Set to `complete` where the kernel is known to have everything: on Debian's kernels, in the emulated machine.
const VARIABLE: &str = "PINHOLE_LAB_KERNEL";

/// A test goes another way on a kernel that lacks something, and says so here. Panics on a kernel that is known to have
/// it: otherwise the test would pass without having tested.
#[allow(clippy::print_stdout, reason = "the output of a test says on which kind of kernel it ran")]
#[track_caller]
pub fn kernel_lacks(what: &str) {
    assert!(!is_complete(env::var(VARIABLE).ok().as_deref()), "{VARIABLE} is `complete`, but this kernel lacks {what}");
    println!("this kernel lacks {what}");
}

fn is_complete(value: Option<&str>) -> bool {
    match value {
        None => false,
        Some("complete") => true,
        Some(other) => panic!("{VARIABLE} is {other}: `complete` was expected, or nothing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_is_complete_only_if_the_variable_says_so() {
        assert_eq!((is_complete(None), is_complete(Some("complete"))), (false, true));
    }

    #[test]
    #[should_panic(expected = "`complete` was expected")]
    fn unknown_kind_of_kernel_is_an_error() {
        is_complete(Some("most"));
    }
}
