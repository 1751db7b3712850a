//! Rewrites one direction of a connection.
//!
//! The edits map the sender's sequence numbers to the receiver's. So every retransmission, however the sender cuts it
//! into segments, becomes the bytes that the receiver got the first time. This module does not know lines.

use std::collections::VecDeque;

use super::{Replacement, Verdict};
use crate::core::net::{Flags, Segment, Seq};
use crate::core::seqadj::{Adjustment, NotAdjusted};

/// How many acknowledged edits are kept, in case the sender retransmits those bytes.
const KEPT_EDITS: usize = 16;

/// The most edits that are kept. A connection does not need more: each edit is an announcement, which the other end
/// answers, and the answer acknowledges it.
const MAX_EDITS: usize = 64;

/// The most bytes that are withheld. The longest address in an announcement is shorter.
pub const MAX_WITHHELD: usize = 160;

/// The longest payload to which a segment may grow. With its headers it fits the MTU of every IPv6 path, and of nearly
/// all IPv4 paths.
const MAX_PAYLOAD: usize = 1200;

/// Why bytes cannot be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RewriteError {
    /// Some of these bytes, or of the bytes after them, have passed already.
    AlreadyPassed,
    /// The segment would be too long for the path, or there are too many edits.
    NoRoom,
    /// The kernel does not adjust the sequence numbers of this direction.
    NotAdjusted,
}

/// Bytes that the receiver gets in place of the sender's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The sequence number of the first byte of the sender.
    pub start: Seq,
    /// How many bytes of the sender are replaced; at least one.
    pub length: usize,
    /// What the receiver gets instead.
    pub text: Vec<u8>,
    /// The byte before the first one.
    pub before: u8,
}

impl Edit {
    fn end(&self) -> Seq {
        self.start + self.length
    }

    fn growth(&self) -> i32 {
        self.text.len() as i32 - self.length as i32
    }
}

/// The sum of all edits that are not kept any more.
#[derive(Clone, Copy, Debug)]
struct Forgotten {
    /// The end of the last of them.
    end: Seq,
    /// By how many bytes they moved the bytes after them.
    growth: i32,
    /// The last byte that the receiver got for them.
    last: u8,
}

/// The rewriter of one direction.
#[derive(Debug)]
pub struct DirectionRewriter {
    /// The kernel's seqadj state when the session began.
    initial: Adjustment,
    /// The kernel's seqadj state now.
    adjustment: Adjustment,
    forgotten: Option<Forgotten>,
    /// In stream order. If bytes are withheld, the last edit replaces them with nothing.
    edits: VecDeque<Edit>,
    /// The withheld bytes, if there are any.
    withheld: Option<Vec<u8>>,
    /// The receiver's latest acknowledgement, in the receiver's sequence numbers.
    acked: Option<Seq>,
    /// The end of the sender's bytes that have passed.
    passed_to: Option<Seq>,
    /// No byte from this sequence number on may pass.
    blocked_from: Option<Seq>,
}

impl Default for DirectionRewriter {
    fn default() -> Self {
        Self::with_adjustment(Adjustment { position: Seq::default(), before: 0, after: 0 })
    }
}

impl DirectionRewriter {
    /// A rewriter for a direction that has these seqadj offsets already.
    pub fn with_adjustment(adjustment: Adjustment) -> Self {
        Self {
            initial: adjustment,
            adjustment,
            forgotten: None,
            edits: VecDeque::new(),
            withheld: None,
            acked: None,
            passed_to: None,
            blocked_from: None,
        }
    }

    /// The kernel's seqadj state now.
    pub fn adjustment(&self) -> &Adjustment {
        &self.adjustment
    }

    /// Whether the kernel changes sequence numbers of this direction.
    pub fn has_offset(&self) -> bool {
        (self.adjustment.before, self.adjustment.after) != (0, 0)
    }

    /// Handles the receiver's acknowledgement. Returns it in the sender's sequence numbers.
    pub fn acknowledged(&mut self, ack: Seq) -> Seq {
        self.acked = Some(self.acked.map_or(ack, |acked| acked.later(ack)));
        self.adjustment.acknowledgement(ack)
    }

    /// The sequence numbers with which a retransmission of this segment may begin: the segment's own, and that of the
    /// first byte for which the sender has no acknowledgement. These are mostly the same. The sender has an
    /// acknowledgement for withheld bytes, but may discard it.
    pub fn repeated_from(&self, segment: &Segment<'_>) -> Vec<Seq> {
        let acked = self.acked.map(|ack| self.adjustment.acknowledgement(ack));
        let withheld = self.withheld().map(|(start, _)| start);
        let behind = [acked, withheld].into_iter().flatten().filter(|seq| seq.is_before(segment.seq));
        [segment.seq].into_iter().chain(behind).collect()
    }

    /// Whether the kernel's offsets show that an earlier run rewrote the line from `start` to `end`. Then that line is
    /// a retransmission.
    pub fn was_replaced_before(&self, start: Seq, end: Seq) -> bool {
        let position = self.initial.position;
        self.initial.before != self.initial.after && !start.is_after(position) && end.is_after(position)
    }

    /// Whether an edit covers the byte with this sequence number. All bytes before the end of a forgotten edit count as
    /// covered.
    pub fn has_replaced(&self, seq: Seq) -> bool {
        self.forgotten.is_some_and(|forgotten| seq.is_before(forgotten.end))
            || self.edits.iter().any(|edit| !seq.is_before(edit.start) && seq.is_before(edit.end()))
    }

    /// The end of the edit that covers the byte with this sequence number; that byte itself if none does.
    pub fn behind_replaced(&self, seq: Seq) -> Seq {
        let covers = |edit: &&Edit| !seq.is_before(edit.start) && seq.is_before(edit.end());
        self.edits.iter().find(covers).map_or(seq, Edit::end)
    }

    /// By how many bytes an earlier run changed the length.
    pub fn initial_growth(&self) -> i32 {
        self.initial.after.wrapping_sub(self.initial.before)
    }

    /// Resumes an edit of an earlier run: the edited line is retransmitted.
    ///
    /// The text is padded or cut to the length that the earlier run gave it. The receiver has the line already, or does
    /// not understand it; the connection continues either way.
    pub fn resume(&mut self, mut edit: Edit) {
        let length = edit.length.saturating_add_signed(self.initial_growth() as isize);
        edit.text.resize(length, b' ');
        self.initial.after = self.initial.before;
        self.edits.push_back(edit);
    }

    /// A segment that an earlier run rewrote is retransmitted, and the new text is unknown: pads or cuts the segment to
    /// the length that the earlier run gave it.
    fn resume_unknown(&mut self, segment: &Segment<'_>) {
        let growth = self.initial_growth();
        let Some(known) = usize::try_from(self.initial.position - segment.seq).ok() else { return };
        let Some(&last) = segment.payload.get(known) else { return };
        if growth == 0 || !self.edits.is_empty() {
            return;
        }
        // The kernel's position is the last byte of the old text, or where that byte would be if the text had grown.
        let edit = if growth > 0 {
            let before = known.checked_sub(1).and_then(|before| segment.payload.get(before)).copied();
            Edit { start: self.initial.position, length: 1, text: vec![last], before: before.unwrap_or(b' ') }
        } else {
            let length = growth.unsigned_abs() as usize;
            Edit { start: self.initial.position + 1, length, text: Vec::new(), before: last }
        };
        self.resume(edit);
    }

    /// The end of the sender's bytes that have passed, changed or not. Their retransmission becomes what they became.
    pub fn passed_to(&self) -> Option<Seq> {
        self.passed_to
    }

    /// The new bytes of this segment, and all bytes after them, must never pass.
    pub fn block(&mut self, segment: &Segment<'_>) {
        let new = self.passed_to.map_or(segment.seq, |passed_to| passed_to.later(segment.seq));
        self.blocked_from.get_or_insert(new);
    }

    /// Whether this segment contains bytes that must not pass.
    pub fn is_blocked(&self, segment: &Segment<'_>) -> bool {
        let end = segment.seq + segment.payload.len();
        !segment.payload.is_empty() && self.blocked_from.is_some_and(|blocked_from| end.is_after(blocked_from))
    }

    /// The sequence number of the withheld bytes, and the bytes.
    pub fn withheld(&self) -> Option<(Seq, &[u8])> {
        let bytes = self.withheld.as_deref()?;
        Some((self.edits.back()?.start, bytes))
    }

    /// A segment with this sequence number passes. If there is a gap between the withheld bytes and the segment, the
    /// withheld bytes are given up: their offset is final, and the receiver never gets them.
    pub fn continue_from(&mut self, seq: Seq) {
        if self.withheld().is_some_and(|(start, bytes)| seq.is_after(start + bytes.len())) {
            self.withheld = None;
        }
    }

    /// Replaces bytes of the current segment, or bytes that were withheld before it. Withheld bytes before them pass
    /// unchanged.
    ///
    /// `adjust` sets the kernel's offsets, if they change.
    pub fn replace(
        &mut self,
        segment: &Segment<'_>,
        edit: Edit,
        adjust: &mut dyn FnMut(&Adjustment) -> Result<(), NotAdjusted>,
    ) -> Result<(), RewriteError> {
        let (start, end) = (edit.start, edit.end());
        if self.withheld().is_some_and(|(withheld, bytes)| !start.is_before(withheld + bytes.len())) {
            self.release(segment, adjust)?;
        }
        let is_apart =
            |(withheld, bytes): (Seq, &[u8])| start.is_after(withheld) || end.is_before(withheld + bytes.len());
        if self.withheld().is_some_and(is_apart) {
            return Err(RewriteError::AlreadyPassed);
        }
        let withheld = self.withheld.take();
        let withheld_edit = if withheld.is_some() { self.edits.pop_back() } else { None };
        let result = self.add(segment, edit, adjust);
        if result.is_err() {
            self.edits.extend(withheld_edit);
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
            return Err(RewriteError::AlreadyPassed);
        }
        let mut bytes = self.withheld.clone().unwrap_or_default();
        let new = usize::try_from(start + bytes.len() - segment.seq).unwrap_or(usize::MAX);
        let Some(new) = segment.payload.get(new..).filter(|new| !new.is_empty()) else { return Ok(()) };
        bytes.extend_from_slice(new);
        if bytes.len() > MAX_WITHHELD {
            return Err(RewriteError::NoRoom);
        }
        self.replace(segment, Edit { start, length: bytes.len(), text: Vec::new(), before }, adjust)?;
        self.withheld = Some(bytes);
        Ok(())
    }

    /// Lets the withheld bytes pass, together with the first byte that has come since then.
    pub fn release(
        &mut self,
        segment: &Segment<'_>,
        adjust: &mut dyn FnMut(&Adjustment) -> Result<(), NotAdjusted>,
    ) -> Result<(), RewriteError> {
        let (Some(withheld), Some(edit)) = (&self.withheld, self.edits.back()) else { return Ok(()) };
        let first = usize::try_from(edit.end() - segment.seq).unwrap_or(usize::MAX);
        let Some(first) = segment.payload.get(first) else { return Ok(()) };
        let text = [withheld.as_slice(), &[*first]].concat();
        self.replace(segment, Edit { start: edit.start, length: text.len(), text, before: edit.before }, adjust)
    }

    fn add(
        &mut self,
        segment: &Segment<'_>,
        edit: Edit,
        adjust: &mut dyn FnMut(&Adjustment) -> Result<(), NotAdjusted>,
    ) -> Result<(), RewriteError> {
        let end = segment.seq + segment.payload.len();
        // Withheld bytes have not passed; all other bytes of earlier segments have.
        let is_here = !edit.start.is_before(self.passed_to.unwrap_or(segment.seq));
        let is_last = self.edits.back().is_none_or(|last| !edit.start.is_before(last.end()));
        let growth = edit.growth();
        let overtaken = self.passed_to.is_some_and(|passed_to| passed_to.is_after(end)) && growth != 0;
        // The line passed while no daemon ran, and is retransmitted because its acknowledgement is late: the receiver
        // would take the bytes by which it grew for new ones.
        let is_received = self.acked.is_some_and(|acked| acked.is_after(self.receiver_seq(edit.start)));
        if !is_here || !is_last || overtaken || is_received {
            return Err(RewriteError::AlreadyPassed);
        }
        if self.edits.len() >= MAX_EDITS {
            return Err(RewriteError::NoRoom);
        }
        self.edits.push_back(edit);
        if self.rewritten(segment).1.len() > segment.payload.len().max(MAX_PAYLOAD) {
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
        while self.edits.len() > KEPT_EDITS
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
        // Withheld bytes have not passed.
        let passed_to = self.withheld().map_or(end, |(start, _)| start);
        self.passed_to = Some(self.passed_to.map_or(passed_to, |before| before.later(passed_to)));
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

    /// The receiver's sequence number for a sequence number of the sender.
    ///
    /// All replaced bytes but the last have the same one: the whole new text belongs to the last of them.
    pub fn receiver_seq(&self, seq: Seq) -> Seq {
        let mut shift = self.forgotten.map_or(0, |forgotten| forgotten.growth);
        for edit in &self.edits {
            if !edit.end().is_after(seq) {
                shift += edit.growth();
            } else if seq.is_after(edit.start) {
                return self.initial.sequence(edit.start).moved(shift);
            } else {
                break;
            }
        }
        self.initial.sequence(seq).moved(shift)
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
        (self.receiver_seq(start), bytes)
    }

    /// The same for a segment that begins before all edits that are kept: the receiver has it already.
    fn rewritten_behind(&self, forgotten: &Forgotten, segment: &Segment<'_>) -> (Seq, Vec<u8>) {
        let known = usize::try_from(forgotten.end - segment.seq).unwrap_or(0);
        let Some(payload) = segment.payload.get(known..).filter(|rest| !rest.is_empty()) else {
            return (self.receiver_seq(forgotten.end).moved(-1), vec![forgotten.last]);
        };
        self.rewritten(&Segment { seq: forgotten.end, payload, ..*segment })
    }

    /// The last byte that the receiver has before this sequence number, which is within an edit.
    fn byte_before(&self, place: Seq) -> u8 {
        let edit = self.edits.iter().find(|edit| edit.end().is_after(place));
        edit.map_or(b' ', |edit| edit.before)
    }

    fn is_acknowledged(&self, edit: &Edit) -> bool {
        self.acked.is_some_and(|acked| !self.receiver_seq(edit.end()).is_after(acked))
    }

    /// The seqadj state with which the kernel adjusts all later packets.
    ///
    /// It must never acknowledge bytes that the receiver does not have. So from an acknowledgement before the last
    /// edit, the kernel subtracts the greatest offset that may apply there.
    fn wanted_adjustment(&self) -> Adjustment {
        let Some(last) = self.edits.back() else { return self.adjustment };
        let end = last.end();
        let after = self.receiver_seq(end) - end;
        let unacked = self.edits.iter().skip_while(|edit| self.is_acknowledged(edit));
        let shifts = unacked.chain([last]).map(|edit| self.receiver_seq(edit.start) - edit.start);
        let before = shifts.max().unwrap_or(after);
        let end_for_receiver = self.receiver_seq(end).moved(-before);
        let first_behind = if end_for_receiver.is_before(end) { end_for_receiver } else { end };
        Adjustment { position: first_behind.moved(-1), before, after }
    }
}

#[cfg(test)]
#[path = "rewriter_tests.rs"]
mod tests;
