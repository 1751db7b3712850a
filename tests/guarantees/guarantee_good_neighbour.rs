//! Guarantee: changes of other programs to the ruleset are repaired at once, and nothing is left behind.
//!
//! The built program on a real kernel, in namespaces of the lab, with the lab's own small server and client around it
//! and a filter that drops by default. Needs root and nft. No duration is asserted; measured times are printed.

#![allow(clippy::print_stdout, reason = "figures for whoever runs it by hand")]

use crate::daemon;
use crate::daemon::TIMEOUT;
use crate::disturbance::disturb_transfers;
use crate::filtered_topology::{CONTENT, FILE, FILTER, FilteredTopology, TABLE, filter, modes, some_transfers};

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use lab::mini::MiniClient;
use lab::{Family, Namespace, Shape};
use nix::sys::signal::Signal;
use pinhole::core::ftp::Mode;
use pinhole::netfilter::netlink::{self, ChangeKind, Key, TableWatch, Tables, WatchEvent};

/// Waits until the table is restored with a pending pinhole, and returns how long that took from the kernel's event of
/// its removal.
fn wait_until_restored(firewall: &Namespace, watch: &mut TableWatch, pinhole: &Key) -> Duration {
    let deadline = Instant::now() + lab::allow(TIMEOUT);
    let left = || deadline.saturating_duration_since(Instant::now());
    let is_removal = |heard: &WatchEvent<netlink::TableChange>| matches!(heard, WatchEvent::Change(change) if change.kind == ChangeKind::TableRemoved && &*change.table == TABLE.name);
    while !is_removal(&watch.next(left()).expect("the kernel tells")) {
        assert!(!left().is_zero(), "nobody flushed");
    }
    let removed = Instant::now();
    let mut tables = firewall.run(|| Tables::open(TIMEOUT)).expect("root may enter").expect("root may look");
    let mut stands = || -> Result<bool, netlink::Error> {
        let rules = tables.rules(FILTER)?;
        let top = rules.iter().find(|rule| &*rule.chain == "forward").and_then(|rule| rule.comment.as_deref());
        let admits = top.is_some_and(|comment| comment.starts_with("pinhole"));
        let captures = tables.rules(TABLE)?.len() > 10;
        // Expectations exist even without the table.
        let is_pending = daemon::mechanism() == "native" || tables.has_element(TABLE, "pinholes4", pinhole)?;
        Ok(admits && captures && is_pending)
    };
    // Not the lab's wait, which pauses: this is measured.
    while !stands().unwrap_or(false) {
        assert!(!left().is_zero(), "it is not restored");
        thread::yield_now();
    }
    removed.elapsed()
}

#[test]
fn flushed_ruleset_is_restored_with_pending_pinholes() {
    let flushes = lab::share_of(200);
    let fixture = FilteredTopology::new(Shape::Gateway);
    // A client that was refused while the table was gone leaves an unused pinhole.
    let more = "defaults: { timeout: 1h, pinholes_per_session: 1000 }\n";
    let daemon = fixture.daemon_logging(more, "info");
    let users_own = daemon.folder.join("nftables.conf");
    std::fs::write(&users_own, format!("flush ruleset\n{}", filter(Shape::Gateway))).expect("a file can be written");
    let users_own = users_own.display().to_string();
    let mut watch = fixture.firewall().run(TableWatch::open).expect("root may enter").expect("the kernel tells");
    let mut took = Vec::new();
    disturb_transfers(&fixture, |disturbance| {
        let server = SocketAddr::new(fixture.topology.target.v4.into(), 21);
        fixture.as_client(|| {
            let mut client = MiniClient::log_in(server, TIMEOUT)?;
            for round in 0..flushes {
                let announced = client.passive(Mode::Pasv)?;
                while watch.next(Duration::ZERO).expect("the kernel tells") != WatchEvent::Timeout {}
                disturbance.begins();
                // The two ways in which it happens: nothing is left, or the user's own rules come at the same time.
                if round % 2 == 0 {
                    fixture.firewall().nft_output(&["flush", "ruleset"])?;
                    fixture.firewall().nft_output(&["-f", &users_own])?;
                } else {
                    fixture.firewall().nft_output(&["-f", &users_own])?;
                }
                let client_address = fixture.topology.client.addresses.v4.into();
                let pinhole = Key::connection(client_address, announced.ip(), announced.port());
                took.push(wait_until_restored(fixture.firewall(), &mut watch, &pinhole));
                disturbance.is_over();
                drop(client.connect_data(announced)?);
            }
            client.quit()
        });
    });
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    println!(
        "restored after {flushes} flushes: median {:?}, 90 % {:?}, 99 % {:?}, longest {:?}",
        at(50),
        at(90),
        at(99),
        at(100)
    );
    assert!(daemon.counted("restored") >= flushes as u64);
}

/// While no rule needs conntrack, the kernel does not track packets. The entry that it makes of the first packets
/// afterwards can be so wrong that all later packets of the connection are invalid to it.
#[test]
fn session_lost_by_conntrack_during_a_flush_continues() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    // It is stopped for a while.
    let mut daemon = fixture.daemon("capture: { watchdog: 1h }\n");
    let server = fixture.serve(Family::V4);
    let [client_host, server_host] = fixture.ends();
    // Unacknowledged bytes are retransmitted from the first one.
    client_host.set("net/ipv4/tcp_early_retrans", "0").expect("a parameter of the namespace");
    let wait_for = |packets: u64, host: &Namespace| {
        let seen = || -> lab::Result<bool> {
            let listed = host.nft_output(&["list", "counter", "inet", "watch", "seen"])?;
            let counted = listed.split_whitespace().skip_while(|word| *word != "packets").nth(1);
            Ok(counted.and_then(|number| number.parse().ok()) >= Some(packets))
        };
        lab::wait_until(&format!("{packets} packets in {host}"), TIMEOUT, seen)
    };
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        // It has read all that was said so far, and does not see the flush yet.
        daemon.status();
        daemon.child.signal(Signal::SIGSTOP)?;
        fixture.firewall().nft("flush ruleset")?;
        // Two commands arrive, too long to be sent again in one segment, and nothing comes back.
        server_host.nft(
            "table inet watch {
                 counter seen { }
                 chain hear { type filter hook input priority 0; tcp dport 21 meta length > 800 counter name seen; }
                 chain say { type filter hook output priority 0; tcp sport 21 drop; }
             }",
        )?;
        let command = format!("NOOP {}\r\n", "x".repeat(800));
        client.send(command.as_bytes())?;
        client.send(command.as_bytes())?;
        wait_for(2, server_host)?;
        fixture.firewall().nft(&filter(Shape::Gateway))?;
        fixture.firewall().nft(
            "table inet watch {
                 counter seen { }
                 chain lost { type filter hook forward priority -1; ct state invalid counter name seen; }
             }",
        )?;
        // The first of them is sent again, as it may have been before: of the client that is all that the kernel gets to see.
        server_host.nft_output(&["reset", "counter", "inet", "watch", "seen"])?;
        wait_for(1, server_host)?;
        server_host.nft("flush chain inet watch say")?;
        wait_for(1, fixture.firewall())?;
        daemon.child.signal(Signal::SIGCONT)?;
        daemon.wait_for_log("restored the table inet pinhole", 1);
        client.expect(200)?;
        client.expect(200)?;
        // The start of a line is known again after the next line of each end.
        client.command("NOOP", 200)?;
        assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT);
        client.quit()
    });
}

/// Routing and filters of others may ask for it.
#[test]
fn no_packet_leaves_with_a_pinhole_mark() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let _daemon = fixture.daemon("");
    let watch = "table inet watch {
                     counter marked { }
                     chain forward { type filter hook forward priority -1; meta mark != 0 counter name marked; }
                 }";
    fixture.firewall().nft(watch).expect("the rules are right");
    let server = fixture.serve(Family::V4);
    for &mode in modes(Family::V4) {
        fixture.as_client(|| some_transfers(server.address(), mode));
    }
    let listed = fixture.firewall().nft_output(&["list", "counter", "inet", "watch", "marked"]).expect("nft lists");
    assert!(listed.contains("packets 0 "), "{listed}");
}

#[test]
fn stop_removes_everything() {
    for shape in Shape::ALL {
        let fixture = FilteredTopology::new(shape);
        let ruleset = || fixture.firewall().nft_output(&["list", "ruleset"]).expect("nft lists");
        let before = ruleset();
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let mut daemon = fixture.daemon("");
            let server = fixture.serve(Family::V6);
            fixture.as_client(|| {
                some_transfers(server.address(), Mode::Epsv)?;
                let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
                client.passive(Mode::Epsv)?;
                assert_ne!(ruleset(), before);
                daemon.end(signal)
            });
            assert_eq!(ruleset(), before, "{shape}");
            assert!(!daemon.socket().exists());
        }
    }
}
