//! A command that the policy denies does not reach the server, in whatever form it is sent.
//!
//! Each form is first sent without the daemon, to a server that records what it receives: there it must arrive, or the
//! test would prove nothing.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use lab::{Family, Namespace, ServerKind, ServerOptions, Shape};

use super::setup::{forget_resets_soon, wait_until_forgotten};
use crate::filtered_topology::FilteredTopology;
use crate::raw_tcp::{Checksum, RawSegment, RawTcp, md5_option};

pub(crate) const POLICY: &str = "defaults: { tls: deny, commands: { deny: [FEAT] } }\n";
/// How long a command may take to arrive. None of them is expected to, except without the program.
const ARRIVAL: Duration = Duration::from_secs(2);

/// How many connections there are at once.
const AT_ONCE: usize = 8;
/// The window of the client. Old acknowledgements are believed as far back as it reaches.
const SMALL_WINDOW: u16 = 1000;

/// A way to send a command in a connection that the server has greeted. Some forms use the firewall's namespace.
type Form = fn(&mut RawTcp, &str, &Namespace);

/// The text of a decoy, as long as the bytes that it hides.
fn decoy(length: usize) -> Vec<u8> {
    let text = format!("NOOP {}", "x".repeat(length.max(7) - 7));
    text.into_bytes().into_iter().take(length.saturating_sub(2)).chain(*b"\r\n").collect()
}

fn line(command: &str) -> Vec<u8> {
    format!("{command}\r\n").into_bytes()
}

/// Sends bytes, and retransmits them for as long as a command may take: a dropped segment is not acknowledged.
fn say(peer: &mut RawTcp, bytes: &[u8]) {
    peer.send_for(bytes, ARRIVAL);
}

/// Sends other bytes in the command's place, in a segment that the server ignores, and then the command.
fn behind_a_decoy(peer: &mut RawTcp, command: &str, make: impl FnOnce(RawSegment<'_>) -> RawSegment<'_>) {
    let line = line(command);
    let decoy = decoy(line.len());
    let segment = make(peer.segment(&decoy));
    peer.send_segment(&segment);
    say(peer, &line);
}

/// Forms for which a connection without options will do.
const FORMS: &[(&str, Form)] = &[
    ("behind a Telnet subnegotiation that does not end", |peer, command, _| {
        say(peer, &[b"NOOP \xff\xfa\r\n", line(command).as_slice()].concat());
    }),
    ("behind a Telnet command whose option is a line feed", |peer, command, _| {
        say(peer, &[b"NOOP \xff\xfb\n", line(command).as_slice()].concat());
    }),
    ("behind a decoy whose way is too long", |peer, command, _| {
        behind_a_decoy(peer, command, |segment| RawSegment { ttl: 1, ..segment });
    }),
    ("behind a decoy with an MD5 signature", |peer, command, _| {
        behind_a_decoy(peer, command, |segment| RawSegment { raw_options: md5_option(), ..segment });
    }),
    ("behind a decoy with a wrong checksum", |peer, command, _| {
        behind_a_decoy(peer, command, |segment| RawSegment { checksum: Checksum::Wrong, ..segment });
    }),
    ("behind a decoy that acknowledges what is long past", |peer, command, _| {
        // The server has never been given a larger window than this, and believes no acknowledgement farther back.
        behind_a_decoy(peer, command, |segment| RawSegment { ack: segment.ack.map(|ack| ack.moved(-5000)), ..segment });
    }),
    ("behind a decoy in a SYN", |peer, command, _| {
        behind_a_decoy(peer, command, |segment| RawSegment {
            syn: true,
            ack: None,
            seq: segment.seq.moved(-1),
            ..segment
        });
    }),
    ("behind a decoy in a SYN that acknowledges", |peer, command, _| {
        behind_a_decoy(peer, command, |segment| RawSegment { syn: true, seq: segment.seq.moved(-1), ..segment });
    }),
    ("behind a decoy in a segment without an acknowledgement", |peer, command, _| {
        behind_a_decoy(peer, command, |segment| RawSegment { ack: None, ..segment });
    }),
    ("behind a decoy that ends the connection and never arrives", |peer, command, _| {
        behind_a_decoy(peer, command, |segment| RawSegment { fin: true, ttl: 1, ..segment });
    }),
    ("behind a reset that the server ignores", |peer, command, _| {
        peer.send_segment(&peer.reset(1));
        say(peer, &line(command));
    }),
    ("behind a FIN that never arrives", |peer, command, _| {
        peer.send_segment(&RawSegment { fin: true, ttl: 1, ..peer.segment(b"") });
        say(peer, &line(command));
    }),
    ("with an urgent byte in it", |peer, command, _| {
        let line = line(command);
        let (head, tail) = line.split_at(2);
        let payload = [head, b"X", tail].concat();
        peer.send_segment(&RawSegment { urgent: Some(3), ..peer.segment(&payload) });
        peer.skip(payload.len());
    }),
    ("behind a word that FTP does not know", |peer, command, _| {
        say(peer, b"HELLO\r\n");
        say(peer, &line(command));
    }),
    ("behind a line that FTP does not know, in one segment", |peer, command, _| {
        say(peer, &[b"POST / HTTP/1.1\r\n", line(command).as_slice()].concat());
    }),
    ("in two segments with a decoy between them", |peer, command, _| {
        let line = line(command);
        let (head, tail) = line.split_at(2);
        say(peer, head);
        behind_a_decoy(peer, &String::from_utf8_lossy(&tail[..tail.len() - 2]), |segment| RawSegment {
            ttl: 1,
            ..segment
        });
    }),
    ("in single bytes", |peer, command, _| {
        line(command).chunks(1).for_each(|byte| say(peer, byte));
    }),
    ("with its end before its beginning", |peer, command, _| {
        let line = line(command);
        let (head, tail) = line.split_at(2);
        peer.send_segment(&RawSegment { seq: peer.next() + head.len(), ..peer.segment(tail) });
        say(peer, head);
        peer.skip(tail.len());
    }),
    ("sent again from its beginning, longer", |peer, command, _| {
        let line = line(command);
        peer.send_segment(&peer.segment(&line[..2]));
        peer.send_segment(&peer.segment(&line[..3]));
        say(peer, &line);
    }),
    ("in small letters", |peer, command, _| say(peer, &line(&command.to_ascii_lowercase()))),
    ("behind spaces", |peer, command, _| say(peer, &line(&format!("  {command}")))),
    ("behind a tab", |peer, command, _| say(peer, &line(&format!("\t{command}")))),
    ("behind a NUL", |peer, command, _| say(peer, &line(&format!("\0{command}")))),
    ("behind a carriage return", |peer, command, _| say(peer, &line(&format!("\r{command}")))),
    ("behind an empty line", |peer, command, _| say(peer, &line(&format!("\r\n{command}")))),
    ("behind Telnet's interrupt and mark", |peer, command, _| {
        say(peer, &[b"\xff\xf4\xff\xf2", line(command).as_slice()].concat());
    }),
    ("behind half a Telnet command in the segment before", |peer, command, _| {
        say(peer, b"\xff");
        say(peer, &[b"\xf4", line(command).as_slice()].concat());
    }),
    ("with a bare line feed at its end", |peer, command, _| {
        say(peer, format!("{command}\n").as_bytes());
    }),
    ("with an argument", |peer, command, _| say(peer, &line(&format!("{command} x")))),
    ("behind a line as long as the limit", |peer, command, _| {
        for piece in vec![b'x'; 10_000].chunks(1000) {
            say(peer, piece);
        }
        say(peer, &[b"\r\n", line(command).as_slice()].concat());
    }),
    ("in front of where a connection seems to begin that conntrack forgot", |peer, command, firewall| {
        peer.send_segment(&RawSegment { ttl: 1, ..peer.reset(0) });
        wait_until_forgotten(firewall, peer.local().port());
        peer.send_segment(&RawSegment { seq: peer.next() + 100, ttl: 1, ..peer.segment(b"NOOP\r\n") });
        say(peer, &line(command));
    }),
    ("cut where a connection seems to begin that conntrack forgot", |peer, command, firewall| {
        let line = line(command);
        let (head, tail) = line.split_at(2);
        say(peer, head);
        peer.send_segment(&RawSegment { ttl: 1, ..peer.reset(0) });
        wait_until_forgotten(firewall, peer.local().port());
        say(peer, tail);
    }),
    ("behind a decoy that a forged reply acknowledges", |peer, command, _| {
        let line = line(command);
        let decoy = decoy(line.len());
        peer.send_segment(&RawSegment { ttl: 1, ..peer.segment(&decoy) });
        let ack = Some(peer.next() + decoy.len());
        peer.forge_reply(&RawSegment { ack, ..peer.reply(0, b"2") });
        say(peer, &line);
    }),
    ("with a decoy of the same length out of order", |peer, command, _| {
        let line = line(command);
        let ahead = [b"NOOP\r\n", decoy(line.len()).as_slice()].concat();
        peer.send_segment(&RawSegment { seq: peer.next() + 6, ttl: 1, ..peer.segment(&ahead[6..]) });
        say(peer, b"NOOP\r\n");
        say(peer, &line);
    }),
    ("behind an urgent byte", |peer, command, _| {
        let payload = [b"X", line(command).as_slice()].concat();
        peer.send_segment(&RawSegment { urgent: Some(1), ..peer.segment(&payload) });
        peer.skip(payload.len());
    }),
    ("with an urgent byte, in single bytes", |peer, command, _| {
        let line = line(command);
        let (head, tail) = line.split_at(2);
        say(peer, head);
        peer.send_segment(&RawSegment { urgent: Some(1), ..peer.segment(b"X") });
        peer.skip(1);
        say(peer, tail);
    }),
    ("with an urgent byte that the segment before promises", |peer, command, _| {
        let line = line(command);
        let (head, tail) = line.split_at(2);
        peer.send_segment(&RawSegment { urgent: Some(3), ..peer.segment(head) });
        peer.skip(head.len());
        say(peer, &[b"X", tail].concat());
    }),
    ("in the first segment behind a connection that conntrack forgot", |peer, command, firewall| {
        peer.send_segment(&RawSegment { ttl: 1, ..peer.reset(0) });
        wait_until_forgotten(firewall, peer.local().port());
        say(peer, &line(command));
    }),
];

/// Forms for which the connection needs timestamps.
const FORMS_WITH_TIMESTAMPS: &[(&str, Form)] = &[("behind a decoy with an old timestamp", |peer, command, _| {
    let line = line(command);
    let decoy = decoy(line.len());
    peer.send_segment(&peer.stale(&decoy));
    say(peer, &line);
})];

/// All forms, and whether each needs timestamps.
fn forms() -> impl Iterator<Item = (&'static str, Form, bool)> {
    let plain = FORMS.iter().map(|&(name, form)| (name, form, false));
    plain.chain(FORMS_WITH_TIMESTAMPS.iter().map(|&(name, form)| (name, form, true)))
}

/// Sends a command in each form, each in its own connection. Returns the names of the forms for which `arrives` is
/// true. Several run at once, as each takes its time.
fn send_all(
    fixture: &FilteredTopology,
    command: &str,
    arrives: impl Fn(&mut RawTcp) -> bool + Sync,
) -> Vec<&'static str> {
    send_forms(fixture, command, arrives, |_| true)
}

/// The same for some forms.
fn send_forms(
    fixture: &FilteredTopology,
    command: &str,
    arrives: impl Fn(&mut RawTcp) -> bool + Sync,
    is_wanted: impl Fn(&str) -> bool + Send,
) -> Vec<&'static str> {
    let left = Mutex::new(forms().filter(move |(name, ..)| is_wanted(name)));
    let arrived = Mutex::new(Vec::new());
    let work = || {
        while let Some((name, send, timestamps)) = { left.lock().expect("nobody panics with it").next() } {
            let mut peer = connect(fixture, timestamps);
            peer.read_reply("220");
            send(&mut peer, command, fixture.firewall());
            if arrives(&mut peer) {
                arrived.lock().expect("nobody panics with it").push(name);
            }
            peer.send_segment(&peer.reset(0));
        }
    };
    thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(work))));
    arrived.into_inner().expect("nobody panicked with it")
}

fn connect(fixture: &FilteredTopology, timestamps: bool) -> RawTcp {
    let host = &fixture.topology.client;
    let target = fixture.target(Family::V4, 21);
    RawTcp::connect_with(&host.namespace, host.addresses.of(Family::V4), target, timestamps, SMALL_WINDOW, b"")
}

fn fixture() -> FilteredTopology {
    let fixture = FilteredTopology::new(Shape::Gateway);
    fixture.firewall().set("net/netfilter/nf_conntrack_checksum", "0").expect("root may");
    forget_resets_soon(fixture.firewall());
    fixture
}

/// A server that greets, says nothing more, and records what it receives, by the client's port.
pub(crate) struct Recorder(Arc<Mutex<BTreeMap<u16, Vec<u8>>>>);

impl Recorder {
    pub(crate) fn start(namespace: &Namespace, address: SocketAddr) -> Self {
        let listener = namespace.run(|| TcpListener::bind(address)).expect("root may enter").expect("it is free");
        let heard = Arc::new(Mutex::new(BTreeMap::<u16, Vec<u8>>::new()));
        let keep = Arc::clone(&heard);
        thread::spawn(move || {
            while let Ok((mut control, peer)) = listener.accept() {
                let keep = Arc::clone(&keep);
                thread::spawn(move || {
                    let _ = control.write_all(b"220 Hello.\r\n");
                    let mut buffer = [0; 4096];
                    while let Ok(length @ 1..) = control.read(&mut buffer) {
                        let mut heard = keep.lock().expect("nobody panics with it");
                        heard.entry(peer.port()).or_default().extend_from_slice(&buffer[..length]);
                    }
                });
            }
        });
        Self(heard)
    }

    /// Whether a command arrives from a client within a time in which it should.
    pub(crate) fn has_received(&self, command: &str, client: SocketAddr) -> bool {
        let has = || {
            let heard = self.0.lock().expect("nobody panics with it");
            let text = heard.get(&client.port()).map(|bytes| String::from_utf8_lossy(bytes).to_ascii_uppercase());
            Ok(text.is_some_and(|text| has_word(&text, command)))
        };
        lab::wait_until("a command", ARRIVAL, has).is_ok()
    }
}

/// Whether a text has a word that is not the end of a longer one.
fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| !text[..at].ends_with(|before: char| before.is_ascii_alphanumeric()))
}

/// As the kernel of the server has it.
fn assert_does_not_arrive(command: &str) {
    let fixture = fixture();
    let recorder = Recorder::start(&fixture.topology.server.namespace, fixture.target(Family::V4, 21));
    let arrives = |peer: &mut RawTcp| recorder.has_received(command, peer.local());
    let mut all = send_all(&fixture, command, arrives);
    // A form that sends no segment a second time is late where the machine is busy.
    let late = send_forms(&fixture, command, arrives, |name| !all.contains(&name));
    all.extend(late);
    let missing: Vec<&str> = forms().map(|(name, ..)| name).filter(|name| !all.contains(name)).collect();
    assert!(missing.is_empty(), "these do not arrive without the program either: {missing:#?}");
    let _daemon = fixture.daemon(POLICY);
    let arrived = send_all(&fixture, command, arrives);
    assert!(arrived.is_empty(), "{command} arrives in spite of the policy: {arrived:#?}");
}

#[test]
fn denied_command_does_not_arrive_in_any_form() {
    assert_does_not_arrive("FEAT");
}

#[test]
fn denied_encryption_does_not_arrive_in_any_form() {
    assert_does_not_arrive("AUTH TLS");
}

/// Of all that a packet may have in front of TCP's header.
#[test]
fn denied_command_after_ip_options_does_not_arrive() {
    for family in Family::ALL {
        let fixture = fixture();
        let target = fixture.target(family, 21);
        let recorder = Recorder::start(&fixture.topology.server.namespace, target);
        let host = &fixture.topology.client;
        let arrives = || {
            let mut peer = RawTcp::connect(&host.namespace, host.addresses.of(family), target, false);
            peer.read_reply("220");
            peer.send_segment(&RawSegment { has_ip_options: true, ..peer.segment(b"FEAT\r\n") });
            peer.skip(6);
            recorder.has_received("FEAT", peer.local())
        };
        assert!(arrives(), "{family}: without the program it does not arrive");
        let _daemon = fixture.daemon(POLICY);
        assert!(!arrives(), "{family}: FEAT arrives in spite of the policy");
    }
}

/// TCP Fast Open, where the server's host accepts it from every client.
#[test]
fn denied_command_in_a_syn_does_not_arrive() {
    let fixture = fixture();
    fixture.topology.server.namespace.set("net/ipv4/tcp_fastopen", "1538").expect("root may"); // 0x602
    let target = fixture.target(Family::V4, 21);
    let recorder = Recorder::start(&fixture.topology.server.namespace, target);
    let host = &fixture.topology.client;
    let connect = || {
        let address = host.addresses.of(Family::V4);
        let mut peer = RawTcp::connect_with(&host.namespace, address, target, false, SMALL_WINDOW, b"FEAT\r\n");
        peer.read_reply("220");
        recorder.has_received("FEAT", peer.local())
    };
    assert!(connect(), "without the program it does not arrive");
    let _daemon = fixture.daemon(POLICY);
    assert!(
        !thread::scope(|scope| scope.spawn(connect).join()).unwrap_or(false),
        "FEAT arrives in spite of the policy"
    );
}

/// Linux and conntrack take port 0 for any other, and the daemon for damage.
#[test]
fn denied_command_from_port_zero_does_not_arrive() {
    let fixture = fixture();
    let target = fixture.target(Family::V4, 21);
    // Nobody accepts the connection: `accept` fails for that port, but not on every system that a server may run on.
    let server = &fixture.topology.server.namespace;
    let _listener = server.run(|| TcpListener::bind(target)).expect("root may enter").expect("it is free");
    let client = &fixture.topology.client;
    let own = SocketAddr::new(client.addresses.of(Family::V4), 0);
    let arrives = || {
        let peer = RawTcp::try_connect_from(&client.namespace, own, target, false, SMALL_WINDOW, b"");
        peer.is_some_and(|mut peer| peer.send_for(b"FEAT\r\n", ARRIVAL))
    };
    for (policy, expected) in [(POLICY, false), ("", true)] {
        let _daemon = fixture.daemon(policy);
        assert_eq!(arrives(), expected, "FEAT arrives with the policy {policy:?}");
    }
}

/// Many filters accept every packet to port 21, also those that conntrack calls invalid and that are not queued.
#[test]
fn denied_command_in_an_invalid_packet_does_not_arrive() {
    let fixture = fixture();
    fixture
        .firewall()
        .nft("table inet filter { chain forward { tcp dport 21 accept; tcp sport 21 accept; }; }")
        .expect("fine");
    fixture.firewall().set("net/netfilter/nf_conntrack_tcp_loose", "0").expect("root may");
    let recorder = Recorder::start(&fixture.topology.server.namespace, fixture.target(Family::V4, 21));
    let arrives = |peer: &mut RawTcp| recorder.has_received("FEAT", peer.local());
    let _daemon = fixture.daemon(POLICY);
    let arrived = send_all(&fixture, "FEAT", arrives);
    assert!(arrived.is_empty(), "FEAT arrives in spite of the policy: {arrived:#?}");
}

#[test]
fn no_server_answers_a_denied_command() {
    let answered_by = |kind: ServerKind| {
        let fixture = fixture();
        let options = ServerOptions::on(fixture.topology.server.addresses.of(Family::V4));
        let _server =
            kind.start(&fixture.topology.server.namespace, &options).unwrap_or_else(|error| panic!("{error}"));
        let answers = |peer: &mut RawTcp| peer.receives_within("211", ARRIVAL);
        let all = send_all(&fixture, "FEAT", answers);
        assert!(all.len() > forms().count() / 2, "{kind}: without the program only these are answered: {all:#?}");
        let _daemon = fixture.daemon(POLICY);
        let answered = send_all(&fixture, "FEAT", answers);
        answered.into_iter().map(|form| format!("{kind}: {form}")).collect::<Vec<_>>()
    };
    let answered: Vec<String> = thread::scope(|scope| {
        let all = ServerKind::ALL.map(|kind| scope.spawn(move || answered_by(kind)));
        all.into_iter().flat_map(|one| one.join().expect("it has said why")).collect()
    });
    assert!(answered.is_empty(), "FEAT is answered in spite of the policy: {answered:#?}");
}
