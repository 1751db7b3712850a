//! A command that the policy denies does not reach the server, in whatever form it is sent.
//!
//! Each form is first sent without the program, to a server that keeps what it hears: there it must arrive, or it
//! would show nothing.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use pinhole::lab::{self, Family, Namespace, ServerKind, Shape};

use crate::raw_tcp::{Checksum, RawSegment, RawTcp, md5_option};
use crate::scene::{ServerScene, forget_resets_soon, wait_until_forgotten};
use crate::stage::Stage;

const POLICY: &str = "defaults: { tls: deny, commands: { deny: [FEAT] } }\n";
/// How long a command may take to arrive. None of them is expected to, except without the program.
const ARRIVAL: Duration = Duration::from_secs(2);

/// A way to send a command. The connection is greeted; the firewall is for those who need it.
type Form = fn(&mut RawTcp, &str, &Namespace);

/// What a decoy says, in as many bytes as are to be hidden.
fn decoy(length: usize) -> Vec<u8> {
    let text = format!("NOOP {}", "x".repeat(length.max(7) - 7));
    text.into_bytes().into_iter().take(length.saturating_sub(2)).chain(*b"\r\n").collect()
}

fn line(command: &str) -> Vec<u8> {
    format!("{command}\r\n").into_bytes()
}

/// Sends other bytes in the command's place, in a segment that the server ignores, and then the command.
fn behind_a_decoy(peer: &mut RawTcp, command: &str, make: impl FnOnce(RawSegment<'_>) -> RawSegment<'_>) {
    let line = line(command);
    let decoy = decoy(line.len());
    let segment = make(peer.segment(&decoy));
    peer.send_segment(&segment);
    peer.send_for_sure(&line);
}

/// Forms for which a connection without options will do.
const FORMS: &[(&str, Form)] = &[
    ("behind a Telnet subnegotiation that does not end", |peer, command, _| {
        peer.send_for_sure(&[b"NOOP \xff\xfa\r\n", line(command).as_slice()].concat());
    }),
    ("behind a Telnet command whose option is a line feed", |peer, command, _| {
        peer.send_for_sure(&[b"NOOP \xff\xfb\n", line(command).as_slice()].concat());
    }),
    ("behind a decoy whose way is too long", |peer, command, _| {
        behind_a_decoy(peer, command, |segment| RawSegment { ttl: 1, ..segment });
    }),
    ("behind a decoy with an MD5 signature", |peer, command, _| {
        behind_a_decoy(peer, command, |segment| RawSegment { raw_options: md5_option(), ..segment });
    }),
    ("behind a decoy with a wrong checksum", |peer, command, firewall| {
        firewall.set("net/netfilter/nf_conntrack_checksum", "0").expect("root may");
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
        peer.send_for_sure(&line(command));
    }),
    ("behind a FIN that never arrives", |peer, command, _| {
        peer.send_segment(&RawSegment { fin: true, ttl: 1, ..peer.segment(b"") });
        peer.send_for_sure(&line(command));
    }),
    ("with an urgent byte in it", |peer, command, _| {
        let line = line(command);
        let (head, tail) = line.split_at(2);
        let payload = [head, b"X", tail].concat();
        peer.send_segment(&RawSegment { urgent: Some(3), ..peer.segment(&payload) });
        peer.skip(payload.len());
    }),
    ("behind a word that FTP does not know", |peer, command, _| {
        peer.send_for_sure(b"HELLO\r\n");
        peer.send_for_sure(&line(command));
    }),
    ("behind a line that FTP does not know, in one segment", |peer, command, _| {
        peer.send_for_sure(&[b"POST / HTTP/1.1\r\n", line(command).as_slice()].concat());
    }),
    ("in two segments with a decoy between them", |peer, command, _| {
        let line = line(command);
        let (head, tail) = line.split_at(2);
        peer.send_for_sure(head);
        behind_a_decoy(peer, &String::from_utf8_lossy(&tail[..tail.len() - 2]), |segment| RawSegment {
            ttl: 1,
            ..segment
        });
    }),
    ("in single bytes", |peer, command, _| {
        line(command).chunks(1).for_each(|byte| peer.send_for_sure(byte));
    }),
    ("with its end before its beginning", |peer, command, _| {
        let line = line(command);
        let (head, tail) = line.split_at(2);
        peer.send_segment(&RawSegment { seq: peer.next() + head.len(), ..peer.segment(tail) });
        peer.send_for_sure(head);
        peer.skip(tail.len());
    }),
    ("sent again from its beginning, longer", |peer, command, _| {
        let line = line(command);
        peer.send_segment(&peer.segment(&line[..2]));
        peer.send_segment(&peer.segment(&line[..3]));
        peer.send_for_sure(&line);
    }),
    ("in small letters", |peer, command, _| peer.send_for_sure(&line(&command.to_ascii_lowercase()))),
    ("behind spaces", |peer, command, _| peer.send_for_sure(&line(&format!("  {command}")))),
    ("behind a tab", |peer, command, _| peer.send_for_sure(&line(&format!("\t{command}")))),
    ("behind a NUL", |peer, command, _| peer.send_for_sure(&line(&format!("\0{command}")))),
    ("behind a carriage return", |peer, command, _| peer.send_for_sure(&line(&format!("\r{command}")))),
    ("behind an empty line", |peer, command, _| peer.send_for_sure(&line(&format!("\r\n{command}")))),
    ("behind Telnet's interrupt and mark", |peer, command, _| {
        peer.send_for_sure(&[b"\xff\xf4\xff\xf2", line(command).as_slice()].concat());
    }),
    ("behind half a Telnet command in the segment before", |peer, command, _| {
        peer.send_for_sure(b"\xff");
        peer.send_for_sure(&[b"\xf4", line(command).as_slice()].concat());
    }),
    ("with a bare line feed at its end", |peer, command, _| {
        peer.send_for_sure(format!("{command}\n").as_bytes());
    }),
    ("with an argument", |peer, command, _| peer.send_for_sure(&line(&format!("{command} x")))),
    ("behind a line as long as the limit", |peer, command, _| {
        for piece in vec![b'x'; 10_000].chunks(1000) {
            peer.send_for_sure(piece);
        }
        peer.send_for_sure(&[b"\r\n", line(command).as_slice()].concat());
    }),
    ("in the first segment behind a connection that conntrack forgot", |peer, command, firewall| {
        forget_resets_soon(firewall);
        peer.send_segment(&RawSegment { ttl: 1, ..peer.reset(0) });
        wait_until_forgotten(firewall, 21);
        peer.send_for_sure(&line(command));
    }),
];

/// Forms for which the connection needs timestamps.
const FORMS_WITH_TIMESTAMPS: &[(&str, Form)] = &[("behind a decoy with an old timestamp", |peer, command, _| {
    let line = line(command);
    let decoy = decoy(line.len());
    peer.send_segment(&peer.stale(&decoy));
    peer.send_for_sure(&line);
})];

/// A server that greets, says nothing more, and keeps what it hears.
struct Recorder {
    /// By connection.
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Recorder {
    fn start(namespace: &Namespace, address: SocketAddr) -> Self {
        let listener = namespace.run(|| TcpListener::bind(address)).expect("root may enter").expect("it is free");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&heard);
        thread::spawn(move || {
            while let Ok((mut control, _)) = listener.accept() {
                let keep = Arc::clone(&keep);
                let number = {
                    let mut heard = keep.lock().expect("nobody panics with it");
                    heard.push(Vec::new());
                    heard.len() - 1
                };
                thread::spawn(move || {
                    let _ = control.write_all(b"220 Hello.\r\n");
                    let mut buffer = [0; 4096];
                    while let Ok(length @ 1..) = control.read(&mut buffer) {
                        keep.lock().expect("nobody panics with it")[number].extend_from_slice(&buffer[..length]);
                    }
                });
            }
        });
        Self { heard }
    }

    /// Whether a command arrives in the newest connection within a time in which it should.
    fn hears(&self, command: &str) -> bool {
        let has = || {
            let heard = self.heard.lock().expect("nobody panics with it");
            let text = heard.last().map(|bytes| String::from_utf8_lossy(bytes).to_ascii_uppercase());
            Ok(text.is_some_and(|text| text.contains(command)))
        };
        lab::wait_until("a command", ARRIVAL, has).is_ok()
    }
}

fn connect(stage: &Stage, timestamps: bool) -> RawTcp {
    let host = &stage.topology.client;
    let target = stage.target(Family::V4, 21);
    RawTcp::connect_with(&host.namespace, host.addresses.of(Family::V4), target, timestamps, 1000)
}

/// Sends a command in each form; the names of those forms in which it arrives.
fn arrives(stage: &Stage, recorder: &Recorder, command: &str) -> Vec<&'static str> {
    let plain = FORMS.iter().map(|form| (form, false));
    let forms = plain.chain(FORMS_WITH_TIMESTAMPS.iter().map(|form| (form, true)));
    let arrived = forms.filter(|((_, send), timestamps)| {
        let mut peer = connect(stage, *timestamps);
        peer.read_reply("220");
        send(&mut peer, command, stage.firewall());
        let arrives = recorder.hears(command);
        peer.send_segment(&peer.reset(0));
        arrives
    });
    arrived.map(|((name, _), _)| *name).collect()
}

/// As the kernel of the server has it.
fn denied_command_does_not_arrive(command: &str) {
    let stage = Stage::new(Shape::Gateway);
    let recorder = Recorder::start(&stage.topology.server.namespace, stage.target(Family::V4, 21));
    let all = arrives(&stage, &recorder, command);
    assert_eq!(all.len(), FORMS.len() + FORMS_WITH_TIMESTAMPS.len(), "without the program only these arrive: {all:#?}");
    let _daemon = stage.daemon(POLICY);
    let arrived = arrives(&stage, &recorder, command);
    assert!(arrived.is_empty(), "{command} arrives in spite of the policy: {arrived:#?}");
}

#[test]
fn denied_command_does_not_arrive_in_any_form() {
    denied_command_does_not_arrive("FEAT");
}

#[test]
fn denied_encryption_does_not_arrive_in_any_form() {
    denied_command_does_not_arrive("AUTH TLS");
}
