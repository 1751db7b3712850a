//! The daemon in a namespace, real servers and clients around it, and a filter that drops everything but control
//! connections.
//!
//! Needs root, and the programs that `tests/setup test` fetches. Without them it fails, and says so.

#![allow(clippy::print_stdout, reason = "a line for each cell of the matrix is what a reader of a failure wants")]

use crate::daemon::{Daemon, TIMEOUT};

use lab::matrix::{self, Outcome, RunningSetup, Setup};
use lab::{Namespace, Shape};
use nix::sys::signal::Signal;

/// The policy that admits in the lab's own filter.
fn policy(shape: Shape) -> String {
    let admit = match shape {
        Shape::ServerHost | Shape::ClientHost => "[inet filter input, inet filter output]",
        Shape::Gateway => "[inet filter forward]",
    };
    format!("admit: {admit}\n")
}

fn run_matrix() -> Vec<Outcome> {
    let prepare = |running: &RunningSetup| {
        let firewall = &running.topology.firewall;
        firewall.nft(running.setup.shape.default_drop())?;
        Daemon::start(firewall, &policy(running.setup.shape))
    };
    let each = |running: &RunningSetup, cell: &matrix::Cell| running.transfer(cell.client, cell.mode, TIMEOUT);
    let outcomes =
        matrix::run_cells(&Setup::all(&Shape::ALL), 4, prepare, each).unwrap_or_else(|error| panic!("{error}"));
    for Outcome { cell, result, took } in &outcomes {
        let how = if result.is_ok() { "works" } else { "fails" };
        println!("{cell}  {how}  {:4} ms", took.as_millis());
    }
    outcomes
}

#[test]
fn every_combination_works_through_default_drop() {
    matrix::assert_all_work(&run_matrix());
}

#[test]
fn sigterm_removes_everything() {
    let namespace = Namespace::new("host").expect("a namespace");
    namespace.nft(Shape::ServerHost.default_drop()).expect("the filter is good");
    let before = namespace.nft_output(&["list", "ruleset"]).expect("nft lists");
    let mut daemon = Daemon::start(&namespace, &policy(Shape::ServerHost)).expect("it starts");
    let during = namespace.nft_output(&["list", "ruleset"]).expect("nft lists");
    assert!(during.contains("table inet pinhole") && during != before);
    daemon.child.signal(Signal::SIGTERM).expect("it runs");
    lab::wait_until("the daemon ends", TIMEOUT, || Ok(!daemon.child.is_running()?)).expect("it ends");
    assert_eq!(namespace.nft_output(&["list", "ruleset"]).expect("nft lists"), before);
}
