//! Clients cannot flood the log.
//!
//! The built program on a real kernel, in namespaces of the lab. Needs root and nft.

use std::io::{Read, Write};
use std::time::Instant;

use crate::daemon::TIMEOUT;
use crate::filtered_topology::{FilteredTopology, connect};
use lab::{Family, Shape};

/// The log's text for a connection that is not FTP.
const LINE: &str = "not FTP: no announcement opens a pinhole";

#[test]
fn log_flood_is_bounded_and_hides_no_other_client() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let daemon = fixture.daemon_logging("", "info");
    let _servers = Family::ALL.map(|family| fixture.serve(family));
    let client = &fixture.topology.client.namespace;
    let asks_for_a_page = |family| {
        let mut control = connect(client, fixture.target(family, 21)).expect("control connections may pass");
        control.set_read_timeout(Some(TIMEOUT)).expect("a socket");
        // The server greets, and so has its say before the client.
        control.read_exact(&mut [0; 3]).expect("a greeting");
        control.write_all(b"GET / HTTP/1.1\r\n").expect("it is sent");
        // The server's answer follows the client's request through the same firewall.
        let _ = control.read(&mut [0; 512]);
    };
    let began = Instant::now();
    for _ in 0..100 {
        asks_for_a_page(Family::V4);
    }
    asks_for_a_page(Family::V6);
    let seconds = began.elapsed().as_secs() as usize;
    lab::wait_until("all to be counted", TIMEOUT, || Ok(daemon.counted("not_ftp") == 101))
        .unwrap_or_else(|error| panic!("{error}"));
    let [ipv4, ipv6] = Family::ALL.map(|family| fixture.topology.client.addresses.of(family).to_string());
    // The log is written a moment after something was counted.
    daemon.wait_for_log(&format!("([{ipv6}]"), 1);
    let said = daemon.child.output();
    let of = |address: &str| {
        let is_it = |line: &&str| line.contains(LINE) && line.contains(&format!("({address}"));
        said.lines().filter(is_it).count()
    };
    let (flood, other) = (of(&ipv4), of(&format!("[{ipv6}]")));
    assert!((1..=seconds + 2).contains(&flood), "{flood} lines in {seconds} seconds");
    assert_eq!(other, 1, "the line of another client");
    // Suppressed lines are reported even if no other line follows.
    daemon.wait_for_log(&format!("lines `not FTP` from {ipv4}:"), 1);
}
