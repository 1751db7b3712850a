//! What is opened for an announcement, and for how long.

use super::*;

#[test]
fn passive_transfer_opens_one_pinhole() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "PASV\r\n"));
    assert!(!fixture.connects("10.0.0.1:5000", "10.0.0.2:1025"));
    fixture.sees(&talk.says(FromServer, "227 Entering Passive Mode (10,0,0,2,4,1).\r\n"));
    assert!(!fixture.connects("10.0.0.3:5000", "10.0.0.2:1025"), "another client");
    assert!(!fixture.connects("10.0.0.1:5000", "10.0.0.2:1026"), "another port");
    assert!(fixture.connects("10.0.0.1:5000", "10.0.0.2:1025"));
    assert!(!fixture.connects("10.0.0.1:5001", "10.0.0.2:1025"), "a second time");
    assert_eq!(fixture.take_events(), ["1 227 10.0.0.1 -> 10.0.0.2:1025", "1 used 10.0.0.1:5000 -> 10.0.0.2:1025"]);
}

#[test]
fn active_transfer_admits_the_server() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    assert!(fixture.connects("10.0.0.2:20", "10.0.0.1:1025"));
    assert_eq!(fixture.take_events(), ["1 PORT 10.0.0.2 -> 10.0.0.1:1025", "1 used 10.0.0.2:20 -> 10.0.0.1:1025"]);
}

#[test]
fn refused_port_closes_its_pinhole() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "NOOP\r\nPORT 10,0,0,1,4,1\r\n"));
    fixture.sees(&talk.says(FromServer, "500 no NOOP here\r\n"));
    assert_eq!(fixture.tracker.expectations(), 1);
    fixture.sees(&talk.says(FromServer, "500 Illegal PORT command\r\n"));
    assert!(!fixture.connects("10.0.0.2:20", "10.0.0.1:1025"));
    let events = ["1 PORT 10.0.0.2 -> 10.0.0.1:1025", "1 closed 10.0.0.2 -> 10.0.0.1:1025: refused-by-server"];
    assert_eq!(fixture.take_events(), events);
}

#[test]
fn announcement_after_a_gap_needs_a_whole_line_of_each_end() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    talk.loses(FromClient, 8);
    talk.loses(FromServer, 70);
    let without_anomalies = |fixture: &mut Fixture| -> Vec<String> {
        fixture.take_events().into_iter().filter(|event| !event.contains("anomaly")).collect()
    };
    fixture.sees(&talk.says(FromClient, "PASV\r\n"));
    fixture.sees(&talk.says(FromServer, PASSIVE));
    let unsure = "1 227 10.0.0.2:1025 refused: ambiguous";
    assert_eq!(without_anomalies(&mut fixture), [unsure], "that may be the rest of a line");
    fixture.sees(&talk.says(FromClient, "PASV\r\n"));
    fixture.sees(&talk.says(FromServer, PASSIVE));
    fixture.sees(&talk.says(FromServer, PASSIVE));
    assert_eq!(without_anomalies(&mut fixture), [PASSIVE_OPENS, PASSIVE_UNASKED]);
}

#[test]
fn command_possibly_answered_in_a_gap_is_not_pending() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "PASV\r\n"));
    talk.loses(FromServer, PASSIVE.len());
    fixture.sees(&talk.says(FromClient, "RETR x\r\n"));
    fixture.sees(&talk.says(FromServer, format!("150 here\r\n{PASSIVE}")));
    assert_eq!(fixture.take_events(), [PASSIVE_UNASKED, "1 anomaly: Lost"]);
}

/// A session that has begun, and in which the user's name was asked for.
fn asked_for_a_name(fixture: &mut Fixture) -> Conversation {
    let mut talk = conversation();
    fixture.sees_all(talk.handshake());
    fixture.sees(&talk.says(FromServer, "220 ready\r\n"));
    fixture.sees(&talk.says(FromClient, "USER anna\r\n"));
    fixture.sees(&talk.says(FromServer, "331 and?\r\n"));
    fixture.take_events();
    talk
}

#[test]
fn login_that_passed_unread_does_not_count() {
    let mut fixture = Fixture::new();
    let mut talk = asked_for_a_name(&mut fixture);
    fixture.sees(&talk.says(FromClient, "PASS secret\r\n"));
    let _unread = talk.says(FromServer, "230 in\r\n");
    fixture.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    assert_eq!(fixture.take_events(), ["1 PORT 10.0.0.1:1025 refused: not-logged-in"]);
}

#[test]
fn command_that_passed_unread_is_not_pending() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    talk.loses(FromClient, "PASV\r\n".len());
    fixture.sees(&talk.says(FromServer, PASSIVE));
    assert_eq!(fixture.take_events(), ["1 227 10.0.0.2:1025 refused: ambiguous"]);
    fixture.sees(&talk.says(FromServer, PASSIVE));
    assert_eq!(fixture.take_events(), ["1 227 10.0.0.2:1025 refused: ambiguous"], "it acknowledges the same");
}

#[test]
fn pinhole_lives_as_long_as_the_policy_says() {
    let mut fixture = Fixture::with_policy("defaults: { timeout: 10s }");
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    fixture.waits(Duration::from_millis(9_999));
    assert_eq!(fixture.tracker.expectations(), 1);
    fixture.waits(Duration::from_millis(1));
    assert!(!fixture.connects("10.0.0.2:20", "10.0.0.1:1025"));
    assert_eq!(fixture.take_events()[1..], ["1 expired 10.0.0.2 -> 10.0.0.1:1025"]);
    assert_eq!(fixture.firewall.pinholes(), 0);
}

#[test]
fn dropped_syn_is_not_reported_as_expired() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    fixture.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,2\r\n"));
    fixture.take_events();
    fixture.firewall.drop_syn("10.0.0.2".parse().expect("an address"), endpoint("10.0.0.1:1026"));
    fixture.waits(Duration::from_secs(2));
    assert_eq!(fixture.take_events(), [""; 0], "conntrack may still report the connection");
    fixture.waits(Duration::from_millis(250));
    assert_eq!(fixture.take_events(), ["1 dropped 10.0.0.2 -> 10.0.0.1:1026"]);
    fixture.waits(Duration::from_secs(60));
    assert_eq!(fixture.take_events(), ["1 expired 10.0.0.2 -> 10.0.0.1:1025"]);
    assert_eq!((fixture.firewall.pinholes(), fixture.tracker.expectations()), (0, 0));
}

#[test]
fn dropped_syn_is_reported_when_the_session_ends() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    fixture.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,2\r\n"));
    fixture.take_events();
    fixture.firewall.drop_syn("10.0.0.2".parse().expect("an address"), endpoint("10.0.0.1:1026"));
    fixture.sees(&talk.resets(FromClient));
    let ended =
        ["1 closed 10.0.0.2 -> 10.0.0.1:1025: session-ended", "1 dropped 10.0.0.2 -> 10.0.0.1:1026", "1 ended: reset"];
    assert_eq!(fixture.take_events(), ended);
}

#[test]
fn connection_reported_after_its_syn_was_found_is_used() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    fixture.take_events();
    fixture.firewall.drop_syn("10.0.0.2".parse().expect("an address"), endpoint("10.0.0.1:1025"));
    fixture.waits(Duration::from_secs(2));
    assert!(fixture.connects("10.0.0.2:20", "10.0.0.1:1025"));
    fixture.waits(Duration::from_secs(60));
    assert_eq!(fixture.take_events(), ["1 used 10.0.0.2:20 -> 10.0.0.1:1025"]);
}

#[test]
fn lost_conntrack_events_never_report_dropped() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    fixture.take_events();
    let now = fixture.now;
    fixture.firewall.drop_syn("10.0.0.2".parse().expect("an address"), endpoint("10.0.0.1:1025"));
    fixture.tracker.note_missing_events(now);
    fixture.waits(Duration::from_secs(2));
    fixture.waits(Duration::from_secs(1));
    assert_eq!(fixture.take_events(), ["1 expired 10.0.0.2 -> 10.0.0.1:1025"]);
}

#[test]
fn repeated_announcement_does_not_count_twice_for_the_limit() {
    let mut fixture = Fixture::with_policy("defaults: { pinholes_per_session: 2 }");
    let mut talk = logged_in(&mut fixture);
    for port in [1, 2, 2, 1, 3] {
        fixture.sees(&talk.says(FromClient, format!("PORT 10,0,0,1,4,{port}\r\n")));
        fixture.sees(&talk.says(FromServer, "200 ok\r\n"));
    }
    let events = fixture.take_events();
    assert_eq!(events.last().map(String::as_str), Some("1 PORT 10.0.0.1:1027 refused: too-many"));
    assert_eq!(events.iter().filter(|line| line.contains("refused")).count(), 1);
    assert!(fixture.connects("10.0.0.2:20", "10.0.0.1:1025"));
    fixture.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,3\r\n"));
    assert!(fixture.connects("10.0.0.2:20", "10.0.0.1:1027"), "one that was used makes room");
}

#[test]
fn total_pinhole_limit_holds() {
    let mut fixture = Fixture::with_policy("limits: { pinholes: 3 }\ndefaults: { login: optional }");
    for client in 1..=5 {
        let address = format!("10.0.1.{client}:4000");
        let mut talk = Conversation::new(endpoint(&address), endpoint(SERVER), 1, 1);
        fixture.sees_all(talk.handshake());
        fixture.sees(&talk.says(FromServer, "220 ready\r\n"));
        fixture.sees(&talk.says(FromClient, format!("PORT 10,0,1,{client},4,1\r\n")));
    }
    assert_eq!(fixture.tracker.expectations(), 3);
    assert_eq!(fixture.take_events().iter().filter(|line| line.ends_with("too-many")).count(), 2);
}

#[test]
fn equal_pinholes_of_two_sessions_belong_to_the_later() {
    let mut fixture = Fixture::with_policy("defaults: { login: optional }");
    let talks = [4000, 4001].map(|port| {
        let mut talk = Conversation::new(endpoint(&format!("10.0.0.1:{port}")), endpoint(SERVER), 1, 1);
        fixture.sees_all(talk.handshake());
        fixture.sees(&talk.says(FromServer, "220 ready\r\n"));
        fixture.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
        talk
    });
    fixture.sees(&talks[0].resets(FromClient));
    assert_eq!(fixture.firewall.pinholes(), 1);
    fixture.sees(&talks[1].resets(FromClient));
    assert_eq!(fixture.firewall.pinholes(), 0);
}

#[test]
fn port_after_a_gap_with_a_future_ack_opens_nothing() {
    // The server ignores what acknowledges more than it has sent.
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    talk.loses(FromClient, 8);
    let packet = talk.says(FromClient, "NOOP\r\nPORT 10,0,0,1,15,161\r\n");
    let segment = Segment::parse(&packet).expect("a segment");
    let segment = Segment { ack: segment.ack + 100, ..segment };
    fixture.with_env(|tracker, env| tracker.handle(&segment, env));
    fixture.sees(&talk.says(FromServer, "200 good\r\n"));
    assert!(!fixture.connects("10.0.0.2:20", "10.0.0.1:4001"), "{:?}", fixture.take_events());
}

#[test]
fn picked_up_session_follows_policy_and_recorded_progress() {
    for (pickup, marked, opens) in
        [("marked", false, false), ("marked", true, true), ("never", true, false), ("trust", false, true)]
    {
        let mut fixture = Fixture::with_policy(&format!("pickup: {pickup}"));
        let mut talk = logged_in(&mut fixture);
        if !marked {
            let flow = talk.flow();
            fixture.firewall.record(&Connection::direct(flow), SessionProgress::Unknown);
        }
        fixture.tracker.forget_all();
        fixture.sees(&talk.says(FromClient, "TYPE I\r\n"));
        fixture.sees(&talk.says(FromServer, "200 ok\r\n"));
        fixture.sees(&talk.says(FromClient, "PASV\r\n"));
        fixture.sees(&talk.says(FromServer, "227 Entering Passive Mode (10,0,0,2,4,1)\r\n"));
        let expected = if opens { "2 227 10.0.0.1 -> 10.0.0.2:1025" } else { "2 227 10.0.0.2:1025 refused: picked-up" };
        assert_eq!(fixture.take_events(), ["2 picked up 10.0.0.1:4000 -> 10.0.0.2:21", expected], "{pickup} {marked}");
    }
}

#[test]
fn rest_of_a_line_after_a_pick_up_announces_nothing() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "USER 227 (10,0,0,2,4,1)\r\n"));
    fixture.sees(&talk.says(FromServer, "331 User "));
    fixture.tracker.forget_all();
    fixture.sees(&talk.says(FromClient, "PASV\r\n"));
    fixture.sees(&talk.says(FromServer, "227 (10,0,0,2,4,1) OK. Password required\r\n"));
    let refused = "2 227 10.0.0.2:1025 refused: ambiguous";
    assert_eq!(fixture.take_events(), ["2 picked up 10.0.0.1:4000 -> 10.0.0.2:21", refused]);
}

#[test]
fn control_port_is_announced_only_if_the_policy_names_it() {
    for (more, expected) in [
        ("", "1 PORT 10.0.0.1:2121 refused: known-service"),
        ("defaults: { known_services: [] }", "1 PORT 10.0.0.1:2121 refused: known-service"),
        ("defaults: { data_ports: [1024-65535, 2121] }", "1 PORT 10.0.0.2 -> 10.0.0.1:2121"),
    ] {
        let mut fixture = Fixture::with_policy(&format!("control_ports: [21, 2121]\n{more}"));
        let mut talk = logged_in(&mut fixture);
        fixture.sees(&talk.says(FromClient, "PORT 10,0,0,1,8,73\r\n"));
        assert_eq!(fixture.take_events(), [expected], "{more}");
    }
}

/// Whoever has a session with a server can have it connect back, and send a file that looks like a dialogue.
#[test]
fn session_that_may_be_a_data_connection_announces_nothing_of_its_client() {
    for (client, has_session, is_refused) in
        [("10.0.0.2:4000", true, true), ("10.0.0.3:4000", true, false), ("10.0.0.2:20", false, true)]
    {
        let mut fixture = Fixture::new();
        if has_session {
            logged_in(&mut fixture);
        }
        let mut back = Conversation::new(endpoint(client), endpoint("10.0.0.1:21"), 1, 1);
        fixture.sees_all(back.handshake());
        fixture.sees(&back.says(FromServer, "220 ready\r\n"));
        fixture.sees(&back.says(FromClient, "USER a\r\n"));
        fixture.sees(&back.says(FromServer, "230 in\r\n"));
        let address = client.split(':').next().expect("an address").replace('.', ",");
        fixture.sees(&back.says(FromClient, format!("PORT {address},58,231\r\n")));
        fixture.sees(&back.says(FromServer, "200 fine\r\n"));
        fixture.sees(&back.says(FromClient, "PASV\r\n"));
        fixture.sees(&back.says(FromServer, "227 Entering Passive Mode (10,0,0,1,4,1).\r\n"));
        let refused = fixture.take_events().iter().filter(|event| event.ends_with("refused: data-connection")).count();
        assert_eq!(refused, usize::from(is_refused), "from {client}");
        assert_eq!(fixture.firewall.pinholes(), 2 - usize::from(is_refused), "from {client}");
    }
}
