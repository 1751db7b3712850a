//! Elements of nf_tables sets and maps: keys, intervals of keys, the data of a map, timeouts.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::bytes::{Attribute, Attributes, Writer};
use crate::core::net::{Flow, Seq};

const LIST_ELEMENT: u16 = 1;
const KEY: u16 = 1;
const DATA: u16 = 2;
const TIMEOUT: u16 = 4;
const EXPIRATION: u16 = 5;
const KEY_END: u16 = 10;
const VALUE: u16 = 1;

/// Room for two IPv6 addresses and a port.
const LONGEST: usize = 36;
/// Room for an IPv6 address and a port.
const LONGEST_VALUE: usize = 20;

/// Fields one behind the other, each in network order and padded to a multiple of four bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Fields<const MOST: usize> {
    bytes: [u8; MOST],
    length: u8,
}

impl<const MOST: usize> Fields<MOST> {
    const NONE: Self = Self { bytes: [0; MOST], length: 0 };

    fn push(&mut self, field: &[u8]) {
        let start = usize::from(self.length);
        let end = start + field.len();
        self.bytes[start..end].copy_from_slice(field);
        self.length = u8::try_from(end).expect("no key is longer than the longest");
    }

    fn push_address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.push(&address.octets()),
            IpAddr::V6(address) => self.push(&address.octets()),
        }
    }

    fn push_port(&mut self, port: u16) {
        let [high, low] = port.to_be_bytes();
        self.push(&[high, low, 0, 0]);
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = Self::NONE;
        (bytes.len() <= MOST).then(|| fields.push(bytes))?;
        Some(fields)
    }
}

/// A key of a set.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(Fields<LONGEST>);

impl Key {
    /// `address . address . port`. The addresses have to be of one family, as the set's type has them.
    pub fn connection(from: IpAddr, to: IpAddr, port: u16) -> Self {
        let mut fields = Fields::NONE;
        fields.push_address(from);
        fields.push_address(to);
        fields.push_port(port);
        Self(fields)
    }

    /// `sender's address . its port . the other port . sequence number`: where a segment begins.
    pub fn segment(flow: &Flow, seq: Seq) -> Self {
        let mut fields = Fields::NONE;
        fields.push_address(flow.source.address);
        fields.push_port(flow.source.port.number());
        fields.push_port(flow.destination.port.number());
        fields.push(&seq.number().to_be_bytes());
        Self(fields)
    }

    /// `port`.
    pub fn port(port: u16) -> Self {
        let mut fields = Fields::NONE;
        fields.push(&port.to_be_bytes());
        Self(fields)
    }

    /// What [`connection`](Self::connection) was made of, if this is such a key.
    pub fn as_connection(&self) -> Option<(IpAddr, IpAddr, u16)> {
        let (addresses, port) = self.0.as_bytes().split_last_chunk::<4>()?;
        let (from, to): (IpAddr, IpAddr) = match addresses.len() {
            8 => {
                let (from, to) = addresses.split_first_chunk::<4>()?;
                (Ipv4Addr::from(*from).into(), Ipv4Addr::from(<[u8; 4]>::try_from(to).ok()?).into())
            }
            32 => {
                let (from, to) = addresses.split_first_chunk::<16>()?;
                (Ipv6Addr::from(*from).into(), Ipv6Addr::from(<[u8; 16]>::try_from(to).ok()?).into())
            }
            _ => return None,
        };
        Some((from, to, u16::from_be_bytes([port[0], port[1]])))
    }
}

/// What a map has for a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Value(Fields<LONGEST_VALUE>);

impl Value {
    /// `address`.
    pub fn address(address: IpAddr) -> Self {
        let mut fields = Fields::NONE;
        fields.push_address(address);
        Self(fields)
    }

    /// `address . port`.
    pub fn endpoint(address: IpAddr, port: u16) -> Self {
        let mut value = Self::address(address);
        value.0.push_port(port);
        value
    }

    /// The address in it, and the port behind that if it has one; none if it is something else.
    pub fn as_address(&self) -> Option<(IpAddr, Option<u16>)> {
        let bytes = self.0.as_bytes();
        let (address, port) = match bytes.len() {
            4 | 16 => (bytes, None),
            length @ (8 | 20) => bytes.split_at_checked(length - 4).map(|(address, port)| (address, Some(port)))?,
            _ => return None,
        };
        let port = port.and_then(|port| port.first_chunk()).map(|port| u16::from_be_bytes(*port));
        let address = match address.len() {
            4 => Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?).into(),
            _ => Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).into(),
        };
        Some((address, port))
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_address() {
            Some((address, None)) => address.fmt(f),
            Some((address, Some(port))) => write!(f, "{address} . {port}"),
            None => self.0.as_bytes().fmt(f),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_connection() {
            Some((from, to, port)) => write!(f, "{from} . {to} . {port}"),
            None => self.0.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An element of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    /// Its key; in a set of ranges, the lowest.
    pub key: Key,
    /// In a set of ranges, the highest key: every field lies between those two.
    pub last: Option<Key>,
    /// In a map, what it has for the key.
    pub value: Option<Value>,
    /// For how long it was put there; none for ever.
    pub timeout: Option<Duration>,
    /// How long it still stays. The kernel tells it; it is not written.
    pub remaining: Option<Duration>,
}

impl Element {
    /// A single key that stays for so long.
    pub const fn new(key: Key, timeout: Duration) -> Self {
        Self { key, last: None, value: None, timeout: Some(timeout), remaining: None }
    }

    /// A single key that stays.
    pub const fn lasting(key: Key) -> Self {
        Self { key, last: None, value: None, timeout: None, remaining: None }
    }

    /// The same as [`new`](Self::new) in a map.
    pub const fn mapped(key: Key, value: Value, timeout: Duration) -> Self {
        Self { key, last: None, value: Some(value), timeout: Some(timeout), remaining: None }
    }

    /// The same, for all keys between two.
    pub const fn range(first: Key, last: Key, timeout: Duration) -> Self {
        Self { key: first, last: Some(last), value: None, timeout: Some(timeout), remaining: None }
    }

    pub(super) fn write(&self, list: &mut Writer) {
        list.nested(LIST_ELEMENT, |element| {
            element.nested(KEY, |key| key.attribute(VALUE, self.key.0.as_bytes()));
            if let Some(last) = &self.last {
                element.nested(KEY_END, |key| key.attribute(VALUE, last.0.as_bytes()));
            }
            if let Some(value) = &self.value {
                element.nested(DATA, |data| data.attribute(VALUE, value.0.as_bytes()));
            }
            if let Some(timeout) = self.timeout {
                element.milliseconds(TIMEOUT, timeout);
            }
        });
    }

    /// The elements of a list; those that cannot be read are left out.
    pub(super) fn read_all(list: Attributes<'_>) -> impl Iterator<Item = Self> {
        list.filter(|(kind, _)| *kind == LIST_ELEMENT).filter_map(|(_, element)| Self::read(element.nested()))
    }

    fn read(element: Attributes<'_>) -> Option<Self> {
        let bytes = |kind| Some(element.find(kind)?.nested().find(VALUE)?.bytes());
        let key = |kind| Fields::read(bytes(kind)?).map(Key);
        let value = bytes(DATA).and_then(Fields::read).map(Value);
        let time = |kind| element.find(kind).and_then(Attribute::u64).map(Duration::from_millis);
        Some(Self { key: key(KEY)?, last: key(KEY_END), value, timeout: time(TIMEOUT), remaining: time(EXPIRATION) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::bytes::{Head, Messages};
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn written(element: &Element) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.message(Head { kind: 0, flags: 0, sequence: 0, family: 0, resource: 0 }, |w| element.write(w));
        writer.as_bytes().to_vec()
    }

    #[test]
    fn a_port_is_padded_to_four_bytes() {
        let key = Key::connection(address("10.0.0.1"), address("10.0.0.2"), 50_000);
        assert_eq!(key.0.as_bytes(), [10, 0, 0, 1, 10, 0, 0, 2, 0xc3, 0x50, 0, 0]);
        assert_eq!(Key::connection(address("fd00::1"), address("fd00::2"), 1).0.as_bytes().len(), 36);
    }

    #[test]
    fn an_element_is_a_key_and_a_timeout() {
        let key = Key::connection(address("10.0.0.1"), address("10.0.0.2"), 50_000);
        let bytes = written(&Element::new(key, Duration::from_secs(60)));
        let expected: &[&[u8]] = &[
            &[36, 0, 1, 0x80],
            &[20, 0, 1, 0x80, 16, 0, 1, 0],
            &[10, 0, 0, 1, 10, 0, 0, 2, 0xc3, 0x50, 0, 0],
            &[12, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0xea, 0x60],
        ];
        if cfg!(target_endian = "little") {
            assert_eq!(bytes[20..], expected.concat());
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for (from, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let key = |port| Key::connection(address(from), address(to), port);
            let element = Element::range(key(50_000), key(50_100), Duration::from_secs(1));
            let bytes = written(&element);
            let message = Messages::of(&bytes).next().expect("a message");
            assert_eq!(Element::read_all(message.attributes()).collect::<Vec<_>>(), [element]);
            assert_eq!(key(7).as_connection(), Some((address(from), address(to), 7)));
        }
    }

    #[test]
    fn a_map_has_an_address_with_or_without_a_port() {
        for one in ["10.0.0.5", "fd00::5"].map(address) {
            assert_eq!(Value::address(one).as_address(), Some((one, None)));
            assert_eq!(Value::endpoint(one, 50_000).as_address(), Some((one, Some(50_000))));
            let key = Key::connection(one, one, 1);
            let element = Element::mapped(key, Value::endpoint(one, 50_000), Duration::from_secs(1));
            let bytes = written(&element);
            let message = Messages::of(&bytes).next().expect("a message");
            assert_eq!(Element::read_all(message.attributes()).collect::<Vec<_>>(), [element]);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 16..200)) {
            for message in Messages::of(&bytes) {
                for element in Element::read_all(message.attributes()) {
                    let _ = (element.key.to_string(), element.key.as_connection(), element.value.map(|v| v.as_address()));
                }
            }
        }
    }
}
