//! What each end of a session receives from the other where a line has to be rewritten.

mod segments;

use super::*;
use crate::core::expectation::{Mapping, Refusal};
use crate::core::script::packet;

/// A session through a gateway, with what leaves it on either side.
struct Gateway {
    tracker: Tracker,
    firewall: Simulated,
    policy: Policy,
    connection: Connection,
    client_next: Seq,
    server_next: Seq,
    events: Vec<String>,
    /// Whether a packet has waited long enough.
    at_last: bool,
}

/// What became of a segment: its place as the receiver counts, and its text.
#[derive(Debug, PartialEq)]
enum Left {
    As(Seq, String),
    Waits,
    Dropped,
}

impl Gateway {
    fn new(original: [&str; 2], reply: [&str; 2], policy: &str) -> Self {
        let flow =
            |[source, destination]: [&str; 2]| Flow { source: endpoint(source), destination: endpoint(destination) };
        let connection = Connection { original: flow(original), reply: flow(reply) };
        let mut firewall = Simulated::new([Port::FTP]);
        firewall.translate(&connection);
        let policy = policy::parse("policy.yaml", policy).expect("a good policy").policy;
        let (client_next, server_next) = (Seq::new(u32::MAX - 30), Seq::new(7000));
        let tracker = Tracker::default();
        let (events, at_last) = (Vec::new(), false);
        let mut gateway = Self { tracker, firewall, policy, connection, client_next, server_next, events, at_last };
        gateway.passes(FromClient, gateway.client_next, Flags::SYN, b"");
        gateway.client_next += 1;
        gateway.passes(FromServer, gateway.server_next, Flags::SYN.and(Flags::ACK), b"");
        gateway.server_next += 1;
        for (who, line) in
            [(FromServer, "220 hello\r\n"), (FromClient, "USER ftp\r\n"), (FromServer, "230 welcome\r\n")]
        {
            assert_eq!(gateway.says(who, line), line);
        }
        gateway
    }

    fn masquerade() -> Self {
        let original = ["192.168.0.9:4000", "203.0.113.5:21"];
        Self::new(original, ["203.0.113.5:21", "198.51.100.100:6000"], "control_ports: [21]")
    }

    fn passes(&mut self, who: Direction, seq: Seq, flags: Flags, text: &[u8]) -> Left {
        let adjustments = self.firewall.adjustments(&self.connection);
        let other = if who == FromClient { self.server_next } else { self.client_next };
        let ack = adjustments.of(who.opposite()).map_or(other, |adjustment| adjustment.sequence(other));
        let bytes = packet(self.connection.flow(who), seq, ack, flags, text);
        let segment = Segment::parse(&bytes).expect("a segment");
        let events = &mut self.events;
        let mut observer = |_: Timestamp, _: SessionNumber, event: &SessionEvent<'_>| match event {
            SessionEvent::Opened { expectation, .. } => events.push(format!("opened {expectation}")),
            SessionEvent::Refused { why, .. } => events.push(why.to_string()),
            SessionEvent::Denied { command } => events.push(format!("denied {command}")),
            _ => {}
        };
        let now = Timestamp::from_secs(1000);
        let mut env = Environment { now, policy: &self.policy, firewall: &mut self.firewall, observer: &mut observer };
        let on_gap = if self.at_last { OnGap::Continue } else { OnGap::Wait };
        let verdict = match self.tracker.handle_on_gap(&segment, on_gap, &mut env) {
            TrackerVerdict::Session(verdict) => verdict,
            TrackerVerdict::Untracked => Verdict::Accept,
        };
        let (seq, payload) = match verdict {
            Verdict::Accept => (seq, text.to_vec()),
            Verdict::Replace(Replacement { seq, payload }) => (seq, payload),
            Verdict::Wait => return Left::Waits,
            Verdict::Drop => return Left::Dropped,
        };
        let adjustment = self.firewall.adjustments(&self.connection).of(who);
        let place = adjustment.map_or(seq, |adjustment| adjustment.sequence(seq));
        Left::As(place, String::from_utf8(payload).expect("text"))
    }

    /// One end says this in one segment: what the other end gets.
    fn says(&mut self, who: Direction, text: &str) -> String {
        let seq = if who == FromClient { self.client_next } else { self.server_next };
        let left = self.passes(who, seq, Flags::ACK, text.as_bytes());
        *(if who == FromClient { &mut self.client_next } else { &mut self.server_next }) += text.len();
        let Left::As(_, text) = left else { panic!("it waits") };
        text
    }

    fn took(&mut self) -> Vec<String> {
        std::mem::take(&mut self.events)
    }

    fn admits(&mut self, from: &str, to: &str) -> bool {
        let flow = Flow { source: endpoint(from), destination: endpoint(to) };
        self.firewall.admit(Timestamp::from_secs(1000), &flow).is_some()
    }
}

#[test]
fn masqueraded_client_announces_the_outside_address() {
    let mut gateway = Gateway::masquerade();
    assert_eq!(gateway.says(FromClient, "PORT 192,168,0,9,15,161\r\n"), "PORT 198,51,100,100,15,161\r\n");
    assert_eq!(gateway.took(), ["opened 203.0.113.5 -> 198.51.100.100:4001 (to 192.168.0.9:4001)"]);
    assert!(gateway.admits("203.0.113.5:20", "198.51.100.100:4001"));
    assert_eq!(gateway.says(FromServer, "200 good\r\n"), "200 good\r\n");
    assert_eq!(gateway.says(FromClient, "EPRT |1|192.168.0.9|4002|\r\n"), "EPRT |1|198.51.100.100|4002|\r\n");
    assert_eq!(gateway.says(FromClient, "LIST\r\n"), "LIST\r\n");
}

#[test]
fn passive_connection_has_the_outside_address_of_its_session() {
    let mut gateway = Gateway::masquerade();
    gateway.says(FromClient, "PASV\r\n");
    let line = "227 Entering Passive Mode (203,0,113,5,15,161).\r\n";
    assert_eq!(gateway.says(FromServer, line), line);
    assert_eq!(gateway.took(), ["opened 192.168.0.9 -> 203.0.113.5:4001 (from 198.51.100.100)"]);
}

#[test]
fn server_behind_nat_announces_its_outside_address() {
    let original = ["192.0.2.9:4000", "203.0.113.5:21"];
    let mut gateway = Gateway::new(original, ["10.0.0.5:2121", "192.0.2.9:4000"], "control_ports: [21]");
    gateway.says(FromClient, "PASV\r\n");
    let events = gateway.says(FromServer, "227 Entering Passive Mode (10,0,0,5,15,161).\r\n");
    assert_eq!(events, "227 Entering Passive Mode (203,0,113,5,15,161).\r\n");
    gateway.says(FromClient, "EPSV\r\n");
    let events = gateway.says(FromServer, "229 Extended (|||4002|)\r\n");
    assert_eq!(events, "229 Extended (|||4002|)\r\n");
    gateway.says(FromClient, "PORT 192,0,2,9,15,163\r\n");
    let opened = [
        "opened 192.0.2.9 -> 203.0.113.5:4001 (to 10.0.0.5:4001)",
        "opened 192.0.2.9 -> 203.0.113.5:4002 (to 10.0.0.5:4002)",
        "opened 10.0.0.5 -> 192.0.2.9:4003 (from 203.0.113.5)",
    ];
    assert_eq!(gateway.took(), opened);
}

#[test]
fn wrong_address_of_a_server_behind_nat_is_repaired() {
    let original = ["192.0.2.9:4000", "203.0.113.5:21"];
    for wrong in ["172,17,0,9", "0,0,0,0", "10,0,0,5"] {
        let policy = "defaults: { passive_address: repair }";
        let mut gateway = Gateway::new(original, ["10.0.0.5:2121", "192.0.2.9:4000"], policy);
        gateway.says(FromClient, "PASV\r\n");
        let reply = gateway.says(FromServer, &format!("227 Entering Passive Mode ({wrong},15,161).\r\n"));
        assert_eq!(reply, "227 Entering Passive Mode (203,0,113,5,15,161).\r\n");
        assert_eq!(gateway.took(), ["opened 192.0.2.9 -> 203.0.113.5:4001 (to 10.0.0.5:4001)"]);
        assert!(gateway.admits("192.0.2.9:5000", "203.0.113.5:4001"), "{wrong}");
    }
}

#[test]
fn announced_outside_address_is_not_rewritten() {
    let mut gateway = Gateway::masquerade();
    let line = "PORT 198,51,100,100,15,161\r\n";
    assert_eq!(gateway.says(FromClient, line), line);
    assert_eq!(gateway.took(), ["opened 203.0.113.5 -> 198.51.100.100:4001 (to 192.168.0.9:4001)"]);
}

#[test]
fn taken_outside_port_is_replaced() {
    let mut gateway = Gateway::masquerade();
    gateway.says(FromClient, "PORT 192,168,0,9,15,161\r\n");
    // The next session comes from another client behind the same address.
    let flow = |source, destination| Flow { source: endpoint(source), destination: endpoint(destination) };
    let other = Connection {
        original: flow("192.168.0.10:4000", "203.0.113.5:21"),
        reply: flow("203.0.113.5:21", "198.51.100.100:6001"),
    };
    gateway.firewall.translate(&other);
    gateway.connection = other;
    gateway.policy = policy::parse("p", "defaults: { data_ports: 4000-4001, login: optional }").expect("good").policy;
    gateway.took();
    gateway.passes(FromServer, gateway.server_next.moved(-1), Flags::SYN.and(Flags::ACK), b"");
    assert_eq!(gateway.says(FromServer, "220 hello\r\n"), "220 hello\r\n");
    assert_eq!(gateway.says(FromClient, "PORT 192,168,0,10,15,161\r\n"), "PORT 198,51,100,100,15,160\r\n");
    gateway.says(FromServer, "200 good\r\n");
    assert_eq!(gateway.took(), ["opened 203.0.113.5 -> 198.51.100.100:4000 (to 192.168.0.10:4001)"]);
    // Both ports of the policy are taken now, and neither is delivered to this one.
    let line = "PORT 192,168,0,10,15,160\r\n";
    assert_eq!(gateway.says(FromClient, line), line);
    assert_eq!(gateway.took(), ["no-port"]);
}

/// Some other program admits connections from the server to these ports of the outside address.
fn take_outside_ports(gateway: &mut Gateway, ports: impl Iterator<Item = u16>) {
    for port in ports {
        let expectation = Expectation {
            from: endpoint("203.0.113.5:21").address,
            to: endpoint(&format!("198.51.100.100:{port}")),
            since: Timestamp::from_secs(1000),
            lifetime: Duration::from_secs(60),
            mapping: Mapping { to: Some(endpoint("192.168.0.77:9")), from: None },
        };
        let connection = gateway.connection;
        gateway.firewall.open(&expectation, &connection).expect("memory takes it");
    }
}

#[test]
fn one_announcement_asks_the_kernel_for_32_ports_at_most() {
    let mut gateway = Gateway::masquerade();
    take_outside_ports(&mut gateway, 1024..=65_535);
    let line = "PORT 192,168,0,9,15,161\r\n";
    assert_eq!(gateway.says(FromClient, line), line);
    assert_eq!((gateway.took(), gateway.firewall.mapping_lookups()), (vec!["no-port".to_owned()], 32));
    // Nor where the line has to keep its length.
    gateway.firewall.refuse_to_adjust();
    let line = "EPRT |1|192.168.0.9|4002|\r\n";
    assert_eq!(gateway.says(FromClient, line), line);
    assert_eq!((gateway.took(), gateway.firewall.mapping_lookups()), (vec!["no-port".to_owned()], 64));
}

#[test]
fn free_port_is_found_among_many_taken_ones() {
    let mut gateway = Gateway::masquerade();
    // A run of them from the announced one on, and half of all others.
    take_outside_ports(&mut gateway, (4001..20_000).chain((20_000..=65_535).step_by(2)));
    gateway.says(FromClient, "PORT 192,168,0,9,15,161\r\n");
    let took = gateway.took();
    assert!(took.len() == 1 && took[0].ends_with("(to 192.168.0.9:4001)"), "{took:?}");
    assert!(gateway.firewall.mapping_lookups() <= 32);
}

#[test]
fn nat_never_chooses_the_port_of_a_known_service() {
    let mut gateway = Gateway::masquerade();
    gateway.policy = policy::parse("p", "defaults: { data_ports: 3305-3307 }").expect("good").policy;
    take_outside_ports(&mut gateway, 3305..=3305);
    assert_eq!(gateway.says(FromClient, "PORT 192,168,0,9,12,233\r\n"), "PORT 198,51,100,100,12,235\r\n");
    assert_eq!(gateway.took(), ["opened 203.0.113.5 -> 198.51.100.100:3307 (to 192.168.0.9:3305)"]);
}
