//! Transfers of many sessions as packets, for the benchmarks.

use std::net::Ipv4Addr;

use pinhole::core::net::Direction::{FromClient, FromServer};
use pinhole::core::net::{Endpoint, Flags, Flow, Port, Seq};
use pinhole::core::script::{self, Conversation};

/// How many transfers are under way at a time.
pub(crate) const UNDER_WAY: usize = 1000;
/// One transfer on the control connection.
const TURNS: usize = 6;
/// Where data connections go, one port for each transfer under way.
const DATA_PORT: u16 = 51_200;

/// A control connection of the client of that number.
pub(crate) fn conversation(index: usize) -> Conversation {
    let address = Ipv4Addr::from(0x0a00_0000 + index as u32 / 50_000);
    let port = Port::new(10_000 + (index % 50_000) as u16).expect("from 10000 on");
    let client = Endpoint::new(address.into(), port);
    Conversation::new(client, script::endpoint("192.0.2.1:21"), index as u32, !(index as u32))
}

/// The packets from the handshake to the login.
pub(crate) fn login(talk: &mut Conversation, mut take: impl FnMut(&[u8])) {
    for packet in talk.handshake() {
        take(&packet);
    }
    for (who, line) in [
        (FromServer, "220 ready\r\n"),
        (FromClient, "USER anonymous\r\n"),
        (FromServer, "331 password please\r\n"),
        (FromClient, "PASS a@example.org\r\n"),
        (FromServer, "230 welcome\r\n"),
    ] {
        take(&talk.says(who, line));
    }
}

/// One transfer of every session, in an order that caches cannot predict: a thousand at a time, packet by packet in
/// turn.
pub(crate) fn transfers(talks: &mut [Conversation], order: &mut [usize], mut take: impl FnMut(&[u8])) {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for place in (1..order.len()).rev() {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(place, (random >> 33) as usize % (place + 1));
    }
    for under_way in order.chunks(UNDER_WAY) {
        for turn in 0..TURNS {
            for (place, &index) in under_way.iter().enumerate() {
                turn_of(&mut talks[index], turn, DATA_PORT + place as u16, &mut take);
            }
        }
    }
}

/// What a transfer does in its turn.
fn turn_of(talk: &mut Conversation, turn: usize, port: u16, take: &mut impl FnMut(&[u8])) {
    let packet = match turn {
        0 => talk.says(FromClient, "PASV\r\n"),
        1 => {
            let line = format!("227 Entering Passive Mode (192,0,2,1,{},{}).\r\n", port / 256, port % 256);
            talk.says(FromServer, line)
        }
        2 => {
            let Flow { source, destination } = talk.flow();
            let to = Endpoint::new(destination.address, Port::new(port).expect("from 51200 on"));
            let data = Flow { source, destination: to };
            take(&script::packet(&data, Seq::new(1), Seq::new(0), Flags::SYN, b""));
            talk.says(FromClient, "RETR some/file/of/the/server.txt\r\n")
        }
        3 => talk.says(FromServer, "150 Opening BINARY mode data connection.\r\n"),
        4 => talk.says(FromServer, "226 Transfer complete.\r\n"),
        _ => talk.ack(FromClient),
    };
    take(&packet);
}
