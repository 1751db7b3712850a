//! Conntrack expectations (ctnetlink, linux/netfilter/nfnetlink_conntrack.h): connections that are `related` to their
//! master when they begin.
//!
//! An expectation belongs to its master, a connection with a helper, and ends with it. It is for one connection.

use std::net::IpAddr;
use std::time::Duration;

use rustix::io::Errno;

use super::bytes::{Attribute, Attributes, Message, Writer};
use super::error::{Cause, Error, Operation, existing};
use super::socket::{Batch, Socket};
use super::tuple::{Tuple, family};
use super::uapi::*;
use crate::core::net::{Endpoint, Flow, Port};

const OBJECT: &str = "the expectations of connection tracking";

/// The kernel's function that gives an expected connection the addresses of its master.
const FOLLOW_MASTER: &str = "nat-follow-master";

/// A connection that conntrack expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CtExpectation {
    /// The control connection: its original direction.
    pub master: Flow,
    /// The source address. Any source port is expected.
    pub from: IpAddr,
    /// The destination of the first packet.
    pub to: Endpoint,
    /// NAT of the expected connection.
    pub nat: Option<ExpectationNat>,
    /// After how long the expectation expires; the kernel counts whole seconds.
    pub timeout: Duration,
    /// The helper of the master. Read only.
    pub helper: Option<Box<str>>,
}

/// NAT of an expected connection: it gets the addresses of its master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpectationNat {
    /// Whether the expected connection has the direction of its master.
    pub is_original: bool,
    /// The port to which it is translated.
    pub port: Port,
}

/// A socket for requests about expectations. Each call returns when the kernel has carried out the request.
#[derive(Debug)]
pub struct Expectations {
    socket: Socket,
}

impl Expectations {
    /// Opens the socket. The kernel may take `timeout` to answer a request.
    pub fn open(timeout: Duration) -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(NFNL_SUBSYS_CTNETLINK_EXP, OBJECT, timeout)? })
    }

    /// Adds an expectation. Replaces one for the same addresses.
    ///
    /// The kernel gives a new expectation the timeout of the helper; a second request, sent together with the first one,
    /// changes the timeout.
    pub fn insert(&mut self, expectation: &CtExpectation) -> Result<(), Error> {
        let CtExpectation { from, to, .. } = *expectation;
        let family = family(from);
        let add = |batch: &mut Batch<'_>| {
            batch.request(IPCTNL_MSG_EXP_NEW, NLM_F_CREATE | NLM_F_EXCL, family, |w| write(w, expectation));
            batch.request(IPCTNL_MSG_EXP_NEW, 0, family, |w| write(w, expectation));
        };
        let mut results = self.socket.requests::<2>(add);
        if let Ok([Err(Errno::EXIST | Errno::BUSY | Errno::ALREADY), _]) = results {
            // The result of the deletion does not matter: the old one may have been used, or have expired, meanwhile.
            let replaced = self.socket.requests::<3>(|batch| {
                batch.request(IPCTNL_MSG_EXP_DELETE, 0, family, |w| tuple(from, to).write(w, CTA_EXPECT_TUPLE));
                add(batch);
            });
            results = replaced.map(|[_, added, changed]| [added, changed]);
        }
        let result = results.and_then(|[added, changed]| added.and(changed).map_err(Cause::Refused));
        result.map_err(|cause| error(Operation::Add, from, to, cause))
    }

    /// Removes the expectation for these addresses. Returns whether it existed.
    pub fn remove(&mut self, from: IpAddr, to: Endpoint) -> Result<bool, Error> {
        let write = |w: &mut Writer| tuple(from, to).write(w, CTA_EXPECT_TUPLE);
        match existing(self.socket.request(IPCTNL_MSG_EXP_DELETE, 0, family(from), write)) {
            Ok(removed) => Ok(removed.is_some()),
            Err(cause) => Err(error(Operation::Remove, from, to, cause)),
        }
    }

    /// The expectation for these addresses.
    pub fn find(&mut self, from: IpAddr, to: Endpoint) -> Result<Option<CtExpectation>, Error> {
        let write = |w: &mut Writer| tuple(from, to).write(w, CTA_EXPECT_TUPLE);
        existing(self.socket.look_up(IPCTNL_MSG_EXP_GET, family(from), write, read))
            .map_err(|cause| error(Operation::Read, from, to, cause))
    }

    /// All expectations of TCP connections, of any helper.
    pub fn list(&mut self) -> Result<Vec<CtExpectation>, Error> {
        self.socket
            .list(IPCTNL_MSG_EXP_GET, NFPROTO_UNSPEC, |_| {}, read)
            .map_err(|cause| Error::new(Operation::Read, OBJECT, cause))
    }
}

fn error(operation: Operation, from: IpAddr, to: Endpoint, cause: Cause) -> Error {
    Error::new(operation, format_args!("expectation {from} -> {to}"), cause)
}

const fn tuple(from: IpAddr, to: Endpoint) -> Tuple {
    Tuple { source: (from, 0), destination: (to.address, to.port.number()) }
}

/// The mask of the source: all bits of the address, none of the port. The kernel ignores the mask of the destination.
fn mask(from: IpAddr) -> Tuple {
    let all: IpAddr = match from {
        IpAddr::V4(_) => [0xff; 4].into(),
        IpAddr::V6(_) => [0xff; 16].into(),
    };
    Tuple { source: (all, 0), destination: (all, u16::MAX) }
}

fn write(w: &mut Writer, expectation: &CtExpectation) {
    let CtExpectation { master, from, to, nat, timeout, helper: _ } = expectation;
    Tuple::from(master).write(w, CTA_EXPECT_MASTER);
    tuple(*from, *to).write(w, CTA_EXPECT_TUPLE);
    mask(*from).write(w, CTA_EXPECT_MASK);
    w.seconds(CTA_EXPECT_TIMEOUT, *timeout);
    if let Some(ExpectationNat { is_original, port }) = nat {
        w.string(CTA_EXPECT_FN, FOLLOW_MASTER);
        w.nested(CTA_EXPECT_NAT, |nat| {
            nat.u32(CTA_EXPECT_NAT_DIR, u32::from(!is_original));
            // The kernel reads only the source port, as `saved_proto`, and translates the destination port to it.
            let unspecified: IpAddr = match from {
                IpAddr::V4(_) => [0; 4].into(),
                IpAddr::V6(_) => [0; 16].into(),
            };
            let tuple = Tuple { source: (unspecified, port.number()), destination: (unspecified, 0) };
            tuple.write(nat, CTA_EXPECT_NAT_TUPLE);
        });
    }
}

/// The expectation in a message, if it is of TCP and for one address and port.
pub(super) fn read(message: Message<'_>) -> Option<CtExpectation> {
    let attributes = message.attributes();
    let tuple_at = |kind| Tuple::read(attributes.find(kind)?.nested());
    let Tuple { source: (from, _), destination: (address, port) } = tuple_at(CTA_EXPECT_TUPLE)?;
    if tuple_at(CTA_EXPECT_MASK)?.source != mask(from).source {
        return None;
    }
    // Some kernels show the NAT of a freed expectation in one that has none. Only one with the function has NAT.
    let has_nat = attributes.find(CTA_EXPECT_FN).and_then(Attribute::string) == Some(FOLLOW_MASTER);
    let nat = attributes.find(CTA_EXPECT_NAT).filter(|_| has_nat);
    Some(CtExpectation {
        master: tuple_at(CTA_EXPECT_MASTER)?.flow()?,
        from,
        to: Endpoint::new(address, Port::new(port)?),
        nat: nat.and_then(|found| read_nat(found.nested())),
        timeout: attributes.find(CTA_EXPECT_TIMEOUT).and_then(Attribute::seconds)?,
        helper: attributes.find(CTA_EXPECT_HELP_NAME).and_then(Attribute::string).map(Into::into),
    })
}

fn read_nat(nat: Attributes<'_>) -> Option<ExpectationNat> {
    let is_original = nat.find(CTA_EXPECT_NAT_DIR)?.u32()? == 0;
    let Tuple { source: (_, port), .. } = Tuple::read(nat.find(CTA_EXPECT_NAT_TUPLE)?.nested())?;
    Some(ExpectationNat { is_original, port: Port::new(port)? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::bytes::{Head, Messages};
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        let address: std::net::SocketAddr = text.parse().expect("an address");
        Endpoint::new(address.ip(), Port::new(address.port()).expect("a port"))
    }

    fn expected(client: &str, server: &str, from: &str, to: &str) -> CtExpectation {
        CtExpectation {
            master: Flow { source: endpoint(client), destination: endpoint(server) },
            from: from.parse().expect("an address"),
            to: endpoint(to),
            nat: None,
            timeout: Duration::from_millis(4001),
            helper: None,
        }
    }

    fn written(expected: &CtExpectation) -> Writer {
        let mut writer = Writer::default();
        writer.message(Head::default(), |w| write(w, expected));
        writer
    }

    #[test]
    fn expectations_are_read_as_written_in_whole_seconds() {
        let plain = expected("10.0.0.1:4000", "10.0.0.2:21", "10.0.0.2", "192.0.2.1:50000");
        let nat = Some(ExpectationNat { is_original: false, port: Port::new(50001).expect("a port") });
        let far = expected("[fd00::1]:4000", "[fd00::2]:21", "fd00::2", "[fd00::9]:50000");
        for expected in [plain.clone(), CtExpectation { nat, ..plain }, far.clone(), CtExpectation { nat, ..far }] {
            let writer = written(&expected);
            let message = Messages::of(writer.as_bytes()).next().expect("a message");
            assert_eq!(read(message), Some(CtExpectation { timeout: Duration::from_secs(5), ..expected }));
        }
    }

    #[test]
    fn nat_port_is_the_source_port_of_the_nat_tuple() {
        let mut one = expected("10.0.0.1:4000", "10.0.0.2:21", "10.0.0.2", "192.0.2.1:50000");
        one.nat = Some(ExpectationNat { is_original: false, port: Port::new(0x1234).expect("a port") });
        let writer = written(&one);
        let message = Messages::of(writer.as_bytes()).next().expect("a message");
        let found = message.attributes().find(CTA_EXPECT_NAT).expect("a nat");
        assert_eq!(found.nested().find(CTA_EXPECT_NAT_DIR).and_then(Attribute::u32), Some(1));
        let ports = found.nested().find(CTA_EXPECT_NAT_TUPLE).and_then(|t| Tuple::read(t.nested()));
        assert_eq!(ports.map(|tuple| (tuple.source.1, tuple.destination.1)), Some((0x1234, 0)));
        assert_eq!(message.attributes().find(CTA_EXPECT_FN).and_then(Attribute::string), Some("nat-follow-master"));
    }

    #[test]
    fn nat_without_the_function_is_ignored() {
        let one = expected("10.0.0.1:4000", "10.0.0.2:21", "10.0.0.2", "192.0.2.1:50000");
        let mut writer = Writer::default();
        writer.message(Head::default(), |w| {
            write(w, &one);
            w.nested(CTA_EXPECT_NAT, |nat| {
                nat.u32(CTA_EXPECT_NAT_DIR, 1);
                let nowhere: IpAddr = [0; 4].into();
                Tuple { source: (nowhere, 4001), destination: (nowhere, 0) }.write(nat, CTA_EXPECT_NAT_TUPLE);
            });
        });
        let read = Messages::of(writer.as_bytes()).next().and_then(read).expect("an expectation");
        assert_eq!(read.nat, None);
    }

    #[test]
    fn expectation_for_a_network_is_ignored() {
        let mut writer = Writer::default();
        let one = expected("10.0.0.1:4000", "10.0.0.2:21", "10.0.0.2", "192.0.2.1:50000");
        writer.message(Head::default(), |w| {
            Tuple::from(&one.master).write(w, CTA_EXPECT_MASTER);
            tuple(one.from, one.to).write(w, CTA_EXPECT_TUPLE);
            let any: IpAddr = [0; 4].into();
            Tuple { source: (any, 0), destination: (any, u16::MAX) }.write(w, CTA_EXPECT_MASK);
            w.u32(CTA_EXPECT_TIMEOUT, 5);
        });
        assert_eq!(Messages::of(writer.as_bytes()).next().and_then(read), None);
    }

    proptest! {
        #[test]
        fn any_attributes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut writer = Writer::default();
            let one = expected("10.0.0.1:4000", "10.0.0.2:21", "10.0.0.2", "192.0.2.1:50000");
            writer.message(Head::default(), |w| {
                Tuple::from(&one.master).write(w, CTA_EXPECT_MASTER);
                tuple(one.from, one.to).write(w, CTA_EXPECT_TUPLE);
                mask(one.from).write(w, CTA_EXPECT_MASK);
                w.nested(CTA_EXPECT_NAT, |w| w.bytes(CTA_EXPECT_NAT_TUPLE, &bytes));
                w.bytes(CTA_EXPECT_TIMEOUT, &bytes);
                w.bytes(CTA_EXPECT_HELP_NAME, &bytes);
            });
            for message in Messages::of(writer.as_bytes()) {
                let _ = read(message);
            }
        }
    }
}
