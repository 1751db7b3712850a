//! Runs a case, and compares the bytes that the reader read with those that the socket read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use lab::Family;
use pinhole::core::net::{Direction, Seq};
use pinhole::core::policy::Policy;
use rustix::net::sockopt::{set_socket_oobinline, set_tcp_quickack};

use crate::case::{
    Ack, Case, CraftedSegment, Defect, Extension, FILLER, Role, Step, TimestampOption, announcement, announces, flag,
    text,
};
use crate::network::{CONTROL, Network, host};
use crate::packet::{Raw, option, read};
use crate::reader::{Opened, Passed, TrackerUnderTest};

/// Ports that are announced when all is over.
const PROBES: [u16; 2] = [65_001, 65_002];

/// The peer's first timestamp.
const FIRST_STAMP: u32 = 1 << 20;

/// How far from the stream a segment may begin so that the rest of the case fills up to its end.
const NEAR: i64 = 4000;

/// How a case ended, if nothing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Outcome {
    /// Both read the same bytes, and a new announcement opens.
    OpensNewPinhole,
    /// Both read the same, and nothing opens any more.
    RefusesNewPinhole,
    /// The connection is over, and nothing opens any more.
    ConnectionClosed,
    /// They read different things, and nothing opens any more.
    StreamsDiffer,
}

impl Outcome {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OpensNewPinhole => "open",
            Self::RefusesNewPinhole => "shut",
            Self::ConnectionClosed => "over",
            Self::StreamsDiffer => "tainted",
        }
    }
}

/// The description of the difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The class of it.
    pub(crate) class: &'static str,
    pub(crate) message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class, self.message)
    }
}

struct Run<'a> {
    network: &'a Network,
    case: &'a Case,
    reader: TrackerUnderTest<'a>,
    socket: Option<TcpStream>,
    /// The bytes that the socket's application has read.
    received: Vec<u8>,
    /// The kernel has reported the end of the stream to the application.
    is_over: bool,
    peer: SocketAddr,
    host: SocketAddr,
    /// The place of the peer's first byte.
    first: Seq,
    /// Where the peer's next segment begins, counted from there; and where the steps began.
    cursor: i64,
    base: i64,
    /// The end of the bytes that the peer has sent near its stream.
    farthest: i64,
    /// The places of bytes that were sent as urgent.
    urgent: BTreeSet<i64>,
    /// The place of the kernel's first byte, and of its next.
    kernel_first: Option<Seq>,
    kernel_next: Seq,
    kernel_acks: Option<Seq>,
    has_kernel_acked: bool,
    kernel_stamp: u32,
    stamp: u32,
    /// The kernel's bytes that went on to the peer.
    emitted: BTreeMap<i64, u8>,
    /// A segment with a wrong checksum has passed the reader.
    has_passed_damaged: bool,
    log: Option<Vec<String>>,
}

/// Carries out a case.
pub(crate) fn run(network: &Network, policy: &Policy, case: &Case) -> Result<Outcome, Failure> {
    Run::new(network, policy, case, false).judge().0
}

/// The same, and all packets.
pub(crate) fn explain(network: &Network, policy: &Policy, case: &Case) -> (Result<Outcome, Failure>, String) {
    Run::new(network, policy, case, true).judge()
}

impl<'a> Run<'a> {
    fn new(network: &'a Network, policy: &'a Policy, case: &'a Case, logs: bool) -> Self {
        let new = network.new_peer(case.family);
        // The kernel's ports are its own choice where it connects.
        let (peer_port, host_port) = match case.role {
            Role::Client => (new.port(), CONTROL),
            Role::Server => (CONTROL, 0),
        };
        Self {
            network,
            case,
            reader: TrackerUnderTest::new(policy),
            socket: None,
            received: Vec::new(),
            is_over: false,
            peer: SocketAddr::new(new.ip(), peer_port),
            host: SocketAddr::new(host(case.family), host_port),
            first: Seq::new(case.first) + 1,
            cursor: 0,
            base: 0,
            farthest: 0,
            urgent: BTreeSet::new(),
            kernel_first: None,
            kernel_next: Seq::default(),
            kernel_acks: None,
            has_kernel_acked: false,
            kernel_stamp: 0,
            stamp: FIRST_STAMP,
            emitted: BTreeMap::new(),
            has_passed_damaged: false,
            log: logs.then(Vec::new),
        }
    }

    fn direction(&self) -> Direction {
        match self.case.role {
            Role::Client => Direction::FromClient,
            Role::Server => Direction::FromServer,
        }
    }

    fn judge(mut self) -> (Result<Outcome, Failure>, String) {
        if !self.begin() {
            return (Ok(Outcome::ConnectionClosed), String::new());
        }
        self.steps(&self.case.steps);
        self.note(|_| "what is missing is filled up".to_owned());
        self.fill();
        let before = self.reader.record.opened.len();
        self.probe();
        let outcome = self.compare(before);
        self.note(|run| format!("refused: {:?}", run.reader.record.refused));
        let log = self.log.take().unwrap_or_default().join("\n");
        (outcome, log)
    }

    fn note(&mut self, text: impl FnOnce(&Self) -> String) {
        if self.log.is_some() {
            let text = text(self);
            self.log.iter_mut().for_each(|log| log.push(text.clone()));
        }
    }

    /// The handshake, with the peer's segments in it, and the login. Returns whether the connection was established.
    fn begin(&mut self) -> bool {
        // Packets of earlier cases.
        while self.network.read().is_some() {}
        while self.network.accept(self.case.family).is_some() {}
        match self.case.role {
            Role::Client => {
                self.network.buffer(self.case.buffer);
                self.opens(flag::SYN);
                self.steps(&self.case.early_steps);
                self.send(&CraftedSegment::default());
                self.socket = self.network.accept(self.case.family);
            }
            Role::Server => {
                self.socket = Some(Network::connect(self.peer, self.case.buffer));
                let local = self.socket.as_ref().and_then(|socket| socket.local_addr().ok());
                let Some(local) = local.filter(|local| local.port() != 0) else { return false };
                self.host.set_port(local.port());
                self.relay_from_kernel();
                self.steps(&self.case.early_steps);
                self.opens(flag::SYN | flag::ACK);
            }
        }
        self.reader.handshake_is_over();
        let Some(socket) = &self.socket else { return false };
        set_socket_oobinline(socket, self.case.oob_inline).expect("a socket");
        match self.case.role {
            Role::Client => {
                self.says(b"220 ready\r\n");
                self.send_text(b"USER ftp\r\n");
                self.says(b"230 in\r\n");
            }
            Role::Server => {
                self.send_text(b"220 ready\r\n");
                self.says(b"USER ftp\r\n");
                self.send_text(b"230 in\r\n");
                self.says(self.passive());
            }
        }
        self.send(&CraftedSegment::default());
        self.base = self.cursor;
        true
    }

    fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(step);
        }
    }

    /// The peer's SYN.
    fn opens(&mut self, flags: u8) {
        let mut options = [option::mss(1460), option::sack_permitted()].concat();
        if self.case.timestamps {
            options.extend(option::timestamps(self.stamp, self.kernel_stamp));
        }
        let seq = self.first.number().wrapping_sub(1);
        self.send_raw(seq, self.kernel_next.number(), flags, 64_000, 0, options, b"", &Defect::None);
    }

    fn step(&mut self, step: &Step) {
        self.note(|_| format!("{step:?}"));
        match step {
            Step::Sends(sent) => self.send(sent),
            Step::Says(line) => {
                let lines: [&[u8]; 6] = match (self.case.role, self.case.family) {
                    (Role::Client, _) => {
                        [b"200 ok\r\n", b"500 no\r\n", b"230 in\r\n", b"221 bye\r\n", b"200-\r\n", b"20"]
                    }
                    (Role::Server, Family::V4) => {
                        [b"PASV\r\n", b"NOOP\r\n", b"PASV\r\nPASV\r\n", b"QUIT\r\n", b"PA", b"SV\r\n"]
                    }
                    (Role::Server, Family::V6) => {
                        [b"EPSV\r\n", b"NOOP\r\n", b"EPSV\r\nEPSV\r\n", b"QUIT\r\n", b"EP", b"SV\r\n"]
                    }
                };
                self.says(lines[usize::from(*line)]);
            }
            Step::Reads(most) => {
                self.reads(usize::from(*most));
                self.relay_from_kernel();
            }
            Step::Stops => {
                let _ = self.socket.as_ref().map(|socket| socket.shutdown(Shutdown::Write));
                self.relay_from_kernel();
            }
            Step::Waits(seconds) => {
                let passed = self.reader.waits(*seconds);
                self.pass(passed);
                self.relay_from_kernel();
            }
        }
    }

    /// The command that asks the peer for its port.
    fn passive(&self) -> &'static [u8] {
        match self.case.family {
            Family::V4 => b"PASV\r\n",
            Family::V6 => b"EPSV\r\n",
        }
    }

    fn send_text(&mut self, payload: &[u8]) {
        let seq = (self.first + self.cursor as usize).number();
        let options = self.stamps(TimestampOption::Right);
        self.cursor += payload.len() as i64;
        // The reader may keep a byte that the peer sent ahead while the connection opened.
        self.farthest = self.farthest.max(self.cursor);
        self.send_raw(seq, self.kernel_next.number(), flag::ACK, 64_000, 0, options, payload, &Defect::None);
    }

    fn send(&mut self, sent: &CraftedSegment) {
        let place = self.cursor + i64::from(sent.offset);
        let payload = text(self.case.role, self.peer.ip(), sent.text, place - self.base, usize::from(sent.length));
        let end = place + i64::from(sent.length);
        let seq = (self.first + place as usize).number();
        let ack = match sent.ack {
            Ack::Right => self.kernel_next.number(),
            Ack::Behind(by) => self.kernel_next.number().wrapping_sub(by),
            Ack::Ahead(by) => self.kernel_next.number().wrapping_add(by),
        };
        let options = self.stamps(sent.stamp);
        let mut flags = sent.flags;
        if let Some(pointer) = sent.urgent {
            flags |= flag::URG;
            if sent.defect != Defect::Unreachable {
                // Linux: the byte before the pointer. The standard: the byte at the pointer.
                self.urgent.extend([place + i64::from(pointer) - 1, place + i64::from(pointer)]);
            }
        }
        if place <= self.cursor + NEAR {
            self.farthest = self.farthest.max(end);
        }
        let is_unambiguous = sent.flags & (flag::ACK | flag::SYN | flag::RST) == flag::ACK
            && sent.defect == Defect::None
            && sent.ack == Ack::Right
            && matches!(sent.stamp, TimestampOption::Right | TimestampOption::Missing)
            && place <= self.cursor;
        if is_unambiguous {
            self.cursor = self.cursor.max(end);
        }
        self.send_raw(seq, ack, flags, sent.window, sent.urgent.unwrap_or(0), options, &payload, &sent.defect);
    }

    /// The timestamps option, with its defect.
    fn stamps(&mut self, stamp: TimestampOption) -> Vec<u8> {
        let echo = self.kernel_stamp;
        self.stamp = self.stamp.wrapping_add(1);
        let right = option::timestamps(self.stamp, echo);
        let stale = option::timestamps(self.stamp.wrapping_sub(1000), echo);
        match stamp {
            TimestampOption::Right if self.case.timestamps => right,
            TimestampOption::Right | TimestampOption::Missing => Vec::new(),
            TimestampOption::Stale(by) => option::timestamps(self.stamp.wrapping_sub(by), echo),
            TimestampOption::Ahead(by) => {
                // Twice as far would be in the past.
                let is_far_ahead = self.stamp > FIRST_STAMP + (1 << 29);
                self.stamp = self.stamp.wrapping_add(if is_far_ahead { 1 } else { by });
                option::timestamps(self.stamp, echo)
            }
            TimestampOption::TwiceStaleFirst => [stale, right].concat(),
            TimestampOption::TwiceStaleLast => [right, stale].concat(),
            TimestampOption::StaleBehindEnd => [&right[..], &[0, 0, 0, 0], &stale[..]].concat(),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a segment")]
    fn send_raw(
        &mut self,
        seq: u32,
        ack: u32,
        flags: u8,
        window: u16,
        urgent: u16,
        mut options: Vec<u8>,
        payload: &[u8],
        defect: &Defect,
    ) {
        match defect {
            Defect::Md5 => options.extend(option::md5()),
            Defect::Ao => options.extend(option::ao()),
            Defect::BadOptions => options.extend([8, 40, 1, 1]),
            Defect::None | Defect::Unreachable | Defect::Checksum | Defect::Padding | Defect::Extension(_) => {}
        }
        if options.len() > 40 {
            options.truncate(40);
        }
        let packet = Raw {
            source: self.peer,
            destination: self.host,
            seq,
            ack,
            flags,
            window,
            urgent,
            options,
            payload,
            has_right_checksum: *defect != Defect::Checksum,
            padding: usize::from(*defect == Defect::Padding),
            extension: match defect {
                // The reader gets packets without it, because conntrack has removed it.
                Defect::Extension(Extension::Fragment) if !self.network.has_conntrack() => None,
                Defect::Extension(extension) => Some(*extension),
                _ => None,
            },
        };
        let packet = packet.bytes();
        for packet in self.network.tracked_from_peer(packet) {
            let passed = self.reader.takes(packet, *defect == Defect::Unreachable);
            self.has_passed_damaged |= *defect == Defect::Checksum && !passed.is_empty();
            self.pass(passed);
        }
        self.relay_from_kernel();
    }

    fn says(&mut self, line: &[u8]) {
        // The other end may have closed the connection.
        let _ = self.socket.as_mut().map(|socket| socket.write(line));
        self.relay_from_kernel();
        self.send(&CraftedSegment::default());
    }

    /// Lets packets go where they are going.
    fn pass(&mut self, passed: Vec<Passed>) {
        for Passed { packet, is_lost } in passed {
            let Some(fields) = read(&packet) else { continue };
            let is_peers = fields.source == self.peer.port() && fields.destination == self.host.port();
            self.note(|run| run.shown(&packet, is_lost));
            if fields.flags & (flag::RST | flag::FIN) != 0 && !is_lost {
                self.reader.record.is_closing = true;
            }
            if !is_peers {
                self.receive(&packet);
            } else if !is_lost {
                self.network.write(&packet);
            }
        }
    }

    /// A packet, for people.
    fn shown(&self, packet: &[u8], is_lost: bool) -> String {
        let Some(fields) = read(packet) else { return String::new() };
        let is_peers = fields.source == self.peer.port();
        let (who, start, other) = if is_peers {
            ("peer  ", Some(self.first), self.kernel_first)
        } else {
            ("kernel", self.kernel_first, Some(self.first))
        };
        let from =
            |start: Option<Seq>, place: u32| start.map_or(i64::from(place), |start| i64::from(Seq::new(place) - start));
        let flags: String = "FSRPAU"
            .chars()
            .enumerate()
            .filter(|(bit, _)| fields.flags >> bit & 1 != 0)
            .map(|(_, letter)| letter)
            .collect();
        format!(
            "    {who} {flags:<5} seq {} ack {} stamp {:?} {:?}{}",
            from(start, fields.seq),
            from(other, fields.ack),
            fields.stamp,
            String::from_utf8_lossy(&fields.payload),
            if is_lost { " (does not arrive)" } else { "" }
        )
    }

    /// The peer gets a packet of the kernel's.
    fn receive(&mut self, packet: &[u8]) {
        let Some(fields) = read(packet) else { return };
        let seq = Seq::new(fields.seq);
        if fields.flags & flag::SYN != 0 {
            self.kernel_first = Some(seq + 1);
            self.kernel_next = seq + 1;
        }
        let Some(first) = self.kernel_first else { return };
        let place = i64::from(seq - first);
        for (offset, byte) in fields.payload.iter().enumerate() {
            self.emitted.entry(place + offset as i64).or_insert(*byte);
        }
        if fields.flags & flag::RST == 0 {
            let fin = usize::from(fields.flags & flag::FIN != 0);
            self.kernel_next = self.kernel_next.later(seq + fields.payload.len() + fin);
            if fields.flags & flag::ACK != 0 {
                let ack = Seq::new(fields.ack);
                self.kernel_acks = Some(self.kernel_acks.map_or(ack, |before| before.later(ack)));
            }
        }
        self.kernel_stamp = fields.stamp.unwrap_or(self.kernel_stamp);
    }

    /// Reads the packets that the kernel has sent.
    fn relay_from_kernel(&mut self) {
        while let Some(packet) = self.network.read() {
            let Some(fields) = read(&packet) else { continue };
            // Packets of earlier cases may still come.
            if fields.receiver != self.peer.ip()
                || fields.source != self.host.port()
                || fields.destination != self.peer.port()
            {
                continue;
            }
            let is_first = fields.flags & flag::SYN != 0 || !self.has_kernel_acked;
            if fields.flags & flag::ACK != 0 && fields.flags & flag::RST == 0 && is_first {
                // The kernel has accepted a SYN with this sequence number, which may not be the intended one.
                self.has_kernel_acked = true;
                self.first = Seq::new(fields.ack);
                (self.cursor, self.farthest, self.kernel_acks) = (0, 0, None);
            }
            for packet in self.network.tracked_from_kernel(packet) {
                let passed = self.reader.takes(packet, false);
                self.pass(passed);
            }
        }
    }

    /// The socket's application reads.
    fn reads(&mut self, most: usize) {
        let Some(socket) = &mut self.socket else { return };
        let mut left = most;
        let mut buffer = [0; 4096];
        while left > 0 && !self.is_over {
            let room = left.min(buffer.len());
            match socket.read(&mut buffer[..room]) {
                Ok(0) => self.is_over = true,
                Ok(length) => {
                    self.received.extend(&buffer[..length]);
                    left -= length;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => return,
                Err(_) => self.is_over = true,
            }
        }
    }

    /// The application reads all, and the kernel acknowledges it at once.
    fn read_to_end(&mut self) {
        self.reads(usize::MAX);
        if let Some(socket) = &self.socket {
            let _ = set_tcp_quickack(socket, true);
        }
        self.relay_from_kernel();
    }

    fn acknowledged(&self) -> i64 {
        self.kernel_acks.map_or(0, |acks| i64::from(acks - self.first))
    }

    /// How far the reader has read the peer.
    fn read_up_to(&self) -> i64 {
        let ends = self.reads_of(self.direction(), self.first).map(|(place, bytes)| place + bytes.len() as i64);
        ends.max().unwrap_or(0)
    }

    /// The bytes that the reader read in a direction, with their position.
    fn reads_of(&self, direction: Direction, first: Seq) -> impl Iterator<Item = (i64, &[u8])> {
        let reads = self.reader.record.reads.iter().filter(move |(_, of, ..)| *of == direction);
        reads.map(move |(.., place, bytes)| (i64::from(*place - first), bytes.as_slice()))
    }

    /// The peer sends everything once more that the kernel has not acknowledged, but with other bytes in it.
    fn fill(&mut self) {
        let mut without_progress = 0;
        let limit = self.cursor + 2 * NEAR;
        while without_progress < 3 {
            self.read_to_end();
            let from = self.acknowledged();
            let to = self.farthest.max(self.read_up_to()).min(limit);
            if self.is_over || from >= to {
                break;
            }
            self.cursor = from;
            let length = u16::try_from((to - from).min(400)).expect("bounded");
            self.send(&CraftedSegment { text: FILLER, length, ..CraftedSegment::default() });
            self.read_to_end();
            without_progress = if self.acknowledged() > from { 0 } else { without_progress + 1 };
        }
        self.cursor = self.acknowledged();
    }

    /// The peer announces a port, where the socket expects its next byte and where the reader does.
    fn probe(&mut self) {
        for port in PROBES {
            self.note(|_| format!("announces {port}"));
            let is_first = port == PROBES[0];
            // The end of a line that had begun.
            self.cursor = if is_first { self.acknowledged() } else { self.read_up_to() };
            self.send_text(b"\r\n");
            self.read_to_end();
            if self.case.role == Role::Server {
                self.says(self.passive());
            }
            self.cursor = if is_first { self.acknowledged() } else { self.read_up_to() };
            self.send_text(announcement(self.case.role, self.peer.ip(), port).as_bytes());
            self.read_to_end();
            if self.reader.record.opened.iter().any(|opened| opened.port == port) {
                break;
            }
        }
    }

    fn compare(&mut self, before: usize) -> Result<Outcome, Failure> {
        if self.has_passed_damaged {
            let message = "the reader let a segment with a wrong checksum pass".to_owned();
            return Err(Failure { class: "passes what the socket ignores", message });
        }
        if self.network.accept(self.case.family).is_some() {
            // The peer has ended the connection and opened another one between the same ports.
            return Ok(Outcome::ConnectionClosed);
        }
        let mut reading = BTreeMap::new();
        let mut conflict = None;
        for (place, bytes) in self.reads_of(self.direction(), self.first) {
            for (offset, byte) in bytes.iter().enumerate() {
                let place = place + offset as i64;
                if *reading.entry(place).or_insert(*byte) != *byte || place < 0 {
                    conflict = Some(place);
                }
            }
        }
        let stream: Vec<u8> = (0..).map_while(|place| reading.get(&place).copied()).collect();
        let alignment = align(&stream, &self.received, &self.urgent);
        let (has_probe_opened, opened) = {
            let opened = &self.reader.record.opened;
            (opened.len() > before, opened.clone())
        };
        for (index, opened) in opened.iter().enumerate() {
            self.check_opened(*opened, index >= before, &stream, &alignment)?;
        }
        let mut difference = None;
        if let Some(place) = conflict {
            difference =
                Some(format!("the reader read the byte at {place} twice, and differently, or before the stream"));
        } else if reading.len() != stream.len() {
            difference = Some(format!("the reader passed over bytes at {}", stream.len()));
        } else if alignment.read != stream.len() || alignment.received != self.received.len() {
            difference = Some(format!(
                "behind {} bytes the reader read {:?}, the socket {:?}",
                alignment.received,
                String::from_utf8_lossy(&stream[alignment.read..]),
                String::from_utf8_lossy(&self.received[alignment.received..]),
            ));
        } else if let Some(text) = self.outgoing_difference() {
            difference = Some(text);
        }
        match difference {
            Some(message) if has_probe_opened => Err(Failure { class: "differs and opens", message }),
            Some(_) if self.is_over => Ok(Outcome::ConnectionClosed),
            Some(_) => Ok(Outcome::StreamsDiffer),
            None if self.is_over => Ok(Outcome::ConnectionClosed),
            None if has_probe_opened => Ok(Outcome::OpensNewPinhole),
            None => Ok(Outcome::RefusesNewPinhole),
        }
    }

    /// An announcement that opened a pinhole must be a line of its own in the socket's bytes.
    fn check_opened(
        &self,
        opened: Opened,
        is_probe: bool,
        stream: &[u8],
        alignment: &Alignment,
    ) -> Result<(), Failure> {
        let Opened { port, while_closing } = opened;
        let role = self.case.role;
        let fail = |class, message: String| {
            let message = format!("port {port} opened: {message}");
            Err(Failure { class, message })
        };
        let Some((at, end)) = line_that_announces(role, self.case.family, stream, port) else {
            let text = String::from_utf8_lossy(stream);
            return fail("opens what is no line of the stream", format!("the reader read {text:?}"));
        };
        // Without the end of the line in front of it, it is no line of its own.
        let from = at.saturating_sub(if role == Role::Client { 1 } else { 2 });
        let is_skipped = alignment.skipped.iter().any(|place| (from..end).contains(place));
        if end <= alignment.read && !is_skipped {
            return Ok(());
        }
        let is_under_way = end > alignment.read && alignment.received == self.received.len();
        if is_under_way && self.is_over && !while_closing && !is_probe {
            return Ok(());
        }
        let class = match (is_probe, self.is_over) {
            (false, _) => "opens what the socket did not read",
            (true, false) => "differs, opens what the socket does not read",
            (true, true) => "opens behind the end",
        };
        fail(class, format!("the socket read {:?}", String::from_utf8_lossy(&self.received)))
    }

    /// How the bytes that the reader read of the kernel's stream differ from those sent to the peer.
    fn outgoing_difference(&self) -> Option<String> {
        let first = self.kernel_first?;
        let mut reading = BTreeMap::new();
        for (place, bytes) in self.reads_of(self.direction().opposite(), first) {
            for (offset, byte) in bytes.iter().enumerate() {
                reading.entry(place + offset as i64).or_insert(*byte);
            }
        }
        let differing = self.emitted.iter().find(|(place, byte)| reading.get(*place) != Some(*byte));
        if let Some((place, _)) = differing {
            return Some(format!("the reader did not read the kernel's byte at {place}"));
        }
        let extra = reading.keys().find(|place| !self.emitted.contains_key(*place));
        extra.map(|place| format!("the reader read a byte at {place} that the kernel did not send"))
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        // It resets the connection.
        self.socket = None;
        while self.network.read().is_some() {}
    }
}

/// The position of the line that announces this port. A client's line ends with LF, a server's with CR LF.
fn line_that_announces(role: Role, family: Family, stream: &[u8], port: u16) -> Option<(usize, usize)> {
    let end_of_line: &[u8] = match role {
        Role::Client => b"\n",
        Role::Server => b"\r\n",
    };
    let mut at = 0;
    while at < stream.len() {
        let length = stream[at..].windows(end_of_line.len()).position(|window| window == end_of_line);
        let end = length.map_or(stream.len(), |length| at + length + end_of_line.len());
        if announces(role, family, &stream[at..end], port) {
            return Some((at, end));
        }
        at = end;
    }
    None
}

/// How far two streams are the same, if some urgent bytes were not read in line.
struct Alignment {
    /// The number of the reader's bytes.
    read: usize,
    /// The number of the socket's bytes.
    received: usize,
    /// Which of the reader's bytes the socket did not read.
    skipped: Vec<usize>,
}

fn align(stream: &[u8], received: &[u8], urgent: &BTreeSet<i64>) -> Alignment {
    // What was skipped, by how many that are: all that is possible so far.
    let mut possible: Vec<Vec<usize>> = vec![Vec::new()];
    let mut best = Alignment { read: 0, received: 0, skipped: Vec::new() };
    for (place, byte) in stream.iter().enumerate() {
        let mut next: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for skipped in possible {
            if received.get(place - skipped.len()) == Some(byte) {
                next.entry(skipped.len()).or_insert_with(|| skipped.clone());
            }
            if urgent.contains(&(place as i64)) {
                let more = [skipped.as_slice(), &[place]].concat();
                next.entry(more.len()).or_insert(more);
            }
        }
        if next.is_empty() {
            return best;
        }
        possible = next.into_values().collect();
        if let Some(skipped) = possible.iter().find(|skipped| place + 1 - skipped.len() <= received.len()) {
            // The one in which all that was received is read, where there is one.
            let whole = possible.iter().find(|skipped| place + 1 - skipped.len() == received.len());
            let skipped = whole.unwrap_or(skipped);
            best = Alignment { read: place + 1, received: place + 1 - skipped.len(), skipped: skipped.clone() };
        }
    }
    best
}
