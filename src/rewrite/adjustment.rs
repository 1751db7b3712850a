//! What the kernel does to the sequence numbers of one direction, by itself, for as long as a connection lives.
//!
//! A model of `nf_ct_seq_adjust`, on which the rewriting depends: it decides what to tell the kernel by asking what the
//! kernel would make of it.

use crate::packet::Seq;

/// By how much the kernel shifts one direction: what its sender counts, and what is acknowledged to it.
///
/// There is one place only. What the sender sends up to it is shifted by `before`, what it sends behind it by `after`.
/// The receiver counts in shifted numbers: its acknowledgement is taken back by `before`, and if that lies behind the
/// place, by `after` instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adjustment {
    /// The place, as the sender counts.
    pub position: Seq,
    /// What is added up to there.
    pub before: i32,
    /// What is added behind it.
    pub after: i32,
}

impl Adjustment {
    /// What the kernel makes of a sequence number of the sender.
    pub fn shifted(&self, seq: Seq) -> Seq {
        seq.moved(if seq.is_after(self.position) { self.after } else { self.before })
    }

    /// What the kernel makes of an acknowledgement of the receiver.
    pub fn acknowledged(&self, ack: Seq) -> Seq {
        let is_behind = ack.moved(-self.before).is_after(self.position);
        ack.moved(if is_behind { -self.after } else { -self.before })
    }

    /// The sequence number of which the kernel makes `wanted`; none if it makes that of no number.
    pub fn source_of(&self, wanted: Seq) -> Option<Seq> {
        [wanted.moved(-self.after), wanted.moved(-self.before)].into_iter().find(|seq| self.shifted(*seq) == wanted)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_follows_a_grown_line_moves_and_what_stands_before_it_does_not() {
        let adjustment = Adjustment { position: Seq::new(119), before: 0, after: 4 };
        assert_eq!(adjustment.shifted(Seq::new(100)), Seq::new(100));
        assert_eq!(adjustment.shifted(Seq::new(120)), Seq::new(124));
        assert_eq!(adjustment.acknowledged(Seq::new(100)), Seq::new(100));
        assert_eq!(adjustment.acknowledged(Seq::new(124)), Seq::new(120));
    }

    #[test]
    fn some_numbers_nothing_becomes() {
        let adjustment = Adjustment { position: Seq::new(119), before: 0, after: 4 };
        assert_eq!(adjustment.source_of(Seq::new(119)), Some(Seq::new(119)));
        assert_eq!(adjustment.source_of(Seq::new(122)), None);
        assert_eq!(adjustment.source_of(Seq::new(124)), Some(Seq::new(120)));
    }

    proptest! {
        #[test]
        fn the_source_becomes_what_was_wanted(position: u32, before in -3000..3000, after in -3000..3000, off in -5000..5000) {
            let adjustment = Adjustment { position: Seq::new(position), before, after };
            let wanted = Seq::new(position).moved(off);
            if let Some(source) = adjustment.source_of(wanted) {
                prop_assert_eq!(adjustment.shifted(source), wanted);
            }
        }
    }
}
