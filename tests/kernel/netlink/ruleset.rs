//! The table `inet pinhole`: installed, verified, restored, removed.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use pinhole::core::policy::{ControlPorts, Policy};
use pinhole::core::time::Timestamp;
use pinhole::netfilter::backend::SetupError;
use pinhole::netfilter::netlink::{
    ChangeKind, ConnectionChange, ConnectionWatch, Expression, Family, Table, TableWatch, Tables, WatchEvent,
};
use pinhole::netfilter::table::TableError;

use socket2::SockRef;

use super::host::{DEFAULT_DROP, Host, connects, expectation, guarded, listens, port, tidy_up};
use super::nat::connects_from;
use crate::firewall;

#[test]
fn probing_queue_expressions_changes_nothing() {
    let host = Host::new("try");
    host.run(|| {
        let mut tables = Tables::open(Duration::from_secs(1)).expect("root");
        let could = [
            Expression::Queue { number: 0, count: 1, bypass: true },
            Expression::CompatQueue { number: 0, count: 1, bypass: true },
        ]
        .map(|rule| tables.supports(&[rule]).expect("an answer"));
        assert!(could.contains(&true), "{could:?}");
    });
    assert_eq!(host.ruleset(), "");
}

#[test]
fn table_is_installed_verified_and_removed() {
    let host = Host::new("table");
    host.nft(DEFAULT_DROP);
    let before = host.ruleset();
    let mut policy = guarded();
    (policy.capture.queue, policy.capture.queues) = (3, NonZeroU16::new(2));
    policy.control_ports = ControlPorts::new([port(21), port(2121)]).expect("ports");
    let mut sets = host.run(|| firewall::install(&policy)).expect("an empty namespace");
    assert_eq!(sets.is_intact(), Ok(true));
    let listed = host.ruleset();
    assert!(listed.contains("comment \"pinhole: announced data connections, mark 0x10000000\""), "{listed}");
    let other = Policy { mark: pinhole::core::kernel::Mark::new(0x30).expect("bits"), ..policy.clone() };
    host.run(|| sets.reload(&other)).expect("another policy");
    assert!(host.ruleset().contains("mark 0x00000030\"") && !host.ruleset().contains("0x10000000"));
    let nowhere = Policy { admit: vec!["ip no chain".parse().expect("a name")], ..policy.clone() };
    let refused = host.run(|| sets.reload(&nowhere));
    assert!(matches!(refused, Err(SetupError::Table(TableError::NoSuchChain(_)))));
    assert_eq!(sets.is_intact(), Ok(true));
    sets.remove().expect("it stood");
    assert_eq!(host.ruleset(), before);
    sets.remove().expect("that is no mistake");
}

#[test]
fn refused_installation_names_the_obstacle() {
    let host = Host::new("foreign");
    let refused = |policy: &Policy| host.run(|| firewall::install(policy)).expect_err("it must not").to_string();
    assert!(refused(&guarded()).contains("there is no chain `inet filter input`"));
    assert_eq!(host.ruleset(), "");
    host.nft("table inet pinhole {\nchain theirs {\n}\n}");
    assert!(refused(&Policy::embedded()).contains("it has a chain `theirs`"));
    host.nft("delete table inet pinhole; add table inet pinhole; add set inet pinhole pinholes4 { type ipv4_addr; }");
    let error = refused(&Policy::embedded());
    assert!(error.starts_with("nft refused the ruleset: line "), "{error}");
}

#[test]
fn flushed_ruleset_is_restored_with_its_pinholes() {
    let (client, host) = Host::pair();
    host.nft(DEFAULT_DROP);
    let policy = guarded();
    let (mut sets, mut watch) =
        host.run(|| (firewall::install(&policy).expect("installed"), TableWatch::open().expect("root")));
    let _listener = listens(&host, "10.9.0.2:50000");
    let pinholes = [expectation("10.9.0.1", "10.9.0.2", 50_000, 60), expectation("fd09::1", "fd09::2", 50_000, 60)];
    let (told, results) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            while told.send(None).is_ok() {
                match watch.next(Duration::from_millis(500)).expect("it listens") {
                    WatchEvent::Change(change) if sets.concerns(&change) && !sets.is_intact().expect("root") => {
                        // The test discards the elements too, so that they can only come from the expectations.
                        let now = Timestamp::from_secs(1);
                        let restored = host.run(|| sets.restore(now, pinholes.iter())).expect("it can be restored");
                        if restored.without_chain.is_empty() && sets.is_intact().expect("root") {
                            let _ = told.send(Some(restored));
                        }
                    }
                    _ => {}
                }
            }
        });
        let wait = || results.iter().take(1000).flatten().next().expect("within the time of many changes");
        host.nft(&format!("flush ruleset\n{DEFAULT_DROP}"));
        let restored = wait();
        assert!(restored.was_gone && restored.table && restored.elements == 2, "{restored:?}");
        connects(&client, "10.9.0.2:50000").expect("it is still announced");

        // Rules of ours alone, and the accept rule alone.
        host.nft("flush chain inet pinhole inspect");
        let restored = wait();
        assert!(restored.table && restored.elements == 0, "what was used up stays so: {restored:?}");
        assert!(!restored.was_gone, "the kernel went on looking at packets");
        host.nft("flush chain inet filter input\nadd rule inet filter input tcp dport 21 accept");
        assert_eq!(wait().admitted.len(), 1);
        drop(results);
    });
    connects(&client, "10.9.0.2:50000").expect_err("what was used up stays so");
    tidy_up(&mut sets, &pinholes[0]);
    assert_eq!(sets.pinholes().expect("sets").len(), 1);
}

#[test]
fn watch_ignores_own_changes_and_reports_others() {
    let host = Host::new("deaf");
    let (mut sets, mut watch) =
        host.run(|| (firewall::install(&Policy::embedded()).expect("installed"), TableWatch::open().expect("root")));
    watch.ignore(sets.port_id().expect("a socket")).expect("it can be told");
    for number in 50_000..50_100 {
        firewall::open(&mut sets, &expectation("10.9.0.1", "10.9.0.2", number, 60)).expect("opened");
    }
    assert_eq!(watch.next(Duration::ZERO), Ok(WatchEvent::Timeout));
    host.nft("flush ruleset");
    let heard = watch.next(Duration::from_secs(5)).expect("it listens");
    assert!(matches!(&heard, WatchEvent::Change(change) if sets.concerns(change)), "{heard:?}");
}

#[test]
fn watch_reports_only_marked_and_ended_control_connections() {
    let (client, host) = Host::pair();
    host.nft(
        "table inet t { chain c { type filter hook prerouting priority -150; \
         tcp dport 50000 ct mark set 0x30000000; tcp dport 50001 ct mark set 0x20000000; }; }",
    );
    let mut watch = host.run(|| {
        let watch = ConnectionWatch::begins_and_ends().expect("root");
        watch.narrow(0x1000_0000, &[port(2121), port(21)]).expect("it can be told");
        watch
    });
    let _listeners = [21, 22, 2121, 50_000, 50_001].map(|number| listens(&host, &format!("10.9.0.2:{number}")));
    for number in [21, 22, 50_001, 50_000] {
        connects(&client, &format!("10.9.0.2:{number}")).expect("nothing drops it");
    }
    let heard = watch.next(Duration::from_secs(5)).expect("it listens");
    let WatchEvent::Change(ConnectionChange::Began(entry)) = heard else { panic!("{heard:?}") };
    assert_eq!((entry.connection.server().port, entry.mark), (port(50_000), 0x3000_0000));
    assert_eq!(watch.next(Duration::ZERO), Ok(WatchEvent::Timeout));
    // A connection that was reset is forgotten when another one begins between the same ports.
    let from = "10.9.0.1:40000".parse().expect("an address");
    for number in [22, 21, 2121] {
        let to = format!("10.9.0.2:{number}").parse().expect("an address");
        let first = connects_from(&client, from, to).expect("nothing drops it");
        SockRef::from(&first).set_linger(Some(Duration::ZERO)).expect("it is a socket");
        drop(first);
        connects_from(&client, from, to).expect("nothing drops it");
    }
    for number in [21, 2121] {
        let heard = watch.next(Duration::from_secs(5)).expect("it listens");
        let WatchEvent::Change(ConnectionChange::Ended(entry)) = heard else { panic!("{heard:?}") };
        assert_eq!(entry.connection.server().port, port(number));
    }
    assert_eq!(watch.next(Duration::ZERO), Ok(WatchEvent::Timeout));
}

#[test]
fn watch_reports_kind_and_author_of_a_change() {
    let host = Host::new("watch");
    let (mut tables, mut watch) =
        host.run(|| (Tables::open(Duration::from_secs(1)).expect("root"), TableWatch::open().expect("root")));
    host.nft("table ip t {\nchain c {\n}\n}");
    tables.insert_rule(Table { family: Family::Ip, name: "t" }, "c", "", &[Expression::Accept]).expect("a chain");
    let mut heard = BTreeSet::new();
    while let WatchEvent::Change(change) = watch.next(Duration::from_millis(200)).expect("it listens") {
        assert_eq!((change.family, &*change.table), (Family::Ip, "t"));
        assert_eq!(change.port_id == tables.port_id().expect("bound"), change.kind == ChangeKind::RuleAdded);
        heard.insert(format!("{:?} {}", change.kind, change.chain.as_deref().unwrap_or("")));
    }
    assert_eq!(heard, ["TableAdded ", "ChainAdded c", "RuleAdded c"].map(String::from).into());
}
