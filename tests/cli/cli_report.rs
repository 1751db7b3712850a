//! The report of `pinhole replay`: text, JSON, and where it is written.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::program::*;
use crate::support::text;
use pinhole::core::net::Direction::{FromClient, FromServer};
use pinhole::core::script::{Conversation, endpoint};
use pinhole::core::time::Timestamp;
use pinhole::replay::pcap::link::LinkType;
use pinhole::replay::pcap::write::{FileWriter, MAX_WRITTEN};
use serde_json::Value;

// The report.

#[test]
fn text_report_shows_the_events_of_a_session() {
    let folder = Folder::new("story");
    let mut talk = talk();
    let capture = Capture::starting_at(1000).add_all(login(&mut talk)).add(talk.says(FromClient, "RETR \x1b[2Ja\r\n"));
    let capture = capture.add_all(passive(&mut talk)).add(opens("10.0.0.1:5000", "10.0.0.2:1025"));
    let capture =
        capture.add(talk.says(FromClient, "PORT 10,0,0,99,4,1\r\n")).add(opens("10.0.0.2:20", "10.0.0.1:1026"));
    let path = folder.file("story.pcap", capture.add(talk.closes(FromServer)).add(talk.ack(FromClient)).bytes());
    let ran = run([OsStr::new("replay"), path.as_os_str()]).success();
    for told in [
        "0.000 #1    session began: 10.0.0.1:4000 -> 10.0.0.2:21\n",
        "#1    USER anna\n",
        "#1    PASS ...\n",
        "#1    logged in as anna\n",
        "#1    opened 10.0.0.1 -> 10.0.0.2:1025 for 60s, announced by 227\n",
        "#1    used 10.0.0.1:5000 -> 10.0.0.2:1025, announced by 227\n",
        "#1    refused PORT 10.0.0.99:1025: third-party, ",
        "#1    blocked 10.0.0.2:20 -> 10.0.0.1:1026: not announced\n",
        "#1    session ended: finished\n",
        "\nBlocked:\n  10.0.0.2:20 -> 10.0.0.1:1026 (session #1)\n",
    ] {
        assert!(ran.out.contains(told), "{told:?} is not in\n{}", ran.out);
    }
    assert!(!ran.out.contains("hunter2") && !ran.out.contains('\x1b'), "{}", ran.out);
}

#[test]
fn report_says_that_a_servers_address_is_wrong() {
    let folder = Folder::new("repair");
    let mut talk = talk();
    let capture = Capture::starting_at(1000).add_all(login(&mut talk)).add(talk.says(FromClient, "PASV\r\n"));
    let reply = talk.says(FromServer, "227 Entering Passive Mode (172,17,0,2,4,1).\r\n");
    let capture = capture.add(reply).add(opens("10.0.0.1:5000", "10.0.0.2:1025"));
    let path = folder.file("repair.pcap", capture.bytes());
    let policy = folder.file("policy.yaml", "defaults: { passive_address: repair }");
    let arguments = ["replay".as_ref(), "--policy".as_ref(), policy.as_os_str(), path.as_os_str()];
    let ran = run(arguments).success();
    for told in [
        "opened 10.0.0.1 -> 10.0.0.2:1025 for 60s, announced by 227, rewritten from 172.17.0.2:1025: the server announces \
         an address to which its client did not connect (correct its `pasv_address` or the like)\n",
        "used 10.0.0.1:5000 -> 10.0.0.2:1025, announced by 227\n",
    ] {
        assert!(ran.out.contains(told), "{told:?} is not in\n{}", ran.out);
    }
    let events = run([&["replay".as_ref(), "--json".as_ref()], &arguments[1..]].concat()).success().events();
    let opened = events.iter().find(|event| event["event"] == "opened").expect("it opens");
    assert_eq!((&opened["repaired"], &opened["rewritten_from"]), (&true.into(), &"172.17.0.2:1025".into()));
}

/// The pattern of each field of an event; `?` marks a field that may be missing.
const FIELDS: [(&str, &[(&str, Kind)]); 8] = [
    ("session-began", &[("client", Kind::Endpoint), ("server", Kind::Endpoint), ("picked_up", Kind::Flag)]),
    ("logged-in", &[("user", Kind::Text)]),
    (
        "opened",
        &[("announced_by", Kind::Text), ("from", Kind::Address), ("to", Kind::Endpoint), ("expires_in", Kind::Seconds)],
    ),
    ("refused", &[("announced_by", Kind::Text), ("to", Kind::Endpoint), ("reason", Kind::Text)]),
    ("used", &[("from", Kind::Endpoint), ("to", Kind::Endpoint), ("announced_by", Kind::Text)]),
    ("expired", &[("from", Kind::Address), ("to", Kind::Endpoint)]),
    ("encrypted", &[]),
    ("session-ended", &[]),
];

const COUNTS: [&str; 5] = ["packets", "sessions", "opened", "used", "anomalies"];

#[derive(Clone, Copy, Debug)]
enum Kind {
    Endpoint,
    Address,
    Text,
    Flag,
    Seconds,
}

impl Kind {
    fn fits(self, value: &Value) -> bool {
        let text = value.as_str().unwrap_or_default();
        match self {
            Self::Endpoint => text.parse::<std::net::SocketAddr>().is_ok(),
            Self::Address => text.parse::<std::net::IpAddr>().is_ok(),
            Self::Text => !text.is_empty(),
            Self::Flag => value.is_boolean(),
            Self::Seconds => value.is_number(),
        }
    }
}

/// A capture with every event of the JSON report.
fn eventful() -> Vec<u8> {
    let mut talk = talk();
    let capture = Capture::starting_at(1000).add_all(login(&mut talk));
    let capture = capture.add_all(passive(&mut talk)).add(opens("10.0.0.1:5000", "10.0.0.2:1025"));
    let capture = capture.add(talk.says(FromClient, "PORT 10,0,0,1,4,2\r\nPORT 10,0,0,99,4,2\r\n"));
    let mut later = Conversation::new(endpoint("[fd00::1]:4000"), endpoint("[fd00::2]:21"), 5, 5);
    let mut capture = Capture { now: capture.now + Duration::from_secs(61), ..capture };
    capture = capture.add_all(later.handshake()).add(later.says(FromServer, "220 ready\r\n"));
    capture = capture.add(later.says(FromClient, "AUTH TLS\r\n")).add(later.says(FromServer, "234 go\r\n"));
    capture.add(later.closes(FromClient)).add(later.ack(FromServer)).bytes()
}

#[test]
fn every_json_line_has_the_documented_fields() {
    let folder = Folder::new("json");
    let path = folder.file("eventful.pcap", eventful());
    let ran = run([OsStr::new("replay"), OsStr::new("--json"), path.as_os_str()]).success();
    let told = ran.events();
    let (summary, others) = told.split_last().expect("there is a summary");
    assert_eq!(text(summary, "event"), "summary");
    for count in COUNTS {
        assert!(summary[count].is_u64(), "{count} of {summary}");
    }
    assert_eq!(summary["refused"], serde_json::json!({"third-party": 1}));
    assert_eq!((summary["sessions"].as_u64(), summary["used"].as_u64()), (Some(2), Some(1)));
    for event in others {
        assert!(event["time"].is_number() && event["session"].is_u64(), "{event}");
    }
    for (name, fields) in FIELDS {
        let mut of_that_name = others.iter().filter(|event| text(event, "event") == name).peekable();
        assert!(of_that_name.peek().is_some(), "there is no {name} in {}", ran.out);
        for event in of_that_name {
            for &(field, kind) in fields {
                assert!(kind.fits(&event[field]), "{field} of {event} is no {kind:?}");
            }
        }
    }
}

#[test]
fn timestamps_keep_nanoseconds() {
    let folder = Folder::new("nanoseconds");
    let mut capture = Capture::starting_at(0);
    capture.now = Timestamp::from_nanos(1_700_000_000_123_456_789);
    let path = folder.file("nanos.pcap", capture.add_all(talk().handshake().into_iter().skip(1)).bytes());
    let ran = run([OsStr::new("replay"), OsStr::new("--json"), path.as_os_str()]).success();
    assert!(ran.out.starts_with(r#"{"event":"session-began","time":1700000000.123456789,"session":1,"#), "{}", ran.out);
}

#[test]
fn last_json_line_is_the_summary_even_for_bad_input() {
    let folder = Folder::new("json-bad");
    let whole = session_at(1000);
    for content in [&b"no capture"[..], b"", &whole[..whole.len() - 1], &whole[..FILE_HEADER]] {
        let path = folder.file("bad.pcap", content);
        let ran = run([OsStr::new("replay"), OsStr::new("--json"), path.as_os_str()]);
        assert_eq!(ran.status, Some(i32::from(content.len() != FILE_HEADER)), "{}", ran.err);
        assert_eq!(ran.events().last().map(|last| text(last, "event")), Some("summary"));
    }
}

// Where the report goes.

/// A capture whose report is far longer than any pipe holds.
fn talkative() -> Vec<u8> {
    let mut talk = talk();
    let packets = login(&mut talk);
    let noise = (0..40_000).map(|number| talk.says(FromClient, format!("STAT {number}\r\nPORT 1,2,3,4,5,6\r\n")));
    Capture::starting_at(1000).add_all(packets).add_all(noise).bytes()
}

#[test]
fn closed_output_pipe_is_no_error() {
    let folder = Folder::new("pipe");
    let path = folder.file("talkative.pcap", talkative());
    for option in [None, Some("--json")] {
        let mut command = pinhole(["replay"].into_iter().chain(option));
        let mut child = command
            .arg(&path)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        let mut reader = child.stdout.take().expect("it is a pipe");
        reader.read_exact(&mut [0; 100]).expect("the report begins");
        drop(reader);
        let ran: Ran = child.wait_with_output().expect("the program ends").into();
        assert_eq!((ran.status, ran.err.as_str()), (Some(0), ""), "{option:?}");
    }
}

#[test]
fn closed_output_pipe_ends_an_endless_replay() {
    let mut command = pinhole(["replay", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Running(command.spawn().expect("the program can be started"));
    let mut stdin = child.0.stdin.take().expect("it is a pipe");
    drop(child.0.stdout.take());
    let file = talkative();
    let (header, records) = file.split_at(FILE_HEADER);
    stdin.write_all(header).expect("the program reads");
    let until = Instant::now() + Duration::from_secs(60);
    // An error here is the program's end.
    while stdin.write_all(records).is_ok() {
        assert!(Instant::now() < until, "the program goes on for nobody");
    }
    assert_eq!(child.0.wait().expect("the program ends").code(), Some(0));
}

#[test]
fn unwritable_report_is_an_error() {
    let folder = Folder::new("full");
    let path = folder.file("session.pcap", session_at(1000));
    let policy = folder.file("policy.yaml", "{}");
    for arguments in [
        vec![OsStr::new("replay"), path.as_os_str()],
        vec![OsStr::new("replay"), OsStr::new("--json"), path.as_os_str()],
        vec![OsStr::new("check"), policy.as_os_str()],
        vec![OsStr::new("schema")],
    ] {
        let full = File::options().write(true).open("/dev/full").expect("Linux has it");
        let ran: Ran = pinhole(&arguments).stdout(full).output().expect("the program can be started").into();
        assert_eq!(ran.status, Some(1), "{arguments:?}");
        assert!(ran.only_error().contains("No space left on device"), "{}", ran.err);
    }
}

#[test]
fn no_progress_bar_without_a_terminal() {
    let folder = Folder::new("progress");
    let path = folder.0.join("large.pcap");
    let file = File::create(&path).expect("a file in the temporary folder can be made");
    let mut writer = FileWriter::new(BufWriter::new(file), LinkType::Ip).expect("there is room");
    // Long enough that a terminal would see a bar.
    let packet = vec![0x45; MAX_WRITTEN];
    for _ in 0..160 {
        writer.write(Timestamp::from_secs(1), &packet).expect("there is room");
    }
    writer.finish().expect("there is room");
    assert!(fs::metadata(&path).expect("it is there").len() > 40_000_000);
    run([OsStr::new("replay"), path.as_os_str()]).success();
}
