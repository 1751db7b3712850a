//! Conntrack entries (ctnetlink, linux/netfilter/nfnetlink_conntrack.h): the connection of a packet, its mark, its sequence
//! adjustments.

use std::fmt;
use std::time::Duration;

use super::bytes::{Attribute, Attributes, Message, Writer};
use super::error::{Cause, Error, Operation, existing};
use super::socket::Socket;
use super::tuple::{Tuple, family};
use super::uapi::*;
use crate::core::net::{Connection, Flow};

/// The conntrack entry of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackEntry {
    /// The addresses of its packets in both directions, as they arrive.
    pub connection: Connection,
    /// `IPS_*` bits (linux/netfilter/nf_conntrack_common.h).
    pub status: u32,
    pub mark: u32,
    /// Whether its TCP state is ESTABLISHED: neither end has sent a FIN. An event for an entry that ends has no state.
    pub is_established: bool,
    /// Whether its TCP state is SYN_RECV: the SYN was answered, and the answer is not acknowledged.
    pub is_opening: bool,
    /// The ID, unique among the entries of one time.
    pub id: Option<u32>,
    /// The bytes of both directions, with headers, if the kernel counts them (`nf_conntrack_acct`).
    pub bytes: Option<u64>,
    /// The sequence adjustments of the original and the reply direction, where they are set.
    pub adjustments: [Option<SequenceAdjustment>; 2],
}

/// What the kernel adds to the sequence numbers of one direction (`struct nf_ct_seqadj`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SequenceAdjustment {
    /// `correction_pos`: the last of the sender's sequence numbers that gets `before`.
    pub position: u32,
    /// `offset_before`: added up to there.
    pub before: i32,
    /// `offset_after`: added behind it.
    pub after: i32,
}

/// A socket for requests to conntrack. Each call returns when the kernel has carried out the request.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens the socket. The kernel may take `timeout` to answer a request.
    pub fn open(timeout: Duration) -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(NFNL_SUBSYS_CTNETLINK, "connection tracking", timeout)? })
    }

    /// The TCP connection to which packets with these addresses belong, in either direction; none if conntrack has none.
    pub fn find(&mut self, flow: &Flow) -> Result<Option<ConntrackEntry>, Error> {
        let tuple = |w: &mut Writer| Tuple::from(flow).write(w, CTA_TUPLE_ORIG);
        existing(self.socket.look_up(IPCTNL_MSG_CT_GET, family(flow.source.address), tuple, ConntrackEntry::read))
            .map_err(|cause| error(Operation::Read, flow, cause))
    }

    /// Sets the bits of `mask` in the mark of a connection to those of `bits`. Returns whether there is an entry.
    pub fn mark(&mut self, flow: &Flow, bits: u32, mask: u32) -> Result<bool, Error> {
        self.change(flow, |w| {
            w.u32(CTA_MARK, bits);
            w.u32(CTA_MARK_MASK, mask);
        })
    }

    /// Sets the sequence adjustment of one direction, and `IP_CT_TCP_FLAG_BE_LIBERAL` of both. Returns whether there is an
    /// entry.
    ///
    /// The kernel also reports success if the entry has no seqadj extension, and does nothing: read the entry afterwards.
    pub fn adjust(&mut self, flow: &Flow, is_original: bool, adjustment: &SequenceAdjustment) -> Result<bool, Error> {
        self.change(flow, |w| {
            write_liberal(w);
            let kind = if is_original { CTA_SEQ_ADJ_ORIG } else { CTA_SEQ_ADJ_REPLY };
            w.nested(kind, |w| adjustment.write(w));
        })
    }

    /// Sets `IP_CT_TCP_FLAG_BE_LIBERAL` of both directions: segments outside the window are not invalid from now on.
    /// Returns whether there is an entry.
    pub fn set_tcp_be_liberal(&mut self, flow: &Flow) -> Result<bool, Error> {
        self.change(flow, write_liberal)
    }

    /// Changes an entry. Returns whether there is one.
    fn change(&mut self, flow: &Flow, write: impl FnOnce(&mut Writer)) -> Result<bool, Error> {
        let changed = self.socket.request(IPCTNL_MSG_CT_NEW, 0, family(flow.source.address), |w| {
            Tuple::from(flow).write(w, CTA_TUPLE_ORIG);
            write(w);
        });
        match existing(changed) {
            Ok(changed) => Ok(changed.is_some()),
            Err(cause) => Err(error(Operation::Change, flow, cause)),
        }
    }

    /// Creates the entry of a connection without packets, with a helper of that name.
    pub fn create_dummy_entry(&mut self, connection: &Connection, helper: &str, time: Duration) -> Result<(), Error> {
        let Connection { original, reply } = connection;
        let family = family(original.source.address);
        let created = self.socket.request(IPCTNL_MSG_CT_NEW, NLM_F_CREATE | NLM_F_EXCL, family, |w| {
            Tuple::from(original).write(w, CTA_TUPLE_ORIG);
            Tuple::from(reply).write(w, CTA_TUPLE_REPLY);
            w.seconds(CTA_TIMEOUT, time);
            w.nested(CTA_HELP, |help| help.string(CTA_HELP_NAME, helper));
        });
        created.map_err(|cause| error(Operation::Add, original, cause))
    }

    /// Deletes the entry of a connection, and its expectations. Returns whether there was one.
    pub fn delete(&mut self, flow: &Flow) -> Result<bool, Error> {
        let tuple = |w: &mut Writer| Tuple::from(flow).write(w, CTA_TUPLE_ORIG);
        match existing(self.socket.request(IPCTNL_MSG_CT_DELETE, 0, family(flow.source.address), tuple)) {
            Ok(deleted) => Ok(deleted.is_some()),
            Err(cause) => Err(error(Operation::Remove, flow, cause)),
        }
    }

    /// The entries of all TCP connections in the default zone that `is_wanted` accepts.
    pub fn list(&mut self, is_wanted: impl Fn(&ConntrackEntry) -> bool) -> Result<Vec<ConntrackEntry>, Error> {
        let mut entries = Vec::new();
        for family in [NFPROTO_IPV4, NFPROTO_IPV6] {
            let read = |message: Message<'_>| {
                ConntrackEntry::read(message).filter(|entry| is_wanted(entry) && !is_in_zone(message))
            };
            let found = self.socket.list(IPCTNL_MSG_CT_GET, family, |_| {}, read);
            entries.extend(found.map_err(|cause| Error::new(Operation::Read, "the connections", cause))?);
        }
        Ok(entries)
    }
}

/// Whether the entry in a message is in another zone than the default one, in both directions or in one.
pub(super) fn is_in_zone(message: Message<'_>) -> bool {
    let of_direction = |kind| {
        let tuple = message.attributes().find(kind);
        tuple.is_some_and(|tuple| tuple.nested().find(CTA_TUPLE_ZONE).is_some())
    };
    message.attributes().find(CTA_ZONE).is_some() || of_direction(CTA_TUPLE_ORIG) || of_direction(CTA_TUPLE_REPLY)
}

fn error(operation: Operation, flow: &Flow, cause: Cause) -> Error {
    Error::new(operation, format_args!("connection {flow}"), cause)
}

impl fmt::Display for ConntrackEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} / {}", self.connection.original, self.connection.reply)
    }
}

impl ConntrackEntry {
    /// Whether a helper expected the connection.
    pub const fn is_expected(&self) -> bool {
        self.status & IPS_EXPECTED != 0
    }

    /// The entry in a message, if it is of a TCP connection.
    pub(super) fn read(message: Message<'_>) -> Option<Self> {
        let attributes = message.attributes();
        let flow = |kind| Tuple::read(attributes.find(kind)?.nested())?.flow();
        let number = |kind| attributes.find(kind).and_then(Attribute::u32);
        let bytes = |kind| attributes.find(kind)?.nested().find(CTA_COUNTERS_BYTES)?.u64();
        let state = tcp_state(attributes);
        Some(Self {
            connection: Connection { original: flow(CTA_TUPLE_ORIG)?, reply: flow(CTA_TUPLE_REPLY)? },
            status: number(CTA_STATUS).unwrap_or(0),
            mark: number(CTA_MARK).unwrap_or(0),
            is_established: state == Some(TCP_CONNTRACK_ESTABLISHED),
            is_opening: state == Some(TCP_CONNTRACK_SYN_RECV),
            id: number(CTA_ID),
            bytes: bytes(CTA_COUNTERS_ORIG)
                .zip(bytes(CTA_COUNTERS_REPLY))
                .map(|(one, other)| one.saturating_add(other)),
            adjustments: [CTA_SEQ_ADJ_ORIG, CTA_SEQ_ADJ_REPLY]
                .map(|kind| attributes.find(kind).and_then(|found| SequenceAdjustment::read(found.nested()))),
        })
    }
}

fn write_liberal(w: &mut Writer) {
    w.nested(CTA_PROTOINFO, |state| {
        state.nested(CTA_PROTOINFO_TCP, |tcp| {
            for direction in [CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, CTA_PROTOINFO_TCP_FLAGS_REPLY] {
                // struct nf_ct_tcp_flags: flags, mask.
                tcp.bytes(direction, &[IP_CT_TCP_FLAG_BE_LIBERAL, IP_CT_TCP_FLAG_BE_LIBERAL]);
            }
        });
    });
}

fn tcp_state(entry: Attributes<'_>) -> Option<u8> {
    entry.find(CTA_PROTOINFO)?.nested().find(CTA_PROTOINFO_TCP)?.nested().find(CTA_PROTOINFO_TCP_STATE)?.u8()
}

impl SequenceAdjustment {
    fn write(&self, w: &mut Writer) {
        w.u32(CTA_SEQADJ_CORRECTION_POS, self.position);
        w.u32(CTA_SEQADJ_OFFSET_BEFORE, self.before.cast_unsigned());
        w.u32(CTA_SEQADJ_OFFSET_AFTER, self.after.cast_unsigned());
    }

    /// An adjustment that is set. When one direction has one, the kernel shows both, the other one as zeros.
    fn read(found: Attributes<'_>) -> Option<Self> {
        let number = |kind| found.find(kind).and_then(Attribute::u32);
        let read = Self {
            position: number(CTA_SEQADJ_CORRECTION_POS)?,
            before: number(CTA_SEQADJ_OFFSET_BEFORE)?.cast_signed(),
            after: number(CTA_SEQADJ_OFFSET_AFTER)?.cast_signed(),
        };
        (read != Self { position: 0, before: 0, after: 0 }).then_some(read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::bytes::{Head, Messages};
    use super::*;
    use crate::core::net::{Endpoint, Port};

    fn flow(from: &str, to: &str) -> Flow {
        let end = |text: &str| {
            let address: std::net::SocketAddr = text.parse().expect("an address");
            Endpoint::new(address.ip(), Port::new(address.port()).expect("a port"))
        };
        Flow { source: end(from), destination: end(to) }
    }

    #[test]
    fn written_message_is_read_back() {
        for (from, to, back) in
            [("10.0.0.1:4000", "10.0.0.2:21", "192.0.2.1:61000"), ("[fd00::1]:1", "[fd00::2]:21", "[fd00::3]:9")]
        {
            let connection = Connection { original: flow(from, to), reply: flow(to, back) };
            let adjustment = SequenceAdjustment { position: u32::MAX, before: -7, after: 8 };
            let mut writer = Writer::default();
            writer.message(Head::default(), |w| {
                Tuple::from(&connection.original).write(w, CTA_TUPLE_ORIG);
                Tuple::from(&connection.reply).write(w, CTA_TUPLE_REPLY);
                w.u32(CTA_MARK, 7);
                w.nested(CTA_COUNTERS_ORIG, |w| w.u64(CTA_COUNTERS_BYTES, 5));
                w.nested(CTA_COUNTERS_REPLY, |w| w.u64(CTA_COUNTERS_BYTES, 6 << 40));
                w.nested(CTA_SEQ_ADJ_ORIG, |w| SequenceAdjustment { position: 0, before: 0, after: 0 }.write(w));
                w.nested(CTA_SEQ_ADJ_REPLY, |w| adjustment.write(w));
            });
            let entry = Messages::of(writer.as_bytes()).next().and_then(ConntrackEntry::read);
            let adjustments = [None, Some(adjustment)];
            assert_eq!(
                entry,
                Some(ConntrackEntry {
                    connection,
                    status: 0,
                    mark: 7,
                    is_established: false,
                    is_opening: false,
                    id: None,
                    bytes: Some((6 << 40) + 5),
                    adjustments
                })
            );
        }
    }

    #[test]
    fn zone_of_either_kind_is_recognised() {
        let in_zone = |write: &dyn Fn(&mut Writer)| {
            let mut writer = Writer::default();
            writer.message(Head::default(), |w| write(w));
            Messages::of(writer.as_bytes()).next().is_some_and(is_in_zone)
        };
        assert!(!in_zone(&|w| w.nested(CTA_TUPLE_ORIG, |tuple| tuple.nested(CTA_TUPLE_IP, |_| {}))));
        assert!(in_zone(&|w| w.bytes(CTA_ZONE, &[0, 7])));
        assert!(in_zone(&|w| w.nested(CTA_TUPLE_REPLY, |tuple| tuple.bytes(CTA_TUPLE_ZONE, &[0, 7]))));
    }

    #[test]
    fn tuple_of_another_protocol_is_ignored() {
        let mut writer = Writer::default();
        writer.message(Head::default(), |w| w.nested(CTA_TUPLE_ORIG, |tuple| tuple.nested(CTA_TUPLE_IP, |_| {})));
        assert_eq!(Messages::of(writer.as_bytes()).next().and_then(ConntrackEntry::read), None);
    }

    proptest! {
        #[test]
        fn any_attributes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut writer = Writer::default();
            writer.message(Head::default(), |w| {
                w.bytes(CTA_TUPLE_ORIG, &bytes);
                w.nested(CTA_TUPLE_REPLY, |w| w.bytes(CTA_TUPLE_IP, &bytes));
            });
            for message in Messages::of(writer.as_bytes()) {
                let _ = ConntrackEntry::read(message);
            }
        }
    }
}
