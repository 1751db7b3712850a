//! Socket filters (classic BPF, linux/filter.h) that drop notifications that a watcher does not need.
//!
//! The kernel runs the filter for each message before it wakes the watcher. A message that the filter cannot parse passes:
//! a needless message costs time, a missed one costs a pinhole.

use socket2::SockFilter;

use super::bytes::message_type;
use super::uapi::*;
use crate::core::net::Port;

/// Offsets in a message: of the type and the port ID in `struct nlmsghdr`, and of the first attribute.
const TYPE_OFFSET: u32 = 4;
const PORT_ID_OFFSET: u32 = 12;
const ATTRIBUTES_OFFSET: u32 = (NLMSG_HDRLEN + NFGENMSG_LEN) as u32;
/// Offset of the value in an attribute.
const VALUE_OFFSET: u32 = NLA_ALIGNTO as u32;

/// Instructions. `A` is the accumulator, `X` the index register.
const LD_W_ABS: u16 = BPF_LD | BPF_W | BPF_ABS;
const LD_H_ABS: u16 = BPF_LD | BPF_H | BPF_ABS;
const LD_IMM: u16 = BPF_LD | BPF_IMM;
const LD_W_IND: u16 = BPF_LD | BPF_W | BPF_IND;
const LD_H_IND: u16 = BPF_LD | BPF_H | BPF_IND;
const LDX_IMM: u16 = BPF_LDX | BPF_IMM;
const TAX: u16 = BPF_MISC | BPF_TAX;
const AND_K: u16 = BPF_ALU | BPF_AND | BPF_K;
const JEQ_K: u16 = BPF_JMP | BPF_JEQ | BPF_K;
const RET_K: u16 = BPF_RET | BPF_K;

/// Loads from these offsets find the attribute whose type is in `X`: from the offset in `A` on, or nested in the attribute
/// at that offset. `A` becomes the attribute's offset, or zero.
const FIND_ATTRIBUTE: u32 = SKF_AD_OFF + SKF_AD_NLATTR;
const FIND_NESTED: u32 = SKF_AD_OFF + SKF_AD_NLATTR_NEST;

const ACCEPT: SockFilter = SockFilter::new(RET_K, 0, 0, u32::MAX);
const DROP: SockFilter = SockFilter::new(RET_K, 0, 0, 0);

/// With more ports, the filter tests none of them.
const MAX_PORTS: usize = 256;

const fn step(code: u16, value: u32) -> SockFilter {
    SockFilter::new(code, 0, 0, value)
}

/// Skips this many steps if `A` is not `value`.
const fn unless_equal_skip(value: u32, skipped: u8) -> SockFilter {
    SockFilter::new(JEQ_K, 0, skipped, value)
}

/// Finds an attribute; accepts the message if there is none.
fn find(place: u32, kind: u16) -> [SockFilter; 4] {
    [step(LDX_IMM, kind.into()), step(LD_W_ABS, place), unless_equal_skip(0, 1), ACCEPT]
}

/// Accepts the message if it has an attribute with all these bits. The kernel leaves out a mark of zero.
const fn accept_if_bits(kind: u16, bits: u32) -> [SockFilter; 8] {
    [
        step(LDX_IMM, kind as u32),
        step(LD_W_ABS, FIND_ATTRIBUTE),
        // Without the attribute, skips the rest.
        SockFilter::new(JEQ_K, 5, 0, 0),
        step(TAX, 0),
        step(LD_W_IND, VALUE_OFFSET),
        step(AND_K, bits),
        unless_equal_skip(bits, 1),
        ACCEPT,
    ]
}

/// A number in the host's byte order as the filter loads it, in network byte order.
const fn as_loaded(number: u32) -> u32 {
    u32::from_be_bytes(number.to_ne_bytes())
}

const fn type_as_loaded(kind: u16) -> u32 {
    u16::from_be_bytes(kind.to_ne_bytes()) as u32
}

/// Drops notifications of changes that the socket with this port ID has made.
pub(super) fn without_port_id(port_id: u32) -> Vec<SockFilter> {
    vec![step(LD_W_ABS, PORT_ID_OFFSET), unless_equal_skip(as_loaded(port_id), 1), DROP, ACCEPT]
}

/// Accepts connections that begin with these bits in their mark or that a helper expected, and those that end and have one
/// of these original destination ports.
pub(super) fn connections(mark_bits: u32, ports: &[Port]) -> Vec<SockFilter> {
    let mut begins = vec![step(LD_IMM, ATTRIBUTES_OFFSET)];
    begins.extend(accept_if_bits(CTA_MARK, mark_bits));
    begins.push(step(LD_IMM, ATTRIBUTES_OFFSET));
    begins.extend(accept_if_bits(CTA_STATUS, IPS_EXPECTED));
    begins.push(DROP);

    let mut ends = vec![step(LD_IMM, ATTRIBUTES_OFFSET)];
    ends.extend(find(FIND_ATTRIBUTE, CTA_TUPLE_ORIG));
    ends.extend(find(FIND_NESTED, CTA_TUPLE_PROTO));
    ends.extend(find(FIND_NESTED, CTA_PROTO_DST_PORT));
    if ports.len() <= MAX_PORTS {
        ends.extend([step(TAX, 0), step(LD_H_IND, VALUE_OFFSET)]);
        ends.extend(ports.iter().flat_map(|port| [unless_equal_skip(port.number().into(), 1), ACCEPT]));
        ends.push(DROP);
    } else {
        ends.push(ACCEPT);
    }

    let begin = type_as_loaded(message_type(NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW));
    let length = u8::try_from(begins.len()).expect("twenty steps");
    let mut program = vec![step(LD_H_ABS, TYPE_OFFSET), unless_equal_skip(begin, length)];
    program.extend(begins);
    program.extend(ends);
    program
}
