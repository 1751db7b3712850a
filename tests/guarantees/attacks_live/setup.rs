//! Attacker and victim: an anonymous client that attacks a server, and a server that attacks a client behind NAT.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use lab::nat::{Nat, NatTopology};
use lab::{Family, Namespace, Server, ServerKind, ServerOptions, Shape};
use pinhole::netfilter::netlink::Conntrack;

use crate::daemon::{Daemon, TIMEOUT};
use crate::filtered_topology::{FilteredTopology, assert_closed, pinholes};
use crate::raw_tcp::{RawListener, RawTcp};

/// A cache without a password on the server's host, for local programs. Its port is not a known service, so it is not
/// closed for that reason.
pub(crate) const CACHE: u16 = 15079;
/// The same of a remote desktop, on the client's host.
pub(crate) const DESKTOP: u16 = 15489;

/// A host and a port as a 227 or PORT says them.
pub(crate) fn announced(address: SocketAddr) -> String {
    let SocketAddr::V4(address) = address else { panic!("{address} is no address of IPv4") };
    let [high, low] = address.port().to_be_bytes();
    format!("{},{high},{low}", address.ip().to_string().replace('.', ","))
}

/// A firewall with the daemon, a real server behind it, and on the server's host a cache that no other host may reach.
pub(crate) struct ServerSetup {
    pub(crate) fixture: FilteredTopology,
    pub(crate) daemon: Daemon,
    _server: Server,
    pub(crate) cache: SocketAddr,
    _listener: TcpListener,
}

impl ServerSetup {
    pub(crate) fn new(shape: Shape, kind: ServerKind, policy: &str) -> Self {
        let fixture = FilteredTopology::new(shape);
        let host = &fixture.topology.server;
        let options = ServerOptions::on(host.addresses.of(Family::V4));
        let server = kind.start(&host.namespace, &options).unwrap_or_else(|error| panic!("{error}"));
        let cache = fixture.target(Family::V4, CACHE);
        let listener = listen(&host.namespace, cache);
        let daemon = fixture.daemon(policy);
        Self { fixture, daemon, _server: server, cache, _listener: listener }
    }

    /// A client of the attacker's that has been greeted.
    pub(crate) fn attacker(&self) -> RawTcp {
        self.attacker_with(false)
    }

    pub(crate) fn attacker_with(&self, timestamps: bool) -> RawTcp {
        let mut peer = self.connect(timestamps);
        peer.read_reply("220");
        peer
    }

    pub(crate) fn connect(&self, timestamps: bool) -> RawTcp {
        let host = &self.fixture.topology.client;
        let (own, target) = (host.addresses.of(Family::V4), self.fixture.target(Family::V4, 21));
        RawTcp::connect(&host.namespace, own, target, timestamps)
    }

    #[track_caller]
    pub(crate) fn assert_cache_is_closed(&self) {
        assert_closed(&self.fixture.topology.client.namespace, self.cache);
    }
}

/// A client behind a masquerading gateway, and the attacker's server outside.
pub(crate) struct ClientSetup {
    pub(crate) topology: NatTopology,
    pub(crate) daemon: Daemon,
    _listener: TcpListener,
}

impl ClientSetup {
    pub(crate) fn new(policy: &str) -> Self {
        let topology = NatTopology::new(Nat::Masquerade).unwrap_or_else(|error| panic!("{error}"));
        let gateway = &topology.gateways[0];
        let refuse = "table inet filter { chain input { tcp flags & (syn | ack) == syn reject with tcp reset; }; }";
        gateway
            .namespace
            .nft(gateway.rules.text)
            .and_then(|()| gateway.namespace.nft(refuse))
            .unwrap_or_else(|error| panic!("{error}"));
        let policy = format!("{}{policy}", gateway.rules.policy());
        let daemon = Daemon::start(&gateway.namespace, &policy).unwrap_or_else(|error| panic!("{error}"));
        let listener =
            listen(&topology.client.namespace, SocketAddr::new(topology.client.addresses.v4.into(), DESKTOP));
        Self { topology, daemon, _listener: listener }
    }

    pub(crate) fn gateway(&self) -> &Namespace {
        &self.topology.gateways[0].namespace
    }

    /// A client connects to the attacker's server. `window` is its first window.
    pub(crate) fn visit(&self, window: usize) -> (TcpStream, RawTcp) {
        self.visit_with(|listener| listener.accept(window))
    }

    /// The same without waiting for the handshake's last segment.
    pub(crate) fn visit_slowly(&self, window: usize) -> (TcpStream, RawTcp) {
        self.visit_with(|listener| listener.answer(window))
    }

    fn visit_with(&self, accept: impl FnOnce(RawListener) -> RawTcp + Send) -> (TcpStream, RawTcp) {
        let address = SocketAddr::new(self.topology.target.of(Family::V4), 21);
        visit(&self.topology.client.namespace, &self.topology.server.namespace, address, accept)
    }

    /// The line that opens the client's desktop to the server, if it is believed.
    pub(crate) fn port_line(&self) -> String {
        let desktop = SocketAddr::new(self.topology.client.addresses.v4.into(), DESKTOP);
        format!("PORT {}\r\n", announced(desktop))
    }

    /// The desktop is not reached from outside, neither by its own port nor by another.
    #[track_caller]
    pub(crate) fn assert_desktop_is_closed(&self) {
        let public = SocketAddr::new(self.topology.public.v4.into(), DESKTOP);
        assert_closed(&self.topology.server.namespace, public);
        assert_eq!(pinholes(self.gateway()), 0, "something is open on {}", self.gateway());
    }
}

/// A client connects to a raw end, which `accept` does.
pub(crate) fn visit(
    client: &Namespace,
    server: &Namespace,
    address: SocketAddr,
    accept: impl FnOnce(RawListener) -> RawTcp + Send,
) -> (TcpStream, RawTcp) {
    let listener = RawListener::bind(server, address);
    std::thread::scope(|scope| {
        let accepting = scope.spawn(move || accept(listener));
        let client = crate::filtered_topology::connect(client, address).expect("port 21 is let out");
        client.set_nodelay(true).expect("it is a socket");
        (client, accepting.join().expect("it accepts"))
    })
}

/// Waits until the kernel of a namespace has forgotten the connection of a client that comes from this port.
pub(crate) fn wait_until_forgotten(namespace: &Namespace, port: u16) {
    let is_forgotten = || {
        let is_it = |entry: &pinhole::netfilter::netlink::ConntrackEntry| {
            entry.connection.original.source.port.number() == port
        };
        let list = || Conntrack::open(TIMEOUT).and_then(|mut all| all.list(is_it));
        Ok(namespace.run(list)?.expect("a list").is_empty())
    };
    lab::wait_until("the connection to be forgotten", TIMEOUT, is_forgotten).unwrap_or_else(|error| panic!("{error}"));
}

/// Has the kernel of a namespace remember reset connections for one second instead of ten.
pub(crate) fn forget_resets_soon(namespace: &Namespace) {
    namespace.set("net/netfilter/nf_conntrack_tcp_timeout_close", "1").unwrap_or_else(|error| panic!("{error}"));
}

/// As long as the program once did not read on behind what looked like a session's end, and a second.
pub(crate) const LINGER: Duration = Duration::from_secs(61);

fn listen(namespace: &Namespace, address: SocketAddr) -> TcpListener {
    namespace.run(|| TcpListener::bind(address)).expect("root may enter").expect("it is free")
}
