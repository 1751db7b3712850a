//! The interfaces from which the packets of the two ends come, to detect spoofed packets.
//!
//! The daemon reads packets before routing drops those with a spoofed source, so one end could send packets with the
//! other's address.

use crate::core::net::{Direction, Origin};

/// The interface from which each end's packets come, once it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Origins {
    client: Option<Origin>,
    server: Option<Origin>,
}

impl Origins {
    /// Whether a packet with this end's source address comes from the other end's interface. If not, its interface is
    /// remembered.
    pub(super) fn is_forged(&mut self, end: Direction, origin: Option<Origin>) -> bool {
        let Some(origin) = origin else { return false };
        let (own, other) = match end {
            Direction::FromClient => (&mut self.client, self.server),
            Direction::FromServer => (&mut self.server, self.client),
        };
        match own {
            None => {
                *own = Some(origin);
                false
            }
            Some(own) => {
                let place = |origin: Origin| (origin.interface, origin.port);
                other.is_some_and(|other| match own.interface == origin.interface {
                    // Both are behind one bridge.
                    true => place(other) == place(origin) && own.port != origin.port,
                    false => other.interface == origin.interface,
                })
            }
        }
    }

    /// Whether both ends' packets come from one interface, although by the routes one of the ends is behind another:
    /// then one end has sent packets with the other's address from the beginning.
    pub(super) fn are_doubtful(&self) -> bool {
        let (Some(client), Some(server)) = (self.client, self.server) else { return false };
        // This host routes nothing to either end by that bridge: it passes their packets on between two of its ports.
        let is_bridged = client.is_doubtful && server.is_doubtful && client.port != server.port;
        client.interface == server.interface && (client.is_doubtful || server.is_doubtful) && !is_bridged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(interface: u32, is_doubtful: bool) -> Option<Origin> {
        Some(Origin { interface, port: 0, is_doubtful })
    }

    #[test]
    fn packet_from_the_other_ends_interface_is_forged() {
        let mut origins = Origins::default();
        assert!(!origins.is_forged(Direction::FromServer, origin(2, true)));
        assert!(!origins.is_forged(Direction::FromClient, origin(1, false)));
        assert!(origins.is_forged(Direction::FromServer, origin(1, false)));
        assert!(origins.is_forged(Direction::FromClient, origin(2, false)));
        assert!(!origins.is_forged(Direction::FromServer, origin(3, true)), "there may be several routes");
        assert!(!origins.is_forged(Direction::FromServer, None) && !origins.are_doubtful());
    }

    #[test]
    fn ends_behind_two_ports_of_a_bridge_are_told_apart() {
        let at = |port, is_doubtful| Some(Origin { interface: 1, port, is_doubtful });
        let mut origins = Origins::default();
        assert!(!origins.is_forged(Direction::FromServer, at(8, true)));
        assert!(!origins.is_forged(Direction::FromClient, at(9, true)));
        assert!(!origins.are_doubtful(), "the bridge has no address");
        assert!(origins.is_forged(Direction::FromServer, at(9, true)), "from the client's port");
        assert!(!origins.is_forged(Direction::FromServer, at(7, true)), "there may be several ways");

        let mut origins = Origins::default();
        assert!(!origins.is_forged(Direction::FromClient, at(9, false)));
        assert!(!origins.is_forged(Direction::FromServer, at(8, true)));
        assert!(origins.are_doubtful(), "the client is behind this router, and the server is not");
        let mut origins = Origins::default();
        assert!(!origins.is_forged(Direction::FromClient, at(8, true)));
        assert!(!origins.is_forged(Direction::FromServer, at(8, true)));
        assert!(origins.are_doubtful(), "from one port");
    }

    #[test]
    fn both_ends_on_one_interface_are_doubtful_by_the_routes() {
        for doubtful in [false, true] {
            let mut origins = Origins::default();
            assert!(!origins.is_forged(Direction::FromServer, origin(1, doubtful)));
            assert!(!origins.is_forged(Direction::FromClient, origin(1, false)));
            assert_eq!(origins.are_doubtful(), doubtful);
        }
    }
}
