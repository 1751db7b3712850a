//! Counts the tracker's events and writes them to the log.

use std::fmt;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use tracing::{debug, info, warn};

use super::log_limit::{LineKind, LogLimit, Suppressed};
use super::status::Counters;
use crate::core::count::Count;
use crate::core::net::Endpoint;
use crate::core::time::Timestamp;
use crate::core::tracker::{ClientKey, Observer, SessionEvent, SessionNumber};

#[derive(Debug, Default)]
pub(super) struct EventLog {
    pub(super) counters: Counters,
    /// Sessions in the tracker, which limits their number.
    sessions: HashMap<SessionNumber, Session, RandomState>,
    limit: LogLimit,
}

/// The fields of a session that log lines contain.
#[derive(Debug)]
struct Session {
    client: Endpoint,
    server: Endpoint,
    user: Option<Box<str>>,
}

/// The end of a line: `session 1 (10.0.0.1:4000 -> 10.0.0.2:21, user "anna")`.
struct Named<'a>(SessionNumber, Option<&'a Session>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(number, session) = *self;
        if number == SessionNumber::EARLIER {
            return f.write_str("announced before the daemon started");
        }
        write!(f, "session {number}")?;
        session.map_or(Ok(()), |session| write!(f, " ({session})"))
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, server, user } = self;
        write!(f, "{client} -> {server}")?;
        // Quoted: the client chose the name.
        user.as_ref().map_or(Ok(()), |user| write!(f, ", user {user:?}"))
    }
}

/// The number of lines that were suppressed before this one.
struct More(u64);

impl fmt::Display for More {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            more => write!(f, " ({more} more from this client since the last such line)"),
        }
    }
}

impl EventLog {
    /// Reports suppressed lines after which no line followed that would have reported them.
    pub(super) fn report_suppressed(&mut self, now: Timestamp) {
        for (kind, Suppressed { lines, clients }) in self.limit.sweep(now) {
            let (lines, clients, kind) = (Count(lines, "line"), Count(clients, "client"), kind.name());
            warn!("suppressed {lines} `{kind}` from {clients}: too many per second; `pinhole status` counts them all");
        }
    }

    /// Writes a line, unless the limit for its client is reached.
    fn write(&mut self, at: Timestamp, kind: LineKind, number: SessionNumber, event: &SessionEvent<'_>) {
        let session = self.sessions.get(&number);
        let client = session.map(|session| ClientKey::of(session.client.address));
        let Some(more) = self.limit.admit(kind, client, at).map(More) else { return };
        let named = Named(number, session);
        if kind.is_warning() { warn!("{event}; {named}{more}") } else { info!("{event}; {named}{more}") }
    }
}

impl Observer for EventLog {
    fn observe(&mut self, at: Timestamp, number: SessionNumber, event: &SessionEvent<'_>) {
        self.counters.events.count(event);
        match *event {
            SessionEvent::Began { connection, .. } => {
                let (client, server) = (connection.client(), connection.server());
                self.sessions.insert(number, Session { client, server, user: None });
                debug!("{event}; session {number}");
            }
            // The arguments of commands are not logged.
            SessionEvent::Command { command, .. } => debug!("{command}; {}", Named(number, self.sessions.get(&number))),
            SessionEvent::LoggedIn { user } => {
                if let Some(session) = self.sessions.get_mut(&number) {
                    session.user = user.map(Box::from);
                }
                debug!("logged in; {}", Named(number, self.sessions.get(&number)));
            }
            SessionEvent::Ended(_) => {
                let session = self.sessions.remove(&number);
                debug!("{event}; {}", Named(number, session.as_ref()));
            }
            SessionEvent::Anomaly(_) => debug!("{event}; {}", Named(number, self.sessions.get(&number))),
            SessionEvent::Denied { .. } => self.write(at, LineKind::Denied, number, event),
            SessionEvent::Opened { .. } | SessionEvent::RangeOpened(_) => {
                self.write(at, LineKind::Opened, number, event);
            }
            SessionEvent::Refused { .. } | SessionEvent::RangeRefused { .. } => {
                self.write(at, LineKind::Refused, number, event);
            }
            SessionEvent::Used { .. } => self.write(at, LineKind::Used, number, event),
            SessionEvent::Expired(_) => self.write(at, LineKind::Expired, number, event),
            SessionEvent::Dropped(_) => self.write(at, LineKind::Dropped, number, event),
            SessionEvent::Closed { .. } => self.write(at, LineKind::Closed, number, event),
            SessionEvent::Encrypted { .. } => self.write(at, LineKind::Encrypted, number, event),
            SessionEvent::NotFtp => self.write(at, LineKind::NotFtp, number, event),
        }
    }
}

/// Admits one line per second, and counts the occurrences since then.
#[derive(Debug, Default)]
pub(super) struct RateLimiter {
    last: Option<Timestamp>,
    pending: u64,
}

impl RateLimiter {
    const INTERVAL: Duration = Duration::from_secs(1);

    /// Counts an occurrence. If a line may be written now, returns the number of occurrences since the last line.
    pub(super) fn admit(&mut self, now: Timestamp) -> Option<u64> {
        self.pending += 1;
        if self.last.is_some_and(|last| now.since(last) < Self::INTERVAL) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.pending))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::script::endpoint;

    #[test]
    fn rate_limiter_admits_one_line_a_second() {
        let mut limiter = RateLimiter::default();
        let start = Timestamp::from_secs(5);
        assert_eq!(limiter.admit(start), Some(1));
        assert_eq!(limiter.admit(start + RateLimiter::INTERVAL / 2), None);
        assert_eq!(limiter.admit(start + RateLimiter::INTERVAL), Some(2));
    }

    #[test]
    fn session_is_named_by_both_addresses_and_its_user() {
        let (client, server) = (endpoint("10.0.0.1:4000"), endpoint("10.0.0.2:21"));
        let session = Session { client, server, user: Some("an\"na".into()) };
        assert_eq!(session.to_string(), r#"10.0.0.1:4000 -> 10.0.0.2:21, user "an\"na""#);
    }
}
