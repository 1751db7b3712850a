//! A daemon that hangs holds packets for a bounded time, and then counts as down. A daemon that is idle or busy is left
//! alone.
//!
//! Needs root and nft. Threads are made to hang by tracing them (ptrace).

use crate::filtered_topology;
use std::fs;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, TIMEOUT};
use crate::filtered_topology::{CONTENT, FILE, FilteredTopology};
use lab::mini::MiniClient;
use lab::{Family, Namespace, Shape};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use pinhole::core::ftp::Mode;

/// As short as the policy lets it be.
const LIMIT: Duration = Duration::from_secs(2);
const SHORT: &str = "capture: { watchdog: 2s }\n";

/// A line of `/proc/PID/status`.
fn status(process: Pid, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

/// The watchdog process of a daemon: its only child.
fn watchdog_of(daemon: &Daemon) -> Pid {
    let parent = daemon.child.id().to_string();
    let processes = fs::read_dir("/proc").expect("it is mounted").flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid::from_raw);
    let children: Vec<Pid> = numbers.filter(|one| status(*one, "PPid").as_ref() == Some(&parent)).collect();
    let [child] = children[..] else { panic!("one child was expected: {children:?}") };
    child
}

/// The threads of a daemon with two queues: two read the queues, one watches those two, two watch the kernel, one
/// writes the log, and the main thread.
const THREADS: usize = 7;

fn wait_until(what: &str, is_so: impl FnMut() -> lab::Result<bool>) {
    lab::wait_until(what, TIMEOUT, is_so).unwrap_or_else(|error| panic!("{error}"));
}

/// A thread that is about to do something when the signal comes does it first.
fn all_threads_are_stopped(daemon: &Daemon) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.child.id())).expect("it is there").flatten();
    let is_stopped = |status: String| status.lines().any(|line| line.starts_with("State:\tT"));
    tasks.map(|task| fs::read_to_string(task.path().join("status"))).all(|status| status.is_ok_and(is_stopped))
}

fn wait_for_end(daemon: &mut Daemon) {
    wait_until("the daemon to end", || Ok(!daemon.child.is_running()?));
}

/// A stopped thread of a daemon. Its creator has to release it.
struct Hanging(Pid);

impl Hanging {
    /// The threads that read the queues; there must be `count` of them.
    fn readers(daemon: &Daemon, count: usize) -> Vec<Self> {
        Self::those(daemon, count, |name| name == "reading the que")
    }

    /// The threads of a daemon with two queues whose names match; there must be `count` of them.
    fn those(daemon: &Daemon, count: usize, is_it: fn(&str) -> bool) -> Vec<Self> {
        let threads = || -> Vec<(i32, String)> {
            let tasks = fs::read_dir(format!("/proc/{}/task", daemon.child.id())).expect("it runs").flatten();
            let name = |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
            tasks.filter_map(|task| Some((task.file_name().to_str()?.parse().ok()?, name(&task)?))).collect()
        };
        let of_kind = |threads: &[(i32, String)]| -> Vec<i32> {
            threads.iter().filter(|(_, name)| is_it(name.trim_end())).map(|(id, _)| *id).collect()
        };
        // A thread has its name, of which the kernel keeps fifteen bytes, only when it runs.
        let all_run = |threads: &[(i32, String)]| threads.len() == THREADS && of_kind(threads).len() == count;
        wait_until("the threads to run", || Ok(all_run(&threads())));
        of_kind(&threads()).into_iter().map(Self::stop).collect()
    }

    fn stop(thread: i32) -> Self {
        let thread = Pid::from_raw(thread);
        ptrace::seize(thread, ptrace::Options::empty()).expect("root may trace");
        ptrace::interrupt(thread).expect("it is traced");
        waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stops");
        Self(thread)
    }

    /// A traced thread, and its process, exists until its tracer has waited for it.
    fn has_ended(&self) -> bool {
        let ended = waitpid(self.0, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
        matches!(ended, Ok(WaitStatus::Signaled(..) | WaitStatus::Exited(..)) | Err(_))
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        // If it has ended, its process exists until its tracer has waited for it.
        if ptrace::detach(self.0, None).is_err() {
            let _ = waitpid(self.0, Some(WaitPidFlag::__WALL));
        }
    }
}

/// Counts the segments with payload to control ports, as they leave or arrive.
fn count_segments(host: &Namespace, hook: &str) {
    host.nft(&format!(
        "table inet watch {{
             counter seen {{ }}
             chain {hook} {{ type filter hook {hook} priority 0; tcp dport 21 meta length > 52 counter name seen; }}
         }}"
    ))
    .expect("the rules are right");
}

fn counted(host: &Namespace) -> lab::Result<u64> {
    let listed = host.nft_output(&["list", "counter", "inet", "watch", "seen"])?;
    let counted = listed.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    Ok(counted.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no count in {listed}")))
}

#[test]
fn stopped_daemon_passes_nothing_when_fail_closed() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let mut daemon = fixture.daemon("capture: { when_down: closed, watchdog: 2s }\n");
    let server = fixture.serve(Family::V4);
    let [client_host, server_host] = fixture.ends();
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        count_segments(client_host, "output");
        count_segments(server_host, "input");
        daemon.child.signal(Signal::SIGSTOP)?;
        wait_until("each thread to stop", || Ok(all_threads_are_stopped(&daemon)));
        client.send(b"NOOP\r\n")?;
        wait_for_end(&mut daemon);
        // Its sender sends it again and again.
        let before = counted(client_host)?;
        wait_until("the command to be sent again", || Ok(counted(client_host)? >= before + 2));
        assert_eq!(counted(server_host)?, 0, "it arrived");
        daemon.restart()?;
        assert_eq!(client.reply()?.code, 200);
        assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT);
        client.quit()
    });
}

#[test]
fn stopped_daemon_is_killed_in_time_and_logged() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let mut daemon = fixture.daemon(SHORT);
    let process = daemon.child.id();
    let began = Instant::now();
    daemon.child.signal(Signal::SIGSTOP).expect("it runs");
    wait_for_end(&mut daemon);
    // The last sign of life was up to a half second old.
    let took = began.elapsed();
    assert!(took > LIMIT - Duration::from_secs(1) && took < lab::allow(LIMIT * 4), "{took:?}");
    daemon.wait_for_log(&format!("the watchdog killed the daemon (process {process})"), 1);
    daemon.wait_for_log("it is stopped (SIGSTOP, SIGTSTP)", 1);
    assert!(fixture.firewall().nft_output(&["list", "tables"]).expect("nft lists").contains("pinhole"));
    daemon.restart().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn daemon_with_a_hanging_thread_is_killed() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let mut daemon = fixture.daemon("capture: { queues: 2, watchdog: 2s }\n");
    let hanging = Hanging::readers(&daemon, 2);
    wait_until("the threads to be killed", || Ok(hanging.iter().all(Hanging::has_ended)));
    wait_for_end(&mut daemon);
    daemon.wait_for_log("has made no progress", 1);
}

#[test]
fn queues_are_unbound_even_if_the_daemon_lives() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let daemon = fixture.daemon("capture: { queues: 2, watchdog: 2s }\n");
    let server = fixture.serve(Family::V4);
    // As if a thread were in a system call that no signal ends: then a kill would come too late, and the process could not
    // end by itself.
    let watchdog = watchdog_of(&daemon);
    kill(watchdog, Signal::SIGSTOP).expect("it runs");
    let hanging = Hanging::those(&daemon, 6, |name| name != "watching the th");
    fixture.as_client(|| MiniClient::log_in(server.address(), TIMEOUT)?.quit());
    drop(hanging);
    kill(watchdog, Signal::SIGCONT).expect("it runs");
}

/// Time has to go by here, or nothing would be shown.
const LONG: Duration = Duration::from_secs(7);

#[test]
fn idle_daemon_is_left_alone() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let mut daemon = fixture.daemon(SHORT);
    thread::sleep(LONG);
    assert!(daemon.child.is_running().expect("it is ours"), "{}", daemon.child.output());
    daemon.end(Signal::SIGTERM).expect("it ends");
    assert!(!daemon.child.output().contains("watchdog"), "{}", daemon.child.output());
}

/// Processes that do nothing but use the processors.
struct Load(Vec<Child>);

impl Load {
    fn of(count: usize) -> Self {
        let spin = |_| Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("there is a shell");
        Self((0..count).map(spin).collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn busy_daemon_on_a_busy_host_is_left_alone() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let mut daemon = fixture.daemon_logging(SHORT, "info");
    let server = fixture.serve_many(Family::V4);
    let _load = Load::of(8 * thread::available_parallelism().map_or(1, usize::from));
    let began = Instant::now();
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        while began.elapsed() < LONG {
            assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT);
        }
        client.quit()
    });
    assert!(daemon.child.is_running().expect("it is ours"), "{}", daemon.child.output());
    assert!(!daemon.child.output().contains("watchdog"), "{}", daemon.child.output());
}

/// As a host that was suspended, or a machine that is moved, sees it.
#[test]
fn suspended_time_does_not_count() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let mut daemon = fixture.daemon(SHORT);
    let watchdog = watchdog_of(&daemon);
    kill(watchdog, Signal::SIGSTOP).expect("it runs");
    daemon.child.signal(Signal::SIGSTOP).expect("it runs");
    thread::sleep(LIMIT * 2);
    kill(watchdog, Signal::SIGCONT).expect("it is there");
    daemon.child.signal(Signal::SIGCONT).expect("it is there");
    assert_eq!(daemon.status()["sessions"], 0);
    assert!(!daemon.child.output().contains("watchdog"), "{}", daemon.child.output());
}

#[test]
fn reload_changes_the_watchdog_limit() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let mut daemon = fixture.daemon("capture: { watchdog: 1h }\n");
    daemon.write_policy(&filtered_topology::policy(Shape::Gateway, SHORT));
    daemon.child.signal(Signal::SIGHUP).expect("it runs");
    daemon.wait_for_log("reloaded the policy", 1);
    // It says so with its next sign of life.
    thread::sleep(Duration::from_secs(1));
    daemon.child.signal(Signal::SIGSTOP).expect("it runs");
    wait_for_end(&mut daemon);
}

#[test]
fn watchdog_has_no_capability_and_ends_with_the_daemon() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let mut daemon = fixture.daemon(SHORT);
    let watchdog = watchdog_of(&daemon);
    let none = "0000000000000000";
    let expected = [
        ("CapInh", none),
        ("CapPrm", none),
        ("CapEff", none),
        ("CapBnd", none),
        ("CapAmb", none),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("Seccomp_filters", "2"),
        ("Threads", "1"),
    ];
    for (name, value) in expected {
        assert_eq!(status(watchdog, name).as_deref(), Some(value), "{name}");
    }
    // It has no queue: of netlink it has nothing at all.
    let inode =
        |target: &str| target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).map(str::to_owned);
    let files = fs::read_dir(format!("/proc/{watchdog}/fd")).expect("root may").flatten();
    let sockets: Vec<String> = files.filter_map(|file| inode(fs::read_link(file.path()).ok()?.to_str()?)).collect();
    let netlink = fs::read_to_string(format!("/proc/{watchdog}/net/netlink")).expect("it can be read");
    let is_netlink = |inode: &String| netlink.lines().any(|line| line.split_whitespace().last() == Some(inode));
    assert!(!sockets.is_empty() && !sockets.iter().any(is_netlink), "{sockets:?}");

    let blocked = status(watchdog, "SigBlk").expect("it runs");
    let blocked = u64::from_str_radix(&blocked, 16).expect("a mask");
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR2, Signal::SIGTSTP, Signal::SIGTTOU] {
        assert!(blocked & 1 << (signal as u64 - 1) != 0, "{signal} is not blocked: {blocked:016x}");
        kill(watchdog, signal).expect("it runs");
    }
    assert_eq!(daemon.status()["sessions"], 0);
    daemon.end(Signal::SIGUSR2).expect("it ends");
    assert_eq!(status(watchdog, "State"), None, "it is left");

    // However the daemon ends. The new parent of an orphan waits for it.
    daemon.restart().unwrap_or_else(|error| panic!("{error}"));
    let watchdog = watchdog_of(&daemon);
    daemon.kill().expect("it ends");
    wait_until("the watchdog to end", || Ok(status(watchdog, "State").is_none_or(|state| state.starts_with('Z'))));
}

#[test]
fn daemon_ends_if_its_watchdog_is_killed() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let mut daemon = fixture.daemon(SHORT);
    kill(watchdog_of(&daemon), Signal::SIGKILL).expect("it runs");
    wait_for_end(&mut daemon);
    daemon.wait_for_log("the daemon cannot continue", 1);
    daemon.wait_for_log("the watchdog process: it has ended", 1);
    daemon.restart().unwrap_or_else(|error| panic!("{error}"));
}
