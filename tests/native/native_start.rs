//! Which mechanism is chosen, and what the daemon, its status and `pinhole check` report if `native` does not work: the
//! reason and the remedy.
//!
//! Needs root and nft. Cases that only a kernel with helpers in userspace can refuse are tested on such a kernel.

use std::path::Path;
use std::process::Command as Plain;
use std::time::Duration;

use crate::daemon::{Daemon, PROGRAM, TIMEOUT, new_folder, write_policy};
use crate::helper_list::{machine, wait_for_no_helper};
use lab::{Command, Finished, Namespace};
use nix::sys::signal::Signal;
use pinhole::netfilter::netlink::{self, Helper};

/// The command before the program: none, or one that starts it.
type Front = [&'static str];

fn program(front: &Front, namespace: &Namespace, folder: &Path) -> Command {
    let mut words = front.iter().copied().chain([PROGRAM]);
    let mut command = namespace.command(words.next().expect("at least the program"));
    command.args(words).env("PINHOLE_SOCKET", folder.join("control.sock")).env("RUST_LOG", "info");
    command
}

fn run(front: &Front, namespace: &Namespace, folder: &Path, arguments: &[&str]) -> Finished {
    let policy = folder.join("policy.yaml");
    let mut command = program(front, namespace, folder);
    let finished = command.args(arguments).arg(policy).spawn().and_then(|child| child.wait(TIMEOUT));
    finished.unwrap_or_else(|error| panic!("{error}"))
}

/// The only line of a text that begins like that.
#[track_caller]
fn line<'a>(text: &'a str, begin: &str) -> &'a str {
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with(begin)).collect();
    let [line] = lines[..] else { panic!("{} lines begin with {begin:?} in {text}", lines.len()) };
    line
}

#[track_caller]
fn assert_holds(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

/// With `mechanism: native`, the daemon reports in one line why it cannot start, and leaves nothing; `check` reports
/// the same. With `auto` it uses `sets`, and all of them report the reason. Each report contains `parts`.
fn assert_told(front: &Front, parts: &[&str]) {
    let namespace = Namespace::new("alone").expect("a namespace");
    let folder = new_folder();
    write_policy(&folder, "mechanism: native\n");
    let refused = run(front, &namespace, &folder, &["run", "--policy"]);
    let said = refused.output();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    let complaint = line(&said, "pinhole: ");
    assert_holds(complaint, &["`mechanism: native` is not possible: "]);
    assert_holds(complaint, parts);
    assert!(!namespace.nft_output(&["list", "ruleset"]).expect("nft runs").contains("pinhole"), "something is left");
    let found = run(front, &namespace, &folder, &["check", "--policy"]);
    let problem = line(&found.output(), "problem  mechanism").to_owned();
    assert_eq!(found.status.code(), Some(1), "{}", found.output());
    assert_holds(&problem, &["native is not possible: ", "`mechanism: auto` falls back to sets"]);
    assert_holds(&problem, parts);

    write_policy(&folder, "mechanism: auto\n");
    let found = run(front, &namespace, &folder, &["check", "--policy"]);
    assert_eq!(found.status.code(), Some(0), "{}", found.output());
    let ok = line(&found.output(), "ok       mechanism").to_owned();
    assert_holds(&ok, &["sets, not native: "]);
    assert_holds(&ok, parts);
    let mut command = program(front, &namespace, &folder);
    let mut service =
        command.args(["run", "--policy"]).arg(folder.join("policy.yaml")).spawn().expect("it can be started");
    let stands = |service: &mut lab::Child| Ok(!service.is_running()? || service.output().contains("let in by"));
    lab::wait_until("the service", TIMEOUT, || stands(&mut service)).unwrap_or_else(|error| panic!("{error}"));
    let log = service.output();
    let logged = log.lines().find(|line| line.contains(" mechanism sets, not native: "));
    assert_holds(logged.unwrap_or_else(|| panic!("{log}")), parts);
    let status = program(&[], &namespace, &folder).arg("status").output(TIMEOUT).expect("it answers").output();
    assert_holds(line(&status, "mechanism sets, not native: "), parts);
    service.signal(Signal::SIGTERM).expect("it runs");
    assert!(service.wait(TIMEOUT).expect("it ends").status.success());
    std::fs::remove_dir_all(&folder).expect("it was made");
}

#[test]
fn auto_chooses_a_working_mechanism_and_gives_the_reason() {
    let guard = machine();
    let namespace = Namespace::new("alone").expect("a namespace");
    let daemon = Daemon::start(&namespace, "mechanism: auto\n").unwrap_or_else(|error| panic!("{error}"));
    let status = daemon.status();
    let (mechanism, because) = (status["mechanism"].as_str(), status["mechanism_reason"].as_str().unwrap_or_default());
    match guard {
        Some(_) => assert_eq!((mechanism, because), (Some("native"), "as this kernel can")),
        None => {
            assert_eq!(mechanism, Some("sets"));
            assert!(because.starts_with("not native: this kernel takes no helpers from programs"), "{because}");
        }
    }
    let line = format!("mechanism {}, {because}", mechanism.unwrap_or_default());
    daemon.wait_for_log(&line, 1);
    assert!(daemon.program(&["status"]).expect("it answers").output().contains(&line));
}

/// The kernel's own helper for FTP, loaded as long as this is kept.
struct OwnHelper;

impl OwnHelper {
    fn load() -> Self {
        assert!(modprobe(&["nf_conntrack_ftp"]), "this kernel has the module");
        Self
    }
}

impl Drop for OwnHelper {
    fn drop(&mut self) {
        modprobe(&["-r", "nf_conntrack_ftp"]);
    }
}

fn modprobe(arguments: &[&str]) -> bool {
    Plain::new("modprobe").args(arguments).status().is_ok_and(|status| status.success())
}

#[test]
fn loaded_nf_conntrack_ftp_is_reported() {
    let Some(_machine) = machine() else { return };
    wait_for_no_helper();
    let own = OwnHelper::load();
    assert_told(
        &[],
        &[
            "the kernel's own FTP helper is loaded",
            "take it out of your rules, then `modprobe -r nf_nat_ftp nf_conntrack_ftp`",
            "`blacklist nf_conntrack_ftp`",
        ],
    );
    // The advice works.
    drop(own);
    let namespace = Namespace::new("alone").expect("a namespace");
    let daemon = Daemon::start(&namespace, "mechanism: native\n").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(daemon.status()["mechanism"], "native");
}

#[test]
fn helper_of_another_program_is_reported_and_left_alone() {
    let Some(_machine) = machine() else { return };
    let mut helpers = wait_for_no_helper();
    let others = Helper {
        name: "ftp".into(),
        l3proto: netlink::Family::Ip,
        class: "somebody's".into(),
        max_expected: 1,
        timeout: Duration::from_secs(9),
        is_enabled: false,
    };
    helpers.add(&others).expect("the name is free");
    let name = "another program has a helper `ftp` already, of the class `somebody's`";
    assert_told(&[], &[name, "is it conntrackd?", "end that program, or take its helper out of its configuration"]);
    assert_eq!(helpers.list().expect("a list"), [others], "what is somebody else's stays as it is");
    helpers.remove("ftp", netlink::Family::Ip).expect("it was ours in the end");
}

/// Without the module as long as this is kept; the machine forgets it at the latest when it is switched off.
struct Hidden;

const HIDES: &str = "/run/modprobe.d/pinhole-test.conf";
const MODULE: &str = "nfnetlink_cthelper";

impl Hidden {
    fn new() -> Self {
        let folder = Path::new(HIDES).parent().expect("it lies in a folder");
        std::fs::create_dir_all(folder).expect("root may");
        std::fs::write(HIDES, format!("install {MODULE} /bin/false\n")).expect("root may");
        modprobe(&["-r", MODULE]);
        Self
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(HIDES);
    }
}

#[test]
fn missing_kernel_module_is_reported() {
    let guard = machine();
    let hidden = guard.as_ref().map(|_| {
        wait_for_no_helper();
        Hidden::new()
    });
    if hidden.is_some() && Path::new("/sys/module").join(MODULE).exists() {
        lab::kernel_lacks("modules, or has this one built in, so that it cannot be missing");
        return;
    }
    assert_told(
        &[],
        &["this kernel takes no helpers from programs", "nfnetlink_cthelper", "`modprobe nfnetlink_cthelper`"],
    );
}

#[test]
fn root_in_a_user_namespace_is_reported() {
    let Some(_machine) = machine() else { return };
    wait_for_no_helper();
    // Root of a user namespace, with a network of its own: all of nftables, and nothing that is the machine's.
    let container = ["unshare", "--user", "--map-root-user", "--net"];
    let host = "this process may not add a helper: that takes CAP_NET_ADMIN on the host itself, not in a container";
    assert_told(&container, &[host]);
}

#[test]
fn missing_capability_is_reported() {
    let namespace = Namespace::new("alone").expect("a namespace");
    let folder = new_folder();
    let front = ["setpriv", "--bounding-set=-net_admin"];
    for mechanism in ["native", "auto"] {
        write_policy(&folder, &format!("mechanism: {mechanism}\n"));
        let refused = run(&front, &namespace, &folder, &["run", "--policy"]);
        assert_eq!(refused.status.code(), Some(1), "{}", refused.output());
        assert_holds(line(&refused.output(), "pinhole: "), &["not permitted", "CAP_NET_ADMIN"]);
        let found = run(&front, &namespace, &folder, &["check", "--policy"]);
        assert_eq!(found.status.code(), Some(1), "{}", found.output());
        assert_holds(
            line(&found.output(), "problem  privileges"),
            &["without the capability CAP_NET_ADMIN", "grant it"],
        );
    }
    std::fs::remove_dir_all(&folder).expect("it was made");
}
