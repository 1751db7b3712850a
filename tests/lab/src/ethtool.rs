//! Turns the offloads of an interface on and off, as ethtool does.
//!
//! A veth pair has no hardware: with offloads on, it passes segments of up to 64 KiB with checksums left open, which
//! is fast. With offloads off, packets are as they would be on a cable.

use super::netlink::{Body, Netlink, attribute};
use nix::sys::socket::SockProtocol;
use std::io;

/// The kernel's names of the features that make or accept large segments and incomplete checksums.
const FEATURES: [&str; 6] = [
    "tx-checksum-ip-generic",
    "tx-tcp-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp6-segmentation",
    "tx-generic-segmentation",
    "rx-gro",
];

/// Turns them on or off for an interface of the calling thread's network namespace.
pub(crate) fn set_offloads(interface: &str, on: bool) -> io::Result<()> {
    const SET_FEATURES: u8 = 12;
    const HEADER: u16 = 1;
    const DEVICE_NAME: u16 = 2;
    const FLAGS: u16 = 3;
    const OMIT_REPLY: u32 = 2;
    const WANTED: u16 = 3;
    const BITS: u16 = 3;
    const BIT: u16 = 1;
    const BIT_NAME: u16 = 2;
    const BIT_IS_SET: u16 = 3;
    let mut header = Body::default();
    header.text(DEVICE_NAME, interface).attribute(FLAGS, &OMIT_REPLY.to_ne_bytes());
    let mut bits = Body::default();
    for feature in FEATURES {
        let mut bit = Body::default();
        bit.text(BIT_NAME, feature);
        if on {
            bit.attribute(BIT_IS_SET, &[]);
        }
        bits.nested(BIT, &bit);
    }
    let mut wanted = Body::default();
    wanted.nested(BITS, &bits);
    let mut netlink = Netlink::open(SockProtocol::NetlinkGeneric)?;
    let family = family(&mut netlink)?;
    let mut body = generic(SET_FEATURES);
    body.nested(HEADER, &header).nested(WANTED, &wanted);
    netlink.request(family, 0, &body)
}

/// The number that this kernel has given to messages of ethtool.
fn family(netlink: &mut Netlink) -> io::Result<u16> {
    const CONTROLLER: u16 = 0x10;
    const GET_FAMILY: u8 = 3;
    const FAMILY_ID: u16 = 1;
    const FAMILY_NAME: u16 = 2;
    let mut body = generic(GET_FAMILY);
    body.text(FAMILY_NAME, "ethtool");
    let answer = netlink.query(CONTROLLER, &body)?;
    match attribute(answer.get(4..).unwrap_or_default(), FAMILY_ID) {
        Some([a, b, ..]) => Ok(u16::from_ne_bytes([*a, *b])),
        _ => Err(io::Error::other("the kernel does not tell its number for ethtool")),
    }
}

/// The fixed part of a generic netlink message.
fn generic(command: u8) -> Body {
    Body(vec![command, 1, 0, 0])
}
