//! Elements of the sets: which connections they admit, and which they do not.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use pinhole::core::expectation::{OnSyn, PortRangePinhole};
use pinhole::core::kernel::{Control, Firewall, SessionProgress, Synced};
use pinhole::core::net::{Connection, Flow, PortRange};
use pinhole::core::policy::Policy;
use pinhole::core::seqadj::Adjustments;
use pinhole::netfilter::netlink::{
    ConnectionChange, ConnectionWatch, Conntrack, Element, Family, Key, Table, Tables, WatchEvent,
};

use super::host::{DEFAULT_DROP, Host, connects, expectation, flow, flow_of, guarded, ip, listens, port, tidy_up};
use crate::firewall;

#[test]
fn set_element_exists_until_removed_or_expired() {
    let host = Host::new("sets");
    host.nft(
        "add table inet t
        add set inet t s { type ipv4_addr . ipv4_addr . inet_service; size 100; flags dynamic,timeout; }
        add set inet t v { type ipv6_addr . ipv6_addr . inet_service; flags interval,timeout; }",
    );
    host.run(|| {
        let table = Table { family: Family::Inet, name: "t" };
        let mut tables = Tables::open(Duration::from_secs(1)).expect("root");
        let key = Key::connection(ip("10.0.0.1"), ip("10.0.0.2"), 50_000);
        let minute = Element::new(key, Duration::from_secs(60));
        tables.insert(table, "s", &minute).expect("room");
        let listed = host.ruleset();
        assert!(listed.contains("10.0.0.1 . 10.0.0.2 . 50000 timeout 1m expires"), "{listed}");

        // The second time it begins its life anew, longer this time.
        tables.insert(table, "s", &Element::new(key, Duration::from_secs(600))).expect("it replaces");
        let stands = tables.elements(table, "s").expect("a set");
        assert_eq!(stands.len(), 1);
        assert_eq!((stands[0].key, stands[0].timeout), (key, Some(Duration::from_secs(600))));
        assert!(stands[0].expiration.is_some_and(|left| left > Duration::from_secs(590)), "{stands:?}");

        let there = |tables: &mut Tables| tables.elements(table, "s").expect("a set").len();
        assert_eq!((tables.remove(table, "s", &minute), there(&mut tables)), (Ok(()), 0));
        assert_eq!(tables.remove(table, "s", &minute), Ok(()));
        tables.insert(table, "s", &Element::new(key, Duration::from_millis(50))).expect("room");
        thread::sleep(Duration::from_millis(150));
        assert_eq!((tables.remove(table, "s", &minute), there(&mut tables)), (Ok(()), 0));

        let many: Vec<_> = (1..=1000)
            .map(|n| Element::new(Key::connection(ip("fd00::1"), ip("fd00::2"), n), minute.timeout.expect("a minute")))
            .collect();
        let ranges: Vec<_> =
            many.chunks(10).map(|ten| Element::range(ten[0].key, ten[9].key, Duration::from_secs(9))).collect();
        tables.insert_all(table, "v", &ranges).expect("room");
        assert_eq!(tables.elements(table, "v").expect("a set").len(), 100);
        assert_eq!(tables.remove(table, "v", &ranges[3]), Ok(()));
        assert_eq!(tables.elements(table, "v").expect("a set").len(), 99);

        let full: Result<(), _> = (0..200).try_for_each(|n| {
            tables.insert(
                table,
                "s",
                &Element::new(Key::connection(ip("10.0.0.1"), ip("10.0.0.2"), n), Duration::from_secs(9)),
            )
        });
        assert!(full.expect_err("a hundred at most").to_string().contains("it is full"));
        let error = tables.insert(table, "none", &minute).expect_err("no such set");
        assert!(error.cause.is_missing(), "{error}");
    });
}

#[test]
fn pinhole_admits_one_connection_between_its_addresses() {
    for (client_at, host_at) in [("10.9.0.1", "10.9.0.2"), ("fd09::1", "fd09::2")] {
        let (client, host) = Host::pair();
        host.nft(DEFAULT_DROP);
        let mut sets = host.run(|| firewall::install(&guarded())).expect("installed");
        let end = |number| SocketAddr::new(ip(host_at), number).to_string();
        let _listeners = [50_000, 50_001].map(|number| listens(&host, &end(number)));
        connects(&client, &end(50_000)).expect_err("nobody announced it");

        firewall::open(&mut sets, &expectation(client_at, host_at, 50_000, 60)).expect("opened");
        connects(&client, &end(50_001)).expect_err("another port");
        let mut first = connects(&client, &end(50_000)).expect("it was announced");
        first.write_all(b"data").expect("open");
        connects(&client, &end(50_000)).expect_err("it was used");
        let entry = host.run(|| Conntrack::open(Duration::from_secs(1)).and_then(|mut c| c.find(&flow_of(&first))));
        assert_eq!(entry.expect("root").expect("a connection").mark, 0x1000_0000);
        tidy_up(&mut sets, &expectation(client_at, host_at, 50_000, 60));
        assert_eq!(sets.pinholes(), Ok(Vec::new()));

        firewall::open(&mut sets, &expectation("10.9.0.77", "10.9.0.2", 50_000, 60)).expect("for somebody else");
        connects(&client, &end(50_000)).expect_err("from another address");
        firewall::open(&mut sets, &expectation(client_at, host_at, 50_000, 60)).expect("opened");
        sets.close(&expectation(client_at, host_at, 50_000, 60));
        connects(&client, &end(50_000)).expect_err("it was closed");
        assert_eq!(sets.pinholes().expect("sets").len(), 1);
        assert_eq!(sets.take_refused().count, 0);
    }
}

#[test]
fn pinhole_admits_one_of_many_simultaneous_connections() {
    let (client, host) = Host::pair();
    host.nft(DEFAULT_DROP);
    let mut sets = host.run(|| firewall::install(&guarded())).expect("installed");
    let _listener = listens(&host, "10.9.0.2:50000");
    for _ in 0..5 {
        firewall::open(&mut sets, &expectation("10.9.0.1", "10.9.0.2", 50_000, 60)).expect("opened");
        let starts = Barrier::new(8);
        let attempt = || {
            starts.wait();
            connects(&client, "10.9.0.2:50000").is_ok()
        };
        let admitted = thread::scope(|scope| {
            let attempts: Vec<_> = (0..8).map(|_| scope.spawn(attempt)).collect();
            attempts.into_iter().filter_map(|attempt| attempt.join().ok()).filter(|admitted| *admitted).count()
        });
        assert_eq!(admitted, 1);
    }
}

#[test]
fn same_pinhole_can_be_opened_and_used_repeatedly() {
    let (client, host) = Host::pair();
    host.nft(DEFAULT_DROP);
    let mut sets = host.run(|| firewall::install(&guarded())).expect("installed");
    let listener = listens(&host, "10.9.0.2:50000");
    let announced = expectation("10.9.0.1", "10.9.0.2", 50_000, 60);
    for time in 0..200 {
        firewall::open(&mut sets, &announced).expect("opened");
        connects(&client, "10.9.0.2:50000").unwrap_or_else(|error| panic!("time {time}: {error}"));
        listener.accept().expect("it came");
        // The conntrack event may come late, or not at all.
        match time % 3 {
            0 => tidy_up(&mut sets, &announced),
            1 => sets.used(&flow("10.9.0.1:1".parse().expect("an address"), "10.9.0.2:50000".parse().expect("one"))),
            _ => {}
        }
    }
    firewall::open(&mut sets, &announced).expect("opened");
    sets.sweep();
    assert_eq!(sets.pinholes().expect("sets").len(), 1, "what was announced anew is not swept away");
    assert_eq!(sets.take_refused().count, 0);
}

#[test]
fn port_range_admits_many_until_its_last_session_ends() {
    let (client, host) = Host::pair();
    host.nft(DEFAULT_DROP);
    let mut sets = host.run(|| firewall::install(&guarded())).expect("installed");
    let _listeners = [50_000, 50_100, 50_101].map(|number| listens(&host, &format!("10.9.0.2:{number}")));
    let on_syn = OnSyn::Admit(PortRange::new(port(50_000), port(50_100)).expect("a range"));
    let port_range = PortRangePinhole { from: ip("10.9.0.1"), to: ip("10.9.0.2"), on_syn };
    sets.open_port_range(&port_range).expect("opened");
    sets.open_port_range(&port_range).expect("by another session");
    sets.close_port_range(&port_range);
    for _ in 0..2 {
        connects(&client, "10.9.0.2:50000").expect("the first port");
        connects(&client, "10.9.0.2:50100").expect("the last port");
    }
    connects(&client, "10.9.0.2:50101").expect_err("beyond");
    sets.close_port_range(&port_range);
    connects(&client, "10.9.0.2:50000").expect_err("closed");
    assert_eq!(sets.take_refused().count, 0);
}

#[test]
fn renewed_range_lasts_its_whole_lifetime() {
    let host = Host::new("range");
    let mut sets = host.run(|| firewall::install(&Policy::embedded())).expect("installed");
    let on_syn = OnSyn::Admit(PortRange::new(port(50_000), port(50_100)).expect("a range"));
    let port_range = PortRangePinhole { from: ip("10.9.0.1"), to: ip("10.9.0.2"), on_syn };
    let table = Table { family: Family::Inet, name: "pinhole" };
    let lifetimes = || {
        let elements = host.run(|| Tables::open(Duration::from_secs(1)).expect("root").elements(table, "port_ranges4"));
        elements.expect("a set").iter().map(|element| element.timeout).collect::<Vec<_>>()
    };
    sets.open_port_range(&port_range).expect("opened");
    assert_eq!(lifetimes(), [Some(PortRangePinhole::LIFETIME)]);
    // As it is when most of its life is over.
    let element = "element inet pinhole port_ranges4 { 10.9.0.1 . 10.9.0.2 . 50000-50100";
    host.nft(&format!("delete {element} }}\nadd {element} timeout 20s }}"));
    assert_eq!(lifetimes(), [Some(Duration::from_secs(20))]);
    sets.renew_port_range(&port_range);
    assert_eq!(lifetimes(), [Some(PortRangePinhole::LIFETIME)]);
    sets.close_port_range(&port_range);
    assert_eq!((lifetimes(), sets.take_refused().count), (Vec::new(), 0));
}

#[test]
fn translated_connection_has_four_addresses() {
    let (client, host) = Host::pair();
    host.nft(
        "add table ip nat
        add chain ip nat pre { type nat hook prerouting priority dstnat; }
        add rule ip nat pre tcp dport 21 redirect to :2021
        add chain ip nat in { type nat hook input priority 100; }
        add rule ip nat in tcp dport 2021 snat to 10.9.0.9",
    );
    let mut sets = host.run(|| firewall::install(&Policy::embedded())).expect("installed");
    let listener = listens(&host, "10.9.0.2:2021");
    let ours = connects(&client, "10.9.0.2:21").expect("it is redirected");
    let (theirs, _) = listener.accept().expect("it came");
    let connection = Connection { original: flow_of(&ours), reply: flow_of(&theirs) };
    assert_eq!(theirs.peer_addr().map(|peer| peer.ip()).ok(), Some(ip("10.9.0.9")));
    let found = sets.control_connection(&connection.original).expect("an answer");
    let id = found.and_then(|control| control.id);
    let control = Ok(Some(Control {
        connection,
        id,
        is_opening: false,
        progress: SessionProgress::Unknown,
        synced: Synced::default(),
        adjustments: Adjustments::default(),
    }));
    assert_eq!(sets.control_connection(&connection.original), control);
    assert_eq!(sets.control_connection(&connection.reply), control);
    let unknown: Flow = flow("10.1.1.1:9".parse().expect("one"), "10.1.1.2:80".parse().expect("one"));
    assert_eq!(sets.control_connection(&unknown), Ok(None));
}

#[test]
fn restart_finds_existing_pinholes() {
    let host = Host::new("restart");
    let pinhole = expectation("10.9.0.1", "10.9.0.2", 50_000, 60);
    let mut first = host.run(|| firewall::install(&Policy::embedded())).expect("installed");
    firewall::open(&mut first, &pinhole).expect("opened");
    drop(first);
    let mut second = host.run(|| firewall::install(&Policy::embedded())).expect("over what stands");
    let found = second.pinholes().expect("sets");
    assert_eq!((found.len(), found[0].from, found[0].to), (1, pinhole.from, pinhole.to));
    assert!(found[0].remaining > Duration::from_secs(50) && found[0].lifetime == pinhole.lifetime);
}

#[test]
fn watch_reports_begin_and_end_of_marked_connections() {
    let (client, host) = Host::pair();
    let mut sets = host.run(|| firewall::install(&Policy::embedded())).expect("installed");
    let mut watch = host.run(ConnectionWatch::begins_and_ends).expect("root");
    let _listener = listens(&host, "10.9.0.2:50000");
    firewall::open(&mut sets, &expectation("10.9.0.1", "10.9.0.2", 50_000, 60)).expect("opened");
    let ours = connects(&client, "10.9.0.2:50000").expect("nothing drops");
    let wait = |watch: &mut ConnectionWatch| loop {
        match watch.next(Duration::from_secs(2)).expect("it listens") {
            WatchEvent::Change(change) => return change,
            WatchEvent::Overrun => panic!("there is room"),
            WatchEvent::Timeout => {}
        }
    };
    let ConnectionChange::Began(entry) = wait(&mut watch) else { panic!("it began") };
    assert_eq!((entry.connection.original, entry.mark), (flow_of(&ours), 0x1000_0000));
    host.sh(&["conntrack", "-F"]);
    assert!(matches!(wait(&mut watch), ConnectionChange::Ended(ended) if ended.connection == entry.connection));
}
