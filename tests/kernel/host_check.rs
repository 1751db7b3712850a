//! `pinhole check` on hosts of the lab: a namespace each, with rulesets as other programs and users load them.
//!
//! Needs root and nft. Hosts that the lab cannot build are tested in the unit tests of `doctor`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::daemon::{Daemon, PROGRAM, TIMEOUT};
use lab::{Finished, KERNEL_HELPER, Namespace, Shape, wait_until};
use pinhole::core::kernel::Mark;
use pinhole::core::policy::WhenDown;
use pinhole::netfilter::queue::Queue;
use pinhole::netfilter::table::own_rule;
use serde_json::Value;

/// A host with rules.
fn host(rules: &str) -> Namespace {
    let namespace = Namespace::new("host").unwrap_or_else(|error| panic!("{error}"));
    namespace.nft(rules).unwrap_or_else(|error| panic!("{error}"));
    namespace
}

/// Runs `pinhole check` there, with a policy if there is one, and sees that it changes nothing.
fn check(namespace: &Namespace, policy: Option<&str>, arguments: &[&str]) -> Finished {
    check_with_socket(namespace, policy, arguments, "/nonexistent/pinhole.sock".into())
}

fn check_with_socket(namespace: &Namespace, policy: Option<&str>, arguments: &[&str], socket: PathBuf) -> Finished {
    let ruleset = || namespace.nft_output(&["-s", "list", "ruleset"]).expect("nft lists");
    let before = ruleset();
    let mut command = namespace.command(PROGRAM);
    command.arg("check").args(arguments).env("PINHOLE_SOCKET", socket);
    if let Some(policy) = policy {
        command.args(["--policy", "-"]).input(policy.as_bytes());
    }
    let finished = command.spawn().and_then(|child| child.wait(TIMEOUT)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(ruleset(), before, "looking has changed the ruleset");
    finished
}

/// The lines that begin with a word, and the exit status.
fn lines(finished: &Finished, weight: &str) -> Vec<String> {
    assert!(finished.stderr.is_empty(), "{}", finished.output());
    finished.output().lines().filter(|line| line.starts_with(weight)).map(str::to_owned).collect()
}

/// The only error that was found.
fn problem(finished: &Finished) -> String {
    assert_eq!(finished.status.code(), Some(1), "{}", finished.output());
    assert!(finished.output().contains("`pinhole run` would not work: 1 problem, "), "{}", finished.output());
    let problems = lines(finished, "problem");
    assert_eq!(problems.len(), 1, "{}", finished.output());
    problems.concat()
}

#[test]
fn correct_host_is_reported_as_ready() {
    let found = check(&host(""), None, &[]);
    assert_eq!(found.status.code(), Some(0), "{}", found.output());
    for about in ["privileges", "nft", "nf_tables", "queueing rule", "ruleset", "queues", "conntrack", "queue 0"] {
        let begin = format!("ok       {about} ");
        assert!(found.output().lines().any(|line| line.starts_with(&begin)), "{about} is not in\n{}", found.output());
    }
    assert!(
        found.output().ends_with("This host is ready for `pinhole run`: 0 problems, 0 warnings.\n"),
        "{}",
        found.output()
    );
}

/// With `native`, filters that accept `related` admit data connections.
const SETS: Option<&str> = Some("mechanism: sets\n");

#[test]
fn filter_without_an_accept_rule_is_a_warning() {
    let namespace = host(Shape::Gateway.default_drop());
    namespace.forward().expect("it forwards");
    let found = check(&namespace, SETS, &[]);
    assert_eq!(found.status.code(), Some(0), "{}", found.output());
    let warning = lines(&found, "warning").concat();
    let rule = &*own_rule(Mark::default());
    for part in ["chain inet filter forward", "its policy is drop", rule, "`admit: [inet filter forward]`"] {
        assert!(warning.contains(part), "{part} is not in {warning}");
    }
    // Either remedy helps: the entry,
    let named = check(&namespace, Some("mechanism: sets\nadmit: [inet filter forward]\n"), &[]);
    assert_eq!(lines(&named, "warning"), [""; 0], "{}", named.output());
    // and the rule as it is printed.
    namespace.nft(&format!("insert rule inet filter forward {rule}")).expect("nft takes the advised rule");
    let added = check(&namespace, SETS, &[]);
    assert_eq!(lines(&added, "warning"), [""; 0], "{}", added.output());
    assert!(added.output().contains("accepts data connections by their mark"), "{}", added.output());
}

#[test]
fn common_rulesets_are_understood() {
    let rules = "table inet fw {
        ct helper sip { type \"sip\" protocol udp; }
        set known { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 } }
        set banned { type ipv4_addr; flags timeout; elements = { 192.0.2.1 timeout 1h } }
        map hosts { type ipv4_addr : verdict; elements = { 192.0.2.2 : drop } }
        chain services { tcp dport { 21, 22 } accept; ip saddr @known udp dport 53 accept; }
        chain incoming {
            type filter hook input priority filter
            ct state vmap { invalid : drop, established : accept, related : accept }
            iif lo accept
            ip saddr vmap @hosts
            ip saddr @banned drop
            meta hour \"10:00\"-\"12:00\" ct bytes > 5000000000 drop
            udp dport 5060 ct helper set \"sip\"
            meta l4proto { icmp, ipv6-icmp } limit rate 10/second accept
            jump services
            MARK
            log prefix \"dropped \" reject with icmpx admin-prohibited
        }
    }";
    let without = check(&host(&rules.replace("MARK", "")), SETS, &[]);
    let warning = lines(&without, "warning").concat();
    assert!(warning.contains("chain inet fw incoming") && warning.contains("its rule with handle"), "{warning}");
    let with = check(&host(&rules.replace("MARK", "ct state new,related ct mark & 0x10000000 != 0 accept")), SETS, &[]);
    assert_eq!(lines(&with, "warning"), [""; 0], "{}", with.output());
}

#[test]
fn missing_admit_chain_is_an_error() {
    let found = check(&host(Shape::ServerHost.default_drop()), Some("admit: [inet filter forward]\n"), &[]);
    let problem = problem(&found);
    assert!(problem.contains("admit: inet filter forward") && problem.contains("inet filter input"), "{problem}");
}

#[test]
fn check_reports_risks_of_the_policy() {
    let found = check(&host(""), Some("mechanism: sets\ndefaults: { tls: range 1024-65535 }\n"), &[]);
    assert_eq!(found.status.code(), Some(0), "{}", found.output());
    let warning = lines(&found, "warning").concat();
    assert!(warning.contains("tls: range") && warning.contains("passive range"), "{warning}");
}

#[test]
fn table_of_another_program_is_an_error() {
    let found = check(&host("table inet pinhole { chain theirs { accept; }; }"), None, &[]);
    let problem = problem(&found);
    assert!(problem.contains("`theirs`") && problem.contains("nft delete table inet pinhole"), "{problem}");
}

#[test]
fn queue_with_another_reader_is_an_error() {
    let namespace = host("");
    let _reader = namespace.run(|| Queue::open(0, WhenDown::Open)).expect("a thread").expect("the queue is free");
    let found = check(&namespace, None, &[]);
    let problem = problem(&found);
    assert!(problem.contains("queue 0") && problem.contains("`capture: { queue: 1 }`"), "{problem}");
    // The advice helps.
    let elsewhere = check(&namespace, Some("capture: { queue: 1 }\n"), &[]);
    assert_eq!(elsewhere.status.code(), Some(0), "{}", elsewhere.output());
}

#[test]
fn running_daemon_is_reported_and_is_no_error() {
    let namespace = host(Shape::ServerHost.default_drop());
    let daemon = Daemon::start(&namespace, "admit: [inet filter input, inet filter output]\n").expect("it starts");
    let policy = Some("admit: [inet filter input, inet filter output]\n");
    let found = check_with_socket(&namespace, policy, &[], daemon.folder.join("control.sock"));
    assert_eq!(found.status.code(), Some(0), "{}", found.output());
    assert!(lines(&found, "ok").iter().any(|line| line.contains("daemon") && line.contains("running, answers at")));
    assert_eq!(lines(&found, "warning"), [""; 0], "{}", found.output());
}

#[test]
fn ftp_helper_of_the_kernel_is_a_warning() {
    let namespace = host("");
    // While another test finds out whether the kernel takes a helper `ftp`, it does not load its own.
    let load = || Ok(namespace.nft(KERNEL_HELPER).is_ok());
    wait_until("the kernel's helper to be there", TIMEOUT, load).unwrap_or_else(|error| panic!("{error}"));
    let found = check(&namespace, None, &[]);
    assert_eq!(found.status.code(), Some(0), "{}", found.output());
    assert!(lines(&found, "warning").concat().contains("kernel's FTP helper"), "{}", found.output());
}

#[test]
fn findings_are_printed_as_json() {
    let found = check(&host("table inet pinhole { chain theirs { accept; }; }"), None, &["--json"]);
    assert_eq!(found.status.code(), Some(1));
    let findings: Vec<Value> = serde_json::from_slice(&found.stdout).expect("a list");
    let problems: Vec<&Value> = findings.iter().filter(|finding| finding["severity"] == "problem").collect();
    assert_eq!(problems.len(), 1, "{}", found.output());
    assert_eq!(problems[0]["check"], "table inet pinhole");
    assert!(problems[0]["message"].is_string() && problems[0]["advice"].is_string());
}

#[test]
fn check_without_root_says_what_is_missing() {
    // The program may lie where only root can go.
    let folder = std::env::temp_dir().join(format!("pinhole-check-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder can be made");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("it can be opened to all");
    let program = folder.join("pinhole");
    // Copied by another process: programs that tests start meanwhile would inherit the file, open for writing, and it
    // could not be executed.
    let copied = Command::new("cp").arg(PROGRAM).arg(&program).status();
    assert!(copied.is_ok_and(|status| status.success()), "it can be copied");
    let ran = Command::new(&program).arg("check").current_dir("/").uid(65534).gid(65534).output();
    let demo = Command::new(&program).arg("demo").current_dir("/").uid(65534).gid(65534).output();
    fs::remove_dir_all(&folder).expect("the folder can be removed");
    let ran = ran.expect("it runs");
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert_eq!(ran.status.code(), Some(1), "{said}");
    assert!(said.contains("problem  privileges") && said.contains("not root") && said.contains("sudo"), "{said}");
    let demo = demo.expect("it runs");
    assert_eq!(demo.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&demo.stderr).contains("needs root"), "{demo:?}");
}
