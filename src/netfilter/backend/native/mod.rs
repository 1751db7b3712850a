//! The mechanism `native`: pinholes as conntrack expectations, like those of the kernel's own FTP helper.
//!
//! An expected connection is `related` to the control connection that announced it, so rulesets that accept
//! `related` need no change. The expectation also holds the NAT of its connection: the addresses of the control
//! connection. The few pinholes that cannot be expectations are in the sets of the table, as with the mechanism `sets`.

mod counts;
mod helper;

use std::hash::RandomState;
use std::net::IpAddr;
use std::time::Duration;

use hashbrown::HashSet;
use rustix::io::Errno;

use counts::ExpectationCounts;
pub use helper::HelperError;
use helper::{NAME, Registration};

use super::mechanism::{Backend, NotPossible, Profile};
use crate::core::expectation::{Expectation, Mapping};
use crate::core::kernel::NotOpened;
use crate::core::net::{Connection, Endpoint, Flow};
use crate::core::policy::{ControlPorts, Mechanism, Policy};
use crate::netfilter::REPLY_TIMEOUT;
use crate::netfilter::errors::ErrorCounter;
use crate::netfilter::netlink::{
    Cause, Conntrack, CtExpectation, Error, ExpectationNat, Expectations, MAX_EXPECTATIONS, Object, ObjectKind,
    Operation,
};
use crate::netfilter::table::{MechanismRules, Pinhole, PinholeTable};

pub const PROFILE: Profile = Profile {
    mechanism: Mechanism::Native,
    rules: MechanismRules {
        text: include_str!("../../../../rules/native.nft"),
        objects: &[Object { name: NAME, kind: ObjectKind::CtHelper(NAME) }],
        unprepared: None,
    },
    is_related: true,
    has_helper: true,
};

/// Pinholes as conntrack expectations.
#[derive(Debug)]
pub(super) struct Native {
    expectations: Expectations,
    conntrack: Conntrack,
    registration: Registration,
    /// The number of expectations of each control connection.
    counts: ExpectationCounts,
    /// Pinholes that are in the sets, perhaps in addition to an expectation.
    in_sets: HashSet<(IpAddr, Endpoint), RandomState>,
    errors: ErrorCounter,
}

/// Tests whether this kernel supports the mechanism. Registers the helper for a moment; does not change an existing
/// helper.
pub fn is_possible(policy: &Policy) -> Result<(), HelperError> {
    if Registration::exists()? {
        return Ok(helper::dry_run(&mut Conntrack::open(REPLY_TIMEOUT)?, &mut Expectations::open(REPLY_TIMEOUT)?)?);
    }
    Native::set_up(policy, ErrorCounter::default())?.registration.remove()?;
    Ok(())
}

impl Native {
    /// Registers the helper, and tests it with one expectation.
    pub(super) fn set_up(policy: &Policy, errors: ErrorCounter) -> Result<Self, HelperError> {
        let mut native = Self {
            expectations: Expectations::open(REPLY_TIMEOUT)?,
            conntrack: Conntrack::open(REPLY_TIMEOUT)?,
            registration: Registration::new(policy)?,
            counts: ExpectationCounts::default(),
            in_sets: HashSet::default(),
            errors,
        };
        if let Err(error) = helper::dry_run(&mut native.conntrack, &mut native.expectations) {
            // The error of the test is more important than that of the cleanup.
            let _ = native.registration.remove();
            return Err(error.into());
        }
        Ok(native)
    }

    /// The expectations of control connections. No other program has a helper of this name. A control connection that
    /// lost the helper, because Pinhole was stopped and started again, has no expectation.
    fn expected(&mut self, ports: &ControlPorts) -> Result<Vec<CtExpectation>, Error> {
        let mut all = self.expectations.list()?;
        all.retain(|one| {
            let is_ours = one.helper.as_deref().is_none_or(|name| name == NAME);
            is_ours && ports.contains(one.master.destination.port)
        });
        Ok(all)
    }

    /// The NAT of an expected connection: see [`follows`].
    fn mapping(&mut self, expected: &CtExpectation) -> Result<Mapping, Error> {
        let Some(translated) = expected.nat else { return Ok(Mapping::NONE) };
        let Some(entry) = self.conntrack.find(&expected.master)? else { return Ok(Mapping::NONE) };
        let (from, to) = followed(&entry.connection, translated.is_original);
        let to = Endpoint::new(to, translated.port);
        Ok(Mapping { to: (to != expected.to).then_some(to), from: (from != expected.from).then_some(from) })
    }

    /// Adds an expectation. Returns false if the pinhole has to be put into the sets instead: a maximum is reached, or this
    /// control connection cannot have expectations.
    fn expect(&mut self, policy: &Policy, expectation: &Expectation, of: &Connection) -> Result<bool, NotOpened> {
        let Expectation { from, to, lifetime, .. } = *expectation;
        let key = (from, to);
        if !self.counts.may_add(&key, &of.original) {
            let object = format_args!("expectation {from} -> {to} beside {MAX_EXPECTATIONS} of its session");
            self.not_expected(policy, &Error::new(Operation::Add, object, Cause::Refused(Errno::NFILE)));
            return Ok(false);
        }
        let translated = if expectation.mapping.is_none() { None } else { follows(expectation, of) };
        let expected =
            CtExpectation { master: of.original, from, to, nat: translated, timeout: lifetime, helper: None };
        let Err(error) = self.expectations.insert(&expected) else {
            self.counts.add(key, of.original);
            return Ok(true);
        };
        self.counts.remove(&key);
        match error.cause {
            // The connection is older than the helper, or is in another conntrack zone.
            Cause::Refused(Errno::OPNOTSUPP | Errno::NOENT | Errno::TIME) => {
                self.not_expected(policy, &error);
                Ok(false)
            }
            // The kernel's maximum of expectations, for all connections together, is reached.
            Cause::Refused(Errno::MFILE) => {
                self.errors.add(&error);
                Ok(false)
            }
            cause => {
                self.errors.add(&error);
                if cause.is_unknown() {
                    // The expectation may have been added: removes it, so that no unknown pinhole stays open.
                    self.errors.ok(self.expectations.remove(from, to));
                }
                Err(NotOpened)
            }
        }
    }

    /// Called if the pinhole is in the sets instead. Counts the error if the policy names no chains in `admit`: then only a
    /// rule for the mark admits the data connection.
    fn not_expected(&self, policy: &Policy, error: &Error) {
        if policy.admit.is_empty() {
            self.errors.add(error);
        }
    }
}

/// The addresses of an expected connection after NAT: its source address, and the address to which it is delivered.
///
/// The kernel takes both from the master (`nf_nat_follow_master`). So a client's data connection reaches the server
/// as the control connection does, and a server's reaches the client as the replies do.
const fn followed(master: &Connection, is_original: bool) -> (IpAddr, IpAddr) {
    let Connection { original, reply } = master;
    let other = if is_original { reply } else { original };
    (other.destination.address, other.source.address)
}

/// The NAT of an expectation, if the kernel's NAT is that of the mapping. `None` if it differs, for example for the host of
/// a third party, whose address is not one of the master's.
fn follows(expectation: &Expectation, of: &Connection) -> Option<ExpectationNat> {
    let target = expectation.target();
    let wanted = (expectation.mapping.from.unwrap_or(expectation.from), target.address);
    [true, false].into_iter().find_map(|is_original| {
        (followed(of, is_original) == wanted).then_some(ExpectationNat { is_original, port: target.port })
    })
}

impl Backend for Native {
    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    /// The table refers to the helper. While the table was gone, another program may have removed the helper as well.
    fn prepare(&mut self, policy: &Policy) -> Result<(), NotPossible> {
        let registered = self.registration.ensure_registered(policy).map(drop);
        registered.map_err(|why| NotPossible { mechanism: PROFILE.mechanism, why: why.to_string().into() })
    }

    fn adopt(&mut self, table: &mut PinholeTable) -> Result<(), Error> {
        self.in_sets = table.pinholes()?.iter().map(|pinhole| (pinhole.from, pinhole.to)).collect();
        for one in self.expected(&table.policy().control_ports)? {
            self.counts.add((one.from, one.to), one.master);
        }
        Ok(())
    }

    fn open(&mut self, table: &mut PinholeTable, pinhole: &Expectation, of: &Connection) -> Result<(), NotOpened> {
        let key = (pinhole.from, pinhole.to);
        table.extend_deadline(pinhole.lifetime)?;
        let is_expected = self.expect(table.policy(), pinhole, of)?;
        // The maps can do NAT that the kernel does not do for an expectation.
        let is_mapped = pinhole.mapping.is_none() || follows(pinhole, of).is_some();
        if is_expected && is_mapped {
            if self.in_sets.remove(&key) {
                table.close(pinhole);
            }
            return Ok(());
        }
        let opened = table.open(pinhole);
        match opened {
            Ok(()) => drop(self.in_sets.insert(key)),
            Err(NotOpened) if is_expected => self.close(table, pinhole),
            Err(NotOpened) => {}
        }
        opened
    }

    fn open_for_syn(&mut self, table: &mut PinholeTable, pinhole: &Expectation) -> Result<(), NotOpened> {
        table.open(pinhole)?;
        self.in_sets.insert((pinhole.from, pinhole.to));
        Ok(())
    }

    fn close(&mut self, table: &mut PinholeTable, pinhole: &Expectation) {
        let Expectation { from, to, .. } = *pinhole;
        self.counts.remove(&(from, to));
        if self.in_sets.remove(&(from, to)) {
            table.close(pinhole);
        }
        self.errors.ok(self.expectations.remove(from, to));
    }

    fn mapping_of(&mut self, table: &mut PinholeTable, from: IpAddr, to: Endpoint) -> Option<Mapping> {
        if self.in_sets.contains(&(from, to))
            && let Some(mapping) = table.mapping_of(from, to)
        {
            return Some(mapping);
        }
        let expected = self.errors.ok(self.expectations.find(from, to))??;
        let mapping = self.mapping(&expected);
        self.errors.ok(mapping)
    }

    /// The first SYN removes the expectation, also if a chain then drops it.
    fn syn_came(&mut self, table: &mut PinholeTable, pinhole: &Expectation) -> bool {
        let Expectation { from, to, .. } = *pinhole;
        if self.in_sets.contains(&(from, to)) && table.syn_came(pinhole) {
            return true;
        }
        self.counts.contains(&(from, to)) && matches!(self.errors.ok(self.expectations.find(from, to)), Some(None))
    }

    fn pinholes(&mut self, table: &mut PinholeTable) -> Result<Vec<Pinhole>, Error> {
        let mut pinholes = table.pinholes()?;
        for expected in self.expected(&table.policy().control_ports)? {
            let CtExpectation { from, to, timeout: time, .. } = expected;
            if !pinholes.iter().any(|pinhole| (pinhole.from, pinhole.to) == (from, to)) {
                let mapping = self.mapping(&expected)?;
                pinholes.push(Pinhole { from, to, mapping, lifetime: time, remaining: time, syn_came: false });
            }
        }
        Ok(pinholes)
    }

    fn used(&mut self, table: &mut PinholeTable, flow: &Flow) {
        let key = (flow.source.address, flow.destination);
        // The kernel itself has removed the expectation.
        self.counts.remove(&key);
        if self.in_sets.remove(&key) {
            table.used(flow);
        }
    }

    /// Expectations are never lost with the table.
    fn is_in_sets(&self, pinhole: &Expectation) -> bool {
        self.in_sets.contains(&(pinhole.from, pinhole.to))
    }

    fn close_all(&mut self, table: &PinholeTable) -> Result<(), Error> {
        let expected = self.expected(&table.policy().control_ports)?;
        expected.iter().try_for_each(|one| self.expectations.remove(one.from, one.to).map(drop))
    }

    /// Removes the helper, unless a ruleset refers to it.
    fn remove(&mut self, within: Duration) -> Result<Option<&'static str>, Error> {
        let is_gone = self.registration.remove_within(within)?;
        Ok((!is_gone).then_some("the helper `ftp` stays, because a ruleset names it: your own, or another Pinhole's"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::net::Port;
    use crate::core::time::Timestamp;

    fn endpoint(text: &str) -> Endpoint {
        let address: std::net::SocketAddr = text.parse().expect("an address");
        Endpoint::new(address.ip(), Port::new(address.port()).expect("a port"))
    }

    fn flow(source: &str, destination: &str) -> Flow {
        Flow { source: endpoint(source), destination: endpoint(destination) }
    }

    fn expectation(from: &str, to: &str, mapping: Mapping) -> Expectation {
        let lifetime = Duration::from_secs(60);
        let from = from.parse().expect("an address");
        Expectation { from, to: endpoint(to), since: Timestamp::from_secs(1), lifetime, mapping }
    }

    /// Both ends are behind NAT: the client shows 198.51.100.1, the server 203.0.113.1.
    fn both() -> Connection {
        Connection {
            original: flow("10.0.0.1:4000", "203.0.113.1:21"),
            reply: flow("10.9.0.5:21", "198.51.100.1:61000"),
        }
    }

    #[test]
    fn passive_connection_has_the_nat_of_the_original_direction() {
        let mapping =
            Mapping { to: Some(endpoint("10.9.0.5:40000")), from: Some("198.51.100.1".parse().expect("an address")) };
        let passive = expectation("10.0.0.1", "203.0.113.1:50000", mapping);
        let port = Port::new(40_000).expect("a port");
        assert_eq!(follows(&passive, &both()), Some(ExpectationNat { is_original: true, port }));
    }

    #[test]
    fn active_connection_has_the_nat_of_the_reply_direction() {
        let mapping =
            Mapping { to: Some(endpoint("10.0.0.1:40001")), from: Some("203.0.113.1".parse().expect("an address")) };
        let active = expectation("10.9.0.5", "198.51.100.1:50000", mapping);
        let port = Port::new(40_001).expect("a port");
        assert_eq!(follows(&active, &both()), Some(ExpectationNat { is_original: false, port }));
    }

    #[test]
    fn untranslated_end_keeps_its_address() {
        let masqueraded = Connection {
            original: flow("10.0.0.1:4000", "203.0.113.1:21"),
            reply: flow("203.0.113.1:21", "198.51.100.1:61000"),
        };
        let from = Some("198.51.100.1".parse().expect("an address"));
        let passive = expectation("10.0.0.1", "203.0.113.1:50000", Mapping { to: None, from });
        let port = Port::new(50_000).expect("a port");
        assert_eq!(follows(&passive, &masqueraded), Some(ExpectationNat { is_original: true, port }));
        let mapping = Mapping { to: Some(endpoint("10.0.0.1:50000")), from: None };
        let active = expectation("203.0.113.1", "198.51.100.1:50000", mapping);
        assert_eq!(follows(&active, &masqueraded), Some(ExpectationNat { is_original: false, port }));
    }

    #[test]
    fn third_party_has_no_expectation() {
        let from = Some("203.0.113.1".parse().expect("an address"));
        let elsewhere = expectation("10.9.0.5", "192.0.2.9:50000", Mapping { to: None, from });
        assert_eq!(follows(&elsewhere, &both()), None);
    }
}
