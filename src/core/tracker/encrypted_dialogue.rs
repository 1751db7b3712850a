//! Estimates whether a user may have logged in to an encrypted session.
//!
//! FTPS clients send AUTH TLS before USER, so the login itself cannot be read. But the TLS records show which end
//! sends: a login takes a handshake, and at least two commands that the server answers.

use crate::core::net::{Direction, Segment, Seq};

/// How many replies the server sends for a login after the handshake: to USER and to PASS.
const REPLIES_TO_LOGIN: u8 = 2;

/// TLS record types.
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// Counts the turns of an encrypted dialogue: a turn is what one end sends until the other one answers.
#[derive(Debug, Default)]
pub(super) struct EncryptedDialogue {
    /// The end that sent last.
    sender: Option<Direction>,
    /// The end of each direction's data so far.
    client_end: Option<Seq>,
    server_end: Option<Seq>,
    client_handshake: bool,
    server_handshake: bool,
    /// The server's turns of application data that followed one of the client's.
    replies: u8,
    /// With implicit TLS, the server's greeting is encrypted as well, and may count as a reply.
    has_encrypted_greeting: bool,
}

impl EncryptedDialogue {
    /// The dialogue behind this segment of the server, its 234. A retransmission of what came before is no turn.
    pub(super) fn behind(segment: &Segment<'_>) -> Self {
        let (client_end, server_end) = (Some(segment.ack), Some(segment.seq + segment.payload.len()));
        Self { client_end, server_end, ..Self::default() }
    }

    /// The dialogue of a session that began with a TLS handshake. Both ends have sent the first record; this segment is the
    /// server's.
    pub(super) fn implicit(segment: &Segment<'_>) -> Self {
        Self {
            sender: Some(Direction::FromServer),
            client_handshake: true,
            server_handshake: true,
            has_encrypted_greeting: true,
            ..Self::behind(segment)
        }
    }

    /// Handles a segment after the 234. Returns whether the client sends again after as many replies as a login
    /// takes.
    pub(super) fn segment(&mut self, segment: &Segment<'_>, direction: Direction) -> bool {
        let end = segment.seq + segment.payload.len();
        let known = match direction {
            Direction::FromClient => &mut self.client_end,
            Direction::FromServer => &mut self.server_end,
        };
        // A retransmission is no new turn.
        if segment.payload.is_empty() || known.is_some_and(|known| !end.is_after(known)) {
            return false;
        }
        *known = Some(end);
        if self.sender.replace(direction) == Some(direction) {
            return false;
        }
        let record = match *segment.payload {
            [kind, 3, ..] => Some(kind),
            _ => None,
        };
        match (direction, record) {
            (Direction::FromClient, Some(HANDSHAKE)) => self.client_handshake = true,
            (Direction::FromServer, Some(HANDSHAKE)) => self.server_handshake |= self.client_handshake,
            (Direction::FromServer, Some(APPLICATION_DATA)) if self.server_handshake => {
                self.replies = self.replies.saturating_add(1);
            }
            (Direction::FromClient, Some(APPLICATION_DATA)) => {
                return self.replies >= REPLIES_TO_LOGIN + u8::from(self.has_encrypted_greeting);
            }
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::script::{Conversation, endpoint};
    use Direction::{FromClient, FromServer};

    const HELLO: &[u8] = b"\x16\x03\x01\0\x02ab";
    const CHANGE: &[u8] = b"\x14\x03\x03\0\x01\x01\x16\x03\x03\0\x01x";
    const DATA: &[u8] = b"\x17\x03\x03\0\x03abc";

    /// The index of the turn after which a range opens.
    fn opens_at(turns: &[(Direction, &[u8])]) -> Option<usize> {
        let mut talk = Conversation::new(endpoint("10.0.0.1:4000"), endpoint("10.0.0.2:21"), 1, 1);
        let mut dialogue = EncryptedDialogue::default();
        turns.iter().position(|(who, text)| {
            let packet = talk.says(*who, text);
            dialogue.segment(&Segment::parse(&packet).expect("a segment"), *who)
        })
    }

    #[test]
    fn range_opens_after_two_replies_after_the_handshake() {
        // TLS 1.3: USER, PASS, then the next command.
        let tls13 = [
            (FromClient, HELLO),
            (FromServer, HELLO),
            (FromClient, DATA),
            (FromServer, DATA),
            (FromClient, DATA),
            (FromServer, DATA),
            (FromClient, DATA),
        ];
        assert_eq!(opens_at(&tls13), Some(6));
        assert_eq!(opens_at(&tls13[..6]), None);
        // TLS 1.2: the handshake takes two turns of each.
        let tls12 =
            [&[(FromClient, HELLO), (FromServer, HELLO), (FromClient, CHANGE), (FromServer, CHANGE)], &tls13[2..]]
                .concat();
        assert_eq!(opens_at(&tls12), Some(8));
    }

    #[test]
    fn encrypted_greeting_is_no_reply_to_a_login() {
        let mut talk = Conversation::new(endpoint("10.0.0.1:4000"), endpoint("10.0.0.2:21"), 1, 1);
        talk.says(FromClient, HELLO);
        let answer = talk.says(FromServer, HELLO);
        let mut dialogue = EncryptedDialogue::implicit(&Segment::parse(&answer).expect("a segment"));
        // TLS 1.3: the client's Finished and the greeting, USER and 331, PASS and 230, then the next command.
        let turns = [FromClient, FromServer, FromClient, FromServer, FromClient, FromServer, FromClient];
        let opens = turns.map(|who| {
            let packet = talk.says(who, DATA);
            dialogue.segment(&Segment::parse(&packet).expect("a segment"), who)
        });
        assert_eq!(opens, [false, false, false, false, false, false, true]);
    }

    #[test]
    fn plain_text_opens_no_range() {
        let text = [(FromClient, b"USER x\r\n".as_slice()), (FromServer, b"331 go on\r\n")].repeat(20);
        assert_eq!(opens_at(&text), None);
        let without_handshake = [(FromClient, DATA), (FromServer, DATA)].repeat(20);
        assert_eq!(opens_at(&without_handshake), None);
        // A client that sends without replies does not advance the dialogue.
        let alone = [vec![(FromClient, HELLO), (FromServer, HELLO)], vec![(FromClient, DATA); 20]].concat();
        assert_eq!(opens_at(&alone), None);
    }

    #[test]
    fn retransmissions_are_no_turns() {
        let mut talk = Conversation::new(endpoint("10.0.0.1:4000"), endpoint("10.0.0.2:21"), 1, 1);
        let mut dialogue = EncryptedDialogue::default();
        let said: Vec<_> = [(FromClient, HELLO), (FromServer, HELLO), (FromClient, DATA), (FromServer, DATA)]
            .map(|(who, text)| (who, talk.says(who, text)))
            .into();
        for (who, packet) in said.iter().chain(&said).chain(&said).chain(&said) {
            assert!(!dialogue.segment(&Segment::parse(packet).expect("a segment"), *who));
        }
        assert_eq!(dialogue.replies, 1);
    }
}
