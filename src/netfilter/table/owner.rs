//! Tables with the flag `owner`, which only the program that made them can change.

use std::fmt;

use super::accept_rules::table;
use crate::core::policy::Chain;
use crate::netfilter::netlink::{Error, Table, Tables};
use crate::netfilter::readers::{Process, owner_of_socket};

/// The program that owns a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableOwner {
    /// `inet firewalld`
    pub table: String,
    /// None if it has ended, or cannot be seen from here.
    pub process: Option<Process>,
}

impl TableOwner {
    /// The owner of a table; none if the table has none.
    pub fn find(tables: &mut Tables, table: Table<'_>) -> Result<Option<Self>, Error> {
        let owner = tables.owner(table)?;
        Ok(owner.map(|owner| Self { table: table.to_string(), process: owner.port_id.and_then(owner_of_socket) }))
    }

    /// The owner of the table of a chain.
    pub(super) fn of_chain(tables: &mut Tables, chain: &Chain) -> Result<Option<Self>, Error> {
        Self::find(tables, table(chain))
    }

    /// Whether it is firewalld's table.
    pub fn is_of_firewalld(&self) -> bool {
        self.table == "inet firewalld"
    }

    /// What to do about a chain of that table in `admit`.
    pub fn advice(&self, chain: &Chain) -> String {
        if self.is_of_firewalld() {
            "with `NftablesTableOwner=no` in /etc/firewalld/firewalld.conf, and after a restart of firewalld, Pinhole can add \
             it; docs/howto/firewalld.md has the ways without that"
                .to_owned()
        } else {
            format!("remove `{chain}` from `admit`, and have that program add the rule that `pinhole check` prints")
        }
    }
}

/// `firewalld (process 411) owns table inet firewalld, and the kernel lets no other program change it`
impl fmt::Display for TableOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some(Process { id, name }) => write!(f, "{name} (process {id})")?,
            None => f.write_str("another program")?,
        }
        write!(f, " owns table {} (`flags owner`), and the kernel lets no other program change it", self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_is_named_with_a_remedy() {
        let process = Some(Process { id: 411, name: "firewalld".into() });
        let owner = TableOwner { table: "inet firewalld".into(), process };
        assert!(owner.to_string().starts_with("firewalld (process 411) owns table inet firewalld"), "{owner}");
        let chain = "inet firewalld filter_INPUT".parse().expect("a chain");
        assert!(owner.advice(&chain).contains("`NftablesTableOwner=no`"));
        let owner = TableOwner { table: "inet own".into(), process: None };
        assert!(owner.to_string().starts_with("another program owns table inet own"), "{owner}");
        let chain = "inet own input".parse().expect("a chain");
        assert!(owner.advice(&chain).contains("remove `inet own input` from `admit`"));
    }
}
