//! Two customers with the same addresses, in two conntrack zones of one gateway: what one of them announces opens nothing
//! for the other.
//!
//! Needs root and nft.

use std::net::SocketAddr;

use lab::mini::{MiniClient, MiniServer};
use lab::{Family, Namespace, Shape};
use pinhole::core::ftp::Mode;

use crate::daemon::TIMEOUT;
use crate::filtered_topology::{CONTENT, FILE, FilteredTopology, assert_closed, modes};
use crate::real_transfers::load;

/// Puts the packets that match into a zone.
fn zone(number: u16, of: &str) -> String {
    format!(
        "table inet zones {{
            chain prerouting {{ type filter hook prerouting priority raw; {of} ct zone set {number}; }}
        }}"
    )
}

/// A control connection in the default zone, and data connections of a host with the same address in another zone.
fn announced_then_dialled(family: Family, mode: Mode, in_zone: bool) {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let firewall = fixture.firewall();
    if in_zone {
        // As if it were the second customer, with the address of the first, who opened the data connection.
        load(firewall, &zone(7, "tcp dport >= 1024 tcp sport >= 1024"));
    }
    let daemon = fixture.daemon("");
    let _server = fixture.serve(family);
    let client_side = &fixture.topology.client.namespace;
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(fixture.target(family, 21), TIMEOUT)?;
        let to = client.passive(mode)?;
        fixture.wait_for_pinholes(1);
        if in_zone {
            assert_closed(client_side, to);
            assert_eq!(fixture.pinholes(), 1, "it waits for the connection in its own zone");
        } else {
            drop(client.connect_data(to)?);
        }
        Ok(())
    });
    drop(daemon);
}

#[test]
fn pinhole_of_the_default_zone_admits_nothing_in_another_zone() {
    for (family, mode) in [(Family::V4, Mode::Pasv), (Family::V6, Mode::Epsv)] {
        announced_then_dialled(family, mode, false);
        announced_then_dialled(family, mode, true);
    }
}

fn nothing_opens(fixture: &FilteredTopology, family: Family) {
    let client_side: &Namespace = &fixture.topology.client.namespace;
    let _server: MiniServer = fixture.serve(family);
    fixture.as_client(|| {
        for &mode in modes(family) {
            let mut client = MiniClient::log_in(fixture.target(family, 21), TIMEOUT)?;
            let to: SocketAddr = if mode.is_active() { client.active(mode)? } else { client.passive(mode)? };
            let from = if mode.is_active() { &fixture.topology.server.namespace } else { client_side };
            assert_closed(from, to);
            assert_eq!(fixture.pinholes(), 0, "{mode}");
            client.quit()?;
        }
        Ok(())
    });
}

#[test]
fn control_connection_in_a_zone_opens_nothing() {
    for family in Family::ALL {
        let fixture = FilteredTopology::new(Shape::Gateway);
        load(fixture.firewall(), &zone(7, ""));
        let daemon = fixture.daemon("");
        nothing_opens(&fixture, family);
        assert_eq!(daemon.counted("packets"), 0, "{family}");
        daemon
            .wait_for_log("puts control connections into a conntrack zone: Pinhole admits no data connection there", 1);
    }
}

#[test]
fn control_connection_in_a_zone_of_one_direction_opens_nothing() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    load(fixture.firewall(), &zone(7, "").replace("ct zone", "ct original zone"));
    let daemon = fixture.daemon("");
    nothing_opens(&fixture, Family::V4);
    assert_eq!(daemon.counted("packets"), 0);
}

/// Where the policy denies commands, it denies them in zones too.
#[test]
fn denied_command_is_denied_in_a_zone() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    load(fixture.firewall(), &zone(7, ""));
    let daemon = fixture.daemon("defaults: { commands: { deny: [SITE] } }\n");
    nothing_opens(&fixture, Family::V4);
    let _server = fixture.serve(Family::V4);
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(fixture.target(Family::V4, 21), TIMEOUT)?;
        client.send(b"SITE HELP\r\n")?;
        client.reply()?;
        client.quit()
    });
    assert_eq!(daemon.counted("denied"), 1);
}

/// Connections outside of zones are served as ever beside such a rule.
#[test]
fn transfers_work_in_the_default_zone_beside_another() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    load(fixture.firewall(), &zone(7, "ip saddr 192.0.2.0/24"));
    let _daemon = fixture.daemon("");
    let _server = fixture.serve(Family::V4);
    fixture.as_client(|| {
        for &mode in modes(Family::V4) {
            let mut client = MiniClient::log_in(fixture.target(Family::V4, 21), TIMEOUT)?;
            assert_eq!(client.download(mode, FILE)?, CONTENT, "{mode}");
            client.quit()?;
        }
        Ok(())
    });
}
