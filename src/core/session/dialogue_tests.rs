use proptest::prelude::*;

use super::*;
use crate::core::net::Seq;

fn line(text: &[u8]) -> Line<'_> {
    let end = Seq::new(0) + text.len() + 2;
    Line { text, start: Seq::new(0), end, begins: true, whole: true, is_unambiguous: true, may_continue: false }
}

/// Feeds lines to a dialogue; `>` begins a line of the client, `<` one of the server. Returns the announcements, with
/// their state, and the other events that matter.
fn feed_lines(dialogue: &mut Dialogue, lines: &str) -> Vec<String> {
    let mut events = Vec::new();
    for said in lines.lines().map(str::trim).filter(|said| !said.is_empty()) {
        let event = match said.split_at(1) {
            (">", text) => dialogue.client_line(&line(text.trim_start().as_bytes())),
            ("<", text) => dialogue.server_line(&line(text.trim_start().as_bytes())),
            _ => panic!("who says {said:?}?"),
        };
        events.extend(describe(&event));
    }
    events
}

fn describe(event: &Event<'_>) -> Option<String> {
    match event {
        Event::Nothing | Event::Command(..) => None,
        Event::Announced(Announcement { mode, state, .. }) => {
            let AnnouncementState { is_ftp, has_known_start, is_unambiguous, asked_for, logged_in, extended_only } =
                *state;
            let doubts = [
                (!is_ftp, " not FTP"),
                (!has_known_start, " unknown start"),
                (!is_unambiguous, " ambiguous"),
                (!asked_for, " not asked for"),
                (!logged_in, " not logged in"),
                (extended_only, " extended only"),
            ];
            let doubts: String = doubts.into_iter().filter_map(|(holds, doubt)| holds.then_some(doubt)).collect();
            Some(format!("{}{doubts}", mode.announced_by()))
        }
        Event::AnnouncementRefused(_) => Some("refused".to_owned()),
        Event::LoggedIn => Some("in".to_owned()),
        Event::Encrypted => Some("encrypted".to_owned()),
        Event::TlsOffered => Some("TLS offered".to_owned()),
        Event::NotFtp => Some("not FTP".to_owned()),
    }
}

fn events(lines: &str) -> Vec<String> {
    feed_lines(&mut Dialogue::from_start(), lines)
}

/// The same after a login.
fn events_after_login(lines: &str) -> Vec<String> {
    let mut dialogue = Dialogue::from_start();
    feed_lines(&mut dialogue, "< 220 hello\n> USER anna\n< 331 and?\n> PASS x\n< 230 in");
    feed_lines(&mut dialogue, lines)
}

const PASSIVE: &str = "< 227 Entering Passive Mode (10,0,0,1,4,5)";

#[test]
fn passive_reply_counts_once_per_command() {
    assert_eq!(events_after_login(&format!("> PASV\n{PASSIVE}\n{PASSIVE}")), ["227", "227 not asked for"]);
    assert_eq!(events_after_login(&format!("> EPSV\n{PASSIVE}")), ["227 not asked for"]);
    assert_eq!(events_after_login("> EPSV\n< 229 Extended (|||5000|)"), ["229"]);
    assert_eq!(events_after_login("> LPSV\n< 228 Long (4,4,10,0,0,1,2,4,5)"), ["228"]);
}

#[test]
fn pipelined_commands_are_answered_in_order() {
    let lines = format!(
        "> TYPE I\n> PASV\n> RETR a\n> PORT 10,0,0,2,4,5\n< 200 ok\n{PASSIVE}\n< 150 wait\n< 226 done\n< 500 no"
    );
    assert_eq!(events_after_login(&lines), ["PORT", "227", "refused"]);
}

#[test]
fn preliminary_reply_answers_no_command() {
    assert_eq!(
        events_after_login("> RETR a\n> PORT 10,0,0,2,4,5\n< 150 wait\n< 226 done\n< 500 no"),
        ["PORT", "refused"]
    );
}

#[test]
fn announcement_inside_a_multiline_reply_is_text() {
    let lines = format!("> STAT\n> PASV\n< 211-Status\n{PASSIVE}\n< 211 done\n{PASSIVE}");
    assert_eq!(events_after_login(&lines), ["227"]);
    let greeting = format!("< 220-Hello\n{PASSIVE}\n< 220 go on\n> USER a\n< 230 in\n> PASV\n{PASSIVE}");
    assert_eq!(events(&greeting), ["in", "227"]);
}

#[test]
fn announcement_before_a_login_is_marked() {
    assert_eq!(events("< 220 hello\n> PORT 10,0,0,2,4,5"), ["PORT not logged in"]);
    assert_eq!(events("< 220 hello\n> USER a\n< 331 and?\n> PASS b\n< 530 no\n> PORT 1"), ["PORT not logged in"]);
    assert_eq!(
        events("< 220 hello\n> USER a\n< 331 b\n> PASS c\n< 332 d\n> ACCT e\n< 230 in\n> PORT 1"),
        ["in", "PORT"]
    );
}

#[test]
fn new_user_logs_out_unless_refused() {
    assert_eq!(events_after_login("> USER b\n< 331 and?\n> PORT 1"), ["PORT not logged in"]);
    assert_eq!(events_after_login("> USER b\n< 530 Can't change to another user.\n> PORT 1"), ["PORT"]);
}

#[test]
fn reply_530_means_that_no_user_is_logged_in() {
    assert_eq!(events_after_login("> LIST\n< 530 Please login\n> PORT 1"), ["PORT not logged in"]);
}

#[test]
fn rein_starts_over() {
    assert_eq!(events_after_login("> EPSV ALL\n< 200 ok\n> REIN\n< 220 again\n> PORT 1"), ["PORT not logged in"]);
    assert_eq!(events_after_login("> REIN\n< 230 Ready for new user.\n> PORT 1"), ["PORT not logged in"]);
    assert_eq!(events_after_login("> REIN\n< 502 no\n> PORT 1"), ["PORT"]);
    assert_eq!(events_after_login("> REIN\n< 120 wait\n< 220 again\n> USER b\n< 230 in\n> PORT 1"), ["in", "PORT"]);
}

#[test]
fn reply_230_to_rein_is_no_login() {
    let lines = "> REIN\n> USER b\n< 230 Ready for new user.\n< 331 and?\n> PORT 1";
    assert_eq!(events_after_login(lines), ["PORT not logged in"]);
}

#[test]
fn too_many_pipelined_commands_end_the_login() {
    for command in ["REIN", "USER b"] {
        let lines = format!("{}> {command}\n{}< 220 again\n> PORT 1", "> NOOP\n".repeat(16), "< 200 ok\n".repeat(16));
        assert_eq!(events_after_login(&lines), ["PORT not logged in"], "{command}");
    }
    let auth = format!("{}> AUTH TLS\n{}< 234 go\n> PORT 1", "> NOOP\n".repeat(16), "< 200 ok\n".repeat(16));
    assert_eq!(events_after_login(&auth), ["encrypted"]);
}

#[test]
fn other_announcements_after_epsv_all_are_marked() {
    let lines = format!("> EPSV ALL\n< 200 ok\n> PORT 1\n< 500 no\n> PASV\n{PASSIVE}");
    assert_eq!(events_after_login(&lines), ["PORT extended only", "refused", "227 extended only"]);
    assert_eq!(events_after_login("> EPSV ALL\n> PORT 1"), ["PORT extended only"], "even before it is answered");
    assert_eq!(events_after_login("> EPSV ALL\n< 504 no\n> PORT 1"), ["PORT"]);
}

#[test]
fn nothing_is_text_after_auth_and_234() {
    for mechanism in ["TLS", "SSL", "TLS-P"] {
        assert_eq!(events(&format!("< 220 hello\n> AUTH {mechanism}\n< 234 go\n> PORT 1\n{PASSIVE}")), ["encrypted"]);
    }
    assert_eq!(events_after_login("> AUTH TLS\n< 502 no\n> PORT 1"), ["PORT"]);
    assert_eq!(events_after_login("< 234 go\n> PORT 1"), ["PORT"], "nobody asked for it");
}

#[test]
fn http_before_a_login_is_never_ftp() {
    for first in [
        "POST / HTTP/1.1",
        "USER / HTTP/1.1",
        "Host: a",
        "EHLO a",
        "SELECT 1",
        "USER a\n> Content-Length: 9",
        "USER a\n> x=y&z",
    ] {
        let lines = format!("< 220 hello\n> {first}\n< 500 what?\n> USER a\n< 230 in\n> PORT 10,0,0,2,4,5");
        assert_eq!(events(&lines), ["not FTP", "PORT not FTP not logged in"], "{first}");
    }
}

#[test]
fn header_line_after_a_login_ends_it_as_well() {
    assert_eq!(
        events_after_login("> XYZZY\n> Host: a\n> PORT 10,0,0,2,4,5"),
        ["not FTP", "PORT not FTP not logged in"]
    );
}

#[test]
fn overlong_line_before_a_login_is_not_ftp() {
    let lines = |length| format!("< 220 hello\n> USER {}\n< 230 in\n> PORT 1", "x".repeat(length));
    assert_eq!(events(&lines(LONGEST_BEFORE_LOGIN - 5)), ["in", "PORT"]);
    assert_eq!(events(&lines(LONGEST_BEFORE_LOGIN - 4)), ["not FTP", "PORT not FTP not logged in"]);
}

/// A token of GSSAPI may be many KiB long; of a line longer than the limit only the beginning comes here.
fn negotiates(answer: &str, long: &str) -> Vec<String> {
    let mut dialogue = Dialogue::from_start();
    feed_lines(&mut dialogue, &format!("< 220 hello\n> AUTH GSSAPI\n< {answer}"));
    let cut = Line { whole: false, ..line(long.as_bytes()) };
    let mut events: Vec<String> = describe(&dialogue.client_line(&cut)).into_iter().collect();
    events.extend(feed_lines(&mut dialogue, "< 535 no\n> USER a\n< 230 in\n> PORT 1"));
    events
}

#[test]
fn long_token_requested_by_the_server_is_ftp() {
    let token = format!("ADAT {}", "YII+/9==".repeat(120));
    assert_eq!(negotiates("334 go on", &token), ["in", "PORT"]);
    assert_eq!(negotiates("334 go on\n> ADAT YII=\n< 335 more", &token), ["in", "PORT"]);
}

#[test]
fn other_long_lines_before_a_login_are_not_ftp() {
    let token = "YII+/9==".repeat(120);
    let not_ftp = ["not FTP", "PORT not FTP not logged in"];
    for (answer, line) in [
        ("504 no such mechanism", format!("ADAT {token}")),
        ("334 go on\n> NOOP\n< 200 ok", format!("ADAT {token}")),
        ("334 go on\n> ADAT YII=\n< 535 no", format!("ADAT {token}")),
        ("334 go on", format!("USER {token}")),
        ("334 go on", format!("ADAT / HTTP/1.1 {token}")),
        ("334 go on", format!("ADAT x&{token}")),
    ] {
        assert_eq!(negotiates(answer, &line), not_ftp, "{answer} {line}");
    }
    let unasked = format!("< 220 hello\n> ADAT {token}\n< 503 AUTH first\n> USER a\n< 230 in\n> PORT 1");
    assert_eq!(events(&unasked), not_ftp);
}

#[test]
fn client_that_speaks_before_the_greeting_is_not_ftp() {
    let mut dialogue = Dialogue::from_start();
    feed_lines(&mut dialogue, "< 120 in a minute");
    assert_eq!(dialogue.client_bytes(b"USER anna\r\n"), Event::NotFtp);
    let lines = "> USER a\n< 220 hello\n< 230 in\n> PORT 1";
    assert_eq!(feed_lines(&mut dialogue, lines), ["PORT not FTP not logged in"]);
}

#[test]
fn server_without_a_220_greeting_is_not_ftp() {
    assert_eq!(events("< SSH-2.0-x\n> USER a\n> PORT 1"), ["not FTP", "PORT not FTP not logged in"]);
    assert_eq!(events("< 230 in\n> USER a\n> PORT 1"), ["not FTP", "PORT not FTP not logged in"]);
    assert_eq!(
        events("< 421 too many users\n< 220 hello\n> USER a\n< 230 in\n> PORT 1"),
        ["PORT not FTP not logged in"]
    );
    assert_eq!(events("< 120 in a minute\n< 220 now\n> USER a\n< 230 in\n> PORT 1"), ["in", "PORT"]);
}

#[test]
fn empty_lines_do_not_shift_replies() {
    assert_eq!(events_after_login("> \n> PORT 1\n< 200 ok\n> RETR a\n< 550 no such file"), ["PORT"]);
    assert_eq!(events_after_login("> \n> PORT 1\n< 500 what?\n< 200 ok"), ["PORT"]);
}

#[test]
fn picked_up_session_has_the_recorded_progress() {
    let lines = format!("> NOOP\n< 200 ok\n> PORT 10,0,0,2,4,5\n< 200 ok\n> PASV\n{PASSIVE}");
    for (progress, doubts) in [
        (SessionProgress::Unknown, " unknown start not logged in"),
        (SessionProgress::Ftp, " not logged in"),
        (SessionProgress::LoggedIn, ""),
    ] {
        let mut dialogue = Dialogue::picked_up(progress, Synced { client: true, server: true });
        assert_eq!(dialogue.progress(), progress);
        assert_eq!(
            feed_lines(&mut dialogue, &lines),
            [format!("PORT{doubts}"), format!("227{doubts}")],
            "{progress:?}"
        );
        let login = "> USER a\n< 331 and?\n> PASS b\n< 230 in\n> PORT 1";
        let port = if progress == SessionProgress::Unknown { "PORT unknown start" } else { "PORT" };
        assert_eq!(feed_lines(&mut dialogue, login), ["in", port], "{progress:?}");
    }
    let mut encrypted = Dialogue::picked_up(SessionProgress::Unknown, Synced::default());
    assert_eq!(describe(&encrypted.client_line(&line(b"\x17\x03\x03\x00"))), Some("not FTP".to_owned()));
}

#[test]
fn first_reply_synced_may_answer_what_an_earlier_run_read() {
    for (synced, first) in [(true, "227"), (false, "227 not asked for")] {
        let synced = Synced { client: true, server: synced };
        let mut dialogue = Dialogue::picked_up(SessionProgress::LoggedIn, synced);
        assert_eq!(feed_lines(&mut dialogue, &format!("{PASSIVE}\n{PASSIVE}")), [first, "227 not asked for"]);
        let mut dialogue = Dialogue::picked_up(SessionProgress::LoggedIn, synced);
        assert_eq!(feed_lines(&mut dialogue, &format!("< 226 done\n{PASSIVE}")), ["227 not asked for"]);
    }
}

#[test]
fn progress_follows_the_dialogue() {
    let mut dialogue = Dialogue::from_start();
    for (lines, progress) in [
        ("< 220 hello", SessionProgress::Unknown),
        ("> FEAT", SessionProgress::Ftp),
        ("< 211 no\n> USER a\n< 331 and?\n> PASS b\n< 230 in", SessionProgress::LoggedIn),
        ("> REIN\n< 220 again", SessionProgress::Ftp),
        ("> AUTH TLS\n< 234 go", SessionProgress::Unreadable),
    ] {
        feed_lines(&mut dialogue, lines);
        assert_eq!(dialogue.progress(), progress, "{lines}");
    }
}

#[test]
fn loss_cancels_pending_commands() {
    let mut dialogue = Dialogue::from_start();
    feed_lines(&mut dialogue, "< 220 hello\n> USER a\n< 230 in\n> PASV");
    dialogue.server_gap();
    assert_eq!(feed_lines(&mut dialogue, &format!("{PASSIVE}\n> PASV\n{PASSIVE}")), ["227 not asked for", "227"]);
}

#[test]
fn lost_bytes_are_no_login_and_no_command() {
    let mut dialogue = Dialogue::from_start();
    feed_lines(&mut dialogue, "< 220 hello\n> USER a");
    dialogue.server_gap();
    dialogue.client_gap();
    assert_eq!(feed_lines(&mut dialogue, "> PORT 10,0,0,2,4,5"), ["PORT unknown start not logged in"]);
    assert_eq!(feed_lines(&mut dialogue, PASSIVE), ["227 unknown start not asked for not logged in"]);
}

#[test]
fn loss_before_a_login_may_hide_that_it_is_not_ftp() {
    let mut dialogue = Dialogue::from_start();
    feed_lines(&mut dialogue, "< 220 hello");
    dialogue.client_gap();
    assert_eq!(feed_lines(&mut dialogue, "> USER a\n< 230 in\n> PORT 1"), ["in", "PORT unknown start"]);
    assert_eq!(dialogue.progress(), SessionProgress::Unknown);
    let mut dialogue = Dialogue::picked_up(SessionProgress::Ftp, Synced::default());
    assert_eq!(feed_lines(&mut dialogue, "> USER a\n< 230 in\n> PORT 1"), ["in", "PORT unknown start"]);
}

#[test]
fn ambiguous_line_is_marked() {
    let mut dialogue = Dialogue::from_start();
    feed_lines(&mut dialogue, "< 220 hello\n> USER a\n< 230 in\n> PASV");
    let announced = |event: &Event<'_>| describe(event).unwrap_or_default();
    let port = Line { is_unambiguous: false, ..line(b"PORT 10,0,0,2,4,5") };
    assert_eq!(announced(&dialogue.client_line(&port)), "PORT ambiguous");
    let reply = Line { is_unambiguous: false, ..line(b"227 (10,0,0,1,4,5)\n") };
    assert_eq!(announced(&dialogue.server_line(&reply)), "227 ambiguous");
}

#[test]
fn truncated_line_announces_nothing() {
    let mut dialogue = Dialogue::from_start();
    feed_lines(&mut dialogue, "< 220 hello\n> USER a\n< 230 in\n> PASV");
    let Event::Announced(announcement) =
        dialogue.server_line(&Line { whole: false, ..line(b"227 Entering (10,0,0,1,4,5") })
    else {
        panic!("a 227 announces, readable or not");
    };
    assert_eq!(announcement.named, None);
}

#[test]
fn user_name_is_printable_and_short() {
    let mut dialogue = Dialogue::from_start();
    feed_lines(&mut dialogue, "< 220 hello");
    dialogue.client_line(&line(b"USER a\x1b[31mb\xff"));
    feed_lines(&mut dialogue, "< 230 in");
    assert_eq!(dialogue.user(), Some("a\\u{1b}[31mb\u{fffd}"));
    dialogue.client_line(&line(format!("USER {}", "x".repeat(500)).as_bytes()));
    feed_lines(&mut dialogue, "< 230 in");
    assert_eq!(dialogue.user().map(str::len), Some(LONGEST_NAME));
}

#[test]
fn no_password_leaves_the_dialogue() {
    let mut dialogue = Dialogue::from_start();
    for said in ["PASS hunter2", "pass hunter2", "ACCT hunter2", "SITE PSWD hunter2", "hunter2", "ADAT hunter2"] {
        let event = dialogue.client_line(&line(said.as_bytes()));
        assert!(!matches!(event, Event::Command(_, Some(_))), "{said}: {event:?}");
    }
    assert!(!format!("{dialogue:?}").contains("hunter2"));
}

/// A line that might matter, or any other.
fn any_line() -> impl Strategy<Value = Vec<u8>> {
    let words = proptest::sample::select(vec![
        "USER a",
        "PASS b",
        "PORT 10,0,0,1,4,5",
        "EPRT |1|10.0.0.1|99|",
        "PASV",
        "EPSV",
        "EPSV ALL",
        "REIN",
        "AUTH TLS",
        "220 a",
        "230-a",
        "230 a",
        "227 (10,0,0,1,4,5)",
        "229 (|||5|)",
        "234 a",
        "331 a",
        "500 a",
        "",
        "GET / HTTP/1.1",
    ]);
    prop_oneof![words.prop_map(|text| text.as_bytes().to_vec()), proptest::collection::vec(any::<u8>(), 0..30),]
}

proptest! {
    #[test]
    fn arbitrary_dialogue_does_not_panic(
        lines in proptest::collection::vec((any::<bool>(), any_line()), 0..60),
        picked_up: bool,
    ) {
        let mut dialogue =
            if picked_up { Dialogue::picked_up(SessionProgress::LoggedIn, Synced::default()) } else { Dialogue::from_start() };
        for (client, text) in &lines {
            let _ = if *client { dialogue.client_line(&line(text)) } else { dialogue.server_line(&line(text)) };
        }
    }
}
