//! The report of a replay as JSON: one object a line, as `docs/reference/replay.md` describes.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Blocked, Report, Tally};
use crate::core::expectation::PortRangePinhole;
use crate::core::time::Timestamp;
use crate::core::tracker::{SessionEvent, SessionNumber};

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

/// The fields of one kind of event.
#[derive(Serialize)]
#[serde(untagged)]
enum Fields<'a> {
    None {},
    Session {
        client: String,
        server: String,
        picked_up: bool,
    },
    Login {
        user: Option<&'a str>,
    },
    Denied {
        command: &'a str,
    },
    Expectation {
        announced_by: &'static str,
        from: String,
        to: String,
        expires: Box<RawValue>,
        #[serde(skip_serializing_if = "Option::is_none")]
        announced: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        rewritten_to: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        delivered_to: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        leaves_from: Option<String>,
    },
    Refusal {
        announced_by: &'static str,
        to: Option<String>,
        reason: &'static str,
    },
    Related {
        from: String,
        to: String,
        announced_by: &'static str,
    },
    Hole {
        from: String,
        to: String,
    },
    HoleAndReason {
        from: String,
        to: String,
        reason: &'static str,
    },
    PortRangePinhole {
        from: String,
        to: String,
        ports: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
    },
    Reason {
        reason: &'static str,
    },
    Summary {
        packets: u64,
        sessions: u64,
        expectations: u64,
        refusals: u64,
        related: u64,
        blocked: u64,
        anomalies: u64,
    },
}

impl<W: Write> Json<W> {
    /// Writes to `sink`.
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

/// A decimal number as it is, with all of its digits; a floating point one could not hold nanoseconds of today.
fn number(decimal: String) -> Box<RawValue> {
    RawValue::from_string(decimal).expect("digits and a point are a JSON number")
}

impl<W: Write> Report for Json<W> {
    fn news(&mut self, at: Timestamp, session: SessionNumber, news: &SessionEvent<'_>) {
        let (event, fields): (&'static str, Fields<'_>) = match *news {
            SessionEvent::Began { connection, picked_up } => {
                let client = connection.client().to_string();
                ("session", Fields::Session { client, server: connection.server().to_string(), picked_up })
            }
            SessionEvent::LoggedIn { user } => ("login", Fields::Login { user }),
            SessionEvent::Denied { command } => ("denied", Fields::Denied { command }),
            SessionEvent::Expected { mode, expectation, rewritten_from } => {
                let lifetime = expectation.lifetime;
                let expires = match lifetime.subsec_nanos() {
                    0 => lifetime.as_secs().to_string(),
                    nanos => format!("{}.{nanos:09}", lifetime.as_secs()),
                };
                let fields = Fields::Expectation {
                    announced_by: mode.announced_by(),
                    from: expectation.from.to_string(),
                    to: expectation.to.to_string(),
                    expires: number(expires),
                    announced: rewritten_from.map(|from| from.to_string()),
                    rewritten_to: rewritten_from.map(|_| expectation.to.to_string()),
                    delivered_to: expectation.mapping.to.map(|to| to.to_string()),
                    leaves_from: expectation.mapping.from.map(|from| from.to_string()),
                };
                ("expectation", fields)
            }
            SessionEvent::Refused { mode, to, why } => {
                let to = to.map(|to| to.to_string());
                ("refusal", Fields::Refusal { announced_by: mode.announced_by(), to, reason: why.name() })
            }
            SessionEvent::Used { mode, flow } => {
                // What came through a port_range was announced where nobody could read it.
                let announced_by = mode.map_or("AUTH", |mode| mode.announced_by());
                let (from, to) = (flow.source.to_string(), flow.destination.to_string());
                ("related", Fields::Related { from, to, announced_by })
            }
            SessionEvent::Expired(expectation) => {
                let (from, to) = (expectation.from.to_string(), expectation.to.to_string());
                ("expired", Fields::Hole { from, to })
            }
            SessionEvent::Closed { expectation, why } => {
                let (from, to) = (expectation.from.to_string(), expectation.to.to_string());
                ("closed", Fields::HoleAndReason { from, to, reason: why.name() })
            }
            SessionEvent::Encrypted { port_range } => {
                ("encrypted", port_range.map_or(Fields::None {}, |port_range| range(&port_range, None)))
            }
            SessionEvent::RangeOpened(port_range) => ("range", range(&port_range, None)),
            SessionEvent::RangeRefused { port_range, why } => ("range-refusal", range(&port_range, Some(why.name()))),
            SessionEvent::NotFtp => ("not-ftp", Fields::None {}),
            SessionEvent::Ended(how) => ("end", Fields::Reason { reason: how.name() }),
            SessionEvent::Said { .. } | SessionEvent::Anomaly(_) => return,
        };
        self.line(event, at, Some(session), fields);
    }

    fn blocked(&mut self, at: Timestamp, session: SessionNumber, blocked: &Blocked) {
        let fields = Fields::Hole { from: blocked.from.to_string(), to: blocked.to.to_string() };
        self.line("blocked", at, Some(session), fields);
    }

    fn summary(&mut self, at: Timestamp, tally: &Tally) {
        let Tally { packets, sessions, expectations, refusals, related, blocked, .. } = *tally;
        let anomalies = tally.anomalies();
        let fields = Fields::Summary { packets, sessions, expectations, refusals, related, blocked, anomalies };
        self.line("summary", at, None, fields);
    }
}

fn range(port_range: &PortRangePinhole, reason: Option<&'static str>) -> Fields<'static> {
    let PortRangePinhole { from, to, ports } = port_range;
    Fields::PortRangePinhole { from: from.to_string(), to: to.to_string(), ports: ports.to_string(), reason }
}
