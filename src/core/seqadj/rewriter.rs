//! One direction of a connection in which some bytes are replaced.
//!
//! The sender counts its own bytes, the receiver those that reach it. The replacements alone map the sender's
//! sequence numbers to the receiver's. So every retransmission, however the sender cuts it into segments, becomes
//! the bytes that the receiver has at that place. Knows nothing of lines.

use std::collections::VecDeque;

use super::{Replacement, Verdict};
use crate::core::net::{Flags, Segment, Seq};
use crate::core::seqadj::{Adjustment, NotAdjusted};

/// How many acknowledged replacements are remembered, in case the sender retransmits those bytes.
const REMEMBERED: usize = 16;

/// The most replacements that are remembered. There are no more: each is an announcement, which the other end
/// answers, and the answer acknowledges it.
const MOST_REMEMBERED: usize = 64;

/// The most bytes that are withheld: the longest address that FTP can write is shorter.
pub const MOST_WITHHELD: usize = 160;

/// The longest payload that a segment may grow to. With its headers it fits every path of IPv6, and nearly all of IPv4.
const LONGEST: usize = 1200;

/// Why bytes cannot be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RewriteError {
    /// Some of these bytes, or of the bytes after them, were passed already.
    Gone,
    /// The segment would be too long for the path.
    NoRoom,
    /// The kernel does not correct this direction.
    NotAdjusted,
}

/// Bytes that the receiver gets in place of the sender's.
#[derive(Debug)]
struct Edit {
    start: Seq,
    length: usize,
    text: Vec<u8>,
    /// The byte in front of it.
    before: u8,
}

impl Edit {
    fn end(&self) -> Seq {
        self.start + self.length
    }

    fn growth(&self) -> i32 {
        self.text.len() as i32 - self.length as i32
    }
}

/// The sum of all replacements that are not remembered any more.
#[derive(Clone, Copy, Debug)]
struct Forgotten {
    /// Where the last of them ended.
    end: Seq,
    /// By how many bytes they have moved the bytes after them.
    growth: i32,
    /// The last byte of them that the receiver got.
    last: u8,
}

/// One direction.
#[derive(Debug)]
pub struct DirectionRewriter {
    /// The kernel's state when the session began.
    found: Adjustment,
    /// The kernel's state now.
    adjustment: Adjustment,
    /// The sum of the replacements that are not remembered any more.
    forgotten: Option<Forgotten>,
    /// In stream order. The last one may have no text: the withheld bytes.
    edits: VecDeque<Edit>,
    /// The withheld bytes, if there are any.
    withheld: Option<Vec<u8>>,
    /// The receiver's acknowledgement, in the receiver's numbers.
    acked: Option<Seq>,
    /// Up to where the sender's bytes have gone on.
    gone: Option<Seq>,
    /// No byte from here on may be passed.
    barred: Option<Seq>,
}

impl Default for DirectionRewriter {
    fn default() -> Self {
        Self::found(Adjustment { position: Seq::default(), before: 0, after: 0 })
    }
}

impl DirectionRewriter {
    /// A direction with the offsets that the kernel has already.
    pub fn found(adjustment: Adjustment) -> Self {
        Self {
            found: adjustment,
            adjustment,
            forgotten: None,
            edits: VecDeque::new(),
            withheld: None,
            acked: None,
            gone: None,
            barred: None,
        }
    }

    /// The kernel's state now.
    pub fn adjustment(&self) -> &Adjustment {
        &self.adjustment
    }

    /// Handles the receiver's acknowledgement; returns it in the sender's numbers.
    pub fn acknowledged(&mut self, ack: Seq) -> Seq {
        self.acked = Some(self.acked.map_or(ack, |acked| acked.later(ack)));
        self.adjustment.acknowledgement(ack)
    }

    /// The places at which a retransmission of this segment may begin: at its own beginning, or at the first byte for
    /// which the sender has no acknowledgement. Mostly the two are one. The sender has an acknowledgement for
    /// withheld bytes, but may discard it.
    pub fn repeated_from(&self, segment: &Segment<'_>) -> Vec<Seq> {
        let acked = self.acked.map(|ack| self.adjustment.acknowledgement(ack));
        let withheld = self.withheld().map(|(start, _)| start);
        let behind = [acked, withheld].into_iter().flatten().filter(|place| place.is_before(segment.seq));
        [segment.seq].into_iter().chain(behind).collect()
    }

    /// Whether an earlier run replaced bytes of the line from `start` to `end`, as the kernel's offsets show: then that line
    /// is a retransmission.
    pub fn was_replaced_before(&self, start: Seq, end: Seq) -> bool {
        let position = self.found.position;
        self.found.before != self.found.after && !start.is_after(position) && end.is_after(position)
    }

    /// Whether the byte at this place was replaced, as far as that is remembered.
    pub fn has_replaced(&self, place: Seq) -> bool {
        self.forgotten.is_some_and(|forgotten| place.is_before(forgotten.end))
            || self.edits.iter().any(|edit| !place.is_before(edit.start) && place.is_before(edit.end()))
    }

    /// By how much the replacements of an earlier run changed the length.
    pub fn growth_before(&self) -> i32 {
        self.found.after - self.found.before
    }

    /// Resumes a replacement of an earlier run, of which `replaced` is a retransmission.
    ///
    /// A text of another length is padded or cut to the length of that time. The receiver has the line already, or
    /// will not understand it, but the connection continues.
    pub fn resume(&mut self, mut replaced: Replaced) {
        let length = replaced.length.saturating_add_signed(self.growth_before() as isize);
        replaced.text.resize(length, b' ');
        let Replaced { start, length, text, before } = replaced;
        self.found.after = self.found.before;
        self.edits.push_back(Edit { start, length, text, before });
    }

    /// A segment in which an earlier run replaced bytes is retransmitted, and the text of the replacement is unknown:
    /// pads or cuts the segment to the length of that time.
    fn resume_unknown(&mut self, segment: &Segment<'_>) {
        let growth = self.growth_before();
        let Some(known) = usize::try_from(self.found.position - segment.seq).ok() else { return };
        let Some(&last) = segment.payload.get(known) else { return };
        if growth == 0 || !self.edits.is_empty() {
            return;
        }
        // The kernel's position is the last byte of the text, or the place where that byte would be in a longer text.
        let replaced = if growth > 0 {
            let before = known.checked_sub(1).and_then(|before| segment.payload.get(before)).copied();
            Replaced { start: self.found.position, length: 1, text: vec![last], before: before.unwrap_or(b' ') }
        } else {
            let length = growth.unsigned_abs() as usize;
            Replaced { start: self.found.position + 1, length, text: Vec::new(), before: last }
        };
        self.resume(replaced);
    }

    /// Up to where the sender's bytes have gone on, changed or not: what is sent again becomes what it was.
    pub fn gone(&self) -> Option<Seq> {
        self.gone
    }

    /// The new bytes of this segment, and all bytes after them, must never be passed on.
    pub fn bar(&mut self, segment: &Segment<'_>) {
        let new = self.gone.map_or(segment.seq, |gone| gone.later(segment.seq));
        self.barred.get_or_insert(new);
    }

    /// Whether this segment contains bytes that must not be passed.
    pub fn is_barred(&self, segment: &Segment<'_>) -> bool {
        let end = segment.seq + segment.payload.len();
        !segment.payload.is_empty() && self.barred.is_some_and(|barred| end.is_after(barred))
    }

    /// The place of the withheld bytes, and the bytes.
    pub fn withheld(&self) -> Option<(Seq, &[u8])> {
        let bytes = self.withheld.as_deref()?;
        Some((self.edits.back()?.start, bytes))
    }

    /// A segment that begins at this place is passed. If there is a gap between the withheld bytes and the segment,
    /// the withheld bytes are given up: their offset is final, and the receiver never gets them.
    pub fn goes_on_from(&mut self, place: Seq) {
        if self.withheld().is_some_and(|(start, bytes)| place.is_after(start + bytes.len())) {
            self.withheld = None;
        }
    }

    /// Replaces the `length` bytes from `start` on, which are in the current segment, or were withheld before it.
    /// `before` is the byte in front of them. Withheld bytes in front of them are passed unchanged.
    ///
    /// `adjust` sets the kernel's offsets, if they change.
    pub fn replace(
        &mut self,
        segment: &Segment<'_>,
        replaced: Replaced,
        adjust: &mut dyn FnMut(&Adjustment) -> Result<(), NotAdjusted>,
    ) -> Result<(), RewriteError> {
        let Replaced { start, length, text, before } = replaced;
        if self.withheld().is_some_and(|(withheld, bytes)| !start.is_before(withheld + bytes.len())) {
            self.release(segment, adjust)?;
        }
        let is_apart = |(withheld, bytes): (Seq, &[u8])| {
            start.is_after(withheld) || (start + length).is_before(withheld + bytes.len())
        };
        if self.withheld().is_some_and(is_apart) {
            return Err(RewriteError::Gone);
        }
        let withheld = self.withheld.take();
        let edit = if withheld.is_some() { self.edits.pop_back() } else { None };
        let result = self.add(segment, Edit { start, length, text, before }, adjust);
        if result.is_err() {
            self.edits.extend(edit);
            self.withheld = withheld;
        }
        result
    }

    /// Withholds the bytes from `start` to the end of the segment, until they are replaced or released.
    ///
    /// The sender gets an acknowledgement for them, because it may wait for that before it sends the rest.
    pub fn withhold(
        &mut self,
        segment: &Segment<'_>,
        start: Seq,
        before: u8,
        adjust: &mut dyn FnMut(&Adjustment) -> Result<(), NotAdjusted>,
    ) -> Result<(), RewriteError> {
        if self.withheld().is_some_and(|(withheld, _)| withheld != start) {
            return Err(RewriteError::Gone);
        }
        let mut bytes = self.withheld.clone().unwrap_or_default();
        let new = usize::try_from(start + bytes.len() - segment.seq).unwrap_or(usize::MAX);
        let Some(new) = segment.payload.get(new..).filter(|new| !new.is_empty()) else { return Ok(()) };
        bytes.extend_from_slice(new);
        if bytes.len() > MOST_WITHHELD {
            return Err(RewriteError::NoRoom);
        }
        self.replace(segment, Replaced { start, length: bytes.len(), text: Vec::new(), before }, adjust)?;
        self.withheld = Some(bytes);
        Ok(())
    }

    /// Releases the withheld bytes, together with the first byte that has come since then.
    pub fn release(
        &mut self,
        segment: &Segment<'_>,
        adjust: &mut dyn FnMut(&Adjustment) -> Result<(), NotAdjusted>,
    ) -> Result<(), RewriteError> {
        let (Some(withheld), Some(edit)) = (&self.withheld, self.edits.back()) else { return Ok(()) };
        let first = usize::try_from(edit.end() - segment.seq).unwrap_or(usize::MAX);
        let Some(first) = segment.payload.get(first) else { return Ok(()) };
        let text = [withheld.as_slice(), &[*first]].concat();
        self.replace(segment, Replaced { start: edit.start, length: text.len(), text, before: edit.before }, adjust)
    }

    fn add(
        &mut self,
        segment: &Segment<'_>,
        edit: Edit,
        adjust: &mut dyn FnMut(&Adjustment) -> Result<(), NotAdjusted>,
    ) -> Result<(), RewriteError> {
        let end = segment.seq + segment.payload.len();
        // Withheld bytes were not passed; all other bytes of earlier segments were.
        let is_here = !edit.start.is_before(self.gone.unwrap_or(segment.seq));
        let is_last = self.edits.back().is_none_or(|last| !edit.start.is_before(last.end()));
        let growth = edit.growth();
        let overtaken = self.gone.is_some_and(|gone| gone.is_after(end)) && growth != 0;
        // The line passed while no daemon ran, and is retransmitted because its acknowledgement is late: the receiver
        // would take the bytes by which it grew for new ones.
        let is_received = self.acked.is_some_and(|acked| acked.is_after(self.place_for_receiver(edit.start)));
        if !is_here || !is_last || overtaken || is_received {
            return Err(RewriteError::Gone);
        }
        if self.edits.len() >= MOST_REMEMBERED {
            return Err(RewriteError::NoRoom);
        }
        self.edits.push_back(edit);
        if self.rewritten(segment).1.len() > segment.payload.len().max(LONGEST) {
            self.edits.pop_back();
            return Err(RewriteError::NoRoom);
        }
        let wanted = self.wanted_adjustment();
        if wanted.after != self.adjustment.after {
            if adjust(&wanted).is_err() {
                self.edits.pop_back();
                return Err(RewriteError::NotAdjusted);
            }
            self.adjustment = wanted;
        }
        while self.edits.len() > REMEMBERED
            && self.edits.front().is_some_and(|oldest| self.is_acknowledged(oldest))
            && let Some(oldest) = self.edits.pop_front()
        {
            let growth = self.forgotten.map_or(0, |forgotten| forgotten.growth) + oldest.growth();
            let last = oldest.text.last().copied().unwrap_or(oldest.before);
            self.forgotten = Some(Forgotten { end: oldest.end(), growth, last });
        }
        Ok(())
    }

    /// The verdict on a segment of this direction, after all its lines were handled.
    pub fn verdict(&mut self, segment: &Segment<'_>) -> Verdict {
        if segment.payload.is_empty() || segment.flags.has(Flags::SYN) || segment.flags.has(Flags::RST) {
            return Verdict::Accept;
        }
        self.resume_unknown(segment);
        let (mut place, mut payload) = match self.forgotten {
            Some(forgotten) if segment.seq.is_before(forgotten.end) => self.rewritten_behind(&forgotten, segment),
            _ => self.rewritten(segment),
        };
        let end = segment.seq + segment.payload.len();
        // Withheld bytes were not passed.
        let gone = self.withheld().map_or(end, |(start, _)| start);
        self.gone = Some(self.gone.map_or(gone, |before| before.later(gone)));
        if payload.is_empty() && !segment.flags.has(Flags::FIN) {
            // The receiver does not answer a segment without payload. It answers one that repeats a byte, at once.
            payload.push(self.byte_before(segment.seq));
            place = place.moved(-1);
        }
        if self.adjustment.source_of(place).is_none()
            && let Some(acked) = self.acked
        {
            // The kernel cannot give this segment its right sequence number any more, but the receiver has these
            // bytes already.
            let known = usize::try_from(acked - place).unwrap_or(0).min(payload.len().saturating_sub(1));
            payload.drain(..known);
            place += known;
        }
        let Some(seq) = self.adjustment.source_of(place) else { return Verdict::Accept };
        if seq == segment.seq && payload == segment.payload {
            return Verdict::Accept;
        }
        Verdict::Replace(Replacement { seq, payload })
    }

    /// The receiver's sequence number for the byte at the sender's `place`.
    ///
    /// All replaced bytes but the last are at one place: the whole text belongs to the last of them.
    pub fn place_for_receiver(&self, place: Seq) -> Seq {
        let mut shift = self.forgotten.map_or(0, |forgotten| forgotten.growth);
        for edit in &self.edits {
            if !edit.end().is_after(place) {
                shift += edit.growth();
            } else if place.is_after(edit.start) {
                return self.found.sequence(edit.start).moved(shift);
            } else {
                break;
            }
        }
        self.found.sequence(place).moved(shift)
    }

    /// The bytes that the receiver gets for a segment, and their sequence number.
    fn rewritten(&self, segment: &Segment<'_>) -> (Seq, Vec<u8>) {
        let Segment { seq: start, payload, .. } = *segment;
        let end = start + payload.len();
        let mut bytes = Vec::with_capacity(payload.len() + 32);
        let mut done = 0;
        for edit in &self.edits {
            if !edit.end().is_after(start) {
                continue;
            }
            if !edit.start.is_before(end) {
                break;
            }
            let before = usize::try_from(edit.start - start).unwrap_or(0);
            bytes.extend_from_slice(payload.get(done..before).unwrap_or_default());
            if edit.end().is_after(end) {
                done = payload.len();
                break;
            }
            bytes.extend_from_slice(&edit.text);
            done = usize::try_from(edit.end() - start).unwrap_or(0);
        }
        bytes.extend_from_slice(payload.get(done..).unwrap_or_default());
        (self.place_for_receiver(start), bytes)
    }

    /// The same for a segment that begins in front of all remembered replacements: the receiver has it already.
    fn rewritten_behind(&self, forgotten: &Forgotten, segment: &Segment<'_>) -> (Seq, Vec<u8>) {
        let known = usize::try_from(forgotten.end - segment.seq).unwrap_or(0);
        let Some(payload) = segment.payload.get(known..).filter(|rest| !rest.is_empty()) else {
            return (self.place_for_receiver(forgotten.end).moved(-1), vec![forgotten.last]);
        };
        self.rewritten(&Segment { seq: forgotten.end, payload, ..*segment })
    }

    /// The last byte that the receiver has in front of this place, which is within replaced bytes.
    fn byte_before(&self, place: Seq) -> u8 {
        let edit = self.edits.iter().find(|edit| edit.end().is_after(place));
        edit.map_or(b' ', |edit| edit.before)
    }

    fn is_acknowledged(&self, edit: &Edit) -> bool {
        self.acked.is_some_and(|acked| !self.place_for_receiver(edit.end()).is_after(acked))
    }

    /// The seqadj state with which the kernel corrects all later packets.
    ///
    /// It must never acknowledge bytes that the receiver does not have: for acknowledgements of places before the
    /// last replacement, the greatest of all offsets is subtracted that may apply where the receiver is.
    fn wanted_adjustment(&self) -> Adjustment {
        let Some(last) = self.edits.back() else { return self.adjustment };
        let end = last.end();
        let after = self.place_for_receiver(end) - end;
        let unacked = self.edits.iter().skip_while(|edit| self.is_acknowledged(edit));
        let shifts = unacked.chain([last]).map(|edit| self.place_for_receiver(edit.start) - edit.start);
        let before = shifts.max().unwrap_or(after);
        let end_for_receiver = self.place_for_receiver(end).moved(-before);
        let first_behind = if end_for_receiver.is_before(end) { end_for_receiver } else { end };
        Adjustment { position: first_behind.moved(-1), before, after }
    }
}

/// Bytes to replace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The place of the first one.
    pub start: Seq,
    /// Their number; at least one.
    pub length: usize,
    /// The bytes that the receiver gets instead.
    pub text: Vec<u8>,
    /// The byte in front of them.
    pub before: u8,
}

#[cfg(test)]
#[path = "rewriter_tests.rs"]
mod tests;
