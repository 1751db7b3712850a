//! The mechanism `sets` on a real kernel: two hosts in network namespaces, and what the firewall of one lets in.
//!
//! Needs root, `ip` and `nft`. Every test has namespaces of its own and removes them.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU16;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{fs, thread};

use pinhole::expectation::{Corridor, Expectation, Mapping};
use pinhole::firewall::sets::{Queueing, Sets, SetupError};
use pinhole::firewall::{Adjustments, Control, Firewall};
use pinhole::net::{Port, PortRange};
use pinhole::netlink::{
    ConnectionChange, ConnectionWatch, Conntrack, Deed, Element, Expression, Family, Heard, Key, Table, TableWatch,
    Tables,
};
use pinhole::packet::{Connection, Endpoint, Flow};
use pinhole::policy::{ControlPorts, Inspect, Policy, Queues, WhenDown};
use pinhole::time::Timestamp;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace; gone with its last use.
struct Host {
    name: String,
}

impl Host {
    fn new(role: &str) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        assert!(rustix::process::geteuid().is_root(), "this test makes network namespaces: run it as root");
        let name = format!("pinhole-{}-{}-{role}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        run(&["ip", "netns", "add", &name], "");
        let host = Self { name };
        host.sh(&["ip", "link", "set", "lo", "up"]);
        host
    }

    /// A client and a host with the firewall, joined: `10.9.0.1`, `fd09::1` and `10.9.0.2`, `fd09::2`.
    fn pair() -> (Self, Self) {
        let (client, host) = (Self::new("client"), Self::new("host"));
        run(
            &["ip", "-n", &client.name, "link", "add", "wire", "type", "veth", "peer", "wire", "netns", &host.name],
            "",
        );
        for (end, number) in [(&client, 1), (&host, 2)] {
            end.sh(&["ip", "address", "add", &format!("10.9.0.{number}/24"), "dev", "wire"]);
            end.sh(&["ip", "address", "add", &format!("fd09::{number}/64"), "dev", "wire", "nodad"]);
            end.sh(&["ip", "link", "set", "wire", "up"]);
        }
        // A wire takes a moment to carry: nothing listens there, and it has to say so.
        for there in ["10.9.0.2:1", "[fd09::2]:1"] {
            let refused = || connects(&client, there).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
            assert!((0..20).any(|_| refused()), "{there} cannot be reached");
        }
        (client, host)
    }

    /// Does something inside, on a thread of its own. Sockets made there stay there.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            let file = fs::File::open(format!("/var/run/netns/{}", self.name)).expect("a namespace that was made");
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may go there");
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }

    fn sh(&self, command: &[&str]) -> String {
        run(&[&["ip", "netns", "exec", &self.name], command].concat(), "")
    }

    fn nft(&self, rules: &str) {
        run(&["ip", "netns", "exec", &self.name, "nft", "-f", "-"], rules);
    }

    fn ruleset(&self) -> String {
        self.sh(&["nft", "list", "ruleset"])
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

fn run(command: &[&str], input: &str) -> String {
    use std::process::Stdio;
    let mut child = Command::new(command[0]);
    child.args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn port(number: u16) -> Port {
    Port::new(number).expect("not zero")
}

fn expectation(from: &str, to: &str, number: u16, seconds: u64) -> Expectation {
    let to = Endpoint::new(ip(to), port(number));
    let lifetime = Duration::from_secs(seconds);
    Expectation { from: ip(from), to, since: Timestamp::from_secs(0), lifetime, mapping: Mapping::NONE }
}

fn flow(from: SocketAddr, to: SocketAddr) -> Flow {
    let end = |address: SocketAddr| Endpoint::new(address.ip(), port(address.port()));
    Flow { source: end(from), destination: end(to) }
}

fn flow_of(stream: &TcpStream) -> Flow {
    flow(stream.local_addr().expect("bound"), stream.peer_addr().expect("connected"))
}

fn connects(client: &Host, to: &str) -> io::Result<TcpStream> {
    let to: SocketAddr = to.parse().expect("an address and port");
    client.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)))
}

fn listens(host: &Host, at: &str) -> TcpListener {
    host.run(|| TcpListener::bind(at)).expect("a free port")
}

const DEFAULT_DROP: &str = "table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        iif lo accept
        meta l4proto ipv6-icmp accept
        ct state established,related accept
        tcp dport 21 accept
    }
}";

fn guarded() -> Policy {
    Policy { admit: vec!["inet filter input".parse().expect("a chain")], ..Policy::embedded() }
}

#[test]
fn an_element_is_there_until_it_is_removed_or_expires() {
    let host = Host::new("sets");
    host.nft(
        "add table inet t
        add set inet t s { type ipv4_addr . ipv4_addr . inet_service; size 100; flags dynamic,timeout; }
        add set inet t v { type ipv6_addr . ipv6_addr . inet_service; flags interval,timeout; }",
    );
    host.run(|| {
        let table = Table { family: Family::Inet, name: "t" };
        let mut tables = Tables::open(Duration::from_secs(1)).expect("root");
        let key = Key::connection(ip("10.0.0.1"), ip("10.0.0.2"), 50_000);
        let minute = Element::new(key, Duration::from_secs(60));
        tables.insert(table, "s", &minute).expect("room");
        let listed = host.ruleset();
        assert!(listed.contains("10.0.0.1 . 10.0.0.2 . 50000 timeout 1m expires"), "{listed}");

        // The second time it begins its life anew, longer this time.
        tables.insert(table, "s", &Element::new(key, Duration::from_secs(600))).expect("it replaces");
        let stands = tables.elements(table, "s").expect("a set");
        assert_eq!(stands.len(), 1);
        assert_eq!((stands[0].key, stands[0].timeout), (key, Some(Duration::from_secs(600))));
        assert!(stands[0].remaining.is_some_and(|left| left > Duration::from_secs(590)), "{stands:?}");

        let there = |tables: &mut Tables| tables.elements(table, "s").expect("a set").len();
        assert_eq!((tables.remove(table, "s", &minute), there(&mut tables)), (Ok(()), 0));
        assert_eq!(tables.remove(table, "s", &minute), Ok(()));
        tables.insert(table, "s", &Element::new(key, Duration::from_millis(50))).expect("room");
        thread::sleep(Duration::from_millis(150));
        assert_eq!((tables.remove(table, "s", &minute), there(&mut tables)), (Ok(()), 0));

        let many: Vec<_> = (1..=1000)
            .map(|n| Element::new(Key::connection(ip("fd00::1"), ip("fd00::2"), n), minute.timeout.expect("a minute")))
            .collect();
        let ranges: Vec<_> =
            many.chunks(10).map(|ten| Element::range(ten[0].key, ten[9].key, Duration::from_secs(9))).collect();
        tables.insert_all(table, "v", &ranges).expect("room");
        assert_eq!(tables.elements(table, "v").expect("a set").len(), 100);
        assert_eq!(tables.remove(table, "v", &ranges[3]), Ok(()));
        assert_eq!(tables.elements(table, "v").expect("a set").len(), 99);

        let full: Result<(), _> = (0..200).try_for_each(|n| {
            tables.insert(
                table,
                "s",
                &Element::new(Key::connection(ip("10.0.0.1"), ip("10.0.0.2"), n), Duration::from_secs(9)),
            )
        });
        assert!(full.expect_err("a hundred at most").to_string().contains("it is full"));
        let error = tables.insert(table, "none", &minute).expect_err("no such set");
        assert!(error.cause.is_missing(), "{error}");
    });
}

#[test]
fn what_the_kernel_can_queue_with_is_found_without_a_change() {
    let host = Host::new("try");
    host.run(|| {
        let mut tables = Tables::open(Duration::from_secs(1)).expect("root");
        let could =
            [Expression::Queue { number: 0, bypass: true }, Expression::CompatQueue { number: 0, bypass: true }]
                .map(|rule| tables.could(&[rule]).expect("an answer"));
        assert!(could.contains(&true), "{could:?}");
    });
    assert_eq!(host.ruleset(), "");
}

#[test]
fn installs_verifies_and_leaves_nothing_behind() {
    let host = Host::new("table");
    host.nft(DEFAULT_DROP);
    let before = host.ruleset();
    for inspect in [Inspect::Dialogue, Inspect::Announcements] {
        let mut policy = guarded();
        policy.capture.inspect = inspect;
        policy.capture.queues = Queues::new(3, NonZeroU16::new(2).expect("two")).expect("queues");
        policy.control_ports = ControlPorts::new([port(21), port(2121)]).expect("ports");
        let mut sets = host.run(|| Sets::install(&policy)).expect("an empty namespace");
        assert_eq!(sets.stands(), Ok(true));
        let listed = host.ruleset();
        assert!(listed.contains("comment \"pinhole: announced data connections, mark 0x10000000\""), "{listed}");
        let other = Policy { mark: pinhole::policy::Mark::new(0x30).expect("bits"), ..policy.clone() };
        host.run(|| sets.reload(&other)).expect("another policy");
        assert!(host.ruleset().contains("mark 0x00000030\"") && !host.ruleset().contains("0x10000000"));
        let nowhere = Policy { admit: vec!["ip no chain".parse().expect("a name")], ..policy.clone() };
        let refused = host.run(|| sets.reload(&nowhere));
        assert!(matches!(refused, Err(SetupError::NoSuchChain(_))));
        assert_eq!(sets.stands(), Ok(true));
        sets.remove().expect("it stood");
        assert_eq!(host.ruleset(), before);
        sets.remove().expect("that is no mistake");
    }
}

#[test]
fn says_what_stands_in_the_way() {
    let host = Host::new("foreign");
    let refused = |policy: &Policy| host.run(|| Sets::install(policy)).expect_err("it must not").to_string();
    assert!(refused(&guarded()).contains("there is no chain `inet filter input`"));
    assert_eq!(host.ruleset(), "");
    host.nft("table inet pinhole {\nchain theirs {\n}\n}");
    assert!(refused(&Policy::embedded()).contains("it has a chain `theirs`"));
    host.nft("delete table inet pinhole; add table inet pinhole; add set inet pinhole pinholes4 { type ipv4_addr; }");
    let error = refused(&Policy::embedded());
    assert!(error.starts_with("nft refused the ruleset:\n/dev/stdin:"), "{error}");
}

#[test]
fn a_pinhole_admits_one_connection_from_there_to_there() {
    for (client_at, host_at) in [("10.9.0.1", "10.9.0.2"), ("fd09::1", "fd09::2")] {
        let (client, host) = Host::pair();
        host.nft(DEFAULT_DROP);
        let mut sets = host.run(|| Sets::install(&guarded())).expect("installed");
        let end = |number| SocketAddr::new(ip(host_at), number).to_string();
        let _listeners = [50_000, 50_001].map(|number| listens(&host, &end(number)));
        connects(&client, &end(50_000)).expect_err("nobody announced it");

        sets.open(&expectation(client_at, host_at, 50_000, 60)).expect("opened");
        connects(&client, &end(50_001)).expect_err("another port");
        let mut first = connects(&client, &end(50_000)).expect("it was announced");
        first.write_all(b"data").expect("open");
        connects(&client, &end(50_000)).expect_err("it was used");
        let entry = host.run(|| Conntrack::open(Duration::from_secs(1)).and_then(|mut c| c.find(&flow_of(&first))));
        assert_eq!(entry.expect("root").expect("a connection").mark, 0x1000_0000);
        assert_eq!(sets.pinholes(), Ok(Vec::new()));

        sets.open(&expectation("10.9.0.77", "10.9.0.2", 50_000, 60)).expect("for somebody else");
        connects(&client, &end(50_000)).expect_err("from another address");
        sets.open(&expectation(client_at, host_at, 50_000, 60)).expect("opened");
        sets.close(&expectation(client_at, host_at, 50_000, 60));
        connects(&client, &end(50_000)).expect_err("it was closed");
        assert_eq!(sets.pinholes().expect("sets").len(), 1);
        assert_eq!(sets.take_troubles().count, 0);
    }
}

#[test]
fn a_corridor_admits_many_until_the_last_session_closes_it() {
    let (client, host) = Host::pair();
    host.nft(DEFAULT_DROP);
    let mut sets = host.run(|| Sets::install(&guarded())).expect("installed");
    let _listeners = [50_000, 50_100, 50_101].map(|number| listens(&host, &format!("10.9.0.2:{number}")));
    let ports = PortRange::new(port(50_000), port(50_100)).expect("a range");
    let corridor = Corridor { from: ip("10.9.0.1"), to: ip("10.9.0.2"), ports };
    sets.open_corridor(&corridor).expect("opened");
    sets.open_corridor(&corridor).expect("by another session");
    sets.close_corridor(&corridor);
    for _ in 0..2 {
        connects(&client, "10.9.0.2:50000").expect("the first port");
        connects(&client, "10.9.0.2:50100").expect("the last port");
    }
    connects(&client, "10.9.0.2:50101").expect_err("beyond");
    sets.close_corridor(&corridor);
    connects(&client, "10.9.0.2:50000").expect_err("closed");
    assert_eq!(sets.take_troubles().count, 0);
}

/// Reads queue 0 of a host until told to stop; tells of each packet its first four bytes of payload, or its flags.
fn eavesdrop(host: &Host, work: impl FnOnce()) -> Vec<String> {
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
        let stop = Stop(&over);
        let reader = scope.spawn(|| {
            let mut heard = Vec::new();
            while !over.load(Ordering::Relaxed) {
                match queue.recv() {
                    Ok(message) => {
                        heard.push(describe(message.get_payload()));
                        queue.verdict(message).expect("it waits");
                    }
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
            heard
        });
        work();
        thread::sleep(Duration::from_millis(100));
        drop(stop);
        reader.join().expect("it does not panic")
    })
}

fn describe(packet: &[u8]) -> String {
    let tcp = if packet[0] >> 4 == 4 { &packet[20..] } else { &packet[40..] };
    let payload = &tcp[usize::from(tcp[12] >> 4) * 4..];
    let flags = [(2, "SYN"), (1, "FIN"), (4, "RST")].into_iter().filter(|(bit, _)| tcp[13] & bit != 0);
    let mut words: Vec<String> = flags.map(|(_, name)| name.to_owned()).collect();
    if !payload.is_empty() {
        words.push(String::from_utf8_lossy(&payload[..payload.len().min(4)]).into_owned());
    }
    words.join(" ")
}

/// A dialogue of lines, each sent when the one before has come: the client's begin with `>`.
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
fn the_dialogue_leaves_the_kernel_without_bare_acknowledgements() {
    for (client_side, address) in [(false, "10.9.0.2:21"), (false, "[fd09::2]:21"), (true, "10.9.0.2:21")] {
        let (client, host) = Host::pair();
        // The firewall is the server's, then the client's own.
        let guard = if client_side { &client } else { &host };
        let mut sets = guard.run(|| Sets::install(&Policy::embedded())).expect("installed");
        let listener = listens(&host, address);
        let heard = eavesdrop(guard, || {
            let mut ours = connects(&client, address).expect("it listens");
            let (mut theirs, _) = listener.accept().expect("it came");
            let connection = sets.control_connection(&flow_of(&ours)).expect("a control connection").connection;
            assert_eq!(
                sets.control_connection(&flow_of(&theirs)),
                Some(Control { connection, is_unread: false, adjustments: Adjustments::default() })
            );
            assert_eq!(connection.client(), flow_of(&ours).source);
            converse(&mut ours, &mut theirs, &DIALOGUE);
            sets.stop_reading(&connection);
            assert_eq!(
                sets.control_connection(&flow_of(&theirs)),
                Some(Control { connection, is_unread: true, adjustments: Adjustments::default() })
            );
            converse(&mut ours, &mut theirs, &[">AAAA", "<BBBB"]);
            ours.shutdown(Shutdown::Write).expect("open");
            thread::sleep(Duration::from_millis(20));
        });
        let expected = ["SYN", "220 ", "USER", "331 ", "PASS", "230 ", "TYPE", "200 ", "PASV", "227 ", "FIN", "FIN"];
        assert_eq!(heard, expected, "{address} {client_side}");
        assert_eq!(sets.take_troubles().count, 0);
    }
}

#[test]
fn announcements_leave_the_kernel_alone_once_the_session_is_settled() {
    let (client, host) = Host::pair();
    let mut policy = Policy::embedded();
    policy.capture.inspect = Inspect::Announcements;
    let mut sets = host.run(|| Sets::install(&policy)).expect("installed");
    let listener = listens(&host, "10.9.0.2:21");
    let heard = eavesdrop(&host, || {
        let mut ours = connects(&client, "10.9.0.2:21").expect("it listens");
        let (mut theirs, _) = listener.accept().expect("it came");
        converse(&mut ours, &mut theirs, &DIALOGUE[..5]);
        let connection = sets.control_connection(&flow_of(&ours)).expect("a control connection").connection;
        sets.settled(&connection);
        converse(&mut ours, &mut theirs, &DIALOGUE[5..]);
        converse(&mut ours, &mut theirs, &[">pOrT 1", "<200 ok", ">PORK", ">eprt |", "<500 no", ">RETR x", "<150 ok"]);
        converse(
            &mut ours,
            &mut theirs,
            &[">epsv all", "<229 E", ">x227 ", "<226 done", "<425 n", ">auTH TLS", "<234 "],
        );
    });
    let settled = ["PASV", "227 ", "pOrT", "eprt", "500 ", "epsv", "229 ", "425 ", "auTH", "234 "];
    let start = ["SYN", "220 ", "USER", "331 ", "PASS", "230 "];
    let (heard_start, heard_settled) = heard.split_at(start.len());
    assert_eq!(heard_start, start);
    // What ends the connection when the test ends it may be a FIN or, where something was not read, a RST.
    assert_eq!(heard_settled[..10], settled);
}

#[test]
fn what_a_host_says_to_itself_is_heard_once() {
    let host = Host::new("loop");
    let _sets = host.run(|| Sets::install(&Policy::embedded())).expect("installed");
    let listener = listens(&host, "127.0.0.1:21");
    let heard = eavesdrop(&host, || {
        let mut ours = connects(&host, "127.0.0.1:21").expect("it listens");
        let (mut theirs, _) = listener.accept().expect("it came");
        converse(&mut ours, &mut theirs, &DIALOGUE[..2]);
    });
    assert_eq!(heard[..3], ["SYN", "220 ", "USER"]);
}

#[test]
fn without_a_reader_control_connections_pass_or_not_as_the_policy_says() {
    for (when_down, passes) in [(WhenDown::Open, true), (WhenDown::Closed, false)] {
        let (client, host) = Host::pair();
        let mut policy = Policy::embedded();
        policy.capture.when_down = when_down;
        let mut sets = host.run(|| Sets::install(&policy)).expect("installed");
        let _listener = listens(&host, "10.9.0.2:21");
        assert_eq!(connects(&client, "10.9.0.2:21").is_ok(), passes, "{}", sets.queueing());
        sets.remove().expect("it stands");
        connects(&client, "10.9.0.2:21").expect("nothing is left in the way");
    }
}

#[test]
fn both_directions_meet_in_one_of_several_queues() {
    let (client, host) = Host::pair();
    let mut policy = Policy::embedded();
    policy.capture.queues = Queues::new(0, NonZeroU16::new(2).expect("two")).expect("queues");
    // Nobody reads queue 1, and without a reader nothing passes: so about half of all connections work, wholly.
    policy.capture.when_down = WhenDown::Closed;
    let _sets = host.run(|| Sets::install(&policy)).expect("installed");
    let listener = listens(&host, "10.9.0.2:21");
    let mut whole = 0;
    eavesdrop(&host, || {
        for _ in 0..12 {
            let Ok(mut ours) = connects(&client, "10.9.0.2:21") else { continue };
            let (mut theirs, _) = listener.accept().expect("it came");
            converse(&mut ours, &mut theirs, &DIALOGUE);
            whole += 1;
        }
    });
    assert!((1..12).contains(&whole), "{whole} of 12");
}

#[test]
fn a_translated_connection_has_four_addresses() {
    let (client, host) = Host::pair();
    host.nft(
        "add table ip nat
        add chain ip nat pre { type nat hook prerouting priority dstnat; }
        add rule ip nat pre tcp dport 21 redirect to :2021
        add chain ip nat in { type nat hook input priority 100; }
        add rule ip nat in tcp dport 2021 snat to 10.9.0.9",
    );
    let mut sets = host.run(|| Sets::install(&Policy::embedded())).expect("installed");
    let listener = listens(&host, "10.9.0.2:2021");
    let ours = connects(&client, "10.9.0.2:21").expect("it is redirected");
    let (theirs, _) = listener.accept().expect("it came");
    let connection = Connection { original: flow_of(&ours), reply: flow_of(&theirs) };
    assert_eq!(theirs.peer_addr().map(|peer| peer.ip()).ok(), Some(ip("10.9.0.9")));
    let control = Some(Control { connection, is_unread: false, adjustments: Adjustments::default() });
    assert_eq!(sets.control_connection(&connection.original), control);
    assert_eq!(sets.control_connection(&connection.reply), control);
    let unknown: Flow = flow("10.1.1.1:9".parse().expect("one"), "10.1.1.2:80".parse().expect("one"));
    assert_eq!(sets.control_connection(&unknown), None);
}

#[test]
fn a_restart_finds_the_pinholes_that_stand() {
    let host = Host::new("restart");
    let pinhole = expectation("10.9.0.1", "10.9.0.2", 50_000, 60);
    let mut first = host.run(|| Sets::install(&Policy::embedded())).expect("installed");
    first.open(&pinhole).expect("opened");
    drop(first);
    let mut second = host.run(|| Sets::install(&Policy::embedded())).expect("over what stands");
    let found = second.pinholes().expect("sets");
    assert_eq!((found.len(), found[0].from, found[0].to), (1, pinhole.from, pinhole.to));
    assert!(found[0].remaining > Duration::from_secs(50) && found[0].lifetime == pinhole.lifetime);
}

#[test]
fn a_flushed_ruleset_stands_again_at_once_with_its_pinholes() {
    let (client, host) = Host::pair();
    host.nft(DEFAULT_DROP);
    let policy = guarded();
    let (mut sets, mut watch) =
        host.run(|| (Sets::install(&policy).expect("installed"), TableWatch::open().expect("root")));
    let _listener = listens(&host, "10.9.0.2:50000");
    let pinholes = [expectation("10.9.0.1", "10.9.0.2", 50_000, 60), expectation("fd09::1", "fd09::2", 50_000, 60)];
    let (told, mended) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            while told.send(None).is_ok() {
                match watch.next(Duration::from_millis(500)).expect("it listens") {
                    Heard::Change(change) if sets.concerns(&change) && !sets.stands().expect("root") => {
                        // What stood is lost for the test, too, so that it can only come from what is expected.
                        let now = Timestamp::from_secs(1);
                        let restored = host.run(|| sets.restore(now, pinholes.iter())).expect("it can be mended");
                        if restored.without_chain.is_empty() && sets.stands().expect("root") {
                            let _ = told.send(Some(restored));
                        }
                    }
                    _ => {}
                }
            }
        });
        let wait = || mended.iter().take(1000).flatten().next().expect("within the time of many changes");
        host.nft(&format!("flush ruleset\n{DEFAULT_DROP}"));
        let restored = wait();
        assert!(restored.table && restored.elements == 2, "{restored:?}");
        connects(&client, "10.9.0.2:50000").expect("it is still announced");

        // Rules of ours alone, and the accept rule alone.
        host.nft("flush chain inet pinhole inspect");
        let restored = wait();
        assert!(restored.table && restored.elements == 0, "what was used up stays so: {restored:?}");
        host.nft("flush chain inet filter input\nadd rule inet filter input tcp dport 21 accept");
        assert_eq!(wait().admitted.len(), 1);
        drop(mended);
    });
    assert_eq!(sets.pinholes().expect("sets").len(), 1);
}

#[test]
fn is_told_who_changed_what() {
    let host = Host::new("watch");
    let (mut tables, mut watch) =
        host.run(|| (Tables::open(Duration::from_secs(1)).expect("root"), TableWatch::open().expect("root")));
    host.nft("table ip t {\nchain c {\n}\n}");
    tables.add_rule_on_top(Table { family: Family::Ip, name: "t" }, "c", "", &[Expression::Accept]).expect("a chain");
    let mut heard = BTreeSet::new();
    while let Heard::Change(change) = watch.next(Duration::from_millis(200)).expect("it listens") {
        assert_eq!((change.family, &*change.table), (Family::Ip, "t"));
        assert_eq!(change.by == tables.number().expect("bound"), change.deed == Deed::RuleAdded);
        heard.insert(format!("{:?} {}", change.deed, change.chain.as_deref().unwrap_or("")));
    }
    assert_eq!(heard, ["TableAdded ", "ChainAdded c", "RuleAdded c"].map(String::from).into());
}

#[test]
fn hears_of_marked_connections_that_begin_and_end() {
    let (client, host) = Host::pair();
    let mut sets = host.run(|| Sets::install(&Policy::embedded())).expect("installed");
    let mut watch = host.run(ConnectionWatch::begins_and_ends).expect("root");
    let _listener = listens(&host, "10.9.0.2:50000");
    sets.open(&expectation("10.9.0.1", "10.9.0.2", 50_000, 60)).expect("opened");
    let ours = connects(&client, "10.9.0.2:50000").expect("nothing drops");
    let wait = |watch: &mut ConnectionWatch| loop {
        match watch.next(Duration::from_secs(2)).expect("it listens") {
            Heard::Change(change) => return change,
            Heard::Missed => panic!("there is room"),
            Heard::Nothing => {}
        }
    };
    let ConnectionChange::Began(entry) = wait(&mut watch) else { panic!("it began") };
    assert_eq!((entry.connection.original, entry.mark), (flow_of(&ours), 0x1000_0000));
    host.sh(&["sh", "-c", "command -v conntrack >/dev/null || exit 0; conntrack -F 2>/dev/null"]);
    if run(&["sh", "-c", "command -v conntrack || true"], "").is_empty() {
        return;
    }
    assert!(matches!(wait(&mut watch), ConnectionChange::Ended(ended) if ended.connection == entry.connection));
}

#[allow(clippy::print_stderr, reason = "it prints what was measured")]
fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    eprintln!("{what}: {} times, median {:?}, p99 {:?}, most {:?}", times.len(), at(50), at(99), at(100));
}

#[test]
#[ignore = "a measurement: run it with --release --ignored --nocapture"]
#[allow(clippy::print_stderr, reason = "it prints what it measured")]
fn measures_what_a_pinhole_costs() {
    let (client, host) = Host::pair();
    let mut sets = host.run(|| Sets::install(&Policy::embedded())).expect("installed");
    let _listener = listens(&host, "10.9.0.2:21");
    let control = flow_of(&connects(&client, "10.9.0.2:21").expect("it passes"));
    let connection = Connection::direct(control);
    let pinhole = |n: u32| expectation("10.9.0.1", "10.9.0.2", 1024 + (n % 16_000) as u16, 60);
    let measure = |what: &str, work: &mut dyn FnMut(u32)| {
        let start = Instant::now();
        let mut times = Vec::new();
        while times.len() < 100_000 && start.elapsed() < Duration::from_secs(5) {
            let begin = Instant::now();
            work(u32::try_from(times.len()).expect("not so many"));
            times.push(begin.elapsed());
        }
        report(what, times);
    };
    let pass = |sets: &mut Sets, watched: &str| {
        let mut open = Vec::with_capacity(100_000);
        let mut close = Vec::with_capacity(100_000);
        for n in 0..100_000 {
            let one = pinhole(n);
            let begin = Instant::now();
            sets.open(&one).expect("opened");
            open.push(begin.elapsed());
            // A few thousand stand at any time.
            if n >= 4000 {
                let begin = Instant::now();
                sets.close(&pinhole(n - 4000));
                close.push(begin.elapsed());
            }
        }
        report(&format!("open{watched}"), open);
        report(&format!("close{watched}"), close);
        for n in 96_000..100_000 {
            sets.close(&pinhole(n));
        }
    };
    pass(&mut sets, "");
    sets.open(&pinhole(0)).expect("opened");
    measure("close (it is not there)", &mut |_| sets.close(&pinhole(7)));
    measure("open again (it stands)", &mut |_| sets.open(&pinhole(0)).expect("opened"));
    measure("control_connection", &mut |_| assert!(sets.control_connection(&control).is_some()));
    measure("stop_reading", &mut |_| sets.stop_reading(&connection));
    let mut watch = host.run(TableWatch::open).expect("root");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut missed = 0;
            while !over.load(Ordering::Relaxed) {
                missed += u32::from(watch.next(Duration::from_millis(50)).expect("it listens") == Heard::Missed);
            }
            missed
        });
        pass(&mut sets, ", while a thread watches");
        over.store(true, Ordering::Relaxed);
        eprintln!("the watcher missed something {} times", watcher.join().expect("it does not panic"));
    });
    eprintln!("troubles: {:?}; queueing with {}", sets.take_troubles(), sets.queueing());
    assert!([Queueing::Statement, Queueing::CompatTarget].contains(&sets.queueing()));
}
