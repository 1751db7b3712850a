//! What was left, with a simulated firewall.

use super::*;
use crate::core::expectation::Mapping;
use crate::core::kernel::{Progress, Simulated};
use crate::core::net::{Direction, Endpoint, Port, PortRange, Segment};
use crate::core::policy::{self, Policy};
use crate::core::script::{Conversation, endpoint};
use crate::core::time::Timestamp;

const CLIENT: &str = "10.0.0.1:4000";
const SERVER: &str = "10.0.0.2:21";
const NOW: Timestamp = Timestamp::from_secs(1000);

struct Stage {
    tracker: Tracker,
    firewall: Simulated,
    policy: Policy,
    now: Timestamp,
    events: Vec<String>,
}

impl Stage {
    /// A firewall in which that stands, and a tracker that has just begun.
    fn begin(policy: &str, remains: &ExistingState) -> (Self, RestoreSummary) {
        let policy = if policy.is_empty() { "{}" } else { policy };
        let policy = policy::parse("policy.yaml", policy).expect("a good policy").policy;
        let mut firewall = Simulated::new([Port::FTP]);
        for pinhole in &remains.pinholes {
            // Nobody knows any more in which connection it was announced.
            let from = Endpoint::new(pinhole.from, Port::FTP);
            let of = Connection::direct(Flow { source: from, destination: pinhole.to });
            firewall.open(pinhole, &of).expect("it opens");
        }
        let mut stage = Self { tracker: Tracker::default(), firewall, policy, now: NOW, events: Vec::new() };
        let adoption = stage.with_env(|tracker, env| tracker.adopt(remains.clone(), env));
        (stage, adoption)
    }

    fn with_env<R>(
        &mut self,
        act: impl FnOnce(
            &mut Tracker,
            &mut Environment<'_, Simulated, &mut dyn FnMut(Timestamp, SessionNumber, &SessionEvent<'_>)>,
        ) -> R,
    ) -> R {
        let events = &mut self.events;
        let mut record = |_: Timestamp, session: SessionNumber, event: &SessionEvent<'_>| match event {
            SessionEvent::Used { flow, .. } => events.push(format!("{session} used {flow}")),
            SessionEvent::Expired(expectation) => events.push(format!("{session} expired {expectation}")),
            SessionEvent::Closed { expectation, .. } => events.push(format!("{session} closed {expectation}")),
            _ => {}
        };
        let mut observer: &mut dyn FnMut(Timestamp, SessionNumber, &SessionEvent<'_>) = &mut record;
        let mut env =
            Environment { now: self.now, policy: &self.policy, firewall: &mut self.firewall, observer: &mut observer };
        act(&mut self.tracker, &mut env)
    }

    fn sees(&mut self, packet: &[u8]) {
        let segment = Segment::parse(packet).expect("a segment");
        self.with_env(|tracker, env| tracker.handle(&segment, env));
    }

    fn stands(&self) -> Vec<String> {
        self.tracker.pinholes().map(|(.., expectation)| expectation.to_string()).collect()
    }
}

/// One that was opened `age` seconds ago.
fn pinhole(from: &str, to: &str, age: u64, lifetime: u64) -> Expectation {
    let since = NOW.before(Duration::from_secs(age));
    Expectation {
        from: from.parse().expect("an address"),
        to: endpoint(to),
        since,
        lifetime: Duration::from_secs(lifetime),
        mapping: Mapping::default(),
    }
}

fn connection(client: &str, server: &str) -> Connection {
    Connection::direct(Flow { source: endpoint(client), destination: endpoint(server) })
}

fn remains(pinholes: Vec<Expectation>, connections: Vec<Connection>) -> ExistingState {
    ExistingState { pinholes, port_ranges: Vec::new(), connections }
}

fn passive() -> Expectation {
    pinhole("10.0.0.1", "10.0.0.2:50000", 20, 60)
}

fn talk() -> Conversation {
    Conversation::new(endpoint(CLIENT), endpoint(SERVER), 1000, 2000)
}

#[test]
fn adopted_pinhole_expires_after_the_kernel_timeout() {
    let later = pinhole("10.0.0.1", "10.0.0.2:50001", 1, 60);
    let (mut stage, adoption) = Stage::begin("", &remains(vec![later, passive()], vec![connection(CLIENT, SERVER)]));
    assert_eq!(adoption, RestoreSummary { pinholes: 2, port_ranges: 0, closed: 0 });
    assert_eq!(stage.tracker.next_deadline(), Some(NOW + Duration::from_secs(40)));
    stage.now = NOW + Duration::from_secs(40);
    stage.with_env(|tracker, env| {
        tracker.advance(env);
    });
    assert_eq!(stage.events, ["0 expired 10.0.0.1 -> 10.0.0.2:50000"]);
    assert_eq!(stage.stands(), ["10.0.0.1 -> 10.0.0.2:50001"]);
}

#[test]
fn remaining_lifetimes_after_a_restore_are_rounded() {
    let odd = Expectation { lifetime: Duration::from_millis(41_234), ..passive() };
    let (stage, _) = Stage::begin("", &remains(vec![odd], vec![connection(CLIENT, SERVER)]));
    let (.., adopted) = stage.tracker.pinholes().next().expect("it stands");
    assert_eq!((adopted.expires(), adopted.lifetime), (odd.expires(), Duration::from_secs(42)));
}

#[test]
fn adopted_pinhole_is_used_by_its_connection() {
    let (mut stage, _) = Stage::begin("", &remains(vec![passive()], vec![connection(CLIENT, SERVER)]));
    let flow = Flow { source: endpoint("10.0.0.1:5000"), destination: endpoint("10.0.0.2:50000") };
    stage.with_env(|tracker, env| assert_eq!(tracker.admitted(&flow, env), Some(SessionNumber::EARLIER)));
    assert_eq!(stage.events, ["0 used 10.0.0.1:5000 -> 10.0.0.2:50000"]);
    assert!(stage.stands().is_empty());
    stage.sees(&talk().closes(Direction::FromClient));
    assert_eq!(stage.events.len(), 1, "nothing is closed that was used: {:?}", stage.events);
}

#[test]
fn adopted_pinhole_is_closed_with_its_session() {
    let active = pinhole("10.0.0.2", "10.0.0.1:40000", 1, 60);
    type End = fn(&mut Stage);
    let ends: [End; 2] = [
        |stage| stage.with_env(|tracker, env| tracker.forgotten(&talk().flow(), env)),
        |stage| {
            let mut talk = talk();
            stage.sees(&talk.says(Direction::FromClient, "QUIT\r\n"));
            assert_eq!((stage.tracker.sessions(), stage.firewall.pinholes()), (1, 2));
            stage.sees(&talk.closes(Direction::FromClient));
            stage.sees(&talk.closes(Direction::FromServer));
        },
    ];
    for end in ends {
        let (mut stage, _) = Stage::begin("", &remains(vec![passive(), active], vec![connection(CLIENT, SERVER)]));
        end(&mut stage);
        assert_eq!(stage.events, ["0 closed 10.0.0.1 -> 10.0.0.2:50000", "0 closed 10.0.0.2 -> 10.0.0.1:40000"]);
        assert_eq!((stage.stands().len(), stage.firewall.pinholes()), (0, 0));
    }
}

#[test]
fn shared_adopted_pinhole_is_closed_with_the_last_session() {
    let other = connection("10.0.0.1:4001", SERVER);
    let strangers = connection("10.0.0.3:4000", SERVER);
    let (mut stage, _) =
        Stage::begin("", &remains(vec![passive()], vec![connection(CLIENT, SERVER), other, strangers]));
    stage.with_env(|tracker, env| tracker.forgotten(&talk().flow(), env));
    assert_eq!(stage.stands().len(), 1);
    stage.with_env(|tracker, env| tracker.forgotten(&other.original, env));
    assert_eq!(stage.events, ["0 closed 10.0.0.1 -> 10.0.0.2:50000"]);
}

#[test]
fn orphaned_pinhole_is_closed_unless_third_parties_allowed() {
    let left = remains(vec![passive()], vec![connection("10.0.0.3:4000", SERVER)]);
    let (stage, adoption) = Stage::begin("", &left);
    assert_eq!(adoption, RestoreSummary { pinholes: 0, port_ranges: 0, closed: 1 });
    assert_eq!((stage.events.len(), stage.firewall.pinholes()), (1, 0));
    let (stage, adoption) = Stage::begin("defaults: { third_party: allow }", &left);
    assert_eq!(adoption, RestoreSummary { pinholes: 1, port_ranges: 0, closed: 0 });
    assert_eq!((stage.events.len(), stage.firewall.pinholes()), (0, 1));
}

#[test]
fn pinhole_announced_again_belongs_to_its_session() {
    let other = connection("10.0.0.1:4001", SERVER);
    let (mut stage, _) = Stage::begin("", &remains(vec![passive()], vec![connection(CLIENT, SERVER), other]));
    let mut talk = talk();
    stage.firewall.record(&connection(CLIENT, SERVER), Progress::LoggedIn);
    for (who, line) in [
        (Direction::FromClient, "USER anna\r\n"),
        (Direction::FromServer, "230 in\r\n"),
        (Direction::FromClient, "PASV\r\n"),
        (Direction::FromServer, "227 (10,0,0,2,195,80)\r\n"),
    ] {
        stage.sees(&talk.says(who, line));
    }
    assert_eq!(stage.tracker.pinholes().next().expect("it stands").0.get(), 1);
    stage.with_env(|tracker, env| tracker.forgotten(&other.original, env));
    assert_eq!(stage.stands().len(), 1);
    stage.sees(&talk.resets(Direction::FromClient));
    assert_eq!(stage.events, ["1 closed 10.0.0.1 -> 10.0.0.2:50000"]);
}

#[test]
fn session_behind_nat_owns_pinholes_between_either_addresses() {
    let behind = Connection {
        original: Flow { source: endpoint("192.168.0.5:4000"), destination: endpoint(SERVER) },
        reply: Flow { source: endpoint(SERVER), destination: endpoint("10.0.0.1:61000") },
    };
    let (mut stage, adoption) = Stage::begin("", &remains(vec![passive()], vec![behind]));
    assert_eq!(adoption.pinholes, 1);
    stage.with_env(|tracker, env| tracker.forgotten(&behind.reply, env));
    assert_eq!(stage.firewall.pinholes(), 0);
}

#[test]
fn port_range_stays_open_until_its_session_ends() {
    let port = |number| Port::new(number).expect("a port");
    let port_range = PortRangePinhole {
        from: endpoint(CLIENT).address,
        to: endpoint(SERVER).address,
        ports: PortRange::new(port(50000), port(50100)).expect("a range"),
    };
    let data = Flow { source: endpoint("10.0.0.1:5000"), destination: endpoint("10.0.0.2:50100") };
    let left = |connections| ExistingState { pinholes: Vec::new(), port_ranges: vec![port_range], connections };
    let (mut stage, adoption) = Stage::begin("", &left(vec![connection(CLIENT, SERVER)]));
    assert_eq!(adoption, RestoreSummary { pinholes: 0, port_ranges: 1, closed: 0 });
    assert!(stage.firewall.admit(NOW, &data).is_some());
    stage.with_env(|tracker, env| assert_eq!(tracker.admitted(&data, env), Some(SessionNumber::EARLIER)));
    stage.with_env(|tracker, env| tracker.forgotten(&talk().flow(), env));
    assert!(stage.firewall.admit(NOW, &data).is_none());

    let (mut stage, adoption) = Stage::begin("", &left(Vec::new()));
    assert_eq!(adoption, RestoreSummary { pinholes: 0, port_ranges: 0, closed: 1 });
    assert!(stage.firewall.admit(NOW, &data).is_none());
}
