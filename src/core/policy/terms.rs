//! The terms on which a client and a server may announce data connections.
//!
//! Knows nothing of the hosts to which they apply.

use std::fmt;
use std::str::FromStr;

use super::keys::Terms;
use super::kinds::Listed;
use super::word::{Word, did_you_mean, words};
use crate::core::ftp::mode::{Mode, Modes};
use crate::core::kernel::Service;
use crate::core::net::{Port, PortRange};

words! {
    /// Whether announcements are considered at all.
    Action {
        /// They are, and the other terms decide.
        Allow = "allow",
        /// Every one is refused.
        Deny = "deny",
    }
}

words! {
    /// Whether an announcement may name a host other than the one that makes it (FXP).
    ThirdParty {
        /// It may not.
        Deny = "deny",
        /// It may.
        Allow = "allow",
    }
}

words! {
    /// What happens to a wrong address in a server's 227 or 228.
    PassiveAddress {
        /// It stays as it is.
        Keep = "keep",
        /// The address to which the client connected replaces it.
        Repair = "repair",
    }
}

words! {
    /// Whether a login is required before an announcement counts.
    Login {
        /// A login (230) must precede the announcement.
        Required = "required",
        /// An announcement before that opens as well.
        Optional = "optional",
    }
}

/// What happens to a session once it is encrypted and can no longer be read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Tls {
    /// The session continues; nothing opens for it.
    Pass,
    /// AUTH does not reach the server.
    Deny,
    /// The session continues, and the client may connect to those ports of the server.
    Range(PortRange),
    /// The session continues, and client and server may connect to a port of this host on which a socket of the FTP
    /// service listens.
    Service(Service),
}

impl fmt::Display for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("pass"),
            Self::Deny => f.write_str("deny"),
            Self::Range(range) => write!(f, "range {}-{}", range.first(), range.last()),
            Self::Service(service) => write!(f, "service{service}"),
        }
    }
}

impl FromStr for Tls {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(' ') {
            None if text == "pass" => Ok(Self::Pass),
            None if text == "deny" => Ok(Self::Deny),
            None if text == "service" => Ok(Self::Service(Service::SameCgroup)),
            Some(("range", range)) => range.parse().map(Self::Range).map_err(str::to_owned),
            Some(("service", service)) => service.parse().map(Self::Service).map_err(str::to_owned),
            _ => Err(format!("unknown word{}", did_you_mean(text, ["pass", "deny", "range", "service"]))),
        }
    }
}

/// Ranges in order, none of which overlaps or touches another.
fn joined(ranges: impl IntoIterator<Item = PortRange>) -> Box<[PortRange]> {
    let mut ranges: Vec<PortRange> = ranges.into_iter().collect();
    ranges.sort_unstable_by_key(|range| (range.first(), range.last()));
    ranges.dedup_by(|next, kept| {
        let meet = u32::from(next.first().number()) <= u32::from(kept.last().number()) + 1;
        match PortRange::new(kept.first(), kept.last().max(next.last())) {
            Some(joined) if meet => *kept = joined,
            _ => {}
        }
        meet
    });
    ranges.into()
}

fn is_in(ranges: &[PortRange], port: Port) -> bool {
    let behind = ranges.partition_point(|range| range.first() <= port);
    behind.checked_sub(1).is_some_and(|index| ranges[index].contains(port))
}

/// A set of ports, perhaps empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortSet(Box<[PortRange]>);

impl PortSet {
    /// The ports of all those ranges. Ranges that meet are joined.
    pub fn new(ranges: impl IntoIterator<Item = PortRange>) -> Self {
        Self(joined(ranges))
    }

    /// Whether `port` is one of them.
    pub fn contains(&self, port: Port) -> bool {
        is_in(&self.0, port)
    }

    /// Whether one of them is in that range.
    pub fn overlaps(&self, range: PortRange) -> bool {
        self.0.iter().any(|one| one.first() <= range.last() && range.first() <= one.last())
    }
}

impl Listed for PortSet {
    type Item = PortRange;

    fn from_items(items: Vec<PortRange>) -> Option<Self> {
        Some(Self::new(items))
    }

    fn items(&self) -> Vec<PortRange> {
        self.0.to_vec()
    }
}

/// A set of ports, never empty, that knows which of them were named one by one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortRanges {
    ranges: Box<[PortRange]>,
    /// The entries of a single port, in order.
    named: Box<[Port]>,
}

impl PortRanges {
    /// The ports of all those ranges, unless there is none. Ranges that meet are joined.
    pub fn new(ranges: impl IntoIterator<Item = PortRange>) -> Option<Self> {
        let ranges: Vec<PortRange> = ranges.into_iter().collect();
        let single = ranges.iter().filter(|range| range.first() == range.last());
        let mut named: Vec<Port> = single.map(|range| range.first()).collect();
        named.sort_unstable();
        named.dedup();
        let ranges = joined(ranges);
        (!ranges.is_empty()).then(|| Self { ranges, named: named.into() })
    }

    /// Whether `port` is one of them.
    pub fn contains(&self, port: Port) -> bool {
        is_in(&self.ranges, port)
    }

    /// Whether `port` is an entry of its own, not only within a range.
    pub fn names(&self, port: Port) -> bool {
        self.named.binary_search(&port).is_ok()
    }

    /// All of them once: `from`, those above it, then those below it.
    pub fn cycle_from(&self, from: Port) -> impl Iterator<Item = Port> {
        let ports = |first: u16, last: u16| {
            let ranges = self
                .ranges
                .iter()
                .map(move |range| range.first().number().max(first)..=range.last().number().min(last));
            ranges.flatten().filter_map(Port::new)
        };
        let from = from.number();
        ports(from, u16::MAX).chain(ports(1, from - 1))
    }

    /// The ranges, the lowest first; no two meet.
    pub fn as_slice(&self) -> &[PortRange] {
        &self.ranges
    }
}

impl Listed for PortRanges {
    type Item = PortRange;

    fn from_items(items: Vec<PortRange>) -> Option<Self> {
        Self::new(items)
    }

    /// As few as mean the same, those named one by one included.
    fn items(&self) -> Vec<PortRange> {
        let is_named = |range: &PortRange| {
            let count = usize::from(range.last().number() - range.first().number()) + 1;
            self.named.iter().filter(|port| range.contains(**port)).count() == count
        };
        let named = self.named.iter().filter_map(|&port| PortRange::new(port, port));
        self.ranges.iter().copied().filter(|range| !is_named(range)).chain(named).collect()
    }

    /// A port within a range may be named beside it, because it may be a known service's.
    fn repeats(item: &PortRange, other: &PortRange, is_earlier: bool) -> bool {
        let is_single = |range: &PortRange| range.first() == range.last();
        let meet = other.first() <= item.last() && item.first() <= other.last();
        is_earlier && meet && is_single(item) == is_single(other)
    }
}

impl From<PortRange> for PortRanges {
    fn from(range: PortRange) -> Self {
        let named = if range.first() == range.last() { Box::from([range.first()]) } else { Box::default() };
        Self { ranges: Box::new([range]), named }
    }
}

/// A set of command verbs, such as `DELE`; each one to eight letters or digits, in upper case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Verbs(Box<[Box<str>]>);

impl Verbs {
    /// Those verbs, unless one of them cannot be a verb.
    pub fn new<'a>(verbs: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut verbs = verbs.into_iter().map(|v| Self::is_verb(v).then(|| v.into())).collect::<Option<Vec<_>>>()?;
        verbs.sort_unstable();
        verbs.dedup();
        Some(Self(verbs.into()))
    }

    /// Whether a text can be the name of a command.
    pub fn is_verb(text: &str) -> bool {
        text.len() <= 8
            && text.starts_with(|c: char| c.is_ascii_uppercase())
            && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
    }

    /// Whether `verb` is one of them, in upper or lower case.
    pub fn contains(&self, verb: &str) -> bool {
        self.0.iter().any(|v| v.eq_ignore_ascii_case(verb))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }
}

/// The commands of RFC 959 that have another name, which servers still know (RFC 775; RFC 1123, 4.1.3.1).
const OTHER_NAMES: [(&str, &str); 5] =
    [("CDUP", "XCUP"), ("CWD", "XCWD"), ("MKD", "XMKD"), ("PWD", "XPWD"), ("RMD", "XRMD")];

fn other_name(verb: &str) -> Option<&'static str> {
    OTHER_NAMES.into_iter().find_map(|(one, other)| match verb {
        _ if verb == one => Some(other),
        _ if verb == other => Some(one),
        _ => None,
    })
}

impl Listed for Verbs {
    type Item = Box<str>;

    fn from_items(items: Vec<Box<str>>) -> Option<Self> {
        Self::new(items.iter().map(AsRef::as_ref))
    }

    fn items(&self) -> Vec<Box<str>> {
        self.0.to_vec()
    }
}

impl Terms {
    /// Whether anything that a client says is held back on these terms.
    pub fn holds_back(&self) -> bool {
        self.tls == Tls::Deny || !self.commands.deny.is_empty()
    }

    /// Whether any line is changed on these terms although no NAT requires that.
    pub fn may_change_lines(&self) -> bool {
        self.holds_back() || self.passive_address == PassiveAddress::Repair
    }

    /// Whether every announcement is refused, whatever the other terms say.
    pub const fn denies_all(&self) -> bool {
        matches!(self.action, Action::Deny)
    }

    /// Whether the command of that verb is refused.
    pub fn denies(&self, verb: &str) -> bool {
        self.denied_verbs().any(|denied| denied.eq_ignore_ascii_case(verb))
    }

    /// The verbs of all commands that are refused, each with its other name.
    pub fn denied_verbs(&self) -> impl Iterator<Item = &str> {
        self.commands.deny.iter().flat_map(|verb| [Some(verb), other_name(verb)]).flatten()
    }

    /// Whether `port` may be announced. A port below 1024 may be only if [`data_ports`](Self::data_ports) has it.
    pub fn may_use(&self, port: Port) -> bool {
        self.data_ports.contains(port) && !self.is_known_service(port)
    }

    /// Whether `port` is a well-known service's, and [`data_ports`](Self::data_ports) does not name it by itself.
    pub fn is_known_service(&self, port: Port) -> bool {
        self.known_services.contains(port) && !self.data_ports.names(port)
    }
}

impl Listed for Modes {
    type Item = Mode;

    fn from_items(items: Vec<Mode>) -> Option<Self> {
        Some(items.into_iter().collect())
    }

    fn items(&self) -> Vec<Mode> {
        self.iter().collect()
    }
}

impl Word for Mode {
    const ALL: &'static [Self] = &Self::ALL;
}

#[cfg(test)]
mod tests {
    use super::super::keys::Commands;
    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        let port = |n| Port::new(n).expect("not zero");
        PortRange::new(port(first), port(last)).expect("not empty")
    }

    #[test]
    fn touching_ranges_are_joined() {
        let ports = PortRanges::new([range(5, 9), range(1, 4), range(20, 65_535), range(21, 30)]).expect("not empty");
        assert_eq!(ports.as_slice(), [range(1, 9), range(20, 65_535)]);
        assert!(PortRanges::new([]).is_none());
    }

    #[test]
    fn cycle_has_every_port_once() {
        let ports = PortRanges::new([range(5, 7), range(20, 21)]).expect("not empty");
        let from = |first| ports.cycle_from(Port::new(first).expect("not zero")).map(Port::number).collect::<Vec<_>>();
        assert_eq!(from(6), [6, 7, 20, 21, 5]);
        assert_eq!(from(1), [5, 6, 7, 20, 21]);
        assert_eq!(from(9), [20, 21, 5, 6, 7]);
        assert_eq!(from(65_535), [5, 6, 7, 20, 21]);
    }

    #[test]
    fn low_port_needs_an_entry() {
        let port = |n| Port::new(n).expect("not zero");
        let mut terms = Terms::default();
        assert!(terms.may_use(port(1024)) && terms.may_use(port(65_535)) && !terms.may_use(port(1023)));
        terms.data_ports = PortRanges::new([range(20, 20), range(1024, 65_535)]).expect("not empty");
        assert!(terms.may_use(port(20)) && !terms.may_use(port(21)));
    }

    #[test]
    fn known_service_needs_an_entry_of_its_own() {
        let port = |n| Port::new(n).expect("not zero");
        let mut terms = Terms::default();
        assert!(!terms.may_use(port(3306)) && terms.may_use(port(3307)));
        terms.data_ports = PortRanges::new([range(3300, 3400), range(3306, 3306)]).expect("not empty");
        assert!(terms.may_use(port(3306)) && !terms.may_use(port(3389)));
        terms.known_services = PortSet::default();
        assert!(terms.may_use(port(3389)));
    }

    #[test]
    fn items_of_port_ranges_mean_the_same() {
        for entries in [
            &[range(5, 9)][..],
            &[range(5, 5)],
            &[range(5, 5), range(6, 6)],
            &[range(5, 9), range(7, 7), range(10, 10), range(20, 20)],
        ] {
            let ports = PortRanges::new(entries.iter().copied()).expect("not empty");
            assert!(ports.items().len() <= entries.len(), "{entries:?}");
            assert_eq!(PortRanges::new(ports.items()), Some(ports));
        }
    }

    #[test]
    fn command_is_denied_in_any_case() {
        let terms =
            Terms { commands: Commands { deny: Verbs::new(["DELE", "RMD"]).expect("verbs") }, ..Terms::default() };
        assert!(terms.denies("DELE") && terms.denies("dele") && !terms.denies("DEL") && !terms.denies("RETR"));
        assert!(Verbs::new(["dele"]).is_none() && Verbs::new([""]).is_none() && Verbs::new(["DELETEIT9"]).is_none());
    }
}
