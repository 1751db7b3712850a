//! A session behind SYNPROXY: the acknowledgements of the client are in other sequence numbers than the server's bytes.

use super::*;
use crate::core::seqadj::Adjustment;

/// A session behind SYNPROXY, which adds `offset` to the server's sequence numbers.
struct Proxied {
    /// The client's packets.
    near: Conversation,
    /// The server's packets.
    far: Conversation,
}

impl Proxied {
    fn new(fixture: &mut Fixture, offset: i32) -> Self {
        let [client, server] = ["10.0.0.1:4000", "10.0.0.2:21"].map(endpoint);
        let first = 1_000_000_u32;
        let mut near = Conversation::new(client, server, 500, first.wrapping_add_signed(offset));
        let mut far = Conversation::new(client, server, 500, first);
        let [syn, syn_ack, _] = far.handshake();
        near.handshake();
        fixture.sees(&syn);
        fixture.sees(&syn_ack);
        let adjustment = Adjustment { position: Seq::default(), before: offset, after: offset };
        let connection = Connection::direct(near.flow());
        fixture.firewall.adjust(&connection, FromServer, &adjustment, &[]).expect("it can");
        Self { near, far }
    }

    fn says(&mut self, who: Direction, text: &str) -> Vec<u8> {
        let (near, far) = (self.near.says(who, text), self.far.says(who, text));
        if who == FromClient { near } else { far }
    }
}

#[test]
fn session_behind_syn_proxy_opens_in_both_modes() {
    for offset in [1, -1, 700, -700, 1 << 20, -(1 << 29), i32::MAX, i32::MIN] {
        let mut fixture = Fixture::new();
        let mut talk = Proxied::new(&mut fixture, offset);
        for (who, line) in [
            (FromServer, "220 ready\r\n"),
            (FromClient, "USER anna\r\n"),
            (FromServer, "230 in\r\n"),
            (FromClient, "PORT 10,0,0,1,4,1\r\n"),
            (FromServer, "200 fine\r\n"),
            (FromClient, "PASV\r\n"),
            (FromServer, PASSIVE),
        ] {
            let packet = talk.says(who, line);
            assert_eq!(fixture.lets_pass(&packet), line.as_bytes(), "{offset}");
        }
        let events = fixture.take_events();
        assert_eq!(events.len(), 4, "{offset}: {events:?}");
        assert!(events[2].contains("PORT") && !events[2].contains("refused"), "{offset}: {events:?}");
        assert_eq!(events[3], PASSIVE_OPENS, "{offset}");
    }
}
