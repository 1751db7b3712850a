//! The kernel's firewall with the mechanism `sets`, as a test calls it.
#![allow(dead_code, reason = "each test takes what it needs")]

use pinhole::core::expectation::Expectation;
use pinhole::core::kernel::{Firewall as _, NotOpened};
use pinhole::core::net::{Connection, Endpoint, Flow, Port};
use pinhole::core::policy::{Mechanism, Policy};
use pinhole::netfilter::backend::{KernelFirewall, SetupError};

/// Installs the table for a policy.
pub(crate) fn install(policy: &Policy) -> Result<KernelFirewall, SetupError> {
    KernelFirewall::install(&Policy { mechanism: Mechanism::Sets, ..policy.clone() })
}

/// Opens a pinhole of some session: the sets do not record which one.
pub(crate) fn open(firewall: &mut KernelFirewall, pinhole: &Expectation) -> Result<(), NotOpened> {
    let client = Endpoint::new(pinhole.from, Port::FTP);
    firewall.open(pinhole, &Connection::direct(Flow { source: client, destination: pinhole.to }))
}
