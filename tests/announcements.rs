//! With `inspect: announcements` only an excerpt of a dialogue leaves the kernel. What opens by it is what opens by all.
//!
//! The captures' packets are sieved as `rules/announcements.nft` sieves them: its words are read from that file.

mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use pinhole::capture::file::FileReader;
use pinhole::capture::link;
use pinhole::firewall::{Firewall as _, Simulated};
use pinhole::net::Port;
use pinhole::packet::{Direction, Flags, Segment};
use pinhole::policy::Policy;
use pinhole::script::{Conversation, endpoint};
use pinhole::time::Timestamp;
use pinhole::tracker::{News, SessionNumber, Tracker, World};
use support::{captures, policy};

use Direction::{FromClient, FromServer};

const RULES: &str = include_str!("../rules/announcements.nft");
const ALL_MODES: &str = "{ modes: [PORT, EPRT, LPRT, PASV, EPSV, LPSV], pinholes_per_session: 1000 }";

/// The words by which the kernel chooses among the segments of a session whose start has been read.
struct Sieve {
    client: Vec<u32>,
    server: Vec<u32>,
    server_classes: Vec<u32>,
    first_of_several: u32,
    long_v4: usize,
    long_v6: usize,
}

impl Sieve {
    fn new() -> Self {
        let words = |rule: &str| {
            let line = RULES.lines().find(|line| line.contains(rule)).unwrap_or_else(|| panic!("no rule {rule}"));
            let list = line.split_once("{ ").and_then(|(_, rest)| rest.split_once(" }")).expect("a list of words").0;
            let words = list.split(", ").map(|word| word.trim_start_matches("0x"));
            words.map(|word| u32::from_str_radix(word, 16).expect("a number")).collect()
        };
        let number = |rule: &str, radix: u32| {
            let rest = RULES.split_once(rule).unwrap_or_else(|| panic!("no rule {rule}")).1;
            u32::from_str_radix(rest.split(' ').next().unwrap_or_default(), radix).expect("a number")
        };
        assert!(RULES.contains(" @ih,64,8 & 0x00 == 0x00 goto deliver"), "that there is a ninth byte");
        Self {
            first_of_several: number("@ih,0,32 & 0xdfdfdfdf == 0x", 16),
            long_v4: number("nfproto ipv4 meta length >= ", 10) as usize,
            long_v6: number("nfproto ipv6 meta length >= ", 10) as usize,
            client: words("ct direction original @ih,0,32 & 0xdfdfdfdf {"),
            server: words("ct direction reply @ih,0,24 {"),
            server_classes: words("ct direction reply @ih,0,8 {"),
        }
    }

    /// Whether the kernel brings a segment.
    fn brings(&self, packet: &[u8], segment: &Segment<'_>, direction: Direction, is_settled: bool) -> bool {
        if [Flags::SYN, Flags::FIN, Flags::RST].into_iter().any(|flag| segment.flags.has(flag)) {
            // The client's SYN begins a connection: it is not established yet.
            return !segment.flags.has(Flags::SYN) || direction == FromServer;
        }
        let begins = |bytes: usize| {
            let begin = segment.payload.get(..bytes)?;
            Some(begin.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte)))
        };
        let Some(first) = begins(1) else { return false };
        let is_word = |words: &[u32], begin: Option<u32>| begin.is_some_and(|begin| words.contains(&begin));
        !is_settled
            || match direction {
                FromClient => {
                    let word = begins(4).map(|begin| begin & 0xdfdf_dfdf);
                    let is_first_of_several = word == Some(self.first_of_several) && segment.payload.len() > 8;
                    let long = if packet[0] >> 4 == 4 { self.long_v4 } else { self.long_v6 };
                    is_word(&self.client, word) || is_first_of_several || packet.len() >= long
                }
                FromServer => is_word(&self.server, begins(3)) || self.server_classes.contains(&first),
            }
    }
}

/// A tracker and its firewall, to which some packets are brought.
struct Stage {
    tracker: Tracker,
    firewall: Simulated,
    policy: Policy,
    now: Timestamp,
    sieve: Option<Sieve>,
    brought: usize,
    told: Vec<String>,
}

impl Stage {
    fn new(policy: Policy) -> Self {
        let is_excerpt = policy.capture.inspect == pinhole::policy::Inspect::Announcements;
        Self {
            tracker: Tracker::default(),
            firewall: Simulated::new(policy.control_ports.as_slice().iter().copied()),
            policy,
            now: Timestamp::from_secs(1),
            sieve: is_excerpt.then(Sieve::new),
            brought: 0,
            told: Vec::new(),
        }
    }

    fn reading(inspect: &str) -> Self {
        Self::new(policy(&format!("defaults: {ALL_MODES}\ncapture: {{ inspect: {inspect} }}\n")))
    }

    fn comes(&mut self, packet: &[u8]) {
        let Ok(segment) = Segment::parse(packet) else { return };
        self.now = self.now + Duration::from_millis(1);
        let Some(control) = self.firewall.control_connection(&segment.flow) else { return };
        let Some(direction) = control.connection.direction_of(&segment.flow) else { return };
        if self.sieve.as_ref().is_some_and(|sieve| !sieve.brings(packet, &segment, direction, control.is_settled)) {
            return;
        }
        self.brought += usize::from(!segment.payload.is_empty());
        let Self { tracker, firewall, policy, now, told, .. } = self;
        let mut observer = |_: Timestamp, session: SessionNumber, news: &News<'_>| {
            told.extend(describe(news).map(|news| format!("{session} {news}")));
        };
        let mut world = World { now: *now, policy, firewall, observer: &mut observer };
        tracker.handle(&segment, &mut world);
    }

    fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }
}

fn describe(news: &News<'_>) -> Option<String> {
    match news {
        News::Expected { mode, expectation, .. } => {
            Some(format!("{mode} opens {} -> {}", expectation.from, expectation.to))
        }
        News::Refused { mode, why, .. } => Some(format!("{mode} refused: {}", why.name())),
        News::Closed { why: pinhole::expectation::Closed::RefusedByServer, .. } => Some("closed".to_owned()),
        News::Encrypted { .. } => Some("encrypted".to_owned()),
        News::Odd(oddity) => Some(format!("{oddity:?}")),
        _ => None,
    }
}

/// What opens in a capture.
fn openings(path: &Path, inspect: &str) -> Vec<String> {
    let mut stage = Stage::reading(inspect);
    let mut reader = FileReader::new(File::open(path).expect("the capture is there")).expect("a capture");
    while let Some(frame) = reader.next_frame().unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
        if let Ok(packet) = link::network_layer(frame.link, frame.data) {
            stage.comes(packet);
        }
    }
    stage.told().into_iter().filter(|told| told.contains("opens")).collect()
}

/// Captures in which the excerpt opens less, and why. It may never open more.
const LESS: [(&str, &str); 2] = [
    ("bytewise-ipv4", "no segment holds more than a byte of a line"),
    ("bytewise-ipv6", "no segment holds more than a byte of a line"),
];

#[test]
fn of_every_capture_the_excerpt_opens_what_the_whole_dialogue_opens() {
    let mut count = 0;
    let mut differ = Vec::new();
    let mut names: Vec<_> = std::fs::read_dir(captures())
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|end| end == "pcap" || end == "pcapng"))
        .collect();
    names.sort();
    for path in names {
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
        let (whole, excerpt) = (openings(&path, "dialogue"), openings(&path, "announcements"));
        let known: BTreeSet<&String> = whole.iter().collect();
        let more: Vec<_> = excerpt.iter().filter(|opening| !known.contains(opening)).collect();
        if !more.is_empty() || (excerpt != whole && !LESS.iter().any(|(less, _)| *less == name)) {
            differ.push(format!("{name}: {} of {}; more: {more:?}", excerpt.len(), whole.len()));
        }
        count += excerpt.len();
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    assert!(count > 100, "only {count}");
}

/// A session in which somebody has just logged in, and nothing but excerpts will be brought.
fn inside() -> (Stage, Conversation) {
    let mut stage = Stage::reading("announcements");
    let mut talk = Conversation::new(endpoint("10.0.0.1:4000"), endpoint("10.0.0.2:21"), 1000, 5000);
    talk.handshake().iter().for_each(|packet| stage.comes(packet));
    for (who, line) in [
        (FromServer, "220 Hello\r\n"),
        (FromClient, "USER a\r\n"),
        (FromServer, "331 And?\r\n"),
        (FromClient, "PASS b\r\n"),
        (FromServer, "230 In\r\n"),
    ] {
        stage.comes(&talk.says(who, line));
    }
    assert!(stage.firewall.control_connection(&talk.flow()).is_some_and(|control| control.is_settled));
    (stage, talk)
}

/// Plays lines, each a segment of its own, `>` for the client and `<` for the server, and says what that led to.
fn told(lines: &[&str]) -> Vec<String> {
    let (mut stage, mut talk) = inside();
    for line in lines {
        let (who, text) = line.split_at(1);
        let who = if who == ">" { FromClient } else { FromServer };
        let end = if text.ends_with('~') { "" } else { "\r\n" };
        stage.comes(&talk.says(who, format!("{}{end}", text.trim_end_matches('~'))));
    }
    stage.told().iter().map(|told| told.trim_start_matches("1 ").to_owned()).collect()
}

const PASSIVE: &str = "<227 Entering (10,0,0,2,9,9)";
const OPENS: &str = "PASV opens 10.0.0.1 -> 10.0.0.2:2313";
const ACTIVE: &str = ">PORT 10,0,0,1,9,9";
const OPENS_BACK: &str = "PORT opens 10.0.0.2 -> 10.0.0.1:2313";

#[test]
fn what_is_unread_in_between_changes_nothing() {
    let lines = [">TYPE I", "<200 ok", ">PASV", PASSIVE, ">RETR x", "<150 here", "<226 there", ACTIVE, "<200 ok"];
    assert_eq!(told(&lines), [OPENS, OPENS_BACK]);
}

#[test]
fn an_answer_counts_once_for_each_question() {
    assert_eq!(told(&[">PASV", PASSIVE, PASSIVE]), [OPENS, "PASV refused: not-asked-for"]);
    assert_eq!(told(&[">NOOP", PASSIVE]), ["PASV refused: not-asked-for"]);
    assert_eq!(told(&[">EPSV", PASSIVE]), ["PASV refused: not-asked-for"]);
    assert_eq!(told(&[">PASV", "<502 no", PASSIVE]), ["PASV refused: not-asked-for"]);
}

#[test]
fn an_active_announcement_that_is_refused_is_closed_where_that_can_be_told() {
    assert_eq!(told(&[">TYPE I", "<200 ok", ACTIVE, "<500 no"]), [OPENS_BACK, "closed"]);
    assert_eq!(told(&[">TYPE I", "<200 ok", ACTIVE, "<530 Log in"]), [OPENS_BACK, "closed"]);
    // What answers the RETR comes behind what answered the PORT.
    assert_eq!(told(&[ACTIVE, "<200 ok", ">RETR x", "<550 no such file"]), [OPENS_BACK]);
    // Here SIZE and PORT went out together.
    assert_eq!(told(&[">SIZE x", ACTIVE, "<550 no such file", "<200 ok"]), [OPENS_BACK]);
    assert_eq!(told(&[">FEAT", ACTIVE, "<211 no", "<500 no"]), [OPENS_BACK]);
}

#[test]
fn a_refusal_that_came_before_the_announcement_refuses_nothing() {
    let (mut stage, mut talk) = inside();
    stage.comes(&talk.says(FromClient, "SITE x\r\n"));
    // The server answers that before it gets the PORT, and the client sends that before it gets the answer.
    let answer = talk.says(FromServer, "500 what?\r\n");
    let mut early = Conversation::new(endpoint("10.0.0.1:4000"), endpoint("10.0.0.2:21"), 1023, 5031);
    let port = early.says(FromClient, "PORT 10,0,0,1,9,9\r\n");
    stage.comes(&port);
    stage.comes(&answer);
    assert_eq!(stage.told(), [format!("1 {OPENS_BACK}")]);
}

#[test]
fn a_line_in_pieces_opens_nothing_and_what_follows_it_works() {
    let bad = "PORT refused: bad-syntax";
    assert_eq!(told(&[">PORT 10,0,0,1,4~", ">,99", "<200 ok", ACTIVE]), [bad, OPENS_BACK]);
    assert_eq!(told(&[">PO~", ">RT 10,0,0,1,9,9", "<200 ok", ACTIVE]), [OPENS_BACK]);
    assert_eq!(told(&[">PAS~", ">V", PASSIVE, ">PASV", PASSIVE]), ["PASV refused: not-asked-for", OPENS]);
    assert_eq!(
        told(&[">PASV", "<22~", "<7 Entering (10,0,0,2,9,9)", ">PASV", PASSIVE, PASSIVE]),
        [OPENS, "PASV refused: not-asked-for"]
    );
    assert_eq!(told(&[">PASV", "<227 Entering (10,0,0,2,9~", "<,9)", ">PASV", PASSIVE]), [OPENS]);
    // Here the rest is brought, because it begins like an error, and nothing is missing in between.
    assert_eq!(told(&[">PASV", "<227 Entering (10,0,0,2,9,~", "<42)"]), ["PASV opens 10.0.0.1 -> 10.0.0.2:2346"]);
    assert_eq!(told(&[">PASV", "<227 Entering (10,0,0,2,9~", "<,9~", "<4)", ">PASV", PASSIVE]), [OPENS]);
}

#[test]
fn a_line_behind_another_is_read_where_the_first_one_is() {
    assert_eq!(told(&[">PASV\r\nNOOP\r\nPORT 10,0,0,1,9,9", PASSIVE]), [OPENS_BACK, OPENS]);
    assert_eq!(told(&[">TYPE I\r\nPASV\r\nRETR x", "<200 ok", PASSIVE]), [OPENS]);
    assert_eq!(told(&[">NOOP\r\nPORT 10,0,0,1,9,9", "<200 ok", ACTIVE]), [OPENS_BACK]);
}

#[test]
fn the_rest_of_a_long_line_is_no_announcement_whatever_it_begins_with() {
    // As a server that allows the client no more than 48 bytes a segment would have it cut.
    let long = format!(">RETR {}~", "x".repeat(43));
    assert_eq!(told(&[&long, ACTIVE, "<550 no such file", ACTIVE]), [OPENS_BACK]);
}

#[test]
fn a_copy_announces_nothing_anew() {
    let (mut stage, mut talk) = inside();
    talk.loses(FromClient, 8);
    let port = talk.says(FromClient, "PORT 10,0,0,1,9,9\r\n");
    let pasv = talk.says(FromClient, "PASV\r\n");
    let passive = talk.says(FromServer, "227 Entering (10,0,0,2,9,9)\r\n");
    for packet in [&port, &port, &pasv, &port, &pasv, &passive, &port, &pasv, &passive] {
        stage.comes(packet);
    }
    assert_eq!(stage.told(), [format!("1 {OPENS_BACK}"), format!("1 {OPENS}")]);
    let again = talk.says(FromServer, "227 Entering (10,0,0,2,9,9)\r\n");
    stage.comes(&again);
    assert_eq!(stage.told(), ["1 PASV refused: not-asked-for"]);
}

#[test]
fn an_announcement_that_was_overtaken_counts() {
    let (mut stage, mut talk) = inside();
    let pasv = talk.says(FromClient, "PASV\r\n");
    stage.comes(&talk.says(FromClient, "PORT 10,0,0,1,9,9\r\n"));
    stage.comes(&pasv);
    let passive = talk.says(FromServer, "227 Entering (10,0,0,2,9,9)\r\n");
    stage.comes(&talk.says(FromServer, "500 no\r\n"));
    stage.comes(&passive);
    assert_eq!(stage.told(), [format!("1 {OPENS_BACK}"), format!("1 {OPENS}")]);
}

#[test]
fn another_login_is_followed() {
    let refused = "PORT refused: not-logged-in";
    assert_eq!(told(&[">USER b", "<331 and?", ACTIVE]), [refused]);
    assert_eq!(told(&[">USER b", "<331 and?", ">PASS x", "<530 no", ACTIVE]), [refused]);
    assert_eq!(told(&[">USER b", "<331 and?", ">PASS x", "<230 in", ACTIVE]), [OPENS_BACK]);
    assert_eq!(told(&[">USER b", "<530 Can't change to another user.", ACTIVE]), [OPENS_BACK]);
    assert_eq!(told(&[">REIN", "<220 again", ACTIVE]), [refused]);
    assert_eq!(told(&[">REIN", "<220 again", ">USER b", "<331 and?", ">PASS x", "<230 in", ACTIVE]), [OPENS_BACK]);
    assert_eq!(told(&[">REIN", "<502 no", ACTIVE]), [OPENS_BACK]);
}

#[test]
fn what_is_encrypted_opens_nothing() {
    assert_eq!(told(&[">AUTH TLS", "<234 go", ">PASV", PASSIVE, ACTIVE]), ["encrypted"]);
    assert_eq!(told(&[">AUTH TLS", "<502 no", ACTIVE]), [OPENS_BACK]);
}

#[test]
fn a_234_that_nobody_asked_for_encrypts_nothing_and_opens_no_corridor() {
    assert_eq!(told(&[">NOOP", "<234 go", ACTIVE]), [OPENS_BACK]);
    assert_eq!(told(&[">AUTH TLS", "<502 no", "<234 go", ACTIVE]), [OPENS_BACK]);
}

#[test]
fn megabytes_of_unread_dialogue_change_nothing() {
    let (mut stage, mut talk) = inside();
    for _ in 0..10 {
        talk.loses(FromClient, 700_000_000);
        talk.loses(FromServer, 900_000_000);
        stage.comes(&talk.says(FromClient, "PASV\r\n"));
        stage.comes(&talk.says(FromServer, "227 Entering (10,0,0,2,9,9)\r\n"));
        assert_eq!(stage.told(), [format!("1 {OPENS}")]);
    }
}

#[test]
fn of_a_session_that_transfers_only_announcements_are_brought() {
    let (mut stage, mut talk) = inside();
    let before = stage.brought;
    for _ in 0..100 {
        stage.comes(&talk.says(FromClient, "NOOP\r\n"));
        stage.comes(&talk.says(FromServer, "200 ok\r\n"));
    }
    assert_eq!(stage.brought, before);
}

#[test]
fn a_restart_picks_up_a_settled_session_and_one_that_is_not() {
    for is_settled in [true, false] {
        let (mut stage, mut talk) = inside();
        stage.tracker.forget();
        if !is_settled {
            stage.firewall = Simulated::new([Port::FTP]);
        }
        for (who, line) in [
            (FromClient, "NOOP\r\n"),
            (FromServer, "200 ok\r\n"),
            (FromClient, "PASV\r\n"),
            (FromServer, "227 Entering (10,0,0,2,9,9)\r\n"),
        ] {
            stage.comes(&talk.says(who, line));
        }
        assert_eq!(stage.told(), [format!("2 {OPENS}")], "{is_settled}");
        let control = stage.firewall.control_connection(&talk.flow());
        assert!(control.is_some_and(|control| control.is_settled), "{is_settled}");
    }
}

#[test]
fn a_reload_between_the_two_ways_of_reading_loses_no_session() {
    let (mut stage, mut talk) = inside();
    let transfer = |stage: &mut Stage, talk: &mut Conversation| {
        for (who, line) in [
            (FromClient, "TYPE I\r\n"),
            (FromServer, "200 ok\r\n"),
            (FromClient, "PASV\r\n"),
            (FromServer, "227 Entering (10,0,0,2,9,9)\r\n"),
            (FromClient, "RETR x\r\n"),
            (FromServer, "226 done\r\n"),
        ] {
            stage.comes(&talk.says(who, line));
        }
        assert_eq!(stage.told(), [format!("1 {OPENS}")]);
    };
    transfer(&mut stage, &mut talk);
    let announcements = stage.policy.clone();
    for _ in 0..2 {
        stage.policy = policy("{}");
        let sieve = stage.sieve.take();
        transfer(&mut stage, &mut talk);
        transfer(&mut stage, &mut talk);
        stage.policy = announcements.clone();
        stage.sieve = sieve;
        transfer(&mut stage, &mut talk);
        transfer(&mut stage, &mut talk);
    }
}
