//! Servers that announce a wrong address, with `passive_address: repair` and without NAT.

use super::*;

const REPAIR: &str = "defaults: { passive_address: repair, modes: [PORT, PASV, EPSV, LPSV] }";

/// What reaches the client of a reply to this command, and the events.
fn replied(policy: &str, command: &str, reply: &str) -> (String, Vec<String>) {
    let mut fixture = Fixture::with_policy(policy);
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, format!("{command}\r\n")));
    let passed = fixture.lets_pass(&talk.says(FromServer, format!("{reply}\r\n")));
    let text = String::from_utf8(passed).expect("text");
    (text.trim_end_matches("\r\n").to_owned(), fixture.take_events())
}

#[track_caller]
fn is_repaired(reply: &str, passed: &str, from: &str) {
    let (text, events) = replied(REPAIR, "PASV", reply);
    assert_eq!(text, passed);
    assert_eq!(text.len(), reply.len(), "the kernel does not correct sequence numbers without NAT");
    assert_eq!(events, [format!("1 227 10.0.0.1 -> 10.0.0.2:1025 repaired from {from}:1025")]);
}

#[test]
fn wrong_address_is_replaced_by_the_one_the_client_called() {
    let begin = "227 Entering Passive Mode";
    is_repaired(&format!("{begin} (0,0,0,0,4,1)."), "227 Entering Passive Mode(10,0,0,2,4,1).", "0.0.0.0");
    is_repaired(
        &format!("{begin} (192,168,100,100,4,1)."),
        &format!("{begin}        (10,0,0,2,4,1)."),
        "192.168.100.100",
    );
    is_repaired(&format!("{begin}: (9,9,9,9,4,1)."), "227 Entering Passive Mode:(10,0,0,2,4,1).", "9.9.9.9");
    is_repaired(&format!("{begin} (127,0,0,1,4,1)."), &format!("{begin}  (10,0,0,2,4,1)."), "127.0.0.1");
}

#[test]
fn long_passive_reply_is_repaired() {
    let (text, events) = replied(REPAIR, "LPSV", "228 Entering Long Passive Mode (4,4,9,9,9,9,2,4,1)");
    assert_eq!(text, "228 Entering Long Passive Mode(4,4,10,0,0,2,2,4,1)");
    assert_eq!(events, ["1 228 10.0.0.1 -> 10.0.0.2:1025 repaired from 9.9.9.9:1025"]);
}

#[test]
fn right_address_and_replies_without_one_stay_as_they_are() {
    for (command, reply) in
        [("PASV", "227 Entering Passive Mode (10,0,0,2,4,1)."), ("EPSV", "229 Extended Passive Mode (|||1025|)")]
    {
        let (text, events) = replied(REPAIR, command, reply);
        assert_eq!((text.as_str(), events.len()), (reply, 1));
        assert!(events[0].ends_with("10.0.0.1 -> 10.0.0.2:1025"), "{events:?}");
    }
}

#[test]
fn nothing_is_repaired_unless_the_policy_says_so() {
    for (reply, event) in [
        ("227 Passive Mode (9,9,9,9,4,1)", "1 227 9.9.9.9:1025 refused: third-party"),
        ("227 Passive Mode (0,0,0,0,4,1)", "1 227 10.0.0.1 -> 10.0.0.2:1025"),
    ] {
        for policy in [
            "",
            "defaults: { passive_address: repair }\nrules: [{ name: x, clients: [10.0.0.1], passive_address: keep }]",
        ] {
            assert_eq!(replied(policy, "PASV", reply), (reply.to_owned(), vec![event.to_owned()]));
        }
    }
}

/// What the client announces is not repaired: only the server's address is known to be the one that was called.
#[test]
fn wrong_address_of_a_client_is_refused() {
    let mut fixture = Fixture::with_policy(REPAIR);
    let mut talk = logged_in(&mut fixture);
    let line = b"PORT 9,9,9,9,4,1\r\n".to_vec();
    assert_eq!(fixture.lets_pass(&talk.says(FromClient, &line)), line);
    assert_eq!(fixture.take_events(), ["1 PORT 9.9.9.9:1025 refused: third-party"]);
}

#[test]
fn only_the_called_address_opens() {
    let mut fixture = Fixture::with_policy("defaults: { passive_address: repair, third_party: allow }");
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "PASV\r\n"));
    fixture.sees(&talk.says(FromServer, "227 Passive Mode (9,9,9,9,4,1)\r\n"));
    assert!(!fixture.connects("10.0.0.1:5000", "9.9.9.9:1025"));
    assert!(!fixture.connects("10.0.0.3:5000", "10.0.0.2:1025"));
    assert!(!fixture.connects("10.0.0.1:5000", "10.0.0.2:1026"));
    assert!(fixture.connects("10.0.0.1:5000", "10.0.0.2:1025"));
    assert!(!fixture.connects("10.0.0.1:5001", "10.0.0.2:1025"));
}

#[test]
fn other_terms_apply_to_a_repaired_address() {
    for (policy, address, why) in [
        ("data_ports: 50000-50100", "9,9,9,9,4,1", "port-not-allowed"),
        ("data_ports: 1024-65535", "9,9,9,9,0,22", "low-port"),
        ("data_ports: 1024-65535", "9,9,9,9,12,234", "known-service"),
        ("modes: [EPSV]", "9,9,9,9,4,1", "mode-denied"),
        ("commands: { deny: [PASV] }", "9,9,9,9,4,1", "by-rule"),
        ("modes: [PASV]", "9,9,9,9,0,0", "port-zero"),
    ] {
        let policy = format!("defaults: {{ passive_address: repair, {policy} }}");
        let reply = format!("227 Entering Passive Mode ({address}).");
        let (text, events) = replied(&policy, "PASV", &reply);
        assert_eq!(text, reply);
        assert!(events.iter().any(|event| event.contains(&format!("refused: {why}"))), "{events:?}");
    }
    let reply = "227 Entering Passive Mode (9,9,9,9,4,1).";
    let (text, events) = replied(REPAIR, "NOOP", reply);
    assert_eq!((text.as_str(), &events[..]), (reply, &["1 227 9.9.9.9:1025 refused: not-asked-for".to_owned()][..]));
}

#[test]
fn retransmitted_reply_is_repaired_again() {
    let mut fixture = Fixture::with_policy(REPAIR);
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "PASV\r\n"));
    let reply = talk.says(FromServer, "227 Entering Passive Mode (0,0,0,0,4,1).\r\n");
    let first = fixture.lets_pass(&reply);
    assert_eq!(first, b"227 Entering Passive Mode(10,0,0,2,4,1).\r\n");
    assert_eq!(fixture.lets_pass(&reply), first);
    assert_eq!(fixture.take_events().len(), 1);
}

#[test]
fn reply_without_room_for_the_address_is_refused() {
    let reply = "227 =9,9,9,9,4,1";
    let (text, events) = replied(REPAIR, "PASV", reply);
    assert_eq!(text, reply);
    assert_eq!(events, ["1 227 9.9.9.9:1025 refused: cannot-rewrite"]);
}

/// The address began in a segment that has passed: it cannot be replaced any more, and nothing opens.
#[test]
fn reply_in_pieces_is_refused_and_passes() {
    let mut fixture = Fixture::with_policy(REPAIR);
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "PASV\r\n"));
    let mut passed = fixture.lets_pass(&talk.says(FromServer, "227 Entering Passive Mode (9,9,"));
    passed.extend(fixture.lets_pass(&talk.says(FromServer, "9,9,4,1).\r\n")));
    assert_eq!(passed, b"227 Entering Passive Mode (9,9,9,9,4,1).\r\n");
    assert_eq!(fixture.take_events(), ["1 227 9.9.9.9:1025 refused: cannot-rewrite"]);
    assert!(!fixture.connects("10.0.0.1:5000", "10.0.0.2:1025"));
}

#[test]
fn reload_repairs_sessions_that_have_begun() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.policy = policy::parse("policy.yaml", REPAIR).expect("a good policy").policy;
    fixture.follows_policy();
    fixture.sees(&talk.says(FromClient, "PASV\r\n"));
    fixture.sees(&talk.says(FromServer, "227 Entering Passive Mode (9,9,9,9,4,1).\r\n"));
    assert_eq!(fixture.take_events(), ["1 227 10.0.0.1 -> 10.0.0.2:1025 repaired from 9.9.9.9:1025"]);
}
