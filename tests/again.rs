//! `tests/again`: which tests are run a second time, and what is said of them.

#[path = "support/program.rs"]
mod program;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use program::{Folder, Ran};

/// What a test program says and how it ends: the first time, and then.
const UNLUCKY: [&str; 2] = ["printf 'test a ... ok\\ntest b ... FAILED\\n'; exit 101", "printf 'test b ... ok\\n'"];
const BROKEN: [&str; 2] = [UNLUCKY[0], "printf 'test b ... FAILED\\n'; exit 101"];
const RUINED: [&str; 2] = ["printf 'test %s ... FAILED\\n' a b c d; exit 101", "exit 0"];
const CRASHED: [&str; 2] = ["printf 'test a ... ok\\n'; exit 134", "exit 0"];

/// Runs something that behaves like the test program of that name, and tells what was asked of it.
fn run(name: &str, [first, then]: [&str; 2]) -> (Ran, String, String) {
    let folder = Folder::new(&format!("again-{name}-{}", first.len() + then.len()));
    let [asked, named] = ["asked", "named"].map(|name| folder.file(name, []));
    // A shell by that name: a script that was just written may still be open in another thread's child.
    let program = folder.0.join(format!("{name}-0123456789abcdef"));
    symlink("/bin/sh", &program).expect("a link in a folder of our own");
    let script = "echo \"$RUST_TEST_THREADS: $*\" >>\"$0\"\n[ $(wc -l <\"$0\") = 1 ] || { then; exit; }\nfirst\n";
    let script = script.replace("then", then).replace("first", first);
    let again = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/again");
    let mut command = Command::new(again);
    command.arg(program).arg("-c").arg(script).arg(&asked).arg("--color=never");
    let ran =
        command.env("RUST_TEST_THREADS", "7").env("PINHOLE_AGAIN", &named).output().expect("bash is there").into();
    let read = |path| std::fs::read_to_string(path).expect("it was written");
    (ran, read(asked), read(named))
}

#[test]
fn a_live_test_that_fails_is_run_once_more_alone_and_named_if_it_passes() {
    let (ran, asked, named) = run("live", UNLUCKY);
    assert_eq!((ran.status, asked.as_str()), (Some(0), "7: --color=never\n1: --color=never --exact b\n"));
    assert_eq!(named, "again: live: failed at first, and passed alone: b\n");
    assert_eq!(ran.out, "test a ... ok\ntest b ... FAILED\ntest b ... ok\n");
    assert!(ran.err.ends_with(&named), "{}", ran.err);
}

#[test]
fn who_fails_twice_has_failed() {
    let (ran, asked, named) = run("live", BROKEN);
    assert_eq!((ran.status, asked.lines().count(), named.as_str()), (Some(101), 2, ""));
}

#[test]
fn what_asks_no_kernel_and_what_fails_altogether_is_not_run_again() {
    for (name, tests, status) in [
        ("segmentation", UNLUCKY, 101),
        ("pinhole", UNLUCKY, 101),
        ("live", RUINED, 101),
        ("live", CRASHED, 134),
        ("netlink", RUINED, 101),
    ] {
        let (ran, asked, named) = run(name, tests);
        assert_eq!((ran.status, asked.lines().count(), named.as_str()), (Some(status), 1, ""), "{name}");
    }
    assert_eq!(run("netlink", UNLUCKY).0.status, Some(0), "that one is a folder");
}
