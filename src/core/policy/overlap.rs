//! Finds rules that shadow or cross each other.
//!
//! The first rule that matches decides. So a rule is dead if an earlier rule matches all that it could match, and
//! depends on its position if an earlier rule matches a part of that.

use super::keys::Rule;

/// What an earlier rule does to a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RuleOverlap {
    /// The rule at that index takes everything.
    Unreachable { by: usize },
    /// The rule at that index takes a part, and has a part of its own; so do `others` more.
    Crossing { with: usize, others: usize },
}

/// The overlaps, each with the index of the later rule; at most one for each rule.
pub(super) fn overlaps(rules: &[Rule]) -> Vec<(usize, RuleOverlap)> {
    let of = |later: usize| {
        let rule = &rules[later];
        let earlier = || rules[..later].iter().enumerate();
        if let Some((by, _)) = earlier().find(|(_, earlier)| takes_all_of(earlier, rule)) {
            return Some(RuleOverlap::Unreachable { by });
        }
        // Where both say the same it does not matter which one decides.
        let mut crossing = earlier().filter(|(_, e)| meets(e, rule) && !takes_all_of(rule, e) && e.terms != rule.terms);
        let (with, _) = crossing.next()?;
        Some(RuleOverlap::Crossing { with, others: crossing.count() })
    };
    (1..rules.len()).filter_map(|later| Some((later, of(later)?))).collect()
}

fn takes_all_of(one: &Rule, other: &Rule) -> bool {
    one.clients.covers(&other.clients) && one.servers.covers(&other.servers)
}

fn meets(one: &Rule, other: &Rule) -> bool {
    one.clients.overlaps(&other.clients) && one.servers.overlaps(&other.servers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::policy::hosts::Hosts;
    use crate::core::policy::keys::Terms;
    use crate::core::policy::terms::Action;

    fn rule(clients: &[&str], servers: &[&str], action: Action) -> Rule {
        let hosts = |list: &[&str]| Hosts::new(list.iter().map(|text| text.parse().expect("a network")).collect());
        Rule {
            name: "a rule".into(),
            clients: hosts(clients),
            servers: hosts(servers),
            terms: Terms { action, ..Terms::default() },
        }
    }

    #[test]
    fn rule_after_a_wider_one_is_never_reached() {
        let rules = [
            rule(&["10.0.0.0/8"], &[], Action::Allow),
            rule(&["10.1.0.0/16"], &["192.0.2.1"], Action::Deny),
            rule(&["11.0.0.0/8"], &[], Action::Allow),
        ];
        assert_eq!(overlaps(&rules), [(1, RuleOverlap::Unreachable { by: 0 })]);
    }

    #[test]
    fn narrower_rule_before_a_wider_one_is_no_clash() {
        let rules = [rule(&["10.1.0.0/16"], &["192.0.2.1"], Action::Deny), rule(&["10.0.0.0/8"], &[], Action::Allow)];
        assert_eq!(overlaps(&rules), []);
    }

    #[test]
    fn partly_overlapping_rules_cross() {
        let rules = [
            rule(&["10.0.0.0/8"], &[], Action::Allow),
            rule(&[], &["192.0.2.1"], Action::Deny),
            rule(&[], &["192.0.2.0/24"], Action::Allow),
        ];
        // The third contains the second and crosses the first, but says the same as the first.
        assert_eq!(overlaps(&rules), [(1, RuleOverlap::Crossing { with: 0, others: 0 })]);
    }

    #[test]
    fn disjoint_rules_do_not_cross() {
        let rules =
            [rule(&["10.0.0.0/8"], &["192.0.2.1"], Action::Allow), rule(&["10.0.0.0/9"], &["::1"], Action::Deny)];
        assert_eq!(overlaps(&rules), []);
    }
}
