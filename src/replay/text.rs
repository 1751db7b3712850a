//! The report of a replay as text: one line for each event, in the order of the capture.

use std::fmt::{self, Write as _};
use std::io::{self, Write};

use super::{Blocked, Report, Tally};
use crate::core::session::reassembly::StreamAnomaly;
use crate::core::time::Timestamp;
use crate::core::tracker::{SessionEvent, SessionNumber};

/// How much of an argument is shown.
const LONGEST_ARGUMENT: usize = 80;
/// How many blocked connections the summary lists.
const MOST_BLOCKED: usize = 20;

/// Writes each event as a line that a person reads.
#[derive(Debug)]
pub struct Text<W> {
    sink: W,
    failed: io::Result<()>,
    began: Option<Timestamp>,
    blocked: Vec<(SessionNumber, Blocked)>,
}

impl<W: Write> Text<W> {
    /// Writes to `sink`.
    pub fn new(sink: W) -> Self {
        Self { sink, failed: Ok(()), began: None, blocked: Vec::new() }
    }

    fn line(&mut self, at: Timestamp, session: SessionNumber, text: fmt::Arguments<'_>) {
        // A file that is older than the one before it starts over.
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
    fn news(&mut self, at: Timestamp, session: SessionNumber, news: &SessionEvent<'_>) {
        let mut say = |text: fmt::Arguments<'_>| self.line(at, session, text);
        match *news {
            SessionEvent::Began { connection, picked_up } => {
                let picked_up = if picked_up { " (picked up in the middle)" } else { "" };
                say(format_args!("session {} -> {}{picked_up}", connection.client(), connection.server()));
            }
            SessionEvent::Said { command, argument: None } => say(format_args!("{command} ...")),
            SessionEvent::Said { command, argument: Some(b"") } => say(format_args!("{command}")),
            SessionEvent::Said { command, argument: Some(argument) } => {
                say(format_args!("{command} {}", Shown(argument)));
            }
            SessionEvent::Denied { command } => say(format_args!("{command} is denied by the policy")),
            SessionEvent::LoggedIn { user: Some(user) } => say(format_args!("logged in as {user}")),
            SessionEvent::LoggedIn { user: None } => say(format_args!("logged in")),
            SessionEvent::Expected { mode, expectation, rewritten_from } => {
                let lifetime = expectation.lifetime;
                say(format_args!("{} opens {expectation} for {lifetime:?}", mode.announced_by()));
                if let Some(from) = rewritten_from {
                    say(format_args!("{} of {from} rewritten to {}", mode.announced_by(), expectation.to));
                }
            }
            SessionEvent::Refused { mode, to, why } => {
                let by = mode.announced_by();
                let explanation = why.explanation();
                match to {
                    Some(to) => say(format_args!("{by} of {to} refused, {why}: {explanation}")),
                    None => say(format_args!("{by} refused, {why}: {explanation}")),
                }
            }
            SessionEvent::Used { mode: Some(_), flow } => say(format_args!("used by {flow}")),
            SessionEvent::Used { mode: None, flow } => say(format_args!("used by {flow} (of an encrypted session)")),
            SessionEvent::Expired(expectation) => say(format_args!("{expectation} expired unused")),
            SessionEvent::Closed { expectation, why } => {
                say(format_args!("{expectation} closed unused, {}", why.explanation()));
            }
            SessionEvent::Encrypted { port_range: None } => {
                say(format_args!("encrypted from here on: nothing more can be read, nothing opens"));
            }
            SessionEvent::Encrypted { port_range: Some(port_range) } => {
                say(format_args!("encrypted from here on: {port_range} opens once the dialogue is as long as a login"));
            }
            SessionEvent::RangeOpened(port_range) => say(format_args!("{port_range} opens while the session lasts")),
            SessionEvent::RangeRefused { port_range, why } => {
                say(format_args!("{port_range} refused, {why}: {}", why.explanation()));
            }
            SessionEvent::NotFtp => say(format_args!("this is not FTP: nothing opens")),
            SessionEvent::Ended(how) => say(format_args!("end, {}", how.name())),
            SessionEvent::Anomaly(anomaly) => say(format_args!("anomaly: {}", explain(anomaly))),
        }
    }

    fn blocked(&mut self, at: Timestamp, session: SessionNumber, blocked: &Blocked) {
        self.line(at, session, format_args!("BLOCKED {} -> {}: not expected", blocked.from, blocked.to));
        if self.blocked.len() < MOST_BLOCKED {
            self.blocked.push((session, *blocked));
        }
    }

    fn summary(&mut self, _: Timestamp, tally: &Tally) {
        let Tally { packets, sessions, expectations, refusals, related, expired, blocked, .. } = *tally;
        self.write(format_args!(
            "\n{}, {}: {} admitted, {refusals} refused; {} came as expected, {blocked} would be blocked; \
             {} expired unused.\n",
            Many(packets, "packet"),
            Many(sessions, "session"),
            Many(expectations, "announcement"),
            Many(related, "data connection"),
            Many(expired, "pinhole"),
        ));
        if tally.evicted > 0 {
            self.write(format_args!(
                "{} sessions were forgotten because the policy's `limits: sessions` was reached.\n",
                tally.evicted
            ));
        }
        let Tally { fragments, cut, damaged, oddities, .. } = *tally;
        if tally.anomalies() > 0 {
            self.write(format_args!(
                "{} anomalies: {fragments} fragments, {cut} packets cut short, {damaged} damaged, {oddities} oddities \
                 in the streams.\n",
                tally.anomalies()
            ));
        }
        if blocked > 0 {
            self.write(format_args!("Would be blocked:\n"));
            for (session, one) in std::mem::take(&mut self.blocked) {
                self.write(format_args!("  {} -> {} (session #{session})\n", one.from, one.to));
            }
            let more = blocked.saturating_sub(MOST_BLOCKED as u64);
            if more > 0 {
                self.write(format_args!("  and {more} more\n"));
            }
        }
    }
}

const fn explain(anomaly: StreamAnomaly) -> &'static str {
    match anomaly {
        StreamAnomaly::DifferingCopy => "bytes came a second time with other values; the first ones count",
        StreamAnomaly::FarAway => "a segment far away from where the stream is; it does not count",
        StreamAnomaly::TooMuchWaiting => "too much came out of order",
        StreamAnomaly::Lost => "bytes are missing in the capture that the receiver had",
        StreamAnomaly::Unacceptable => "a segment that its receiver ignores; it does not count",
        StreamAnomaly::StaleTimestamp => "a segment with an old timestamp (PAWS); it does not count",
        StreamAnomaly::BesideFin => "a segment that contradicts where its sender has ended; it does not count",
        StreamAnomaly::WrongSide => "a segment from the side of its receiver; it does not count",
        StreamAnomaly::Unverifiable => "bytes came a second time, too late to compare; they do not count",
    }
}

/// So many of something.
struct Many(u64, &'static str);

impl fmt::Display for Many {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0 == 1 { "" } else { "s" };
        write!(f, "{} {}{plural}", self.0, self.1)
    }
}

/// Bytes from the network as text that no terminal takes for more than text.
struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, dots) =
            if self.0.len() > LONGEST_ARGUMENT { (&self.0[..LONGEST_ARGUMENT], "...") } else { (self.0, "") };
        for letter in String::from_utf8_lossy(shown).chars() {
            if letter.is_control() { write!(f, "{}", letter.escape_default())? } else { f.write_char(letter)? }
        }
        f.write_str(dots)
    }
}
