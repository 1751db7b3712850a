//! Which socket the kernel has for an address and port, and whose it is.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use pinhole::core::net::Endpoint;
use pinhole::netfilter::netlink::{SocketLookup, TcpState};

use super::host::{Host, ip, port};

const TIMEOUT: Duration = Duration::from_secs(1);

fn of(address: SocketAddr) -> Endpoint {
    Endpoint::new(address.ip(), port(address.port()))
}

#[test]
fn listener_and_accepted_socket_are_found_with_their_cgroup() {
    let host = Host::new("sockets");
    host.run(|| {
        let mut sockets = SocketLookup::open(TIMEOUT).expect("anybody may ask");
        // An IPv6 socket takes IPv4 connections, too.
        for (bound, reached) in
            [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1"), ("[::]:0", "::1")]
        {
            let listener = TcpListener::bind(bound).expect("a free port");
            let local = SocketAddr::new(ip(reached), listener.local_addr().expect("it is bound").port());
            let stranger = of(SocketAddr::new(ip(reached), 9));
            let found = sockets.find(of(local), stranger).expect("an answer").expect("a listener");
            assert_eq!((found.state, found.uid), (TcpState::Listen, 0), "{bound}");
            let client = TcpStream::connect(local).expect("it listens");
            let (_accepted, remote) = listener.accept().expect("it came");
            let remote = SocketAddr::new(ip(reached), remote.port());
            let accepted = sockets.find(of(local), of(remote)).expect("an answer").expect("a connection");
            assert_eq!((accepted.state, accepted.cgroup), (TcpState::Other, found.cgroup), "{bound}");
            assert!(found.cgroup.is_some());
            drop((client, listener));
            assert_eq!(sockets.find(of(local), stranger).expect("an answer"), None, "{bound}: it is closed");
        }
    });
}

#[test]
fn listener_on_one_address_is_not_found_at_another() {
    let host = Host::new("sockets");
    host.run(|| {
        let mut sockets = SocketLookup::open(TIMEOUT).expect("anybody may ask");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let number = listener.local_addr().expect("it is bound").port();
        for other in ["127.0.0.2", "::1"] {
            let [local, remote] = [number, 9].map(|number| of(SocketAddr::new(ip(other), number)));
            assert_eq!(sockets.find(local, remote).expect("an answer"), None, "{other}");
        }
    });
}
