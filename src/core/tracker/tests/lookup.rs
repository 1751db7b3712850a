//! The kernel does not answer when it is asked for a connection.

use super::*;

fn handles(fixture: &mut Fixture, packet: &[u8]) -> TrackerVerdict {
    let segment = Segment::parse(packet).expect("a segment");
    fixture.with_env(|tracker, env| tracker.handle(&segment, env))
}

fn handles_at_last(fixture: &mut Fixture, packet: &[u8]) -> TrackerVerdict {
    let segment = Segment::parse(packet).expect("a segment");
    fixture.with_env(|tracker, env| tracker.handle_on_gap(&segment, OnGap::Continue, env))
}

/// What the daemon does: the packet waits, its sender sends it again, and then the first copy is shown once more.
fn waits_and_is_sent_again(fixture: &mut Fixture, packet: &[u8]) {
    assert_eq!(handles(fixture, packet), TrackerVerdict::Session(Verdict::Wait));
    assert_eq!(handles_at_last(fixture, packet), TrackerVerdict::Session(Verdict::Accept));
    assert_eq!(handles(fixture, packet), TrackerVerdict::Session(Verdict::Accept));
}

#[test]
fn session_is_read_from_its_start_after_a_failed_lookup() {
    for policy in ["", "defaults: { commands: { deny: [FEAT] } }"] {
        let mut fixture = Fixture::with_policy(policy);
        let mut talk = conversation();
        let [syn, syn_ack, ack] = talk.handshake();
        fixture.sees(&syn);
        fixture.firewall.fail_next_lookups(1);
        waits_and_is_sent_again(&mut fixture, &syn_ack);
        fixture.firewall.treat_all_as_established();
        fixture.sees(&ack);
        fixture.sees(&talk.says(FromServer, "220 ready\r\n"));
        fixture.sees(&talk.says(FromClient, "USER anna\r\n"));
        fixture.sees(&talk.says(FromServer, "230 in\r\n"));
        fixture.sees(&talk.says(FromClient, "PASV\r\n"));
        fixture.sees(&talk.says(FromServer, PASSIVE));
        let events = ["1 began 10.0.0.1:4000 -> 10.0.0.2:21", "1 login anna", PASSIVE_OPENS];
        assert_eq!(fixture.take_events(), events, "{policy}");
    }
}

#[test]
fn failed_lookup_passes_unread() {
    let mut fixture = Fixture::new();
    let mut talk = conversation();
    let [_, syn_ack, _] = talk.handshake();
    fixture.firewall.fail_next_lookups(2);
    assert_eq!(handles(&mut fixture, &syn_ack), TrackerVerdict::Session(Verdict::Wait));
    assert_eq!(handles_at_last(&mut fixture, &syn_ack), TrackerVerdict::Untracked);
    fixture.firewall.treat_all_as_established();
    for (who, line) in [
        (FromServer, "220 ready\r\n"),
        (FromClient, "USER anna\r\n"),
        (FromServer, "230 in\r\n"),
        (FromClient, "PASV\r\n"),
        (FromServer, PASSIVE),
    ] {
        fixture.sees(&talk.says(who, line));
    }
    let events = ["1 picked up 10.0.0.1:4000 -> 10.0.0.2:21", "1 227 10.0.0.2:1025 refused: picked-up"];
    assert_eq!(fixture.take_events(), events);
}

#[test]
fn denied_command_does_not_pass_while_lookups_fail() {
    let mut fixture = Fixture::with_policy("defaults: { commands: { deny: [FEAT] } }");
    let mut talk = logged_in(&mut fixture);
    fixture.tracker.forget_all();
    let packet = talk.says(FromClient, "FEAT\r\n");
    fixture.firewall.fail_next_lookups(2);
    assert_eq!(handles(&mut fixture, &packet), TrackerVerdict::Session(Verdict::Wait));
    assert_eq!(handles_at_last(&mut fixture, &packet), TrackerVerdict::Session(Verdict::Drop));
    assert_eq!(fixture.lets_pass(&packet), b"XXXXX\n");
}

#[test]
fn failed_lookup_does_not_reuse_the_old_session() {
    let mut fixture = Fixture::new();
    logged_in(&mut fixture);
    let mut other = Conversation::new(endpoint(CLIENT), endpoint(SERVER), 70_000, 70_000);
    let [_, syn_ack, _] = other.handshake();
    fixture.firewall.fail_next_lookups(1);
    assert_eq!(handles(&mut fixture, &syn_ack), TrackerVerdict::Session(Verdict::Drop));
    assert_eq!(fixture.take_events(), Vec::<String>::new());
    assert_eq!(handles(&mut fixture, &syn_ack), TrackerVerdict::Session(Verdict::Accept));
    let events = ["1 ended: replaced", "2 began 10.0.0.1:4000 -> 10.0.0.2:21"];
    assert_eq!(fixture.take_events(), events);
}
