//! Dialogues whose lines are rewritten: however they are split, the other end gets an address that it can reach, a data
//! connection to it gets through, and both ends see valid TCP.
//!
//! `pinhole replay --nat --write` of one end's recording gives the other end's recording.
//!
//! Needs root, nft and tshark. The kernel's helper is the reference; `docs/reference/comparison.md` lists what it
//! cannot do.

#![allow(clippy::print_stdout, reason = "a line for each case is what a reader of a failure wants")]

use crate::{daemon, recording};
use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use crate::document::assert_documented;
use crate::helper::{Help, Helper};
use lab::mini::{Delivery, DeliveryStatus, MiniClient, MiniOptions, MiniServer, Pair, Speaker};
use lab::nat::{Nat, NatTopology};
use lab::packet_recorder::RecordedPackets;
use lab::{Addresses, Error, Family, Result};
use pinhole::core::ftp::Mode;

/// How long a data connection may take that nothing lets through.
const SHORT: Duration = Duration::from_secs(3);
/// And anything that should happen at once.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The result for a line and its data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Works,
    /// The line that arrived is not the rewritten one.
    NotRewritten,
    /// The line arrived as it should, and the data connection did not.
    NoData,
    /// The line, or the next one, never arrived.
    Hangs,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Works => "works",
            Self::NotRewritten => "not rewritten",
            Self::NoData => "no data connection",
            Self::Hangs => "the session hangs",
        })
    }
}

/// A line that announces, and how it is cut.
#[derive(Clone, Copy, Debug)]
struct Case {
    mode: Mode,
    family: Family,
    /// Precedes it in the same segment.
    before: &'static str,
    /// Follows it in the same segment.
    behind: &'static str,
    cut: Cut,
}

#[derive(Clone, Copy, Debug)]
enum Cut {
    Whole,
    /// In two, split so many bytes after the beginning of the announcement.
    At(usize),
    /// The same, from a sender that lets the second wait until the first is acknowledged.
    AtAndWaiting(usize),
    /// One byte a segment.
    EveryByte,
}

impl Case {
    const fn new(mode: Mode, cut: Cut) -> Self {
        Self { mode, family: Family::V4, before: "", behind: "", cut }
    }

    /// The segments in which these lines are sent.
    fn segments<'a>(&self, lines: &'a [u8]) -> Vec<&'a [u8]> {
        match self.cut {
            Cut::Whole => vec![lines],
            Cut::At(at) | Cut::AtAndWaiting(at) => {
                let (first, second) = lines.split_at(self.before.len() + at);
                vec![first, second]
            }
            Cut::EveryByte => lines.chunks(1).collect(),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.mode.announced_by();
        write!(f, "{line}")?;
        if self.family == Family::V6 {
            f.write_str(" with IPv6")?;
        }
        match self.cut {
            Cut::Whole => {}
            Cut::At(at) => write!(f, ", split after {at} bytes")?,
            Cut::AtAndWaiting(at) => write!(f, ", split after {at} bytes, the rest sent when they are acknowledged")?,
            Cut::EveryByte => f.write_str(", one byte per segment")?,
        }
        if !self.before.is_empty() {
            write!(f, ", after `{}` in the same segment", self.before.trim_end())?;
        }
        if !self.behind.is_empty() {
            write!(f, ", before `{}` in the same segment", self.behind.trim_end())?;
        }
        Ok(())
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for mode in [Mode::Port, Mode::Eprt, Mode::Pasv, Mode::Epsv] {
        cases.extend(
            [Cut::Whole, Cut::At(2), Cut::At(9), Cut::AtAndWaiting(9), Cut::EveryByte].map(|cut| Case::new(mode, cut)),
        );
        let (before, behind) =
            if mode.is_active() { ("PWD\r\n", "NOOP\r\n") } else { ("257 \"/\"\r\n", "200 Yes.\r\n") };
        cases.push(Case { before, ..Case::new(mode, Cut::Whole) });
        cases.push(Case { behind, ..Case::new(mode, Cut::Whole) });
    }
    cases
}

/// Forms of RFC 1639, which no common server or client uses, and which the policy has to name.
fn long_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in Family::ALL {
        for mode in [Mode::Lprt, Mode::Lpsv] {
            let cuts = [Cut::Whole, Cut::At(9), Cut::AtAndWaiting(9), Cut::EveryByte];
            cases.extend(cuts.map(|cut| Case { family, ..Case::new(mode, cut) }));
        }
    }
    cases
}

/// Added to the policy of the rules, so that all announcing forms are read.
const ALL_MODES: &str = "defaults: { modes: [PORT, EPRT, LPRT, PASV, EPSV, LPSV] }\n";

/// Rules, a helper on each gateway, and a control connection.
struct NatDialogueFixture {
    family: Family,
    topology: NatTopology,
    _helpers: Vec<Help>,
    pair: Pair,
}

/// Something went wrong on the way, which is an answer and no error.
struct Lost;

impl NatDialogueFixture {
    /// A gateway that rewrites the announcements of that end.
    fn new(helper: Helper, &Case { mode, family, .. }: &Case) -> Result<Self> {
        let topology = NatTopology::new(if mode.is_active() { Nat::Masquerade } else { Nat::Dnat })?;
        let helpers = start(helper, &topology)?;
        let destination = SocketAddr::new(topology.target.of(family), 21);
        let listens = SocketAddr::new(topology.server.addresses.of(family), 21);
        let pair = Pair::connect(&topology.client.namespace, destination, &topology.server.namespace, listens)?;
        Ok(Self { family, topology, _helpers: helpers, pair })
    }

    /// Sends lines from one end, and returns what the other end receives.
    fn say(&mut self, speaker: Speaker, segments: &[&[u8]]) -> Result<std::result::Result<String, Lost>> {
        let Delivery { how, bytes } = self.pair.says(speaker, segments)?;
        Ok(if how == DeliveryStatus::Lost { Err(Lost) } else { Ok(String::from_utf8_lossy(&bytes).into_owned()) })
    }

    fn log_in(&mut self) -> Result<()> {
        let dialogue = [
            (Speaker::Server, "220 Ready.\r\n"),
            (Speaker::Client, "USER a\r\n"),
            (Speaker::Server, "331 And?\r\n"),
            (Speaker::Client, "PASS b\r\n"),
            (Speaker::Server, "230 In.\r\n"),
        ];
        for (speaker, line) in dialogue {
            if self.say(speaker, &[line.as_bytes()])?.is_err() {
                return Err(Error::Dialogue { expected: "a login".to_owned(), got: line.to_owned() });
            }
        }
        Ok(())
    }

    fn hold(&mut self, case: &Case) -> Result<Outcome> {
        let is_active = case.mode.is_active();
        let (speaker, other) =
            if is_active { (Speaker::Client, Speaker::Server) } else { (Speaker::Server, Speaker::Client) };
        let (listening, connecting) = if is_active {
            (self.topology.client.clone(), self.topology.server.clone())
        } else {
            (self.topology.server.clone(), self.topology.client.clone())
        };
        self.log_in()?;
        if !is_active {
            let asks = if case.before.is_empty() { "" } else { "PWD\r\n" };
            let also = if case.behind.is_empty() { "" } else { "NOOP\r\n" };
            let asked = format!("{asks}{}\r\n{also}", case.mode.command());
            if self.say(other, &[asked.as_bytes()])?.is_err() {
                return Ok(Outcome::Hangs);
            }
        }
        let own = SocketAddr::new(listening.addresses.of(self.family), 0);
        let listener = listening.namespace.run(|| TcpListener::bind(own))?.expect("there is a free port");
        let announced = listener.local_addr().expect("it is bound");
        let line = format!("{}{}\r\n{}", case.before, announcement(case.mode, announced), case.behind);
        if matches!(case.cut, Cut::AtAndWaiting(_)) {
            self.pair.enable_nagle(speaker)?;
        }
        let Ok(received) = self.say(speaker, &case.segments(line.as_bytes()))? else { return Ok(Outcome::Hangs) };
        // The address to connect to is read from the received line, as the other end would.
        let seen_from = self.topology.public.of(self.family);
        let lines =
            received.strip_prefix(case.before).and_then(|rest| rest.strip_suffix(&format!("\r\n{}", case.behind)));
        let Some(to) = lines.and_then(|line| read(case.mode, line, seen_from)) else {
            return Ok(Outcome::NotRewritten);
        };
        if to.ip() != seen_from {
            return Ok(Outcome::NotRewritten);
        }
        let Ok(mut data) = connecting.namespace.run(|| TcpStream::connect_timeout(&to, lab::allow(SHORT)))? else {
            return Ok(Outcome::NoData);
        };
        let (mut theirs, _) = listener.accept().expect("the kernel has it");
        data.write_all(b"data").expect("it stands");
        drop(data);
        let mut content = String::new();
        theirs.read_to_string(&mut content).expect("it ends");
        assert_eq!(content, "data");
        // The session continues on both sides, with shifted sequence numbers.
        for (speaker, line) in [(speaker, "NOOP\r\n"), (other, "200 Yes.\r\n")].repeat(2) {
            match self.say(speaker, &[line.as_bytes()])? {
                Ok(received) => assert_eq!(received, line),
                Err(Lost) => return Ok(Outcome::Hangs),
            }
        }
        Ok(Outcome::Works)
    }
}

fn start(helper: Helper, topology: &NatTopology) -> Result<Vec<Help>> {
    let help = |gateway: &lab::nat::Gateway| {
        gateway.namespace.nft(gateway.rules.text)?;
        helper.start(&gateway.namespace, &format!("{}{ALL_MODES}", gateway.rules.policy()))
    };
    topology.gateways.iter().map(help).collect()
}

fn announcement(mode: Mode, address: SocketAddr) -> String {
    let port = address.port();
    let numbers = format!("{},{},{}", address.ip().to_string().replace('.', ","), port / 256, port % 256);
    let long = || match address.ip() {
        IpAddr::V4(_) => {
            format!("4,4,{},2,{},{}", numbers.rsplitn(3, ',').last().expect("six"), port / 256, port % 256)
        }
        IpAddr::V6(address) => {
            let bytes: Vec<_> = address.octets().iter().map(u8::to_string).collect();
            format!("6,16,{},2,{},{}", bytes.join(","), port / 256, port % 256)
        }
    };
    match mode {
        Mode::Lprt => format!("LPRT {}", long()),
        Mode::Lpsv => format!("228 Entering Long Passive Mode ({}).", long()),
        Mode::Port => format!("PORT {numbers}"),
        Mode::Eprt => format!("EPRT |1|{}|{port}|", address.ip()),
        Mode::Epsv => format!("229 Entering Extended Passive Mode (|||{port}|)"),
        _ => format!("227 Entering Passive Mode ({numbers})."),
    }
}

/// The address in a line of that mode; one without goes to `server`.
fn read(mode: Mode, line: &str, server: IpAddr) -> Option<SocketAddr> {
    match mode {
        Mode::Epsv => Some(SocketAddr::new(server, line.split_once("(|||")?.1.strip_suffix("|)")?.parse().ok()?)),
        Mode::Eprt => {
            let mut fields = line.strip_prefix("EPRT |1|")?.split('|');
            Some(SocketAddr::new(fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        }
        Mode::Lprt | Mode::Lpsv => {
            let begin = if mode == Mode::Lprt { "LPRT " } else { "228 Entering Long Passive Mode (" };
            let list = line.strip_prefix(begin)?.trim_end_matches([')', '.']);
            let numbers: Vec<u8> = list.split(',').map(str::parse).collect::<std::result::Result<_, _>>().ok()?;
            match numbers[..] {
                [4, 4, a, b, c, d, 2, high, low] => {
                    Some(SocketAddr::new([a, b, c, d].into(), u16::from_be_bytes([high, low])))
                }
                [6, 16, ref rest @ .., 2, high, low] => {
                    let address = Ipv6Addr::from(<[u8; 16]>::try_from(rest).ok()?);
                    Some(SocketAddr::new(address.into(), u16::from_be_bytes([high, low])))
                }
                _ => None,
            }
        }
        Mode::Port | Mode::Pasv => {
            let begin = if mode == Mode::Port { "PORT " } else { "227 Entering Passive Mode (" };
            let numbers: Vec<u8> = line
                .strip_prefix(begin)?
                .trim_end_matches([')', '.'])
                .split(',')
                .map(str::parse)
                .collect::<std::result::Result<_, _>>()
                .ok()?;
            let [a, b, c, d, high, low] = numbers[..] else { return None };
            Some(SocketAddr::new([a, b, c, d].into(), u16::from_be_bytes([high, low])))
        }
    }
}

/// Each case has its own namespaces; invalid TCP at an end fails the test.
///
/// With Pinhole, each recording of an inside end is compared with that of the outside end, afterwards: while others hold
/// their dialogues, there is no time to lose.
fn hold_all(helper: Helper, cases: &[Case]) -> Result<Vec<(Case, Outcome)>> {
    let hold = move |case: Case| {
        let mut fixture = NatDialogueFixture::new(helper, &case)?;
        let recorder = fixture.topology.record_packets()?;
        let outcome = fixture.hold(&case)?;
        let report = recorder.end()?;
        let problems = report.problems();
        println!("{case:90} {helper}: {outcome}");
        assert!(outcome != Outcome::Works || problems.is_empty(), "{case}: {}", problems.join("\n"));
        let recorded = (outcome == Outcome::Works).then(|| Recorded::new(&case, &fixture.topology, report));
        Ok((case, outcome, recorded))
    };
    // With other helpers the dialogues mostly wait. Pinhole has work to do, and with so many dialogues a slow machine
    // would be too busy to answer retransmissions in time.
    let at_once = if helper == Helper::Pinhole { lab::share_of(160) } else { cases.len() };
    let mut held = Vec::new();
    for cases in cases.chunks(at_once) {
        let some = std::thread::scope(|scope| {
            let threads: Vec<_> = cases.iter().map(|&case| scope.spawn(move || hold(case))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Result<Vec<_>>>()
        })?;
        held.extend(some);
    }
    if helper == Helper::Pinhole {
        // tshark takes its time.
        held.iter()
            .take(lab::share_of(held.len()))
            .try_for_each(|(case, _, recorded)| recorded.iter().try_for_each(|one| one.assert_replayed(case)))?;
    }
    Ok(held.into_iter().map(|(case, outcome, _)| (case, outcome)).collect())
}

/// The recordings of both ends, and a description of the NAT between them.
struct Recorded {
    report: RecordedPackets,
    nat: String,
}

impl Recorded {
    fn new(case: &Case, topology: &NatTopology, report: RecordedPackets) -> Self {
        let of_both = |addresses: &Addresses| format!("[{}, \"{}\"]", addresses.v4, addresses.v6);
        let (client, server, public) = (&topology.client.addresses, &topology.server.addresses, &topology.public);
        let nat = if case.mode.is_active() {
            format!("inside: {}\noutside: {}\n", of_both(client), of_both(public))
        } else {
            let four = format!("{}:21 -> {}:21", public.v4, server.v4);
            let six = format!("[{}]:21 -> [{}]:21", public.v6, server.v6);
            format!("inside: {}\ndnat: [\"{four}\", \"{six}\"]\n", of_both(server))
        };
        Self { report, nat }
    }

    /// Has `pinhole replay` translate the recording of the inside end, and compares the result with the recording of
    /// the outside end.
    fn assert_replayed(&self, case: &Case) -> Result<()> {
        let folder = daemon::new_folder();
        self.report.write(&folder, "real")?;
        let (inside, outside) = if case.mode.is_active() { ("client", "server") } else { ("server", "client") };
        // The recording begins when the control connection is open already.
        let policy = format!("pickup: trust\n{ALL_MODES}");
        let files = [("nat.yaml", &self.nat), ("policy.yaml", &policy)];
        files.iter().for_each(|(name, text)| std::fs::write(folder.join(name), text).expect("it can be written"));
        let (recorded, written) = (folder.join(format!("real-{inside}.pcap")), folder.join("written.pcap"));
        let mut replay = Command::new(daemon::PROGRAM);
        replay.arg("replay").arg("--nat").arg(folder.join("nat.yaml")).arg("--policy").arg(folder.join("policy.yaml"));
        let output = replay.arg("--write").arg(&written).arg(&recorded).output().expect("it can be started");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(
            said.contains("1 used, 0 expired, 0 closed; 0 announcements refused; 0 connections blocked"),
            "{case}: {said}"
        );
        let real = folder.join(format!("real-{outside}.pcap"));
        let streams = |path| recording::streams(&recording::packets(path));
        assert_eq!(streams(&written), streams(&real), "{case}");
        let whole = matches!(case.cut, Cut::Whole);
        if whole || matches!(case.cut, Cut::EveryByte) {
            recording::assert_nothing_new(&recorded, &written, if whole { &[] } else { recording::IN_PIECES });
        }
        let _ = std::fs::remove_dir_all(folder);
        Ok(())
    }
}

#[test]
fn the_kernel_helper_rewrites_unsplit_lines() {
    let outcomes = hold_all(Helper::Kernel, &cases()).unwrap_or_else(|error| panic!("{error}"));
    let mut table = "| dialogue | kernel |\n|---|---|\n".to_owned();
    table.extend(outcomes.iter().map(|(case, outcome)| format!("| {case} | {outcome} |\n")));
    assert_documented("rewriting", &table);
}

#[test]
#[ignore = "needs a kernel with nfnetlink_cthelper, and conntrackd: `make test-vm` runs it"]
fn conntrackd_rewrites_less_than_pinhole() {
    let outcomes = hold_all(Helper::Conntrackd, &cases()).unwrap_or_else(|error| panic!("{error}"));
    let mut table = "| dialogue | conntrackd |\n|---|---|\n".to_owned();
    table.extend(outcomes.iter().map(|(case, outcome)| format!("| {case} | {outcome} |\n")));
    assert_documented("conntrackd-rewriting", &table);
}

#[test]
fn pinhole_rewrites_lines_however_they_are_split() {
    let outcomes = hold_all(Helper::Pinhole, &cases()).unwrap_or_else(|error| panic!("{error}"));
    let failed: Vec<_> = outcomes.iter().filter(|(_, outcome)| *outcome != Outcome::Works).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn pinhole_rewrites_uncommon_forms() {
    let outcomes = hold_all(Helper::Pinhole, &long_cases()).unwrap_or_else(|error| panic!("{error}"));
    let failed: Vec<_> = outcomes.iter().filter(|(_, outcome)| *outcome != Outcome::Works).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Transfers in one session whose every line changes its length: the outside address is longer than the inside one.
/// Where the daemon helps it is killed each time that many have been made, and started again.
fn transfer_many(helper: Helper, nat: Nat, mode: Mode, transfers: usize, killed_every: Option<usize>) {
    const CONTENT: &[u8] = b"Files are data.\r\nPORT 10,21,1,10,0,22\r\n";
    let topology = NatTopology::new(nat).unwrap_or_else(|error| panic!("{error}"));
    let mut helpers = start(helper, &topology).unwrap_or_else(|error| panic!("{error}"));
    let family = if mode == Mode::Eprt { Family::V6 } else { Family::V4 };
    let listens = SocketAddr::new(topology.server.addresses.of(family), 21);
    let options = MiniOptions { one_listener: true, ..MiniOptions::default() };
    let server = MiniServer::start(&topology.server.namespace, listens, options).expect("it listens");
    server.place("readme.txt", CONTENT);
    let destination = SocketAddr::new(topology.target.of(family), 21);
    let recorder = topology.record_packets().unwrap_or_else(|error| panic!("{error}"));
    let talk = || {
        let mut client = MiniClient::log_in(destination, TIMEOUT)?;
        let mut content = Vec::new();
        for transfer in 1..=transfers {
            if killed_every.is_some_and(|every| transfer % every == 0) {
                for daemon in helpers.iter_mut().filter_map(Help::daemon) {
                    daemon.kill()?;
                    daemon.restart()?;
                }
            }
            content.clear();
            client.fetch(mode, "RETR readme.txt", &mut content)?;
            assert_eq!(content, CONTENT);
        }
        client.quit()
    };
    let done = topology.client.namespace.run(talk).and_then(|done| done);
    done.unwrap_or_else(|error| panic!("{helper}, {nat}, {mode}: {error}"));
    let problems = recorder.end().unwrap_or_else(|error| panic!("{error}")).problems();
    assert!(problems.is_empty(), "{helper}, {nat}, {mode}: {}", problems.join("\n"));
}

const MANY: [(Nat, Mode); 3] = [(Nat::Masquerade, Mode::Port), (Nat::Masquerade, Mode::Eprt), (Nat::Dnat, Mode::Pasv)];

#[test]
fn the_kernel_helper_rewrites_2000_lines_of_a_session() {
    for (nat, mode) in MANY {
        transfer_many(Helper::Kernel, nat, mode, lab::share_of(2_000), None);
    }
}

#[test]
fn pinhole_rewrites_two_thousand_lines_of_a_session() {
    for (nat, mode) in MANY {
        transfer_many(Helper::Pinhole, nat, mode, lab::share_of(2_000), None);
    }
}

#[test]
fn transfers_work_after_pinhole_is_killed_between_them() {
    for (nat, mode) in MANY {
        let transfers = lab::share_of(100).max(10);
        transfer_many(Helper::Pinhole, nat, mode, transfers, Some(5));
    }
}
