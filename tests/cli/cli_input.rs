//! The input of `pinhole replay`: files and standard input, valid, damaged and endless.
//!
//! Exit status: 0 success; 1 an input cannot be read or is damaged; 2 the command line or the policy is wrong.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufWriter, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::program::*;
use crate::support::text;
use pinhole::core::net::Direction::{FromClient, FromServer};
use pinhole::core::net::{Flags, Flow, Seq};
use pinhole::core::script::{Conversation, endpoint, packet};
use pinhole::core::time::Timestamp;
use pinhole::replay::pcap::link::LinkType;
use pinhole::replay::pcap::write::FileWriter;
use serde_json::Value;

// Bad input.

#[test]
fn missing_file_is_named() {
    let folder = Folder::new("missing");
    let ran = run([OsStr::new("replay"), folder.0.join("none.pcap").as_os_str()]);
    let complaint = ran.error_after_report();
    assert!(complaint.starts_with("cannot read /") && complaint.contains("none.pcap: No such file"), "{complaint}");
}

#[test]
fn directory_is_refused() {
    let folder = Folder::new("folder");
    let ran = run([OsStr::new("replay"), folder.0.as_os_str()]);
    let complaint = ran.error_after_report();
    assert!(complaint.starts_with("cannot read /") && complaint.contains("directory"), "{complaint}");
}

#[test]
fn other_file_formats_are_named() {
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
        let complaint = ran.error_after_report();
        assert!(complaint.contains(&format!("{name}: {expected}")), "{complaint}");
        assert!(ran.out.contains("0 packets, 0 sessions"), "{}", ran.out);
    }
}

#[test]
fn truncated_capture_is_reported_up_to_the_cut() {
    let folder = Folder::new("cut");
    let whole = session_at(1000);
    let last = whole.len() - (RECORD_HEADER + 40);
    for (cut, part) in [(whole.len() - 1, "a packet"), (last + 3, "a record header")] {
        let path = folder.file("cut.pcap", &whole[..cut]);
        let ran = run([OsStr::new("replay"), path.as_os_str()]);
        let expected = format!("cut.pcap: cut off at byte {cut}, in the middle of {part} that begins at byte {last}");
        let complaint = ran.error_after_report();
        assert!(complaint.ends_with(&expected), "{complaint}");
        assert!(ran.out.contains("opened 10.0.0.1 -> 10.0.0.2:1025"), "{}", ran.out);
        assert!(ran.out.contains("used 10.0.0.1:5000 -> 10.0.0.2:1025"), "{}", ran.out);
        assert!(ran.out.contains("11 packets, 1 session; 1 pinhole opened"), "{}", ran.out);
        assert!(!ran.out.contains("session ended"), "the packet that was cut off is not believed: {}", ran.out);
    }
}

#[test]
fn last_packet_cut_by_the_snaplen_is_no_error() {
    let folder = Folder::new("snap");
    let mut talk = talk();
    let capture = Capture::starting_at(1000).add_all(login(&mut talk)).add(talk.says(FromClient, "PASV\r\n"));
    let answer = talk.says(FromServer, "227 Entering Passive Mode (10,0,0,2,4,1).\r\n");
    let path = folder.file("snap.pcap", capture.add_cut(&answer, 68).bytes());
    let ran = run([OsStr::new("replay"), path.as_os_str()]).success();
    assert!(ran.out.contains("1 session; 0 pinholes opened"), "{}", ran.out);
    assert!(ran.out.contains("0 fragments, 1 truncated packet, 0 damaged packets, 0 stream anomalies."), "{}", ran.out);
}

#[test]
fn damaged_record_ends_its_file() {
    let folder = Folder::new("damaged");
    let mut file = session_at(1000);
    let last = file.len() - (RECORD_HEADER + 40);
    file[last + 8..last + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    let path = folder.file("damaged.pcap", file);
    let ran = run([OsStr::new("replay"), path.as_os_str()]);
    let complaint = ran.error_after_report();
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
    assert!(ran.out.contains("13 packets, 1 session; 1 pinhole opened"), "{}", ran.out);
    assert!(
        ran.out.contains("0 fragments, 0 truncated packets, 3 damaged packets, 0 stream anomalies."),
        "{}",
        ran.out
    );
}

#[test]
fn bad_file_does_not_affect_the_others() {
    let folder = Folder::new("two");
    let good = folder.file("good.pcap", session_at(1000));
    let bad = folder.file("bad.pcap", "not at all");
    for files in [[&good, &bad], [&bad, &good]] {
        let ran = run([OsStr::new("replay"), files[0].as_os_str(), files[1].as_os_str()]);
        assert!(ran.error_after_report().contains("bad.pcap: not a capture file but text"));
        assert!(ran.out.contains("12 packets, 1 session; 1 pinhole opened"), "{}", ran.out);
    }
}

// Where input comes from.

#[test]
fn dash_means_stdin() {
    let ran = run_with_input(["replay", "-"], &session_at(1000)).success();
    assert!(ran.out.contains("12 packets, 1 session; 1 pinhole opened"), "{}", ran.out);
    let ran = run_with_input(["replay", "-"], b"");
    assert_eq!(ran.error_after_report(), "standard input: the file is empty");
}

#[test]
fn stdin_can_be_named_only_once() {
    for arguments in [&["replay", "-", "-"][..], &["replay", "--policy", "-", "-"]] {
        let ran = run_with_input(arguments, b"");
        assert_eq!((ran.status, ran.out.as_str()), (Some(2), ""));
        assert!(ran.only_error().contains("standard input can be read only once"), "{}", ran.err);
    }
}

#[test]
fn consecutive_files_are_one_capture() {
    let folder = Folder::new("following");
    let mut talk = talk();
    let first = folder.file("first.pcap", Capture::starting_at(1000).add_all(login(&mut talk)).bytes());
    let second = Capture::starting_at(1010).add_all(passive(&mut talk));
    let second = folder.file("second.pcap", second.add(opens("10.0.0.1:5000", "10.0.0.2:1025")).bytes());
    let files = [OsStr::new("replay"), OsStr::new("--json"), first.as_os_str(), second.as_os_str()];
    let ran = run(files).success();
    let told = ran.events();
    let kinds: Vec<_> = told.iter().map(|event| text(event, "event")).collect();
    assert_eq!(kinds, ["session-began", "logged-in", "opened", "used", "summary"]);
}

#[test]
fn files_in_another_order_are_separate_captures() {
    let folder = Folder::new("independent");
    let mut talk = talk();
    let early = folder.file("early.pcap", Capture::starting_at(1000).add_all(login(&mut talk)).bytes());
    let late = folder.file("late.pcap", Capture::starting_at(1010).add_all(passive(&mut talk)).bytes());
    let ran = run([OsStr::new("replay"), OsStr::new("--json"), late.as_os_str(), early.as_os_str()]).success();
    let sessions: Vec<_> = ran.events().into_iter().filter(|event| text(event, "event") == "session-began").collect();
    let told: Vec<_> = sessions.iter().map(|event| (event["session"].as_u64(), &event["picked_up"])).collect();
    assert_eq!(told, [(Some(1), &Value::Bool(true)), (Some(2), &Value::Bool(false))]);
}

#[test]
fn file_names_may_have_spaces_and_invalid_utf8() {
    let folder = Folder::new("names");
    let not_utf8 = OsString::from_vec(b"caf\xe9.pcap".to_vec());
    for name in [OsStr::new("a capture of monday.pcap"), OsStr::new("-"), &not_utf8] {
        let path = folder.file(name, session_at(1000));
        run([OsStr::new("replay"), path.as_os_str()]).success();
        let spoilt = folder.file(name, "not at all");
        let ran = run([OsStr::new("replay"), spoilt.as_os_str()]);
        let shown = name.to_string_lossy();
        assert!(ran.error_after_report().contains(&*shown), "{}", ran.err);
    }
    folder.file("--json", session_at(1000));
    let mut beside = pinhole(["replay", "--", "--json"]);
    let ran: Ran = beside.current_dir(&folder.0).output().expect("the program can be started").into();
    assert!(ran.success().out.contains("12 packets, 1 session"));
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
fn long_capture_is_replayed_in_little_memory() {
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
    assert!(sessions > 1900 && summary["used"].as_u64() == Some(sessions), "{summary}");
    assert_eq!(summary["anomalies"].as_u64(), Some(0), "{summary}");
    assert!(peak < ENOUGH, "{peak} bytes for a capture of {LENGTH}");
}
