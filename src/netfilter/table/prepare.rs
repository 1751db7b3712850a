//! Whether control connections need the helper extension: for NAT, so that the kernel can correct their sequence numbers,
//! or because of a flowtable, which takes no connection with that extension. Some mechanisms can add it only with an
//! object that nft cannot write.

use std::fmt;
use std::fs;

use super::ruleset::TABLE;
use super::{PinholeTable, TableError};
use crate::netfilter::netlink::{ChangeKind, Error, Expression, Object, ObjectKind, TableChange, Tables};

/// The chain that prepares a new control connection.
const CHAIN: &str = "prepare_seqadj";

/// The tables of iptables-legacy, for IPv4 and IPv6.
const LEGACY: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];

/// Why control connections are prepared: what another table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preparation {
    /// A chain that may translate addresses.
    Nat,
    /// A flowtable, which forwards packets of established connections without any chain but that of its hook `ingress`.
    Flowtable,
}

impl fmt::Display for Preparation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nat => "chain for NAT",
            Self::Flowtable => "flowtable",
        })
    }
}

/// Why control connections need preparation on this host, if they do.
pub fn preparation(tables: &mut Tables) -> Result<Option<Preparation>, Error> {
    // A kernel without iptables-legacy has no such file. In the sandbox it cannot be read.
    let is_nat = |path| fs::read_to_string(path).is_ok_and(|names| names.lines().any(|name| name == "nat"));
    if LEGACY.into_iter().any(is_nat) || tables.has_nat_chain_outside(TABLE)? {
        return Ok(Some(Preparation::Nat));
    }
    Ok(tables.has_flowtable_outside(TABLE)?.then_some(Preparation::Flowtable))
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
    /// Whether this change of another table may have brought NAT or a flowtable to a host without. The next restore looks
    /// for them.
    pub(super) fn notes_preparation(&mut self, change: &TableChange) -> bool {
        let is_own = (TABLE.family, TABLE.name) == (change.family, &*change.table);
        let is_added = matches!(change.kind, ChangeKind::ChainAdded | ChangeKind::FlowtableAdded);
        let may_need = !is_own && !self.prepares_connections() && is_added;
        self.may_need_preparation |= may_need;
        may_need
    }

    /// Whether control connections are prepared for NAT and flowtables.
    pub(in crate::netfilter) fn prepares_connections(&self) -> bool {
        self.prepares || self.mechanism_rules.unprepared.is_none()
    }

    /// Has control connections that begin from now on prepared, if the host needs that by now. Returns why.
    pub(super) fn prepare_if_needed(&mut self) -> Result<Option<Preparation>, TableError> {
        // Not at every change: until the accept rules are restored, a data connection uses its pinhole up for nothing.
        if !std::mem::take(&mut self.may_need_preparation) || self.prepares_connections() {
            return Ok(None);
        }
        let reason = preparation(&mut self.tables)?;
        if reason.is_some() {
            self.prepare_connections()?;
        }
        Ok(reason)
    }

    /// Has control connections that begin from now on prepared.
    pub(in crate::netfilter) fn prepare_connections(&mut self) -> Result<(), TableError> {
        let objects = self.mechanism_rules.objects;
        let rules: Vec<_> = objects.iter().copied().map(rule).collect();
        let rules: Vec<&[Expression]> = rules.iter().map(Vec::as_slice).collect();
        self.tables.add_objects(TABLE, objects)?;
        self.tables.refill_chain(TABLE, CHAIN, "", &rules)?;
        self.prepares = true;
        self.verify()
    }
}
