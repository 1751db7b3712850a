//! Conntrack expectations: connections that the kernel takes for related to their master when they begin.
//!
//! An expectation belongs to its master, which must have a helper, and ends with it. It is for one connection. Knows
//! nothing of why a connection is expected.

use std::net::IpAddr;
use std::time::Duration;

use rustix::io::Errno;

use super::bytes::{Attribute, Attributes, Message, Writer, flags};
use super::error::{Cause, Error, Operation};
use super::socket::{Batch, Socket};
use super::tuple::{Tuple, family};
use crate::core::net::{Endpoint, Flow, Port};

/// Messages, with the subsystem in the high byte.
mod kind {
    pub(super) const NEW: u16 = 0x0200;
    pub(super) const GET: u16 = 0x0201;
    pub(super) const DELETE: u16 = 0x0202;
}

const MASTER: u16 = 1;
const TUPLE: u16 = 2;
const MASK: u16 = 3;
const TIMEOUT: u16 = 4;
const HELPER: u16 = 6;
const TRANSLATION: u16 = 10;
const FUNCTION: u16 = 11;

const TRANSLATION_DIRECTION: u16 = 1;
const TRANSLATION_TUPLE: u16 = 2;

/// The kernel's function that gives an expected connection the addresses of its master.
const FOLLOW_MASTER: &str = "nat-follow-master";

/// A connection that may come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The connection in which it was announced: what its first packet's sender sends, as it arrives.
    pub master: Flow,
    /// Who may connect, from whichever port.
    pub from: IpAddr,
    /// Where to.
    pub to: Endpoint,
    /// What NAT does to it.
    pub translated: Option<Translated>,
    /// For how long it is expected; the kernel counts in whole seconds.
    pub time: Duration,
    /// The helper of its master; it is the kernel's to say, and not asked for.
    pub helper: Option<Box<str>>,
}

/// NAT of an expected connection: it gets the addresses that its master has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    /// Whether it goes in the direction in which its master was opened.
    pub is_original: bool,
    /// The port at which it is delivered.
    pub port: Port,
}

/// A connection to the kernel's expectations. Each call returns when the kernel has done it.
#[derive(Debug)]
pub struct Expectations {
    socket: Socket,
}

impl Expectations {
    /// Opens it; an answer may take so long.
    pub fn open(patience: Duration) -> Result<Self, Error> {
        let socket = Socket::open(0, patience);
        socket
            .map(|socket| Self { socket })
            .map_err(|cause| Error::new(Operation::Connect, "the expectations of connection tracking", cause))
    }

    /// Expects a connection, in place of one that is expected at the same addresses.
    ///
    /// The kernel takes the time from the helper; a second message changes it, which is sent together with the first.
    pub fn expect(&mut self, expected: &Expected) -> Result<(), Error> {
        let family = family(expected.from);
        let make = |batch: &mut Batch<'_>| {
            batch.request(kind::NEW, flags::CREATE | flags::EXCLUSIVE, family, |w| write(w, expected));
            batch.request(kind::NEW, 0, family, |w| write(w, expected));
        };
        let mut results = self.socket.requests::<2>(make);
        if let Ok([Err(Errno::EXIST | Errno::BUSY | Errno::ALREADY), _]) = results {
            // That it has just been used, or has expired, is fine.
            let replaced = self.socket.requests::<3>(|batch| {
                batch.request(kind::DELETE, 0, family, |w| tuple(expected.from, expected.to).write(w, TUPLE));
                make(batch);
            });
            results = replaced.map(|[_, made, timed]| [made, timed]);
        }
        let outcome = results.and_then(|[made, timed]| made.and(timed).map_err(Cause::Refused));
        outcome.map_err(|cause| error(Operation::Add, expected.from, expected.to, cause))
    }

    /// Does not expect a connection any more. Whether it was expected.
    pub fn forget(&mut self, from: IpAddr, to: Endpoint) -> Result<bool, Error> {
        let write = |w: &mut Writer| tuple(from, to).write(w, TUPLE);
        match self.socket.request(kind::DELETE, 0, family(from), write) {
            Ok(()) => Ok(true),
            Err(cause) if cause.is_missing() => Ok(false),
            Err(cause) => Err(error(Operation::Remove, from, to, cause)),
        }
    }

    /// The one that is expected at these addresses.
    pub fn find(&mut self, from: IpAddr, to: Endpoint) -> Result<Option<Expected>, Error> {
        let write = |w: &mut Writer| tuple(from, to).write(w, TUPLE);
        match self.socket.look_up(kind::GET, family(from), write, read) {
            Ok(expected) => Ok(Some(expected)),
            Err(cause) if cause.is_missing() => Ok(None),
            Err(cause) => Err(error(Operation::Read, from, to, cause)),
        }
    }

    /// All TCP connections that are expected, by whichever helper.
    pub fn list(&mut self) -> Result<Vec<Expected>, Error> {
        const ANY_FAMILY: u8 = 0;
        let mut all = Vec::new();
        self.socket
            .dump(kind::GET, ANY_FAMILY, |_| {}, |message| all.extend(read(message)))
            .map_err(|cause| Error::new(Operation::Read, "the expectations of connection tracking", cause))?;
        Ok(all)
    }
}

fn error(operation: Operation, from: IpAddr, to: Endpoint, cause: Cause) -> Error {
    Error::new(operation, format_args!("expectation {from} -> {to}"), cause)
}

const fn tuple(from: IpAddr, to: Endpoint) -> Tuple {
    Tuple { source: (from, 0), destination: (to.address, to.port.number()) }
}

/// The sender's address counts, and not its port. Of the destination all counts, whatever the mask says.
fn mask(from: IpAddr) -> Tuple {
    let all: IpAddr = match from {
        IpAddr::V4(_) => [0xff; 4].into(),
        IpAddr::V6(_) => [0xff; 16].into(),
    };
    Tuple { source: (all, 0), destination: (all, u16::MAX) }
}

fn write(w: &mut Writer, expected: &Expected) {
    let Expected { master, from, to, translated, time, helper: _ } = expected;
    Tuple::from(master).write(w, MASTER);
    tuple(*from, *to).write(w, TUPLE);
    mask(*from).write(w, MASK);
    w.number(TIMEOUT, whole_seconds(*time));
    if let Some(Translated { is_original, port }) = translated {
        w.text(FUNCTION, FOLLOW_MASTER);
        w.nested(TRANSLATION, |translation| {
            translation.number(TRANSLATION_DIRECTION, u32::from(!is_original));
            // Only the source's port is looked at, and stands for the destination's.
            let nowhere: IpAddr = match from {
                IpAddr::V4(_) => [0; 4].into(),
                IpAddr::V6(_) => [0; 16].into(),
            };
            let tuple = Tuple { source: (nowhere, port.number()), destination: (nowhere, 0) };
            tuple.write(translation, TRANSLATION_TUPLE);
        });
    }
}

/// As the kernel counts them: none would be over at once.
fn whole_seconds(time: Duration) -> u32 {
    u32::try_from(time.as_nanos().div_ceil(1_000_000_000)).unwrap_or(u32::MAX).max(1)
}

/// The expectation in a message, if it is of TCP and for one address and port.
pub(super) fn read(message: Message<'_>) -> Option<Expected> {
    let attributes = message.attributes();
    let tuple_at = |kind| Tuple::read(attributes.find(kind)?.nested());
    let Tuple { source: (from, _), destination: (address, port) } = tuple_at(TUPLE)?;
    if tuple_at(MASK)?.source != mask(from).source {
        return None;
    }
    // Only with the function is anything translated. Without it some kernels show what another expectation was for that
    // stood in the same memory before.
    let is_translated = attributes.find(FUNCTION).and_then(Attribute::text) == Some(FOLLOW_MASTER);
    let translation = attributes.find(TRANSLATION).filter(|_| is_translated);
    Some(Expected {
        master: tuple_at(MASTER)?.flow()?,
        from,
        to: Endpoint::new(address, Port::new(port)?),
        translated: translation.and_then(|found| read_translated(found.nested())),
        time: Duration::from_secs(attributes.find(TIMEOUT).and_then(Attribute::u32)?.into()),
        helper: attributes.find(HELPER).and_then(Attribute::text).map(Into::into),
    })
}

fn read_translated(translation: Attributes<'_>) -> Option<Translated> {
    let is_original = translation.find(TRANSLATION_DIRECTION)?.u32()? == 0;
    let Tuple { source: (_, port), .. } = Tuple::read(translation.find(TRANSLATION_TUPLE)?.nested())?;
    Some(Translated { is_original, port: Port::new(port)? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::bytes::{Head, Messages};
    use super::*;

    const HEAD: Head = Head { kind: kind::NEW, flags: 0, sequence: 0, family: 2, resource: 0 };

    fn endpoint(text: &str) -> Endpoint {
        let address: std::net::SocketAddr = text.parse().expect("an address");
        Endpoint::new(address.ip(), Port::new(address.port()).expect("a port"))
    }

    fn expected(client: &str, server: &str, from: &str, to: &str) -> Expected {
        Expected {
            master: Flow { source: endpoint(client), destination: endpoint(server) },
            from: from.parse().expect("an address"),
            to: endpoint(to),
            translated: None,
            time: Duration::from_millis(4001),
            helper: None,
        }
    }

    fn written(expected: &Expected) -> Writer {
        let mut writer = Writer::default();
        writer.message(HEAD, |w| write(w, expected));
        writer
    }

    #[test]
    fn what_is_written_is_read_with_time_in_whole_seconds() {
        let plain = expected("10.0.0.1:4000", "10.0.0.2:21", "10.0.0.2", "192.0.2.1:50000");
        let translated = Some(Translated { is_original: false, port: Port::new(50001).expect("a port") });
        let far = expected("[fd00::1]:4000", "[fd00::2]:21", "fd00::2", "[fd00::9]:50000");
        for expected in [plain.clone(), Expected { translated, ..plain }, far.clone(), Expected { translated, ..far }] {
            let writer = written(&expected);
            let message = Messages::of(writer.as_bytes()).next().expect("a message");
            assert_eq!(read(message), Some(Expected { time: Duration::from_secs(5), ..expected }));
        }
    }

    #[test]
    fn the_real_port_is_the_source_of_the_translation_and_the_direction_a_number() {
        let mut one = expected("10.0.0.1:4000", "10.0.0.2:21", "10.0.0.2", "192.0.2.1:50000");
        one.translated = Some(Translated { is_original: false, port: Port::new(0x1234).expect("a port") });
        let writer = written(&one);
        let message = Messages::of(writer.as_bytes()).next().expect("a message");
        let found = message.attributes().find(TRANSLATION).expect("a translation");
        assert_eq!(found.nested().find(TRANSLATION_DIRECTION).and_then(Attribute::u32), Some(1));
        let ports = found.nested().find(TRANSLATION_TUPLE).and_then(|t| Tuple::read(t.nested()));
        assert_eq!(ports.map(|tuple| (tuple.source.1, tuple.destination.1)), Some((0x1234, 0)));
        assert_eq!(message.attributes().find(FUNCTION).and_then(Attribute::text), Some("nat-follow-master"));
    }

    #[test]
    fn what_is_left_of_another_translation_is_none() {
        let one = expected("10.0.0.1:4000", "10.0.0.2:21", "10.0.0.2", "192.0.2.1:50000");
        let mut writer = Writer::default();
        writer.message(HEAD, |w| {
            write(w, &one);
            w.nested(TRANSLATION, |translation| {
                translation.number(TRANSLATION_DIRECTION, 1);
                let nowhere: IpAddr = [0; 4].into();
                Tuple { source: (nowhere, 4001), destination: (nowhere, 0) }.write(translation, TRANSLATION_TUPLE);
            });
        });
        let read = Messages::of(writer.as_bytes()).next().and_then(read).expect("an expectation");
        assert_eq!(read.translated, None);
    }

    #[test]
    fn no_time_at_all_is_one_second() {
        assert_eq!(whole_seconds(Duration::ZERO), 1);
        assert_eq!(whole_seconds(Duration::from_secs(60)), 60);
        assert_eq!(whole_seconds(Duration::MAX), u32::MAX);
    }

    #[test]
    fn what_is_for_a_whole_network_is_somebody_elses() {
        let mut writer = Writer::default();
        let one = expected("10.0.0.1:4000", "10.0.0.2:21", "10.0.0.2", "192.0.2.1:50000");
        writer.message(HEAD, |w| {
            Tuple::from(&one.master).write(w, MASTER);
            tuple(one.from, one.to).write(w, TUPLE);
            let any: IpAddr = [0; 4].into();
            Tuple { source: (any, 0), destination: (any, u16::MAX) }.write(w, MASK);
            w.number(TIMEOUT, 5);
        });
        assert_eq!(Messages::of(writer.as_bytes()).next().and_then(read), None);
    }

    proptest! {
        #[test]
        fn any_attributes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut writer = Writer::default();
            let one = expected("10.0.0.1:4000", "10.0.0.2:21", "10.0.0.2", "192.0.2.1:50000");
            writer.message(HEAD, |w| {
                Tuple::from(&one.master).write(w, MASTER);
                tuple(one.from, one.to).write(w, TUPLE);
                mask(one.from).write(w, MASK);
                w.nested(TRANSLATION, |w| w.attribute(TRANSLATION_TUPLE, &bytes));
                w.attribute(TIMEOUT, &bytes);
                w.attribute(HELPER, &bytes);
            });
            for message in Messages::of(writer.as_bytes()) {
                let _ = read(message);
            }
        }
    }
}
