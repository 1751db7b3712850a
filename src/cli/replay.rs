//! `pinhole replay`: replays captures and prints the report.

use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::outside::{OutsideFile, is_same_file};
use super::progress::Progress;
use super::{Outcome, input};
use crate::replay::pcap::file::FileReader;
use crate::replay::{Json, Outside, Replay, Sink, Text};

/// How many frames go by between two looks at whether anybody still reads the report.
const FRAMES_BETWEEN_LOOKS: u32 = 4096;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Captures, pcap or pcapng; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The policy to decide by; without one, the embedded default
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The NAT behind which the captures were taken: a YAML file, see docs/reference/replay.md; `-` is standard input
    #[arg(long, value_name = "FILE")]
    nat: Option<PathBuf>,
    /// Write the captures as the other side of that NAT would have seen them, as a pcap file
    #[arg(long, value_name = "OUT", requires = "nat")]
    write: Option<PathBuf>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let is_stdin = |path: &&PathBuf| path.as_os_str() == "-";
    if args.files.iter().chain(&args.policy).chain(&args.nat).filter(is_stdin).count() > 1 {
        super::complain(format_args!("standard input can be read only once, but `-` stands there several times"));
        return Ok(Outcome::BadUsage);
    }
    if let Some(problem) = args.write.as_deref().and_then(|path| not_to_be_written(args, path)) {
        super::complain(format_args!("{problem}"));
        return Ok(Outcome::BadUsage);
    }
    let policy = match input::policy(args.policy.as_deref()) {
        Ok(policy) => policy,
        Err(outcome) => return Ok(outcome),
    };
    let nat = match args.nat.as_deref().map(input::nat).transpose() {
        Ok(nat) => nat,
        Err(outcome) => return Ok(outcome),
    };
    let out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    if args.json {
        replay(args, Replay::behind(policy, nat, Json::new(out)))
    } else {
        replay(args, Replay::behind(policy, nat, Text::new(out)))
    }
}

/// Why that file is not to be written, if it is not.
fn not_to_be_written(args: &Args, path: &Path) -> Option<String> {
    if path.as_os_str() == "-" {
        return Some("`--write` needs the name of a file: the report goes to standard output".to_owned());
    }
    let mut read = args.files.iter().chain(&args.policy).chain(&args.nat);
    let same = read.find(|input| is_same_file(input, path))?;
    Some(format!("`--write` would overwrite {}, which is to be read", same.display()))
}

fn replay<S: Sink>(args: &Args, mut replay: Replay<S>) -> anyhow::Result<Outcome> {
    let Some(path) = &args.write else {
        let outcome = replay_files(args, &mut replay, &mut (), |()| false);
        return finish(replay, outcome);
    };
    let mut outside = OutsideFile::create(path)?;
    let mut outcome = replay_files(args, &mut replay, &mut outside, OutsideFile::has_failed);
    replay.nothing_more_comes(&mut outside);
    let as_captured = replay.shown_as_captured();
    if as_captured > 0 {
        let them = if as_captured == 1 { "1 packet is" } else { &format!("{as_captured} packets are") };
        super::complain(format_args!(
            "{}: {them} in it as captured, addresses of the inside included, because the capture does not hold all of \
             it; capture with -s 0",
            path.display()
        ));
    }
    if let Err(error) = outside.finish() {
        super::complain(format_args!("{error:#}"));
        outcome = Outcome::BadInput;
    }
    finish(replay, outcome)
}

fn finish<S: Sink>(replay: Replay<S>, outcome: Outcome) -> anyhow::Result<Outcome> {
    let (_, sink) = replay.finish();
    sink.finish()?;
    Ok(outcome)
}

fn replay_files<S: Sink, O: Outside>(
    args: &Args,
    replay: &mut Replay<S>,
    outside: &mut O,
    has_failed: fn(&O) -> bool,
) -> Outcome {
    let mut outcome = Outcome::Good;
    for path in &args.files {
        // What can be read of the other files is worth having, whatever is wrong with this one.
        if let Err(error) = replay_file(path, replay, outside, has_failed) {
            super::complain(format_args!("{error:#}"));
            outcome = Outcome::BadInput;
        }
        if replay.report().has_failed() || has_failed(outside) {
            break;
        }
    }
    outcome
}

fn replay_file<S: Sink, O: Outside>(
    path: &Path,
    replay: &mut Replay<S>,
    outside: &mut O,
    has_failed: fn(&O) -> bool,
) -> anyhow::Result<()> {
    let name = super::name(path);
    let input = input::open(path).with_context(|| format!("cannot read {name}"))?;
    let mut progress = Progress::for_file(&name, input.length);
    let mut reader = FileReader::new(input.source).with_context(|| name.clone())?;
    let mut is_first = true;
    loop {
        for _ in 0..FRAMES_BETWEEN_LOOKS {
            let Some(frame) = reader.next_frame().with_context(|| name.clone())? else {
                replay.skipped(reader.skipped());
                return Ok(());
            };
            if std::mem::take(&mut is_first) {
                replay.next_capture(frame.time, outside);
            }
            replay.frame_for(&frame, outside);
        }
        if replay.report().has_failed() || has_failed(outside) {
            return Ok(());
        }
        if let Some(progress) = &mut progress {
            progress.at(reader.consumed());
        }
    }
}
