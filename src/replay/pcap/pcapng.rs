//! The pcapng format: sections of blocks, among them interface descriptions and packets. Does no I/O.

use super::byte_order::ByteOrder;
use super::clock::Clock;
use super::error::{CaptureError, FormatError, Part};
use super::file::{Located, MAX_PACKET, Step};
use super::link::LinkType;
use crate::core::time::Timestamp;

/// The types of blocks that are parsed. All others are skipped.
pub(super) mod block {
    /// The same in both byte orders, because the byte order is a field of the block.
    pub(in crate::replay::pcap) const SECTION: u32 = 0x0a0d_0d0a;
    pub(in crate::replay::pcap) const INTERFACE: u32 = 1;
    /// Obsolete, but present in old captures.
    pub(in crate::replay::pcap) const PACKET: u32 = 2;
    pub(in crate::replay::pcap) const SIMPLE_PACKET: u32 = 3;
    pub(in crate::replay::pcap) const ENHANCED_PACKET: u32 = 6;
}

/// The byte-order magic of a section header.
pub(super) const BYTE_ORDER: u32 = 0x1a2b_3c4d;

/// Offsets in a block of any type.
mod field {
    pub(super) const TYPE: usize = 0;
    pub(super) const LENGTH: usize = 4;
    pub(super) const BODY: usize = 8;
    pub(super) const TRAILER_LEN: usize = 4;
}

/// Offsets in a section header.
mod section {
    pub(super) const BYTE_ORDER: usize = 8;
    pub(super) const MAJOR: usize = 12;
    pub(super) const MINOR: usize = 14;
    /// The length without options and trailer.
    pub(super) const LEN: usize = 24;
}

/// Offsets in an interface description block.
mod interface {
    pub(super) const LINK_TYPE: usize = 8;
    pub(super) const SNAP_LEN: usize = 12;
    pub(super) const OPTIONS: usize = 16;
}

/// Offsets in a packet block, enhanced or obsolete.
mod packet {
    /// Four bytes in an Enhanced Packet block. Two bytes in an obsolete packet block, followed by a count of drops.
    pub(super) const INTERFACE: usize = 8;
    pub(super) const TICKS_HIGH: usize = 12;
    pub(super) const TICKS_LOW: usize = 16;
    pub(super) const CAPTURED: usize = 20;
    pub(super) const ORIGINAL: usize = 24;
    pub(super) const DATA: usize = 28;
}

/// Offsets in a Simple Packet block.
mod simple {
    pub(super) const ORIGINAL: usize = 8;
    pub(super) const DATA: usize = 12;
}

/// The option codes that are used.
pub(super) mod option {
    pub(in crate::replay::pcap) const END: u16 = 0;
    pub(in crate::replay::pcap) const TIME_RESOLUTION: u16 = 9;
    pub(in crate::replay::pcap) const TIME_OFFSET: u16 = 14;
}

/// The only version since 2004.
const MAJOR: u16 = 1;

/// The longest block that is buffered: a packet with a megabyte of options.
const MAX_BLOCK: u32 = MAX_PACKET as u32 + (1 << 20);

/// How many interfaces a section may describe. Bounds the memory.
const MAX_INTERFACES: usize = 1 << 16;

struct Interface {
    /// The error is the number of an unsupported link type.
    link: Result<LinkType, u16>,
    /// `u32::MAX` if packets were captured completely.
    snap_len: u32,
    clock: Clock,
}

/// The state of the current section.
pub(super) struct Pcapng {
    order: ByteOrder,
    interfaces: Vec<Interface>,
    /// The time of the previous packet, for Simple Packets, which have none.
    time: Timestamp,
    skipped: u64,
    /// The link type of the first packet that was skipped.
    unsupported: Option<u16>,
    delivered: bool,
}

impl Pcapng {
    pub(super) const MAGIC: [u8; 4] = block::SECTION.to_be_bytes();

    pub(super) fn new() -> Self {
        Self {
            // The first section header sets it.
            order: ByteOrder::Little,
            interfaces: Vec::new(),
            time: Timestamp::default(),
            skipped: 0,
            unsupported: None,
            delivered: false,
        }
    }

    /// The number of packets of interfaces whose link type is not supported.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Called at the end of the file. An error if the file has packets, but none with a supported link type.
    pub(super) fn end(&self) -> Result<(), CaptureError> {
        match self.unsupported {
            Some(number) if !self.delivered => Err(CaptureError::UnsupportedLinkType(u32::from(number))),
            _ => Ok(()),
        }
    }

    /// Parses the block at the beginning of `bytes`.
    #[inline(always)]
    pub(super) fn step(&mut self, bytes: &[u8]) -> Result<Step, FormatError> {
        // The fast path: nearly every block is an Enhanced Packet.
        if let Some(header) = bytes.first_chunk::<{ packet::DATA }>()
            && self.order.u32_at(header, field::TYPE) == block::ENHANCED_PACKET
        {
            return self.packet(bytes, header, self.order.u32_at(header, packet::INTERFACE));
        }
        self.any_block(bytes)
    }

    #[inline(never)]
    fn any_block(&mut self, bytes: &[u8]) -> Result<Step, FormatError> {
        let Some(header) = bytes.first_chunk::<{ field::BODY }>() else {
            return Ok(Step::Need { count: field::BODY, part: Part::RecordHeader });
        };
        match self.order.u32_at(header, field::TYPE) {
            block::SECTION => self.section(bytes),
            block::INTERFACE => self.interface(bytes, header),
            block::SIMPLE_PACKET => self.simple_packet(bytes, header),
            kind @ (block::PACKET | block::ENHANCED_PACKET) => {
                let length = self.bounded_length(header, packet::DATA)?;
                let Some(header) = bytes.first_chunk() else {
                    return Ok(Step::Need { count: length as usize, part: Part::Packet });
                };
                let interface = match kind {
                    block::PACKET => u32::from(self.order.u16_at(header, packet::INTERFACE)),
                    _ => self.order.u32_at(header, packet::INTERFACE),
                };
                self.packet(bytes, header, interface)
            }
            _ => {
                self.length(header, field::BODY)?;
                self.skip(header)
            }
        }
    }

    /// The length of a block with at least `min` bytes before its trailer.
    #[inline(always)]
    fn length<const N: usize>(&self, header: &[u8; N], min: usize) -> Result<u32, FormatError> {
        let length = self.order.u32_at(header, field::LENGTH);
        let is_valid = length as usize >= min + field::TRAILER_LEN && length.is_multiple_of(4);
        if is_valid { Ok(length) } else { Err(FormatError::BlockLength(length)) }
    }

    /// The length of a block that has to fit into the buffer.
    #[inline(always)]
    fn bounded_length<const N: usize>(&self, header: &[u8; N], min: usize) -> Result<u32, FormatError> {
        let length = self.length(header, min)?;
        if length <= MAX_BLOCK { Ok(length) } else { Err(FormatError::RecordTooLong(length)) }
    }

    fn skip<const N: usize>(&self, header: &[u8; N]) -> Result<Step, FormatError> {
        let trailer = [header[4], header[5], header[6], header[7]];
        Ok(Step::Skip { length: self.order.u32(trailer), trailer })
    }

    fn section(&mut self, bytes: &[u8]) -> Result<Step, FormatError> {
        let Some(header) = bytes.first_chunk::<{ section::LEN }>() else {
            return Ok(Step::Need { count: section::LEN, part: Part::Block });
        };
        self.order = [ByteOrder::Little, ByteOrder::Big]
            .into_iter()
            .find(|order| order.u32_at(header, section::BYTE_ORDER) == BYTE_ORDER)
            .ok_or(FormatError::NoByteOrder)?;
        self.length(header, section::LEN)?;
        let (major, minor) = (self.order.u16_at(header, section::MAJOR), self.order.u16_at(header, section::MINOR));
        if major != MAJOR {
            return Err(FormatError::SectionVersion { major, minor });
        }
        self.interfaces.clear();
        self.skip(header)
    }

    fn interface(&mut self, bytes: &[u8], header: &[u8; field::BODY]) -> Result<Step, FormatError> {
        let length = self.bounded_length(header, interface::OPTIONS)? as usize;
        if bytes.len() < length {
            return Ok(Step::Need { count: length, part: Part::Block });
        }
        if self.interfaces.len() == MAX_INTERFACES {
            return Err(FormatError::TooManyInterfaces);
        }
        let fixed: &[u8; interface::OPTIONS] = bytes.first_chunk().expect("the length was checked");
        let number = self.order.u16_at(fixed, interface::LINK_TYPE);
        let snap_len = match self.order.u32_at(fixed, interface::SNAP_LEN) {
            0 => u32::MAX,
            limit => limit,
        };
        let clock = self.clock(&bytes[interface::OPTIONS..length - field::TRAILER_LEN])?;
        let link = LinkType::from_number(u32::from(number)).ok_or(number);
        self.interfaces.push(Interface { link, snap_len, clock });
        self.skip(header)
    }

    /// The clock according to the options of an interface.
    fn clock(&self, mut options: &[u8]) -> Result<Clock, FormatError> {
        let mut clock = Clock::default();
        while let Some((&[a, b, c, d], rest)) = options.split_first_chunk() {
            let code = self.order.u16([a, b]);
            if code == option::END {
                break;
            }
            let length = usize::from(self.order.u16([c, d]));
            let bad_length = FormatError::OptionLength(code);
            let value = rest.get(..length).ok_or(bad_length)?;
            match code {
                option::TIME_RESOLUTION => {
                    let &[resolution] = value else { return Err(bad_length) };
                    clock = clock.with_resolution(resolution);
                }
                option::TIME_OFFSET => {
                    clock = clock.with_offset(self.order.i64(value.try_into().map_err(|_| bad_length)?));
                }
                _ => {}
            }
            options = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(clock)
    }

    #[inline(always)]
    fn packet(&mut self, bytes: &[u8], header: &[u8; packet::DATA], interface: u32) -> Result<Step, FormatError> {
        let captured = self.order.u32_at(header, packet::CAPTURED);
        let length = self.bounded_length(header, packet::DATA)?;
        let max_len = length as usize - packet::DATA - field::TRAILER_LEN;
        if captured as usize > max_len.min(MAX_PACKET) {
            return Err(too_long(captured, length));
        }
        let interface = described(&self.interfaces, interface)?;
        if let Some(need) = whole(bytes, length)? {
            return Ok(need);
        }
        let link = match interface.link {
            Ok(link) => link,
            Err(number) => return self.pass_over(number, header),
        };
        let high = u64::from(self.order.u32_at(header, packet::TICKS_HIGH));
        let low = u64::from(self.order.u32_at(header, packet::TICKS_LOW));
        self.time = interface.clock.moment(high << 32 | low);
        self.delivered = true;
        Ok(Step::Frame(Located {
            time: self.time,
            link,
            original_len: self.order.u32_at(header, packet::ORIGINAL),
            data_start: packet::DATA,
            data_len: captured as usize,
            record_len: length as usize,
        }))
    }

    fn simple_packet(&mut self, bytes: &[u8], header: &[u8; field::BODY]) -> Result<Step, FormatError> {
        let length = self.bounded_length(header, simple::DATA)?;
        let Some(header) = bytes.first_chunk::<{ simple::DATA }>() else {
            return Ok(Step::Need { count: length as usize, part: Part::Packet });
        };
        // A Simple Packet belongs to the first interface of its section. Its captured length is not in the block; it
        // follows from the snap length.
        let interface = described(&self.interfaces, 0)?;
        let original_len = self.order.u32_at(header, simple::ORIGINAL);
        let captured = original_len.min(interface.snap_len);
        let max_len = length as usize - simple::DATA - field::TRAILER_LEN;
        if captured as usize > max_len.min(MAX_PACKET) {
            return Err(too_long(captured, length));
        }
        if let Some(need) = whole(bytes, length)? {
            return Ok(need);
        }
        let link = match interface.link {
            Ok(link) => link,
            Err(number) => return self.pass_over(number, header),
        };
        self.delivered = true;
        Ok(Step::Frame(Located {
            time: self.time,
            link,
            original_len,
            data_start: simple::DATA,
            data_len: captured as usize,
            record_len: length as usize,
        }))
    }

    #[cold]
    fn pass_over<const N: usize>(&mut self, link_type: u16, header: &[u8; N]) -> Result<Step, FormatError> {
        self.skipped += 1;
        self.unsupported.get_or_insert(link_type);
        self.skip(header)
    }
}

/// The interface with this number in its section.
#[inline(always)]
fn described(interfaces: &[Interface], number: u32) -> Result<&Interface, FormatError> {
    interfaces.get(number as usize).ok_or(FormatError::UnknownInterface(number))
}

/// Checks that the two lengths of a packet's block agree. Returns a [`Step::Need`] if the block is incomplete.
#[inline(always)]
fn whole(bytes: &[u8], length: u32) -> Result<Option<Step>, FormatError> {
    let length = length as usize;
    let Some(block) = bytes.get(..length) else {
        return Ok(Some(Step::Need { count: length, part: Part::Packet }));
    };
    let agree = block[field::LENGTH..field::BODY] == block[length - field::TRAILER_LEN..];
    if agree { Ok(None) } else { Err(FormatError::BlockLengthsDiffer) }
}

#[cold]
fn too_long(packet: u32, block: u32) -> FormatError {
    if packet as usize > MAX_PACKET {
        FormatError::RecordTooLong(packet)
    } else {
        FormatError::PacketLongerThanBlock { packet, block }
    }
}

#[cfg(test)]
mod tests;
