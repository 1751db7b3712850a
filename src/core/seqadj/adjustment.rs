//! How the kernel's seqadj extension corrects the sequence numbers of a control connection with rewritten lines.
//!
//! Knows the kernel's rule and nothing of lines. The rewriter chooses the offsets and the position.

use crate::core::net::{Direction, Seq};

/// The seqadj state of one direction: how the kernel corrects sequence numbers from the moment that it is set.
///
/// All places are counted as the *sender* of that direction counts them, before any correction. For every packet of
/// the connection, when it leaves this host or is delivered to it (so also for the packet that is just being held):
///
/// - its sequence number `s`, if it goes in this direction, becomes `s + after` if `s` is after `position`, and
///   `s + before` if not;
/// - its acknowledgement `a`, and either edge of each SACK block, if it goes in the other direction, becomes
///   `a - after` if `a - before` is after `position`, and `a - before` if not.
///
/// The window check of connection tracking sees packets as they arrive, and judges an acknowledgement in the same way,
/// but for one thing: it looks whether `a - 1`, from which nothing was subtracted, is after `position`. Where the two
/// differ it may find a good packet invalid; so a connection that is adjusted is judged liberally from then on, in both
/// directions.
///
/// A text of `old` bytes that begins at `start` and is replaced by one of `new` bytes therefore wants a `position` from
/// `start` to `start + min(old, new) - 1`:
///
/// - not before `start`, so that the text itself, and its retransmission, get `before`;
/// - before `start + old`, so that what follows the text gets `after`;
/// - before `start + new`, so that an acknowledgement of the whole new text (it says `start + before + new`) gets
///   `after` and becomes one of the whole old text.
///
/// There is one position for each direction. An acknowledgement of a part of a longer text becomes one of a place
/// before the end of the old text, and never one of bytes that were not sent; a packet that begins in front of an
/// *earlier* text gets `before`, too, which is wrong by what that earlier text grew: whoever lets such a packet pass
/// has to write its number accordingly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Adjustment {
    /// The last place to which `before` applies.
    pub position: Seq,
    /// The offset up to there.
    pub before: i32,
    /// The offset after it.
    pub after: i32,
}

/// The seqadj state of both directions of a connection; `None` if it was never set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Adjustments {
    /// Of the bytes that the client sends.
    pub from_client: Option<Adjustment>,
    /// Of the bytes that the server sends.
    pub from_server: Option<Adjustment>,
}

/// The kernel does not correct the sequence numbers of this connection, so lines have to keep their length.
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
    /// The number that the receiver sees, for one of the sender.
    #[must_use]
    pub fn sequence(&self, sent: Seq) -> Seq {
        sent.moved(if sent.is_after(self.position) { self.after } else { self.before })
    }

    /// The acknowledgement that the sender sees, for one of the receiver.
    #[must_use]
    pub fn acknowledgement(&self, sent: Seq) -> Seq {
        let as_before = sent.moved(self.before.wrapping_neg());
        if as_before.is_after(self.position) { sent.moved(self.after.wrapping_neg()) } else { as_before }
    }

    /// The sender's number that the receiver sees as `wanted`; `None` if there is none.
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

    /// These adjustments with another one in that direction.
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
    fn some_numbers_nothing_becomes() {
        let adjustment = Adjustment { position: Seq::new(119), before: 0, after: 4 };
        assert_eq!(adjustment.source_of(Seq::new(119)), Some(Seq::new(119)));
        assert_eq!(adjustment.source_of(Seq::new(122)), None);
        assert_eq!(adjustment.source_of(Seq::new(124)), Some(Seq::new(120)));
    }

    proptest! {
        /// What the doc comment promises about the choice of a position.
        #[test]
        fn a_position_within_both_texts_serves_the_text_what_follows_it_and_its_acknowledgement(
            start: u32, old in 1i32..200, new in 1i32..200, before in -5000i32..5000, choice: prop::sample::Index,
        ) {
            let after = before + new - old;
            let position = Seq::new(start) + choice.index(old.min(new) as usize);
            let adjustment = Adjustment { position, before, after };
            let at = |place: i32| Seq::new(start.wrapping_add_signed(place));
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
