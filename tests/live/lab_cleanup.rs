//! Nothing of the lab outlives the process that made it, however that ends. Needs root.
//!
//! A separate process builds a lab with servers in it, and is then ended in several ways.

use lab::mini::{MiniOptions, MiniServer};
use lab::{KERNEL_HELPER, PrivateFiles, ServerKind, ServerOptions, Shape, Topology, wait_until};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

const HOW: &str = "PINHOLE_LAB_VICTIM";
const READY: &str = "the lab stands";
const SOON: Duration = Duration::from_secs(10);

/// Not a test: the process that the tests below start and end.
#[test]
#[ignore = "the other tests run it, in a process of its own"]
#[allow(clippy::print_stdout, reason = "it tells the process that started it how far it is")]
fn victim() {
    let Ok(how) = std::env::var(HOW) else { return };
    let topology = Topology::new(Shape::Gateway).expect("a gateway");
    topology.firewall.nft(Shape::Gateway.default_drop()).expect("rules");
    topology.firewall.nft(KERNEL_HELPER).expect("the kernel's helper");
    let address = topology.server.addresses.v4.into();
    let start = |kind: ServerKind, port| {
        kind.start(&topology.server.namespace, &ServerOptions { port, ..ServerOptions::on(address) })
    };
    let servers = [(ServerKind::Vsftpd, 21), (ServerKind::Proftpd, 2121), (ServerKind::PureFtpd, 2122)]
        .map(|(kind, port)| start(kind, port).expect("a server"));
    servers[0].place("file", &[0; 1000]).expect("a file");
    let mini = MiniServer::start(&topology.server.namespace, SocketAddr::new(address, 2123), MiniOptions::default());
    // A session, so that the server has processes of other users and in other sessions.
    let client = topology
        .client
        .namespace
        .start(move || lab::mini::MiniClient::log_in(SocketAddr::new(address, 21), SOON).map(std::mem::forget));
    client.expect("a thread").join().expect("no panic").expect("in the namespace").expect("a session");
    println!("\n{READY}");
    match how.as_str() {
        "normal" => drop((mini, servers, topology)),
        "panic" => panic!("as it should"),
        _ => std::thread::sleep(Duration::from_secs(60)),
    }
    if how == "normal" {
        let id = std::process::id();
        assert_eq!(lab::descendants(id), BTreeSet::new(), "processes are left");
        println!("nothing is left");
    }
}

/// Builds a lab in another process, ends that process, and checks what is left.
fn nothing_remains_after(how: &str) {
    let before = traces();
    // A background process of a shell ignores signals of the terminal, and its children inherit that.
    let mut victim = Command::new("env")
        .arg("--default-signal=INT,HUP")
        .arg(std::env::current_exe().expect("a running test has a file"))
        .args(["--exact", "lab_cleanup::victim", "--ignored", "--nocapture"])
        .env(HOW, how)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the test runs itself");
    let mut lines = BufReader::new(victim.stdout.take().expect("it is piped")).lines();
    let mut seen = lines.by_ref().map_while(Result::ok);
    let ready = seen.any(|line| line == READY);
    if !ready {
        let said = std::io::read_to_string(victim.stderr.take().expect("it is piped")).unwrap_or_default();
        panic!("the lab was not built: {said}");
    }
    let processes = lab::descendants(victim.id());
    if let Some(signal) = how.strip_prefix("SIG") {
        // Three servers with their keepers, and a session of vsftpd's at least.
        assert!(processes.len() >= 7, "only {processes:?}");
        let status = Command::new("kill").args(["-s", signal, &victim.id().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "kill -s {signal}");
    }
    let status = victim.wait().expect("it is our child");
    assert_eq!(status.success(), how == "normal", "{how}: {status}");
    wait_until("the last process of the lab to be gone", SOON, || {
        Ok(processes.iter().all(|id| fs::read_link(format!("/proc/{id}/exe")).is_err()))
    })
    .unwrap_or_else(|error| panic!("{how}: {error}"));
    assert_eq!(traces(), before, "{how}: the machine is not as it was");
}

/// Where a lab would leave traces: mounts, interfaces, named namespaces, accounts.
fn traces() -> Vec<String> {
    let names = |folder: &str| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<BTreeSet<_>>()
    };
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    vec![
        read("/proc/mounts"),
        format!("{:?}", names("/sys/class/net")),
        format!("{:?}", names("/run")),
        format!("{:?}", names("/run/netns")),
        read("/etc/passwd"),
        read("/etc/shadow"),
    ]
}

#[test]
fn nothing_remains_after_a_normal_end() {
    nothing_remains_after("normal");
}

#[test]
fn nothing_remains_after_a_panic() {
    nothing_remains_after("panic");
}

#[test]
fn nothing_remains_after_ctrl_c() {
    nothing_remains_after("SIGINT");
}

#[test]
fn nothing_remains_after_sigterm() {
    nothing_remains_after("SIGTERM");
}

#[test]
fn nothing_remains_after_kill_9() {
    nothing_remains_after("SIGKILL");
}

#[test]
fn private_files_are_visible_only_inside() {
    let files = PrivateFiles::new().unwrap_or_else(|error| panic!("{error}"));
    files.place("file", b"content").expect("the home folder takes a file");
    assert_eq!(fs::read(files.home().join("file")).ok().as_deref(), Some(&b"content"[..]));
    assert!(!fs::exists(lab::INSIDE).expect("/run can be looked at"));
}
