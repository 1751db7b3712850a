//! The report of a replay as JSON: one object per line, as `docs/reference/replay.md` describes.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Blocked, Counters, Report};
use crate::core::expectation::{Expectation, PortRangePinhole};
use crate::core::ftp::Mode;
use crate::core::time::Timestamp;
use crate::core::tracker::{SessionEvent, SessionNumber};

/// What announced a data connection of an encrypted session: the command after which nothing can be read.
const ENCRYPTED: &str = "AUTH";

/// Writes each event as a line.
#[derive(Debug)]
pub struct Json<W> {
    sink: W,
    failed: io::Result<()>,
}

#[derive(Serialize)]
struct Line<'a> {
    event: &'static str,
    time: Box<RawValue>,
    session: Option<u64>,
    #[serde(flatten)]
    fields: Fields<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Fields<'a> {
    None {},
    SessionBegan {
        client: String,
        server: String,
        picked_up: bool,
        rule: Option<&'a str>,
    },
    Rule {
        rule: Option<&'a str>,
    },
    LoggedIn {
        user: Option<&'a str>,
    },
    Denied {
        command: &'a str,
    },
    Opened {
        announced_by: &'static str,
        from: String,
        to: String,
        expires_in: Box<RawValue>,
        #[serde(skip_serializing_if = "Option::is_none")]
        rewritten_from: Option<String>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        repaired: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        delivered_to: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        leaves_from: Option<String>,
    },
    Refused {
        announced_by: &'static str,
        to: Option<String>,
        reason: &'static str,
    },
    Used {
        announced_by: &'static str,
        from: String,
        to: String,
    },
    /// The addresses of a pinhole or a connection.
    Addresses {
        from: String,
        to: String,
    },
    Closed {
        from: String,
        to: String,
        reason: &'static str,
    },
    Encrypted {
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        to: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        ports: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        implicit: Option<bool>,
    },
    Reason {
        reason: &'static str,
    },
    Summary(&'a Counters),
}

impl<W: Write> Json<W> {
    pub fn new(sink: W) -> Self {
        Self { sink, failed: Ok(()) }
    }

    fn line(&mut self, event: &'static str, at: Timestamp, session: Option<SessionNumber>, fields: Fields<'_>) {
        if self.failed.is_err() {
            return;
        }
        let line = Line { event, time: number(at.to_string()), session: session.map(SessionNumber::get), fields };
        self.failed = serde_json::to_writer(&mut self.sink, &line)
            .map_err(io::Error::from)
            .and_then(|()| self.sink.write_all(b"\n"));
    }
}

impl<W: Write> super::Sink for Json<W> {
    fn finish(mut self) -> io::Result<()> {
        self.failed?;
        self.sink.flush()
    }

    fn has_failed(&self) -> bool {
        self.failed.is_err()
    }
}

/// A decimal number with all of its digits: an `f64` cannot hold a current Unix time in nanoseconds.
fn number(decimal: String) -> Box<RawValue> {
    RawValue::from_string(decimal).expect("digits and a point are a JSON number")
}

impl<W: Write> Report for Json<W> {
    fn event(&mut self, at: Timestamp, session: SessionNumber, event: &SessionEvent<'_>) {
        let (name, fields): (&'static str, Fields<'_>) = match *event {
            SessionEvent::Began { connection, picked_up, rule } => {
                let (client, server) = (connection.client().to_string(), connection.server().to_string());
                ("session-began", Fields::SessionBegan { client, server, picked_up, rule })
            }
            SessionEvent::RuleFound { rule } => ("rule-found", Fields::Rule { rule }),
            SessionEvent::LoggedIn { user } => ("logged-in", Fields::LoggedIn { user }),
            SessionEvent::Denied { command } => ("denied", Fields::Denied { command }),
            SessionEvent::Opened { mode, expectation, rewritten_from, is_repaired } => {
                let rewritten_from = rewritten_from.map(|from| from.to_string());
                ("opened", opened(&expectation, mode.announced_by(), rewritten_from, is_repaired))
            }
            SessionEvent::OpenedForSyn(expectation) => ("opened", opened(&expectation, ENCRYPTED, None, false)),
            SessionEvent::SynRefused { flow, why, .. } => {
                let to = Some(flow.destination.to_string());
                ("refused", Fields::Refused { announced_by: ENCRYPTED, to, reason: why.name() })
            }
            SessionEvent::Refused { mode, to, why, .. } => {
                let to = to.map(|to| to.to_string());
                ("refused", Fields::Refused { announced_by: mode.announced_by(), to, reason: why.name() })
            }
            SessionEvent::Used { mode, flow } => {
                let announced_by = mode.map_or(ENCRYPTED, Mode::announced_by);
                let (from, to) = (flow.source.to_string(), flow.destination.to_string());
                ("used", Fields::Used { announced_by, from, to })
            }
            SessionEvent::Expired(expectation) => {
                let (from, to) = (expectation.from.to_string(), expectation.to.to_string());
                ("expired", Fields::Addresses { from, to })
            }
            SessionEvent::Dropped(expectation) => {
                let (from, to) = (expectation.from.to_string(), expectation.to.to_string());
                ("dropped", Fields::Addresses { from, to })
            }
            SessionEvent::Closed { expectation, why } => {
                let (from, to) = (expectation.from.to_string(), expectation.to.to_string());
                ("closed", Fields::Closed { from, to, reason: why.name() })
            }
            SessionEvent::Encrypted { port_range, is_implicit } => {
                ("encrypted", encrypted(port_range.as_ref(), None, is_implicit))
            }
            SessionEvent::RangeOpened(port_range) => ("range-opened", encrypted(Some(&port_range), None, false)),
            SessionEvent::RangeRefused { port_range, why, .. } => {
                ("range-refused", encrypted(Some(&port_range), Some(why.name()), false))
            }
            SessionEvent::NotFtp => ("not-ftp", Fields::None {}),
            SessionEvent::Ended(how) => ("session-ended", Fields::Reason { reason: how.name() }),
            SessionEvent::Command { .. } | SessionEvent::Anomaly(_) => return,
        };
        self.line(name, at, Some(session), fields);
    }

    fn blocked(&mut self, at: Timestamp, session: SessionNumber, blocked: &Blocked) {
        let fields = Fields::Addresses { from: blocked.from.to_string(), to: blocked.to.to_string() };
        self.line("blocked", at, Some(session), fields);
    }

    fn summary(&mut self, at: Timestamp, counters: &Counters) {
        self.line("summary", at, None, Fields::Summary(counters));
    }
}

fn opened(
    expectation: &Expectation,
    announced_by: &'static str,
    rewritten_from: Option<String>,
    repaired: bool,
) -> Fields<'static> {
    let lifetime = expectation.lifetime;
    let expires_in = match lifetime.subsec_nanos() {
        0 => lifetime.as_secs().to_string(),
        nanos => format!("{}.{nanos:09}", lifetime.as_secs()),
    };
    Fields::Opened {
        announced_by,
        from: expectation.from.to_string(),
        to: expectation.to.to_string(),
        expires_in: number(expires_in),
        rewritten_from,
        repaired,
        delivered_to: expectation.mapping.to.map(|to| to.to_string()),
        leaves_from: expectation.mapping.from.map(|from| from.to_string()),
    }
}

fn encrypted(
    port_range: Option<&PortRangePinhole>,
    reason: Option<&'static str>,
    is_implicit: bool,
) -> Fields<'static> {
    Fields::Encrypted {
        from: port_range.map(|range| range.from.to_string()),
        to: port_range.map(|range| range.to.to_string()),
        ports: port_range.map(|range| range.on_syn.to_string()),
        reason,
        implicit: is_implicit.then_some(true),
    }
}
