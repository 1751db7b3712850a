//! The daemon is killed while it rewrites a line, or just after its verdict while the packet is lost on the way; it is
//! not back when the sender retransmits the line.
//!
//! Needs root and nft.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use crate::daemon::{Daemon, TIMEOUT};
use crate::daemon_substitute::{DaemonSubstitute, KillPoint};
use lab::mini::Speaker::{self, Client, Server};
use lab::nat::{Nat, NatTopology};
use lab::{Family, Namespace, wait_until};

/// Which end is translated, and which segments arrive at the gateway.
#[derive(Clone, Copy)]
struct Case {
    nat: Nat,
    family: Family,
    speaker: Speaker,
    pieces: &'static [&'static str],
    /// The last line of it, as it is to arrive.
    arrives: &'static str,
}

const COMMAND: Case = Case {
    nat: Nat::Masquerade,
    family: Family::V4,
    speaker: Client,
    pieces: &["PORT 10,21,1,10,15,161\r\n"],
    arrives: "PORT 203,0,113,1,15,161\r\n",
};

const REPLY: Case = Case {
    nat: Nat::Dnat,
    speaker: Server,
    pieces: &["227 Yes (10,21,1,20,15,161).\r\n"],
    arrives: "227 Yes (203,0,113,1,15,161).\r\n",
    ..COMMAND
};

/// Both ends of a control connection.
struct Ends {
    client: BufReader<TcpStream>,
    server: BufReader<TcpStream>,
}

impl Ends {
    fn connect(case: &Case, topology: &NatTopology) -> Self {
        let NatTopology { client, server, target, .. } = topology;
        let listens = SocketAddr::new(server.addresses.of(case.family), 21);
        let destination = SocketAddr::new(target.of(case.family), case.nat.port());
        let listener = server.namespace.run(|| TcpListener::bind(listens)).expect("root may").expect("it is free");
        let connect = || TcpStream::connect_timeout(&destination, TIMEOUT);
        let client = client.namespace.run(connect).expect("root may").expect("it is let through");
        let (server, _) = listener.accept().expect("it has come");
        let [client, server] = [client, server].map(|end| {
            // Each piece becomes a segment.
            end.set_nodelay(true).and_then(|()| end.set_read_timeout(Some(TIMEOUT))).expect("it is a socket");
            BufReader::new(end)
        });
        Self { client, server }
    }

    /// One end sends a line in pieces. Returns the lines that the other end receives.
    fn say(&mut self, speaker: Speaker, pieces: &[&str]) -> Vec<String> {
        let (from, to) = match speaker {
            Client => (&mut self.client, &mut self.server),
            Server => (&mut self.server, &mut self.client),
        };
        pieces.iter().try_for_each(|piece| from.get_mut().write_all(piece.as_bytes())).expect("the connection stands");
        let lines = pieces.concat().matches('\n').count();
        let hear = |_| {
            let mut line = Vec::new();
            let received = to.read_until(b'\n', &mut line);
            received.unwrap_or_else(|error| panic!("{error}, after {:?}", String::from_utf8_lossy(&line)));
            String::from_utf8_lossy(&line).into_owned()
        };
        (0..lines).map(hear).collect()
    }

    /// Lines that arrive as they are.
    fn talk(&mut self, lines: &[(Speaker, &str)]) {
        for &(speaker, line) in lines {
            assert_eq!(self.say(speaker, &[line]), [line]);
        }
    }
}

/// How many segments the kernel of a namespace has sent again.
fn repetitions(namespace: &Namespace) -> u64 {
    let table = namespace.read("/proc/thread-self/net/snmp").expect("root may read");
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, numbers) = (lines.next().expect("names"), lines.next().expect("numbers"));
    let found = names.split(' ').zip(numbers.split(' ')).find(|(name, _)| *name == "RetransSegs");
    found.expect("there is such a counter").1.parse().expect("a number")
}

/// Nothing that carries payload arrives.
const LOSS: &str =
    "table inet loss { chain input { type filter hook input priority filter; @ih,0,8 & 0 == 0 drop; }; }";

fn rewrite_with_kill(case: &Case, kill_point: KillPoint, is_lost: bool) {
    let Case { nat, speaker, pieces, arrives, .. } = *case;
    let topology = NatTopology::new(nat).unwrap_or_else(|error| panic!("{error}"));
    let gateway = &topology.gateways[0].namespace;
    let rules = topology.gateways[0].rules;
    gateway.nft(rules.text).expect("the rules are right");
    for host in [&topology.client, &topology.server] {
        host.namespace.set("net/ipv4/tcp_autocorking", "0").expect("a parameter of the namespace");
    }
    let policy = rules.policy();
    let substitute = DaemonSubstitute::start(gateway, &policy, pieces[pieces.len() - 1], kill_point);
    let mut ends = Ends::connect(case, &topology);
    ends.talk(&[
        (Server, "220 Ready.\r\n"),
        (Client, "USER a\r\n"),
        (Server, "331 And?\r\n"),
        (Client, "PASS b\r\n"),
        (Server, "230 In.\r\n"),
    ]);
    let (from, to, other) = match speaker {
        Client => (&topology.client.namespace, &topology.server.namespace, Server),
        Server => (&topology.server.namespace, &topology.client.namespace, Client),
    };
    if speaker == Server {
        ends.talk(&[(Client, "PASV\r\n")]);
    }
    if is_lost {
        to.nft(LOSS).expect("the rules are right");
    }
    let before = repetitions(from);
    thread::scope(|scope| {
        let another = scope.spawn(|| {
            substitute.wait();
            if is_lost {
                to.nft("delete table inet loss").expect("it stands");
            }
            // Now a packet passes unread.
            let then = repetitions(from).max(before);
            wait_until("the line to be repeated", TIMEOUT, || Ok(repetitions(from) > then)).expect("it is");
            Daemon::start(gateway, &policy).unwrap_or_else(|error| panic!("{error}"))
        });
        let received = ends.say(speaker, pieces);
        let _daemon = another.join().expect("it starts");
        assert_eq!(received.last().map(String::as_str), Some(arrives), "{kill_point:?}, lost: {is_lost}");
        ends.talk(&[(other, "200 On.\r\n"), (speaker, "NOOP\r\n")].repeat(3));
    });
}

/// In the worst moments.
fn rewrite_with_each_kill(case: &Case) {
    for (kill_point, is_lost) in
        [(KillPoint::BeforeVerdict, false), (KillPoint::BeforeVerdict, true), (KillPoint::AfterVerdict, true)]
    {
        rewrite_with_kill(case, kill_point, is_lost);
    }
}

#[test]
fn command_arrives_rewritten() {
    rewrite_with_each_kill(&COMMAND);
}

#[test]
fn ipv6_command_arrives_rewritten() {
    rewrite_with_each_kill(&Case {
        family: Family::V6,
        pieces: &["EPRT |2|fd21:1::a|4001|\r\n"],
        arrives: "EPRT |2|2001:db8:113::1|4001|\r\n",
        ..COMMAND
    });
}

#[test]
fn reply_arrives_rewritten() {
    rewrite_with_each_kill(&REPLY);
}

#[test]
fn command_after_an_unacknowledged_one_arrives_rewritten() {
    rewrite_with_each_kill(&Case { pieces: &["NOOP\r\n", "PORT 10,21,1,10,15,161\r\n"], ..COMMAND });
}

#[test]
fn command_cut_by_a_restart_keeps_its_length() {
    let cut: [&'static [&'static str]; 2] = [&["PORT ", "10,21,1,10,15,161\r\n"], &["PORT 10,21", ",1,10,15,161\r\n"]];
    for pieces in cut {
        let case = Case { pieces, arrives: "PORT 10,21,1,10,15,161 \r\n", ..COMMAND };
        rewrite_with_kill(&case, KillPoint::BeforeVerdict, false);
    }
}
