//! Installs the table, verifies and removes it.

use hashbrown::{HashMap, HashSet};

use super::accept_rules;
use super::manager::iptables_tables;
use super::prepare::preparation;
use super::ruleset::{self, MechanismRules, PRIORITY, QueueChain, Queueing, TABLE};
use super::{PinholeTable, Restored, TableError, deadline, elements};
use crate::core::policy::{Capture, Policy};
use crate::netfilter::REPLY_TIMEOUT;
use crate::netfilter::errors::ErrorCounter;
use crate::netfilter::netlink::{Chain, Element, Error, Rule, TableImage, Tables};
use crate::netfilter::nft::{Nft, NftError};

impl PinholeTable {
    /// Installs the table for a policy and a mechanism. Pinholes of an earlier run stay open.
    pub(in crate::netfilter) fn install(
        policy: &Policy,
        mechanism_rules: MechanismRules,
        errors: ErrorCounter,
    ) -> Result<Self, TableError> {
        let mut tables = Tables::open(REPLY_TIMEOUT)?;
        let queueing = Queueing::of_kernel(&mut tables)?.ok_or(TableError::NoQueue)?;
        let chains = tables.chains(TABLE)?;
        let is_new = chains.is_empty();
        if let Some(chain) = chains.into_iter().find(|chain| !ruleset::is_own_chain(&chain.name)) {
            return Err(TableError::ForeignTable { chain: chain.name });
        }
        let mut table = Self {
            policy: policy.clone(),
            queueing,
            mechanism_rules,
            prepares: preparation(&mut tables)?.is_some(),
            may_need_preparation: false,
            has_iptables: iptables_tables(&mut tables)?.iter().any(|table| table.name == "filter"),
            was_kept: !is_new,
            deadline: deadline::adopt(&mut tables)?,
            installed: Vec::new(),
            image: TableImage::default(),
            lacks_elements: false,
            port_ranges: HashMap::default(),
            used: HashSet::default(),
            maps_used: false,
            errors,
            tables,
        };
        // Before anything is changed, because a chain that cannot have the rule is a mistake in the policy.
        policy.admit.iter().try_for_each(|chain| accept_rules::check(&mut table.tables, chain))?;
        match table.write() {
            Err(TableError::Nft(NftError::Refused(_))) if !is_new => table.replace()?,
            written => written?,
        }
        table.maps_used = !table.mappings()?.is_empty();
        table.restore_accept_rules(&mut Restored::default())?;
        accept_rules::remove_elsewhere(&mut table.tables, &policy.admit)?;
        Ok(table)
    }

    /// Removes the accept rules and the table. It is no error if they are gone already.
    pub(in crate::netfilter) fn remove(&mut self) -> Result<(), TableError> {
        let mut result = Ok(());
        for chain in &self.policy.admit {
            result = result.and(accept_rules::remove(&mut self.tables, chain));
        }
        self.installed.clear();
        result.and(self.tables.remove_table(TABLE).map(drop)).map_err(TableError::from)
    }

    fn write(&mut self) -> Result<(), TableError> {
        let rules = self.installed_rules();
        let Self { tables, policy, queueing, mechanism_rules, deadline, .. } = self;
        // First the objects: another Pinhole may unregister a helper that no object refers to.
        tables.add_objects(TABLE, rules.objects)?;
        deadline.install(tables)?;
        if *queueing == Queueing::CompatTarget {
            // First the chains to which the other ones jump, so that no packet finds an empty chain.
            for chain in QueueChain::ALL {
                tables.fill_chain(TABLE, chain.name(), "", &[queueing.rule(&chain.of(policy.capture))])?;
            }
        }
        let nft = Nft::find()?;
        let text = ruleset::text(policy, *queueing, rules);
        let simpler = ruleset::without_removing_options(&text);
        let simplest = ruleset::without_zones(&simpler);
        let is_refused = |loaded: &Result<(), NftError>| matches!(loaded, Err(NftError::Refused(_)));
        let mut loaded = nft.load(&text);
        for text in [&simpler, &ruleset::without_zones(&text), &simplest] {
            if is_refused(&loaded) {
                loaded = nft.load(text);
            }
        }
        loaded?;
        if rules.objects.is_empty() {
            // An earlier run may have added them.
            mechanism_rules.objects.iter().try_for_each(|object| tables.remove_object(TABLE, object))?;
        }
        self.verify()
    }

    /// Replaces a table of another version whose sets do not fit these rules. Keeps its elements, as far as the new
    /// sets take them. For a moment there is no table.
    fn replace(&mut self) -> Result<(), TableError> {
        let old = self.tables.image(TABLE)?;
        let mut kept = Vec::new();
        for set in elements::SETS.into_iter().flatten() {
            // The old table may lack this set.
            let elements = self.tables.elements(TABLE, set).unwrap_or_default();
            let left = |element: Element| Element { timeout: element.expiration.or(element.timeout), ..element };
            kept.push((set, elements.into_iter().map(left).collect::<Vec<_>>()));
        }
        self.tables.remove_table(TABLE)?;
        self.was_kept = false;
        if let Err(error) = self.write() {
            let lists: Vec<(&str, &[Element])> = kept.iter().map(|(set, list)| (*set, list.as_slice())).collect();
            // The old sets were not the reason: restores the old table, and returns the first error.
            let _ = self.tables.remove_table(TABLE);
            let _ = self.tables.restore(TABLE, &old, &lists);
            return Err(error);
        }
        for (set, elements) in &kept {
            self.errors.ok(self.tables.insert_all(TABLE, set, elements));
        }
        Ok(())
    }

    /// Verifies that the table is complete, and keeps an image of it.
    pub(super) fn verify(&mut self) -> Result<(), TableError> {
        let chains = self.tables.chains(TABLE)?;
        for (name, hook) in [("prerouting", 0), ("output", 3)] {
            let is_hooked = |chain: &Chain| {
                &*chain.name == name && chain.hook.is_some_and(|at| (at.number, at.priority) == (hook, PRIORITY))
            };
            if !chains.iter().any(is_hooked) {
                return Err(TableError::Incomplete("a chain that captures is"));
            }
        }
        let rules = self.tables.rules(TABLE)?;
        if deadline::of_table(&rules) != Some(self.deadline) {
            return Err(TableError::Incomplete("the deadline is"));
        }
        let has_rule = |name: &str| rules.iter().any(|rule| &*rule.chain == name);
        if !ruleset::CHAINS.into_iter().all(has_rule) {
            return Err(TableError::Incomplete("a rule is"));
        }
        self.installed = fixed_handles(&rules);
        self.image = self.tables.image(TABLE)?;
        Ok(())
    }
}

/// The handles of the rules that nothing but a reload exchanges.
pub(super) fn fixed_handles(rules: &[Rule]) -> Vec<u64> {
    rules.iter().filter(|rule| &*rule.chain != deadline::CHAIN).map(|rule| rule.handle).collect()
}

impl Queueing {
    /// How this kernel can queue packets, found out by trying; `None` if it cannot.
    pub fn of_kernel(tables: &mut Tables) -> Result<Option<Self>, Error> {
        for queueing in [Self::Statement, Self::CompatTarget] {
            if tables.supports(&[queueing.rule(&Capture::default())])? {
                return Ok(Some(queueing));
            }
        }
        Ok(None)
    }
}
