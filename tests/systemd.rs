//! The unit as shipped, under a real systemd: installed as docs/operation.md says, on a machine of namespaces.
//!
//! Needs root, nft and systemd, which need not be what this machine was booted with.

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/machine.rs"]
mod machine;

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use daemon::PATIENCE;
use machine::{Line, Machine};
use pinhole::ftp::Mode;
use pinhole::lab::mini::{MiniClient, MiniOptions, MiniServer};
use pinhole::lab::{self, Result, Shape, Topology};
use serde_json::Value;

/// How long something may take that must not happen.
const SHORT: Duration = Duration::from_millis(300);
const CONTENT: &[u8] = b"Files are data.\r\n";
/// What the installation begins with where nothing has to be built, and everybody is root.
const SHELL: &str = "cargo() { :; }; sudo() { \"$@\"; }";

/// An FTP server's host that lets in nothing but ssh and control connections, with the service on it, and a client.
struct Host {
    machine: Machine,
    topology: Topology,
    _servers: [MiniServer; 2],
}

impl Host {
    /// A new one, on which the service was installed and started.
    fn new() -> Self {
        Self::with_drop_in("")
    }

    /// The same with more settings for the unit.
    fn with_drop_in(settings: &str) -> Self {
        let host = Self::with_ruleset();
        let [build, install, start] = documented_installation();
        host.machine.sh(&format!("{SHELL}; {build}\n{install}"));
        if daemon::mechanism() == "native" {
            // As documented, too: nothing has to be admitted by its mark.
            host.edit_policy("s/^mechanism:.*/mechanism: native/; s/^admit:.*/admit: []/");
        }
        if !settings.is_empty() {
            host.add_drop_in(settings);
        }
        host.machine.sh(&format!("{SHELL}; {start}"));
        host
    }

    /// One with the ruleset that is shipped for it, and nothing installed.
    fn with_ruleset() -> Self {
        let topology = Topology::new(Shape::ServerHost).unwrap_or_else(|error| panic!("{error}"));
        let start = |address: std::net::IpAddr| {
            let server = &topology.server.namespace;
            MiniServer::start(server, SocketAddr::new(address, 21), MiniOptions::default())
        };
        let started = start(topology.target.v4.into()).and_then(|v4| Ok([v4, start(topology.target.v6.into())?]));
        let servers = started.unwrap_or_else(|error| panic!("{error}"));
        servers.iter().for_each(|server| server.place("readme.txt", CONTENT));
        let machine = Machine::boot(&topology.firewall).unwrap_or_else(|error| panic!("{error}"));
        machine.sh("cp deploy/nftables/host.nft /etc/nftables.conf; systemctl enable --now nftables");
        Self { machine, topology, _servers: servers }
    }

    fn edit_policy(&self, edit: &str) {
        self.machine.sh(&format!("sed -i '{edit}' /etc/pinhole/policy.yaml"));
    }

    fn add_drop_in(&self, settings: &str) {
        let folder = "/etc/systemd/system/pinhole.service.d";
        let write = format!("cat >{folder}/test.conf <<'END'\n[Service]\n{settings}\nEND");
        self.machine.sh(&format!("mkdir -p {folder}\n{write}"));
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

    fn transfer(&self, mode: Mode, patience: Duration) -> Result<()> {
        let server = self.control_port(matches!(mode, Mode::Epsv | Mode::Eprt));
        self.topology.client.namespace.run(|| {
            let mut client = MiniClient::log_in(server, PATIENCE)?;
            client.be_patient_for(patience)?;
            assert_eq!(client.download(mode, "readme.txt")?, CONTENT);
            client.upload(mode, "stored.txt", CONTENT)?;
            client.quit()
        })?
    }

    #[track_caller]
    fn assert_transfers_work(&self) {
        for mode in [Mode::Pasv, Mode::Epsv, Mode::Port, Mode::Eprt] {
            self.transfer(mode, PATIENCE).unwrap_or_else(|error| panic!("{mode}: {error}"));
        }
    }

    fn property(&self, name: &str) -> String {
        self.machine.property("pinhole", name)
    }

    fn journal(&self) -> Vec<Line> {
        self.machine.journal("pinhole")
    }

    /// What the service answers in the place where `pinhole status` asks it.
    fn status(&self) -> Value {
        let answer = self.machine.sh("pinhole status --json");
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    fn counted(&self, name: &str) -> u64 {
        self.status()["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name}"))
    }

    /// The line of its table in nft's list, with the number that no other table will ever have.
    fn table(&self) -> Option<String> {
        let tables = self.topology.firewall.nft_says(&["--handle", "list", "tables"]).expect("nft lists");
        tables.lines().find(|line| line.contains("inet pinhole")).map(str::to_owned)
    }

    /// Waits until systemd has started it again, as often as that.
    #[track_caller]
    fn wait_for_restart(&self, times: u32) {
        let is_back = || {
            let restarts = self.property("NRestarts") == times.to_string();
            Ok(restarts && self.property("ActiveState") == "active")
        };
        lab::wait_until("systemd to have started it again", PATIENCE, is_back)
            .unwrap_or_else(|error| panic!("{error}"));
    }
}

/// The commands under "Install" in docs/operation.md: to build and look, to install, and to start.
fn documented_installation() -> [String; 3] {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operation.md");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let install = text.split("\n## ").find(|section| section.starts_with("Install\n")).expect("it has that section");
    let blocks = install.split("```sh\n").skip(1);
    let blocks: Vec<String> =
        blocks.filter_map(|block| block.split_once("```")).map(|(lines, _)| lines.to_owned()).collect();
    blocks.try_into().unwrap_or_else(|blocks| panic!("three steps were expected: {blocks:?}"))
}

#[test]
fn installed_as_documented_it_lets_transfers_through_until_it_is_stopped() {
    let host = Host::new();
    // Nobody waits here: systemd was told that it is ready.
    assert!(host.table().is_some(), "it was ready before its table stood");
    assert_eq!(host.property("ActiveState"), "active");
    assert_eq!(host.status()["mechanism"], daemon::mechanism());
    host.assert_transfers_work();
    let closed = SocketAddr::new(host.control_port(false).ip(), 40_000);
    let _unannounced = MiniServer::start(&host.topology.firewall, closed, MiniOptions::default()).expect("a server");
    host.visit(|| Ok(TcpStream::connect_timeout(&closed, SHORT).map(drop))).expect_err("nobody announced it");

    host.machine.sh("systemctl stop pinhole");
    assert_eq!((host.property("Result"), host.property("NRestarts")), ("success".to_owned(), "0".to_owned()));
    assert_eq!(host.table(), None);
    let rules = host.topology.firewall.nft_says(&["list", "ruleset"]).expect("nft lists");
    assert!(rules.contains("chain input") && !rules.contains("pinhole"), "{rules}");
    host.transfer(Mode::Pasv, SHORT).expect_err("without the service nothing lets data through");
    assert_eq!(
        host.machine.sh("ls -d /run/pinhole 2>&1 || true"),
        "ls: cannot access '/run/pinhole': No such file or directory"
    );
}

#[test]
fn each_line_of_its_log_is_a_record_of_the_journal_with_its_level() {
    let host = Host::new();
    host.visit(|| {
        let mut client = MiniClient::log_in(host.control_port(false), PATIENCE)?;
        client.passive(Mode::Pasv)?;
        client.send(b"PORT 192,0,2,1,200,10\r\n")?;
        client.reply()?;
        client.quit()
    });
    let opened = host.machine.wait_for_journal("pinhole", "announced by 227 in session");
    assert_eq!((opened.by.as_str(), opened.level), ("pinhole", 6));
    assert!(opened.text.starts_with("opened "), "{opened:?}");
    let refused = host.machine.wait_for_journal("pinhole", "third-party");
    assert!(refused.level == 4 && refused.text.starts_with("refused 192.0.2.1:51210: PORT"), "{refused:?}");
    host.machine.sh("echo nonsense >/etc/pinhole/policy.yaml; ! pinhole reload");
    assert_eq!(host.machine.wait_for_journal("pinhole", "the policy is not loaded").level, 3);
}

#[test]
fn a_reload_takes_a_good_policy_and_fails_with_a_bad_one() {
    let host = Host::new();
    let process = host.property("MainPID");
    host.edit_policy("s/^  modes:.*/  modes: [EPSV]/");
    host.machine.sh("systemctl reload pinhole");
    host.transfer(Mode::Epsv, PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    host.transfer(Mode::Pasv, SHORT).expect_err("the policy says that only EPSV may be");

    host.edit_policy("s/^  modes:.*/  modes: [PASV, EPSW]/");
    let reload = host.machine.try_sh("systemctl reload pinhole");
    assert!(!reload.status.success(), "{}", machine::said(&reload));
    assert_eq!((host.property("ActiveState"), host.property("MainPID")), ("active".to_owned(), process));
    host.transfer(Mode::Pasv, SHORT).expect_err("the old policy stays");
    host.transfer(Mode::Epsv, PATIENCE).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn what_was_announced_before_a_restart_or_a_kill_is_let_in_afterwards_and_its_session_goes_on() {
    let host = Host::new();
    let table = host.table();
    assert!(table.is_some());
    // What is done, how often systemd has then found the service dead, and what that was to it.
    let ends = [
        ("systemctl restart pinhole", 0, "success"),
        ("kill -KILL $(systemctl show --value --property MainPID pinhole)", 1, "success"),
    ];
    for (end, deaths, result) in ends {
        let process = host.property("MainPID");
        host.visit(|| {
            let mut client = MiniClient::log_in(host.control_port(false), PATIENCE)?;
            let announced = client.passive(Mode::Pasv)?;
            host.machine.sh(end);
            host.wait_for_restart(deaths);
            assert_ne!(host.property("MainPID"), process, "{end}");
            assert_eq!(host.property("Result"), result, "{end}");
            assert_eq!(host.table(), table, "{end}: the table has gone and come");
            assert_eq!(host.counted("adopted"), 1, "{end}");
            client.connect_data(announced)?;
            lab::wait_until("it to hear of the connection", PATIENCE, || Ok(host.counted("used") == 1))?;
            assert_eq!(client.download(Mode::Pasv, "readme.txt")?, CONTENT, "{end}");
            client.quit()
        });
    }
}

#[test]
fn the_watchdog_hears_of_it_and_restarts_it_when_it_hangs() {
    let host = Host::with_drop_in(&format!("WatchdogSec={}s", lab::allow(Duration::from_secs(3)).as_secs()));
    let (process, table) = (host.property("MainPID"), host.table());
    let heard = || host.property("WatchdogTimestampMonotonic");
    for _ in 0..2 {
        let last = heard();
        lab::wait_until("the watchdog to hear of it", PATIENCE, || Ok(heard() != last))
            .expect("it says that it is well");
    }
    assert_eq!((host.property("MainPID"), host.property("NRestarts")), (process.clone(), "0".to_owned()));

    host.machine.sh(&format!("kill -STOP {process}"));
    host.wait_for_restart(1);
    let journal = host.journal();
    assert!(journal.iter().any(|line| line.by == "systemd" && line.text.contains("Watchdog timeout")), "{journal:?}");
    assert_eq!(host.table(), table, "the table has gone and come");
    host.assert_transfers_work();
}

#[test]
fn no_call_of_the_program_and_of_nft_is_one_that_the_filter_refuses() {
    // A refused call is an error that may go unnoticed; here it is the end of whoever makes it. That it is, one that is
    // refused shows.
    let refused = "ExecStartPre=/bin/sh -c 'nice true; echo \"ended with $$?\"'";
    let host = Host::with_drop_in(&format!("SystemCallErrorNumber=kill\n{refused}"));
    host.machine.wait_for_journal("pinhole", "ended with 159");
    host.add_drop_in("SystemCallErrorNumber=kill");
    host.machine.sh("systemctl daemon-reload; systemctl reload pinhole; systemctl restart pinhole");
    host.assert_transfers_work();
    host.machine.sh("systemctl reload nftables; systemctl restart nftables");
    host.machine.wait_for_journal("pinhole", "put back the table inet pinhole");
    host.assert_transfers_work();
    host.machine.sh("pinhole status; systemctl stop pinhole");
    assert_eq!((host.property("Result"), host.property("NRestarts")), ("success".to_owned(), "0".to_owned()));
    let killed = host.journal().into_iter().find(|line| line.text.contains("SYS"));
    assert_eq!(killed, None);
}

#[test]
fn a_wrong_policy_is_not_tried_again_and_a_missing_chain_is_until_it_comes() {
    let host = Host::with_ruleset();
    let [_, install, _] = documented_installation();
    host.machine.sh(&format!("{SHELL}; {install}\nsystemctl daemon-reload"));
    host.edit_policy("s/^mechanism:.*/mechanism: magic/");
    host.machine.sh("! systemctl start pinhole");
    let stands = || (host.property("ActiveState"), host.property("ExecMainStatus"), host.property("NRestarts"));
    assert_eq!(stands(), ("failed".to_owned(), "2".to_owned(), "0".to_owned()));

    host.edit_policy("s/^mechanism:.*/mechanism: sets/");
    host.machine.sh("systemctl stop nftables; systemctl start pinhole || true");
    host.machine.wait_for_journal("pinhole", "Scheduled restart job");
    assert_eq!(host.table(), None);
    host.machine.sh("systemctl start nftables");
    let is_active = || Ok(host.property("ActiveState") == "active");
    lab::wait_until("it to find its chain", PATIENCE, is_active).unwrap_or_else(|error| panic!("{error}"));
    host.assert_transfers_work();
}
