//! Connection tracking: which connection a packet belongs to, the mark on it, and how its sequence numbers are corrected.

use std::fmt;
use std::time::Duration;

use super::bytes::{Attribute, Attributes, Message, Writer, flags};
use super::error::{Cause, Error, Operation};
use super::socket::Socket;
use super::tuple::{Tuple, family};
use crate::core::net::{Connection, Flow};

/// Messages, with the subsystem in the high byte.
pub(super) mod kind {
    pub(crate) const NEW: u16 = 0x0100;
    pub(crate) const GET: u16 = 0x0101;
    pub(crate) const DELETE: u16 = 0x0102;
}

pub(super) const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
pub(super) const STATUS: u16 = 3;
const PROTOCOL_STATE: u16 = 4;
const HELPER: u16 = 5;
const TIMEOUT: u16 = 7;
pub(super) const MARK: u16 = 8;
const ID: u16 = 12;
const ADJUSTMENT_ORIGINAL: u16 = 15;
const ADJUSTMENT_REPLY: u16 = 16;
const MARK_MASK: u16 = 21;

/// The bit of a connection that a helper expected.
pub(super) const EXPECTED: u32 = 1;

/// IPv4, IPv6.
const FAMILIES: [u8; 2] = [2, 10];

const HELPER_NAME: u16 = 1;

const POSITION: u16 = 1;
const OFFSET_BEFORE: u16 = 2;
const OFFSET_AFTER: u16 = 3;

const TCP_STATE: u16 = 1;
const TCP_STATE_NUMBER: u16 = 1;
/// TCP_CONNTRACK_SYN_RECV: the SYN was answered, and the answer has not been acknowledged.
const TCP_SYN_RECV: u8 = 2;
const TCP_ESTABLISHED: u8 = 3;
const TCP_FLAGS_ORIGINAL: u16 = 4;
const TCP_FLAGS_REPLY: u16 = 5;
/// IP_CT_TCP_FLAG_BE_LIBERAL: what is outside of the window is not invalid for it.
const LIBERAL: u8 = 0x08;

/// What the kernel knows about a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The addresses of its packets, in either direction, as they arrive.
    pub connection: Connection,
    /// Bits that the kernel keeps about it, as linux/netfilter/nf_conntrack_common.h names them.
    pub status: u32,
    /// Its mark.
    pub mark: u32,
    /// Whether both ends may go on talking: it has begun and neither has said that it ends. What the kernel tells of a
    /// connection that it has forgotten does not say so.
    pub is_established: bool,
    /// Whether it is just being opened: the SYN was answered, and nothing has come since then.
    pub is_opening: bool,
    /// A number that no other connection has while this one lasts.
    pub id: Option<u32>,
    /// How the sequence numbers of its packets are corrected, in the original direction and in the other one, where that
    /// was asked for.
    pub adjustments: [Option<SequenceAdjustment>; 2],
}

/// What the kernel adds to the sequence numbers of one direction: as it keeps it, see `nf_conntrack_seqadj.c` there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SequenceAdjustment {
    /// The last sequence number that gets `before`, as the sender counts.
    pub position: u32,
    /// What is added up to there.
    pub before: i32,
    /// What is added behind it.
    pub after: i32,
}

/// A connection to the kernel's connection tracking. Each call returns when the kernel has done it.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens it; an answer may take so long.
    pub fn open(patience: Duration) -> Result<Self, Error> {
        let socket = Socket::open(0, patience);
        socket
            .map(|socket| Self { socket })
            .map_err(|cause| Error::new(Operation::Connect, "connection tracking", cause))
    }

    /// The TCP connection to which packets with these addresses belong, whichever way they go; none if the kernel
    /// tracks no such.
    pub fn find(&mut self, flow: &Flow) -> Result<Option<Entry>, Error> {
        match self.socket.look_up(
            kind::GET,
            family(flow.source.address),
            |w| Tuple::from(flow).write(w, ORIGINAL),
            Entry::read,
        ) {
            Ok(entry) => Ok(Some(entry)),
            Err(cause) if cause.is_missing() => Ok(None),
            Err(cause) => Err(error(Operation::Read, flow, cause)),
        }
    }

    /// Sets the bits of `mask` in a connection's mark to those of `bits`. Whether there is such a connection.
    pub fn mark(&mut self, flow: &Flow, bits: u32, mask: u32) -> Result<bool, Error> {
        self.change(flow, |w| {
            w.number(MARK, bits);
            w.number(MARK_MASK, mask);
        })
    }

    /// Has the sequence numbers of one direction corrected, and the windows of both judged liberally from then on.
    /// Whether there is such a connection.
    ///
    /// The kernel says the same where the connection was not prepared for that, and does nothing: look at it afterwards.
    pub fn adjust(&mut self, flow: &Flow, is_original: bool, adjustment: &SequenceAdjustment) -> Result<bool, Error> {
        self.change(flow, |w| {
            write_liberal(w);
            let kind = if is_original { ADJUSTMENT_ORIGINAL } else { ADJUSTMENT_REPLY };
            w.nested(kind, |w| adjustment.write(w));
        })
    }

    /// Has the windows of both directions judged liberally from now on: none of its packets is invalid because of its
    /// numbers. Whether there is such a connection.
    pub fn set_tcp_be_liberal(&mut self, flow: &Flow) -> Result<bool, Error> {
        self.change(flow, write_liberal)
    }

    /// Changes something about a connection. Whether there is such a one.
    fn change(&mut self, flow: &Flow, write: impl FnOnce(&mut Writer)) -> Result<bool, Error> {
        let changed = self.socket.request(kind::NEW, 0, family(flow.source.address), |w| {
            Tuple::from(flow).write(w, ORIGINAL);
            write(w);
        });
        match changed {
            Ok(()) => Ok(true),
            Err(cause) if cause.is_missing() => Ok(false),
            Err(cause) => Err(error(Operation::Change, flow, cause)),
        }
    }

    /// Makes the kernel believe that there is such a connection, with a helper of that name. Nobody sends anything in it.
    pub fn create_dummy_entry(&mut self, connection: &Connection, helper: &str, time: Duration) -> Result<(), Error> {
        let Connection { original, reply } = connection;
        let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let made =
            self.socket.request(kind::NEW, flags::CREATE | flags::EXCLUSIVE, family(original.source.address), |w| {
                Tuple::from(original).write(w, ORIGINAL);
                Tuple::from(reply).write(w, REPLY);
                w.number(TIMEOUT, seconds);
                w.nested(HELPER, |found| found.text(HELPER_NAME, helper));
            });
        made.map_err(|cause| error(Operation::Add, original, cause))
    }

    /// Has the kernel forget a connection, and what is expected for it. Whether there was such a one.
    pub fn forget(&mut self, flow: &Flow) -> Result<bool, Error> {
        let write = |w: &mut Writer| Tuple::from(flow).write(w, ORIGINAL);
        match self.socket.request(kind::DELETE, 0, family(flow.source.address), write) {
            Ok(()) => Ok(true),
            Err(cause) if cause.is_missing() => Ok(false),
            Err(cause) => Err(error(Operation::Remove, flow, cause)),
        }
    }

    /// All TCP connections of which `is_wanted` says so.
    pub fn list(&mut self, is_wanted: impl Fn(&Entry) -> bool) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        for family in FAMILIES {
            self.socket
                .dump(kind::GET, family, |_| {}, |message| entries.extend(Entry::read(message).filter(&is_wanted)))
                .map_err(|cause| Error::new(Operation::Read, "the connections", cause))?;
        }
        Ok(entries)
    }
}

fn error(operation: Operation, flow: &Flow, cause: Cause) -> Error {
    Error::new(operation, format_args!("connection {flow}"), cause)
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} / {}", self.connection.original, self.connection.reply)
    }
}

impl Entry {
    /// Whether a helper expected it.
    pub const fn is_expected(&self) -> bool {
        self.status & EXPECTED != 0
    }

    /// The entry in a message, if it is a TCP connection.
    pub(super) fn read(message: Message<'_>) -> Option<Self> {
        let attributes = message.attributes();
        let flow = |kind| Tuple::read(attributes.find(kind)?.nested())?.flow();
        let number = |kind| attributes.find(kind).and_then(Attribute::u32);
        Some(Self {
            connection: Connection { original: flow(ORIGINAL)?, reply: flow(REPLY)? },
            status: number(STATUS).unwrap_or(0),
            mark: number(MARK).unwrap_or(0),
            is_established: tcp_state(attributes) == Some(TCP_ESTABLISHED),
            is_opening: tcp_state(attributes) == Some(TCP_SYN_RECV),
            id: number(ID),
            adjustments: [ADJUSTMENT_ORIGINAL, ADJUSTMENT_REPLY]
                .map(|kind| attributes.find(kind).and_then(|found| SequenceAdjustment::read(found.nested()))),
        })
    }
}

fn write_liberal(w: &mut Writer) {
    w.nested(PROTOCOL_STATE, |state| {
        state.nested(TCP_STATE, |tcp| {
            for direction in [TCP_FLAGS_ORIGINAL, TCP_FLAGS_REPLY] {
                // The bits, and which of them count.
                tcp.attribute(direction, &[LIBERAL, LIBERAL]);
            }
        });
    });
}

fn tcp_state(entry: Attributes<'_>) -> Option<u8> {
    entry.find(PROTOCOL_STATE)?.nested().find(TCP_STATE)?.nested().find(TCP_STATE_NUMBER)?.u8()
}

impl SequenceAdjustment {
    fn write(&self, w: &mut Writer) {
        w.number(POSITION, self.position);
        w.number(OFFSET_BEFORE, self.before.cast_unsigned());
        w.number(OFFSET_AFTER, self.after.cast_unsigned());
    }

    /// One that was set. Once one direction's was, the kernel shows both; the other one is all zero, and does nothing.
    fn read(found: Attributes<'_>) -> Option<Self> {
        let number = |kind| found.find(kind).and_then(Attribute::u32);
        let read = Self {
            position: number(POSITION)?,
            before: number(OFFSET_BEFORE)?.cast_signed(),
            after: number(OFFSET_AFTER)?.cast_signed(),
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

    const HEAD: Head = Head { kind: kind::NEW, flags: 0, sequence: 0, family: FAMILIES[0], resource: 0 };

    fn flow(from: &str, to: &str) -> Flow {
        let end = |text: &str| {
            let address: std::net::SocketAddr = text.parse().expect("an address");
            Endpoint::new(address.ip(), Port::new(address.port()).expect("a port"))
        };
        Flow { source: end(from), destination: end(to) }
    }

    #[test]
    fn what_is_written_is_read() {
        for (from, to, back) in
            [("10.0.0.1:4000", "10.0.0.2:21", "192.0.2.1:61000"), ("[fd00::1]:1", "[fd00::2]:21", "[fd00::3]:9")]
        {
            let connection = Connection { original: flow(from, to), reply: flow(to, back) };
            let adjustment = SequenceAdjustment { position: u32::MAX, before: -7, after: 8 };
            let mut writer = Writer::default();
            writer.message(HEAD, |w| {
                Tuple::from(&connection.original).write(w, ORIGINAL);
                Tuple::from(&connection.reply).write(w, REPLY);
                w.number(MARK, 7);
                w.nested(ADJUSTMENT_ORIGINAL, |w| SequenceAdjustment { position: 0, before: 0, after: 0 }.write(w));
                w.nested(ADJUSTMENT_REPLY, |w| adjustment.write(w));
            });
            let entry = Messages::of(writer.as_bytes()).next().and_then(Entry::read);
            let adjustments = [None, Some(adjustment)];
            assert_eq!(
                entry,
                Some(Entry {
                    connection,
                    status: 0,
                    mark: 7,
                    is_established: false,
                    is_opening: false,
                    id: None,
                    adjustments
                })
            );
        }
    }

    #[test]
    fn other_protocols_have_no_ports() {
        let mut writer = Writer::default();
        writer.message(HEAD, |w| w.nested(ORIGINAL, |tuple| tuple.nested(1, |_| {})));
        assert_eq!(Messages::of(writer.as_bytes()).next().and_then(Entry::read), None);
    }

    proptest! {
        #[test]
        fn any_attributes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut writer = Writer::default();
            writer.message(HEAD, |w| {
                w.attribute(ORIGINAL, &bytes);
                w.nested(REPLY, |w| w.attribute(1, &bytes));
            });
            for message in Messages::of(writer.as_bytes()) {
                let _ = Entry::read(message);
            }
        }
    }
}
