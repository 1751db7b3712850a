//! No session, client or flood takes what others need.

use super::*;
use crate::core::net::Seq;
use crate::core::script::packet;

/// The conversation of a client with this address.
fn client(address: &str) -> Conversation {
    Conversation::new(endpoint(address), endpoint(SERVER), 1000, 9000)
}

/// The n-th of many clients.
fn one_of_many(number: u32) -> Conversation {
    client(&format!("{}:4000", std::net::Ipv4Addr::from(0x0b00_0000 + number)))
}

/// The server answers the client's SYN; the client, if there is one, says nothing.
fn half_opens(stage: &mut Stage, talk: &mut Conversation) {
    let [_, syn_ack, _] = talk.handshake();
    stage.sees(&syn_ack);
}

fn logs_in(stage: &mut Stage, talk: &mut Conversation) {
    stage.sees_all(talk.handshake());
    for (who, line) in [(FromServer, "220 ready\r\n"), (FromClient, "USER anna\r\n"), (FromServer, "230 in\r\n")] {
        stage.sees(&talk.says(who, line));
    }
}

fn opens(stage: &mut Stage, talk: &mut Conversation, port: u16) {
    let before = stage.firewall.pinholes();
    stage.sees(&talk.says(FromClient, "EPSV\r\n"));
    stage.sees(&talk.says(FromServer, format!("229 Extended (|||{port}|)\r\n")));
    assert_eq!(stage.firewall.pinholes(), before + 1);
}

/// The events that contain this text.
fn events_with(stage: &mut Stage, text: &str) -> Vec<String> {
    stage.take_events().into_iter().filter(|line| line.contains(text)).collect()
}

#[test]
fn half_open_flood_closes_no_pinhole_of_a_user() {
    let mut stage = Stage::with_policy("limits: { sessions: 400, idle: 168h }");
    let mut talk = client(CLIENT);
    logs_in(&mut stage, &mut talk);
    opens(&mut stage, &mut talk, 5001);
    stage.take_events();
    stage.waits(Duration::from_secs(30));
    for number in 0..2000 {
        half_opens(&mut stage, &mut one_of_many(number));
    }
    // They have a quarter of the table.
    assert_eq!((stage.tracker.sessions(), stage.firewall.pinholes()), (101, 1));
    assert_eq!(events_with(&mut stage, "ended: evicted-before-login").len(), 1900);
    assert!(stage.connects("10.0.0.1:5000", "10.0.0.2:5001"));
}

#[test]
fn half_open_session_is_evicted_for_an_active_one() {
    let mut stage = Stage::with_policy("limits: { sessions: 400 }");
    let mut spoken = client(CLIENT);
    stage.sees_all(spoken.handshake());
    stage.sees(&spoken.says(FromServer, "220 ready\r\n"));
    stage.sees(&spoken.says(FromClient, "USER anna\r\n"));
    stage.take_events();
    for number in 0..2000 {
        half_opens(&mut stage, &mut one_of_many(number));
    }
    let events = events_with(&mut stage, "ended: evicted-before-login");
    assert!(events.len() > 1800 && !events.iter().any(|line| line.starts_with("1 ")));
    stage.sees(&spoken.says(FromServer, "230 in\r\n"));
    assert_eq!(stage.take_events(), ["1 login anna"]);
}

#[test]
fn full_table_evicts_ended_then_half_open_then_before_login() {
    let mut stage = Stage::with_policy("limits: { sessions: 5 }");
    let mut talks: Vec<_> = (1..=9).map(one_of_many).collect();
    logs_in(&mut stage, &mut talks[0]);
    logs_in(&mut stage, &mut talks[1]);
    stage.sees_all(talks[2].handshake());
    stage.sees(&talks[2].says(FromServer, "220 ready\r\n"));
    stage.sees(&talks[2].says(FromClient, "USER bert\r\n"));
    half_opens(&mut stage, &mut talks[3]);
    logs_in(&mut stage, &mut talks[4]);
    stage.sees(&talks[4].resets(FromClient));
    stage.take_events();
    for talk in &mut talks[5..9] {
        logs_in(&mut stage, talk);
    }
    // The fifth had ended before; then the half-open one, the one before a login, and the oldest of the others.
    let order = ["4 ended: evicted", "3 ended: evicted", "1 ended: evicted"];
    assert_eq!(events_with(&mut stage, "ended"), order);
    assert_eq!(stage.tracker.sessions(), 5);
}

#[test]
fn unreadable_session_is_evicted_first() {
    let mut stage = Stage::with_policy("limits: { sessions: 2 }");
    let mut talks: Vec<_> = (1..=3).map(one_of_many).collect();
    half_opens(&mut stage, &mut talks[0]);
    stage.sees_all(talks[1].handshake());
    stage.sees(&talks[1].says(FromServer, "HTTP/1.1 400 Bad Request\r\n"));
    stage.take_events();
    half_opens(&mut stage, &mut talks[2]);
    assert_eq!(events_with(&mut stage, "ended"), ["2 ended: evicted"]);
}

#[test]
fn client_over_its_share_loses_its_own_sessions() {
    let mut stage = Stage::with_policy("limits: { sessions: 100, sessions_per_client: 3 }");
    let mut other = client("10.0.0.9:4000");
    logs_in(&mut stage, &mut other);
    stage.waits(Duration::from_secs(5));
    let mut talks: Vec<_> = (0..5).map(|number| client(&format!("10.0.0.1:{}", 4000 + number))).collect();
    for talk in &mut talks[..3] {
        logs_in(&mut stage, talk);
        stage.waits(Duration::from_secs(1));
    }
    // Its oldest has spoken again since.
    stage.sees(&talks[0].says(FromClient, "NOOP\r\n"));
    stage.take_events();
    logs_in(&mut stage, &mut talks[3]);
    assert_eq!(events_with(&mut stage, "ended"), ["3 ended: evicted-over-share"]);
    assert_eq!(stage.tracker.sessions(), 4);
    // What has not logged in goes first, however young it is.
    half_opens(&mut stage, &mut talks[4]);
    assert_eq!(events_with(&mut stage, "ended"), ["4 ended: evicted-over-share"]);
    half_opens(&mut stage, &mut client("10.0.0.1:4999"));
    assert_eq!(events_with(&mut stage, "ended"), ["6 ended: evicted-over-share"]);
}

#[test]
fn ipv6_network_has_one_share_whatever_the_address() {
    let mut stage = Stage::with_policy("limits: { sessions_per_client: 3 }");
    for host in 1..=9 {
        let server = endpoint("[fd00::1]:21");
        half_opens(&mut stage, &mut Conversation::new(endpoint(&format!("[2001:db8::{host}]:4000")), server, 1, 1));
    }
    assert_eq!(stage.tracker.sessions(), 3);
}

#[test]
fn client_over_its_share_of_pinholes_is_refused_alone() {
    let mut stage = Stage::with_policy("limits: { pinholes_per_client: 2 }");
    let mut talks: Vec<_> = (0..3).map(|number| client(&format!("10.0.0.1:{}", 4000 + number))).collect();
    let mut other = client("10.0.0.9:4000");
    for talk in talks.iter_mut().chain([&mut other]) {
        logs_in(&mut stage, talk);
    }
    opens(&mut stage, &mut talks[0], 5001);
    opens(&mut stage, &mut talks[1], 5002);
    stage.take_events();
    stage.sees(&talks[2].says(FromClient, "EPSV\r\n"));
    stage.sees(&talks[2].says(FromServer, "229 Extended (|||5003|)\r\n"));
    assert_eq!(stage.take_events(), ["3 229 10.0.0.2:5003 refused: too-many"]);
    opens(&mut stage, &mut other, 5004);
    // What was used counts no more.
    assert!(stage.connects("10.0.0.1:6000", "10.0.0.2:5001"));
    opens(&mut stage, &mut talks[2], 5003);
}

/// What a session may keep when nothing is left: the beginnings of two lines.
const BEYOND: usize = 400;

/// A session of that client keeps this much that is out of order.
fn keeps_out_of_order(stage: &mut Stage, talk: &mut Conversation, bytes: usize) {
    let flow = talk.flow();
    // Every second byte, in pieces, is missing: the worst for whoever keeps them.
    for piece in 0..30 {
        let at = Seq::new(1001) + 10 + piece * bytes / 30 * 2;
        stage.sees(&packet(&flow, at, Seq::new(9001), Flags::ACK, &vec![b'x'; bytes / 30]));
    }
}

#[test]
fn buffers_of_all_sessions_are_bounded_in_all() {
    let mut stage = Stage::with_policy("limits: { buffered_bytes: 1000000 }");
    for number in 0..1000 {
        let mut talk = one_of_many(number);
        logs_in(&mut stage, &mut talk);
        keeps_out_of_order(&mut stage, &mut talk, 12_000);
        let kept = stage.tracker.buffered_bytes();
        assert!(kept <= 1_000_000 + number as usize * BEYOND, "{kept} after {number}");
    }
    assert!(stage.tracker.buffered_bytes() > 900_000 && stage.tracker.buffer_refusals() > 100);
    // With the sessions goes what they kept.
    stage.waits(Duration::from_secs(3600));
    assert_eq!((stage.tracker.sessions(), stage.tracker.buffered_bytes()), (0, 0));
}

#[test]
fn buffers_of_one_client_leave_room_for_others() {
    let mut stage = Stage::with_policy("limits: { buffered_bytes: 1000000 }");
    for number in 0..100 {
        let mut talk = client(&format!("10.0.0.7:{}", 4000 + number));
        logs_in(&mut stage, &mut talk);
        keeps_out_of_order(&mut stage, &mut talk, 12_000);
    }
    let kept = stage.tracker.buffered_bytes();
    assert!(kept <= 1_000_000 / 16 + 100 * BEYOND, "{kept}");
    reads_what_comes_in_the_wrong_order(&mut stage);
}

#[test]
fn buffers_before_login_leave_room_for_users() {
    let mut stage = Stage::with_policy("limits: { buffered_bytes: 1000000 }");
    for number in 0..1000 {
        let mut talk = one_of_many(number);
        half_opens(&mut stage, &mut talk);
        keeps_out_of_order(&mut stage, &mut talk, 12_000);
    }
    let kept = stage.tracker.buffered_bytes();
    assert!(kept <= 1_000_000 / 4 + 1000 * BEYOND, "{kept}");
    reads_what_comes_in_the_wrong_order(&mut stage);
}

/// A user's PASV of which the end comes before the beginning.
#[track_caller]
fn reads_what_comes_in_the_wrong_order(stage: &mut Stage) {
    let mut talk = client(CLIENT);
    logs_in(stage, &mut talk);
    stage.take_events();
    let (begins, ends) = (talk.says(FromClient, "EP"), talk.says(FromClient, "SV\r\n"));
    stage.sees_all([ends, begins]);
    stage.sees(&talk.says(FromServer, "229 Extended (|||5001|)\r\n"));
    let events = stage.take_events();
    assert!(events.iter().any(|line| line.ends_with("229 10.0.0.1 -> 10.0.0.2:5001")), "{events:?}");
}

#[test]
fn lines_without_an_end_are_bounded_too() {
    let mut stage =
        Stage::with_policy("limits: { buffered_bytes: 65536, line_bytes: 65536, sessions_per_client: 100 }");
    for number in 0..1000 {
        let mut talk = one_of_many(number);
        logs_in(&mut stage, &mut talk);
        for _ in 0..20 {
            stage.sees(&talk.says(FromClient, [b'x'; 1000]));
        }
    }
    let kept = stage.tracker.buffered_bytes();
    assert!(kept <= 65_536 + 1000 * BEYOND, "{kept}");
}

/// A TLS handshake, and two commands with their answers; then the client goes on.
pub(super) fn goes_on_encrypted(stage: &mut Stage, talk: &mut Conversation) {
    let (hello, data) = (b"\x16\x03\x01\0\x02ab", b"\x17\x03\x03\0\x02ab");
    for who in [FromClient, FromServer] {
        stage.sees(&talk.says(who, hello));
    }
    for who in [FromClient, FromServer, FromClient, FromServer, FromClient] {
        stage.sees(&talk.says(who, data));
    }
}

/// A session that has become encrypted before any login, as FTPS clients do.
fn secures(stage: &mut Stage, talk: &mut Conversation) {
    stage.sees_all(talk.handshake());
    let lines = [(FromServer, "220 ready\r\n"), (FromClient, "AUTH TLS\r\n"), (FromServer, "234 go\r\n")];
    for (who, line) in lines {
        stage.sees(&talk.says(who, line));
    }
}

const RANGE: &str = "defaults: { tls: range 50000-50100 }\n";

#[test]
fn range_stays_open_as_long_as_its_silent_session_lives() {
    let mut stage = Stage::with_policy(RANGE);
    let mut talk = client(CLIENT);
    secures(&mut stage, &mut talk);
    goes_on_encrypted(&mut stage, &mut talk);
    assert_eq!(events_with(&mut stage, "range"), ["1 range 10.0.0.1 -> 10.0.0.2 ports 50000-50100"]);
    // The kernel forgets the element after an hour, unless it is renewed; `idle` is an hour, too.
    for _ in 0..100 {
        assert!(stage.tracker.next_deadline().is_some_and(|due| due <= stage.now + Duration::from_secs(1800)));
        stage.waits(Duration::from_secs(1800));
    }
    assert_eq!((stage.firewall.renewals(), stage.take_events().len()), (100, 0));
    stage.sees(&talk.resets(FromClient));
    stage.waits(Duration::from_secs(1800));
    assert_eq!((stage.firewall.renewals(), stage.tracker.next_deadline()), (100, None));
}

#[test]
fn range_needs_a_234_that_was_asked_for() {
    let mut stage = Stage::with_policy(RANGE);
    let mut talk = client(CLIENT);
    stage.sees_all(talk.handshake());
    stage.sees(&talk.says(FromServer, "220 ready\r\n"));
    // Behind so many commands nobody knows what is answered.
    stage.sees(&talk.says(FromClient, "NOOP\r\n".repeat(20)));
    stage.sees(&talk.says(FromServer, "234 go\r\n"));
    stage.take_events();
    goes_on_encrypted(&mut stage, &mut talk);
    assert_eq!((stage.take_events(), stage.connects("10.0.0.1:5000", "10.0.0.2:50001")), (vec![], false));
}

#[test]
fn range_counts_as_a_pinhole_of_its_client() {
    let mut stage = Stage::with_policy(&format!("{RANGE}limits: {{ pinholes_per_client: 2 }}"));
    let mut talks: Vec<_> = (0..3).map(|number| client(&format!("10.0.0.1:{}", 4000 + number))).collect();
    for talk in &mut talks {
        secures(&mut stage, talk);
        goes_on_encrypted(&mut stage, talk);
    }
    let events = events_with(&mut stage, "range 10");
    assert_eq!(events.len(), 3);
    assert!(events[2].ends_with("refused: too-many"), "{events:?}");
    // With one that ends there is room again.
    stage.sees(&talks[0].resets(FromClient));
    let mut another = client("10.0.0.1:4009");
    secures(&mut stage, &mut another);
    goes_on_encrypted(&mut stage, &mut another);
    assert_eq!(events_with(&mut stage, "range 10"), ["4 range 10.0.0.1 -> 10.0.0.2 ports 50000-50100"]);
}

proptest::proptest! {
    /// Whatever sessions do, the lists hold each of them once and the limits hold.
    #[test]
    fn limits_hold_whatever_sessions_do(
        acts in proptest::collection::vec((0_u32..12, 0_u8..6, 0_u64..3), 0..300),
    ) {
        let mut stage = Stage::with_policy("limits: { sessions: 6, sessions_per_client: 3, idle: 20s }");
        let address = |number: u32| format!("10.0.{}.1:{}", number % 3, 4000 + number);
        let mut talks: Vec<_> = (0..12).map(|number| client(&address(number))).collect();
        for (number, act, seconds) in acts {
            let talk = &mut talks[number as usize];
            match act {
                0 => half_opens(&mut stage, talk),
                1 => logs_in(&mut stage, talk),
                2 => stage.sees(&talk.says(FromClient, "NOOP\r\n")),
                3 => stage.sees(&talk.says(FromServer, "220 hello\r\n")),
                4 => stage.sees(&talk.resets(FromServer)),
                _ => stage.sees(&talk.closes(FromClient)),
            }
            stage.waits(Duration::from_secs(seconds));
            stage.tracker.sessions.check();
            proptest::prop_assert!(stage.tracker.sessions() <= 6);
        }
    }
}
