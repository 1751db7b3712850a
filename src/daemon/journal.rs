//! Writes the tracker's events as log lines, and counts them.

use std::fmt;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use tracing::{debug, info, warn};

use super::log_limit::{LineKind, LogLimit, Omitted};
use super::status::Counters;
use crate::core::net::Endpoint;
use crate::core::time::Timestamp;
use crate::core::tracker::{ClientKey, Observer, SessionEvent, SessionNumber};

/// How long nothing more is said of something that happens all the time.
const SELDOM: Duration = Duration::from_secs(1);

/// Counts everything and logs what an administrator would want to know.
#[derive(Debug, Default)]
pub(super) struct Journal {
    pub(super) counters: Counters,
    /// Between whom the sessions are; as many as there are sessions.
    sessions: HashMap<SessionNumber, Ends, RandomState>,
    limit: LogLimit,
}

/// The two ends of a session.
#[derive(Clone, Copy, Debug)]
struct Ends {
    client: Endpoint,
    server: Endpoint,
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.client, self.server)
    }
}

/// The two ends, where they are known.
struct Known(Option<Ends>);

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |ends| write!(f, " ({ends})"))
    }
}

/// Lines that were left out before this one.
struct More(u64);

impl fmt::Display for More {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(more) = self;
        if *more == 0 { Ok(()) } else { write!(f, " ({more} more of this client since the last such line)") }
    }
}

impl Journal {
    /// Says what was left out, where no line follows that would.
    pub(super) fn say_omitted(&mut self, now: Timestamp) {
        for (kind, Omitted { lines, clients }) in self.limit.sweep(now) {
            let kind = kind.name();
            warn!(
                "left out {lines} lines `{kind}`, of {clients} clients: each may cause a few a second (`status` counts)"
            );
        }
    }

    fn may_say(&mut self, at: Timestamp, kind: LineKind, ends: Option<Ends>) -> Option<More> {
        let client = ends.map(|ends| ClientKey::of(ends.client.address));
        self.limit.admit(kind, client, at).map(More)
    }
}

impl Observer for Journal {
    fn observe(&mut self, at: Timestamp, session: SessionNumber, news: &SessionEvent<'_>) {
        let ends = self.sessions.get(&session).copied();
        let known = Known(ends);
        match *news {
            SessionEvent::Began { connection, picked_up } => {
                self.counters.sessions += 1;
                let ends = Ends { client: connection.client(), server: connection.server() };
                self.sessions.insert(session, ends);
                let how = if picked_up { "picked up" } else { "began" };
                debug!("session {session} {how}: {ends}");
            }
            SessionEvent::Said { command, .. } => debug!("session {session}: {command}"),
            SessionEvent::Denied { command } => {
                let Some(more) = self.may_say(at, LineKind::Denied, ends) else { return };
                warn!("session {session}{known}: the client gave {command}, which the policy denies{more}");
            }
            SessionEvent::LoggedIn { user } => debug!("session {session}: logged in as {}", user.unwrap_or("?")),
            SessionEvent::Expected { mode, expectation, rewritten_from } => {
                self.counters.opened += 1;
                let Some(more) = self.may_say(at, LineKind::Opened, ends) else { return };
                let (by, lifetime) = (mode.announced_by(), expectation.lifetime);
                let rewritten = Rewritten(rewritten_from);
                info!("opened {expectation} for {lifetime:?}: announced by {by}{rewritten} in session {session}{more}");
            }
            SessionEvent::Refused { mode, to, why } => {
                *self.counters.refused.entry(why.name()).or_default() += 1;
                let Some(more) = self.may_say(at, LineKind::Refused, ends) else { return };
                let to = to.map_or_else(String::new, |to| format!(" {to}"));
                let (by, explanation) = (mode.announced_by(), why.explanation());
                warn!("refused{to}: {by} in session {session}: {why}, {explanation}{known}{more}");
            }
            SessionEvent::Used { flow, .. } => {
                self.counters.used += 1;
                let Some(more) = self.may_say(at, LineKind::Used, ends) else { return };
                info!("used {flow}: {}{more}", announced(session));
            }
            SessionEvent::Expired(expectation) => {
                self.counters.expired += 1;
                let Some(more) = self.may_say(at, LineKind::Expired, ends) else { return };
                info!("expired {expectation}: nobody came, {}{more}", announced(session));
            }
            SessionEvent::Closed { expectation, why } => {
                self.counters.closed += 1;
                let Some(more) = self.may_say(at, LineKind::Closed, ends) else { return };
                info!("closed {expectation}: {}, {}{more}", why.explanation(), announced(session));
            }
            SessionEvent::Encrypted { port_range } => {
                self.counters.encrypted += 1;
                let Some(more) = self.may_say(at, LineKind::Encrypted, ends) else { return };
                match port_range {
                    None => info!(
                        "session {session}{known} is encrypted: nothing opens for it (see `tls` in the policy){more}"
                    ),
                    Some(port_range) => info!(
                        "session {session}{known} is encrypted: {port_range} opens once the dialogue is as long as a \
                         login{more}"
                    ),
                }
            }
            SessionEvent::RangeOpened(port_range) => {
                self.counters.ranges += 1;
                let Some(more) = self.may_say(at, LineKind::Opened, ends) else { return };
                info!("opened {port_range} for encrypted session {session}, while it lasts{more}");
            }
            SessionEvent::RangeRefused { port_range, why } => {
                *self.counters.refused.entry(why.name()).or_default() += 1;
                let Some(more) = self.may_say(at, LineKind::Refused, ends) else { return };
                let explanation = why.explanation();
                warn!("refused {port_range}: encrypted session {session}: {why}, {explanation}{known}{more}");
            }
            SessionEvent::NotFtp => {
                self.counters.not_ftp += 1;
                let Some(more) = self.may_say(at, LineKind::NotFtp, ends) else { return };
                warn!("session {session}{known} does not talk FTP: nothing opens for it{more}");
            }
            SessionEvent::Ended(how) => {
                self.sessions.remove(&session);
                if how.is_eviction() {
                    *self.counters.evicted.entry(how.name()).or_default() += 1;
                }
                debug!("session {session} is over: {}", how.name());
            }
            SessionEvent::Anomaly(anomaly) => {
                self.counters.anomalies += 1;
                debug!("session {session}: {anomaly:?}");
            }
        }
    }
}

fn announced(session: SessionNumber) -> String {
    if session == SessionNumber::EARLIER {
        "announced before this program began".to_owned()
    } else {
        format!("announced in session {session}")
    }
}

/// Lets something be said once a second, with how often it happened.
#[derive(Debug, Default)]
pub(super) struct RateLimiter {
    last: Option<Timestamp>,
    untold: u64,
}

impl RateLimiter {
    /// How often it happened since it was said last, if it may be said again.
    pub(super) fn worth_telling(&mut self, now: Timestamp) -> Option<u64> {
        self.untold += 1;
        if self.last.is_some_and(|last| now.since(last) < SELDOM) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

/// What had been announced, where the line was rewritten.
struct Rewritten(Option<std::net::SocketAddr>);

impl fmt::Display for Rewritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |from| write!(f, " as {from}, rewritten,"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_all_the_time_is_said_once_a_second() {
        let mut seldom = RateLimiter::default();
        let start = Timestamp::from_secs(5);
        assert_eq!(seldom.worth_telling(start), Some(1));
        assert_eq!(seldom.worth_telling(start + SELDOM / 2), None);
        assert_eq!(seldom.worth_telling(start + SELDOM), Some(2));
    }
}
