//! Chooses cells of a matrix so that every value of every dimension occurs, for a slow machine that cannot run all
//! cells.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashSet};

/// A candidate: its group, the aspects that it covers, and aspects that are only preferred.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) group: usize,
    pub(crate) aspects: Vec<String>,
    pub(crate) extras: Vec<String>,
}

/// The positions of few candidates, from few groups, that together cover every aspect. Each step takes the candidate
/// that adds most aspects; of several such, one from a group that is already used; of several such, the first with most
/// new extras.
pub(crate) fn covering_choice(all: &[Candidate]) -> BTreeSet<usize> {
    let (mut chosen, mut groups, mut seen) = (BTreeSet::new(), HashSet::new(), HashSet::new());
    loop {
        let worth = |one: &Candidate| {
            let new = |of: &[String]| of.iter().filter(|name| !seen.contains(*name)).count();
            (new(&one.aspects), groups.contains(&one.group), new(&one.extras))
        };
        match all.iter().enumerate().max_by_key(|(place, one)| (worth(one), Reverse(*place))) {
            Some((place, best)) if worth(best).0 > 0 => {
                chosen.insert(place);
                groups.insert(best.group);
                seen.extend(best.aspects.iter().chain(&best.extras).cloned());
            }
            _ => return chosen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(all: &[(usize, &[&str])]) -> Vec<usize> {
        let all: Vec<_> = all.iter().map(|(group, aspects)| (*group, *aspects, &[][..])).collect();
        choose_with_extras(&all)
    }

    fn choose_with_extras(all: &[(usize, &[&str], &[&str])]) -> Vec<usize> {
        let names = |of: &[&str]| of.iter().map(|&name| name.to_owned()).collect();
        let candidate = |(group, aspects, extras): &(usize, &[&str], &[&str])| Candidate {
            group: *group,
            aspects: names(aspects),
            extras: names(extras),
        };
        covering_choice(&all.iter().map(candidate).collect::<Vec<_>>()).into_iter().collect()
    }

    #[test]
    fn every_aspect_is_covered_without_useless_candidates() {
        assert_eq!(choose(&[(0, &["a"]), (0, &["a", "b"]), (1, &["c"]), (1, &["b"])]), [1, 2]);
        assert_eq!(choose(&[]), [0; 0]);
    }

    #[test]
    fn equal_candidates_of_a_chosen_group_come_first() {
        assert_eq!(choose(&[(0, &["a", "b"]), (1, &["c"]), (0, &["c"])]), [0, 2]);
        assert_eq!(choose(&[(0, &["c"]), (1, &["a", "b"]), (1, &["c"])]), [1, 2]);
    }

    #[test]
    fn extras_decide_only_between_equal_candidates() {
        assert_eq!(choose_with_extras(&[(0, &["a"], &["x"]), (1, &["a"], &["x", "y"]), (1, &["a"], &["z"])]), [1]);
        assert_eq!(choose_with_extras(&[(0, &["a"], &["x"]), (1, &["b"], &["x"]), (2, &["b"], &["y"])]), [0, 2]);
        assert_eq!(choose_with_extras(&[(0, &["a"], &[]), (1, &["a"], &[])]), [0]);
    }
}
