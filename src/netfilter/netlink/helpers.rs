//! Userspace conntrack helpers (nfnetlink_cthelper, linux/netfilter/nfnetlink_cthelper.h): the kernel keeps their
//! expectations, and inspects no packet for them.
//!
//! The kernel has one list of helpers for all network namespaces. Rules assign them to connections by name.

use std::time::Duration;

use super::bytes::{Attribute, Attributes, Message, Writer};
use super::error::{Cause, Error, Operation, existing};
use super::socket::Socket;
use super::tables::Family;
use super::uapi::*;

const OBJECT: &str = "the helpers of connection tracking";

/// `NF_CT_EXPECT_MAX_CNT`: the kernel gives one connection no more expectations.
pub const MAX_EXPECTATIONS: u32 = 255;

/// A userspace helper for TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Helper {
    /// The name by which rules assign the helper.
    pub name: Box<str>,
    pub l3proto: Family,
    /// The name of its one class of expectations.
    pub class: Box<str>,
    /// How many expectations a connection may have. A further one replaces the oldest.
    pub max_expected: u32,
    /// After how long an expectation expires; the kernel counts whole seconds.
    pub timeout: Duration,
    /// Whether packets of its connections are queued for it.
    pub is_enabled: bool,
}

/// A socket for requests about userspace helpers. Each call returns when the kernel has carried out the request.
#[derive(Debug)]
pub struct Helpers {
    socket: Socket,
}

impl Helpers {
    /// Opens the socket. The kernel may take `timeout` to answer a request.
    pub fn open(timeout: Duration) -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(NFNL_SUBSYS_CTHELPER, OBJECT, timeout)? })
    }

    /// Registers a helper. Fails if there is one of that name.
    pub fn add(&mut self, helper: &Helper) -> Result<(), Error> {
        let write = |w: &mut Writer| {
            write_name(w, helper.name.as_ref(), helper.l3proto);
            w.u32(NFCTH_QUEUE_NUM, 0);
            write_policy(w, helper);
            w.u32(NFCTH_PRIV_DATA_LEN, 0);
            w.u32(NFCTH_STATUS, status(helper));
        };
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let added = self.socket.request(NFNL_MSG_CTHELPER_NEW, flags, helper.l3proto.number(), write);
        added.map_err(|cause| error(Operation::Add, &helper.name, helper.l3proto, cause))
    }

    /// Changes `max_expected`, `timeout` and `is_enabled` of a registered helper.
    pub fn change(&mut self, helper: &Helper) -> Result<(), Error> {
        let write = |w: &mut Writer| {
            write_name(w, helper.name.as_ref(), helper.l3proto);
            write_policy(w, helper);
            w.u32(NFCTH_STATUS, status(helper));
        };
        let changed = self.socket.request(NFNL_MSG_CTHELPER_NEW, 0, helper.l3proto.number(), write);
        changed.map_err(|cause| error(Operation::Change, &helper.name, helper.l3proto, cause))
    }

    /// Unregisters a helper, if it is registered, and removes its expectations. Fails while an object of a ruleset refers
    /// to it.
    pub fn remove(&mut self, name: &str, l3proto: Family) -> Result<(), Error> {
        let write = |w: &mut Writer| write_name(w, name, l3proto);
        let removed = self.socket.request(NFNL_MSG_CTHELPER_DEL, 0, l3proto.number(), write);
        existing(removed).map(drop).map_err(|cause| error(Operation::Remove, name, l3proto, cause))
    }

    /// All userspace helpers for TCP.
    pub fn list(&mut self) -> Result<Vec<Helper>, Error> {
        // Without any, some kernels answer ENOENT.
        existing(self.socket.list(NFNL_MSG_CTHELPER_GET, NFPROTO_UNSPEC, |_| {}, read))
            .map(Option::unwrap_or_default)
            .map_err(|cause| Error::new(Operation::Read, OBJECT, cause))
    }
}

fn error(operation: Operation, name: &str, l3proto: Family, cause: Cause) -> Error {
    Error::new(operation, format_args!("helper `{name}` of connection tracking for {l3proto}"), cause)
}

const fn status(helper: &Helper) -> u32 {
    if helper.is_enabled { NFCT_HELPER_STATUS_ENABLED } else { NFCT_HELPER_STATUS_DISABLED }
}

fn write_name(w: &mut Writer, name: &str, l3proto: Family) {
    w.string(NFCTH_NAME, name);
    w.nested(NFCTH_TUPLE, |tuple| {
        tuple.u16(NFCTH_TUPLE_L3PROTONUM, l3proto.number().into());
        tuple.u8(NFCTH_TUPLE_L4PROTONUM, IPPROTO_TCP);
    });
}

fn write_policy(w: &mut Writer, helper: &Helper) {
    w.nested(NFCTH_POLICY, |policies| {
        policies.u32(NFCTH_POLICY_SET_NUM, 1);
        policies.nested(NFCTH_POLICY_SET1, |policy| {
            policy.string(NFCTH_POLICY_NAME, &helper.class);
            policy.u32(NFCTH_POLICY_EXPECT_MAX, helper.max_expected.min(MAX_EXPECTATIONS));
            policy.seconds(NFCTH_POLICY_EXPECT_TIMEOUT, helper.timeout);
        });
    });
}

/// The helper in a message, if it is for TCP and has one class of expectations.
fn read(message: Message<'_>) -> Option<Helper> {
    let attributes = message.attributes();
    let tuple = attributes.find(NFCTH_TUPLE)?.nested();
    if tuple.find(NFCTH_TUPLE_L4PROTONUM)?.u8()? != IPPROTO_TCP {
        return None;
    }
    let policies = attributes.find(NFCTH_POLICY)?.nested();
    let policy = policies.find(NFCTH_POLICY_SET1)?.nested();
    let string = |attributes: Attributes<'_>, kind| attributes.find(kind).and_then(Attribute::string).map(Box::from);
    Some(Helper {
        name: string(attributes, NFCTH_NAME)?,
        l3proto: Family::of(u8::try_from(tuple.find(NFCTH_TUPLE_L3PROTONUM)?.u16()?).ok()?)?,
        class: string(policy, NFCTH_POLICY_NAME)?,
        max_expected: policy.find(NFCTH_POLICY_EXPECT_MAX)?.u32()?,
        timeout: policy.find(NFCTH_POLICY_EXPECT_TIMEOUT)?.seconds()?,
        is_enabled: attributes.find(NFCTH_STATUS).and_then(Attribute::u32) == Some(NFCT_HELPER_STATUS_ENABLED),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::bytes::{Head, Messages};
    use super::*;

    fn helper() -> Helper {
        Helper {
            name: "ftp".into(),
            l3proto: Family::Ip6,
            class: "pinhole".into(),
            max_expected: 9,
            timeout: Duration::from_secs(60),
            is_enabled: false,
        }
    }

    fn written(helper: &Helper) -> Writer {
        let mut writer = Writer::default();
        writer.message(Head::default(), |w| {
            write_name(w, &helper.name, helper.l3proto);
            write_policy(w, helper);
            w.u32(NFCTH_STATUS, status(helper));
        });
        writer
    }

    #[test]
    fn written_message_is_read_back() {
        for helper in [helper(), Helper { is_enabled: true, l3proto: Family::Ip, ..helper() }] {
            let writer = written(&helper);
            assert_eq!(Messages::of(writer.as_bytes()).next().and_then(read), Some(helper));
        }
    }

    #[test]
    fn helper_has_both_protocols() {
        let mut writer = Writer::default();
        writer.message(Head::default(), |w| write_name(w, "ftp", Family::Ip));
        let expected: &[&[u8]] =
            &[&[8, 0, 1, 0], b"ftp\0", &[20, 0, 2, 0x80], &[6, 0, 1, 0, 0, 2, 0, 0], &[5, 0, 2, 0, 6, 0, 0, 0]];
        if cfg!(target_endian = "little") {
            assert_eq!(writer.as_bytes()[20..], expected.concat());
        }
    }

    #[test]
    fn max_expected_is_limited_to_the_kernels_maximum() {
        let writer = written(&Helper { max_expected: 60_000, ..helper() });
        let read = Messages::of(writer.as_bytes()).next().and_then(read).expect("a helper");
        assert_eq!(read.max_expected, MAX_EXPECTATIONS);
    }

    proptest! {
        #[test]
        fn any_attributes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut writer = Writer::default();
            writer.message(Head::default(), |w| {
                write_name(w, "ftp", Family::Ip);
                w.nested(NFCTH_POLICY, |w| w.bytes(NFCTH_POLICY_SET1, &bytes));
                w.bytes(NFCTH_STATUS, &bytes);
            });
            for message in Messages::of(writer.as_bytes()) {
                let _ = read(message);
            }
        }
    }
}
