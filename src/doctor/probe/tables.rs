//! The host's tables in its copy.

use std::collections::HashMap;
use std::time::Duration;

use super::namespace::Namespace;
use crate::doctor::ruleset::{ChainName, Ruleset, family_name, kernel_family, listed_family};
use crate::netfilter::netlink::{Error, Family, Rule, Table, TableImage, Tables, TraceStep};

const TIMEOUT: Duration = Duration::from_secs(5);
/// The tables of Pinhole, which is installed in the copy by itself.
const OWN: [&str; 2] = ["pinhole", "pinhole-trace"];

#[derive(Debug)]
pub(super) struct CopiedTables {
    /// A table with an owner exists as long as this socket.
    tables: Tables,
    /// The handle of each rule here, by the handle of its copy.
    handles: HashMap<(Family, String, u64), u64>,
    /// What could not be copied.
    pub(super) left_out: Vec<String>,
}

impl CopiedTables {
    pub(super) fn copy(ruleset: &Ruleset, into: &Namespace) -> Result<Self, String> {
        let text = |error: Error| error.to_string();
        let mut here = Tables::open(TIMEOUT).map_err(text)?;
        let tables = into.run(|| Tables::open(TIMEOUT))?.map_err(text)?;
        let mut copied = Self { tables, handles: HashMap::new(), left_out: Vec::new() };
        for (family, name) in ruleset.tables() {
            let Some(number) = kernel_family(family) else {
                copied.left_out.push(format!("the table {} {name}, which is not of IP", family_name(family)));
                continue;
            };
            if number == Family::Inet && OWN.contains(&name) {
                continue;
            }
            let table = Table { family: number, name };
            match here.copy(table).and_then(|image| copied.load(&mut here, table, &image)) {
                Ok(()) => {}
                Err(error) => copied.left_out.push(format!("the table {table}: {error}")),
            }
        }
        Ok(copied)
    }

    fn load(&mut self, here: &mut Tables, table: Table<'_>, image: &TableImage) -> Result<(), Error> {
        self.tables.load_copy(table, image)?;
        let (originals, copies) = (by_chain(here.rules(table)?), by_chain(self.tables.rules(table)?));
        for (chain, originals) in originals {
            let copies = copies.get(&chain).map(Vec::as_slice).unwrap_or_default();
            for (original, copy) in originals.iter().zip(copies) {
                self.handles.insert((table.family, table.name.to_owned(), *copy), *original);
            }
        }
        Ok(())
    }

    /// The chain of a step in the copy, and the handle of the rule here. No handle for rules that the host does not have.
    pub(super) fn original(&self, step: &TraceStep) -> (ChainName, Option<u64>) {
        let table = String::from(&*step.table);
        let handle = step.rule.and_then(|rule| self.handles.get(&(step.family, table.clone(), rule)).copied());
        (ChainName { family: listed_family(step.family), table, chain: step.chain.to_string() }, handle)
    }
}

/// The handles of rules, in their order.
fn by_chain(rules: Vec<Rule>) -> HashMap<Box<str>, Vec<u64>> {
    let mut chains = HashMap::<Box<str>, Vec<u64>>::new();
    for Rule { chain, handle, .. } in rules {
        chains.entry(chain).or_default().push(handle);
    }
    chains
}
