//! The ruleset of the host, as `nft -j list ruleset` prints it. Knows what chains and rules are, and not what they do.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

/// Why a ruleset cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("what `nft -j list ruleset` prints cannot be read: {0}")]
pub struct BadRuleset(#[from] serde_json::Error);

/// Chains with their rules, in the order in which nft prints them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ruleset {
    pub(super) chains: Vec<Chain>,
    /// Objects that give connections the kernel's own FTP helper.
    pub(super) helpers: Vec<String>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chain {
    pub(super) name: ChainName,
    /// What calls it; none if other chains do.
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Rule>,
}

/// A chain's name in full.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct ChainName {
    pub(super) family: String,
    pub(super) table: String,
    #[serde(rename = "name")]
    pub(super) chain: String,
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.chain)
    }
}

/// How the kernel calls a chain.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Base {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) hook: String,
    #[serde(default)]
    pub(super) policy: Option<String>,
}

/// A rule: statements, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rule {
    pub(super) handle: u64,
    pub(super) statements: Vec<Value>,
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    chain: Option<ChainItem>,
    rule: Option<RuleItem>,
    #[serde(rename = "ct helper")]
    helper: Option<HelperItem>,
}

#[derive(Deserialize)]
struct ChainItem {
    #[serde(flatten)]
    name: ChainName,
    #[serde(flatten)]
    base: Option<Base>,
}

#[derive(Deserialize)]
struct RuleItem {
    family: String,
    table: String,
    chain: String,
    handle: u64,
    #[serde(default)]
    expr: Vec<Value>,
}

#[derive(Deserialize)]
struct HelperItem {
    family: String,
    table: String,
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Ruleset {
    /// Reads what nft printed.
    pub fn parse(json: &str) -> Result<Self, BadRuleset> {
        let listing: Listing = serde_json::from_str(json)?;
        let mut ruleset = Self::default();
        for Item { chain, rule, helper } in listing.nftables {
            if let Some(ChainItem { name, base }) = chain {
                ruleset.chains.push(Chain { name, base, rules: Vec::new() });
            }
            if let Some(RuleItem { family, table, chain, handle, expr }) = rule {
                let name = ChainName { family, table, chain };
                // nft prints a table's chains before its rules.
                if let Some(chain) = ruleset.chains.iter_mut().find(|chain| chain.name == name) {
                    chain.rules.push(Rule { handle, statements: expr });
                }
            }
            if let Some(HelperItem { family, table, name, kind }) = helper
                && kind == "ftp"
            {
                ruleset.helpers.push(format!("{name} in table {family} {table}"));
            }
        }
        Ok(ruleset)
    }

    /// The chain of that name in the same table as another.
    pub(super) fn beside(&self, other: &ChainName, chain: &str) -> Option<&Chain> {
        self.chains
            .iter()
            .find(|c| (&*c.name.family, &*c.name.table, &*c.name.chain) == (&*other.family, &*other.table, chain))
    }

    /// The chains of filters through which a connection goes, Pinhole's own table left out.
    pub(super) fn filters(&self) -> impl Iterator<Item = (&Chain, &Base)> {
        let is_own = |name: &ChainName| (&*name.family, &*name.table) == ("inet", "pinhole");
        self.chains.iter().filter(move |chain| !is_own(&chain.name)).filter_map(|chain| {
            let base = chain.base.as_ref()?;
            let filters = base.kind == "filter" && ["input", "forward", "output"].contains(&&*base.hook);
            let is_ip = ["inet", "ip", "ip6"].contains(&&*chain.name.family);
            (filters && is_ip).then_some((chain, base))
        })
    }
}
