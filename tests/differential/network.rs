//! A network namespace whose only way out is a TUN device of the test. The test writes and reads raw IP packets; the
//! kernel's TCP sockets are on the other side.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use lab::Namespace;
use rustix::fs::OFlags;
use rustix::ioctl::{Setter, ioctl};
use socket2::{Domain, Protocol, Socket, Type};

/// The address of the kernel's sockets.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

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

/// The packets of the namespace, and its listening socket.
pub(crate) struct Network {
    device: Device,
    listener: TcpListener,
    gateway: Option<Gateway>,
    /// How many peers there have been.
    peers: Cell<u32>,
}

impl Network {
    /// The unused address of a new peer, with a port. All have the same number of digits.
    pub(crate) fn new_peer(&self) -> SocketAddrV4 {
        let number = self.peers.replace(self.peers.get() + 1);
        let host = 100 + u8::try_from(number % 150).expect("in range");
        let port = 1024 + u16::try_from(number / 150 % 60_000).expect("in range");
        SocketAddrV4::new(Ipv4Addr::new(10, 99, 100, host), port)
    }

    /// Runs `work` with a network of its own, on a thread inside the namespace.
    pub(crate) fn with<T: Send>(conntrack: Conntrack, work: impl FnOnce(&Self) -> T + Send) -> T {
        let gateway = (conntrack != Conntrack::Absent).then(|| Gateway::new(conntrack));
        let namespace = Namespace::new("socket").unwrap_or_else(|error| panic!("{error}"));
        let inside = || {
            let device = Device::open("tun0").expect("root may make a TUN device");
            ip(&namespace, "address add 10.99.0.1/16 dev tun0");
            ip(&namespace, "link set tun0 up");
            let listener = TcpListener::bind((HOST, CONTROL)).expect("the port is free in a new namespace");
            listener.set_nonblocking(true).expect("a listener");
            work(&Self { device, listener, gateway, peers: Cell::new(0) })
        };
        namespace.run(inside).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The packets that conntrack passes when the peer sends this one.
    pub(crate) fn tracked_from_peer(&self, packet: Vec<u8>) -> Vec<Vec<u8>> {
        match &self.gateway {
            None => vec![packet],
            Some(Gateway { outside, inside, .. }) => {
                outside.write(&packet);
                std::iter::from_fn(|| inside.read()).collect()
            }
        }
    }

    /// The packets that conntrack passes when the kernel sends this one.
    pub(crate) fn tracked_from_kernel(&self, packet: Vec<u8>) -> Vec<Vec<u8>> {
        match &self.gateway {
            None => vec![packet],
            Some(Gateway { outside, inside, .. }) => {
                inside.write(&packet);
                std::iter::from_fn(|| outside.read()).collect()
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
        let listener = socket2::SockRef::from(&self.listener);
        listener.set_recv_buffer_size(bytes.unwrap_or(DEFAULT_BUFFER)).expect("a listener");
    }

    /// The connection that the peer has opened, if the kernel has established it.
    pub(crate) fn accept(&self) -> Option<TcpStream> {
        match self.listener.accept() {
            Ok((socket, _)) => Some(ready(socket)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("accept: {error}"),
        }
    }

    /// Begins to connect to the peer. The SYN is there to be read when this returns.
    pub(crate) fn connect(peer: Ipv4Addr, buffer: Option<usize>) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        socket.set_recv_buffer_size(buffer.unwrap_or(DEFAULT_BUFFER)).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        match socket.connect(&SocketAddrV4::new(peer, CONTROL).into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => panic!("connect to {peer}: {error}"),
        }
        ready(socket.into())
    }
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
        ] {
            ip(&namespace, arguments);
        }
        let set = |parameter, value| namespace.set(parameter, value).unwrap_or_else(|error| panic!("{error}"));
        set("net/ipv4/ip_forward", "1");
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
