//! The daemon in a namespace, real servers and clients around it, and a filter that drops everything but control
//! connections.
//!
//! Needs root, and the programs that `tests/setup test` fetches. Without them it fails, and says so.

#![allow(clippy::print_stdout, reason = "a line for each cell of the matrix is what a reader of a failure wants")]

use crate::daemon::{Daemon, PATIENCE};

use lab::matrix::{self, Outcome, Scene, Stage};
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

fn play() -> Vec<Outcome> {
    let prepare = |stage: &Stage| {
        let firewall = &stage.topology.firewall;
        firewall.nft(stage.scene.shape.default_drop())?;
        Daemon::start(firewall, &policy(stage.scene.shape))
    };
    let each = |stage: &Stage, cell: &matrix::Cell| stage.transfer(cell.client, cell.mode, PATIENCE);
    let outcomes = matrix::play(&Scene::all(&Shape::ALL), 4, prepare, each).unwrap_or_else(|error| panic!("{error}"));
    for Outcome { cell, result, took } in &outcomes {
        let how = if result.is_ok() { "works" } else { "fails" };
        println!("{cell}  {how}  {:4} ms", took.as_millis());
    }
    outcomes
}

fn assert_all_work(outcomes: &[Outcome]) {
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(|Outcome { cell, result, .. }| Some(format!("{cell}: {}", result.as_ref().err()?)))
        .collect();
    assert!(failed.is_empty(), "{} cells failed:\n{}", failed.len(), failed.join("\n\n"));
}

#[test]
fn every_combination_works_through_default_drop() {
    assert_all_work(&play());
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
    lab::wait_until("the daemon ends", PATIENCE, || Ok(!daemon.child.is_running()?)).expect("it ends");
    assert_eq!(namespace.nft_output(&["list", "ruleset"]).expect("nft lists"), before);
}
