use super::*;
use crate::core::ftp::notation::Notation;
use crate::core::net::Flow;
use crate::core::policy;
use crate::core::script::endpoint;
use crate::core::session::AnnouncementState;

const GOOD: AnnouncementState = AnnouncementState {
    is_ftp: true,
    has_known_start: true,
    is_unambiguous: true,
    asked_for: true,
    logged_in: true,
    extended_only: false,
};

fn direct(client: &str, server: &str) -> Connection {
    Connection::direct(Flow { source: endpoint(client), destination: endpoint(server) })
}

fn ipv4() -> Connection {
    direct("10.0.0.1:4000", "10.0.0.2:21")
}

fn ipv6() -> Connection {
    direct("[fd00::1]:4000", "[fd00::2]:21")
}

fn announcement(mode: Mode, text: &str) -> Announcement<'static> {
    let found = Notation::of(mode).read(text.as_bytes());
    Announcement { mode, named: found.map(|found| found.announced), number: None, state: GOOD, written: None }
}

/// The decision about an announcement under the terms of a policy, printed.
fn decided_by(policy: &str, announcement: &Announcement, connection: &Connection) -> String {
    let policy = policy::parse("policy.yaml", policy).expect("a good policy").policy;
    let rule = policy.match_rule(connection.client().address, connection.server().address);
    match decide(announcement, connection, policy.terms(rule), Timestamp::from_secs(0)) {
        Ok(expectation) => expectation.to_string(),
        Err(why) => why.to_string(),
    }
}

fn decided(announcement: &Announcement, connection: &Connection) -> String {
    decided_by("control_ports: [21]", announcement, connection)
}

#[test]
fn each_end_may_announce_its_own_address() {
    let port = announcement(Mode::Port, "10,0,0,1,4,1");
    assert_eq!(decided(&port, &ipv4()), "10.0.0.2 -> 10.0.0.1:1025");
    let passive = announcement(Mode::Pasv, "10,0,0,2,4,1");
    assert_eq!(decided(&passive, &ipv4()), "10.0.0.1 -> 10.0.0.2:1025");
    let eprt = announcement(Mode::Eprt, "|2|fd00::1|1025|");
    assert_eq!(decided(&eprt, &ipv6()), "fd00::2 -> [fd00::1]:1025");
    let epsv = announcement(Mode::Epsv, "|||1025|");
    assert_eq!(decided(&epsv, &ipv6()), "fd00::1 -> [fd00::2]:1025");
}

#[test]
fn unspecified_address_means_the_control_address() {
    assert_eq!(decided(&announcement(Mode::Pasv, "0,0,0,0,4,1"), &ipv4()), "10.0.0.1 -> 10.0.0.2:1025");
    assert_eq!(decided(&announcement(Mode::Port, "0,0,0,0,4,1"), &ipv4()), "third-party");
}

#[test]
fn third_party_address_is_refused() {
    assert_eq!(decided(&announcement(Mode::Port, "10,0,0,3,4,1"), &ipv4()), "third-party");
    assert_eq!(decided(&announcement(Mode::Port, "10,0,0,2,4,1"), &ipv4()), "third-party");
    assert_eq!(decided(&announcement(Mode::Pasv, "10,0,0,3,4,1"), &ipv4()), "third-party");
    assert_eq!(decided(&announcement(Mode::Eprt, "|2|fd00::3|1025|"), &ipv6()), "third-party");
}

#[test]
fn policy_may_allow_third_parties_but_only_hosts() {
    let policy = "defaults: { third_party: allow, modes: [PORT] }";
    let port = |address| announcement(Mode::Port, address);
    assert_eq!(decided_by(policy, &port("10,0,0,3,4,1"), &ipv4()), "10.0.0.2 -> 10.0.0.3:1025");
    for address in ["127,0,0,1,4,1", "224,0,0,1,4,1", "255,255,255,255,4,1", "0,0,0,0,4,1"] {
        assert_eq!(decided_by(policy, &port(address), &ipv4()), "third-party", "{address}");
    }
}

#[test]
fn end_behind_nat_may_announce_either_address() {
    let original = Flow { source: endpoint("192.168.0.9:4000"), destination: endpoint("203.0.113.1:21") };
    let reply = Flow { source: endpoint("10.9.9.9:2121"), destination: endpoint("198.51.100.1:6000") };
    let connection = Connection { original, reply };
    for (mode, address) in
        [(Mode::Port, "192,168,0,9,4,1"), (Mode::Port, "198,51,100,1,4,1"), (Mode::Pasv, "203,0,113,1,4,1")]
    {
        assert!(decided(&announcement(mode, address), &connection).contains(" -> "), "{mode} {address}");
    }
    assert_eq!(decided(&announcement(Mode::Port, "203,0,113,1,4,1"), &connection), "third-party");
}

#[test]
fn announced_address_must_have_the_family_of_the_session() {
    assert_eq!(decided(&announcement(Mode::Eprt, "|2|fd00::1|1025|"), &ipv4()), "wrong-family");
    assert_eq!(decided(&announcement(Mode::Eprt, "|1|10.0.0.1|1025|"), &ipv6()), "wrong-family");
    assert_eq!(decided(&announcement(Mode::Port, "10,0,0,1,4,1"), &ipv6()), "wrong-family");
}

#[test]
fn known_services_open_only_where_data_ports_name_them() {
    let (mysql, x11) = ("10,0,0,2,12,234", "10,0,0,2,23,112");
    let at = |policy, text| decided_by(policy, &announcement(Mode::Pasv, text), &ipv4());
    let by_default = "control_ports: [21]";
    assert_eq!((at(by_default, mysql), at(by_default, x11)), ("known-service".into(), "known-service".into()));
    assert_eq!(decided(&announcement(Mode::Port, "10,0,0,1,24,235"), &ipv4()), "known-service", "a client's Redis");
    // A range that merely has it does not name it.
    assert_eq!(at("defaults: { data_ports: 3300-3310 }", mysql), "known-service");
    assert_eq!(at("defaults: { data_ports: [3300-3310, 3306] }", mysql), "10.0.0.1 -> 10.0.0.2:3306");
    assert_eq!(at("defaults: { data_ports: 3306 }", mysql), "10.0.0.1 -> 10.0.0.2:3306");
    // Outside of `data_ports` that is the reason.
    assert_eq!(at("defaults: { data_ports: 50000-50100 }", mysql), "port-not-allowed");
    // The list is the administrator's.
    assert_eq!(at("defaults: { known_services: [] }", mysql), "10.0.0.1 -> 10.0.0.2:3306");
    assert_eq!(at("defaults: { known_services: [6000-6010] }", mysql), "10.0.0.1 -> 10.0.0.2:3306");
    assert_eq!(at("defaults: { known_services: [6000-6010] }", x11), "known-service");
    let rule = "rules: [{ name: cluster, clients: [10.0.0.1], known_services: [] }]";
    assert_eq!(at(rule, mysql), "10.0.0.1 -> 10.0.0.2:3306");
}

#[test]
fn ports_are_bounded_by_the_policy() {
    let port = |text| announcement(Mode::Port, text);
    assert_eq!(decided(&port("10,0,0,1,0,0"), &ipv4()), "port-zero");
    assert_eq!(decided(&port("10,0,0,1,0,22"), &ipv4()), "low-port");
    assert_eq!(decided(&port("10,0,0,1,3,255"), &ipv4()), "low-port");
    assert_eq!(decided(&port("10,0,0,1,4,0"), &ipv4()), "10.0.0.2 -> 10.0.0.1:1024");
    let narrow = "defaults: { data_ports: 50000-50100 }";
    assert_eq!(decided_by(narrow, &port("10,0,0,1,4,1"), &ipv4()), "port-not-allowed");
    let low = "defaults: { data_ports: 20-65535 }";
    assert_eq!(decided_by(low, &port("10,0,0,1,0,22"), &ipv4()), "10.0.0.2 -> 10.0.0.1:22");
}

#[test]
fn announcement_must_fit_the_dialogue() {
    let with = |state| Announcement { state, ..announcement(Mode::Pasv, "10,0,0,2,4,1") };
    assert_eq!(decided(&with(AnnouncementState { is_ftp: false, ..GOOD }), &ipv4()), "not-ftp");
    assert_eq!(decided(&with(AnnouncementState { asked_for: false, ..GOOD }), &ipv4()), "not-asked-for");
    assert_eq!(decided(&with(AnnouncementState { logged_in: false, ..GOOD }), &ipv4()), "not-logged-in");
    assert_eq!(decided(&with(AnnouncementState { extended_only: true, ..GOOD }), &ipv4()), "after-epsv-all");
    let optional = "defaults: { login: optional }";
    let before_login = with(AnnouncementState { logged_in: false, ..GOOD });
    assert_eq!(decided_by(optional, &before_login, &ipv4()), "10.0.0.1 -> 10.0.0.2:1025");
    let extended = Announcement {
        state: AnnouncementState { extended_only: true, ..GOOD },
        ..announcement(Mode::Epsv, "|||1025|")
    };
    assert_eq!(decided(&extended, &ipv4()), "10.0.0.1 -> 10.0.0.2:1025");
}

#[test]
fn rule_applies_to_the_hosts_that_it_names() {
    let policy = "
rules:
  - { name: no guests, clients: [10.0.0.1], servers: [10.0.0.2], action: deny }
  - { name: passive only, clients: [10.0.0.0/24], modes: [PASV] }
  - { name: no active, commands: { deny: [PORT] } }
";
    let port = announcement(Mode::Port, "10,0,0,1,4,1");
    assert_eq!(decided_by(policy, &port, &ipv4()), "by-rule");
    let elsewhere = direct("10.0.0.1:4000", "10.0.0.9:21");
    assert_eq!(decided_by(policy, &port, &elsewhere), "mode-denied");
    let stranger = direct("10.0.7.1:4000", "10.0.0.9:21");
    assert_eq!(decided_by(policy, &announcement(Mode::Port, "10,0,7,1,4,1"), &stranger), "by-rule");
}

#[test]
fn malformed_announcement_is_refused() {
    assert_eq!(decided(&announcement(Mode::Port, "10,0,0,1,4"), &ipv4()), "bad-syntax");
}

#[test]
fn every_refusal_has_a_unique_name() {
    let mut names: Vec<_> = Refusal::ALL.iter().map(|why| why.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Refusal::ALL.len());
}
