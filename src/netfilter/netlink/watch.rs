//! Notifications of the kernel (multicast groups of linux/netfilter/nfnetlink.h): changes of the ruleset (nf_tables), new
//! and ended connections (ctnetlink).
//!
//! If a watcher does not read in time, its receive buffer overruns, and the watcher receives `WatchEvent::Overrun`.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::bytes::{Attribute, Message, Messages, message_type};
use super::conntrack::{ConntrackEntry, is_in_zone};
use super::error::{Cause, Error, Operation};
use super::socket::Socket;
use super::socket_filter;
use super::tables::Family;
use super::uapi::*;
use crate::core::net::Port;

/// The receive buffer of a watcher, for about ten thousand notifications.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How many datagrams without a change that the watcher needs are skipped in one call.
const MAX_SKIPPED: usize = 1 << 16;

const CT_NEW: u16 = message_type(NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW);
const CT_DELETE: u16 = message_type(NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE);

/// What a watcher received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent<T> {
    Change(T),
    /// Notifications were lost, so the state has to be read again.
    Overrun,
    /// There was no change within the timeout.
    Timeout,
}

/// A change of a ruleset, by any program. Changes of elements of sets are left out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableChange {
    pub kind: ChangeKind,
    pub family: Family,
    pub table: Box<str>,
    /// The chain, if a chain or a rule has changed.
    pub chain: Option<Box<str>>,
    /// The port ID of the socket that requested the change.
    pub port_id: u32,
}

/// What has changed in a ruleset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    TableAdded,
    TableRemoved,
    /// A chain was added or changed.
    ChainAdded,
    ChainRemoved,
    RuleAdded,
    RuleRemoved,
    /// A set was added.
    SetAdded,
    /// A set was removed.
    SetRemoved,
    /// A flowtable was added or changed.
    FlowtableAdded,
}

impl ChangeKind {
    /// Whether something was removed.
    pub const fn is_removal(self) -> bool {
        matches!(self, Self::TableRemoved | Self::ChainRemoved | Self::RuleRemoved | Self::SetRemoved)
    }

    const fn of(message: u16) -> Option<Self> {
        match message {
            NFT_MSG_NEWTABLE => Some(Self::TableAdded),
            NFT_MSG_DELTABLE => Some(Self::TableRemoved),
            NFT_MSG_NEWCHAIN => Some(Self::ChainAdded),
            NFT_MSG_DELCHAIN => Some(Self::ChainRemoved),
            NFT_MSG_NEWRULE => Some(Self::RuleAdded),
            NFT_MSG_DELRULE => Some(Self::RuleRemoved),
            NFT_MSG_NEWSET => Some(Self::SetAdded),
            NFT_MSG_DELSET => Some(Self::SetRemoved),
            NFT_MSG_NEWFLOWTABLE => Some(Self::FlowtableAdded),
            _ => None,
        }
    }
}

/// A TCP connection in the default zone that began or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionChange {
    /// Its first packet was sent on or delivered.
    Began(ConntrackEntry),
    /// Its conntrack entry was removed.
    Ended(ConntrackEntry),
}

/// A change that is read from a notification.
trait Change: Sized {
    fn read(message: Message<'_>) -> Option<Self>;
}

impl Change for TableChange {
    fn read(message: Message<'_>) -> Option<Self> {
        let kind = ChangeKind::of(message.kind.checked_sub(message_type(NFNL_SUBSYS_NFTABLES, 0))?)?;
        let string = |kind| message.attributes().find(kind).and_then(Attribute::string).map(Into::into);
        let chain = match kind {
            ChangeKind::ChainAdded | ChangeKind::ChainRemoved => string(NFTA_CHAIN_NAME),
            ChangeKind::RuleAdded | ChangeKind::RuleRemoved => string(NFTA_RULE_CHAIN),
            ChangeKind::TableAdded
            | ChangeKind::TableRemoved
            | ChangeKind::SetAdded
            | ChangeKind::SetRemoved
            | ChangeKind::FlowtableAdded => None,
        };
        let family = Family::of(message.family()?)?;
        Some(Self { kind, family, table: string(NFTA_TABLE_NAME)?, chain, port_id: message.port_id })
    }
}

impl Change for ConnectionChange {
    fn read(message: Message<'_>) -> Option<Self> {
        // Its addresses may belong to other hosts.
        let entry = ConntrackEntry::read(message).filter(|_| !is_in_zone(message))?;
        match message.kind {
            CT_NEW => Some(Self::Began(entry)),
            CT_DELETE => Some(Self::Ended(entry)),
            _ => None,
        }
    }
}

/// Whether the message is a notification of either kind.
pub(super) fn reads_change(message: Message<'_>) -> bool {
    TableChange::read(message).is_some() || ConnectionChange::read(message).is_some()
}

#[derive(Debug)]
struct Watch<T> {
    socket: Socket,
    /// Changes of a datagram that were not returned yet.
    pending: VecDeque<T>,
}

impl<T: Change> Watch<T> {
    fn open(subsystem: u16, groups: &[u32]) -> Result<Self, Cause> {
        let socket = Socket::subscribe(subsystem, groups, Duration::ZERO)?;
        socket.set_receive_buffer(RECEIVE_BUFFER);
        Ok(Self { socket, pending: VecDeque::new() })
    }

    fn next(&mut self, timeout: Duration) -> Result<WatchEvent<T>, Cause> {
        let mut deadline = None;
        for _ in 0..MAX_SKIPPED {
            if let Some(change) = self.pending.pop_front() {
                return Ok(WatchEvent::Change(change));
            }
            let left = match deadline {
                None => timeout,
                Some(deadline) => Instant::saturating_duration_since(&deadline, Instant::now()),
            };
            deadline.get_or_insert_with(|| Instant::now() + left);
            match self.socket.receive(left) {
                Ok(Some(datagram)) => self.pending.extend(Messages::of(datagram).filter_map(T::read)),
                Ok(None) => return Ok(WatchEvent::Timeout),
                Err(Cause::Overrun) => return Ok(WatchEvent::Overrun),
                Err(cause) => return Err(cause),
            }
        }
        Ok(self.pending.pop_front().map_or(WatchEvent::Timeout, WatchEvent::Change))
    }
}

/// Receives changes of rulesets.
#[derive(Debug)]
pub struct TableWatch(Watch<TableChange>);

impl TableWatch {
    /// Subscribes.
    pub fn open() -> Result<Self, Error> {
        Watch::open(NFNL_SUBSYS_NFTABLES, &[NFNLGRP_NFTABLES]).map(Self).map_err(Self::error)
    }

    /// From now on receives no changes of the socket with this port ID: see [`Tables::port_id`].
    ///
    /// The kernel notifies watchers of each element that is added or removed, and being woken for the own ones would cost
    /// more than the elements do.
    ///
    /// [`Tables::port_id`]: super::Tables::port_id
    pub fn ignore(&self, port_id: u32) -> Result<(), Error> {
        self.0.socket.attach_filter(&socket_filter::without_port_id(port_id)).map_err(Self::error)
    }

    /// The next change. [`WatchEvent::Timeout`] if there is none within the timeout, or before a signal.
    pub fn next(&mut self, timeout: Duration) -> Result<WatchEvent<TableChange>, Error> {
        self.0.next(timeout).map_err(Self::error)
    }

    fn error(cause: Cause) -> Error {
        Error::new(Operation::Watch, "the rulesets", cause)
    }
}

/// Receives TCP connections that begin or end, where the kernel has conntrack events.
#[derive(Debug)]
pub struct ConnectionWatch(Watch<ConnectionChange>);

impl ConnectionWatch {
    /// Subscribes to connections that end.
    pub fn ends() -> Result<Self, Error> {
        Self::open(&[NFNLGRP_CONNTRACK_DESTROY])
    }

    /// Subscribes to connections that begin or end.
    pub fn begins_and_ends() -> Result<Self, Error> {
        Self::open(&[NFNLGRP_CONNTRACK_NEW, NFNLGRP_CONNTRACK_DESTROY])
    }

    fn open(groups: &[u32]) -> Result<Self, Error> {
        Watch::open(NFNL_SUBSYS_CTNETLINK, groups).map(Self).map_err(Self::error)
    }

    /// Restricts the events to new connections that have all these bits in their mark or that a helper expected, and to
    /// ended connections with one of these original destination ports.
    pub fn narrow(&self, mark_bits: u32, ports: &[Port]) -> Result<(), Error> {
        self.0.socket.attach_filter(&socket_filter::connections(mark_bits, ports)).map_err(Self::error)
    }

    /// The next change. [`WatchEvent::Timeout`] if there is none within the timeout, or before a signal.
    pub fn next(&mut self, timeout: Duration) -> Result<WatchEvent<ConnectionChange>, Error> {
        self.0.next(timeout).map_err(Self::error)
    }

    fn error(cause: Cause) -> Error {
        Error::new(Operation::Watch, "the connections", cause)
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

    fn change(message: u16, family: u8, names: &[(u16, &str)]) -> Option<TableChange> {
        let mut writer = Writer::default();
        let head = Head { kind: message_type(NFNL_SUBSYS_NFTABLES, message), family, ..Head::default() };
        writer.message(head, |w| names.iter().for_each(|(kind, name)| w.string(*kind, name)));
        Messages::of(writer.as_bytes()).next().and_then(TableChange::read)
    }

    #[test]
    fn removed_rule_is_reported_with_its_chain() {
        let removed = change(NFT_MSG_DELRULE, NFPROTO_INET, &[(NFTA_RULE_TABLE, "filter"), (NFTA_RULE_CHAIN, "input")])
            .expect("a change");
        assert_eq!((removed.kind, removed.family), (ChangeKind::RuleRemoved, Family::Inet));
        assert_eq!((&*removed.table, removed.chain.as_deref()), ("filter", Some("input")));
        assert!(removed.kind.is_removal());
    }

    #[test]
    fn changed_chain_is_reported() {
        let added =
            change(NFT_MSG_NEWCHAIN, NFPROTO_IPV4, &[(NFTA_CHAIN_TABLE, "filter"), (NFTA_CHAIN_NAME, "forward")])
                .expect("a change");
        assert_eq!((added.chain.as_deref(), added.family), (Some("forward"), Family::Ip));
    }

    #[test]
    fn added_flowtable_is_reported() {
        let added = change(NFT_MSG_NEWFLOWTABLE, NFPROTO_INET, &[(NFTA_TABLE_NAME, "filter")]).expect("a change");
        assert_eq!((added.kind, &*added.table, added.chain), (ChangeKind::FlowtableAdded, "filter", None));
    }

    #[test]
    fn elements_and_other_families_are_no_changes() {
        assert_eq!(
            change(
                NFT_MSG_NEWSETELEM,
                NFPROTO_INET,
                &[(NFTA_SET_ELEM_LIST_TABLE, "pinhole"), (NFTA_SET_ELEM_LIST_SET, "pinholes4")]
            ),
            None
        );
        assert_eq!(change(NFT_MSG_NEWTABLE, 7, &[(NFTA_TABLE_NAME, "bridge")]), None);
        assert_eq!(change(NFT_MSG_NEWTABLE, NFPROTO_INET, &[]), None);
    }
}
