//! `pinhole replay --nat` and `--write`: a capture of a gateway's inside as its outside would have seen it.
//!
//! tshark, and a stream reader that is not Pinhole's, check that the written capture is valid.

use crate::recording;
use std::path::{Path, PathBuf};

use crate::program::*;
use crate::recording::{IN_PIECES, assert_nothing_new, packets, streams};
use etherparse::PacketBuilder;
use lab::packet_recorder::faults;
use pinhole::core::net::Direction::{FromClient, FromServer};
use pinhole::core::net::{Flags, Flow, Seq};
use pinhole::core::script::{Conversation, endpoint, packet};
use serde_json::Value;

const MASQUERADE: &str = "inside: [10.0.0.1, 10.21.0.10, \"fd21::10\", \"fd00::1\"]\n\
                          outside: [198.51.100.100, \"2001:db8:113::100\"]\n";
const DNAT: &str = "inside: [10.0.0.2, 10.21.0.1, \"fd21::1\"]\ndnat:\n  - 198.51.100.100:21 -> 10.21.0.1:21\n  \
                    - 198.51.100.100:2121 -> 10.0.0.2:21\n  - \"[2001:db8:113::100]:21 -> [fd21::1]:21\"\n";

/// A capture, replayed.
struct Replayed {
    events: Vec<Value>,
    text: String,
    before: PathBuf,
    after: PathBuf,
}

impl Replayed {
    /// Replays a file behind that NAT, and checks that the written packets are valid.
    fn new(folder: &Folder, capture: &Path, nat: &str, policy: &str) -> Self {
        let nat = folder.file("nat.yaml", nat);
        let policy = folder.file("policy.yaml", policy);
        let after = folder.0.join("outside.pcap");
        let options: [&Path; 6] = ["--policy".as_ref(), &policy, "--nat".as_ref(), &nat, "--write".as_ref(), &after];
        let arguments = |more: &'static str| {
            let command: [&Path; 2] = ["replay".as_ref(), more.as_ref()];
            command.into_iter().filter(|one| !one.as_os_str().is_empty()).chain(options).chain([capture])
        };
        let text = run(arguments("")).success().out;
        let events = run(arguments("--json")).success().events();
        let replayed = Self { events, text, before: capture.to_owned(), after };
        // Each without whose it is: that has changed.
        let found = |path| {
            let faults = faults(&packets(path)).into_iter().map(|fault| fault.to_string());
            faults.map(|fault| fault.split_once(": ").map_or(fault.clone(), |(_, what)| what.to_owned())).collect()
        };
        let (was, is): (Vec<String>, Vec<String>) = (found(&replayed.before), found(&replayed.after));
        assert_eq!(is, was, "{}", capture.display());
        replayed
    }

    /// The same for packets that a test has made.
    fn of(test: &str, made: impl IntoIterator<Item = Vec<u8>>, nat: &str, policy: &str) -> (Self, Folder) {
        let (replayed, folder) = Self::unseen(test, made, nat, policy);
        assert_nothing_new(&replayed.before, &replayed.after, &[]);
        (replayed, folder)
    }

    /// The same without asking tshark.
    fn unseen(test: &str, made: impl IntoIterator<Item = Vec<u8>>, nat: &str, policy: &str) -> (Self, Folder) {
        let folder = Folder::new(test);
        let capture = folder.file("inside.pcap", Capture::starting_at(1000).add_all(made).bytes());
        (Self::new(&folder, &capture, nat, policy), folder)
    }

    /// The bytes that the outside received from one address at the other, in their latest connection.
    #[track_caller]
    fn received_stream(&self, from: &str, to: &str) -> String {
        let flow = (from.parse().expect("an address"), to.parse().expect("an address"));
        let streams = streams(&packets(&self.after));
        let said = streams.get(&flow).and_then(|said| said.last());
        said.unwrap_or_else(|| panic!("nothing from {from} to {to} in {:?}", streams.keys())).clone()
    }

    fn all(&self, event: &str) -> Vec<&Value> {
        self.events.iter().filter(|one| one["event"] == event).collect()
    }
}

const OUTSIDE: &str = "198.51.100.100:4000";
/// The client's login.
const LOGIN: &str = "USER anna\r\nPASS hunter2\r\n";

/// A session that has logged in, then says these lines, each of which the server takes, and ends.
fn session(mut talk: Conversation, lines: &[&str]) -> Vec<Vec<u8>> {
    let mut packets = login(&mut talk);
    for line in lines {
        packets.push(talk.says(FromClient, line));
        packets.push(talk.says(FromServer, "200 fine\r\n"));
    }
    packets.extend([talk.closes(FromClient), talk.ack(FromServer), talk.closes(FromServer), talk.ack(FromClient)]);
    packets
}

#[test]
fn longer_lines_and_their_data_connection_are_translated() {
    let mut made = session(talk(), &["PORT 10,0,0,1,15,161\r\n", "EPRT |1|10.0.0.1|4002|\r\n", "NOOP\r\n"]);
    let data = Flow { source: endpoint("10.0.0.2:20"), destination: endpoint("10.0.0.1:4001") };
    let content = [
        packet(&data, Seq::new(7), Seq::new(0), Flags::SYN, b""),
        packet(&data.reversed(), Seq::new(70), Seq::new(8), Flags::SYN.and(Flags::ACK), b""),
        packet(&data, Seq::new(8), Seq::new(71), Flags::ACK, b"a file"),
    ];
    made.splice(10..10, content);
    let (replayed, _folder) = Replayed::of("nat-grow", made, MASQUERADE, "{}");
    let expected = format!("{LOGIN}PORT 198,51,100,100,15,161\r\nEPRT |1|198.51.100.100|4002|\r\nNOOP\r\n");
    assert_eq!(replayed.received_stream(OUTSIDE, SERVER), expected);
    assert_eq!(replayed.received_stream(SERVER, OUTSIDE).matches("200 fine").count(), 3);
    assert_eq!(replayed.received_stream("10.0.0.2:20", "198.51.100.100:4001"), "a file");
    let expected = serde_json::json!({
        "rewritten_from": "10.0.0.1:4001", "delivered_to": "10.0.0.1:4001",
        "from": "10.0.0.2", "to": "198.51.100.100:4001",
    });
    let told = replayed.all("opened")[0];
    for (field, value) in expected.as_object().expect("it is one") {
        assert_eq!(&told[field], value, "{field} of {told}");
    }
    assert_eq!(replayed.all("used")[0]["to"], "198.51.100.100:4001");
    assert!(replayed.text.contains("announced by PORT, rewritten from 10.0.0.1:4001"), "{}", replayed.text);
    assert!(!replayed.text.contains("blocked 1"), "{}", replayed.text);
}

#[test]
fn shorter_lines_are_translated_and_times_and_link_type_stay() {
    let talk = Conversation::new(endpoint("192.168.100.200:4000"), endpoint(SERVER), u32::MAX - 40, 1);
    let made = session(talk, &["PORT 192,168,100,200,15,161\r\n", "PORT 192,168,100,200,15,162\r\n", "NOOP\r\n"]);
    let nat = "inside: [192.168.0.0/16]\noutside: [9.9.9.9]\n";
    let (replayed, _folder) = Replayed::of("nat-shrink", made, nat, "{}");
    let expected = format!("{LOGIN}PORT 9,9,9,9,15,161\r\nPORT 9,9,9,9,15,162\r\nNOOP\r\n");
    assert_eq!(replayed.received_stream("9.9.9.9:4000", SERVER), expected);
    let times = |path| packets(path).iter().map(|packet| packet.time).collect::<Vec<_>>();
    assert_eq!(times(&replayed.after), times(&replayed.before));
    let header = |path| std::fs::read(path).expect("it is there")[20..24].to_vec();
    assert_eq!(header(&replayed.after), header(&replayed.before));
}

#[test]
fn several_lines_in_one_segment_are_rewritten() {
    let lines = ["PORT 10,0,0,1,15,161\r\nPORT 10,0,0,1,15,162\r\nNOOP\r\n", "PORT 10,0,0,1,15,163\r\n"];
    let (replayed, _folder) = Replayed::of("nat-several", session(talk(), &lines), MASQUERADE, "{}");
    let expected = lines.concat().replace("10,0,0,1", "198,51,100,100");
    assert_eq!(replayed.received_stream(OUTSIDE, SERVER), format!("{LOGIN}{expected}"));
    assert_eq!(replayed.all("opened").len(), 3);
}

#[test]
fn split_line_is_rewritten_wherever_it_is_split() {
    let line = b"PORT 10,0,0,1,15,161\r\n";
    for cut in 1..line.len() {
        let mut talk = talk();
        let mut made = login(&mut talk);
        for piece in [&line[..cut], &line[cut..]] {
            made.extend([talk.says(FromClient, piece), talk.ack(FromServer)]);
        }
        made.extend([talk.says(FromServer, "200 fine\r\n"), talk.says(FromClient, "NOOP\r\n")]);
        made.push(talk.says(FromServer, "200 fine\r\n"));
        let (replayed, _folder) = Replayed::unseen("nat-pieces", made, MASQUERADE, "{}");
        assert_nothing_new(&replayed.before, &replayed.after, IN_PIECES);
        assert_eq!(
            replayed.received_stream(OUTSIDE, SERVER),
            format!("{LOGIN}PORT 198,51,100,100,15,161\r\nNOOP\r\n"),
            "{cut}"
        );
    }
}

#[test]
fn retransmitted_line_is_rewritten_identically() {
    let mut talk = talk();
    let mut made = login(&mut talk);
    let line = talk.clone().says(FromClient, "PORT 10,0,0,1,15,161\r\nNOOP\r\n");
    let beginning = talk.clone().says(FromClient, "PORT 10,0,0,1,15,161\r\n");
    let first = talk.says(FromClient, "PORT 10,0,0,1,15,161\r\nNOOP\r\n");
    made.extend([first, line, beginning]);
    made.extend([talk.says(FromServer, "200 fine\r\n200 fine\r\n"), talk.says(FromClient, "SYST\r\n")]);
    let (replayed, _folder) = Replayed::of("nat-again", made, MASQUERADE, "{}");
    assert_eq!(
        replayed.received_stream(OUTSIDE, SERVER),
        format!("{LOGIN}PORT 198,51,100,100,15,161\r\nNOOP\r\nSYST\r\n")
    );
    assert_eq!(replayed.all("opened").len(), 1);
    assert!(recording::analysis(&replayed.after)["tcp.analysis.retransmission"] >= 1);
}

#[test]
fn out_of_order_segments_are_written_in_order() {
    let mut talk = talk();
    let mut made = login(&mut talk);
    let pieces = ["PORT 10,0,", "0,1,15,161\r\n", "NOOP\r\n"].map(|piece| talk.says(FromClient, piece));
    let [first, second, third] = pieces;
    made.extend([third, second, first, talk.says(FromServer, "200 fine\r\n200 fine\r\n")]);
    let (replayed, _folder) = Replayed::unseen("nat-order", made, MASQUERADE, "{}");
    assert_eq!(replayed.received_stream(OUTSIDE, SERVER), format!("{LOGIN}PORT 198,51,100,100,15,161\r\nNOOP\r\n"));
    let found = recording::analysis(&replayed.after);
    assert_eq!((found["tcp.analysis.out_of_order"], found["tcp.analysis.lost_segment"]), (0, 0), "{found:?}");
}

#[test]
fn packets_missing_in_the_capture_delay_nothing() {
    let mut talk = talk();
    let mut made = login(&mut talk);
    talk.loses(FromClient, 6);
    made.push(talk.says(FromClient, "PORT 10,0,0,1,15,161\r\n"));
    made.extend([talk.says(FromServer, "200 fine\r\n200 fine\r\n"), talk.says(FromClient, "NOOP\r\n")]);
    made.push(talk.says(FromServer, "200 fine\r\n"));
    let (replayed, _folder) = Replayed::of("nat-lost", made, MASQUERADE, "{}");
    let received = replayed.received_stream(OUTSIDE, SERVER);
    assert!(received.starts_with(&format!("{LOGIN}??????PORT ")) && received.ends_with("NOOP\r\n"), "{received}");
}

/// A segment with selective acknowledgements.
fn sacking(flow: &Flow, seq: u32, ack: u32, blocks: &[(u32, u32)]) -> Vec<u8> {
    let mut options = vec![1, 1, 5, 2 + 8 * blocks.len() as u8];
    options.extend(blocks.iter().flat_map(|(left, right)| [left.to_be_bytes(), right.to_be_bytes()]).flatten());
    let [std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)] = [flow.source.address, flow.destination.address] else {
        panic!("these tests have IPv4")
    };
    let builder = PacketBuilder::ipv4(from.octets(), to.octets(), 64)
        .tcp(flow.source.port.number(), flow.destination.port.number(), seq, 64_000)
        .ack(ack)
        .options_raw(&options)
        .expect("options fit");
    let mut packet = Vec::new();
    builder.write(&mut packet, b"").expect("a vector takes everything");
    packet
}

#[test]
fn sack_blocks_use_translated_sequence_numbers() {
    let mut talk = talk();
    let mut made = login(&mut talk);
    let begin = 2 + LOGIN.len() as u32;
    let server = 2 + "220 ready\r\n331 and?\r\n230 in\r\n".len() as u32;
    let line = "PORT 10,0,0,1,15,161\r\n";
    let end = begin + line.len() as u32;
    let back = talk.flow().reversed();
    let [port, lost, noop] = [line, "SYST\r\n", "NOOP\r\n"].map(|line| talk.says(FromClient, line));
    // First the bytes after the line are missing, then the line, too.
    made.extend([port.clone(), lost.clone(), noop]);
    made.push(sacking(&back, server, end, &[(end + 6, end + 12)]));
    made.push(sacking(&back, server, begin, &[(end, end + 6), (end + 6, end + 12)]));
    made.extend([port, lost, talk.says(FromServer, "200 fine\r\n")]);
    let (replayed, _folder) = Replayed::of("nat-sack", made, MASQUERADE, "{}");
    let grown = "198,51,100,100".len() as u32 - "10,0,0,1".len() as u32;
    let blocks: Vec<Vec<u32>> = packets(&replayed.after)
        .iter()
        .filter(|packet| packet.bytes[32] >> 4 > 5)
        .map(|packet| {
            let numbers = packet.bytes[44..].chunks(4).map(|bytes| u32::from_be_bytes(bytes.try_into().expect("four")));
            [u32::from_be_bytes(packet.bytes[28..32].try_into().expect("four"))].into_iter().chain(numbers).collect()
        })
        .collect();
    let end = end + grown;
    assert_eq!(blocks, [vec![end, end + 6, end + 12], vec![begin, end, end + 6, end + 6, end + 12]]);
}

#[test]
fn dnat_server_has_its_outside_address_and_port() {
    let mut talk = talk();
    let mut made = login(&mut talk);
    let passive = ["PASV\r\n", "227 Entering Passive Mode (10,0,0,2,156,65).\r\n"];
    made.extend([talk.says(FromClient, passive[0]), talk.says(FromServer, passive[1])]);
    made.extend([opens("10.0.0.1:5000", "10.0.0.2:40001")]);
    made.extend([talk.says(FromClient, "EPSV\r\n"), talk.says(FromServer, "229 Extended (|||40002|)\r\n")]);
    made.push(opens("10.0.0.1:5001", "10.0.0.2:40002"));
    made.extend([talk.says(FromClient, "PORT 10,0,0,1,15,161\r\n"), talk.says(FromServer, "200 fine\r\n")]);
    made.push(opens("10.0.0.2:20", "10.0.0.1:4001"));
    let (replayed, _folder) = Replayed::of("nat-dnat", made, DNAT, "control_ports: [2121]");
    let received = replayed.received_stream("198.51.100.100:2121", CLIENT);
    assert!(
        received.contains("227 Entering Passive Mode (198,51,100,100,156,65).\r\n229 Extended (|||40002|)"),
        "{received}"
    );
    for (from, to) in [
        ("10.0.0.1:5000", "198.51.100.100:40001"),
        ("10.0.0.1:5001", "198.51.100.100:40002"),
        ("198.51.100.100:20", "10.0.0.1:4001"),
    ] {
        assert_eq!(replayed.received_stream(from, to), "");
    }
    let session = replayed.all("session-began")[0];
    assert_eq!((&session["client"], &session["server"]), (&CLIENT.into(), &"198.51.100.100:2121".into()));
    let expected: Vec<_> =
        replayed.all("opened").iter().map(|one| (&one["delivered_to"], &one["leaves_from"])).collect();
    assert_eq!(expected[0], (&"10.0.0.2:40001".into(), &Value::Null));
    assert_eq!(expected[2], (&Value::Null, &"198.51.100.100".into()));
    assert_eq!(replayed.all("used").len(), 3);
}

#[test]
fn port_taken_outside_is_replaced_by_a_free_one() {
    let nat = "inside: [10.0.0.0/24]\noutside: [198.51.100.100]\n";
    let clients = ["10.0.0.11:4000", "10.0.0.12:4000"];
    let mut talks = clients.map(|client| Conversation::new(endpoint(client), endpoint("203.0.113.5:21"), 1, 1));
    let mut made = Vec::new();
    for (talk, last) in talks.iter_mut().zip([11, 12]) {
        made.extend(login(talk));
        made.push(talk.says(FromClient, format!("PORT 10,0,0,{last},15,161\r\n")));
        made.push(talk.says(FromServer, "200 fine\r\n"));
    }
    made.extend([opens("203.0.113.5:20", "10.0.0.12:4001"), opens("203.0.113.5:2020", "10.0.0.11:4001")]);
    let (replayed, _folder) = Replayed::of("nat-taken", made, nat, "{}");
    let outside: Vec<_> = replayed.all("used").iter().map(|one| one["to"].as_str().expect("text")).collect();
    assert_eq!(outside, ["198.51.100.100:4002", "198.51.100.100:4001"]);
    // Both come from port 4000, and outside only one of them can.
    assert!(replayed.received_stream(OUTSIDE, "203.0.113.5:21").ends_with("PORT 198,51,100,100,15,161\r\n"));
    assert!(
        replayed.received_stream("198.51.100.100:1024", "203.0.113.5:21").ends_with("PORT 198,51,100,100,15,162\r\n")
    );
}

#[test]
fn ipv6_is_translated_if_it_has_an_outside_address() {
    let six = || Conversation::new(endpoint("[fd00::1]:4000"), endpoint("[2001:db8::5]:21"), 1, 1);
    let lines = ["EPRT |2|fd00::1|4001|\r\n", "NOOP\r\n"];
    let (replayed, _folder) = Replayed::of("nat-six", session(six(), &lines), MASQUERADE, "{}");
    let received = replayed.received_stream("[2001:db8:113::100]:4000", "[2001:db8::5]:21");
    assert_eq!(received, format!("{LOGIN}EPRT |2|2001:db8:113::100|4001|\r\nNOOP\r\n"));
    let only_four = "inside: [\"fd00::/8\", 10.0.0.0/8]\noutside: [198.51.100.100]\n";
    let (replayed, _folder) = Replayed::of("nat-not-six", session(six(), &lines), only_four, "{}");
    assert_eq!(
        std::fs::read(&replayed.after).expect("a file")[24..],
        std::fs::read(&replayed.before).expect("a file")[24..]
    );
}

#[test]
fn unrelated_connections_are_written_unchanged() {
    let mut made = session(talk(), &["NOOP\r\n"]);
    let web = Flow { source: endpoint("10.0.0.1:5000"), destination: endpoint("203.0.113.7:80") };
    let mut others = vec![packet(&web, Seq::new(9), Seq::new(0), Flags::SYN, b"")];
    // From inside to inside, and something that is no TCP.
    others.push(packet(
        &Flow { source: endpoint("10.0.0.1:4001"), destination: endpoint("10.0.0.1:21") },
        Seq::new(1),
        Seq::new(0),
        Flags::SYN,
        b"",
    ));
    let mut datagram = Vec::new();
    PacketBuilder::ipv4([10, 0, 0, 1], [8, 8, 8, 8], 64).udp(53, 53).write(&mut datagram, b"?").expect("a vector");
    others.push(datagram);
    made.extend(others.clone());
    let (replayed, _folder) = Replayed::of("nat-others", made, MASQUERADE, "{}");
    let written: Vec<_> = packets(&replayed.after).into_iter().map(|packet| packet.bytes).collect();
    assert!(written.ends_with(&others));
}

#[test]
fn reused_addresses_start_a_new_translation() {
    let lines = ["PORT 10,0,0,1,15,161\r\n", "PORT 10,0,0,1,15,162\r\n"];
    let mut made = session(talk(), &lines);
    made.extend(session(Conversation::new(endpoint(CLIENT), endpoint(SERVER), 90_000, 80_000), &lines));
    let (replayed, _folder) = Replayed::of("nat-anew", made, MASQUERADE, "{}");
    let said = &streams(&packets(&replayed.after))[&(OUTSIDE.parse().expect("good"), SERVER.parse().expect("good"))];
    assert_eq!(said.len(), 2);
    assert_eq!(said[0], said[1]);
    assert!(said[1].ends_with("PORT 198,51,100,100,15,162\r\n"), "{said:?}");
}

/// The project's captures: all of them are sound outside as well, and of each kind tshark says so, too.
#[test]
fn recorded_captures_are_valid_after_translation() {
    let folder = Folder::new("nat-captures");
    let all_modes = "defaults: { modes: [PORT, EPRT, LPRT, PASV, EPSV, LPSV] }";
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("pcaps");
    let (mut rewritten, mut looked_at) = (0, 0);
    for entry in std::fs::read_dir(captures).expect("the captures are in pcaps/") {
        let capture = entry.expect("a folder can be read").path();
        let name = capture.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        // Truncated packets cannot be written with other addresses.
        if !(name.ends_with(".pcap") || name.ends_with(".pcapng")) || name.starts_with("snaplen") {
            continue;
        }
        for nat in [MASQUERADE, DNAT] {
            let replayed = Replayed::new(&folder, &capture, nat, all_modes);
            let here = replayed.all("opened").iter().filter(|one| !one["rewritten_from"].is_null()).count();
            rewritten += here;
            let inside_addresses = |path| {
                let inside = if nat == MASQUERADE { ["10.21.0.10", "fd21::10"] } else { ["10.21.0.1", "fd21::1"] };
                let is_inside = move |(from, _): &&recording::Flow| inside.contains(&from.ip().to_string().as_str());
                streams(&packets(path)).keys().filter(is_inside).count()
            };
            let blocked = replayed.all("blocked").len();
            assert!(here == 0 || inside_addresses(&replayed.after) <= blocked, "{name}");
            // Running tshark for each would take minutes: it runs for each tenth, and for captures with split or lost
            // segments.
            if here > 0 && (rewritten % 10 == 0 || ["bytewise", "lossy", "any"].iter().any(|kind| name.contains(kind)))
            {
                let in_pieces = if name.contains("bytewise") { IN_PIECES } else { &[] };
                assert_nothing_new(&replayed.before, &replayed.after, in_pieces);
                looked_at += 1;
            }
        }
    }
    assert!(rewritten > 100 && looked_at > 8, "{rewritten} lines were rewritten, tshark looked at {looked_at}");
}
