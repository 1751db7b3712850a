//! Replaces parts of the table at a reload.

use super::accept_rules;
use super::pinholes::BySet;
use super::restore::ports_of;
use super::ruleset::{self, QueueChain, TABLE};
use super::{PinholeTable, Restored, TableError};
use crate::core::kernel::Mark;
use crate::core::policy::Policy;

impl PinholeTable {
    /// Changes the table to another policy. After an error, the old policy stays in force.
    pub(in crate::netfilter) fn reload(&mut self, policy: &Policy) -> Result<(), TableError> {
        if policy.capture.queues() != self.policy.capture.queues() {
            return Err(TableError::OtherQueues);
        }
        policy.admit.iter().try_for_each(|chain| accept_rules::check(&mut self.tables, chain))?;
        let old = (std::mem::replace(&mut self.policy, policy.clone()), self.image.clone());
        let result = self.exchange(&old.0).and_then(|()| self.restore_accept_rules(&mut Restored::default()));
        if let Err(error) = result {
            (self.policy, self.image) = old;
            if !self.is_untouched()? {
                self.reinstall(&BySet::new())?;
            }
            self.restore_accept_rules(&mut Restored::default())?;
            return Err(error);
        }
        let (old, _) = old;
        for chain in old.admit.iter().filter(|chain| !policy.admit.contains(chain)) {
            accept_rules::remove(&mut self.tables, chain)?;
        }
        Ok(())
    }

    /// Replaces the parts of the table that depend on the policy, in one transaction; over netlink, because the sandbox
    /// does not permit to run nft.
    fn exchange(&mut self, old: &Policy) -> Result<(), TableError> {
        let rules = self.installed_rules();
        let Self { policy, queueing, .. } = self;
        let fixed_part = |policy| ruleset::fixed_part(policy, *queueing, rules);
        if fixed_part(old) != fixed_part(policy) {
            return Err(TableError::OtherRules);
        }
        let text = |policy| ruleset::text(policy, *queueing, rules);
        let is_same = (text(old), old.capture) == (text(policy), policy.capture);
        if is_same && self.is_untouched()? {
            return Ok(());
        }
        self.lacks_elements |= !self.tables.has_table(TABLE)?;
        let Self { policy, queueing, image, .. } = self;
        for chain in QueueChain::ALL {
            image.fill_chain(TABLE, chain.name(), "", &[queueing.rule(&chain.of(policy.capture))]);
        }
        for set in [ruleset::CONTROL_PORTS, ruleset::GUARDED_PORTS] {
            image.fill_set(TABLE, set, &ports_of(set, policy));
        }
        ruleset::sized_sets().for_each(|set| image.resize_set(set, ruleset::set_size(policy)));
        if old.mark != policy.mark && !image.replace_marks(|number| exchanged_bits(number, old.mark, policy.mark)) {
            return Err(TableError::OtherRules);
        }
        self.tables.restore(TABLE, &self.image, &[])?;
        self.verify()
    }
}

/// Converts a number with which rules compare or combine a mark, from the bits of one policy to those of another.
/// `None` if that is ambiguous.
fn exchanged_bits(number: u32, old: Mark, new: Mark) -> Option<u32> {
    // The parts of Pinhole's marks. A number contains all bits of a part or none.
    let parts = |mark: Mark| {
        let [progress_low, progress_high, server_synced, client_synced, read] = mark.control_bits().each();
        [mark.bits(), progress_low, progress_high, server_synced, client_synced, read]
    };
    let union = |parts: [u32; 6]| parts.into_iter().fold(0, |all, part| all | part);
    let others = !union(parts(old));
    // A mask that clears bits has all bits of others set.
    let mut exchanged = match number & others {
        0 => 0,
        kept if kept == others => !union(parts(new)),
        _ => return None,
    };
    if others == 0 {
        // No other bit is left, so it is unknown whether the mask keeps them.
        return None;
    }
    for (old, new) in parts(old).into_iter().zip(parts(new)) {
        match number & old {
            0 => {}
            all if all == old => exchanged |= new,
            _ => return None,
        }
    }
    Some(exchanged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_a_mark_becomes_the_same_part_of_the_other() {
        let mark = |bits| Mark::new(bits).expect("a mark");
        let [old, new] = [0x1000_0000, 0x0000_0003].map(mark);
        let exchanged = |number| exchanged_bits(number, old, new);
        assert_eq!(exchanged(0), Some(0));
        assert_eq!(exchanged(old.bits()), Some(0x3));
        let [old_bits, new_bits] = [old, new].map(Mark::control_bits);
        assert_eq!(exchanged(old_bits.all_of_connection()), Some(new_bits.all_of_connection()));
        assert_eq!(exchanged(!old.bits()), Some(!0x3), "a mask that clears it");
        assert_eq!(exchanged(u32::MAX), Some(u32::MAX));
        assert_eq!(exchanged(0x1), None, "somebody else's bit");
        assert_eq!(exchanged_bits(0x1, new, old), None, "one of two");
        assert_eq!(exchanged_bits(0x07ff_ffff, mark(0x07ff_ffff), old), None, "no bit is somebody else's");
    }
}
