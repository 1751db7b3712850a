//! `pinhole demo` as a newcomer runs it. Needs root, nft and ip.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SOON: Duration = Duration::from_secs(10);

fn demo() -> Command {
    // A background process of a shell ignores signals of the terminal, and its children inherit that.
    let mut command = Command::new("env");
    command.args(["--default-signal=INT,HUP", env!("CARGO_BIN_EXE_pinhole"), "demo"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a program with namespaces of its own for mounts and networks, and fails if the program leaves something there:
/// other programs, too, change what the machine has.
const LEAVES_NOTHING: &str = r#"
mount --make-rprivate / && mount -t tmpfs tmpfs /run && mkdir /run/mount || exit 9 # libmount makes it where it is missing
traces() {
    cat /proc/self/mounts /etc/passwd
    ls -AR /run /proc/sys/net/ipv4/conf
    /usr/sbin/nft list ruleset
}
before=$(traces) || exit 9
"$@" || exit
after=$(traces)
[ "$after" = "$before" ] || { echo "left something: $after" >&2; exit 9; }
"#;

/// The network namespaces in which something runs.
fn namespaces() -> BTreeSet<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let link = |path: &Path| fs::read_link(path.join("ns/net")).ok();
    processes.filter_map(|entry| Some(link(&entry.path())?.display().to_string())).collect()
}

/// Runs it to its end.
fn run_demo(demo: &Command) -> String {
    let mut alone = Command::new("unshare");
    alone.args(["-mn", "sh", "-c", LEAVES_NOTHING, "sh"]).arg(demo.get_program()).args(demo.get_args());
    alone.envs(demo.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    let output = alone.output().expect("unshare can be started");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*complaints), (Some(0), ""), "{said}");
    for part in [
        "PASV (passive, the client connects)  blocked",
        "PORT (active, the server connects)   blocked",
        "| mechanism sets, as the policy says",
        "| installed table inet pinhole",
        "PASV (passive, the client connects)  works: hello.txt arrived, all 50000 bytes of it",
        "| opened 10.21.1.10 -> 10.21.2.10:",
        "| used 10.21.1.10:",
        "PORT (active, the server connects)   works: hello.txt arrived",
        "| opened 10.21.2.10 -> 10.21.1.10:",
        "| used 10.21.2.10:",
        "10.21.1.10 . 10.21.2.10 . ",
        "from the client to a port that nobody announced  blocked",
        "the first time    gets through",
        "once more         blocked",
        "Nothing of this remains.",
    ] {
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
    assert!(said.lines().count() <= 40, "it is long:\n{said}");
    said
}

#[test]
fn demo_shows_blocked_and_working_transfer_and_cleans_up() {
    run_demo(&demo());
}

#[test]
fn demo_finds_nft_and_ip_without_sbin_in_path() {
    let mut demo = demo();
    demo.env("PATH", "/usr/bin:/bin");
    run_demo(&demo);
}

#[test]
fn demo_names_missing_nft_or_ip() {
    for (program, package) in [("nft", "nftables"), ("ip", "iproute2")] {
        // It is looked for in the usual folders as well, so it is hidden by an empty one in a mount namespace.
        let script = "mount --make-rprivate / && for file in $(which -a $1) /usr/sbin/$1; do \
                      [ ! -e \"$file\" ] || mount --bind /dev/null \"$file\" || exit 9; done; exec \"$0\" demo";
        let output =
            Command::new("unshare").args(["-m", "sh", "-c", script, env!("CARGO_BIN_EXE_pinhole"), program]).output();
        let output = output.expect("unshare can be started");
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{complaints}");
        assert!(complaints.contains(&format!("install the package {package}")), "{complaints}");
    }
}

/// Ends a demo by a signal once the service runs in it.
fn nothing_remains_after(signal: Signal) {
    let mut demo: Child = demo().spawn().expect("it can be started");
    let mut lines = BufReader::new(demo.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
    if !lines.any(|line| line.contains("installed table inet pinhole")) {
        let mut said = String::new();
        let _ = demo.stderr.take().expect("it is piped").read_to_string(&mut said);
        panic!("the service did not start: {said}");
    }
    let processes = lab::descendants(demo.id());
    assert!(!processes.is_empty());
    // Held open, or another demo's namespace could get the number of one that is gone.
    let open = |id: &u32| File::open(format!("/proc/{id}/ns/net")).ok();
    let held: Vec<File> = processes.iter().filter_map(open).collect();
    let name = |file: &File| fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("it is open");
    let mut inside: BTreeSet<String> = held.iter().map(|file| name(file).display().to_string()).collect();
    // A process that was about to enter one was still in ours.
    inside.remove(&fs::read_link("/proc/self/ns/net").expect("it has one").display().to_string());
    assert!(!inside.is_empty());
    let id = i32::try_from(demo.id()).expect("process ids are positive");
    kill(Pid::from_raw(id), signal).expect("it runs");
    assert!(!demo.wait().expect("it is our child").success());
    lab::wait_until("the processes of the demo to be gone", SOON, || {
        Ok(processes.iter().all(|id| fs::read_link(format!("/proc/{id}/exe")).is_err()))
    })
    .unwrap_or_else(|error| panic!("{error}"));
    lab::wait_until("the namespaces of the demo to be empty", SOON, || Ok(namespaces().is_disjoint(&inside)))
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn demo_cleans_up_after_ctrl_c() {
    nothing_remains_after(Signal::SIGINT);
}

#[test]
fn demo_cleans_up_after_kill_9() {
    nothing_remains_after(Signal::SIGKILL);
}
