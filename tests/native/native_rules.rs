//! The mechanism `native` with other people's rulesets: those that assign the helper themselves, and those of
//! distributions.
//!
//! Needs root and nft, and a kernel with helpers in userspace.

use crate::daemon::TIMEOUT;
use crate::filtered_topology::{FilteredTopology, modes, some_transfers};
use crate::helper_list::{machine, start, wait_for_no_helper};
use lab::{Family, Shape, Topology};
use nix::sys::signal::Signal;
use pinhole::core::ftp::Mode;
use pinhole::netfilter::netlink::Helpers;

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
fn helper_assigned_by_own_rules_works_and_stays() {
    let Some(_machine) = machine() else { return };
    wait_for_no_helper();
    let topology = Topology::new(Shape::Gateway).unwrap_or_else(|error| panic!("{error}"));
    let fixture = FilteredTopology { topology };
    let mut daemon = start(fixture.firewall(), "");
    fixture.firewall().nft(OWN_HELPER).expect("the helper is there");
    for family in Family::ALL {
        let server = fixture.serve(family);
        for &mode in modes(family) {
            fixture.as_client(|| some_transfers(server.address(), mode));
        }
    }
    daemon.end(Signal::SIGTERM).expect("it ends");
    // Older kernels keep a helper that a ruleset names; since Linux 7.2 it goes.
    let stays = !Helpers::open(TIMEOUT).and_then(|mut all| all.list()).expect("a list").is_empty();
    let says_so = daemon.child.output().contains("the helper `ftp` stays, because a ruleset names it");
    assert_eq!(says_so, stays, "{}", daemon.child.output());
    daemon.restart().expect("it takes it over");
    let server = fixture.serve(Family::V4);
    fixture.as_client(|| some_transfers(server.address(), Mode::Pasv));
    fixture.firewall().nft("delete table inet own").expect("it stands");
    daemon.end(Signal::SIGTERM).expect("it ends");
    assert_eq!(Helpers::open(TIMEOUT).and_then(|mut all| all.list()), Ok(vec![]));
}

/// Debian's `/etc/nftables.conf` from the package nftables, to which users add their own rules.
const CONFIGURATION: &str = include_str!("nftables.conf");
/// An example in the same package, for a host.
const WORKSTATION: &str = include_str!("workstation.nft");
/// The rules that firewalld makes of its zone `public` with the service ftp.
const FIREWALLD: &str = include_str!("firewalld.nft");

/// The text with another line in the place of one that has to be there.
fn with_line(text: &str, line: &str, instead: &str) -> String {
    assert_eq!(text.matches(line).count(), 1, "{line}");
    text.replacen(line, instead, 1)
}

/// Debian's configuration, filled in as for a gateway.
fn gateway() -> String {
    let policy = "type filter hook forward priority filter;";
    let rules = "policy drop;
        ct state established,related accept
        meta l4proto { icmp, ipv6-icmp } accept
        tcp dport 21 accept";
    with_line(CONFIGURATION, policy, &format!("{policy} {rules}"))
}

/// Debian's example, with the line activated that it says to activate.
fn workstation() -> String {
    with_line(WORKSTATION, "#tcp dport { 22, 80, 443 } ct state new accept", "tcp dport { 21, 22 } ct state new accept")
}

#[test]
fn distribution_rulesets_work_unchanged() {
    let Some(_machine) = machine() else { return };
    for (rules, shapes) in [
        (gateway(), &[Shape::Gateway][..]),
        (workstation(), &[Shape::ServerHost, Shape::ClientHost]),
        (FIREWALLD.to_owned(), &[Shape::ServerHost, Shape::ClientHost]),
    ] {
        for &shape in shapes {
            let topology = Topology::new(shape).unwrap_or_else(|error| panic!("{error}"));
            let fixture = FilteredTopology { topology };
            // First, as it should be at boot: firewalld's rules name the helper.
            let daemon = start(fixture.firewall(), "");
            fixture.firewall().nft(&rules).expect("the rules are right");
            let stands = || Ok(fixture.firewall().nft_output(&["list", "tables"])?.contains("inet pinhole"));
            lab::wait_until("the table to be back", TIMEOUT, stands).unwrap_or_else(|error| panic!("{error}"));
            for family in Family::ALL {
                let server = fixture.serve(family);
                for &mode in modes(family) {
                    fixture.as_client(|| some_transfers(server.address(), mode));
                }
            }
            assert_eq!(daemon.counted("opened"), daemon.counted("used"), "{}", daemon.child.output());
        }
    }
}
