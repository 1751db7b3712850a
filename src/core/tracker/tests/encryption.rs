//! Sessions after AUTH TLS.

use super::*;

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
    assert_eq!(control.progress, Progress::Unreadable);
    let record = b"\x16\x03\x01\nDELE x\r\n";
    assert_eq!(fixture.lets_pass(&talk.says(FromClient, record)), record);
}
