//! The program as a user runs it, and captures as its input.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use pinhole::core::net::Direction::{self, FromClient, FromServer};
use pinhole::core::net::{Flags, Flow, Seq};
use pinhole::core::script::{Conversation, endpoint, packet};
use pinhole::core::time::Timestamp;
use pinhole::replay::pcap::link::LinkType;
use pinhole::replay::pcap::write::FileWriter;
use serde_json::Value;

pub(crate) const CLIENT: &str = "10.0.0.1:4000";
pub(crate) const SERVER: &str = "10.0.0.2:21";
/// The length of a classic capture's header, and of each packet's header.
pub(crate) const FILE_HEADER: usize = 24;
pub(crate) const RECORD_HEADER: usize = 16;

/// A folder of a test's own, gone when the test is over.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pinhole-cli-{test}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary folder can be made");
        Self(path)
    }

    /// Puts a file into it.
    pub(crate) fn file(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
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
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The result of a run of the program.
pub(crate) struct Ran {
    pub(crate) status: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("what is printed is UTF-8");
        Self { status: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Ran {
    /// The error message of a run that could read a part of its input, and reported that.
    #[track_caller]
    pub(crate) fn error_after_report(&self) -> &str {
        assert_eq!(self.status, Some(1), "{}", self.err);
        assert!(self.out.contains(" packets, "), "there is no summary in {:?}", self.out);
        self.only_error()
    }

    #[track_caller]
    pub(crate) fn only_error(&self) -> &str {
        assert_eq!(self.err.lines().count(), 1, "{:?}", self.err);
        self.err.strip_prefix("pinhole: ").expect("an error names the program").trim_end()
    }

    #[track_caller]
    pub(crate) fn success(self) -> Self {
        assert_eq!((self.status, self.err.as_str()), (Some(0), ""), "{}", self.out);
        self
    }

    /// The events of a run with `--json`.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect("each line is a JSON object")).collect()
    }
}

pub(crate) fn pinhole<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pinhole"));
    command.args(arguments).stdin(Stdio::null());
    command
}

pub(crate) fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ran {
    pinhole(arguments).output().expect("the program can be started").into()
}

/// Runs the program with a pipe as its standard input.
pub(crate) fn run_with_input<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>, input: &[u8]) -> Ran {
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
pub(crate) struct Capture {
    pub(crate) writer: FileWriter<Vec<u8>>,
    pub(crate) now: Timestamp,
}

impl Capture {
    pub(crate) fn starting_at(seconds: u64) -> Self {
        let writer = FileWriter::new(Vec::new(), LinkType::Ip).expect("a vector takes everything");
        Self { writer, now: Timestamp::from_secs(seconds) }
    }

    pub(crate) fn add(mut self, packet: impl AsRef<[u8]>) -> Self {
        self.writer.write(self.now, packet.as_ref()).expect("a vector takes everything");
        self.now = self.now + Duration::from_millis(1);
        self
    }

    pub(crate) fn add_all(self, packets: impl IntoIterator<Item = Vec<u8>>) -> Self {
        packets.into_iter().fold(self, Self::add)
    }

    /// A packet of which the snap length left only the beginning.
    pub(crate) fn add_cut(mut self, packet: &[u8], kept: usize) -> Self {
        let length = u32::try_from(packet.len()).expect("packets are short");
        self.writer.write_cut(self.now, &packet[..kept], length).expect("a vector takes everything");
        self
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.writer.finish().expect("a vector takes everything")
    }
}

pub(crate) fn talk() -> Conversation {
    Conversation::new(endpoint(CLIENT), endpoint(SERVER), 1, 1)
}

/// The handshake and the login of a session.
pub(crate) fn login(talk: &mut Conversation) -> Vec<Vec<u8>> {
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
pub(crate) fn passive(talk: &mut Conversation) -> [Vec<u8>; 2] {
    [talk.says(FromClient, "PASV\r\n"), talk.says(FromServer, "227 Entering Passive Mode (10,0,0,2,4,1).\r\n")]
}

/// The first packet of a connection.
pub(crate) fn opens(from: &str, to: &str) -> Vec<u8> {
    let flow = Flow { source: endpoint(from), destination: endpoint(to) };
    packet(&flow, Seq::new(7), Seq::new(0), Flags::SYN, b"")
}

/// A session that logs in, transfers once and ends: twelve packets.
pub(crate) fn session_at(seconds: u64) -> Vec<u8> {
    let mut talk = talk();
    let capture = Capture::starting_at(seconds).add_all(login(&mut talk)).add_all(passive(&mut talk));
    capture.add(opens("10.0.0.1:5000", "10.0.0.2:1025")).add(talk.closes(FromClient)).bytes()
}
