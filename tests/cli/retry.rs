//! `tests/retry`: which tests it runs a second time, and what it reports.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::program::{Folder, Ran};

/// The output and exit status of a test program, for the first and the second run. `@` is the module of its tests.
type Outcome = [&'static str; 2];

const UNLUCKY: Outcome = ["printf 'test @a ... ok\\ntest @b ... FAILED\\n'; exit 101", "printf 'test @b ... ok\\n'"];
const BROKEN: Outcome = [UNLUCKY[0], "printf 'test @b ... FAILED\\n'; exit 101"];
const THREE_UNLUCKY: Outcome = ["printf 'test %s ... FAILED\\n' @a @b @c; exit 101", "exit 0"];
const FOUR_UNLUCKY: Outcome = ["printf 'test %s ... FAILED\\n' @a @b @c @d; exit 101", "exit 0"];
const CRASHED: Outcome = ["printf 'test @a ... ok\\n'; exit 134", "exit 0"];

fn retry() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/retry"))
}

/// A run of `tests/retry` with a script in place of the test program of that name.
struct Retried {
    ran: Ran,
    /// How the program was called: the number of threads and the arguments, a line for each call.
    calls: String,
    /// The tests that passed only the second time.
    listed: String,
    /// The report after that run.
    report: Ran,
}

/// Runs a program that has the tests a and b in a module, or outside of all modules if that is empty.
fn run(name: &str, module: &str, outcome: Outcome) -> Retried {
    let prefix = if module.is_empty() { String::new() } else { format!("{module}::") };
    let [first, second] = outcome.map(|part| part.replace('@', &prefix));
    let script = format!("[ $(wc -l <\"$0\") = 1 ] || {{ {second}; exit; }}\n{first}\n");
    run_script(name, "", "1", &[&format!("{prefix}a"), &format!("{prefix}b")], &script)
}

/// Runs a script that lists these tests, and otherwise acts as a test program; or one module of it. So many modules run at
/// a time.
fn run_script(name: &str, module: &str, at_a_time: &str, tests: &[&str], script: &str) -> Retried {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let folder = Folder::new(&format!("retry-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let [calls, list] = ["calls", "list"].map(|name| folder.file(name, []));
    // A shell by that name: a script that was just written may still be open in another thread's child.
    let program = folder.0.join(format!("{name}-0123456789abcdef"));
    symlink("/bin/sh", &program).expect("a link in a folder of our own");
    let listing = format!("case \"$*\" in *--list*) printf '%s: test\\n' {}; exit;; esac\n", tests.join(" "));
    let script = format!("{listing}echo \"$RUST_TEST_THREADS: $*\" >>\"$0\"\n{script}");
    let mut command = retry();
    command.arg(format!("{}{module}", program.display())).arg("-c").arg(script).arg(&calls).arg("--color=never");
    command.env("RUST_TEST_THREADS", "7").env("PINHOLE_MODULES", at_a_time).env("PINHOLE_RETRIED", &list);
    let ran = command.output().expect("bash is installed").into();
    let read = |path| std::fs::read_to_string(path).expect("it was written");
    Retried { ran, calls: read(&calls), listed: read(&list), report: report(&list) }
}

fn report(list: &Path) -> Ran {
    retry().arg("--report").env("PINHOLE_RETRIED", list).output().expect("bash is installed").into()
}

#[test]
fn failed_live_test_is_retried_and_listed_if_it_passes() {
    let Retried { ran, calls, listed, report } = run("live", "nat_killed", UNLUCKY);
    let both = "7: --color=never --exact nat_killed::a nat_killed::b\n";
    assert_eq!((ran.status, calls), (Some(0), format!("{both}1: --color=never --exact nat_killed::b\n")));
    assert_eq!(listed, "retry: nat_killed::b passed only the second time\n");
    assert_eq!(ran.out, "test nat_killed::a ... ok\ntest nat_killed::b ... FAILED\ntest nat_killed::b ... ok\n");
    assert!(ran.err.ends_with(&listed), "{}", ran.err);
    assert_eq!((report.status, report.out, report.err.as_str()), (Some(0), listed, ""));
    assert_eq!(run("kernel", "netlink", UNLUCKY).ran.status, Some(0), "this module's source is a folder");
    assert_eq!(run("reference", "", UNLUCKY).ran.status, Some(0), "this program has no modules");
}

#[test]
fn test_that_fails_twice_fails_the_run() {
    let Retried { ran, calls, listed, .. } = run("live", "live", BROKEN);
    assert_eq!((ran.status, calls.lines().count(), listed.as_str()), (Some(101), 2, ""));
}

#[test]
fn guarantee_and_pure_tests_are_not_retried() {
    for (name, module) in [
        ("guarantees", "guarantee_narrowest_hole"),
        ("guarantees", "guarantee_any_segmentation"),
        ("guarantees", "attacks_live"),
        ("replay", "attacks"),
        ("replay", "attack_packets"),
        ("replay", "segmentation"),
        ("differential", ""),
        ("pinhole", "core"),
        ("lab", "wait"),
    ] {
        let Retried { ran, calls, listed, .. } = run(name, module, UNLUCKY);
        assert_eq!((ran.status, calls.lines().count(), listed.as_str()), (Some(101), 1, ""), "{name}");
    }
}

#[test]
fn crash_and_many_failures_are_not_retried() {
    for (module, outcome, status) in [("live", FOUR_UNLUCKY, 101), ("live", CRASHED, 134), ("abort", FOUR_UNLUCKY, 101)]
    {
        let Retried { ran, calls, listed, .. } = run("live", module, outcome);
        assert_eq!((ran.status, calls.lines().count(), listed.as_str()), (Some(status), 1, ""), "{module}");
    }
}

#[test]
fn each_module_runs_in_a_process_of_its_own() {
    let tests = ["live::a", "restart::b", "live::c"];
    let fails_in_live = "case \"$*\" in *live::*) exit 101;; esac";
    let Retried { ran, calls, .. } = run_script("live", "", "1", &tests, fails_in_live);
    let expected = "7: --color=never --exact live::a live::c\n7: --color=never --exact restart::b\n";
    assert_eq!((ran.status, calls.as_str()), (Some(101), expected), "the second one passes");
    let Retried { ran, calls, .. } = run_script("live", ":restart", "1", &tests, fails_in_live);
    assert_eq!((ran.status, calls.as_str()), (Some(0), "7: --color=never --exact restart::b\n"));
}

#[test]
fn modules_run_at_the_same_time() {
    // Each of them ends when the other one has begun.
    let waits = "for _ in $(seq 1000); do [ $(wc -l <\"$0\") -lt 2 ] || exit 0; sleep 0.01; done; exit 101";
    let run = |at_a_time| run_script("live", "", at_a_time, &["live::a", "restart::b"], waits).ran.status;
    assert_eq!(run("2"), Some(0));
    let one_by_one = "[ $(grep -c begins \"$0\") = $(grep -c ends \"$0\") ] || exit 101; echo begins >>\"$0\"; \
                      sleep 0.05; echo ends >>\"$0\"";
    let tests = ["live::a", "restart::b", "abort::c", "nat_killed::d"];
    assert_eq!(run_script("live", "", "1", &tests, one_by_one).ran.status, Some(0));
}

#[test]
fn report_fails_for_more_than_two_tests() {
    let Retried { ran, listed, report, .. } = run("live", "nat_edge_cases", THREE_UNLUCKY);
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
