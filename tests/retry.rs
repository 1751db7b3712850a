//! `tests/retry`: which tests it runs a second time, and what it reports.

#[path = "support/program.rs"]
mod program;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use program::{Folder, Ran};

/// What a test program prints and how it ends: the first time, and the second time.
type Outcome = [&'static str; 2];

const UNLUCKY: Outcome = ["printf 'test a ... ok\\ntest b ... FAILED\\n'; exit 101", "printf 'test b ... ok\\n'"];
const BROKEN: Outcome = [UNLUCKY[0], "printf 'test b ... FAILED\\n'; exit 101"];
const THREE_UNLUCKY: Outcome = ["printf 'test %s ... FAILED\\n' a b c; exit 101", "exit 0"];
const FOUR_UNLUCKY: Outcome = ["printf 'test %s ... FAILED\\n' a b c d; exit 101", "exit 0"];
const CRASHED: Outcome = ["printf 'test a ... ok\\n'; exit 134", "exit 0"];

fn retry() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/retry"))
}

/// What `tests/retry` did with a program that behaves like the test program of that name.
struct Retried {
    ran: Ran,
    /// How the program was called: the number of threads and the arguments, a line for each call.
    calls: String,
    /// The tests that passed only the second time.
    listed: String,
    /// What it reports then.
    report: Ran,
}

fn run(name: &str, [first, second]: Outcome) -> Retried {
    let folder = Folder::new(&format!("retry-{name}-{}", first.len() + second.len()));
    let [calls, list] = ["calls", "list"].map(|name| folder.file(name, []));
    // A shell by that name: a script that was just written may still be open in another thread's child.
    let program = folder.0.join(format!("{name}-0123456789abcdef"));
    symlink("/bin/sh", &program).expect("a link in a folder of our own");
    let script = "echo \"$RUST_TEST_THREADS: $*\" >>\"$0\"\n[ $(wc -l <\"$0\") = 1 ] || { second; exit; }\nfirst\n";
    let script = script.replace("second", second).replace("first", first);
    let mut command = retry();
    command.arg(program).arg("-c").arg(script).arg(&calls).arg("--color=never");
    command.env("RUST_TEST_THREADS", "7").env("PINHOLE_RETRIED", &list);
    let ran = command.output().expect("bash is installed").into();
    let read = |path| std::fs::read_to_string(path).expect("it was written");
    Retried { ran, calls: read(&calls), listed: read(&list), report: report(&list) }
}

fn report(list: &Path) -> Ran {
    retry().arg("--report").env("PINHOLE_RETRIED", list).output().expect("bash is installed").into()
}

#[test]
fn failed_live_test_is_run_once_more_alone_and_listed_if_it_passes() {
    let Retried { ran, calls, listed, report } = run("live", UNLUCKY);
    assert_eq!((ran.status, calls.as_str()), (Some(0), "7: --color=never\n1: --color=never --exact b\n"));
    assert_eq!(listed, "retry: live: b passed only the second time\n");
    assert_eq!(ran.out, "test a ... ok\ntest b ... FAILED\ntest b ... ok\n");
    assert!(ran.err.ends_with(&listed), "{}", ran.err);
    assert_eq!((report.status, report.out, report.err.as_str()), (Some(0), listed, ""));
    assert_eq!(run("netlink", UNLUCKY).ran.status, Some(0), "this program's source is a folder");
}

#[test]
fn test_that_fails_twice_has_failed() {
    let Retried { ran, calls, listed, .. } = run("live", BROKEN);
    assert_eq!((ran.status, calls.lines().count(), listed.as_str()), (Some(101), 2, ""));
}

#[test]
fn guarantee_and_pure_test_are_never_run_again() {
    for name in [
        "guarantee_narrowest_hole",
        "guarantee_any_segmentation",
        "attacks_live",
        "attacks",
        "attack_packets",
        "differential",
        "segmentation",
        "pinhole",
    ] {
        let Retried { ran, calls, listed, .. } = run(name, UNLUCKY);
        assert_eq!((ran.status, calls.lines().count(), listed.as_str()), (Some(101), 1, ""), "{name}");
    }
}

#[test]
fn crash_and_many_failures_are_not_run_again() {
    for (name, outcome, status) in [("live", FOUR_UNLUCKY, 101), ("live", CRASHED, 134), ("netlink", FOUR_UNLUCKY, 101)]
    {
        let Retried { ran, calls, listed, .. } = run(name, outcome);
        assert_eq!((ran.status, calls.lines().count(), listed.as_str()), (Some(status), 1, ""), "{name}");
    }
}

#[test]
fn report_fails_for_more_than_two_tests() {
    let Retried { ran, listed, report, .. } = run("nat_edge_cases", THREE_UNLUCKY);
    assert_eq!((ran.status, listed.lines().count()), (Some(0), 3));
    assert_eq!((report.status, report.out), (Some(1), listed));
    assert_eq!(report.err, "retry: more than 2 tests passed only the second time: find out why\n");
}

#[test]
fn report_without_a_list_is_silent() {
    let folder = Folder::new("retry-without-a-list");
    let ran = report(&folder.0.join("none"));
    assert_eq!((ran.status, ran.out.as_str(), ran.err.as_str()), (Some(0), "", ""));
}
