//! The entry point of the fuzz targets into the parsers of netlink messages.

use super::bytes::{Head, Messages, Writer};
use super::conntrack::ConntrackEntry;
use super::element::Element;
use super::uapi::NFTA_SET_ELEM_LIST_ELEMENTS;
use super::{expectations, sock_diag, tables, watch};

/// Parses a datagram with each parser of messages. Returns how many messages it has, and how many of the parsers' results.
///
/// # Panics
/// If an element that is written and read again has changed.
pub fn read_datagram(datagram: &[u8]) -> (usize, usize) {
    let mut messages = 0;
    let mut results = 0;
    for message in Messages::of(datagram) {
        messages += 1;
        results += usize::from(ConntrackEntry::read(message).is_some());
        results += usize::from(expectations::read(message).is_some());
        results += usize::from(sock_diag::read(message).is_some());
        results += usize::from(tables::read_chain(message).is_some());
        results += usize::from(tables::read_rule(message).is_some());
        results += usize::from(watch::reads_change(message));
        results += usize::from(message.status().is_some());
        for (_, attribute) in message.attributes() {
            for element in Element::read_all(attribute.nested()) {
                results += 1;
                assert_same_when_read_again(&element);
            }
        }
    }
    (messages, results)
}

fn assert_same_when_read_again(element: &Element) {
    let mut writer = Writer::default();
    writer.message(Head::default(), |message| {
        message.nested(NFTA_SET_ELEM_LIST_ELEMENTS, |list| element.write(list));
    });
    let message = Messages::of(writer.as_bytes()).next().expect("it was just written");
    let again = Element::read_message(message).into_iter().next().expect("it was just written");
    assert_eq!((again.key, again.key_end, again.value), (element.key, element.key_end, element.value));
    // Zero would mean no timeout, and is not written.
    assert_eq!(again.timeout, element.timeout.map(|time| time.max(std::time::Duration::from_millis(1))));
}
