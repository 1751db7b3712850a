//! Addresses and ports as types that hold only valid values.
//!
//! Knows nothing of packets or FTP.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

/// A TCP port; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(NonZeroU16);

impl Port {
    /// The port from which servers open data connections.
    pub const FTP_DATA: Self = Self(NonZeroU16::new(20).expect("20 is not zero"));
    /// The classic control port of FTP.
    pub const FTP: Self = Self(NonZeroU16::new(21).expect("21 is not zero"));

    /// The port of that number, unless it is zero.
    pub const fn new(number: u16) -> Option<Self> {
        match NonZeroU16::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        self.0.get()
    }

    /// Whether only root may listen there on a classic Unix.
    pub const fn is_low(self) -> bool {
        self.number() < 1024
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number from 1 to 65535, in digits alone.
impl FromStr for Port {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| is_plain);
        number.map(Self).ok_or("a port is a number from 1 to 65535")
    }
}

/// Ports from the first to the last, both included; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: Port,
    last: Port,
}

impl PortRange {
    /// The range, unless `first` is above `last`.
    pub fn new(first: Port, last: Port) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The lowest port in it.
    pub const fn first(self) -> Port {
        self.first
    }

    /// The highest port in it.
    pub const fn last(self) -> Port {
        self.last
    }

    /// Whether `port` is one of them.
    pub fn contains(self, port: Port) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// `LOW-HIGH`.
impl FromStr for PortRange {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let (first, last) = text.split_once('-').ok_or("neither a port nor a range")?;
        Self::new(first.trim().parse()?, last.trim().parse()?).ok_or("the range is empty")
    }
}

/// A network: an address and how many of its leading bits count. The other bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is not a [`Network`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// The text before the slash is no address.
    #[error("not an IP address")]
    NotAnAddress,
    /// The text after the slash is no number, or greater than the number of bits of the address.
    #[error("the prefix length must be a number from 0 to {0}")]
    PrefixTooLong(u8),
    /// Bits are set behind the prefix, so that it is unclear what was meant.
    #[error("bits are set behind the prefix, the network being {0}")]
    HostBits(Network),
}

impl Network {
    /// The network of exactly one address.
    pub const fn host(address: IpAddr) -> Self {
        Self { address, prefix: bits(address) }
    }

    /// The network of `address` in which the leading `prefix` bits count; the others are cleared.
    pub fn containing(address: IpAddr, prefix: u8) -> Option<Self> {
        if prefix > bits(address) {
            return None;
        }
        let address = match address {
            IpAddr::V4(a) => {
                IpAddr::V4((a.to_bits() & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)).into())
            }
            IpAddr::V6(a) => {
                IpAddr::V6((a.to_bits() & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)).into())
            }
        };
        Some(Self { address, prefix })
    }

    /// The lowest address in it.
    pub const fn first(self) -> IpAddr {
        self.address
    }

    /// The highest address in it.
    pub fn last(self) -> IpAddr {
        let prefix = u32::from(self.prefix);
        match self.address {
            IpAddr::V4(a) => IpAddr::V4((a.to_bits() | u32::MAX.checked_shr(prefix).unwrap_or(0)).into()),
            IpAddr::V6(a) => IpAddr::V6((a.to_bits() | u128::MAX.checked_shr(prefix).unwrap_or(0)).into()),
        }
    }

    /// Whether `address` lies in it. An address of the other family never does.
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Self::containing(address, self.prefix) == Some(self)
    }

    /// Whether every address of `other` lies in this one.
    pub fn covers(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }
}

const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NetworkError::NotAnAddress)?;
        let Some(prefix) = prefix else { return Ok(Self::host(address)) };
        let too_long = NetworkError::PrefixTooLong(bits(address));
        let prefix: u8 = prefix.parse().map_err(|_| too_long)?;
        let network = Self::containing(address, prefix).ok_or(too_long)?;
        if network.address == address { Ok(network) } else { Err(NetworkError::HostBits(network)) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == bits(self.address) {
            self.address.fmt(f)
        } else {
            write!(f, "{}/{}", self.address, self.prefix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().expect("a network")
    }

    #[test]
    fn network_contains_its_own_family_only() {
        assert!(network("10.0.0.0/8").contains("10.255.0.1".parse().expect("an address")));
        assert!(!network("10.0.0.0/8").contains("11.0.0.1".parse().expect("an address")));
        assert!(!network("0.0.0.0/0").contains("::1".parse().expect("an address")));
        assert!(network("::/0").contains("fd00::1".parse().expect("an address")));
    }

    #[test]
    fn wider_network_covers_a_narrower_one() {
        assert!(network("10.0.0.0/8").covers(network("10.1.0.0/16")));
        assert!(!network("10.1.0.0/16").covers(network("10.0.0.0/8")));
        assert!(network("2001:db8::/32").covers(network("2001:db8::1")));
    }

    #[test]
    fn network_has_a_first_and_a_last_address() {
        let ends = |text| (network(text).first().to_string(), network(text).last().to_string());
        assert_eq!(ends("10.0.0.0/8"), ("10.0.0.0".into(), "10.255.255.255".into()));
        assert_eq!(ends("10.0.0.5"), ("10.0.0.5".into(), "10.0.0.5".into()));
        assert_eq!(ends("0.0.0.0/0"), ("0.0.0.0".into(), "255.255.255.255".into()));
        assert_eq!(ends("fd00::/127"), ("fd00::".into(), "fd00::1".into()));
        assert_eq!(ends("::/0").1, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
    }

    #[test]
    fn error_names_what_is_wrong_with_a_network() {
        assert_eq!("10.0.0.0/33".parse::<Network>(), Err(NetworkError::PrefixTooLong(32)));
        assert_eq!("ten/8".parse::<Network>(), Err(NetworkError::NotAnAddress));
        assert_eq!("10.0.0.1/8".parse::<Network>(), Err(NetworkError::HostBits(network("10.0.0.0/8"))));
    }

    #[test]
    fn port_range_is_never_empty() {
        let port = |n| Port::new(n).expect("not zero");
        assert!(PortRange::new(port(2), port(1)).is_none());
        assert!(PortRange::new(port(1), port(1)).is_some_and(|r| r.contains(port(1)) && !r.contains(port(2))));
    }
}
