//! The copy of this host, and the outside: a namespace that is at the other end of all interfaces of the copy.
//!
//! Interfaces have their names and indexes, which rules compare. Each is a pair of `veth` without ARP, both ends with the
//! same address, so that packets go to the other end whatever their next hop is.

use std::fs;
use std::io;
use std::net::IpAddr;

use super::addresses::{Address, Interface, Place, interfaces, place, routes};
use super::namespace::{Namespace, OTHER};
use super::tables::CopiedTables;
use crate::core::policy::{Mechanism, Policy, WhenDown};
use crate::doctor::ruleset::Ruleset;
use crate::netfilter::backend::KernelFirewall;

/// The settings of the kernel that are copied, by their paths below `/proc/sys`.
const SETTINGS: [&str; 5] = [
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/netfilter/nf_conntrack_helper",
];
/// How many interfaces are copied.
const MAX_INTERFACES: usize = 256;

#[derive(Debug)]
pub(super) struct Replica {
    pub(super) firewall: KernelFirewall,
    pub(super) tables: CopiedTables,
    pub(super) host: Namespace,
    pub(super) outside: Namespace,
    interfaces: Vec<Interface>,
    pub(super) left_out: Vec<String>,
}

impl Replica {
    pub(super) fn build(policy: &Policy, ruleset: &Ruleset) -> Result<Self, String> {
        let mut interfaces = interfaces()?;
        interfaces.retain(|interface| !interface.is_loopback());
        let mut left_out = Vec::new();
        if interfaces.len() > MAX_INTERFACES {
            left_out.push(format!("all interfaces but {MAX_INTERFACES}"));
            interfaces.truncate(MAX_INTERFACES);
        }
        let (host, outside) = (Namespace::new()?, Namespace::new()?);
        copy_settings(&host, &interfaces, false);
        host.ip(&links(&interfaces), Some(&outside))?;
        copy_settings(&host, &interfaces, true);
        host.ip(&addresses(&interfaces), None)?;
        host.ip(&routes(false)?, None)?;
        // Without IPv6 there are no such routes.
        host.ip6(&routes(true).unwrap_or_default())?;
        let ways = ways(&interfaces);
        outside.ip(&(ends(&interfaces) + &ways), None)?;
        outside.ip6(&ways)?;
        let present = host.run(present_interfaces)?.unwrap_or_default();
        let missing = interfaces.iter().filter(|interface| !present.contains(&interface.name));
        left_out.extend(missing.map(|interface| format!("the interface {}", interface.name)));
        let mut tables = CopiedTables::copy(ruleset, &host)?;
        left_out.append(&mut tables.left_out);
        let mut policy = policy.clone();
        // The other one has a helper that all namespaces share.
        policy.mechanism = Mechanism::Sets;
        // Nobody reads the queue in the copy, as if the reader had accepted the packet.
        policy.capture.when_down = WhenDown::Open;
        policy.admit.retain(|chain| ruleset.has(chain));
        let firewall = host
            .run(|| KernelFirewall::install(&policy))?
            .map_err(|error| format!("Pinhole's table cannot be installed in a copy of this host: {error}"))?;
        Ok(Self { firewall, tables, host, outside, interfaces, left_out })
    }

    /// The end outside of the interface behind which an address is. None if it is an address of this host.
    pub(super) fn end_towards(&self, address: IpAddr) -> Result<Option<String>, String> {
        let Place::Behind(device) = place(address)? else { return Ok(None) };
        let found = self.interfaces.iter().find(|interface| interface.name == device);
        let interface = found.ok_or_else(|| format!("the copy of this host lacks the interface {device}"))?;
        Ok(Some(end(interface)))
    }
}

/// The interfaces in the namespace of this thread.
fn present_interfaces() -> io::Result<Vec<String>> {
    let listed = fs::read_to_string("/proc/thread-self/net/dev")?;
    Ok(listed.lines().skip(2).filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect())
}

fn copy_settings(host: &Namespace, interfaces: &[Interface], of_interfaces: bool) {
    let of_interface = |interface: &Interface| format!("net/ipv4/conf/{}/rp_filter", interface.name);
    let settings: Vec<String> = match of_interfaces {
        true => interfaces.iter().map(of_interface).collect(),
        false => SETTINGS.map(str::to_owned).into(),
    };
    for setting in settings {
        // Not every kernel has each.
        if let Ok(value) = fs::read_to_string(format!("/proc/sys/{setting}")) {
            let _ = host.set(&setting, value.trim());
        }
    }
}

/// The other end of an interface.
fn end(interface: &Interface) -> String {
    format!("end{}", interface.index)
}

fn links(interfaces: &[Interface]) -> String {
    let link = |interface: &Interface| {
        let Interface { index, name, .. } = interface;
        let add = |index: &str| {
            format!(
                "link add {name} {index} address 02:00:00:00:00:01 arp off type veth peer name {} netns {OTHER} \
                 address 02:00:00:00:00:01\n",
                end(interface)
            )
        };
        // The second one fails if the first has not: some indexes are taken by interfaces that each namespace has.
        add(&format!("index {index}")) + &add("")
    };
    interfaces.iter().map(link).chain(["link set lo up\n".to_owned()]).collect()
}

fn addresses(interfaces: &[Interface]) -> String {
    let add = |interface: &Interface| {
        let name = &interface.name;
        let of = |&Address { local, address, prefix, .. }: &Address| {
            // Used at once, without a search for a duplicate.
            let end = if local.is_ipv6() { " nodad" } else { "" };
            match address {
                Some(peer) => format!("address add {local} peer {peer}/{prefix} dev {name}{end}\n"),
                None => format!("address add {local}/{prefix} dev {name}{end}\n"),
            }
        };
        let addresses: String = interface.addresses.iter().map(of).collect();
        addresses + &if interface.is_up() { format!("link set {name} up\n") } else { String::new() }
    };
    interfaces.iter().map(add).collect()
}

/// The ends outside.
fn ends(interfaces: &[Interface]) -> String {
    let set = |interface: &Interface| {
        let end = end(interface);
        format!("link set {end} arp off\nlink set {end} up\n")
    };
    interfaces.iter().map(set).chain(["link set lo up\n".to_owned()]).collect()
}

/// Outside, the way to everywhere by each end. A socket that is bound to an end takes its way.
fn ways(interfaces: &[Interface]) -> String {
    let way = |interface: &Interface| format!("route add default dev {} metric {}\n", end(interface), interface.index);
    interfaces.iter().map(way).collect()
}
