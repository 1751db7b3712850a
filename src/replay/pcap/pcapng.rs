//! The pcapng format: sections of blocks, some of which describe interfaces and some of which hold packets. Does no
//! I/O.

use super::byte_order::ByteOrder;
use super::clock::Clock;
use super::error::{CaptureError, FormatError, Part};
use super::file::{Located, MAX_PACKET, Step};
use super::link::LinkType;
use crate::core::time::Timestamp;

/// The types of blocks that are looked into; all others are passed over.
pub(super) mod block {
    /// Reads the same in either byte order, because the order is only known from inside the block.
    pub(in crate::replay::pcap) const SECTION: u32 = 0x0a0d_0d0a;
    pub(in crate::replay::pcap) const INTERFACE: u32 = 1;
    /// Long obsolete, but old captures have it.
    pub(in crate::replay::pcap) const PACKET: u32 = 2;
    pub(in crate::replay::pcap) const SIMPLE_PACKET: u32 = 3;
    pub(in crate::replay::pcap) const ENHANCED_PACKET: u32 = 6;
}

/// The number by which a section header tells its byte order.
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
    /// Up to where the options begin.
    pub(super) const LEN: usize = 24;
}

/// Offsets in the description of an interface.
mod interface {
    pub(super) const LINK_TYPE: usize = 8;
    pub(super) const SNAP_LEN: usize = 12;
    pub(super) const OPTIONS: usize = 16;
}

/// Offsets in a packet block, enhanced or obsolete.
mod packet {
    /// Four bytes in the enhanced form; two in the obsolete one, and a count of drops in the other two.
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

/// The codes of the options that matter.
pub(super) mod option {
    pub(in crate::replay::pcap) const END: u16 = 0;
    pub(in crate::replay::pcap) const TIME_RESOLUTION: u16 = 9;
    pub(in crate::replay::pcap) const TIME_OFFSET: u16 = 14;
}

/// The version that there has been since 2004.
const MAJOR: u16 = 1;

/// The longest block that must be held whole: a packet with a megabyte of options around it.
const MAX_BLOCK: u32 = MAX_PACKET as u32 + (1 << 20);

/// How many interfaces a section may describe, so that a hostile file cannot fill the memory.
const MAX_INTERFACES: usize = 1 << 16;

/// An interface, as a section describes it.
struct Interface {
    /// Or the number of the one that is not supported.
    link: Result<LinkType, u16>,
    /// At most so much of a packet was kept; `u32::MAX` for all.
    snap_len: u32,
    clock: Clock,
}

/// What the blocks so far said about those to come.
pub(super) struct Pcapng {
    order: ByteOrder,
    /// Of the current section.
    interfaces: Vec<Interface>,
    /// The time of the packet before, for those that have none.
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
            // Until the first section header says which.
            order: ByteOrder::Little,
            interfaces: Vec::new(),
            time: Timestamp::default(),
            skipped: 0,
            unsupported: None,
            delivered: false,
        }
    }

    /// How many packets of unsupported interfaces there were.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// At the end of the file: an error if not one of its packets was of use, so that nobody takes it for an empty one.
    pub(super) fn end(&self) -> Result<(), CaptureError> {
        match self.unsupported {
            Some(number) if !self.delivered => Err(CaptureError::UnsupportedLinkType(u32::from(number))),
            _ => Ok(()),
        }
    }

    /// What stands at the head of `bytes`, which begin at a block.
    #[inline(always)]
    pub(super) fn step(&mut self, bytes: &[u8]) -> Result<Step, FormatError> {
        // Nearly every block is an enhanced packet that is there as a whole, with its trailer.
        if let Some(header) = bytes.first_chunk::<{ packet::DATA }>()
            && self.order.u32_at(header, field::TYPE) == block::ENHANCED_PACKET
        {
            return self.packet(bytes, header, self.order.u32_at(header, packet::INTERFACE));
        }
        self.step_slowly(bytes)
    }

    #[inline(never)]
    fn step_slowly(&mut self, bytes: &[u8]) -> Result<Step, FormatError> {
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

    /// The length of the block, which has at least `least` bytes before its trailer.
    #[inline(always)]
    fn length<const N: usize>(&self, header: &[u8; N], least: usize) -> Result<u32, FormatError> {
        let length = self.order.u32_at(header, field::LENGTH);
        let sound = length as usize >= least + field::TRAILER_LEN && length.is_multiple_of(4);
        if sound { Ok(length) } else { Err(FormatError::BlockLength(length)) }
    }

    /// The same, of a block that must be held whole.
    #[inline(always)]
    fn bounded_length<const N: usize>(&self, header: &[u8; N], least: usize) -> Result<u32, FormatError> {
        let length = self.length(header, least)?;
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

    /// The clock that an interface's options describe.
    fn clock(&self, mut options: &[u8]) -> Result<Clock, FormatError> {
        let mut clock = Clock::default();
        while let Some((&[a, b, c, d], rest)) = options.split_first_chunk() {
            let code = self.order.u16([a, b]);
            if code == option::END {
                break;
            }
            let length = usize::from(self.order.u16([c, d]));
            let impossible = FormatError::OptionLength(code);
            let value = rest.get(..length).ok_or(impossible)?;
            match code {
                option::TIME_RESOLUTION => {
                    let &[resolution] = value else { return Err(impossible) };
                    clock = clock.with_resolution(resolution);
                }
                option::TIME_OFFSET => {
                    clock = clock.with_offset(self.order.i64(value.try_into().map_err(|_| impossible)?));
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
        let room = length as usize - packet::DATA - field::TRAILER_LEN;
        if captured as usize > room.min(MAX_PACKET) {
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
        // It is always the section's first, and only its snap length tells how much of the packet there is.
        let interface = described(&self.interfaces, 0)?;
        let original_len = self.order.u32_at(header, simple::ORIGINAL);
        let captured = original_len.min(interface.snap_len);
        let room = length as usize - simple::DATA - field::TRAILER_LEN;
        if captured as usize > room.min(MAX_PACKET) {
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

/// The interface of that number in its section.
#[inline(always)]
fn described(interfaces: &[Interface], number: u32) -> Result<&Interface, FormatError> {
    interfaces.get(number as usize).ok_or(FormatError::UnknownInterface(number))
}

/// What is missing for the packet's block to be there as a whole, if anything; if not, its two lengths must agree.
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
