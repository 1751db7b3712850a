//! Pinholes that an earlier run left in the firewall.

use super::*;
use crate::core::expectation::{Mapping, OnSyn, PortRangePinhole};
use crate::core::kernel::Testimony;
use crate::core::net::{Endpoint, PortRange};
use crate::core::tracker::adopt::{ExistingState, RestoreSummary};

const NOW: Timestamp = Timestamp::from_secs(1000);

impl Fixture {
    /// A tracker that has just begun, with a firewall in which this is left.
    fn adopting(policy: &str, existing: &ExistingState) -> (Self, RestoreSummary) {
        let mut fixture = Self::with_policy(policy);
        for pinhole in &existing.pinholes {
            // The kernel does not record in which connection it was announced.
            let from = Endpoint::new(pinhole.from, Port::FTP);
            let of = Connection::direct(Flow { source: from, destination: pinhole.to });
            fixture.firewall.open(pinhole, &of).expect("it opens");
        }
        let summary = fixture.with_env(|tracker, env| tracker.adopt(existing.clone(), env));
        (fixture, summary)
    }

    fn pinholes(&self) -> Vec<String> {
        self.tracker.pinholes().map(|(.., expectation)| expectation.to_string()).collect()
    }

    /// The events about pinholes.
    fn pinhole_events(&mut self) -> Vec<String> {
        let is_about_pinhole = |event: &String| ["used", "expired", "closed"].iter().any(|word| event.contains(word));
        self.take_events().into_iter().filter(is_about_pinhole).collect()
    }
}

/// A pinhole that was opened `age` seconds ago.
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

fn existing(pinholes: Vec<Expectation>, connections: Vec<Connection>) -> ExistingState {
    ExistingState { pinholes, port_ranges: Vec::new(), connections }
}

fn passive() -> Expectation {
    pinhole("10.0.0.1", "10.0.0.2:50000", 20, 60)
}

#[test]
fn adopted_pinhole_expires_after_the_kernel_timeout() {
    let later = pinhole("10.0.0.1", "10.0.0.2:50001", 1, 60);
    let (mut fixture, summary) =
        Fixture::adopting("", &existing(vec![later, passive()], vec![connection(CLIENT, SERVER)]));
    assert_eq!(summary, RestoreSummary { pinholes: 2, port_ranges: 0, closed: 0 });
    fixture.waits(Duration::from_millis(39_999));
    assert_eq!(fixture.pinhole_events(), [""; 0]);
    assert_eq!(fixture.tracker.next_deadline(), Some(NOW + Duration::from_secs(40)));
    fixture.waits(Duration::from_millis(1));
    assert_eq!(fixture.pinhole_events(), ["0 expired 10.0.0.1 -> 10.0.0.2:50000"]);
    assert_eq!(fixture.pinholes(), ["10.0.0.1 -> 10.0.0.2:50001"]);
}

#[test]
fn remaining_lifetimes_after_a_restore_are_rounded() {
    let odd = Expectation { lifetime: Duration::from_millis(41_234), ..passive() };
    let (fixture, _) = Fixture::adopting("", &existing(vec![odd], vec![connection(CLIENT, SERVER)]));
    let (.., adopted) = fixture.tracker.pinholes().next().expect("it is open");
    assert_eq!((adopted.expires(), adopted.lifetime), (odd.expires(), Duration::from_secs(42)));
}

#[test]
fn adopted_pinhole_whose_syn_came_expires() {
    // Its connection may have begun while no daemon ran.
    let (mut fixture, _) = Fixture::adopting("", &existing(vec![passive()], vec![connection(CLIENT, SERVER)]));
    fixture.firewall.drop_syn(passive().from, passive().to);
    fixture.waits(Duration::from_secs(41));
    assert_eq!(fixture.pinhole_events(), ["0 expired 10.0.0.1 -> 10.0.0.2:50000"]);
}

#[test]
fn adopted_pinhole_is_used_by_its_connection() {
    let (mut fixture, _) = Fixture::adopting("", &existing(vec![passive()], vec![connection(CLIENT, SERVER)]));
    let flow = Flow { source: endpoint("10.0.0.1:5000"), destination: endpoint("10.0.0.2:50000") };
    fixture.with_env(|tracker, env| assert_eq!(tracker.admitted(&flow, env), Some(SessionNumber::EARLIER)));
    assert_eq!(fixture.pinhole_events(), ["0 used 10.0.0.1:5000 -> 10.0.0.2:50000"]);
    assert!(fixture.pinholes().is_empty());
    fixture.sees(&conversation().closes(FromClient));
    assert_eq!(fixture.pinhole_events(), [""; 0], "nothing is closed that was used: session-ended");
}

#[test]
fn adopted_pinhole_is_closed_with_its_session() {
    let active = pinhole("10.0.0.2", "10.0.0.1:40000", 1, 60);
    type End = fn(&mut Fixture);
    let ends: [End; 2] = [
        |fixture| fixture.with_env(|tracker, env| tracker.forgotten(&conversation().flow(), env)),
        |fixture| {
            let mut talk = conversation();
            fixture.sees(&talk.says(FromClient, "QUIT\r\n"));
            assert_eq!((fixture.tracker.sessions(), fixture.firewall.pinholes()), (1, 2));
            fixture.sees(&talk.closes(FromClient));
            fixture.sees(&talk.closes(FromServer));
        },
    ];
    for end in ends {
        let (mut fixture, _) =
            Fixture::adopting("", &existing(vec![passive(), active], vec![connection(CLIENT, SERVER)]));
        end(&mut fixture);
        assert_eq!(
            fixture.pinhole_events(),
            [
                "0 closed 10.0.0.1 -> 10.0.0.2:50000: session-ended",
                "0 closed 10.0.0.2 -> 10.0.0.1:40000: session-ended"
            ]
        );
        assert_eq!((fixture.pinholes().len(), fixture.firewall.pinholes()), (0, 0));
    }
}

#[test]
fn shared_adopted_pinhole_is_closed_with_the_last_session() {
    let other = connection("10.0.0.1:4001", SERVER);
    let strangers = connection("10.0.0.3:4000", SERVER);
    let (mut fixture, _) =
        Fixture::adopting("", &existing(vec![passive()], vec![connection(CLIENT, SERVER), other, strangers]));
    fixture.with_env(|tracker, env| tracker.forgotten(&conversation().flow(), env));
    assert_eq!(fixture.pinholes().len(), 1);
    fixture.with_env(|tracker, env| tracker.forgotten(&other.original, env));
    assert_eq!(fixture.pinhole_events(), ["0 closed 10.0.0.1 -> 10.0.0.2:50000: session-ended"]);
}

#[test]
fn orphaned_pinhole_is_closed_unless_third_parties_allowed() {
    let left = existing(vec![passive()], vec![connection("10.0.0.3:4000", SERVER)]);
    let (mut fixture, summary) = Fixture::adopting("", &left);
    assert_eq!(summary, RestoreSummary { pinholes: 0, port_ranges: 0, closed: 1 });
    assert_eq!((fixture.pinhole_events().len(), fixture.firewall.pinholes()), (1, 0));
    let (mut fixture, summary) = Fixture::adopting("defaults: { third_party: allow }", &left);
    assert_eq!(summary, RestoreSummary { pinholes: 1, port_ranges: 0, closed: 0 });
    assert_eq!((fixture.pinhole_events().len(), fixture.firewall.pinholes()), (0, 1));
}

#[test]
fn pinhole_announced_again_belongs_to_its_session() {
    let other = connection("10.0.0.1:4001", SERVER);
    let (mut fixture, _) = Fixture::adopting("", &existing(vec![passive()], vec![connection(CLIENT, SERVER), other]));
    let mut talk = conversation();
    fixture.firewall.record(&connection(CLIENT, SERVER), SessionProgress::LoggedIn);
    for (who, line) in [
        (FromClient, "USER anna\r\n"),
        (FromServer, "230 in\r\n"),
        (FromClient, "PASV\r\n"),
        (FromServer, "227 (10,0,0,2,195,80)\r\n"),
    ] {
        fixture.sees(&talk.says(who, line));
    }
    assert_eq!(fixture.tracker.pinholes().next().expect("it is open").0.get(), 1);
    fixture.with_env(|tracker, env| tracker.forgotten(&other.original, env));
    assert_eq!(fixture.pinholes().len(), 1);
    fixture.sees(&talk.resets(FromClient));
    assert_eq!(fixture.pinhole_events(), ["1 closed 10.0.0.1 -> 10.0.0.2:50000: session-ended"]);
}

#[test]
fn session_behind_nat_owns_pinholes_between_either_addresses() {
    let behind = Connection {
        original: Flow { source: endpoint("192.168.0.5:4000"), destination: endpoint(SERVER) },
        reply: Flow { source: endpoint(SERVER), destination: endpoint("10.0.0.1:61000") },
    };
    let (mut fixture, summary) = Fixture::adopting("", &existing(vec![passive()], vec![behind]));
    assert_eq!(summary.pinholes, 1);
    fixture.with_env(|tracker, env| tracker.forgotten(&behind.reply, env));
    assert_eq!(fixture.firewall.pinholes(), 0);
}

#[test]
fn port_range_stays_open_until_its_session_ends() {
    let port = |number| Port::new(number).expect("a port");
    let port_range = PortRangePinhole {
        from: endpoint(CLIENT).address,
        to: endpoint(SERVER).address,
        on_syn: OnSyn::Admit(PortRange::new(port(50000), port(50100)).expect("a range")),
    };
    let data = Flow { source: endpoint("10.0.0.1:5000"), destination: endpoint("10.0.0.2:50100") };
    let left = |connections| ExistingState { pinholes: Vec::new(), port_ranges: vec![port_range], connections };
    let (mut fixture, summary) = Fixture::adopting("", &left(vec![connection(CLIENT, SERVER)]));
    assert_eq!(summary, RestoreSummary { pinholes: 0, port_ranges: 1, closed: 0 });
    assert!(fixture.firewall.admit(NOW, &data).is_some());
    fixture.with_env(|tracker, env| assert_eq!(tracker.admitted(&data, env), Some(SessionNumber::EARLIER)));
    fixture.with_env(|tracker, env| tracker.forgotten(&conversation().flow(), env));
    assert!(fixture.firewall.admit(NOW, &data).is_none());

    let (mut fixture, summary) = Fixture::adopting("", &left(Vec::new()));
    assert_eq!(summary, RestoreSummary { pinholes: 0, port_ranges: 0, closed: 1 });
    assert!(fixture.firewall.admit(NOW, &data).is_none());
}

#[test]
fn hosts_of_an_adopted_session_are_asked_about_until_it_ends() {
    let (from, to) = (endpoint(CLIENT).address, endpoint(SERVER).address);
    let port_ranges = vec![PortRangePinhole { from, to, on_syn: OnSyn::Ask }];
    let connections = vec![connection(CLIENT, SERVER)];
    let existing = ExistingState { pinholes: Vec::new(), port_ranges, connections };
    let (mut fixture, summary) = Fixture::adopting("defaults: { tls: service }", &existing);
    assert_eq!(summary, RestoreSummary { pinholes: 0, port_ranges: 1, closed: 0 });
    fixture.firewall.set_testimony(Testimony::Vouches);
    assert_eq!(fixture.asks("10.0.0.3:5000", "10.0.0.2:50001"), SynVerdict::NotAsked);
    assert_eq!(fixture.asks("10.0.0.1:5000", "10.0.0.2:50001"), SynVerdict::Repeat);
    assert!(fixture.connects("10.0.0.1:5000", "10.0.0.2:50001"));
    fixture.with_env(|tracker, env| tracker.forgotten(&conversation().flow(), env));
    assert_eq!(fixture.asks("10.0.0.1:5000", "10.0.0.2:50001"), SynVerdict::NotAsked);
}
