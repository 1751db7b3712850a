//! Elements of nf_tables sets and maps (linux/netfilter/nf_tables.h): keys, ranges of keys, the data of a map, timeouts.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::bytes::{Attribute, Attributes, Message, Writer, address};
use super::uapi::*;
use crate::core::net::{Flow, Seq};

/// Two IPv6 addresses and a port.
const MAX_KEY: usize = 36;
/// An IPv6 address and a port.
const MAX_VALUE: usize = 20;

/// Concatenated fields, each in network byte order and padded to a multiple of four bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Fields<const MAX: usize> {
    bytes: [u8; MAX],
    length: u8,
}

impl<const MAX: usize> Fields<MAX> {
    const EMPTY: Self = Self { bytes: [0; MAX], length: 0 };

    fn push(&mut self, field: &[u8]) {
        let start = usize::from(self.length);
        let end = start + field.len();
        self.bytes[start..end].copy_from_slice(field);
        self.length = u8::try_from(end).expect("no key is longer than MAX_KEY");
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
        let mut fields = Self::EMPTY;
        (bytes.len() <= MAX).then(|| fields.push(bytes))?;
        Some(fields)
    }
}

/// A key of a set.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(Fields<MAX_KEY>);

impl Key {
    /// `address . address . port`, with addresses of one family.
    pub fn connection(from: IpAddr, to: IpAddr, port: u16) -> Self {
        let mut fields = Fields::EMPTY;
        fields.push_address(from);
        fields.push_address(to);
        fields.push_port(port);
        Self(fields)
    }

    /// `address . address`, of one family.
    pub fn hosts(from: IpAddr, to: IpAddr) -> Self {
        let mut fields = Fields::EMPTY;
        fields.push_address(from);
        fields.push_address(to);
        Self(fields)
    }

    /// The fields of a key that is `address . address`.
    pub fn as_hosts(&self) -> Option<(IpAddr, IpAddr)> {
        let bytes = self.0.as_bytes();
        let (from, to) = bytes.split_at_checked(bytes.len() / 2)?;
        Some((address(from)?, address(to)?))
    }

    /// `source address . source port . destination port . sequence number`.
    pub fn segment(flow: &Flow, seq: Seq) -> Self {
        let mut fields = Fields::EMPTY;
        fields.push_address(flow.source.address);
        fields.push_port(flow.source.port.number());
        fields.push_port(flow.destination.port.number());
        fields.push(&seq.number().to_be_bytes());
        Self(fields)
    }

    /// `port`.
    pub fn port(port: u16) -> Self {
        let mut fields = Fields::EMPTY;
        fields.push(&port.to_be_bytes());
        Self(fields)
    }

    /// The fields of a key that is `address . address . port`.
    pub fn as_connection(&self) -> Option<(IpAddr, IpAddr, u16)> {
        let (addresses, port) = self.0.as_bytes().split_last_chunk::<4>()?;
        let (from, to) = addresses.split_at_checked(addresses.len() / 2)?;
        Some((address(from)?, address(to)?, u16::from_be_bytes([port[0], port[1]])))
    }
}

/// The data that a map has for a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Value(Fields<MAX_VALUE>);

impl Value {
    /// `address`.
    pub fn address(address: IpAddr) -> Self {
        let mut fields = Fields::EMPTY;
        fields.push_address(address);
        Self(fields)
    }

    /// `address . port`.
    pub fn endpoint(address: IpAddr, port: u16) -> Self {
        let mut value = Self::address(address);
        value.0.push_port(port);
        value
    }

    /// The fields of a value that is `address` or `address . port`.
    pub fn as_address(&self) -> Option<(IpAddr, Option<u16>)> {
        let bytes = self.0.as_bytes();
        if let Some(address) = address(bytes) {
            return Some((address, None));
        }
        let (bytes, port) = bytes.split_last_chunk::<4>()?;
        Some((address(bytes)?, Some(u16::from_be_bytes([port[0], port[1]]))))
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

/// An element of a set or map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    /// The key; of a range, the first key.
    pub key: Key,
    /// The last key of a range: each field lies between those of the first and the last.
    pub key_end: Option<Key>,
    pub value: Option<Value>,
    /// After how long the kernel removes it; none: never.
    pub timeout: Option<Duration>,
    /// How much of the timeout is left. Read only.
    pub expiration: Option<Duration>,
    /// The packets of the element's counter; `None` if its set does not give elements a counter behind another statement.
    /// Read only.
    pub packets: Option<u64>,
}

impl Element {
    /// A key with a timeout.
    pub const fn new(key: Key, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..Self::permanent(key) }
    }

    /// A key without a timeout.
    pub const fn permanent(key: Key) -> Self {
        Self { key, key_end: None, value: None, timeout: None, expiration: None, packets: None }
    }

    /// A key of a map, with its data and a timeout.
    pub const fn mapped(key: Key, value: Value, timeout: Duration) -> Self {
        Self { value: Some(value), ..Self::new(key, timeout) }
    }

    /// A range of keys with a timeout.
    pub const fn range(first: Key, last: Key, timeout: Duration) -> Self {
        Self { key_end: Some(last), ..Self::new(first, timeout) }
    }

    pub(super) fn write(&self, list: &mut Writer) {
        list.nested(NFTA_LIST_ELEM, |element| {
            element.nested(NFTA_SET_ELEM_KEY, |key| key.bytes(NFTA_DATA_VALUE, self.key.0.as_bytes()));
            if let Some(last) = &self.key_end {
                element.nested(NFTA_SET_ELEM_KEY_END, |key| key.bytes(NFTA_DATA_VALUE, last.0.as_bytes()));
            }
            if let Some(value) = &self.value {
                element.nested(NFTA_SET_ELEM_DATA, |data| data.bytes(NFTA_DATA_VALUE, value.0.as_bytes()));
            }
            if let Some(timeout) = self.timeout {
                element.milliseconds(NFTA_SET_ELEM_TIMEOUT, timeout);
            }
        });
    }

    /// The elements in a message, without those of other sizes than the sets of Pinhole have.
    pub(super) fn read_message(message: Message<'_>) -> Vec<Self> {
        let list = message.attributes().find(NFTA_SET_ELEM_LIST_ELEMENTS);
        list.map(|list| Self::read_all(list.nested()).collect()).unwrap_or_default()
    }

    pub(super) fn read_all(list: Attributes<'_>) -> impl Iterator<Item = Self> {
        list.filter(|(kind, _)| *kind == NFTA_LIST_ELEM).filter_map(|(_, element)| Self::read(element.nested()))
    }

    fn read(element: Attributes<'_>) -> Option<Self> {
        let bytes = |kind| Some(element.find(kind)?.nested().find(NFTA_DATA_VALUE)?.bytes());
        let key = |kind| Fields::read(bytes(kind)?).map(Key);
        let time = |kind| element.find(kind).and_then(Attribute::u64).map(Duration::from_millis);
        Some(Self {
            key: key(NFTA_SET_ELEM_KEY)?,
            key_end: key(NFTA_SET_ELEM_KEY_END),
            value: bytes(NFTA_SET_ELEM_DATA).and_then(Fields::read).map(Value),
            timeout: time(NFTA_SET_ELEM_TIMEOUT),
            expiration: time(NFTA_SET_ELEM_EXPIRATION),
            packets: element.find(NFTA_SET_ELEM_EXPRESSIONS).and_then(packets),
        })
    }
}

/// The packets that the counter among these expressions has counted.
fn packets(expressions: Attribute<'_>) -> Option<u64> {
    let is_counter = |expression: &Attribute<'_>| {
        expression.nested().find(NFTA_EXPR_NAME).and_then(Attribute::string) == Some("counter")
    };
    let counter = expressions.nested().map(|(_, expression)| expression).find(is_counter)?;
    counter.nested().find(NFTA_EXPR_DATA)?.nested().find(NFTA_COUNTER_PACKETS)?.u64()
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
        writer.message(Head::default(), |w| element.write(w));
        writer.as_bytes().to_vec()
    }

    #[test]
    fn port_is_padded_to_four_bytes() {
        let key = Key::connection(address("10.0.0.1"), address("10.0.0.2"), 50_000);
        assert_eq!(key.0.as_bytes(), [10, 0, 0, 1, 10, 0, 0, 2, 0xc3, 0x50, 0, 0]);
        assert_eq!(Key::connection(address("fd00::1"), address("fd00::2"), 1).0.as_bytes().len(), 36);
    }

    #[test]
    fn element_has_a_key_and_a_timeout() {
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
    fn written_message_is_read_back() {
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
    fn map_has_an_address_with_or_without_a_port() {
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
