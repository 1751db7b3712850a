//! Which namespaces are connected, and which of them has the firewall.
//!
//! A topology is three roles with namespaces and addresses. One with address translation is a gateway whose firewall
//! has other rules, and whose `target` is the address that the gateway shows instead of the server's own.

use super::error::Result;
use super::link::{End, join};
use super::namespace::Namespace;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A family of IP addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Where the firewall is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// On the server's own host.
    ServerHost,
    /// On the client's own host.
    ClientHost,
    /// Between them. Its interfaces are called `clients` and `servers`.
    Gateway,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ServerHost, Self::ClientHost, Self::Gateway];

    /// Rules that drop everything but control connections to port 21 and `ct state established, related`: table `inet
    /// filter`, chains `input`, `output` and `forward` as far as they apply.
    pub const fn default_drop(self) -> &'static str {
        match self {
            Self::ServerHost => include_str!("rules/server-host.nft"),
            Self::ClientHost => include_str!("rules/client-host.nft"),
            Self::Gateway => include_str!("rules/gateway.nft"),
        }
    }
}

/// Rules that give control connections to port 21 the kernel's own helper, on a kernel that has it.
pub const KERNEL_HELPER: &str = include_str!("rules/kernel-helper.nft");

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ServerHost => "server host",
            Self::ClientHost => "client host",
            Self::Gateway => "gateway",
        })
    }
}

/// An address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Addresses {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// Number `host` of the lab's network `number`: 10.21.`number`.`host` and fd21:`number`::`host`.
    pub const fn lab(number: u8, host: u8) -> Self {
        Self {
            v4: Ipv4Addr::new(10, 21, number, host),
            v6: Ipv6Addr::new(0xfd21, number as u16, 0, 0, 0, 0, 0, host as u16),
        }
    }

    /// The address of that family.
    pub const fn of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(self.v4),
            Family::V6 => IpAddr::V6(self.v6),
        }
    }

    /// Both, with the lengths of the lab's prefixes.
    pub fn with_prefixes(&self) -> [(IpAddr, u8); 2] {
        [(self.v4.into(), 24), (self.v6.into(), 64)]
    }
}

/// A host of the lab.
#[derive(Clone, Debug)]
pub struct Host {
    /// Where it lies.
    pub namespace: Namespace,
    /// Its own addresses.
    pub addresses: Addresses,
}

impl Host {
    fn new(role: &str, addresses: Addresses) -> Result<Self> {
        Ok(Self { namespace: Namespace::new(role)?, addresses })
    }
}

/// A client, a server, and a firewall on their way. Nothing is filtered until rules are loaded into `firewall`.
#[derive(Clone, Debug)]
pub struct Topology {
    /// Where the firewall is.
    pub shape: Shape,
    /// Whose programs connect. Its interface is called `net`.
    pub client: Host,
    /// Where the rules go: the namespace of one of the others, or one in between.
    pub firewall: Namespace,
    /// Whose programs listen. Its interface is called `net`.
    pub server: Host,
    /// The addresses that a client connects to.
    pub target: Addresses,
}

impl Topology {
    /// Builds one.
    pub fn new(shape: Shape) -> Result<Self> {
        match shape {
            Shape::ServerHost | Shape::ClientHost => Self::host(shape),
            Shape::Gateway => Self::gateway(),
        }
    }

    /// Sets conntrack's timeouts of closed connections to an hour. Expectations are removed with a forgotten entry, so
    /// otherwise a test could not tell whether Pinhole had removed them at once.
    pub fn keep_ended_connections(&self) -> Result<()> {
        ["fin_wait", "close_wait", "last_ack", "time_wait", "close"]
            .into_iter()
            .try_for_each(|state| self.firewall.set(&format!("net/netfilter/nf_conntrack_tcp_timeout_{state}"), "3600"))
    }

    fn host(shape: Shape) -> Result<Self> {
        let client = Host::new("client", Addresses::lab(1, 10))?;
        let server = Host::new("server", Addresses::lab(1, 1))?;
        join(
            End { namespace: &client.namespace, interface: "net", addresses: &client.addresses.with_prefixes() },
            End { namespace: &server.namespace, interface: "net", addresses: &server.addresses.with_prefixes() },
        )?;
        let side = if shape == Shape::ClientHost { &client } else { &server };
        let (firewall, target) = (side.namespace.clone(), server.addresses);
        Ok(Self { shape, client, firewall, server, target })
    }

    fn gateway() -> Result<Self> {
        let client = Host::new("client", Addresses::lab(1, 10))?;
        let firewall = Namespace::new("firewall")?;
        let server = Host::new("server", Addresses::lab(2, 10))?;
        firewall.forward()?;
        for (host, interface, gateway) in
            [(&client, "clients", Addresses::lab(1, 1)), (&server, "servers", Addresses::lab(2, 1))]
        {
            join(
                End { namespace: &host.namespace, interface: "net", addresses: &host.addresses.with_prefixes() },
                End { namespace: &firewall, interface, addresses: &gateway.with_prefixes() },
            )?;
            for family in Family::ALL {
                host.namespace.route_by(gateway.of(family))?;
            }
        }
        let target = server.addresses;
        Ok(Self { shape: Shape::Gateway, client, firewall, server, target })
    }

    /// Lets all its links pass large segments with open checksums, which is fast and the default, or makes their
    /// packets as they would be on a cable.
    pub fn set_offloads(&self, on: bool) -> Result<()> {
        self.client.namespace.set_offloads("net", on)?;
        self.server.namespace.set_offloads("net", on)?;
        if self.shape == Shape::Gateway {
            self.firewall.set_offloads("clients", on)?;
            self.firewall.set_offloads("servers", on)?;
        }
        Ok(())
    }
}
