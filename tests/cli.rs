//! The program as a user meets it: arguments and files in, a report, complaints and an exit status out.
//!
//! Exit status: 0 it is done; 1 an input cannot be read or is damaged; 2 the command line or the policy is wrong.

mod support;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use pinhole::capture::link::LinkType;
use pinhole::capture::write::{FileWriter, MAX_WRITTEN};
use pinhole::packet::Direction::{self, FromClient, FromServer};
use pinhole::packet::{Flags, Flow, Seq};
use pinhole::script::{Conversation, endpoint, packet};
use pinhole::time::Timestamp;
use serde_json::Value;
use support::{events, text};

const CLIENT: &str = "10.0.0.1:4000";
const SERVER: &str = "10.0.0.2:21";
/// The length of a classic capture's header, and of what stands in front of each packet.
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;

/// A folder of a test's own, gone when the test is over.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pinhole-cli-{test}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary folder can be made");
        Self(path)
    }

    /// Puts a file into it.
    fn file(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).expect("a file in the temporary folder can be written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing depends on it, and a test that failed has more important things to say.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process that does not outlive its test, even where the test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a run of the program came to.
struct Ran {
    status: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("what is printed is UTF-8");
        Self { status: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Ran {
    /// The complaint of a run that could read something: what was read is reported all the same.
    #[track_caller]
    fn complaint_beside_a_report(&self) -> &str {
        assert_eq!(self.status, Some(1), "{}", self.err);
        assert!(self.out.contains(" packets, "), "there is no summary in {:?}", self.out);
        self.only_complaint()
    }

    #[track_caller]
    fn only_complaint(&self) -> &str {
        assert_eq!(self.err.lines().count(), 1, "{:?}", self.err);
        self.err.strip_prefix("pinhole: ").expect("a complaint says who complains").trim_end()
    }

    #[track_caller]
    fn success(self) -> Self {
        assert_eq!((self.status, self.err.as_str()), (Some(0), ""), "{}", self.out);
        self
    }

    /// The events of a run with `--json`.
    fn events(&self) -> Vec<Value> {
        events(&self.out)
    }
}

fn pinhole<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pinhole"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ran {
    pinhole(arguments).output().expect("the program can be started").into()
}

/// Runs the program with a pipe as its standard input.
fn run_with_input<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>, input: &[u8]) -> Ran {
    let mut command = pinhole(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program can be started");
    let mut stdin = child.stdin.take().expect("it is a pipe");
    thread::scope(|scope| {
        // The program may stop before it has read everything.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().expect("the program ends").into()
    })
}

/// Packets in the order in which they were captured, one a millisecond.
struct Capture {
    writer: FileWriter<Vec<u8>>,
    now: Timestamp,
}

impl Capture {
    fn starting_at(seconds: u64) -> Self {
        let writer = FileWriter::new(Vec::new(), LinkType::Ip).expect("a vector takes everything");
        Self { writer, now: Timestamp::from_secs(seconds) }
    }

    fn add(mut self, packet: impl AsRef<[u8]>) -> Self {
        self.writer.write(self.now, packet.as_ref()).expect("a vector takes everything");
        self.now = self.now + Duration::from_millis(1);
        self
    }

    fn add_all(self, packets: impl IntoIterator<Item = Vec<u8>>) -> Self {
        packets.into_iter().fold(self, Self::add)
    }

    /// A packet of which the snap length left only the beginning.
    fn add_cut(mut self, packet: &[u8], kept: usize) -> Self {
        let length = u32::try_from(packet.len()).expect("packets are short");
        self.writer.write_cut(self.now, &packet[..kept], length).expect("a vector takes everything");
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.writer.finish().expect("a vector takes everything")
    }
}

fn talk() -> Conversation {
    Conversation::new(endpoint(CLIENT), endpoint(SERVER), 1, 1)
}

/// The handshake and the login of a session.
fn login(talk: &mut Conversation) -> Vec<Vec<u8>> {
    let mut packets = Vec::from(talk.handshake());
    let lines: [(Direction, &str); 5] = [
        (FromServer, "220 ready\r\n"),
        (FromClient, "USER anna\r\n"),
        (FromServer, "331 and?\r\n"),
        (FromClient, "PASS hunter2\r\n"),
        (FromServer, "230 in\r\n"),
    ];
    packets.extend(lines.map(|(who, line)| talk.says(who, line)));
    packets
}

/// The question for a passive transfer to port 1025, and its answer.
fn passive(talk: &mut Conversation) -> [Vec<u8>; 2] {
    [talk.says(FromClient, "PASV\r\n"), talk.says(FromServer, "227 Entering Passive Mode (10,0,0,2,4,1).\r\n")]
}

/// The first packet of a connection.
fn opens(from: &str, to: &str) -> Vec<u8> {
    let flow = Flow { source: endpoint(from), destination: endpoint(to) };
    packet(&flow, Seq::new(7), Seq::new(0), Flags::SYN, b"")
}

/// A session that logs in, transfers once and ends: twelve packets.
fn session_at(seconds: u64) -> Vec<u8> {
    let mut talk = talk();
    let capture = Capture::starting_at(seconds).add_all(login(&mut talk)).add_all(passive(&mut talk));
    capture.add(opens("10.0.0.1:5000", "10.0.0.2:1025")).add(talk.closes(FromClient)).bytes()
}

// Bad input.

#[test]
fn a_file_that_is_not_there_is_named() {
    let folder = Folder::new("missing");
    let ran = run([OsStr::new("replay"), folder.0.join("none.pcap").as_os_str()]);
    let complaint = ran.complaint_beside_a_report();
    assert!(complaint.starts_with("cannot read /") && complaint.contains("none.pcap: No such file"), "{complaint}");
}

#[test]
fn a_folder_is_no_capture() {
    let folder = Folder::new("folder");
    let ran = run([OsStr::new("replay"), folder.0.as_os_str()]);
    let complaint = ran.complaint_beside_a_report();
    assert!(complaint.starts_with("cannot read /") && complaint.contains("directory"), "{complaint}");
}

#[test]
fn what_is_no_capture_is_called_what_it_is() {
    let folder = Folder::new("foreign");
    for (name, content, expected) in [
        ("empty", &b""[..], "the file is empty"),
        ("text", b"220 ready\r\nUSER anna\r\n", "not a capture file but text"),
        ("gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "not a capture file but gzip data: decompress it first"),
        ("program", b"\x7fELF\x02\x01\x01\0", "not a capture file but something unknown that begins with"),
        ("header", b"\xd4\xc3\xb2\xa1\x02\0", "cut off at byte 6, in the middle of a file header"),
    ] {
        let path = folder.file(name, content);
        let ran = run([OsStr::new("replay"), path.as_os_str()]);
        let complaint = ran.complaint_beside_a_report();
        assert!(complaint.contains(&format!("{name}: {expected}")), "{complaint}");
        assert!(ran.out.contains("0 packets, 0 sessions"), "{}", ran.out);
    }
}

#[test]
fn a_capture_cut_in_the_middle_of_a_packet_is_reported_up_to_there() {
    let folder = Folder::new("cut");
    let whole = session_at(1000);
    let last = whole.len() - (RECORD_HEADER + 40);
    for (cut, part) in [(whole.len() - 1, "a packet"), (last + 3, "a record header")] {
        let path = folder.file("cut.pcap", &whole[..cut]);
        let ran = run([OsStr::new("replay"), path.as_os_str()]);
        let expected = format!("cut.pcap: cut off at byte {cut}, in the middle of {part} that begins at byte {last}");
        let complaint = ran.complaint_beside_a_report();
        assert!(complaint.ends_with(&expected), "{complaint}");
        assert!(ran.out.contains("227 opens 10.0.0.1 -> 10.0.0.2:1025"), "{}", ran.out);
        assert!(ran.out.contains("used by 10.0.0.1:5000 -> 10.0.0.2:1025"), "{}", ran.out);
        assert!(ran.out.contains("11 packets, 1 session: 1 announcement admitted"), "{}", ran.out);
        assert!(!ran.out.contains("end, "), "the packet that was cut off is not believed: {}", ran.out);
    }
}

#[test]
fn a_last_packet_that_the_snap_length_cut_is_an_anomaly_and_no_error() {
    let folder = Folder::new("snap");
    let mut talk = talk();
    let capture = Capture::starting_at(1000).add_all(login(&mut talk)).add(talk.says(FromClient, "PASV\r\n"));
    let answer = talk.says(FromServer, "227 Entering Passive Mode (10,0,0,2,4,1).\r\n");
    let path = folder.file("snap.pcap", capture.add_cut(&answer, 68).bytes());
    let ran = run([OsStr::new("replay"), path.as_os_str()]).success();
    assert!(ran.out.contains("227 refused, bad-syntax"), "{}", ran.out);
    assert!(ran.out.contains("1 anomalies: 0 fragments, 1 packets cut short"), "{}", ran.out);
}

#[test]
fn a_damaged_record_ends_its_file_where_it_stands() {
    let folder = Folder::new("damaged");
    let mut file = session_at(1000);
    let last = file.len() - (RECORD_HEADER + 40);
    file[last + 8..last + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    let path = folder.file("damaged.pcap", file);
    let ran = run([OsStr::new("replay"), path.as_os_str()]);
    let complaint = ran.complaint_beside_a_report();
    assert!(
        complaint.contains(&format!("damaged.pcap: damaged at byte {last}: a record of 4294967295")),
        "{complaint}"
    );
    assert!(ran.out.contains("11 packets, 1 session"), "{}", ran.out);
}

#[test]
fn damaged_packets_in_a_good_file_are_counted() {
    let folder = Folder::new("nonsense");
    let mut talk = talk();
    let capture = Capture::starting_at(1000).add_all(login(&mut talk));
    let capture = capture.add([0x45; 7]).add([0x43; 60]).add([0x60; 12]).add_all(passive(&mut talk));
    let path = folder.file("nonsense.pcap", capture.bytes());
    let ran = run([OsStr::new("replay"), path.as_os_str()]).success();
    assert!(ran.out.contains("13 packets, 1 session: 1 announcement admitted"), "{}", ran.out);
    assert!(ran.out.contains("3 anomalies: 0 fragments, 0 packets cut short, 3 damaged"), "{}", ran.out);
}

#[test]
fn one_bad_file_does_not_spoil_the_others() {
    let folder = Folder::new("two");
    let good = folder.file("good.pcap", session_at(1000));
    let bad = folder.file("bad.pcap", "not at all");
    for files in [[&good, &bad], [&bad, &good]] {
        let ran = run([OsStr::new("replay"), files[0].as_os_str(), files[1].as_os_str()]);
        assert!(ran.complaint_beside_a_report().contains("bad.pcap: not a capture file but text"));
        assert!(ran.out.contains("12 packets, 1 session: 1 announcement admitted"), "{}", ran.out);
    }
}

// Where input comes from.

#[test]
fn a_dash_is_standard_input() {
    let ran = run_with_input(["replay", "-"], &session_at(1000)).success();
    assert!(ran.out.contains("12 packets, 1 session: 1 announcement admitted"), "{}", ran.out);
    let ran = run_with_input(["replay", "-"], b"");
    assert_eq!(ran.complaint_beside_a_report(), "standard input: the file is empty");
}

#[test]
fn standard_input_can_be_meant_only_once() {
    for arguments in [&["replay", "-", "-"][..], &["replay", "--policy", "-", "-"]] {
        let ran = run_with_input(arguments, b"");
        assert_eq!((ran.status, ran.out.as_str()), (Some(2), ""));
        assert!(ran.only_complaint().contains("standard input can be read only once"), "{}", ran.err);
    }
}

#[test]
fn files_that_follow_one_another_are_one_capture() {
    let folder = Folder::new("following");
    let mut talk = talk();
    let first = folder.file("first.pcap", Capture::starting_at(1000).add_all(login(&mut talk)).bytes());
    let second = Capture::starting_at(1010).add_all(passive(&mut talk));
    let second = folder.file("second.pcap", second.add(opens("10.0.0.1:5000", "10.0.0.2:1025")).bytes());
    let files = [OsStr::new("replay"), OsStr::new("--json"), first.as_os_str(), second.as_os_str()];
    let ran = run(files).success();
    let told = ran.events();
    let kinds: Vec<_> = told.iter().map(|event| text(event, "event")).collect();
    assert_eq!(kinds, ["session", "login", "expectation", "related", "summary"]);
}

#[test]
fn files_in_any_other_order_have_nothing_to_do_with_each_other() {
    let folder = Folder::new("independent");
    let mut talk = talk();
    let early = folder.file("early.pcap", Capture::starting_at(1000).add_all(login(&mut talk)).bytes());
    let late = folder.file("late.pcap", Capture::starting_at(1010).add_all(passive(&mut talk)).bytes());
    let ran = run([OsStr::new("replay"), OsStr::new("--json"), late.as_os_str(), early.as_os_str()]).success();
    let sessions: Vec<_> = ran.events().into_iter().filter(|event| text(event, "event") == "session").collect();
    let told: Vec<_> = sessions.iter().map(|event| (event["session"].as_u64(), &event["picked_up"])).collect();
    assert_eq!(told, [(Some(1), &Value::Bool(true)), (Some(2), &Value::Bool(false))]);
}

#[test]
fn any_file_name_will_do() {
    let folder = Folder::new("names");
    let not_utf8 = OsString::from_vec(b"caf\xe9.pcap".to_vec());
    for name in [OsStr::new("a capture of monday.pcap"), OsStr::new("-"), &not_utf8] {
        let path = folder.file(name, session_at(1000));
        run([OsStr::new("replay"), path.as_os_str()]).success();
        let spoilt = folder.file(name, "not at all");
        let ran = run([OsStr::new("replay"), spoilt.as_os_str()]);
        let shown = name.to_string_lossy();
        assert!(ran.complaint_beside_a_report().contains(&*shown), "{}", ran.err);
    }
    folder.file("--json", session_at(1000));
    let mut beside = pinhole(["replay", "--", "--json"]);
    let ran: Ran = beside.current_dir(&folder.0).output().expect("the program can be started").into();
    assert!(ran.success().out.contains("12 packets, 1 session"));
}

// The report.

#[test]
fn a_report_for_people_tells_the_story_of_a_session() {
    let folder = Folder::new("story");
    let mut talk = talk();
    let capture = Capture::starting_at(1000).add_all(login(&mut talk)).add(talk.says(FromClient, "RETR \x1b[2Ja\r\n"));
    let capture = capture.add_all(passive(&mut talk)).add(opens("10.0.0.1:5000", "10.0.0.2:1025"));
    let capture =
        capture.add(talk.says(FromClient, "PORT 10,0,0,99,4,1\r\n")).add(opens("10.0.0.2:20", "10.0.0.1:1026"));
    let path = folder.file("story.pcap", capture.add(talk.closes(FromServer)).bytes());
    let ran = run([OsStr::new("replay"), path.as_os_str()]).success();
    for told in [
        "0.000 #1    session 10.0.0.1:4000 -> 10.0.0.2:21\n",
        "#1    USER anna\n",
        "#1    PASS ...\n",
        "#1    logged in as anna\n",
        "#1    227 opens 10.0.0.1 -> 10.0.0.2:1025 for 60s\n",
        "#1    used by 10.0.0.1:5000 -> 10.0.0.2:1025\n",
        "#1    PORT of 10.0.0.99:1025 refused, third-party: ",
        "#1    BLOCKED 10.0.0.2:20 -> 10.0.0.1:1026: not expected\n",
        "#1    end, finished\n",
        "\nWould be blocked:\n  10.0.0.2:20 -> 10.0.0.1:1026 (session #1)\n",
    ] {
        assert!(ran.out.contains(told), "{told:?} is not in\n{}", ran.out);
    }
    assert!(!ran.out.contains("hunter2") && !ran.out.contains('\x1b'), "{}", ran.out);
}

/// What each field of an event must look like; a `?` stands for one that may be missing.
const FIELDS: [(&str, &[(&str, Kind)]); 8] = [
    ("session", &[("client", Kind::Endpoint), ("server", Kind::Endpoint), ("picked_up", Kind::Flag)]),
    ("login", &[("user", Kind::Text)]),
    (
        "expectation",
        &[("announced_by", Kind::Text), ("from", Kind::Address), ("to", Kind::Endpoint), ("expires", Kind::Seconds)],
    ),
    ("refusal", &[("announced_by", Kind::Text), ("to", Kind::Endpoint), ("reason", Kind::Text)]),
    ("related", &[("from", Kind::Endpoint), ("to", Kind::Endpoint), ("announced_by", Kind::Text)]),
    ("expired", &[("from", Kind::Address), ("to", Kind::Endpoint)]),
    ("encrypted", &[]),
    ("end", &[]),
];

const COUNTS: [&str; 6] = ["packets", "sessions", "expectations", "refusals", "related", "anomalies"];

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

/// A capture in which everything happens that a line of JSON can tell.
fn eventful() -> Vec<u8> {
    let mut talk = talk();
    let capture = Capture::starting_at(1000).add_all(login(&mut talk));
    let capture = capture.add_all(passive(&mut talk)).add(opens("10.0.0.1:5000", "10.0.0.2:1025"));
    let capture = capture.add(talk.says(FromClient, "PORT 10,0,0,1,4,2\r\nPORT 10,0,0,99,4,2\r\n"));
    let mut later = Conversation::new(endpoint("[fd00::1]:4000"), endpoint("[fd00::2]:21"), 5, 5);
    let mut capture = Capture { now: capture.now + Duration::from_secs(61), ..capture };
    capture = capture.add_all(later.handshake()).add(later.says(FromServer, "220 ready\r\n"));
    capture = capture.add(later.says(FromClient, "AUTH TLS\r\n")).add(later.says(FromServer, "234 go\r\n"));
    capture.add(later.closes(FromClient)).bytes()
}

#[test]
fn every_line_of_json_has_the_fields_that_are_documented() {
    let folder = Folder::new("json");
    let path = folder.file("eventful.pcap", eventful());
    let ran = run([OsStr::new("replay"), OsStr::new("--json"), path.as_os_str()]).success();
    let told = ran.events();
    let (summary, others) = told.split_last().expect("there is a summary");
    assert_eq!(text(summary, "event"), "summary");
    for count in COUNTS {
        assert!(summary[count].is_u64(), "{count} of {summary}");
    }
    assert_eq!((summary["sessions"].as_u64(), summary["related"].as_u64()), (Some(2), Some(1)));
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
fn times_keep_their_nanoseconds() {
    let folder = Folder::new("nanoseconds");
    let mut capture = Capture::starting_at(0);
    capture.now = Timestamp::from_nanos(1_700_000_000_123_456_789);
    let path = folder.file("nanos.pcap", capture.add_all(talk().handshake().into_iter().skip(1)).bytes());
    let ran = run([OsStr::new("replay"), OsStr::new("--json"), path.as_os_str()]).success();
    assert!(ran.out.starts_with(r#"{"event":"session","time":1700000000.123456789,"session":1,"#), "{}", ran.out);
}

#[test]
fn the_last_line_of_json_is_the_summary_even_of_bad_input() {
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
fn nobody_complains_when_the_reader_of_the_report_goes_away() {
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
fn a_reader_that_goes_away_ends_an_endless_replay() {
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
fn a_report_that_cannot_be_written_is_an_error() {
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
        assert!(ran.only_complaint().contains("No space left on device"), "{}", ran.err);
    }
}

#[test]
fn without_a_terminal_no_progress_is_drawn() {
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

// The policy.

#[test]
fn a_policy_decides_what_opens() {
    let folder = Folder::new("policy");
    let capture = folder.file("session.pcap", session_at(1000));
    let policy = folder.file("strict.yaml", "defaults: { data_ports: 50000-50100 }");
    let ran = run([OsStr::new("replay"), OsStr::new("--policy"), policy.as_os_str(), capture.as_os_str()]).success();
    assert!(ran.out.contains("227 of 10.0.0.2:1025 refused, port-not-allowed"), "{}", ran.out);
    assert!(ran.out.contains("BLOCKED 10.0.0.1:5000 -> 10.0.0.2:1025"), "{}", ran.out);
}

#[test]
fn a_policy_may_come_from_standard_input() {
    let folder = Folder::new("policy-stdin");
    let capture = folder.file("session.pcap", session_at(1000));
    let arguments = [OsStr::new("replay"), OsStr::new("--policy"), OsStr::new("-"), capture.as_os_str()];
    let ran = run_with_input(arguments, b"defaults: { modes: [EPSV] }").success();
    assert!(ran.out.contains("refused, mode-denied"), "{}", ran.out);
}

#[test]
fn nothing_is_replayed_under_a_policy_that_is_wrong() {
    let folder = Folder::new("policy-bad");
    let capture = folder.file("session.pcap", session_at(1000));
    let bad = folder.file("bad.yaml", "control_ports: [21, 99999]\nlimitz: {}\n");
    let ran = run([OsStr::new("replay"), OsStr::new("--policy"), bad.as_os_str(), capture.as_os_str()]);
    assert_eq!((ran.status, ran.out.as_str()), (Some(2), ""));
    for expected in ["bad.yaml:1:21: error: ", "bad.yaml:2:1: error: unknown key limitz", "2 errors"] {
        assert!(ran.err.contains(expected), "{}", ran.err);
    }
    let missing = folder.0.join("missing.yaml");
    let ran = run([OsStr::new("replay"), OsStr::new("--policy"), missing.as_os_str(), capture.as_os_str()]);
    assert_eq!((ran.status, ran.out.as_str()), (Some(2), ""));
    let complaint = ran.only_complaint();
    assert!(complaint.starts_with("cannot read the policy /") && complaint.contains("No such file"), "{complaint}");
}

/// Two rules, the second of which is never reached.
const DOUBTFUL: &str = "rules:\n  - name: all\n  - name: never\n    clients: [10.0.0.1]\n";

#[test]
fn a_policy_with_warnings_holds_and_the_warnings_are_told() {
    let folder = Folder::new("policy-warnings");
    let capture = folder.file("session.pcap", session_at(1000));
    let policy = folder.file("doubtful.yaml", DOUBTFUL);
    let ran = run([OsStr::new("replay"), OsStr::new("--policy"), policy.as_os_str(), capture.as_os_str()]);
    assert_eq!(ran.status, Some(0), "{}", ran.err);
    assert!(ran.err.contains("doubtful.yaml:3:") && ran.err.contains("warning: "), "{}", ran.err);
    assert!(ran.out.contains("12 packets, 1 session: 1 announcement admitted"), "{}", ran.out);
}

#[test]
fn check_prints_a_good_policy_as_understood() {
    let folder = Folder::new("check-good");
    let policy = folder.file("my policy.yaml", "control_ports: [21, 2121]\ndefaults: { timeout: 2m }\n");
    let ran = run([OsStr::new("check"), policy.as_os_str()]).success();
    assert!(ran.out.contains("my policy.yaml is good. As understood:\n"), "{}", ran.out);
    assert!(ran.out.contains("control_ports: [21, 2121]\n"), "{}", ran.out);
    // What is printed is a policy again, and means the same.
    let again = run_with_input(["check", "-"], ran.out.as_bytes()).success();
    let without_title = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(without_title(&again.out), without_title(&ran.out));
    assert!(again.out.starts_with("# standard input is good. As understood:\n"), "{}", again.out);
}

#[test]
fn check_tells_warnings_beside_the_policy() {
    let folder = Folder::new("check-warnings");
    let policy = folder.file("doubtful.yaml", DOUBTFUL);
    let ran = run([OsStr::new("check"), policy.as_os_str()]);
    assert_eq!(ran.status, Some(0), "{}", ran.err);
    assert!(
        ran.err.contains("warning: ") && ran.out.contains("is good, with 1 warning. As understood:"),
        "{}",
        ran.out
    );
}

#[test]
fn check_explains_each_error_of_a_bad_policy() {
    let folder = Folder::new("check-bad");
    let policy = folder.file("bad.yaml", "defaults:\n  data_ports: 5000-400\n  modes: [pasv]\n");
    let ran = run([OsStr::new("check"), policy.as_os_str()]);
    assert_eq!((ran.status, ran.out.as_str()), (Some(2), ""));
    for expected in ["bad.yaml:2:15: error: ", "5000-400", "expected", "bad.yaml:3:11: error: ", "did you mean PASV?"] {
        assert!(ran.err.contains(expected), "{expected} is not in {}", ran.err);
    }
}

#[test]
fn check_of_what_is_no_policy_at_all_is_an_error() {
    let folder = Folder::new("check-foreign");
    let missing = run([OsStr::new("check"), folder.0.join("none.yaml").as_os_str()]);
    assert_eq!(missing.status, Some(2));
    assert!(missing.only_complaint().contains("No such file"), "{}", missing.err);
    let folder_itself = run([OsStr::new("check"), folder.0.as_os_str()]);
    assert_eq!(folder_itself.status, Some(2));
    assert!(folder_itself.only_complaint().contains("directory"), "{}", folder_itself.err);
    for content in [&b""[..], b"\xd4\xc3\xb2\xa1\x02\0\x04\0", b"[1, 2", &[b'#'; (1 << 20) + 1]] {
        let path = folder.file("foreign.yaml", content);
        let ran = run([OsStr::new("check"), path.as_os_str()]);
        assert_eq!((ran.status, ran.out.as_str()), (Some(2), ""));
        assert!(ran.err.contains("foreign.yaml:") && ran.err.contains("error: "), "{}", ran.err);
    }
}

#[test]
fn the_schema_is_json() {
    let ran = run(["schema"]).success();
    let schema: Value = serde_json::from_str(&ran.out).expect("the schema is JSON");
    assert!(schema["$schema"].is_string() && schema["properties"]["control_ports"].is_object(), "{}", ran.out);
}

// The command line.

#[test]
fn a_command_line_that_is_wrong_is_status_2_and_shows_what_would_be_right() {
    for arguments in [&["replay", "--jason", "a.pcap"][..], &["replay"], &["frobnicate"], &[], &["schema", "x"]] {
        let ran = run(arguments);
        assert_eq!((ran.status, ran.out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(ran.err.contains("Usage: pinhole"), "{}", ran.err);
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for arguments in [&["--help"][..], &["replay", "--help"], &["help", "check"]] {
        assert!(run(arguments).success().out.contains("Usage: pinhole"), "{arguments:?}");
    }
    assert_eq!(run(["--version"]).success().out, format!("pinhole {}\n", env!("CARGO_PKG_VERSION")));
}

// Size.

/// The most memory that a process ever had, in bytes.
fn peak_memory(process: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).expect("the process runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a process that runs has memory");
    let kilobytes = line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    kilobytes.expect("a number of kilobytes") * 1024
}

/// A capture of that many bytes, at least: sessions with a login, two transfers and an end, one after the other.
fn long_capture(length: usize, mut sink: impl Write) -> std::io::Result<()> {
    let bulk = [b'x'; 1400];
    let mut written = 0;
    let mut writer = FileWriter::new(&mut sink, LinkType::Ip)?;
    let mut now = Timestamp::from_secs(1000);
    for number in 0.. {
        let client = format!("10.0.{}.{}", number / 250 % 250, number % 250);
        let control = Conversation::new(endpoint(&format!("{client}:4000")), endpoint(SERVER), number, !number);
        let mut control = control;
        let mut packets = login(&mut control);
        packets.extend(passive(&mut control));
        let flow = Flow { source: endpoint(&format!("{client}:5000")), destination: endpoint("10.0.0.2:1025") };
        packets.push(packet(&flow, Seq::new(0), Seq::new(0), Flags::SYN, b""));
        let data = packet(&flow.reversed(), Seq::new(1), Seq::new(1), Flags::ACK, &bulk);
        packets.extend(std::iter::repeat_n(data, 100));
        packets.push(control.closes(FromClient));
        for packet in packets {
            now = now + Duration::from_micros(100);
            writer.write(now, &packet)?;
            written += RECORD_HEADER + packet.len();
        }
        if written >= length {
            break;
        }
    }
    Ok(())
}

#[test]
fn a_capture_longer_than_any_memory_is_replayed_in_a_little() {
    const LENGTH: usize = 300_000_000;
    const ENOUGH: u64 = 64 << 20;
    let mut command = pinhole(["replay", "--json", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Running(command.spawn().expect("the program can be started"));
    let stdin = child.0.stdin.take().expect("it is a pipe");
    let mut report = child.0.stdout.take().expect("it is a pipe");
    let (all_written, written) = mpsc::channel();
    let writer = thread::spawn(move || {
        let mut sink = BufWriter::with_capacity(1 << 16, stdin);
        let result = long_capture(LENGTH, &mut sink).and_then(|()| sink.flush());
        // The pipe stays open until the program's memory has been looked at: then there is no such process any more.
        let _ = all_written.send(sink);
        result
    });
    // Of the report only the end is kept.
    let reader = thread::spawn(move || {
        let mut end = Vec::new();
        let mut piece = vec![0; 1 << 16];
        while let Ok(count @ 1..) = report.read(&mut piece) {
            end.extend_from_slice(&piece[..count]);
            end.drain(..end.len().saturating_sub(1 << 12));
        }
        end
    });
    let pipe = written.recv().expect("the capture is written");
    let peak = peak_memory(&child.0);
    drop(pipe);
    writer.join().expect("the writer does not panic").expect("the program reads everything");
    let end = String::from_utf8(reader.join().expect("the reader does not panic")).expect("JSON is UTF-8");
    assert_eq!(child.0.wait().expect("the program ends").code(), Some(0));
    let summary: Value = serde_json::from_str(end.lines().last().unwrap_or_default()).expect("a summary");
    let sessions = summary["sessions"].as_u64().expect("a number");
    assert!(sessions > 1900 && summary["related"].as_u64() == Some(sessions), "{summary}");
    assert_eq!(summary["anomalies"].as_u64(), Some(0), "{summary}");
    assert!(peak < ENOUGH, "{peak} bytes for a capture of {LENGTH}");
}
