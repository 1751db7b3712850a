//! NAT of data connections on a gateway between a private inside network and an outside network.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use pinhole::core::expectation::{Expectation, Mapping};
use pinhole::core::kernel::Firewall;
use pinhole::core::net::Endpoint;
use pinhole::core::policy::Policy;
use pinhole::core::time::Timestamp;
use pinhole::netfilter::backend::KernelFirewall;
use pinhole::netfilter::netlink::{Family, Table, Tables};
use rustix::net::{AddressFamily, SocketType};

use super::host::{Host, connects, expectation, ip, listens, port, tidy_up};
use crate::firewall;

/// Inside: `10.9.1.1`, `fd09:1::1`, and a second one each that ends in 2. Outside: `10.9.2.1`, `fd09:2::1`. The gateway
/// ends in 254 (fe) on both sides, and has 253 (fd) outside, too. Outside there is no route to the inside.
pub(crate) struct Site {
    pub(crate) inside: Host,
    pub(crate) gateway: Host,
    pub(crate) outside: Host,
}

/// The addresses of one IP version.
#[derive(Clone, Copy)]
struct Plan {
    nft: &'static str,
    inside: &'static str,
    neighbour: &'static str,
    lan: &'static str,
    wan: &'static str,
    other_wan: &'static str,
    outside: &'static str,
}

const V4: Plan = Plan {
    nft: "ip",
    inside: "10.9.1.1",
    neighbour: "10.9.1.2",
    lan: "10.9.1.254",
    wan: "10.9.2.254",
    other_wan: "10.9.2.253",
    outside: "10.9.2.1",
};
const V6: Plan = Plan {
    nft: "ip6",
    inside: "fd09:1::1",
    neighbour: "fd09:1::2",
    lan: "fd09:1::fe",
    wan: "fd09:2::fe",
    other_wan: "fd09:2::fd",
    outside: "fd09:2::1",
};

impl Site {
    pub(crate) fn new() -> Self {
        let (inside, gateway, outside) = (Host::new("inside"), Host::new("gateway"), Host::new("outside"));
        inside.join(&gateway, "wire", "lan");
        outside.join(&gateway, "wire", "wan");
        gateway.number("lan", "10.9.1.254/24", "fd09:1::fe/64");
        gateway.number("wan", "10.9.2.254/24", "fd09:2::fe/64");
        gateway.number("wan", "10.9.2.253/24", "fd09:2::fd/64");
        inside.number("wire", "10.9.1.1/24", "fd09:1::1/64");
        inside.number("wire", "10.9.1.2/24", "fd09:1::2/64");
        outside.number("wire", "10.9.2.1/24", "fd09:2::1/64");
        for via in ["10.9.1.254", "fd09:1::fe"] {
            inside.sh(&["ip", "route", "add", "default", "via", via]);
        }
        gateway.sh(&["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]);
        for there in ["10.9.1.254:1", "[fd09:1::fe]:1"] {
            inside.reaches(there);
        }
        for there in ["10.9.2.254:1", "[fd09:2::fe]:1"] {
            outside.reaches(there);
        }
        Self { inside, gateway, outside }
    }

    /// The gateway drops new connections except control connections, and has these NAT rules.
    fn guarded(&self, nat: &str) -> KernelFirewall {
        self.gateway.nft(&format!(
            "table inet filter {{
                chain guard {{
                    ct state established,related accept
                    tcp dport {{ 21, 2121 }} accept
                    meta l4proto ipv6-icmp accept
                    drop
                }}
                chain input {{ type filter hook input priority 0; policy accept; jump guard; }}
                chain forward {{ type filter hook forward priority 0; policy accept; jump guard; }}
                chain output {{ type filter hook output priority 0; policy accept; jump guard; }}
            }}
            {nat}"
        ));
        let admit = ["input", "forward", "output"].map(|chain| format!("inet filter {chain}"));
        let admit = admit.iter().map(|chain| chain.parse().expect("a chain")).collect();
        self.gateway.run(|| firewall::install(&Policy { admit, ..Policy::embedded() })).expect("installed")
    }
}

/// The user's own NAT, in a table of either IP version.
fn nat(rules: &[(&str, &str)]) -> String {
    let chains = rules.iter().map(|(hook, rule)| {
        let (name, priority) = match *hook {
            "prerouting" | "output" => ("dstnat", -100),
            _ => ("srcnat", 100),
        };
        format!("chain {name}_{hook} {{ type nat hook {hook} priority {priority}; {rule}\n }}\n")
    });
    format!("table inet nat {{\n{}}}", chains.collect::<String>())
}

fn at(address: &str, number: u16) -> SocketAddr {
    SocketAddr::new(ip(address), number)
}

/// An expectation from one address to another address and port, with its NAT mapping.
fn mapped(from: &str, to: (&str, u16), delivered: Option<(&str, u16)>, leaves: Option<&str>) -> Expectation {
    let delivered = delivered.map(|(address, number)| Endpoint::new(ip(address), port(number)));
    let mapping = Mapping { to: delivered, from: leaves.map(ip) };
    Expectation { mapping, ..expectation(from, to.0, to.1, 60) }
}

/// Connects from a chosen address and port, as servers do from port 20.
pub(crate) fn connects_from(host: &Host, from: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    host.run(|| {
        let family = if from.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Send,
            Some(Duration::from_millis(500)),
        )?;
        rustix::net::bind(&socket, &from)?;
        rustix::net::connect(&socket, &to)?;
        Ok(TcpStream::from(socket))
    })
}

/// Checks that bytes of one end arrive at the other. Returns the address that the listener sees.
fn carries(listener: &TcpListener, mut stream: TcpStream) -> SocketAddr {
    let (mut accepted, peer) = listener.accept().expect("it came");
    stream.write_all(b"data").expect("open");
    let mut came = [0; 4];
    accepted.read_exact(&mut came).expect("it comes");
    accepted.write_all(b"back").expect("open");
    stream.read_exact(&mut came).expect("it comes");
    peer
}

fn listener(host: &Host, address: &str, number: u16) -> TcpListener {
    listens(host, &at(address, number).to_string())
}

/// Checks that a pinhole admits one connection, translated, and not a second. Returns the address that the listener
/// sees.
fn once(sets: &mut KernelFirewall, expectation: &Expectation, from: &Host, listener: &TcpListener) -> SocketAddr {
    let to = SocketAddr::new(expectation.to.address, expectation.to.port.number());
    assert!(connects_from(from, SocketAddr::new(expectation.from, 0), to).is_err(), "nobody announced {expectation}");
    firewall::open(sets, expectation).expect("opened");
    let standing = sets.pinholes().expect("sets");
    assert_eq!(
        standing.iter().map(|hole| (hole.to, hole.mapping)).collect::<Vec<_>>(),
        [(expectation.to, expectation.mapping)]
    );
    assert_eq!(sets.mapping_of(expectation.from, expectation.to), Some(expectation.mapping));
    let stream = connects_from(from, SocketAddr::new(expectation.from, 0), to);
    let peer = carries(listener, stream.unwrap_or_else(|error| panic!("{expectation}: {error}")));
    assert!(connects_from(from, SocketAddr::new(expectation.from, 0), to).is_err(), "{expectation} was used");
    tidy_up(sets, expectation);
    assert_eq!(sets.mapping_of(expectation.from, expectation.to), None, "it was used, and swept away");
    assert_eq!(sets.take_refused().latest, None);
    peer
}

#[test]
fn masqueraded_client_is_reached_at_its_outside_address() {
    let site = Site::new();
    let mut sets = site.guarded(&nat(&[("postrouting", "oifname wan masquerade")]));
    for plan in [V4, V6] {
        let there = listener(&site.inside, plan.inside, 40_000);
        let active = mapped(plan.outside, (plan.wan, 50_000), Some((plan.inside, 40_000)), None);
        assert_eq!(once(&mut sets, &active, &site.outside, &there).ip(), ip(plan.outside), "as itself");
    }
}

#[test]
fn data_connection_uses_its_sessions_snat_address() {
    let pool = "oifname wan ip saddr 10.9.1.0/24 snat ip to 10.9.2.253-10.9.2.254
        oifname wan ip6 saddr fd09:1::/64 snat ip6 to fd09:2::fd-fd09:2::fe";
    for users in ["oifname wan masquerade", pool] {
        let site = Site::new();
        let mut sets = site.guarded(&nat(&[("postrouting", users)]));
        for plan in [V4, V6] {
            let there = listener(&site.outside, plan.outside, 40_000);
            for address in [plan.wan, plan.other_wan] {
                let passive = mapped(plan.inside, (plan.outside, 40_000), None, Some(address));
                assert_eq!(once(&mut sets, &passive, &site.inside, &there).ip(), ip(address), "{users}");
            }
        }
    }
}

#[test]
fn dnat_server_connects_from_its_outside_address_and_port_20() {
    let site = Site::new();
    let mut sets = site.guarded(&nat(&[("prerouting", "iifname wan tcp dport 21 dnat ip to 10.9.1.1:2121")]));
    for plan in [V4, V6] {
        let there = listener(&site.outside, plan.outside, 40_000);
        let mut connect = |server: &str| {
            let active = mapped(server, (plan.outside, 40_000), None, Some(plan.wan));
            firewall::open(&mut sets, &active).expect("opened");
            let stream = connects_from(&site.inside, at(server, 20), at(plan.outside, 40_000)).expect("announced");
            tidy_up(&mut sets, &active);
            (there.accept().expect("it came"), stream)
        };
        let ((_first, peer), _here) = connect(plan.inside);
        assert_eq!(peer, at(plan.wan, 20));
        // Another server with the same outside address, to the same port, at the same time.
        let ((_second, peer), _here) = connect(plan.neighbour);
        assert_eq!(peer.ip(), ip(plan.wan));
        assert_ne!(peer.port(), 20);
        // Passive: the announced address is not where the server listens.
        let server = listener(&site.inside, plan.inside, 40_001);
        let passive = mapped(plan.outside, (plan.wan, 50_001), Some((plan.inside, 40_001)), None);
        assert_eq!(once(&mut sets, &passive, &site.outside, &server).ip(), ip(plan.outside));
    }
}

#[test]
fn redirected_server_connects_from_the_original_address() {
    let site = Site::new();
    let mut sets = site.guarded(&nat(&[("prerouting", "iifname lan tcp dport 21 redirect to :2121")]));
    for plan in [V4, V6] {
        let control = listener(&site.gateway, plan.lan, 2121);
        let call = connects(&site.inside, &at(plan.outside, 21).to_string()).expect("it is redirected");
        carries(&control, call);
        let client = listener(&site.inside, plan.inside, 40_000);
        let active = mapped(plan.lan, (plan.inside, 40_000), None, Some(plan.outside));
        assert_eq!(once(&mut sets, &active, &site.gateway, &client).ip(), ip(plan.outside));
        let server = listener(&site.gateway, plan.lan, 40_001);
        let passive = mapped(plan.inside, (plan.outside, 50_001), Some((plan.lan, 40_001)), None);
        assert_eq!(once(&mut sets, &passive, &site.inside, &server).ip(), ip(plan.inside));
        // And a local server whose clients' source addresses are translated.
        let passive = mapped(plan.inside, (plan.outside, 50_001), Some((plan.lan, 40_001)), Some(plan.neighbour));
        assert_eq!(once(&mut sets, &passive, &site.inside, &server).ip(), ip(plan.neighbour));
    }
}

#[test]
fn local_client_behind_snat_can_transfer() {
    let site = Site::new();
    let mut sets = site.guarded(&nat(&[("postrouting", "oifname wan tcp dport 21 snat ip to 10.9.2.253")]));
    for plan in [V4, V6] {
        let client = listener(&site.gateway, plan.wan, 40_000);
        let active = mapped(plan.outside, (plan.other_wan, 50_000), Some((plan.wan, 40_000)), None);
        assert_eq!(once(&mut sets, &active, &site.outside, &client).ip(), ip(plan.outside));
        let server = listener(&site.outside, plan.outside, 40_001);
        let passive = mapped(plan.wan, (plan.outside, 40_001), None, Some(plan.other_wan));
        assert_eq!(once(&mut sets, &passive, &site.gateway, &server).ip(), ip(plan.other_wan));
        // A server that is known here by another address and port than its own.
        let passive = mapped(plan.wan, (plan.inside, 50_001), Some((plan.outside, 40_001)), Some(plan.other_wan));
        assert_eq!(once(&mut sets, &passive, &site.gateway, &server).ip(), ip(plan.other_wan));
    }
}

#[test]
fn client_and_server_on_one_side_connect_through_the_gateway() {
    let site = Site::new();
    let mut sets = site.guarded("");
    for plan in [V4, V6] {
        let server = listener(&site.inside, plan.neighbour, 40_000);
        let passive = mapped(plan.inside, (plan.wan, 50_000), Some((plan.neighbour, 40_000)), Some(plan.lan));
        assert_eq!(once(&mut sets, &passive, &site.inside, &server).ip(), ip(plan.lan));
        let client = listener(&site.inside, plan.inside, 40_001);
        let active = mapped(plan.neighbour, (plan.lan, 50_001), Some((plan.inside, 40_001)), Some(plan.wan));
        assert_eq!(once(&mut sets, &active, &site.inside, &client).ip(), ip(plan.wan));
    }
}

fn in_maps(site: &Site) -> usize {
    let mut tables = site.gateway.run(|| Tables::open(Duration::from_secs(1))).expect("root");
    let mut count =
        |map| tables.elements(Table { family: Family::Inet, name: "pinhole" }, map).expect("it stands").len();
    ["targets4", "targets6", "sources4", "sources6"].map(&mut count).iter().sum()
}

#[test]
fn nat_mapping_is_removed_with_its_pinhole() {
    let site = Site::new();
    let mut sets = site.guarded("");
    for plan in [V4, V6] {
        let both = mapped(plan.outside, (plan.wan, 50_000), Some((plan.inside, 40_000)), Some(plan.other_wan));
        firewall::open(&mut sets, &both).expect("opened");
        assert_eq!(in_maps(&site), 2);
        let one = Expectation { mapping: Mapping { from: None, ..both.mapping }, ..both };
        firewall::open(&mut sets, &one).expect("opened anew");
        assert_eq!((in_maps(&site), sets.mapping_of(one.from, one.to)), (1, Some(one.mapping)));
        let none = Expectation { mapping: Mapping::NONE, ..both };
        firewall::open(&mut sets, &none).expect("opened anew");
        assert_eq!((in_maps(&site), sets.mapping_of(one.from, one.to)), (0, Some(Mapping::NONE)));
        firewall::open(&mut sets, &both).expect("opened anew");
        sets.close(&both);
        assert_eq!((in_maps(&site), sets.mapping_of(one.from, one.to)), (0, None));
        sets.close(&both);
        firewall::open(&mut sets, &Expectation { lifetime: Duration::from_millis(50), ..both }).expect("opened");
        assert!((0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            in_maps(&site) == 0
        }));
        assert_eq!(sets.take_refused().latest, None);
    }
    let mixed = mapped(V4.outside, (V4.wan, 50_000), Some((V6.inside, 40_000)), None);
    firewall::open(&mut sets, &mixed).expect_err("no connection changes its IP version");
}

#[test]
fn nat_mapping_survives_restart_and_flush() {
    let site = Site::new();
    let nat = nat(&[("postrouting", "oifname wan masquerade")]);
    drop(site.guarded(&nat));
    for plan in [V4, V6] {
        let there = listener(&site.inside, plan.inside, 40_000);
        let active = mapped(plan.outside, (plan.wan, 50_000), Some((plan.inside, 40_000)), Some(plan.lan));
        let mut first = site.gateway.run(|| firewall::install(&Policy::embedded())).expect("installed");
        firewall::open(&mut first, &active).expect("opened");
        drop(first);
        let mut second = site.gateway.run(|| firewall::install(&Policy::embedded())).expect("over what stands");
        assert_eq!(second.mapping_of(active.from, active.to), Some(active.mapping));
        site.gateway.nft(&format!("flush ruleset\n{nat}"));
        let now = Timestamp::from_secs(1);
        let restored = site.gateway.run(|| second.restore(now, [active].iter())).expect("it can be restored");
        assert_eq!((restored.table, restored.elements), (true, 1), "one pinhole, however it is mapped");
        let to = SocketAddr::new(active.to.address, active.to.port.number());
        let stream = connects(&site.outside, &to.to_string()).expect("announced");
        assert_eq!(carries(&there, stream).ip(), ip(plan.lan));
    }
}

#[test]
fn mss_of_translated_control_connections_is_clamped() {
    let site = Site::new();
    let users =
        [("postrouting", "oifname wan tcp dport 21 masquerade"), ("prerouting", "tcp dport 2121 redirect to :21")];
    let _sets = site.guarded(&nat(&users));
    let size = |stream: &TcpStream| getsockopt(stream, sockopt::TcpMaxSeg).expect("connected");
    for plan in [V4, V6] {
        let server = listener(&site.outside, plan.outside, 21);
        let client = connects(&site.inside, &at(plan.outside, 21).to_string()).expect("translated");
        let (accepted, _) = server.accept().expect("it came");
        assert!(size(&client) <= 1000 && size(&accepted) <= 1000, "{} {}", size(&client), size(&accepted));
        let client = connects(&site.gateway, &at(plan.outside, 21).to_string()).expect("its source port is free");
        let (accepted, _) = server.accept().expect("it came");
        assert!(size(&client) > 1000 && size(&accepted) > 1000, "{} addresses stay the same", plan.nft);
    }
}
