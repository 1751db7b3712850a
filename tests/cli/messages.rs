//! What the daemon prints: to the journal, if it cannot start, and if it cannot continue.
//!
//! Needs root and nft.

use crate::daemon;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::daemon::{Daemon, PROGRAM, TIMEOUT};
use lab::{Finished, Namespace};
use nix::sys::signal::Signal;
use rustix::net::{AddressFamily, SendFlags, netlink, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

fn namespace() -> Namespace {
    Namespace::new("host").unwrap_or_else(|error| panic!("{error}"))
}

/// Runs the program in a folder of its own, with a socket of its own.
fn run(namespace: &Namespace, before: &[&str], arguments: &[&str]) -> Finished {
    let folder = daemon::new_folder();
    // A copy, as other users may not enter the folder of the build.
    let program = folder.join("pinhole");
    // Copied by another process: programs that tests start meanwhile would inherit the file, open for writing, and it
    // could not be executed.
    let copied = Command::new("cp").arg(PROGRAM).arg(&program).status();
    assert!(copied.is_ok_and(|status| status.success()), "it can be copied");
    let program = program.display().to_string();
    let all = [before, &[&*program], arguments].concat();
    let mut command = namespace.command(all[0]);
    command.args(&all[1..]).env("PINHOLE_SOCKET", folder.join("control.sock"));
    let finished = command.spawn().and_then(|child| child.wait(TIMEOUT));
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
    finished.unwrap_or_else(|error| panic!("{error}"))
}

/// The only line of its output, without the time.
#[track_caller]
fn one_line(finished: &Finished) -> String {
    assert_eq!(finished.status.code(), Some(1), "{}", finished.output());
    let said = String::from_utf8_lossy(&finished.stderr).into_owned();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

// --- The journal ---------------------------------------------------------------------------------------------------

/// Runs `pinhole run` with that policy as systemd would, with its standard error as the journal, and returns its lines.
fn journal_of(policy: &str, is_told: bool, until: Option<&str>) -> Vec<String> {
    let namespace = namespace();
    let folder = daemon::new_folder();
    daemon::write_policy(&folder, policy);
    let journal = folder.join("journal");
    let stderr = File::create(&journal).expect("the folder is ours");
    let about = stderr.metadata().expect("it is open");
    let inode = if is_told { about.ino() } else { about.ino() + 1 };
    let stream = format!("{}:{inode}", about.dev());
    let spawned = namespace.run(|| {
        let mut command = Command::new(PROGRAM);
        command.args(["run", "--policy"]).arg(folder.join("policy.yaml")).env_remove("RUST_LOG");
        command.env("PINHOLE_SOCKET", folder.join("control.sock")).env("JOURNAL_STREAM", &stream);
        command.stdin(Stdio::null()).stderr(stderr).spawn()
    });
    let mut child = spawned.expect("root may enter").expect("it starts");
    let read = || std::fs::read_to_string(&journal).unwrap_or_default();
    if let Some(until) = until {
        lab::wait_until(until, TIMEOUT, || Ok(read().contains(until))).unwrap_or_else(|error| panic!("{error}"));
        let id = nix::unistd::Pid::from_raw(child.id().try_into().expect("a process"));
        nix::sys::signal::kill(id, Signal::SIGTERM).expect("it runs");
    }
    child.wait().expect("it ends");
    let lines = read().lines().map(str::to_owned).collect();
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
    lines
}

#[test]
fn journal_lines_begin_with_their_level() {
    let started = "announced data connections";
    let lines = journal_of("{}", true, Some(started));
    assert!(lines.iter().all(|line| line.starts_with("<6>")), "{lines:#?}");
    assert!(lines[1].starts_with("<6>control ports 21"), "{lines:#?}");
    // If standard error is not the journal, the lines have no level in front, even if systemd started the program.
    let lines = journal_of("{}", false, Some(started));
    assert!(lines.iter().all(|line| line.contains(" INFO ") && !line.contains('<')), "{lines:#?}");
}

#[test]
fn each_policy_error_is_one_journal_record() {
    let wrong = "defaults:\n  data_ports: 50100-50000\n  time_out: 30s\n";
    let lines = journal_of(wrong, true, None);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    let range = "policy.yaml:2:15: error: data_ports: the range is empty";
    assert!(lines[0].starts_with("<3>") && lines[0].contains(range), "{lines:#?}");
    assert!(lines[1].starts_with("<3>") && lines[1].contains("policy.yaml:3:3: error: unknown key time_out"));
    // An error found later is one record, too.
    let lines = journal_of("admit: [inet nowhere forward]", true, None);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].starts_with("<3>there is no chain `inet nowhere forward`"), "{lines:#?}");
}

#[test]
fn refused_reload_is_one_log_line_and_a_full_answer() {
    let daemon = Daemon::start(&namespace(), "{}").unwrap_or_else(|error| panic!("{error}"));
    daemon.write_policy("defaults:\n  data_ports: 50100-50000\n  time_out: 30s\n");
    let answered = daemon.program(&["reload"]).expect("it answers");
    assert_eq!(answered.status.code(), Some(2));
    assert!(
        answered.output().contains("^^^^^^^^^^^") && answered.output().contains("2 errors"),
        "{}",
        answered.output()
    );
    daemon.wait_for_log("the old policy stays in force", 1);
    let said = daemon.child.output();
    let line = said.lines().find(|line| line.contains("the old policy stays in force")).expect("it is told");
    assert!(line.contains("the range is empty") && line.contains("unknown key time_out"), "{line}");
    assert!(!said.contains("^^^"), "{said}");
}

// --- Where it cannot run -------------------------------------------------------------------------------------------

#[test]
fn missing_capability_is_not_reported_as_a_taken_queue() {
    let said = one_line(&run(&namespace(), &["setpriv", "--bounding-set=-net_admin"], &["run"]));
    assert!(said.contains("not permitted") && said.contains("CAP_NET_ADMIN"), "{said}");
    assert!(!said.contains("another program") && !said.contains("os error 1"), "{said}");
}

#[test]
fn other_reader_of_the_queue_is_named() {
    let namespace = namespace();
    let reader = Daemon::start(&namespace, "{}").unwrap_or_else(|error| panic!("{error}"));
    let said = one_line(&run(&namespace, &[], &["run"]));
    let it = format!("read by pinhole (process {})", reader.child.id());
    assert!(said.contains("queue 0") && said.contains(&it) && said.contains("`capture: { queue: 1 }`"), "{said}");
    let checked = run(&namespace, &[], &["check"]);
    let it = format!("read by pinhole (process {})", reader.child.id());
    assert!(checked.output().contains(&it), "{}", checked.output());
}

#[test]
fn invisible_reader_of_the_queue_gets_no_name() {
    let namespace = namespace();
    let _reader = Daemon::start(&namespace, "{}").unwrap_or_else(|error| panic!("{error}"));
    let apart = ["unshare", "--pid", "--fork", "--mount-proc"];
    let said = one_line(&run(&namespace, &apart, &["run"]));
    assert!(said.contains("read by a program that cannot be seen from here"), "{said}");
    let checked = run(&namespace, &apart, &["check"]);
    assert!(checked.output().contains("read by a program that cannot be seen from here"), "{}", checked.output());
}

#[test]
fn missing_daemon_is_reported_with_one_cause() {
    let said = one_line(&run(&namespace(), &[], &["status"]));
    assert!(said.starts_with("pinhole: no daemon answers at "), "{said}");
    assert_eq!(said.matches("No such file or directory").count(), 1, "{said}");
    assert!(said.contains("is it running?"), "{said}");
}

#[test]
fn probing_the_control_socket_is_not_logged() {
    let namespace = namespace();
    let daemon = Daemon::start(&namespace, "{}").unwrap_or_else(|error| panic!("{error}"));
    let second = daemon::service(&namespace, &daemon.folder, "info").spawn().and_then(|child| child.wait(TIMEOUT));
    assert!(one_line(&second.expect("it ends")).contains("another pinhole is running"));
    daemon.program(&["check"]).expect("it ends");
    // Asked after them, so answered after them.
    daemon.status();
    assert!(!daemon.child.output().contains("control socket"), "{}", daemon.child.output());
}

// --- Where it cannot go on -----------------------------------------------------------------------------------------

const NFNL_SUBSYS_QUEUE: u8 = 3;
const NLM_F_REQUEST: u8 = 1;

/// The netfilter sockets of a process.
fn sockets(process: u32) -> Vec<OwnedFd> {
    let pid = Pid::from_raw(process.try_into().expect("a process")).expect("a process");
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("it runs");
    let files = std::fs::read_dir(Path::new("/proc").join(process.to_string()).join("fd")).expect("root may look");
    let numbers = files.filter_map(|file| file.ok()?.file_name().to_str()?.parse().ok());
    let opened = numbers.filter_map(|number| pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).ok());
    let is_netfilters = |fd: &OwnedFd| {
        sockopt::socket_domain(fd) == Ok(AddressFamily::NETLINK)
            && sockopt::socket_protocol(fd) == Ok(Some(netlink::NETFILTER))
    };
    opened.filter(is_netfilters).collect()
}

#[test]
fn broken_queue_ends_the_daemon_and_leaves_the_table() {
    let namespace = namespace();
    let mut daemon = Daemon::start(&namespace, "{}").unwrap_or_else(|error| panic!("{error}"));
    // The kernel answers each of these with an error, which the thread that reads the queue gets.
    let mut unknown_request = [0; 20];
    unknown_request[0] = 20;
    unknown_request[4..8].copy_from_slice(&[99, NFNL_SUBSYS_QUEUE, NLM_F_REQUEST, 0]);
    let is_read = |socket: &OwnedFd| {
        sockopt::socket_timeout(socket, sockopt::Timeout::Recv) == Ok(Some(Duration::from_millis(400)))
    };
    // The thread that reads it sets the timeout, maybe after the daemon has logged that it is installed.
    let of_queue = lab::wait_for("a thread to read a queue", TIMEOUT, || {
        let of_queue: Vec<_> = sockets(daemon.child.id()).into_iter().filter(is_read).collect();
        Ok((!of_queue.is_empty()).then_some(of_queue))
    });
    let of_queue = of_queue.unwrap_or_else(|error| panic!("{error}"));
    for socket in of_queue {
        for _ in 0..200 {
            rustix::net::send(&socket, &unknown_request, SendFlags::empty()).expect("the kernel takes it");
        }
    }
    lab::wait_until("the daemon ends", TIMEOUT, || Ok(!daemon.child.is_running()?))
        .unwrap_or_else(|error| panic!("{error}\n{}", daemon.child.output()));
    daemon.wait_for_log("the daemon cannot continue", 1);
    let said = daemon.child.output();
    let last = said.lines().last().expect("it says why");
    assert!(last.starts_with("pinhole: the daemon cannot continue: reading the queue: "), "{said}");
    assert!(said.lines().count() < 20, "it says so over and over: {said}");
    assert!(namespace.nft_output(&["list", "tables"]).expect("nft lists").contains("inet pinhole"));
    daemon.restart().unwrap_or_else(|error| panic!("{error}"));
}
