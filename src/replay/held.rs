//! Packets that wait for a missing segment, as the daemon keeps them in the kernel's queue.

use crate::core::net::{Flags, Flow, Segment, Seq};
use crate::core::time::Timestamp;
use crate::replay::pcap::file::Frame;
use crate::replay::pcap::link::LinkType;

/// How many wait at a time: as many as the service lets wait.
const MOST: usize = 32;

/// A packet that waits.
#[derive(Debug)]
pub(super) struct Held {
    link: LinkType,
    data: Vec<u8>,
    original_len: u32,
    /// As they were captured.
    flow: Flow,
    seq: Seq,
}

impl Held {
    /// It as a frame. What has waited has the time at which it went on.
    pub(super) fn frame(&self, time: Timestamp) -> Frame<'_> {
        Frame { time, link: self.link, data: &self.data, original_len: self.original_len }
    }
}

/// Whether a packet may have to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    MayWait,
    GoesOn,
}

/// Those that wait, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Waiting(Vec<Held>);

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether that very packet waits already, so that this one is its repetition.
    pub(super) fn has(&self, segment: &Segment<'_>) -> bool {
        self.0.iter().any(|held| held.flow == segment.flow && held.seq == segment.seq)
    }

    /// Adds one; gives the oldest, if there is no room.
    pub(super) fn add(&mut self, frame: &Frame<'_>, segment: &Segment<'_>) -> Option<Held> {
        let oldest = (self.0.len() == MOST).then(|| self.0.remove(0));
        let Frame { link, data, original_len, .. } = *frame;
        let Segment { flow, seq, .. } = *segment;
        self.0.push(Held { link, data: data.to_vec(), original_len, flow, seq });
        oldest
    }

    /// Takes the first one that need not wait any more, now that this comes: its receiver has what was missing, so it is
    /// the capture that lacks it.
    pub(super) fn take_acknowledged(&mut self, comes: &Segment<'_>) -> Option<Held> {
        if !comes.flags.has(Flags::ACK) {
            return None;
        }
        let back = comes.flow.reversed();
        let place = self.0.iter().position(|held| held.flow == back && !comes.ack.is_before(held.seq))?;
        Some(self.0.remove(place))
    }

    /// The first place from `place` on at which one of that flow waits.
    pub(super) fn next_of(&self, flow: &Flow, place: usize) -> Option<usize> {
        let found = self.0.iter().skip(place).position(|held| held.flow == *flow)?;
        Some(place + found)
    }

    /// Takes the one at that place.
    pub(super) fn take(&mut self, place: usize) -> Option<Held> {
        (place < self.0.len()).then(|| self.0.remove(place))
    }

    /// Puts it back there: it goes on waiting.
    pub(super) fn put_back(&mut self, place: usize, held: Held) {
        self.0.insert(place, held);
    }
}
