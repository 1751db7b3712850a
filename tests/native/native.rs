//! The mechanism `native`: rulesets that do not know Pinhole admit `ct state related`, and other tools list the
//! expectations.
//!
//! Needs root and nft, and a kernel with helpers in userspace. A machine has one list of helpers, so these tests run
//! one after the other. On a kernel without such helpers they check that this is reported; where the run is meant for
//! `native`, they fail. `native_start.rs` tests the start, `native_rules.rs` rulesets of other people.

#![allow(clippy::print_stdout, reason = "where the kernel decides, who reads the output shall know how")]

use crate::filtered_topology;
use std::collections::BTreeSet;
use std::time::Duration;

use crate::daemon::{Daemon, TIMEOUT};
use crate::filtered_topology::{CONTENT, FILE, FilteredTopology, assert_closed, connect, modes, some_transfers};
use crate::helper_list::{expected, machine, start, wait_for_no_helper};
use lab::mini::MiniClient;
use lab::{Family, Namespace, Shape, Topology};
use nix::sys::signal::Signal;
use pinhole::core::ftp::Mode;
use pinhole::netfilter::netlink::{Conntrack, CtExpectation, Helpers};

/// A gateway whose rules admit `ct state related`, and nothing for a mark.
fn gateway(policy: &str) -> (FilteredTopology, Daemon) {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let daemon = start(fixture.firewall(), policy);
    (fixture, daemon)
}

fn wait_until_no_expectations(firewall: &Namespace) {
    lab::wait_until("no expectations", TIMEOUT, || Ok(expected(firewall).is_empty()))
        .unwrap_or_else(|error| panic!("{error}: {:?}", expected(firewall)));
}

#[test]
fn announcement_becomes_one_expectation_that_admits_once() {
    let Some(_machine) = machine() else { return };
    // The time is that of the rule, and not that of the helper.
    let (fixture, daemon) = gateway(
        "defaults: { timeout: 50s }\nrules: [{ name: brief, clients: [10.0.0.0/8, fd00::/8], timeout: 30s }]\n",
    );
    for family in Family::ALL {
        let server = fixture.serve(family);
        for &mode in modes(family) {
            let Topology { client: client_host, server: server_host, .. } = &fixture.topology;
            let (from, to) = if mode.is_active() { (server_host, client_host) } else { (client_host, server_host) };
            fixture.as_client(|| {
                let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
                let announced = if mode.is_active() { client.active(mode)? } else { client.passive(mode)? };
                let all = expected(fixture.firewall());
                let [one] = &all[..] else { panic!("{mode}: {all:?}") };
                assert_eq!(one.from, from.addresses.of(family), "{mode}");
                assert_eq!((one.to.address, one.to.port.number()), (to.addresses.of(family), announced.port()));
                assert_eq!((one.helper.as_deref(), one.nat), (Some("ftp"), None));
                assert!((20..=30).contains(&one.timeout.as_secs()), "{mode}: {one:?}");
                let control = client.local_address()?;
                assert_eq!(one.master.source.port.number(), control.port());
                let listed = fixture.firewall().read("/proc/thread-self/net/nf_conntrack_expect")?;
                let port = format!("dport={} ftp/pinhole", announced.port());
                assert!(listed.lines().count() == 1 && listed.trim_end().ends_with(&port), "{listed:?}");
                assert_shown_by_conntrack(fixture.firewall(), one);
                assert_eq!(daemon.status()["kernel_pinholes"], 1);

                drop(connect(&from.namespace, announced).unwrap_or_else(|error| panic!("{mode}: {error}")));
                assert_closed(&from.namespace, announced);
                assert_eq!(expected(fixture.firewall()), []);
                client.quit()
            });
        }
    }
    daemon.wait_for_log("used ", 6);
    assert_eq!((daemon.counted("opened"), daemon.counted("used"), daemon.counted("kernel_errors")), (6, 6, 0));
}

/// `conntrack -L expect` prints it as `docs/explanation/kernel.md` shows it, in all its fields.
fn assert_shown_by_conntrack(firewall: &Namespace, one: &CtExpectation) {
    let documented = include_str!("../../docs/explanation/kernel.md");
    let (_, example) = documented.split_once("# conntrack -L expect\n").expect("it shows one");
    let example = example.lines().next().expect("a line");
    let family = if one.from.is_ipv4() { "ipv4" } else { "ipv6" };
    let list = ["-L", "expect", "-f", family];
    let printed = firewall.command("conntrack").args(list).output(TIMEOUT).expect("conntrack is there").stdout;
    let printed = String::from_utf8_lossy(&printed);
    let [line] = printed.lines().collect::<Vec<_>>()[..] else { panic!("{printed}") };
    let names = |line: &str| {
        line.split(' ').map(|field| field.split('=').next().map(str::to_owned)).skip(1).collect::<Vec<_>>()
    };
    assert_eq!(names(line), names(example), "{line}");
    let seconds: u64 = line.split(' ').next().and_then(|seconds| seconds.parse().ok()).expect("the time that is left");
    assert!(seconds <= one.timeout.as_secs(), "{line}");
    let CtExpectation { master, from, to, .. } = one;
    for field in [
        format!(" proto=6 src={from} dst={} sport=0 dport={} ", to.address, to.port),
        format!(" master-src={} master-dst={} ", master.source.address, master.destination.address),
        format!(" sport={} dport=21 class=0 helper=ftp", master.source.port),
    ] {
        assert!(line.contains(&field), "{field:?} is not in {line}");
    }
}

#[test]
fn expectation_is_removed_with_its_session() {
    let Some(_machine) = machine() else { return };
    let (fixture, _daemon) = gateway("defaults: { timeout: 1h }\n");
    fixture.topology.keep_ended_connections().expect("root may");
    let server = fixture.serve(Family::V4);
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        client.passive(Mode::Pasv)?;
        assert_eq!(expected(fixture.firewall()).len(), 1);
        client.quit()
    });
    wait_until_no_expectations(fixture.firewall());
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        let announced = client.passive(Mode::Pasv)?;
        let master = expected(fixture.firewall())[0].master;
        let forget = || Conntrack::open(TIMEOUT).and_then(|mut all| all.delete(&master));
        assert_eq!(fixture.firewall().run(forget)?, Ok(true));
        assert_eq!(expected(fixture.firewall()), []);
        assert_closed(&fixture.topology.client.namespace, announced);
        Ok(())
    });
}

#[test]
fn announcement_beyond_the_session_limit_is_refused() {
    let Some(_machine) = machine() else { return };
    let (fixture, mut daemon) = gateway("defaults: { timeout: 1h, pinholes_per_session: 3 }\n");
    let server = fixture.serve(Family::V4);
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        for _ in 0..3 {
            client.passive(Mode::Epsv)?;
        }
        let three = expected(fixture.firewall());
        assert_eq!(three.len(), 3);
        client.passive(Mode::Epsv)?;
        assert_eq!(ports(&expected(fixture.firewall())), ports(&three));
        assert_eq!(daemon.status()["counters"]["refused"]["too-many"], 1);
        // A new program counts anew, and still nothing is evicted that was announced.
        daemon.kill()?;
        daemon.restart()?;
        for _ in 0..3 {
            client.passive(Mode::Epsv)?;
        }
        let all = ports(&expected(fixture.firewall()));
        assert!(ports(&three).iter().all(|port| all.contains(port)), "{all:?}");
        client.quit()
    });
    wait_until_no_expectations(fixture.firewall());
}

/// The kernel's own limit for all expectations of a network namespace, which is one number for all of them.
struct KernelsLimit(String);

const KERNELS_LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_expect_max";

impl KernelsLimit {
    fn set(limit: &str) -> Self {
        let before = std::fs::read_to_string(KERNELS_LIMIT).expect("root may");
        std::fs::write(KERNELS_LIMIT, limit).expect("root may");
        Self(before)
    }
}

impl Drop for KernelsLimit {
    fn drop(&mut self) {
        let _ = std::fs::write(KERNELS_LIMIT, &self.0);
    }
}

fn ports(all: &[CtExpectation]) -> Vec<u16> {
    let mut ports: Vec<_> = all.iter().map(|one| one.to.port.number()).collect();
    ports.sort_unstable();
    ports
}

#[test]
fn expectations_beyond_the_helper_limit_go_to_the_sets() {
    let Some(_machine) = machine() else { return };
    let _limit = KernelsLimit::set("2000");
    let (fixture, mut daemon) =
        gateway("admit: [inet filter forward]\ndefaults: { timeout: 1h, pinholes_per_session: 300 }\n");
    let server = fixture.serve(Family::V4);
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        // A server may announce the same port twice.
        let mut announced = BTreeSet::new();
        while announced.len() < 200 {
            announced.insert(client.passive(Mode::Epsv)?.port());
        }
        // A new daemon starts counting anew; the kernel does not.
        daemon.kill()?;
        daemon.restart()?;
        while announced.len() < 260 {
            announced.insert(client.passive(Mode::Epsv)?.port());
        }
        let all = ports(&expected(fixture.firewall()));
        assert!(all.iter().all(|port| announced.contains(port)));
        assert_eq!((all.len(), fixture.pinholes()), (255, announced.len()));
        // The latest is in the sets, and its rule admits it.
        let last = client.passive(Mode::Epsv)?;
        drop(client.connect_data(last)?);
        assert_closed(&fixture.topology.client.namespace, last);
        client.quit()
    });
    wait_until_no_expectations(fixture.firewall());
    fixture.wait_for_pinholes(0);
}

#[test]
fn expectations_beyond_the_kernel_limit_go_to_the_sets() {
    let Some(_machine) = machine() else { return };
    let _limit = KernelsLimit::set("2");
    let (fixture, daemon) = gateway("admit: [inet filter forward]\ndefaults: { timeout: 1h }\n");
    let server = fixture.serve(Family::V4);
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        let mut announced = || client.passive(Mode::Epsv);
        let (first, second, third) = (announced()?, announced()?, announced()?);
        assert_eq!(ports(&expected(fixture.firewall())).len(), 2);
        assert!([first, second].iter().all(|one| ports(&expected(fixture.firewall())).contains(&one.port())));
        assert_eq!(fixture.pinholes(), 3);
        daemon.wait_for_log("it is full; raise net.netfilter.nf_conntrack_expect_max", 1);
        drop(connect(&fixture.topology.client.namespace, third).expect("its mark is let in"));
        assert_closed(&fixture.topology.client.namespace, third);
        client.quit()
    });
}

#[test]
fn sessions_and_expectations_survive_kill_and_flush() {
    let Some(_machine) = machine() else { return };
    let (fixture, mut daemon) = gateway("");
    let server = fixture.serve(Family::V4);
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        for signal in [Signal::SIGKILL, Signal::SIGUSR2] {
            let before = client.passive(Mode::Pasv)?;
            daemon.end(signal)?;
            daemon.restart()?;
            daemon.wait_for_log("adopted 1 pinhole ", 1);
            assert_eq!(expected(fixture.firewall()).len(), 1);
            drop(client.connect_data(before)?);
            daemon.wait_for_log("used ", 1);
            assert_closed(&fixture.topology.client.namespace, before);
            assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT, "picked up in the middle");
        }

        let before = client.passive(Mode::Epsv)?;
        fixture.firewall().nft("flush ruleset")?;
        // It exists independently of the table; the user's rules admit it.
        assert_eq!(expected(fixture.firewall()).len(), 1);
        daemon.wait_for_log("restored the table inet pinhole", 1);
        fixture.firewall().nft(&filtered_topology::filter(Shape::Gateway))?;
        drop(client.connect_data(before)?);
        assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT);
        client.quit()
    });
    fixture.as_client(|| some_transfers(server.address(), Mode::Epsv));
    assert_eq!(daemon.counted("kernel_errors"), 0);
}

#[test]
fn stop_cleans_up_and_start_adopts_after_a_kill() {
    let Some(_machine) = machine() else { return };
    wait_for_no_helper();
    let helpers = || Helpers::open(TIMEOUT).and_then(|mut all| all.list()).expect("a list");
    let (fixture, mut daemon) = gateway("");
    let ours = helpers();
    assert_eq!(ours.iter().map(|one| (&*one.name, &*one.class)).collect::<Vec<_>>(), [("ftp", "pinhole"); 2]);
    assert!(ours.iter().all(|one| !one.is_enabled), "it queues nothing: {ours:?}");
    daemon.kill().expect("it can be killed");
    assert_eq!(helpers(), ours);
    daemon.write_policy("mechanism: native\ndefaults: { timeout: 7s }\n");
    daemon.restart().expect("it adopts");
    assert!(helpers().iter().all(|one| one.timeout == Duration::from_secs(7)), "{:?}", helpers());
    let server = fixture.serve(Family::V4);
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        client.passive(Mode::Pasv)?;
        daemon.end(Signal::SIGTERM)?;
        assert_eq!((helpers(), expected(fixture.firewall())), (vec![], vec![]));
        Ok(())
    });
}

#[test]
fn session_from_before_a_stop_continues_and_uses_the_sets() {
    let Some(_machine) = machine() else { return };
    for admit in ["", "admit: [inet filter forward]\n"] {
        let (fixture, mut daemon) = gateway(admit);
        let server = fixture.serve(Family::V4);
        fixture.as_client(|| {
            let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
            assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT);
            daemon.end(Signal::SIGTERM)?;
            // What ran before may have named it as well, and then it stays a little longer.
            wait_for_no_helper();
            daemon.restart()?;
            // The table was gone for a while, so bytes may have passed unread: the first announcement is refused.
            client.passive(Mode::Pasv)?;
            daemon.wait_for_log("ambiguous", 1);
            assert_eq!(fixture.pinholes(), 0);
            // Its conntrack entry has no helper any more, and the kernel assigns none to an existing connection. Since
            // Linux 7.2 the entry keeps the removed helper.
            let announced = client.passive(Mode::Pasv)?;
            assert_eq!(fixture.pinholes(), 1, "{}", daemon.child.output());
            let all = expected(fixture.firewall());
            println!("{} are expected: {all:?}", all.len());
            if all.is_empty() && admit.is_empty() {
                // No rule admits by the mark alone, and the daemon has reported that.
                assert_closed(&fixture.topology.client.namespace, announced);
                assert!(daemon.counted("kernel_errors") > 0);
                return Ok(());
            }
            assert!(all.iter().all(|one| one.helper.as_deref().is_none_or(|name| name == "ftp")), "{all:?}");
            drop(connect(&fixture.topology.client.namespace, announced).expect("it is let in"));
            assert_closed(&fixture.topology.client.namespace, announced);
            assert_eq!(client.download(Mode::Port, FILE)?, CONTENT);
            client.quit()
        });
        // A new one has all that it needs.
        fixture.as_client(|| some_transfers(server.address(), Mode::Pasv));
    }
}
