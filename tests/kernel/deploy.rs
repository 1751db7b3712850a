//! What users copy from `deploy/`: the rulesets with their policies, on a real firewall, and the unit.
//!
//! Needs root, nft and systemd-analyze. `systemd.rs` runs the unit under systemd.

use crate::daemon;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::daemon::{Daemon, PROGRAM, TIMEOUT};

use lab::mini::{MiniClient, MiniOptions, MiniServer};
use lab::{Family, PrivateFiles, Result, Shape, Topology};
use pinhole::core::ftp::Mode;
use pinhole::core::kernel::Mark;
use pinhole::netfilter::table::own_rule;

/// How long something may take that must not happen.
const SHORT: Duration = Duration::from_millis(300);
const CONTENT: &[u8] = b"Files are data.\r\n";
/// A port of the server behind the firewall that is never announced.
const UNANNOUNCED: u16 = 40_000;
/// The line that each ruleset shows to users who write the rule themselves.
const OWN_LINE: &str = "ct state new,related ct mark & 0x10000000 == 0x10000000 accept";

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(deploy(name)).unwrap_or_else(|error| panic!("deploy/{name}: {error}"))
}

/// A ruleset and the policy beside it.
struct Example {
    ruleset: String,
    policy: String,
}

impl Example {
    fn named(name: &str) -> Self {
        Self { ruleset: read(&format!("nftables/{name}.nft")), policy: read(&format!("policies/{name}.yaml")) }
    }

    /// The other way that the comments show: nothing in `admit`, and the line in the ruleset.
    fn by_hand(self) -> Self {
        let without = |line: &str| if line.starts_with("admit:") { "admit: []".to_owned() } else { line.to_owned() };
        let policy: Vec<String> = self.policy.lines().map(without).collect();
        let policy = policy.join("\n");
        let ruleset = self.ruleset.replace(&format!("# {OWN_LINE}"), OWN_LINE);
        assert!(ruleset != self.ruleset && policy != self.policy, "the other way is shown");
        Self { ruleset, policy }
    }
}

/// A server behind or on the firewall, reachable by both families.
struct Site {
    topology: Topology,
    _servers: Vec<MiniServer>,
    _unannounced: Vec<MiniServer>,
}

impl Site {
    fn new(shape: Shape) -> Result<Self> {
        let topology = Topology::new(shape)?;
        let listen = |port: u16| -> Result<Vec<MiniServer>> {
            let start = |family| {
                let address = SocketAddr::new(topology.server.addresses.of(family), port);
                let server = MiniServer::start(&topology.server.namespace, address, MiniOptions::default())?;
                server.place("readme.txt", CONTENT);
                Ok(server)
            };
            Family::ALL.into_iter().map(start).collect()
        };
        let (servers, unannounced) = (listen(21)?, listen(UNANNOUNCED)?);
        Ok(Self { topology, _servers: servers, _unannounced: unannounced })
    }

    fn on_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.topology.client.namespace.run(work).expect("the namespace can be entered")
    }

    fn server(&self, family: Family) -> IpAddr {
        self.topology.target.of(family)
    }

    fn transfer(&self, family: Family, mode: Mode, timeout: Duration) -> Result<()> {
        let server = SocketAddr::new(self.server(family), 21);
        self.on_client(|| {
            let mut client = MiniClient::log_in(server, TIMEOUT)?;
            client.set_timeout(timeout)?;
            assert_eq!(client.download(mode, "readme.txt")?, CONTENT);
            client.upload(mode, "stored.txt", CONTENT)?;
            client.quit()
        })
    }

    fn assert_all_modes_work(&self, when: &str) {
        let v4 = [Mode::Port, Mode::Eprt, Mode::Pasv, Mode::Epsv].map(|mode| (Family::V4, mode));
        let v6 = [Mode::Eprt, Mode::Epsv].map(|mode| (Family::V6, mode));
        for (family, mode) in v4.into_iter().chain(v6) {
            self.transfer(family, mode, TIMEOUT).unwrap_or_else(|error| panic!("{when}, {family} {mode}: {error}"));
            self.assert_unannounced_is_closed(family);
        }
    }

    fn assert_unannounced_is_closed(&self, family: Family) {
        let closed = SocketAddr::new(self.server(family), UNANNOUNCED);
        let came = self.on_client(|| TcpStream::connect_timeout(&closed, SHORT).is_ok());
        assert!(!came, "{closed} was reached, and nobody had announced it");
    }
}

/// Without Pinhole passive transfers fail; with it all work, also after the user's ruleset was loaded anew.
fn assert_works(example: &Example, shape: Shape) {
    let site = Site::new(shape).expect("a site");
    let firewall = &site.topology.firewall;
    firewall.nft(&example.ruleset).expect("the ruleset is good");
    site.transfer(Family::V4, Mode::Pasv, SHORT).expect_err("without Pinhole nothing lets data through");
    let daemon = Daemon::start(firewall, &example.policy).expect("it starts");
    site.assert_all_modes_work("after the start");

    firewall.nft(&example.ruleset).expect("the ruleset is good a second time");
    let stands = || {
        let rules = firewall.nft_output(&["list", "ruleset"])?;
        let is_admitted = !example.policy.contains("admit: [inet") || rules.contains("pinhole: announced");
        // Its chains come in two steps where the compat target queues; the ones that capture are in the last.
        Ok(rules.contains("goto inspect") && is_admitted)
    };
    lab::wait_until("it to mend the ruleset", TIMEOUT, stands).unwrap_or_else(|error| panic!("{error}"));
    site.assert_all_modes_work("after a reload of the user's ruleset");
    drop(daemon);
}

#[test]
fn example_rule_is_the_rule_that_pinhole_rules_prints() {
    assert_eq!(OWN_LINE, own_rule(Mark::default()));
}

#[test]
fn shipped_host_ruleset_admits_transfers() {
    assert_works(&Example::named("host"), Shape::ServerHost);
}

#[test]
fn host_ruleset_with_manual_rule_admits_transfers() {
    assert_works(&Example::named("host").by_hand(), Shape::ServerHost);
}

#[test]
fn shipped_gateway_ruleset_admits_transfers() {
    assert_works(&Example::named("gateway"), Shape::Gateway);
}

#[test]
fn gateway_ruleset_with_manual_rule_admits_transfers() {
    assert_works(&Example::named("gateway").by_hand(), Shape::Gateway);
}

#[test]
fn distribution_style_rulesets_admit_transfers_in_both_roles() {
    for shape in [Shape::ServerHost, Shape::Gateway] {
        assert_works(&Example::named("distribution"), shape);
        assert_works(&Example::named("distribution").by_hand(), shape);
    }
}

#[test]
fn every_shipped_policy_is_valid_without_warnings() {
    let policies = std::fs::read_dir(deploy("policies")).expect("the folder is there");
    let mut count = 0;
    for policy in policies {
        let path = policy.expect("it can be read").path();
        let done = Command::new(PROGRAM).arg("check").arg(&path).output().expect("it runs");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && said.is_empty(), "{}: {said}", path.display());
        count += 1;
    }
    assert_eq!(count, 3);
}

/// The settings of the unit, in order; a key may come several times.
fn unit() -> Vec<(String, String)> {
    let text = read("pinhole.service");
    let lines = text.lines().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty());
    lines
        .map(|line| {
            let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("not a setting: {line}"));
            (key.to_owned(), value.to_owned())
        })
        .collect()
}

fn setting(key: &str) -> String {
    let found: Vec<_> = unit().into_iter().filter(|(name, _)| name == key).collect();
    let [(_, value)] = found.as_slice() else { panic!("{key} is there {} times", found.len()) };
    value.clone()
}

/// Runs a command line of the unit with the program that was built, away from this machine's network and `/run`.
fn try_command_line(key: &str, policy: &str) -> lab::Finished {
    let line = setting(key);
    let mut words = line.split(' ');
    assert_eq!(words.next(), Some("/usr/local/bin/pinhole"), "{key}");
    let words = words.map(|word| if word == "/etc/pinhole/policy.yaml" { policy } else { word });
    let namespace = lab::Namespace::new("unit").expect("a namespace");
    let files = PrivateFiles::new().expect("private files");
    let mut command = namespace.command(PROGRAM);
    command.args(words).private_files(&files).spawn().expect("it starts").wait(TIMEOUT).expect("it ends")
}

#[test]
fn unit_runs_valid_command_lines() {
    let run = try_command_line("ExecStart", "/nonexistent/policy.yaml");
    assert!(run.output().contains("cannot read the policy /nonexistent/policy.yaml"), "{}", run.output());
    assert_eq!(run.status.code().map(|code| code.to_string()), Some(setting("RestartPreventExitStatus")));

    // And it asks where the service listens: in the folder that systemd makes.
    let reload = try_command_line("ExecReload", "");
    let socket = format!("/run/{}/control-", setting("RuntimeDirectory"));
    assert!(reload.output().contains(&format!("no daemon answers at {socket}")), "{}", reload.output());
}

#[test]
fn unit_sets_notify_watchdog_restart_and_order() {
    assert_eq!(setting("Type"), "notify");
    assert!(setting("WatchdogSec").ends_with('s'));
    assert_eq!(setting("Restart"), "on-failure");
    // An order only: if nftables.service is restarted or fails, that is no reason to end.
    assert_eq!(setting("After"), "nftables.service ufw.service firewalld.service netfilter-persistent.service");
    let binds = ["Requires", "BindsTo", "PartOf", "Requisite", "Conflicts"];
    assert!(unit().iter().all(|(key, _)| !binds.contains(&key.as_str())));
}

#[test]
fn one_capability_in_the_unit_is_enough() {
    let capability = setting("CapabilityBoundingSet").to_lowercase();
    let capability = capability.strip_prefix("cap_").expect("one capability");
    let bounding_set = format!("--bounding-set=-all,+{capability}");
    assert_works_behind(&["setpriv", &bounding_set, "--inh-caps", "-all", "--no-new-privs"]);
}

#[test]
fn proc_as_the_unit_shows_it_is_enough() {
    assert_eq!((setting("ProtectProc"), setting("ProcSubset")), ("invisible".to_owned(), "pid".to_owned()));
    let mount = "mount -t proc -o subset=pid,hidepid=invisible proc /proc && exec \"$0\" \"$@\"";
    assert_works_behind(&["unshare", "--mount", "sh", "-c", mount]);
}

/// Starts the service through another program, and has transfers made.
fn assert_works_behind(front: &[&str]) {
    let example = Example::named("gateway");
    let site = Site::new(Shape::Gateway).expect("a site");
    let firewall = &site.topology.firewall;
    firewall.nft(&example.ruleset).expect("the ruleset is good");
    let folder = daemon::new_folder();
    daemon::write_policy(&folder, &example.policy);
    let mut command = firewall.command(front[0]);
    command
        .args(&front[1..])
        .args([PROGRAM, "run", "--policy"])
        .arg(folder.join("policy.yaml"))
        .env("PINHOLE_SOCKET", folder.join("control.sock"));
    let child = command.spawn().expect("it starts");
    let stands = || Ok(firewall.nft_output(&["list", "ruleset"])?.contains("pinhole: announced"));
    lab::wait_until("the daemon to install its rules", TIMEOUT, stands)
        .unwrap_or_else(|error| panic!("{error}\n{}", child.output()));
    site.assert_all_modes_work(front[0]);
    drop(child);
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
}

#[test]
fn systemd_analyze_rates_the_unit_valid_and_confined() {
    let folder = daemon::new_folder();
    let here = folder.join("pinhole.service");
    let text = read("pinhole.service").replace("/usr/local/bin/pinhole", PROGRAM);
    std::fs::write(&here, text).expect("the folder is ours");
    // The threshold is in tenths. The remaining exposure is what the service needs: netfilter in the host's network.
    for arguments in [&["verify"][..], &["security", "--offline=yes", "--threshold=12", "--no-pager"]] {
        let done = Command::new("systemd-analyze").args(arguments).arg(&here).output().expect("it is installed");
        let said = [done.stdout, done.stderr].concat();
        assert!(done.status.success(), "{arguments:?}:\n{}", String::from_utf8_lossy(&said));
    }
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
}
