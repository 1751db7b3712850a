//! A captured packet that waits for a missing segment, as the daemon keeps packets in the kernel's queue.

use crate::core::time::Timestamp;
use crate::replay::pcap::file::Frame;
use crate::replay::pcap::link::LinkType;

/// A frame with its own bytes.
#[derive(Debug)]
pub(super) struct OwnedFrame {
    link: LinkType,
    data: Vec<u8>,
    original_len: u32,
}

impl OwnedFrame {
    pub(super) fn new(frame: &Frame<'_>) -> Self {
        let Frame { link, data, original_len, .. } = *frame;
        Self { link, data: data.to_vec(), original_len }
    }

    /// The frame, with the time of its verdict.
    pub(super) fn frame(&self, time: Timestamp) -> Frame<'_> {
        Frame { time, link: self.link, data: &self.data, original_len: self.original_len }
    }
}
