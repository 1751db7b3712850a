//! Which segments begin a session that is read from its start.

use crate::core::kernel::Simulated;
use crate::core::net::Direction::{FromClient, FromServer};
use crate::core::net::{Port, Segment};
use crate::core::policy::Policy;
use crate::core::script::{Conversation, endpoint};
use crate::core::time::Timestamp;
use crate::core::tracker::{Environment, SessionEvent, SessionNumber, Tracker};

/// The number of pinholes after a SYN-ACK, a login and a PORT.
fn opened_after_a_syn_ack(is_opening: bool) -> usize {
    let mut firewall = Simulated::new([Port::FTP]);
    if !is_opening {
        firewall.treat_all_as_established();
    }
    let (mut tracker, policy) = (Tracker::default(), Policy::embedded());
    let mut talk = Conversation::new(endpoint("10.0.0.1:4000"), endpoint("10.0.0.2:21"), 1, 1);
    let [_, syn_ack, _] = talk.handshake();
    let mut packets = vec![syn_ack];
    for (who, line) in [
        (FromServer, "220 a\r\n"),
        (FromClient, "USER a\r\n"),
        (FromServer, "230 b\r\n"),
        (FromClient, "PORT 10,0,0,1,156,64\r\n"),
    ] {
        packets.push(talk.says(who, line));
    }
    let mut opened = 0;
    for packet in packets {
        let segment = Segment::parse(&packet).expect("a segment");
        let mut count = |_: Timestamp, _: SessionNumber, event: &SessionEvent<'_>| {
            opened += usize::from(matches!(event, SessionEvent::Opened { .. }));
        };
        let now = Timestamp::from_secs(1);
        let mut env = Environment { now, policy: &policy, firewall: &mut firewall, observer: &mut count };
        tracker.handle(&segment, &mut env);
    }
    opened
}

#[test]
fn syn_ack_of_an_opening_connection_begins_a_session() {
    assert_eq!(opened_after_a_syn_ack(true), 1);
}

/// Its sender may have sent it in the middle of a dialogue of another protocol.
#[test]
fn syn_ack_of_an_established_connection_begins_no_session() {
    assert_eq!(opened_after_a_syn_ack(false), 0);
}
