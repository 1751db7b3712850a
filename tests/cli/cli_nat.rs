//! The command line of `pinhole replay --nat` and `--write`: what is refused, and what is written.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use crate::program::*;
use pinhole::replay::pcap::link::LinkType;
use pinhole::replay::pcap::write::FileWriter;

const NAT: &str = "inside: [10.0.0.1]\noutside: [198.51.100.100]\n";

/// Replays a session with these options, each of which may name a file of the folder.
fn replay(options: &[&OsStr], capture: &Path) -> Ran {
    run([OsStr::new("replay")].iter().chain(options).copied().chain([capture.as_os_str()]))
}

#[test]
fn invalid_nat_file_is_refused() {
    let folder = Folder::new("nat-bad");
    let capture = folder.file("session.pcap", session_at(1000));
    let out = folder.0.join("out.pcap");
    let text = "inside: [10.0.0.1/8]\noutsid: [198.51.100.1]\ndnat:\n  - 198.51.100.1 -> 10.0.0.5\n";
    let bad = folder.file("bad.yaml", text);
    let options = ["--nat".as_ref(), bad.as_os_str(), "--write".as_ref(), out.as_os_str()];
    let ran = replay(&options, &capture);
    assert_eq!((ran.status, ran.out.as_str()), (Some(2), ""));
    for expected in [
        "bad.yaml:1:10: error: inside: bits are set behind the prefix, the network being 10.0.0.0/8: 10.0.0.1/8 (expected",
        "bad.yaml:2:1: error: unknown key outsid; did you mean outside? (expected one of inside, outside, dnat)",
        "bad.yaml:4:5: error: dnat: 198.51.100.1 -> 10.0.0.5 is no destination NAT (expected \"OUTSIDE:PORT -> ",
        "    4 |   - 198.51.100.1 -> 10.0.0.5\n      |     ^^^^^",
        "3 errors",
    ] {
        assert!(ran.err.contains(expected), "{expected}\n{}", ran.err);
    }
    assert!(!out.exists());
    for (text, expected) in [
        ("", "expected inside, and outside or dnat or both"),
        ("- 10.0.0.1\n", "expected inside, and outside or dnat or both"),
        ("inside: [\n", "error: "),
        ("inside: [10.0.0.1]\noutside: 198.51.100.1\n", "nat.yaml:2:10: error: outside: 198.51.100.1 is a text"),
        (
            "inside: [10.0.0.1]\ndnat: [{}]\n",
            "error: dnat: this is a mapping (expected \"OUTSIDE:PORT -> INSIDE:PORT\"",
        ),
        ("inside: []\noutside: [198.51.100.1]\n", "error: inside: the list has 0 elements"),
    ] {
        let nat = folder.file("nat.yaml", text);
        let ran = replay(&["--nat".as_ref(), nat.as_os_str()], &capture);
        assert_eq!((ran.status, ran.out.as_str()), (Some(2), ""), "{text}");
        assert!(ran.err.contains(expected) && !ran.err.contains("policy"), "{text}: {}", ran.err);
    }
    let missing = folder.0.join("missing.yaml");
    let ran = replay(&["--nat".as_ref(), missing.as_os_str()], &capture);
    assert_eq!(ran.status, Some(2));
    let complaint = ran.only_error();
    assert!(complaint.starts_with("cannot read the NAT /") && complaint.contains("No such file"), "{complaint}");
}

#[test]
fn nat_or_capture_is_read_from_stdin_but_not_both() {
    let folder = Folder::new("nat-stdin");
    let capture = folder.file("session.pcap", session_at(1000));
    let arguments =
        |file: &Path| [OsStr::new("replay"), "--nat".as_ref(), "-".as_ref(), file.as_os_str()].map(OsStr::to_owned);
    let ran = run_with_input(arguments(&capture), NAT.as_bytes()).success();
    assert!(ran.out.contains("opened 10.0.0.1 -> 10.0.0.2:1025 (from 198.51.100.100) for 60s"), "{}", ran.out);
    let ran = run_with_input(arguments("-".as_ref()), NAT.as_bytes());
    assert_eq!(ran.status, Some(2));
    assert!(ran.only_error().starts_with("standard input can be read only once"));
}

#[test]
fn write_needs_nat_and_a_file_that_is_not_an_input() {
    let folder = Folder::new("nat-write");
    let session = session_at(1000);
    let capture = folder.file("session.pcap", &session);
    let nat = folder.file("nat.yaml", NAT);
    let ran = replay(&["--write".as_ref(), "out.pcap".as_ref()], &capture);
    assert_eq!((ran.status, ran.out.as_str()), (Some(2), ""));
    assert!(ran.err.contains("--nat <FILE>"), "{}", ran.err);

    let link = folder.0.join("link.pcap");
    fs::hard_link(&capture, &link).expect("files can be linked");
    for same in [&capture, &link, &nat] {
        let options = ["--nat".as_ref(), nat.as_os_str(), "--write".as_ref(), same.as_os_str()];
        let ran = replay(&options, &capture);
        assert_eq!((ran.status, ran.out.as_str()), (Some(2), ""));
        let complaint = ran.only_error();
        assert!(complaint.starts_with("`--write` would overwrite the input file /"), "{complaint}");
    }
    assert_eq!(fs::read(&capture).expect("it is there"), session);
    assert_eq!(fs::read_to_string(&nat).expect("it is there"), NAT);

    let ran = replay(&["--nat".as_ref(), nat.as_os_str(), "--write".as_ref(), "-".as_ref()], &capture);
    assert_eq!(ran.status, Some(2));
    assert!(ran.only_error().starts_with("`--write` needs a file name"));
}

#[test]
fn unwritable_file_is_an_error() {
    let folder = Folder::new("nat-unwritable");
    let capture = folder.file("session.pcap", session_at(1000));
    let nat = folder.file("nat.yaml", NAT);
    let write =
        |path: &Path| replay(&["--nat".as_ref(), nat.as_os_str(), "--write".as_ref(), path.as_os_str()], &capture);
    let nowhere = folder.0.join("nowhere").join("out.pcap");
    for (path, reason) in [(nowhere.as_path(), "No such file or directory"), (&folder.0, "Is a directory")] {
        let ran = write(path);
        assert_eq!((ran.status, ran.out.as_str()), (Some(1), ""));
        let complaint = ran.only_error();
        assert!(complaint.starts_with(&format!("cannot write {}: {reason}", path.display())), "{complaint}");
    }
    let ran = write("/dev/full".as_ref());
    let complaint = ran.error_after_report();
    assert!(complaint.starts_with("cannot write /dev/full: No space left on device"), "{complaint}");
}

#[test]
fn packets_before_the_damage_are_written() {
    let folder = Folder::new("nat-damaged");
    let session = session_at(1000);
    let capture = folder.file("cut.pcap", &session[..session.len() - 5]);
    let nat = folder.file("nat.yaml", NAT);
    let out = folder.0.join("out.pcap");
    let options = ["--nat".as_ref(), nat.as_os_str(), "--write".as_ref(), out.as_os_str()];
    let ran = replay(&options, &capture);
    assert!(ran.error_after_report().contains("cut off at byte"));
    let written = run([OsStr::new("replay"), out.as_os_str()]).success();
    assert!(written.out.contains("session began: 198.51.100.100:4000 -> 10.0.0.2:21"), "{}", written.out);
    assert!(written.out.contains("11 packets, 1 session"), "{}", written.out);

    // Nothing to read at all leaves a capture without packets.
    let empty = folder.file("empty.pcap", Capture::starting_at(1).bytes());
    replay(&options, &empty).success();
    assert!(run([OsStr::new("replay"), out.as_os_str()]).success().out.contains("0 packets"));
}

#[test]
fn untranslatable_packets_are_reported() {
    let folder = Folder::new("nat-kinds");
    let nat = folder.file("nat.yaml", NAT);
    let out = folder.0.join("out.pcap");
    let options = ["--nat".as_ref(), nat.as_os_str(), "--write".as_ref(), out.as_os_str()];
    let mut talk = talk();
    let lines = login(&mut talk);
    let capture = lines[..4].iter().cloned().fold(Capture::starting_at(1), Capture::add).add_cut(&lines[4], 45);
    let cut = folder.file("cut.pcap", capture.bytes());
    let ran = replay(&options, &cut);
    assert_eq!(ran.status, Some(0));
    let complaint = ran.only_error();
    assert!(complaint.contains("out.pcap: contains 1 packet as captured"), "{complaint}");

    // The files are read one after the other, but a pcap file holds only one link type.
    let mut ethernet = FileWriter::new(Vec::new(), LinkType::Ethernet).expect("a vector takes everything");
    ethernet.write(pinhole::core::time::Timestamp::from_secs(5000), &[0; 60]).expect("a vector takes everything");
    let other = folder.file("ethernet.pcap", ethernet.finish().expect("a vector takes everything"));
    let session = folder.file("session.pcap", session_at(1000));
    let mut options = options.to_vec();
    options.push(session.as_os_str());
    let ran = replay(&options, &other);
    let complaint = ran.error_after_report();
    assert!(complaint.contains("different link types (Ip, Ethernet), and a pcap file holds one"), "{complaint}");
}
