//! Writes the capture as the other side of a gateway would have seen it.
//!
//! Knows how to write a packet with other addresses and another payload; the caller supplies both.

use crate::replay::pcap::file::Frame;
use crate::replay::pcap::link;

/// Whoever wants to see it.
pub trait Outside {
    /// Whether anything is wanted at all.
    const WANTED: bool = true;

    fn sees(&mut self, frame: &Frame<'_>);
}

impl Outside for () {
    const WANTED: bool = false;

    fn sees(&mut self, _: &Frame<'_>) {}
}

/// Shows a frame with another packet in it than the one of `length` bytes with which it ends.
pub(super) fn show<O: Outside>(frame: &Frame<'_>, length: usize, packet: &[u8], outside: &mut O) {
    let data = link::with_packet(frame.data, length, packet);
    let original_len = u32::try_from(data.len()).unwrap_or(u32::MAX);
    outside.sees(&Frame { data: &data, original_len, ..*frame });
}
