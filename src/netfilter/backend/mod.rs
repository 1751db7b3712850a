//! The firewall of this host's kernel, and the choice between the mechanisms `native` and `sets`.

pub mod native;
pub mod sets;

use std::net::IpAddr;

use native::{Native, Ready};
use sets::{Pinhole, Queueing, Restored, Sets, SetupError, Troubles};

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
    /// Installs what a policy asks for, by the mechanism that it names, or else by the best that works.
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

    /// Why that one.
    pub fn because(&self) -> &str {
        &self.because
    }

    /// Whether control connections have a helper that belongs to a program, so that queued packets have to go on past
    /// what the kernel does for such.
    pub const fn gives_helpers(&self) -> bool {
        matches!(self.holder, Held::Native(_))
    }

    /// How this kernel queues.
    pub fn queueing(&self) -> Queueing {
        self.sets().queueing()
    }

    /// The number by which the kernel names whoever opens and closes pinholes here: see [`TableWatch::ignore`].
    ///
    /// [`TableWatch::ignore`]: crate::netfilter::netlink::TableWatch::ignore
    pub fn number(&self) -> Result<u32, Error> {
        self.sets().number()
    }

    /// The pinholes that stand.
    pub fn pinholes(&mut self) -> Result<Vec<Pinhole>, Error> {
        match &mut self.holder {
            Held::Sets(sets) => sets.pinholes(),
            Held::Native(native) => native.pinholes(),
        }
    }

    /// What an earlier program left, to be handed to [`Tracker::adopt`](crate::core::tracker::Tracker::adopt).
    pub fn remains(&mut self, now: Timestamp) -> Result<ExistingState, Error> {
        match &mut self.holder {
            Held::Sets(sets) => sets.remains(now),
            Held::Native(native) => native.remains(now),
        }
    }

    /// A connection came through its pinhole, which admits nobody any more. Has to be told before the same one is opened
    /// again.
    pub fn used(&mut self, flow: &Flow) {
        match &mut self.holder {
            Held::Sets(sets) => sets.used(flow),
            Held::Native(native) => native.used(flow),
        }
    }

    /// Tidies up behind those that were used.
    pub fn sweep(&mut self) {
        self.sets_mut().sweep();
    }

    /// What was refused since the last time that this was asked.
    pub fn take_troubles(&mut self) -> Troubles {
        self.sets_mut().take_troubles()
    }

    /// Installs what another policy asks for, in place of this one. After an error, the old one stands.
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

    /// Whether a change that somebody made may have been to what we installed.
    pub fn concerns(&self, change: &TableChange) -> bool {
        self.sets().concerns(change)
    }

    /// Puts back what is missing of what was installed and should stand.
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

    /// Control connections may have gone on unseen while the table was gone: see [`Sets::set_tcp_be_liberal`].
    pub fn set_tcp_be_liberal<'a>(&mut self, connections: impl Iterator<Item = &'a Connection>) {
        self.sets_mut().set_tcp_be_liberal(connections);
    }

    /// Control connections may have gone on unseen while rules of the table were gone: see [`Sets::forget_synced`].
    pub fn forget_synced<'a>(&mut self, connections: impl Iterator<Item = &'a Connection>) {
        self.sets_mut().forget_synced(connections);
    }

    /// Whether the table stands without what should stand in its sets, so that it must be restored.
    pub fn lacks_pinholes(&self) -> bool {
        self.sets().lacks_pinholes()
    }

    /// Removes all that was installed. What had to stay, if anything.
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
