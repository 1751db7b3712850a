//! The mechanism `native`: rulesets that know nothing of Pinhole let in what is related, and everybody else's tools show
//! the expectations.
//!
//! Needs root and nft, and a kernel that takes helpers from programs. There is one list of those for the whole machine,
//! so these tests go one after the other. On a kernel that takes none they see to it that this is said; where the run is
//! meant for `native`, that fails.

#![allow(clippy::print_stdout, reason = "who reads the output shall know on which kind of kernel it was")]

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/stage.rs"]
mod stage;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use daemon::{Daemon, PATIENCE, new_folder, service, write_policy};
use nix::sys::signal::Signal;
use pinhole::firewall::native::{self, Impossible};
use pinhole::ftp::Mode;
use pinhole::lab::mini::MiniClient;
use pinhole::lab::{self, Family, Namespace, Shape, Topology};
use pinhole::netlink::{self, Conntrack, Expectations, Expected, Helper, Helpers};
use pinhole::policy::Policy;
use stage::{CONTENT, FILE, Stage, assert_closed, connect, modes, some_transfers};

/// No test of this file runs beside another.
static MACHINE: Mutex<()> = Mutex::new(());

/// The machine for oneself, if its kernel can do it.
fn machine() -> Option<MutexGuard<'static, ()>> {
    let guard = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    match native::is_possible(&Policy::embedded()) {
        Ok(()) => Some(guard),
        Err(Impossible::NoHelpers) if daemon::mechanism() != "native" => {
            println!("this kernel takes no helpers from programs; that it says so is what is tested");
            let error = refused_start();
            assert!(error.contains("`mechanism: native` is not possible: this kernel takes no helpers"), "{error}");
            assert!(error.contains("modprobe nfnetlink_cthelper"), "{error}");
            None
        }
        Err(why) => panic!("this run is for native: {why}"),
    }
}

/// What the program says that is told to be native, and cannot.
fn refused_start() -> String {
    let namespace = Namespace::new("alone").expect("a namespace");
    let folder = new_folder();
    write_policy(&folder, "mechanism: native\n");
    let finished = service(&namespace, &folder, "info").spawn().and_then(|child| child.wait(PATIENCE));
    let finished = finished.expect("it ends");
    std::fs::remove_dir_all(&folder).expect("it was made");
    assert!(!finished.status.success(), "{}", finished.said());
    assert!(!namespace.nft_says(&["list", "ruleset"]).expect("nft runs").contains("pinhole"), "something is left");
    finished.said()
}

/// A gateway whose rules let in what is related, and nothing for a mark.
fn gateway(policy: &str) -> (Stage, Daemon) {
    let stage = Stage::new(Shape::Gateway);
    let daemon = start(stage.firewall(), policy);
    (stage, daemon)
}

fn start(namespace: &Namespace, policy: &str) -> Daemon {
    Daemon::start(namespace, &format!("mechanism: native\n{policy}")).unwrap_or_else(|error| panic!("{error}"))
}

fn expected(firewall: &Namespace) -> Vec<Expected> {
    let list = || Expectations::open(PATIENCE).and_then(|mut all| all.list());
    firewall.run(list).expect("root may enter").expect("a list")
}

fn wait_until_nobody_is_expected(firewall: &Namespace) {
    lab::wait_until("no expectations", PATIENCE, || Ok(expected(firewall).is_empty()))
        .unwrap_or_else(|error| panic!("{error}: {:?}", expected(firewall)));
}

/// Daemons that were killed have left the helper, and the kernel takes its time with their namespaces.
fn wait_for_no_helper() -> Helpers {
    let mut helpers = Helpers::open(PATIENCE).expect("root");
    lab::wait_until("no helper", PATIENCE, || {
        for network in [netlink::Family::Ip, netlink::Family::Ip6] {
            // As long as something names it, it stays.
            let _ = helpers.remove("ftp", network);
        }
        Ok(helpers.list().expect("a list").is_empty())
    })
    .unwrap_or_else(|error| panic!("{error}"));
    helpers
}

#[test]
fn auto_takes_what_works_and_says_which_and_why() {
    let guard = machine();
    let namespace = Namespace::new("alone").expect("a namespace");
    let daemon = Daemon::start(&namespace, "mechanism: auto\n").unwrap_or_else(|error| panic!("{error}"));
    let status = daemon.status();
    let (mechanism, because) = (status["mechanism"].as_str(), status["because"].as_str().unwrap_or_default());
    match guard {
        Some(_) => assert_eq!((mechanism, because), (Some("native"), "as this kernel can")),
        None => {
            assert_eq!(mechanism, Some("sets"));
            assert!(because.starts_with("not native: this kernel takes no helpers from programs"), "{because}");
        }
    }
    let line = format!("mechanism {}, {because}", mechanism.unwrap_or_default());
    daemon.wait_for_log(&line, 1);
    assert!(daemon.program(&["status"]).expect("it answers").said().contains(&line));
}

#[test]
fn a_name_that_is_taken_is_told_and_auto_goes_on_with_sets() {
    let Some(_machine) = machine() else { return };
    let mut helpers = wait_for_no_helper();
    let others = Helper {
        name: "ftp".into(),
        network: netlink::Family::Ip,
        class: "somebody's".into(),
        maximum: 1,
        timeout: Duration::from_secs(9),
        is_enabled: false,
    };
    helpers.add(&others).expect("the name is free");
    let said = refused_start();
    assert!(said.contains("another program has a helper `ftp` already, of the class `somebody's`"), "{said}");
    let namespace = Namespace::new("alone").expect("a namespace");
    let mut daemon = Daemon::start(&namespace, "mechanism: auto\n").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(daemon.status()["mechanism"], "sets");
    daemon.end(Signal::SIGTERM).expect("it ends");
    assert_eq!(helpers.list().expect("a list"), [others], "what is somebody else's stays as it is");
    helpers.remove("ftp", netlink::Family::Ip).expect("it was ours in the end");
}

#[test]
fn what_is_announced_is_listed_with_addresses_port_time_and_helper_and_lets_one_in() {
    let Some(_machine) = machine() else { return };
    // The time is that of the rule, and not that of the helper.
    let (stage, daemon) = gateway(
        "defaults: { timeout: 50s }\nrules: [{ name: brief, clients: [10.0.0.0/8, fd00::/8], timeout: 30s }]\n",
    );
    for family in Family::ALL {
        let server = stage.serve(family);
        for &mode in modes(family) {
            let Topology { client: client_host, server: server_host, .. } = &stage.topology;
            let (from, to) = if mode.is_active() { (server_host, client_host) } else { (client_host, server_host) };
            stage.as_client(|| {
                let mut client = MiniClient::log_in(server.address(), PATIENCE)?;
                let announced = if mode.is_active() { client.active(mode)? } else { client.passive(mode)? };
                let all = expected(stage.firewall());
                let [one] = &all[..] else { panic!("{mode}: {all:?}") };
                assert_eq!(one.from, from.addresses.of(family), "{mode}");
                assert_eq!((one.to.address, one.to.port.number()), (to.addresses.of(family), announced.port()));
                assert_eq!((one.helper.as_deref(), one.translated), (Some("ftp"), None));
                assert!((20..=30).contains(&one.time.as_secs()), "{mode}: {one:?}");
                let control = client.local_address()?;
                assert_eq!(one.master.source.port.number(), control.port());
                let listed = stage.firewall().read("/proc/thread-self/net/nf_conntrack_expect")?;
                let port = format!("dport={} ftp/pinhole", announced.port());
                assert!(listed.lines().count() == 1 && listed.trim_end().ends_with(&port), "{listed:?}");
                assert_eq!(daemon.status()["in_kernel"], 1);

                drop(connect(&from.namespace, announced).unwrap_or_else(|error| panic!("{mode}: {error}")));
                assert_closed(&from.namespace, announced);
                assert_eq!(expected(stage.firewall()), []);
                client.quit()
            });
        }
    }
    daemon.wait_for_log("used ", 6);
    assert_eq!((daemon.counted("opened"), daemon.counted("used"), daemon.counted("kernel_troubles")), (6, 6, 0));
}

#[test]
fn an_expectation_goes_with_its_session_and_with_its_entry() {
    let Some(_machine) = machine() else { return };
    let (stage, _daemon) = gateway("defaults: { timeout: 1h }\n");
    let server = stage.serve(Family::V4);
    stage.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), PATIENCE)?;
        client.passive(Mode::Pasv)?;
        assert_eq!(expected(stage.firewall()).len(), 1);
        client.quit()
    });
    wait_until_nobody_is_expected(stage.firewall());
    stage.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), PATIENCE)?;
        let announced = client.passive(Mode::Pasv)?;
        let master = expected(stage.firewall())[0].master;
        let forget = || Conntrack::open(PATIENCE).and_then(|mut all| all.forget(&master));
        assert_eq!(stage.firewall().run(forget)?, Ok(true));
        assert_eq!(expected(stage.firewall()), []);
        assert_closed(&stage.topology.client.namespace, announced);
        Ok(())
    });
}

#[test]
fn one_more_than_a_session_may_have_is_refused_and_none_is_evicted() {
    let Some(_machine) = machine() else { return };
    let (stage, mut daemon) = gateway("defaults: { timeout: 1h, pinholes_per_session: 3 }\n");
    let server = stage.serve(Family::V4);
    stage.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), PATIENCE)?;
        for _ in 0..3 {
            client.passive(Mode::Epsv)?;
        }
        let three = expected(stage.firewall());
        assert_eq!(three.len(), 3);
        client.passive(Mode::Epsv)?;
        let ports = |all: &[Expected]| {
            let mut ports: Vec<_> = all.iter().map(|one| one.to.port).collect();
            ports.sort();
            ports
        };
        assert_eq!(ports(&expected(stage.firewall())), ports(&three));
        assert_eq!(daemon.status()["counters"]["refused"]["too-many"], 1);
        // A new program counts anew, and still nothing is evicted that was announced.
        daemon.kill()?;
        daemon.restart()?;
        for _ in 0..3 {
            client.passive(Mode::Epsv)?;
        }
        let all = ports(&expected(stage.firewall()));
        assert!(ports(&three).iter().all(|port| all.contains(port)), "{all:?}");
        client.quit()
    });
    wait_until_nobody_is_expected(stage.firewall());
}

#[test]
fn a_kill_or_a_flush_loses_no_session_and_no_expectation() {
    let Some(_machine) = machine() else { return };
    let (stage, mut daemon) = gateway("");
    let server = stage.serve(Family::V4);
    stage.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), PATIENCE)?;
        let before = client.passive(Mode::Pasv)?;
        daemon.kill()?;
        daemon.restart()?;
        daemon.wait_for_log("took over 1 pinholes", 1);
        assert_eq!(expected(stage.firewall()).len(), 1);
        drop(client.connect_data(before)?);
        daemon.wait_for_log("used ", 1);
        assert_closed(&stage.topology.client.namespace, before);
        assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT, "picked up in the middle");

        let before = client.passive(Mode::Epsv)?;
        stage.firewall().nft("flush ruleset")?;
        // It stands wherever the table is; the rules that let it in are the user's.
        assert_eq!(expected(stage.firewall()).len(), 1);
        daemon.wait_for_log("put back the table inet pinhole", 1);
        stage.firewall().nft(&stage::filter(Shape::Gateway))?;
        drop(client.connect_data(before)?);
        assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT);
        client.quit()
    });
    stage.as_client(|| some_transfers(server.address(), Mode::Epsv));
    assert_eq!(daemon.counted("kernel_troubles"), 0);
}

#[test]
fn it_leaves_nothing_behind_and_takes_over_what_a_killed_one_left() {
    let Some(_machine) = machine() else { return };
    wait_for_no_helper();
    let helpers = || Helpers::open(PATIENCE).and_then(|mut all| all.list()).expect("a list");
    let (stage, mut daemon) = gateway("");
    let ours = helpers();
    assert_eq!(ours.iter().map(|one| (&*one.name, &*one.class)).collect::<Vec<_>>(), [("ftp", "pinhole"); 2]);
    assert!(ours.iter().all(|one| !one.is_enabled), "it queues nothing: {ours:?}");
    daemon.kill().expect("it can be killed");
    assert_eq!(helpers(), ours);
    daemon.write_policy("mechanism: native\ndefaults: { timeout: 7s }\n");
    daemon.restart().expect("it takes over");
    assert!(helpers().iter().all(|one| one.timeout == Duration::from_secs(7)), "{:?}", helpers());
    let server = stage.serve(Family::V4);
    stage.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), PATIENCE)?;
        client.passive(Mode::Pasv)?;
        daemon.end(Signal::SIGTERM)?;
        assert_eq!((helpers(), expected(stage.firewall())), (vec![], vec![]));
        // Sessions that went on without a helper get one no more: their pinholes are elements of the sets.
        daemon.restart()?;
        client.passive(Mode::Pasv)?;
        assert_eq!(stage.pinholes(), 1, "{}", daemon.child.said());
        Ok(())
    });
}

/// A user's own rules: they assign the helper, and ask for it.
const OWN_HELPER: &str = r#"
table inet own {
    ct helper files { type "ftp" protocol tcp; }
    chain assign {
        type filter hook prerouting priority -160;
        tcp dport 21 ct helper set "files"
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established accept
        ct state related ct helper "ftp" accept
        tcp dport 21 accept
        meta l4proto ipv6-icmp accept
        tcp flags & (fin | syn | rst | ack) == syn reject with tcp reset
    }
}"#;

#[test]
fn who_assigns_the_helper_by_own_rules_gets_the_same_and_keeps_it() {
    let Some(_machine) = machine() else { return };
    wait_for_no_helper();
    let topology = Topology::new(Shape::Gateway).unwrap_or_else(|error| panic!("{error}"));
    let stage = Stage { topology };
    let mut daemon = start(stage.firewall(), "");
    stage.firewall().nft(OWN_HELPER).expect("the helper is there");
    for family in Family::ALL {
        let server = stage.serve(family);
        for &mode in modes(family) {
            stage.as_client(|| some_transfers(server.address(), mode));
        }
    }
    daemon.end(Signal::SIGTERM).expect("it ends");
    assert!(
        daemon.child.said().contains("the helper `ftp` stays, because a ruleset names it"),
        "{}",
        daemon.child.said()
    );
    daemon.restart().expect("it takes it over");
    let server = stage.serve(Family::V4);
    stage.as_client(|| some_transfers(server.address(), Mode::Pasv));
    stage.firewall().nft("delete table inet own").expect("it stands");
    daemon.end(Signal::SIGTERM).expect("it ends");
    assert_eq!(Helpers::open(PATIENCE).and_then(|mut all| all.list()), Ok(vec![]));
}

/// As Debian's package nftables installs it as an example (workstation.nft), with a server's port.
const DEBIAN: &str = r#"
flush ruleset
table inet filter {
	chain input {
		type filter hook input priority 0;

		# accept any localhost traffic
		iif lo accept

		# accept traffic originated from us
		ct state established,related accept

		# accept neighbour discovery otherwise connectivity breaks
		icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept

		tcp dport 21 ct state new accept

		# count and drop any other traffic
		counter drop
	}
}"#;

#[test]
fn rulesets_of_distributions_work_unchanged() {
    let Some(_machine) = machine() else { return };
    for rules in [DEBIAN, include_str!("native/firewalld.nft")] {
        for shape in [Shape::ServerHost, Shape::ClientHost] {
            let topology = Topology::new(shape).unwrap_or_else(|error| panic!("{error}"));
            let stage = Stage { topology };
            // First, as it should be at boot: firewalld's rules name the helper.
            let daemon = start(stage.firewall(), "");
            stage.firewall().nft(rules).expect("the rules are right");
            let stands = || Ok(stage.firewall().nft_says(&["list", "tables"])?.contains("inet pinhole"));
            lab::wait_until("the table to be back", PATIENCE, stands).unwrap_or_else(|error| panic!("{error}"));
            for family in Family::ALL {
                let server = stage.serve(family);
                for &mode in modes(family) {
                    stage.as_client(|| some_transfers(server.address(), mode));
                }
            }
            assert_eq!(daemon.counted("opened"), daemon.counted("used"), "{}", daemon.child.said());
        }
    }
}
