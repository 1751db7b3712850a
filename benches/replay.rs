//! How fast a large capture is replayed, side by side with tshark printing the FTP fields of the same file.
//!
//! `PINHOLE_BENCH_MB` sets the size of the capture, 1024 by default. It is generated under `target/` and removed.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

mod support;

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pinhole::core::time::Timestamp;
use pinhole::replay::pcap::link::LinkType;
use pinhole::replay::pcap::write::FileWriter;

const SESSIONS: usize = 10_000;
/// How often the replay is timed; tshark takes so long that once is enough.
const ROUNDS: usize = 3;

/// A capture that is removed with the benchmark.
struct Capture {
    path: PathBuf,
    packets: u64,
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn generate(bytes: u64) -> Capture {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("replay-{}.pcap", std::process::id()));
    let file = File::create(&path).expect("the capture can be made");
    let mut capture = Capture { path, packets: 0 };
    let mut writer = FileWriter::new(BufWriter::new(file), LinkType::Ip).expect("the capture can be written");
    let mut written = 0;
    let packets = &mut capture.packets;
    let mut write = |packet: &[u8]| {
        *packets += 1;
        written += packet.len() as u64 + 16;
        writer
            .write(Timestamp::from_nanos(1_000_000_000 + 1000 * *packets), packet)
            .expect("the capture can be written");
        written < bytes
    };
    let mut talks: Vec<_> = (0..SESSIONS).map(support::conversation).collect();
    for talk in &mut talks {
        support::login(talk, |packet| {
            write(packet);
        });
    }
    let mut order: Vec<usize> = (0..SESSIONS).collect();
    let mut is_more = true;
    while is_more {
        support::transfers(&mut talks, &mut order, |packet| is_more = write(packet));
    }
    writer.finish().and_then(|mut file| file.flush()).expect("the capture can be written");
    capture
}

fn time(command: &mut Command) -> Duration {
    let began = Instant::now();
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("the command can be started");
    assert!(status.success(), "{command:?}: {status}");
    began.elapsed()
}

fn main() {
    let megabytes = std::env::var("PINHOLE_BENCH_MB").ok().and_then(|text| text.parse().ok()).unwrap_or(1024_u64);
    let capture = generate(megabytes << 20);
    println!("a capture of {megabytes} MB: {} packets of {SESSIONS} sessions", capture.packets);
    let report = |name: &str, taken: Duration| {
        let seconds = taken.as_secs_f64();
        let rate = capture.packets as f64 / seconds / 1e6;
        println!("{name:<24} {seconds:>8.2} s  {rate:>6.2} million packets/s");
    };
    let replay = |json: bool| {
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let mut command = Command::new(env!("CARGO_BIN_EXE_pinhole"));
            command.arg("replay").args(json.then_some("--json")).arg(&capture.path);
            times.push(time(&mut command));
        }
        times.sort();
        times[ROUNDS / 2]
    };
    let text = replay(false);
    report("pinhole replay", text);
    let json = replay(true);
    report("pinhole replay --json", json);
    let fields = ["ftp.request.command", "ftp.request.arg", "ftp.response.code", "ftp.response.arg"];
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-r"]).arg(&capture.path).args(["-Y", "ftp", "-T", "fields"]);
    tshark.args(fields.iter().flat_map(|field| ["-e", field]));
    let tshark = time(&mut tshark);
    report("tshark -T fields", tshark);
    let ratio = |taken: Duration| tshark.as_secs_f64() / taken.as_secs_f64();
    println!("{:.0} times as fast as tshark, {:.0} times with --json (to reach: 50)", ratio(text), ratio(json));
}
