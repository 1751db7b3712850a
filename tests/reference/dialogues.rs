//! Dialogues in which a helper may fail, and whether their data connection gets through.

use lab::Result;
use lab::mini::Speaker::{Client, Server};

use super::bench::{Bench, Outcome};
use super::helper::Helper;

/// A dialogue, and the question that it answers.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    /// Its description in the table.
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

const SPLIT: &str = "The kernel drops a segment that may be the beginning of an announcement, and each retransmission \
                     of it.";
const FIRST_ONLY: &str = "The kernel looks for an announcement only at the beginning of a segment.";
const NOT_ASKED: &str = "Otherwise a server could open ports, or a user who makes it print such a text. Pinhole \
                         accepts a 227 only as the reply to a PASV.";

/// All of them.
pub(crate) const CASES: &[Case] = &[
    // The same with both.
    case("PORT", "", |bench| bench.active(&[PORT_LINE])),
    case("PASV, 227", "", |bench| bench.passive(&[REPLY_227])),
    case("EPRT", "", |bench| bench.active(&["EPRT |1|10.21.1.10|{active}|\r\n"])),
    case("EPSV, 229", "", |bench| {
        bench.log_in()?;
        bench.say(Client, &["EPSV\r\n"])?;
        bench.say(Server, &["229 Entering Extended Passive Mode (|||{passive}|)\r\n"])?;
        bench.passive_data()
    }),
    case("`port` in lower case", "", |bench| bench.active(&["port {port}\r\n"])),
    case("PORT before another command in the same segment", "", |bench| bench.active(&["PORT {port}\r\nNOOP\r\n"])),
    case("second connection through one pinhole", "", |bench| {
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
    // How segments split it.
    case("PORT split over two segments", SPLIT, |bench| bench.active(&["PORT {port-1}", "{port-2}\r\n"])),
    case("PORT split inside the verb", SPLIT, |bench| bench.active(&["PO", "RT {port}\r\n"])),
    case("PORT, one byte per segment", SPLIT, |bench| {
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
        bench.pair.enable_nagle(Client)?;
        bench.active(&["PORT {port-1}", "{port-2}\r\n"])
    }),
    // What is in the segment besides it.
    case("PORT after another command in the same segment", FIRST_ONLY, |bench| {
        bench.active(&["PWD\r\nPORT {port}\r\n"])
    }),
    case("227 after another reply in the same segment", FIRST_ONLY, |bench| {
        bench.log_in()?;
        bench.say(Client, &["PWD\r\nPASV\r\n"])?;
        bench.say(Server, &["257 \"/\"\r\n227 Entering Passive Mode (10,21,2,10,{ports})\r\n"])?;
        bench.passive_data()
    }),
    // Pinhole opens nothing for a line that servers may read in different ways.
    case("Telnet IAC NOP before PORT", "", |bench| {
        bench.log_in()?;
        let line = [b"\xff\xf1", bench.fill(PORT_LINE).as_bytes()].concat();
        bench.say_bytes(Client, &[&line])?;
        bench.active_data()
    }),
    case(
        "PORT with a bare LF",
        "The kernel requires a CR after the numbers, and drops a segment without it and each retransmission. Pinhole \
         accepts the segment and opens nothing, because servers do not agree where such a line ends.",
        |bench| bench.active(&["PORT {port}\n"]),
    ),
    // Announcements that are not valid.
    case("227 without a PASV", NOT_ASKED, |bench| {
        bench.log_in()?;
        bench.say(Server, &[REPLY_227])?;
        bench.passive_data()
    }),
    case("227 line inside a multiline reply, in a segment of its own", NOT_ASKED, |bench| {
        bench.log_in()?;
        bench.say(Client, &["STAT\r\n"])?;
        bench.say(Server, &["211-Status\r\n"])?;
        bench.say(Server, &[REPLY_227])?;
        bench.say(Server, &["211 End\r\n"])?;
        bench.passive_data()
    }),
    case(
        "227 before a login",
        "A client that cannot log in should not open ports. `login: optional` opens them, as the kernel does.",
        |bench| {
            bench.say(Server, &["220 Ready.\r\n"])?;
            bench.say(Client, &["PASV\r\n"])?;
            bench.say(Server, &[REPLY_227])?;
            bench.passive_data()
        },
    ),
    case("PORT to a port below 1024", "Services listen on these ports. `data_ports` can allow them.", |bench| {
        bench.log_in()?;
        bench.say(Client, &["PORT {low}\r\n"])?;
        bench.data(&bench.server.clone(), bench.client_low)
    }),
    case("PASV after EPSV ALL", "RFC 2428: after EPSV ALL the server must reject PASV.", |bench| {
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
        "227 after AUTH TLS and 234",
        "The session is encrypted from then on, so a 227 in clear text is no announcement of the server's.",
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
            "227 in a connection that is not FTP",
            "Pinhole requires a 220 and FTP commands, even with `login: optional`, as here.",
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
        "Some servers announce 0.0.0.0 for their own address, and clients accept it. The kernel takes it for a third \
         party.",
        |bench| bench.passive(&["227 Entering Passive Mode (0,0,0,0,{ports})\r\n"]),
    ),
    Case {
        policy: "defaults: { modes: [PORT, LPRT, LPSV] }\n",
        ..case(
            "LPRT",
            "The kernel does not support RFC 1639. Pinhole does if `modes` has LPRT and LPSV, as here.",
            |bench| bench.active(&["LPRT 4,4,10,21,1,10,2,{active-ports}\r\n"]),
        )
    },
    Case {
        policy: "defaults: { modes: [PORT, LPRT, LPSV] }\n",
        ..case(
            "LPSV, 228",
            "The kernel does not support RFC 1639. Pinhole does if `modes` has LPRT and LPSV, as here.",
            |bench| {
                bench.log_in()?;
                bench.say(Client, &["LPSV\r\n"])?;
                bench.say(Server, &["228 Entering Long Passive Mode (4,4,10,21,2,10,2,{ports})\r\n"])?;
                bench.passive_data()
            },
        )
    },
    // How long the port is open.
    case(
        "two PASV: connection to the first port",
        "The kernel keeps one expectation for each session and drops the older one. Pinhole keeps \
         `pinholes_per_session`.",
        |bench| {
            bench.log_in()?;
            bench.say(Client, &["PASV\r\n"])?;
            bench.say(Server, &[REPLY_227])?;
            bench.say(Client, &["PASV\r\n"])?;
            bench.say(Server, &["227 Entering Passive Mode (10,21,2,10,200,1)\r\n"])?;
            bench.passive_data()
        },
    ),
    case("PORT that the server refuses", "The server will not connect, so nothing needs the port.", |bench| {
        bench.log_in()?;
        bench.say(Client, &[PORT_LINE])?;
        bench.say(Server, &["500 No.\r\n"])?;
        bench.active_data()
    }),
    case(
        "PORT, then the session ends",
        "The kernel keeps the expectation until conntrack removes the control connection, two minutes after its end.",
        |bench| {
            bench.log_in()?;
            bench.say(Client, &[PORT_LINE])?;
            bench.say(Client, &["QUIT\r\n"])?;
            bench.say(Server, &["221 Bye.\r\n"])?;
            bench.hang_up()?;
            bench.active_data()
        },
    ),
    case("227 without a data connection", "The kernel's timeout is fixed. Pinhole's is the key `timeout`.", |bench| {
        bench.log_in()?;
        bench.say(Client, &["PASV\r\n"])?;
        bench.say(Server, &[REPLY_227])?;
        bench.life()
    }),
    // Sessions that began before the helper or a reload.
    case("227 in a session that began before the helper was started", "", older_than_the_helper),
    Case {
        policy: "pickup: trust\n",
        ..case(
            "227 in a session that began before the helper was started, with `pickup: trust`",
            "The kernel assigns its helper to new connections only. Pinhole can trust existing ones.",
            older_than_the_helper,
        )
    },
    case("227 in a session that began before a reload of the filter (`flush ruleset`)", "", |bench| {
        bench.log_in()?;
        bench.reload_the_filter()?;
        bench.say(Client, &["PASV\r\n"])?;
        bench.say(Server, &[REPLY_227])?;
        bench.passive_data()
    }),
    case(
        "227 in a session that began after a reload of the filter (`flush ruleset`)",
        "The reload removed the rule that assigns the kernel's helper, unless the reloaded file contains it. Pinhole \
         restores its table.",
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

/// A line of a session that began before there was a helper.
fn older_than_the_helper(bench: &mut Bench) -> Result<Outcome> {
    bench.stop_helping()?;
    bench.connect_anew()?;
    bench.log_in()?;
    bench.help()?;
    // The first line of each end may be the rest of one.
    bench.say(Client, &["NOOP\r\n"])?;
    bench.say(Server, &["200 Yes.\r\n"])?;
    bench.say(Client, &["PASV\r\n"])?;
    bench.say(Server, &[REPLY_227])?;
    bench.passive_data()
}

const PORT_LINE: &str = "PORT {port}\r\n";
const REPLY_227: &str = "227 Entering Passive Mode (10,21,2,10,{ports}).\r\n";

/// Holds all cases with that helper, each in a place of its own.
pub(crate) fn hold_all(helper: Helper) -> Result<Vec<Outcome>> {
    CASES.iter().map(|case| (case.hold)(&mut Bench::new(helper, case.policy)?)).collect()
}
