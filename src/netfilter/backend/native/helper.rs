//! The conntrack helper `ftp` in the kernel: tests whether it can be registered, registers it, and removes it at the end.
//!
//! The helper inspects no packet. It exists because the kernel accepts expectations only for a connection with a helper,
//! and so that rules with `ct helper "ftp"` match as before. The kernel has one list of helpers for all network
//! namespaces, so all instances of Pinhole on a host share the helper.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::core::net::{Connection, Endpoint, Flow, Port};
use crate::core::policy::Policy;
use crate::netfilter::REPLY_TIMEOUT;
use crate::netfilter::netlink::{
    Cause, Conntrack, CtExpectation, Error, Expectations, Family, Helper, Helpers, MAX_EXPECTATIONS, Operation,
};

/// The helper's name, which rules of other tables match.
pub(super) const NAME: &str = "ftp";
/// The name of its expectation policy, which identifies it as Pinhole's.
const CLASS: &str = "pinhole";
const NETWORKS: [Family; 2] = [Family::Ip, Family::Ip6];

/// How often the helper is looked up again if another program changes it in the meantime.
const ATTEMPTS: usize = 8;

/// Why the kernel cannot hold the pinholes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelperError {
    #[error(
        "this kernel takes no helpers from programs: it lacks nfnetlink_cthelper (CONFIG_NF_CT_NETLINK_HELPER), or the \
         module cannot be loaded (try `modprobe nfnetlink_cthelper`)"
    )]
    NoHelpers,
    /// The kernel's own FTP helper has this name.
    #[error(
        "the kernel's own FTP helper is loaded, and there can be one `ftp` only (take it out of your rules, then \
         `modprobe -r nf_nat_ftp nf_conntrack_ftp`, and keep it out with `blacklist nf_conntrack_ftp`)"
    )]
    NameTaken,
    /// Another program's helper has this name.
    #[error(
        "another program has a helper `ftp` already, of the class `{class}` (is it conntrackd? `nfct helper list` shows \
         it; end that program, or take its helper out of its configuration)"
    )]
    Foreign {
        /// The name of that helper's expectation policy.
        class: Box<str>,
    },
    /// Root in a container is not enough.
    #[error("this process may not add a helper: that takes CAP_NET_ADMIN on the host itself, not in a container")]
    NotPermitted,
    /// The test of the helper failed.
    #[error("it was tried and did not work: {0}")]
    Tried(#[from] Error),
}

impl HelperError {
    fn of(error: Error) -> Self {
        match error.cause {
            Cause::Refused(Errno::PERM) | Cause::SystemCall(Errno::PERM) => Self::NotPermitted,
            Cause::Refused(Errno::INVAL | Errno::OPNOTSUPP) if error.operation == Operation::Read => Self::NoHelpers,
            Cause::Refused(Errno::BUSY) if error.operation == Operation::Add => Self::NameTaken,
            _ => Self::Tried(error),
        }
    }
}

/// The directory of the module in sysfs. A lock on it shows all instances of Pinhole on this host that others run.
const MODULE: &str = "/sys/module/nfnetlink_cthelper";

/// The helper, registered.
#[derive(Debug)]
pub(super) struct Registration {
    helpers: Helpers,
    /// A shared lock, held by each instance of Pinhole while it may use the helper. If the module is built in, there is no
    /// lock, and a helper that another instance is about to use may be missing for a moment.
    shared: Option<File>,
}

impl Registration {
    /// Registers the helper, or adopts the existing one.
    pub(super) fn new(policy: &Policy) -> Result<Self, HelperError> {
        let mut helpers = Helpers::open(REPLY_TIMEOUT).map_err(HelperError::of)?;
        // The request loads the module.
        helpers.list().map_err(HelperError::of)?;
        let is_locked = |module: &File| flock(module, FlockOperation::LockShared).is_ok();
        let mut registration = Self { helpers, shared: File::open(MODULE).ok().filter(is_locked) };
        registration.ensure_registered(policy)?;
        Ok(registration)
    }

    /// Whether an instance of Pinhole has registered the helper.
    pub(super) fn exists() -> Result<bool, HelperError> {
        let all = Helpers::open(REPLY_TIMEOUT).and_then(|mut helpers| helpers.list()).map_err(HelperError::of)?;
        let is_ours = |helper: &Helper| (&*helper.name, &*helper.class) == (NAME, CLASS);
        Ok(NETWORKS.iter().all(|network| all.iter().any(|helper| is_ours(helper) && helper.l3proto == *network)))
    }

    /// Registers the helper with the policy's settings, unless it is registered. Returns whether it was added.
    pub(super) fn ensure_registered(&mut self, policy: &Policy) -> Result<bool, HelperError> {
        let mut is_new = false;
        for network in NETWORKS {
            let mut attempts = 0..ATTEMPTS;
            is_new |= loop {
                match self.register_for(network, policy) {
                    // Another Pinhole started or ended between the lookup and the request.
                    Err(HelperError::Tried(error))
                        if (error.cause.is_present() || error.cause.is_missing()) && attempts.next().is_some() => {}
                    result => break result?,
                }
            };
        }
        Ok(is_new)
    }

    fn register_for(&mut self, network: Family, policy: &Policy) -> Result<bool, HelperError> {
        let wanted = Helper {
            name: NAME.into(),
            l3proto: network,
            class: CLASS.into(),
            // The highest possible maximum: at the maximum the kernel silently evicts the oldest expectation. Pinhole
            // itself enforces the policy's limit.
            max_expected: MAX_EXPECTATIONS,
            // Each expectation gets its own timeout; this is the initial one.
            timeout: policy.defaults.timeout,
            is_enabled: false,
        };
        let all = self.helpers.list().map_err(HelperError::of)?;
        match all.into_iter().find(|helper| *helper.name == *NAME && helper.l3proto == network) {
            None => self.helpers.add(&wanted).map(|()| true).map_err(HelperError::of),
            Some(found) if found.class != wanted.class => Err(HelperError::Foreign { class: found.class }),
            Some(found) if found == wanted => Ok(false),
            Some(_) => self.helpers.change(&wanted).map(|()| false).map_err(HelperError::of),
        }
    }

    /// Removes the helper after the table is gone, unless another ruleset refers to it. Returns whether it is gone.
    ///
    /// The kernel releases the objects of a removed table a moment later.
    pub(super) fn remove_within(&mut self, time: Duration) -> Result<bool, Error> {
        const PAUSE: Duration = Duration::from_millis(10);
        for _ in 0..time.as_millis() / PAUSE.as_millis() {
            if self.remove()? {
                return Ok(true);
            }
            thread::sleep(PAUSE);
        }
        self.remove()
    }

    /// Removes the helper, unless a ruleset refers to it or another Pinhole uses it. Returns whether it is gone.
    pub(super) fn remove(&mut self) -> Result<bool, Error> {
        if self.shared.as_ref().is_some_and(|lock| flock(lock, FlockOperation::NonBlockingLockExclusive).is_err()) {
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

/// Tests the whole procedure once, with a connection that does not exist, between addresses that are reserved for
/// documentation.
pub(super) fn dry_run(conntrack: &mut Conntrack, expectations: &mut Expectations) -> Result<(), Error> {
    let number = u16::try_from(std::process::id() % 30_000).unwrap_or(0) + 30_000;
    let port = Port::new(number).unwrap_or(Port::FTP);
    let address = |host| IpAddr::V4(Ipv4Addr::new(192, 0, 2, host));
    let (client, server) = (Endpoint::new(address(1), port), Endpoint::new(address(2), Port::FTP));
    let master = Flow { source: client, destination: server };
    let time = Duration::from_secs(3);
    conntrack.delete(&master)?;
    conntrack.create_dummy_entry(&Connection::direct(master), NAME, time)?;
    let expected =
        CtExpectation { master, from: server.address, to: client, nat: None, timeout: time, helper: Some(NAME.into()) };
    let found = expectations.insert(&expected).and_then(|()| expectations.find(expected.from, expected.to));
    // Its expectations end with it.
    conntrack.delete(&master)?;
    match found? {
        Some(found) if found.timeout <= time => Ok(()),
        _ => Err(Error::new(
            Operation::Try,
            "an expectation of connection tracking (the kernel did not keep it as requested)",
            Cause::Malformed,
        )),
    }
}
