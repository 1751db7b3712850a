//! Passes on the frames as they would have been captured on the outside of the gateway.
//!
//! The caller supplies the translated packet.

use crate::replay::pcap::file::Frame;
use crate::replay::pcap::link;

/// Receives the frames as they would have been captured on the outside of the gateway.
pub trait Outside {
    /// False if the frames are not used, so that they need not be translated.
    const WANTED: bool = true;

    fn frame(&mut self, frame: &Frame<'_>);
}

impl Outside for () {
    const WANTED: bool = false;

    fn frame(&mut self, _: &Frame<'_>) {}
}

/// Passes a frame to `outside`, with `packet` in place of the `length` bytes with which the frame ends.
pub(super) fn emit<O: Outside>(frame: &Frame<'_>, length: usize, packet: &[u8], outside: &mut O) {
    let data = link::with_packet(frame.data, length, packet);
    let original_len = u32::try_from(data.len()).unwrap_or(u32::MAX);
    outside.frame(&Frame { data: &data, original_len, ..*frame });
}
