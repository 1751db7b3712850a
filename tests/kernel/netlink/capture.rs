//! Which packets the kernel queues.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pinhole::core::kernel::{Control, Firewall, SessionProgress, Synced};
use pinhole::core::policy::{Policy, WhenDown};
use pinhole::core::seqadj::Adjustments;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::host::{Host, connects, flow_of, listens};
use crate::firewall;

/// Reads queue 0 of a host while `work` runs; `see` may return another packet in place of the one that it gets.
pub(crate) fn in_queue(host: &Host, mut see: impl FnMut(&[u8]) -> Option<Vec<u8>> + Send, work: impl FnOnce()) {
    let mut queue = host.run(nfq::Queue::open).expect("root");
    queue.bind(0).expect("nobody else reads it");
    queue.set_nonblocking(true);
    let over = AtomicBool::new(false);
    /// Stops the reader after a panic, too.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    thread::scope(|scope| {
        let _stop = Stop(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                match queue.recv() {
                    Ok(mut message) => {
                        if let Some(other) = see(message.get_payload()) {
                            message.set_payload(other);
                        }
                        queue.verdict(message).expect("it waits");
                    }
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        work();
    });
}

/// Lists the packets of queue 0, each with the first four bytes of its payload, or its flags. A retransmission of a
/// slow machine's TCP is listed once; an identical packet is listed twice.
fn queued_packets(host: &Host, work: impl FnOnce()) -> Vec<String> {
    let mut heard: Vec<Vec<u8>> = Vec::new();
    let hear = |packet: &[u8]| {
        if !heard.iter().any(|earlier| is_sent_again(packet, earlier)) {
            heard.push(packet.to_owned());
        }
        None
    };
    in_queue(host, hear, work);
    heard.iter().map(|packet| describe(packet)).collect()
}

fn tcp(packet: &[u8]) -> &[u8] {
    if packet[0] >> 4 == 4 { &packet[20..] } else { &packet[40..] }
}

/// Whether it is another packet for the same bytes: its ports and sequence number are the same, and its timestamp is not.
fn is_sent_again(packet: &[u8], earlier: &[u8]) -> bool {
    tcp(packet)[..8] == tcp(earlier)[..8] && describe(packet) == describe(earlier) && tcp(packet) != tcp(earlier)
}

fn describe(packet: &[u8]) -> String {
    let tcp = tcp(packet);
    let payload = &tcp[usize::from(tcp[12] >> 4) * 4..];
    let flags = [(2, "SYN"), (1, "FIN"), (4, "RST")].into_iter().filter(|(bit, _)| tcp[13] & bit != 0);
    let mut words: Vec<String> = flags.map(|(_, name)| name.to_owned()).collect();
    if !payload.is_empty() {
        words.push(String::from_utf8_lossy(&payload[..payload.len().min(4)]).into_owned());
    }
    words.join(" ")
}

/// A dialogue of lines, each sent when the one before has arrived: the client's begin with `>`.
fn converse(client: &mut TcpStream, server: &mut TcpStream, lines: &[&str]) {
    for line in lines {
        let (from, to) =
            if line.starts_with('>') { (&mut *client, &mut *server) } else { (&mut *server, &mut *client) };
        from.write_all(&line.as_bytes()[1..]).expect("open");
        let mut came = vec![0; line.len() - 1];
        to.read_exact(&mut came).expect("it comes");
    }
}

const DIALOGUE: [&str; 9] =
    ["<220 hello", ">USER me", "<331 who", ">PASS it", "<230 in", ">TYPE I", "<200 ok", ">PASV", "<227 (1,2,3"];

#[test]
fn dialogue_is_queued_without_bare_acks() {
    for (client_side, address) in [(false, "10.9.0.2:21"), (false, "[fd09::2]:21"), (true, "10.9.0.2:21")] {
        let (client, host) = Host::pair();
        // The firewall is the server's, then the client's own.
        let guard = if client_side { &client } else { &host };
        let mut sets = guard.run(|| firewall::install(&Policy::embedded())).expect("installed");
        let listener = listens(&host, address);
        let heard = queued_packets(guard, || {
            let mut ours = connects(&client, address).expect("it listens");
            let (mut theirs, _) = listener.accept().expect("it came");
            let Control { connection, id, .. } =
                sets.control_connection(&flow_of(&ours)).expect("an answer").expect("a control connection");
            assert!(id.is_some());
            let adjustments = Adjustments::default();
            let synced = Synced::default();
            let control = |progress| Control { connection, id, is_opening: false, progress, synced, adjustments };
            assert_eq!(sets.control_connection(&flow_of(&theirs)), Ok(Some(control(SessionProgress::Unknown))));
            assert_eq!(connection.client(), flow_of(&ours).source);
            converse(&mut ours, &mut theirs, &DIALOGUE[..5]);
            // Recorded progress of a readable session does not change which packets are queued.
            for progress in [SessionProgress::Ftp, SessionProgress::LoggedIn] {
                sets.record(&connection, progress);
                assert_eq!(sets.control_connection(&flow_of(&ours)), Ok(Some(control(progress))));
            }
            converse(&mut ours, &mut theirs, &DIALOGUE[5..]);
            sets.record(&connection, SessionProgress::Unreadable);
            assert_eq!(sets.control_connection(&flow_of(&theirs)), Ok(Some(control(SessionProgress::Unreadable))));
            converse(&mut ours, &mut theirs, &[">AAAA", "<BBBB"]);
            // Each end reads the other's FIN, which has left the queue by then.
            ours.shutdown(Shutdown::Write).expect("open");
            theirs.read_to_end(&mut Vec::new()).expect("it ends");
            theirs.shutdown(Shutdown::Write).expect("open");
            ours.read_to_end(&mut Vec::new()).expect("it ends");
            // The socket has no peer any more when the ACK of its FIN has arrived, which has left the queue by then.
            lab::wait_until("the acknowledgement", Duration::from_secs(30), || Ok(theirs.peer_addr().is_err()))
                .expect("it comes");
        });
        // The ACK of a FIN is bare, and shows the end of the connection.
        let (dialogue, end) = heard.split_at(heard.iter().position(|said| said == "FIN").expect("it ends"));
        assert!(!dialogue.iter().any(String::is_empty), "{dialogue:?}");
        assert!(end.iter().any(String::is_empty), "{end:?}");
        let heard: Vec<_> = heard.iter().filter(|said| !said.is_empty()).collect();
        let expected = ["SYN", "220 ", "USER", "331 ", "PASS", "230 ", "TYPE", "200 ", "PASV", "227 ", "FIN", "FIN"];
        assert_eq!(heard, expected, "{address} {client_side}");
        assert_eq!(sets.take_refused().count, 0);
    }
}

#[test]
fn loopback_packets_are_queued_once() {
    let host = Host::new("loop");
    let _sets = host.run(|| firewall::install(&Policy::embedded())).expect("installed");
    let listener = listens(&host, "127.0.0.1:21");
    let heard = queued_packets(&host, || {
        let mut ours = connects(&host, "127.0.0.1:21").expect("it listens");
        let (mut theirs, _) = listener.accept().expect("it came");
        converse(&mut ours, &mut theirs, &DIALOGUE[..2]);
    });
    assert_eq!(heard[..3], ["SYN", "220 ", "USER"]);
}

#[test]
fn queue_without_reader_follows_when_down() {
    for (when_down, passes) in [(WhenDown::Open, true), (WhenDown::Closed, false)] {
        let (client, host) = Host::pair();
        let mut policy = Policy::embedded();
        policy.capture.when_down = when_down;
        let mut sets = host.run(|| firewall::install(&policy)).expect("installed");
        let _listener = listens(&host, "10.9.0.2:21");
        assert_eq!(connects(&client, "10.9.0.2:21").is_ok(), passes, "{}", sets.queueing());
        sets.remove().expect("it stands");
        connects(&client, "10.9.0.2:21").expect("nothing is left in the way");
    }
}

#[test]
fn each_processor_has_its_own_queue() {
    let (client, host) = Host::pair();
    let mut policy = Policy::embedded();
    (policy.capture.queue, policy.capture.queues) = (0, NonZeroU16::new(2));
    // Nothing reads queue 1, and without a reader no packet passes.
    policy.capture.when_down = WhenDown::Closed;
    let _sets = host.run(|| firewall::install(&policy)).expect("installed");
    let listener = listens(&host, "10.9.0.2:21");
    let allowed = sched_getaffinity(None).expect("this thread runs somewhere");
    let processors: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor)).collect();
    let stay_on = |processor| {
        let mut only = CpuSet::new();
        only.set(processor);
        sched_setaffinity(None, &only).expect("it is allowed");
    };
    queued_packets(&host, || {
        for processor in processors {
            // Both ends run on this processor, and so does the kernel's work for them.
            let heard = thread::scope(|scope| {
                let dialogue = || {
                    stay_on(processor);
                    let mut ours = connects(&client, "10.9.0.2:21").ok()?;
                    let (mut theirs, _) = listener.accept().expect("it came");
                    converse(&mut ours, &mut theirs, &DIALOGUE);
                    Some(())
                };
                scope.spawn(dialogue).join().expect("the dialogue ends")
            });
            assert_eq!(heard.is_some(), processor % 2 == 0, "processor {processor}");
        }
    });
}
