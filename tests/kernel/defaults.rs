//! Without arguments and variables: which policy `run` and `check` take, and where the control socket is.
//!
//! Needs root. The programs run with a `/run` and an `/etc` of their own.

use std::path::Path;

use lab::{Child, Command, Finished, Namespace, wait_until};
use nix::sys::signal::Signal;

use crate::daemon::{PROGRAM, TIMEOUT, new_folder};

/// A command of the program, with this folder as `/run`, and as `/etc/pinhole/policy.yaml` the folder's `policy.yaml`.
fn program(namespace: &Namespace, folder: &Path, arguments: &str) -> Command {
    let steps = format!(
        "mount -t tmpfs etc /etc; mkdir /etc/pinhole
        if test -e policy.yaml; then cp policy.yaml /etc/pinhole/; fi
        mount --bind . /run; exec {PROGRAM} {arguments}"
    );
    let mut command = namespace.command("unshare");
    command.args(["--mount", "sh", "-euc", &steps]).current_dir(folder).env("RUST_LOG", "info");
    command
}

fn run(namespace: &Namespace, folder: &Path, arguments: &str) -> Finished {
    let child = program(namespace, folder, arguments).spawn();
    child.and_then(|child| child.wait(TIMEOUT)).unwrap_or_else(|error| panic!("{arguments}: {error}"))
}

/// Starts the daemon, and waits until `pinhole status` in its namespace finds it.
fn start(namespace: &Namespace, folder: &Path) -> Child {
    let mut child = program(namespace, folder, "run").spawn().expect("it starts");
    wait_until("the daemon answers", TIMEOUT, || {
        assert!(child.is_running()?, "{}", child.output());
        Ok(run(namespace, folder, "status").status.success())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", child.output()));
    child
}

fn stop(mut child: Child) {
    child.signal(Signal::SIGTERM).expect("it can be ended");
    wait_until("the daemon ends", TIMEOUT, || Ok(!child.is_running()?)).expect("it ends");
}

#[test]
fn daemons_of_two_namespaces_have_sockets_of_their_own() {
    let [one, other] = ["one", "other"].map(|role| Namespace::new(role).unwrap_or_else(|error| panic!("{error}")));
    let folder = new_folder();
    let first = start(&one, &folder);
    let unanswered = run(&other, &folder, "status");
    assert!(unanswered.output().contains("no daemon answers at /run/pinhole/control-"), "{}", unanswered.output());
    let second = start(&other, &folder);
    let twice = run(&one, &folder, "run");
    assert!(twice.output().contains("another pinhole is running"), "{}", twice.output());
    stop(first);
    assert!(!run(&one, &folder, "status").status.success(), "the daemon of the namespace has ended");
    assert!(run(&other, &folder, "status").status.success(), "that of the other has not");
    stop(second);
    let left = std::fs::read_dir(folder.join("pinhole")).expect("the folder of the sockets").count();
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
    assert_eq!(left, 0, "sockets are left");
}

#[test]
fn run_and_check_take_the_policy_of_the_host() {
    let namespace = Namespace::new("host").unwrap_or_else(|error| panic!("{error}"));
    let folder = new_folder();
    let policy = |text| std::fs::write(folder.join("policy.yaml"), text).expect("a policy can be written");
    let said_by_run = || {
        let child = start(&namespace, &folder);
        let said = child.output();
        stop(child);
        said
    };
    assert!(said_by_run().contains("the embedded policy, as there is no /etc/pinhole/policy.yaml"));
    let embedded = run(&namespace, &folder, "check");
    assert!(
        embedded.output().contains("the embedded one, as there is no /etc/pinhole/policy.yaml"),
        "{}",
        embedded.output()
    );

    policy("mechanism: sets\ncontrol_ports: [2121]\n");
    let said = said_by_run();
    for line in ["policy /etc/pinhole/policy.yaml", "control ports 2121;"] {
        assert!(said.contains(line), "{line} is not in {said}");
    }
    let checked = run(&namespace, &folder, "check");
    assert_eq!(checked.status.code(), Some(0), "{}", checked.output());
    let is_named = |line: &str| line.starts_with("ok       policy ") && line.ends_with("/etc/pinhole/policy.yaml");
    assert!(checked.output().lines().any(is_named), "{}", checked.output());
    let named = run(&namespace, &folder, "check --policy /etc/pinhole/policy.yaml");
    assert_eq!(named.output(), checked.output());

    policy("control_ports: [0]\n");
    for command in ["run", "check", "rules"] {
        assert_eq!(run(&namespace, &folder, command).status.code(), Some(2), "`{command}` takes a wrong policy");
    }
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
}
