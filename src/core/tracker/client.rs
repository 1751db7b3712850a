//! The key of the limits per client: an IPv4 address, or an IPv6 /64.

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
            IpAddr::V6(address) => match address.to_ipv4_mapped() {
                Some(address) => Self(address.to_bits() as u64),
                None => Self((address.to_bits() >> 64) as u64),
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
}
