//! The mechanism `sets`: pinholes as elements of nftables sets, in Pinhole's own table.

use super::mechanism::{Backend, Profile};
use crate::core::policy::Mechanism;
use crate::netfilter::netlink::{Family, Object, ObjectKind};
use crate::netfilter::table::MechanismRules;

pub const PROFILE: Profile = Profile {
    mechanism: Mechanism::Sets,
    rules: MechanismRules {
        text: include_str!("../../../rules/sets.nft"),
        objects: &[
            Object { name: "no_expectation4", kind: ObjectKind::CtExpectation(Family::Ip) },
            Object { name: "no_expectation6", kind: ObjectKind::CtExpectation(Family::Ip6) },
        ],
        unprepared: Some(include_str!("../../../rules/sets_unprepared.nft")),
    },
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
