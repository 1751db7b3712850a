//! The mechanism `native`: pinholes as conntrack expectations, like those of the kernel's own FTP helper.
//!
//! An expected connection is `related` to the control connection that announced it, so rulesets that accept
//! `related` need no change. The expectation also holds the NAT of its connection: the addresses of the control
//! connection. The capture, the marks and the rest of the table `inet pinhole` are those of [`Sets`]; its sets hold
//! the few pinholes that cannot be expectations.

mod counts;
mod helper;

use std::hash::RandomState;
use std::net::IpAddr;

use hashbrown::HashSet;
use rustix::io::Errno;

use counts::ExpectationCounts;
pub use helper::Unavailable;
use helper::{NAME, Registration};

use crate::core::expectation::{Expectation, Mapping, PortRangePinhole};
use crate::core::kernel::{Control, Firewall, LookupFailed, NotOpened, Progress};
use crate::core::net::{Connection, Direction, Endpoint, Flow, Seq};
use crate::core::policy::Policy;
use crate::core::seqadj::{Adjustment, NotAdjusted};
use crate::core::time::Timestamp;
use crate::core::tracker::ExistingState;
use crate::netfilter::REPLY_TIMEOUT;
use crate::netfilter::netlink::{
    Cause, Conntrack, Error, Expectations, Expected, MOST_EXPECTATIONS, Operation, Translated,
};
use crate::netfilter::table::{Holder, Pinhole, Restored, Sets, SetupError};

/// Pinholes as conntrack expectations.
#[derive(Debug)]
pub struct Native {
    /// The table, and the pinholes in its sets.
    pub(super) sets: Sets,
    expectations: Expectations,
    registration: Registration,
    /// The number of expectations of each control connection.
    counts: ExpectationCounts,
    /// The pinholes that are in the sets (too).
    in_sets: HashSet<(IpAddr, Endpoint), RandomState>,
}

/// A registered helper that passed the test, to be used or [removed](Ready::withdraw).
#[derive(Debug)]
pub(super) struct Ready {
    expectations: Expectations,
    registration: Registration,
}

impl Ready {
    /// Tests whether this kernel can hold pinholes, by having it hold one.
    pub(super) fn new(policy: &Policy) -> Result<Self, Unavailable> {
        let mut ready =
            Self { expectations: Expectations::open(REPLY_TIMEOUT)?, registration: Registration::new(policy)? };
        let mut conntrack = Conntrack::open(REPLY_TIMEOUT)?;
        if let Err(error) = helper::dry_run(&mut conntrack, &mut ready.expectations) {
            // The reason why it does not work matters more than a failed cleanup.
            let _ = ready.registration.remove();
            return Err(error.into());
        }
        Ok(ready)
    }

    /// Removes the helper again, unless it is in use.
    pub(super) fn withdraw(mut self) -> Result<bool, Error> {
        self.registration.remove()
    }
}

/// Whether this kernel could hold the pinholes. The test registers the helper for a moment; an existing one is left
/// as it is.
pub fn is_possible(policy: &Policy) -> Result<(), Unavailable> {
    if Registration::exists()? {
        return Ok(helper::dry_run(&mut Conntrack::open(REPLY_TIMEOUT)?, &mut Expectations::open(REPLY_TIMEOUT)?)?);
    }
    Ready::new(policy)?.withdraw()?;
    Ok(())
}

impl Native {
    /// Installs the table for a policy. Pinholes of an earlier run stay open.
    pub(super) fn install(policy: &Policy, ready: Ready) -> Result<Self, SetupError> {
        let mut sets = match Sets::install_for(policy, Holder::Conntrack) {
            Ok(sets) => sets,
            Err(error) => {
                // The first error has to be reported.
                let _ = ready.withdraw();
                return Err(error);
            }
        };
        let in_sets = sets.pinholes()?.iter().map(|pinhole| (pinhole.from, pinhole.to)).collect();
        let Ready { expectations, registration } = ready;
        let mut native = Self { sets, expectations, registration, counts: ExpectationCounts::default(), in_sets };
        for one in native.expected()? {
            native.counts.add((one.from, one.to), one.master);
        }
        Ok(native)
    }

    /// Exchanges the table for another policy. After an error, the old policy stays in force.
    pub(super) fn reload(&mut self, policy: &Policy) -> Result<(), SetupError> {
        self.registration.ensure_registered(policy)?;
        self.sets.reload(policy)
    }

    /// Restores what is missing. Expectations never are: they do not depend on the table.
    pub(super) fn restore<'a>(
        &mut self,
        now: Timestamp,
        standing: impl Iterator<Item = &'a Expectation>,
    ) -> Result<Restored, SetupError> {
        // The table refers to the helper. While the table was gone, another program may have removed the helper as
        // well.
        self.registration.ensure_registered(&self.sets.policy)?;
        let in_sets = &self.in_sets;
        self.sets.restore(now, standing.filter(|pinhole| in_sets.contains(&(pinhole.from, pinhole.to))))
    }

    /// Removes everything that was installed. Returns whether the helper is gone, too: a ruleset that refers to it
    /// keeps it.
    pub(super) fn remove(&mut self) -> Result<bool, SetupError> {
        // Removing the table does not remove expectations.
        let standing = self.expected();
        let closed = standing
            .and_then(|all| all.iter().try_for_each(|one| self.expectations.forget(one.from, one.to).map(drop)));
        let removed = self.sets.remove();
        let is_gone = self.registration.remove_behind_table();
        closed?;
        removed?;
        Ok(is_gone?)
    }

    /// The pinholes in the kernel.
    pub(super) fn pinholes(&mut self) -> Result<Vec<Pinhole>, Error> {
        let mut pinholes = self.sets.pinholes()?;
        for expected in self.expected()? {
            let Expected { from, to, time, .. } = expected;
            if !pinholes.iter().any(|pinhole| (pinhole.from, pinhole.to) == (from, to)) {
                let mapping = self.mapping(&expected)?;
                pinholes.push(Pinhole { from, to, mapping, lifetime: time, remaining: time });
            }
        }
        Ok(pinholes)
    }

    /// The state that an earlier run left.
    pub(super) fn existing_state(&mut self, now: Timestamp) -> Result<ExistingState, Error> {
        let pinholes = self.pinholes()?;
        self.sets.existing_state_among(now, &pinholes)
    }

    /// A pinhole was used.
    pub(super) fn used(&mut self, flow: &Flow) {
        let key = (flow.source.address, flow.destination);
        // The kernel itself has removed the expectation.
        self.counts.remove(&key);
        if self.in_sets.remove(&key) {
            self.sets.used(flow);
        }
    }

    /// The expectations of control connections. No other program has a helper of this name. A control connection that
    /// lost the helper, because Pinhole was stopped and started again, has no expectation.
    fn expected(&mut self) -> Result<Vec<Expected>, Error> {
        let mut all = self.expectations.list()?;
        let ports = &self.sets.policy.control_ports;
        all.retain(|one| {
            let is_ours = one.helper.as_deref().is_none_or(|name| name == NAME);
            is_ours && ports.contains(one.master.destination.port)
        });
        Ok(all)
    }

    /// The NAT of an expected connection: see [`follows`].
    fn mapping(&mut self, expected: &Expected) -> Result<Mapping, Error> {
        let Some(translated) = expected.translated else { return Ok(Mapping::NONE) };
        let Some(entry) = self.sets.conntrack.find(&expected.master)? else { return Ok(Mapping::NONE) };
        let (from, to) = followed(&entry.connection, translated.is_original);
        let to = Endpoint::new(to, translated.port);
        Ok(Mapping { to: (to != expected.to).then_some(to), from: (from != expected.from).then_some(from) })
    }

    /// Adds an expectation. Returns whether the kernel took it; if it is full, or the reason is in this one session,
    /// the pinhole goes into the sets.
    fn expect(&mut self, expectation: &Expectation, of: &Connection) -> Result<bool, NotOpened> {
        let Expectation { from, to, lifetime, .. } = *expectation;
        let key = (from, to);
        if !self.counts.has_room(&key, &of.original) {
            let object = format_args!("expectation {from} -> {to} beside {MOST_EXPECTATIONS} of its session");
            self.not_expected(&Error::new(Operation::Add, object, Cause::Refused(Errno::NFILE)));
            return Ok(false);
        }
        let translated = if expectation.mapping.is_none() { None } else { follows(expectation, of) };
        let expected = Expected { master: of.original, from, to, translated, time: lifetime, helper: None };
        let Err(error) = self.expectations.expect(&expected) else {
            self.counts.add(key, of.original);
            return Ok(true);
        };
        self.counts.remove(&key);
        match error.cause {
            // The connection is older than the helper, or is in another conntrack zone.
            Cause::Refused(Errno::OPNOTSUPP | Errno::NOENT | Errno::TIME) => {
                self.not_expected(&error);
                Ok(false)
            }
            // The kernel's maximum of expectations, for all connections together, is reached.
            Cause::Refused(Errno::MFILE) => {
                self.sets.trouble(&error);
                Ok(false)
            }
            cause => {
                self.sets.trouble(&error);
                if cause.is_unknown() {
                    // The expectation may have been added: removes it, so that no unknown pinhole stays open.
                    let forgotten = self.expectations.forget(from, to);
                    self.sets.note(forgotten);
                }
                Err(NotOpened)
            }
        }
    }

    /// The pinhole is in the sets instead. If the policy names no chains in `admit`, only a rule for the mark admits
    /// it, so this is logged.
    fn not_expected(&mut self, error: &Error) {
        if self.sets.policy.admit.is_empty() {
            self.sets.trouble(error);
        }
    }
}

/// The addresses of a connection that follows its master: its source address, and where it is delivered.
///
/// The kernel takes both from the master (`nf_nat_follow_master`). So a client's data connection reaches the server
/// as the control connection does, and a server's reaches the client as the replies do.
const fn followed(master: &Connection, is_original: bool) -> (IpAddr, IpAddr) {
    let Connection { original, reply } = master;
    let other = if is_original { reply } else { original };
    (other.destination.address, other.source.address)
}

/// The NAT of an expectation that does what the mapping says; `None` if it would do something else, as for a third
/// party, which the master does not know.
fn follows(expectation: &Expectation, of: &Connection) -> Option<Translated> {
    let target = expectation.target();
    let wanted = (expectation.mapping.from.unwrap_or(expectation.from), target.address);
    [true, false].into_iter().find_map(|is_original| {
        (followed(of, is_original) == wanted).then_some(Translated { is_original, port: target.port })
    })
}

impl Firewall for Native {
    fn control_connection(&mut self, flow: &Flow) -> Result<Option<Control>, LookupFailed> {
        self.sets.control_connection(flow)
    }

    fn open(&mut self, expectation: &Expectation, of: &Connection) -> Result<(), NotOpened> {
        let key = (expectation.from, expectation.to);
        let is_expected = self.expect(expectation, of)?;
        // The maps can do NAT that an expectation cannot.
        let is_mapped = expectation.mapping.is_none() || follows(expectation, of).is_some();
        if is_expected && is_mapped {
            if self.in_sets.remove(&key) {
                self.sets.close(expectation);
            }
            return Ok(());
        }
        let opened = self.sets.open(expectation);
        match opened {
            Ok(()) => drop(self.in_sets.insert(key)),
            Err(NotOpened) if is_expected => self.close(expectation),
            Err(NotOpened) => {}
        }
        opened
    }

    fn close(&mut self, expectation: &Expectation) {
        let Expectation { from, to, .. } = *expectation;
        self.counts.remove(&(from, to));
        if self.in_sets.remove(&(from, to)) {
            self.sets.close(expectation);
        }
        let forgotten = self.expectations.forget(from, to);
        self.sets.note(forgotten);
    }

    fn mapping_of(&mut self, from: IpAddr, to: Endpoint) -> Option<Mapping> {
        if self.in_sets.contains(&(from, to))
            && let Some(mapping) = self.sets.mapping_of(from, to)
        {
            return Some(mapping);
        }
        let found = self.expectations.find(from, to);
        let expected = self.sets.note(found)??;
        let mapping = self.mapping(&expected);
        self.sets.note(mapping)
    }

    fn adjust(
        &mut self,
        connection: &Connection,
        direction: Direction,
        adjustment: &Adjustment,
        held: &[Seq],
    ) -> Result<(), NotAdjusted> {
        self.sets.adjust(connection, direction, adjustment, held)
    }

    fn open_port_range(&mut self, port_range: &PortRangePinhole) -> Result<(), NotOpened> {
        self.sets.open_port_range(port_range)
    }

    fn renew_port_range(&mut self, port_range: &PortRangePinhole) {
        self.sets.renew_port_range(port_range);
    }

    fn close_port_range(&mut self, port_range: &PortRangePinhole) {
        self.sets.close_port_range(port_range);
    }

    fn record(&mut self, connection: &Connection, progress: Progress) {
        self.sets.record(connection, progress);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::net::Port;

    fn endpoint(text: &str) -> Endpoint {
        let address: std::net::SocketAddr = text.parse().expect("an address");
        Endpoint::new(address.ip(), Port::new(address.port()).expect("a port"))
    }

    fn flow(source: &str, destination: &str) -> Flow {
        Flow { source: endpoint(source), destination: endpoint(destination) }
    }

    fn expectation(from: &str, to: &str, mapping: Mapping) -> Expectation {
        let lifetime = std::time::Duration::from_secs(60);
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
    fn a_passive_connection_follows_in_the_direction_of_its_master() {
        let mapping =
            Mapping { to: Some(endpoint("10.9.0.5:40000")), from: Some("198.51.100.1".parse().expect("an address")) };
        let passive = expectation("10.0.0.1", "203.0.113.1:50000", mapping);
        let port = Port::new(40_000).expect("a port");
        assert_eq!(follows(&passive, &both()), Some(Translated { is_original: true, port }));
    }

    #[test]
    fn an_active_connection_follows_in_the_other_one() {
        let mapping =
            Mapping { to: Some(endpoint("10.0.0.1:40001")), from: Some("203.0.113.1".parse().expect("an address")) };
        let active = expectation("10.9.0.5", "198.51.100.1:50000", mapping);
        let port = Port::new(40_001).expect("a port");
        assert_eq!(follows(&active, &both()), Some(Translated { is_original: false, port }));
    }

    #[test]
    fn where_one_end_only_is_translated_the_other_keeps_its_address() {
        let masqueraded = Connection {
            original: flow("10.0.0.1:4000", "203.0.113.1:21"),
            reply: flow("203.0.113.1:21", "198.51.100.1:61000"),
        };
        let from = Some("198.51.100.1".parse().expect("an address"));
        let passive = expectation("10.0.0.1", "203.0.113.1:50000", Mapping { to: None, from });
        let port = Port::new(50_000).expect("a port");
        assert_eq!(follows(&passive, &masqueraded), Some(Translated { is_original: true, port }));
        let mapping = Mapping { to: Some(endpoint("10.0.0.1:50000")), from: None };
        let active = expectation("203.0.113.1", "198.51.100.1:50000", mapping);
        assert_eq!(follows(&active, &masqueraded), Some(Translated { is_original: false, port }));
    }

    #[test]
    fn a_third_party_is_not_where_the_master_leads() {
        let from = Some("203.0.113.1".parse().expect("an address"));
        let elsewhere = expectation("10.9.0.5", "192.0.2.9:50000", Mapping { to: None, from });
        assert_eq!(follows(&elsewhere, &both()), None);
    }
}
