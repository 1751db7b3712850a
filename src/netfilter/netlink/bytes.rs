//! Netlink messages as bytes: headers and attributes, written into one reused buffer and read without trust.
//!
//! Knows the framing that all of netfilter shares, and no message in particular.

use std::time::Duration;

/// A netlink header and the four bytes that netfilter puts behind it.
const HEADERS: usize = 20;
const HEADER: usize = 16;
/// Attributes begin at multiples of this.
const ALIGNMENT: usize = 4;
/// An attribute that contains attributes.
const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that are its number.
const TYPE_MASK: u16 = 0x3fff;

/// Flags of a request.
pub(super) mod flags {
    pub(crate) const REQUEST: u16 = 0x001;
    pub(crate) const MULTI: u16 = 0x002;
    pub(crate) const ACK: u16 = 0x004;
    pub(crate) const DUMP_INTERRUPTED: u16 = 0x010;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const EXCLUSIVE: u16 = 0x200;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
}

/// Types of messages that are not netfilter's.
pub(super) mod control {
    pub(crate) const ERROR: u16 = 2;
    pub(crate) const DONE: u16 = 3;
    pub(crate) const BATCH_BEGIN: u16 = 16;
    pub(crate) const BATCH_END: u16 = 17;
}

/// A message's headers, as far as one chooses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The subsystem in the high byte, the message in the low one.
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// The family of addresses, as the subsystem counts them.
    pub(super) family: u8,
    /// Which subsystem a batch is for; otherwise zero.
    pub(super) resource: u16,
}

/// Messages being written. The buffer is kept from one request to the next.
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
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&head.kind.to_ne_bytes());
        self.bytes.extend_from_slice(&head.flags.to_ne_bytes());
        self.bytes.extend_from_slice(&head.sequence.to_ne_bytes());
        // The kernel fills in which socket it came from.
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[head.family, 0]);
        self.bytes.extend_from_slice(&head.resource.to_be_bytes());
        body(self);
        let length = u32::try_from(self.bytes.len() - start).expect("a message of a few kilobytes");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// An attribute of plain bytes.
    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).expect("an attribute of a few bytes");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// An attribute that contains those that `body` writes.
    pub(super) fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        body(self);
        let length = u16::try_from(self.bytes.len() - start).expect("whoever writes a list keeps it short");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// A text that ends with a zero byte.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        let length = u16::try_from(5 + text.len()).expect("a name of at most 255 bytes");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    /// A number as netfilter has nearly all of them: the highest byte first.
    pub(super) fn number(&mut self, kind: u16, number: u32) {
        self.attribute(kind, &number.to_be_bytes());
    }

    /// A length of time in whole milliseconds; never zero, which would mean "for ever".
    pub(super) fn milliseconds(&mut self, kind: u16, time: Duration) {
        let whole = u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        self.attribute(kind, &whole.max(1).to_be_bytes());
    }

    fn pad(&mut self) {
        let over = self.bytes.len() % ALIGNMENT;
        if over != 0 {
            self.bytes.extend_from_slice(&[0; ALIGNMENT][over..]);
        }
    }
}

/// A message that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// The socket whose request caused it; zero for the kernel's own doing.
    pub(super) cause: u32,
    /// What follows the netlink header.
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The family of addresses, if the message is one of netfilter's.
    pub(super) fn family(&self) -> Option<u8> {
        self.body.first().copied()
    }

    /// The attributes behind netfilter's own header.
    pub(super) fn attributes(&self) -> Attributes<'a> {
        Attributes { rest: self.body.get(HEADERS - HEADER..).unwrap_or_default() }
    }

    /// What an error message, or the end of a dump, says: zero is success, otherwise an error number, negated.
    pub(super) fn status(&self) -> Option<i32> {
        self.body.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
    }
}

/// The messages in a received datagram, up to the first that is not whole.
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
        let (header, _) = self.rest.split_first_chunk::<HEADER>()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, c0, c1, c2, c3] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let body = self.rest.get(HEADER..length)?;
        self.rest = self.rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            cause: u32::from_ne_bytes([c0, c1, c2, c3]),
            body,
        })
    }
}

/// The attributes of a message or of a nested attribute, up to the first that is not whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The first attribute of that kind.
    pub(super) fn find(mut self, kind: u16) -> Option<Attribute<'a>> {
        self.find_map(|(found, attribute)| (found == kind).then_some(attribute))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, Attribute<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[l0, l1, k0, k1], _) = self.rest.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self.rest.get(4..length)?;
        self.rest = self.rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & TYPE_MASK, Attribute(value)))
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

    pub(super) fn text(self) -> Option<&'a str> {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        str::from_utf8(&self.0[..end]).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD: Head = Head { kind: 0x0a0c, flags: 5, sequence: 7, family: 1, resource: 0 };

    #[test]
    fn writes_headers_lengths_and_padding() {
        let mut writer = Writer::default();
        writer.message(HEAD, |w| w.nested(3, |w| w.text(1, "ab")));
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
            w.text(1, "pinhole");
            w.nested(3, |w| w.number(4, 9));
            w.milliseconds(5, Duration::from_micros(1500));
        });
        writer.message(Head { kind: control::BATCH_END, ..HEAD }, |_| {});
        let messages: Vec<_> = Messages::of(writer.as_bytes()).collect();
        assert_eq!((messages.len(), messages[0].kind, messages[0].family()), (2, 0x0a0c, Some(1)));
        let attributes = messages[0].attributes();
        assert_eq!(attributes.find(1).and_then(Attribute::text), Some("pinhole"));
        assert_eq!(attributes.find(3).and_then(|list| list.nested().find(4)).and_then(Attribute::u32), Some(9));
        assert_eq!(attributes.find(5).and_then(Attribute::u64), Some(2));
        assert_eq!(messages[1].attributes().count(), 0);
    }

    #[test]
    fn no_time_at_all_is_not_for_ever() {
        let mut writer = Writer::default();
        writer.message(HEAD, |w| w.milliseconds(4, Duration::ZERO));
        let attribute = Messages::of(writer.as_bytes()).next().and_then(|m| m.attributes().find(4));
        assert_eq!(attribute.and_then(Attribute::u64), Some(1));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in Messages::of(&bytes) {
                let _ = (message.family(), message.status());
                for (_, attribute) in message.attributes() {
                    let _ = (attribute.text(), attribute.u16(), attribute.u64(), attribute.nested().count());
                }
            }
        }

        #[test]
        fn attributes_within_the_first_message_end_with_it(tail in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut writer = Writer::default();
            writer.message(HEAD, |w| w.number(1, 2));
            let mut bytes = writer.as_bytes().to_vec();
            bytes.extend(tail);
            let first = Messages::of(&bytes).next().expect("the message that was written");
            prop_assert_eq!(first.attributes().count(), 1);
        }
    }
}
