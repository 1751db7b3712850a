//! The types of the settings that apply to the whole host. They hold only valid values.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use super::kinds::{Listed, Parsed};
use super::word::{Word, words};
use crate::core::net::Port;

words! {
    /// How pinholes are kept in the kernel.
    Mechanism {
        /// `Native` where the kernel has it, otherwise `Sets`.
        Auto = "auto",
        /// Real expectations of conntrack.
        Native = "native",
        /// Elements of nftables sets.
        Sets = "sets",
    }
}

words! {
    /// Which sessions that began before the daemon read them may open data connections.
    Pickup {
        /// Those that an earlier run read from their start, as the connection's mark records.
        Marked = "marked",
        /// None.
        Never = "never",
        /// All. An attacker who can cause packet loss, or make a server echo text, can open ports then.
        Trust = "trust",
    }
}

words! {
    /// What happens to packets of control connections while no daemon has the queue bound.
    WhenDown {
        /// Fail-open: they pass unread; nothing new opens.
        Open = "open",
        /// Fail-closed: they are dropped.
        Closed = "closed",
    }
}

words! {
    /// The families of nftables tables that can see an FTP connection.
    ChainFamily {
        /// IPv4.
        Ip = "ip",
        /// IPv6.
        Ip6 = "ip6",
        /// Both.
        Inet = "inet",
    }
}

/// Consecutive NFQUEUE numbers: at least one, none above 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    first: u16,
    count: NonZeroU16,
}

impl Queues {
    /// `count` queues from number `first`, unless that leads past 65535.
    pub fn new(first: u16, count: NonZeroU16) -> Option<Self> {
        first.checked_add(count.get() - 1).map(|_| Self { first, count })
    }

    /// One queue.
    pub(super) const fn one(number: u16) -> Self {
        Self { first: number, count: NonZeroU16::MIN }
    }

    /// The lowest number.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// How many there are.
    pub const fn count(self) -> NonZeroU16 {
        self.count
    }

    /// Their numbers, in order.
    pub fn numbers(self) -> impl Iterator<Item = u16> {
        (0..self.count.get()).map(move |offset| self.first + offset)
    }
}

/// The ports on which control connections arrive: at least one, each there once, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPorts(Box<[Port]>);

impl ControlPorts {
    /// Those ports, unless there is none.
    pub fn new(ports: impl IntoIterator<Item = Port>) -> Option<Self> {
        let mut ports: Vec<Port> = ports.into_iter().collect();
        ports.sort_unstable();
        ports.dedup();
        (!ports.is_empty()).then(|| Self(ports.into()))
    }

    /// Whether `port` is one of them.
    pub fn contains(&self, port: Port) -> bool {
        self.0.contains(&port)
    }

    /// All of them, the lowest first.
    pub fn as_slice(&self) -> &[Port] {
        &self.0
    }
}

impl Listed for ControlPorts {
    type Item = Port;

    fn from_items(items: Vec<Port>) -> Option<Self> {
        Self::new(items)
    }

    fn items(&self) -> Vec<Port> {
        self.0.to_vec()
    }
}

/// Port 21 alone.
impl Default for ControlPorts {
    fn default() -> Self {
        Self(Box::new([Port::FTP]))
    }
}

/// A chain of another program's nftables table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    family: ChainFamily,
    table: Box<str>,
    chain: Box<str>,
}

/// What a policy calls a chain.
pub(super) const CHAIN: Parsed = Parsed(
    "FAMILY TABLE CHAIN, such as inet filter input",
    r"^\s*(ip|ip6|inet)\s+[A-Za-z_.][A-Za-z0-9_./-]*\s+[A-Za-z_.][A-Za-z0-9_./-]*\s*$",
);

impl Chain {
    /// The family of its table.
    pub const fn family(&self) -> ChainFamily {
        self.family
    }

    /// The name of its table.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Its own name.
    pub fn chain(&self) -> &str {
        &self.chain
    }
}

impl FromStr for Chain {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let &[family, table, chain] = words.as_slice() else { return Err("not three words") };
        let family = ChainFamily::ALL.iter().copied().find(|known| known.to_string() == family);
        let family = family.ok_or("the family is not ip, ip6 or inet")?;
        for name in [table, chain] {
            let is_first = |b: u8| b.is_ascii_alphabetic() || matches!(b, b'_' | b'.');
            let is_rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'/');
            if name.len() > 255 || !name.bytes().next().is_some_and(is_first) || !name.bytes().all(is_rest) {
                return Err("nftables has no such name: at most 255 letters, digits and _ . - /");
            }
        }
        if (family, table) == (ChainFamily::Inet, "pinhole") {
            return Err("the table inet pinhole is Pinhole's own");
        }
        Ok(Self { family, table: table.into(), chain: chain.into() })
    }
}

impl Listed for Vec<Chain> {
    type Item = Chain;

    fn from_items(items: Self) -> Option<Self> {
        Some(items)
    }

    fn items(&self) -> Self {
        self.clone()
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::policy::Policy;

    #[test]
    fn last_queue_is_65535() {
        let queues = |first, count| Queues::new(first, NonZeroU16::new(count).expect("not zero"));
        assert!(queues(65_535, 1).is_some());
        assert!(queues(0, u16::MAX).is_some());
        assert!(queues(65_535, 2).is_none());
        assert_eq!(queues(7, 2).map(|q| q.numbers().collect::<Vec<_>>()), Some(vec![7, 8]));
    }

    #[test]
    fn automatic_queues_follow_processors_up_to_eight_and_65535() {
        let on = |first, queues, processors| {
            let mut policy = Policy::default();
            policy.capture.queue = first;
            policy.capture.queues = NonZeroU16::new(queues);
            let queues = policy.on(NonZeroU16::new(processors).expect("not zero")).capture.queues();
            (queues.first(), queues.count().get())
        };
        assert_eq!(on(7, 0, 3), (7, 3));
        assert_eq!(on(0, 0, 64), (0, 8));
        assert_eq!(on(65_534, 0, 64), (65_534, 2));
        assert_eq!(on(7, 2, 64), (7, 2), "the policy has the number");
    }

    #[test]
    fn chain_has_a_family_a_table_and_a_name() {
        let chain: Chain = "inet filter  input".parse().expect("a chain");
        assert_eq!((chain.family(), chain.table(), chain.chain()), (ChainFamily::Inet, "filter", "input"));
        assert_eq!(chain.to_string(), "inet filter input");
    }

    #[test]
    fn malformed_chain_is_refused() {
        let long = format!("ip filter {}", "x".repeat(256));
        for text in
            ["filter input", "arp filter input", "ip fil;ter input", "ip filter 1st", &long, "inet pinhole input"]
        {
            assert!(text.parse::<Chain>().is_err(), "{text}");
        }
        assert!("ip pinhole input".parse::<Chain>().is_ok());
    }

    #[test]
    fn control_ports_are_sorted_and_each_there_once() {
        let port = |n| Port::new(n).expect("not zero");
        let ports = ControlPorts::new([port(2121), port(21), port(2121)]).expect("not empty");
        assert_eq!(ports.as_slice(), [port(21), port(2121)]);
        assert!(ports.contains(port(21)) && !ports.contains(port(22)));
        assert!(ControlPorts::new([]).is_none());
    }
}
