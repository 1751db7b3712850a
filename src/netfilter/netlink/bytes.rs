//! Netlink messages as bytes (linux/netlink.h, linux/netfilter/nfnetlink.h): headers and attributes, written into one
//! reused buffer, and read with every length checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::uapi::*;

/// `struct nlmsghdr` and `struct nfgenmsg`, without the fields that the writer and the kernel fill in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// `nlmsg_type`: see [`message_type`].
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// `NFPROTO_*`.
    pub(super) family: u8,
    /// The subsystem of a batch, the number of a queue; otherwise zero.
    pub(super) res_id: u16,
}

/// `nlmsg_type` of a message of a subsystem.
pub(super) const fn message_type(subsystem: u16, message: u16) -> u16 {
    subsystem << 8 | message
}

/// Writes messages into a buffer that is kept from one request to the next.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends a message whose attributes `body` writes.
    pub(super) fn message(&mut self, head: Head, body: impl FnOnce(&mut Self)) {
        let Head { kind, flags, sequence, family, res_id } = head;
        self.raw_message(kind, flags, sequence, |writer| {
            writer.raw(&[family, 0]);
            writer.raw(&res_id.to_be_bytes());
            body(writer);
        });
    }

    /// Appends a message of a protocol that has no `struct nfgenmsg`. `body` writes all that is behind `struct nlmsghdr`.
    pub(super) fn raw_message(&mut self, kind: u16, flags: u16, sequence: u32, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        // The kernel fills in the port ID of the socket.
        self.bytes.extend_from_slice(&[0; 4]);
        body(self);
        let length = u32::try_from(self.bytes.len() - start).expect("a message of a few kilobytes");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Bytes that are no attribute.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// An attribute of plain bytes.
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(NLA_ALIGNTO + value.len()).expect("an attribute of a few bytes");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// An attribute that contains those that `body` writes.
    pub(super) fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        body(self);
        let length = u16::try_from(self.bytes.len() - start).expect("lists are cut to fit into an attribute");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// A string, with its final zero byte.
    pub(super) fn string(&mut self, kind: u16, text: &str) {
        let length = u16::try_from(NLA_ALIGNTO + text.len() + 1).expect("a name of at most 255 bytes");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    pub(super) fn u8(&mut self, kind: u16, number: u8) {
        self.bytes(kind, &[number]);
    }

    /// Numbers of netfilter's attributes are in network byte order.
    pub(super) fn u16(&mut self, kind: u16, number: u16) {
        self.bytes(kind, &number.to_be_bytes());
    }

    pub(super) fn u32(&mut self, kind: u16, number: u32) {
        self.bytes(kind, &number.to_be_bytes());
    }

    pub(super) fn u64(&mut self, kind: u16, number: u64) {
        self.bytes(kind, &number.to_be_bytes());
    }

    pub(super) fn address(&mut self, v4: u16, v6: u16, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.bytes(v4, &address.octets()),
            IpAddr::V6(address) => self.bytes(v6, &address.octets()),
        }
    }

    /// A timeout in whole milliseconds, rounded up. Never zero, which would mean that there is no timeout.
    pub(super) fn milliseconds(&mut self, kind: u16, time: Duration) {
        let whole = u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        self.u64(kind, whole.max(1));
    }

    /// A timeout in whole seconds, rounded up. Never zero, which would expire at once.
    pub(super) fn seconds(&mut self, kind: u16, time: Duration) {
        let whole = u32::try_from(time.as_nanos().div_ceil(1_000_000_000)).unwrap_or(u32::MAX);
        self.u32(kind, whole.max(1));
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(NLA_ALIGNTO), 0);
    }
}

/// A message that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// The port ID of the socket whose request caused the message; zero if the kernel itself did.
    pub(super) port_id: u32,
    /// Behind `struct nlmsghdr`.
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The family in `struct nfgenmsg`.
    pub(super) fn family(&self) -> Option<u8> {
        self.body.first().copied()
    }

    /// All that is behind `struct nlmsghdr`.
    pub(super) fn body(&self) -> &'a [u8] {
        self.body
    }

    /// The attributes behind `struct nfgenmsg`.
    pub(super) fn attributes(&self) -> Attributes<'a> {
        self.attributes_behind(NFGENMSG_LEN)
    }

    /// The attributes behind a structure of that length.
    pub(super) fn attributes_behind(&self, length: usize) -> Attributes<'a> {
        Attributes { rest: self.body.get(length..).unwrap_or_default() }
    }

    /// The error number of `NLMSG_ERROR` or `NLMSG_DONE`: zero is success; others are negated.
    pub(super) fn status(&self) -> Option<i32> {
        self.body.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
    }
}

/// The messages in a received datagram, up to the first that is truncated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(super) fn of(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let (header, _) = self.rest.split_first_chunk::<NLMSG_HDRLEN>()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, p0, p1, p2, p3] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let body = self.rest.get(NLMSG_HDRLEN..length)?;
        self.rest = self.rest.get(length.next_multiple_of(NLA_ALIGNTO)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            port_id: u32::from_ne_bytes([p0, p1, p2, p3]),
            body,
        })
    }
}

/// The attributes of a message or of a nested attribute, up to the first that is truncated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The first attribute of that type.
    pub(super) fn find(mut self, kind: u16) -> Option<Attribute<'a>> {
        self.find_map(|(found, attribute)| (found == kind).then_some(attribute))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, Attribute<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[l0, l1, k0, k1], _) = self.rest.split_first_chunk::<NLA_ALIGNTO>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self.rest.get(NLA_ALIGNTO..length)?;
        self.rest = self.rest.get(length.next_multiple_of(NLA_ALIGNTO)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK, Attribute(value)))
    }
}

/// The value of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attribute<'a>(&'a [u8]);

impl<'a> From<&'a [u8]> for Attribute<'a> {
    fn from(value: &'a [u8]) -> Self {
        Self(value)
    }
}

impl<'a> Attribute<'a> {
    pub(super) fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// The attributes in it.
    pub(super) fn nested(self) -> Attributes<'a> {
        Attributes { rest: self.0 }
    }

    pub(super) fn u8(self) -> Option<u8> {
        self.0.first().copied()
    }

    pub(super) fn u16(self) -> Option<u16> {
        self.0.try_into().ok().map(u16::from_be_bytes)
    }

    pub(super) fn u32(self) -> Option<u32> {
        self.0.try_into().ok().map(u32::from_be_bytes)
    }

    pub(super) fn u64(self) -> Option<u64> {
        self.0.try_into().ok().map(u64::from_be_bytes)
    }

    pub(super) fn seconds(self) -> Option<Duration> {
        self.u32().map(|seconds| Duration::from_secs(seconds.into()))
    }

    pub(super) fn string(self) -> Option<&'a str> {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        str::from_utf8(&self.0[..end]).ok()
    }
}

/// An address of four or sixteen bytes.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| Ipv4Addr::from(bytes).into()),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|bytes| Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD: Head = Head { kind: 0x0a0c, flags: 5, sequence: 7, family: 1, res_id: 0 };

    #[test]
    fn writes_headers_lengths_and_padding() {
        let mut writer = Writer::default();
        writer.message(HEAD, |w| w.nested(3, |w| w.string(1, "ab")));
        let expected: &[&[u8]] = &[
            &32u32.to_ne_bytes(),
            &0x0a0c_u16.to_ne_bytes(),
            &5u16.to_ne_bytes(),
            &7u32.to_ne_bytes(),
            &[0; 4],
            &[1, 0, 0, 0],
            &12u16.to_ne_bytes(),
            &0x8003_u16.to_ne_bytes(),
            &7u16.to_ne_bytes(),
            &1u16.to_ne_bytes(),
            b"ab\0\0",
        ];
        assert_eq!(writer.as_bytes(), expected.concat());
    }

    #[test]
    fn reads_what_it_writes() {
        let mut writer = Writer::default();
        writer.message(HEAD, |w| {
            w.string(1, "pinhole");
            w.nested(3, |w| w.u32(4, 9));
            w.milliseconds(5, Duration::from_micros(1500));
        });
        writer.message(Head { kind: NFNL_MSG_BATCH_END, ..HEAD }, |_| {});
        let messages: Vec<_> = Messages::of(writer.as_bytes()).collect();
        assert_eq!((messages.len(), messages[0].kind, messages[0].family()), (2, 0x0a0c, Some(1)));
        let attributes = messages[0].attributes();
        assert_eq!(attributes.find(1).and_then(Attribute::string), Some("pinhole"));
        assert_eq!(attributes.find(3).and_then(|list| list.nested().find(4)).and_then(Attribute::u32), Some(9));
        assert_eq!(attributes.find(5).and_then(Attribute::u64), Some(2));
        assert_eq!(messages[1].attributes().count(), 0);
    }

    #[test]
    fn zero_timeout_is_the_shortest() {
        let mut writer = Writer::default();
        writer.message(HEAD, |w| {
            w.milliseconds(1, Duration::ZERO);
            w.seconds(2, Duration::ZERO);
            w.seconds(3, Duration::from_millis(60_001));
            w.seconds(4, Duration::MAX);
        });
        let attributes = Messages::of(writer.as_bytes()).next().expect("a message").attributes();
        assert_eq!(attributes.find(1).and_then(Attribute::u64), Some(1));
        let seconds = [2, 3, 4].map(|kind| attributes.find(kind).and_then(Attribute::u32));
        assert_eq!(seconds, [Some(1), Some(61), Some(u32::MAX)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in Messages::of(&bytes) {
                let _ = (message.family(), message.status());
                for (_, attribute) in message.attributes() {
                    let _ = (attribute.string(), attribute.u16(), attribute.u64(), attribute.nested().count());
                }
            }
        }

        #[test]
        fn attributes_within_the_first_message_end_with_it(tail in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut writer = Writer::default();
            writer.message(HEAD, |w| w.u32(1, 2));
            let mut bytes = writer.as_bytes().to_vec();
            bytes.extend(tail);
            let first = Messages::of(&bytes).next().expect("the message that was written");
            prop_assert_eq!(first.attributes().count(), 1);
        }
    }
}
