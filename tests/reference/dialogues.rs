//! Dialogues in which a helper may fail, and whether their data connection gets through.

use lab::Result;
use lab::mini::Speaker::{Client, Server};

use super::dialogue_fixture::{DialogueFixture, Outcome};
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
    hold: fn(&mut DialogueFixture) -> Result<Outcome>,
}

const fn case(name: &'static str, why: &'static str, hold: fn(&mut DialogueFixture) -> Result<Outcome>) -> Case {
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
    case("PORT", "", |fixture| fixture.active(&[PORT_LINE])),
    case("PASV, 227", "", |fixture| fixture.passive(&[REPLY_227])),
    case("EPRT", "", |fixture| fixture.active(&["EPRT |1|10.21.1.10|{active}|\r\n"])),
    case("EPSV, 229", "", |fixture| {
        fixture.log_in()?;
        fixture.say(Client, &["EPSV\r\n"])?;
        fixture.say(Server, &["229 Entering Extended Passive Mode (|||{passive}|)\r\n"])?;
        fixture.passive_data()
    }),
    case("`port` in lower case", "", |fixture| fixture.active(&["port {port}\r\n"])),
    case("PORT before another command in the same segment", "", |fixture| fixture.active(&["PORT {port}\r\nNOOP\r\n"])),
    case("second connection through one pinhole", "", |fixture| {
        fixture.log_in()?;
        fixture.say(Client, &["PASV\r\n"])?;
        fixture.say(Server, &[REPLY_227])?;
        fixture.passive_data()?;
        fixture.passive_data()
    }),
    case("PORT with a third party's address, to the third party", "", |fixture| {
        fixture.log_in()?;
        fixture.say(Client, &["PORT {third}\r\n"])?;
        fixture.data(&fixture.server.clone(), fixture.third_open)
    }),
    case("227 with a third party's address, to the third party", "", |fixture| {
        fixture.log_in()?;
        fixture.say(Client, &["PASV\r\n"])?;
        fixture.say(Server, &["227 Entering Passive Mode ({third})\r\n"])?;
        fixture.data(&fixture.client.clone(), fixture.third_open)
    }),
    case("STOR PORT 10,...: a file name that looks like an announcement", "", |fixture| {
        fixture.active(&["STOR PORT {port}\r\n"])
    }),
    // How segments split it.
    case("PORT split over two segments", SPLIT, |fixture| fixture.active(&["PORT {port-1}", "{port-2}\r\n"])),
    case("PORT split inside the verb", SPLIT, |fixture| fixture.active(&["PO", "RT {port}\r\n"])),
    case("PORT, one byte per segment", SPLIT, |fixture| {
        fixture.log_in()?;
        let line = fixture.fill("PORT {port}\r\n");
        let bytes: Vec<&[u8]> = line.as_bytes().chunks(1).collect();
        fixture.say_bytes(Client, &bytes)?;
        fixture.active_data()
    }),
    case("227 split over two segments", SPLIT, |fixture| {
        fixture.passive(&["227 Entering Passive Mode (10,", "21,2,10,{ports})\r\n"])
    }),
    case("PORT split over two segments, the second sent when the first is acknowledged", SPLIT, |fixture| {
        fixture.pair.enable_nagle(Client)?;
        fixture.active(&["PORT {port-1}", "{port-2}\r\n"])
    }),
    // What is in the segment besides it.
    case("PORT after another command in the same segment", FIRST_ONLY, |fixture| {
        fixture.active(&["PWD\r\nPORT {port}\r\n"])
    }),
    case("227 after another reply in the same segment", FIRST_ONLY, |fixture| {
        fixture.log_in()?;
        fixture.say(Client, &["PWD\r\nPASV\r\n"])?;
        fixture.say(Server, &["257 \"/\"\r\n227 Entering Passive Mode (10,21,2,10,{ports})\r\n"])?;
        fixture.passive_data()
    }),
    // Pinhole opens nothing for a line that servers may read in different ways.
    case("Telnet IAC NOP before PORT", "", |fixture| {
        fixture.log_in()?;
        let line = [b"\xff\xf1", fixture.fill(PORT_LINE).as_bytes()].concat();
        fixture.say_bytes(Client, &[&line])?;
        fixture.active_data()
    }),
    case(
        "PORT with a bare LF",
        "The kernel requires a CR after the numbers, and drops a segment without it and each retransmission. Pinhole \
         accepts the segment and opens nothing, because servers do not agree where such a line ends.",
        |fixture| fixture.active(&["PORT {port}\n"]),
    ),
    // Announcements that are not valid.
    case("227 without a PASV", NOT_ASKED, |fixture| {
        fixture.log_in()?;
        fixture.say(Server, &[REPLY_227])?;
        fixture.passive_data()
    }),
    case("227 line inside a multiline reply, in a segment of its own", NOT_ASKED, |fixture| {
        fixture.log_in()?;
        fixture.say(Client, &["STAT\r\n"])?;
        fixture.say(Server, &["211-Status\r\n"])?;
        fixture.say(Server, &[REPLY_227])?;
        fixture.say(Server, &["211 End\r\n"])?;
        fixture.passive_data()
    }),
    case(
        "227 before a login",
        "A client that cannot log in should not open ports. `login: optional` opens them, as the kernel does.",
        |fixture| {
            fixture.say(Server, &["220 Ready.\r\n"])?;
            fixture.say(Client, &["PASV\r\n"])?;
            fixture.say(Server, &[REPLY_227])?;
            fixture.passive_data()
        },
    ),
    case("PORT to a port below 1024", "Services listen on these ports. `data_ports` can allow them.", |fixture| {
        fixture.log_in()?;
        fixture.say(Client, &["PORT {low}\r\n"])?;
        fixture.data(&fixture.server.clone(), fixture.client_low)
    }),
    case("PASV after EPSV ALL", "RFC 2428: after EPSV ALL the server must reject PASV.", |fixture| {
        fixture.log_in()?;
        fixture.say(Client, &["EPSV ALL\r\n"])?;
        fixture.say(Server, &["200 Only EPSV.\r\n"])?;
        fixture.say(Client, &["PASV\r\n"])?;
        fixture.say(Server, &[REPLY_227])?;
        fixture.passive_data()
    }),
    case("EPSV after EPSV ALL", "", |fixture| {
        fixture.log_in()?;
        fixture.say(Client, &["EPSV ALL\r\n"])?;
        fixture.say(Server, &["200 Only EPSV.\r\n"])?;
        fixture.say(Client, &["EPSV\r\n"])?;
        fixture.say(Server, &["229 Entering Extended Passive Mode (|||{passive}|)\r\n"])?;
        fixture.passive_data()
    }),
    case(
        "227 after AUTH TLS and 234",
        "The session is encrypted from then on, so a 227 in clear text is no announcement of the server's.",
        |fixture| {
            fixture.log_in()?;
            fixture.say(Client, &["AUTH TLS\r\n"])?;
            fixture.say(Server, &["234 Let us whisper.\r\n"])?;
            fixture.say(Client, &["PASV\r\n"])?;
            fixture.say(Server, &[REPLY_227])?;
            fixture.passive_data()
        },
    ),
    Case {
        policy: "defaults: { login: optional }\n",
        ..case(
            "227 in a connection that is not FTP",
            "Pinhole requires a 220 and FTP commands, even with `login: optional`, as here.",
            |fixture| {
                fixture.say(Server, &["Good day.\r\n"])?;
                fixture.say(Client, &["GET / HTTP/1.1\r\n"])?;
                fixture.say(Server, &[REPLY_227])?;
                fixture.say(Client, &["PASV\r\n"])?;
                fixture.say(Server, &[REPLY_227])?;
                fixture.passive_data()
            },
        )
    },
    case(
        "227 with 0.0.0.0",
        "Some servers announce 0.0.0.0 for their own address, and clients accept it. The kernel takes it for a third \
         party.",
        |fixture| fixture.passive(&["227 Entering Passive Mode (0,0,0,0,{ports})\r\n"]),
    ),
    Case {
        policy: "defaults: { modes: [PORT, LPRT, LPSV] }\n",
        ..case(
            "LPRT",
            "The kernel does not support RFC 1639. Pinhole does if `modes` has LPRT and LPSV, as here.",
            |fixture| fixture.active(&["LPRT 4,4,10,21,1,10,2,{active-ports}\r\n"]),
        )
    },
    Case {
        policy: "defaults: { modes: [PORT, LPRT, LPSV] }\n",
        ..case(
            "LPSV, 228",
            "The kernel does not support RFC 1639. Pinhole does if `modes` has LPRT and LPSV, as here.",
            |fixture| {
                fixture.log_in()?;
                fixture.say(Client, &["LPSV\r\n"])?;
                fixture.say(Server, &["228 Entering Long Passive Mode (4,4,10,21,2,10,2,{ports})\r\n"])?;
                fixture.passive_data()
            },
        )
    },
    // How long the port is open.
    case(
        "two PASV: connection to the first port",
        "The kernel keeps one expectation for each session and drops the older one. Pinhole keeps \
         `pinholes_per_session`.",
        |fixture| {
            fixture.log_in()?;
            fixture.say(Client, &["PASV\r\n"])?;
            fixture.say(Server, &[REPLY_227])?;
            fixture.say(Client, &["PASV\r\n"])?;
            fixture.say(Server, &["227 Entering Passive Mode (10,21,2,10,200,1)\r\n"])?;
            fixture.passive_data()
        },
    ),
    case("PORT that the server refuses", "The server will not connect, so nothing needs the port.", |fixture| {
        fixture.log_in()?;
        fixture.say(Client, &[PORT_LINE])?;
        fixture.say(Server, &["500 No.\r\n"])?;
        fixture.active_data()
    }),
    case(
        "PORT, then the session ends",
        "The kernel keeps the expectation until conntrack removes the control connection, two minutes after its end.",
        |fixture| {
            fixture.log_in()?;
            fixture.say(Client, &[PORT_LINE])?;
            fixture.say(Client, &["QUIT\r\n"])?;
            fixture.say(Server, &["221 Bye.\r\n"])?;
            fixture.hang_up()?;
            fixture.active_data()
        },
    ),
    case(
        "227 without a data connection",
        "The kernel's timeout is fixed. Pinhole's is the key `timeout`.",
        |fixture| {
            fixture.log_in()?;
            fixture.say(Client, &["PASV\r\n"])?;
            fixture.say(Server, &[REPLY_227])?;
            fixture.life()
        },
    ),
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
    case("227 in a session that began before a reload of the filter (`flush ruleset`)", "", |fixture| {
        fixture.log_in()?;
        fixture.reload_the_filter()?;
        fixture.say(Client, &["PASV\r\n"])?;
        fixture.say(Server, &[REPLY_227])?;
        fixture.passive_data()
    }),
    case(
        "227 in a session that began after a reload of the filter (`flush ruleset`)",
        "The reload removed the rule that assigns the kernel's helper, unless the reloaded file contains it. Pinhole \
         restores its table.",
        |fixture| {
            fixture.reload_the_filter()?;
            fixture.connect_anew()?;
            fixture.log_in()?;
            fixture.say(Client, &["PASV\r\n"])?;
            fixture.say(Server, &[REPLY_227])?;
            fixture.passive_data()
        },
    ),
];

/// A line of a session that began before there was a helper.
fn older_than_the_helper(fixture: &mut DialogueFixture) -> Result<Outcome> {
    fixture.stop_helping()?;
    fixture.connect_anew()?;
    fixture.log_in()?;
    fixture.help()?;
    // The first line of each end may be the rest of one.
    fixture.say(Client, &["NOOP\r\n"])?;
    fixture.say(Server, &["200 Yes.\r\n"])?;
    fixture.say(Client, &["PASV\r\n"])?;
    fixture.say(Server, &[REPLY_227])?;
    fixture.passive_data()
}

const PORT_LINE: &str = "PORT {port}\r\n";
const REPLY_227: &str = "227 Entering Passive Mode (10,21,2,10,{ports}).\r\n";

/// Holds all cases with that helper, each in a place of its own.
pub(crate) fn hold_all(helper: Helper) -> Result<Vec<Outcome>> {
    CASES.iter().map(|case| (case.hold)(&mut DialogueFixture::new(helper, case.policy)?)).collect()
}
