//! The conntrack helper `ftp` in the kernel: tests whether the kernel can have it, registers it, and removes it at
//! the end.
//!
//! The helper inspects no packet. It exists because the kernel takes expectations only for a connection with a
//! helper, and so that `ct helper "ftp"` in other rulesets keeps its meaning. The kernel has one list of helpers for
//! all network namespaces, so all instances of Pinhole on a host share the helper.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use rustix::io::Errno;

use crate::core::net::{Connection, Endpoint, Flow, Port};
use crate::core::policy::Policy;
use crate::netfilter::backend::sets::PATIENCE;
use crate::netfilter::netlink::{
    Cause, Conntrack, Error, Expectations, Expected, Family, Helper, Helpers, MOST_EXPECTATIONS, Operation,
};

/// The helper's name, for which others have rules.
pub(super) const NAME: &str = "ftp";
/// The name of its one kind of expectations, by which it is known as ours.
const CLASS: &str = "pinhole";
const NETWORKS: [Family; 2] = [Family::Ip, Family::Ip6];

/// How long the kernel may take to let go of what stood in a table.
const LETTING_GO: Duration = Duration::from_secs(1);

/// Times that it is looked at anew when another program changes it meanwhile.
const ATTEMPTS: usize = 8;

/// Why the kernel cannot hold the pinholes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// There is nothing that would take a helper.
    #[error(
        "this kernel takes no helpers from programs: it lacks nfnetlink_cthelper (CONFIG_NF_CT_NETLINK_HELPER), or the \
         module cannot be loaded (try `modprobe nfnetlink_cthelper`)"
    )]
    NoHelpers,
    /// The kernel's own helper has the name.
    #[error(
        "the kernel's own FTP helper is loaded, and there can be one `ftp` only (take it out of your rules, then \
         `modprobe -r nf_nat_ftp nf_conntrack_ftp`, and keep it out with `blacklist nf_conntrack_ftp`)"
    )]
    NameTaken,
    /// Another program's has it.
    #[error(
        "another program has a helper `ftp` already, of the class `{class}` (is it conntrackd? `nfct helper list` shows \
         it; end that program, or take its helper out of its configuration)"
    )]
    Foreign {
        /// What that program calls its expectations.
        class: Box<str>,
    },
    /// Root in a container is not enough.
    #[error("this process may not add a helper: that takes CAP_NET_ADMIN on the host itself, not in a container")]
    NotPermitted,
    /// It was tried and did not work.
    #[error("it was tried and did not work: {0}")]
    Tried(#[from] Error),
}

impl Impossible {
    fn of(error: Error) -> Self {
        match error.cause {
            Cause::Refused(Errno::PERM) | Cause::SystemCall(Errno::PERM) => Self::NotPermitted,
            Cause::Refused(Errno::INVAL | Errno::OPNOTSUPP) if error.operation == Operation::Read => Self::NoHelpers,
            Cause::Refused(Errno::BUSY) if error.operation == Operation::Add => Self::NameTaken,
            _ => Self::Tried(error),
        }
    }
}

/// Where the kernel shows its module: a lock on this folder tells every one of us on this machine of the others.
const MODULE: &str = "/sys/module/nfnetlink_cthelper";

/// The helper, registered.
#[derive(Debug)]
pub(super) struct Registration {
    helpers: Helpers,
    /// Held while it may be used, by each who does. Without a module that shows there is none, and a helper that
    /// another one of us is about to use may be gone for a moment.
    shared: Option<Flock<File>>,
}

impl Registration {
    /// Registers it, or adopts the one that is there.
    pub(super) fn new(policy: &Policy) -> Result<Self, Impossible> {
        let mut helpers = Helpers::open(PATIENCE).map_err(Impossible::of)?;
        // To ask brings the module.
        helpers.list().map_err(Impossible::of)?;
        let lock = |folder| Flock::lock(folder, FlockArg::LockShared).ok();
        let mut registration = Self { helpers, shared: File::open(MODULE).ok().and_then(lock) };
        registration.stand(policy)?;
        Ok(registration)
    }

    /// Whether one of us has registered it.
    pub(super) fn stands() -> Result<bool, Impossible> {
        let all = Helpers::open(PATIENCE).and_then(|mut helpers| helpers.list()).map_err(Impossible::of)?;
        let is_ours = |helper: &Helper| (&*helper.name, &*helper.class) == (NAME, CLASS);
        Ok(NETWORKS.iter().all(|network| all.iter().any(|helper| is_ours(helper) && helper.network == *network)))
    }

    /// Sees to it that it stands, as the policy wants it. Whether it had to be added.
    pub(super) fn stand(&mut self, policy: &Policy) -> Result<bool, Impossible> {
        let mut is_new = false;
        for network in NETWORKS {
            let mut attempts = 0..ATTEMPTS;
            is_new |= loop {
                match self.stand_for(network, policy) {
                    // Another one of us came or went between the question and what followed.
                    Err(Impossible::Tried(error))
                        if (error.cause.is_present() || error.cause.is_missing()) && attempts.next().is_some() => {}
                    result => break result?,
                }
            };
        }
        Ok(is_new)
    }

    fn stand_for(&mut self, network: Family, policy: &Policy) -> Result<bool, Impossible> {
        let wanted = Helper {
            name: NAME.into(),
            network,
            class: CLASS.into(),
            // More than any session may have: where the kernel counts so far it evicts the oldest and tells nobody.
            // What the policy allows is counted before.
            maximum: MOST_EXPECTATIONS,
            // Each expectation is given its own time; this one is for the moment before.
            timeout: policy.defaults.timeout,
            is_enabled: false,
        };
        let all = self.helpers.list().map_err(Impossible::of)?;
        match all.into_iter().find(|helper| *helper.name == *NAME && helper.network == network) {
            None => self.helpers.add(&wanted).map(|()| true).map_err(Impossible::of),
            Some(found) if found.class != wanted.class => Err(Impossible::Foreign { class: found.class }),
            Some(found) if found == wanted => Ok(false),
            Some(_) => self.helpers.change(&wanted).map(|()| false).map_err(Impossible::of),
        }
    }

    /// Removes it once our table is gone, unless another ruleset names it. Whether it is gone.
    ///
    /// The kernel lets go of what stood in a table a moment after the table is gone.
    pub(super) fn remove_behind_table(&mut self) -> Result<bool, Error> {
        const PAUSE: Duration = Duration::from_millis(10);
        for _ in 0..LETTING_GO.as_millis() / PAUSE.as_millis() {
            if self.remove()? {
                return Ok(true);
            }
            thread::sleep(PAUSE);
        }
        self.remove()
    }

    /// Removes it, unless a ruleset names it or another one of us has it. Whether it is gone.
    pub(super) fn remove(&mut self) -> Result<bool, Error> {
        if self.shared.as_ref().is_some_and(|lock| lock.relock(FlockArg::LockExclusiveNonblock).is_err()) {
            return Ok(false);
        }
        let mut is_gone = true;
        for network in NETWORKS {
            match self.helpers.remove(NAME, network) {
                Err(Error { cause: Cause::Refused(Errno::BUSY), .. }) => is_gone = false,
                result => result?,
            }
        }
        Ok(is_gone)
    }
}

/// Tries the whole way once, with a connection that nobody has: from and to addresses that are for documentation only.
pub(super) fn dry_run(conntrack: &mut Conntrack, expectations: &mut Expectations) -> Result<(), Error> {
    let number = u16::try_from(std::process::id() % 30_000).unwrap_or(0) + 30_000;
    let port = Port::new(number).unwrap_or(Port::FTP);
    let address = |host| IpAddr::V4(Ipv4Addr::new(192, 0, 2, host));
    let (client, server) = (Endpoint::new(address(1), port), Endpoint::new(address(2), Port::FTP));
    let master = Flow { source: client, destination: server };
    let time = Duration::from_secs(3);
    conntrack.forget(&master)?;
    conntrack.create_dummy_entry(&Connection::direct(master), NAME, time)?;
    let expected =
        Expected { master, from: server.address, to: client, translated: None, time, helper: Some(NAME.into()) };
    let stands = expectations.expect(&expected).and_then(|()| expectations.find(expected.from, expected.to));
    // With it goes what was expected.
    conntrack.forget(&master)?;
    match stands? {
        Some(found) if found.time <= time => Ok(()),
        _ => Err(Error::new(
            Operation::Try,
            "an expectation of connection tracking (it did not stand as it was made)",
            Cause::Garbled,
        )),
    }
}
