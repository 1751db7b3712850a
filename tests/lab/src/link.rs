//! Veth pairs between namespaces.

use super::error::{Context, Result};
use super::namespace::Namespace;
use super::rtnetlink::Rtnetlink;
use super::wait::wait_until;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsFd;
use std::time::Duration;

/// One end of a link: its namespace, its interface name, and its addresses with their prefix lengths.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where it lies.
    pub namespace: &'a Namespace,
    /// The interface's name there.
    pub interface: &'a str,
    /// Its addresses, each with the length of its prefix.
    pub addresses: &'a [(IpAddr, u8)],
}

/// Joins two namespaces by a cable, and returns once it carries packets.
pub fn join(one: End<'_>, other: End<'_>) -> Result<()> {
    one.namespace
        .run(|| Rtnetlink::open()?.add_veth(one.interface, other.interface, other.namespace.as_fd()))?
        .doing(|| format!("join {} and {}", one.namespace, other.namespace))?;
    for (number, end) in [(1, one), (2, other)] {
        // A router asks for its neighbours from a link-local address, and from no other.
        let link_local = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, number));
        let addresses: Vec<_> = end.addresses.iter().copied().chain([(link_local, 64)]).collect();
        end.namespace.configure(end.interface, &addresses)?;
    }
    for end in [one, other] {
        // Until the kernel has noticed the carrier, it silently drops packets.
        wait_until(&format!("the link {} of {}", end.interface, end.namespace), Duration::from_secs(10), || {
            end.namespace.is_operational(end.interface)
        })?;
        // The kernel reports the carrier a moment before it stops dropping, and holds a lock in between. This request
        // takes the same lock, and changes nothing.
        end.namespace.configure(end.interface, &[])?;
        // Some time later the kernel marks the addresses as usable.
        wait_until(&format!("the addresses of {}", end.namespace), Duration::from_secs(10), || {
            end.namespace.has_usable_addresses()
        })?;
    }
    Ok(())
}
