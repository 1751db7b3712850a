//! The two endpoints of a packet (`Flow`), and the two flows of a connection.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use crate::core::net::Port;

/// An address and a port.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// The port there.
    pub port: Port,
}

impl Endpoint {
    /// The endpoint of that address and port.
    pub const fn new(address: IpAddr, port: Port) -> Self {
        Self { address, port }
    }
}

/// As in a URL: `10.0.0.1:21`, `[fd00::1]:21`.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port.number()).fmt(f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Endpoint {
    /// All of it in two numbers, which hash faster than the derived way: every packet is looked up by its flow.
    fn bits(&self) -> (u128, u32) {
        let port = u32::from(self.port.number());
        match self.address {
            IpAddr::V4(address) => (u128::from(address.to_bits()), port | 4 << 16),
            IpAddr::V6(address) => (address.to_bits(), port | 6 << 16),
        }
    }
}

impl Hash for Endpoint {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (address, rest) = self.bits();
        state.write_u128(address);
        state.write_u32(rest);
    }
}

/// The addresses of a packet, as it was seen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Where it comes from.
    pub source: Endpoint,
    /// Where it goes.
    pub destination: Endpoint,
}

impl Hash for Flow {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (source, more_source) = self.source.bits();
        let (destination, more_destination) = self.destination.bits();
        state.write_u128(source);
        state.write_u128(destination);
        state.write_u64(u64::from(more_source) << 32 | u64::from(more_destination));
    }
}

impl Flow {
    /// The flow of the answers, where nothing translates addresses.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.source, self.destination)
    }
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The direction of a packet within its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client, which opened the connection.
    FromClient,
    /// From the server.
    FromServer,
}

impl Direction {
    /// The opposite direction.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::FromClient => Self::FromServer,
            Self::FromServer => Self::FromClient,
        }
    }
}

/// A connection by the addresses that its packets carry in either direction.
///
/// Without NAT the one is the reverse of the other. With NAT each end has two addresses, its own and the one that the
/// other end knows, and all four are here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The packets that the client sends, as they arrive.
    pub original: Flow,
    /// The packets that the server sends, as they arrive.
    pub reply: Flow,
}

impl Connection {
    /// The connection that `original` opened, where nothing translates addresses.
    pub const fn direct(original: Flow) -> Self {
        Self { original, reply: original.reversed() }
    }

    /// The addresses of the packets that go in that direction.
    pub const fn flow(&self, direction: Direction) -> &Flow {
        match direction {
            Direction::FromClient => &self.original,
            Direction::FromServer => &self.reply,
        }
    }

    /// The way in which packets with these addresses go, if they belong to the connection at all.
    pub fn direction_of(&self, flow: &Flow) -> Option<Direction> {
        if *flow == self.original {
            Some(Direction::FromClient)
        } else if *flow == self.reply {
            Some(Direction::FromServer)
        } else {
            None
        }
    }

    /// The client as it knows itself.
    pub const fn client(&self) -> Endpoint {
        self.original.source
    }

    /// The server as the client knows it.
    pub const fn server(&self) -> Endpoint {
        self.original.destination
    }

    /// Whether NAT changes any of its addresses.
    pub fn is_translated(&self) -> bool {
        self.original.reversed() != self.reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        let address: SocketAddr = text.parse().expect("an address and port");
        Endpoint::new(address.ip(), Port::new(address.port()).expect("not zero"))
    }

    #[test]
    fn prints_as_in_a_url() {
        let flow = Flow { source: endpoint("10.0.0.1:4000"), destination: endpoint("[fd00::1]:21") };
        assert_eq!(flow.to_string(), "10.0.0.1:4000 -> [fd00::1]:21");
    }

    #[test]
    fn end_behind_nat_has_two_addresses() {
        let original = Flow { source: endpoint("192.168.1.2:4000"), destination: endpoint("203.0.113.5:21") };
        let reply = Flow { source: endpoint("203.0.113.5:21"), destination: endpoint("198.51.100.1:61000") };
        let connection = Connection { original, reply };
        assert!(connection.is_translated() && !Connection::direct(original).is_translated());
        assert_eq!(connection.direction_of(&reply), Some(Direction::FromServer));
        assert_eq!(connection.direction_of(&original.reversed()), None);
    }
}
