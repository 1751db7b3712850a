//! `tls: service`: encrypted sessions with real servers and clients, and no open port range. The kernel tells whether the FTP
//! service listens where a data connection goes.
//!
//! Needs root, nft, control groups of version 2, and the programs that `tests/setup test` fetches.

use std::fs::{self, File};
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use lab::{
    Child, ClientKind, Family, PASSWORD, Server, ServerKind, ServerOptions, Shape, Task, Tls, USER, Visit, tools,
};
use pinhole::netfilter::netlink::Tables;

use crate::daemon::{Daemon, TIMEOUT};
use crate::filtered_topology::{CONTENT, FILE, FilteredTopology, TABLE, assert_closed, connect};

const SERVICE: &str = "control_ports: [21, 2121]\ndefaults: { tls: service }\n";
/// For sessions that are encrypted from the start; the filter admits it, too.
const IMPLICIT_PORT: u16 = 2121;

/// A control group of version 2. Dropping it removes it; nothing may run in it then.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let is_mounted = |root: &&str| Path::new(root).join("cgroup.controllers").exists();
        let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].into_iter().find(is_mounted);
        let root = root.expect("control groups of version 2 are mounted");
        let name = format!("pinhole-lab-ftps-{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = Path::new(root).join(name);
        fs::create_dir(&folder).expect("root may make a control group");
        Self(folder)
    }

    /// Its path as a policy has it.
    fn path(&self) -> String {
        format!("/{}", self.0.file_name().expect("a name").to_string_lossy())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The kernel keeps it until the last process that was killed has been reaped.
        let _ = lab::wait_until("the control group to be empty", TIMEOUT, || Ok(fs::remove_dir(&self.0).is_ok()));
    }
}

fn serve(fixture: &FilteredTopology, kind: ServerKind, (family, tls): (Family, Tls), group: Option<&Cgroup>) -> Server {
    let address = fixture.topology.server.addresses.of(family);
    let port = if tls == Tls::Implicit { IMPLICIT_PORT } else { 21 };
    let cgroup = group.map(|group| group.0.clone());
    let options = ServerOptions { port, tls: Some(tls), cgroup, ..ServerOptions::on(address) };
    let server = kind.start(&fixture.topology.server.namespace, &options).unwrap_or_else(|error| panic!("{error}"));
    server.place(FILE, CONTENT).expect("a file");
    server
}

/// An encrypted session of Python's ftplib, which lists the home folder as often as it is told.
struct Session {
    child: Child,
    commands: Option<File>,
    folder: PathBuf,
    listed: u32,
}

impl Session {
    fn open(fixture: &FilteredTopology, server: SocketAddr) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("pinhole-ftps-{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).expect("a folder");
        let commands = folder.join("commands");
        rustix::fs::mknodat(rustix::fs::CWD, &commands, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a FIFO");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/ftps_client.py");
        let mut command = fixture.topology.client.namespace.command(tools::python().expect("Python"));
        command.args(["-u", "-I", "-S"]).arg(script);
        command.args([&server.ip().to_string(), &server.port().to_string(), USER, PASSWORD]).arg(&commands);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{error}"));
        wait_for(&mut child, "logged in");
        let commands = File::options().write(true).open(&commands).expect("its reader is there");
        Self { child, commands: Some(commands), folder, listed: 0 }
    }

    /// Lists once more; what it said.
    fn list(&mut self) -> String {
        self.listed += 1;
        self.commands.as_mut().expect("it is open").write_all(b"list\n").expect("its reader is there");
        wait_for(&mut self.child, &format!("{}: ", self.listed))
    }

    fn quit(mut self) {
        self.commands = None;
        wait_for(&mut self.child, "left");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).expect("it was made here");
    }
}

/// Waits for a line that begins like this, and returns it.
fn wait_for(child: &mut Child, start: &str) -> String {
    let mut found = None;
    lab::wait_until(&format!("{start:?} of the FTPS client"), TIMEOUT, || {
        found = child.output().lines().find(|line| line.starts_with(start)).map(str::to_owned);
        Ok(found.is_some() || !child.is_running()?)
    })
    .unwrap_or_else(|error| panic!("{error}: {}", child.output()));
    found.unwrap_or_else(|| panic!("it has ended: {}", child.output()))
}

/// The log lines may be suppressed.
fn refusals(daemon: &Daemon, reason: &str) -> u64 {
    daemon.status()["counters"]["refused"][reason].as_u64().unwrap_or(0)
}

#[test]
fn encrypted_transfers_work_in_every_mode_without_an_open_range() {
    for (kind, tls, family) in [
        (ServerKind::Vsftpd, Tls::Explicit, Family::V4),
        (ServerKind::Vsftpd, Tls::Explicit, Family::V6),
        (ServerKind::Vsftpd, Tls::Implicit, Family::V6),
        (ServerKind::PureFtpd, Tls::Explicit, Family::V4),
    ] {
        let fixture = FilteredTopology::new(Shape::ServerHost);
        let group = Cgroup::new();
        let server = serve(&fixture, kind, (family, tls), Some(&group));
        let daemon = fixture.daemon(SERVICE);
        let port = if tls == Tls::Implicit { IMPLICIT_PORT } else { 21 };
        let mut transfers = 0;
        for client in [ClientKind::Curl, ClientKind::Lftp] {
            for &mode in client.modes(family) {
                if client == ClientKind::Curl && mode.is_active() {
                    // curl 7.88 waits for ever for the handshake on the data connection that it accepts.
                    continue;
                }
                let visit = Visit {
                    namespace: &fixture.topology.client.namespace,
                    server: fixture.target(family, port),
                    mode,
                    announce: None,
                    tls: Some(tls),
                    timeout: TIMEOUT,
                };
                let tasks = [Task::List, Task::Download(FILE), Task::Upload("up.txt", CONTENT)];
                let said = client.visit(&visit, &tasks).unwrap_or_else(|error| {
                    panic!("{kind} {tls:?} {family} {client} {mode}: {error}\n{}", daemon.child.output())
                });
                assert_eq!(said[1], CONTENT, "{kind} {client} {mode}");
                server.wait_for_content("up.txt", CONTENT, TIMEOUT).expect("it was stored");
                transfers += 3;
            }
        }
        let counters = ["opened", "used"].map(|name| daemon.counted(name));
        assert_eq!(counters, [transfers, transfers], "{kind} {tls:?} {family}: {}", daemon.child.output());
        drop((daemon, server));
    }
}

#[test]
fn encrypted_session_opens_no_port_of_another_service() {
    let fixture = FilteredTopology::new(Shape::ServerHost);
    let group = Cgroup::new();
    let server = serve(&fixture, ServerKind::Vsftpd, (Family::V4, Tls::Explicit), Some(&group));
    let daemon = fixture.daemon(SERVICE);
    let mut session = Session::open(&fixture, fixture.target(Family::V4, 21));
    let first = session.list();
    assert!(first.contains(FILE), "{first}: {}", daemon.child.output());

    let other = fixture.target(Family::V4, 50_099);
    let listener = fixture.firewall().run(|| TcpListener::bind(other)).expect("root may enter").expect("a free port");
    let client = &fixture.topology.client.namespace;
    assert_closed(client, other);
    assert!(refusals(&daemon, "other-service") > 0, "{}", daemon.child.output());
    drop(listener);
    // A program that another test starts just now has the listener until it executes.
    lab::wait_until("a refusal: not-listening", TIMEOUT, || {
        assert!(connect(client, other).is_err());
        Ok(refusals(&daemon, "not-listening") > 0)
    })
    .unwrap_or_else(|error| panic!("{error}: {}", daemon.child.output()));
    for port in [22, 3306] {
        let known = fixture.target(Family::V4, port);
        let _listener =
            fixture.firewall().run(|| TcpListener::bind(known)).expect("root may enter").expect("a free port");
        assert_closed(client, known);
    }
    let again = session.list();
    assert!(again.contains(FILE), "{again}: {}", daemon.child.output());
    assert_eq!((daemon.counted("opened"), daemon.counted("used")), (2, 2), "{}", daemon.child.output());
    session.quit();
    drop((daemon, server));
}

#[test]
fn server_without_a_cgroup_of_its_own_is_vouched_for_by_its_user_only() {
    for (service, is_open) in [("service", false), ("service uid 65534", true), ("service uid 4242", false)] {
        let fixture = FilteredTopology::new(Shape::ServerHost);
        let _server = serve(&fixture, ServerKind::Vsftpd, (Family::V4, Tls::Explicit), None);
        let daemon = fixture.daemon(&format!("defaults: {{ tls: {service} }}\n"));
        let mut session = Session::open(&fixture, fixture.target(Family::V4, 21));
        let said = session.list();
        assert_eq!(said.contains(FILE), is_open, "{service}: {said}\n{}", daemon.child.output());
        match service {
            "service" => daemon.wait_for_log("shared-cgroup", 1),
            _ if !is_open => daemon.wait_for_log("other-service", 1),
            _ => {}
        }
    }
}

#[test]
fn service_named_by_its_cgroup_is_vouched_for() {
    let fixture = FilteredTopology::new(Shape::ServerHost);
    let [group, empty] = [Cgroup::new(), Cgroup::new()];
    let server = serve(&fixture, ServerKind::Vsftpd, (Family::V4, Tls::Explicit), Some(&group));
    for (named, is_open) in [(&group, true), (&empty, false)] {
        let daemon = fixture.daemon(&format!("defaults: {{ tls: service cgroup {} }}\n", named.path()));
        let mut session = Session::open(&fixture, fixture.target(Family::V4, 21));
        let said = session.list();
        assert_eq!(said.contains(FILE), is_open, "{said}\n{}", daemon.child.output());
    }
    drop(server);
}

#[test]
fn encrypted_session_works_after_the_daemon_was_killed() {
    let fixture = FilteredTopology::new(Shape::ServerHost);
    let group = Cgroup::new();
    let server = serve(&fixture, ServerKind::Vsftpd, (Family::V4, Tls::Explicit), Some(&group));
    let mut daemon = fixture.daemon(SERVICE);
    let mut session = Session::open(&fixture, fixture.target(Family::V4, 21));
    assert!(session.list().contains(FILE), "{}", daemon.child.output());
    daemon.kill().expect("it runs");
    let daemon = fixture.daemon(SERVICE);
    let said = session.list();
    assert!(said.contains(FILE), "{said}\n{}", daemon.child.output());
    session.quit();
    lab::wait_until("the end of the session", TIMEOUT, || {
        let listed = fixture.firewall().run(|| Tables::open(TIMEOUT)?.elements(TABLE, "asked_hosts4"))?;
        Ok(listed.expect("the set is there").is_empty())
    })
    .unwrap_or_else(|error| panic!("{error}: {}", daemon.child.output()));
    drop((daemon, server));
}

#[test]
fn other_connections_between_the_hosts_do_not_wait_for_a_dead_daemon() {
    let fixture = FilteredTopology::new(Shape::ServerHost);
    let group = Cgroup::new();
    let server = serve(&fixture, ServerKind::Vsftpd, (Family::V4, Tls::Explicit), Some(&group));
    let web = fixture.target(Family::V4, 8080);
    let _listener = fixture.firewall().run(|| TcpListener::bind(web)).expect("root may enter").expect("a free port");
    fixture.firewall().nft("insert rule inet filter input tcp dport 8080 accept").expect("a rule");
    let mut daemon = fixture.daemon(&format!("{SERVICE}capture: {{ when_down: closed }}\n"));
    let mut session = Session::open(&fixture, fixture.target(Family::V4, 21));
    assert!(session.list().contains(FILE), "{}", daemon.child.output());
    connect(&fixture.topology.client.namespace, web).expect("the daemon lets it go on");
    daemon.kill().expect("it runs");
    connect(&fixture.topology.client.namespace, web).expect("nobody holds it up");
    drop((session, server));
}

/// A client's host has no server, and its programs are in one cgroup; a user vouches for them.
#[test]
fn encrypted_active_transfer_opens_the_clients_listener() {
    let fixture = FilteredTopology::new(Shape::ClientHost);
    let server = serve(&fixture, ServerKind::Vsftpd, (Family::V4, Tls::Explicit), None);
    let daemon = fixture.daemon("defaults: { tls: service uid 0 }\n");
    for &mode in ClientKind::Lftp.modes(Family::V4) {
        let visit = Visit {
            namespace: &fixture.topology.client.namespace,
            server: fixture.target(Family::V4, 21),
            mode,
            announce: None,
            tls: Some(Tls::Explicit),
            timeout: TIMEOUT,
        };
        let said = ClientKind::Lftp.visit(&visit, &[Task::Download(FILE)]);
        let said = said.unwrap_or_else(|error| panic!("{mode}: {error}\n{}", daemon.child.output()));
        assert_eq!(said[0], CONTENT, "{mode}");
    }
    drop(server);
}

#[test]
fn gateway_says_that_it_cannot_vouch() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let group = Cgroup::new();
    let server = serve(&fixture, ServerKind::Vsftpd, (Family::V4, Tls::Explicit), Some(&group));
    let daemon = fixture.daemon(SERVICE);
    let mut session = Session::open(&fixture, fixture.target(Family::V4, 21));
    let said = session.list();
    assert!(said.contains("failed"), "{said}");
    daemon.wait_for_log("not-on-this-host", 1);
    assert_eq!(daemon.counted("opened"), 0);
    drop((daemon, server));
}
