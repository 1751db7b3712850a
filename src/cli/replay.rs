//! `pinhole replay`: replays captures and prints the report.

use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::outside::{OutsideFile, is_same_file};
use super::progress::Progress;
use super::{Outcome, input};
use crate::core::count::Count;
use crate::replay::pcap::file::FileReader;
use crate::replay::{Json, Outside, Replay, Sink, Text};

/// How many frames are read between two checks for a failed write.
const FRAMES_PER_CHECK: u32 = 4096;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Capture files, pcap or pcapng; `-` reads standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Policy file; without it, the built-in policy
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// YAML file that describes the NAT gateway (docs/reference/replay.md); `-` reads standard input
    #[arg(long, value_name = "FILE")]
    nat: Option<PathBuf>,
    /// Write the packets as they are outside the NAT to this pcap file
    #[arg(long, value_name = "OUT", requires = "nat")]
    write: Option<PathBuf>,
    /// Print each event as a JSON object on a line of its own
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let is_stdin = |path: &&PathBuf| path.as_os_str() == "-";
    if args.files.iter().chain(&args.policy).chain(&args.nat).filter(is_stdin).count() > 1 {
        super::print_error(format_args!("standard input can be read only once, but `-` is given several times"));
        return Ok(Outcome::BadUsage);
    }
    if let Some(problem) = args.write.as_deref().and_then(|path| unwritable(args, path)) {
        super::print_error(format_args!("{problem}"));
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
        replay(args, Replay::with_nat(policy, nat, Json::new(out)))
    } else {
        replay(args, Replay::with_nat(policy, nat, Text::new(out)))
    }
}

/// Why `--write` may not write that file.
fn unwritable(args: &Args, path: &Path) -> Option<String> {
    if path.as_os_str() == "-" {
        return Some("`--write` needs a file name: standard output has the report".to_owned());
    }
    let mut read = args.files.iter().chain(&args.policy).chain(&args.nat);
    let same = read.find(|input| is_same_file(input, path))?;
    Some(format!("`--write` would overwrite the input file {}", same.display()))
}

fn replay<S: Sink>(args: &Args, mut replay: Replay<S>) -> anyhow::Result<Outcome> {
    let Some(path) = &args.write else {
        let outcome = replay_files(args, &mut replay, &mut (), |()| false);
        return finish(replay, outcome);
    };
    let mut outside = OutsideFile::create(path)?;
    let mut outcome = replay_files(args, &mut replay, &mut outside, OutsideFile::has_failed);
    replay.release_pending(&mut outside);
    let untranslated = replay.untranslated();
    if untranslated > 0 {
        super::print_error(format_args!(
            "{}: contains {} as captured, with inside addresses, because the capture does not hold them completely; \
             capture with -s 0",
            path.display(),
            Count(untranslated, "packet"),
        ));
    }
    if let Err(error) = outside.finish() {
        super::print_error(format_args!("{error:#}"));
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
        // A damaged file does not stop the replay of the others.
        if let Err(error) = replay_file(path, replay, outside, has_failed) {
            super::print_error(format_args!("{error:#}"));
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
        for _ in 0..FRAMES_PER_CHECK {
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
            progress.update(reader.consumed());
        }
    }
}
