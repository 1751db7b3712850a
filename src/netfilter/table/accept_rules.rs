//! Keeps one accept rule at the top of each chain that `admit` names.
//!
//! The rule is recognised by its comment. Nothing else in those tables is touched. In a table of iptables-nft, the rule is
//! one that iptables-nft could have written: it refuses to list, save or change a table with a rule that it cannot read.

use rustix::io::Errno;

use super::manager::Manager;
use super::{TableError, TableOwner};
use crate::core::kernel::Mark;
use crate::core::policy::{Chain, ChainFamily};
use crate::netfilter::netlink::{Cause, CtKey, Error, Expression, Family, Rule, Table, Tables};

/// The beginning of the accept rule's comment.
const COMMENT: &str = "pinhole: announced data connections";

/// The position of the accept rule in its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    OnTop,
    NoChain,
    /// The rule is missing, is not the first one, is for another mark, or is not in the form of the table's manager.
    Elsewhere,
}

/// A chain that `admit` names, as it is in the kernel.
struct Found {
    exists: bool,
    manager: Manager,
    rules: Vec<Rule>,
}

impl Found {
    fn read(tables: &mut Tables, chain: &Chain) -> Result<Self, Error> {
        let mut rules = tables.rules(table(chain))?;
        let chains = tables.chains(table(chain))?;
        let manager = Manager::of(table(chain), &chains, &rules);
        rules.retain(|rule| &*rule.chain == chain.chain());
        Ok(Self { exists: chains.iter().any(|found| &*found.name == chain.chain()), manager, rules })
    }

    fn place(&self, mark: Mark) -> Place {
        if !self.exists {
            return Place::NoChain;
        }
        let ours = self.rules.iter().filter(|rule| is_ours(rule)).count();
        let is_right = |rule: &Rule| {
            rule.comment.as_deref() == Some(&*comment(mark))
                && rule.is_readable_by_iptables == (self.manager == Manager::Iptables)
        };
        if ours == 1 && self.rules.first().is_some_and(is_right) { Place::OnTop } else { Place::Elsewhere }
    }
}

/// Checks that the chain exists and can have the accept rule.
pub(super) fn check(tables: &mut Tables, chain: &Chain) -> Result<(), TableError> {
    if !Found::read(tables, chain)?.exists {
        return Err(TableError::NoSuchChain(chain.clone()));
    }
    TableOwner::of_chain(tables, chain)?
        .map_or(Ok(()), |owner| Err(TableError::OwnedTable { chain: chain.clone(), owner }))
}

/// Finds the accept rule.
pub(super) fn find(tables: &mut Tables, chain: &Chain, mark: Mark) -> Result<Place, Error> {
    Ok(Found::read(tables, chain)?.place(mark))
}

/// Puts the accept rule at the top, unless it is there already. Returns its previous position.
pub(super) fn ensure(tables: &mut Tables, chain: &Chain, mark: Mark) -> Result<Place, TableError> {
    let found = Found::read(tables, chain)?;
    let place = found.place(mark);
    if place == Place::Elsewhere {
        // The new rule is added before the old ones are removed, so that there always is a rule.
        let inserted = tables.insert_rule(table(chain), chain.chain(), &comment(mark), &rule(found.manager, mark));
        if let Err(Error { cause: Cause::Refused(Errno::PERM), .. }) = inserted {
            // The table may have got an owner since the start.
            check(tables, chain)?;
        }
        inserted?;
        remove_rules(tables, chain, &found.rules)?;
    }
    Ok(place)
}

pub(super) fn remove(tables: &mut Tables, chain: &Chain) -> Result<(), Error> {
    let old = rules(tables, chain)?;
    remove_rules(tables, chain, &old)
}

/// Removes the accept rules from all chains but these: the policy of an earlier run may have named other chains.
pub(super) fn remove_elsewhere(tables: &mut Tables, named: &[Chain]) -> Result<(), Error> {
    for family in [Family::Inet, Family::Ip, Family::Ip6] {
        for (name, rule) in tables.rules_everywhere(family)? {
            let at = Table { family, name: &name };
            let is_named = |chain: &Chain| table(chain) == at && chain.chain() == &*rule.chain;
            if is_ours(&rule) && !named.iter().any(is_named) {
                tables.remove_rule(at, &rule)?;
            }
        }
    }
    Ok(())
}

pub(super) fn table(chain: &Chain) -> Table<'_> {
    let family = match chain.family() {
        ChainFamily::Inet => Family::Inet,
        ChainFamily::Ip => Family::Ip,
        ChainFamily::Ip6 => Family::Ip6,
    };
    Table { family, name: chain.table() }
}

fn remove_rules(tables: &mut Tables, chain: &Chain, rules: &[Rule]) -> Result<(), Error> {
    rules.iter().filter(|rule| is_ours(rule)).try_for_each(|rule| tables.remove_rule(table(chain), rule).map(drop))
}

fn rules(tables: &mut Tables, chain: &Chain) -> Result<Vec<Rule>, Error> {
    let mut rules = tables.rules(table(chain))?;
    rules.retain(|rule| &*rule.chain == chain.chain());
    Ok(rules)
}

pub(super) fn is_ours(rule: &Rule) -> bool {
    rule.comment.as_deref().is_some_and(|comment| comment.starts_with(COMMENT))
}

fn comment(mark: Mark) -> String {
    format!("{COMMENT}, mark {mark}")
}

/// The accept rule, for administrators who write it themselves. It accepts the first packet of a data connection; the host's
/// own rules have to accept established connections.
///
/// A data connection that conntrack expects is `related`; otherwise it is `new`. Without `ct state` the rule would accept
/// forged packets of a control connection that is marked as read.
pub fn own_rule(mark: Mark) -> String {
    format!("ct state new,related ct mark & {mark} == {mark} accept")
}

/// The same rule, as the end of a command of iptables.
pub fn own_iptables_rule(mark: Mark) -> String {
    format!("-m conntrack --ctstate NEW,RELATED -m connmark --mark {mark}/{mark} -j ACCEPT")
}

/// The rule that an administrator has to write, for a host with or without tables of iptables.
pub fn own_rule_for(mark: Mark, has_iptables: bool) -> String {
    let nft = own_rule(mark);
    if has_iptables {
        format!("`iptables -I CHAIN 1 {}` (in a table of nft: `{nft}`)", own_iptables_rule(mark))
    } else {
        format!("`{nft}`")
    }
}

/// The same rule, with a counter.
fn rule(manager: Manager, mark: Mark) -> Vec<Expression> {
    let states = CtKey::NEW | CtKey::RELATED;
    let condition = match manager {
        Manager::Nft => vec![
            Expression::Ct(CtKey::State),
            Expression::Bitwise(states),
            Expression::CmpNeq(0),
            Expression::Ct(CtKey::Mark),
            Expression::Bitwise(mark.bits()),
            Expression::CmpEq(mark.bits()),
        ],
        Manager::Iptables => {
            vec![Expression::CompatState(states), Expression::CompatMark(mark.bits()), Expression::CompatComment]
        }
    };
    [condition, vec![Expression::Counter, Expression::Accept]].concat()
}
