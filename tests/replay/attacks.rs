//! Attacks on a replay: nothing opens that should not.

use std::fmt::Write as _;

use crate::support::{count_packets, policy, replay_packets, text};
use pinhole::core::net::Direction::{self, FromClient, FromServer};
use pinhole::core::policy::Policy;
use pinhole::core::script::{Conversation, endpoint};
use pinhole::replay::Counters;
use serde_json::Value;

const CLIENT: &str = "10.0.0.1:4000";
const SERVER: &str = "10.0.0.2:21";

/// The packets of a conversation in which the handshake is done and these lines are said.
fn conversation(lines: &[(Direction, &str)]) -> Vec<Vec<u8>> {
    let mut talk = Conversation::new(endpoint(CLIENT), endpoint(SERVER), 1, 1);
    let mut packets = Vec::from(talk.handshake());
    packets.extend(lines.iter().map(|(who, line)| talk.says(*who, line)));
    packets
}

const LOGIN: [(Direction, &str); 3] =
    [(FromServer, "220 ready\r\n"), (FromClient, "USER anna\r\n"), (FromServer, "230 in\r\n")];

/// The events of these lines after a login.
fn after_login(lines: &[(Direction, &str)]) -> (Vec<Value>, Counters) {
    replay_packets(conversation(&[LOGIN.as_slice(), lines].concat()), Policy::embedded())
}

fn refusals(report: &[Value]) -> Vec<&str> {
    report.iter().filter(|event| text(event, "event") == "refused").map(|event| text(event, "reason")).collect()
}

#[track_caller]
fn assert_refused(lines: &[(Direction, &str)], why: &str) {
    let (report, counters) = after_login(lines);
    assert_eq!((counters.events.opened, refusals(&report)), (0, vec![why]));
}

#[test]
fn port_to_a_third_party_is_refused() {
    assert_refused(&[(FromClient, "PORT 10,0,0,99,4,1\r\n")], "third-party");
    assert_refused(&[(FromClient, "EPRT |1|10.0.0.99|1025|\r\n")], "third-party");
    assert_refused(&[(FromClient, "PORT 127,0,0,1,4,1\r\n")], "third-party");
}

#[test]
fn port_to_a_known_service_of_the_client_is_refused() {
    assert_refused(&[(FromClient, "PORT 10,0,0,1,0,22\r\n")], "low-port");
    assert_refused(&[(FromClient, "EPRT |1|10.0.0.1|445|\r\n")], "low-port");
    assert_refused(&[(FromClient, "PORT 10,0,0,1,0,0\r\n")], "port-zero");
}

#[test]
fn ports_of_known_services_stay_closed() {
    for (high, low) in [(12, 234), (24, 235), (13, 61), (23, 112), (43, 203)] {
        assert_refused(&[(FromClient, &format!("PORT 10,0,0,1,{high},{low}\r\n"))], "known-service");
        let passive = format!("227 (10,0,0,2,{high},{low})\r\n");
        assert_refused(&[(FromClient, "PASV\r\n"), (FromServer, &passive)], "known-service");
    }
}

#[test]
fn announcement_before_login_opens_nothing() {
    let lines = [
        (FromServer, "220 ready\r\n"),
        (FromClient, "PORT 10,0,0,1,4,1\r\n"),
        (FromServer, "530 no\r\n"),
        (FromClient, "PASV\r\n"),
        (FromServer, "227 (10,0,0,2,4,1)\r\n"),
    ];
    let (report, counters) = replay_packets(conversation(&lines), Policy::embedded());
    assert_eq!((counters.events.opened, refusals(&report)), (0, vec!["not-logged-in", "not-logged-in"]));
}

#[test]
fn announcement_inside_a_multiline_reply_is_text() {
    let lines = [
        (FromClient, "STAT upload\r\nPASV\r\n"),
        (FromServer, "213-Status:\r\n227 Entering Passive Mode (10,0,0,2,12,234)\r\n213-\r\n 213 x\r\n213 End\r\n"),
    ];
    let (_, counters) = after_login(&lines);
    assert_eq!((counters.events.opened, counters.events.refused_in_all()), (0, 0));
}

#[test]
fn announcement_inside_a_file_name_opens_nothing() {
    let lines = [
        (FromClient, "STOR PORT 10,0,0,1,4,1\r\n"),
        (FromClient, "STOR a\rPORT 10,0,0,1,4,1\r\n"),
        (FromClient, "STOR a\0PORT 10,0,0,1,4,1\r\n"),
        (FromServer, "257 \"227 (10,0,0,2,4,1)\" created\r\n"),
        (FromServer, "150 227 Entering Passive Mode (10,0,0,2,4,1)\r\n"),
    ];
    let (_, counters) = after_login(&lines);
    assert_eq!((counters.events.opened, counters.events.refused_in_all()), (0, 0));
}

#[test]
fn unrequested_227_opens_nothing() {
    assert_refused(&[(FromServer, "227 (10,0,0,2,4,1)\r\n")], "not-asked-for");
    assert_refused(&[(FromClient, "EPSV\r\n"), (FromServer, "227 (10,0,0,2,4,1)\r\n")], "not-asked-for");
    assert_refused(&[(FromServer, "229 (|||1025|)\r\n"), (FromClient, "EPSV\r\n")], "not-asked-for");
}

/// NAT slipstreaming: a web page makes a browser send FTP lines to a server of the attacker's.
#[test]
fn http_post_with_ftp_in_its_body_opens_nothing() {
    let mut body = String::from("POST / HTTP/1.1\r\nHost: 10.0.0.2:21\r\nContent-Length: 9999\r\n\r\n");
    for line in ["USER anna", "PASS x", "PORT 10,0,0,1,4,1", "EPRT |1|10.0.0.1|1025|", "PASV"] {
        let _ = write!(body, "{line}\r\n");
    }
    // The server replies as helpfully as it can, before and after.
    let lines = [
        (FromServer, "220 ready\r\n"),
        (FromClient, body.as_str()),
        (FromServer, "500 what?\r\n331 go on\r\n230 in\r\n200 ok\r\n227 (10,0,0,2,4,1)\r\n"),
        (FromClient, "USER anna\r\nPORT 10,0,0,1,4,2\r\n"),
    ];
    let (report, counters) = replay_packets(conversation(&lines), Policy::embedded());
    assert_eq!(counters.events.opened, 0);
    assert!(!refusals(&report).is_empty() && refusals(&report).iter().all(|&why| why == "not-ftp"));
    assert!(report.iter().all(|event| text(event, "event") != "logged-in"));
}

#[test]
fn http_post_in_any_segmentation_opens_nothing() {
    let post = b"POST / HTTP/1.1\r\n\r\nUSER a\r\nPORT 10,0,0,1,4,1\r\n";
    for size in 1..post.len() {
        let mut talk = Conversation::new(endpoint(CLIENT), endpoint(SERVER), 1, 1);
        let mut packets = Vec::from(talk.handshake());
        packets.push(talk.says(FromServer, "220 ready\r\n"));
        for piece in post.chunks(size) {
            packets.push(talk.says(FromClient, piece));
            packets.push(talk.says(FromServer, "230 in\r\n"));
        }
        assert_eq!(replay_packets(packets, Policy::embedded()).1.events.opened, 0, "pieces of {size}");
    }
}

#[test]
fn other_protocols_with_a_220_greeting_open_nothing() {
    let smtp = [
        (FromServer, "220 mail.example ESMTP\r\n"),
        (FromClient, "EHLO a\r\n"),
        (FromServer, "250 hello\r\n"),
        (FromClient, "USER a\r\nPORT 10,0,0,1,4,1\r\n"),
    ];
    let (report, counters) = replay_packets(conversation(&smtp), policy("defaults: { login: optional }"));
    assert_eq!((counters.events.opened, refusals(&report)), (0, vec!["not-ftp"]));
}

#[test]
fn pinholes_of_many_announcements_stay_within_the_limit() {
    let mut talk = Conversation::new(endpoint(CLIENT), endpoint(SERVER), 1, 1);
    let mut packets = Vec::from(talk.handshake());
    packets.extend(LOGIN.iter().map(|(who, line)| talk.says(*who, line)));
    for index in 0..100_000u32 {
        let port = 1024 + index % 60_000;
        packets.push(talk.says(FromClient, format!("PORT 10,0,0,1,{},{}\r\n", port / 256, port % 256)));
        packets.push(talk.says(FromServer, "200 ok\r\n"));
    }
    let (report, counters) = replay_packets(packets, Policy::embedded());
    // A packet a millisecond: the 200 seconds see a few lifetimes of eight pinholes each.
    assert_eq!(counters.events.opened, 8 * 4);
    assert_eq!(counters.events.refused_in_all(), 100_000 - 8 * 4);
    assert!(refusals(&report).iter().all(|why| ["too-many", "known-service"].contains(why)));
}

#[test]
fn pipelined_announcements_beyond_the_limit_are_refused() {
    let mut talk = Conversation::new(endpoint(CLIENT), endpoint(SERVER), 1, 1);
    let mut packets = Vec::from(talk.handshake());
    packets.extend(LOGIN.iter().map(|(who, line)| talk.says(*who, line)));
    let many = "PORT 10,0,0,1,4,1\r\n".repeat(1000);
    packets.extend((0..100).map(|_| talk.says(FromClient, &many)));
    let (_, counters) = replay_packets(packets, Policy::embedded());
    assert!(counters.events.opened <= 16, "{} were taken that no answer could close", counters.events.opened);
}

#[test]
fn overlong_line_passes_and_the_next_one_is_read() {
    let mut talk = Conversation::new(endpoint(CLIENT), endpoint(SERVER), 1, 1);
    let mut packets = Vec::from(talk.handshake());
    packets.extend(LOGIN.iter().map(|(who, line)| talk.says(*who, line)));
    packets.push(talk.says(FromClient, "STOR "));
    packets.extend((0..1024).map(|_| talk.says(FromClient, "PORT 10,0,0,1,4,1 ".repeat(57))));
    packets.push(talk.says(FromClient, "\r\nPORT 10,0,0,1,4,2\r\n"));
    let (report, counters) = replay_packets(packets, Policy::embedded());
    assert_eq!((counters.events.opened, counters.events.refused_in_all()), (1, 0));
    let opened = report.iter().find(|event| text(event, "event") == "opened").expect("one opened");
    assert_eq!(text(opened, "to"), "10.0.0.1:1026");
}

#[test]
fn announcement_beyond_the_line_limit_is_refused() {
    let padding = " ".repeat(5000);
    assert_refused(&[(FromClient, &format!("PORT 10,0,0,1,4,1{padding}\r\n"))], "bad-syntax");
}

#[test]
fn forged_second_copy_does_not_replace_the_first() {
    let mut talk = Conversation::new(endpoint(CLIENT), endpoint(SERVER), 1, 1);
    let mut packets = Vec::from(talk.handshake());
    packets.extend(LOGIN.iter().map(|(who, line)| talk.says(*who, line)));
    let mut forger = talk.clone();
    packets.push(talk.says(FromClient, "PORT 10,0,0,1,4,1"));
    packets.push(forger.says(FromClient, "PORT 10,0,0,1,9,9"));
    packets.push(talk.says(FromClient, "\r\n"));
    let (report, counters) = replay_packets(packets, Policy::embedded());
    let opened = report.iter().find(|event| text(event, "event") == "opened").expect("one opened");
    assert_eq!((text(opened, "to"), counters.events.anomalies), ("10.0.0.1:1025", 1));
}

#[test]
fn blind_reset_or_syn_does_not_end_a_session() {
    let mut talk = Conversation::new(endpoint(CLIENT), endpoint(SERVER), 1, 1);
    let blind = Conversation::new(endpoint(CLIENT), endpoint(SERVER), 1 << 30, 1 << 30);
    let mut packets = Vec::from(talk.handshake());
    packets.extend(LOGIN.iter().map(|(who, line)| talk.says(*who, line)));
    packets.push(talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    packets.push(blind.resets(FromClient));
    packets.push(blind.resets(FromServer));
    packets.extend(blind.clone().handshake().into_iter().take(1));
    let (report, _) = replay_packets(packets, Policy::embedded());
    assert!(report.iter().all(|event| !["session-ended", "closed"].contains(&text(event, "event"))));
}

#[test]
fn silent_sessions_take_a_quarter_of_the_table_at_most() {
    let flood = (0..1_000_000u32).flat_map(|index| {
        let address = std::net::Ipv4Addr::from(0x0b00_0000 + index / 50_000);
        let client = endpoint(&format!("{address}:{}", 10_000 + index % 50_000));
        let mut talk = Conversation::new(client, endpoint(SERVER), index, !index);
        let [syn, syn_ack, _] = talk.handshake();
        [syn, syn_ack]
    });
    let policy = policy("limits: { sessions: 1000, idle: 168h }");
    let counters = count_packets(flood, policy);
    // They never said anything: a quarter of the room is theirs.
    assert_eq!(
        (counters.events.sessions, counters.events.evicted_in_all(), counters.events.opened),
        (1_000_000, 1_000_000 - 250, 0)
    );
}
