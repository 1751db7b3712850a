//! A gateway with a flowtable, whose packets pass no chain but that of its own hook. Control connections must stay out of it.
//!
//! Needs root, nft, and the programs that `tests/setup test` fetches.

use std::io::Read as _;

use lab::mini::{MiniClient, MiniServer};
use lab::nat::Nat;
use lab::{Family, Namespace, Shape, kernel_lacks};
use pinhole::core::ftp::Mode;
use pinhole::netfilter::netlink::{Conntrack, ConntrackEntry};

use crate::daemon::{self, TIMEOUT};
use crate::filtered_topology::{CONTENT, FILE, FilteredTopology, assert_closed, modes};
use crate::real_transfers::{assert_nat_transfers, assert_transfers, daemon_on, daemons_on, gateway, nat};

/// `IPS_OFFLOAD`: the connection is in a flowtable.
const IPS_OFFLOAD: u32 = 1 << 14;
/// More than fits into the buffers of the sockets, so that the transfer lasts as long as the client wants.
const LARGE: usize = 16 << 20;

/// Has these interfaces forward established connections by a flowtable, in a rule as users write it. Returns whether this
/// kernel has flowtables.
fn offload(firewall: &Namespace, [one, other]: [&str; 2]) -> bool {
    let rules = format!(
        "table inet fast {{
            flowtable f {{ hook ingress priority 0; devices = {{ {one}, {other} }}; }}
            chain forward {{ type filter hook forward priority -5; meta l4proto {{ tcp, udp }} flow add @f; }}
        }}"
    );
    let is_loaded = firewall.nft(&rules).is_ok();
    if !is_loaded {
        kernel_lacks("flowtables");
    }
    is_loaded
}

/// The connections to or from that port.
fn entries(firewall: &Namespace, port: u16) -> Vec<ConntrackEntry> {
    let is_of = |entry: &ConntrackEntry| {
        let flow = &entry.connection.original;
        [flow.source.port, flow.destination.port].iter().any(|found| found.number() == port)
    };
    let listed = firewall.run(|| Conntrack::open(TIMEOUT).and_then(|mut conntrack| conntrack.list(is_of)));
    listed.expect("root may enter").expect("conntrack answers")
}

fn is_offloaded(firewall: &Namespace, port: u16) -> bool {
    entries(firewall, port).iter().any(|entry| entry.status & IPS_OFFLOAD != 0)
}

fn place_large(server: &MiniServer) -> Vec<u8> {
    let content: Vec<u8> = (0..LARGE).map(|index| (index % 251) as u8).collect();
    server.place("large.bin", content.clone());
    content
}

/// Fetches a file whose data connection the kernel offloads, while the control connection stays where Pinhole reads it.
fn assert_only_data_is_offloaded(fixture: &FilteredTopology, client: &mut MiniClient, mode: Mode, content: &[u8]) {
    let firewall = fixture.firewall();
    let to = if mode.is_active() { client.active(mode) } else { client.passive(mode) };
    let to = to.unwrap_or_else(|error| panic!("{mode}: {error}"));
    let passive = (!mode.is_active()).then(|| client.connect_data(to).expect("it is admitted"));
    client.command("RETR large.bin", 150).expect("the server has it");
    let mut data = passive.unwrap_or_else(|| client.accept().expect("the server connects"));
    let mut received = vec![0; 1 << 20];
    data.read_exact(&mut received).expect("it comes");
    assert!(is_offloaded(firewall, to.port()), "{mode}: the data connection {:?}", entries(firewall, to.port()));
    assert!(!is_offloaded(firewall, 21), "{mode}: the control connection {:?}", entries(firewall, 21));
    data.read_to_end(&mut received).expect("it comes");
    drop(data);
    assert!(received == content, "{mode}: {} bytes came of {}", received.len(), content.len());
    client.expect(226).expect("it is complete");
}

#[test]
fn flowtable_takes_data_and_not_control_connections() {
    for family in Family::ALL {
        let fixture = FilteredTopology::new(Shape::Gateway);
        if !offload(fixture.firewall(), ["clients", "servers"]) {
            return;
        }
        let daemon = fixture.daemon("");
        let server = fixture.serve(family);
        let content = place_large(&server);
        fixture.as_client(|| {
            let mut client = MiniClient::log_in(fixture.target(family, 21), TIMEOUT)?;
            for &mode in modes(family) {
                assert_only_data_is_offloaded(&fixture, &mut client, mode, &content);
                assert_eq!(client.download(mode, FILE)?, CONTENT, "{mode}");
            }
            client.quit()
        });
        // Each pinhole admitted its one connection, and none is left.
        fixture.wait_for_pinholes(0);
        let transfers = 2 * modes(family).len() as u64;
        assert_eq!((daemon.counted("used"), daemon.counted("expired")), (transfers, 0), "{family}");
    }
}

#[test]
fn real_transfers_work_with_flowtable() {
    for family in Family::ALL {
        let running = gateway(family);
        if !offload(&running.topology.firewall, ["clients", "servers"]) {
            return;
        }
        let _daemon = daemon_on(&running, "");
        assert_transfers(&running);
    }
}

#[test]
fn real_transfers_work_with_flowtable_and_nat() {
    for (kind, family) in [(Nat::Masquerade, Family::V4), (Nat::Dnat, Family::V4), (Nat::Dnat, Family::V6)] {
        let running = nat(kind, family);
        if !offload(&running.topology.gateways[0].namespace, ["inside", "outside"]) {
            return;
        }
        let _daemons = daemons_on(&running);
        assert_nat_transfers(&running);
    }
}

#[test]
fn flowtable_that_comes_while_the_daemon_runs_is_noticed() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let daemon = fixture.daemon("");
    if !offload(fixture.firewall(), ["clients", "servers"]) {
        return;
    }
    if daemon::mechanism() == "sets" {
        daemon.wait_for_log("another table has a flowtable now", 1);
    }
    let server = fixture.serve(Family::V4);
    let content = place_large(&server);
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(fixture.target(Family::V4, 21), TIMEOUT)?;
        assert_only_data_is_offloaded(&fixture, &mut client, Mode::Epsv, &content);
        client.quit()
    });
}

/// Without Pinhole's preparation the kernel takes control connections as well: of such a session nothing is read.
#[test]
fn session_offloaded_before_the_start_is_not_read() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    if !offload(fixture.firewall(), ["clients", "servers"]) {
        return;
    }
    let _server = fixture.serve(Family::V4);
    let target = fixture.target(Family::V4, 21);
    let client_side = &fixture.topology.client.namespace;
    fixture.as_client(|| {
        let mut old = MiniClient::log_in(target, TIMEOUT)?;
        assert!(is_offloaded(fixture.firewall(), 21), "{:?}", entries(fixture.firewall(), 21));
        let daemon = fixture.daemon("");
        let announced = old.passive(Mode::Epsv)?;
        assert_closed(client_side, announced);
        assert_eq!(daemon.counted("packets"), 0, "the flowtable forwarded them");
        let mut new = MiniClient::log_in(target, TIMEOUT)?;
        assert_eq!(new.download(Mode::Epsv, FILE)?, CONTENT);
        new.quit()
    });
}
