//! A network namespace whose only way out is a TUN device of the test. The test writes and reads raw IP packets; the
//! kernel's TCP sockets are on the other side.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use lab::{Family, Namespace};
use rustix::fs::OFlags;
use rustix::ioctl::{Setter, ioctl};
use socket2::{Domain, Protocol, Socket, Type};

use crate::case::flag;
use crate::packet::{self, Raw, option};

/// The address of the kernel's sockets.
pub(crate) fn host(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 99, 0, 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// The control port, on whichever side the server is.
pub(crate) const CONTROL: u16 = 21;

/// The conntrack rules before the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conntrack {
    /// Nothing: it sees every packet.
    Absent,
    /// Conntrack, with a rule that drops invalid packets.
    Strict,
    /// The same with `nf_conntrack_tcp_be_liberal`.
    Liberal,
}

/// The packets of the namespace, and its listening sockets.
pub(crate) struct Network {
    device: Device,
    listener4: TcpListener,
    listener6: TcpListener,
    gateway: Option<Gateway>,
    /// How many peers there have been.
    peers: Cell<u32>,
}

impl Network {
    /// The unused address of a new peer, with a port. All have the same number of digits.
    pub(crate) fn new_peer(&self, family: Family) -> SocketAddr {
        let number = self.peers.replace(self.peers.get() + 1);
        let host = 100 + u8::try_from(number % 150).expect("in range");
        let port = 1024 + u16::try_from(number / 150 % 60_000).expect("in range");
        let address = match family {
            Family::V4 => Ipv4Addr::new(10, 99, 100, host).into(),
            Family::V6 => Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0x100, host.into()).into(),
        };
        SocketAddr::new(address, port)
    }

    /// Runs `work` with a network of its own, on a thread inside the namespace.
    pub(crate) fn with<T: Send>(conntrack: Conntrack, work: impl FnOnce(&Self) -> T + Send) -> T {
        let gateway = (conntrack != Conntrack::Absent).then(|| Gateway::new(conntrack));
        let namespace = Namespace::new("socket").unwrap_or_else(|error| panic!("{error}"));
        let inside = || {
            let device = Device::open("tun0").expect("root may make a TUN device");
            ip(&namespace, "address add 10.99.0.1/16 dev tun0");
            ip(&namespace, "address add fd99::1/64 dev tun0 nodad");
            ip(&namespace, "link set tun0 up");
            let listener = |family| {
                let listener = TcpListener::bind((host(family), CONTROL)).expect("the port is free in a new namespace");
                listener.set_nonblocking(true).expect("a listener");
                listener
            };
            let (listener4, listener6) = (listener(Family::V4), listener(Family::V6));
            let network = Self { device, listener4, listener6, gateway, peers: Cell::new(0) };
            Family::ALL.into_iter().for_each(|family| network.wait_until_ready(family));
            work(&network)
        };
        namespace.run(inside).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) const fn has_conntrack(&self) -> bool {
        self.gateway.is_some()
    }

    /// Waits until packets of this family pass in both directions: the kernel may need a moment for a new device.
    fn wait_until_ready(&self, family: Family) {
        let (peer, host) = (self.new_peer(family), SocketAddr::new(host(family), CONTROL));
        let is_ready = || {
            for packet in self.tracked_from_peer(bare(peer, host, 0, flag::SYN)) {
                self.write(&packet);
            }
            let answers = std::iter::from_fn(|| self.read()).filter(|packet| packet::read(packet).is_some());
            Ok(answers.flat_map(|packet| self.tracked_from_kernel(packet)).count() > 0)
        };
        let ready = lab::wait_until("an answer through the new devices", Duration::from_secs(20), is_ready);
        ready.unwrap_or_else(|error| panic!("{family}: {error}"));
        for packet in self.tracked_from_peer(bare(peer, host, 1, flag::RST)) {
            self.write(&packet);
        }
    }

    /// The packets that conntrack passes when the peer sends this one.
    pub(crate) fn tracked_from_peer(&self, packet: Vec<u8>) -> Vec<Vec<u8>> {
        match &self.gateway {
            None => vec![packet],
            Some(Gateway { outside, inside, .. }) => {
                outside.write(&packet);
                std::iter::from_fn(|| inside.read()).filter(|packet| packet::read(packet).is_some()).collect()
            }
        }
    }

    /// The packets that conntrack passes when the kernel sends this one.
    pub(crate) fn tracked_from_kernel(&self, packet: Vec<u8>) -> Vec<Vec<u8>> {
        match &self.gateway {
            None => vec![packet],
            Some(Gateway { outside, inside, .. }) => {
                inside.write(&packet);
                std::iter::from_fn(|| outside.read()).filter(|packet| packet::read(packet).is_some()).collect()
            }
        }
    }

    /// Hands a packet to the kernel. The kernel has dealt with it when this returns.
    pub(crate) fn write(&self, packet: &[u8]) {
        self.device.write(packet);
    }

    /// The next packet that the kernel has sent.
    pub(crate) fn read(&self) -> Option<Vec<u8>> {
        self.device.read()
    }

    /// Sets the receive buffer that accepted sockets inherit.
    pub(crate) fn buffer(&self, bytes: Option<usize>) {
        for listener in [&self.listener4, &self.listener6] {
            let listener = socket2::SockRef::from(listener);
            listener.set_recv_buffer_size(bytes.unwrap_or(DEFAULT_BUFFER)).expect("a listener");
        }
    }

    /// The connection that the peer has opened, if the kernel has established it.
    pub(crate) fn accept(&self, family: Family) -> Option<TcpStream> {
        let listener = match family {
            Family::V4 => &self.listener4,
            Family::V6 => &self.listener6,
        };
        match listener.accept() {
            Ok((socket, _)) => Some(ready(socket)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("accept: {error}"),
        }
    }

    /// Begins to connect to the peer. The SYN is there to be read when this returns.
    pub(crate) fn connect(peer: SocketAddr, buffer: Option<usize>) -> TcpStream {
        let socket = Socket::new(Domain::for_address(peer), Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        socket.set_recv_buffer_size(buffer.unwrap_or(DEFAULT_BUFFER)).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        match socket.connect(&peer.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => panic!("connect to {peer}: {error}"),
        }
        ready(socket.into())
    }
}

/// A segment without payload.
fn bare(source: SocketAddr, destination: SocketAddr, seq: u32, flags: u8) -> Vec<u8> {
    let raw = Raw {
        source,
        destination,
        seq,
        ack: 0,
        flags,
        window: 64_000,
        urgent: 0,
        options: option::mss(1000),
        payload: b"",
        has_right_checksum: true,
        padding: 0,
        extension: None,
    };
    raw.bytes()
}

/// Large enough for everything that a sequence sends.
const DEFAULT_BUFFER: usize = 1 << 17;

/// Closing such a socket resets the connection: nothing of it stays in the kernel.
fn ready(socket: TcpStream) -> TcpStream {
    socket.set_nonblocking(true).expect("a socket");
    socket.set_nodelay(true).expect("a socket");
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).expect("a socket");
    socket
}

/// A namespace between the peer and the reader, with connection tracking.
struct Gateway {
    _namespace: Namespace,
    outside: Device,
    inside: Device,
}

impl Gateway {
    fn new(conntrack: Conntrack) -> Self {
        let namespace = Namespace::new("gateway").unwrap_or_else(|error| panic!("{error}"));
        let devices = || -> io::Result<_> { Ok((Device::open("outside")?, Device::open("inside")?)) };
        let devices = namespace.run(devices).unwrap_or_else(|error| panic!("{error}"));
        let (outside, inside) = devices.expect("root may make TUN devices");
        for arguments in [
            "link set outside up",
            "link set inside up",
            "route add 10.99.100.0/24 dev outside",
            "route add 10.99.0.1/32 dev inside",
            "route add fd99::100:0/112 dev outside",
            "route add fd99::1/128 dev inside",
        ] {
            ip(&namespace, arguments);
        }
        let set = |parameter, value| namespace.set(parameter, value).unwrap_or_else(|error| panic!("{error}"));
        set("net/ipv4/ip_forward", "1");
        set("net/ipv6/conf/all/forwarding", "1");
        let rules =
            "table inet trial { chain forward { type filter hook forward priority 0; ct state invalid drop; }; }";
        namespace.nft(rules).unwrap_or_else(|error| panic!("{error}"));
        let is_liberal = if conntrack == Conntrack::Liberal { "1" } else { "0" };
        set("net/netfilter/nf_conntrack_tcp_be_liberal", is_liberal);
        Self { _namespace: namespace, outside, inside }
    }
}

fn ip(namespace: &Namespace, arguments: &str) {
    let done = namespace.command("ip").args(arguments.split(' ')).output(Duration::from_secs(20));
    done.unwrap_or_else(|error| panic!("ip {arguments}: {error}"));
}

/// A TUN device: the kernel receives what the test writes, and the test reads what the kernel sends.
struct Device(File);

impl Device {
    /// Makes the device in the network namespace of the calling thread. It goes with the file.
    fn open(name: &str) -> io::Result<Self> {
        const TUNSETIFF: rustix::ioctl::Opcode = 0x4004_54ca;
        const IFF_TUN: u16 = 1;
        const IFF_NO_PI: u16 = 0x1000;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(i32::try_from(OFlags::NONBLOCK.bits()).expect("a flag"))
            .open("/dev/net/tun")?;
        // struct ifreq: the name, then a union that begins with the flags.
        let mut request = [0u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI).to_ne_bytes());
        #[expect(unsafe_code, reason = "no crate in use here makes a TUN device")]
        // SAFETY: TUNSETIFF reads a struct ifreq, which is 40 bytes long.
        unsafe {
            ioctl(&file, Setter::<TUNSETIFF, [u8; 40]>::new(request))?;
        }
        Ok(Self(file))
    }

    fn write(&self, packet: &[u8]) {
        let Self(device) = self;
        match (&mut &*device).write(packet) {
            Ok(length) => assert_eq!(length, packet.len()),
            Err(error) => panic!("write {packet:02x?} to a TUN device: {error}"),
        }
    }

    fn read(&self) -> Option<Vec<u8>> {
        let mut packet = vec![0; 2048];
        let Self(device) = self;
        match (&mut &*device).read(&mut packet) {
            Ok(length) => {
                packet.truncate(length);
                Some(packet)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("read a TUN device: {error}"),
        }
    }
}
