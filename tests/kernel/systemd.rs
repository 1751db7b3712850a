//! The shipped unit under a real systemd, installed as docs/howto/operation.md says, on a machine made of namespaces.
//!
//! Needs root, nft and systemd. This machine need not have been booted with systemd.

use crate::daemon;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::daemon::TIMEOUT;
use crate::machine::{Line, Machine};
use lab::mini::{MiniClient, MiniOptions, MiniServer};
use lab::{Result, Shape, Topology};
use pinhole::core::ftp::Mode;
use serde_json::Value;

/// How long to wait for something that must not happen.
const SHORT: Duration = Duration::from_millis(300);
const CONTENT: &[u8] = b"Files are data.\r\n";
/// Replaces cargo and sudo: nothing has to be built, and every user is root.
const SHELL: &str = "cargo() { :; }; sudo() { \"$@\"; }";

/// A host with an FTP server, a filter that admits only ssh and control connections, the service, and a client.
struct Host {
    machine: Machine,
    topology: Topology,
    _servers: [MiniServer; 2],
}

impl Host {
    /// A host on which the service was installed and started.
    fn serving(settings: &str) -> Self {
        let host = Self::installed(settings);
        host.machine.sh("systemctl start nftables pinhole");
        host
    }

    /// A host on which the service was installed, without a filter yet. `settings` are added to the shipped unit.
    fn installed(settings: &str) -> Self {
        let host = Self::bare();
        let [_, install, _] = documented_installation();
        host.install(&install);
        if !settings.is_empty() {
            host.add_drop_in(settings);
        }
        host
    }

    /// A host without the service.
    fn bare() -> Self {
        let topology = Topology::new(Shape::ServerHost).unwrap_or_else(|error| panic!("{error}"));
        let start = |address: IpAddr| {
            let server = &topology.server.namespace;
            MiniServer::start(server, SocketAddr::new(address, 21), MiniOptions::default())
        };
        let started = start(topology.target.v4.into()).and_then(|v4| Ok([v4, start(topology.target.v6.into())?]));
        let servers = started.unwrap_or_else(|error| panic!("{error}"));
        servers.iter().for_each(|server| server.place("readme.txt", CONTENT));
        let machine = Machine::boot(&topology.firewall).unwrap_or_else(|error| panic!("{error}"));
        Self { machine, topology, _servers: servers }
    }

    /// Installs as documented, with the ruleset that is shipped for such a host, and the mechanism of this run.
    fn install(&self, commands: &str) {
        self.machine.sh(&format!("{SHELL}; {commands}\ncp deploy/nftables/host.nft /etc/nftables.conf"));
        if daemon::mechanism() == "native" {
            // Then nothing has to be admitted by its mark.
            self.change_policy("mechanism:", "mechanism: native");
            self.change_policy("admit:", "admit: []");
        }
    }

    /// Replaces the line of the policy that begins with `begin`.
    fn change_policy(&self, begin: &str, other: &str) {
        let path = self.machine.path("/etc/pinhole/policy.yaml");
        let policy = fs::read_to_string(&path).expect("a policy is installed");
        let line = policy.lines().find(|line| line.starts_with(begin));
        let line = line.unwrap_or_else(|| panic!("no line begins with {begin:?}: {policy}"));
        fs::write(&path, policy.replace(line, other)).expect("root may write it");
    }

    fn add_drop_in(&self, settings: &str) {
        let folder = self.machine.path("/etc/systemd/system/pinhole.service.d");
        fs::create_dir_all(&folder).expect("root may make it");
        fs::write(folder.join("test.conf"), format!("[Service]\n{settings}\n")).expect("root may write it");
    }

    fn control_port(&self, is_v6: bool) -> SocketAddr {
        let target = self.topology.target;
        SocketAddr::new(if is_v6 { target.v6.into() } else { target.v4.into() }, 21)
    }

    /// Does something where the client is.
    fn visit<T: Send>(&self, visit: impl FnOnce() -> Result<T> + Send) -> T {
        let client = &self.topology.client.namespace;
        client.run(visit).and_then(|visited| visited).unwrap_or_else(|error| panic!("{error}"))
    }

    fn transfer(&self, mode: Mode, timeout: Duration) -> Result<()> {
        let server = self.control_port(matches!(mode, Mode::Epsv | Mode::Eprt));
        self.topology.client.namespace.run(|| {
            let mut client = MiniClient::log_in(server, TIMEOUT)?;
            client.set_timeout(timeout)?;
            assert_eq!(client.download(mode, "readme.txt")?, CONTENT);
            client.upload(mode, "stored.txt", CONTENT)?;
            client.quit()
        })?
    }

    #[track_caller]
    fn assert_transfers_work(&self) {
        for mode in [Mode::Pasv, Mode::Epsv, Mode::Port, Mode::Eprt] {
            self.transfer(mode, TIMEOUT).unwrap_or_else(|error| panic!("{mode}: {error}"));
        }
    }

    fn properties<const N: usize>(&self, names: [&str; N]) -> [String; N] {
        self.machine.properties("pinhole", names)
    }

    /// The daemon's answer at the socket that `pinhole status` uses.
    fn ask(&self) -> Option<Value> {
        let sockets = fs::read_dir(self.machine.path("/run/pinhole")).ok()?.flatten();
        let socket =
            sockets.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|end| end == "sock"))?;
        let answer = daemon::ask(&socket).ok()?;
        serde_json::from_str(&answer).ok()
    }

    fn status(&self) -> Value {
        self.ask().expect("it answers")
    }

    fn counted(&self, name: &str) -> u64 {
        self.status()["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name}"))
    }

    /// The kernel's number of its table, which no other table gets, nor the same one made anew.
    fn table(&self) -> Option<u64> {
        let listed = self.topology.firewall.nft_output(&["--json", "list", "tables"]).expect("nft lists");
        let listed: Value = serde_json::from_str(&listed).unwrap_or_else(|error| panic!("{error}: {listed}"));
        let tables = listed["nftables"].as_array().expect("a list").iter().map(|item| &item["table"]);
        let mut ours = tables.filter(|table| table["family"] == "inet" && table["name"] == "pinhole");
        ours.next().map(|table| table["handle"].as_u64().expect("a table has a number"))
    }

    /// The service has two processes. Each has its own user, and its own system call filters besides those of systemd.
    /// The daemon has one capability, its watchdog none.
    #[track_caller]
    fn assert_is_confined(&self) {
        let processes = self.processes();
        assert_eq!(processes.len(), 2, "{processes:?}");
        for process in processes {
            let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
            let command = fs::read_to_string(format!("/proc/{process}/cmdline")).expect("it runs");
            let is_watchdog = command == "pinhole\0watchdog\0";
            let value = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
            };
            assert!(!value("Uid").split_whitespace().any(|user| user == "0"), "{status}");
            for set in ["CapPrm", "CapEff"] {
                assert_eq!(value(set), if is_watchdog { "0000000000000000" } else { "0000000000001000" }, "{set}");
            }
            // Without CAP_SETPCAP the bounding set cannot be reduced. With no_new_privs it grants nothing.
            assert_eq!(value("CapBnd"), "0000000000001000");
            assert_eq!([value("CapAmb"), value("NoNewPrivs"), value("Seccomp")], ["0000000000000000", "1", "2"]);
            assert!(value("Seccomp_filters").parse::<u32>().is_ok_and(|filters| filters > 3), "{status}");
        }
        assert_eq!(self.properties(["MemoryMax"]), [(512 << 20).to_string()]);
    }

    fn processes(&self) -> Vec<String> {
        self.machine.processes("pinhole.service")
    }

    /// Waits until all of its processes are new ones, and it serves again.
    #[track_caller]
    fn wait_for_others_than(&self, former: &[String]) {
        let is_back = || {
            let processes = self.processes();
            let others = !processes.is_empty() && !processes.iter().any(|process| former.contains(process));
            Ok(others && self.ask().is_some())
        };
        lab::wait_until("it to serve again", TIMEOUT, is_back).unwrap_or_else(|error| panic!("{error}"));
        self.wait_until_active();
    }

    #[track_caller]
    fn wait_until_active(&self) {
        let is_active = || Ok(self.properties(["ActiveState"]) == ["active"]);
        lab::wait_until("systemd to find it active", TIMEOUT, is_active).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// The commands under "Install" in docs/howto/operation.md: to build and look, to install, and to start.
fn documented_installation() -> [String; 3] {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/howto/operation.md");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let install = text.split("\n## ").find(|section| section.starts_with("Install\n")).expect("it has that section");
    let blocks = install.split("```sh\n").skip(1);
    let blocks: Vec<String> =
        blocks.filter_map(|block| block.split_once("```")).map(|(lines, _)| lines.to_owned()).collect();
    blocks.try_into().unwrap_or_else(|blocks| panic!("three steps were expected: {blocks:?}"))
}

#[test]
fn documented_installation_admits_transfers_until_stopped() {
    let host = Host::bare();
    let [build, install, start] = documented_installation();
    host.install(&format!("{build}\n{install}"));
    host.machine.sh(&format!("systemctl enable --now nftables; {SHELL}; {start}"));
    // No wait is needed: systemd was notified that it is ready.
    assert!(host.table().is_some(), "it was ready before its table stood");
    host.assert_is_confined();
    assert_eq!(host.status()["mechanism"], daemon::mechanism());
    host.assert_transfers_work();
    let closed = SocketAddr::new(host.control_port(false).ip(), 40_000);
    let _unannounced = MiniServer::start(&host.topology.firewall, closed, MiniOptions::default()).expect("a server");
    let reached = host.visit(|| Ok(TcpStream::connect_timeout(&closed, SHORT).is_ok()));
    assert!(!reached, "nobody announced it");
    host.visit(|| {
        let mut client = MiniClient::log_in(host.control_port(false), TIMEOUT)?;
        client.send(b"PORT 192,0,2,1,200,10\r\n")?;
        client.reply()?;
        client.quit()
    });
    assert!(host.machine.sh("pinhole status").contains("third-party 1"), "an announcement of somebody else");

    host.machine.sh("systemctl stop pinhole; [ ! -e /run/pinhole ]");
    assert_eq!(host.properties(["ActiveState", "Result", "NRestarts"]), ["inactive", "success", "0"]);
    assert_eq!(host.table(), None);
    let rules = host.topology.firewall.nft_output(&["list", "ruleset"]).expect("nft lists");
    assert!(rules.contains("chain input") && !rules.contains("pinhole"), "{rules}");
    host.transfer(Mode::Pasv, SHORT).expect_err("without the service nothing lets data through");

    // Each line is a record of its own, with its level: 3 an error, 4 a warning, 6 an information.
    let journal = host.machine.journal("pinhole");
    let level = |begin: &str, within: &str| {
        let said = |line: &&Line| line.by == "pinhole" && line.text.starts_with(begin) && line.text.contains(within);
        journal.iter().find(said).unwrap_or_else(|| panic!("no {begin}...{within} in {journal:?}")).level
    };
    assert_eq!(level("opened ", "announced by 227; session"), 6);
    assert_eq!(level("used ", "announced by 227; session"), 6);
    assert_eq!(level("refused PORT 192.0.2.1:51210", "third-party"), 4);
    assert_eq!(level("SIGTERM: removing the table inet pinhole", ""), 6);
}

#[test]
fn bad_policy_is_refused_and_missing_chain_is_retried() {
    let host = Host::installed("");
    host.change_policy("mechanism:", "mechanism: magic");
    host.machine.sh("! systemctl start pinhole");
    assert_eq!(host.properties(["ActiveState", "ExecMainStatus", "NRestarts"]), ["failed", "2", "0"]);

    host.change_policy("mechanism:", &format!("mechanism: {}", daemon::mechanism()));
    host.change_policy("admit:", "admit: [inet filter input]");
    host.machine.sh("! systemctl start pinhole");
    host.machine.wait_for_journal("pinhole", "Scheduled restart job");
    assert_eq!(host.table(), None);
    host.machine.sh("systemctl start nftables");
    host.wait_until_active();
    host.assert_transfers_work();

    let processes = host.processes();
    host.change_policy("  modes:", "  modes: [EPSV]");
    host.machine.sh("systemctl reload pinhole");
    host.transfer(Mode::Epsv, TIMEOUT).unwrap_or_else(|error| panic!("{error}"));
    host.transfer(Mode::Pasv, SHORT).expect_err("the new policy says that only EPSV may be");
    host.change_policy("  modes:", "  modes: [PASV, EPSW]");
    host.machine.sh("! systemctl reload pinhole");
    host.transfer(Mode::Pasv, SHORT).expect_err("the old policy stays");
    host.transfer(Mode::Epsv, TIMEOUT).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(host.processes(), processes);
    assert_eq!(host.machine.wait_for_journal("pinhole", "reload failed").level, 3);
}

#[test]
fn pinhole_and_session_survive_restart_kill_and_hang() {
    // Long enough that the daemon's own watchdog is earlier, where the policy lets it be.
    let limit = lab::allow(Duration::from_secs(10)).as_secs();
    let host = Host::serving(&format!("WatchdogSec={limit}s"));
    let table = host.table();
    assert!(table.is_some());
    let told = "systemctl show --property WatchdogTimestampMonotonic pinhole";
    host.machine.sh(&format!("last=$({told}); while [ \"$last\" = \"$({told})\" ]; do sleep 0.5; done"));
    // What is done to it, and how often systemd has then found that it had ended by itself. Of two hangs the daemon's own
    // watchdog ends the first, and systemd's the second.
    // The daemon tells its watchdog of the policy with its next sign of life, of which there are two a second.
    let long_watchdog =
        "echo 'capture: { watchdog: 1h }' >>/etc/pinhole/policy.yaml; systemctl reload pinhole; sleep 1";
    let hangs = "kill -STOP $MAINPID";
    let hangs_for_long = format!("{long_watchdog}; {hangs}");
    let ends = [("systemctl restart pinhole", "0"), ("kill -KILL $MAINPID", "1"), (hangs, "2"), (&hangs_for_long, "3")];
    for (end, restarts) in ends {
        let processes = host.processes();
        host.visit(|| {
            let mut client = MiniClient::log_in(host.control_port(false), TIMEOUT)?;
            let announced = client.passive(Mode::Pasv)?;
            host.machine.sh(&format!("MAINPID=$(systemctl show --value --property MainPID pinhole); {end}"));
            host.wait_for_others_than(&processes);
            assert_eq!(host.properties(["NRestarts"]), [restarts], "{end}");
            assert_eq!(host.table(), table, "{end}: the table has gone and come");
            assert_eq!(host.counted("adopted"), 1, "{end}");
            client.connect_data(announced)?;
            let heard =
                |used| lab::wait_until("it to hear of the connection", TIMEOUT, || Ok(host.counted("used") == used));
            heard(1)?;
            assert_eq!(client.download(Mode::Pasv, "readme.txt")?, CONTENT, "{end}");
            // A use of which the daemon got no event before its end: the pinhole is adopted as unused.
            heard(2)?;
            client.quit()
        });
    }
    let said = host.machine.wait_for_journal("pinhole", "the watchdog killed the daemon");
    assert_eq!((&*said.by, said.level), ("pinhole", 3));
    host.machine.wait_for_journal("pinhole", "Watchdog timeout");
    assert_eq!(host.processes().len(), 2, "a process of an earlier run is left");
}

#[test]
fn system_call_filter_allows_all_calls_of_pinhole_and_nft() {
    // A refused call is an error that may go unnoticed; here it ends the caller. A refused call below shows that it
    // does.
    let refused = "ExecStartPre=/bin/sh -c 'nice true; echo \"ended with $$?\"'";
    let host = Host::serving(&format!("SystemCallErrorNumber=kill\n{refused}"));
    host.machine.wait_for_journal("pinhole", "ended with 159");
    host.machine.sh("systemctl reload pinhole; systemctl restart pinhole");
    host.assert_transfers_work();
    host.machine.sh("systemctl reload nftables; systemctl restart nftables");
    host.machine.wait_for_journal("pinhole", "restored the table inet pinhole");
    host.assert_transfers_work();
    host.machine.sh("systemctl stop pinhole");
    assert_eq!(host.properties(["Result", "NRestarts"]), ["success", "0"]);
    assert_eq!(host.table(), None);
    let killed = host.machine.journal("pinhole").into_iter().find(|line| line.text.contains("/SYS"));
    assert_eq!(killed, None);
}

/// A server that speaks just enough: CONTROL DATA. It listens on DATA once the login is over, as a server does before it
/// announces the port. The records are none of TLS, but look like them.
const ENCRYPTING_SERVER: &str = "
import socket, sys
control, data = map(int, sys.argv[1:])
listener = socket.create_server(('', control))
while True:
    peer, _ = listener.accept()
    records = 0
    try:
        peer.sendall(b'220 ready\\r\\n')
        peer.recv(100)
        peer.sendall(b'234 go on\\r\\n')
        while record := peer.recv(100):
            records += 1
            if records == 3:
                passive = socket.create_server(('', data))
            peer.sendall(record)
    except OSError:
        pass
    if records >= 3:
        passive.close()
";

/// A session up to the command behind the login, which remains open.
fn encrypted_session(server: SocketAddr) -> TcpStream {
    let mut session = TcpStream::connect_timeout(&server, TIMEOUT).expect("the filter admits it");
    session.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    let mut answer = |said: &[u8]| {
        session.write_all(said).expect("it is open");
        let mut buffer = [0; 100];
        let length = session.read(&mut buffer).expect("an answer");
        buffer[..length].to_vec()
    };
    assert_eq!(answer(b""), b"220 ready\r\n");
    assert_eq!(answer(b"AUTH TLS\r\n"), b"234 go on\r\n");
    for record in [b"\x16\x03\x01\0\x02ab", b"\x17\x03\x03\0\x02ab", b"\x17\x03\x03\0\x02ab", b"\x17\x03\x03\0\x02ab"] {
        assert_eq!(answer(record), record);
    }
    session
}

/// Inside the sandbox of its unit, Pinhole reads cgroups and asks for sockets.
#[test]
fn unit_vouches_for_the_data_sockets_of_a_unit() {
    let host = Host::serving("");
    let python = lab::tools::python().expect("Python");
    let [server, ours, others] =
        [2121, 40_000, 40_001].map(|port| SocketAddr::new(host.control_port(false).ip(), port));
    let script = host.machine.path("/run/server.py");
    fs::write(script, ENCRYPTING_SERVER).expect("root may write it");
    let start = |unit: &str, arguments: &str| {
        host.machine
            .sh(&format!("systemd-run --quiet --unit={unit} {} -u /run/server.py {arguments}", python.display()));
    };
    start("ftps", "2121 40000");
    start("web", "40001 40002");
    host.machine.sh("nft insert rule inet filter input tcp dport 2121 accept");
    let client = &host.topology.client.namespace;
    for (service, reachable) in [
        ("service", [true, false]),
        ("service unit ftps.service", [true, false]),
        ("service unit web.service", [false, true]),
        ("service cgroup /system.slice/ftps.service", [true, false]),
        ("service unit gone.service", [false, false]),
    ] {
        let mechanism = daemon::mechanism();
        let policy = format!(
            "control_ports: [21, 2121]\nadmit: [inet filter input]\nmechanism: {mechanism}\ndefaults: {{ tls: {service} }}\n"
        );
        fs::write(host.machine.path("/etc/pinhole/policy.yaml"), policy).expect("root may write it");
        host.machine.sh("systemctl reload pinhole");
        for port in [server, others] {
            lab::wait_until("the units to listen", TIMEOUT, || host.topology.firewall.is_listening(port.port()))
                .unwrap_or_else(|error| panic!("{port}: {error}: {:?}", host.machine.journal("ftps")));
        }
        let reached = client.run(|| {
            let _session = encrypted_session(server);
            [ours, others].map(|port| TcpStream::connect_timeout(&port, SHORT).is_ok())
        });
        assert_eq!(reached.expect("root may enter"), reachable, "{service}: {:?}", host.machine.journal("pinhole"));
    }
}
