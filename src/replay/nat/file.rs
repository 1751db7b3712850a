//! Reads the description of a NAT, a YAML file, with the same parser and the same kind of errors as a policy.

use std::net::{IpAddr, SocketAddr};

use super::{Dnat, Nat};
use crate::core::net::{Endpoint, Port};
use crate::core::policy::{self, Hosts, Problems, Quoted, YamlEntry, YamlReader};

const KEYS: &[&str] = &["inside", "outside", "dnat"];
/// The maximum number of networks, and of entries of `dnat`.
const MAX_LIST: usize = 1000;
/// One address of each family.
const MAX_OUTSIDE: usize = 2;

const ALL: &str = "inside, and outside or dnat or both";
const INSIDE: &str = "a list of networks such as [192.168.0.0/16, fd00::/8]";
const OUTSIDE: &str = "a list of 1 or 2 addresses, one of each family, such as [198.51.100.1, \"2001:db8::1\"]";
const DNAT: &str = "\"OUTSIDE:PORT -> INSIDE:PORT\", such as \"198.51.100.1:21 -> 192.168.0.5:21\" or \
                    \"[2001:db8::1]:21 -> [fd00::5]:21\"";

/// Reads the description of a NAT from the bytes of a file.
///
/// `name` is the name of the file in error messages.
///
/// # Errors
/// All errors of the file, each with its line and column.
pub fn parse_bytes(name: &str, bytes: &[u8]) -> Result<Nat, Problems> {
    // A NAT has no warnings.
    policy::read_bytes(name, bytes, read).map(|(nat, _)| nat)
}

fn read(reader: &mut YamlReader<'_>, root: YamlEntry<'_>) -> Nat {
    let nothing = Nat { inside: Hosts::everyone(), outside: Vec::new(), dnat: Vec::new() };
    let Some(fields) = reader.fields(root, KEYS, &[], ALL) else { return nothing };
    let inside = fields.get("inside").map(|entry| inside(reader, entry));
    if inside.is_none() {
        reader.error(root, "the key inside is missing: the networks behind the NAT", ALL);
    }
    // If `inside` cannot be read, the other addresses are not compared with it.
    let inside = inside.flatten();
    let outside = fields.get("outside").map(|entry| outside(reader, entry, inside.as_ref()));
    let dnat = fields.get("dnat").map(|entry| dnat(reader, entry, inside.as_ref()));
    if outside.is_none() && dnat.is_none() {
        reader.error(root, "both outside and dnat are missing: nothing would be translated", ALL);
    }
    Nat {
        inside: inside.unwrap_or(nothing.inside),
        outside: outside.flatten().unwrap_or_default(),
        dnat: dnat.flatten().unwrap_or_default(),
    }
}

fn inside(reader: &mut YamlReader<'_>, entry: YamlEntry<'_>) -> Option<Hosts> {
    let entries = reader.list(entry, 1..=MAX_LIST, INSIDE)?;
    let count = entries.len();
    let networks: Vec<_> = entries.into_iter().filter_map(|entry| policy::network(reader, entry)).collect();
    (networks.len() == count).then(|| Hosts::new(networks))
}

fn outside(reader: &mut YamlReader<'_>, entry: YamlEntry<'_>, inside: Option<&Hosts>) -> Option<Vec<IpAddr>> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for entry in reader.list(entry, 1..=MAX_OUTSIDE, OUTSIDE)? {
        let Some(text) = reader.text(entry, OUTSIDE) else { continue };
        let Ok(address) = text.parse::<IpAddr>() else {
            reader.error(entry, format!("{} is no IP address", Quoted(text)), OUTSIDE);
            continue;
        };
        if addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            let message = format!("{address} is a second address of its family");
            reader.error(
                entry,
                message,
                "one address of each family: a capture does not show which of several the gateway would use",
            );
        }
        check_outside(reader, entry, address, inside);
        addresses.push(address);
    }
    Some(addresses)
}

fn dnat(reader: &mut YamlReader<'_>, entry: YamlEntry<'_>, inside: Option<&Hosts>) -> Option<Vec<Dnat>> {
    let mut all: Vec<Dnat> = Vec::new();
    for entry in reader.list(entry, 1..=MAX_LIST, DNAT)? {
        let Some(text) = reader.text(entry, DNAT) else { continue };
        let ends = text.split_once("->").and_then(|(outside, inside)| Some((endpoint(outside)?, endpoint(inside)?)));
        let Some((outside, target)) = ends else {
            reader.error(entry, format!("{} is no destination NAT", Quoted(text)), DNAT);
            continue;
        };
        if outside.address.is_ipv4() != target.address.is_ipv4() {
            reader.error(entry, "the two addresses are of different families", DNAT);
        }
        check_outside(reader, entry, outside.address, inside);
        if inside.is_some_and(|inside| !inside.contains(target.address)) {
            let message = format!("{} is not an inside address", target.address);
            reader.error(entry, message, "an address of the networks that inside lists");
        }
        if all.iter().any(|other| other.outside == outside) {
            reader.error(
                entry,
                format!("{outside} is already translated to another address"),
                "each address and port once",
            );
        }
        if all.iter().any(|other| other.inside == target) {
            let message = format!("connections to another address are already translated to {target}");
            reader.error(
                entry,
                message,
                "each target once: a capture does not show to which of several addresses the client connected",
            );
        }
        all.push(Dnat { outside, inside: target });
    }
    Some(all)
}

fn check_outside(reader: &mut YamlReader<'_>, entry: YamlEntry<'_>, address: IpAddr, inside: Option<&Hosts>) {
    if inside.is_some_and(|inside| inside.contains(address)) {
        let message = format!("{address} is an inside address");
        reader.error(entry, message, "an address that is in none of the networks that inside lists");
    }
}

fn endpoint(text: &str) -> Option<Endpoint> {
    let address: SocketAddr = text.trim().parse().ok()?;
    Some(Endpoint::new(address.ip(), Port::new(address.port())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::script::endpoint;

    fn problems(text: &str) -> Vec<String> {
        let problems = parse_bytes("nat.yaml", text.as_bytes()).expect_err("it is wrong");
        problems.iter().map(policy::Problem::headline).collect()
    }

    #[test]
    fn description_has_both_families_and_dnat() {
        let text = "inside: [192.168.0.0/16, \"fd00::/8\"]\noutside: [198.51.100.1, \"2001:db8::1\"]\ndnat:\n  \
                    - 198.51.100.2:2121 -> 192.168.0.5:21\n  - \"[2001:db8::1]:21 -> [fd00::5]:21\"\n";
        let nat = parse_bytes("nat.yaml", text.as_bytes()).expect("it is good");
        assert!(nat.is_inside(endpoint("[fd00::5]:1").address) && !nat.is_inside(endpoint("10.0.0.1:1").address));
        assert_eq!(nat.snat_address(endpoint("203.0.113.5:21").address), Some(endpoint("198.51.100.1:1").address));
        assert_eq!(nat.before_dnat(endpoint("192.168.0.5:21")), Some(endpoint("198.51.100.2:2121")));
        assert_eq!(nat.before_dnat(endpoint("192.168.0.5:22")), None);
        assert!(nat.is_outside(endpoint("198.51.100.2:1").address));
    }

    #[test]
    fn each_part_may_be_left_out_but_not_both() {
        for good in [
            "inside: [10.0.0.0/8]\noutside: [198.51.100.1]",
            "inside: [10.0.0.0/8]\ndnat: [\"198.51.100.1:21 -> 10.0.0.5:21\"]",
        ] {
            assert!(parse_bytes("nat.yaml", good.as_bytes()).is_ok(), "{good}");
        }
        let neither = problems("inside: [10.0.0.0/8]");
        assert!(neither[0].contains("both outside and dnat are missing"), "{neither:?}");
        assert!(problems("outside: [198.51.100.1]")[0].contains("the key inside is missing"));
    }

    #[test]
    fn every_error_has_line_and_column() {
        let text = "inside: [10.0.0.0/8]\noutside: [10.0.0.1, 198.51.100.1, x]\ndnta: []\ndnat:\n  - 1.2.3.4:21\n  \
                    - 198.51.100.1:21 -> 192.168.0.1:21\n";
        assert!(problems(text)[0].starts_with("nat.yaml:2:1: error: outside: the list has 3 elements"));
        let text = text.replace("[10.0.0.1, 198.51.100.1, x]", "[10.0.0.1, x]");
        let found = problems(&text);
        for (found, expected) in found.iter().zip([
            "nat.yaml:2:11: error: outside: 10.0.0.1 is an inside address",
            "nat.yaml:2:21: error: outside: x is no IP address",
            "nat.yaml:3:1: error: unknown key dnta; did you mean dnat? (expected one of inside, outside, dnat)",
            "nat.yaml:5:5: error: dnat: 1.2.3.4:21 is no destination NAT",
            "nat.yaml:6:5: error: dnat: 192.168.0.1 is not an inside address",
        ]) {
            assert!(found.starts_with(expected), "{found}");
        }
        assert_eq!(found.len(), 5, "{found:?}");
    }

    #[test]
    fn ambiguous_translation_is_refused() {
        let twice = problems("inside: [10.0.0.0/8]\noutside: [198.51.100.1, 198.51.100.2]");
        assert!(twice[0].contains("is a second address of its family"), "{twice:?}");
        let text = "inside: [10.0.0.0/8]\ndnat:\n  - 198.51.100.1:21 -> 10.0.0.5:21\n  - 198.51.100.1:2121 -> 10.0.0.5:21\n  \
                    - 198.51.100.1:21 -> 10.0.0.6:21\n  - \"[2001:db8::1]:21 -> 10.0.0.7:21\"\n";
        let found = problems(text);
        assert!(found[0].contains("connections to another address are already translated to 10.0.0.5:21"), "{found:?}");
        assert!(found[1].contains("198.51.100.1:21 is already translated to another address"), "{found:?}");
        assert!(found[2].contains("different families"), "{found:?}");
    }
}
