//! Clients send ABOR, or Telnet's sequences in front of it, as urgent data: a receiver may leave the urgent byte out of what
//! it reads.

use super::*;

const PORT: &str = "PORT 10,0,0,1,4,1\r\n";
const OPENS: &str = "1 PORT 10.0.0.2 -> 10.0.0.1:1025";
const CLOSES: &str = "1 closed 10.0.0.2 -> 10.0.0.1:1025: refused-by-server";
const AMBIGUOUS: &str = "1 PORT 10.0.0.1:1025 refused: ambiguous";

/// The same packet with an urgent pointer: the place behind the urgent byte, as most systems have it.
fn urgent(mut packet: Vec<u8>, pointer: u16) -> Vec<u8> {
    let tcp = &mut packet[20..];
    tcp[13] |= 0x20;
    tcp[18..20].copy_from_slice(&pointer.to_be_bytes());
    packet
}

/// Python's ftplib: the end of the line is urgent.
fn aborts(fixture: &mut Fixture, talk: &mut Conversation) {
    fixture.sees(&urgent(talk.says(FromClient, "ABOR\r\n"), 6));
}

/// A session with a transfer that the client has just aborted.
fn aborted(fixture: &mut Fixture) -> Conversation {
    let mut talk = logged_in(fixture);
    fixture.sees(&talk.says(FromClient, "RETR x\r\n"));
    fixture.sees(&talk.says(FromServer, "150 here it comes\r\n"));
    aborts(fixture, &mut talk);
    talk
}

#[test]
fn port_after_an_answered_urgent_abor_opens() {
    let answers: [&[&str]; 4] = [
        &["426 Failure writing network stream.\r\n", "225 No transfer to ABOR.\r\n"],
        &["426 Transfer aborted via ABOR.\r\n226 ABOR command successful.\r\n"],
        &["150 0.001 seconds\r\n", "226 Since you see this ABOR must've succeeded\r\n"],
        &["226 Transfer complete.\r\n", "226 Closing.\r\n"],
    ];
    for answers in answers {
        for pieces in [vec![PORT], vec!["P", "ORT 10,0,0,1,4,1\r", "\n"]] {
            let mut fixture = Fixture::new();
            let mut talk = aborted(&mut fixture);
            answers.iter().for_each(|answer| fixture.sees(&talk.says(FromServer, answer)));
            pieces.iter().for_each(|piece| fixture.sees(&talk.says(FromClient, piece)));
            assert_eq!(fixture.take_events(), [OPENS], "{answers:?} {pieces:?}");
            assert!(fixture.connects("10.0.0.2:20", "10.0.0.1:1025"));
        }
    }
}

/// The server may not have found the end of ABOR's line. ProFTPD does not: it reads `ABOR PORT 10,0,0,1,4,1`.
#[test]
fn port_after_an_unanswered_urgent_abor_is_ambiguous() {
    for answers in ["", "426 Transfer aborted\r\n", "226 Transfer complete\r\n"] {
        let mut fixture = Fixture::new();
        let mut talk = aborted(&mut fixture);
        if !answers.is_empty() {
            fixture.sees(&talk.says(FromServer, answers));
        }
        fixture.sees(&talk.says(FromClient, PORT));
        assert_eq!(fixture.take_events(), [AMBIGUOUS], "{answers:?}");
    }
}

#[test]
fn port_in_the_segment_of_an_urgent_abor_is_ambiguous() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&urgent(talk.says(FromClient, format!("ABOR\r\n{PORT}")), 6));
    fixture.sees(&talk.says(FromServer, "226 ABOR command successful\r\n"));
    assert_eq!(fixture.take_events(), [AMBIGUOUS]);
}

#[test]
fn port_begun_before_the_reply_to_urgent_abor_is_ambiguous() {
    let mut fixture = Fixture::new();
    let mut talk = aborted(&mut fixture);
    fixture.sees(&talk.says(FromClient, "PO"));
    fixture.sees(&talk.says(FromServer, "426 Aborted\r\n226 ABOR command successful\r\n"));
    fixture.sees(&talk.says(FromClient, "RT 10,0,0,1,4,1\r\n"));
    assert_eq!(fixture.take_events(), [AMBIGUOUS]);
}

#[test]
fn port_after_another_line_after_urgent_abor_opens() {
    let mut fixture = Fixture::new();
    let mut talk = aborted(&mut fixture);
    fixture.sees(&talk.says(FromClient, "TYPE I\r\n"));
    fixture.sees(&talk.says(FromClient, PORT));
    assert_eq!(fixture.take_events(), [OPENS]);
}

#[test]
fn one_refusal_of_two_lines_answers_both() {
    let mut fixture = Fixture::new();
    let mut talk = aborted(&mut fixture);
    fixture.sees(&talk.says(FromServer, "426 Transfer aborted. Data connection closed\r\n"));
    fixture.sees(&talk.says(FromClient, "TYPE I\r\n"));
    fixture.sees(&talk.says(FromServer, "500 'ABOR TYPE I' not understood\r\n"));
    fixture.sees(&talk.says(FromClient, PORT));
    fixture.sees(&talk.says(FromServer, "500 Illegal PORT command\r\n"));
    assert_eq!(fixture.take_events(), [OPENS, CLOSES]);
}

#[test]
fn refusal_of_an_answered_urgent_line_answers_only_that() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    aborts(&mut fixture, &mut talk);
    fixture.sees(&talk.says(FromServer, "502 ABOR not implemented\r\n"));
    fixture.sees(&talk.says(FromClient, PORT));
    assert_eq!(fixture.take_events(), [OPENS]);
    fixture.sees(&talk.says(FromClient, "NOOP\r\n"));
    fixture.sees(&talk.says(FromServer, "200 PORT command successful\r\n500 NOOP?\r\n"));
    assert_eq!(fixture.take_events(), Vec::<String>::new());
}

#[test]
fn reply_that_names_abor_brings_back_synced() {
    let mut fixture = Fixture::new();
    let mut talk = aborted(&mut fixture);
    fixture.sees(&talk.says(FromServer, "226 Since you see this ABOR must've succeeded\r\n"));
    fixture.sees(&talk.says(FromClient, "TYPE I\r\n"));
    fixture.sees(&talk.says(FromServer, "200 fine\r\n"));
    fixture.sees(&talk.says(FromClient, PORT));
    fixture.sees(&talk.says(FromServer, "500 Illegal PORT command\r\n"));
    assert_eq!(fixture.take_events(), [OPENS, CLOSES]);
}

/// BSD's ftp and tnftp, lftp, and others send Telnet's IP and Synch in front, and one or all of those bytes as urgent.
#[test]
fn port_after_urgent_telnet_commands_and_abor_opens() {
    for (bytes, pointer, rest) in [
        (b"\xff\xf4\xff".as_slice(), 3, b"\xf2ABOR\r\n".as_slice()),
        (b"\xff", 1, b"\xf4\xff\xf2ABOR\r\n"),
        (b"\xff\xf4\xff\xf2", 4, b"ABOR\r\n"),
        (b"\xff\xf4\xff\xf2ABOR\r\n", 4, b""),
    ] {
        let mut fixture = Fixture::new();
        let mut talk = logged_in(&mut fixture);
        fixture.sees(&urgent(talk.says(FromClient, bytes), pointer));
        if !rest.is_empty() {
            fixture.sees(&talk.says(FromClient, rest));
        }
        fixture.sees(&talk.says(FromClient, PORT));
        assert_eq!(fixture.take_events(), [OPENS], "{bytes:?}");
    }
}

/// Wherever the pointer points, as either of the two readings of it has it.
#[test]
fn port_with_an_urgent_byte_in_it_is_ambiguous() {
    for pointer in 1..=PORT.len() as u16 {
        let mut fixture = Fixture::new();
        let mut talk = logged_in(&mut fixture);
        fixture.sees(&urgent(talk.says(FromClient, PORT), pointer));
        fixture.sees(&talk.says(FromServer, "200 PORT command successful\r\n"));
        assert_eq!(fixture.take_events(), [AMBIGUOUS], "{pointer}");
    }
}

#[test]
fn urgent_pointer_far_after_an_answered_abor_is_ambiguous() {
    for pointer in [7, 8, 30, 1000] {
        let mut fixture = Fixture::new();
        let mut talk = logged_in(&mut fixture);
        fixture.sees(&urgent(talk.says(FromClient, "ABOR\r\n"), pointer));
        fixture.sees(&talk.says(FromServer, "226 ABOR command successful\r\n"));
        fixture.sees(&talk.says(FromClient, PORT));
        assert_eq!(fixture.take_events(), [AMBIGUOUS], "{pointer}");
    }
}

/// The end of a reply is not settled by what the client says.
#[test]
fn passive_reply_after_an_urgent_reply_is_ambiguous() {
    let mut fixture = Fixture::new();
    let mut talk = logged_in(&mut fixture);
    fixture.sees(&talk.says(FromClient, "NOOP\r\n"));
    fixture.sees(&urgent(talk.says(FromServer, "200 fine\r\n"), 10));
    fixture.sees(&talk.says(FromClient, "PASV\r\n"));
    fixture.sees(&talk.says(FromServer, PASSIVE));
    assert_eq!(fixture.take_events(), ["1 227 10.0.0.2:1025 refused: ambiguous"]);
}

/// The pointer may mean a byte that comes later, which the server then leaves out: `FE.AT` is FEAT to it.
#[test]
fn urgent_pointer_of_unknown_session_is_stopped_under_deny() {
    let mut fixture = Fixture::with_policy("defaults: { commands: { deny: [FEAT] } }");
    let mut talk = logged_in(&mut fixture);
    fixture.tracker.forget_all();
    let packet = urgent(talk.says(FromClient, ""), 3);
    let segment = Segment::parse(&packet).expect("a segment");
    match fixture.with_env(|tracker, env| tracker.handle(&segment, env)) {
        TrackerVerdict::Session(Verdict::Replace(Replacement { payload, .. })) => assert!(payload.is_empty()),
        other => panic!("{other:?}"),
    }
    assert_eq!(fixture.lets_pass(&talk.says(FromClient, "NOOP\r\n")), b"NOOP\r\n");
}
