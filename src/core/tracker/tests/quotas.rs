//! No session, client or flood takes what others need.

use super::*;
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
fn half_opens(fixture: &mut Fixture, talk: &mut Conversation) {
    let [_, syn_ack, _] = talk.handshake();
    fixture.sees(&syn_ack);
}

fn logs_in(fixture: &mut Fixture, talk: &mut Conversation) {
    fixture.sees_all(talk.handshake());
    for (who, line) in [(FromServer, "220 ready\r\n"), (FromClient, "USER anna\r\n"), (FromServer, "230 in\r\n")] {
        fixture.sees(&talk.says(who, line));
    }
}

fn opens(fixture: &mut Fixture, talk: &mut Conversation, port: u16) {
    let before = fixture.firewall.pinholes();
    fixture.sees(&talk.says(FromClient, "EPSV\r\n"));
    fixture.sees(&talk.says(FromServer, format!("229 Extended (|||{port}|)\r\n")));
    assert_eq!(fixture.firewall.pinholes(), before + 1);
}

/// The events that contain this text.
fn events_with(fixture: &mut Fixture, text: &str) -> Vec<String> {
    fixture.take_events().into_iter().filter(|line| line.contains(text)).collect()
}

#[test]
fn half_open_flood_closes_no_pinhole_of_a_user() {
    let mut fixture = Fixture::with_policy("limits: { sessions: 400, idle: 168h }");
    let mut talk = client(CLIENT);
    logs_in(&mut fixture, &mut talk);
    opens(&mut fixture, &mut talk, 5001);
    fixture.take_events();
    fixture.waits(Duration::from_secs(30));
    for number in 0..2000 {
        half_opens(&mut fixture, &mut one_of_many(number));
    }
    // They have a quarter of the table.
    assert_eq!((fixture.tracker.sessions(), fixture.firewall.pinholes()), (101, 1));
    assert_eq!(events_with(&mut fixture, "ended: evicted-before-login").len(), 1900);
    assert!(fixture.connects("10.0.0.1:5000", "10.0.0.2:5001"));
}

#[test]
fn half_open_session_is_evicted_for_an_active_one() {
    let mut fixture = Fixture::with_policy("limits: { sessions: 400 }");
    let mut spoken = client(CLIENT);
    fixture.sees_all(spoken.handshake());
    fixture.sees(&spoken.says(FromServer, "220 ready\r\n"));
    fixture.sees(&spoken.says(FromClient, "USER anna\r\n"));
    fixture.take_events();
    for number in 0..2000 {
        half_opens(&mut fixture, &mut one_of_many(number));
    }
    let events = events_with(&mut fixture, "ended: evicted-before-login");
    assert!(events.len() > 1800 && !events.iter().any(|line| line.starts_with("1 ")));
    fixture.sees(&spoken.says(FromServer, "230 in\r\n"));
    assert_eq!(fixture.take_events(), ["1 login anna"]);
}

#[test]
fn full_table_evicts_ended_then_half_open_then_before_login() {
    let mut fixture = Fixture::with_policy("limits: { sessions: 5 }");
    let mut talks: Vec<_> = (1..=9).map(one_of_many).collect();
    logs_in(&mut fixture, &mut talks[0]);
    logs_in(&mut fixture, &mut talks[1]);
    fixture.sees_all(talks[2].handshake());
    fixture.sees(&talks[2].says(FromServer, "220 ready\r\n"));
    fixture.sees(&talks[2].says(FromClient, "USER bert\r\n"));
    half_opens(&mut fixture, &mut talks[3]);
    logs_in(&mut fixture, &mut talks[4]);
    fixture.sees(&talks[4].resets(FromClient));
    fixture.take_events();
    for talk in &mut talks[5..9] {
        logs_in(&mut fixture, talk);
    }
    // The fifth had ended before; then the half-open one, the one before a login, and the oldest of the others.
    let order = ["4 ended: evicted", "3 ended: evicted", "1 ended: evicted"];
    assert_eq!(events_with(&mut fixture, "ended"), order);
    assert_eq!(fixture.tracker.sessions(), 5);
}

#[test]
fn unreadable_session_is_evicted_first() {
    let mut fixture = Fixture::with_policy("limits: { sessions: 2 }");
    let mut talks: Vec<_> = (1..=3).map(one_of_many).collect();
    half_opens(&mut fixture, &mut talks[0]);
    fixture.sees_all(talks[1].handshake());
    fixture.sees(&talks[1].says(FromServer, "HTTP/1.1 400 Bad Request\r\n"));
    fixture.take_events();
    half_opens(&mut fixture, &mut talks[2]);
    assert_eq!(events_with(&mut fixture, "ended"), ["2 ended: evicted"]);
}

#[test]
fn client_over_its_share_loses_its_own_sessions() {
    let mut fixture = Fixture::with_policy("limits: { sessions: 100, sessions_per_client: 3 }");
    let mut other = client("10.0.0.9:4000");
    logs_in(&mut fixture, &mut other);
    fixture.waits(Duration::from_secs(5));
    let mut talks: Vec<_> = (0..5).map(|number| client(&format!("10.0.0.1:{}", 4000 + number))).collect();
    for talk in &mut talks[..3] {
        logs_in(&mut fixture, talk);
        fixture.waits(Duration::from_secs(1));
    }
    // Its oldest has spoken again since.
    fixture.sees(&talks[0].says(FromClient, "NOOP\r\n"));
    fixture.take_events();
    logs_in(&mut fixture, &mut talks[3]);
    assert_eq!(events_with(&mut fixture, "ended"), ["3 ended: evicted-over-share"]);
    assert_eq!(fixture.tracker.sessions(), 4);
    // What has not logged in goes first, however young it is.
    half_opens(&mut fixture, &mut talks[4]);
    assert_eq!(events_with(&mut fixture, "ended"), ["4 ended: evicted-over-share"]);
    half_opens(&mut fixture, &mut client("10.0.0.1:4999"));
    assert_eq!(events_with(&mut fixture, "ended"), ["6 ended: evicted-over-share"]);
}

#[test]
fn ipv6_network_has_one_share_whatever_the_address() {
    let mut fixture = Fixture::with_policy("limits: { sessions_per_client: 3 }");
    for host in 1..=9 {
        let server = endpoint("[fd00::1]:21");
        half_opens(&mut fixture, &mut Conversation::new(endpoint(&format!("[2001:db8::{host}]:4000")), server, 1, 1));
    }
    assert_eq!(fixture.tracker.sessions(), 3);
}

#[test]
fn client_over_its_share_of_pinholes_is_refused_alone() {
    let mut fixture = Fixture::with_policy("limits: { pinholes_per_client: 2 }");
    let mut talks: Vec<_> = (0..3).map(|number| client(&format!("10.0.0.1:{}", 4000 + number))).collect();
    let mut other = client("10.0.0.9:4000");
    for talk in talks.iter_mut().chain([&mut other]) {
        logs_in(&mut fixture, talk);
    }
    opens(&mut fixture, &mut talks[0], 5001);
    opens(&mut fixture, &mut talks[1], 5002);
    fixture.take_events();
    fixture.sees(&talks[2].says(FromClient, "EPSV\r\n"));
    fixture.sees(&talks[2].says(FromServer, "229 Extended (|||5003|)\r\n"));
    assert_eq!(fixture.take_events(), ["3 229 10.0.0.2:5003 refused: too-many"]);
    opens(&mut fixture, &mut other, 5004);
    // What was used counts no more.
    assert!(fixture.connects("10.0.0.1:6000", "10.0.0.2:5001"));
    opens(&mut fixture, &mut talks[2], 5003);
}

/// What a session may keep when nothing is left: the beginnings of two lines.
const BEYOND: usize = 400;

/// A session of that client keeps this much that is out of order.
fn keeps_out_of_order(fixture: &mut Fixture, talk: &mut Conversation, bytes: usize) {
    let flow = talk.flow();
    // Every second byte, in pieces, is missing: the worst for whoever keeps them.
    for piece in 0..30 {
        let at = Seq::new(1001) + 10 + piece * bytes / 30 * 2;
        fixture.sees(&packet(&flow, at, Seq::new(9001), Flags::ACK, &vec![b'x'; bytes / 30]));
    }
}

#[test]
fn buffers_of_all_sessions_are_bounded_in_all() {
    let mut fixture = Fixture::with_policy("limits: { buffered_bytes: 1000000 }");
    for number in 0..1000 {
        let mut talk = one_of_many(number);
        logs_in(&mut fixture, &mut talk);
        keeps_out_of_order(&mut fixture, &mut talk, 12_000);
        let kept = fixture.tracker.buffered_bytes();
        assert!(kept <= 1_000_000 + number as usize * BEYOND, "{kept} after {number}");
    }
    assert!(fixture.tracker.buffered_bytes() > 900_000 && fixture.tracker.buffer_refusals() > 100);
    // With the sessions goes what they kept.
    fixture.waits(Duration::from_secs(3600));
    assert_eq!((fixture.tracker.sessions(), fixture.tracker.buffered_bytes()), (0, 0));
}

#[test]
fn buffers_of_one_client_leave_room_for_others() {
    let mut fixture = Fixture::with_policy("limits: { buffered_bytes: 1000000 }");
    for number in 0..100 {
        let mut talk = client(&format!("10.0.0.7:{}", 4000 + number));
        logs_in(&mut fixture, &mut talk);
        keeps_out_of_order(&mut fixture, &mut talk, 12_000);
    }
    let kept = fixture.tracker.buffered_bytes();
    assert!(kept <= 1_000_000 / 16 + 100 * BEYOND, "{kept}");
    reads_what_comes_in_the_wrong_order(&mut fixture);
}

#[test]
fn buffers_before_login_leave_room_for_users() {
    let mut fixture = Fixture::with_policy("limits: { buffered_bytes: 1000000 }");
    for number in 0..1000 {
        let mut talk = one_of_many(number);
        half_opens(&mut fixture, &mut talk);
        keeps_out_of_order(&mut fixture, &mut talk, 12_000);
    }
    let kept = fixture.tracker.buffered_bytes();
    assert!(kept <= 1_000_000 / 4 + 1000 * BEYOND, "{kept}");
    reads_what_comes_in_the_wrong_order(&mut fixture);
}

/// A user's PASV of which the end comes before the beginning.
#[track_caller]
fn reads_what_comes_in_the_wrong_order(fixture: &mut Fixture) {
    let mut talk = client(CLIENT);
    logs_in(fixture, &mut talk);
    fixture.take_events();
    let (begins, ends) = (talk.says(FromClient, "EP"), talk.says(FromClient, "SV\r\n"));
    fixture.sees_all([ends, begins]);
    fixture.sees(&talk.says(FromServer, "229 Extended (|||5001|)\r\n"));
    let events = fixture.take_events();
    assert!(events.iter().any(|line| line.ends_with("229 10.0.0.1 -> 10.0.0.2:5001")), "{events:?}");
}

#[test]
fn lines_without_an_end_are_bounded_too() {
    let mut fixture =
        Fixture::with_policy("limits: { buffered_bytes: 65536, line_bytes: 65536, sessions_per_client: 100 }");
    for number in 0..1000 {
        let mut talk = one_of_many(number);
        logs_in(&mut fixture, &mut talk);
        for _ in 0..20 {
            fixture.sees(&talk.says(FromClient, [b'x'; 1000]));
        }
    }
    let kept = fixture.tracker.buffered_bytes();
    assert!(kept <= 65_536 + 1000 * BEYOND, "{kept}");
}

/// A TLS handshake, and two commands with their answers; then the client goes on.
pub(super) fn goes_on_encrypted(fixture: &mut Fixture, talk: &mut Conversation) {
    let (hello, data) = (b"\x16\x03\x01\0\x02ab", b"\x17\x03\x03\0\x02ab");
    for who in [FromClient, FromServer] {
        fixture.sees(&talk.says(who, hello));
    }
    for who in [FromClient, FromServer, FromClient, FromServer, FromClient] {
        fixture.sees(&talk.says(who, data));
    }
}

/// A session that has become encrypted before any login, as FTPS clients do.
fn secures(fixture: &mut Fixture, talk: &mut Conversation) {
    fixture.sees_all(talk.handshake());
    let lines = [(FromServer, "220 ready\r\n"), (FromClient, "AUTH TLS\r\n"), (FromServer, "234 go\r\n")];
    for (who, line) in lines {
        fixture.sees(&talk.says(who, line));
    }
}

const RANGE: &str = "defaults: { tls: range 50000-50100 }\n";

#[test]
fn range_stays_open_as_long_as_its_silent_session_lives() {
    let mut fixture = Fixture::with_policy(RANGE);
    let mut talk = client(CLIENT);
    secures(&mut fixture, &mut talk);
    goes_on_encrypted(&mut fixture, &mut talk);
    assert_eq!(events_with(&mut fixture, "range"), ["1 range 10.0.0.1 -> 10.0.0.2 ports 50000-50100"]);
    // The kernel forgets the element after an hour, unless it is renewed; `idle` is an hour, too.
    for _ in 0..100 {
        assert!(fixture.tracker.next_deadline().is_some_and(|due| due <= fixture.now + Duration::from_secs(1800)));
        fixture.waits(Duration::from_secs(1800));
    }
    assert_eq!((fixture.firewall.renewals(), fixture.take_events().len()), (100, 0));
    fixture.sees(&talk.resets(FromClient));
    fixture.waits(Duration::from_secs(1800));
    assert_eq!((fixture.firewall.renewals(), fixture.tracker.next_deadline()), (100, None));
}

#[test]
fn range_needs_a_234_that_was_asked_for() {
    let mut fixture = Fixture::with_policy(RANGE);
    let mut talk = client(CLIENT);
    fixture.sees_all(talk.handshake());
    fixture.sees(&talk.says(FromServer, "220 ready\r\n"));
    // Behind so many commands nobody knows what is answered.
    fixture.sees(&talk.says(FromClient, "NOOP\r\n".repeat(20)));
    fixture.sees(&talk.says(FromServer, "234 go\r\n"));
    fixture.take_events();
    goes_on_encrypted(&mut fixture, &mut talk);
    assert_eq!((fixture.take_events(), fixture.connects("10.0.0.1:5000", "10.0.0.2:50001")), (vec![], false));
}

#[test]
fn range_counts_as_a_pinhole_of_its_client() {
    let mut fixture = Fixture::with_policy(&format!("{RANGE}limits: {{ pinholes_per_client: 2 }}"));
    let mut talks: Vec<_> = (0..3).map(|number| client(&format!("10.0.0.1:{}", 4000 + number))).collect();
    for talk in &mut talks {
        secures(&mut fixture, talk);
        goes_on_encrypted(&mut fixture, talk);
    }
    let events = events_with(&mut fixture, "range 10");
    assert_eq!(events.len(), 3);
    assert!(events[2].ends_with("refused: too-many"), "{events:?}");
    // With one that ends there is room again.
    fixture.sees(&talks[0].resets(FromClient));
    let mut another = client("10.0.0.1:4009");
    secures(&mut fixture, &mut another);
    goes_on_encrypted(&mut fixture, &mut another);
    assert_eq!(events_with(&mut fixture, "range 10"), ["4 range 10.0.0.1 -> 10.0.0.2 ports 50000-50100"]);
}

proptest::proptest! {
    /// Whatever sessions do, the lists hold each of them once and the limits hold.
    #[test]
    fn limits_hold_for_any_sequence_of_events(
        acts in proptest::collection::vec((0_u32..12, 0_u8..6, 0_u64..3), 0..300),
    ) {
        let mut fixture = Fixture::with_policy("limits: { sessions: 6, sessions_per_client: 3, idle: 20s }");
        let address = |number: u32| format!("10.0.{}.1:{}", number % 3, 4000 + number);
        let mut talks: Vec<_> = (0..12).map(|number| client(&address(number))).collect();
        for (number, act, seconds) in acts {
            let talk = &mut talks[number as usize];
            match act {
                0 => half_opens(&mut fixture, talk),
                1 => logs_in(&mut fixture, talk),
                2 => fixture.sees(&talk.says(FromClient, "NOOP\r\n")),
                3 => fixture.sees(&talk.says(FromServer, "220 hello\r\n")),
                4 => fixture.sees(&talk.resets(FromServer)),
                _ => fixture.sees(&talk.closes(FromClient)),
            }
            fixture.waits(Duration::from_secs(seconds));
            fixture.tracker.sessions.check();
            proptest::prop_assert!(fixture.tracker.sessions() <= 6);
        }
    }
}
