//! Restores the table and the accept rules after other programs have removed or changed them.

use super::accept_rules::{self, Place};
use super::install::fixed_handles;
use super::pinholes::BySet;
use super::prepare::Preparation;
use super::ruleset::{self, TABLE};
use super::{PinholeTable, TableError, deadline};
use crate::core::expectation::Expectation;
use crate::core::net::Port;
use crate::core::policy::{Chain, Policy};
use crate::core::time::Timestamp;
use crate::netfilter::netlink::{Element, Error, Key, Table, TableChange};

/// What was restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The table, or some of its rules.
    pub table: bool,
    /// The whole table was gone, and perhaps every other rule that needs conntrack (`nft flush ruleset`).
    pub was_gone: bool,
    /// The number of pinholes and port ranges.
    pub elements: usize,
    /// Control connections were not prepared, and are now: why.
    pub prepared_for: Option<Preparation>,
    /// The chains of `admit` whose accept rule was restored.
    pub admitted: Vec<Chain>,
    /// The chains of `admit` that do not exist. Their creation will be a change of the ruleset to handle.
    pub without_chain: Vec<Chain>,
}

impl Restored {
    /// Whether no other program had removed anything.
    pub fn is_nothing(&self) -> bool {
        !self.table && self.elements == 0 && self.admitted.is_empty()
    }
}

impl PinholeTable {
    /// Whether another program's change may concern this table or its accept rules.
    pub(in crate::netfilter) fn concerns(&mut self, change: &TableChange) -> bool {
        let may_need_preparation = self.notes_preparation(change);
        let in_table = |table: Table<'_>| (table.family, table.name) == (change.family, &*change.table);
        let is_of = |chain: &Chain| {
            in_table(accept_rules::table(chain)) && change.chain.as_deref().is_none_or(|name| name == chain.chain())
        };
        may_need_preparation || in_table(TABLE) || self.policy.admit.iter().any(is_of)
    }

    /// Whether the table and the accept rules are complete and unchanged.
    pub(in crate::netfilter) fn is_intact(&mut self) -> Result<bool, Error> {
        if !self.is_untouched()? {
            return Ok(false);
        }
        for chain in &self.policy.admit {
            if accept_rules::find(&mut self.tables, chain, self.policy.mark)? != Place::OnTop {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Restores the missing parts: the table with its pinholes, and the accept rules.
    pub(in crate::netfilter) fn restore<'a>(
        &mut self,
        now: Timestamp,
        open: impl Iterator<Item = &'a Expectation>,
    ) -> Result<Restored, TableError> {
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
        restored.prepared_for = self.prepare_if_needed()?;
        Ok(restored)
    }

    /// Whether the table was restored without its elements, so that they still have to be restored.
    pub(in crate::netfilter) fn lacks_pinholes(&self) -> bool {
        self.lacks_elements
    }

    /// Restores the table without its elements if it is gone; [`restore`](Self::restore) adds these later. Returns
    /// whether it was gone.
    pub(super) fn reinstall_if_gone(&mut self) -> Result<bool, TableError> {
        if self.installed.is_empty() || self.tables.has_table(TABLE)? {
            return Ok(false);
        }
        self.reinstall(&BySet::new())?;
        self.lacks_elements = true;
        Ok(true)
    }

    /// Whether the table has the rules and control ports that were installed, and no others.
    pub(super) fn is_untouched(&mut self) -> Result<bool, Error> {
        let rules = self.tables.rules(TABLE)?;
        Ok(!self.installed.is_empty()
            && fixed_handles(&rules) == self.installed
            && deadline::of_table(&rules) == Some(self.deadline)
            && self.has_ports()?)
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

    pub(super) fn restore_accept_rules(&mut self, restored: &mut Restored) -> Result<(), TableError> {
        for chain in &self.policy.admit {
            match accept_rules::ensure(&mut self.tables, chain, self.policy.mark)? {
                Place::OnTop => {}
                Place::Elsewhere => restored.admitted.push(chain.clone()),
                Place::NoChain => restored.without_chain.push(chain.clone()),
            }
        }
        Ok(())
    }

    /// Restores the table as installed, with these elements, in one transaction, so that it is never incomplete.
    pub(super) fn reinstall(&mut self, elements: &BySet) -> Result<(), TableError> {
        let lists: Vec<(&str, &[Element])> = elements.iter().map(|(set, list)| (*set, list.as_slice())).collect();
        let left_over = self.tables.restore(TABLE, &self.image, &lists)?;
        for (set, left_over) in left_over {
            self.tables.insert_all(TABLE, set, left_over)?;
        }
        let rules = self.tables.rules(TABLE)?;
        self.installed = fixed_handles(&rules);
        if rules.len() < self.image.rules() {
            // It is gone again; the kernel notifies the watcher of that, too.
            self.installed.clear();
        }
        Ok(())
    }
}

/// The elements of a set of control ports.
pub(super) fn ports_of(set: &str, policy: &Policy) -> Vec<Element> {
    let element = |port: Port| Element::permanent(Key::port(port.number()));
    ruleset::ports_of(set, policy).into_iter().map(element).collect()
}
