//! The key of the limits per client: an IPv4 address, also one that was translated to IPv6, or an IPv6 /64.

use std::net::IpAddr;

/// A client, for the limits per client.
///
/// An IPv6 host chooses the last 64 bits of its address itself, so they do not distinguish clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClientKey(u64);

impl ClientKey {
    /// The client with that address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            // No network of IPv6 hosts begins with 32 zero bits.
            IpAddr::V4(address) => Self(address.to_bits() as u64),
            IpAddr::V6(address) => match (address.to_ipv4_mapped(), address.segments()) {
                (Some(address), _) => Self(address.to_bits() as u64),
                // RFC 6052: the whole IPv4 Internet is in this one network.
                (None, [0x64, 0xff9b, 0, 0, 0, 0, ..]) => Self(address.to_bits() as u32 as u64),
                (None, _) => Self((address.to_bits() >> 64) as u64),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_one_ipv6_network_count_as_one_client() {
        let key = |text: &str| ClientKey::of(text.parse().expect("an address"));
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::9"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_ne!(key("10.0.0.1"), key("10.0.0.2"));
        assert_eq!(key("10.0.0.1"), key("::ffff:10.0.0.1"));
    }

    #[test]
    fn hosts_behind_a_translator_to_ipv6_are_several_clients() {
        let key = |text: &str| ClientKey::of(text.parse().expect("an address"));
        assert_ne!(key("64:ff9b::10.0.0.1"), key("64:ff9b::10.0.0.2"));
        assert_eq!(key("64:ff9b::10.0.0.1"), key("10.0.0.1"));
        assert_eq!(key("64:ff9b:1::1"), key("64:ff9b:1::2"));
    }
}
