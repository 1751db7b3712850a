//! Whether the host has NAT. Only then has the kernel to correct sequence numbers of control connections, which some
//! mechanisms can prepare only with an object that nft cannot write.

use std::fs;

use super::ruleset::TABLE;
use super::{PinholeTable, TableError};
use crate::netfilter::netlink::{ChangeKind, Error, Expression, Object, ObjectKind, TableChange, Tables};

/// The chain that prepares a new control connection.
const CHAIN: &str = "prepare_seqadj";

/// The tables of iptables-legacy, for IPv4 and IPv6.
const LEGACY: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];

/// Whether another table may translate addresses: it has a chain for that.
pub fn has_nat(tables: &mut Tables) -> Result<bool, Error> {
    // A kernel without iptables-legacy has no such file. In the sandbox it cannot be read.
    let is_nat = |path| fs::read_to_string(path).is_ok_and(|names| names.lines().any(|name| name == "nat"));
    Ok(LEGACY.into_iter().any(is_nat) || tables.has_nat_chain_outside(TABLE)?)
}

/// The rule that applies an object, as the mechanism's rules for nft have it.
fn rule(object: Object<'static>) -> Vec<Expression> {
    let object_of = |family| vec![Expression::NfProto, Expression::CmpEqNfProto(family), Expression::Object(object)];
    match object.kind {
        ObjectKind::CtExpectation(family) => object_of(family),
        ObjectKind::CtHelper(_) => vec![Expression::Object(object)],
    }
}

impl PinholeTable {
    /// Whether this change of another table may have brought NAT to a host without it. The next restore looks for it.
    pub(super) fn may_bring_nat(&mut self, change: &TableChange) -> bool {
        let is_own = (TABLE.family, TABLE.name) == (change.family, &*change.table);
        let may_bring = !is_own && !self.is_ready_for_nat() && change.kind == ChangeKind::ChainAdded;
        self.nat_may_have_come |= may_bring;
        may_bring
    }

    /// Whether control connections are prepared for NAT.
    pub(in crate::netfilter) fn is_ready_for_nat(&self) -> bool {
        self.for_nat || self.mechanism_rules.without_nat.is_none()
    }

    /// Has control connections that begin from now on prepared, if the host has NAT by now.
    pub(super) fn prepare_for_nat(&mut self) -> Result<bool, TableError> {
        // Not at every change: until the accept rules are restored, a data connection uses its pinhole up for nothing.
        if !std::mem::take(&mut self.nat_may_have_come) || self.is_ready_for_nat() || !has_nat(&mut self.tables)? {
            return Ok(false);
        }
        self.prepare_connections().map(|()| true)
    }

    /// Has control connections that begin from now on prepared for NAT.
    pub(in crate::netfilter) fn prepare_connections(&mut self) -> Result<(), TableError> {
        let objects = self.mechanism_rules.objects;
        let rules: Vec<_> = objects.iter().copied().map(rule).collect();
        let rules: Vec<&[Expression]> = rules.iter().map(Vec::as_slice).collect();
        self.tables.add_objects(TABLE, objects)?;
        self.tables.refill_chain(TABLE, CHAIN, "", &rules)?;
        self.for_nat = true;
        self.verify()
    }
}
