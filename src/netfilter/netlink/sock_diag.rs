//! The sockets of this network namespace (linux/sock_diag.h, linux/inet_diag.h).

use std::net::IpAddr;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink;

use super::bytes::{Message, Writer};
use super::error::{Cause, Error, Operation};
use super::socket::Socket;
use super::uapi::*;
use crate::core::net::Endpoint;

/// `struct inet_diag_msg`, before its attributes.
const INET_DIAG_MSG_LEN: usize = 72;
const UID_OFFSET: usize = 64;

/// The state of a TCP socket, as far as anyone asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// It waits for the answer to its SYN.
    SynSent,
    Listen,
    Other,
}

/// A TCP socket of this network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    pub state: TcpState,
    /// The user who owns it.
    pub uid: u32,
    /// The ID of its cgroup in the hierarchy of version 2: of the process that made it, or made the listener that accepted
    /// it.
    pub cgroup: Option<u64>,
}

/// Asks the kernel for sockets.
#[derive(Debug)]
pub struct SocketLookup {
    socket: Socket,
}

impl SocketLookup {
    pub fn open(timeout: Duration) -> Result<Self, Error> {
        let socket = Socket::connect(netlink::SOCK_DIAG, 0, &[], timeout);
        Ok(Self {
            socket: socket.map_err(|cause| Error::new(Operation::Connect, "the kernel's list of sockets", cause))?,
        })
    }

    /// The socket to which the kernel would deliver a segment from `remote` to `local`: a connected one, or else a listening
    /// one. `None` if there is none.
    pub fn find(&mut self, local: Endpoint, remote: Endpoint) -> Result<Option<TcpSocket>, Error> {
        let answer = self.socket.look_up_raw(SOCK_DIAG_BY_FAMILY, |w| write_request(w, local, remote), read);
        match answer {
            Ok(socket) => Ok(Some(socket)),
            Err(Cause::Refused(Errno::NOENT)) => Ok(None),
            Err(cause) => Err(Error::new(Operation::Read, format_args!("socket {local} for {remote}"), cause)),
        }
    }
}

/// `struct inet_diag_req_v2`.
fn write_request(w: &mut Writer, local: Endpoint, remote: Endpoint) {
    let family = if local.address.is_ipv4() { AF_INET } else { AF_INET6 };
    w.raw(&[family, IPPROTO_TCP, 0, 0]);
    // All states; the kernel ignores them when it looks one socket up.
    w.raw(&u32::MAX.to_ne_bytes());
    for endpoint in [local, remote] {
        w.raw(&endpoint.port.number().to_be_bytes());
    }
    for endpoint in [local, remote] {
        let mut address = [0; 16];
        match endpoint.address {
            IpAddr::V4(v4) => address[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => address = v6.octets(),
        }
        w.raw(&address);
    }
    // Any interface, any cookie.
    w.raw(&0_u32.to_ne_bytes());
    w.raw(&INET_DIAG_NOCOOKIE.to_ne_bytes());
    w.raw(&INET_DIAG_NOCOOKIE.to_ne_bytes());
}

pub(super) fn read(message: Message<'_>) -> Option<TcpSocket> {
    let body = message.body();
    let state = *body.get(1)?;
    let uid = body.get(UID_OFFSET..)?.first_chunk()?;
    let attributes = message.attributes_behind(INET_DIAG_MSG_LEN);
    // A 64-bit number in the order of the host, unlike netfilter's.
    let cgroup = attributes.find(INET_DIAG_CGROUP_ID).and_then(|id| id.bytes().first_chunk().copied());
    Some(TcpSocket {
        state: match state {
            TCP_SYN_SENT => TcpState::SynSent,
            TCP_LISTEN => TcpState::Listen,
            _ => TcpState::Other,
        },
        uid: u32::from_ne_bytes(*uid),
        cgroup: cgroup.map(u64::from_ne_bytes),
    })
}
