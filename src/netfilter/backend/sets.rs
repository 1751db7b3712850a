//! The mechanism `sets`: pinholes as elements of nftables sets, in Pinhole's own table.

use super::mechanism::{Backend, Profile};
use crate::core::policy::Mechanism;
use crate::netfilter::table::MechanismRules;

pub const PROFILE: Profile = Profile {
    mechanism: Mechanism::Sets,
    rules: MechanismRules { text: include_str!("../../../rules/sets.nft"), helper: None },
    is_related: false,
    has_helper: false,
};

/// Pinholes in the sets of the table.
#[derive(Debug)]
pub(super) struct Sets;

impl Backend for Sets {
    fn profile(&self) -> &'static Profile {
        &PROFILE
    }
}
