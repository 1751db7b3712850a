//! What became of recent announcements, for `pinhole explain`: the latest events of each session, also of some sessions that
//! have ended.

use std::collections::VecDeque;
use std::net::IpAddr;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use crate::core::net::Connection;
use crate::core::time::Timestamp;
use crate::core::tracker::{ClientKey, EndReason, SessionEvent, SessionNumber};

/// How many events are kept of a session.
const MAX_EVENTS: usize = 16;
/// How many events are kept in all, and how many of one client: some ten megabytes.
const MAX_KEPT: usize = 16_384;
const MAX_KEPT_OF_CLIENT: usize = 1024;
/// How many ended sessions are kept, and how many of them of one client.
const MAX_ENDED: usize = 512;
const MAX_ENDED_PER_CLIENT: usize = 32;
/// How many sessions an answer has, the latest ones.
const MAX_ANSWERED: usize = 8;

/// The tracker limits the sessions that have not ended; this limits the others, and the events of all.
#[derive(Debug, Default)]
pub(super) struct History {
    sessions: HashMap<SessionNumber, Record, RandomState>,
    /// The session and the number of each kept event, the oldest one first. Some are forgotten already.
    kept: VecDeque<(SessionNumber, u64)>,
    kept_of_client: HashMap<ClientKey, usize, RandomState>,
    /// The number of the latest event.
    latest: u64,
    /// The ended sessions, the oldest one first, each with its client.
    ended: VecDeque<(SessionNumber, ClientKey)>,
}

#[derive(Debug)]
struct Record {
    connection: Connection,
    picked_up: bool,
    user: Option<Box<str>>,
    /// The name of the policy's rule for it.
    rule: Option<Box<str>>,
    ended: Option<EndReason>,
    is_encrypted: bool,
    is_not_ftp: bool,
    events: VecDeque<Event>,
}

#[derive(Debug)]
struct Event {
    number: u64,
    at: Timestamp,
    name: &'static str,
    message: Message,
}

/// What an event says. Most are printed only when somebody asks.
#[derive(Debug)]
enum Message {
    Event(SessionEvent<'static>),
    Text(Box<str>),
}

impl Record {
    fn client(&self) -> ClientKey {
        ClientKey::of(self.connection.client().address)
    }
}

/// A session between a client and a server, as `pinhole explain` gets it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionReport {
    pub number: u64,
    pub client: String,
    pub server: String,
    pub user: Option<String>,
    /// The name of the policy's rule for it. None if no rule matches, so that the defaults apply.
    pub rule: Option<String>,
    /// The beginning of the session was not read.
    pub picked_up: bool,
    pub encrypted: bool,
    pub not_ftp: bool,
    /// How it ended. None if it has not.
    pub ended: Option<String>,
    /// What was announced and what became of it, the latest event last.
    pub events: Vec<EventReport>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventReport {
    /// How long ago, in seconds.
    pub age: f64,
    /// Its name in the log: `opened`, `refused`, `used`, `expired`, and so on.
    pub event: String,
    /// The line of the log, without the session.
    pub message: String,
}

impl History {
    pub(super) fn observe(&mut self, at: Timestamp, number: SessionNumber, event: &SessionEvent<'_>) {
        if let SessionEvent::Began { connection, picked_up, rule } = *event {
            let record = Record {
                connection: *connection,
                picked_up,
                user: None,
                rule: rule.map(Box::from),
                ended: None,
                is_encrypted: false,
                is_not_ftp: false,
                events: VecDeque::new(),
            };
            self.sessions.insert(number, record);
            return;
        }
        let Some(record) = self.sessions.get_mut(&number) else { return };
        match *event {
            SessionEvent::RuleFound { rule } => record.rule = rule.map(Box::from),
            SessionEvent::LoggedIn { user } => record.user = user.map(Box::from),
            SessionEvent::Encrypted { .. } => record.is_encrypted = true,
            SessionEvent::NotFtp => record.is_not_ftp = true,
            SessionEvent::Ended(how) => {
                record.ended = Some(how);
                let client = record.client();
                self.ended.push_back((number, client));
                self.forget(client);
                return;
            }
            _ => {}
        }
        if let Some(name) = name(event) {
            self.keep(number, at, name, message(event));
        }
    }

    /// Keeps an event of a session. If its session or client has its share, or all have, the oldest one is forgotten.
    fn keep(&mut self, session: SessionNumber, at: Timestamp, name: &'static str, message: Message) {
        let Some(record) = self.sessions.get_mut(&session) else { return };
        let of_client = self.kept_of_client.entry(record.client()).or_default();
        if record.events.len() >= MAX_EVENTS || *of_client >= MAX_KEPT_OF_CLIENT {
            if record.events.pop_front().is_none() {
                return;
            }
            *of_client -= 1;
        }
        self.latest += 1;
        record.events.push_back(Event { number: self.latest, at, name, message });
        *of_client += 1;
        self.kept.push_back((session, self.latest));
        if self.kept.len() > MAX_KEPT
            && let Some((session, number)) = self.kept.pop_front()
            && let Some(record) = self.sessions.get_mut(&session)
            && record.events.front().is_some_and(|event| event.number == number)
        {
            record.events.pop_front();
            let client = record.client();
            self.uncount(client, 1);
        }
    }

    fn uncount(&mut self, client: ClientKey, events: usize) {
        if let Some(kept) = self.kept_of_client.get_mut(&client) {
            *kept = kept.saturating_sub(events);
            if *kept == 0 {
                self.kept_of_client.remove(&client);
            }
        }
    }

    /// Forgets ended sessions beyond the limits: of this client, and of all.
    fn forget(&mut self, client: ClientKey) {
        let of_client = self.ended.iter().filter(|(_, other)| *other == client).count();
        let oldest = if of_client > MAX_ENDED_PER_CLIENT {
            self.ended.iter().position(|(_, other)| *other == client)
        } else {
            (self.ended.len() > MAX_ENDED).then_some(0)
        };
        if let Some((number, client_of_oldest)) = oldest.and_then(|index| self.ended.remove(index)) {
            let events = self.sessions.remove(&number).map_or(0, |record| record.events.len());
            self.uncount(client_of_oldest, events);
        }
    }

    /// The latest sessions between two hosts, each by an address that either end knows. The latest session is the last one.
    pub(super) fn between(&self, client: IpAddr, server: IpAddr, now: Timestamp) -> Vec<SessionReport> {
        let is_between = |connection: &Connection| {
            let Connection { original, reply } = connection;
            [original.source.address, reply.destination.address].contains(&client)
                && [original.destination.address, reply.source.address].contains(&server)
        };
        let mut found: Vec<_> = self.sessions.iter().filter(|(_, record)| is_between(&record.connection)).collect();
        found.sort_by_key(|(number, _)| **number);
        let skipped = found.len().saturating_sub(MAX_ANSWERED);
        let report = |(number, record): (&SessionNumber, &Record)| SessionReport {
            number: number.get(),
            client: record.connection.client().to_string(),
            server: record.connection.server().to_string(),
            user: record.user.as_deref().map(str::to_owned),
            rule: record.rule.as_deref().map(str::to_owned),
            picked_up: record.picked_up,
            encrypted: record.is_encrypted,
            not_ftp: record.is_not_ftp,
            ended: record.ended.map(|how| how.name().to_owned()),
            events: record
                .events
                .iter()
                .map(|event| EventReport {
                    age: now.since(event.at).as_secs_f64(),
                    event: event.name.to_owned(),
                    message: match &event.message {
                        Message::Event(event) => event.to_string(),
                        Message::Text(text) => text.to_string(),
                    },
                })
                .collect(),
        };
        found.into_iter().skip(skipped).map(report).collect()
    }
}

/// The name of an event that is kept.
fn name(event: &SessionEvent<'_>) -> Option<&'static str> {
    match event {
        SessionEvent::Denied { .. } => Some("denied"),
        SessionEvent::Opened { .. } | SessionEvent::RangeOpened(_) | SessionEvent::OpenedForSyn(_) => Some("opened"),
        SessionEvent::Refused { .. } | SessionEvent::RangeRefused { .. } | SessionEvent::SynRefused { .. } => {
            Some("refused")
        }
        SessionEvent::Used { .. } => Some("used"),
        SessionEvent::Expired(_) => Some("expired"),
        SessionEvent::Dropped(_) => Some("dropped"),
        SessionEvent::Closed { .. } => Some("closed"),
        SessionEvent::Encrypted { .. } => Some("encrypted"),
        SessionEvent::NotFtp => Some("not-ftp"),
        SessionEvent::Began { .. }
        | SessionEvent::RuleFound { .. }
        | SessionEvent::Command { .. }
        | SessionEvent::LoggedIn { .. }
        | SessionEvent::Ended(_)
        | SessionEvent::Anomaly(_) => None,
    }
}

fn message(event: &SessionEvent<'_>) -> Message {
    Message::Event(match *event {
        SessionEvent::Opened { mode, expectation, rewritten_from, is_repaired } => {
            SessionEvent::Opened { mode, expectation, rewritten_from, is_repaired }
        }
        SessionEvent::Used { mode, flow } => SessionEvent::Used { mode, flow },
        SessionEvent::Expired(expectation) => SessionEvent::Expired(expectation),
        SessionEvent::Closed { expectation, why } => SessionEvent::Closed { expectation, why },
        // These are rare, or have references.
        _ => return Message::Text(event.to_string().into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::net::Flow;
    use crate::core::script::endpoint;

    fn begin(history: &mut History, number: u64, client: &str) -> SessionNumber {
        let flow = Flow { source: endpoint(client), destination: endpoint("10.0.0.2:21") };
        let number = (0..number).fold(SessionNumber::EARLIER, |number, _| number.next());
        let event = SessionEvent::Began { connection: &Connection::direct(flow), picked_up: false, rule: Some("old") };
        history.observe(Timestamp::from_secs(1), number, &event);
        number
    }

    fn between(history: &History, client: &str) -> Vec<SessionReport> {
        let server = endpoint("10.0.0.2:21").address;
        history.between(endpoint(client).address, server, Timestamp::from_secs(9))
    }

    #[test]
    fn events_of_a_session_are_reported_with_their_age() {
        let mut history = History::default();
        let number = begin(&mut history, 1, "10.0.0.1:4000");
        history.observe(Timestamp::from_secs(2), number, &SessionEvent::LoggedIn { user: Some("anna") });
        for _ in 0..=MAX_EVENTS {
            history.observe(Timestamp::from_secs(4), number, &SessionEvent::Denied { command: "SITE" });
        }
        let [report] = &*between(&history, "10.0.0.1:1") else { panic!("one session") };
        assert_eq!((report.user.as_deref(), report.rule.as_deref()), (Some("anna"), Some("old")));
        assert_eq!(report.events.len(), MAX_EVENTS);
        assert_eq!((report.events[0].age, &*report.events[0].event), (5.0, "denied"));
        assert_eq!(between(&history, "10.0.0.3:1"), []);
    }

    #[test]
    fn rule_follows_a_reload_until_the_session_ends() {
        let mut history = History::default();
        let number = begin(&mut history, 1, "10.0.0.1:4000");
        let now = Timestamp::from_secs(2);
        let rule = |history: &History| between(history, "10.0.0.1:1")[0].rule.clone();
        history.observe(now, number, &SessionEvent::RuleFound { rule: Some("new") });
        assert_eq!(rule(&history).as_deref(), Some("new"));
        history.observe(now, number, &SessionEvent::RuleFound { rule: None });
        history.observe(now, number, &SessionEvent::Ended(EndReason::Finished));
        assert_eq!(rule(&history), None);
    }

    #[test]
    fn events_are_kept_up_to_limits_per_client_and_in_all() {
        let mut history = History::default();
        let deny = |history: &mut History, number| {
            history.observe(Timestamp::from_secs(3), number, &SessionEvent::Denied { command: "SITE" });
        };
        let kept = |history: &History| history.sessions.values().map(|record| record.events.len()).sum::<usize>();
        let quiet = begin(&mut history, 1, "10.0.0.9:4000");
        deny(&mut history, quiet);
        for number in 2..500 {
            let number = begin(&mut history, number, "10.0.0.1:4000");
            (0..MAX_EVENTS).for_each(|_| deny(&mut history, number));
        }
        assert_eq!(kept(&history), MAX_KEPT_OF_CLIENT + 1);
        assert_eq!(between(&history, "10.0.0.9:1")[0].events.len(), 1, "of another client");
        for number in 500..3000 {
            let number = begin(&mut history, number, &format!("10.1.{}.{}:4000", number / 250, number % 250 + 1));
            (0..MAX_EVENTS).for_each(|_| deny(&mut history, number));
        }
        assert!(kept(&history) <= MAX_KEPT && history.kept.len() <= MAX_KEPT);
        assert_eq!(between(&history, "10.0.0.9:1")[0].events, []);
        let counted: usize = history.kept_of_client.values().sum();
        assert_eq!(counted, kept(&history));
    }

    #[test]
    fn ended_sessions_are_kept_up_to_limits_per_client_and_in_all() {
        let mut history = History::default();
        let end = |history: &mut History, number| {
            history.observe(Timestamp::from_secs(3), number, &SessionEvent::Ended(EndReason::Finished));
        };
        let quiet = begin(&mut history, 1, "10.0.0.9:4000");
        end(&mut history, quiet);
        for number in 2..200 {
            let number = begin(&mut history, number, "10.0.0.1:4000");
            end(&mut history, number);
        }
        // One client does not use up the share of another.
        assert_eq!(history.sessions.len(), MAX_ENDED_PER_CLIENT + 1);
        assert_eq!(between(&history, "10.0.0.9:1")[0].ended.as_deref(), Some("finished"));
        assert_eq!(between(&history, "10.0.0.1:1").last().map(|report| report.number), Some(199));
        for number in 200..200 + 2 * MAX_ENDED as u64 {
            let number = begin(&mut history, number, &format!("10.1.{}.{}:4000", number / 250, number % 250 + 1));
            end(&mut history, number);
        }
        assert_eq!((history.sessions.len(), history.ended.len()), (MAX_ENDED, MAX_ENDED));
    }
}
