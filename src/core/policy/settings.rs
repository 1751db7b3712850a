//! The settings of a policy that apply to the whole host: control ports, queues, mechanism, limits.
//!
//! Knows neither the YAML nor the kernel. The types hold only valid values.

use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};
use std::str::FromStr;
use std::time::Duration;

use super::word::{Word, words};
use crate::core::net::Port;

words! {
    /// How the kernel holds what it was told to admit.
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
    /// Which sessions that went on before they were read are believed, so that something may open for them.
    Pickup {
        /// Those of which an earlier run left word in the kernel.
        Marked = "marked",
        /// None.
        Never = "never",
        /// All. Whoever can have a packet dropped, or make a server repeat a text, may open ports then.
        Trust = "trust",
    }
}

words! {
    /// What becomes of control connections while nobody reads the queue.
    WhenDown {
        /// They pass unread; no new hole opens.
        Open = "open",
        /// They are held back too.
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

/// `Marked`.
#[allow(clippy::derivable_impls, reason = "the variants are declared by a macro")]
impl Default for Pickup {
    fn default() -> Self {
        Self::Marked
    }
}

/// `Auto`.
#[allow(clippy::derivable_impls, reason = "the variants are declared by a macro")]
impl Default for Mechanism {
    fn default() -> Self {
        Self::Auto
    }
}

/// How packets reach us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capture {
    /// The queues that the kernel hands packets to.
    pub queues: Queues,
    /// What happens to them while nobody reads.
    pub when_down: WhenDown,
    /// How long packets may wait for a daemon that hangs, before it counts as one that is down.
    pub watchdog: Duration,
}

impl Default for Capture {
    fn default() -> Self {
        Self { queues: Queues::default(), when_down: WhenDown::Open, watchdog: Duration::from_secs(5) }
    }
}

/// A run of NFQUEUE numbers, at least one, none above 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    first: u16,
    /// None: as many as suit the machine.
    count: Option<NonZeroU16>,
}

impl Queues {
    /// More than this many readers wait for each other rather than for packets.
    const MOST_BY_ITSELF: u16 = 8;

    /// `count` queues from number `first`, unless that leads past 65535.
    pub fn new(first: u16, count: NonZeroU16) -> Option<Self> {
        first.checked_add(count.get() - 1).map(|_| Self { first, count: Some(count) })
    }

    /// As many as suit the machine, from number `first`.
    pub const fn automatic(first: u16) -> Self {
        Self { first, count: None }
    }

    /// The same on a machine with so many processors: one for each, so that whoever reads a packet can do so where the
    /// packet came, but not very many.
    #[must_use]
    pub fn on(self, processors: NonZeroU16) -> Self {
        let most = Self::MOST_BY_ITSELF.min((u16::MAX - self.first).saturating_add(1));
        let suits = processors.min(NonZeroU16::new(most).unwrap_or(NonZeroU16::MIN));
        Self { count: self.count.or(Some(suits)), ..self }
    }

    /// The lowest number.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// How many the policy wants, if it says that.
    pub const fn wanted(self) -> Option<NonZeroU16> {
        self.count
    }

    /// How many there are. Where that is left to the machine, and no machine was named, one.
    pub fn count(self) -> NonZeroU16 {
        self.count.unwrap_or(NonZeroU16::MIN)
    }

    /// Their numbers, in order.
    pub fn numbers(self) -> impl Iterator<Item = u16> {
        (0..self.count().get()).map(move |offset| self.first + offset)
    }
}

/// From queue 0 on.
impl Default for Queues {
    fn default() -> Self {
        Self::automatic(0)
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

/// Port 21 alone.
impl Default for ControlPorts {
    fn default() -> Self {
        Self(Box::new([Port::FTP]))
    }
}

/// A chain of somebody else's nftables table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    family: ChainFamily,
    table: Box<str>,
    chain: Box<str>,
}

/// Why a text does not name a [`Chain`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// There are not exactly three words.
    #[error("it takes three words, not {0}")]
    NotThreeWords(usize),
    /// The first word is no family that carries TCP.
    #[error("the family is not one that carries TCP")]
    Family,
    /// A name has characters that nftables does not allow in a name without quotes.
    #[error("the name of the {0} has characters that nftables does not allow there")]
    Name(&'static str),
    /// A name is longer than nftables allows.
    #[error("the name of the {0} is longer than nftables allows (255 characters)")]
    NameTooLong(&'static str),
    /// The table is the one that Pinhole makes and removes itself.
    #[error("the table inet pinhole is Pinhole's own")]
    OwnTable,
}

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
    type Err = ChainError;

    fn from_str(text: &str) -> Result<Self, ChainError> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let &[family, table, chain] = words.as_slice() else { return Err(ChainError::NotThreeWords(words.len())) };
        let family = ChainFamily::ALL.iter().copied().find(|f| f.word() == family).ok_or(ChainError::Family)?;
        for (name, what) in [(table, "table"), (chain, "chain")] {
            if name.len() > 255 {
                return Err(ChainError::NameTooLong(what));
            }
            let first = |b: u8| b.is_ascii_alphabetic() || matches!(b, b'_' | b'.');
            let rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'/');
            if !(name.bytes().next().is_some_and(first) && name.bytes().all(rest)) {
                return Err(ChainError::Name(what));
            }
        }
        if (family, table) == (ChainFamily::Inet, "pinhole") {
            return Err(ChainError::OwnTable);
        }
        Ok(Self { family, table: table.into(), chain: chain.into() })
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.chain)
    }
}

/// How much may be kept in memory, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at one time; when one more comes, the one that was idle longest is forgotten.
    pub sessions: NonZeroU32,
    /// Sessions of one client at one time; when one more comes, that client's own one that was idle longest is forgotten.
    pub sessions_per_client: NonZeroU32,
    /// Pinholes at one time, all sessions together; when there are that many, an announcement is refused.
    pub pinholes: NonZeroU32,
    /// Pinholes of one client's sessions at one time; when there are that many, an announcement is refused.
    pub pinholes_per_client: NonZeroU32,
    /// Bytes of one line of the dialogue; a longer one passes unread.
    pub line_bytes: NonZeroU32,
    /// Bytes kept of each direction while an earlier segment is missing.
    pub reorder_bytes: NonZeroU32,
    /// Bytes in the buffers of all sessions together; a session that would need more gives up what is missing.
    pub buffered_bytes: NonZeroU32,
    /// How long a session may be silent before it is forgotten.
    pub idle: Duration,
}

const fn at_least_one(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).expect("a default limit is not zero")
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: const { at_least_one(65_536) },
            sessions_per_client: const { at_least_one(4096) },
            pinholes: const { at_least_one(16_384) },
            pinholes_per_client: const { at_least_one(1024) },
            line_bytes: const { at_least_one(1024) },
            reorder_bytes: const { at_least_one(16_384) },
            buffered_bytes: const { at_least_one(16 << 20) },
            idle: Duration::from_secs(3600),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_queue_is_65535() {
        let queues = |first, count| Queues::new(first, NonZeroU16::new(count).expect("not zero"));
        assert!(queues(65_535, 1).is_some());
        assert!(queues(0, u16::MAX).is_some());
        assert!(queues(65_535, 2).is_none());
        let processors = |count| NonZeroU16::new(count).expect("not zero");
        let on = |queues: Queues, count| queues.on(processors(count)).numbers().collect::<Vec<_>>();
        assert_eq!(on(Queues::automatic(7), 3), [7, 8, 9]);
        assert_eq!((on(Queues::automatic(0), 64).len(), on(Queues::automatic(65_534), 64).len()), (8, 2));
        assert_eq!(queues(7, 2).map(|chosen| on(chosen, 64)), Some(vec![7, 8]));
        assert_eq!(queues(7, 2).map(|q| q.numbers().collect::<Vec<_>>()), Some(vec![7, 8]));
    }

    #[test]
    fn a_chain_is_a_family_a_table_and_a_name() {
        let chain: Chain = "inet filter  input".parse().expect("a chain");
        assert_eq!((chain.family(), chain.table(), chain.chain()), (ChainFamily::Inet, "filter", "input"));
        assert_eq!(chain.to_string(), "inet filter input");
    }

    #[test]
    fn says_what_is_wrong_with_a_chain() {
        let error = |text: &str| text.parse::<Chain>().err();
        assert_eq!(error("filter input"), Some(ChainError::NotThreeWords(2)));
        assert_eq!(error("arp filter input"), Some(ChainError::Family));
        assert_eq!(error("ip fil;ter input"), Some(ChainError::Name("table")));
        assert_eq!(error("ip filter 1st"), Some(ChainError::Name("chain")));
        assert_eq!(error(&format!("ip filter {}", "x".repeat(256))), Some(ChainError::NameTooLong("chain")));
        assert_eq!(error("inet pinhole input"), Some(ChainError::OwnTable));
        assert_eq!(error("ip pinhole input"), None);
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
