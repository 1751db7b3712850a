//! What seldom happens behind NAT: there is no port left, and a line is sent again to a program that has just started.
//!
//! Needs root and nft.

#[path = "support/daemon.rs"]
mod daemon;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use daemon::{Daemon, PATIENCE};
use pinhole::lab::mini::{Heard, Hearing, Pair, Speaker};
use pinhole::lab::nat::{Nat, NatTopology};
use pinhole::lab::{Family, Namespace, wait_until};
use socket2::{Domain, Socket, Type};

/// A client behind masquerade, and the program on its gateway.
struct Stage {
    topology: NatTopology,
    daemon: Daemon,
}

impl Stage {
    fn new(more: &str) -> Self {
        let topology = NatTopology::new(Nat::Masquerade).unwrap_or_else(|error| panic!("{error}"));
        let gateway = &topology.gateways[0];
        gateway.namespace.nft(gateway.rules.text).unwrap_or_else(|error| panic!("{error}"));
        let policy = format!("{}{more}", gateway.rules.policy());
        let daemon = Daemon::start(&gateway.namespace, &policy).unwrap_or_else(|error| panic!("{error}"));
        Self { topology, daemon }
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
    /// One from a client with that address, logged in.
    fn from(stage: &Stage, listener: &TcpListener, client: SocketAddr) -> Self {
        let to = stage.control();
        let client = stage.topology.client.namespace.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&client.into())?;
            socket.connect_timeout(&to.into(), PATIENCE)?;
            Ok::<_, std::io::Error>(socket.into())
        });
        let client: TcpStream = client.expect("root may enter").expect("control connections are let through");
        let (server, _) = listener.accept().expect("it has come");
        for end in [&client, &server] {
            end.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
        }
        let session = Self { client, server };
        assert_eq!(session.server_says("220 Ready."), "220 Ready.");
        session.asks("USER a", "331 And?");
        session.asks("PASS b", "230 In.");
        session
    }

    /// The client says a line: what the server hears.
    fn client_says(&self, line: &str) -> String {
        say(&self.client, &self.server, line)
    }

    fn server_says(&self, line: &str) -> String {
        say(&self.server, &self.client, line)
    }

    /// A command that goes on as it is, and its answer.
    fn asks(&self, command: &str, answer: &str) {
        assert_eq!(self.client_says(command), command);
        assert_eq!(self.server_says(answer), answer);
    }
}

fn say(mut from: &TcpStream, to: &TcpStream, line: &str) -> String {
    from.write_all(format!("{line}\r\n").as_bytes()).expect("the connection stands");
    let mut heard = String::new();
    // Nothing comes behind the line, so the buffer holds nothing back.
    BufReader::with_capacity(256, to).read_line(&mut heard).expect("a line arrives");
    heard.trim_end().to_owned()
}

#[test]
fn where_every_port_is_taken_the_announcement_is_refused_and_the_session_goes_on() {
    let stage = Stage::new("defaults: { data_ports: 4001-4002 }\n");
    let NatTopology { client, server, .. } = &stage.topology;
    // Two clients, of which the outside sees one address.
    let add = ["addr", "add", "10.21.1.11/24", "dev", "net"];
    let added = client.namespace.command("ip").args(add).spawn().and_then(|child| child.wait(PATIENCE));
    assert!(added.expect("ip is there").status.success());
    let listener = server.namespace.run(|| TcpListener::bind(stage.control())).expect("root may").expect("it is free");
    let first = Session::from(&stage, &listener, "10.21.1.10:0".parse().expect("an address"));
    let second = Session::from(&stage, &listener, "10.21.1.11:0".parse().expect("an address"));
    for port in [161, 162] {
        assert_eq!(first.client_says(&format!("PORT 10,21,1,10,15,{port}")), format!("PORT 203,0,113,1,15,{port}"));
        first.server_says("200 Yes.");
    }

    // Both ports lead to the first client now.
    second.asks("PORT 10,21,1,11,15,161", "500 I cannot reach that.");
    stage.daemon.wait_for_log("refused 10.21.1.11:4001: PORT in session 2: no-port", 1);
    assert_eq!(stage.daemon.status()["counters"]["refused"]["no-port"], 1);
    assert_eq!(stage.daemon.counted("opened"), 2);
    for session in [&first, &second] {
        session.asks("NOOP", "200 Still here.");
    }

    // One is used, and is free again.
    let waits = client.namespace.run(|| TcpListener::bind("10.21.1.10:4002")).expect("root may").expect("it is free");
    let connect = |port| {
        let to = SocketAddr::new(stage.topology.public.of(Family::V4), port);
        server.namespace.run(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("root may").expect("it is let in")
    };
    let mut data = connect(4002);
    waits.accept().expect("it is delivered");
    stage.daemon.wait_for_log("used ", 1);
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
fn a_line_that_is_sent_again_to_a_new_program_is_what_it_was_and_moves_nothing() {
    for mode in ["PORT", "EPRT"] {
        let mut stage = Stage::new("");
        let NatTopology { client, server, public, .. } = &stage.topology;
        let (client, server, public) = (client.clone(), server.clone(), public.of(Family::V4));
        let control = stage.control();
        let mut pair =
            Pair::connect(&client.namespace, control, &server.namespace, control).expect("it is let through");
        let witness = stage.topology.witness().expect("root may record");
        let mut say = |speaker: Speaker, line: &str| {
            let Hearing { how, bytes } = pair.says(speaker, &[line.as_bytes()]).expect("the connection stands");
            assert_eq!(how, Heard::Whole, "{line}");
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
        // The line arrives, and its sender does not hear of that. So it will send it again, but not before there is
        // somebody to read it.
        stage.nft(&server.namespace, &silenced("sport"));
        assert_eq!(say(Speaker::Client, line), rewritten);
        stage.nft(&client.namespace, &silenced("dport"));
        stage.daemon.kill().and_then(|()| stage.daemon.restart()).unwrap_or_else(|error| panic!("{error}"));
        stage.nft(&client.namespace, "delete table inet silence");
        stage.daemon.wait_for_log("picked up", 1);
        stage.nft(&server.namespace, "delete table inet silence");
        assert_eq!(say(Speaker::Server, "200 Yes.\r\n"), "200 Yes.\r\n");

        // The pinhole is the one that was opened before, and the numbers are right.
        let to = SocketAddr::new(public, 4001);
        let data = server.namespace.run(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("root may");
        data.expect("it is let in").write_all(b"data").expect("it stands");
        let mut content = String::new();
        waits.accept().expect("it is delivered").0.read_to_string(&mut content).expect("it ends");
        assert_eq!(content, "data");
        for (speaker, said) in [(Speaker::Client, "NOOP\r\n"), (Speaker::Server, "200 Yes.\r\n")].repeat(2) {
            assert_eq!(say(speaker, said), said);
        }
        let again = line.replace("4001", "4002").replace("15,161", "15,162");
        assert_eq!(say(Speaker::Client, &again), rewritten.replace("4001", "4002").replace("15,161", "15,162"));

        let testimony = witness.end().expect("it has recorded");
        assert_eq!(testimony.complaints(), Vec::<String>::new(), "{mode}");
        let (_, seen) = testimony.ends.iter().find(|(end, _)| end == "server").expect("it was recorded");
        let holds = |text: &str| {
            seen.iter().filter(|packet| packet.bytes.windows(text.len()).any(|part| part == text.as_bytes())).count()
        };
        assert!(holds(rewritten) >= 2, "it was sent again");
        assert_eq!(holds(line), 0);
    }
}

#[test]
fn nothing_waits_for_ever_for_what_the_kernel_lets_pass() {
    // What is said while the program is down passes unread, and what follows must not wait for it.
    let mut stage = Stage::new("");
    let control = stage.control();
    let NatTopology { client, server, .. } = &stage.topology;
    let mut pair = Pair::connect(&client.namespace, control, &server.namespace, control).expect("it is let through");
    let mut says = |speaker, line: &str| {
        let Hearing { how, bytes } = pair.says(speaker, &[line.as_bytes()]).expect("the connection stands");
        assert_eq!((how, String::from_utf8_lossy(&bytes).as_ref()), (Heard::Whole, line));
    };
    says(Speaker::Server, "220 Ready.\r\n");
    stage.daemon.kill().expect("it runs");
    says(Speaker::Client, "USER a\r\n");
    stage.daemon.restart().expect("it starts");
    says(Speaker::Server, "331 And?\r\n");
    says(Speaker::Client, "PASS b\r\n");
    wait_until("the session to be seen", PATIENCE, || Ok(stage.daemon.counted("sessions") == 1)).expect("it is");
}
