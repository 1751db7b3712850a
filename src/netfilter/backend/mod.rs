//! The firewall of this host's kernel, and the choice between the mechanisms `native` and `sets`.

pub mod native;

use std::net::IpAddr;

use crate::netfilter::table::{Pinhole, Queueing, RefusedRequests, Restored, Sets, SetupError};
use native::{Native, Ready};

use crate::core::expectation::{Expectation, Mapping, PortRangePinhole};
use crate::core::kernel::{Control, Firewall, LookupFailed, NotOpened, Progress};
use crate::core::net::{Connection, Direction, Endpoint, Flow, Seq};
use crate::core::policy::{Mechanism, Policy};
use crate::core::seqadj::{Adjustment, NotAdjusted};
use crate::core::time::Timestamp;
use crate::core::tracker::ExistingState;
use crate::netfilter::netlink::{Error, TableChange};

/// A firewall in the kernel.
#[derive(Debug)]
pub struct Kernel {
    holder: Held,
    /// Why this mechanism.
    because: String,
}

#[derive(Debug)]
enum Held {
    Sets(Box<Sets>),
    Native(Box<Native>),
}

impl Kernel {
    /// Installs the table for a policy, with the mechanism that the policy names, or else with the best one that
    /// works.
    pub fn install(policy: &Policy) -> Result<Self, SetupError> {
        let (ready, because) = match policy.mechanism {
            Mechanism::Sets => (None, "as the policy says".to_owned()),
            Mechanism::Native => (Some(Ready::new(policy)?), "as the policy says".to_owned()),
            Mechanism::Auto => match Ready::new(policy) {
                Ok(ready) => (Some(ready), "as this kernel can".to_owned()),
                Err(why) => (None, format!("not native: {why}")),
            },
        };
        let holder = match ready {
            Some(ready) => Held::Native(Box::new(Native::install(policy, ready)?)),
            None => Held::Sets(Box::new(Sets::install(policy)?)),
        };
        Ok(Self { holder, because })
    }

    /// The mechanism, as a policy names it.
    pub const fn mechanism(&self) -> Mechanism {
        match self.holder {
            Held::Sets(_) => Mechanism::Sets,
            Held::Native(_) => Mechanism::Native,
        }
    }

    /// The reason for that mechanism.
    pub fn because(&self) -> &str {
        &self.because
    }

    /// Whether control connections have a userspace helper, so that a verdict has to avoid the kernel's second
    /// correction of sequence numbers.
    pub const fn gives_helpers(&self) -> bool {
        matches!(self.holder, Held::Native(_))
    }

    /// How this kernel queues packets.
    pub fn queueing(&self) -> Queueing {
        self.sets().queueing()
    }

    /// The netlink port ID that opens and closes pinholes: see [`TableWatch::ignore`].
    ///
    /// [`TableWatch::ignore`]: crate::netfilter::netlink::TableWatch::ignore
    pub fn number(&self) -> Result<u32, Error> {
        self.sets().number()
    }

    /// The pinholes in the kernel.
    pub fn pinholes(&mut self) -> Result<Vec<Pinhole>, Error> {
        match &mut self.holder {
            Held::Sets(sets) => sets.pinholes(),
            Held::Native(native) => native.pinholes(),
        }
    }

    /// The state that an earlier run left, for [`Tracker::adopt`](crate::core::tracker::Tracker::adopt).
    pub fn existing_state(&mut self, now: Timestamp) -> Result<ExistingState, Error> {
        match &mut self.holder {
            Held::Sets(sets) => sets.existing_state(now),
            Held::Native(native) => native.existing_state(now),
        }
    }

    /// A pinhole was used, and admits no further connection. Has to be called before the same pinhole is opened
    /// again.
    pub fn used(&mut self, flow: &Flow) {
        match &mut self.holder {
            Held::Sets(sets) => sets.used(flow),
            Held::Native(native) => native.used(flow),
        }
    }

    /// Removes the used pinholes.
    pub fn sweep(&mut self) {
        self.sets_mut().sweep();
    }

    /// The requests that the kernel refused since the last call.
    pub fn take_refused(&mut self) -> RefusedRequests {
        self.sets_mut().take_refused()
    }

    /// Exchanges the table for another policy. After an error, the old policy stays in force.
    pub fn reload(&mut self, policy: &Policy) -> Result<(), SetupError> {
        let mechanism = self.mechanism();
        if policy.mechanism != Mechanism::Auto && policy.mechanism != mechanism {
            return Err(SetupError::OtherMechanism(mechanism));
        }
        match &mut self.holder {
            Held::Sets(sets) => sets.reload(policy),
            Held::Native(native) => native.reload(policy),
        }
    }

    /// Whether another program's change may concern this table or its accept rules.
    pub fn concerns(&self, change: &TableChange) -> bool {
        self.sets().concerns(change)
    }

    /// Restores the missing parts of the table, the pinholes and the accept rules.
    pub fn restore<'a>(
        &mut self,
        now: Timestamp,
        standing: impl Iterator<Item = &'a Expectation>,
    ) -> Result<Restored, SetupError> {
        match &mut self.holder {
            Held::Sets(sets) => sets.restore(now, standing),
            Held::Native(native) => native.restore(now, standing),
        }
    }

    /// Control connections may have continued unseen while the table was gone: see [`Sets::set_tcp_be_liberal`].
    pub fn set_tcp_be_liberal<'a>(&mut self, connections: impl Iterator<Item = &'a Connection>) {
        self.sets_mut().set_tcp_be_liberal(connections);
    }

    /// Control connections may have continued unseen while rules of the table were gone: see [`Sets::forget_synced`].
    pub fn forget_synced<'a>(&mut self, connections: impl Iterator<Item = &'a Connection>) {
        self.sets_mut().forget_synced(connections);
    }

    /// Whether the table was restored without its elements, so that they still have to be restored.
    pub fn lacks_pinholes(&self) -> bool {
        self.sets().lacks_pinholes()
    }

    /// Removes everything that was installed. Returns what had to stay, if anything.
    pub fn remove(&mut self) -> Result<Option<&'static str>, SetupError> {
        match &mut self.holder {
            Held::Sets(sets) => sets.remove().map(|()| None),
            Held::Native(native) => {
                let is_gone = native.remove()?;
                Ok((!is_gone)
                    .then_some("the helper `ftp` stays, because a ruleset names it: your own, or another Pinhole's"))
            }
        }
    }

    fn sets(&self) -> &Sets {
        match &self.holder {
            Held::Sets(sets) => sets,
            Held::Native(native) => &native.sets,
        }
    }

    fn sets_mut(&mut self) -> &mut Sets {
        match &mut self.holder {
            Held::Sets(sets) => sets,
            Held::Native(native) => &mut native.sets,
        }
    }

    fn firewall(&mut self) -> &mut dyn Firewall {
        match &mut self.holder {
            Held::Sets(sets) => sets.as_mut(),
            Held::Native(native) => native.as_mut(),
        }
    }
}

impl Firewall for Kernel {
    fn control_connection(&mut self, flow: &Flow) -> Result<Option<Control>, LookupFailed> {
        self.firewall().control_connection(flow)
    }

    fn open(&mut self, expectation: &Expectation, of: &Connection) -> Result<(), NotOpened> {
        self.firewall().open(expectation, of)
    }

    fn close(&mut self, expectation: &Expectation) {
        self.firewall().close(expectation);
    }

    fn mapping_of(&mut self, from: IpAddr, to: Endpoint) -> Option<Mapping> {
        self.firewall().mapping_of(from, to)
    }

    fn adjust(
        &mut self,
        connection: &Connection,
        direction: Direction,
        adjustment: &Adjustment,
        held: &[Seq],
    ) -> Result<(), NotAdjusted> {
        self.firewall().adjust(connection, direction, adjustment, held)
    }

    fn open_port_range(&mut self, port_range: &PortRangePinhole) -> Result<(), NotOpened> {
        self.firewall().open_port_range(port_range)
    }

    fn renew_port_range(&mut self, port_range: &PortRangePinhole) {
        self.firewall().renew_port_range(port_range);
    }

    fn close_port_range(&mut self, port_range: &PortRangePinhole) {
        self.firewall().close_port_range(port_range);
    }

    fn record(&mut self, connection: &Connection, progress: Progress) {
        self.firewall().record(connection, progress);
    }
}
