//! What the daemon gives up after its start (capabilities, files, programs), and that it needs none of it.
//!
//! The built program on a real kernel, in a namespace of the lab; and the sandbox alone, in a thread or a process of its
//! own. Needs root, nft, setpriv and nsenter, and a kernel with seccomp and Landlock.

use crate::daemon;
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;

use crate::daemon::{Daemon, PROGRAM, TIMEOUT};
use lab::{Finished, Namespace};
use nix::sys::signal::Signal;
use pinhole::daemon::sandbox::{Files, Missing, enter};
use rustix::process::geteuid;

const NET_ADMIN: &str = "0000000000001000";
/// The user nobody, who has no rights anywhere.
const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

fn namespace() -> Namespace {
    Namespace::new("host").unwrap_or_else(|error| panic!("{error}"))
}

fn start(namespace: &Namespace, policy: &str) -> Daemon {
    Daemon::start(namespace, policy).unwrap_or_else(|error| panic!("{error}"))
}

/// A folder with a policy in it, and one for the socket.
struct Folders {
    folder: PathBuf,
    policy: PathBuf,
    socket: PathBuf,
}

impl Folders {
    fn new() -> Self {
        let folder = daemon::new_folder();
        let [policy, socket] = ["etc/policy.yaml", "run/control.sock"].map(|name| folder.join(name));
        for file in [&policy, &socket] {
            fs::create_dir(file.parent().expect("it is in a folder")).expect("a folder can be made");
            fs::write(file, "{}").expect("a file can be written");
        }
        fs::write(folder.join("other"), "").expect("a file can be written");
        Self { folder, policy, socket }
    }

    /// Does something in a thread that has entered the sandbox.
    fn confined<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let confined = || {
            let missing = self.enter();
            assert!(missing.is_empty(), "{missing:?}");
            work()
        };
        thread::scope(|scope| scope.spawn(confined).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn enter(&self) -> Vec<Missing> {
        enter(&Files { policy: Some(&self.policy), socket: &self.socket })
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[track_caller]
fn assert_denied<T>(what: &str, result: std::io::Result<T>) {
    let error = result.err().unwrap_or_else(|| panic!("{what} is possible"));
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}");
}

#[test]
fn only_the_policy_can_be_read_and_the_socket_removed() {
    let folders = Folders::new();
    let Folders { folder, policy, socket } = &folders;
    fs::read("/etc/shadow").expect("root may read it");
    folders.confined(|| {
        assert_eq!(fs::read_to_string(policy).expect("it is the policy"), "{}");
        assert_denied("reading /etc/shadow", fs::read("/etc/shadow"));
        assert_denied("reading another file", fs::read(folder.join("other")));
        assert_denied("listing a folder", fs::read_dir(folder));
        assert_denied("changing the policy", fs::write(policy, "{}"));
        assert_denied("removing the policy", fs::remove_file(policy));
        assert_denied("making a file", fs::write(folder.join("run/other"), ""));
        assert_denied("reading beside the socket", fs::read(socket));
        fs::remove_file(socket).expect("the socket may go");
        // A new thread is confined like the one that starts it.
        let inherited = thread::spawn(|| fs::read("/etc/shadow"));
        assert_denied("reading /etc/shadow in another thread", inherited.join().expect("it ends"));
    });
    fs::read("/etc/shadow").expect("this thread is not confined");
}

#[test]
fn replaced_and_symlinked_policy_can_be_read() {
    let folders = Folders::new();
    let Folders { policy, socket, .. } = &folders;
    let linked = folders.folder.join("linked.yaml");
    std::os::unix::fs::symlink(policy, &linked).expect("a link can be made");
    let (edit, told) = channel::<()>();
    let (edited, done) = channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            told.recv().expect("it is told");
            let new = policy.with_extension("new");
            edited.send(fs::write(&new, "mark: 0x20\n").and_then(|()| fs::rename(&new, policy)))
        });
        let inside = scope.spawn(move || {
            let missing = enter(&Files { policy: Some(&linked), socket });
            assert!(missing.is_empty(), "{missing:?}");
            assert_eq!(fs::read_to_string(&linked).expect("it is the policy"), "{}");
            edit.send(()).expect("the editor waits");
            done.recv().expect("the editor answers").expect("the policy is replaced");
            assert_eq!(fs::read_to_string(&linked).expect("it is the policy"), "mark: 0x20\n");
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn only_unix_and_netlink_sockets_and_no_processes() {
    let folders = Folders::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("it is free");
    let address = listener.local_addr().expect("it is bound");
    Command::new("/bin/true").status().expect("it can be started");
    TcpStream::connect(address).expect("it listens");
    folders.confined(|| {
        assert_denied("starting a process", Command::new("/bin/true").spawn());
        assert_denied("a TCP socket", TcpStream::connect(address));
        assert_denied("a UDP socket", UdpSocket::bind("127.0.0.1:0"));
        UnixStream::pair().expect("a local socket may be made");
        pinhole::netfilter::netlink::Tables::open(TIMEOUT).expect("netlink is what it is for");
        let denied = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS);
        assert_eq!(denied, Err(nix::errno::Errno::EPERM));
    });
}

/// Becomes another program, in a process that has entered the sandbox. Not run by itself: it ends the whole process.
#[test]
#[ignore = "run by the test below"]
fn execute_in_sandbox() {
    // It leaves no folder behind, as it does not get so far.
    assert!(enter(&Files { policy: None, socket: Path::new("/nowhere/control.sock") }).is_empty());
    panic!("{}", Command::new("/bin/true").exec());
}

#[test]
fn execve_ends_the_process() {
    let this = std::env::current_exe().expect("it has a path");
    let ended = Command::new(this)
        .args(["--exact", "sandbox::execute_in_sandbox", "--ignored", "--test-threads=1"])
        .output()
        .expect("it starts");
    assert_eq!(ended.status.signal(), Some(libc::SIGSYS), "{ended:?}");
}

/// The value of a line of `/proc/PID/status`, of each thread.
fn of_each_thread(process: u32, line: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let value = |status: String| {
        let found = status.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(':'));
        found.unwrap_or_else(|| panic!("no {line} in {status}")).trim().to_owned()
    };
    tasks
        .map(|task| value(fs::read_to_string(task.expect("a thread").path().join("status")).expect("it is there")))
        .collect()
}

#[track_caller]
fn assert_confined(process: u32) {
    let expected = [
        ("CapInh", "0000000000000000"),
        ("CapPrm", NET_ADMIN),
        ("CapEff", NET_ADMIN),
        ("CapBnd", NET_ADMIN),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        // A filter, and how many.
        ("Seccomp", "2"),
        ("Seccomp_filters", "3"),
    ];
    for (line, value) in expected {
        let found = of_each_thread(process, line);
        assert!(found.len() >= 4 && found.iter().all(|found| found == value), "{line}: {found:?}");
    }
}

#[test]
fn every_thread_has_one_capability_and_a_seccomp_filter() {
    let namespace = namespace();
    let daemon = start(&namespace, "{}");
    assert_confined(daemon.child.id());
    assert!(!daemon.child.output().contains("the sandbox is not complete"), "{}", daemon.child.output());
}

/// Runs lines of a shell among the files that a process sees.
fn among_files_of(process: u32, lines: &str) {
    let done =
        Command::new("nsenter").args(["--mount", "--target", &process.to_string(), "sh", "-euc", lines]).output();
    let done = done.unwrap_or_else(|error| panic!("nsenter does not start: {error}"));
    assert!(done.status.success(), "{lines}: {done:?}");
}

#[test]
fn reload_and_restore_need_no_other_program() {
    let namespace = namespace();
    let folder = daemon::new_folder();
    daemon::write_policy(&folder, "{}");
    // With files of its own, of which the programs are taken away after the start.
    let mut command = namespace.command("unshare");
    command.args(["--mount", PROGRAM, "run", "--policy"]).arg(folder.join("policy.yaml"));
    command.env("PINHOLE_SOCKET", folder.join("control.sock"));
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{error}"));
    let socket = folder.join("control.sock");
    lab::wait_until("the daemon answers", TIMEOUT, || Ok(daemon::ask(&socket).is_ok()))
        .unwrap_or_else(|error| panic!("{error}: {}", child.output()));
    among_files_of(
        child.id(),
        "for program in nft sh; do mount --bind /dev/null \"$(readlink -f \"$(command -v $program)\")\"; done",
    );
    let gone =
        Command::new("nsenter").args(["--mount", "--target", &child.id().to_string(), "nft", "--version"]).output();
    assert!(gone.is_ok_and(|gone| !gone.status.success()), "nft is still there");

    daemon::write_policy(&folder, "control_ports: [21, 2121]\nmark: 0x20\n");
    let mut reload = namespace.command(PROGRAM);
    let reloaded = reload.arg("reload").env("PINHOLE_SOCKET", &socket).output(TIMEOUT);
    reloaded.unwrap_or_else(|error| panic!("{error}: {}", child.output()));
    let listed = || namespace.nft_output(&["list", "table", "inet", "pinhole"]).unwrap_or_default();
    let stands = || {
        let listed = listed();
        listed.contains("elements = { 21, 2121 }") && listed.contains("ct mark set ct mark | 0x00000020")
    };
    assert!(stands(), "{}", listed());
    namespace.nft("flush ruleset").expect("it is empty");
    lab::wait_until("the table to be restored", TIMEOUT, || Ok(stands())).unwrap_or_else(|error| panic!("{error}"));
    child.signal(Signal::SIGTERM).expect("it runs");
    let ended = child.wait(TIMEOUT).expect("it ends");
    assert_eq!((ended.status.code(), listed()), (Some(0), String::new()), "{}", ended.output());
    assert!(!socket.exists(), "the socket is left");
    let _ = fs::remove_dir_all(&folder);
}

#[test]
fn idle_control_clients_do_not_delay_others() {
    let namespace = namespace();
    let mut daemon = start(&namespace, "{}");
    let idle = |count: usize| -> Vec<UnixStream> {
        (0..count).map(|_| UnixStream::connect(daemon.socket()).expect("it listens")).collect()
    };
    // Whether the daemon still waits for the client's request.
    let is_waited_for = |client: &UnixStream| {
        client.set_nonblocking(true).expect("it is open");
        (&mut &*client).read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    };
    let clients = idle(20);
    assert_eq!(daemon.status()["sessions"], 0);
    let waiting = clients.iter().filter(|client| is_waited_for(client)).count();
    assert_eq!(waiting, 20, "the answer came after clients that asked nothing");

    // Beyond the limit the oldest connections are closed, and other clients still do not wait.
    let more = idle(100);
    assert_eq!(daemon.status()["sessions"], 0);
    assert!(clients.iter().all(|client| !is_waited_for(client)), "there is no limit");
    assert!(more.iter().rev().take(20).all(is_waited_for), "the answer came after clients that asked nothing");
    let _others = idle(20);
    daemon.child.signal(Signal::SIGHUP).expect("it runs");
    daemon.wait_for_log("reloaded the policy", 1);
    daemon.end(Signal::SIGTERM).expect("it ends");
}

#[test]
fn silent_control_client_is_disconnected() {
    let namespace = namespace();
    let daemon = start(&namespace, "{}");
    let client = UnixStream::connect(daemon.socket()).expect("it listens");
    client.set_read_timeout(Some(TIMEOUT)).expect("it is open");
    let mut said = String::new();
    assert_eq!((&client).read_to_string(&mut said).map_err(|error| error.kind()), Ok(0), "{said}");
}

/// A copy of the program that every user may run.
fn copy_for_everybody(folder: &Path) -> PathBuf {
    let copy = folder.join("pinhole");
    // Copied by another process: programs that tests start meanwhile would inherit the file, open for writing, and it
    // could not be executed.
    let copied = Command::new("cp").arg(PROGRAM).arg(&copy).status();
    assert!(copied.is_ok_and(|status| status.success()), "it can be copied");
    copy
}

#[test]
fn control_socket_answers_root_only_whatever_its_mode() {
    let namespace = namespace();
    let daemon = start(&namespace, "{}");
    let copy = copy_for_everybody(&daemon.folder);
    let ask = |command: &str| -> Finished {
        let mut program = namespace.command("setpriv");
        program.args(NOBODY).arg(&copy).arg(command).env("PINHOLE_SOCKET", daemon.socket());
        program.spawn().expect("it starts").wait(TIMEOUT).expect("it ends")
    };
    let mode = || fs::metadata(daemon.socket()).expect("it is there").permissions().mode();
    assert_eq!(mode() & 0o777, 0o600);
    for command in ["status", "reload"] {
        let refused = ask(command);
        assert!(
            refused.output().contains("only root and the daemon's own user may use the control socket"),
            "{}",
            refused.output()
        );
    }
    // The socket's mode is opened to all users.
    fs::set_permissions(daemon.socket(), fs::Permissions::from_mode(0o666)).expect("root may");
    for command in ["status", "reload"] {
        let refused = ask(command);
        assert!(!refused.status.success(), "{refused:?}");
        assert!(
            refused.output().contains("only root and the daemon's own user may use the control socket"),
            "{}",
            refused.output()
        );
    }
    assert!(!daemon.child.output().contains("reloaded the policy"));
    assert!(geteuid().is_root() && daemon.status()["sessions"] == 0);
}

#[test]
fn user_with_ambient_capability_can_run_and_query() {
    let namespace = namespace();
    let folder = daemon::new_folder();
    daemon::write_policy(&folder, "{}");
    let copy = copy_for_everybody(&folder);
    std::os::unix::fs::chown(&folder, Some(65_534), Some(65_534)).expect("root may");
    let socket = folder.join("control.sock");
    let mut command = namespace.command("setpriv");
    command.args(NOBODY).args([
        "--inh-caps=-all,+net_admin",
        "--ambient-caps=-all,+net_admin",
        "--bounding-set=-all,+net_admin",
    ]);
    command.arg(&copy).args(["run", "--policy"]).arg(folder.join("policy.yaml")).env("PINHOLE_SOCKET", &socket);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{error}"));
    lab::wait_until("the daemon answers root", TIMEOUT, || Ok(daemon::ask(&socket).is_ok()))
        .unwrap_or_else(|error| panic!("{error}: {}", child.output()));
    assert!(!child.output().contains("the sandbox is not complete"), "{}", child.output());
    let users = of_each_thread(child.id(), "Uid");
    assert!(users.iter().all(|user| user.starts_with("65534\t65534")), "{users:?}");
    let mut own = namespace.command("setpriv");
    let own = own.args(NOBODY).arg(&copy).arg("reload").env("PINHOLE_SOCKET", &socket).output(TIMEOUT);
    own.unwrap_or_else(|error| panic!("its own user may ask: {error}"));
    child.signal(Signal::SIGTERM).expect("it runs");
    let ended = child.wait(TIMEOUT).expect("it ends");
    assert_eq!(ended.status.code(), Some(0), "{}", ended.output());
    let left = namespace.nft_output(&["list", "ruleset"]).expect("nft lists");
    assert_eq!(left, "");
    let _ = fs::remove_dir_all(&folder);
}
