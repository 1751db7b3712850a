//! Netlink as far as the lab needs it: one request, one answer.
//!
//! Written by hand because it is short, and faster than to start `ip` or `ethtool` in thousands of tests. A socket
//! belongs to the network namespace of the thread that opens it.

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
/// Make something new, and fail if it exists.
pub(crate) const CREATE: u16 = 0x200 | 0x400;

/// The message by which the kernel refuses or acknowledges.
const ERROR: u16 = 2;
const HEADER: usize = 16;

/// A netlink socket.
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens one in the network namespace of the calling thread.
    pub(crate) fn open(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Has the kernel do something.
    pub(crate) fn request(&mut self, kind: u16, flags: u16, body: &Body) -> io::Result<()> {
        match self.exchange(kind, flags | ACKNOWLEDGE, body)? {
            None => Ok(()),
            Some(_) => Err(io::Error::other("the kernel's answer is no acknowledgement")),
        }
    }

    /// Sends a request, and returns what follows the header of the kernel's answer.
    pub(crate) fn query(&mut self, kind: u16, body: &Body) -> io::Result<Vec<u8>> {
        self.exchange(kind, 0, body)?.ok_or_else(|| io::Error::other("the kernel's answer is empty"))
    }

    fn exchange(&mut self, kind: u16, flags: u16, body: &Body) -> io::Result<Option<Vec<u8>>> {
        self.sequence += 1;
        let length = u32::try_from(HEADER + body.0.len()).expect("a request is short");
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((REQUEST | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]); // the kernel fills in the port
        message.extend(&body.0);
        sendto(self.socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = vec![0; 8192];
        let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        answer.truncate(length);
        let truncated = || io::Error::other("the kernel's answer is cut short");
        let kind: [u8; 2] = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).ok_or_else(truncated)?;
        let content = answer.get(HEADER..).ok_or_else(truncated)?;
        if u16::from_ne_bytes(kind) != ERROR {
            return Ok(Some(content.to_vec()));
        }
        let number: [u8; 4] = content.get(..4).and_then(|bytes| bytes.try_into().ok()).ok_or_else(truncated)?;
        match i32::from_ne_bytes(number) {
            0 => Ok(None),
            number => Err(io::Error::from_raw_os_error(-number)),
        }
    }
}

/// What follows a message's header: a fixed part, then attributes.
#[derive(Default)]
pub(crate) struct Body(pub(super) Vec<u8>);

impl Body {
    /// Adds an attribute.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(4 + value.len()).expect("an attribute is short");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds an attribute that is a text, with the zero at its end that the kernel wants.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// Adds an attribute that holds others.
    pub(crate) fn nested(&mut self, kind: u16, inner: &Self) -> &mut Self {
        const NESTED: u16 = 0x8000;
        self.attribute(kind | NESTED, &inner.0)
    }
}

/// The value of the first attribute of that kind in a row of them.
pub(crate) fn attribute(mut row: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [l0, l1, k0, k1, ..] = row {
        let length = usize::from(u16::from_ne_bytes([*l0, *l1]));
        if u16::from_ne_bytes([*k0, *k1]) == wanted {
            return row.get(4..length);
        }
        // An attribute is never shorter than its own header: that would go round in circles.
        row = row.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}
