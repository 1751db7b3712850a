//! The report of a replay as text: one line for each event, in the order of the capture.

use std::fmt;
use std::io::{self, Write};

use super::{Blocked, Counters, ReplayCounters, Report};
use crate::core::count::Count;
use crate::core::metrics::{EventCounters, Value};
use crate::core::time::Timestamp;
use crate::core::tracker::{SessionEvent, SessionNumber};

/// How many blocked connections the summary lists.
const MAX_BLOCKED: usize = 20;

/// Writes each event as a line of text.
#[derive(Debug)]
pub struct Text<W> {
    sink: W,
    failed: io::Result<()>,
    began: Option<Timestamp>,
    blocked: Vec<(SessionNumber, Blocked)>,
}

impl<W: Write> Text<W> {
    pub fn new(sink: W) -> Self {
        Self { sink, failed: Ok(()), began: None, blocked: Vec::new() }
    }

    fn line(&mut self, at: Timestamp, session: SessionNumber, text: fmt::Arguments<'_>) {
        // Times are relative to the start of the capture. An older capture starts again at zero.
        let began = self.began.map_or(at, |began| began.min(at));
        self.began = Some(began);
        let since = at.since(began);
        let (seconds, millis) = (since.as_secs(), since.subsec_millis());
        self.write(format_args!("{seconds:>6}.{millis:03} #{session:<4} {text}\n"));
    }

    fn write(&mut self, text: fmt::Arguments<'_>) {
        if self.failed.is_ok() {
            self.failed = self.sink.write_fmt(text);
        }
    }
}

impl<W: Write> super::Sink for Text<W> {
    fn finish(mut self) -> io::Result<()> {
        self.failed?;
        self.sink.flush()
    }

    fn has_failed(&self) -> bool {
        self.failed.is_err()
    }
}

impl<W: Write> Report for Text<W> {
    fn event(&mut self, at: Timestamp, session: SessionNumber, event: &SessionEvent<'_>) {
        let through = match event {
            SessionEvent::Used { mode: None, .. } => " through the port range of an encrypted session",
            _ => "",
        };
        self.line(at, session, format_args!("{event}{through}"));
    }

    fn blocked(&mut self, at: Timestamp, session: SessionNumber, blocked: &Blocked) {
        self.line(at, session, format_args!("blocked {} -> {}: not announced", blocked.from, blocked.to));
        if self.blocked.len() < MAX_BLOCKED {
            self.blocked.push((session, *blocked));
        }
    }

    fn summary(&mut self, _: Timestamp, Counters { events, replay }: &Counters) {
        let EventCounters { packets, sessions, opened, used, expired, closed, .. } = *events;
        let ReplayCounters { blocked, truncated } = *replay;
        self.write(format_args!(
            "\n{}, {}; {} opened, {used} used, {expired} expired, {closed} closed; {} refused; {} blocked.\n",
            Count(packets, "packet"),
            Count(sessions, "session"),
            Count(opened, "pinhole"),
            Count(events.refused_in_all(), "announcement"),
            Count(blocked, "connection"),
        ));
        if !events.evicted.is_empty() {
            self.write(format_args!(
                "Sessions evicted by the policy's limits: {}.\n",
                Value::ByReason(&events.evicted)
            ));
        }
        let EventCounters { fragments, damaged, anomalies, .. } = *events;
        if fragments + truncated + damaged + anomalies > 0 {
            self.write(format_args!(
                "{}, {}, {}, {}.\n",
                Count(fragments, "fragment"),
                Count(truncated, "truncated packet"),
                Count(damaged, "damaged packet"),
                Count(anomalies, "stream anomaly"),
            ));
        }
        if blocked > 0 {
            self.write(format_args!("Blocked:\n"));
            for (session, Blocked { from, to }) in std::mem::take(&mut self.blocked) {
                self.write(format_args!("  {from} -> {to} (session #{session})\n"));
            }
            let more = blocked.saturating_sub(MAX_BLOCKED as u64);
            if more > 0 {
                self.write(format_args!("  and {more} more\n"));
            }
        }
    }
}
