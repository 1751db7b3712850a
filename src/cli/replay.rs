//! `pinhole replay`: captures in, what would have happened out.

use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::progress::Progress;
use super::{Outcome, input};
use crate::capture::file::FileReader;
use crate::policy::Policy;
use crate::replay::{Json, Replay, Sink, Text};

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
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let is_stdin = |path: &&PathBuf| path.as_os_str() == "-";
    if args.files.iter().chain(&args.policy).filter(is_stdin).count() > 1 {
        super::complain(format_args!("standard input can be read only once, but `-` stands there several times"));
        return Ok(Outcome::BadUsage);
    }
    let policy = match input::policy(args.policy.as_deref()) {
        Ok(policy) => policy,
        Err(outcome) => return Ok(outcome),
    };
    let out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    if args.json { replay(args, policy, Json::new(out)) } else { replay(args, policy, Text::new(out)) }
}

fn replay<S: Sink>(args: &Args, policy: Policy, sink: S) -> anyhow::Result<Outcome> {
    let mut replay = Replay::new(policy, sink);
    let mut outcome = Outcome::Good;
    for path in &args.files {
        // What can be read of the other files is worth having, whatever is wrong with this one.
        if let Err(error) = replay_file(path, &mut replay) {
            super::complain(format_args!("{error:#}"));
            outcome = Outcome::BadInput;
        }
        if replay.report().has_failed() {
            break;
        }
    }
    let (_, sink) = replay.finish();
    sink.finish()?;
    Ok(outcome)
}

fn replay_file<S: Sink>(path: &Path, replay: &mut Replay<S>) -> anyhow::Result<()> {
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
                replay.next_capture(frame.time);
            }
            replay.frame(&frame);
        }
        if replay.report().has_failed() {
            return Ok(());
        }
        if let Some(progress) = &mut progress {
            progress.at(reader.consumed());
        }
    }
}
