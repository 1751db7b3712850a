//! Socket filters (classic BPF) that drop the notifications that a watcher does not need.
//!
//! The kernel runs a filter for each message before it wakes the watcher. A message that the filter cannot parse
//! passes: a needless message costs time, a missed one costs a pinhole. Knows the layout of messages, and not what
//! the watcher does with them.

use socket2::SockFilter;

use super::conntrack::{self, EXPECTED, MARK, ORIGINAL, STATUS};
use super::tuple::{DESTINATION_PORT, PROTOCOL};
use crate::core::net::Port;

/// Where things stand in a message: behind its length its kind, then flags, sequence number, and the socket by which
/// the change was made; behind these sixteen bytes four of netfilter's own, then attributes.
const KIND_AT: u32 = 4;
const CAUSE_AT: u32 = 12;
const ATTRIBUTES_AT: u32 = 20;
/// An attribute's value, behind its length and kind.
const VALUE_AT: u32 = 4;

/// Instructions, as linux/filter.h has them.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_CONSTANT: u16 = 0x00;
const LOAD_WORD_BEHIND_INDEX: u16 = 0x40;
const LOAD_HALF_BEHIND_INDEX: u16 = 0x48;
const INDEX_CONSTANT: u16 = 0x01;
const INDEX_FROM_VALUE: u16 = 0x07;
const AND: u16 = 0x54;
const IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// "Addresses" at which the kernel does not load, but looks for an attribute whose kind is in the index: from the place
/// on that was loaded last, or within the attribute there.
const ATTRIBUTE: u32 = 0xffff_f000 + 12;
const ATTRIBUTE_WITHIN: u32 = 0xffff_f000 + 16;

const KEEP: SockFilter = SockFilter::new(RETURN, 0, 0, u32::MAX);
const DROP: SockFilter = SockFilter::new(RETURN, 0, 0, 0);

/// More ports than these are not worth a test each.
const MOST_PORTS: usize = 256;

const fn step(code: u16, value: u32) -> SockFilter {
    SockFilter::new(code, 0, 0, value)
}

/// Goes on if what was loaded is this; if not, leaves out so many steps.
const fn if_equal(value: u32, else_leave_out: u8) -> SockFilter {
    SockFilter::new(IF_EQUAL, 0, else_leave_out, value)
}

/// Looks for an attribute; lets the message through if there is none.
fn find(place: u32, kind: u16) -> [SockFilter; 4] {
    [step(INDEX_CONSTANT, kind.into()), step(LOAD_WORD, place), if_equal(0, 1), KEEP]
}

/// Lets the message through if it has an attribute with all these bits. The kernel does not tell a mark of zero.
const fn keep_if(kind: u16, bits: u32) -> [SockFilter; 8] {
    [
        step(INDEX_CONSTANT, kind as u32),
        step(LOAD_WORD, ATTRIBUTE),
        // There is none.
        SockFilter::new(IF_EQUAL, 5, 0, 0),
        step(INDEX_FROM_VALUE, 0),
        step(LOAD_WORD_BEHIND_INDEX, VALUE_AT),
        step(AND, bits),
        if_equal(bits, 1),
        KEEP,
    ]
}

/// What this machine's byte order makes of a number that the filter reads in network order.
const fn as_loaded(number: u32) -> u32 {
    u32::from_be_bytes(number.to_ne_bytes())
}

const fn kind_as_loaded(kind: u16) -> u32 {
    u16::from_be_bytes(kind.to_ne_bytes()) as u32
}

/// All but what was done through the socket with this number.
pub(super) fn by_others(number: u32) -> Vec<SockFilter> {
    vec![step(LOAD_WORD, CAUSE_AT), if_equal(as_loaded(number), 1), DROP, KEEP]
}

/// Connections that begin with these bits in their mark, or that a helper expected, and those that end and had been
/// dialled to one of these ports.
pub(super) fn of_interest(bits: u32, ports: &[Port]) -> Vec<SockFilter> {
    let mut begins = vec![step(LOAD_CONSTANT, ATTRIBUTES_AT)];
    begins.extend(keep_if(MARK, bits));
    begins.push(step(LOAD_CONSTANT, ATTRIBUTES_AT));
    begins.extend(keep_if(STATUS, EXPECTED));
    begins.push(DROP);

    let mut ends = vec![step(LOAD_CONSTANT, ATTRIBUTES_AT)];
    ends.extend(find(ATTRIBUTE, ORIGINAL));
    ends.extend(find(ATTRIBUTE_WITHIN, PROTOCOL));
    ends.extend(find(ATTRIBUTE_WITHIN, DESTINATION_PORT));
    if ports.len() <= MOST_PORTS {
        ends.extend([step(INDEX_FROM_VALUE, 0), step(LOAD_HALF_BEHIND_INDEX, VALUE_AT)]);
        ends.extend(ports.iter().flat_map(|port| [if_equal(port.number().into(), 1), KEEP]));
        ends.push(DROP);
    } else {
        ends.push(KEEP);
    }

    let over_begins = u8::try_from(begins.len()).expect("a dozen steps");
    let mut program = vec![step(LOAD_HALF, KIND_AT), if_equal(kind_as_loaded(conntrack::kind::NEW), over_begins)];
    program.extend(begins);
    program.extend(ends);
    program
}
