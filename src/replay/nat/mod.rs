//! What a capture that was taken inside would have been behind the gateway: the NAT that it is given, the connections
//! that go through it, and a firewall in memory that translates them.
//!
//! The captured side is the inside. What its end sends is in the capture as it arrives at the gateway. What the other
//! end sends is there as the gateway delivered it, and is taken back to what it was when it arrived: only then is the
//! tracker shown it. Knows nothing of FTP's lines, nor how packets are written.

mod connections;
mod file;
mod gateway;

use std::net::IpAddr;

pub(super) use connections::{Translated, Way};
pub use file::parse_bytes;
pub(super) use gateway::Gateway;

use crate::core::net::Endpoint;
use crate::core::policy::Hosts;

/// What a gateway does to addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nat {
    inside: Hosts,
    /// The addresses that those wear outside; at most one of each family.
    outside: Vec<IpAddr>,
    /// What is delivered to an inside host.
    dnat: Vec<Dnat>,
}

/// What goes to one of the gateway's own addresses and is delivered inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dnat {
    outside: Endpoint,
    inside: Endpoint,
}

impl Nat {
    fn is_inside(&self, address: IpAddr) -> bool {
        self.inside.contains(address)
    }

    /// Whether it is an address of the gateway itself.
    fn is_outside(&self, address: IpAddr) -> bool {
        self.outside.contains(&address) || self.dnat.iter().any(|dnat| dnat.outside.address == address)
    }

    /// What inside hosts wear that talk to somebody with such an address, if anything.
    fn worn_towards(&self, other: IpAddr) -> Option<IpAddr> {
        self.outside.iter().copied().find(|outside| outside.is_ipv4() == other.is_ipv4())
    }

    /// Under which address and port an inside endpoint is reached from outside, if it is.
    fn reached_by(&self, inside: Endpoint) -> Option<Endpoint> {
        self.dnat.iter().find(|dnat| dnat.inside == inside).map(|dnat| dnat.outside)
    }
}
