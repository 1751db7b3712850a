//! The interfaces, addresses and routes of this host, as the program `ip` lists them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::netfilter::nft::find_program;

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Interface {
    #[serde(rename = "ifindex")]
    pub(super) index: u32,
    #[serde(rename = "ifname")]
    pub(super) name: String,
    #[serde(default)]
    pub(super) flags: Vec<String>,
    #[serde(rename = "addr_info", default)]
    pub(super) addresses: Vec<Address>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Address {
    pub(super) local: IpAddr,
    /// The other end's.
    pub(super) address: Option<IpAddr>,
    #[serde(rename = "prefixlen")]
    pub(super) prefix: u8,
    pub(super) scope: String,
}

#[derive(Debug, Deserialize)]
struct Route {
    dev: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// Where packets to an address go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is an address of this host.
    Here,
    /// It is behind this interface.
    Behind(String),
}

impl Interface {
    pub(super) fn is_loopback(&self) -> bool {
        self.flags.iter().any(|flag| flag == "LOOPBACK")
    }

    pub(super) fn is_up(&self) -> bool {
        self.flags.iter().any(|flag| flag == "UP")
    }
}

pub(super) fn interfaces() -> Result<Vec<Interface>, String> {
    json(&["-j", "address", "show"])
}

pub(super) fn place(address: IpAddr) -> Result<Place, String> {
    let routes: Vec<Route> = json(&["-j", "route", "get", &address.to_string()])?;
    match routes.into_iter().next() {
        Some(Route { kind: Some(kind), .. }) if kind == "local" => Ok(Place::Here),
        Some(Route { dev: Some(device), .. }) => Ok(Place::Behind(device)),
        _ => Err(format!("this host has no route to {address}")),
    }
}

/// The routes of the main table as commands of `ip` that add them, without those that follow from addresses.
pub(super) fn routes(is_v6: bool) -> Result<String, String> {
    let version = if is_v6 { "-6" } else { "-4" };
    let listed = output(&[version, "-o", "route", "show", "table", "main"])?;
    let add = |line: &str| format!("route add {}\n", without_state(line));
    Ok(listed.lines().filter(|line| !line.contains(" proto kernel")).map(add).collect())
}

/// A route without the words for its state, which cannot be added.
fn without_state(route: &str) -> String {
    const STATES: [&str; 7] = ["linkdown", "dead", "offload", "rt_offload", "trap", "rt_trap", "\\"];
    let mut words = route.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "expires" | "error" => drop(words.next()),
            word if STATES.contains(&word) => {}
            word => kept.push(word.trim_end_matches('\\')),
        }
    }
    kept.join(" ")
}

fn json<T: DeserializeOwned>(arguments: &[&str]) -> Result<T, String> {
    let text = output(arguments)?;
    serde_json::from_str(&text)
        .map_err(|error| format!("`ip {}` prints what cannot be read: {error}", arguments.join(" ")))
}

pub(super) fn ip_program() -> Result<PathBuf, String> {
    find_program("ip").ok_or_else(|| "the program ip was not found; install the package iproute2".to_owned())
}

fn output(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(ip_program()?).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("cannot run `ip {}`: {error}", arguments.join(" ")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(format!("`ip {}` failed: {}", arguments.join(" "), why.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_routes_can_be_added() {
        let of = |listed: &str| without_state(listed);
        assert_eq!(
            of("default via 10.0.0.1 dev eth0 proto dhcp metric 100 "),
            "default via 10.0.0.1 dev eth0 proto dhcp metric 100"
        );
        assert_eq!(of("10.9.0.0/16 via 10.0.0.2 dev eth1 linkdown"), "10.9.0.0/16 via 10.0.0.2 dev eth1");
        assert_eq!(of("default proto ra expires 1700sec dev eth0"), "default proto ra dev eth0");
        assert_eq!(
            of("default \\\tnexthop via 10.0.0.1 dev a\\\tnexthop via 10.1.0.1 dev b"),
            "default nexthop via 10.0.0.1 dev a nexthop via 10.1.0.1 dev b"
        );
    }

    #[test]
    fn interfaces_of_this_host_are_read() {
        let found = interfaces().expect("ip lists them");
        let loopback = found.iter().find(|interface| interface.name == "lo").expect("there always is one");
        assert!(loopback.is_loopback() && loopback.index == 1);
    }
}
