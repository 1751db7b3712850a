//! The firewall of this host's kernel: the table, conntrack's control connections, and one of the mechanisms.

use std::hash::RandomState;
use std::net::IpAddr;
use std::time::Duration;

use hashbrown::HashMap;

use super::mechanism::{Backend, NotPossible, Profile};
use super::probe;
use crate::core::expectation::{Expectation, Mapping, PortRangePinhole};
use crate::core::kernel::{Control, Firewall, LookupFailed, NotOpened, Service, SessionProgress, Testimony};
use crate::core::net::{Connection, Direction, Endpoint, Flow, Seq};
use crate::core::policy::{Mechanism, Policy};
use crate::core::seqadj::{Adjustment, NotAdjusted};
use crate::core::time::Timestamp;
use crate::core::tracker::ExistingState;
use crate::netfilter::connections::ControlConnections;
use crate::netfilter::errors::{ErrorCounter, RefusedRequests};
use crate::netfilter::netlink::{Error, TableChange};
use crate::netfilter::table::{Pinhole, PinholeTable, Queueing, Restored, TableError};
use crate::netfilter::witness::Witness;

/// How long the kernel may take to release the objects of a removed table.
const RELEASE_TIME: Duration = Duration::from_secs(1);

/// Why the table was not installed, reloaded or removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    #[error(transparent)]
    Kernel(#[from] Error),
    /// The table could not be installed or reloaded.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The mechanism of the policy does not work on this host.
    #[error(transparent)]
    Mechanism(#[from] NotPossible),
    /// A reload cannot change the mechanism.
    #[error("`mechanism` cannot change from {0} while the program runs: restart it (`systemctl restart pinhole`)")]
    OtherMechanism(Mechanism),
}

/// For which open pinholes a SYN has come and was admitted.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    syn_came: HashMap<(IpAddr, Endpoint), bool, RandomState>,
    /// The first SYN removes the pinhole from the kernel: an expectation.
    is_gone_once_used: bool,
}

impl Arrivals {
    /// Whether a SYN has come for this pinhole, which has not expired and of whose use conntrack has reported nothing.
    pub fn syn_came(&self, open: &Expectation) -> bool {
        self.syn_came.get(&(open.from, open.to)).copied().unwrap_or(self.is_gone_once_used)
    }
}

/// A firewall in the kernel.
#[derive(Debug)]
pub struct KernelFirewall {
    table: PinholeTable,
    connections: ControlConnections,
    backend: Box<dyn Backend>,
    witness: Witness,
    /// Why this mechanism was chosen.
    mechanism_reason: String,
    errors: ErrorCounter,
}

impl KernelFirewall {
    /// Installs the table for a policy, with the mechanism that the policy names, or else with the best one that
    /// works. Pinholes of an earlier run stay open.
    pub fn install(policy: &Policy) -> Result<Self, SetupError> {
        let errors = ErrorCounter::default();
        let (mut backend, mechanism_reason) = probe::set_up(policy, &errors)?;
        let install = || {
            let witness = Witness::open()?;
            let connections = ControlConnections::open(policy, errors.clone())?;
            Ok((witness, connections, PinholeTable::install(policy, backend.profile().rules, errors.clone())?))
        };
        let (witness, mut connections, mut table) = match install() {
            Ok(installed) => installed,
            Err(error) => {
                // The first error has to be reported.
                let _ = backend.remove(Duration::ZERO);
                return Err(error);
            }
        };
        if table.was_kept() {
            connections.trust_synced();
        }
        backend.adopt(&mut table)?;
        Ok(Self { table, connections, backend, witness, mechanism_reason, errors })
    }

    pub fn profile(&self) -> &'static Profile {
        self.backend.profile()
    }

    /// Why this mechanism was chosen.
    pub fn mechanism_reason(&self) -> &str {
        &self.mechanism_reason
    }

    /// What of a ruleset that is saved now may not load later, and what to do.
    pub fn limit_of_saved_rulesets(&self) -> &'static str {
        self.profile().limit_of_saved_rulesets(self.table.queueing(), self.table.prepares_connections())
    }

    /// How this kernel queues packets.
    pub fn queueing(&self) -> Queueing {
        self.table.queueing()
    }

    /// The rule that an administrator has to write on this host if `admit` is empty.
    pub fn own_rule(&self) -> String {
        self.table.own_rule()
    }

    /// The netlink port ID that opens and closes pinholes: see [`TableWatch::ignore`].
    ///
    /// [`TableWatch::ignore`]: crate::netfilter::netlink::TableWatch::ignore
    pub fn port_id(&self) -> Result<u32, Error> {
        self.table.port_id()
    }

    /// The pinholes in the kernel.
    pub fn pinholes(&mut self) -> Result<Vec<Pinhole>, Error> {
        self.backend.pinholes(&mut self.table)
    }

    /// For which open pinholes a SYN has come, as these pinholes in the kernel tell.
    pub fn arrivals(&self, listed: &[Pinhole]) -> Arrivals {
        let syn_came = listed.iter().map(|pinhole| ((pinhole.from, pinhole.to), pinhole.syn_came)).collect();
        Arrivals { syn_came, is_gone_once_used: self.profile().is_related }
    }

    /// The state that an earlier run left, for [`Tracker::adopt`](crate::core::tracker::Tracker::adopt).
    pub fn existing_state(&mut self, now: Timestamp) -> Result<ExistingState, Error> {
        let expectation = |Pinhole { from, to, mapping, lifetime, remaining, .. }| {
            let expires = now + remaining;
            let since = expires.before(lifetime);
            Expectation { from, to, since, lifetime: expires.since(since), mapping }
        };
        let pinholes: Vec<_> = self.pinholes()?.into_iter().map(expectation).collect();
        let port_ranges = self.table.port_ranges()?;
        let is_nothing = pinholes.is_empty() && port_ranges.is_empty();
        let connections = if is_nothing { Vec::new() } else { self.connections.established()? };
        Ok(ExistingState { pinholes, port_ranges, connections })
    }

    /// How much a data connection has carried in both directions, if conntrack counts; none if it has ended, or the kernel
    /// does not say.
    pub fn bytes_of(&mut self, data: &Flow) -> Option<Option<u64>> {
        self.connections.bytes_of(data)
    }

    /// A pinhole was used, and admits no further connection. Has to be called before the same pinhole is opened
    /// again.
    pub fn used(&mut self, flow: &Flow) {
        self.backend.used(&mut self.table, flow);
    }

    /// Removes the used pinholes.
    pub fn sweep(&mut self) {
        self.table.sweep();
    }

    /// The requests that the kernel refused since the last call.
    pub fn take_refused(&mut self) -> RefusedRequests {
        self.errors.take()
    }

    /// Changes the table to another policy. After an error, the old policy stays in force.
    pub fn reload(&mut self, policy: &Policy) -> Result<(), SetupError> {
        let mechanism = self.profile().mechanism;
        if policy.mechanism != Mechanism::Auto && policy.mechanism != mechanism {
            return Err(SetupError::OtherMechanism(mechanism));
        }
        self.backend.prepare(policy)?;
        let reloaded = self.table.reload(policy);
        self.connections.follow(self.table.policy());
        Ok(reloaded?)
    }

    /// Whether another program's change may concern this table or its accept rules.
    pub fn concerns(&mut self, change: &TableChange) -> bool {
        self.table.concerns(change)
    }

    /// Whether the table and its accept rules are there and unchanged.
    pub fn is_intact(&mut self) -> Result<bool, Error> {
        self.table.is_intact()
    }

    /// Restores the missing parts of the table, the pinholes and the accept rules.
    pub fn restore<'a>(
        &mut self,
        now: Timestamp,
        open: impl Iterator<Item = &'a Expectation>,
    ) -> Result<Restored, SetupError> {
        self.backend.prepare(self.table.policy())?;
        let in_sets = open.filter(|pinhole| self.backend.is_in_sets(pinhole));
        Ok(self.table.restore(now, in_sets)?)
    }

    /// Makes conntrack accept any sequence numbers of these control connections, which may have continued while the table
    /// was gone and conntrack did not see their packets.
    pub fn set_tcp_be_liberal<'a>(&mut self, connections: impl Iterator<Item = &'a Connection>) {
        self.connections.set_tcp_be_liberal(connections);
    }

    /// Clears the in-sync bits of these control connections, whose packets may have bypassed the queue while rules of the
    /// table were gone.
    pub fn forget_synced<'a>(&mut self, connections: impl Iterator<Item = &'a Connection>) {
        self.connections.forget_synced(connections);
    }

    /// Whether the table was restored without its elements, so that they still have to be restored.
    pub fn lacks_pinholes(&self) -> bool {
        self.table.lacks_pinholes()
    }

    /// Removes the table, the accept rules and the helper. If the helper has to stay, returns a message that says so.
    pub fn remove(&mut self) -> Result<Option<&'static str>, SetupError> {
        let closed = self.backend.close_all(&self.table);
        let removed = self.table.remove();
        let stays = self.backend.remove(RELEASE_TIME);
        closed?;
        removed?;
        Ok(stays?)
    }
}

impl Firewall for KernelFirewall {
    fn control_connection(&mut self, flow: &Flow) -> Result<Option<Control>, LookupFailed> {
        let found = self.connections.find(flow)?;
        // Somebody translates addresses by other means than a chain of nf_tables.
        let needs_nat = found.as_ref().is_some_and(|control| control.connection.is_translated());
        if needs_nat
            && !self.table.prepares_connections()
            && let Err(TableError::Kernel(error)) = self.table.prepare_connections()
        {
            self.errors.add(&error);
        }
        Ok(found)
    }

    fn open(&mut self, expectation: &Expectation, of: &Connection) -> Result<(), NotOpened> {
        self.backend.open(&mut self.table, expectation, of)
    }

    fn close(&mut self, expectation: &Expectation) {
        self.backend.close(&mut self.table, expectation);
    }

    fn syn_came(&mut self, expectation: &Expectation) -> bool {
        self.backend.syn_came(&mut self.table, expectation)
    }

    fn mapping_of(&mut self, from: IpAddr, to: Endpoint) -> Option<Mapping> {
        self.backend.mapping_of(&mut self.table, from, to)
    }

    fn adjust(
        &mut self,
        connection: &Connection,
        direction: Direction,
        adjustment: &Adjustment,
        held: &[Seq],
    ) -> Result<(), NotAdjusted> {
        // The elements are added first, so that no retransmission can bypass the queue once the offset is set.
        self.table.queue_retransmissions(connection.flow(direction), held);
        self.connections.adjust(connection, direction, adjustment)
    }

    fn open_port_range(&mut self, port_range: &PortRangePinhole) -> Result<(), NotOpened> {
        self.table.open_port_range(port_range)
    }

    fn renew_port_range(&mut self, port_range: &PortRangePinhole) {
        self.table.renew_port_range(port_range);
    }

    fn close_port_range(&mut self, port_range: &PortRangePinhole) {
        self.table.close_port_range(port_range);
    }

    fn open_for_syn(&mut self, expectation: &Expectation) -> Result<(), NotOpened> {
        self.backend.open_for_syn(&mut self.table, expectation)
    }

    fn testimony(&mut self, syn: &Flow, of: &Connection, service: &Service) -> Testimony {
        self.witness.testimony(syn, of, service).unwrap_or_else(|error| {
            self.errors.add(&error);
            Testimony::Unknown
        })
    }

    fn record(&mut self, connection: &Connection, progress: SessionProgress) {
        self.connections.record(connection, progress);
    }
}
