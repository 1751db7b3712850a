//! The news as log lines and counts: one line for each pinhole opened, used, expired and refused.

use std::time::Duration;

use tracing::{debug, info, warn};

use super::status::Counters;
use crate::time::Timestamp;
use crate::tracker::{News, Observer, SessionNumber};

/// How long nothing more is said of something that happens all the time.
const SELDOM: Duration = Duration::from_secs(1);

/// Counts everything and logs what an administrator would want to know.
#[derive(Debug, Default)]
pub(super) struct Journal {
    pub(super) counters: Counters,
    refusals: Seldom,
    denials: Seldom,
}

impl Observer for Journal {
    fn observe(&mut self, at: Timestamp, session: SessionNumber, news: &News<'_>) {
        let counters = &mut self.counters;
        match *news {
            News::Began { connection, picked_up } => {
                counters.sessions += 1;
                let how = if picked_up { "picked up" } else { "began" };
                debug!("session {session} {how}: {} -> {}", connection.client(), connection.server());
            }
            News::Said { command, .. } => debug!("session {session}: {command}"),
            News::Denied { command } => {
                let Some(times) = self.denials.worth_telling(at) else { return };
                let more =
                    if times > 1 { format!(" ({times} denied since the last such line)") } else { String::new() };
                warn!("session {session}: the client gave {command}, which the policy denies{more}");
            }
            News::LoggedIn { user } => debug!("session {session}: logged in as {}", user.unwrap_or("?")),
            News::Expected { mode, expectation, rewritten_from } => {
                counters.opened += 1;
                let (by, lifetime) = (mode.announced_by(), expectation.lifetime);
                let rewritten = Rewritten(rewritten_from);
                info!("opened {expectation} for {lifetime:?}: announced by {by}{rewritten} in session {session}");
            }
            News::Refused { mode, to, why } => {
                *counters.refused.entry(why.name()).or_default() += 1;
                // Whoever announces nonsense all day long shall not fill the log.
                let Some(times) = self.refusals.worth_telling(at) else { return };
                let more =
                    if times > 1 { format!(" ({times} refused since the last such line)") } else { String::new() };
                let to = to.map_or_else(String::new, |to| format!(" {to}"));
                let (by, explanation) = (mode.announced_by(), why.explanation());
                warn!("refused{to}: {by} in session {session}: {why}, {explanation}{more}");
            }
            News::Used { flow, .. } => {
                counters.used += 1;
                info!("used {flow}: {}", announced(session));
            }
            News::Expired(expectation) => {
                counters.expired += 1;
                info!("expired {expectation}: nobody came, {}", announced(session));
            }
            News::Closed { expectation, why } => {
                counters.closed += 1;
                info!("closed {expectation}: {}, {}", why.explanation(), announced(session));
            }
            News::Encrypted { corridor: None } => {
                counters.encrypted += 1;
                info!("session {session} is encrypted: nothing opens for it (see `tls` in the policy)");
            }
            News::Encrypted { corridor: Some(corridor) } => {
                counters.encrypted += 1;
                info!("session {session} is encrypted: the policy admits {corridor} while it lasts");
            }
            News::NotFtp => {
                counters.not_ftp += 1;
                warn!("session {session} does not talk FTP: nothing opens for it");
            }
            News::Ended(how) => {
                if how.is_eviction() {
                    *counters.evicted.entry(how.name()).or_default() += 1;
                }
                debug!("session {session} is over: {}", how.name());
            }
            News::Anomaly(anomaly) => {
                counters.anomalies += 1;
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
pub(super) struct Seldom {
    last: Option<Timestamp>,
    untold: u64,
}

impl Seldom {
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

impl std::fmt::Display for Rewritten {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |from| write!(f, " as {from}, rewritten,"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_all_the_time_is_said_once_a_second() {
        let mut seldom = Seldom::default();
        let start = Timestamp::from_secs(5);
        assert_eq!(seldom.worth_telling(start), Some(1));
        assert_eq!(seldom.worth_telling(start + SELDOM / 2), None);
        assert_eq!(seldom.worth_telling(start + SELDOM), Some(2));
    }
}
