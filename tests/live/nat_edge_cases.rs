//! Rare cases behind NAT: no port is free, a line is retransmitted to a daemon that has just started, the queue
//! overflows, a third party is announced.
//!
//! Needs root and nft.

use crate::daemon;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use crate::daemon::{Daemon, TIMEOUT};
use lab::mini::{Delivery, DeliveryStatus, Pair, Speaker};
use lab::nat::{Nat, NatTopology};
use lab::{Family, Host, Namespace, wait_until};
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use pinhole::netfilter::netlink::{self, Expression, Table, Tables};
use socket2::{Domain, Socket, Type};

/// A gateway with the daemon, and hosts inside and outside.
struct NatFixture {
    topology: NatTopology,
    daemon: Daemon,
}

impl NatFixture {
    /// A client behind masquerade.
    fn new(more: &str) -> Self {
        Self::of(Nat::Masquerade, more)
    }

    fn of(nat: Nat, more: &str) -> Self {
        let topology = NatTopology::new(nat).unwrap_or_else(|error| panic!("{error}"));
        let gateway = &topology.gateways[0];
        gateway.namespace.nft(gateway.rules.text).unwrap_or_else(|error| panic!("{error}"));
        let policy = format!("{}{more}", gateway.rules.policy());
        let daemon = Daemon::start(&gateway.namespace, &policy).unwrap_or_else(|error| panic!("{error}"));
        Self { topology, daemon }
    }

    /// Without rules that accept marked packets.
    fn without_admit(self) -> Self {
        let Self { topology, mut daemon } = self;
        let policy = std::fs::read_to_string(daemon.folder.join("policy.yaml")).expect("it was written");
        let kept: String = policy.lines().filter(|line| !line.starts_with("admit:")).flat_map(|l| [l, "\n"]).collect();
        daemon.end(Signal::SIGTERM).expect("it ends");
        daemon.write_policy(&kept);
        daemon.restart().unwrap_or_else(|error| panic!("{error}"));
        Self { topology, daemon }
    }

    fn gateway(&self) -> &Namespace {
        &self.topology.gateways[0].namespace
    }

    fn control(&self) -> SocketAddr {
        SocketAddr::new(self.topology.target.of(Family::V4), 21)
    }

    fn nft(&self, namespace: &Namespace, rules: &str) {
        namespace.nft(rules).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Both ends of a control connection, a line at a time.
struct Session {
    client: TcpStream,
    server: TcpStream,
}

impl Session {
    /// A session of a client with that address, logged in.
    fn from(fixture: &NatFixture, listener: &TcpListener, client: SocketAddr) -> Self {
        let to = fixture.control();
        let client = fixture.topology.client.namespace.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&client.into())?;
            socket.connect_timeout(&to.into(), TIMEOUT)?;
            Ok::<_, std::io::Error>(socket.into())
        });
        let client: TcpStream = client.expect("root may enter").expect("control connections are let through");
        let (server, _) = listener.accept().expect("it has come");
        for end in [&client, &server] {
            end.set_read_timeout(Some(TIMEOUT)).expect("it is a socket");
        }
        let session = Self { client, server };
        assert_eq!(session.server_says("220 Ready."), "220 Ready.");
        session.asks("USER a", "331 And?");
        session.asks("PASS b", "230 In.");
        session
    }

    /// The client sends a line: what the server receives.
    fn client_says(&self, line: &str) -> String {
        say(&self.client, &self.server, line)
    }

    fn server_says(&self, line: &str) -> String {
        say(&self.server, &self.client, line)
    }

    /// A command that passes unchanged, and its reply.
    fn asks(&self, command: &str, answer: &str) {
        assert_eq!(self.client_says(command), command);
        assert_eq!(self.server_says(answer), answer);
    }
}

fn say(mut from: &TcpStream, to: &TcpStream, line: &str) -> String {
    from.write_all(format!("{line}\r\n").as_bytes()).expect("the connection stands");
    read_line(to)
}

fn read_line(to: &TcpStream) -> String {
    let mut received = String::new();
    // Nothing follows the line, so the buffer holds nothing back.
    BufReader::with_capacity(256, to).read_line(&mut received).expect("a line arrives");
    received.trim_end().to_owned()
}

fn add_address(host: &Host, address: &str) {
    let add = ["addr", "add", &format!("{address}/24"), "dev", "net"];
    let added = host.namespace.command("ip").args(add).spawn().and_then(|child| child.wait(TIMEOUT));
    assert!(added.expect("ip is there").status.success());
}

#[test]
fn announcement_without_a_free_port_is_refused() {
    let fixture = NatFixture::new("defaults: { data_ports: 4001-4002 }\n");
    let NatTopology { client, server, .. } = &fixture.topology;
    // Two clients, of which the outside sees one address.
    add_address(client, "10.21.1.11");
    let listener =
        server.namespace.run(|| TcpListener::bind(fixture.control())).expect("root may").expect("it is free");
    let first = Session::from(&fixture, &listener, "10.21.1.10:0".parse().expect("an address"));
    let second = Session::from(&fixture, &listener, "10.21.1.11:0".parse().expect("an address"));
    for port in [161, 162] {
        assert_eq!(first.client_says(&format!("PORT 10,21,1,10,15,{port}")), format!("PORT 203,0,113,1,15,{port}"));
        first.server_says("200 Yes.");
    }

    // Both ports lead to the first client now.
    second.asks("PORT 10,21,1,11,15,161", "500 I cannot reach that.");
    fixture.daemon.wait_for_log("refused PORT 10.21.1.11:4001: no-port", 1);
    assert_eq!(fixture.daemon.status()["counters"]["refused"]["no-port"], 1);
    assert_eq!(fixture.daemon.counted("opened"), 2);
    for session in [&first, &second] {
        session.asks("NOOP", "200 Still here.");
    }

    // One of the ports is used, and becomes free again.
    let waits = client.namespace.run(|| TcpListener::bind("10.21.1.10:4002")).expect("root may").expect("it is free");
    let connect = |port| {
        let to = SocketAddr::new(fixture.topology.public.of(Family::V4), port);
        server.namespace.run(|| TcpStream::connect_timeout(&to, TIMEOUT)).expect("root may").expect("it is let in")
    };
    let mut data = connect(4002);
    waits.accept().expect("it is delivered");
    fixture.daemon.wait_for_log("used ", 1);
    let waits = client.namespace.run(|| TcpListener::bind("10.21.1.11:4001")).expect("root may").expect("it is free");
    assert_eq!(second.client_says("PORT 10,21,1,11,15,161"), "PORT 203,0,113,1,15,162");
    second.server_says("200 Yes.");
    data.write_all(b"the first one's").expect("it stands");
    let mut data = connect(4002);
    data.write_all(b"the second one's").expect("it stands");
    drop(data);
    let mut content = String::new();
    waits.accept().expect("it is delivered").0.read_to_string(&mut content).expect("it ends");
    assert_eq!(content, "the second one's");
}

/// Nothing that an end sends in a control connection arrives anywhere.
fn silenced(which: &str) -> String {
    format!(
        "table inet silence {{ chain output {{ type filter hook output priority filter; tcp {which} 21 drop; }}; }}"
    )
}

#[test]
fn retransmission_after_a_restart_is_rewritten_identically() {
    for mode in ["PORT", "EPRT"] {
        let mut fixture = NatFixture::new("");
        let NatTopology { client, server, public, .. } = &fixture.topology;
        let (client, server, public) = (client.clone(), server.clone(), public.of(Family::V4));
        let control = fixture.control();
        let mut pair =
            Pair::connect(&client.namespace, control, &server.namespace, control).expect("it is let through");
        let recorder = fixture.topology.record_packets().expect("root may record");
        let mut say = |speaker: Speaker, line: &str| {
            let Delivery { how, bytes } = pair.says(speaker, &[line.as_bytes()]).expect("the connection stands");
            assert_eq!(how, DeliveryStatus::Whole, "{line}");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        for (speaker, line) in [
            (Speaker::Server, "220 Ready.\r\n"),
            (Speaker::Client, "USER a\r\n"),
            (Speaker::Server, "331 And?\r\n"),
            (Speaker::Client, "PASS b\r\n"),
            (Speaker::Server, "230 In.\r\n"),
        ] {
            assert_eq!(say(speaker, line), line);
        }
        let waits =
            client.namespace.run(|| TcpListener::bind("10.21.1.10:4001")).expect("root may").expect("it is free");
        let (line, rewritten) = match mode {
            "PORT" => ("PORT 10,21,1,10,15,161\r\n", "PORT 203,0,113,1,15,161\r\n"),
            _ => ("EPRT |1|10.21.1.10|4001|\r\n", "EPRT |1|203.0.113.1|4001|\r\n"),
        };
        // The line arrives, but its ACK does not. So the sender will retransmit it, but not before the queue has a
        // reader.
        fixture.nft(&server.namespace, &silenced("sport"));
        assert_eq!(say(Speaker::Client, line), rewritten);
        fixture.nft(&client.namespace, &silenced("dport"));
        fixture.daemon.kill().and_then(|()| fixture.daemon.restart()).unwrap_or_else(|error| panic!("{error}"));
        fixture.nft(&client.namespace, "delete table inet silence");
        fixture.daemon.wait_for_log("picked up", 1);
        fixture.nft(&server.namespace, "delete table inet silence");
        assert_eq!(say(Speaker::Server, "200 Yes.\r\n"), "200 Yes.\r\n");

        // It is the same pinhole as before, and the sequence numbers are right.
        let to = SocketAddr::new(public, 4001);
        let data = server.namespace.run(|| TcpStream::connect_timeout(&to, TIMEOUT)).expect("root may");
        data.expect("it is let in").write_all(b"data").expect("it stands");
        let mut content = String::new();
        waits.accept().expect("it is delivered").0.read_to_string(&mut content).expect("it ends");
        assert_eq!(content, "data");
        for (speaker, said) in [(Speaker::Client, "NOOP\r\n"), (Speaker::Server, "200 Yes.\r\n")].repeat(2) {
            assert_eq!(say(speaker, said), said);
        }
        let again = line.replace("4001", "4002").replace("15,161", "15,162");
        assert_eq!(say(Speaker::Client, &again), rewritten.replace("4001", "4002").replace("15,161", "15,162"));

        let report = recorder.end().expect("it has recorded");
        assert_eq!(report.problems(), Vec::<String>::new(), "{mode}");
        let (_, seen) = report.ends.iter().find(|(end, _)| end == "server").expect("it was recorded");
        let holds = |text: &str| {
            seen.iter().filter(|packet| packet.bytes.windows(text.len()).any(|part| part == text.as_bytes())).count()
        };
        assert!(holds(rewritten) >= 2, "it was sent again");
        assert_eq!(holds(line), 0);
    }
}

#[test]
fn nat_that_comes_while_the_daemon_runs_is_served() {
    let topology = NatTopology::new(Nat::Masquerade).unwrap_or_else(|error| panic!("{error}"));
    let gateway = &topology.gateways[0];
    let load = |rules: &str| gateway.namespace.nft(rules).unwrap_or_else(|error| panic!("{error}"));
    load(gateway.rules.text);
    load("delete table inet nat");
    let daemon = Daemon::start(&gateway.namespace, &gateway.rules.policy()).unwrap_or_else(|error| panic!("{error}"));
    load(
        "table inet nat { chain postrouting { type nat hook postrouting priority srcnat; oifname outside masquerade; }; }",
    );
    if daemon::mechanism() == "sets" {
        daemon.wait_for_log("another table has a chain for NAT now", 1);
    }
    let fixture = NatFixture { topology, daemon };
    let server = &fixture.topology.server;
    let listener =
        server.namespace.run(|| TcpListener::bind(fixture.control())).expect("root may").expect("it is free");
    let session = Session::from(&fixture, &listener, "10.21.1.10:0".parse().expect("an address"));
    // The lines are one byte shorter each.
    for port in [161, 162] {
        assert_eq!(session.client_says(&format!("PORT 10,21,1,10,15,{port}")), format!("PORT 203,0,113,1,15,{port}"));
        session.server_says("200 Yes.");
        session.asks("NOOP", "200 Still here.");
    }
}

#[test]
fn packets_do_not_wait_for_bytes_that_passed_unread() {
    // Bytes sent while the daemon is down pass unread, and later ones must not wait for them.
    let mut fixture = NatFixture::new("");
    let control = fixture.control();
    let NatTopology { client, server, .. } = &fixture.topology;
    let mut pair = Pair::connect(&client.namespace, control, &server.namespace, control).expect("it is let through");
    let mut says = |speaker, line: &str| {
        let Delivery { how, bytes } = pair.says(speaker, &[line.as_bytes()]).expect("the connection stands");
        assert_eq!((how, String::from_utf8_lossy(&bytes).as_ref()), (DeliveryStatus::Whole, line));
    };
    says(Speaker::Server, "220 Ready.\r\n");
    fixture.daemon.kill().expect("it runs");
    says(Speaker::Client, "USER a\r\n");
    fixture.daemon.restart().expect("it starts");
    says(Speaker::Server, "331 And?\r\n");
    says(Speaker::Client, "PASS b\r\n");
    wait_until("the session to be seen", TIMEOUT, || Ok(fixture.daemon.counted("sessions") == 1)).expect("it is");
}

/// Connections without a pinhole are rejected at once, not dropped.
const REFUSE: &str = "add rule inet filter forward tcp flags & (fin | syn | rst | ack) == syn reject with tcp reset";

/// A session in which `announce` names 203.0.113.20:4001, whither `caller` then connects: once, and with the address that
/// its end of the session shows outside.
fn reaches_a_third_party(nat: Nat, announce: impl FnOnce(&Session), caller: impl FnOnce(&NatTopology) -> &Host) {
    // With `native` only `ct state related` admits it, and no rule for a mark.
    let fixture = NatFixture::of(nat, "defaults: { third_party: allow }\n");
    let fixture = if daemon::mechanism() == "native" { fixture.without_admit() } else { fixture };
    fixture.nft(fixture.gateway(), REFUSE);
    let NatTopology { client, server, public, .. } = &fixture.topology;
    let (caller, other) =
        if std::ptr::eq(caller(&fixture.topology), client) { (client, server) } else { (server, client) };
    add_address(other, "203.0.113.20");
    let serves = SocketAddr::new(server.addresses.of(Family::V4), 21);
    let listener = server.namespace.run(|| TcpListener::bind(serves)).expect("root may").expect("it is free");
    let session = Session::from(&fixture, &listener, SocketAddr::new(client.addresses.of(Family::V4), 0));
    announce(&session);
    let third: SocketAddr = "203.0.113.20:4001".parse().expect("an address");
    let waits = other.namespace.run(|| TcpListener::bind(third)).expect("root may").expect("it is free");
    let connect = || caller.namespace.run(|| TcpStream::connect_timeout(&third, TIMEOUT)).expect("root may");
    let data = connect().unwrap_or_else(|error| panic!("{nat}: {error}"));
    let (_, peer) = waits.accept().expect("it has come");
    assert_eq!(peer.ip(), IpAddr::V4(public.v4), "{nat}");
    let again = connect().expect_err("it is used up").kind();
    assert_eq!(again, std::io::ErrorKind::ConnectionRefused, "{nat}");
    fixture.daemon.wait_for_log("used ", 1);
    drop(data);
    session.asks("NOOP", "200 Still here.");
    assert_eq!((fixture.daemon.counted("opened"), fixture.daemon.counted("used")), (1, 1), "{nat}");
    assert_eq!(fixture.daemon.counted("kernel_errors"), 0, "{nat}");
}

#[test]
fn third_party_is_reached_behind_nat_if_the_policy_allows() {
    reaches_a_third_party(
        Nat::Masquerade,
        |session| session.asks("PASV", "227 Entering Passive Mode (203,0,113,20,15,161)."),
        |topology| &topology.client,
    );
    reaches_a_third_party(
        Nat::Dnat,
        |session| session.asks("PORT 203,0,113,20,15,161", "200 Yes."),
        |topology| &topology.server,
    );
}

/// The kernel's counters of the queue: packets that wait, and packets that found it full.
fn queued(gateway: &Namespace) -> (u64, u64) {
    let text = gateway.read("/proc/thread-self/net/netfilter/nfnetlink_queue").expect("root may");
    let columns: Vec<u64> = text.split_whitespace().map(|column| column.parse().expect("numbers")).collect();
    // The queue, its reader, waiting, mode, length, no room in it, no room for its reader.
    (columns[2], columns[5] + columns[6])
}

/// Fills the queue with packets while the daemon does not read it.
fn fill_queue(gateway: &Namespace) {
    const TRIAL: Table<'static> = Table { family: netlink::Family::Inet, name: "trial" };
    let chains = "chain queued {}\nchain output { type filter hook output priority 0; udp dport 9 jump queued; }";
    gateway
        .nft(&format!("table inet trial\ndelete table inet trial\ntable inet trial {{\n{chains}\n}}"))
        .expect("the rules are right");
    let fill = || {
        let mut tables = Tables::open(TIMEOUT).expect("root may");
        let rules = [
            Expression::Queue { number: 0, count: 1, bypass: true },
            Expression::CompatQueue { number: 0, count: 1, bypass: true },
        ];
        let rule = rules.into_iter().find(|rule| tables.supports(std::slice::from_ref(rule)) == Ok(true));
        tables.fill_chain(TRIAL, "queued", "", &[rule.expect("the kernel can queue")]).expect("the chain is there");
        let sender = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
        // Packets that wait in the queue count for the sender's buffer.
        setsockopt(&sender, sockopt::SndBufForce, &(64 << 20)).expect("root may");
        let mut waiting = 0;
        loop {
            for _ in 0..500 {
                let _ = sender.send_to(b"x", "127.0.0.1:9");
            }
            let before = std::mem::replace(&mut waiting, queued(gateway).0);
            if waiting > 0 && waiting == before {
                return;
            }
        }
    };
    gateway.run(fill).expect("root may enter");
}

#[test]
fn queue_overflow_breaks_no_session_with_longer_lines() {
    // One queue for all processors, so that it is the one that is full.
    let mut fixture = NatFixture::new("capture: { queues: 1, watchdog: 1h }\n");
    let control = fixture.control();
    let listener =
        fixture.topology.server.namespace.run(|| TcpListener::bind(control)).expect("root may").expect("it is free");
    let session = Session::from(&fixture, &listener, "10.21.1.10:0".parse().expect("an address"));
    let grows = |port: u8| {
        let received = session.client_says(&format!("PORT 10,21,1,10,15,{port}"));
        assert_eq!(received, format!("PORT 203,0,113,1,15,{port}"));
        assert_eq!(session.server_says("200 Yes."), "200 Yes.");
    };
    (160..164).for_each(grows);

    fixture.daemon.child.signal(Signal::SIGSTOP).expect("it runs");
    fill_queue(fixture.gateway());
    let before = queued(fixture.gateway()).1;
    let mut client = &session.client;
    client.write_all(b"NOOP\r\n").expect("the connection stands");
    let came = || {
        session.server.set_nonblocking(true).expect("it is a socket");
        let has_come = session.server.peek(&mut [0]).is_ok();
        session.server.set_nonblocking(false).expect("it is a socket");
        has_come
    };
    // Unread, or not at all until there is room: but never as something else.
    let what = "the line to arrive, or to be sent again later";
    wait_until(what, TIMEOUT, || Ok(came() || queued(fixture.gateway()).1 > before))
        .unwrap_or_else(|error| panic!("{error}"));
    fixture.daemon.child.signal(Signal::SIGCONT).expect("it is there");
    wait_until("room in the queue", TIMEOUT, || Ok(queued(fixture.gateway()).0 == 0))
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(read_line(&session.server), "NOOP");
    assert_eq!(session.server_says("200 Yes."), "200 Yes.");
    // It may have passed unread. Then the next line may be the rest of it, and does not count.
    session.asks("NOOP", "200 Yes.");
    (164..166).for_each(grows);

    // With a chain that packets pass, the kernel takes away all that waits.
    fixture.daemon.child.signal(Signal::SIGSTOP).expect("it runs");
    fill_queue(fixture.gateway());
    fixture.nft(fixture.gateway(), "delete table inet trial");
    fixture.daemon.child.signal(Signal::SIGCONT).expect("it is there");
    (166..168).for_each(grows);
    assert!(fixture.daemon.counted("queue_errors") > 100, "not so much was lost that it matters");
}
