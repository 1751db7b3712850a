//! Counts the tracker's events and writes them to the log.

use std::fmt;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use tracing::{debug, info, warn};

use super::history::History;
use super::live_session::{LiveSession, Named};
use super::log_limit::{LineKind, LogLimit};
use super::status::{Counters, SessionStatus};
use crate::core::expectation::{Closed, Refusal};
use crate::core::net::Flow;
use crate::core::time::Timestamp;
use crate::core::tracker::{Observer, SessionEvent, SessionNumber};

/// How many sessions the status lists. For each, conntrack may be asked while packets wait.
const MAX_LISTED: usize = 1000;

#[derive(Debug, Default)]
pub(super) struct EventLog {
    pub(super) counters: Counters,
    /// Whether the policy has rules. Without any, no line says that none applies.
    pub(super) has_rules: bool,
    /// Sessions in the tracker, which limits their number.
    sessions: HashMap<SessionNumber, LiveSession, RandomState>,
    limit: LogLimit,
    pub(super) history: History,
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

/// Whether something failed for a user, or an administrator may have to do something.
const fn is_warning(event: &SessionEvent<'_>) -> bool {
    match event {
        SessionEvent::Denied { .. }
        | SessionEvent::Refused { .. }
        | SessionEvent::RangeRefused { .. }
        | SessionEvent::SynRefused { why: Refusal::SharedCgroup | Refusal::NotOpened | Refusal::TooMany, .. }
        | SessionEvent::Expired(_)
        | SessionEvent::Dropped(_)
        | SessionEvent::NotFtp
        // No transfer of the session can be admitted.
        | SessionEvent::Encrypted { port_range: None, .. }
        | SessionEvent::Closed { why: Closed::RefusedByServer, .. } => true,
        SessionEvent::Began { .. }
        | SessionEvent::RuleFound { .. }
        | SessionEvent::Command { .. }
        | SessionEvent::LoggedIn { .. }
        | SessionEvent::Opened { .. }
        | SessionEvent::RangeOpened(_)
        | SessionEvent::OpenedForSyn(_)
        // It may be another program's connection.
        | SessionEvent::SynRefused { .. }
        | SessionEvent::Used { .. }
        | SessionEvent::Encrypted { port_range: Some(_), .. }
        | SessionEvent::Closed { why: Closed::SessionEnded, .. }
        | SessionEvent::Ended(_)
        | SessionEvent::Anomaly(_) => false,
    }
}

impl EventLog {
    /// The name of the rule for a session, if one applies.
    pub(super) fn rule_of(&self, number: SessionNumber) -> Option<&str> {
        self.sessions.get(&number)?.rule.as_deref()
    }

    /// The sessions that have not ended, the oldest ones if there are many. `bytes` tells how much a
    /// data connection has carried, if it has not ended.
    pub(super) fn sessions(
        &self,
        now: Timestamp,
        mut bytes: impl FnMut(&Flow) -> Option<Option<u64>>,
    ) -> Vec<SessionStatus> {
        let mut sessions: Vec<_> = self.sessions.iter().collect();
        sessions.sort_unstable_by_key(|(number, _)| **number);
        let listed = sessions.into_iter().take(MAX_LISTED);
        listed.map(|(number, session)| session.status(*number, now, &mut bytes)).collect()
    }

    /// Reports suppressed lines after which no line followed that would have reported them.
    pub(super) fn report_suppressed(&mut self, now: Timestamp) {
        for (kind, suppressed) in self.limit.sweep(now) {
            warn!("{}: too many per second; `pinhole status` counts them all", suppressed.of_kind(kind));
        }
    }

    fn named(&self, number: SessionNumber) -> Named<'_> {
        Named { number, session: self.sessions.get(&number), has_rules: self.has_rules }
    }

    /// Writes a line, unless the limit for its client is reached.
    fn write(&mut self, at: Timestamp, kind: LineKind, number: SessionNumber, event: &SessionEvent<'_>) {
        let Self { has_rules, sessions, limit, .. } = self;
        // A session that has ended is known no more.
        let ended = match *event {
            SessionEvent::Refused { connection, .. } => Some(LiveSession::of(at, connection, None)),
            _ => None,
        };
        let session = sessions.get(&number);
        let client = session.or(ended.as_ref()).map(|session| session.client.address);
        let Some(more) = limit.admit(kind, client, at).map(More) else { return };
        let has_rules = *has_rules && session.is_some();
        let named = Named { number, session: session.or(ended.as_ref()), has_rules };
        if is_warning(event) { warn!("{event}; {named}{more}") } else { info!("{event}; {named}{more}") }
    }
}

impl Observer for EventLog {
    fn observe(&mut self, at: Timestamp, number: SessionNumber, event: &SessionEvent<'_>) {
        self.counters.events.count(event);
        self.history.observe(at, number, event);
        if let Some(session) = self.sessions.get_mut(&number) {
            session.note(at, event);
        }
        let kind = match *event {
            SessionEvent::Began { connection, rule, .. } => {
                self.sessions.insert(number, LiveSession::of(at, connection, rule));
                return debug!("{event}; session {number}");
            }
            SessionEvent::RuleFound { rule } => {
                let Some(session) = self.sessions.get_mut(&number) else { return };
                if session.rule.as_deref() == rule {
                    return;
                }
                session.rule = rule.map(Box::from);
                return debug!("{event}; {}", self.named(number));
            }
            // The arguments of commands are not logged.
            SessionEvent::Command { command, .. } => return debug!("{command}; {}", self.named(number)),
            SessionEvent::LoggedIn { .. } => return debug!("logged in; {}", self.named(number)),
            SessionEvent::Ended(_) => {
                debug!("{event}; {}", self.named(number));
                self.sessions.remove(&number);
                return;
            }
            SessionEvent::Anomaly(_) => return debug!("{event}; {}", self.named(number)),
            SessionEvent::Denied { .. } => LineKind::Denied,
            SessionEvent::Opened { .. } | SessionEvent::RangeOpened(_) | SessionEvent::OpenedForSyn(_) => {
                LineKind::Opened
            }
            SessionEvent::Refused { .. } | SessionEvent::RangeRefused { .. } => LineKind::Refused,
            SessionEvent::SynRefused { .. } => LineKind::RefusedSyn,
            SessionEvent::Used { .. } => LineKind::Used,
            SessionEvent::Expired(_) => LineKind::Expired,
            SessionEvent::Dropped(_) => LineKind::Dropped,
            SessionEvent::Closed { .. } => LineKind::Closed,
            SessionEvent::Encrypted { .. } => LineKind::Encrypted,
            SessionEvent::NotFtp => LineKind::NotFtp,
        };
        self.write(at, kind, number, event);
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
    use crate::core::expectation::{Expectation, Mapping, OnSyn, PortRangePinhole, Refusal};
    use crate::core::ftp::Mode;
    use crate::core::net::{Connection, Flow};
    use crate::core::policy::Policy;
    use crate::core::script::endpoint;

    #[test]
    fn rate_limiter_admits_one_line_a_second() {
        let mut limiter = RateLimiter::default();
        let start = Timestamp::from_secs(5);
        assert_eq!(limiter.admit(start), Some(1));
        assert_eq!(limiter.admit(start + RateLimiter::INTERVAL / 2), None);
        assert_eq!(limiter.admit(start + RateLimiter::INTERVAL), Some(2));
    }

    fn connection() -> Connection {
        Connection::direct(Flow { source: endpoint("10.0.0.1:4000"), destination: endpoint("10.0.0.2:21") })
    }

    fn named(user: Option<&str>, rule: Option<&str>, has_rules: bool) -> String {
        let mut session = LiveSession::of(Timestamp::from_secs(1), &connection(), rule);
        session.user = user.map(Box::from);
        Named { number: SessionNumber::EARLIER.next(), session: Some(&session), has_rules }.to_string()
    }

    #[test]
    fn session_is_named_by_its_addresses_user_and_rule() {
        let all = named(Some("an\"na"), Some("partners"), true);
        assert_eq!(all, r#"session 1 (10.0.0.1:4000 -> 10.0.0.2:21, user "an\"na", rule "partners")"#);
        assert_eq!(named(None, None, true), "session 1 (10.0.0.1:4000 -> 10.0.0.2:21, no rule)");
        assert_eq!(named(None, None, false), "session 1 (10.0.0.1:4000 -> 10.0.0.2:21)");
    }

    #[test]
    fn what_failed_for_a_user_is_a_warning() {
        let (connection, policy) = (connection(), Policy::embedded());
        let flow = connection.original;
        let expectation = Expectation {
            from: flow.source.address,
            to: flow.destination,
            since: Timestamp::from_secs(1),
            lifetime: Duration::from_secs(60),
            mapping: Mapping::NONE,
        };
        let on_syn = OnSyn::Admit("50000-50100".parse().expect("a range"));
        let port_range = PortRangePinhole { from: flow.source.address, to: flow.destination.address, on_syn };
        let (mode, terms) = (Mode::Pasv, &policy.defaults);
        let (why, refused) = (Refusal::TooMany, Closed::RefusedByServer);
        for event in [
            SessionEvent::Denied { command: "DELE" },
            SessionEvent::Refused { mode, to: None, why, connection: &connection, terms },
            SessionEvent::RangeRefused { port_range, why, terms },
            SessionEvent::Expired(expectation),
            SessionEvent::Dropped(expectation),
            SessionEvent::Closed { expectation, why: refused },
            SessionEvent::Encrypted { port_range: None, is_implicit: false },
            SessionEvent::NotFtp,
        ] {
            assert!(is_warning(&event), "{event}");
        }
        for event in [
            SessionEvent::Opened { mode, expectation, rewritten_from: None, is_repaired: false },
            SessionEvent::Used { mode: Some(mode), flow },
            SessionEvent::Closed { expectation, why: Closed::SessionEnded },
            SessionEvent::Encrypted { port_range: Some(port_range), is_implicit: false },
            SessionEvent::RangeOpened(port_range),
        ] {
            assert!(!is_warning(&event), "{event}");
        }
    }

    #[test]
    fn rule_follows_a_reload() {
        let (mut log, number, connection) = (EventLog::default(), SessionNumber::EARLIER.next(), connection());
        let now = Timestamp::from_secs(1);
        let began = SessionEvent::Began { connection: &connection, picked_up: false, rule: Some("old") };
        log.observe(now, number, &began);
        assert_eq!(log.rule_of(number), Some("old"));
        log.observe(now, number, &SessionEvent::RuleFound { rule: Some("new") });
        assert_eq!(log.rule_of(number), Some("new"));
        log.observe(now, number, &SessionEvent::RuleFound { rule: None });
        assert_eq!(log.rule_of(number), None);
    }
}
