//! Raw IPv4 packets, also malformed ones.

use std::net::SocketAddrV4;

/// A TCP segment to be written as a packet.
pub(crate) struct Raw<'a> {
    pub(crate) source: SocketAddrV4,
    pub(crate) destination: SocketAddrV4,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) payload: &'a [u8],
    pub(crate) has_right_checksum: bool,
    pub(crate) padding: usize,
}

impl Raw<'_> {
    pub(crate) fn bytes(mut self) -> Vec<u8> {
        while !self.options.len().is_multiple_of(4) {
            self.options.push(1);
        }
        let header = 20 + self.options.len();
        let length = 20 + header + self.payload.len();
        let mut packet = vec![0x45, 0];
        packet.extend(u16::try_from(length).expect("short").to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        packet.extend(self.source.ip().octets());
        packet.extend(self.destination.ip().octets());
        let sum = checksum(0, &packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(self.source.port().to_be_bytes());
        packet.extend(self.destination.port().to_be_bytes());
        packet.extend(self.seq.to_be_bytes());
        packet.extend(self.ack.to_be_bytes());
        packet.extend([u8::try_from(header / 4).expect("short") << 4, self.flags]);
        packet.extend(self.window.to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(self.urgent.to_be_bytes());
        packet.extend(&self.options);
        packet.extend(self.payload);
        // The pseudo header: the addresses, the protocol, the length.
        let pseudo = 6 + (length - 20) as u32 + packet[12..20].chunks(2).map(word).sum::<u32>();
        let mut sum = checksum(pseudo, &packet[20..]);
        if !self.has_right_checksum {
            sum = sum.wrapping_add(1);
        }
        packet[36..38].copy_from_slice(&sum.to_be_bytes());
        packet.resize(packet.len() + self.padding, b'P');
        packet
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from(bytes[0]) << 8 | bytes.get(1).copied().map_or(0, u32::from)
}

fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = start + bytes.chunks(2).map(word).sum::<u32>();
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

/// The fields of a packet of the kernel's.
pub(crate) struct Read {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) stamp: Option<u32>,
    pub(crate) payload: Vec<u8>,
}

/// Reads a packet, if it is a TCP segment without IP options.
pub(crate) fn read(packet: &[u8]) -> Option<Read> {
    if packet.len() < 40 || packet[0] != 0x45 || packet[9] != 6 {
        return None;
    }
    let number = |at: usize| u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let header = usize::from(packet[32] >> 4) * 4;
    let payload = packet.get(20 + header..usize::from(port(2)))?.to_vec();
    let mut options = packet.get(40..20 + header)?;
    let mut stamp = None;
    while let [kind, rest @ ..] = options {
        options = match (kind, rest) {
            (0, _) => &[],
            (1, _) => rest,
            (8, [10, value @ ..]) => {
                stamp = value.first_chunk::<4>().map(|value| u32::from_be_bytes(*value));
                &rest[9..]
            }
            (_, [length, ..]) => options.get(usize::from(*length)..).unwrap_or_default(),
            (_, []) => &[],
        };
    }
    Some(Read {
        source: port(20),
        destination: port(22),
        seq: number(24),
        ack: number(28),
        flags: packet[33],
        stamp,
        payload,
    })
}
