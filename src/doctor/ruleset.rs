//! Parses the ruleset of the host, as `nft -j list ruleset` prints it: chains, rules and statements.
//!
//! The schema is that of the crate `nftables`. Its type for the whole document cannot be used, because parsing fails if the
//! schema lacks a single object or expression, for example verdict maps, `meta hour` or numbers above 32 bits. So each
//! object and each statement is parsed separately; of a statement that the schema lacks, only the name is known.

use std::fmt;

use nftables::schema::{self, CTHelper};
use nftables::stmt;
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};
use serde::Deserialize;
use serde_json::{Map, Value, from_value};

use super::filter::is_named;
use super::manager::Signs;
use crate::core::policy;
use crate::netfilter::netlink::{Family, XtParts};
use crate::netfilter::table::{IptablesTable, TableOwner};

#[derive(Debug, thiserror::Error)]
#[error("what `nft -j list ruleset` prints cannot be read: {0}")]
pub struct BadRuleset(#[from] serde_json::Error);

/// Chains with their rules, in the order in which nft prints them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ruleset {
    pub(super) chains: Vec<Chain>,
    /// `ct helper` objects that give connections the kernel's FTP helper.
    pub(super) helpers: Vec<String>,
    pub(super) signs: Signs,
    /// Whether bridged packets pass the hooks of IP (br_netfilter).
    pub(super) sees_bridged: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chain {
    pub(super) name: ChainName,
    /// None if the chain is not a base chain.
    pub(super) base: Option<Base>,
    /// iptables-nft manages the table.
    pub(super) is_of_iptables: bool,
    pub(super) rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChainName {
    pub(super) family: NfFamily,
    pub(super) table: String,
    pub(super) chain: String,
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", family_name(self.family), self.table, self.chain)
    }
}

/// The name of the family in nft.
pub(super) const fn family_name(family: NfFamily) -> &'static str {
    match family {
        NfFamily::IP => "ip",
        NfFamily::IP6 => "ip6",
        NfFamily::INet => "inet",
        NfFamily::ARP => "arp",
        NfFamily::Bridge => "bridge",
        NfFamily::NetDev => "netdev",
    }
}

/// The family as netlink has it. None if tables of the family do not see packets of IP as such.
pub(super) const fn kernel_family(family: NfFamily) -> Option<Family> {
    match family {
        NfFamily::INet => Some(Family::Inet),
        NfFamily::IP => Some(Family::Ip),
        NfFamily::IP6 => Some(Family::Ip6),
        NfFamily::ARP | NfFamily::Bridge | NfFamily::NetDev => None,
    }
}

pub(super) const fn listed_family(family: Family) -> NfFamily {
    match family {
        Family::Inet => NfFamily::INet,
        Family::Ip => NfFamily::IP,
        Family::Ip6 => NfFamily::IP6,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) kind: NfChainType,
    pub(super) hook: NfHook,
    pub(super) policy: Option<NfChainPolicy>,
    /// Chains with lower ones come first.
    pub(super) priority: i32,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rule {
    pub(super) handle: u64,
    /// Its matches and target of x_tables, which nft lists by name only. None if they were not read.
    pub(super) xt: Option<XtParts>,
    pub(super) statements: Vec<Statement>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Statement {
    pub(super) name: String,
    /// None if the schema lacks the statement, or an expression in it.
    pub(super) content: Option<stmt::Statement<'static>>,
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Map<String, Value>>,
}

/// `schema::Rule` with unparsed statements.
#[derive(Deserialize)]
struct RuleObject {
    family: NfFamily,
    table: String,
    chain: String,
    handle: u64,
    #[serde(default)]
    expr: Vec<Value>,
}

impl Ruleset {
    pub fn parse(json: &str) -> Result<Self, BadRuleset> {
        let listing: Listing = serde_json::from_str(json)?;
        let mut ruleset = Self::default();
        for (kind, object) in listing.nftables.into_iter().flatten() {
            // The schema has the family, type, hook and policy of every chain that filters IP. So objects that it lacks are
            // not about such chains.
            match &*kind {
                "chain" => ruleset.chains.extend(from_value(object).ok().map(Chain::new)),
                "rule" => from_value(object).into_iter().for_each(|rule| ruleset.add_rule(rule)),
                "ct helper" => ruleset.helpers.extend(from_value(object).ok().and_then(ftp_helper)),
                _ => {}
            }
        }
        Ok(ruleset)
    }

    fn add_rule(&mut self, RuleObject { family, table, chain, handle, expr }: RuleObject) {
        let name = ChainName { family, table, chain };
        // nft prints a table's chains before its rules.
        if let Some(chain) = self.chains.iter_mut().find(|chain| chain.name == name) {
            chain.rules.push(Rule { handle, xt: None, statements: expr.into_iter().map(Statement::new).collect() });
        }
    }

    /// Adds what nft does not list of the tables that iptables-nft manages.
    pub fn with_iptables(mut self, tables: &[IptablesTable]) -> Self {
        for IptablesTable { family, name, rules } in tables {
            let is_in = |chain: &&mut Chain| chain.name.family == listed_family(*family) && chain.name.table == *name;
            for chain in self.chains.iter_mut().filter(is_in) {
                chain.is_of_iptables = true;
                for rule in &mut chain.rules {
                    // A handle is unique in its table.
                    let found = rules.iter().find(|found| found.handle == rule.handle);
                    rule.xt = found.map(|found| found.xt.clone());
                }
            }
        }
        self
    }

    /// Adds what shows which programs manage the firewall.
    pub fn with_signs(self, signs: Signs) -> Self {
        Self { signs, ..self }
    }

    /// Adds whether bridged packets pass the hooks of IP.
    pub fn with_bridged(self, sees_bridged: bool) -> Self {
        Self { sees_bridged, ..self }
    }

    /// The tables of its chains.
    pub(super) fn tables(&self) -> impl Iterator<Item = (NfFamily, &str)> {
        let mut seen: Vec<_> = self.chains.iter().map(|chain| (chain.name.family, &*chain.name.table)).collect();
        // nft prints table by table.
        seen.dedup();
        seen.into_iter()
    }

    /// The owner of a chain's table.
    pub(super) fn owner(&self, chain: &ChainName) -> Option<&TableOwner> {
        let table = format!("{} {}", family_name(chain.family), chain.table);
        self.signs.owners.iter().find(|owner| owner.table == table)
    }

    /// The chain with this name in the table of `other`.
    pub(super) fn in_same_table(&self, other: &ChainName, chain: &str) -> Option<&Chain> {
        self.chains
            .iter()
            .find(|c| (c.name.family, &*c.name.table, &*c.name.chain) == (other.family, &*other.table, chain))
    }

    /// Whether it has the chain that the policy names.
    pub(super) fn has(&self, named: &policy::Chain) -> bool {
        self.chains.iter().any(|chain| is_named(named, &chain.name))
    }

    /// The base chains that filter IP at the hooks input, forward and output, except those of Pinhole's table.
    pub(super) fn filters(&self) -> impl Iterator<Item = (&Chain, &Base)> {
        self.bases().filter(|(_, base)| {
            base.kind == NfChainType::Filter && matches!(base.hook, NfHook::Input | NfHook::Forward | NfHook::Output)
        })
    }

    /// Whether a rule translates destinations (`dnat`, `redirect`).
    pub(super) fn changes_destinations(&self) -> bool {
        let chains = self.chains.iter().filter(|chain| chain.name.table != "pinhole");
        let mut statements = chains.flat_map(|chain| &chain.rules).flat_map(|rule| &rule.statements);
        statements.any(|statement| matches!(&*statement.name, "dnat" | "redirect"))
    }

    /// Whether a chain translates addresses, or may: it has a rule, and a type for NAT.
    pub(super) fn translates(&self) -> bool {
        self.bases().any(|(chain, base)| base.kind == NfChainType::NAT && !chain.rules.is_empty())
    }

    /// The base chains that see IP packets, except those of Pinhole's table.
    pub(super) fn bases(&self) -> impl Iterator<Item = (&Chain, &Base)> {
        self.chains.iter().filter_map(|chain| {
            let ChainName { family, table, .. } = &chain.name;
            let is_own = *family == NfFamily::INet && table == "pinhole";
            let is_ip = matches!(family, NfFamily::INet | NfFamily::IP | NfFamily::IP6);
            chain.base.as_ref().filter(|_| is_ip && !is_own).map(|base| (chain, base))
        })
    }
}

impl Chain {
    fn new(chain: schema::Chain<'_>) -> Self {
        let schema::Chain { family, table, name, _type, hook, policy, prio, .. } = chain;
        let priority = prio.unwrap_or(0);
        let base = _type.zip(hook).map(|(kind, hook)| Base { kind, hook, policy, priority });
        Self {
            name: ChainName { family, table: table.into(), chain: name.into() },
            base,
            is_of_iptables: false,
            rules: Vec::new(),
        }
    }
}

impl Statement {
    fn new(statement: Value) -> Self {
        let name = statement.as_object().and_then(|object| object.keys().next()).cloned().unwrap_or_default();
        Self { name, content: from_value(statement).ok() }
    }
}

fn ftp_helper(helper: CTHelper<'_>) -> Option<String> {
    let CTHelper { family, table, name, _type, .. } = helper;
    (_type == "ftp").then(|| format!("{name} in table {} {table}", family_name(family)))
}

#[cfg(test)]
#[path = "ruleset_tests.rs"]
mod tests;
