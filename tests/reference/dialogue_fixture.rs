//! A gateway with a helper, and the two ends of a dialogue through it.

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use lab::mini::{DeliveryStatus, Pair, Speaker};
use lab::{Addresses, End, Family, Namespace, Result, Shape, Topology};
use nix::sys::signal::Signal;

use super::daemon::TIMEOUT;
use super::helper::{Help, Helper};
use Speaker::{Client, Server};

/// The result for the data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It gets through.
    Opens,
    /// The firewall refuses it.
    StaysClosed,
    /// It never comes to that: the dialogue does not get through.
    Hangs,
    /// The pinhole was open for that many seconds.
    For(u64),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Opens => "opens",
            Self::StaysClosed => "stays closed",
            Self::Hangs => "drops a segment; the session hangs",
            Self::For(seconds) => return f.pad(&format!("open for {seconds} s")),
        })
    }
}

/// A gateway with a helper, both ends of a control connection through it, and listeners to be reached or not.
pub(crate) struct DialogueFixture {
    helper: Helper,
    policy: String,
    help: Help,
    firewall: Namespace,
    pub(crate) client: Namespace,
    pub(crate) server: Namespace,
    /// The listeners. They never accept: the kernel completes the handshakes.
    _listeners: Vec<TcpListener>,
    client_open: SocketAddr,
    pub(crate) client_low: SocketAddr,
    server_open: SocketAddr,
    pub(crate) third_open: SocketAddr,
    control: SocketAddr,
    pub(crate) pair: Pair,
    last_delivery: DeliveryStatus,
    _third: Namespace,
}

/// The lab's filter, which rejects instead of dropping, so that a client fails at once.
fn filter() -> String {
    let reject = "tcp flags & (fin | syn | rst | ack) == syn reject with tcp reset";
    format!("{}\ntable inet filter {{\nchain forward {{\n{reject}\n}}\n}}\n", Shape::Gateway.default_drop())
}

/// An address as RFC 959 writes it.
fn numbers(address: SocketAddr) -> String {
    let IpAddr::V4(ip) = address.ip() else { unreachable!("these dialogues are IPv4's") };
    format!("{},{}", ip.to_string().replace('.', ","), port_numbers(address))
}

fn port_numbers(address: SocketAddr) -> String {
    format!("{},{}", address.port() / 256, address.port() % 256)
}

impl DialogueFixture {
    pub(crate) fn new(helper: Helper, more: &str) -> Result<Self> {
        let topology = Topology::new(Shape::Gateway)?;
        let Topology { client, server, firewall, target, .. } = topology;
        let (third, addresses, gateway) = (Namespace::new("third")?, Addresses::lab(3, 10), Addresses::lab(3, 1));
        lab::join(
            End { namespace: &third, interface: "net", addresses: &addresses.with_prefixes() },
            End { namespace: &firewall, interface: "third", addresses: &gateway.with_prefixes() },
        )?;
        third.route_by(gateway.of(Family::V4))?;
        let listen = |namespace: &Namespace, addresses: Addresses, port: u16| {
            let listener = namespace.run(|| TcpListener::bind((addresses.v4, port)))?.expect("the port is free");
            let address = listener.local_addr().expect("it is bound");
            Ok((listener, address))
        };
        let (client_listener, client_open) = listen(&client.namespace, client.addresses, 0)?;
        let (low_listener, client_low) = listen(&client.namespace, client.addresses, 1000)?;
        let (server_listener, server_open) = listen(&server.namespace, server.addresses, 0)?;
        let (third_listener, third_open) = listen(&third, addresses, 0)?;
        firewall.nft(&filter())?;
        let policy = format!("admit: [inet filter forward]\n{more}");
        let help = helper.start(&firewall, &policy)?;
        let control = SocketAddr::new(target.of(Family::V4), 21);
        let pair = Pair::connect(&client.namespace, control, &server.namespace, control)?;
        Ok(Self {
            helper,
            policy,
            help,
            firewall,
            client: client.namespace,
            server: server.namespace,
            _listeners: vec![client_listener, low_listener, server_listener, third_listener],
            client_open,
            client_low,
            server_open,
            third_open,
            control,
            pair,
            last_delivery: DeliveryStatus::Whole,
            _third: third,
        })
    }

    /// Fills in the addresses of the listeners.
    pub(crate) fn fill(&self, text: &str) -> String {
        let port = numbers(self.client_open);
        let (first, second) = port.split_at(7);
        text.replace("{port}", &port)
            .replace("{port-1}", first)
            .replace("{port-2}", second)
            .replace("{low}", &numbers(self.client_low))
            .replace("{third}", &numbers(self.third_open))
            .replace("{active-ports}", &port_numbers(self.client_open))
            .replace("{ports}", &port_numbers(self.server_open))
            .replace("{active}", &self.client_open.port().to_string())
            .replace("{passive}", &self.server_open.port().to_string())
    }

    /// Has one end say something, a segment for each piece, all at once.
    pub(crate) fn say(&mut self, speaker: Speaker, pieces: &[&str]) -> Result<()> {
        let pieces: Vec<String> = pieces.iter().map(|piece| self.fill(piece)).collect();
        let pieces: Vec<&[u8]> = pieces.iter().map(String::as_bytes).collect();
        self.say_bytes(speaker, &pieces)
    }

    pub(crate) fn say_bytes(&mut self, speaker: Speaker, pieces: &[&[u8]]) -> Result<()> {
        if self.last_delivery == DeliveryStatus::Lost {
            return Ok(());
        }
        self.last_delivery = self.pair.says(speaker, pieces)?.how;
        Ok(())
    }

    pub(crate) fn log_in(&mut self) -> Result<()> {
        self.say(Server, &["220 Ready.\r\n"])?;
        self.say(Client, &["USER a\r\n"])?;
        self.say(Server, &["331 And?\r\n"])?;
        self.say(Client, &["PASS b\r\n"])?;
        self.say(Server, &["230 In.\r\n"])
    }

    /// Logs in, has the client say that, and the server connect.
    pub(crate) fn active(&mut self, pieces: &[&str]) -> Result<Outcome> {
        self.log_in()?;
        self.say(Client, pieces)?;
        self.active_data()
    }

    /// Logs in, asks, has the server say that, and the client connect.
    pub(crate) fn passive(&mut self, pieces: &[&str]) -> Result<Outcome> {
        self.log_in()?;
        self.say(Client, &["PASV\r\n"])?;
        self.say(Server, pieces)?;
        self.passive_data()
    }

    pub(crate) fn active_data(&self) -> Result<Outcome> {
        self.data(&self.server, self.client_open)
    }

    pub(crate) fn passive_data(&self) -> Result<Outcome> {
        self.data(&self.client, self.server_open)
    }

    /// Whether a data connection from there to there gets through.
    pub(crate) fn data(&self, from: &Namespace, to: SocketAddr) -> Result<Outcome> {
        if self.last_delivery == DeliveryStatus::Lost {
            return Ok(Outcome::Hangs);
        }
        match from.run(|| TcpStream::connect_timeout(&to, TIMEOUT))? {
            Ok(_) => Ok(Outcome::Opens),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "from {from} to {to}: {error}");
                Ok(Outcome::StaysClosed)
            }
        }
    }

    /// How long an unused pinhole stays open, to ten seconds.
    pub(crate) fn life(&self) -> Result<Outcome> {
        let seconds: f64 = match self.helper {
            Helper::Kernel | Helper::Conntrackd => {
                let list = self.firewall.read("/proc/thread-self/net/nf_conntrack_expect")?;
                list.split_whitespace().next().and_then(|left| left.parse().ok()).expect("one expectation")
            }
            Helper::Pinhole | Helper::Nobody => {
                let list = self.firewall.nft_output(&["-j", "list", "set", "inet", "pinhole", "pinholes4"])?;
                let list: serde_json::Value = serde_json::from_str(&list).expect("nft writes JSON");
                let elements = list["nftables"].as_array().expect("a list").iter().find_map(|one| one.get("set"));
                elements.and_then(|set| set["elem"][0]["elem"]["expires"].as_f64()).expect("one pinhole")
            }
        };
        Ok(Outcome::For((seconds / 10.0).round() as u64 * 10))
    }

    /// Both ends end the session.
    pub(crate) fn hang_up(&mut self) -> Result<()> {
        self.pair.end()
    }

    /// Another session.
    pub(crate) fn connect_anew(&mut self) -> Result<()> {
        self.pair = Pair::connect(&self.client, self.control, &self.server, self.control)?;
        Ok(())
    }

    /// Removes every trace of a helper.
    pub(crate) fn stop_helping(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.help, Help::Rules) {
            Help::Pinhole(mut daemon) => daemon.end(Signal::SIGTERM),
            Help::Rules | Help::Conntrackd(_) => self.firewall.nft("delete table inet helper"),
        }
    }

    pub(crate) fn help(&mut self) -> Result<()> {
        self.help = self.helper.start(&self.firewall, &self.policy)?;
        Ok(())
    }

    /// The user's own rules come anew, from a file that begins with `flush ruleset` and knows no helper.
    pub(crate) fn reload_the_filter(&mut self) -> Result<()> {
        self.firewall.nft(&format!("flush ruleset\n{}", filter()))?;
        if self.helper != Helper::Pinhole {
            return Ok(());
        }
        lab::wait_until("Pinhole to restore the ruleset", TIMEOUT, || {
            let rules = self.firewall.nft_output(&["list", "ruleset"])?;
            // The chain that queues is added to the table last.
            Ok(rules.contains("goto inspect") && rules.contains("pinhole: announced"))
        })
    }
}
