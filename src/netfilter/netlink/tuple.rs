//! Tuples of ctnetlink: the addresses of a connection or of an expectation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::bytes::{Attribute, Attributes, Writer};
use crate::core::net::{Endpoint, Flow, Port};

const ADDRESSES: u16 = 1;
/// Where a tuple has its ports.
pub(super) const PROTOCOL: u16 = 2;
const V4_SOURCE: u16 = 1;
const V4_DESTINATION: u16 = 2;
const V6_SOURCE: u16 = 3;
const V6_DESTINATION: u16 = 4;
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
/// Where the protocol of a tuple has its destination.
pub(super) const DESTINATION_PORT: u16 = 3;

/// The number of TCP.
pub(super) const TCP: u8 = 6;

/// Two addresses and two ports, of which any may be zero: what is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tuple {
    pub(super) source: (IpAddr, u16),
    pub(super) destination: (IpAddr, u16),
}

impl From<&Flow> for Tuple {
    fn from(flow: &Flow) -> Self {
        let end = |end: Endpoint| (end.address, end.port.number());
        Self { source: end(flow.source), destination: end(flow.destination) }
    }
}

impl Tuple {
    pub(super) fn write(&self, w: &mut Writer, kind: u16) {
        w.nested(kind, |tuple| {
            tuple.nested(ADDRESSES, |addresses| {
                write_address(addresses, V4_SOURCE, V6_SOURCE, self.source.0);
                write_address(addresses, V4_DESTINATION, V6_DESTINATION, self.destination.0);
            });
            tuple.nested(PROTOCOL, |protocol| {
                protocol.attribute(PROTOCOL_NUMBER, &[TCP]);
                protocol.attribute(SOURCE_PORT, &self.source.1.to_be_bytes());
                protocol.attribute(DESTINATION_PORT, &self.destination.1.to_be_bytes());
            });
        });
    }

    /// The tuple in an attribute, if it is of TCP.
    pub(super) fn read(tuple: Attributes<'_>) -> Option<Self> {
        let addresses = tuple.find(ADDRESSES)?.nested();
        let protocol = tuple.find(PROTOCOL)?.nested();
        if protocol.find(PROTOCOL_NUMBER)?.u8()? != TCP {
            return None;
        }
        let end = |v4, v6, port| {
            let address: IpAddr = match addresses.find(v4) {
                Some(address) => Ipv4Addr::from(<[u8; 4]>::try_from(address.bytes()).ok()?).into(),
                None => Ipv6Addr::from(<[u8; 16]>::try_from(addresses.find(v6)?.bytes()).ok()?).into(),
            };
            Some((address, protocol.find(port).and_then(Attribute::u16)?))
        };
        Some(Self {
            source: end(V4_SOURCE, V6_SOURCE, SOURCE_PORT)?,
            destination: end(V4_DESTINATION, V6_DESTINATION, DESTINATION_PORT)?,
        })
    }

    /// The addresses of a connection, if no port is missing.
    pub(super) fn flow(&self) -> Option<Flow> {
        let end = |(address, port)| Some(Endpoint::new(address, Port::new(port)?));
        Some(Flow { source: end(self.source)?, destination: end(self.destination)? })
    }
}

/// The number of an address's family.
pub(super) const fn family(address: IpAddr) -> u8 {
    const V4: u8 = 2;
    const V6: u8 = 10;
    if address.is_ipv4() { V4 } else { V6 }
}

fn write_address(w: &mut Writer, v4: u16, v6: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => w.attribute(v4, &address.octets()),
        IpAddr::V6(address) => w.attribute(v6, &address.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::bytes::{Head, Messages};
    use super::*;

    const HEAD: Head = Head { kind: 0x0100, flags: 0, sequence: 0, family: 2, resource: 0 };

    #[test]
    fn a_tuple_is_addresses_protocol_and_ports() {
        let mut writer = Writer::default();
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let tuple = Tuple { source: (address(1), 4000), destination: (address(2), 21) };
        writer.message(HEAD, |w| tuple.write(w, 1));
        let expected: &[&[u8]] = &[
            &[52, 0, 1, 0x80],
            &[20, 0, 1, 0x80, 8, 0, 1, 0, 10, 0, 0, 1, 8, 0, 2, 0, 10, 0, 0, 2],
            &[28, 0, 2, 0x80, 5, 0, 1, 0, 6, 0, 0, 0, 6, 0, 2, 0, 0x0f, 0xa0, 0, 0, 6, 0, 3, 0, 0, 21, 0, 0],
        ];
        if cfg!(target_endian = "little") {
            assert_eq!(writer.as_bytes()[20..], expected.concat());
        }
    }

    #[test]
    fn a_port_may_be_open_and_then_it_is_no_connection() {
        let mut writer = Writer::default();
        let address: IpAddr = "fd00::1".parse().expect("an address");
        let tuple = Tuple { source: (address, 0), destination: (address, 50000) };
        writer.message(HEAD, |w| tuple.write(w, 2));
        let message = Messages::of(writer.as_bytes()).next().expect("a message");
        let read = message.attributes().find(2).and_then(|found| Tuple::read(found.nested()));
        assert_eq!(read, Some(tuple));
        assert_eq!((tuple.flow(), family(address)), (None, 10));
    }
}
