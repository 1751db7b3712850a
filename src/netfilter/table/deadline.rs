//! The time after which the table admits no data connection.
//!
//! `nft list ruleset` also prints pinholes, and nft loads them with the rest of their timeouts: perhaps after a boot, or on
//! another host. So the chain `after_deadline` compares the time of day with the deadline, a little later than the last
//! timeout. The comment of its one rule has the deadline as a number, for the next run.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::elements::{REMOVED_TOGETHER, SETS};
use super::ruleset::TABLE;
use super::{PinholeTable, TableError};
use crate::core::kernel::NotOpened;
use crate::netfilter::netlink::{Error, Expression, Rule, Tables};

pub(super) const CHAIN: &str = "after_deadline";
const COMMENT: &str = "pinhole: admits no data connection after Unix time ";
/// How much later than necessary a deadline is, so that not every pinhole needs a new one.
const RESERVE: Duration = Duration::from_secs(5);

/// Seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Deadline(u64);

impl Deadline {
    fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }

    /// At least `time` after this one: seconds are rounded up.
    const fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time.as_secs()).saturating_add(2))
    }

    fn comment(self) -> String {
        format!("{COMMENT}{}", self.0)
    }

    fn of_rule(rule: &Rule) -> Option<Self> {
        rule.comment.as_deref()?.strip_prefix(COMMENT)?.parse().ok().map(Self)
    }

    /// `meta time >= … accept`: an accept without the mark.
    const fn rule(self) -> [Expression; 4] {
        let nanoseconds = self.0.saturating_mul(1_000_000_000);
        [Expression::Time, Expression::ToBigEndian, Expression::CmpGte(nanoseconds), Expression::Accept]
    }

    /// Writes its rule. Adds the table and the chain if they do not exist.
    pub(super) fn install(self, tables: &mut Tables) -> Result<(), Error> {
        tables.fill_chain(TABLE, CHAIN, &self.comment(), &self.rule())
    }
}

/// The deadline of the table in the kernel; `None` if its chain does not have exactly the one rule.
pub(super) fn of_table(rules: &[Rule]) -> Option<Deadline> {
    let mut rules = rules.iter().filter(|rule| &*rule.chain == CHAIN);
    rules.next().and_then(Deadline::of_rule).filter(|_| rules.next().is_none())
}

/// The deadline with which to install the table. If the table in the kernel is past its deadline, it was loaded from a saved
/// ruleset, and its pinholes are removed.
pub(super) fn adopt(tables: &mut Tables) -> Result<Deadline, TableError> {
    let now = Deadline::now();
    let found = of_table(&tables.rules(TABLE)?);
    if let Some(deadline) = found.filter(|deadline| *deadline > now) {
        return Ok(deadline);
    }
    let mut longest = Duration::ZERO;
    for set in SETS.into_iter().flatten() {
        // A table of another version may lack this set.
        let elements = tables.elements(TABLE, set).unwrap_or_default();
        if found.is_none() {
            longest = elements.iter().filter_map(|one| one.expiration.or(one.timeout)).fold(longest, Duration::max);
            continue;
        }
        let stale: Vec<_> = elements.into_iter().map(|one| (set, one)).collect();
        stale.chunks(REMOVED_TOGETHER).try_for_each(|some| tables.exchange(TABLE, some, &[]))?;
    }
    Ok(if longest.is_zero() { now } else { now.after(longest) })
}

impl PinholeTable {
    /// Makes sure that a pinhole that opens now admits for so long.
    pub(in crate::netfilter) fn extend_deadline(&mut self, lifetime: Duration) -> Result<(), NotOpened> {
        let needed = Deadline::now().after(lifetime);
        if needed <= self.deadline {
            return Ok(());
        }
        let deadline = needed.after(RESERVE);
        let (comment, rule) = (deadline.comment(), deadline.rule());
        match self.tables.refill_chain(TABLE, CHAIN, &comment, &[&rule]) {
            // The table is restored from its image, before the pinhole opens.
            Err(error) if !error.cause.is_missing() => {
                self.errors.add(&error);
                return Err(NotOpened);
            }
            Ok(()) | Err(_) => {}
        }
        self.image.fill_chain(TABLE, CHAIN, &comment, &rule);
        self.deadline = deadline;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::netlink::XtParts;

    fn rule(chain: &str, comment: &str) -> Rule {
        Rule {
            chain: chain.into(),
            handle: 1,
            comment: Some(comment.into()),
            is_readable_by_iptables: false,
            has_counter: false,
            xt: XtParts::default(),
        }
    }

    #[test]
    fn comment_of_the_rule_has_the_deadline() {
        let deadline = Deadline(1_795_669_200);
        assert_eq!(of_table(&[rule("admit", "x"), rule(CHAIN, &deadline.comment())]), Some(deadline));
        assert_eq!(of_table(&[rule(CHAIN, &deadline.comment()), rule(CHAIN, "another program's")]), None);
        assert_eq!(of_table(&[rule(CHAIN, "pinhole: admits no data connection after Unix time soon")]), None);
        assert_eq!(of_table(&[rule("admit", &deadline.comment())]), None);
    }

    #[test]
    fn deadline_is_never_before_the_end_of_a_pinhole() {
        let now = Deadline(1000);
        // The clock may be almost a second further than its number of seconds.
        assert!(now.after(Duration::from_millis(60_999)) >= Deadline(1062));
        assert!(now.after(Duration::MAX) > now);
    }
}
