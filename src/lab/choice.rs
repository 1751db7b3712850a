//! Some of many, that have everything there is: what a slow machine plays instead of all cells of a matrix.

use std::collections::{BTreeSet, HashSet};

/// Of what can be chosen: the group that it belongs to, and all that comes up with it.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) group: usize,
    pub(super) aspects: Vec<String>,
}

/// The places of those that together have each aspect that one of all has. Few of them, in few groups: always the one
/// that adds most is taken, and of several such, one from a group from which one was taken already.
pub(super) fn with_everything(all: &[Candidate]) -> BTreeSet<usize> {
    let (mut chosen, mut groups, mut seen) = (BTreeSet::new(), HashSet::new(), HashSet::new());
    loop {
        let worth = |one: &Candidate| {
            (one.aspects.iter().filter(|aspect| !seen.contains(aspect)).count(), groups.contains(&one.group))
        };
        match all.iter().enumerate().max_by_key(|(_, one)| worth(one)) {
            Some((place, best)) if worth(best).0 > 0 => {
                chosen.insert(place);
                groups.insert(best.group);
                seen.extend(&best.aspects);
            }
            _ => return chosen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(all: &[(usize, &[&str])]) -> Vec<usize> {
        let candidate = |(group, aspects): &(usize, &[&str])| Candidate {
            group: *group,
            aspects: aspects.iter().map(|&aspect| aspect.to_owned()).collect(),
        };
        with_everything(&all.iter().map(candidate).collect::<Vec<_>>()).into_iter().collect()
    }

    #[test]
    fn every_aspect_comes_up_and_nothing_that_adds_none() {
        assert_eq!(choose(&[(0, &["a"]), (0, &["a", "b"]), (1, &["c"]), (1, &["b"])]), [1, 2]);
        assert_eq!(choose(&[]), [0; 0]);
    }

    #[test]
    fn what_is_as_good_comes_from_a_group_that_is_needed_anyway() {
        assert_eq!(choose(&[(0, &["a", "b"]), (1, &["c"]), (0, &["c"])]), [0, 2]);
        assert_eq!(choose(&[(0, &["c"]), (1, &["a", "b"]), (1, &["c"])]), [1, 2]);
    }
}
