//! Parses the link-layer headers, and finds the beginning of the IP header.
//!
//! Of IP, it knows only the version number in the first byte, for link types without a header. Does not check whether the
//! packet is complete, and does not remove the padding of an Ethernet frame.

/// The link types that can carry IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkType {
    Ethernet,
    /// SLL, "Linux cooked": the interface "any" of Linux, and interfaces without a link-layer header.
    LinuxCooked,
    /// SLL2, the second version of it.
    LinuxCooked2,
    /// No header: IPv4 or IPv6.
    Ip,
    /// No header: IPv4.
    Ipv4,
    /// No header: IPv6.
    Ipv6,
    /// The loopback of BSD, macOS and Npcap: an address family in the byte order of the capturing host.
    Null,
    /// The loopback of OpenBSD: an address family in network byte order.
    Loop,
}

impl LinkType {
    /// The link type with this number in a capture file, if it is supported.
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Null,
            1 => Self::Ethernet,
            // In files, raw IP is 101. Some programs wrote their system's DLT_RAW instead: 12, or 14 on OpenBSD.
            12 | 14 | 101 => Self::Ip,
            108 => Self::Loop,
            113 => Self::LinuxCooked,
            228 => Self::Ipv4,
            229 => Self::Ipv6,
            276 => Self::LinuxCooked2,
            _ => return None,
        })
    }

    /// The number in a capture file.
    pub const fn number(self) -> u16 {
        match self {
            Self::Null => 0,
            Self::Ethernet => 1,
            Self::Ip => 101,
            Self::Loop => 108,
            Self::LinuxCooked => 113,
            Self::Ipv4 => 228,
            Self::Ipv6 => 229,
            Self::LinuxCooked2 => 276,
        }
    }
}

/// Why there is no IP header in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotIp {
    /// An intact packet of another protocol, such as ARP.
    #[error("not an IP packet")]
    OtherProtocol,
    #[error("cut off before the IP header")]
    Truncated,
    #[error("too many VLAN tags")]
    TooManyTags,
}

/// Offsets in an Ethernet header.
mod ethernet {
    pub(super) const TYPE: usize = 12;
    pub(super) const LEN: usize = 14;
}

/// Offsets in an SLL header.
mod cooked {
    pub(super) const HARDWARE: usize = 2;
    pub(super) const TYPE: usize = 14;
    pub(super) const LEN: usize = 16;
}

/// Offsets in an SLL2 header.
mod cooked2 {
    pub(super) const TYPE: usize = 0;
    pub(super) const HARDWARE: usize = 8;
    pub(super) const LEN: usize = 20;
}

/// Offsets in a VLAN tag, after its EtherType.
mod tag {
    /// The EtherType of the payload, after the tag control information.
    pub(super) const TYPE: usize = 2;
    pub(super) const LEN: usize = 4;
    /// The maximum number of nested tags. Two are common, three exist.
    pub(super) const MAX: usize = 8;
}

/// Offsets in a PPPoE session header and the PPP header behind it.
mod pppoe {
    pub(super) const VERSION_AND_TYPE: usize = 0;
    pub(super) const CODE: usize = 1;
    /// The length of the PPP header and its payload.
    pub(super) const LENGTH: usize = 4;
    /// The PPP protocol.
    pub(super) const PROTOCOL: usize = 6;
    pub(super) const LEN: usize = 8;

    pub(super) const VERSION_1_TYPE_1: u8 = 0x11;
    pub(super) const SESSION: u8 = 0;
    pub(super) const IPV4: u16 = 0x0021;
    pub(super) const IPV6: u16 = 0x0057;
}

mod ether_type {
    pub(super) const IPV4: u16 = 0x0800;
    pub(super) const IPV6: u16 = 0x86dd;
    pub(super) const VLAN: u16 = 0x8100;
    /// The outer tag of two, 802.1ad.
    pub(super) const QINQ: u16 = 0x88a8;
    /// The outer tag of two in equipment that is older than 802.1ad.
    pub(super) const OLD_QINQ: u16 = 0x9100;
    pub(super) const PPPOE_SESSION: u16 = 0x8864;
}

/// The `ARPHRD_` types for which the protocol field of an SLL header is not an EtherType.
mod hardware {
    pub(super) const FRAME_RELAY: u16 = 770;
    pub(super) const IEEE80211: u16 = 801;
    pub(super) const IEEE80211_PRISM: u16 = 802;
    pub(super) const IEEE80211_RADIOTAP: u16 = 803;
    pub(super) const NETLINK: u16 = 824;
}

/// The numbers of address families. `AF_INET6` differs between operating systems.
mod family {
    pub(super) const LEN: usize = 4;
    pub(super) const INET: u32 = 2;
    /// NetBSD, OpenBSD, and Npcap on Windows.
    pub(super) const INET6_BSD: u32 = 24;
    pub(super) const INET6_FREEBSD: u32 = 28;
    pub(super) const INET6_DARWIN: u32 = 30;
}

/// The IP packet in `data`, at least one byte long.
#[inline]
pub fn network_layer(link: LinkType, data: &[u8]) -> Result<&[u8], NotIp> {
    let ip = match link {
        LinkType::Ethernet => {
            let (header, rest) = split::<{ ethernet::LEN }>(data)?;
            payload(u16_at(header, ethernet::TYPE), rest)?
        }
        LinkType::LinuxCooked => {
            let (header, rest) = split::<{ cooked::LEN }>(data)?;
            cooked_payload(u16_at(header, cooked::HARDWARE), u16_at(header, cooked::TYPE), rest)?
        }
        LinkType::LinuxCooked2 => {
            let (header, rest) = split::<{ cooked2::LEN }>(data)?;
            cooked_payload(u16_at(header, cooked2::HARDWARE), u16_at(header, cooked2::TYPE), rest)?
        }
        LinkType::Ip | LinkType::Ipv4 | LinkType::Ipv6 => data,
        LinkType::Null => {
            let (&family, rest) = split::<{ family::LEN }>(data)?;
            // The numbers are so small that none of them is another one in the other byte order.
            if !is_ip(u32::from_le_bytes(family)) && !is_ip(u32::from_be_bytes(family)) {
                return Err(NotIp::OtherProtocol);
            }
            rest
        }
        LinkType::Loop => {
            let (&family, rest) = split::<{ family::LEN }>(data)?;
            if !is_ip(u32::from_be_bytes(family)) {
                return Err(NotIp::OtherProtocol);
            }
            rest
        }
    };
    let version = ip.first().ok_or(NotIp::Truncated)? >> 4;
    match link {
        // The link type has no header with a protocol, so the version is checked.
        LinkType::Ip if version != 4 && version != 6 => Err(NotIp::OtherProtocol),
        LinkType::Ipv4 if version != 4 => Err(NotIp::OtherProtocol),
        LinkType::Ipv6 if version != 6 => Err(NotIp::OtherProtocol),
        _ => Ok(ip),
    }
}

/// Replaces the packet of `length` bytes with which a frame ends.
pub fn with_packet(frame: &[u8], length: usize, packet: &[u8]) -> Vec<u8> {
    let begin = frame.len().saturating_sub(length);
    let mut bytes = [&frame[..begin], packet].concat();
    // Of the headers in front of an IP packet, only that of PPPoE has a length field.
    const ETHER_TYPE_LEN: usize = 2;
    if let Some(at) = begin.checked_sub(pppoe::LEN)
        && let Some(before) = at.checked_sub(ETHER_TYPE_LEN)
        && bytes[before..at] == ether_type::PPPOE_SESSION.to_be_bytes()
        && pppoe_payload(&bytes[at..]).is_ok()
        && let Ok(length) = u16::try_from(packet.len() + pppoe::LEN - pppoe::PROTOCOL)
    {
        bytes[at + pppoe::LENGTH..at + pppoe::PROTOCOL].copy_from_slice(&length.to_be_bytes());
    }
    bytes
}

/// The payload after an EtherType and any VLAN tags.
#[inline]
fn payload(ether_type: u16, rest: &[u8]) -> Result<&[u8], NotIp> {
    match ether_type {
        ether_type::IPV4 | ether_type::IPV6 => Ok(rest),
        _ => tagged_payload(ether_type, rest),
    }
}

fn tagged_payload(mut ether_type: u16, mut rest: &[u8]) -> Result<&[u8], NotIp> {
    for _ in 0..=tag::MAX {
        match ether_type {
            ether_type::IPV4 | ether_type::IPV6 => return Ok(rest),
            ether_type::VLAN | ether_type::QINQ | ether_type::OLD_QINQ => {
                let (tag, inner) = split::<{ tag::LEN }>(rest)?;
                ether_type = u16_at(tag, tag::TYPE);
                rest = inner;
            }
            ether_type::PPPOE_SESSION => return pppoe_payload(rest),
            _ => return Err(NotIp::OtherProtocol),
        }
    }
    Err(NotIp::TooManyTags)
}

fn pppoe_payload(data: &[u8]) -> Result<&[u8], NotIp> {
    let (header, rest) = split::<{ pppoe::LEN }>(data)?;
    let session = header[pppoe::VERSION_AND_TYPE] == pppoe::VERSION_1_TYPE_1 && header[pppoe::CODE] == pppoe::SESSION;
    match u16_at(header, pppoe::PROTOCOL) {
        pppoe::IPV4 | pppoe::IPV6 if session => Ok(rest),
        _ => Err(NotIp::OtherProtocol),
    }
}

fn cooked_payload(hardware: u16, ether_type: u16, rest: &[u8]) -> Result<&[u8], NotIp> {
    match hardware {
        hardware::NETLINK
        | hardware::FRAME_RELAY
        | hardware::IEEE80211
        | hardware::IEEE80211_PRISM
        | hardware::IEEE80211_RADIOTAP => Err(NotIp::OtherProtocol),
        _ => payload(ether_type, rest),
    }
}

const fn is_ip(family: u32) -> bool {
    matches!(family, family::INET | family::INET6_BSD | family::INET6_FREEBSD | family::INET6_DARWIN)
}

#[inline(always)]
fn split<const N: usize>(data: &[u8]) -> Result<(&[u8; N], &[u8]), NotIp> {
    data.split_first_chunk().ok_or(NotIp::Truncated)
}

#[inline(always)]
fn u16_at<const N: usize>(header: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([header[at], header[at + 1]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V4: &[u8] = &[0x45, 1, 2, 3];
    const V6: &[u8] = &[0x60, 1, 2, 3];
    const MACS: &[u8] = &[2; 12];
    const ALL: [LinkType; 8] = [
        LinkType::Ethernet,
        LinkType::LinuxCooked,
        LinkType::LinuxCooked2,
        LinkType::Ip,
        LinkType::Ipv4,
        LinkType::Ipv6,
        LinkType::Null,
        LinkType::Loop,
    ];

    fn ethernet(types_and_tags: &[u16], payload: &[u8]) -> Vec<u8> {
        let middle: Vec<u8> = types_and_tags.iter().flat_map(|number| number.to_be_bytes()).collect();
        [MACS, &middle, payload].concat()
    }

    #[test]
    fn every_link_type_has_its_number() {
        for link in ALL {
            assert_eq!(LinkType::from_number(link.number().into()), Some(link));
        }
        assert_eq!(LinkType::from_number(12), Some(LinkType::Ip));
        assert_eq!(LinkType::from_number(14), Some(LinkType::Ip));
        // USB, and a number whose lower 16 bits are those of Ethernet.
        assert_eq!(LinkType::from_number(220), None);
        assert_eq!(LinkType::from_number(0x1_0001), None);
    }

    #[test]
    fn ethernet_carries_either_ip() {
        assert_eq!(network_layer(LinkType::Ethernet, &ethernet(&[0x0800], V4)), Ok(V4));
        assert_eq!(network_layer(LinkType::Ethernet, &ethernet(&[0x86dd], V6)), Ok(V6));
    }

    #[test]
    fn frame_of_etherparse_is_parsed() {
        let builder = etherparse::PacketBuilder::ethernet2([1; 6], [2; 6])
            .double_vlan(
                etherparse::VlanId::try_new(5).expect("twelve bits"),
                etherparse::VlanId::try_new(6).expect("twelve bits"),
            )
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(40000, 21, 1, 1000);
        let mut frame = Vec::new();
        builder.write(&mut frame, b"PASV\r\n").expect("a vector takes it");
        let ip = network_layer(LinkType::Ethernet, &frame).expect("IP is in it");
        assert_eq!(ip.len(), 20 + 20 + 6);
    }

    #[test]
    fn vlan_tags_of_every_kind_are_skipped() {
        for tags in [
            &[0x8100, 5, 0x0800][..],
            &[0x88a8, 5, 0x8100, 6, 0x0800],
            &[0x9100, 5, 0x8100, 6, 0x0800],
            &[0x8100, 5, 0x8100, 6, 0x8100, 7, 0x0800],
        ] {
            assert_eq!(network_layer(LinkType::Ethernet, &ethernet(tags, V4)), Ok(V4), "{tags:x?}");
        }
    }

    #[test]
    fn number_of_vlan_tags_is_limited() {
        let tags = |count: usize| [[0x8100, 1].repeat(count), vec![0x0800]].concat();
        assert_eq!(network_layer(LinkType::Ethernet, &ethernet(&tags(tag::MAX), V4)), Ok(V4));
        let too_many = ethernet(&tags(tag::MAX + 1), V4);
        assert_eq!(network_layer(LinkType::Ethernet, &too_many), Err(NotIp::TooManyTags));
    }

    #[test]
    fn pppoe_session_carries_ip_and_its_negotiation_does_not() {
        let frame = |code: u16, protocol| ethernet(&[0x8864, 0x1100 | code, 0x1234, 6, protocol], V4);
        assert_eq!(network_layer(LinkType::Ethernet, &frame(0, 0x0021)), Ok(V4));
        assert_eq!(network_layer(LinkType::Ethernet, &frame(0, 0xc021)), Err(NotIp::OtherProtocol));
        assert_eq!(network_layer(LinkType::Ethernet, &frame(9, 0x0021)), Err(NotIp::OtherProtocol));
        let tagged = ethernet(&[0x8100, 5, 0x8864, 0x1100, 1, 6, 0x0057], V6);
        assert_eq!(network_layer(LinkType::Ethernet, &tagged), Ok(V6));
    }

    #[test]
    fn arp_and_802_3_are_other_protocols() {
        for ether_type in [0x0806, 0x0026, 0x88cc, 0x8863] {
            let frame = ethernet(&[ether_type], &[0x45; 46]);
            assert_eq!(network_layer(LinkType::Ethernet, &frame), Err(NotIp::OtherProtocol), "{ether_type:x}");
        }
    }

    #[test]
    fn protocol_field_of_sll_depends_on_the_arphrd_type() {
        let first = |hardware: u16, protocol: u16| {
            [&[0, 0], &hardware.to_be_bytes()[..], &[0, 6], &[7; 8], &protocol.to_be_bytes(), V4].concat()
        };
        let second = |hardware: u16, protocol: u16| {
            [&protocol.to_be_bytes()[..], &[0; 6], &hardware.to_be_bytes(), &[0, 6], &[7; 8], V4].concat()
        };
        for (link, frame) in
            [(LinkType::LinuxCooked, &first as &dyn Fn(u16, u16) -> Vec<u8>), (LinkType::LinuxCooked2, &second)]
        {
            assert_eq!(network_layer(link, &frame(1, 0x0800)), Ok(V4));
            assert_eq!(network_layer(link, &frame(772, 0x0800)), Ok(V4));
            assert_eq!(network_layer(link, &frame(824, 0x0800)), Err(NotIp::OtherProtocol));
            assert_eq!(network_layer(link, &frame(1, 0x0806)), Err(NotIp::OtherProtocol));
            let tagged = [&frame(1, 0x8100)[..link_len(link)], &[0, 5, 0x08, 0], V4].concat();
            assert_eq!(network_layer(link, &tagged), Ok(V4));
        }
    }

    fn link_len(link: LinkType) -> usize {
        if link == LinkType::LinuxCooked { cooked::LEN } else { cooked2::LEN }
    }

    #[test]
    fn version_of_raw_ip_is_checked() {
        assert_eq!(network_layer(LinkType::Ip, V4), Ok(V4));
        assert_eq!(network_layer(LinkType::Ip, V6), Ok(V6));
        assert_eq!(network_layer(LinkType::Ip, &[0x50]), Err(NotIp::OtherProtocol));
        assert_eq!(network_layer(LinkType::Ipv4, V4), Ok(V4));
        assert_eq!(network_layer(LinkType::Ipv4, V6), Err(NotIp::OtherProtocol));
        assert_eq!(network_layer(LinkType::Ipv6, V6), Ok(V6));
        assert_eq!(network_layer(LinkType::Ipv6, V4), Err(NotIp::OtherProtocol));
    }

    #[test]
    fn loopback_of_every_bsd_is_read_in_both_byte_orders() {
        for (family, ip) in [(2_u32, V4), (24, V6), (28, V6), (30, V6)] {
            let (little, big) = ([&family.to_le_bytes(), ip].concat(), [&family.to_be_bytes(), ip].concat());
            assert_eq!(network_layer(LinkType::Null, &little), Ok(ip));
            assert_eq!(network_layer(LinkType::Null, &big), Ok(ip));
            assert_eq!(network_layer(LinkType::Loop, &big), Ok(ip));
            assert_eq!(network_layer(LinkType::Loop, &little), Err(NotIp::OtherProtocol));
        }
        assert_eq!(network_layer(LinkType::Null, &[7, 0, 0, 0, 0x45]), Err(NotIp::OtherProtocol));
    }

    #[test]
    fn frame_cut_before_its_ip_header_is_truncated() {
        let frames = [
            (LinkType::Ethernet, ethernet(&[0x8100, 5, 0x88a8, 6, 0x8864, 0x1100, 1, 6, 0x0021], &V4[..1])),
            (LinkType::LinuxCooked, [&[0; 14][..], &[0x08, 0], &V4[..1]].concat()),
            (LinkType::LinuxCooked2, [&[0x08, 0], &[0; 18][..], &V4[..1]].concat()),
            (LinkType::Null, vec![2, 0, 0, 0, 0x45]),
            (LinkType::Loop, vec![0, 0, 0, 2, 0x45]),
            (LinkType::Ip, vec![0x45]),
        ];
        for (link, frame) in frames {
            assert_eq!(network_layer(link, &frame), Ok(&V4[..1]), "{link:?}");
            for end in 0..frame.len() {
                assert_eq!(network_layer(link, &frame[..end]), Err(NotIp::Truncated), "{link:?} {end}");
            }
        }
    }

    #[test]
    fn replaced_packet_corrects_the_length_of_pppoe() {
        let frame = ethernet(&[0x8100, 5, 0x8864, 0x1100, 1, 6, 0x0021], V4);
        let length = frame.len() - 4;
        assert_eq!(network_layer(LinkType::Ethernet, &frame), Ok(V4));
        let other = with_packet(&frame, V4.len(), V6);
        assert_eq!(other.len(), frame.len());
        let longer = with_packet(&frame, V4.len(), &[0x45; 300]);
        assert_eq!(network_layer(LinkType::Ethernet, &longer), Ok(&[0x45; 300][..]));
        // The length field counts the PPP protocol and the packet.
        assert_eq!(longer[length - 4..length - 2], 302_u16.to_be_bytes());
        assert_eq!(with_packet(V4, V4.len(), V6), V6);
    }

    proptest! {
        #[test]
        fn ip_packet_is_the_end_of_the_frame(link in 0..ALL.len(), data in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(ip) = network_layer(ALL[link], &data) {
                prop_assert!(!ip.is_empty() && data.ends_with(ip));
            }
        }
    }
}
