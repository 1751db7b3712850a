//! Dialogues in which a helper may go wrong, and whether the data connection that they are about gets through.

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use nix::sys::signal::Signal;
use pinhole::lab::mini::{Heard, Pair, Speaker};
use pinhole::lab::{self, Addresses, End, Family, Namespace, Result, Shape, Topology};

use super::daemon::{Daemon, PATIENCE};
use super::helper::Helper;
use Speaker::{Client, Server};

/// What becomes of the data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It gets through.
    Opens,
    /// It gets through, but a packet of the dialogue was dropped before, and had to be sent again.
    OpensAfterADrop,
    /// The firewall refuses it.
    StaysClosed,
    /// It never comes to that: the dialogue does not get through.
    StandsStill,
    /// What was announced may be used for that many seconds.
    For(u64),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Opens => "opens",
            Self::OpensAfterADrop => "drops a packet, opens when it comes again",
            Self::StaysClosed => "stays closed",
            Self::StandsStill => "drops a packet, and the session stands still",
            Self::For(seconds) => return f.pad(&format!("open for {seconds} s")),
        })
    }
}

/// A dialogue, and what is asked of it.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    /// What is said, for the table.
    pub(crate) name: &'static str,
    /// Why the kernel and Pinhole differ; empty where they do not.
    pub(crate) why: &'static str,
    /// More of the policy.
    policy: &'static str,
    hold: fn(&mut Bench) -> Result<Outcome>,
}

const fn case(name: &'static str, why: &'static str, hold: fn(&mut Bench) -> Result<Outcome>) -> Case {
    Case { name, why, policy: "", hold }
}

const SPLIT: &str = "The kernel drops what may be the beginning of an announcement, as often as it comes.";
const FIRST_ONLY: &str = "The kernel looks at the beginning of a packet.";
const NOT_ASKED: &str = "A server, or a text that it was made to print, could open ports. Pinhole takes a 227 only as \
                         the answer to a PASV.";

/// All of them.
pub(crate) const CASES: &[Case] = &[
    // What both do.
    case("PORT", "", |bench| bench.active(&[PORT_LINE])),
    case("PASV, 227", "", |bench| bench.passive(&[REPLY_227])),
    case("`port` in small letters", "", |bench| bench.active(&["port {port}\r\n"])),
    case("PORT with another command behind it in the same segment", "", |bench| {
        bench.active(&["PORT {port}\r\nNOOP\r\n"])
    }),
    case("a pinhole used a second time", "", |bench| {
        bench.log_in()?;
        bench.say(Client, &["PASV\r\n"])?;
        bench.say(Server, &[REPLY_227])?;
        bench.passive_data()?;
        bench.passive_data()
    }),
    case("PORT with a third party's address, to the third party", "", |bench| {
        bench.log_in()?;
        bench.say(Client, &["PORT {third}\r\n"])?;
        bench.data(&bench.server.clone(), bench.third_open)
    }),
    case("227 with a third party's address, to the third party", "", |bench| {
        bench.log_in()?;
        bench.say(Client, &["PASV\r\n"])?;
        bench.say(Server, &["227 Entering Passive Mode ({third})\r\n"])?;
        bench.data(&bench.client.clone(), bench.third_open)
    }),
    case("STOR PORT 10,...: a file name that looks like an announcement", "", |bench| {
        bench.active(&["STOR PORT {port}\r\n"])
    }),
    // How it is split.
    case("PORT split over two segments", SPLIT, |bench| bench.active(&["PORT {port-1}", "{port-2}\r\n"])),
    case("PORT split inside the word", SPLIT, |bench| bench.active(&["PO", "RT {port}\r\n"])),
    case("PORT, one byte a segment", SPLIT, |bench| {
        bench.log_in()?;
        let line = bench.fill("PORT {port}\r\n");
        let bytes: Vec<&[u8]> = line.as_bytes().chunks(1).collect();
        bench.say_bytes(Client, &bytes)?;
        bench.active_data()
    }),
    case("227 split over two segments", SPLIT, |bench| {
        bench.passive(&["227 Entering Passive Mode (10,", "21,2,10,{ports})\r\n"])
    }),
    case("PORT split over two segments, the second sent when the first is acknowledged", SPLIT, |bench| {
        bench.pair.let_wait(Client)?;
        bench.active(&["PORT {port-1}", "{port-2}\r\n"])
    }),
    // What stands around it.
    case("PORT behind another command in the same segment", FIRST_ONLY, |bench| {
        bench.active(&["PWD\r\nPORT {port}\r\n"])
    }),
    case("227 behind another reply in the same segment", FIRST_ONLY, |bench| {
        bench.log_in()?;
        bench.say(Client, &["PWD\r\nPASV\r\n"])?;
        bench.say(Server, &["257 \"/\"\r\n227 Entering Passive Mode (10,21,2,10,{ports})\r\n"])?;
        bench.passive_data()
    }),
    case("Telnet's IAC NOP in front of PORT", FIRST_ONLY, |bench| {
        bench.log_in()?;
        let line = [b"\xff\xf1", bench.fill(PORT_LINE).as_bytes()].concat();
        bench.say_bytes(Client, &[&line])?;
        bench.active_data()
    }),
    case(
        "PORT with a bare LF",
        "The kernel wants a CR behind the numbers, and drops what lacks it, as often as it comes. Servers do not.",
        |bench| bench.active(&["PORT {port}\n"]),
    ),
    // What it means.
    case("227 that nobody asked for", NOT_ASKED, |bench| {
        bench.log_in()?;
        bench.say(Server, &[REPLY_227])?;
        bench.passive_data()
    }),
    case("a 227 line inside a reply of several lines, in a segment of its own", NOT_ASKED, |bench| {
        bench.log_in()?;
        bench.say(Client, &["STAT\r\n"])?;
        bench.say(Server, &["211-Status\r\n"])?;
        bench.say(Server, &[REPLY_227])?;
        bench.say(Server, &["211 End\r\n"])?;
        bench.passive_data()
    }),
    case(
        "227 before a login",
        "Nobody who cannot log in should open anything. `login: optional` does as the kernel.",
        |bench| {
            bench.say(Server, &["220 Ready.\r\n"])?;
            bench.say(Client, &["PASV\r\n"])?;
            bench.say(Server, &[REPLY_227])?;
            bench.passive_data()
        },
    ),
    case(
        "PORT to a port below 1024",
        "Data connections do not go to services. `data_ports` can name such ports.",
        |bench| {
            bench.log_in()?;
            bench.say(Client, &["PORT {low}\r\n"])?;
            bench.data(&bench.server.clone(), bench.client_low)
        },
    ),
    case("PASV after EPSV ALL", "RFC 2428: after EPSV ALL nothing else is to be used.", |bench| {
        bench.log_in()?;
        bench.say(Client, &["EPSV ALL\r\n"])?;
        bench.say(Server, &["200 Only EPSV.\r\n"])?;
        bench.say(Client, &["PASV\r\n"])?;
        bench.say(Server, &[REPLY_227])?;
        bench.passive_data()
    }),
    case("EPSV after EPSV ALL", "", |bench| {
        bench.log_in()?;
        bench.say(Client, &["EPSV ALL\r\n"])?;
        bench.say(Server, &["200 Only EPSV.\r\n"])?;
        bench.say(Client, &["EPSV\r\n"])?;
        bench.say(Server, &["229 Entering Extended Passive Mode (|||{passive}|)\r\n"])?;
        bench.passive_data()
    }),
    case(
        "227 behind AUTH TLS and 234",
        "What follows is encrypted, and whatever looks like a 227 in it is chance or worse.",
        |bench| {
            bench.log_in()?;
            bench.say(Client, &["AUTH TLS\r\n"])?;
            bench.say(Server, &["234 Let us whisper.\r\n"])?;
            bench.say(Client, &["PASV\r\n"])?;
            bench.say(Server, &[REPLY_227])?;
            bench.passive_data()
        },
    ),
    Case {
        policy: "defaults: { login: optional }\n",
        ..case(
            "227 from something that talks no FTP",
            "Pinhole wants a 220 and commands of FTP, also with `login: optional`, as here.",
            |bench| {
                bench.say(Server, &["Good day.\r\n"])?;
                bench.say(Client, &["GET / HTTP/1.1\r\n"])?;
                bench.say(Server, &[REPLY_227])?;
                bench.say(Client, &["PASV\r\n"])?;
                bench.say(Server, &[REPLY_227])?;
                bench.passive_data()
            },
        )
    },
    case(
        "227 with 0.0.0.0",
        "Some servers say so when they mean themselves, and clients understand it. To the kernel it is a third party.",
        |bench| bench.passive(&["227 Entering Passive Mode (0,0,0,0,{ports})\r\n"]),
    ),
    Case {
        policy: "defaults: { modes: [PORT, LPRT, LPSV] }\n",
        ..case(
            "LPRT",
            "The kernel does not know RFC 1639. Pinhole does, if `modes` names it (here it does).",
            |bench| bench.active(&["LPRT 4,4,10,21,1,10,2,{active-ports}\r\n"]),
        )
    },
    Case {
        policy: "defaults: { modes: [PORT, LPRT, LPSV] }\n",
        ..case(
            "LPSV, 228",
            "The kernel does not know RFC 1639. Pinhole does, if `modes` names it (here it does).",
            |bench| {
                bench.log_in()?;
                bench.say(Client, &["LPSV\r\n"])?;
                bench.say(Server, &["228 Entering Long Passive Mode (4,4,10,21,2,10,2,{ports})\r\n"])?;
                bench.passive_data()
            },
        )
    },
    // How long it holds.
    case(
        "PASV twice: the first of the two ports",
        "The kernel keeps one expectation a session and drops the older one. Pinhole keeps `pinholes_per_session`.",
        |bench| {
            bench.log_in()?;
            bench.say(Client, &["PASV\r\n"])?;
            bench.say(Server, &[REPLY_227])?;
            bench.say(Client, &["PASV\r\n"])?;
            bench.say(Server, &["227 Entering Passive Mode (10,21,2,10,200,1)\r\n"])?;
            bench.passive_data()
        },
    ),
    case("PORT, refused by the server", "Nothing will come that should.", |bench| {
        bench.log_in()?;
        bench.say(Client, &[PORT_LINE])?;
        bench.say(Server, &["500 No.\r\n"])?;
        bench.active_data()
    }),
    case(
        "PORT, and the session has ended",
        "The kernel keeps the expectation until it forgets the connection, two minutes after its end.",
        |bench| {
            bench.log_in()?;
            bench.say(Client, &[PORT_LINE])?;
            bench.say(Client, &["QUIT\r\n"])?;
            bench.say(Server, &["221 Bye.\r\n"])?;
            bench.hang_up()?;
            bench.active_data()
        },
    ),
    case("227, and nobody comes", "The kernel's time cannot be set. Pinhole's can: `timeout`.", |bench| {
        bench.log_in()?;
        bench.say(Client, &["PASV\r\n"])?;
        bench.say(Server, &[REPLY_227])?;
        bench.life()
    }),
    // What the helper has missed.
    case(
        "227 in a session that is older than the helper",
        "The kernel gives its helper to new connections only. Pinhole picks sessions up in the middle.",
        |bench| {
            bench.stop_helping()?;
            bench.connect_anew()?;
            bench.log_in()?;
            bench.help()?;
            bench.say(Client, &["PASV\r\n"])?;
            bench.say(Server, &[REPLY_227])?;
            bench.passive_data()
        },
    ),
    case("227 in a session that is older than a reload of the filter (`flush ruleset`)", "", |bench| {
        bench.log_in()?;
        bench.reload_the_filter()?;
        bench.say(Client, &["PASV\r\n"])?;
        bench.say(Server, &[REPLY_227])?;
        bench.passive_data()
    }),
    case(
        "227 in a session that is younger than a reload of the filter (`flush ruleset`)",
        "The rule that assigns the kernel's helper went with the ruleset, unless the user's own file has it. Pinhole \
         puts its table back.",
        |bench| {
            bench.reload_the_filter()?;
            bench.connect_anew()?;
            bench.log_in()?;
            bench.say(Client, &["PASV\r\n"])?;
            bench.say(Server, &[REPLY_227])?;
            bench.passive_data()
        },
    ),
];

const PORT_LINE: &str = "PORT {port}\r\n";
const REPLY_227: &str = "227 Entering Passive Mode (10,21,2,10,{ports}).\r\n";

/// Holds all cases with that helper, each in a place of its own.
pub(crate) fn hold_all(helper: Helper) -> Result<Vec<Outcome>> {
    CASES.iter().map(|case| (case.hold)(&mut Bench::new(helper, case.policy)?)).collect()
}

/// A gateway with a helper, both ends of a control connection through it, and listeners to be reached or not.
struct Bench {
    helper: Helper,
    policy: String,
    daemon: Option<Daemon>,
    firewall: Namespace,
    client: Namespace,
    server: Namespace,
    /// What listens where. They are never asked to accept: the kernel does it for them.
    _listeners: Vec<TcpListener>,
    client_open: SocketAddr,
    client_low: SocketAddr,
    server_open: SocketAddr,
    third_open: SocketAddr,
    control: SocketAddr,
    pair: Pair,
    heard: Heard,
    _third: Namespace,
}

/// What the lab drops, and tells whoever begins a connection that it may not.
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

impl Bench {
    fn new(helper: Helper, more: &str) -> Result<Self> {
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
        let daemon = helper.start(&firewall, &policy)?;
        let control = SocketAddr::new(target.of(Family::V4), 21);
        let pair = Pair::connect(&client.namespace, control, &server.namespace, control)?;
        Ok(Self {
            helper,
            policy,
            daemon,
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
            heard: Heard::Whole,
            _third: third,
        })
    }

    /// Puts in the addresses of those who listen.
    fn fill(&self, text: &str) -> String {
        let port = numbers(self.client_open);
        let (first, second) = port.split_at(7);
        text.replace("{port}", &port)
            .replace("{port-1}", first)
            .replace("{port-2}", second)
            .replace("{low}", &numbers(self.client_low))
            .replace("{third}", &numbers(self.third_open))
            .replace("{active-ports}", &port_numbers(self.client_open))
            .replace("{ports}", &port_numbers(self.server_open))
            .replace("{passive}", &self.server_open.port().to_string())
    }

    /// Has one end say something, a segment for each piece, all at once.
    fn say(&mut self, speaker: Speaker, pieces: &[&str]) -> Result<()> {
        let pieces: Vec<String> = pieces.iter().map(|piece| self.fill(piece)).collect();
        let pieces: Vec<&[u8]> = pieces.iter().map(String::as_bytes).collect();
        self.say_bytes(speaker, &pieces)
    }

    fn say_bytes(&mut self, speaker: Speaker, pieces: &[&[u8]]) -> Result<()> {
        if self.heard == Heard::Lost {
            return Ok(());
        }
        match self.pair.says(speaker, pieces)?.how {
            Heard::Whole => {}
            worse => self.heard = worse,
        }
        Ok(())
    }

    fn log_in(&mut self) -> Result<()> {
        self.say(Server, &["220 Ready.\r\n"])?;
        self.say(Client, &["USER a\r\n"])?;
        self.say(Server, &["331 And?\r\n"])?;
        self.say(Client, &["PASS b\r\n"])?;
        self.say(Server, &["230 In.\r\n"])
    }

    /// Logs in, has the client say that, and the server connect.
    fn active(&mut self, pieces: &[&str]) -> Result<Outcome> {
        self.log_in()?;
        self.say(Client, pieces)?;
        self.active_data()
    }

    /// Logs in, asks, has the server say that, and the client connect.
    fn passive(&mut self, pieces: &[&str]) -> Result<Outcome> {
        self.log_in()?;
        self.say(Client, &["PASV\r\n"])?;
        self.say(Server, pieces)?;
        self.passive_data()
    }

    fn active_data(&self) -> Result<Outcome> {
        self.data(&self.server, self.client_open)
    }

    fn passive_data(&self) -> Result<Outcome> {
        self.data(&self.client, self.server_open)
    }

    /// Whether a data connection from there to there gets through.
    fn data(&self, from: &Namespace, to: SocketAddr) -> Result<Outcome> {
        if self.heard == Heard::Lost {
            return Ok(Outcome::StandsStill);
        }
        match from.run(|| TcpStream::connect_timeout(&to, PATIENCE))? {
            Ok(_) if self.heard == Heard::Repeated => Ok(Outcome::OpensAfterADrop),
            Ok(_) => Ok(Outcome::Opens),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "from {from} to {to}: {error}");
                Ok(Outcome::StaysClosed)
            }
        }
    }

    /// How long what was announced stays open if nobody comes, to ten seconds.
    fn life(&self) -> Result<Outcome> {
        let seconds: f64 = match self.helper {
            Helper::Kernel => {
                let list = self.firewall.read("/proc/thread-self/net/nf_conntrack_expect")?;
                list.split_whitespace().next().and_then(|left| left.parse().ok()).expect("one expectation")
            }
            Helper::Pinhole | Helper::Nobody => {
                let list = self.firewall.nft_says(&["-j", "list", "set", "inet", "pinhole", "pinholes4"])?;
                let list: serde_json::Value = serde_json::from_str(&list).expect("nft writes JSON");
                let elements = list["nftables"].as_array().expect("a list").iter().find_map(|one| one.get("set"));
                elements.and_then(|set| set["elem"][0]["elem"]["expires"].as_f64()).expect("one pinhole")
            }
        };
        Ok(Outcome::For((seconds / 10.0).round() as u64 * 10))
    }

    /// The client ends the session.
    fn hang_up(&mut self) -> Result<()> {
        self.pair.hang_up()
    }

    /// Another session.
    fn connect_anew(&mut self) -> Result<()> {
        self.pair = Pair::connect(&self.client, self.control, &self.server, self.control)?;
        Ok(())
    }

    /// As if nobody had ever helped.
    fn stop_helping(&mut self) -> Result<()> {
        match self.daemon.take() {
            Some(mut daemon) => daemon.end(Signal::SIGTERM),
            None => self.firewall.nft("delete table inet helper"),
        }
    }

    fn help(&mut self) -> Result<()> {
        self.daemon = self.helper.start(&self.firewall, &self.policy)?;
        Ok(())
    }

    /// The user's own rules come anew, from a file that begins with `flush ruleset` and knows no helper.
    fn reload_the_filter(&mut self) -> Result<()> {
        self.firewall.nft(&format!("flush ruleset\n{}", filter()))?;
        if self.helper != Helper::Pinhole {
            return Ok(());
        }
        lab::wait_until("Pinhole to mend the ruleset", PATIENCE, || {
            let rules = self.firewall.nft_says(&["list", "ruleset"])?;
            // What captures comes last into its table.
            Ok(rules.contains("goto inspect") && rules.contains("pinhole: announced"))
        })
    }
}
