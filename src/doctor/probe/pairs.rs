//! Between which hosts probes are sent, if the administrator names none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::addresses::{Interface, Place, interfaces, place};
use crate::core::policy::Policy;
use crate::doctor::listeners::Listener;
use crate::netfilter::netlink::Conntrack;

const TIMEOUT: Duration = Duration::from_secs(5);
/// How many pairs are probed.
const MAX_PAIRS: usize = 6;
/// Clients somewhere on the Internet. No packet to them leaves the copy of this host.
const FAR: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9)), IpAddr::V6(Ipv6Addr::new(0x2620, 0xfe, 0, 0, 0, 0, 0, 9))];

/// A client, and a server by the address to which the client connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub client: IpAddr,
    pub server: IpAddr,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Pairs {
    pub(super) pairs: Vec<Pair>,
    /// The clients are made up.
    pub(super) are_guessed: bool,
}

/// The ends of the control connections that pass this host now. If there are none and a server listens here: a client near
/// by and one far away for each of this host's addresses.
pub(super) fn likely(policy: &Policy, listeners: &[Listener]) -> Result<Pairs, String> {
    let mut pairs = present(policy)?;
    let are_guessed = pairs.is_empty();
    if are_guessed && listeners.iter().any(|listener| is_control_port(policy, listener.port)) {
        let far: Vec<IpAddr> = FAR.into_iter().filter(|client| place(*client).is_ok()).collect();
        pairs = of_this_host(&interfaces()?, &far);
        // The addresses towards the Internet first.
        let towards: Vec<String> = far.iter().filter_map(|client| device(*client)).collect();
        let is_elsewhere = |pair: &Pair| device(pair.client).is_none_or(|device| !towards.contains(&device));
        pairs.sort_by_cached_key(is_elsewhere);
    }
    pairs.truncate(MAX_PAIRS);
    Ok(Pairs { pairs, are_guessed })
}

pub(super) fn is_control_port(policy: &Policy, port: u16) -> bool {
    policy.control_ports.as_slice().iter().any(|control| control.number() == port)
}

fn device(address: IpAddr) -> Option<String> {
    match place(address) {
        Ok(Place::Behind(device)) => Some(device),
        _ => None,
    }
}

fn present(policy: &Policy) -> Result<Vec<Pair>, String> {
    let listed = Conntrack::open(TIMEOUT)
        .and_then(|mut conntrack| {
            conntrack.list(|entry| {
                let to = entry.connection.original.destination;
                entry.is_established && policy.control_ports.contains(to.port) && !to.address.is_loopback()
            })
        })
        .map_err(|error| error.to_string())?;
    let mut pairs: Vec<Pair> = Vec::new();
    for entry in listed {
        let original = entry.connection.original;
        let pair = Pair { client: original.source.address, server: original.destination.address };
        if pairs.len() < MAX_PAIRS && !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
    Ok(pairs)
}

fn of_this_host(interfaces: &[Interface], far: &[IpAddr]) -> Vec<Pair> {
    let up = interfaces.iter().filter(|interface| interface.is_up() && !interface.is_loopback());
    let addresses = up.flat_map(|interface| &interface.addresses).filter(|address| address.scope == "global");
    addresses
        .flat_map(|address| {
            let server = address.local;
            let near = address.address.or_else(|| neighbour(server, address.prefix));
            let far = far.iter().copied().find(|far| far.is_ipv4() == server.is_ipv4());
            near.into_iter().chain(far).map(move |client| Pair { client, server })
        })
        .collect()
}

/// Another address of the same network.
fn neighbour(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) if prefix <= 30 => {
            let host = u32::MAX >> prefix;
            // Neither the network's own address nor that for all hosts.
            let is_host = |bits: u32| bits & host != 0 && bits & host != host;
            let next = |bits: u32| bits & !host | (bits.wrapping_add(1) & host);
            let others = std::iter::successors(Some(next(address.to_bits())), |bits| Some(next(*bits)));
            others.take(3).find(|bits| is_host(*bits)).map(|bits| Ipv4Addr::from_bits(bits).into())
        }
        IpAddr::V6(address) if prefix <= 126 => Some(Ipv6Addr::from_bits(address.to_bits() ^ 2).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbour_is_another_host_of_the_network() {
        let of = |address: &str, prefix| {
            let found = neighbour(address.parse().expect("an address"), prefix);
            found.map(|address| address.to_string())
        };
        assert_eq!(of("10.0.0.5", 24).as_deref(), Some("10.0.0.6"));
        assert_eq!(of("10.0.0.254", 24).as_deref(), Some("10.0.0.1"));
        assert_eq!(of("10.0.0.6", 30).as_deref(), Some("10.0.0.5"));
        assert_eq!(of("10.0.0.6", 32), None);
        assert_eq!(of("fd00::1", 64).as_deref(), Some("fd00::3"));
    }
}
