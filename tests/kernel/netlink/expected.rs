//! Conntrack's expectations, and the helpers that they need, through netlink.
//!
//! If the kernel supports helpers in userspace, the test adds one. Otherwise it uses the built-in helper `sane`, which
//! allows one expectation at a time and ignores the traffic of these tests.

use std::time::{Duration, Instant};

use lab::kernel_lacks;
use pinhole::core::net::{Connection, Endpoint, Port};
use pinhole::netfilter::netlink::{
    Cause, Conntrack, CtExpectation, Error, ExpectationNat, Expectations, Family, Helper, Helpers,
};
use rustix::io::Errno;

use super::host::{Host, flow};

const TIMEOUT: Duration = Duration::from_secs(5);

/// A name that carries expectations here; gone with its last use.
struct Carrier {
    helpers: Option<Helpers>,
    name: String,
}

impl Carrier {
    fn new(test: u8) -> Self {
        let mut helpers = Helpers::open(TIMEOUT).expect("root");
        if helpers.list().is_err() {
            kernel_lacks("helpers of programs (nfnetlink_cthelper)");
            return Self { helpers: None, name: "sane".to_owned() };
        }
        let name = format!("t{test}-{}", std::process::id());
        for network in [Family::Ip, Family::Ip6] {
            helpers.add(&helper(&name, network)).expect("a new name");
        }
        Self { helpers: Some(helpers), name }
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        let Some(helpers) = &mut self.helpers else { return };
        for network in [Family::Ip, Family::Ip6] {
            let _ = helpers.remove(&self.name, network);
        }
    }
}

fn helper(name: &str, network: Family) -> Helper {
    Helper {
        name: name.into(),
        l3proto: network,
        class: "test".into(),
        max_expected: 3,
        timeout: Duration::from_secs(40),
        is_enabled: false,
    }
}

/// A conntrack entry with a helper, without a real connection.
fn master(carrier: &Carrier, client: &str, server: &str) -> Connection {
    let flow = flow(client.parse().expect("an address"), server.parse().expect("an address"));
    let connection = Connection::direct(flow);
    let mut conntrack = Conntrack::open(TIMEOUT).expect("root");
    conntrack.create_dummy_entry(&connection, &carrier.name, Duration::from_secs(100)).expect("it is new");
    connection
}

fn expected(master: &Connection, port: u16, seconds: u64) -> CtExpectation {
    let address = master.original.source.address;
    CtExpectation {
        master: master.original,
        from: master.original.destination.address,
        to: Endpoint::new(address, Port::new(port).expect("a port")),
        nat: None,
        timeout: Duration::from_secs(seconds),
        helper: None,
    }
}

#[test]
fn expectation_exists_until_deleted_or_its_master_ends() {
    let host = Host::new("expect");
    let carrier = Carrier::new(1);
    for (client, server) in [("10.9.0.1:4000", "10.9.0.2:21"), ("[fd09::1]:4000", "[fd09::2]:21")] {
        host.run(|| {
            let mut expectations = Expectations::open(TIMEOUT).expect("root");
            let master = master(&carrier, client, server);
            let one = expected(&master, 50_000, 500);
            expectations.insert(&one).expect("the master has a helper");
            let found = expectations.find(one.from, one.to).expect("an answer").expect("it stands");
            // Its own timeout, and not that of the helper.
            assert!((499..=500).contains(&found.timeout.as_secs()), "{found:?}");
            assert_eq!(found.helper.as_deref(), Some(&*carrier.name));
            assert_eq!(CtExpectation { timeout: one.timeout, helper: None, ..found }, one);

            // Inserted once more, it has another timeout, and NAT.
            let port = Port::new(50_001).expect("a port");
            let again = CtExpectation {
                nat: Some(ExpectationNat { is_original: false, port }),
                timeout: Duration::from_secs(7),
                ..one.clone()
            };
            expectations.insert(&again).expect("it takes the place of the first");
            let all = expectations.list().expect("a list");
            assert_eq!(all.len(), 1, "{all:?}");
            assert_eq!(all[0].nat, again.nat);
            assert!(all[0].timeout <= again.timeout, "{all:?}");

            assert_eq!(expectations.remove(one.from, one.to), Ok(true));
            assert_eq!(expectations.remove(one.from, one.to), Ok(false));
            assert_eq!(expectations.find(one.from, one.to), Ok(None));

            expectations.insert(&one).expect("there is room again");
            let mut conntrack = Conntrack::open(TIMEOUT).expect("root");
            assert_eq!(conntrack.delete(&master.original), Ok(true));
            assert_eq!(expectations.find(one.from, one.to), Ok(None), "gone with its master");
        });
    }
}

#[test]
fn newer_session_takes_over_an_equal_expectation() {
    let host = Host::new("expect");
    let carrier = Carrier::new(2);
    host.run(|| {
        let mut expectations = Expectations::open(TIMEOUT).expect("root");
        let first = master(&carrier, "10.9.0.1:4000", "10.9.0.2:21");
        let second = master(&carrier, "10.9.0.1:4001", "10.9.0.2:21");
        expectations.insert(&expected(&first, 50_000, 60)).expect("room");
        expectations.insert(&expected(&second, 50_000, 60)).expect("it is the second one's now");
        let all = expectations.list().expect("a list");
        assert_eq!(all.iter().map(|one| one.master).collect::<Vec<_>>(), [second.original]);
    });
}

#[test]
fn expectation_expires_after_its_timeout() {
    let host = Host::new("expect");
    let carrier = Carrier::new(3);
    host.run(|| {
        let mut expectations = Expectations::open(TIMEOUT).expect("root");
        let master = master(&carrier, "10.9.0.1:4000", "10.9.0.2:21");
        let one = CtExpectation { timeout: Duration::from_millis(20), ..expected(&master, 50_000, 1) };
        expectations.insert(&one).expect("room");
        let begun = Instant::now();
        while expectations.find(one.from, one.to).expect("an answer").is_some() {
            assert!(begun.elapsed() < TIMEOUT, "it is there still");
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

#[test]
fn expectation_requires_a_master_with_a_helper() {
    let host = Host::new("expect");
    host.run(|| {
        let mut expectations = Expectations::open(TIMEOUT).expect("root");
        let nobody = flow("10.9.0.1:4000".parse().expect("one"), "10.9.0.2:21".parse().expect("one"));
        let one = expected(&Connection::direct(nobody), 50_000, 60);
        let error = expectations.insert(&one).expect_err("no such connection");
        assert!(error.cause.is_missing(), "{error}");
        let mut conntrack = Conntrack::open(TIMEOUT).expect("root");
        let plain = Connection::direct(nobody);
        conntrack.create_dummy_entry(&plain, "no-such-helper", TIMEOUT).expect_err("there is no such helper");
    });
}

#[test]
fn helper_can_be_added_changed_listed_and_removed() {
    let mut helpers = Helpers::open(TIMEOUT).expect("root");
    let name = format!("h-{}", std::process::id());
    let ours = |helpers: &mut Helpers| -> Vec<Helper> {
        helpers.list().expect("a list").into_iter().filter(|helper| *helper.name == name).collect()
    };
    if let Err(Error { cause, .. }) = helpers.list() {
        // It says so, and does not pretend.
        kernel_lacks("helpers of programs (nfnetlink_cthelper)");
        assert_eq!(cause, Cause::Refused(Errno::INVAL));
        let error = helpers.add(&helper(&name, Family::Ip)).expect_err("this kernel has no such helpers");
        assert_eq!(error.cause, cause);
        return;
    }
    let (v4, v6) = (helper(&name, Family::Ip), helper(&name, Family::Ip6));
    helpers.add(&v4).expect("a new name");
    assert!(helpers.add(&v4).expect_err("it is there").cause.is_present());
    helpers.add(&v6).expect("the other network");
    assert_eq!(ours(&mut helpers).len(), 2);
    let changed = Helper { max_expected: 200, timeout: Duration::from_secs(5), ..v4 };
    helpers.change(&changed).expect("it is there");
    assert!(ours(&mut helpers).contains(&changed));
    assert_eq!(helpers.remove(&name, Family::Ip6), Ok(()));
    assert_eq!(ours(&mut helpers), [changed]);
    assert_eq!(helpers.remove(&name, Family::Ip), Ok(()));
    assert_eq!(helpers.remove(&name, Family::Ip), Ok(()), "gone already is fine");
}
