//! The segments of a hostile peer, and what the socket's application and the clock do in between.

use std::net::IpAddr;

use lab::Family;
use proptest::prelude::*;

/// Which end the hostile peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// A connection from its first packet on.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) family: Family,
    pub(crate) role: Role,
    /// Whether both ends use the timestamps option.
    pub(crate) timestamps: bool,
    /// The socket's receive buffer; none for a large one.
    pub(crate) buffer: Option<usize>,
    /// Whether the socket's application reads urgent data in line.
    pub(crate) oob_inline: bool,
    /// The peer's initial sequence number.
    pub(crate) first: u32,
    /// The steps between the first SYN and the end of the handshake.
    pub(crate) early_steps: Vec<Step>,
    pub(crate) steps: Vec<Step>,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// The peer sends a segment.
    Sends(CraftedSegment),
    /// The socket's application writes one of its lines.
    Says(u8),
    /// The application reads at most so many bytes.
    Reads(u16),
    /// The socket's application has nothing more to say.
    Stops,
    /// Time passes for the reader, in seconds.
    Waits(u16),
}

/// A segment of the peer's. `CraftedSegment::default()` is one without payload in which nothing is wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CraftedSegment {
    /// Where it begins, counted from where the next segment would begin.
    pub(crate) offset: i32,
    pub(crate) length: u16,
    /// Which of the texts it is a piece of: they differ at the same place.
    pub(crate) text: u8,
    /// The flags as in the header, without URG.
    pub(crate) flags: u8,
    pub(crate) ack: Ack,
    pub(crate) window: u16,
    pub(crate) stamp: TimestampOption,
    /// URG and its pointer.
    pub(crate) urgent: Option<u16>,
    pub(crate) defect: Defect,
}

impl Default for CraftedSegment {
    fn default() -> Self {
        Self {
            offset: 0,
            length: 0,
            text: 0,
            flags: flag::ACK,
            ack: Ack::Right,
            window: 64_000,
            stamp: TimestampOption::Right,
            urgent: None,
            defect: Defect::None,
        }
    }
}

pub(crate) mod flag {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
    pub(crate) const URG: u8 = 0x20;
}

/// The acknowledgement number, relative to the kernel's next byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ack {
    Right,
    Behind(u32),
    Ahead(u32),
}

/// The timestamps option, compared with the last one that was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimestampOption {
    /// As agreed.
    Right,
    Missing,
    Stale(u32),
    Ahead(u32),
    /// Two options, the first of them stale.
    TwiceStaleFirst,
    /// Two options, the second of them stale.
    TwiceStaleLast,
    /// A stale one after the end of the options, where it does not count.
    StaleBehindEnd,
}

/// Why a segment does not reach the socket, or should not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    None,
    /// Its time to live ends between the reader and the socket.
    Unreachable,
    Checksum,
    /// It carries an MD5 signature (RFC 2385), and the socket has no key.
    Md5,
    /// It carries an authentication option (RFC 5925), and the socket has no key.
    Ao,
    /// A byte after the end of the IP packet.
    Padding,
    /// Options that are cut off.
    BadOptions,
    /// IPv6: an extension header. A segment of IPv4 has none.
    Extension(Extension),
}

/// An extension header before the TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extension {
    /// Destination options without an option.
    Destination,
    /// Hop-by-hop options without an option.
    HopByHop,
    /// Hop-by-hop options, and more destination options than a receiver needs.
    Many,
    /// A destination option that nobody knows. The receiver has to discard the packet.
    Unknown,
    /// A routing header that names no further hop.
    Routing,
    /// A routing header that names a further hop.
    RoutingElsewhere,
    /// A fragment header, although the packet is whole. Conntrack removes it; without conntrack there is none.
    Fragment,
}

impl Extension {
    pub(crate) const ALL: [Self; 7] = [
        Self::Destination,
        Self::HopByHop,
        Self::Many,
        Self::Unknown,
        Self::Routing,
        Self::RoutingElsewhere,
        Self::Fragment,
    ];
}

pub(crate) fn cases() -> impl Strategy<Value = Case> {
    let family = proptest::sample::select(Family::ALL.to_vec());
    let role = prop_oneof![Just(Role::Client), Just(Role::Server)];
    let buffer = prop_oneof![3 => Just(None), 1 => Just(Some(2304)), 1 => Just(Some(8192))];
    let first = prop_oneof![Just(1_000_000u32), Just(u32::MAX - 60), Just(0x7fff_ffff - 60), any::<u32>()];
    let early_steps = prop_oneof![
        3 => Just(Vec::new()),
        1 => proptest::collection::vec(early_step(), 1..4),
    ];
    let steps = proptest::collection::vec(step(), 1..14);
    (family, role, any::<bool>(), buffer, any::<bool>(), first, early_steps, steps).prop_map(
        |(family, role, timestamps, buffer, oob_inline, first, early_steps, steps)| Case {
            family,
            role,
            timestamps,
            buffer,
            oob_inline,
            first,
            early_steps,
            steps,
        },
    )
}

fn early_step() -> impl Strategy<Value = Step> {
    let flags =
        [flag::SYN, flag::SYN | flag::ACK, flag::RST, flag::RST | flag::ACK, flag::ACK, 0, flag::FIN | flag::ACK];
    let offset = prop_oneof![Just(-1), Just(0), Just(1), Just(100), Just(-100_000), Just(1 << 30)];
    (sent(), proptest::sample::select(flags.to_vec()), offset)
        .prop_map(|(sent, flags, offset)| Step::Sends(CraftedSegment { flags, offset, ..sent }))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        48 => sent().prop_map(Step::Sends),
        5 => (0u8..6).prop_map(Step::Says),
        5 => prop_oneof![1u16..40, Just(4000u16)].prop_map(Step::Reads),
        2 => prop_oneof![Just(1u16), Just(4), Just(61), Just(400)].prop_map(Step::Waits),
        1 => Just(Step::Stops),
    ]
}

fn sent() -> impl Strategy<Value = CraftedSegment> {
    let length = prop_oneof![8 => 0u16..70, 2 => Just(0u16), 1 => 300u16..1400, 2 => Just(1u16)];
    let text = prop_oneof![6 => Just(0u8), 4 => Just(1u8), 1 => 2u8..TEXTS];
    let deviations = prop_oneof![
        16 => Just(Vec::new()),
        8 => proptest::collection::vec(deviation(), 1),
        2 => proptest::collection::vec(deviation(), 2..4),
    ];
    (length, text, deviations).prop_map(|(length, text, deviations)| {
        let mut sent = CraftedSegment { length, text, ..CraftedSegment::default() };
        for deviation in deviations {
            match deviation {
                Deviation::Offset(offset) => sent.offset = offset,
                Deviation::Flags(flags) => sent.flags = flags,
                Deviation::Ack(ack) => sent.ack = ack,
                Deviation::Window(window) => sent.window = window,
                Deviation::Timestamp(stamp) => sent.stamp = stamp,
                Deviation::Urgent(pointer) => sent.urgent = Some(pointer),
                Deviation::Defect(defect) => sent.defect = defect,
            }
        }
        sent
    })
}

/// A possible defect or peculiarity of a segment.
#[derive(Clone, Debug)]
enum Deviation {
    Offset(i32),
    Flags(u8),
    Ack(Ack),
    Window(u16),
    Timestamp(TimestampOption),
    Urgent(u16),
    Defect(Defect),
}

fn deviation() -> impl Strategy<Value = Deviation> {
    let far = [65_536i32, -65_536, 1 << 20, -(1 << 20), 1 << 30, -(1 << 30), i32::MAX, i32::MIN, 131_000];
    let offset = prop_oneof![10 => -60i32..60, 2 => -3000i32..3000, 1 => proptest::sample::select(far.to_vec())];
    let usual_flags = [
        flag::ACK | flag::PSH,
        0,
        flag::PSH,
        flag::FIN | flag::ACK,
        flag::FIN,
        flag::RST,
        flag::RST | flag::ACK,
        flag::SYN,
        flag::SYN | flag::ACK,
    ];
    let flags = prop_oneof![4 => proptest::sample::select(usual_flags.to_vec()), 1 => 0u8..0x20];
    let distance = || {
        let far = [70_000u32, 1 << 17, 1 << 30, (1 << 31) - 1];
        prop_oneof![3 => 1u32..40, 1 => proptest::sample::select(far.to_vec())]
    };
    let ack = prop_oneof![distance().prop_map(Ack::Behind), distance().prop_map(Ack::Ahead)];
    let ticks = || prop_oneof![1u32..20, Just(1000), Just(1 << 30)];
    let stamp = prop_oneof![
        2 => Just(TimestampOption::Missing),
        4 => ticks().prop_map(TimestampOption::Stale),
        4 => ticks().prop_map(TimestampOption::Ahead),
        1 => Just(TimestampOption::TwiceStaleFirst),
        1 => Just(TimestampOption::TwiceStaleLast),
        1 => Just(TimestampOption::StaleBehindEnd),
    ];
    let urgent = prop_oneof![4 => 0u16..70, 1 => any::<u16>()];
    let defect = prop_oneof![
        4 => Just(Defect::Unreachable),
        2 => Just(Defect::Checksum),
        1 => Just(Defect::Md5),
        1 => Just(Defect::Ao),
        1 => Just(Defect::Padding),
        1 => Just(Defect::BadOptions),
        2 => extension().prop_map(Defect::Extension),
    ];
    prop_oneof![
        6 => offset.prop_map(Deviation::Offset),
        4 => flags.prop_map(Deviation::Flags),
        3 => ack.prop_map(Deviation::Ack),
        1 => proptest::sample::select(vec![0u16, 3]).prop_map(Deviation::Window),
        3 => stamp.prop_map(Deviation::Timestamp),
        2 => urgent.prop_map(Deviation::Urgent),
        4 => defect.prop_map(Deviation::Defect),
    ]
}

fn extension() -> impl Strategy<Value = Extension> {
    proptest::sample::select(Extension::ALL.to_vec())
}

impl Case {
    /// Cases that are a little simpler.
    pub(crate) fn simpler(&self) -> Vec<Self> {
        let mut cases = Vec::new();
        let mut with = |change: &dyn Fn(&mut Self)| {
            let mut case = self.clone();
            change(&mut case);
            cases.push(case);
        };
        for at in 0..self.early_steps.len() {
            with(&|case| {
                case.early_steps.remove(at);
            });
            for simpler in self.early_steps[at].simpler() {
                with(&|case| case.early_steps[at] = simpler.clone());
            }
        }
        let count = self.steps.len();
        for size in [count / 2, count / 4, 1] {
            for at in (0..count).step_by(size.max(1)) {
                if size > 0 {
                    with(&|case| drop(case.steps.drain(at..(at + size).min(count))));
                }
            }
        }
        if self.family != Family::V4 {
            with(&|case| case.family = Family::V4);
        }
        if self.timestamps {
            with(&|case| case.timestamps = false);
        }
        if self.buffer.is_some() {
            with(&|case| case.buffer = None);
        }
        if !self.oob_inline {
            with(&|case| case.oob_inline = true);
        }
        if self.first != USUAL_FIRST {
            with(&|case| case.first = USUAL_FIRST);
        }
        for (index, step) in self.steps.iter().enumerate() {
            for simpler in step.simpler() {
                with(&|case| case.steps[index] = simpler.clone());
            }
        }
        cases
    }

    /// The peculiarities, without numbers.
    pub(crate) fn shape(&self) -> String {
        let mut words = vec![format!("{} {:?}", self.family, self.role)];
        words.extend(self.timestamps.then(|| "timestamps".to_owned()));
        words.extend(self.buffer.map(|_| "small buffer".to_owned()));
        words.extend((!self.oob_inline).then(|| "urgent data apart".to_owned()));
        for step in self.early_steps.iter().chain(&self.steps) {
            words.push(match step {
                Step::Sends(sent) => sent.shape(),
                Step::Says(_) => "says".to_owned(),
                Step::Reads(_) => "reads".to_owned(),
                Step::Stops => "stops".to_owned(),
                Step::Waits(_) => "waits".to_owned(),
            });
        }
        if !self.early_steps.is_empty() {
            words.insert(1, format!("{} within the handshake", self.early_steps.len()));
        }
        words.join(", ")
    }
}

const USUAL_FIRST: u32 = 1_000_000;

impl Step {
    fn simpler(&self) -> Vec<Self> {
        match self {
            Self::Sends(sent) => sent.simpler().into_iter().map(Self::Sends).collect(),
            Self::Says(line) if *line > 0 => vec![Self::Says(0)],
            Self::Reads(most) if *most < 4000 => vec![Self::Reads(4000)],
            _ => Vec::new(),
        }
    }
}

impl CraftedSegment {
    fn simpler(&self) -> Vec<Self> {
        let usual = Self::default();
        let mut all = Vec::new();
        let mut with = |sent: Self| {
            if format!("{sent:?}") != format!("{self:?}") {
                all.push(sent);
            }
        };
        with(Self { offset: 0, ..*self });
        with(Self { offset: self.offset / 2, ..*self });
        if self.offset.unsigned_abs() < 64 {
            with(Self { offset: self.offset - self.offset.signum(), ..*self });
        }
        with(Self { length: 0, ..*self });
        with(Self { length: self.length / 2, ..*self });
        if self.length < 64 {
            with(Self { length: self.length.saturating_sub(1), ..*self });
        }
        with(Self { text: 0, ..*self });
        with(Self { flags: flag::ACK, ..*self });
        for bit in 0..5 {
            if self.flags & !flag::ACK & 1 << bit != 0 {
                with(Self { flags: self.flags & !(1 << bit), ..*self });
            }
        }
        with(Self { flags: self.flags | flag::ACK, ..*self });
        with(Self { ack: usual.ack, ..*self });
        with(Self { window: usual.window, ..*self });
        with(Self { stamp: usual.stamp, ..*self });
        match self.ack {
            Ack::Behind(by) if by > 1 => with(Self { ack: Ack::Behind(1), ..*self }),
            Ack::Ahead(by) if by > 1 => with(Self { ack: Ack::Ahead(1), ..*self }),
            _ => {}
        }
        match self.stamp {
            TimestampOption::Stale(by) if by > 1 => with(Self { stamp: TimestampOption::Stale(by / 2), ..*self }),
            TimestampOption::Ahead(by) if by > 1 => with(Self { stamp: TimestampOption::Ahead(by / 2), ..*self }),
            _ => {}
        }
        with(Self { urgent: None, ..*self });
        if let Some(pointer) = self.urgent
            && pointer > 1
        {
            with(Self { urgent: Some(pointer / 2), ..*self });
        }
        with(Self { defect: Defect::None, ..*self });
        all
    }

    fn shape(&self) -> String {
        let usual = Self::default();
        let mut words = vec!["sends".to_owned()];
        if self.length > 0 {
            words.push("bytes".to_owned());
        }
        match self.offset {
            0 => {}
            1.. => words.push("ahead".to_owned()),
            _ => words.push("behind".to_owned()),
        }
        if self.flags != usual.flags {
            let flags = "FSRPA".chars().enumerate().filter(|(bit, _)| self.flags >> bit & 1 != 0);
            words.push(format!("flags {}", flags.map(|(_, letter)| letter).collect::<String>()));
        }
        match self.ack {
            Ack::Right => {}
            Ack::Behind(_) => words.push("old ack".to_owned()),
            Ack::Ahead(_) => words.push("early ack".to_owned()),
        }
        if self.window != usual.window {
            words.push("window".to_owned());
        }
        match self.stamp {
            TimestampOption::Right => {}
            TimestampOption::Stale(_) => words.push("stale".to_owned()),
            TimestampOption::Ahead(_) => words.push("early stamp".to_owned()),
            other => words.push(format!("{other:?}")),
        }
        words.extend(self.urgent.map(|_| "urgent".to_owned()));
        if self.defect != usual.defect {
            words.push(format!("{:?}", self.defect));
        }
        words.join(" ")
    }
}

/// How many texts there are.
const TEXTS: u8 = 7;

/// The text with which the end of every case is filled up. No other is like it anywhere.
pub(crate) const FILLER: u8 = 100;

/// Bytes of a text, from an offset on. All lines of a text have the same length, so that pieces of different texts
/// often make whole lines.
pub(crate) fn text(role: Role, peer: IpAddr, text: u8, from: i64, length: usize) -> Vec<u8> {
    let width = line(role, peer, 0, 0).len() as i64;
    let byte = |place: i64| line(role, peer, text, place.div_euclid(width))[place.rem_euclid(width) as usize];
    (from..from + length as i64).map(byte).collect()
}

/// An announcement of this port, as long as all lines.
pub(crate) fn announcement(role: Role, peer: IpAddr, port: u16) -> String {
    let [high, low] = port.to_be_bytes();
    match (role, peer) {
        (Role::Client, IpAddr::V4(peer)) => {
            let [a, b, c, d] = peer.octets();
            format!("PORT {a},{b},{c},{d},{high:03},{low:03}\r\n")
        }
        (Role::Server, IpAddr::V4(peer)) => {
            let [a, b, c, d] = peer.octets();
            format!("227 ({a},{b},{c},{d},{high:03},{low:03})\r\n")
        }
        (Role::Client, IpAddr::V6(peer)) => format!("EPRT |2|{peer}|{port:05}|\r\n"),
        (Role::Server, IpAddr::V6(_)) => format!("229 Port opened (|||{port:05}|)\r\n"),
    }
}

/// Whether a line announces this port. Lines are put together from pieces, so other text may surround the address.
pub(crate) fn announces(role: Role, family: Family, line: &[u8], port: u16) -> bool {
    let word: &[u8] = match (role, family) {
        (Role::Client, Family::V4) => b"PORT ",
        (Role::Server, Family::V4) => b"227 ",
        (Role::Client, Family::V6) => b"EPRT ",
        (Role::Server, Family::V6) => b"229 ",
    };
    let Some(rest) = line.strip_prefix(word) else { return false };
    let numbers = rest.split(|byte| !byte.is_ascii_digit()).filter(|number| !number.is_empty());
    let numbers: Vec<u16> = numbers.filter_map(|number| std::str::from_utf8(number).ok()?.parse().ok()).collect();
    match family {
        Family::V4 => numbers.windows(2).any(|pair| pair == port.to_be_bytes().map(u16::from)),
        Family::V6 => numbers.contains(&port),
    }
}

fn line(role: Role, peer: IpAddr, text: u8, index: i64) -> Vec<u8> {
    let width = announcement(role, peer, 0).len();
    // No port is announced twice in a case, and none of them is one that a policy may keep closed.
    let port = u16::from_be_bytes([200 + text % 50, 100 + index.rem_euclid(150) as u8]);
    let other = match role {
        Role::Client => "NOOP ",
        Role::Server => "200 ",
    };
    let announces = match text {
        0 => index % 2 != 0,
        1 => index % 2 == 0,
        2 => true,
        _ => false,
    };
    match text {
        _ if announces => announcement(role, peer, port).into_bytes(),
        0..=2 => format!("{other:a<fill$}\r\n", fill = width - 2).into_bytes(),
        3 => vec![b'x'; width],
        4 => b"\r\n".iter().copied().cycle().take(width).collect(),
        5 => b"\xff\xf4\r\0\n\xff\xfb".iter().copied().cycle().take(width).collect(),
        6 => announcement(role, peer, port).replace("\r\n", " \n").into_bytes(),
        _ => vec![b'f'; width],
    }
}
