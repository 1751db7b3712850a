//! Subscribes to the kernel's notifications: changes of the ruleset, and new and ended connections.
//!
//! When a watcher does not read in time, its socket buffer overflows; the watcher then learns that it has missed
//! messages.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::bytes::{Attribute, Message, Messages};
use super::conntrack::{self, Entry};
use super::error::{Cause, Error, Operation};
use super::filter;
use super::socket::Socket;
use super::tables::{Family, attribute, kind};
use crate::core::net::Port;

/// As much as the kernel may hold back for a watcher: some ten thousand changes.
const ROOM: usize = 4 << 20;

const CONNECTIONS_BEGIN: u32 = 1 << 0;
const CONNECTIONS_END: u32 = 1 << 2;
const TABLES: u32 = 1 << 6;

/// What a watcher heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard<T> {
    /// A change.
    Change(T),
    /// Changes were lost: look for yourself.
    Missed,
    /// Nothing in that time.
    Nothing,
}

/// A change of somebody's ruleset. Elements of sets are not among these.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableChange {
    /// What was done.
    pub deed: ChangeKind,
    /// In which family.
    pub family: Family,
    /// In which table.
    pub table: Box<str>,
    /// In which chain; none if the table itself was made or removed, or something else in it.
    pub chain: Option<Box<str>>,
    /// The number of the socket through which it was done.
    pub by: u32,
}

/// What was done to a ruleset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// A table was made.
    TableAdded,
    /// A table was removed.
    TableRemoved,
    /// A chain was made or changed.
    ChainAdded,
    /// A chain was removed.
    ChainRemoved,
    /// A rule was added.
    RuleAdded,
    /// A rule was removed.
    RuleRemoved,
    /// A set was made.
    SetAdded,
    /// A set was removed.
    SetRemoved,
}

impl ChangeKind {
    /// Whether something is less than before.
    pub const fn is_removal(self) -> bool {
        matches!(self, Self::TableRemoved | Self::ChainRemoved | Self::RuleRemoved | Self::SetRemoved)
    }

    const fn of(kind: u16) -> Option<Self> {
        match kind {
            kind::NEW_TABLE => Some(Self::TableAdded),
            kind::DELETE_TABLE => Some(Self::TableRemoved),
            kind::NEW_CHAIN => Some(Self::ChainAdded),
            kind::DELETE_CHAIN => Some(Self::ChainRemoved),
            kind::NEW_RULE => Some(Self::RuleAdded),
            kind::DELETE_RULE => Some(Self::RuleRemoved),
            kind::NEW_SET => Some(Self::SetAdded),
            kind::DELETE_SET => Some(Self::SetRemoved),
            _ => None,
        }
    }
}

/// A TCP connection that began or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionChange {
    /// Its first packet went out or was delivered.
    Began(Entry),
    /// The kernel has forgotten it.
    Ended(Entry),
}

/// What can be read out of a message of some group.
trait Change: Sized {
    fn read(message: Message<'_>) -> Option<Self>;
}

impl Change for TableChange {
    fn read(message: Message<'_>) -> Option<Self> {
        let deed = ChangeKind::of(message.kind)?;
        let text = |kind| message.attributes().find(kind).and_then(Attribute::text).map(Into::into);
        let chain = match deed {
            ChangeKind::ChainAdded | ChangeKind::ChainRemoved => text(attribute::CHAIN_NAME),
            ChangeKind::RuleAdded | ChangeKind::RuleRemoved => text(attribute::RULE_CHAIN),
            ChangeKind::TableAdded | ChangeKind::TableRemoved | ChangeKind::SetAdded | ChangeKind::SetRemoved => None,
        };
        let family = Family::of(message.family()?)?;
        Some(Self { deed, family, table: text(attribute::TABLE)?, chain, by: message.cause })
    }
}

impl Change for ConnectionChange {
    fn read(message: Message<'_>) -> Option<Self> {
        let entry = Entry::read(message)?;
        match message.kind {
            conntrack::kind::NEW => Some(Self::Began(entry)),
            conntrack::kind::DELETE => Some(Self::Ended(entry)),
            _ => None,
        }
    }
}

/// Whether the message tells of a change of some kind.
pub(super) fn reads_change(message: Message<'_>) -> bool {
    TableChange::read(message).is_some() || ConnectionChange::read(message).is_some()
}

#[derive(Debug)]
struct Watch<T> {
    socket: Socket,
    /// What came in one datagram and has not been handed out.
    waiting: VecDeque<T>,
}

impl<T: Change> Watch<T> {
    fn open(groups: u32) -> Result<Self, Cause> {
        let socket = Socket::open(groups, Duration::ZERO)?;
        socket.make_room(ROOM);
        Ok(Self { socket, waiting: VecDeque::new() })
    }

    fn next(&mut self, patience: Duration) -> Result<Heard<T>, Cause> {
        let mut deadline = None;
        loop {
            if let Some(change) = self.waiting.pop_front() {
                return Ok(Heard::Change(change));
            }
            let left = match deadline {
                None => patience,
                Some(deadline) => Instant::saturating_duration_since(&deadline, Instant::now()),
            };
            deadline.get_or_insert_with(|| Instant::now() + left);
            match self.socket.hear(left) {
                Ok(Some(datagram)) => self.waiting.extend(Messages::of(datagram).filter_map(T::read)),
                Ok(None) => return Ok(Heard::Nothing),
                Err(Cause::Lost) => return Ok(Heard::Missed),
                Err(cause) => return Err(cause),
            }
        }
    }
}

/// Hears of changes to rulesets.
#[derive(Debug)]
pub struct TableWatch(Watch<TableChange>);

impl TableWatch {
    /// Begins to listen.
    pub fn open() -> Result<Self, Error> {
        Watch::open(TABLES).map(Self).map_err(|cause| Error::new(Operation::Watch, "the rulesets", cause))
    }

    /// From now on does not hear of what is done through the socket with this number: see [`Tables::number`].
    ///
    /// Each element that comes or goes is news to whoever watches, and to be woken for one's own would cost more than
    /// the element itself.
    ///
    /// [`Tables::number`]: super::Tables::number
    pub fn ignore(&self, number: u32) -> Result<(), Error> {
        let program = filter::by_others(number);
        self.0.socket.filter(&program).map_err(|cause| Error::new(Operation::Watch, "the rulesets", cause))
    }

    /// The next change; [`Heard::Nothing`] if none comes in that time, or a signal does.
    pub fn next(&mut self, patience: Duration) -> Result<Heard<TableChange>, Error> {
        self.0.next(patience).map_err(|cause| Error::new(Operation::Watch, "the rulesets", cause))
    }
}

/// Hears of all TCP connections that begin or end, where the kernel tells of them.
#[derive(Debug)]
pub struct ConnectionWatch(Watch<ConnectionChange>);

impl ConnectionWatch {
    /// Begins to listen to connections that end.
    pub fn ends() -> Result<Self, Error> {
        Self::open(CONNECTIONS_END)
    }

    /// Begins to listen to connections that begin or end.
    pub fn begins_and_ends() -> Result<Self, Error> {
        Self::open(CONNECTIONS_BEGIN | CONNECTIONS_END)
    }

    fn open(groups: u32) -> Result<Self, Error> {
        Watch::open(groups).map(Self).map_err(|cause| Error::new(Operation::Watch, "the connections", cause))
    }

    /// From now on hears only of connections that begin with all these bits in their mark or that a helper expected, and
    /// of the ends of those that were dialled to one of these ports. All others of a busy host go by without a sound.
    pub fn narrow(&self, bits: u32, ports: &[Port]) -> Result<(), Error> {
        let program = filter::of_interest(bits, ports);
        self.0.socket.filter(&program).map_err(|cause| Error::new(Operation::Watch, "the connections", cause))
    }

    /// The next change; [`Heard::Nothing`] if none comes in that time, or a signal does.
    pub fn next(&mut self, patience: Duration) -> Result<Heard<ConnectionChange>, Error> {
        self.0.next(patience).map_err(|cause| Error::new(Operation::Watch, "the connections", cause))
    }
}

impl AsFd for TableWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

impl AsFd for ConnectionWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::bytes::{Head, Writer};
    use super::*;

    fn change(kind: u16, family: u8, names: &[(u16, &str)]) -> Option<TableChange> {
        let mut writer = Writer::default();
        let head = Head { kind, flags: 0, sequence: 0, family, resource: 0 };
        writer.message(head, |w| names.iter().for_each(|(kind, name)| w.text(*kind, name)));
        Messages::of(writer.as_bytes()).next().and_then(TableChange::read)
    }

    #[test]
    fn a_removed_rule_has_a_table_and_a_chain() {
        let removed = change(kind::DELETE_RULE, 1, &[(1, "filter"), (2, "input")]).expect("a change");
        assert_eq!((removed.deed, removed.family), (ChangeKind::RuleRemoved, Family::Inet));
        assert_eq!((&*removed.table, removed.chain.as_deref()), ("filter", Some("input")));
        assert!(removed.deed.is_removal());
    }

    #[test]
    fn a_chain_has_its_name_elsewhere() {
        let added = change(kind::NEW_CHAIN, 2, &[(1, "filter"), (3, "forward")]).expect("a change");
        assert_eq!((added.chain.as_deref(), added.family), (Some("forward"), Family::Ip));
    }

    #[test]
    fn elements_and_other_families_are_no_changes() {
        assert_eq!(change(kind::NEW_ELEMENT, 1, &[(1, "pinhole"), (2, "pinholes4")]), None);
        assert_eq!(change(kind::NEW_TABLE, 7, &[(1, "bridge")]), None);
        assert_eq!(change(kind::NEW_TABLE, 1, &[]), None);
    }
}
