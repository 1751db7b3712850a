//! The matrix behind NAT: every topology with the rules of `deploy/nftables/` as users copy them. Contents are
//! compared, both ends are recorded.
//!
//! Needs root, and the programs that `tests/setup test` fetches. Without them it fails, and says so.

#![allow(clippy::print_stdout, reason = "a line for each cell of the matrix is what a reader of a failure wants")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::daemon::TIMEOUT;
use crate::document::assert_documented;
use crate::helper::Helper;
use lab::matrix::{self, Outcome};
use lab::nat::{Gateway, Nat, NatCell, NatSetup, RunningNatSetup};
use lab::{ClientKind, Error, Family, Result, ServerKind, Task};
use pinhole::core::ftp::Mode;

/// How long a client waits for a transfer that should fail.
const BRIEF: Duration = Duration::from_secs(2);

/// Loads the rules, starts the helper on each gateway, and runs the cells.
fn run_matrix(
    helper: Helper,
    setups: &[NatSetup],
    each: impl Fn(&RunningNatSetup, &NatCell) -> Result<()> + Sync,
) -> Vec<Outcome<NatCell>> {
    let help = |gateway: &Gateway| {
        gateway.namespace.nft(gateway.rules.text)?;
        helper.start(&gateway.namespace, &gateway.rules.policy())
    };
    let prepare = |running: &RunningNatSetup| running.topology.gateways.iter().map(help).collect::<Result<Vec<_>>>();
    let begun = Instant::now();
    // Without a helper they only wait, and delay no other test.
    let at_once = if helper == Helper::Nobody { 36 } else { 4 };
    let mut outcomes = matrix::run_cells(setups, at_once, prepare, each).unwrap_or_else(|error| panic!("{error}"));
    outcomes.sort_by_key(|outcome| outcome.cell.to_string());
    for Outcome { cell, result, took } in &outcomes {
        let how = if result.is_ok() { "works" } else { "fails" };
        println!("{helper:7}  {cell}  {how}  {:4} ms", took.as_millis());
    }
    println!("{helper}: {} cells in {:.1} s", outcomes.len(), begun.elapsed().as_secs_f64());
    outcomes
}

/// A cell, and the recordings of both ends. The recordings of a failed cell are kept.
fn transfer_recorded(running: &RunningNatSetup, cell: &NatCell, timeout: Duration) -> Result<()> {
    let recorder = running.topology.record_packets()?;
    running.transfer(cell.client, cell.mode, timeout)?;
    let report = recorder.end()?;
    let problems = report.problems();
    if problems.is_empty() {
        return Ok(());
    }
    let name: String = cell.to_string().split_whitespace().collect::<Vec<_>>().join("-");
    report.write(Path::new(env!("CARGO_TARGET_TMPDIR")), &name)?;
    Err(Error::Dialogue { expected: "nothing odd at either end".to_owned(), got: problems.join("\n") })
}

/// The reason why the kernel's helper fails in a cell, if it does.
fn known_failure_of_the_kernel_helper(cell: &NatCell) -> Option<&'static str> {
    let NatSetup { nat, server, family } = cell.setup;
    if matches!((nat, cell.mode), (Nat::ServerKnows, Mode::Pasv) | (Nat::ClientKnows, Mode::Port | Mode::Eprt)) {
        return Some(
            "A host that announces its outside address itself: the kernel accepts only the sender's own address, as the \
             gateway sees it, unless the module was loaded with `loose=1`.",
        );
    }
    // lftp tries EPSV when EPRT is refused.
    let compares_texts = (server, family, cell.mode) == (ServerKind::Pyftpdlib, Family::V6, Mode::Eprt);
    let why = "EPRT with an IPv6 address: the kernel writes it without abbreviating zeros, and pyftpdlib compares it with \
               the client's as text.";
    (compares_texts && cell.client != ClientKind::Lftp).then_some(why)
}

/// All servers and clients where one end is translated, and fewer where both are.
fn setups() -> Vec<NatSetup> {
    let plain = [Nat::Masquerade, Nat::SnatPool, Nat::Dnat, Nat::DnatOtherPort];
    let others: Vec<_> = Nat::ALL.into_iter().filter(|nat| !plain.contains(nat)).collect();
    let mut setups = NatSetup::all(&plain, &ServerKind::ALL);
    setups.extend(NatSetup::all(&others, &[ServerKind::Vsftpd, ServerKind::Pyftpdlib]));
    setups
}

#[test]
fn the_kernel_helper_fails_only_in_known_cells() {
    let each = |running: &RunningNatSetup, cell: &NatCell| {
        let timeout = if known_failure_of_the_kernel_helper(cell).is_some() { BRIEF } else { TIMEOUT };
        transfer_recorded(running, cell, timeout)
    };
    let (mut wrong, mut known) = (Vec::new(), BTreeMap::new());
    let outcomes = run_matrix(Helper::Kernel, &setups(), each);
    for Outcome { cell, result, .. } in &outcomes {
        match (result, known_failure_of_the_kernel_helper(cell)) {
            (Err(error), None) => wrong.push(format!("{cell}: {error}")),
            (Ok(()), Some(reason)) => wrong.push(format!("{cell}: works, although {reason}")),
            (Err(_), Some(reason)) => *known.entry(reason).or_insert(0) += 1,
            (Ok(()), None) => {}
        }
    }
    assert!(wrong.is_empty(), "{} cells are not as expected:\n{}", wrong.len(), wrong.join("\n\n"));
    let mut table = format!(
        "Of {} cells the kernel's helper fails in {}.\n\n| cells | why |\n|---|---|\n",
        outcomes.len(),
        known.values().sum::<usize>()
    );
    table.extend(known.iter().map(|(reason, cells)| format!("| {cells} | {reason} |\n")));
    assert_documented("translation", &table);
}

#[test]
fn without_helper_logins_pass_and_data_does_not() {
    let is_logged_in = |error: &Error| error.output().contains("230");
    let each = |running: &RunningNatSetup, cell: &NatCell| {
        // Where the machine is slow, most have logged in after that time, and need not try again.
        let mut timeout = lab::allow(BRIEF);
        loop {
            let result = cell.client.visit(&running.visit(cell.mode, timeout), &[Task::List]).map(drop);
            // On a busy machine the login itself may take longer: that is no answer yet.
            match &result {
                Err(error) if !is_logged_in(error) && timeout < TIMEOUT => timeout *= 2,
                _ => return result,
            }
        }
    };
    for Outcome { cell, result, .. } in
        &run_matrix(Helper::Nobody, &NatSetup::all(&Nat::ALL, &[ServerKind::Vsftpd]), each)
    {
        let error = result.as_ref().expect_err(&format!("{cell}: the listing came through"));
        assert!(is_logged_in(error), "{cell}: failed before it was logged in: {error}");
    }
}

fn assert_lets_through(helper: Helper, setups: &[NatSetup]) {
    let outcomes = run_matrix(helper, setups, |running, cell| transfer_recorded(running, cell, TIMEOUT));
    matrix::assert_all_work(&outcomes);
}

#[test]
fn pinhole_passes_every_cell() {
    assert_lets_through(Helper::Pinhole, &setups());
}
