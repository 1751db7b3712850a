//! Raw packets of IPv4 and IPv6, also malformed ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::case::Extension;

/// The protocol number of TCP.
const TCP: u8 = 6;

/// The lengths of the IP headers.
const V4: usize = 20;
const V6: usize = 40;

/// A TCP segment to be written as a packet.
pub(crate) struct Raw<'a> {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) payload: &'a [u8],
    pub(crate) has_right_checksum: bool,
    pub(crate) padding: usize,
    /// Only a packet of IPv6 gets it.
    pub(crate) extension: Option<Extension>,
}

impl Raw<'_> {
    pub(crate) fn bytes(mut self) -> Vec<u8> {
        while !self.options.len().is_multiple_of(4) {
            self.options.push(1);
        }
        let mut packet = self.ip_header();
        packet.extend(self.segment());
        packet.resize(packet.len() + self.padding, b'P');
        packet
    }

    fn length(&self) -> usize {
        20 + self.options.len() + self.payload.len()
    }

    fn ip_header(&self) -> Vec<u8> {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = vec![0x45, 0];
                header.extend(u16::try_from(V4 + self.length()).expect("short").to_be_bytes());
                header.extend([0, 0, 0x40, 0, 64, TCP, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                let sum = checksum(0, &header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let (next, extensions) = extensions(self.extension, destination);
                let mut header = vec![0x60, 0, 0, 0];
                header.extend(u16::try_from(extensions.len() + self.length()).expect("short").to_be_bytes());
                header.extend([next, 64]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(extensions);
                header
            }
            (source, destination) => panic!("{source} and {destination} are of two families"),
        }
    }

    fn segment(&self) -> Vec<u8> {
        let mut segment = Vec::with_capacity(self.length());
        segment.extend(self.source.port().to_be_bytes());
        segment.extend(self.destination.port().to_be_bytes());
        segment.extend(self.seq.to_be_bytes());
        segment.extend(self.ack.to_be_bytes());
        segment.extend([u8::try_from((20 + self.options.len()) / 4).expect("short") << 4, self.flags]);
        segment.extend(self.window.to_be_bytes());
        segment.extend([0, 0]);
        segment.extend(self.urgent.to_be_bytes());
        segment.extend(&self.options);
        segment.extend(self.payload);
        // The pseudo header: the addresses, the protocol, the length.
        let addresses = [self.source.ip(), self.destination.ip()].into_iter().map(|address| match address {
            IpAddr::V4(address) => sum(&address.octets()),
            IpAddr::V6(address) => sum(&address.octets()),
        });
        let pseudo = u32::from(TCP) + segment.len() as u32 + addresses.sum::<u32>();
        let mut sum = checksum(pseudo, &segment);
        if !self.has_right_checksum {
            sum = sum.wrapping_add(1);
        }
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        segment
    }
}

/// Extension headers of IPv6.
mod next {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const DESTINATION: u8 = 60;
}

/// Extension headers, and the number of the first one, or of TCP.
fn extensions(extension: Option<Extension>, destination: Ipv6Addr) -> (u8, Vec<u8>) {
    /// An option that is padding.
    const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];
    let options = |next: u8| [&[next, 0][..], &PADDING].concat();
    let Some(extension) = extension else { return (TCP, Vec::new()) };
    match extension {
        Extension::Destination => (next::DESTINATION, options(TCP)),
        Extension::HopByHop => (next::HOP_BY_HOP, options(TCP)),
        Extension::Many => {
            let all = [next::DESTINATION, next::DESTINATION, next::DESTINATION, TCP].map(options);
            (next::HOP_BY_HOP, all.concat())
        }
        // The two highest bits of the type say what a receiver does that does not know it: discard the packet.
        Extension::Unknown => (next::DESTINATION, vec![TCP, 0, 0x5e, 4, 0, 0, 0, 0]),
        // Type 2 (mobile IPv6): one address.
        Extension::Routing => (next::ROUTING, [&[TCP, 2, 2, 0, 0, 0, 0, 0][..], &destination.octets()].concat()),
        Extension::RoutingElsewhere => {
            (next::ROUTING, [&[TCP, 2, 2, 1, 0, 0, 0, 0][..], &destination.octets()].concat())
        }
        Extension::Fragment => (next::FRAGMENT, vec![TCP, 0, 0, 0, 1, 2, 3, 4]),
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from(bytes[0]) << 8 | bytes.get(1).copied().map_or(0, u32::from)
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(word).sum()
}

fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = start + sum(bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Options of TCP.
pub(crate) mod option {
    pub(crate) fn mss(bytes: u16) -> Vec<u8> {
        [&[2, 4][..], &bytes.to_be_bytes()].concat()
    }

    pub(crate) fn sack_permitted() -> Vec<u8> {
        vec![1, 1, 4, 2]
    }

    pub(crate) fn timestamps(value: u32, echo: u32) -> Vec<u8> {
        [&[1, 1, 8, 10][..], &value.to_be_bytes(), &echo.to_be_bytes()].concat()
    }

    pub(crate) fn md5() -> Vec<u8> {
        [&[1, 1, 19, 18][..], &[7; 16]].concat()
    }

    pub(crate) fn ao() -> Vec<u8> {
        [&[29, 16, 1, 1][..], &[7; 12]].concat()
    }
}

/// The fields of a packet.
pub(crate) struct ParsedSegment {
    pub(crate) receiver: IpAddr,
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) stamp: Option<u32>,
    pub(crate) payload: Vec<u8>,
}

/// Reads a packet, if it is a TCP segment without options of IPv4.
pub(crate) fn read(packet: &[u8]) -> Option<ParsedSegment> {
    let (receiver, segment) = segment(packet)?;
    let number = |at: usize| segment.get(at..at + 4)?.first_chunk().copied().map(u32::from_be_bytes);
    let port = |at: usize| segment.get(at..at + 2)?.first_chunk().copied().map(u16::from_be_bytes);
    let header = usize::from(segment.get(12)? >> 4) * 4;
    let payload = segment.get(header..)?.to_vec();
    let mut options = segment.get(20..header)?;
    let mut stamp = None;
    while let [kind, rest @ ..] = options {
        options = match (kind, rest) {
            (0, _) => &[],
            (1, _) => rest,
            (8, [10, value @ ..]) => {
                stamp = value.first_chunk::<4>().map(|value| u32::from_be_bytes(*value));
                rest.get(9..).unwrap_or_default()
            }
            (_, [length, ..]) => options.get(usize::from(*length).max(1)..).unwrap_or_default(),
            (_, []) => &[],
        };
    }
    Some(ParsedSegment {
        receiver,
        source: port(0)?,
        destination: port(2)?,
        seq: number(4)?,
        ack: number(8)?,
        flags: *segment.get(13)?,
        stamp,
        payload,
    })
}

/// The destination address and the TCP segment of a packet, without padding.
fn segment(packet: &[u8]) -> Option<(IpAddr, &[u8])> {
    let length = |at: usize| packet.get(at..at + 2)?.first_chunk().copied().map(u16::from_be_bytes).map(usize::from);
    match packet.first()? >> 4 {
        4 if packet[0] == 0x45 && *packet.get(9)? == TCP => {
            let receiver: Ipv4Addr = (*packet.get(16..20)?.first_chunk::<4>()?).into();
            Some((receiver.into(), packet.get(V4..length(2)?)?))
        }
        6 => {
            let receiver: Ipv6Addr = (*packet.get(24..40)?.first_chunk::<16>()?).into();
            let mut rest = packet.get(V6..V6 + length(4)?)?;
            let mut next = *packet.get(6)?;
            while let next::HOP_BY_HOP | next::DESTINATION | next::ROUTING | next::FRAGMENT = next {
                let [following, eights, ..] = *rest else { return None };
                rest = rest.get(8 + 8 * usize::from(eights)..)?;
                next = following;
            }
            (next == TCP).then_some((receiver.into(), rest))
        }
        _ => None,
    }
}
