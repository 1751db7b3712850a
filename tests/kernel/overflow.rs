//! What happens to packets when a queue is full.
//!
//! Needs root and nft.

use std::net::UdpSocket;
use std::time::Duration;

use lab::Namespace;
use nix::sys::socket::{setsockopt, sockopt};
use pinhole::core::policy::WhenDown;
use pinhole::netfilter::netlink::{Expression, Family, Table, Tables};
use pinhole::netfilter::queue::Queue;

const TIMEOUT: Duration = Duration::from_secs(10);
const TABLE: Table<'static> = Table { family: Family::Inet, name: "trial" };
/// More than wait in a queue at most.
const SENT: usize = 5000;

/// Sends datagrams through a queue that is never read, and counts those that arrive.
fn arrive(when_down: WhenDown) -> usize {
    let namespace = Namespace::new("host").unwrap_or_else(|error| panic!("{error}"));
    let count = || {
        let _queue = Queue::open(0, when_down).expect("it is free");
        let mut tables = Tables::open(TIMEOUT).expect("root may");
        let rules = [
            Expression::Queue { number: 0, count: 1, bypass: true },
            Expression::CompatQueue { number: 0, count: 1, bypass: true },
        ];
        let rule = rules.into_iter().find(|rule| tables.supports(std::slice::from_ref(rule)) == Ok(true));
        let rule = rule.expect("the kernel can queue");
        namespace.nft("table inet trial { chain queued {}\n chain output { type filter hook output priority 0; udp dport 9 jump queued; }; }")?;
        tables.fill_chain(TABLE, "queued", "", &[rule]).expect("the chain is there");
        let receiver = UdpSocket::bind("127.0.0.1:9").expect("it is free");
        let sender = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
        // Packets that wait in the queue count for the sender's buffer.
        setsockopt(&sender, sockopt::SndBufForce, &(64 << 20)).expect("root may");
        setsockopt(&receiver, sockopt::RcvBufForce, &(64 << 20)).expect("root may");
        for _ in 0..SENT {
            // A datagram that is dropped on its way out may be reported as such.
            let _ = sender.send_to(b"x", "127.0.0.1:9");
        }
        receiver.set_nonblocking(true).expect("a socket");
        // A packet over loopback has arrived when it has been sent.
        Ok((0..SENT).take_while(|_| receiver.recv(&mut [0; 8]).is_ok()).count())
    };
    namespace.run(count).and_then(|result| result).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn full_queue_accepts_when_fail_open() {
    let arrived = arrive(WhenDown::Open);
    assert!((1..SENT).contains(&arrived), "{arrived}");
}

#[test]
fn full_queue_drops_when_fail_closed() {
    assert_eq!(arrive(WhenDown::Closed), 0);
}
