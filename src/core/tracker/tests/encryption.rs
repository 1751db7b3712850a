//! Sessions after AUTH TLS.

use super::*;
use crate::core::kernel::Testimony;

#[test]
fn nothing_is_read_after_auth_tls() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "AUTH TLS\r\n"));
    fixture.sees(&talk.says(FromServer, "234 go\r\n227 Entering Passive Mode (10,0,0,2,4,1)\r\n"));
    fixture.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    fixture.sees(&talk.closes(FromClient));
    fixture.sees(&talk.ack(FromServer));
    assert_eq!(fixture.take_events(), ["1 encrypted", "1 ended: finished"]);
}

#[test]
fn encrypted_session_gets_a_port_range_if_allowed() {
    let mut fixture = Fixture::with_policy("defaults: { tls: range 50000-50100 }");
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "AUTH TLS\r\n"));
    assert!(!fixture.connects("10.0.0.1:5000", "10.0.0.2:50001"));
    fixture.sees(&talk.says(FromServer, "234 go\r\n"));
    assert!(!fixture.connects("10.0.0.1:5000", "10.0.0.2:50001"));
    quotas::goes_on_encrypted(&mut fixture, &mut talk);
    assert!(fixture.connects("10.0.0.1:5000", "10.0.0.2:50001"));
    assert!(fixture.connects("10.0.0.1:5001", "10.0.0.2:50001"));
    assert!(!fixture.connects("10.0.0.3:5000", "10.0.0.2:50001"));
    assert!(!fixture.connects("10.0.0.1:5000", "10.0.0.2:50101"));
    fixture.sees(&talk.closes(FromServer));
    fixture.sees(&talk.ack(FromClient));
    assert!(!fixture.connects("10.0.0.1:5002", "10.0.0.2:50001"));
}

#[test]
fn encrypted_stays_unread_after_a_reload_that_denies() {
    let mut fixture = Fixture::new();
    let mut talk = conversation();
    fixture.sees_all(talk.handshake());
    fixture.sees(&talk.says(FromServer, "220 ready\r\n"));
    fixture.sees(&talk.says(FromClient, "AUTH TLS\r\n"));
    fixture.sees(&talk.says(FromServer, "234 go on\r\n"));
    fixture.policy =
        policy::parse("policy.yaml", "defaults: { tls: deny, commands: { deny: [DELE] } }").expect("good").policy;
    fixture.follows_policy();
    let control = fixture.firewall.control_connection(&talk.flow()).expect("it is in memory").expect("it is one");
    assert_eq!(control.progress, SessionProgress::Unreadable);
    let record = b"\x16\x03\x01\nDELE x\r\n";
    assert_eq!(fixture.lets_pass(&talk.says(FromClient, record)), record);
}

/// A slow server answers when the client's retransmission is on its way.
#[test]
fn retransmitted_auth_is_no_turn_of_the_encrypted_dialogue() {
    let mut fixture = Fixture::with_policy("defaults: { tls: range 50000-50100 }");
    let mut talk = logged_in(&mut fixture);
    let auth = talk.says(FromClient, "AUTH TLS\r\n");
    fixture.sees(&auth);
    fixture.sees(&talk.says(FromServer, "234 go\r\n"));
    fixture.sees(&auth);
    quotas::goes_on_encrypted(&mut fixture, &mut talk);
    assert!(fixture.connects("10.0.0.1:5000", "10.0.0.2:50001"));
}

/// A list of files in a reply may contain what looks like the next reply.
#[test]
fn file_name_that_looks_like_the_reply_to_auth_encrypts_nothing() {
    let mut fixture = Fixture::with_policy("defaults: { tls: deny, commands: { deny: [DELE] } }");
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "STAT .\r\nAUTH TLS\r\n"));
    fixture.sees(&talk.says(FromServer, "213-Status:\r\na\r\n213 x\r\n234 x\r\n213 End\r\n500 AUTX?\r\n"));
    assert_eq!(fixture.take_events(), ["1 denied AUTH", "1 not FTP"]);
    assert_eq!(fixture.lets_pass(&talk.says(FromClient, "DELE x\r\n")), b"DELX x\r\n");
}

#[test]
fn file_name_that_looks_like_the_reply_to_auth_opens_no_range() {
    let mut fixture = Fixture::with_policy("defaults: { tls: range 50000-50100 }");
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "STAT .\r\nAUTH TLS\r\n"));
    fixture.sees(&talk.says(FromServer, "213-Status:\r\na\r\n213 x\r\n234 x\r\n"));
    quotas::goes_on_encrypted(&mut fixture, &mut talk);
    assert!(!fixture.connects("10.0.0.1:5000", "10.0.0.2:50001"));
}

const HELLO: &[u8] = b"\x16\x03\x01\0\x05\x01\0\0\x01a";
const SERVER_HELLO: &[u8] = b"\x16\x03\x03\0\x05\x02\0\0\x01a";
const DATA: &[u8] = b"\x17\x03\x03\0\x02ab";

/// A session that begins with TLS, up to the server's first record.
fn implicit(fixture: &mut Fixture) -> Conversation {
    let mut talk = conversation();
    fixture.sees_all(talk.handshake());
    fixture.sees(&talk.says(FromClient, HELLO));
    fixture.sees(&talk.says(FromServer, SERVER_HELLO));
    talk
}

#[test]
fn implicit_tls_passes_unread_and_opens_nothing() {
    let mut fixture = Fixture::with_policy("defaults: { login: optional }");
    let mut talk = implicit(&mut fixture);
    assert_eq!(fixture.take_events()[1..], ["1 implicit TLS"]);
    let text = b"PORT 10,0,0,1,4,1\r\n";
    assert_eq!(fixture.lets_pass(&talk.says(FromClient, text)), text);
    fixture.sees(&talk.says(FromServer, PASSIVE));
    assert_eq!((fixture.take_events(), fixture.firewall.pinholes()), (vec![], 0));
    let control = fixture.firewall.control_connection(&talk.flow()).expect("it is in memory").expect("it is one");
    assert_eq!(control.progress, SessionProgress::Unreadable);
}

#[test]
fn client_hello_without_an_answer_in_tls_is_not_ftp() {
    let mut fixture = Fixture::new();
    let mut talk = conversation();
    fixture.sees_all(talk.handshake());
    fixture.sees(&talk.says(FromClient, HELLO));
    let control = fixture.firewall.control_connection(&talk.flow()).expect("it is in memory").expect("it is one");
    assert_eq!(control.progress, SessionProgress::Unknown, "the answer has to be read");
    fixture.sees(&talk.says(FromServer, "220 ready\r\n"));
    fixture.sees(&talk.says(FromClient, "\r\nPORT 10,0,0,1,4,1\r\n"));
    assert_eq!(fixture.take_events()[1..], ["1 not FTP", "1 PORT 10.0.0.1:1025 refused: not-ftp"]);
}

#[test]
fn policy_that_denies_keeps_implicit_tls_from_the_server() {
    for denies in ["tls: deny", "commands: { deny: [DELE] }"] {
        let mut fixture = Fixture::with_policy(&format!("defaults: {{ {denies} }}"));
        let mut talk = conversation();
        fixture.sees_all(talk.handshake());
        let packet = talk.says(FromClient, HELLO);
        let passed = fixture.lets_pass(&packet);
        assert_eq!((passed.len(), passed[0]), (HELLO.len(), b'X'), "{denies}");
        assert_eq!(fixture.lets_pass(&packet), passed, "a retransmission");
        assert_eq!(fixture.take_events()[1], "1 denied implicit TLS");
        fixture.sees(&talk.says(FromServer, b"\x15\x03\x01\0\x02\x02\x46"));
        assert_eq!(fixture.take_events(), ["1 not FTP"]);
        let passed = fixture.lets_pass(&talk.says(FromClient, "DELE x\r\nAUTH TLS\r\n"));
        assert_ne!(passed, b"DELE x\r\nAUTH TLS\r\n", "it is still read");
    }
}

/// TCP cuts a handshake anywhere, servers read other records before it, and most of its bytes are no ASCII.
#[test]
fn policy_that_denies_keeps_odd_tls_beginnings_from_the_server() {
    let with_random = b"\x16\x03\x01\0\x08\x01\0\0\x04\x03\x03\xc0\xfe".as_slice();
    let hello_of_ssl2 = b"\x80\x1f\x01\x03\x03\0\x03\0\0\0\x10\0\0\x2f".as_slice();
    let after_an_alert = [b"\x15\x03\x01\0\x02\x01\0".as_slice(), HELLO].concat();
    let after_an_empty_record = [b"\x16\x03\x01\0\0".as_slice(), HELLO].concat();
    for pieces in [
        &[&HELLO[..1], &HELLO[1..]][..],
        &[&HELLO[..5], &HELLO[5..]],
        &[with_random],
        &[&with_random[..1], &with_random[1..]],
        &[hello_of_ssl2],
        &[&hello_of_ssl2[..1], &hello_of_ssl2[1..]],
        &[&after_an_alert],
        &[&after_an_empty_record],
    ] {
        let mut fixture = Fixture::with_policy("defaults: { tls: deny }");
        let mut talk = conversation();
        fixture.sees_all(talk.handshake());
        let arrives: Vec<u8> =
            pieces.iter().flat_map(|piece| fixture.lets_pass(&talk.says(FromClient, piece))).collect();
        assert_eq!((arrives.len(), arrives[0]), (pieces.concat().len(), b'X'), "{pieces:x?}");
    }
}

#[test]
fn range_of_implicit_tls_opens_after_the_greeting_and_a_login() {
    let mut fixture = Fixture::with_policy("defaults: { tls: range 50000-50100 }");
    let mut talk = implicit(&mut fixture);
    assert_eq!(fixture.take_events()[1..], ["1 encrypted, 10.0.0.1 -> 10.0.0.2 ports 50000-50100"]);
    for turn in 0..7 {
        assert!(!fixture.connects("10.0.0.1:5000", "10.0.0.2:50001"), "before turn {turn}");
        fixture.sees(&talk.says(if turn % 2 == 0 { FromClient } else { FromServer }, DATA));
    }
    assert!(fixture.connects("10.0.0.1:5000", "10.0.0.2:50001"));
}

/// A session that is encrypted, and long enough for a login, under `tls: service`. Without the events so far.
fn served(fixture: &mut Fixture) -> Conversation {
    let mut talk = logged_in(fixture);
    fixture.sees(&talk.says(FromClient, "AUTH TLS\r\n"));
    fixture.sees(&talk.says(FromServer, "234 go\r\n"));
    quotas::goes_on_encrypted(fixture, &mut talk);
    fixture.take_events();
    talk
}

const SERVICE: &str = "defaults: { tls: service }";
const FROM: &str = "10.0.0.1:5000";
const TO: &str = "10.0.0.2:50001";

#[test]
fn listener_of_the_service_opens_one_connection_for_each_syn() {
    let mut fixture = Fixture::with_policy(SERVICE);
    served(&mut fixture);
    fixture.firewall.set_testimony(Testimony::Vouches);
    assert!(!fixture.connects(FROM, TO), "nothing is open before the SYN asks");
    for _ in 0..3 {
        assert_eq!(fixture.asks(FROM, TO), SynVerdict::Repeat);
        assert!(fixture.connects(FROM, TO));
        assert!(!fixture.connects("10.0.0.1:5001", TO));
        let used = format!("1 used {FROM} -> {TO}");
        assert_eq!(fixture.take_events(), ["1 SYN 10.0.0.1 -> 10.0.0.2:50001".to_owned(), used]);
    }
    assert_eq!(fixture.asks("10.0.0.2:20", "10.0.0.1:6500"), SynVerdict::Repeat, "active mode");
    assert!(fixture.connects("10.0.0.2:20", "10.0.0.1:6500"));
}

#[test]
fn syn_without_a_listener_of_the_service_opens_nothing() {
    let mut fixture = Fixture::with_policy(SERVICE);
    served(&mut fixture);
    for (testimony, why) in [
        (Testimony::NotListening, "not-listening"),
        (Testimony::OtherService, "other-service"),
        (Testimony::NoControlSocket, "not-on-this-host"),
        (Testimony::SharedCgroup, "shared-cgroup"),
        (Testimony::Unknown, "not-opened"),
    ] {
        fixture.firewall.set_testimony(testimony);
        assert_eq!(fixture.asks(FROM, TO), SynVerdict::Accept);
        assert_eq!(fixture.take_events(), [format!("1 SYN {FROM} -> {TO} refused: {why}")]);
    }
    assert_eq!(fixture.firewall.pinholes(), 0);
}

#[test]
fn syn_is_asked_about_only_between_the_hosts_of_an_encrypted_session() {
    let mut fixture = Fixture::with_policy(SERVICE);
    fixture.firewall.set_testimony(Testimony::Vouches);
    let mut talk = logged_in(&mut fixture);
    assert_eq!(fixture.asks(FROM, TO), SynVerdict::NotAsked, "in the clear");
    fixture.sees(&talk.says(FromClient, "AUTH TLS\r\n"));
    fixture.sees(&talk.says(FromServer, "234 go\r\n"));
    assert_eq!(fixture.asks(FROM, TO), SynVerdict::NotAsked, "before a login");
    quotas::goes_on_encrypted(&mut fixture, &mut talk);
    assert_eq!(fixture.asks("10.0.0.3:5000", TO), SynVerdict::NotAsked, "another client");
    assert_eq!(fixture.asks(FROM, "10.0.0.3:50001"), SynVerdict::NotAsked, "another server");
    assert_eq!(fixture.asks(FROM, "10.0.0.2:21"), SynVerdict::NotAsked, "a control port");
    assert_eq!(fixture.asks(FROM, TO), SynVerdict::Repeat);
    fixture.sees(&talk.closes(FromServer));
    fixture.sees(&talk.ack(FromClient));
    assert_eq!(fixture.asks(FROM, TO), SynVerdict::NotAsked, "after its end");
    assert_eq!(fixture.firewall.pinholes(), 0);
}

#[test]
fn syn_opens_no_port_and_no_direction_that_the_terms_forbid() {
    for (terms, to) in [
        ("", "10.0.0.2:80"),
        ("", "10.0.0.2:3306"),
        (", data_ports: 40000-41000", TO),
        (", modes: [PORT, EPRT]", TO),
        (", commands: { deny: [PASV, EPSV] }", TO),
    ] {
        let mut fixture = Fixture::with_policy(&format!("defaults: {{ tls: service{terms} }}"));
        served(&mut fixture);
        fixture.firewall.set_testimony(Testimony::Vouches);
        assert_eq!(fixture.asks(FROM, to), SynVerdict::Accept, "{terms} {to}");
        assert_eq!((fixture.take_events(), fixture.firewall.pinholes()), (vec![], 0), "{terms} {to}");
    }
    let mut fixture = Fixture::with_policy("defaults: { tls: service, modes: [PASV, EPSV] }");
    served(&mut fixture);
    fixture.firewall.set_testimony(Testimony::Vouches);
    assert_eq!(fixture.asks("10.0.0.2:20", "10.0.0.1:6500"), SynVerdict::Accept);
}

#[test]
fn pinholes_for_syns_count_towards_the_limits() {
    let mut fixture = Fixture::with_policy("defaults: { tls: service, pinholes_per_session: 2 }");
    served(&mut fixture);
    fixture.firewall.set_testimony(Testimony::Vouches);
    for port in 50_001..50_003 {
        assert_eq!(fixture.asks(FROM, &format!("10.0.0.2:{port}")), SynVerdict::Repeat);
    }
    assert_eq!(fixture.asks(FROM, "10.0.0.2:50003"), SynVerdict::Accept);
    assert_eq!(
        fixture.take_events().last().map(String::as_str),
        Some("1 SYN 10.0.0.1:5000 -> 10.0.0.2:50003 refused: too-many")
    );
    fixture.waits(Duration::from_secs(11));
    assert_eq!((fixture.firewall.pinholes(), fixture.asks(FROM, "10.0.0.2:50003")), (0, SynVerdict::Repeat));
}

#[test]
fn reload_that_takes_the_service_away_ends_the_asking() {
    let mut fixture = Fixture::with_policy(SERVICE);
    served(&mut fixture);
    fixture.firewall.set_testimony(Testimony::Vouches);
    for text in ["defaults: { tls: pass }", "rules: [{ name: none, action: deny }]"] {
        fixture.policy = policy::parse("policy.yaml", text).expect("good").policy;
        fixture.follows_policy();
        assert_eq!(fixture.asks(FROM, TO), SynVerdict::Accept, "{text}");
    }
    assert_eq!(fixture.firewall.pinholes(), 0);
}
