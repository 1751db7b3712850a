//! Chooses a mechanism that works on this host.

use super::mechanism::{Backend, NotPossible, Profile};
use super::native::{self, Native};
use super::sets::{self, Sets};
use crate::core::policy::{Mechanism, Policy};
use crate::netfilter::errors::ErrorCounter;

/// The mechanisms that `auto` tries, in this order. The last one needs nothing but the table.
const BY_PREFERENCE: [Mechanism; 2] = [Mechanism::Native, Mechanism::Sets];

/// A mechanism that works on this host.
#[derive(Clone, Debug)]
pub struct Choice {
    pub profile: &'static Profile,
    pub because: String,
}

/// The mechanism that [`KernelFirewall::install`](super::KernelFirewall::install) would choose. The test changes no
/// existing objects.
pub fn probe(policy: &Policy) -> Result<Choice, NotPossible> {
    let possible = |mechanism| match mechanism {
        Mechanism::Native => native::is_possible(policy).map(|()| &native::PROFILE).map_err(|why| why.to_string()),
        Mechanism::Sets | Mechanism::Auto => Ok(&sets::PROFILE),
    };
    choose(policy.mechanism, possible).map(|(profile, because)| Choice { profile, because })
}

/// Sets up the mechanism that the policy names, or the first one that works. Also returns the reason for the choice.
pub(super) fn set_up(policy: &Policy, errors: &ErrorCounter) -> Result<(Box<dyn Backend>, String), NotPossible> {
    choose(policy.mechanism, |mechanism| match mechanism {
        Mechanism::Native => match Native::set_up(policy, errors.clone()) {
            Ok(native) => Ok(Box::new(native) as Box<dyn Backend>),
            Err(why) => Err(why.to_string()),
        },
        Mechanism::Sets | Mechanism::Auto => Ok(Box::new(Sets)),
    })
}

fn choose<T>(
    wanted: Mechanism,
    mut attempt: impl FnMut(Mechanism) -> Result<T, String>,
) -> Result<(T, String), NotPossible> {
    if wanted != Mechanism::Auto {
        let found = attempt(wanted).map_err(|why| NotPossible { mechanism: wanted, why: why.into() })?;
        return Ok((found, "as the policy says".to_owned()));
    }
    let mut reasons = Vec::new();
    for mechanism in BY_PREFERENCE {
        match attempt(mechanism) {
            Ok(found) if reasons.is_empty() => return Ok((found, "as this kernel can".to_owned())),
            Ok(found) => return Ok((found, reasons.join("; "))),
            Err(why) => reasons.push(format!("not {mechanism}: {why}")),
        }
    }
    Err(NotPossible { mechanism: wanted, why: reasons.join("; ").into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(wanted: Mechanism, is_possible: bool) -> Result<(Mechanism, String), NotPossible> {
        choose(wanted, |mechanism| match mechanism {
            Mechanism::Native if !is_possible => Err("it is broken".to_owned()),
            mechanism => Ok(mechanism),
        })
    }

    #[test]
    fn auto_takes_the_first_mechanism_that_works_and_says_why() {
        let as_said = |mechanism, because: &str| Ok((mechanism, because.to_owned()));
        assert_eq!(chosen(Mechanism::Auto, true), as_said(Mechanism::Native, "as this kernel can"));
        assert_eq!(chosen(Mechanism::Auto, false), as_said(Mechanism::Sets, "not native: it is broken"));
    }

    #[test]
    fn named_mechanism_is_taken_or_refused() {
        assert_eq!(chosen(Mechanism::Sets, true), Ok((Mechanism::Sets, "as the policy says".to_owned())));
        let refused = chosen(Mechanism::Native, false).expect_err("it is broken").to_string();
        assert_eq!(refused, "`mechanism: native` is not possible: it is broken; `mechanism: auto` falls back to sets");
    }
}
