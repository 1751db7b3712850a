//! Tuples of ctnetlink (linux/netfilter/nfnetlink_conntrack.h): the addresses of a connection or of an expectation.

use std::net::IpAddr;

use super::bytes::{Attribute, Attributes, Writer, address};
use super::uapi::*;
use crate::core::net::{Endpoint, Flow, Port};

/// Two addresses and two ports of TCP. A port may be zero: any port.
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
            tuple.nested(CTA_TUPLE_IP, |ip| {
                ip.address(CTA_IP_V4_SRC, CTA_IP_V6_SRC, self.source.0);
                ip.address(CTA_IP_V4_DST, CTA_IP_V6_DST, self.destination.0);
            });
            tuple.nested(CTA_TUPLE_PROTO, |proto| {
                proto.u8(CTA_PROTO_NUM, IPPROTO_TCP);
                proto.u16(CTA_PROTO_SRC_PORT, self.source.1);
                proto.u16(CTA_PROTO_DST_PORT, self.destination.1);
            });
        });
    }

    /// The tuple in an attribute, if it is of TCP.
    pub(super) fn read(tuple: Attributes<'_>) -> Option<Self> {
        let ip = tuple.find(CTA_TUPLE_IP)?.nested();
        let proto = tuple.find(CTA_TUPLE_PROTO)?.nested();
        if proto.find(CTA_PROTO_NUM)?.u8()? != IPPROTO_TCP {
            return None;
        }
        let end = |v4, v6, port| {
            let address = address(ip.find(v4).or_else(|| ip.find(v6))?.bytes())?;
            Some((address, proto.find(port).and_then(Attribute::u16)?))
        };
        Some(Self {
            source: end(CTA_IP_V4_SRC, CTA_IP_V6_SRC, CTA_PROTO_SRC_PORT)?,
            destination: end(CTA_IP_V4_DST, CTA_IP_V6_DST, CTA_PROTO_DST_PORT)?,
        })
    }

    /// The flow, if neither port is zero.
    pub(super) fn flow(&self) -> Option<Flow> {
        let end = |(address, port)| Some(Endpoint::new(address, Port::new(port)?));
        Some(Flow { source: end(self.source)?, destination: end(self.destination)? })
    }
}

pub(super) const fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { NFPROTO_IPV4 } else { NFPROTO_IPV6 }
}

#[cfg(test)]
mod tests {
    use super::super::bytes::{Head, Messages};
    use super::*;

    const HEAD: Head = Head { kind: 0x0100, flags: 0, sequence: 0, family: 2, res_id: 0 };

    #[test]
    fn tuple_has_addresses_protocol_and_ports() {
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
    fn tuple_without_a_port_is_no_flow() {
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
