//! The few rtnetlink requests with which the lab makes its links.

use super::netlink::{Body, CREATE, Netlink, attribute};
use nix::sys::socket::SockProtocol;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;

/// A socket that speaks rtnetlink.
pub(crate) struct Rtnetlink(Netlink);

impl Rtnetlink {
    /// Opens one in the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        Netlink::open(SockProtocol::NetlinkRoute).map(Self)
    }

    /// Makes a pair of virtual Ethernet interfaces, of which the second lies in another namespace.
    pub(crate) fn add_veth(&mut self, name: &str, peer: &str, peer_namespace: BorrowedFd<'_>) -> io::Result<()> {
        const NAME: u16 = 3;
        const LINK_INFO: u16 = 18;
        const INFO_KIND: u16 = 1;
        const INFO_DATA: u16 = 2;
        const VETH_PEER: u16 = 1;
        const NAMESPACE_FD: u16 = 28;
        let mut peer_link = link(0, false);
        peer_link.text(NAME, peer).attribute(NAMESPACE_FD, &peer_namespace.as_raw_fd().to_ne_bytes());
        let mut data = Body::default();
        data.attribute(VETH_PEER, &peer_link.0);
        let mut info = Body::default();
        info.text(INFO_KIND, "veth").attribute(INFO_DATA, &data.0);
        let mut ours = link(0, false);
        ours.text(NAME, name).attribute(LINK_INFO, &info.0);
        self.0.request(NEW_LINK, CREATE, &ours)
    }

    /// Makes a switch.
    pub(crate) fn add_bridge(&mut self, name: &str) -> io::Result<()> {
        const NAME: u16 = 3;
        const LINK_INFO: u16 = 18;
        const INFO_KIND: u16 = 1;
        let mut info = Body::default();
        info.text(INFO_KIND, "bridge");
        let mut body = link(0, false);
        body.text(NAME, name).attribute(LINK_INFO, &info.0);
        self.0.request(NEW_LINK, CREATE, &body)
    }

    /// Makes an interface a port of a switch.
    pub(crate) fn plug_in(&mut self, index: u32, bridge: u32) -> io::Result<()> {
        const MASTER: u16 = 10;
        let mut body = link(index, false);
        body.attribute(MASTER, &bridge.to_ne_bytes());
        self.0.request(NEW_LINK, 0, &body)
    }

    /// Brings an interface up.
    pub(crate) fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.0.request(NEW_LINK, 0, &link(index, true))
    }

    /// Whether an interface passes packets, by the kernel's own account. (The flags that `ifconfig` shows say so of
    /// one as well of which the kernel does not know it yet.)
    pub(crate) fn is_operational(&mut self, index: u32) -> io::Result<bool> {
        const OPERATIONAL_STATE: u16 = 16;
        const UP: u8 = 6;
        let answer = self.0.query(GET_LINK, &link(index, false))?;
        let attributes = answer.get(link(0, false).0.len()..).unwrap_or_default();
        Ok(attribute(attributes, OPERATIONAL_STATE).is_some_and(|state| state.first() == Some(&UP)))
    }

    /// Gives an interface an address, usable at once, without duplicate address detection.
    pub(crate) fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        const ADDRESS: u16 = 1;
        const LOCAL: u16 = 2;
        const NO_DUPLICATE_DETECTION: u8 = 2;
        let flags = if address.is_ipv6() { NO_DUPLICATE_DETECTION } else { 0 };
        let mut body = Body(vec![family(address), prefix, flags, 0]);
        body.0.extend(index.to_ne_bytes());
        let bytes = octets(address);
        body.attribute(LOCAL, &bytes).attribute(ADDRESS, &bytes);
        self.0.request(NEW_ADDRESS, CREATE, &body)
    }

    /// Sets the default route to `gateway`.
    pub(crate) fn add_default_route(&mut self, gateway: IpAddr) -> io::Result<()> {
        const GATEWAY: u16 = 5;
        const MAIN_TABLE: u8 = 254;
        const BY_ADMINISTRATOR: u8 = 4;
        const UNICAST: u8 = 1;
        let mut body = Body(vec![family(gateway), 0, 0, 0, MAIN_TABLE, BY_ADMINISTRATOR, 0, UNICAST, 0, 0, 0, 0]);
        body.attribute(GATEWAY, &octets(gateway));
        self.0.request(NEW_ROUTE, CREATE, &body)
    }
}

/// The fixed part of a message about an interface; index 0 is a new one.
fn link(index: u32, up: bool) -> Body {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(u32::from(up).to_ne_bytes()); // flags: IFF_UP is 1
    body.extend(u32::from(up).to_ne_bytes()); // which of them to change
    Body(body)
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 2,  // AF_INET
        IpAddr::V6(_) => 10, // AF_INET6
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}
