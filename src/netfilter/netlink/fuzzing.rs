//! The entry points of the fuzz targets into the parsers of this module.

use super::bytes::{Head, Messages, Writer};
use super::conntrack::Entry;
use super::element::Element;
use super::{expected, tables, watch};

/// Reads a datagram with everything that reads messages. Returns how many messages there were, and how many things were
/// read out of them.
///
/// # Panics
/// If an element is another one after it was written and read again.
pub fn read_datagram(datagram: &[u8]) -> (usize, usize) {
    let mut messages = 0;
    let mut things = 0;
    for message in Messages::of(datagram) {
        messages += 1;
        things += usize::from(Entry::read(message).is_some());
        things += usize::from(expected::read(message).is_some());
        things += usize::from(tables::read_chain(message).is_some());
        things += usize::from(tables::read_rule(message).is_some());
        things += usize::from(watch::reads_change(message));
        things += usize::from(message.status().is_some());
        for (_, attribute) in message.attributes() {
            for element in Element::read_all(attribute.nested()) {
                things += 1;
                assert_same_when_read_again(&element);
            }
        }
    }
    (messages, things)
}

fn assert_same_when_read_again(element: &Element) {
    const LIST: u16 = 3;
    let mut writer = Writer::default();
    let head = Head { kind: 0, flags: 0, sequence: 0, family: 0, resource: 0 };
    writer.message(head, |message| message.nested(LIST, |list| element.write(list)));
    let message = Messages::of(writer.as_bytes()).next().expect("it was just written");
    let list = message.attributes().find(LIST).expect("it was just written");
    let again = Element::read_all(list.nested()).next().expect("it was just written");
    assert_eq!((again.key, again.last, again.value), (element.key, element.last, element.value));
    // Zero would mean for ever, and is not written.
    assert_eq!(again.timeout, element.timeout.map(|time| time.max(std::time::Duration::from_millis(1))));
}
