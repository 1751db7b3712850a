//! Userspace conntrack helpers (nfnetlink_cthelper): the kernel keeps their expectations, and inspects no packet for
//! them.
//!
//! The kernel has one list of helpers for all network namespaces. Rules assign them to connections by name. Knows
//! nothing of the protocol of a helper.

use std::time::Duration;

use rustix::io::Errno;

use super::bytes::{Attribute, Attributes, Message, Writer, flags};
use super::error::{Cause, Error, Operation};
use super::socket::Socket;
use super::tables::Family;
use super::tuple::TCP;

/// Messages, with the subsystem in the high byte.
mod kind {
    pub(super) const NEW: u16 = 0x0900;
    pub(super) const GET: u16 = 0x0901;
    pub(super) const DELETE: u16 = 0x0902;
}

const NAME: u16 = 1;
const TUPLE: u16 = 2;
const QUEUE: u16 = 3;
const POLICIES: u16 = 4;
const DATA_LENGTH: u16 = 5;
const STATUS: u16 = 6;

const TUPLE_NETWORK: u16 = 1;
const TUPLE_TRANSPORT: u16 = 2;

const POLICY_COUNT: u16 = 1;
const FIRST_POLICY: u16 = 2;
const POLICY_NAME: u16 = 1;
const POLICY_MAXIMUM: u16 = 2;
const POLICY_TIMEOUT: u16 = 3;

/// Its connections' packets are not queued for it.
const DISABLED: u32 = 0;
const ENABLED: u32 = 1;

/// The most expectations that the kernel lets one connection have.
pub const MOST_EXPECTATIONS: u32 = 255;

/// A helper for TCP that belongs to a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Helper {
    /// Its name, as rules give it.
    pub name: Box<str>,
    /// IPv4 or IPv6.
    pub network: Family,
    /// The name of its one kind of expectations.
    pub class: Box<str>,
    /// How many of them a connection may have. One more, and the oldest goes.
    pub maximum: u32,
    /// How long one stands; the kernel counts in whole seconds.
    pub timeout: Duration,
    /// Whether the packets of its connections are queued for it.
    pub is_enabled: bool,
}

/// A connection to the kernel's list of such helpers. Each call returns when the kernel has done it.
#[derive(Debug)]
pub struct Helpers {
    socket: Socket,
}

impl Helpers {
    /// Opens it; an answer may take so long.
    pub fn open(patience: Duration) -> Result<Self, Error> {
        let socket = Socket::open(0, patience);
        socket
            .map(|socket| Self { socket })
            .map_err(|cause| Error::new(Operation::Connect, "the helpers of connection tracking", cause))
    }

    /// Adds a helper. Nothing is changed if there is one of that name.
    pub fn add(&mut self, helper: &Helper) -> Result<(), Error> {
        let write = |w: &mut Writer| {
            write_name(w, helper.name.as_ref(), helper.network);
            w.number(QUEUE, 0);
            write_policy(w, helper);
            w.number(DATA_LENGTH, 0);
            w.number(STATUS, status(helper));
        };
        let added = self.socket.request(kind::NEW, flags::CREATE | flags::EXCLUSIVE, helper.network.number(), write);
        added.map_err(|cause| error(Operation::Add, &helper.name, helper.network, cause))
    }

    /// Changes maximum, timeout and whether it is enabled of a helper that is there.
    pub fn change(&mut self, helper: &Helper) -> Result<(), Error> {
        let write = |w: &mut Writer| {
            write_name(w, helper.name.as_ref(), helper.network);
            write_policy(w, helper);
            w.number(STATUS, status(helper));
        };
        let changed = self.socket.request(kind::NEW, 0, helper.network.number(), write);
        changed.map_err(|cause| error(Operation::Change, &helper.name, helper.network, cause))
    }

    /// Removes a helper, and with it what it expects. That it is gone already is fine. An object of somebody's ruleset
    /// that names it keeps it.
    pub fn remove(&mut self, name: &str, network: Family) -> Result<(), Error> {
        let write = |w: &mut Writer| write_name(w, name, network);
        match self.socket.request(kind::DELETE, 0, network.number(), write) {
            Ok(()) => Ok(()),
            Err(cause) if cause.is_missing() => Ok(()),
            Err(cause) => Err(error(Operation::Remove, name, network, cause)),
        }
    }

    /// All helpers for TCP that belong to programs. The kernel's own are not among them.
    pub fn list(&mut self) -> Result<Vec<Helper>, Error> {
        let mut all = Vec::new();
        match self.socket.dump(kind::GET, 0, |_| {}, |message| all.extend(read(message))) {
            Ok(()) => Ok(all),
            // Where there are none, some kernels say so.
            Err(Cause::Refused(Errno::NOENT)) => Ok(Vec::new()),
            Err(cause) => Err(Error::new(Operation::Read, "the helpers of connection tracking", cause)),
        }
    }
}

fn error(operation: Operation, name: &str, network: Family, cause: Cause) -> Error {
    Error::new(operation, format_args!("helper `{name}` of connection tracking for {network}"), cause)
}

const fn status(helper: &Helper) -> u32 {
    if helper.is_enabled { ENABLED } else { DISABLED }
}

fn write_name(w: &mut Writer, name: &str, network: Family) {
    w.text(NAME, name);
    w.nested(TUPLE, |tuple| {
        tuple.attribute(TUPLE_NETWORK, &u16::from(network.number()).to_be_bytes());
        tuple.attribute(TUPLE_TRANSPORT, &[TCP]);
    });
}

fn write_policy(w: &mut Writer, helper: &Helper) {
    w.nested(POLICIES, |policies| {
        policies.number(POLICY_COUNT, 1);
        policies.nested(FIRST_POLICY, |policy| {
            policy.text(POLICY_NAME, &helper.class);
            policy.number(POLICY_MAXIMUM, helper.maximum.min(MOST_EXPECTATIONS));
            policy.number(POLICY_TIMEOUT, u32::try_from(helper.timeout.as_secs()).unwrap_or(u32::MAX).max(1));
        });
    });
}

/// The helper in a message, if it is for TCP and has one kind of expectations.
fn read(message: Message<'_>) -> Option<Helper> {
    let attributes = message.attributes();
    let tuple = attributes.find(TUPLE)?.nested();
    if tuple.find(TUPLE_TRANSPORT)?.u8()? != TCP {
        return None;
    }
    let policies = attributes.find(POLICIES)?.nested();
    let policy = policies.find(FIRST_POLICY)?.nested();
    let text = |attributes: Attributes<'_>, kind| attributes.find(kind).and_then(Attribute::text).map(Box::from);
    Some(Helper {
        name: text(attributes, NAME)?,
        network: Family::of(u8::try_from(tuple.find(TUPLE_NETWORK)?.u16()?).ok()?)?,
        class: text(policy, POLICY_NAME)?,
        maximum: policy.find(POLICY_MAXIMUM)?.u32()?,
        timeout: Duration::from_secs(policy.find(POLICY_TIMEOUT)?.u32()?.into()),
        is_enabled: attributes.find(STATUS).and_then(Attribute::u32) == Some(ENABLED),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::bytes::{Head, Messages};
    use super::*;

    const HEAD: Head = Head { kind: kind::NEW, flags: 0, sequence: 0, family: 2, resource: 0 };

    fn helper() -> Helper {
        Helper {
            name: "ftp".into(),
            network: Family::Ip6,
            class: "pinhole".into(),
            maximum: 9,
            timeout: Duration::from_secs(60),
            is_enabled: false,
        }
    }

    fn written(helper: &Helper) -> Writer {
        let mut writer = Writer::default();
        writer.message(HEAD, |w| {
            write_name(w, &helper.name, helper.network);
            write_policy(w, helper);
            w.number(STATUS, status(helper));
        });
        writer
    }

    #[test]
    fn what_is_written_is_read() {
        for helper in [helper(), Helper { is_enabled: true, network: Family::Ip, ..helper() }] {
            let writer = written(&helper);
            assert_eq!(Messages::of(writer.as_bytes()).next().and_then(read), Some(helper));
        }
    }

    #[test]
    fn a_helper_is_known_by_name_network_and_transport() {
        let mut writer = Writer::default();
        writer.message(HEAD, |w| write_name(w, "ftp", Family::Ip));
        let expected: &[&[u8]] =
            &[&[8, 0, 1, 0], b"ftp\0", &[20, 0, 2, 0x80], &[6, 0, 1, 0, 0, 2, 0, 0], &[5, 0, 2, 0, 6, 0, 0, 0]];
        if cfg!(target_endian = "little") {
            assert_eq!(writer.as_bytes()[20..], expected.concat());
        }
    }

    #[test]
    fn more_than_the_kernel_takes_is_not_asked_for() {
        let writer = written(&Helper { maximum: 60_000, ..helper() });
        let read = Messages::of(writer.as_bytes()).next().and_then(read).expect("a helper");
        assert_eq!(read.maximum, MOST_EXPECTATIONS);
    }

    proptest! {
        #[test]
        fn any_attributes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut writer = Writer::default();
            writer.message(HEAD, |w| {
                write_name(w, "ftp", Family::Ip);
                w.nested(POLICIES, |w| w.attribute(FIRST_POLICY, &bytes));
                w.attribute(STATUS, &bytes);
            });
            for message in Messages::of(writer.as_bytes()) {
                let _ = read(message);
            }
        }
    }
}
