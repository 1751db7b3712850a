//! Commands that the policy denies.

use super::*;
use crate::core::net::Origin;

#[test]
fn denied_command_is_reported() {
    let mut fixture = Fixture::with_policy("defaults: { tls: deny, commands: { deny: [DELE] } }");
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "dele a\r\nAUTH TLS\r\nSTAT\r\n"));
    assert_eq!(fixture.take_events(), ["1 denied DELE", "1 denied AUTH"]);
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
        let mut fixture = Fixture::with_policy("defaults: { commands: { deny: [FEAT] } }");
        let mut talk = logged_in(&mut fixture);
        let mut arrives = Vec::new();
        for piece in hidden {
            let bytes: Vec<u8> = piece.chars().map(|letter| letter as u8).collect();
            arrives.extend(fixture.lets_pass(&talk.says(FromClient, &bytes)));
        }
        // Without Telnet and what no letter is, nothing is left of it.
        let letters: String =
            arrives.iter().filter(|byte| byte.is_ascii_alphabetic()).map(|byte| *byte as char).collect();
        assert!(!letters.contains("FEAT"), "{hidden:?} arrives as {:?}", String::from_utf8_lossy(&arrives));
    }
}

/// The names of RFC 775, and those of RFC 959 for the same.
#[test]
fn denied_command_is_stopped_under_its_other_name() {
    for (denied, sent, arrives) in [
        ("MKD", "XMKD a\r\n", "XMKX a\r\n"),
        ("RMD", "xrmd a\r\n", "xrmX a\r\n"),
        ("XCWD", "CWD a\r\n", "CWX a\r\n"),
        ("CDUP", "XC", "XC"),
        ("PWD", " XPWD\r\n", "XXXXXX\n"),
        ("MKD", "CWD a\r\n", "CWD a\r\n"),
    ] {
        let mut fixture = Fixture::with_policy(&format!("defaults: {{ commands: {{ deny: [{denied}] }} }}"));
        let mut talk = logged_in(&mut fixture);
        let passed = fixture.lets_pass(&talk.says(FromClient, sent));
        assert_eq!(String::from_utf8_lossy(&passed), arrives, "{denied} is denied");
    }
}

/// A client with two ways to the firewall can have the interface of its own packets taken for the server's.
#[test]
fn denied_command_from_what_seems_the_servers_interface_does_not_pass() {
    for (policy, passes) in [("defaults: { commands: { deny: [DELE] } }", false), ("", true)] {
        let mut fixture = Fixture::with_policy(policy);
        let mut talk = conversation();
        let [syn, syn_ack, ack] = talk.handshake();
        let command = talk.says(FromClient, "DELE x\r\n");
        let mut comes_from = |packet: &[u8], interface| {
            let origin = Some(Origin { interface, port: 0, is_doubtful: false });
            let segment = Segment { origin, ..Segment::parse(packet).expect("a segment") };
            fixture.with_env(|tracker, env| tracker.handle(&segment, env))
        };
        comes_from(&syn, 1);
        comes_from(&syn_ack, 1);
        comes_from(&ack, 2);
        let verdict = comes_from(&command, 1);
        let expected = if passes { TrackerVerdict::Untracked } else { TrackerVerdict::Session(Verdict::Drop) };
        assert_eq!(verdict, expected, "{policy:?}");
    }
}

/// Loads another policy.
fn deny(fixture: &mut Fixture, text: &str) {
    fixture.policy = policy::parse("policy.yaml", text).expect("a good policy").policy;
    fixture.follows_policy();
}

#[test]
fn denied_command_that_began_before_the_reload_does_not_end() {
    for (before, after) in [("DELE", " x\r\n"), ("DELE ", "x\r\n"), ("DELE x", "\r\n"), ("dele x\r", "\n")] {
        let mut fixture = Fixture::new();
        let mut talk = logged_in(&mut fixture);
        assert_eq!(fixture.lets_pass(&talk.says(FromClient, before)), before.as_bytes());
        deny(&mut fixture, "defaults: { commands: { deny: [DELE] } }");
        assert_eq!(fixture.lets_pass(&talk.says(FromClient, after)), b"", "{before:?}");
    }
}

#[test]
fn gap_before_a_newly_denied_command_is_not_filled() {
    for (ahead, arrives) in [("DELE x\r\n", false), ("DELE", false), ("SYST\r\n", true), ("DEL", true)] {
        let mut fixture = Fixture::new();
        let mut talk = logged_in(&mut fixture);
        let first = talk.says(FromClient, "NOOP\r\n");
        assert_eq!(fixture.lets_pass(&talk.says(FromClient, ahead)), ahead.as_bytes());
        deny(&mut fixture, "defaults: { commands: { deny: [DELE] } }");
        let expected: &[u8] = if arrives { b"NOOP\r\n" } else { b"" };
        assert_eq!(fixture.lets_pass(&first), expected, "{ahead:?}");
    }
}

#[test]
fn allowed_command_begun_before_the_reload_passes() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.lets_pass(&talk.says(FromClient, "RETR DEL"));
    deny(&mut fixture, "defaults: { commands: { deny: [DELE] } }");
    assert_eq!(fixture.lets_pass(&talk.says(FromClient, "E\r\nSYST\r\n")), b"E\r\nSYST\r\n");
    assert_eq!(fixture.lets_pass(&talk.says(FromClient, "DELE x\r\n")), b"DELX x\r\n");
}

#[test]
fn decoy_before_a_denied_command_arrives_in_its_place() {
    let mut fixture = Fixture::with_policy("defaults: { commands: { deny: [FEAT] } }");
    let mut talk = logged_in(&mut fixture);
    let decoy = talk.clone().says(FromClient, "NOOP\r\n");
    fixture.sees(&decoy);
    assert_eq!(fixture.lets_pass(&talk.says(FromClient, "FEAT\r\n")), b"NOOP\r\n");
}

#[test]
fn more_denied_commands_than_are_remembered_do_not_pass() {
    let mut fixture = Fixture::with_policy("defaults: { commands: { deny: [FEAT] } }");
    let mut talk = logged_in(&mut fixture);
    for _ in 0..200 {
        let arrives = fixture.lets_pass(&talk.says(FromClient, "FEAT\r\n"));
        assert_ne!(arrives, b"FEAT\r\n");
    }
}

#[test]
fn denied_command_after_a_gap_does_not_pass() {
    let mut fixture = Fixture::with_policy("defaults: { commands: { deny: [FEAT] } }");
    let mut talk = logged_in(&mut fixture);
    let first = talk.says(FromClient, "FE");
    let second = talk.says(FromClient, "AT\r\n");
    let at_last = |fixture: &mut Fixture, packet: &[u8]| {
        let segment = Segment::parse(packet).expect("a segment");
        fixture.with_env(|tracker, env| tracker.handle_on_gap(&segment, OnGap::Continue, env))
    };
    assert_eq!(at_last(&mut fixture, &second), TrackerVerdict::Session(Verdict::Drop));
    assert_eq!(fixture.lets_pass(&first), b"FE");
    assert_eq!(fixture.lets_pass(&second), b"AX\r\n");
}

#[test]
fn start_of_a_denied_command_may_be_retransmitted() {
    for (piece, passes, rest) in [("FEAT", "FEAX", "\r\n"), (" FE", " FE", "AT\r\n"), ("\t FEAT", "XXXXXX", "\r\n")] {
        let mut fixture = Fixture::with_policy("defaults: { commands: { deny: [FEAT] } }");
        let mut talk = logged_in(&mut fixture);
        let first = talk.clone().says(FromClient, piece);
        let whole = talk.clone().says(FromClient, format!("{piece}{rest}"));
        for _ in 0..2 {
            assert_eq!(String::from_utf8_lossy(&fixture.lets_pass(&first)), passes);
        }
        let arrives = fixture.lets_pass(&whole);
        assert_eq!(arrives.len(), piece.len() + rest.len(), "{piece:?}");
        assert!(!String::from_utf8_lossy(&arrives).contains("FEAT"), "{piece:?}");
        talk.says(FromClient, format!("{piece}{rest}"));
        assert_eq!(fixture.lets_pass(&talk.says(FromClient, "NOOP\r\n")), b"NOOP\r\n");
    }
}

#[test]
fn denied_commands_in_one_segment_do_not_pass_the_second_time() {
    let mut fixture = Fixture::with_policy("defaults: { commands: { deny: [FEAT] } }");
    let mut talk = logged_in(&mut fixture);
    let packet = talk.says(FromClient, "FEAT\r\n".repeat(100));
    for time in 1..=3 {
        let arrives = fixture.lets_pass(&packet);
        assert!(!String::from_utf8_lossy(&arrives).contains("FEAT"), "time {time}");
    }
}

#[test]
fn rest_of_a_denied_command_does_not_pass_after_a_restart() {
    for (beginning, rest) in [("FEA", "T\r\n"), ("F", "eat x\r\n"), ("FE", "\u{0}AT\r\n")] {
        let mut fixture = Fixture::with_policy("defaults: { commands: { deny: [FEAT] } }");
        let mut talk = logged_in(&mut fixture);
        let mut arrives = fixture.lets_pass(&talk.says(FromClient, beginning));
        fixture.tracker.forget_all();
        arrives.extend(fixture.lets_pass(&talk.says(FromClient, rest)));
        arrives.retain(u8::is_ascii_alphabetic);
        assert!(!arrives.to_ascii_uppercase().starts_with(b"FEAT"), "{beginning:?} {rest:?}");
    }
    let mut fixture = Fixture::with_policy("defaults: { commands: { deny: [FEAT] } }");
    let mut talk = logged_in(&mut fixture);
    fixture.lets_pass(&talk.says(FromClient, "RETR fi"));
    fixture.tracker.forget_all();
    assert_eq!(fixture.lets_pass(&talk.says(FromClient, "le\r\n")), b"le\r\n");
}

/// BusyBox reads the last four letters of a word, pyftpdlib those of STAT; others compare no more than the first four.
/// Python, Java and Go make S of \u{17f} in upper case.
#[test]
fn denied_command_embedded_in_a_word_does_not_pass() {
    for line in ["NOSTOR x\r\n", "a-STAT\r\n", "STORE x\r\n", "\u{17f}TOR x\r\n", "LI\u{17f}T\r\n"] {
        let mut fixture = Fixture::with_policy("defaults: { commands: { deny: [STOR, STAT, LIST] } }");
        let mut talk = logged_in(&mut fixture);
        let arrives = fixture.lets_pass(&talk.says(FromClient, line));
        assert_eq!(arrives, format!("{}\n", "X".repeat(line.len() - 1)).as_bytes(), "{line:?}");
    }
    let mut fixture = Fixture::with_policy("defaults: { commands: { deny: [STOR, STAT] } }");
    let mut talk = logged_in(&mut fixture);
    for line in ["RETR \u{17f}TOR\r\n", "HISTORY STOR\r\n", "MKD \u{e9}STAT\r\n"] {
        assert_eq!(fixture.lets_pass(&talk.says(FromClient, line)), line.as_bytes());
    }
}

#[test]
fn replacement_letter_begins_no_denied_command() {
    let mut fixture = Fixture::with_policy("defaults: { commands: { deny: [RMD, RMXA, RMZ] } }");
    let mut talk = logged_in(&mut fixture);
    let mut arrives = fixture.lets_pass(&talk.says(FromClient, "RMD"));
    arrives.extend(fixture.lets_pass(&talk.says(FromClient, "A x\r\n")));
    assert_eq!(arrives, b"RMQA x\r\n");
}

/// The sender may have omitted the bytes before the first segment that is read.
#[test]
fn denied_command_before_the_pickup_point_does_not_pass() {
    for progress in [SessionProgress::Ftp, SessionProgress::LoggedIn] {
        let mut fixture = Fixture::with_policy("defaults: { commands: { deny: [FEAT] } }");
        let mut talk = logged_in(&mut fixture);
        fixture.firewall.record(&Connection::direct(talk.flow()), progress);
        fixture.firewall.set_synced(Synced { client: true, server: true });
        fixture.tracker.forget_all();
        let denied = talk.says(FromClient, "FEAT\r\n");
        let behind = talk.says(FromClient, "NOOP\r\n");
        fixture.sees(&behind);
        let arrives = fixture.lets_pass(&denied);
        assert!(!String::from_utf8_lossy(&arrives).contains("FEAT"), "{progress:?}");
    }
}

#[test]
fn denied_command_after_the_longest_line_does_not_pass() {
    for end in ["\r", "\0"] {
        let mut fixture = Fixture::with_policy("defaults: { commands: { deny: [FEAT] } }");
        let mut talk = logged_in(&mut fixture);
        let line = format!("NOOP {}{end}FEAT\r\n", "x".repeat(2000));
        let mut arrives = fixture.lets_pass(&talk.says(FromClient, &line[..1500]));
        arrives.extend(fixture.lets_pass(&talk.says(FromClient, &line[1500..])));
        assert!(!String::from_utf8_lossy(&arrives).contains("FEAT"), "{end:?}");
    }
}

#[test]
fn reloaded_deny_applies_to_existing_sessions() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.policy = policy::parse("policy.yaml", "defaults: { commands: { deny: [DELE] } }").expect("good").policy;
    fixture.follows_policy();
    assert_eq!(fixture.lets_pass(&talk.says(FromClient, "DELE x\r\n")), b"DELX x\r\n");
    assert_eq!(fixture.take_events(), ["1 denied DELE"]);
}

#[test]
fn non_ftp_is_read_again_after_a_reload_that_denies() {
    let policy = "defaults: { commands: { deny: [DELE] } }";
    for passed_unread in [0, 100, 10_000_000] {
        let mut fixture = Fixture::new();
        let mut talk = conversation();
        fixture.sees_all(talk.handshake());
        fixture.sees(&talk.says(FromServer, "220 ready\r\n"));
        fixture.sees(&talk.says(FromClient, "HELLO\r\n"));
        let connection = Connection::direct(talk.flow());
        let progress = |fixture: &mut Fixture| {
            fixture
                .firewall
                .control_connection(&connection.original)
                .expect("it is in memory")
                .expect("it is one")
                .progress
        };
        assert_eq!(progress(&mut fixture), SessionProgress::Unreadable);
        talk.loses(FromClient, passed_unread);
        talk.loses(FromServer, passed_unread);
        fixture.policy = policy::parse("policy.yaml", policy).expect("good").policy;
        fixture.follows_policy();
        assert_eq!(progress(&mut fixture), SessionProgress::Unknown, "the kernel has to bring its packets again");
        for _ in 0..2 {
            let arrives = fixture.lets_pass(&talk.says(FromClient, "DELE x\r\n"));
            assert!(!arrives.starts_with(b"DELE"), "{arrives:?}");
        }
        assert_eq!(fixture.lets_pass(&talk.says(FromClient, "NOOP\r\n")), b"NOOP\r\n");
        fixture.sees(&talk.says(FromClient, "PASV\r\n"));
        fixture.sees(&talk.says(FromServer, PASSIVE));
        fixture.sees(&talk.says(FromServer, PASSIVE));
        assert_eq!(fixture.firewall.pinholes(), 0);
        // And a policy that denies nothing any more leaves it alone again.
        fixture.policy = Policy::embedded();
        fixture.follows_policy();
        fixture.sees(&talk.says(FromClient, "Host: x\r\n"));
        assert_eq!(progress(&mut fixture), SessionProgress::Unreadable);
    }
}
