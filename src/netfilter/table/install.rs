//! Installs the table, verifies it, restores it, exchanges parts of it at a reload, and removes it.

use super::accept_rules::{self, Place};
use super::elements::{self, port_range_element};
use super::ruleset::{self, Holder, PRIORITY, QueueChain, Queueing, TABLE};
use super::{BySet, HashMap, HashSet, RefusedRequests, Sets};
use crate::core::expectation::{Expectation, PortRangePinhole};
use crate::core::kernel::Mark;
use crate::core::net::Port;
use crate::core::policy::{Capture, Chain, Mechanism, Policy};
use crate::core::time::Timestamp;
use crate::netfilter::REPLY_TIMEOUT;
use crate::netfilter::backend::native::Unavailable;
use crate::netfilter::netlink::{Conntrack, Element, Error, Key, TableChange, TableImage, Tables};
use crate::netfilter::nft::{Nft, NftError};

/// Why the table was not installed or reloaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// The program nft refused something.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// No rule of this kernel can hand a packet to a program.
    #[error(
        "this kernel cannot queue packets from nftables: it has neither nft_queue (CONFIG_NFT_QUEUE) nor the target \
         NFQUEUE for nft_compat (CONFIG_NETFILTER_XT_TARGET_NFQUEUE and CONFIG_NFT_COMPAT); load one of these modules"
    )]
    NoQueue,
    /// Another program has a table `inet pinhole`.
    #[error(
        "the table inet pinhole belongs to another program: it has a chain `{chain}`; rename it, or remove it with \
         `nft delete table inet pinhole`"
    )]
    ForeignTable {
        /// A chain that Pinhole's table does not have.
        chain: Box<str>,
    },
    /// The policy wants a rule in a chain that does not exist.
    #[error("there is no chain `{0}`, which the policy names in `admit`; see `nft list chains`")]
    NoSuchChain(Chain),
    /// A reload cannot change the queues, which are bound once.
    #[error(
        "`capture: queue` and `queues` cannot change while the program runs: restart it (`systemctl restart pinhole`); \
         control connections, transfers and pinholes outlast that"
    )]
    OtherQueues,
    /// A reload cannot change rules that only the program nft could write.
    #[error(
        "this policy needs other rules in the table inet pinhole, which are only written at the start: restart it \
         (`systemctl restart pinhole`); control connections and transfers go on"
    )]
    OtherRules,
    /// The policy demands `native`, which does not work here.
    #[error("`mechanism: native` is not possible: {0}; `mechanism: auto` goes on with sets then")]
    NoNative(#[from] Unavailable),
    /// A reload cannot change the mechanism.
    #[error("`mechanism` cannot change from {0} while the program runs: restart it (`systemctl restart pinhole`)")]
    OtherMechanism(Mechanism),
    /// A part of the table was missing after it was installed.
    #[error("the table inet pinhole was installed, but {0} missing; does another program change the ruleset?")]
    Incomplete(&'static str),
}

/// What was restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The table, or some of its rules.
    pub table: bool,
    /// The whole table was gone, and perhaps every other rule that needs conntrack.
    pub was_gone: bool,
    /// The number of pinholes and port ranges.
    pub elements: usize,
    /// The chains of `admit` whose accept rule was restored.
    pub admitted: Vec<Chain>,
    /// The chains of `admit` that do not exist. Their creation will be a change of the ruleset to handle.
    pub without_chain: Vec<Chain>,
}

impl Restored {
    /// Whether nothing had to be restored.
    pub fn is_nothing(&self) -> bool {
        !self.table && self.elements == 0 && self.admitted.is_empty()
    }
}

impl Sets {
    /// Installs the table for a policy. Pinholes of an earlier run stay open.
    pub fn install(policy: &Policy) -> Result<Self, SetupError> {
        Self::install_for(policy, Holder::Sets)
    }

    /// The same, with the ruleset for this mechanism.
    pub(in crate::netfilter) fn install_for(policy: &Policy, holder: Holder) -> Result<Self, SetupError> {
        let mut tables = Tables::open(REPLY_TIMEOUT)?;
        let conntrack = Conntrack::open(REPLY_TIMEOUT)?;
        let queueing = Queueing::of_kernel(&mut tables)?.ok_or(SetupError::NoQueue)?;
        let chains = tables.chains(TABLE)?;
        let is_new = chains.is_empty();
        if let Some(chain) = chains.into_iter().find(|chain| !ruleset::is_own_chain(&chain.name)) {
            return Err(SetupError::ForeignTable { chain: chain.name });
        }
        let mut sets = Self {
            tables,
            conntrack,
            policy: policy.clone(),
            queueing,
            holder,
            installed: Vec::new(),
            image: TableImage::default(),
            lacks_elements: false,
            port_ranges: HashMap::default(),
            used: HashSet::default(),
            may_be_synced: !is_new,
            maps_used: false,
            troubles: RefusedRequests::default(),
        };
        // Before anything is changed, because a chain that does not exist is a mistake in the policy.
        for chain in &policy.admit {
            if accept_rules::look(&mut sets.tables, chain, policy.mark)? == Place::NoChain {
                return Err(SetupError::NoSuchChain(chain.clone()));
            }
        }
        match sets.install_table() {
            Err(SetupError::Nft(NftError::Refused(_))) if !is_new => sets.replace_table()?,
            put => put?,
        }
        sets.maps_used = !sets.mappings()?.is_empty();
        sets.restore_accept_rules(&mut Restored::default())?;
        accept_rules::remove_elsewhere(&mut sets.tables, &policy.admit)?;
        Ok(sets)
    }

    /// Exchanges the table for another policy. After an error, the old policy stays in force.
    pub fn reload(&mut self, policy: &Policy) -> Result<(), SetupError> {
        if policy.capture.queues != self.policy.capture.queues {
            return Err(SetupError::OtherQueues);
        }
        for chain in &policy.admit {
            if accept_rules::look(&mut self.tables, chain, policy.mark)? == Place::NoChain {
                return Err(SetupError::NoSuchChain(chain.clone()));
            }
        }
        let old = (std::mem::replace(&mut self.policy, policy.clone()), self.image.clone());
        let result = self.exchange_table(&old.0).and_then(|()| self.restore_accept_rules(&mut Restored::default()));
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

    /// Whether another program's change may concern this table or its accept rules.
    pub fn concerns(&self, change: &TableChange) -> bool {
        let in_table =
            |table: crate::netfilter::netlink::Table<'_>| (table.family, table.name) == (change.family, &*change.table);
        let is_of = |chain: &Chain| {
            in_table(accept_rules::table(chain)) && change.chain.as_deref().is_none_or(|name| name == chain.chain())
        };
        in_table(TABLE) || self.policy.admit.iter().any(is_of)
    }

    /// Whether everything that was installed is there and unchanged.
    pub fn is_intact(&mut self) -> Result<bool, Error> {
        if !self.is_untouched()? {
            return Ok(false);
        }
        for chain in &self.policy.admit {
            if accept_rules::look(&mut self.tables, chain, self.policy.mark)? != Place::OnTop {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Restores what is missing: the table with its pinholes, and the accept rules.
    pub fn restore<'a>(
        &mut self,
        now: Timestamp,
        open: impl Iterator<Item = &'a Expectation>,
    ) -> Result<Restored, SetupError> {
        let mut restored = Restored::default();
        // First the accept rules: without them, a data connection would use up its pinhole and then be dropped.
        self.restore_accept_rules(&mut restored)?;
        let is_untouched = self.is_untouched()?;
        if !is_untouched {
            // If only rules are gone, the sets are complete, and used pinholes stay used.
            self.lacks_elements |= !self.tables.has_table(TABLE)?;
        }
        if !is_untouched || self.lacks_elements {
            let elements = if self.lacks_elements { self.lost_elements(now, open) } else { BySet::new() };
            self.reinstall(&elements)?;
            restored.was_gone = std::mem::take(&mut self.lacks_elements);
            restored.table = true;
            restored.elements = elements.values().flatten().filter(|element| element.value.is_none()).count();
        }
        Ok(restored)
    }

    /// Whether the table was restored without its elements, so that they still have to be restored.
    pub fn lacks_pinholes(&self) -> bool {
        self.lacks_elements
    }

    /// Restores the table without its elements if it is gone; [`restore`](Self::restore) adds these later. Returns
    /// whether it was gone.
    pub(super) fn reinstall_if_gone(&mut self) -> Result<bool, SetupError> {
        if self.installed.is_empty() || self.tables.has_table(TABLE)? {
            return Ok(false);
        }
        self.reinstall(&BySet::new())?;
        self.lacks_elements = true;
        Ok(true)
    }

    /// Removes everything that was installed. It is no error if some of it is gone already.
    pub fn remove(&mut self) -> Result<(), SetupError> {
        let mut result = Ok(());
        for chain in &self.policy.admit {
            result = result.and(accept_rules::remove(&mut self.tables, chain));
        }
        self.installed.clear();
        result.and(self.tables.remove_table(TABLE).map(drop)).map_err(SetupError::from)
    }

    fn install_table(&mut self) -> Result<(), SetupError> {
        let Self { tables, policy, queueing, holder, .. } = self;
        // First the objects: another Pinhole may unregister a helper that no object refers to.
        tables.define(TABLE, holder.objects())?;
        if *queueing == Queueing::CompatTarget {
            // First the chains to which the other ones jump, so that no packet finds an empty chain.
            for chain in QueueChain::ALL {
                tables.fill_chain(TABLE, chain.name(), "", &[queueing.rule(&chain.of(policy.capture))])?;
            }
        }
        Nft::find()?.load(&ruleset::text(policy, *queueing, *holder))?;
        self.verify()
    }

    /// Exchanges the parts of the table that depend on the policy, in one transaction: over netlink, because the
    /// sandbox allows no program.
    fn exchange_table(&mut self, old: &Policy) -> Result<(), SetupError> {
        let Self { policy, queueing, holder, .. } = self;
        let fixed_part = |policy| ruleset::fixed_part(policy, *queueing, *holder);
        if fixed_part(old) != fixed_part(policy) {
            return Err(SetupError::OtherRules);
        }
        let text = |policy| ruleset::text(policy, *queueing, *holder);
        let is_same = (text(old), old.capture) == (text(policy), policy.capture);
        if is_same && self.is_untouched()? {
            return Ok(());
        }
        self.lacks_elements |= !self.tables.has_table(TABLE)?;
        let Self { policy, queueing, image, .. } = self;
        for chain in QueueChain::ALL {
            image.fill_chain(TABLE, chain.name(), &[queueing.rule(&chain.of(policy.capture))]);
        }
        for set in [ruleset::CONTROL_PORTS, ruleset::GUARDED_PORTS] {
            image.fill_set(TABLE, set, &ports_of(set, policy));
        }
        ruleset::sized_sets().for_each(|set| image.resize_set(set, ruleset::set_size(policy)));
        if old.mark != policy.mark && !image.exchange_marks(|number| exchanged_bits(number, old.mark, policy.mark)) {
            return Err(SetupError::OtherRules);
        }
        self.tables.put_back(TABLE, &self.image, &[])?;
        self.verify()
    }

    /// Replaces a table of another version whose sets do not fit these rules. Keeps its elements, as far as the new
    /// sets take them. For a moment there is no table.
    fn replace_table(&mut self) -> Result<(), SetupError> {
        let old = self.tables.image(TABLE)?;
        let mut kept = Vec::new();
        for set in elements::SETS.into_iter().flatten() {
            // The old table may lack this set.
            let elements = self.tables.elements(TABLE, set).unwrap_or_default();
            let left = |element: Element| Element { timeout: element.remaining.or(element.timeout), ..element };
            kept.push((set, elements.into_iter().map(left).collect::<Vec<_>>()));
        }
        self.tables.remove_table(TABLE)?;
        self.may_be_synced = false;
        if let Err(error) = self.install_table() {
            let lists: Vec<(&str, &[Element])> = kept.iter().map(|(set, list)| (*set, list.as_slice())).collect();
            // The old sets were not the reason: restores the old table, and returns the first error.
            let _ = self.tables.remove_table(TABLE);
            let _ = self.tables.put_back(TABLE, &old, &lists);
            return Err(error);
        }
        for (set, elements) in &kept {
            let kept = self.tables.insert_all(TABLE, set, elements);
            self.note(kept);
        }
        Ok(())
    }

    /// Verifies that the table is complete, and keeps an image of it.
    fn verify(&mut self) -> Result<(), SetupError> {
        let chains = self.tables.chains(TABLE)?;
        for (name, hook) in [("prerouting", 0), ("output", 3)] {
            let stands = |chain: &crate::netfilter::netlink::Chain| {
                &*chain.name == name && chain.hook.is_some_and(|at| (at.number, at.priority) == (hook, PRIORITY))
            };
            if !chains.iter().any(stands) {
                return Err(SetupError::Incomplete("a chain that captures is"));
            }
        }
        let rules = self.tables.rules(TABLE)?;
        let has_rule = |name: &str| rules.iter().any(|rule| &*rule.chain == name);
        if !ruleset::CHAINS.into_iter().all(has_rule) {
            return Err(SetupError::Incomplete("a rule is"));
        }
        self.installed = rules.iter().map(|rule| rule.handle).collect();
        self.image = self.tables.image(TABLE)?;
        Ok(())
    }

    /// Whether the table has the rules and control ports that were installed, and no others.
    fn is_untouched(&mut self) -> Result<bool, Error> {
        Ok(!self.installed.is_empty() && self.handles()? == self.installed && self.has_ports()?)
    }

    fn has_ports(&mut self) -> Result<bool, Error> {
        for set in [ruleset::CONTROL_PORTS, ruleset::GUARDED_PORTS] {
            let found = self.tables.elements(TABLE, set)?;
            let wanted = ports_of(set, &self.policy);
            let is_there = |port: &Element| found.iter().any(|element| element.key == port.key);
            if found.len() != wanted.len() || !wanted.iter().all(is_there) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn handles(&mut self) -> Result<Vec<u64>, Error> {
        Ok(self.tables.rules(TABLE)?.iter().map(|rule| rule.handle).collect())
    }

    fn restore_accept_rules(&mut self, restored: &mut Restored) -> Result<(), SetupError> {
        for chain in &self.policy.admit {
            match accept_rules::put(&mut self.tables, chain, self.policy.mark)? {
                Place::OnTop => {}
                Place::Elsewhere => restored.admitted.push(chain.clone()),
                Place::NoChain => restored.without_chain.push(chain.clone()),
            }
        }
        Ok(())
    }

    /// Restores the table as installed, with these elements, in one transaction, so that there is no moment with half
    /// of it.
    fn reinstall(&mut self, elements: &BySet) -> Result<(), SetupError> {
        let lists: Vec<(&str, &[Element])> = elements.iter().map(|(set, list)| (*set, list.as_slice())).collect();
        let left_over = self.tables.put_back(TABLE, &self.image, &lists)?;
        for (set, left_over) in left_over {
            self.tables.insert_all(TABLE, set, left_over)?;
        }
        self.installed = self.handles()?;
        if self.installed.len() < self.image.rules() {
            // It is gone again; the kernel notifies the watcher of that, too.
            self.installed.clear();
        }
        Ok(())
    }

    /// The elements of the sets, for the expectations that are open.
    fn lost_elements<'a>(&mut self, now: Timestamp, open: impl Iterator<Item = &'a Expectation>) -> BySet {
        let mut elements = BySet::new();
        for expectation in open.filter(|expectation| now < expectation.expires()) {
            for (set, element) in
                elements::elements(expectation, expectation.expires().since(now)).into_iter().flatten()
            {
                elements.entry(set).or_default().push(element);
                self.maps_used |= !expectation.mapping.is_none();
            }
        }
        for (set, element) in self
            .port_ranges
            .values()
            .filter_map(|(port_range, _)| port_range_element(port_range, PortRangePinhole::LIFETIME))
        {
            elements.entry(set).or_default().push(element);
        }
        elements
    }
}

/// The elements of a set of control ports.
fn ports_of(set: &str, policy: &Policy) -> Vec<Element> {
    let element = |port: Port| Element::lasting(Key::port(port.number()));
    ruleset::ports_of(set, policy).into_iter().map(element).collect()
}

/// Converts a number with which rules compare or combine a mark, from the bits of one policy to those of another.
/// `None` if that is ambiguous.
fn exchanged_bits(number: u32, old: Mark, new: Mark) -> Option<u32> {
    // The parts of Pinhole's marks. A number has all bits of a part or none.
    let parts = |mark: Mark| {
        let [known, beyond, server_synced, client_synced, read] = mark.control_bits().each();
        [mark.bits(), known, beyond, server_synced, client_synced, read]
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
        // No bit is left to show whether the mask keeps other bits.
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

impl Queueing {
    /// How this kernel can queue packets, found out by trying; `None` if it cannot.
    pub fn of_kernel(tables: &mut Tables) -> Result<Option<Self>, Error> {
        for queueing in [Self::Statement, Self::CompatTarget] {
            if tables.could(&[queueing.rule(&Capture::default())])? {
                return Ok(Some(queueing));
            }
        }
        Ok(None)
    }
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
