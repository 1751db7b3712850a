//! One rule: the clients and servers to which it applies, and its terms.

use super::hosts::Hosts;
use super::terms::{Action, Terms};

/// A rule of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What people call it; no two rules have the same name.
    pub name: Box<str>,
    /// The clients that it is about.
    pub clients: Hosts,
    /// The servers that it is about.
    pub servers: Hosts,
    /// The terms for those: the policy's defaults with the rule's own laid over.
    pub terms: Terms,
}

impl Rule {
    /// Whether it lets announcements through at all.
    pub const fn action(&self) -> Action {
        self.terms.action
    }
}

/// Which terms hold between two hosts; cheap to keep in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleId(u16);

impl RuleId {
    /// No rule matched: the defaults hold.
    pub const DEFAULTS: Self = Self(u16::MAX);

    pub(super) fn of(index: usize) -> Self {
        // A policy has at most `MAX_RULES` rules, far below the number that stands for the defaults.
        u16::try_from(index).map_or(Self::DEFAULTS, Self)
    }

    pub(super) fn index(self) -> Option<usize> {
        (self != Self::DEFAULTS).then_some(usize::from(self.0))
    }
}
