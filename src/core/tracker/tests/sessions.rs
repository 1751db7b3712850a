//! When a session begins and ends.

use super::*;

#[test]
fn inexact_reset_does_not_end_the_session() {
    for ahead in [1, 100, 30_000] {
        let mut fixture = Fixture::new();
        let mut talk = logged_in(&mut fixture);
        let mut forger = talk.clone();
        forger.loses(FromClient, ahead);
        fixture.sees(&forger.resets(FromClient));
        fixture.sees(&talk.says(FromClient, "PASV\r\n"));
        fixture.sees(&talk.says(FromServer, PASSIVE));
        assert_eq!(fixture.take_events(), [PASSIVE_OPENS], "{ahead}");
    }
}

#[test]
fn ended_session_is_still_read_and_opens_nothing() {
    for resets in [true, false] {
        let mut fixture = Fixture::with_policy("defaults: { commands: { deny: [FEAT] } }");
        let mut talk = logged_in(&mut fixture);
        let last =
            if resets { vec![talk.resets(FromClient)] } else { vec![talk.closes(FromClient), talk.ack(FromServer)] };
        fixture.sees_all(last);
        for _ in 0..3 {
            fixture.sees(&talk.says(FromClient, "PASV\r\nFEAT\r\nPORT 10,0,0,1,4,1\r\n"));
            fixture.sees(&talk.says(FromServer, PASSIVE));
            fixture.waits(LINGER / 2);
        }
        assert_eq!(fixture.firewall.pinholes(), 0);
        let events = fixture.take_events();
        // Behind a FIN nothing goes on at all.
        let (denied, refused) = if resets { (3, 6) } else { (0, 3) };
        assert_eq!(events.iter().filter(|line| line.ends_with("denied FEAT")).count(), denied, "{events:?}");
        assert_eq!(events.iter().filter(|line| line.ends_with("session-over")).count(), refused, "{events:?}");
        assert!(events.iter().all(|line| !line.contains("picked up")), "{events:?}");
    }
}

#[test]
fn syn_of_the_server_in_the_middle_begins_no_session() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.firewall.treat_all_as_established();
    let mut again = Conversation::new(endpoint(CLIENT), endpoint(SERVER), 77_000, 88_000);
    fixture.sees_all(again.handshake());
    fixture.sees(&again.says(FromServer, "220 ready\r\n"));
    fixture.sees(&talk.says(FromClient, "PASV\r\n"));
    assert!(fixture.take_events().iter().all(|event| !event.contains("began") && !event.contains("ended")));
}

#[test]
fn forgotten_ended_session_is_not_trusted_again() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.resets(FromClient));
    fixture.waits(LINGER);
    assert_eq!(fixture.tracker.sessions(), 0);
    fixture.sees(&talk.says(FromClient, "NOOP\r\n"));
    fixture.sees(&talk.says(FromServer, "200 ok\r\n"));
    fixture.sees(&talk.says(FromClient, "PASV\r\n"));
    fixture.sees(&talk.says(FromServer, PASSIVE));
    assert_eq!(fixture.take_events().last().map(String::as_str), Some("2 227 10.0.0.2:1025 refused: picked-up"));
}

#[test]
fn pinhole_ends_with_its_session() {
    for who in [FromClient, FromServer] {
        for resets in [false, true] {
            let mut fixture = Fixture::new();
            let mut talk = logged_in(&mut fixture);
            fixture.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
            if resets {
                fixture.sees(&talk.resets(who));
            } else {
                fixture.sees(&talk.closes(who));
                assert_eq!(fixture.firewall.pinholes(), 1, "the other end may not have got it");
                fixture.sees(&talk.ack(who.opposite()));
            }
            let how = if resets { "reset" } else { "finished" };
            let events = ["1 closed 10.0.0.2 -> 10.0.0.1:1025: session-ended".to_owned(), format!("1 ended: {how}")];
            assert_eq!(fixture.take_events()[1..], events);
            assert_eq!((fixture.firewall.pinholes(), fixture.tracker.expectations()), (0, 0));
        }
    }
}

/// Their acknowledgements carry nothing, and the kernel does not bring such packets.
#[test]
fn crossing_fins_end_a_session() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    let mut crossing = talk.clone();
    fixture.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    crossing.loses(FromClient, "PORT 10,0,0,1,4,1\r\n".len());
    fixture.sees(&talk.closes(FromClient));
    fixture.sees(&crossing.closes(FromServer));
    assert_eq!(fixture.take_events()[1..], ["1 closed 10.0.0.2 -> 10.0.0.1:1025: session-ended", "1 ended: finished"]);
    fixture.sees(&talk.ack(FromServer));
    fixture.sees(&talk.ack(FromClient));
    assert_eq!(fixture.take_events(), [""; 0]);
}

#[test]
fn session_ends_when_both_ends_close_at_once() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    let mut other = talk.clone();
    fixture.sees(&talk.closes(FromClient));
    fixture.sees(&other.closes(FromServer));
    assert_eq!(fixture.take_events(), ["1 ended: finished"]);
}

#[test]
fn last_packets_of_a_session_begin_no_other() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.closes(FromClient));
    fixture.sees(&talk.says(FromServer, "221 bye\r\n"));
    fixture.sees(&talk.closes(FromServer));
    fixture.sees(&talk.ack(FromClient));
    assert_eq!(fixture.take_events(), ["1 ended: finished"]);
    fixture.waits(LINGER);
    assert_eq!(fixture.tracker.sessions(), 0);
    fixture.sees(&talk.ack(FromClient));
    assert_eq!(fixture.tracker.sessions(), 0);
}

#[test]
fn new_connection_may_reuse_addresses() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.closes(FromClient));
    fixture.sees(&talk.closes(FromServer));
    let mut again = Conversation::new(endpoint(CLIENT), endpoint(SERVER), 77_000, 88_000);
    fixture.sees_all(again.handshake());
    fixture.sees(&again.says(FromServer, "220 ready\r\n"));
    fixture.sees(&again.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    let events =
        ["1 ended: finished", "2 began 10.0.0.1:4000 -> 10.0.0.2:21", "2 PORT 10.0.0.1:1025 refused: not-logged-in"];
    assert_eq!(fixture.take_events(), events);
}

#[test]
fn new_connection_replaces_one_without_a_seen_end() {
    let mut fixture = Fixture::new();
    logged_in(&mut fixture);
    let mut again = Conversation::new(endpoint(CLIENT), endpoint(SERVER), 77_000, 88_000);
    let [syn, syn_ack, ack] = again.handshake();
    fixture.sees(&syn);
    assert_eq!(fixture.take_events(), Vec::<String>::new(), "a SYN alone proves nothing");
    fixture.sees_all([syn_ack, ack]);
    fixture.sees(&again.says(FromServer, "220 ready\r\n"));
    assert_eq!(fixture.take_events(), ["1 ended: replaced", "2 began 10.0.0.1:4000 -> 10.0.0.2:21"]);
}

#[test]
fn handshake_seen_twice_is_one_session() {
    let mut fixture = Fixture::new();
    let mut talk = conversation();
    let handshake = talk.handshake();
    fixture.sees_all(&handshake);
    fixture.sees(&talk.says(FromServer, "220 ready\r\n"));
    fixture.sees_all(&handshake);
    fixture.sees(&talk.says(FromClient, "USER anna\r\n"));
    fixture.sees(&talk.says(FromServer, "230 in\r\n"));
    assert_eq!(fixture.take_events(), ["1 began 10.0.0.1:4000 -> 10.0.0.2:21", "1 login anna"]);
}

#[test]
fn full_table_evicts_the_longest_silent_session() {
    let mut fixture = Fixture::with_policy("limits: { sessions: 3 }\ndefaults: { login: optional }");
    let mut talks: Vec<_> = (1..=4)
        .map(|client| Conversation::new(endpoint(&format!("10.0.1.{client}:4000")), endpoint(SERVER), 1, 1))
        .collect();
    for talk in &mut talks[..3] {
        fixture.sees_all(talk.handshake());
        fixture.sees(&talk.says(FromServer, "220 ready\r\n"));
        fixture.waits(Duration::from_secs(1));
    }
    fixture.sees(&talks[1].says(FromClient, "PORT 10,0,1,2,4,1\r\n"));
    fixture.waits(Duration::from_secs(1));
    fixture.sees(&talks[0].says(FromClient, "NOOP\r\n"));
    fixture.waits(Duration::from_secs(1));
    fixture.sees(&talks[2].says(FromClient, "NOOP\r\n"));
    fixture.take_events();
    fixture.sees_all(talks[3].handshake());
    let events = [
        "2 closed 10.0.0.2 -> 10.0.1.2:1025: session-ended",
        "2 ended: evicted-before-login",
        "4 began 10.0.1.4:4000 -> 10.0.0.2:21",
    ];
    assert_eq!(fixture.take_events(), events);
    assert_eq!((fixture.tracker.sessions(), fixture.firewall.pinholes()), (3, 0));
}

#[test]
fn silent_session_is_forgotten_and_active_one_kept() {
    let mut fixture = Fixture::with_policy("limits: { idle: 10m }");
    let mut talk = logged_in(&mut fixture);
    for _ in 0..5 {
        fixture.waits(Duration::from_secs(599));
        fixture.sees(&talk.says(FromClient, "NOOP\r\n"));
    }
    assert_eq!(fixture.take_events(), Vec::<String>::new());
    fixture.waits(Duration::from_secs(600));
    assert_eq!(fixture.take_events(), ["1 ended: idle"]);
    assert_eq!(fixture.tracker.sessions(), 0);
}

#[test]
fn packets_of_other_connections_are_ignored() {
    let mut fixture = Fixture::new();
    let mut talk = Conversation::new(endpoint(CLIENT), endpoint("10.0.0.2:80"), 1, 1);
    fixture.sees_all(talk.handshake());
    fixture.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    assert_eq!(fixture.take_events(), Vec::<String>::new());
    assert_eq!(fixture.tracker.sessions(), 0);
}

/// A client that sends the next USER before the reply to its login would be logged under the other name.
#[test]
fn login_is_reported_under_no_name_that_it_may_not_have() {
    let login = |pieces: &[(Direction, &str)]| {
        let mut fixture = Fixture::new();
        let mut talk = conversation();
        fixture.sees_all(talk.handshake());
        fixture.sees(&talk.says(FromServer, "220 ready\r\n"));
        for (who, text) in pieces {
            fixture.sees(&talk.says(*who, text));
        }
        fixture.take_events().split_off(1)
    };
    let in_one_segment = "USER anonymous\r\nPASS x\r\nUSER root\r\n";
    let replies = "331 and?\r\n230 in\r\n530 no\r\n";
    assert_eq!(login(&[(FromClient, in_one_segment), (FromServer, replies)]), ["1 login ?"]);
    let before_the_reply =
        [(FromClient, "USER anonymous\r\n"), (FromServer, "331 and?\r\n"), (FromClient, "PASS x\r\nUSER root\r\n")];
    assert_eq!(login(&[&before_the_reply[..], &[(FromServer, "230 in\r\n")]].concat()), ["1 login ?"]);
    assert_eq!(login(&[(FromClient, "USER anna\r\nPASS x\r\n"), (FromServer, replies)]), ["1 login anna"]);
    let another = [(FromClient, "USER root\r\n"), (FromServer, "331 and?\r\n"), (FromClient, "USER anna\r\n")];
    let accepted = [(FromServer, "331 and?\r\n"), (FromClient, "PASS x\r\n"), (FromServer, "230 in\r\n")];
    assert_eq!(login(&[another, accepted].concat()), ["1 login anna"]);
}
