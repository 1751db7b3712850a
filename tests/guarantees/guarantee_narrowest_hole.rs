//! Guarantee: a pinhole admits one connection, between the announced addresses, for a short time, and not longer than
//! its session.
//!
//! The built program on a real kernel, in namespaces of the lab, with the lab's own small server and client around it
//! and a filter that drops by default. Needs root and nft.

use crate::daemon::TIMEOUT;
use crate::filtered_topology::{FOR_HOURS, FilteredTopology, assert_closed, connect, kernel_counter, modes};

use std::net::{SocketAddr, TcpListener};

use lab::mini::{MiniClient, Pair, Speaker};
use lab::{Addresses, End, Family, Namespace, Shape, Topology};
use nix::sys::signal::Signal;
use pinhole::core::ftp::Mode;

/// A host behind the gateway that is neither the client nor the server.
fn third_host(fixture: &FilteredTopology) -> Namespace {
    let other = Namespace::new("other").expect("a namespace");
    let (own, gateway) = (Addresses::lab(3, 10), Addresses::lab(3, 1));
    lab::join(
        End { namespace: &other, interface: "net", addresses: &own.with_prefixes() },
        End { namespace: fixture.firewall(), interface: "others", addresses: &gateway.with_prefixes() },
    )
    .expect("a cable");
    for family in Family::ALL {
        other.route_by(gateway.of(family)).expect("a route");
    }
    other
}

#[test]
fn announced_port_opens_to_its_peer_and_only_once() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let other = third_host(&fixture);
    let _daemon = fixture.daemon(FOR_HOURS);
    let Topology { client: client_host, server: server_host, .. } = &fixture.topology;
    for family in Family::ALL {
        let server = fixture.serve(family);
        for &mode in modes(family) {
            let (from, to) = if mode.is_active() { (server_host, client_host) } else { (client_host, server_host) };
            let of = |host: &lab::Host| SocketAddr::new(host.addresses.of(family), 0);
            let neighbour = to.namespace.run(|| TcpListener::bind(of(to))).expect("root may enter").expect("a port");
            let unannounced = neighbour.local_addr().expect("it is bound");
            assert_closed(&from.namespace, unannounced);
            fixture.as_client(|| {
                let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
                assert_closed(&from.namespace, unannounced);
                let announced = if mode.is_active() { client.active(mode)? } else { client.passive(mode)? };
                assert_eq!(fixture.pinholes(), 1, "{mode}");
                assert_closed(&from.namespace, unannounced);
                // Neither for another host, nor in the other direction, nor for a port beside the announced one.
                assert_closed(&other, announced);
                assert_closed(&from.namespace, SocketAddr::new(announced.ip(), unannounced.port()));
                assert_eq!(fixture.pinholes(), 1, "{mode}: an attempt of others used it up");
                let data = connect(&from.namespace, announced).unwrap_or_else(|error| panic!("{mode}: {error}"));
                assert_closed(&from.namespace, announced);
                assert_closed(&other, announced);
                fixture.wait_for_pinholes(0);
                drop(data);
                assert_closed(&from.namespace, announced);
                client.quit()
            });
            assert_closed(&from.namespace, unannounced);
        }
    }
}

/// Preparing a control connection for sequence adjustment must not create an expectation: kernels treat an object with
/// one differently.
#[test]
fn control_connection_that_announces_nothing_opens_nothing() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let _daemon = fixture.daemon("");
    let Topology { client, server, .. } = &fixture.topology;
    for family in Family::ALL {
        let control = fixture.target(family, 21);
        let at_server = server.namespace.run(|| TcpListener::bind(control)).expect("root may enter").expect("a port");
        let prepared = SocketAddr::new(client.addresses.of(family), 1);
        let _at_client = client.namespace.run(|| TcpListener::bind(prepared)).expect("root may enter").expect("a port");
        // On a slow machine, a time that is over at once may be over before it is looked for.
        for _ in 0..10 {
            let _control = connect(&client.namespace, control).expect("it is let through");
            let _accepted = at_server.accept().expect("it has come");
            assert_closed(&server.namespace, prepared);
            assert_eq!(fixture.pinholes(), 0, "{family}");
        }
    }
}

/// The next packet handles the conntrack event, before a thread is woken for it.
#[test]
fn used_pinhole_is_removed_with_the_next_packet() {
    let fixture = FilteredTopology::new(Shape::ServerHost);
    let mut daemon = fixture.daemon(FOR_HOURS);
    let server = fixture.serve(Family::V4);
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        for _ in 0..10 {
            let announced = client.passive(Mode::Pasv)?;
            daemon.child.signal(Signal::SIGSTOP)?;
            let _data = client.connect_data(announced)?;
            client.send(b"NOOP\r\n")?;
            daemon.child.signal(Signal::SIGCONT)?;
            client.expect(200)?;
            fixture.wait_for_pinholes(0);
        }
        client.quit()
    });
}

#[test]
fn unused_pinhole_expires() {
    let fixture = FilteredTopology::new(Shape::ServerHost);
    let daemon = fixture.daemon("defaults: { timeout: 200ms }\n");
    for (family, times) in Family::ALL.into_iter().zip(1..) {
        let server = fixture.serve(family);
        fixture.as_client(|| {
            let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
            let announced = client.passive(Mode::Epsv)?;
            fixture.wait_for_pinholes(0);
            // The server listens there still.
            assert_closed(&fixture.topology.client.namespace, announced);
            lab::wait_until("the daemon to notice", TIMEOUT, || Ok(daemon.counted("expired") == times))?;
            client.quit()
        });
    }
    assert_eq!((daemon.counted("opened"), daemon.counted("used")), (2, 0));
}

#[test]
fn pinhole_is_closed_with_its_session() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    fixture.topology.keep_ended_connections().expect("root may");
    let _daemon = fixture.daemon(FOR_HOURS);
    let server = fixture.serve_many(Family::V4);
    for mode in [Mode::Pasv, Mode::Port] {
        let log_in_and_announce = || {
            let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
            if mode.is_active() {
                client.active(mode)?
            } else {
                client.passive(mode)?
            };
            assert_eq!(fixture.pinholes(), 1, "{mode}");
            Ok(client)
        };
        fixture.as_client(|| log_in_and_announce()?.quit());
        fixture.wait_for_pinholes(0);
        // FIN.
        fixture.as_client(|| log_in_and_announce().map(drop));
        fixture.wait_for_pinholes(0);
        // A connection that is closed with something in it unread ends with RST: the second reply.
        let resets = || kernel_counter(&fixture.topology.client.namespace, "Tcp", "OutRsts");
        let before = resets();
        fixture.as_client(|| {
            let mut client = log_in_and_announce()?;
            client.send(b"NOOP\r\n")?;
            client.expect(200)?;
            client.send(b"NOOP\r\n")?;
            client.wait_for_reply()
        });
        // Not at once: a program that another test starts has a copy of the socket until its exec.
        lab::wait_until("the client to end it with RST", TIMEOUT, || Ok(resets() > before)).expect("it was unread");
        fixture.wait_for_pinholes(0);
    }
}

/// The server's ACK of the FIN is the only sign: the server sends nothing more.
#[test]
fn pinhole_is_closed_when_the_fin_is_acknowledged() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let _daemon = fixture.daemon(FOR_HOURS);
    let control = fixture.target(Family::V4, 21);
    let [client, server] = fixture.ends();
    let mut pair = Pair::connect(client, control, server, control).expect("it is let through");
    for (speaker, line) in [
        (Speaker::Server, "220 Ready.\r\n"),
        (Speaker::Client, "USER a\r\n"),
        (Speaker::Server, "230 In.\r\n"),
        (Speaker::Client, "PORT 10,21,1,10,15,161\r\n"),
    ] {
        pair.says(speaker, &[line.as_bytes()]).expect("the connection stands");
    }
    assert_eq!(fixture.pinholes(), 1);
    pair.hang_up().expect("the server hears of it");
    fixture.wait_for_pinholes(0);
}

#[test]
fn second_pinhole_to_a_port_is_closed_with_its_session() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    fixture.topology.keep_ended_connections().expect("root may");
    let daemon = fixture.daemon(FOR_HOURS);
    let server = fixture.serve_many(Family::V4);
    for _ in 0..100 {
        // The conntrack event of the first connection may come after the second announcement.
        fixture.as_client(|| {
            let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
            let first = client.passive(Mode::Pasv)?;
            let data = client.connect_data(first)?;
            assert_eq!(client.passive(Mode::Pasv)?, first);
            drop(data);
            client.quit()
        });
        fixture.wait_for_pinholes(0);
    }
    let pinholes = daemon.status()["pinholes"].as_array().map(Vec::len);
    assert_eq!(pinholes, Some(0));
}
