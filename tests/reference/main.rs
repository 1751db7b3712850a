//! Pinhole compared with the kernel's helper and with conntrackd: the matrix of real programs, and dialogues in which
//! they differ.
//!
//! The results are tables of `docs/reference/comparison.md`, between marks; the test fails if a table is out of date.
//! `UPDATE_REFERENCE=1` writes it. Needs root, and the programs that `tests/setup test` fetches.

#![allow(clippy::print_stdout, reason = "a line for each cell and case is what a reader of a failure wants")]

#[path = "../support/conntrackd.rs"]
mod conntrackd;
#[path = "../support/daemon.rs"]
mod daemon;
mod dialogue_fixture;
mod dialogues;
#[path = "../support/document.rs"]
mod document;
#[path = "../support/helper.rs"]
mod helper;

use std::collections::BTreeMap;
use std::time::Duration;

use daemon::TIMEOUT;
use dialogue_fixture::Outcome;
use dialogues::Case;
use document::assert_documented;
use helper::Helper;
use lab::matrix::{self, Cell, RunningSetup, Setup};
use lab::{Family, Result, Shape};
use pinhole::core::ftp::Mode;

const BOTH: [Helper; 2] = [Helper::Kernel, Helper::Pinhole];

// --- The matrix ----------------------------------------------------------------------------------------------------

fn policy(shape: Shape) -> &'static str {
    match shape {
        Shape::ServerHost | Shape::ClientHost => "admit: [inet filter input, inet filter output]\n",
        Shape::Gateway => "admit: [inet filter forward]\n",
    }
}

fn run_matrix(helper: Helper, timeout: impl Fn(&Cell) -> Duration + Sync) -> Vec<matrix::Outcome> {
    let prepare = |running: &RunningSetup| {
        running.topology.firewall.nft(running.setup.shape.default_drop())?;
        helper.start(&running.topology.firewall, policy(running.setup.shape))
    };
    let each = |running: &RunningSetup, cell: &Cell| running.transfer(cell.client, cell.mode, timeout(cell));
    matrix::run_cells(&Setup::all(&Shape::ALL), 4, prepare, each).unwrap_or_else(|error| panic!("{error}"))
}

/// The result of each cell, by its name.
fn outcomes(helper: Helper) -> BTreeMap<String, std::result::Result<(), String>> {
    let told = |outcome: matrix::Outcome| (outcome.cell.to_string(), outcome.result.map_err(|error| error.to_string()));
    run_matrix(helper, |_| TIMEOUT).into_iter().map(told).collect()
}

#[test]
fn real_software_works_as_with_the_kernel_helper() {
    let [kernel, ours] = BOTH.map(outcomes);
    assert_eq!(kernel.len(), ours.len());
    let mut differ = Vec::new();
    for (cell, with_kernel) in &kernel {
        let with_us = &ours[cell];
        let word = |result: &std::result::Result<(), String>| if result.is_ok() { "works" } else { "fails" };
        println!("{cell}  kernel: {}  Pinhole: {}", word(with_kernel), word(with_us));
        if with_kernel.is_err() || with_us.is_err() {
            differ.push(format!("{cell}: kernel: {with_kernel:?}, Pinhole: {with_us:?}"));
        }
    }
    assert!(differ.is_empty(), "{} cells do not work with both:\n{}", differ.len(), differ.join("\n\n"));
    assert_documented("matrix", &format!("All {} cells work with both.\n", kernel.len()));
}

// --- The dialogues -------------------------------------------------------------------------------------------------

/// Each case with each helper.
fn results() -> Result<Vec<(Case, [Outcome; 2])>> {
    let [kernel, ours] = std::thread::scope(|scope| {
        let threads = BOTH.map(|helper| scope.spawn(move || dialogues::hold_all(helper)));
        threads.map(|thread| thread.join().expect("no panic"))
    });
    Ok(dialogues::CASES.iter().copied().zip(kernel?.into_iter().zip(ours?).map(<[Outcome; 2]>::from)).collect())
}

#[test]
fn unusual_dialogues_end_as_documented() {
    let results = results().unwrap_or_else(|error| panic!("{error}"));
    let (mut differences, mut agreements) = (String::new(), String::new());
    for (case, [kernel, ours]) in &results {
        println!("{:60} kernel: {kernel:40} Pinhole: {ours}", case.name);
        if kernel == ours {
            assert_eq!(case.why, "", "{}: there is no difference to explain", case.name);
            agreements += &format!("| {} | {kernel} |\n", case.name);
        } else {
            assert_ne!(case.why, "", "{}: kernel: {kernel}, Pinhole: {ours}, and nobody says why", case.name);
            differences += &format!("| {} | {kernel} | {ours} | {} |\n", case.name, case.why);
        }
    }
    let differences = format!("| dialogue | kernel | Pinhole | why |\n|---|---|---|---|\n{differences}");
    let agreements = format!("| dialogue | both |\n|---|---|\n{agreements}");
    assert_documented("differences", &differences);
    assert_documented("agreements", &agreements);
}

// --- conntrackd ----------------------------------------------------------------------------------------------------

/// Whether a cell is beyond conntrackd, which supports neither 229 nor IPv6 addresses.
fn is_beyond_conntrackd(cell: &Cell) -> bool {
    cell.mode == Mode::Epsv || cell.setup.family == Family::V6
}

#[test]
#[ignore = "needs a kernel with nfnetlink_cthelper, and conntrackd: `make test-vm` runs it"]
fn real_software_works_with_conntrackd_as_documented() {
    // A client whose transfer will fail need not wait long.
    let timeout = |cell: &Cell| if is_beyond_conntrackd(cell) { lab::allow(Duration::from_secs(1)) } else { TIMEOUT };
    let (mut ways, mut wrong) = (BTreeMap::new(), Vec::new());
    for matrix::Outcome { cell, result, .. } in run_matrix(Helper::Conntrackd, timeout) {
        let said = result.as_ref().map_or_else(ToString::to_string, |()| "works".to_owned());
        println!("{cell}  conntrackd: {said}");
        if result.is_ok() == is_beyond_conntrackd(&cell) {
            wrong.push(format!("{cell}: {said}"));
        }
        ways.insert(format!("{}, {}", cell.mode, cell.setup.family), result.is_ok());
    }
    assert!(wrong.is_empty(), "{} cells are not as expected:\n{}", wrong.len(), wrong.join("\n\n"));
    let mut table = "| announcement | conntrackd |\n|---|---|\n".to_owned();
    let word = |works| if works { "works" } else { "no data connection" };
    table.extend(ways.iter().map(|(way, works)| format!("| {way} | {} |\n", word(*works))));
    assert_documented("conntrackd-matrix", &table);
}

#[test]
#[ignore = "needs a kernel with nfnetlink_cthelper, and conntrackd: `make test-vm` runs it"]
fn unusual_dialogues_end_with_conntrackd_as_documented() {
    let hold_all = |helper| dialogues::hold_all(helper).unwrap_or_else(|error| panic!("{error}"));
    let outcomes = hold_all(Helper::Conntrackd).into_iter().zip(hold_all(Helper::Pinhole));
    let mut table = "| dialogue | conntrackd | Pinhole |\n|---|---|---|\n".to_owned();
    for (case, (theirs, ours)) in dialogues::CASES.iter().zip(outcomes) {
        println!("{:60} conntrackd: {theirs:40} Pinhole: {ours}", case.name);
        if theirs != ours {
            table += &format!("| {} | {theirs} | {ours} |\n", case.name);
        }
    }
    assert_documented("conntrackd", &table);
}
