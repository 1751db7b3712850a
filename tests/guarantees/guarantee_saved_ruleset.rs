//! Guarantee: what `nft list ruleset` prints at any moment admits, when it is loaded, nothing that Pinhole would not admit
//! then. It loads except for what nft cannot write of this kernel and mechanism; the daemon says what that is.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lab::mini::MiniClient;
use lab::{Command, Family, Namespace, Shape, tools};
use nix::sys::signal::Signal;
use pinhole::core::ftp::Mode;
use pinhole::netfilter::netlink::Tables;

use crate::daemon::TIMEOUT;
use crate::filtered_topology::{FOR_HOURS, FilteredTopology, TABLE, assert_closed, connect, filter};

/// For pinholes as elements of sets, which are a part of the ruleset.
const SETS: &str = "mechanism: sets\n";

/// What nft prints of a ruleset and cannot load, left out: where the kernel queues by a target of iptables, that.
fn loadable(listed: &str) -> String {
    const TARGET: &str = r#"xt target "NFQUEUE""#;
    if listed.contains(TARGET) {
        lab::kernel_lacks("the statement `queue`");
    }
    listed.replace(TARGET, "")
}

fn saved(firewall: &Namespace) -> String {
    loadable(&firewall.nft_output(&["list", "ruleset"]).expect("nft lists"))
}

/// The second from which a saved ruleset admits nothing.
fn deadline(saved: &str) -> u64 {
    let (_, after) = saved.split_once("admits no data connection after Unix time ").expect("the rule of the deadline");
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock that is set").as_secs()
}

fn load(firewall: &Namespace, saved: &str) {
    firewall.nft(&format!("flush ruleset\n{saved}")).expect("it loads");
}

fn elements(firewall: &Namespace, family: Family) -> usize {
    let set = if family == Family::V4 { "pinholes4" } else { "pinholes6" };
    let read = || Tables::open(TIMEOUT).and_then(|mut tables| tables.elements(TABLE, set));
    firewall.run(read).expect("root may enter").expect("the set is there").len()
}

/// A version of nft.
#[derive(Clone, Debug)]
struct Nft(Vec<String>);

impl Nft {
    /// The installed one, and 1.1.
    fn versions() -> [Self; 2] {
        [
            Self(vec!["nft".to_owned()]),
            Self(tools::with_own_loader("nft-1.1", "usr/sbin/nft").unwrap_or_else(|error| panic!("{error}"))),
        ]
    }

    fn command(&self, namespace: &Namespace) -> Command {
        let mut command = namespace.command(&self.0[0]);
        // Plugins of this machine's iptables do not fit another version's libraries.
        command.args(&self.0[1..]).env("XTABLES_LIBDIR", "/nonexistent");
        command
    }

    fn list(&self, namespace: &Namespace) -> String {
        let listed = self.command(namespace).args(["list", "ruleset"]).output(TIMEOUT).expect("nft lists");
        loadable(&String::from_utf8_lossy(&listed.stdout))
    }

    fn load(&self, namespace: &Namespace, saved: &str) {
        let text = format!("flush ruleset\n{saved}");
        let loaded = self.command(namespace).args(["-f", "-"]).input(text.as_bytes()).output(TIMEOUT);
        loaded.unwrap_or_else(|error| panic!("{self:?}: {error}\n{saved}"));
    }
}

#[test]
fn saved_ruleset_loads_except_for_what_nft_cannot_write() {
    let versions = Nft::versions();
    let policies = ["", "control_ports: [21, 990, 2121]\nmark: 0x3\n", "capture: { when_down: closed }\n"];
    for policy in policies {
        let fixture = FilteredTopology::new(Shape::Gateway);
        let daemon = fixture.daemon(&format!("{SETS}{FOR_HOURS}{policy}"));
        daemon.wait_for_log("what `nft list ruleset` prints while Pinhole runs", 1);
        let other = Namespace::new("other").expect("a namespace");
        for family in Family::ALL {
            let server = fixture.serve(family);
            fixture.as_client(|| {
                let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
                client.passive(Mode::Epsv)?;
                for (saving, loading) in versions.iter().flat_map(|one| versions.iter().map(move |other| (one, other)))
                {
                    loading.load(&other, &saving.list(fixture.firewall()));
                    assert_eq!(elements(&other, family), 1);
                    // (1.0.6 crashes when it lists what 1.1 has loaded.)
                    loading.load(&other, &loading.list(&other));
                    assert_eq!(elements(&other, family), 1);
                }
                Ok(())
            });
        }
    }
}

#[test]
fn what_nft_cannot_write_is_in_the_table_only_with_nat() {
    const OBJECT: &str = "ct expectation no_expectation4";
    let nat = "table ip nat { chain postrouting { type nat hook postrouting priority 100; }; }";
    let fixture = FilteredTopology::new(Shape::Gateway);
    let mut daemon = fixture.daemon(SETS);
    let listed = || fixture.firewall().nft_output(&["list", "table", "inet", "pinhole"]).expect("nft lists");
    assert!(!listed().contains("ct expectation"), "{}", listed());
    // The daemon has handled what the kernel reported of its start when it has noticed this.
    for times in 1..=2 {
        fixture.firewall().nft("flush chain inet pinhole admit").expect("it is there");
        daemon.wait_for_log("restored", times);
    }
    fixture.firewall().nft(nat).expect("a table more");
    daemon.wait_for_log("nft cannot write the objects no_expectation4", 1);
    assert!(
        listed().contains(OBJECT) && listed().contains("meta nfproto ipv6 ct expectation set \"no_expectation6\""),
        "{}",
        listed()
    );
    // A flush does not change that.
    fixture.firewall().nft(&format!("flush ruleset\n{}{nat}", filter(Shape::Gateway))).expect("it loads");
    daemon.wait_for_log("restored", 3);
    assert!(listed().contains(OBJECT), "{}", listed());
    // The next start decides again.
    daemon.kill().expect("it runs");
    fixture.firewall().nft("delete table ip nat").expect("it is there");
    daemon.restart().expect("it starts");
    assert!(!listed().contains("ct expectation"), "{}", listed());
}

/// Saves the ruleset while a port is announced in a session, and ends the daemon. Then, behind the deadline and still in the
/// session, runs `work` with the port.
fn after_a_save_with_a_pinhole(fixture: &FilteredTopology, work: impl FnOnce(SocketAddr, &str) + Send) {
    let mut daemon = fixture.daemon(&format!("{SETS}defaults: {{ timeout: 4s }}\n"));
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(fixture.target(Family::V4, 21), TIMEOUT)?;
        let announced = client.passive(Mode::Pasv)?;
        let saved = saved(fixture.firewall());
        daemon.end(Signal::SIGTERM)?;
        let deadline = deadline(&saved);
        lab::wait_until("the deadline", TIMEOUT, || Ok(now() >= deadline))?;
        work(announced, &saved);
        Ok(())
    });
}

#[test]
fn loaded_ruleset_admits_nothing_after_its_deadline() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let _server = fixture.serve(Family::V4);
    after_a_save_with_a_pinhole(&fixture, |announced, saved| {
        let host = &fixture.topology.client.namespace;
        load(fixture.firewall(), saved);
        assert_eq!(elements(fixture.firewall(), Family::V4), 1, "nft gives the pinhole the rest of its timeout");
        assert_closed(host, announced);
        // Without the deadline, it would be admitted.
        load(fixture.firewall(), &saved.replace("jump after_deadline", ""));
        connect(host, announced).expect("the pinhole admits it");
    });
}

#[test]
fn start_after_a_load_closes_what_the_ruleset_had_open() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let _server = fixture.serve(Family::V4);
    after_a_save_with_a_pinhole(&fixture, |announced, saved| {
        load(fixture.firewall(), saved);
        assert_eq!(elements(fixture.firewall(), Family::V4), 1);
        let daemon = fixture.daemon(&format!("{SETS}{FOR_HOURS}"));
        assert_eq!((elements(fixture.firewall(), Family::V4), fixture.pinholes()), (0, 0));
        assert_closed(&fixture.topology.client.namespace, announced);
        let mut client = MiniClient::log_in(fixture.target(Family::V4, 21), TIMEOUT).expect("a session");
        let announced = client.passive(Mode::Pasv).expect("a port");
        client.connect_data(announced).expect("the next one is admitted");
        assert_eq!(daemon.counted("adopted"), 0);
    });
}

#[test]
fn daemon_killed_within_the_deadline_adopts_what_is_open() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let server = fixture.serve(Family::V4);
    let mut daemon = fixture.daemon(&format!("{SETS}{FOR_HOURS}"));
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        let announced = client.passive(Mode::Pasv)?;
        daemon.kill()?;
        daemon.restart()?;
        assert_eq!(daemon.counted("adopted"), 1);
        client.connect_data(announced).map(drop)
    });
}

#[test]
fn removed_deadline_is_restored() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let server = fixture.serve(Family::V4);
    let daemon = fixture.daemon(&format!("{SETS}{FOR_HOURS}"));
    fixture.as_client(|| MiniClient::log_in(server.address(), TIMEOUT)?.passive(Mode::Pasv));
    let before = deadline(&saved(fixture.firewall()));
    fixture.firewall().nft("flush chain inet pinhole after_deadline").expect("it is there");
    daemon.wait_for_log("restored", 1);
    assert_eq!(deadline(&saved(fixture.firewall())), before);
}

#[test]
fn deadline_is_a_few_seconds_after_the_end_of_the_last_pinhole() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let server = fixture.serve(Family::V4);
    let _daemon = fixture.daemon(&format!("{SETS}defaults: {{ timeout: 100s }}\n"));
    assert!(deadline(&saved(fixture.firewall())) <= now(), "nothing is open");
    let before = now();
    fixture.as_client(|| MiniClient::log_in(server.address(), TIMEOUT)?.passive(Mode::Pasv));
    let ends = Duration::from_secs(deadline(&saved(fixture.firewall())) - before);
    let allowed = Duration::from_secs(100)..Duration::from_secs(110) + TIMEOUT;
    assert!(allowed.contains(&ends), "{ends:?}");
}
