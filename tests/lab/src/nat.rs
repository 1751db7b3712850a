//! Topologies with NAT, and the same matrix in them.
//!
//! The rules of each are a file of `deploy/nftables/`, exactly as users copy it: it names the interfaces `inside` and
//! `outside`, and the same addresses as this file. Outside are the networks 203.0.113.0/24 and 2001:db8:113::/64;
//! inside is the lab's network 1. No host outside has a route to the inside: packets that are not translated do not
//! arrive.

use super::client::{ClientKind, Visit};
use super::error::Result;
use super::link::{End, join};
use super::matrix::{self, MatrixSetup};
use super::namespace::Namespace;
use super::packet_recorder::PacketRecorder;
use super::server::{Server, ServerKind, ServerOptions};
use super::topology::{Addresses, Family, Host};
use pinhole::core::ftp::Mode;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Who is translated where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Nat {
    /// The client is behind a masquerading gateway.
    Masquerade,
    /// The client is behind a gateway that alternates between two addresses.
    SnatPool,
    /// The server is behind a gateway that forwards port 21 to it.
    Dnat,
    /// The server is behind a gateway that forwards port 2121 to its port 21.
    DnatOtherPort,
    /// One gateway for everything; the client is inside.
    BothFromInside,
    /// One gateway for everything; the server is inside.
    BothFromOutside,
    /// One gateway for everything; both are inside, and the client connects to the outside address.
    Hairpin,
    /// The server is on the gateway, and the client connects to another address.
    Redirect,
    /// The client is on the host that translates.
    LocalSnat,
    /// The client is behind one gateway, which masquerades, and the server behind another.
    TwoGateways,
    /// The server is behind a gateway, knows it, and announces the outside address by itself.
    ServerKnows,
    /// The client is behind a gateway, knows it, and announces the outside address by itself.
    ClientKnows,
}

impl Nat {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Masquerade,
        Self::SnatPool,
        Self::Dnat,
        Self::DnatOtherPort,
        Self::BothFromInside,
        Self::BothFromOutside,
        Self::Hairpin,
        Self::Redirect,
        Self::LocalSnat,
        Self::TwoGateways,
        Self::ServerKnows,
        Self::ClientKnows,
    ];

    /// The port to which the client connects.
    pub const fn port(self) -> u16 {
        if matches!(self, Self::DnatOtherPort) { 2121 } else { 21 }
    }
}

impl fmt::Display for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Masquerade => "masquerade",
            Self::SnatPool => "SNAT, pool",
            Self::Dnat => "DNAT",
            Self::DnatOtherPort => "DNAT 2121 to 21",
            Self::BothFromInside => "both, from inside",
            Self::BothFromOutside => "both, from outside",
            Self::Hairpin => "hairpin",
            Self::Redirect => "redirect",
            Self::LocalSnat => "local SNAT",
            Self::TwoGateways => "two gateways",
            Self::ServerKnows => "server knows",
            Self::ClientKnows => "client knows",
        })
    }
}

/// A ruleset of `deploy/nftables/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Its text.
    pub text: &'static str,
}

impl Rules {
    const MASQUERADE: Self = Self { text: include_str!("../../../deploy/nftables/masquerade.nft") };
    const SNAT_POOL: Self = Self { text: include_str!("../../../deploy/nftables/snat-pool.nft") };
    const DNAT: Self = Self { text: include_str!("../../../deploy/nftables/dnat.nft") };
    const BOTH: Self = Self { text: include_str!("../../../deploy/nftables/both.nft") };
    const REDIRECT: Self = Self { text: include_str!("../../../deploy/nftables/redirect.nft") };
    const LOCAL_SNAT: Self = Self { text: include_str!("../../../deploy/nftables/local-snat.nft") };

    /// The policy that its comments say goes with it: the lines that are set off by five spaces.
    pub fn policy(self) -> String {
        self.text.lines().filter_map(|line| line.strip_prefix("#     ")).flat_map(|line| [line, "\n"]).collect()
    }
}

/// A host that translates. Nothing is loaded into it yet.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// Where it lies.
    pub namespace: Namespace,
    /// The rules to load into it.
    pub rules: Rules,
}

const fn outside(host: u8) -> Addresses {
    let host6 = if host >= 100 { host as u16 - 100 + 0x100 } else { host as u16 };
    Addresses { v4: Ipv4Addr::new(203, 0, 113, host), v6: Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, host6) }
}

const fn inside(host: u8) -> Addresses {
    Addresses::lab(1, host)
}

/// The address of a gateway outside, which the rules call public.
const PUBLIC: Addresses = outside(1);
/// A second gateway's.
const SECOND: Addresses = outside(2);
/// The addresses of the pool.
const POOL: [Addresses; 2] = [outside(100), outside(101)];
const GATEWAY_INSIDE: Addresses = inside(1);
const CLIENT_INSIDE: Addresses = inside(10);
const SERVER_INSIDE: Addresses = inside(20);
const HOST_OUTSIDE: Addresses = outside(10);

/// A client, a server, and the gateways between them.
#[derive(Debug)]
pub struct NatTopology {
    /// Which.
    pub nat: Nat,
    /// Whose programs connect.
    pub client: Host,
    /// Whose programs listen.
    pub server: Host,
    /// From the client to the server.
    pub gateways: Vec<Gateway>,
    /// The address to which the client connects.
    pub target: Addresses,
    /// The outside address of the gateway before the client or the server.
    pub public: Addresses,
    /// All that packets pass, except the switch: namespace and interface.
    interfaces: Vec<(Namespace, String)>,
}

impl NatTopology {
    /// Builds one without offloads, so that recorded packets have valid checksums.
    pub fn new(nat: Nat) -> Result<Self> {
        let mut plan = Plan::default();
        let topology = match nat {
            Nat::Masquerade | Nat::SnatPool | Nat::BothFromInside | Nat::ClientKnows => {
                let rules = match nat {
                    Nat::SnatPool => Rules::SNAT_POOL,
                    Nat::BothFromInside => Rules::BOTH,
                    _ => Rules::MASQUERADE,
                };
                let more = if nat == Nat::SnatPool { &POOL[..] } else { &[] };
                let gateway = new_gateway()?;
                let client = plan.inside(&gateway, "client", CLIENT_INSIDE)?;
                let server = plan.outside(&gateway, PUBLIC, more, "server")?;
                plan.topology(nat, client, server, vec![Gateway { namespace: gateway, rules }], HOST_OUTSIDE)
            }
            Nat::Dnat | Nat::DnatOtherPort | Nat::BothFromOutside | Nat::ServerKnows => {
                let rules = if nat == Nat::BothFromOutside { Rules::BOTH } else { Rules::DNAT };
                let gateway = new_gateway()?;
                let server = plan.inside(&gateway, "server", SERVER_INSIDE)?;
                let client = plan.outside(&gateway, PUBLIC, &[], "client")?;
                plan.topology(nat, client, server, vec![Gateway { namespace: gateway, rules }], PUBLIC)
            }
            Nat::Hairpin => {
                let gateway = new_gateway()?;
                let (client, server) = plan.inside_together(&gateway)?;
                plan.outside(&gateway, PUBLIC, &[], "internet")?;
                plan.topology(nat, client, server, vec![Gateway { namespace: gateway, rules: Rules::BOTH }], PUBLIC)
            }
            Nat::Redirect => {
                let gateway = new_gateway()?;
                let client = plan.inside(&gateway, "client", CLIENT_INSIDE)?;
                plan.outside(&gateway, PUBLIC, &[], "internet")?;
                let server = Host { namespace: gateway.clone(), addresses: GATEWAY_INSIDE };
                let gateways = vec![Gateway { namespace: gateway, rules: Rules::REDIRECT }];
                plan.topology(nat, client, server, gateways, HOST_OUTSIDE)
            }
            Nat::LocalSnat => {
                let gateway = new_gateway()?;
                let server = plan.outside(&gateway, PUBLIC, &POOL, "server")?;
                let client = Host { namespace: gateway.clone(), addresses: PUBLIC };
                let gateways = vec![Gateway { namespace: gateway, rules: Rules::LOCAL_SNAT }];
                plan.topology(nat, client, server, gateways, HOST_OUTSIDE)
            }
            Nat::TwoGateways => {
                let (near, far) = (new_gateway()?, new_gateway()?);
                let client = plan.inside(&near, "client", CLIENT_INSIDE)?;
                let server = plan.inside(&far, "server", SERVER_INSIDE)?;
                plan.join(&near, "outside", &[SECOND], &far, "outside", &[PUBLIC])?;
                let gateways = vec![
                    Gateway { namespace: near, rules: Rules::MASQUERADE },
                    Gateway { namespace: far, rules: Rules::DNAT },
                ];
                plan.topology(nat, client, server, gateways, PUBLIC)
            }
        };
        for (namespace, interface) in &topology.interfaces {
            namespace.set_offloads(interface, false)?;
        }
        Ok(topology)
    }

    /// Starts recording both ends, and counting the packets that the gateways call invalid.
    pub fn record_packets(&self) -> Result<PacketRecorder> {
        let gateways: Vec<_> = self.gateways.iter().map(|gateway| &gateway.namespace).collect();
        PacketRecorder::start(&[("client", &self.client.namespace), ("server", &self.server.namespace)], &gateways)
    }
}

fn new_gateway() -> Result<Namespace> {
    let namespace = Namespace::new("gateway")?;
    namespace.forward()?;
    Ok(namespace)
}

/// What is being built.
#[derive(Default)]
struct Plan {
    interfaces: Vec<(Namespace, String)>,
}

impl Plan {
    /// Joins two hosts, and remembers the cable.
    fn join(
        &mut self,
        one: &Namespace,
        interface: &str,
        addresses: &[Addresses],
        other: &Namespace,
        other_interface: &str,
        other_addresses: &[Addresses],
    ) -> Result<()> {
        let with_prefixes =
            |addresses: &[Addresses]| addresses.iter().flat_map(Addresses::with_prefixes).collect::<Vec<_>>();
        join(
            End { namespace: one, interface, addresses: &with_prefixes(addresses) },
            End { namespace: other, interface: other_interface, addresses: &with_prefixes(other_addresses) },
        )?;
        self.interfaces.extend([(one.clone(), interface.to_owned()), (other.clone(), other_interface.to_owned())]);
        Ok(())
    }

    /// A host alone behind a gateway, which is its default route.
    fn inside(&mut self, gateway: &Namespace, role: &str, addresses: Addresses) -> Result<Host> {
        let host = Host { namespace: Namespace::new(role)?, addresses };
        self.join(gateway, "inside", &[GATEWAY_INSIDE], &host.namespace, "net", &[addresses])?;
        route_by(&host, GATEWAY_INSIDE)?;
        Ok(host)
    }

    /// The client and the server, on one switch behind a gateway.
    fn inside_together(&mut self, gateway: &Namespace) -> Result<(Host, Host)> {
        let switch = Namespace::new("switch")?;
        self.join(gateway, "inside", &[GATEWAY_INSIDE], &switch, "gateway", &[])?;
        let client = Host { namespace: Namespace::new("client")?, addresses: CLIENT_INSIDE };
        let server = Host { namespace: Namespace::new("server")?, addresses: SERVER_INSIDE };
        for (host, port) in [(&client, "client"), (&server, "server")] {
            self.join(&switch, port, &[], &host.namespace, "net", &[host.addresses])?;
            route_by(host, GATEWAY_INSIDE)?;
        }
        switch.switch(&["gateway", "client", "server"])?;
        Ok((client, server))
    }

    /// A host in a gateway's outside network. It has no route to anywhere else.
    fn outside(&mut self, gateway: &Namespace, public: Addresses, more: &[Addresses], role: &str) -> Result<Host> {
        let host = Host { namespace: Namespace::new(role)?, addresses: HOST_OUTSIDE };
        let all: Vec<_> = [public].into_iter().chain(more.iter().copied()).collect();
        self.join(gateway, "outside", &all, &host.namespace, "net", &[HOST_OUTSIDE])?;
        Ok(host)
    }

    fn topology(self, nat: Nat, client: Host, server: Host, gateways: Vec<Gateway>, target: Addresses) -> NatTopology {
        NatTopology { nat, client, server, gateways, target, public: PUBLIC, interfaces: self.interfaces }
    }
}

fn route_by(host: &Host, gateway: Addresses) -> Result<()> {
    Family::ALL.into_iter().try_for_each(|family| host.namespace.route_by(gateway.of(family)))
}

/// Shared by a group of cells: the kind of NAT, and a server that clients of one family reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NatSetup {
    /// Who is translated where.
    pub nat: Nat,
    /// Which server.
    pub server: ServerKind,
    /// The family of the addresses that clients connect to.
    pub family: Family,
}

/// One client in one mode, in a setup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NatCell {
    /// Where.
    pub setup: NatSetup,
    /// Which client.
    pub client: ClientKind,
    /// How data connections are announced.
    pub mode: Mode,
}

impl NatSetup {
    /// All that make sense of these.
    pub fn all(nats: &[Nat], servers: &[ServerKind]) -> Vec<Self> {
        let mut setups = Vec::new();
        for &nat in nats {
            for &server in servers {
                setups.extend(Family::ALL.map(|family| Self { nat, server, family }));
            }
        }
        // An EPSV reply has no address that a server could know.
        setups.retain(|setup| (setup.nat, setup.family) != (Nat::ServerKnows, Family::V6));
        setups
    }
}

impl MatrixSetup for NatSetup {
    type Running = RunningNatSetup;
    type Cell = NatCell;

    fn set_up(self) -> Result<RunningNatSetup> {
        let topology = NatTopology::new(self.nat)?;
        let mut options = ServerOptions::on(topology.server.addresses.of(self.family));
        options.announce = (self.nat == Nat::ServerKnows).then_some(topology.public.v4);
        let server = self.server.start(&topology.server.namespace, &options)?;
        matrix::place(&server)?;
        Ok(RunningNatSetup { setup: self, topology, server })
    }

    /// Each suitable client, in each mode that it supports.
    fn cells(self) -> Vec<NatCell> {
        let can = |client: &ClientKind| self.nat != Nat::ClientKnows || client.announces_what_it_is_told();
        let each = |client: ClientKind| {
            client.modes(self.family).iter().map(move |&mode| NatCell { setup: self, client, mode })
        };
        ClientKind::ALL.into_iter().filter(can).flat_map(each).collect()
    }

    fn aspects(cell: &NatCell) -> Vec<String> {
        let NatCell { setup: NatSetup { nat, server, family }, client, mode } = cell;
        let direction = if mode.is_active() { "active" } else { "passive" };
        vec![
            format!("{nat} {direction}"),
            format!("{family} {mode}"),
            format!("{server} {mode}"),
            format!("{server} {client}"),
        ]
    }

    /// With them, most pairs of anything come up.
    fn extras(cell: &NatCell) -> Vec<String> {
        let NatCell { setup: NatSetup { nat, server, family }, client, mode } = cell;
        vec![
            format!("{nat} {family}"),
            format!("{nat} {server}"),
            format!("{nat} {client}"),
            format!("{nat} {mode}"),
            format!("{server} {family}"),
            format!("{client} {mode}"),
        ]
    }
}

impl fmt::Display for NatSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:18}  {}  {:9}", self.nat, self.family, self.server)
    }
}

impl fmt::Display for NatCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {:6}  {}", self.setup, self.client, self.mode)
    }
}

/// A setup that is set up.
#[derive(Debug)]
pub struct RunningNatSetup {
    /// Which.
    pub setup: NatSetup,
    /// Its namespaces and addresses.
    pub topology: NatTopology,
    /// The server, ready.
    pub server: Server,
}

impl RunningNatSetup {
    /// A client's visit, in this mode.
    pub fn visit(&self, mode: Mode, timeout: Duration) -> Visit<'_> {
        let NatTopology { nat, client, target, public, .. } = &self.topology;
        let family = self.setup.family;
        let announce: Option<IpAddr> = (*nat == Nat::ClientKnows).then(|| public.of(family));
        let server = SocketAddr::new(target.of(family), nat.port());
        Visit { namespace: &client.namespace, server, mode, announce, tls: None, timeout }
    }

    /// A listing, a download and, if the client can, an upload, each compared with the expected content.
    pub fn transfer(&self, client: ClientKind, mode: Mode, timeout: Duration) -> Result<()> {
        matrix::transfer(&self.server, client, &self.visit(mode, timeout))
    }
}
