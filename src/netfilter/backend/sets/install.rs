//! Installs the table, verifies it, restores it, exchanges parts of it at a reload, and removes it.

use super::admit::{self, Place};
use super::nft::{self, NftError};
use super::ruleset::{self, Holder, PRIORITY, QueueChain, Queueing, TABLE};
use super::stored::{self, range};
use super::{BySet, HashMap, HashSet, PATIENCE, Sets, Troubles};
use crate::core::expectation::{Expectation, PortRangePinhole};
use crate::core::kernel::Mark;
use crate::core::net::Port;
use crate::core::policy::{Capture, Chain, Mechanism, Policy};
use crate::core::time::Timestamp;
use crate::netfilter::backend::native::Impossible;
use crate::netfilter::netlink::{Conntrack, Element, Error, Key, TableChange, TableImage, Tables};

/// Why the firewall does not stand.
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
    /// There is a table of our name that is not ours.
    #[error(
        "the table inet pinhole belongs to another program: it has a chain `{chain}`; rename it, or remove it with \
         `nft delete table inet pinhole`"
    )]
    ForeignTable {
        /// A chain in it that we do not have.
        chain: Box<str>,
    },
    /// The policy wants a rule in a chain that does not exist.
    #[error("there is no chain `{0}`, which the policy names in `admit`; see `nft list chains`")]
    NoSuchChain(Chain),
    /// Another policy wants other queues, and queues are bound once.
    #[error(
        "`capture: queue` and `queues` cannot change while the program runs: restart it (`systemctl restart pinhole`); \
         control connections and transfers go on, only what is announced and not yet used has to be announced again"
    )]
    OtherQueues,
    /// Another policy asks for rules that are not in the table, and only the program nft could write them.
    #[error(
        "this policy needs other rules in the table inet pinhole, which are only written at the start: restart it \
         (`systemctl restart pinhole`); control connections and transfers go on"
    )]
    OtherRules,
    /// The policy wants the kernel to expect connections, which it cannot.
    #[error("`mechanism: native` is not possible: {0}; `mechanism: auto` goes on with sets then")]
    NoNative(#[from] Impossible),
    /// Another policy wants another mechanism, and that is chosen once.
    #[error("`mechanism` cannot change from {0} while the program runs: restart it (`systemctl restart pinhole`)")]
    OtherMechanism(Mechanism),
    /// It was installed, and then it was not there.
    #[error("the table inet pinhole was installed, but {0} missing; does another program change the ruleset?")]
    NotStanding(&'static str),
}

/// What was restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The table, or rules of it.
    pub table: bool,
    /// All of it was gone, and perhaps whatever else asked for connection tracking.
    pub was_gone: bool,
    /// Pinholes and port_ranges.
    pub elements: usize,
    /// Accept rules in chains of others.
    pub admitted: Vec<Chain>,
    /// Chains that the policy names and that do not exist. When they come, that is a change to look at.
    pub without_chain: Vec<Chain>,
}

impl Restored {
    /// Whether everything stood as it should.
    pub fn is_nothing(&self) -> bool {
        !self.table && self.elements == 0 && self.admitted.is_empty()
    }
}

impl Sets {
    /// Installs what a policy asks for. Pinholes that an earlier program left behind stay open.
    pub fn install(policy: &Policy) -> Result<Self, SetupError> {
        Self::install_for(policy, Holder::Sets)
    }

    /// The same, with the ruleset for that holder of pinholes.
    pub(in crate::netfilter::backend) fn install_for(policy: &Policy, holder: Holder) -> Result<Self, SetupError> {
        let mut tables = Tables::open(PATIENCE)?;
        let conntrack = Conntrack::open(PATIENCE)?;
        let queueing = Queueing::of_kernel(&mut tables)?.ok_or(SetupError::NoQueue)?;
        let standing = tables.chains(TABLE)?;
        let is_anew = standing.is_empty();
        if let Some(chain) = standing.into_iter().find(|chain| !ruleset::is_own_chain(&chain.name)) {
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
            sets_are_lost: false,
            port_ranges: HashMap::default(),
            used: HashSet::default(),
            may_be_synced: !is_anew,
            maps_used: false,
            troubles: Troubles::default(),
        };
        // Before anything is changed: a chain that is not there is a mistake in the policy.
        for chain in &policy.admit {
            if admit::look(&mut sets.tables, chain, policy.mark)? == Place::NoChain {
                return Err(SetupError::NoSuchChain(chain.clone()));
            }
        }
        match sets.put_table() {
            Err(SetupError::Nft(NftError::Refused(_))) if !is_anew => sets.replace_table()?,
            put => put?,
        }
        sets.maps_used = !sets.mappings()?.is_empty();
        sets.put_admit(&mut Restored::default())?;
        admit::remove_elsewhere(&mut sets.tables, &policy.admit)?;
        Ok(sets)
    }

    /// Installs what another policy asks for, in place of this one. After an error, the old one stands.
    pub fn reload(&mut self, policy: &Policy) -> Result<(), SetupError> {
        if policy.capture.queues != self.policy.capture.queues {
            return Err(SetupError::OtherQueues);
        }
        for chain in &policy.admit {
            if admit::look(&mut self.tables, chain, policy.mark)? == Place::NoChain {
                return Err(SetupError::NoSuchChain(chain.clone()));
            }
        }
        let old = (std::mem::replace(&mut self.policy, policy.clone()), self.image.clone());
        let result = self.exchange_table(&old.0).and_then(|()| self.put_admit(&mut Restored::default()));
        if let Err(error) = result {
            (self.policy, self.image) = old;
            if !self.is_untouched()? {
                self.put_back(&BySet::new())?;
            }
            self.put_admit(&mut Restored::default())?;
            return Err(error);
        }
        let (old, _) = old;
        for chain in old.admit.iter().filter(|chain| !policy.admit.contains(chain)) {
            admit::remove(&mut self.tables, chain)?;
        }
        Ok(())
    }

    /// Whether a change that somebody made may have been to what we installed.
    pub fn concerns(&self, change: &TableChange) -> bool {
        let in_table =
            |table: crate::netfilter::netlink::Table<'_>| (table.family, table.name) == (change.family, &*change.table);
        let is_of = |chain: &Chain| {
            in_table(admit::table(chain)) && change.chain.as_deref().is_none_or(|name| name == chain.chain())
        };
        in_table(TABLE) || self.policy.admit.iter().any(is_of)
    }

    /// Whether all that was installed is there and untouched.
    pub fn stands(&mut self) -> Result<bool, Error> {
        if !self.is_untouched()? {
            return Ok(false);
        }
        for chain in &self.policy.admit {
            if admit::look(&mut self.tables, chain, self.policy.mark)? != Place::OnTop {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Puts back what is missing: the table with the pinholes that should stand in it, and the accept rules.
    pub fn restore<'a>(
        &mut self,
        now: Timestamp,
        standing: impl Iterator<Item = &'a Expectation>,
    ) -> Result<Restored, SetupError> {
        let mut restored = Restored::default();
        // First what lets marked connections in: a pinhole that is used up by one that is dropped then is lost.
        self.put_admit(&mut restored)?;
        let is_untouched = self.is_untouched()?;
        if !is_untouched {
            // Rules alone may be gone. Then the sets are as they should be, and what was used up stays so.
            self.sets_are_lost |= !self.tables.has_table(TABLE)?;
        }
        if !is_untouched || self.sets_are_lost {
            let elements = if self.sets_are_lost { self.lost_elements(now, standing) } else { BySet::new() };
            self.put_back(&elements)?;
            restored.was_gone = std::mem::take(&mut self.sets_are_lost);
            restored.table = true;
            restored.elements = elements.values().flatten().filter(|element| element.value.is_none()).count();
        }
        Ok(restored)
    }

    /// Whether the table stands without what should stand in its sets, so that it must be restored.
    pub fn lacks_pinholes(&self) -> bool {
        self.sets_are_lost
    }

    /// Puts back the table if it is gone, without what stood in it: that follows with [`restore`](Self::restore).
    /// Whether it was gone.
    pub(super) fn put_back_if_gone(&mut self) -> Result<bool, SetupError> {
        if self.installed.is_empty() || self.tables.has_table(TABLE)? {
            return Ok(false);
        }
        self.put_back(&BySet::new())?;
        self.sets_are_lost = true;
        Ok(true)
    }

    /// Removes all that was installed. What is gone already is fine.
    pub fn remove(&mut self) -> Result<(), SetupError> {
        let mut result = Ok(());
        for chain in &self.policy.admit {
            result = result.and(admit::remove(&mut self.tables, chain));
        }
        self.installed.clear();
        result.and(self.tables.remove_table(TABLE).map(drop)).map_err(SetupError::from)
    }

    fn put_table(&mut self) -> Result<(), SetupError> {
        let Self { tables, policy, queueing, holder, .. } = self;
        // Before all else: a helper that no object names may be removed by whoever else knows it.
        tables.define(TABLE, holder.objects())?;
        if *queueing == Queueing::CompatTarget {
            // First what the rest jumps to, so that there is no moment in which packets find an empty chain.
            for chain in QueueChain::ALL {
                tables.fill_chain(TABLE, chain.name(), "", &[queueing.rule(&chain.of(policy.capture))])?;
            }
        }
        nft::apply(&ruleset::text(policy, *queueing, *holder))?;
        self.verify()
    }

    /// Exchanges in the table what the policy has otherwise than the old one, at once: by netlink alone, because no
    /// program can be run any more.
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
        self.sets_are_lost |= !self.tables.has_table(TABLE)?;
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

    /// Puts the table in the place of one that another version has left, with sets that this one's rules cannot go on
    /// with. What stands in the old sets is kept, as far as the new ones take it. For a moment there is no table.
    fn replace_table(&mut self) -> Result<(), SetupError> {
        let old = self.tables.image(TABLE)?;
        let mut standing = Vec::new();
        for set in stored::SETS.into_iter().flatten() {
            // A set that the old table does not have is no trouble.
            let elements = self.tables.elements(TABLE, set).unwrap_or_default();
            let left = |element: Element| Element { timeout: element.remaining.or(element.timeout), ..element };
            standing.push((set, elements.into_iter().map(left).collect::<Vec<_>>()));
        }
        self.tables.remove_table(TABLE)?;
        self.may_be_synced = false;
        if let Err(error) = self.put_table() {
            let lists: Vec<(&str, &[Element])> = standing.iter().map(|(set, list)| (*set, list.as_slice())).collect();
            // It is not this that was wrong: then all is as it was. The reason why is what has to be told.
            let _ = self.tables.remove_table(TABLE);
            let _ = self.tables.put_back(TABLE, &old, &lists);
            return Err(error);
        }
        for (set, elements) in &standing {
            let kept = self.tables.insert_all(TABLE, set, elements);
            self.note(kept);
        }
        Ok(())
    }

    /// Sees that it is all there, and remembers it.
    fn verify(&mut self) -> Result<(), SetupError> {
        let chains = self.tables.chains(TABLE)?;
        for (name, hook) in [("prerouting", 0), ("output", 3)] {
            let stands = |chain: &crate::netfilter::netlink::Chain| {
                &*chain.name == name && chain.hook.is_some_and(|at| (at.number, at.priority) == (hook, PRIORITY))
            };
            if !chains.iter().any(stands) {
                return Err(SetupError::NotStanding("a chain that captures is"));
            }
        }
        let rules = self.tables.rules(TABLE)?;
        let has_rule = |name: &str| rules.iter().any(|rule| &*rule.chain == name);
        if !ruleset::CHAINS.into_iter().all(has_rule) {
            return Err(SetupError::NotStanding("a rule is"));
        }
        self.installed = rules.iter().map(|rule| rule.handle).collect();
        self.image = self.tables.image(TABLE)?;
        Ok(())
    }

    /// Whether our table holds the rules and the control ports that were installed, and no others.
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

    fn put_admit(&mut self, restored: &mut Restored) -> Result<(), SetupError> {
        for chain in &self.policy.admit {
            match admit::put(&mut self.tables, chain, self.policy.mark)? {
                Place::OnTop => {}
                Place::Elsewhere => restored.admitted.push(chain.clone()),
                Place::NoChain => restored.without_chain.push(chain.clone()),
            }
        }
        Ok(())
    }

    /// Puts back the table as it was installed, with these elements: at once, so that there is no moment with half of
    /// it.
    fn put_back(&mut self, elements: &BySet) -> Result<(), SetupError> {
        let lists: Vec<(&str, &[Element])> = elements.iter().map(|(set, list)| (*set, list.as_slice())).collect();
        let left_over = self.tables.put_back(TABLE, &self.image, &lists)?;
        for (set, left_over) in left_over {
            self.tables.insert_all(TABLE, set, left_over)?;
        }
        self.installed = self.handles()?;
        if self.installed.len() < self.image.rules() {
            // It is gone again, and the kernel tells of that as well.
            self.installed.clear();
        }
        Ok(())
    }

    /// What has to stand in the sets.
    fn lost_elements<'a>(&mut self, now: Timestamp, standing: impl Iterator<Item = &'a Expectation>) -> BySet {
        let mut elements = BySet::new();
        for expectation in standing.filter(|expectation| now < expectation.expires()) {
            for (set, element) in stored::elements(expectation, expectation.expires().since(now)).into_iter().flatten()
            {
                elements.entry(set).or_default().push(element);
                self.maps_used |= !expectation.mapping.is_none();
            }
        }
        for (set, element) in
            self.port_ranges.values().filter_map(|(port_range, _)| range(port_range, PortRangePinhole::LIFETIME))
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

/// What a number that rules compare or combine with a mark of a connection is for another policy: the bits of the one
/// become the bits of the other. None where that cannot be told.
fn exchanged_bits(number: u32, old: Mark, new: Mark) -> Option<u32> {
    // What Pinhole's marks are made of. A number has all bits of such a part or none.
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
        // Then it cannot be told whether they are kept.
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
    /// How the kernel can be told to queue, by trying; none if it cannot.
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
