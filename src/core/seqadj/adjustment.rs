//! How the kernel's seqadj extension adjusts the sequence numbers of a control connection with rewritten lines.
//!
//! The rewriter chooses the offsets and the position.

use crate::core::net::{Direction, Seq};

/// The seqadj state of one direction (`struct nf_ct_seqadj`).
///
/// The position is a sequence number of the direction's *sender*, before adjustment. The kernel adjusts every packet of
/// the connection when it leaves this host or is delivered to it, also a packet that was queued before the state was
/// set:
///
/// - its sequence number `s`, if it goes in this direction, becomes `s + after` if `s` is after `position`, and
///   `s + before` if not;
/// - its acknowledgement `a`, and either edge of each SACK block, if it goes in the other direction, becomes
///   `a - after` if `a - before` is after `position`, and `a - before` if not.
///
/// Conntrack's window check sees packets before they are adjusted, and adjusts an acknowledgement in the same way with
/// one exception: it checks whether `a - 1`, without an offset, is after `position`. Where the results differ, it may
/// find a valid packet invalid; so `IP_CT_TCP_FLAG_BE_LIBERAL` is set for both directions of an adjusted connection.
///
/// If a text of `old` bytes at `start` is replaced by `new` bytes, `position` must be from `start` to
/// `start + min(old, new) - 1`:
///
/// - not before `start`, so that the text itself, and its retransmission, get `before`;
/// - before `start + old`, so that the bytes after the text get `after`;
/// - before `start + new`, so that an acknowledgement of the whole new text (`start + before + new`) gets `after` and
///   becomes an acknowledgement of the whole old text.
///
/// Each direction has only one position. An acknowledgement of a part of a longer text becomes one before the end of
/// the old text, and never acknowledges bytes that were not sent. A packet that begins before an *earlier* replaced
/// text gets `before`, too, which is wrong by the growth of that text; `DirectionRewriter::verdict` sets the packet's
/// sequence number so that the result is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Adjustment {
    /// The last sequence number to which `before` applies (`correction_pos`).
    pub position: Seq,
    /// The offset up to the position (`offset_before`).
    pub before: i32,
    /// The offset after the position (`offset_after`).
    pub after: i32,
}

/// The seqadj state of both directions of a connection; `None` if it was never set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Adjustments {
    /// For the bytes that the client sends.
    pub from_client: Option<Adjustment>,
    /// For the bytes that the server sends.
    pub from_server: Option<Adjustment>,
}

/// The kernel does not adjust the sequence numbers of this connection, so lines have to keep their length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdjusted {
    /// The kernel acknowledged the offset and did not store it: NAT does not translate this connection, or the
    /// connection is older than the rules that prepare it.
    #[error("the kernel cannot correct the sequence numbers of this connection")]
    NotPrepared,
    /// The connection is not in conntrack any more.
    #[error("the kernel does not know this connection any more")]
    Unknown,
    /// The kernel refused, or did not answer. The firewall has reported the reason.
    #[error("the firewall did not correct the sequence numbers of this connection")]
    Failed,
}

impl Adjustment {
    /// The receiver's sequence number for one of the sender.
    #[must_use]
    pub fn sequence(&self, sent: Seq) -> Seq {
        sent.moved(if sent.is_after(self.position) { self.after } else { self.before })
    }

    /// The acknowledgement that the sender gets, for one of the receiver.
    #[must_use]
    pub fn acknowledgement(&self, sent: Seq) -> Seq {
        let as_before = sent.moved(self.before.wrapping_neg());
        if as_before.is_after(self.position) { sent.moved(self.after.wrapping_neg()) } else { as_before }
    }

    /// The sender's sequence number that becomes `wanted` for the receiver; `None` if there is none.
    pub fn source_of(&self, wanted: Seq) -> Option<Seq> {
        [self.after, self.before]
            .map(|by| wanted.moved(by.wrapping_neg()))
            .into_iter()
            .find(|sent| self.sequence(*sent) == wanted)
    }
}

impl Adjustments {
    /// The adjustment of that direction.
    pub const fn of(&self, direction: Direction) -> Option<Adjustment> {
        match direction {
            Direction::FromClient => self.from_client,
            Direction::FromServer => self.from_server,
        }
    }

    /// Sets the adjustment of that direction.
    pub const fn set(&mut self, direction: Direction, adjustment: Adjustment) {
        match direction {
            Direction::FromClient => self.from_client = Some(adjustment),
            Direction::FromServer => self.from_server = Some(adjustment),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn some_sequence_numbers_have_no_source() {
        let adjustment = Adjustment { position: Seq::new(119), before: 0, after: 4 };
        assert_eq!(adjustment.source_of(Seq::new(119)), Some(Seq::new(119)));
        assert_eq!(adjustment.source_of(Seq::new(122)), None);
        assert_eq!(adjustment.source_of(Seq::new(124)), Some(Seq::new(120)));
    }

    proptest! {
        /// What the doc comment of [`Adjustment`] says about the position.
        #[test]
        fn position_within_both_texts_adjusts_seq_and_ack(
            start: u32, old in 1i32..200, new in 1i32..200, before in -5000i32..5000, choice: prop::sample::Index,
        ) {
            let after = before + new - old;
            let position = Seq::new(start) + choice.index(old.min(new) as usize);
            let adjustment = Adjustment { position, before, after };
            let at = |offset: i32| Seq::new(start.wrapping_add_signed(offset));
            prop_assert_eq!(adjustment.sequence(at(0)), at(before));
            prop_assert_eq!(adjustment.sequence(at(old)), at(old + after));
            prop_assert_eq!(adjustment.acknowledgement(at(before)), at(0));
            prop_assert_eq!(adjustment.acknowledgement(at(before + new)), at(old));
            for part in 0..new {
                prop_assert!(!adjustment.acknowledgement(at(before + part)).is_after(at(old)));
            }
        }
    }
}
