//! The tracker with a simulated firewall, driven by packets. What several modules use is here.

mod adopt;
mod announcements;
mod denied_commands;
mod encryption;
mod lookup;
mod nat;
mod quotas;
mod repair;
mod sessions;
mod syn_proxy;
mod urgent;

use super::*;
use crate::core::kernel::Simulated;
use crate::core::net::Port;
use crate::core::policy;
use crate::core::script::{Conversation, endpoint};
use crate::core::seqadj::Replacement;
use Direction::{FromClient, FromServer};

/// A tracker, its firewall, and the events that it reported, one line each.
struct Fixture {
    tracker: Tracker,
    firewall: Simulated,
    policy: Policy,
    now: Timestamp,
    events: Vec<String>,
}

impl Fixture {
    fn new() -> Self {
        Self::with_policy("")
    }

    fn with_policy(text: &str) -> Self {
        let policy = if text.is_empty() {
            Policy::embedded()
        } else {
            policy::parse("policy.yaml", text).expect("a good policy").policy
        };
        Self {
            tracker: Tracker::default(),
            firewall: Simulated::new([Port::FTP]),
            policy,
            now: Timestamp::from_secs(1000),
            events: Vec::new(),
        }
    }

    fn with_env<R>(
        &mut self,
        act: impl FnOnce(
            &mut Tracker,
            &mut Environment<'_, Simulated, &mut dyn FnMut(Timestamp, SessionNumber, &SessionEvent<'_>)>,
        ) -> R,
    ) -> R {
        let events = &mut self.events;
        let mut record = |_: Timestamp, session: SessionNumber, event: &SessionEvent<'_>| {
            events.extend(describe(event).map(|event| format!("{session} {event}")));
        };
        let mut observer: &mut dyn FnMut(Timestamp, SessionNumber, &SessionEvent<'_>) = &mut record;
        let mut env =
            Environment { now: self.now, policy: &self.policy, firewall: &mut self.firewall, observer: &mut observer };
        act(&mut self.tracker, &mut env)
    }

    fn sees(&mut self, packet: &[u8]) {
        let segment = Segment::parse(packet).expect("a segment");
        self.with_env(|tracker, env| {
            tracker.advance(env);
            tracker.handle(&segment, env)
        });
    }

    /// What of a packet's payload goes on.
    fn lets_pass(&mut self, packet: &[u8]) -> Vec<u8> {
        let segment = Segment::parse(packet).expect("a segment");
        match self.with_env(|tracker, env| tracker.handle(&segment, env)) {
            TrackerVerdict::Untracked | TrackerVerdict::Session(Verdict::Accept) => segment.payload.to_vec(),
            TrackerVerdict::Session(Verdict::Replace(Replacement { payload, .. })) => payload,
            TrackerVerdict::Session(Verdict::Drop | Verdict::Wait) => Vec::new(),
        }
    }

    fn sees_all<P: AsRef<[u8]>>(&mut self, packets: impl IntoIterator<Item = P>) {
        for packet in packets {
            self.sees(packet.as_ref());
        }
    }

    fn waits(&mut self, time: Duration) {
        self.now = self.now + time;
        self.with_env(|tracker, env| {
            tracker.advance(env);
        });
    }

    fn connects(&mut self, from: &str, to: &str) -> bool {
        let flow = Flow { source: endpoint(from), destination: endpoint(to) };
        let now = self.now;
        let admitted = self.firewall.admit(now, &flow).is_some();
        self.with_env(|tracker, env| assert_eq!(tracker.admitted(&flow, env).is_some(), admitted));
        admitted
    }

    /// A SYN comes that no pinhole admits.
    fn asks(&mut self, from: &str, to: &str) -> SynVerdict {
        let flow = Flow { source: endpoint(from), destination: endpoint(to) };
        self.with_env(|tracker, env| tracker.syn(&flow, env))
    }

    /// The policy was changed.
    fn follows_policy(&mut self) {
        self.with_env(|tracker, env| {
            tracker.follow(env);
        });
    }

    fn take_events(&mut self) -> Vec<String> {
        std::mem::take(&mut self.events)
    }
}

fn describe(event: &SessionEvent<'_>) -> Option<String> {
    Some(match event {
        SessionEvent::Began { connection, picked_up: false, .. } => format!("began {}", connection.original),
        SessionEvent::Began { connection, picked_up: true, .. } => format!("picked up {}", connection.original),
        SessionEvent::Command { .. } | SessionEvent::RuleFound { .. } => return None,
        SessionEvent::Denied { command } => format!("denied {command}"),
        SessionEvent::LoggedIn { user } => format!("login {}", user.unwrap_or("?")),
        SessionEvent::Opened { mode, expectation, rewritten_from, is_repaired } => {
            let how = if *is_repaired { "repaired from" } else { "instead of" };
            let from = rewritten_from.map_or(String::new(), |from| format!(" {how} {from}"));
            format!("{} {expectation}{from}", mode.announced_by())
        }
        SessionEvent::OpenedForSyn(expectation) => format!("SYN {expectation}"),
        SessionEvent::SynRefused { flow, why, .. } => format!("SYN {flow} refused: {why}"),
        SessionEvent::Refused { mode, to, why, .. } => match to {
            Some(to) => format!("{} {to} refused: {why}", mode.announced_by()),
            None => format!("{} refused: {why}", mode.announced_by()),
        },
        SessionEvent::Used { flow, .. } => format!("used {flow}"),
        SessionEvent::Expired(expectation) => format!("expired {expectation}"),
        SessionEvent::Dropped(expectation) => format!("dropped {expectation}"),
        SessionEvent::Closed { expectation, why } => format!("closed {expectation}: {}", why.name()),
        SessionEvent::Encrypted { port_range: None, is_implicit: false } => "encrypted".to_owned(),
        SessionEvent::Encrypted { port_range: None, is_implicit: true } => "implicit TLS".to_owned(),
        SessionEvent::Encrypted { port_range: Some(port_range), .. } => format!("encrypted, {port_range}"),
        SessionEvent::RangeOpened(port_range) => format!("range {port_range}"),
        SessionEvent::RangeRefused { port_range, why, .. } => format!("range {port_range} refused: {why}"),
        SessionEvent::NotFtp => "not FTP".to_owned(),
        SessionEvent::Ended(how) => format!("ended: {}", how.name()),
        SessionEvent::Anomaly(anomaly) => format!("anomaly: {anomaly:?}"),
    })
}

const CLIENT: &str = "10.0.0.1:4000";

const SERVER: &str = "10.0.0.2:21";

fn conversation() -> Conversation {
    Conversation::new(endpoint(CLIENT), endpoint(SERVER), 1000, u32::MAX - 20)
}

/// A session in which a user is logged in, without the events so far.
fn logged_in(fixture: &mut Fixture) -> Conversation {
    let mut talk = conversation();
    fixture.sees_all(talk.handshake());
    fixture.sees(&talk.says(FromServer, "220 ready\r\n"));
    fixture.sees(&talk.says(FromClient, "USER anna\r\n"));
    fixture.sees(&talk.says(FromServer, "331 and?\r\n"));
    fixture.sees(&talk.says(FromClient, "PASS secret\r\n"));
    fixture.sees(&talk.says(FromServer, "230 in\r\n"));
    assert_eq!(fixture.take_events(), ["1 began 10.0.0.1:4000 -> 10.0.0.2:21", "1 login anna"]);
    talk
}

const PASSIVE: &str = "227 Entering Passive Mode (10,0,0,2,4,1).\r\n";

const PASSIVE_OPENS: &str = "1 227 10.0.0.1 -> 10.0.0.2:1025";

const PASSIVE_UNASKED: &str = "1 227 10.0.0.2:1025 refused: not-asked-for";
