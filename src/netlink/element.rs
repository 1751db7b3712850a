//! Elements of nf_tables' sets: keys, ranges of keys, and for how long they stay.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::bytes::{Attribute, Attributes, Writer};

const LIST_ELEMENT: u16 = 1;
const KEY: u16 = 1;
const TIMEOUT: u16 = 4;
const EXPIRATION: u16 = 5;
const KEY_END: u16 = 10;
const VALUE: u16 = 1;

/// Room for two IPv6 addresses and a port.
const LONGEST: usize = 36;

/// A key of a set: fields one behind the other, each in network order and padded to a multiple of four bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    bytes: [u8; LONGEST],
    length: u8,
}

impl Key {
    /// `address . address . port`. The addresses have to be of one family, as the set's type has them.
    pub fn connection(from: IpAddr, to: IpAddr, port: u16) -> Self {
        let mut key = Self { bytes: [0; LONGEST], length: 0 };
        for address in [from, to] {
            match address {
                IpAddr::V4(address) => key.push(&address.octets()),
                IpAddr::V6(address) => key.push(&address.octets()),
            }
        }
        let [high, low] = port.to_be_bytes();
        key.push(&[high, low, 0, 0]);
        key
    }

    /// What [`connection`](Self::connection) was made of, if this is such a key.
    pub fn as_connection(&self) -> Option<(IpAddr, IpAddr, u16)> {
        let bytes = self.as_bytes();
        let (addresses, port) = bytes.split_last_chunk::<4>()?;
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

    fn push(&mut self, field: &[u8]) {
        let start = usize::from(self.length);
        let end = start + field.len();
        self.bytes[start..end].copy_from_slice(field);
        self.length = u8::try_from(end).expect("no key is longer than the longest");
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > LONGEST {
            return None;
        }
        let mut key = Self { bytes: [0; LONGEST], length: 0 };
        key.push(bytes);
        Some(key)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_connection() {
            Some((from, to, port)) => write!(f, "{from} . {to} . {port}"),
            None => self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}")),
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
    /// For how long it was put there; none for ever.
    pub timeout: Option<Duration>,
    /// How long it still stays. The kernel tells it; it is not written.
    pub remaining: Option<Duration>,
}

impl Element {
    /// A single key that stays for so long.
    pub const fn new(key: Key, timeout: Duration) -> Self {
        Self { key, last: None, timeout: Some(timeout), remaining: None }
    }

    /// The same, for all keys between two.
    pub const fn range(first: Key, last: Key, timeout: Duration) -> Self {
        Self { key: first, last: Some(last), timeout: Some(timeout), remaining: None }
    }

    pub(super) fn write(&self, list: &mut Writer) {
        list.nested(LIST_ELEMENT, |element| {
            element.nested(KEY, |key| key.attribute(VALUE, self.key.as_bytes()));
            if let Some(last) = &self.last {
                element.nested(KEY_END, |key| key.attribute(VALUE, last.as_bytes()));
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
        let key = |kind| Key::read(element.find(kind)?.nested().find(VALUE)?.bytes());
        let time = |kind| element.find(kind).and_then(Attribute::u64).map(Duration::from_millis);
        Some(Self { key: key(KEY)?, last: key(KEY_END), timeout: time(TIMEOUT), remaining: time(EXPIRATION) })
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
        assert_eq!(key.as_bytes(), [10, 0, 0, 1, 10, 0, 0, 2, 0xc3, 0x50, 0, 0]);
        assert_eq!(Key::connection(address("fd00::1"), address("fd00::2"), 1).as_bytes().len(), 36);
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

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 16..200)) {
            for message in Messages::of(&bytes) {
                for element in Element::read_all(message.attributes()) {
                    let _ = (element.key.to_string(), element.key.as_connection());
                }
            }
        }
    }
}
