//! What the two ends of a session hear of each other where something has to be said differently.

use super::*;
use crate::core::expectation::{Mapping, Refusal};
use crate::core::kernel::{Simulated, Synced};
use crate::core::net::{Port, Seq};
use crate::core::policy;
use crate::core::script::{endpoint, packet};
use crate::core::seqadj::Replacement;
use Direction::{FromClient, FromServer};

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

#[test]
fn partial_address_is_withheld_in_a_nonempty_segment() {
    for line in ["PORT 192,168,0,9,15,161\r\n", "EPRT |1|192.168.0.9|4001|\r\n"] {
        for size in 1..line.len() {
            let mut gateway = Gateway::masquerade();
            let first = gateway.client_next;
            let mut heard = Vec::new();
            let mut rest = line;
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at(size.min(rest.len()));
                let seq = gateway.client_next;
                let Left::As(place, text) = gateway.passes(FromClient, seq, Flags::ACK, piece.as_bytes()) else {
                    panic!("it waits")
                };
                gateway.client_next += piece.len();
                assert!(!text.is_empty(), "a segment without text is not answered");
                let place = usize::try_from(place - first).expect("behind the first");
                heard.resize(heard.len().max(place + text.len()), 0);
                heard[place..place + text.len()].copy_from_slice(text.as_bytes());
                // The receiver has all that came so far, and so hears its sender.
                let adjustment = gateway.firewall.adjustments(&gateway.connection).of(FromClient);
                let acked = first + heard.len();
                let acked = adjustment.map_or(acked, |adjustment| adjustment.acknowledgement(acked));
                assert_eq!(acked, gateway.client_next, "{line:?} in pieces of {size}: {piece:?}");
                rest = behind;
            }
            let expected = line.replace("192,168,0,9", "198,51,100,100").replace("192.168.0.9", "198.51.100.100");
            assert_eq!(String::from_utf8_lossy(&heard), expected, "in pieces of {size}");
            assert_eq!(gateway.says(FromClient, "LIST\r\n"), "LIST\r\n");
        }
    }
}

#[test]
fn withheld_bytes_without_an_announcement_are_released() {
    let mut gateway = Gateway::masquerade();
    assert_eq!(gateway.says(FromClient, "PORT 192,1"), "PORT ");
    assert_eq!(gateway.says(FromClient, "68 is not\r\nNOOP\r\n"), "192,168 is not\r\nNOOP\r\n");
    assert_eq!(gateway.took(), ["bad-syntax"]);
}

/// Where the server will look for the next byte of the client's, once it has all that came before.
fn place_of_next(gateway: &mut Gateway) -> Seq {
    let next = gateway.client_next;
    let Left::As(place, _) = gateway.passes(FromClient, next, Flags::ACK, b"NOOP\r\n") else { panic!("it waits") };
    gateway.client_next += 6;
    place
}

#[test]
fn withheld_part_of_an_unread_line_is_given_up() {
    let mut gateway = Gateway::masquerade();
    let first = gateway.client_next;
    assert_eq!(gateway.says(FromClient, "PORT 192,16"), "PORT ");
    // The queue was full: the server has got this, and so says.
    gateway.client_next += "8,0,9,".len();
    gateway.says(FromServer, "226 and here is what you asked for before\r\n");
    assert_eq!(gateway.says(FromClient, "15,161\r\n"), "15,161\r\n");
    let sent = "PORT 8,0,9,15,161\r\n".len();
    assert_eq!(place_of_next(&mut gateway), first + sent, "the server misses nothing");
    assert_eq!(gateway.says(FromClient, "PORT 192,1"), "PORT ");
    assert_eq!(gateway.says(FromClient, "68,0,9,15,161\r\n"), "198,51,100,100,15,161\r\n");
    assert_eq!(place_of_next(&mut gateway), first + sent + "NOOP\r\nPORT 198,51,100,100,15,161\r\n".len());
    let opened = "opened 203.0.113.5 -> 198.51.100.100:4001 (to 192.168.0.9:4001)";
    assert_eq!(gateway.took(), [opened]);
}

#[test]
fn withheld_bytes_do_not_shift_bytes_already_released() {
    let mut gateway = Gateway::masquerade();
    let first = gateway.client_next;
    assert_eq!(gateway.says(FromClient, "PORT 192,16"), "PORT ");
    let middle = gateway.client_next;
    gateway.client_next += "8,0,9,".len();
    let end = gateway.client_next;
    assert_eq!(gateway.passes(FromClient, end, Flags::ACK, b"15,161\r\n"), Left::Waits);
    gateway.at_last = true;
    let went_on = gateway.passes(FromClient, end, Flags::ACK, b"15,161\r\n");
    assert_eq!(went_on, Left::As(first + "PORT 8,0,9,".len(), "15,161\r\n".to_owned()));
    gateway.at_last = false;
    let in_between = gateway.passes(FromClient, middle, Flags::ACK, b"8,0,9,");
    assert_eq!(in_between, Left::As(first + "PORT ".len(), "8,0,9,".to_owned()));
    assert_eq!(gateway.took(), ["cannot-rewrite"]);
    assert_eq!(gateway.passes(FromClient, end, Flags::ACK, b"15,161\r\n"), went_on, "it stays where it is");
    gateway.client_next += "15,161\r\n".len();
    assert_eq!(place_of_next(&mut gateway), first + "PORT 8,0,9,15,161\r\n".len());
    assert_eq!(gateway.says(FromClient, "PORT 192,168,0,9,15,161\r\n"), "PORT 198,51,100,100,15,161\r\n");
}

#[test]
fn withheld_bytes_are_released_before_a_denied_command() {
    let original = ["192.168.0.9:4000", "203.0.113.5:21"];
    let policy = "defaults: { data_ports: 5000-6000, commands: { deny: [DELE] } }";
    let mut gateway = Gateway::new(original, ["203.0.113.5:21", "198.51.100.100:6000"], policy);
    let first = gateway.client_next;
    assert_eq!(gateway.says(FromClient, "PORT 192,16"), "PORT ");
    let heard = gateway.says(FromClient, "8,0,9,15,161\r\nDELE x\r\n");
    assert_eq!(heard, "192,168,0,9,15,161\r\nDELX x\r\n");
    assert_eq!(gateway.took(), ["port-not-allowed", "denied DELE"]);
    assert_eq!(place_of_next(&mut gateway), first + "PORT 192,168,0,9,15,161\r\nDELX x\r\n".len());
}

#[test]
fn packets_do_not_wait_for_acknowledged_bytes() {
    let mut gateway = Gateway::masquerade();
    gateway.client_next += "NOOP\r\n".len();
    gateway.says(FromServer, "200 done\r\n");
    assert_eq!(gateway.says(FromClient, "LIST\r\n"), "LIST\r\n");
}

#[test]
fn lengthened_reply_does_not_count_as_unread() {
    let original = ["192.0.2.9:4000", "203.0.113.5:21"];
    let policy = "defaults: { commands: { deny: [DELE] } }";
    let mut gateway = Gateway::new(original, ["10.0.0.5:21", "192.0.2.9:4000"], policy);
    gateway.says(FromClient, "PASV\r\n");
    gateway.says(FromServer, "227 Entering Passive Mode (10,0,0,5,195,81).\r\n");
    let missing = gateway.client_next;
    gateway.client_next += "TYPE I\r\n".len();
    let behind = gateway.client_next;
    assert_eq!(gateway.passes(FromClient, behind, Flags::ACK, b"SIZE a\r\n"), Left::Waits);
    gateway.at_last = true;
    assert_eq!(gateway.passes(FromClient, behind, Flags::ACK, b"SIZE a\r\n"), Left::Dropped);
    assert_eq!(
        gateway.passes(FromClient, missing, Flags::ACK, b"TYPE I\r\n"),
        Left::As(missing, "TYPE I\r\n".to_owned())
    );
    assert_eq!(
        gateway.passes(FromClient, behind, Flags::ACK, b"SIZE a\r\n"),
        Left::As(behind, "SIZE a\r\n".to_owned())
    );
}

#[test]
fn retransmission_after_the_session_is_rewritten_identically() {
    let mut gateway = Gateway::masquerade();
    let seq = gateway.client_next;
    let line = b"PORT 192,168,0,9,15,161\r\n";
    let first = gateway.passes(FromClient, seq, Flags::ACK, line);
    gateway.client_next += line.len();
    gateway.passes(FromClient, gateway.client_next, Flags::ACK.and(Flags::FIN), b"QUIT\r\n");
    assert_eq!(gateway.passes(FromClient, seq, Flags::ACK, line), first);
}

#[test]
fn retransmission_is_rewritten_identically() {
    let mut gateway = Gateway::masquerade();
    let seq = gateway.client_next;
    let line = b"PORT 192,168,0,9,15,161\r\n";
    let first = gateway.passes(FromClient, seq, Flags::ACK, line);
    let adjustments = gateway.firewall.adjustments(&gateway.connection);
    assert_eq!(gateway.passes(FromClient, seq, Flags::ACK, line), first);
    let Left::As(_, text) = gateway.passes(FromClient, seq, Flags::ACK, &line[..10]) else { panic!("it waits") };
    assert_eq!(text, "PORT ");
    assert_eq!(gateway.firewall.adjustments(&gateway.connection), adjustments);
    assert_eq!(gateway.took().len(), 1);
}

#[test]
fn retransmission_after_a_restart_is_rewritten_identically() {
    let mut gateway = Gateway::masquerade();
    let seq = gateway.client_next;
    let line = b"PORT 192,168,0,9,15,161\r\n";
    let first = gateway.passes(FromClient, seq, Flags::ACK, line);
    let adjustments = gateway.firewall.adjustments(&gateway.connection);
    gateway.tracker = Tracker::default();
    gateway.policy = policy::parse("p", "defaults: { login: optional }").expect("good").policy;
    assert_eq!(gateway.passes(FromClient, seq, Flags::ACK, line), first);
    assert_eq!(gateway.firewall.adjustments(&gateway.connection), adjustments);
    gateway.client_next += line.len();
    assert_eq!(gateway.says(FromServer, "200 good\r\n"), "200 good\r\n");
    assert_eq!(gateway.says(FromClient, "PORT 192,168,0,9,15,162\r\n"), "PORT 198,51,100,100,15,162\r\n");
}

/// A daemon that is killed, and another one that finds what the kernel remembers.
fn restart(gateway: &mut Gateway) {
    let flow = |direction| gateway.connection.flow(direction);
    let of = |direction| gateway.tracker.is_synced(flow(direction)).unwrap_or_default();
    gateway.firewall.set_synced(Synced { client: of(FromClient), server: of(FromServer) });
    gateway.tracker = Tracker::default();
}

#[test]
fn refused_227_stays_as_it_was_when_retransmitted_after_restart() {
    let original = ["192.0.2.9:4000", "203.0.113.5:21"];
    let mut gateway = Gateway::new(original, ["10.0.0.5:2121", "192.0.2.9:4000"], "control_ports: [21]");
    // The client has it, but nobody has read the question, nor does anybody read the acknowledgement.
    let seq = gateway.server_next;
    let line = "227 Entering Passive Mode (10,0,0,5,15,161).\r\n";
    let first = gateway.passes(FromServer, seq, Flags::ACK, line.as_bytes());
    assert_eq!(first, Left::As(seq, line.to_owned()));
    restart(&mut gateway);
    assert_eq!(gateway.passes(FromServer, seq, Flags::ACK, line.as_bytes()), first);
    let refused = Refusal::NotAskedFor.to_string();
    assert_eq!(gateway.took(), [refused, Refusal::Ambiguous.to_string()]);
    // After the restart, only the first line does not count.
    gateway.server_next += line.len();
    gateway.says(FromClient, "NOOP\r\n");
    gateway.says(FromServer, "200 good\r\n");
    restart(&mut gateway);
    gateway.says(FromClient, "NOOP\r\n");
    gateway.says(FromServer, "200 good\r\n");
    gateway.says(FromClient, "PASV\r\n");
    assert_eq!(gateway.says(FromServer, line), "227 Entering Passive Mode (203,0,113,5,15,161).\r\n");
}

#[test]
fn rest_of_a_reply_before_a_rewritten_227_opens_nothing_after_restart() {
    let original = ["192.0.2.9:4000", "203.0.113.5:21"];
    let mut gateway = Gateway::new(original, ["10.0.0.5:2121", "192.0.2.9:4000"], "control_ports: [21]");
    let rest = gateway.server_next + 4;
    gateway.says(FromServer, "550 227 (10,0,0,5,58,231) is no directory\r\n");
    gateway.says(FromClient, "PASV\r\n");
    gateway.says(FromServer, "227 Entering Passive Mode (10,0,0,5,15,161).\r\n");
    gateway.took();
    restart(&mut gateway);
    gateway.passes(FromServer, rest, Flags::ACK, b"227 (10,0,0,5,58,231) is no directory\r\n");
    assert_eq!(gateway.took(), [Refusal::Ambiguous.to_string()]);
}

#[test]
fn line_keeps_its_length_without_seqadj() {
    let mut gateway = Gateway::masquerade();
    gateway.firewall.refuse_to_adjust();
    let said = gateway.says(FromClient, "PORT 192,168,0,9,195,161\r\n");
    assert_eq!(said.len(), "PORT 192,168,0,9,195,161\r\n".len());
    assert!(said.starts_with("PORT 198,51,100,100,"), "{said}");
    assert_eq!(gateway.took().len(), 1);
    // Nothing shorter than this can be said of that address.
    let line = "PORT 192,168,0,9,4,1\r\n";
    assert_eq!(gateway.says(FromClient, line), line);
    assert_eq!(gateway.took(), ["cannot-rewrite"]);

    let original = ["192.0.2.9:4000", "203.0.113.5:21"];
    let mut gateway = Gateway::new(original, ["10.0.0.5:21", "192.0.2.9:4000"], "control_ports: [21]");
    gateway.firewall.refuse_to_adjust();
    gateway.says(FromClient, "PASV\r\n");
    let line = "227 Entering Passive Mode (10,0,0,5,4,1).\r\n";
    let said = gateway.says(FromServer, line);
    assert_eq!(said.len(), line.len());
    assert!(said.contains("(203,0,113,5,4,1"), "{said}");
}

#[test]
fn out_of_order_segment_waits_where_lines_are_rewritten() {
    let mut gateway = Gateway::masquerade();
    let seq = gateway.client_next;
    let behind = gateway.passes(FromClient, seq + 10, Flags::ACK, b",0,9,15,161\r\n");
    assert_eq!(behind, Left::Waits);
    assert!(matches!(gateway.passes(FromClient, seq, Flags::ACK, b"PORT 192,1"), Left::As(..)));
}

#[test]
fn denied_announcement_is_stopped_in_any_segmentation() {
    let line = "PORT 192,168,0,9,15,161\r\n";
    for shown in ["192.168.0.9:4000", "198.51.100.100:6000"] {
        for size in 1..=line.len() {
            let policy = "defaults: { commands: { deny: [PORT] } }";
            let mut gateway = Gateway::new(["192.168.0.9:4000", "203.0.113.5:21"], ["203.0.113.5:21", shown], policy);
            let pieces = line.as_bytes().chunks(size).map(|piece| std::str::from_utf8(piece).expect("ASCII"));
            let heard: String = pieces.map(|piece| gateway.says(FromClient, piece)).collect();
            assert!(heard.starts_with("PORX"), "{heard:?} in pieces of {size}");
            assert_eq!(gateway.took(), ["by-rule"]);
        }
    }
}

#[test]
fn denied_command_is_stopped_in_any_segmentation() {
    let policy = "defaults: { commands: { deny: [DELE] }, tls: deny }";
    let direct =
        |policy| Gateway::new(["192.0.2.9:4000", "203.0.113.5:21"], ["203.0.113.5:21", "192.0.2.9:4000"], policy);
    for (line, command) in [("DELE /etc/passwd\r\n", "DELE"), ("dele x\r\n", "DELE"), ("AUTH TLS\r\n", "AUTH")] {
        for size in 1..=line.len() {
            let mut gateway = direct(policy);
            let pieces = line.as_bytes().chunks(size).map(|piece| std::str::from_utf8(piece).expect("ASCII"));
            let heard: String = pieces.map(|piece| gateway.says(FromClient, piece)).collect();
            assert_eq!(heard.len(), line.len());
            assert!(!heard.to_uppercase().starts_with(command), "{heard:?} in pieces of {size}");
            assert_eq!(gateway.took(), [format!("denied {command}")]);
        }
    }
    let mut gateway = direct(policy);
    assert_eq!(gateway.says(FromClient, "RETR a\r\nDELE a\r\nNOOP\r\n"), "RETR a\r\nDELX a\r\nNOOP\r\n");
    let mut gateway = direct("defaults: { commands: { deny: [ABOX, FEAT, FEAX, FEAZ] } }");
    assert_eq!(gateway.says(FromClient, "ABOX\r\nfeax\r\nFEAT\r\n"), "ABOZ\r\nfeaQ\r\nFEAQ\r\n");
    let mut gateway = direct(policy);
    let mut hidden = Vec::from(*b"DE\xff\xf1LE a\r\n");
    let seq = gateway.client_next;
    let bytes = packet(gateway.connection.flow(FromClient), seq, gateway.server_next, Flags::ACK, &hidden);
    let segment = Segment::parse(&bytes).expect("a segment");
    let mut observer = |_: Timestamp, _: SessionNumber, _: &SessionEvent<'_>| {};
    let now = Timestamp::from_secs(1000);
    let mut env =
        Environment { now, policy: &gateway.policy, firewall: &mut gateway.firewall, observer: &mut observer };
    let TrackerVerdict::Session(Verdict::Replace(said)) = gateway.tracker.handle(&segment, &mut env) else {
        panic!("Telnet hides nothing")
    };
    hidden.fill(b'X');
    hidden[9..].copy_from_slice(b"\n");
    assert_eq!(String::from_utf8_lossy(&said.payload), "XXXXXXXXX\n");
}
