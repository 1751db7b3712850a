//! The lab itself: every combination works without a filter, and a filter without a helper blocks data connections. The
//! same matrix with the kernel's helper is in `tests/reference/`.
//!
//! Needs root, and the programs that `tests/setup test` fetches. Without them it fails, and says so.

#![allow(clippy::print_stdout, reason = "a line for each cell of the matrix is what a reader of a failure wants")]

use lab::matrix::{self, Outcome, RunningSetup, Setup};
use lab::{Error, Result, Shape, Task};
use std::time::{Duration, Instant};

/// How long a client waits for a transfer that should work.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long it waits for one that should fail: long enough to log in.
const BRIEF: Duration = Duration::from_secs(2);

fn run_matrix<G>(
    title: &str,
    shapes: &[Shape],
    at_once: usize,
    prepare: impl Fn(&RunningSetup) -> Result<G> + Sync,
    each: impl Fn(&RunningSetup, &matrix::Cell) -> Result<()> + Sync,
) -> Vec<Outcome> {
    let begun = Instant::now();
    let outcomes =
        matrix::run_cells(&Setup::all(shapes), at_once, prepare, each).unwrap_or_else(|error| panic!("{error}"));
    for Outcome { cell, result, took } in &outcomes {
        let how = if result.is_ok() { "works" } else { "fails" };
        println!("{title:13}  {cell}  {how}  {:4} ms", took.as_millis());
    }
    println!("{title}: {} cells in {:.1} s", outcomes.len(), begun.elapsed().as_secs_f64());
    outcomes
}

/// Whether a client came that far before it failed.
fn is_logged_in(error: &Error) -> bool {
    error.output().contains("230")
}

#[test]
fn every_combination_works_without_a_filter() {
    let outcomes = run_matrix(
        "open",
        &[Shape::ServerHost, Shape::Gateway],
        4,
        |_| Ok(()),
        |running, cell| running.transfer(cell.client, cell.mode, TIMEOUT),
    );
    matrix::assert_all_work(&outcomes);
}

#[test]
fn default_drop_passes_logins_and_blocks_data() {
    let outcomes = run_matrix(
        "no helper",
        &Shape::ALL,
        // They only wait, and delay no other test.
        48,
        |running| running.topology.firewall.nft(running.setup.shape.default_drop()),
        |running, cell| {
            let mut timeout = BRIEF;
            loop {
                let result = cell.client.visit(&running.visit(cell.mode, timeout), &[Task::List]).map(drop);
                // On a busy machine the login itself may take longer: that is no answer yet.
                match &result {
                    Err(error) if !is_logged_in(error) && timeout < TIMEOUT => timeout *= 2,
                    _ => return result,
                }
            }
        },
    );
    for Outcome { cell, result, .. } in &outcomes {
        let error = result.as_ref().expect_err(&format!("{cell}: the listing came through"));
        assert!(is_logged_in(error), "{cell}: failed before it was logged in: {error}");
    }
}
