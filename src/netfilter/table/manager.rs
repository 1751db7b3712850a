//! Which program manages a table: the accept rule is written so that this program can read it.

use super::accept_rules::is_ours;
use crate::netfilter::netlink::{Chain, Error, Family, Rule, Table, Tables, built_in_tables, is_built_in};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manager {
    Nft,
    Iptables,
}

impl Manager {
    /// The manager of a table with these chains and rules.
    ///
    /// A table of iptables-nft can look like one that nft made with the same names. If iptables-nft can read it, matches and
    /// targets of x_tables show that iptables-nft wrote it. Without any, a comment of nft or a rule without a counter, which
    /// iptables-nft gives each, shows that nft wrote it. If nothing shows it, iptables-nft has to go on reading the table.
    pub(super) fn of(table: Table<'_>, chains: &[Chain], rules: &[Rule]) -> Self {
        let others = || rules.iter().filter(|rule| !is_ours(rule));
        let is_iptables = matches!(table.family, Family::Ip | Family::Ip6)
            && is_built_in(table.name, chains)
            && others().all(|rule| rule.is_readable_by_iptables)
            && (others().any(|rule| rule.xt.is_some())
                || others().all(|rule| rule.has_counter && rule.comment.is_none()));
        if is_iptables { Self::Iptables } else { Self::Nft }
    }
}

/// A table that iptables-nft manages, as `pinhole check` needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IptablesTable {
    pub family: Family,
    pub name: &'static str,
    /// Its rules. nft lists their matches by name only.
    pub rules: Vec<Rule>,
}

/// The tables of this host that iptables-nft manages.
pub fn iptables_tables(tables: &mut Tables) -> Result<Vec<IptablesTable>, Error> {
    let mut found = Vec::new();
    for family in [Family::Ip, Family::Ip6] {
        for name in built_in_tables() {
            let table = Table { family, name };
            let (chains, rules) = (tables.chains(table)?, tables.rules(table)?);
            if Manager::of(table, &chains, &rules) == Manager::Iptables {
                found.push(IptablesTable { family, name, rules });
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::netlink::{Hook, XtParts};

    const FILTER: Table<'static> = Table { family: Family::Ip, name: "filter" };

    fn input(name: &str) -> [Chain; 1] {
        [Chain { name: name.into(), hook: Some(Hook { number: 1, priority: 0 }) }]
    }

    fn rule(is_readable_by_iptables: bool, has_counter: bool) -> Rule {
        let xt = XtParts::default();
        Rule { chain: "INPUT".into(), handle: 1, comment: None, is_readable_by_iptables, has_counter, xt }
    }

    #[test]
    fn table_that_iptables_reads_is_of_iptables() {
        let of = |rules: &[Rule]| Manager::of(FILTER, &input("INPUT"), rules);
        assert_eq!(of(&[]), Manager::Iptables);
        assert_eq!(of(&[rule(true, true)]), Manager::Iptables);
        assert_eq!(of(&[rule(true, true), rule(false, true)]), Manager::Nft);
        // Among those of iptables, nft has added a rule that iptables reads.
        let mut with_match = rule(true, true);
        with_match.xt.has_other_matches = true;
        assert_eq!(of(&[with_match, rule(true, false)]), Manager::Iptables);
    }

    #[test]
    fn rule_without_counter_or_with_comment_is_of_nft() {
        let of = |rules: &[Rule]| Manager::of(FILTER, &input("INPUT"), rules);
        assert_eq!(of(&[rule(true, false)]), Manager::Nft);
        assert_eq!(of(&[rule(true, true), rule(true, false)]), Manager::Nft);
        let commented = Rule { comment: Some("FTP".into()), ..rule(true, true) };
        assert_eq!(of(&[rule(true, true), commented]), Manager::Nft);
    }

    #[test]
    fn accept_rule_is_ignored_when_detecting_the_manager() {
        let comment = Some("pinhole: announced data connections, mark 0x10000000".into());
        let ours = Rule { comment, ..rule(false, true) };
        assert_eq!(Manager::of(FILTER, &input("INPUT"), &[ours, rule(true, true)]), Manager::Iptables);
    }

    #[test]
    fn other_families_and_chains_are_of_nft() {
        assert_eq!(Manager::of(Table { family: Family::Inet, ..FILTER }, &input("INPUT"), &[]), Manager::Nft);
        assert_eq!(Manager::of(FILTER, &input("input"), &[]), Manager::Nft);
    }
}
