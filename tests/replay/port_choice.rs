//! How many requests to the kernel one announcement behind NAT may cause while a free outside port is searched.
//!
//! Each request takes tens of microseconds, in which no other packet is handled.

use std::net::IpAddr;

use pinhole::core::expectation::{Expectation, Mapping, PortRangePinhole};
use pinhole::core::kernel::{
    Control, Firewall, LookupFailed, NotOpened, Service, SessionProgress, Simulated, Testimony,
};
use pinhole::core::net::Direction::{self, FromClient, FromServer};
use pinhole::core::net::{Connection, Endpoint, Flow, Port, Segment, Seq};
use pinhole::core::policy::Policy;
use pinhole::core::script::{Conversation, endpoint};
use pinhole::core::seqadj::{Adjustment, NotAdjusted};
use pinhole::core::time::Timestamp;
use pinhole::core::tracker::{Environment, Tracker};

/// How often the kernel may be asked for one packet.
const MAX_LOOKUPS: usize = 32;

/// A firewall that counts requests, and does not support sequence adjustment.
struct Counting {
    inner: Simulated,
    /// Whether another program has every port.
    is_full: bool,
    asked: usize,
}

impl Firewall for Counting {
    fn control_connection(&mut self, flow: &Flow) -> Result<Option<Control>, LookupFailed> {
        self.inner.control_connection(flow)
    }

    fn open(&mut self, expectation: &Expectation, of: &Connection) -> Result<(), NotOpened> {
        self.inner.open(expectation, of)
    }

    fn close(&mut self, expectation: &Expectation) {
        self.inner.close(expectation);
    }

    fn syn_came(&mut self, expectation: &Expectation) -> bool {
        self.inner.syn_came(expectation)
    }

    fn mapping_of(&mut self, from: IpAddr, to: Endpoint) -> Option<Mapping> {
        self.asked += 1;
        let taken = Mapping { to: Some(endpoint("192.0.2.77:7")), ..Mapping::default() };
        if self.is_full { Some(taken) } else { self.inner.mapping_of(from, to) }
    }

    fn adjust(&mut self, _: &Connection, _: Direction, _: &Adjustment, _: &[Seq]) -> Result<(), NotAdjusted> {
        Err(NotAdjusted::NotPrepared)
    }

    fn open_port_range(&mut self, port_range: &PortRangePinhole) -> Result<(), NotOpened> {
        self.inner.open_port_range(port_range)
    }

    fn close_port_range(&mut self, port_range: &PortRangePinhole) {
        self.inner.close_port_range(port_range);
    }

    fn renew_port_range(&mut self, port_range: &PortRangePinhole) {
        self.inner.renew_port_range(port_range);
    }

    fn open_for_syn(&mut self, expectation: &Expectation) -> Result<(), NotOpened> {
        self.inner.open_for_syn(expectation)
    }

    fn testimony(&mut self, syn: &Flow, of: &Connection, service: &Service) -> Testimony {
        self.inner.testimony(syn, of, service)
    }

    fn record(&mut self, connection: &Connection, progress: SessionProgress) {
        self.inner.record(connection, progress);
    }
}

/// Says these lines after a login; the most questions that one packet leads to.
fn most_asked(original: [&str; 2], reply: [&str; 2], is_full: bool, lines: &[(Direction, &str)]) -> usize {
    let flow = |[source, destination]: [&str; 2]| Flow { source: endpoint(source), destination: endpoint(destination) };
    let connection = Connection { original: flow(original), reply: flow(reply) };
    let mut inner = Simulated::new([Port::FTP]);
    inner.translate(&connection);
    let mut firewall = Counting { inner, is_full, asked: 0 };
    let policy = Policy::embedded();
    let mut tracker = Tracker::default();
    // Each end knows the other by its translated address.
    let mut client = Conversation::new(connection.original.source, connection.original.destination, 1, 1);
    let mut server = Conversation::new(connection.reply.destination, connection.reply.source, 1, 1);
    let mut packets = vec![];
    let [syn, _, ack] = client.handshake();
    let [_, syn_ack, _] = server.handshake();
    packets.extend([syn, syn_ack, ack]);
    let login = [(FromServer, "220 a\r\n"), (FromClient, "USER a\r\n"), (FromServer, "230 In.\r\n")];
    for (who, line) in login.iter().chain(lines) {
        let [from_client, from_server] = [&mut client, &mut server].map(|end| end.says(*who, line));
        packets.push(if *who == FromClient { from_client } else { from_server });
    }
    let asked = packets.iter().map(|packet| {
        let segment = Segment::parse(packet).expect("a segment");
        let before = firewall.asked;
        let now = Timestamp::from_secs(1);
        tracker.handle(&segment, &mut Environment { now, policy: &policy, firewall: &mut firewall, observer: &mut () });
        firewall.asked - before
    });
    asked.max().expect("there are packets")
}

const MASQUERADE: [[&str; 2]; 2] = [["192.168.0.9:4000", "203.0.113.5:21"], ["203.0.113.5:21", "198.51.100.100:6000"]];
const DNAT: [[&str; 2]; 2] = [["192.0.2.9:4000", "203.0.113.5:21"], ["10.0.0.5:21", "192.0.2.9:4000"]];

#[test]
fn reply_with_a_fixed_length_tries_few_ports() {
    let [original, reply] = DNAT;
    let lines = [(FromClient, "PASV\r\n"), (FromServer, "227 (10,0,0,5,15,161)\r\n")];
    let asked = most_asked(original, reply, false, &lines);
    assert!(asked <= MAX_LOOKUPS, "{asked} lookups for one packet");
}

#[test]
fn port_search_is_bounded_when_all_ports_are_taken() {
    let [original, reply] = MASQUERADE;
    for line in ["PORT 192,168,0,9,15,161\r\n", "EPRT |1|192.168.0.9|40001|\r\n", "PORT 192,168,0,9,4,1\r\n"] {
        let asked = most_asked(original, reply, true, &[(FromClient, line)]);
        assert!(asked <= MAX_LOOKUPS, "{line:?}: {asked} lookups for one packet");
    }
    let [original, reply] = DNAT;
    for line in ["227 Entering Passive Mode (10,0,0,5,15,161).\r\n", "229 Extended (|||4002|)\r\n"] {
        let ask = if line.starts_with("227") { "PASV\r\n" } else { "EPSV\r\n" };
        let asked = most_asked(original, reply, true, &[(FromClient, ask), (FromServer, line)]);
        assert!(asked <= MAX_LOOKUPS, "{line:?}: {asked} lookups for one packet");
    }
}

#[test]
fn announcements_of_one_packet_share_the_search() {
    let [original, reply] = MASQUERADE;
    let lines: String = (0..16).map(|number| format!("EPRT |1|192.168.0.9|{}|\r\n", 40_001 + number)).collect();
    let asked = most_asked(original, reply, true, &[(FromClient, &lines)]);
    assert!(asked <= MAX_LOOKUPS, "{asked} lookups for one packet");
}
