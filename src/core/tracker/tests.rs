//! The tracker with a simulated firewall, driven by packets.

use super::*;
use crate::core::kernel::Simulated;
use crate::core::net::Port;
use crate::core::policy;
use crate::core::script::{Conversation, endpoint};
use crate::core::seqadj::Replacement;
use Direction::{FromClient, FromServer};

/// A tracker, its firewall, and the events that it reported, one line each.
struct Stage {
    tracker: Tracker,
    firewall: Simulated,
    policy: Policy,
    now: Timestamp,
    events: Vec<String>,
}

impl Stage {
    fn new() -> Self {
        Self::with_policy("")
    }

    fn with_policy(text: &str) -> Self {
        let policy = if text.is_empty() {
            Policy::embedded()
        } else {
            policy::parse("policy.yaml", text).expect("a good policy").policy
        };
        Self {
            tracker: Tracker::default(),
            firewall: Simulated::new([Port::FTP]),
            policy,
            now: Timestamp::from_secs(1000),
            events: Vec::new(),
        }
    }

    fn with_env<R>(
        &mut self,
        act: impl FnOnce(
            &mut Tracker,
            &mut Environment<'_, Simulated, &mut dyn FnMut(Timestamp, SessionNumber, &SessionEvent<'_>)>,
        ) -> R,
    ) -> R {
        let events = &mut self.events;
        let mut record = |_: Timestamp, session: SessionNumber, event: &SessionEvent<'_>| {
            events.extend(describe(event).map(|event| format!("{session} {event}")));
        };
        let mut observer: &mut dyn FnMut(Timestamp, SessionNumber, &SessionEvent<'_>) = &mut record;
        let mut env =
            Environment { now: self.now, policy: &self.policy, firewall: &mut self.firewall, observer: &mut observer };
        act(&mut self.tracker, &mut env)
    }

    fn sees(&mut self, packet: &[u8]) {
        let segment = Segment::parse(packet).expect("a segment");
        self.with_env(|tracker, env| {
            tracker.advance(env);
            tracker.handle(&segment, env)
        });
    }

    /// What of a packet's payload goes on.
    fn lets_pass(&mut self, packet: &[u8]) -> Vec<u8> {
        let segment = Segment::parse(packet).expect("a segment");
        match self.with_env(|tracker, env| tracker.handle(&segment, env)) {
            TrackerVerdict::Untracked | TrackerVerdict::Session(Verdict::Accept) => segment.payload.to_vec(),
            TrackerVerdict::Session(Verdict::Replace(Replacement { payload, .. })) => payload,
            TrackerVerdict::Session(Verdict::Drop | Verdict::Wait) => Vec::new(),
        }
    }

    fn sees_all<P: AsRef<[u8]>>(&mut self, packets: impl IntoIterator<Item = P>) {
        for packet in packets {
            self.sees(packet.as_ref());
        }
    }

    fn waits(&mut self, time: Duration) {
        self.now = self.now + time;
        self.with_env(|tracker, env| {
            tracker.advance(env);
        });
    }

    fn connects(&mut self, from: &str, to: &str) -> bool {
        let flow = Flow { source: endpoint(from), destination: endpoint(to) };
        let now = self.now;
        let admitted = self.firewall.admit(now, &flow).is_some();
        self.with_env(|tracker, env| assert_eq!(tracker.admitted(&flow, env).is_some(), admitted));
        admitted
    }

    /// The policy was changed.
    fn follows_policy(&mut self) {
        self.with_env(|tracker, env| {
            tracker.follow(env);
        });
    }

    fn take_events(&mut self) -> Vec<String> {
        std::mem::take(&mut self.events)
    }
}

fn describe(event: &SessionEvent<'_>) -> Option<String> {
    Some(match event {
        SessionEvent::Began { connection, picked_up: false } => format!("began {}", connection.original),
        SessionEvent::Began { connection, picked_up: true } => format!("picked up {}", connection.original),
        SessionEvent::Command { .. } => return None,
        SessionEvent::Denied { command } => format!("denied {command}"),
        SessionEvent::LoggedIn { user } => format!("login {}", user.unwrap_or("?")),
        SessionEvent::Opened { mode, expectation, rewritten_from } => {
            let from = rewritten_from.map_or(String::new(), |from| format!(" instead of {from}"));
            format!("{} {expectation}{from}", mode.announced_by())
        }
        SessionEvent::Refused { mode, to, why } => match to {
            Some(to) => format!("{} {to} refused: {why}", mode.announced_by()),
            None => format!("{} refused: {why}", mode.announced_by()),
        },
        SessionEvent::Used { flow, .. } => format!("used {flow}"),
        SessionEvent::Expired(expectation) => format!("expired {expectation}"),
        SessionEvent::Closed { expectation, why } => format!("closed {expectation}: {}", why.name()),
        SessionEvent::Encrypted { port_range: None } => "encrypted".to_owned(),
        SessionEvent::Encrypted { port_range: Some(port_range) } => format!("encrypted, {port_range}"),
        SessionEvent::RangeOpened(port_range) => format!("range {port_range}"),
        SessionEvent::RangeRefused { port_range, why } => format!("range {port_range} refused: {why}"),
        SessionEvent::NotFtp => "not FTP".to_owned(),
        SessionEvent::Ended(how) => format!("ended: {}", how.name()),
        SessionEvent::Anomaly(anomaly) => format!("anomaly: {anomaly:?}"),
    })
}

const CLIENT: &str = "10.0.0.1:4000";
const SERVER: &str = "10.0.0.2:21";

fn conversation() -> Conversation {
    Conversation::new(endpoint(CLIENT), endpoint(SERVER), 1000, u32::MAX - 20)
}

/// A session in which a user is logged in, without the events so far.
fn logged_in(stage: &mut Stage) -> Conversation {
    let mut talk = conversation();
    stage.sees_all(talk.handshake());
    stage.sees(&talk.says(FromServer, "220 ready\r\n"));
    stage.sees(&talk.says(FromClient, "USER anna\r\n"));
    stage.sees(&talk.says(FromServer, "331 and?\r\n"));
    stage.sees(&talk.says(FromClient, "PASS secret\r\n"));
    stage.sees(&talk.says(FromServer, "230 in\r\n"));
    assert_eq!(stage.take_events(), ["1 began 10.0.0.1:4000 -> 10.0.0.2:21", "1 login anna"]);
    talk
}

#[test]
fn passive_transfer_opens_one_pinhole() {
    let mut stage = Stage::new();
    let mut talk = logged_in(&mut stage);
    stage.sees(&talk.says(FromClient, "PASV\r\n"));
    assert!(!stage.connects("10.0.0.1:5000", "10.0.0.2:1025"));
    stage.sees(&talk.says(FromServer, "227 Entering Passive Mode (10,0,0,2,4,1).\r\n"));
    assert!(!stage.connects("10.0.0.3:5000", "10.0.0.2:1025"), "another client");
    assert!(!stage.connects("10.0.0.1:5000", "10.0.0.2:1026"), "another port");
    assert!(stage.connects("10.0.0.1:5000", "10.0.0.2:1025"));
    assert!(!stage.connects("10.0.0.1:5001", "10.0.0.2:1025"), "a second time");
    assert_eq!(stage.take_events(), ["1 227 10.0.0.1 -> 10.0.0.2:1025", "1 used 10.0.0.1:5000 -> 10.0.0.2:1025"]);
}

#[test]
fn active_transfer_admits_the_server() {
    let mut stage = Stage::new();
    let mut talk = logged_in(&mut stage);
    stage.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    assert!(stage.connects("10.0.0.2:20", "10.0.0.1:1025"));
    assert_eq!(stage.take_events(), ["1 PORT 10.0.0.2 -> 10.0.0.1:1025", "1 used 10.0.0.2:20 -> 10.0.0.1:1025"]);
}

#[test]
fn refused_port_closes_its_pinhole() {
    let mut stage = Stage::new();
    let mut talk = logged_in(&mut stage);
    stage.sees(&talk.says(FromClient, "NOOP\r\nPORT 10,0,0,1,4,1\r\n"));
    stage.sees(&talk.says(FromServer, "500 no NOOP here\r\n"));
    assert_eq!(stage.tracker.expectations(), 1);
    stage.sees(&talk.says(FromServer, "500 Illegal PORT command\r\n"));
    assert!(!stage.connects("10.0.0.2:20", "10.0.0.1:1025"));
    let events = ["1 PORT 10.0.0.2 -> 10.0.0.1:1025", "1 closed 10.0.0.2 -> 10.0.0.1:1025: refused-by-server"];
    assert_eq!(stage.take_events(), events);
}

const PASSIVE: &str = "227 Entering Passive Mode (10,0,0,2,4,1).\r\n";
const PASSIVE_OPENS: &str = "1 227 10.0.0.1 -> 10.0.0.2:1025";
const PASSIVE_UNASKED: &str = "1 227 10.0.0.2:1025 refused: not-asked-for";

#[test]
fn announcement_after_a_gap_needs_a_whole_line_of_each_end() {
    let mut stage = Stage::new();
    let mut talk = logged_in(&mut stage);
    talk.loses(FromClient, 8);
    talk.loses(FromServer, 70);
    let without_anomalies = |stage: &mut Stage| -> Vec<String> {
        stage.take_events().into_iter().filter(|event| !event.contains("anomaly")).collect()
    };
    stage.sees(&talk.says(FromClient, "PASV\r\n"));
    stage.sees(&talk.says(FromServer, PASSIVE));
    let unsure = "1 227 10.0.0.2:1025 refused: ambiguous";
    assert_eq!(without_anomalies(&mut stage), [unsure], "that may be the rest of a line");
    stage.sees(&talk.says(FromClient, "PASV\r\n"));
    stage.sees(&talk.says(FromServer, PASSIVE));
    stage.sees(&talk.says(FromServer, PASSIVE));
    assert_eq!(without_anomalies(&mut stage), [PASSIVE_OPENS, PASSIVE_UNASKED]);
}

#[test]
fn command_possibly_answered_in_a_gap_is_not_pending() {
    let mut stage = Stage::new();
    let mut talk = logged_in(&mut stage);
    stage.sees(&talk.says(FromClient, "PASV\r\n"));
    talk.loses(FromServer, PASSIVE.len());
    stage.sees(&talk.says(FromClient, "RETR x\r\n"));
    stage.sees(&talk.says(FromServer, format!("150 here\r\n{PASSIVE}")));
    assert_eq!(stage.take_events(), [PASSIVE_UNASKED, "1 anomaly: Lost"]);
}

/// A session that has begun, and in which the user's name was asked for.
fn asked_for_a_name(stage: &mut Stage) -> Conversation {
    let mut talk = conversation();
    stage.sees_all(talk.handshake());
    stage.sees(&talk.says(FromServer, "220 ready\r\n"));
    stage.sees(&talk.says(FromClient, "USER anna\r\n"));
    stage.sees(&talk.says(FromServer, "331 and?\r\n"));
    stage.take_events();
    talk
}

#[test]
fn login_that_passed_unread_does_not_count() {
    let mut stage = Stage::new();
    let mut talk = asked_for_a_name(&mut stage);
    stage.sees(&talk.says(FromClient, "PASS secret\r\n"));
    let _unread = talk.says(FromServer, "230 in\r\n");
    stage.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    assert_eq!(stage.take_events(), ["1 PORT 10.0.0.1:1025 refused: not-logged-in"]);
}

#[test]
fn command_that_passed_unread_is_not_pending() {
    let mut stage = Stage::new();
    let mut talk = logged_in(&mut stage);
    talk.loses(FromClient, "PASV\r\n".len());
    stage.sees(&talk.says(FromServer, PASSIVE));
    assert_eq!(stage.take_events(), ["1 227 10.0.0.2:1025 refused: ambiguous"]);
    stage.sees(&talk.says(FromServer, PASSIVE));
    assert_eq!(stage.take_events(), ["1 227 10.0.0.2:1025 refused: ambiguous"], "it acknowledges the same");
}

#[test]
fn inexact_reset_does_not_end_the_session() {
    for ahead in [1, 100, 30_000] {
        let mut stage = Stage::new();
        let mut talk = logged_in(&mut stage);
        let mut forger = talk.clone();
        forger.loses(FromClient, ahead);
        stage.sees(&forger.resets(FromClient));
        stage.sees(&talk.says(FromClient, "PASV\r\n"));
        stage.sees(&talk.says(FromServer, PASSIVE));
        assert_eq!(stage.take_events(), [PASSIVE_OPENS], "{ahead}");
    }
}

#[test]
fn ended_session_is_still_read_and_opens_nothing() {
    for resets in [true, false] {
        let mut stage = Stage::with_policy("defaults: { commands: { deny: [FEAT] } }");
        let mut talk = logged_in(&mut stage);
        let last =
            if resets { vec![talk.resets(FromClient)] } else { vec![talk.closes(FromClient), talk.ack(FromServer)] };
        stage.sees_all(last);
        for _ in 0..3 {
            stage.sees(&talk.says(FromClient, "PASV\r\nFEAT\r\nPORT 10,0,0,1,4,1\r\n"));
            stage.sees(&talk.says(FromServer, PASSIVE));
            stage.waits(LINGER / 2);
        }
        assert_eq!(stage.firewall.pinholes(), 0);
        let events = stage.take_events();
        // Behind a FIN nothing goes on at all.
        let (denied, refused) = if resets { (3, 6) } else { (0, 3) };
        assert_eq!(events.iter().filter(|line| line.ends_with("denied FEAT")).count(), denied, "{events:?}");
        assert_eq!(events.iter().filter(|line| line.ends_with("session-over")).count(), refused, "{events:?}");
        assert!(events.iter().all(|line| !line.contains("picked up")), "{events:?}");
    }
}

#[test]
fn syn_of_the_server_in_the_middle_begins_no_session() {
    let mut stage = Stage::new();
    let mut talk = logged_in(&mut stage);
    stage.firewall.treat_all_as_established();
    let mut again = Conversation::new(endpoint(CLIENT), endpoint(SERVER), 77_000, 88_000);
    stage.sees_all(again.handshake());
    stage.sees(&again.says(FromServer, "220 ready\r\n"));
    stage.sees(&talk.says(FromClient, "PASV\r\n"));
    assert!(stage.take_events().iter().all(|event| !event.contains("began") && !event.contains("ended")));
}

#[test]
fn forgotten_ended_session_is_not_trusted_again() {
    let mut stage = Stage::new();
    let mut talk = logged_in(&mut stage);
    stage.sees(&talk.resets(FromClient));
    stage.waits(LINGER);
    assert_eq!(stage.tracker.sessions(), 0);
    stage.sees(&talk.says(FromClient, "NOOP\r\n"));
    stage.sees(&talk.says(FromServer, "200 ok\r\n"));
    stage.sees(&talk.says(FromClient, "PASV\r\n"));
    stage.sees(&talk.says(FromServer, PASSIVE));
    assert_eq!(stage.take_events().last().map(String::as_str), Some("2 227 10.0.0.2:1025 refused: picked-up"));
}

#[test]
fn pinhole_lives_as_long_as_the_policy_says() {
    let mut stage = Stage::with_policy("defaults: { timeout: 10s }");
    let mut talk = logged_in(&mut stage);
    stage.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    stage.waits(Duration::from_millis(9_999));
    assert_eq!(stage.tracker.expectations(), 1);
    stage.waits(Duration::from_millis(1));
    assert!(!stage.connects("10.0.0.2:20", "10.0.0.1:1025"));
    assert_eq!(stage.take_events()[1..], ["1 expired 10.0.0.2 -> 10.0.0.1:1025"]);
    assert_eq!(stage.firewall.pinholes(), 0);
}

#[test]
fn pinhole_ends_with_its_session() {
    for who in [FromClient, FromServer] {
        for resets in [false, true] {
            let mut stage = Stage::new();
            let mut talk = logged_in(&mut stage);
            stage.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
            if resets {
                stage.sees(&talk.resets(who));
            } else {
                stage.sees(&talk.closes(who));
                assert_eq!(stage.firewall.pinholes(), 1, "the other end may not have got it");
                stage.sees(&talk.ack(who.opposite()));
            }
            let how = if resets { "reset" } else { "finished" };
            let events = ["1 closed 10.0.0.2 -> 10.0.0.1:1025: session-ended".to_owned(), format!("1 ended: {how}")];
            assert_eq!(stage.take_events()[1..], events);
            assert_eq!((stage.firewall.pinholes(), stage.tracker.expectations()), (0, 0));
        }
    }
}

/// Their acknowledgements carry nothing, and the kernel does not bring such packets.
#[test]
fn crossing_fins_end_a_session() {
    let mut stage = Stage::new();
    let mut talk = logged_in(&mut stage);
    let mut crossing = talk.clone();
    stage.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    crossing.loses(FromClient, "PORT 10,0,0,1,4,1\r\n".len());
    stage.sees(&talk.closes(FromClient));
    stage.sees(&crossing.closes(FromServer));
    assert_eq!(stage.take_events()[1..], ["1 closed 10.0.0.2 -> 10.0.0.1:1025: session-ended", "1 ended: finished"]);
    stage.sees(&talk.ack(FromServer));
    stage.sees(&talk.ack(FromClient));
    assert_eq!(stage.take_events(), [""; 0]);
}

#[test]
fn session_ends_when_both_ends_close_at_once() {
    let mut stage = Stage::new();
    let mut talk = logged_in(&mut stage);
    let mut other = talk.clone();
    stage.sees(&talk.closes(FromClient));
    stage.sees(&other.closes(FromServer));
    assert_eq!(stage.take_events(), ["1 ended: finished"]);
}

#[test]
fn last_packets_of_a_session_begin_no_other() {
    let mut stage = Stage::new();
    let mut talk = logged_in(&mut stage);
    stage.sees(&talk.closes(FromClient));
    stage.sees(&talk.says(FromServer, "221 bye\r\n"));
    stage.sees(&talk.closes(FromServer));
    stage.sees(&talk.ack(FromClient));
    assert_eq!(stage.take_events(), ["1 ended: finished"]);
    stage.waits(LINGER);
    assert_eq!(stage.tracker.sessions(), 0);
    stage.sees(&talk.ack(FromClient));
    assert_eq!(stage.tracker.sessions(), 0);
}

#[test]
fn new_connection_may_reuse_addresses() {
    let mut stage = Stage::new();
    let mut talk = logged_in(&mut stage);
    stage.sees(&talk.closes(FromClient));
    stage.sees(&talk.closes(FromServer));
    let mut again = Conversation::new(endpoint(CLIENT), endpoint(SERVER), 77_000, 88_000);
    stage.sees_all(again.handshake());
    stage.sees(&again.says(FromServer, "220 ready\r\n"));
    stage.sees(&again.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    let events =
        ["1 ended: finished", "2 began 10.0.0.1:4000 -> 10.0.0.2:21", "2 PORT 10.0.0.1:1025 refused: not-logged-in"];
    assert_eq!(stage.take_events(), events);
}

#[test]
fn new_connection_replaces_one_without_a_seen_end() {
    let mut stage = Stage::new();
    logged_in(&mut stage);
    let mut again = Conversation::new(endpoint(CLIENT), endpoint(SERVER), 77_000, 88_000);
    let [syn, syn_ack, ack] = again.handshake();
    stage.sees(&syn);
    assert_eq!(stage.take_events(), Vec::<String>::new(), "a SYN alone proves nothing");
    stage.sees_all([syn_ack, ack]);
    stage.sees(&again.says(FromServer, "220 ready\r\n"));
    assert_eq!(stage.take_events(), ["1 ended: replaced", "2 began 10.0.0.1:4000 -> 10.0.0.2:21"]);
}

#[test]
fn handshake_seen_twice_is_one_session() {
    let mut stage = Stage::new();
    let mut talk = conversation();
    let handshake = talk.handshake();
    stage.sees_all(&handshake);
    stage.sees(&talk.says(FromServer, "220 ready\r\n"));
    stage.sees_all(&handshake);
    stage.sees(&talk.says(FromClient, "USER anna\r\n"));
    stage.sees(&talk.says(FromServer, "230 in\r\n"));
    assert_eq!(stage.take_events(), ["1 began 10.0.0.1:4000 -> 10.0.0.2:21", "1 login anna"]);
}

#[test]
fn picked_up_session_follows_policy_and_recorded_progress() {
    for (pickup, marked, opens) in
        [("marked", false, false), ("marked", true, true), ("never", true, false), ("trust", false, true)]
    {
        let mut stage = Stage::with_policy(&format!("pickup: {pickup}"));
        let mut talk = logged_in(&mut stage);
        if !marked {
            let flow = talk.flow();
            stage.firewall.record(&Connection::direct(flow), Progress::Unknown);
        }
        stage.tracker.forget_all();
        stage.sees(&talk.says(FromClient, "TYPE I\r\n"));
        stage.sees(&talk.says(FromServer, "200 ok\r\n"));
        stage.sees(&talk.says(FromClient, "PASV\r\n"));
        stage.sees(&talk.says(FromServer, "227 Entering Passive Mode (10,0,0,2,4,1)\r\n"));
        let expected = if opens { "2 227 10.0.0.1 -> 10.0.0.2:1025" } else { "2 227 10.0.0.2:1025 refused: picked-up" };
        assert_eq!(stage.take_events(), ["2 picked up 10.0.0.1:4000 -> 10.0.0.2:21", expected], "{pickup} {marked}");
    }
}

#[test]
fn rest_of_a_line_after_a_pick_up_announces_nothing() {
    let mut stage = Stage::new();
    let mut talk = logged_in(&mut stage);
    stage.sees(&talk.says(FromClient, "USER 227 (10,0,0,2,4,1)\r\n"));
    stage.sees(&talk.says(FromServer, "331 User "));
    stage.tracker.forget_all();
    stage.sees(&talk.says(FromClient, "PASV\r\n"));
    stage.sees(&talk.says(FromServer, "227 (10,0,0,2,4,1) OK. Password required\r\n"));
    let refused = "2 227 10.0.0.2:1025 refused: ambiguous";
    assert_eq!(stage.take_events(), ["2 picked up 10.0.0.1:4000 -> 10.0.0.2:21", refused]);
}

#[test]
fn repeated_announcement_does_not_count_twice_for_the_limit() {
    let mut stage = Stage::with_policy("defaults: { pinholes_per_session: 2 }");
    let mut talk = logged_in(&mut stage);
    for port in [1, 2, 2, 1, 3] {
        stage.sees(&talk.says(FromClient, format!("PORT 10,0,0,1,4,{port}\r\n")));
        stage.sees(&talk.says(FromServer, "200 ok\r\n"));
    }
    let events = stage.take_events();
    assert_eq!(events.last().map(String::as_str), Some("1 PORT 10.0.0.1:1027 refused: too-many"));
    assert_eq!(events.iter().filter(|line| line.contains("refused")).count(), 1);
    assert!(stage.connects("10.0.0.2:20", "10.0.0.1:1025"));
    stage.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,3\r\n"));
    assert!(stage.connects("10.0.0.2:20", "10.0.0.1:1027"), "one that was used makes room");
}

#[test]
fn total_pinhole_limit_holds() {
    let mut stage = Stage::with_policy("limits: { pinholes: 3 }\ndefaults: { login: optional }");
    for client in 1..=5 {
        let address = format!("10.0.1.{client}:4000");
        let mut talk = Conversation::new(endpoint(&address), endpoint(SERVER), 1, 1);
        stage.sees_all(talk.handshake());
        stage.sees(&talk.says(FromServer, "220 ready\r\n"));
        stage.sees(&talk.says(FromClient, format!("PORT 10,0,1,{client},4,1\r\n")));
    }
    assert_eq!(stage.tracker.expectations(), 3);
    assert_eq!(stage.take_events().iter().filter(|line| line.ends_with("too-many")).count(), 2);
}

#[test]
fn equal_pinholes_of_two_sessions_belong_to_the_later() {
    let mut stage = Stage::with_policy("defaults: { login: optional }");
    let talks = [4000, 4001].map(|port| {
        let mut talk = Conversation::new(endpoint(&format!("10.0.0.1:{port}")), endpoint(SERVER), 1, 1);
        stage.sees_all(talk.handshake());
        stage.sees(&talk.says(FromServer, "220 ready\r\n"));
        stage.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
        talk
    });
    stage.sees(&talks[0].resets(FromClient));
    assert_eq!(stage.firewall.pinholes(), 1);
    stage.sees(&talks[1].resets(FromClient));
    assert_eq!(stage.firewall.pinholes(), 0);
}

#[test]
fn full_table_evicts_the_longest_silent_session() {
    let mut stage = Stage::with_policy("limits: { sessions: 3 }\ndefaults: { login: optional }");
    let mut talks: Vec<_> = (1..=4)
        .map(|client| Conversation::new(endpoint(&format!("10.0.1.{client}:4000")), endpoint(SERVER), 1, 1))
        .collect();
    for talk in &mut talks[..3] {
        stage.sees_all(talk.handshake());
        stage.sees(&talk.says(FromServer, "220 ready\r\n"));
        stage.waits(Duration::from_secs(1));
    }
    stage.sees(&talks[1].says(FromClient, "PORT 10,0,1,2,4,1\r\n"));
    stage.waits(Duration::from_secs(1));
    stage.sees(&talks[0].says(FromClient, "NOOP\r\n"));
    stage.waits(Duration::from_secs(1));
    stage.sees(&talks[2].says(FromClient, "NOOP\r\n"));
    stage.take_events();
    stage.sees_all(talks[3].handshake());
    let events = [
        "2 closed 10.0.0.2 -> 10.0.1.2:1025: session-ended",
        "2 ended: evicted-before-login",
        "4 began 10.0.1.4:4000 -> 10.0.0.2:21",
    ];
    assert_eq!(stage.take_events(), events);
    assert_eq!((stage.tracker.sessions(), stage.firewall.pinholes()), (3, 0));
}

#[test]
fn silent_session_is_forgotten_and_active_one_kept() {
    let mut stage = Stage::with_policy("limits: { idle: 10m }");
    let mut talk = logged_in(&mut stage);
    for _ in 0..5 {
        stage.waits(Duration::from_secs(599));
        stage.sees(&talk.says(FromClient, "NOOP\r\n"));
    }
    assert_eq!(stage.take_events(), Vec::<String>::new());
    stage.waits(Duration::from_secs(600));
    assert_eq!(stage.take_events(), ["1 ended: idle"]);
    assert_eq!(stage.tracker.sessions(), 0);
}

#[test]
fn nothing_is_read_after_auth_tls() {
    let mut stage = Stage::new();
    let mut talk = logged_in(&mut stage);
    stage.sees(&talk.says(FromClient, "AUTH TLS\r\n"));
    stage.sees(&talk.says(FromServer, "234 go\r\n227 Entering Passive Mode (10,0,0,2,4,1)\r\n"));
    stage.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    stage.sees(&talk.closes(FromClient));
    stage.sees(&talk.ack(FromServer));
    assert_eq!(stage.take_events(), ["1 encrypted", "1 ended: finished"]);
}

#[test]
fn encrypted_session_gets_a_port_range_if_allowed() {
    let mut stage = Stage::with_policy("defaults: { tls: range 50000-50100 }");
    let mut talk = logged_in(&mut stage);
    stage.sees(&talk.says(FromClient, "AUTH TLS\r\n"));
    assert!(!stage.connects("10.0.0.1:5000", "10.0.0.2:50001"));
    stage.sees(&talk.says(FromServer, "234 go\r\n"));
    assert!(!stage.connects("10.0.0.1:5000", "10.0.0.2:50001"));
    quotas::goes_on_encrypted(&mut stage, &mut talk);
    assert!(stage.connects("10.0.0.1:5000", "10.0.0.2:50001"));
    assert!(stage.connects("10.0.0.1:5001", "10.0.0.2:50001"));
    assert!(!stage.connects("10.0.0.3:5000", "10.0.0.2:50001"));
    assert!(!stage.connects("10.0.0.1:5000", "10.0.0.2:50101"));
    stage.sees(&talk.closes(FromServer));
    stage.sees(&talk.ack(FromClient));
    assert!(!stage.connects("10.0.0.1:5002", "10.0.0.2:50001"));
}

#[test]
fn held_line_is_ambiguous_however_it_is_delivered() {
    // The server ignores what acknowledges more than it has sent.
    let mut stage = Stage::new();
    let mut talk = logged_in(&mut stage);
    talk.loses(FromClient, 8);
    let packet = talk.says(FromClient, "NOOP\r\nPORT 10,0,0,1,15,161\r\n");
    let segment = Segment::parse(&packet).expect("a segment");
    let segment = Segment { ack: segment.ack + 100, ..segment };
    stage.with_env(|tracker, env| tracker.handle(&segment, env));
    stage.sees(&talk.says(FromServer, "200 good\r\n"));
    assert!(!stage.connects("10.0.0.2:20", "10.0.0.1:4001"), "{:?}", stage.take_events());
}

#[test]
fn denied_command_is_reported() {
    let mut stage = Stage::with_policy("defaults: { tls: deny, commands: { deny: [DELE] } }");
    let mut talk = logged_in(&mut stage);
    stage.sees(&talk.says(FromClient, "dele a\r\nAUTH TLS\r\nSTAT\r\n"));
    assert_eq!(stage.take_events(), ["1 denied DELE", "1 denied AUTH"]);
}

#[test]
fn denied_command_is_stopped_in_every_form() {
    for hidden in [
        &["NOOP \u{ff}\u{fa}\r\nFEAT\r\n"][..],
        &["NOOP \u{ff}\u{fb}\nFEAT\r\n"],
        &["\u{ff}\u{f1}FEAT\r\n"],
        &["FE\u{ff}\u{f1}AT\r\n"],
        &["FE\u{ff}\u{f1}", "AT", "\r\n"],
        &["  FEAT\r\n"],
        &["FE", "AT\r\n"],
        &["NOOP\rFEAT\r\n"],
        &["NOOP\nFEAT\n"],
        &["XYZZY\r\n", "FEAT\r\n"],
        &["F", "E", "A", "T", "\r", "\n"],
    ] {
        let mut stage = Stage::with_policy("defaults: { commands: { deny: [FEAT] } }");
        let mut talk = logged_in(&mut stage);
        let mut arrives = Vec::new();
        for piece in hidden {
            let bytes: Vec<u8> = piece.chars().map(|letter| letter as u8).collect();
            arrives.extend(stage.lets_pass(&talk.says(FromClient, &bytes)));
        }
        // Without Telnet and what no letter is, nothing is left of it.
        let letters: String =
            arrives.iter().filter(|byte| byte.is_ascii_alphabetic()).map(|byte| *byte as char).collect();
        assert!(!letters.contains("FEAT"), "{hidden:?} arrives as {:?}", String::from_utf8_lossy(&arrives));
    }
}

/// Loads another policy.
fn deny(stage: &mut Stage, text: &str) {
    stage.policy = policy::parse("policy.yaml", text).expect("a good policy").policy;
    stage.follows_policy();
}

#[test]
fn denied_command_that_began_before_the_reload_does_not_end() {
    for (before, after) in [("DELE", " x\r\n"), ("DELE ", "x\r\n"), ("DELE x", "\r\n"), ("dele x\r", "\n")] {
        let mut stage = Stage::new();
        let mut talk = logged_in(&mut stage);
        assert_eq!(stage.lets_pass(&talk.says(FromClient, before)), before.as_bytes());
        deny(&mut stage, "defaults: { commands: { deny: [DELE] } }");
        assert_eq!(stage.lets_pass(&talk.says(FromClient, after)), b"", "{before:?}");
    }
}

#[test]
fn denied_command_ahead_of_a_gap_before_the_reload_does_not_arrive() {
    for (ahead, arrives) in [("DELE x\r\n", false), ("DELE", false), ("SYST\r\n", true), ("DEL", true)] {
        let mut stage = Stage::new();
        let mut talk = logged_in(&mut stage);
        let first = talk.says(FromClient, "NOOP\r\n");
        assert_eq!(stage.lets_pass(&talk.says(FromClient, ahead)), ahead.as_bytes());
        deny(&mut stage, "defaults: { commands: { deny: [DELE] } }");
        let expected: &[u8] = if arrives { b"NOOP\r\n" } else { b"" };
        assert_eq!(stage.lets_pass(&first), expected, "{ahead:?}");
    }
}

#[test]
fn allowed_command_begun_before_the_reload_passes() {
    let mut stage = Stage::new();
    let mut talk = logged_in(&mut stage);
    stage.lets_pass(&talk.says(FromClient, "RETR DEL"));
    deny(&mut stage, "defaults: { commands: { deny: [DELE] } }");
    assert_eq!(stage.lets_pass(&talk.says(FromClient, "E\r\nSYST\r\n")), b"E\r\nSYST\r\n");
    assert_eq!(stage.lets_pass(&talk.says(FromClient, "DELE x\r\n")), b"DELX x\r\n");
}

#[test]
fn decoy_before_a_denied_command_arrives_in_its_place() {
    let mut stage = Stage::with_policy("defaults: { commands: { deny: [FEAT] } }");
    let mut talk = logged_in(&mut stage);
    let decoy = talk.clone().says(FromClient, "NOOP\r\n");
    stage.sees(&decoy);
    assert_eq!(stage.lets_pass(&talk.says(FromClient, "FEAT\r\n")), b"NOOP\r\n");
}

#[test]
fn more_denied_commands_than_are_remembered_do_not_pass() {
    let mut stage = Stage::with_policy("defaults: { commands: { deny: [FEAT] } }");
    let mut talk = logged_in(&mut stage);
    for _ in 0..200 {
        let arrives = stage.lets_pass(&talk.says(FromClient, "FEAT\r\n"));
        assert_ne!(arrives, b"FEAT\r\n");
    }
}

#[test]
fn denied_command_after_a_gap_does_not_pass() {
    let mut stage = Stage::with_policy("defaults: { commands: { deny: [FEAT] } }");
    let mut talk = logged_in(&mut stage);
    let first = talk.says(FromClient, "FE");
    let second = talk.says(FromClient, "AT\r\n");
    let at_last = |stage: &mut Stage, packet: &[u8]| {
        let segment = Segment::parse(packet).expect("a segment");
        stage.with_env(|tracker, env| tracker.handle_on_gap(&segment, OnGap::Continue, env))
    };
    assert_eq!(at_last(&mut stage, &second), TrackerVerdict::Session(Verdict::Drop));
    assert_eq!(stage.lets_pass(&first), b"FE");
    assert_eq!(stage.lets_pass(&second), b"AX\r\n");
}

#[test]
fn start_of_a_denied_command_may_be_retransmitted() {
    for (piece, passes, rest) in [("FEAT", "FEAX", "\r\n"), (" FE", " FE", "AT\r\n"), ("\t FEAT", "XXXXXX", "\r\n")] {
        let mut stage = Stage::with_policy("defaults: { commands: { deny: [FEAT] } }");
        let mut talk = logged_in(&mut stage);
        let first = talk.clone().says(FromClient, piece);
        let whole = talk.clone().says(FromClient, format!("{piece}{rest}"));
        for _ in 0..2 {
            assert_eq!(String::from_utf8_lossy(&stage.lets_pass(&first)), passes);
        }
        let arrives = stage.lets_pass(&whole);
        assert_eq!(arrives.len(), piece.len() + rest.len(), "{piece:?}");
        assert!(!String::from_utf8_lossy(&arrives).contains("FEAT"), "{piece:?}");
        talk.says(FromClient, format!("{piece}{rest}"));
        assert_eq!(stage.lets_pass(&talk.says(FromClient, "NOOP\r\n")), b"NOOP\r\n");
    }
}

#[test]
fn denied_commands_in_one_segment_do_not_pass_the_second_time() {
    let mut stage = Stage::with_policy("defaults: { commands: { deny: [FEAT] } }");
    let mut talk = logged_in(&mut stage);
    let packet = talk.says(FromClient, "FEAT\r\n".repeat(100));
    for time in 1..=3 {
        let arrives = stage.lets_pass(&packet);
        assert!(!String::from_utf8_lossy(&arrives).contains("FEAT"), "time {time}");
    }
}

#[test]
fn rest_of_a_denied_command_does_not_pass_after_a_restart() {
    for (beginning, rest) in [("FEA", "T\r\n"), ("F", "eat x\r\n"), ("FE", "\u{0}AT\r\n")] {
        let mut stage = Stage::with_policy("defaults: { commands: { deny: [FEAT] } }");
        let mut talk = logged_in(&mut stage);
        let mut arrives = stage.lets_pass(&talk.says(FromClient, beginning));
        stage.tracker.forget_all();
        arrives.extend(stage.lets_pass(&talk.says(FromClient, rest)));
        arrives.retain(u8::is_ascii_alphabetic);
        assert!(!arrives.to_ascii_uppercase().starts_with(b"FEAT"), "{beginning:?} {rest:?}");
    }
    let mut stage = Stage::with_policy("defaults: { commands: { deny: [FEAT] } }");
    let mut talk = logged_in(&mut stage);
    stage.lets_pass(&talk.says(FromClient, "RETR fi"));
    stage.tracker.forget_all();
    assert_eq!(stage.lets_pass(&talk.says(FromClient, "le\r\n")), b"le\r\n");
}

/// BusyBox reads the last four letters of a word, pyftpdlib those of STAT; others compare no more than the first four.
/// Python, Java and Go make S of \u{17f} in upper case.
#[test]
fn denied_command_embedded_in_a_word_does_not_pass() {
    for line in ["NOSTOR x\r\n", "a-STAT\r\n", "STORE x\r\n", "\u{17f}TOR x\r\n", "LI\u{17f}T\r\n"] {
        let mut stage = Stage::with_policy("defaults: { commands: { deny: [STOR, STAT, LIST] } }");
        let mut talk = logged_in(&mut stage);
        let arrives = stage.lets_pass(&talk.says(FromClient, line));
        assert_eq!(arrives, format!("{}\n", "X".repeat(line.len() - 1)).as_bytes(), "{line:?}");
    }
    let mut stage = Stage::with_policy("defaults: { commands: { deny: [STOR, STAT] } }");
    let mut talk = logged_in(&mut stage);
    for line in ["RETR \u{17f}TOR\r\n", "HISTORY STOR\r\n", "MKD \u{e9}STAT\r\n"] {
        assert_eq!(stage.lets_pass(&talk.says(FromClient, line)), line.as_bytes());
    }
}

#[test]
fn letter_in_a_denied_command_begins_no_other_denied_one() {
    let mut stage = Stage::with_policy("defaults: { commands: { deny: [RMD, RMXA, RMZ] } }");
    let mut talk = logged_in(&mut stage);
    let mut arrives = stage.lets_pass(&talk.says(FromClient, "RMD"));
    arrives.extend(stage.lets_pass(&talk.says(FromClient, "A x\r\n")));
    assert_eq!(arrives, b"RMQA x\r\n");
}

/// Its beginning is where the first segment begins that is read: the sender may have left out what stands before that.
#[test]
fn denied_command_before_the_pickup_point_does_not_pass() {
    for progress in [Progress::Ftp, Progress::LoggedIn] {
        let mut stage = Stage::with_policy("defaults: { commands: { deny: [FEAT] } }");
        let mut talk = logged_in(&mut stage);
        stage.firewall.record(&Connection::direct(talk.flow()), progress);
        stage.firewall.set_synced(Synced { client: true, server: true });
        stage.tracker.forget_all();
        let denied = talk.says(FromClient, "FEAT\r\n");
        let behind = talk.says(FromClient, "NOOP\r\n");
        stage.sees(&behind);
        let arrives = stage.lets_pass(&denied);
        assert!(!String::from_utf8_lossy(&arrives).contains("FEAT"), "{progress:?}");
    }
}

#[test]
fn denied_command_after_the_longest_line_does_not_pass() {
    for end in ["\r", "\0"] {
        let mut stage = Stage::with_policy("defaults: { commands: { deny: [FEAT] } }");
        let mut talk = logged_in(&mut stage);
        let line = format!("NOOP {}{end}FEAT\r\n", "x".repeat(2000));
        let mut arrives = stage.lets_pass(&talk.says(FromClient, &line[..1500]));
        arrives.extend(stage.lets_pass(&talk.says(FromClient, &line[1500..])));
        assert!(!String::from_utf8_lossy(&arrives).contains("FEAT"), "{end:?}");
    }
}

#[test]
fn reloaded_deny_applies_to_existing_sessions() {
    let mut stage = Stage::new();
    let mut talk = logged_in(&mut stage);
    stage.policy = policy::parse("policy.yaml", "defaults: { commands: { deny: [DELE] } }").expect("good").policy;
    stage.follows_policy();
    assert_eq!(stage.lets_pass(&talk.says(FromClient, "DELE x\r\n")), b"DELX x\r\n");
    assert_eq!(stage.take_events(), ["1 denied DELE"]);
}

#[test]
fn non_ftp_is_read_again_after_a_reload_that_denies() {
    let policy = "defaults: { commands: { deny: [DELE] } }";
    for passed_unread in [0, 100, 10_000_000] {
        let mut stage = Stage::new();
        let mut talk = conversation();
        stage.sees_all(talk.handshake());
        stage.sees(&talk.says(FromServer, "220 ready\r\n"));
        stage.sees(&talk.says(FromClient, "HELLO\r\n"));
        let connection = Connection::direct(talk.flow());
        let progress = |stage: &mut Stage| {
            stage
                .firewall
                .control_connection(&connection.original)
                .expect("it is in memory")
                .expect("it is one")
                .progress
        };
        assert_eq!(progress(&mut stage), Progress::Unreadable);
        talk.loses(FromClient, passed_unread);
        talk.loses(FromServer, passed_unread);
        stage.policy = policy::parse("policy.yaml", policy).expect("good").policy;
        stage.follows_policy();
        assert_eq!(progress(&mut stage), Progress::Unknown, "the kernel has to bring its packets again");
        for _ in 0..2 {
            let arrives = stage.lets_pass(&talk.says(FromClient, "DELE x\r\n"));
            assert!(!arrives.starts_with(b"DELE"), "{arrives:?}");
        }
        assert_eq!(stage.lets_pass(&talk.says(FromClient, "NOOP\r\n")), b"NOOP\r\n");
        stage.sees(&talk.says(FromClient, "PASV\r\n"));
        stage.sees(&talk.says(FromServer, PASSIVE));
        stage.sees(&talk.says(FromServer, PASSIVE));
        assert_eq!(stage.firewall.pinholes(), 0);
        // And a policy that denies nothing any more leaves it alone again.
        stage.policy = Policy::embedded();
        stage.follows_policy();
        stage.sees(&talk.says(FromClient, "Host: x\r\n"));
        assert_eq!(progress(&mut stage), Progress::Unreadable);
    }
}

#[test]
fn encrypted_stays_unread_after_a_reload_that_denies() {
    let mut stage = Stage::new();
    let mut talk = conversation();
    stage.sees_all(talk.handshake());
    stage.sees(&talk.says(FromServer, "220 ready\r\n"));
    stage.sees(&talk.says(FromClient, "AUTH TLS\r\n"));
    stage.sees(&talk.says(FromServer, "234 go on\r\n"));
    stage.policy =
        policy::parse("policy.yaml", "defaults: { tls: deny, commands: { deny: [DELE] } }").expect("good").policy;
    stage.follows_policy();
    let control = stage.firewall.control_connection(&talk.flow()).expect("it is in memory").expect("it is one");
    assert_eq!(control.progress, Progress::Unreadable);
    let record = b"\x16\x03\x01\nDELE x\r\n";
    assert_eq!(stage.lets_pass(&talk.says(FromClient, record)), record);
}

#[test]
fn packets_of_other_connections_are_ignored() {
    let mut stage = Stage::new();
    let mut talk = Conversation::new(endpoint(CLIENT), endpoint("10.0.0.2:80"), 1, 1);
    stage.sees_all(talk.handshake());
    stage.sees(&talk.says(FromClient, "PORT 10,0,0,1,4,1\r\n"));
    assert_eq!(stage.take_events(), Vec::<String>::new());
    assert_eq!(stage.tracker.sessions(), 0);
}

#[path = "lookup_tests.rs"]
mod lookup;
#[path = "quota_tests.rs"]
mod quotas;
#[path = "urgent_tests.rs"]
mod urgent;
