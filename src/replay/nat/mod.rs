//! Simulates a NAT gateway for a capture that was taken on its inside: the description of the NAT, the translated
//! connections, and a firewall in memory that translates them.
//!
//! The capture has the packets of the inside end as they arrive at the gateway. It has the packets of the outside end as
//! they leave the gateway, so their translation is undone before the tracker gets them. Knows nothing of FTP's lines, nor
//! how packets are written.

mod connections;
mod file;
mod gateway;

use std::net::IpAddr;

pub(super) use connections::{Translated, Way};
pub use file::parse_bytes;
pub(super) use gateway::Gateway;

use crate::core::net::Endpoint;
use crate::core::policy::Hosts;

/// The address translation of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nat {
    inside: Hosts,
    /// The source addresses of inside hosts after SNAT; at most one of each family.
    outside: Vec<IpAddr>,
    dnat: Vec<Dnat>,
}

/// Connections to `outside`, an address of the gateway, are delivered to `inside`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dnat {
    outside: Endpoint,
    inside: Endpoint,
}

impl Nat {
    fn is_inside(&self, address: IpAddr) -> bool {
        self.inside.contains(address)
    }

    /// Whether this is an address of the gateway.
    fn is_outside(&self, address: IpAddr) -> bool {
        self.outside.contains(&address) || self.dnat.iter().any(|dnat| dnat.outside.address == address)
    }

    /// The source address after SNAT of a connection from inside to `other`, if it is translated.
    fn snat_address(&self, other: IpAddr) -> Option<IpAddr> {
        self.outside.iter().copied().find(|outside| outside.is_ipv4() == other.is_ipv4())
    }

    /// The destination before DNAT of connections that are delivered to `inside`, if there is a DNAT rule for it.
    fn before_dnat(&self, inside: Endpoint) -> Option<Endpoint> {
        self.dnat.iter().find(|dnat| dnat.inside == inside).map(|dnat| dnat.outside)
    }
}
