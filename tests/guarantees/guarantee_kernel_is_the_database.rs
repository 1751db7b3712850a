//! Guarantee: whatever happens to the daemon, control connections and transfers continue, and nothing opens by itself.
//!
//! The built program on a real kernel, in namespaces of the lab, with the lab's own small server and client around it
//! and a filter that drops by default. Needs root and nft.

#![allow(clippy::print_stdout, reason = "figures for whoever runs it by hand")]

use crate::daemon::TIMEOUT;
use crate::disturbance::disturb_transfers;
use crate::filtered_topology::{CONTENT, FILE, FOR_HOURS, FilteredTopology, assert_closed, kernel_counter, modes};

use std::time::{Duration, Instant};

use lab::mini::MiniClient;
use lab::{Family, Shape};
use pinhole::core::ftp::Mode;

#[test]
fn kill_breaks_no_session_and_the_next_transfer_works() {
    let kills = lab::share_of(200);
    let fixture = FilteredTopology::new(Shape::Gateway);
    let mut daemon = fixture.daemon_logging("", "warn");
    let begun = Instant::now();
    disturb_transfers(&fixture, |disturbance| disturbance.kill_repeatedly(&mut daemon, kills));
    println!("{kills} kills in {:?}", begun.elapsed());
}

#[test]
fn fail_open_passes_control_and_opens_nothing() {
    for shape in Shape::ALL {
        let fixture = FilteredTopology::new(shape);
        let mut daemon = fixture.daemon(FOR_HOURS);
        let server = fixture.serve(Family::V4);
        fixture.as_client(|| {
            let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
            assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT);
            let before = client.passive(Mode::Pasv)?;
            daemon.kill()?;
            client.command("NOOP", 200)?;
            // The existing pinhole still admits one connection; no new one opens.
            drop(client.connect_data(before)?);
            assert_closed(&fixture.topology.client.namespace, before);
            // A used pinhole is listed until it is removed.
            let listed = fixture.pinholes();
            let announced = client.passive(Mode::Pasv)?;
            assert_eq!(fixture.pinholes(), listed);
            assert_closed(&fixture.topology.client.namespace, announced);
            client.active(Mode::Port)?;
            client.command(&format!("RETR {FILE}"), 425)?;
            // New sessions are no better off, and no worse.
            let mut another = MiniClient::log_in(server.address(), TIMEOUT)?;
            assert!(another.download(Mode::Epsv, FILE).is_err());
            daemon.restart()?;
            // Where something passed unread, one line of each end has to be read before anything counts.
            client.command("NOOP", 200)?;
            for &mode in modes(Family::V4) {
                assert_eq!(client.download(mode, FILE)?, CONTENT, "{shape}, {mode}");
            }
            client.quit()?;
            // This one is not known to be FTP.
            another.command("NOOP", 200)?;
            assert!(another.download(Mode::Pasv, FILE).is_err());
            assert_eq!(daemon.status()["counters"]["refused"]["picked-up"], 1, "{shape}");
            MiniClient::log_in(server.address(), TIMEOUT)?.download(Mode::Pasv, FILE).map(drop)
        });
    }
}

#[test]
fn fail_closed_stops_control_without_the_daemon() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let mut daemon = fixture.daemon("capture: { when_down: closed }\n");
    let server = fixture.serve(Family::V4);
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        daemon.kill()?;
        let retransmitted = || kernel_counter(&fixture.topology.client.namespace, "Tcp", "RetransSegs");
        let before = retransmitted();
        client.send(b"NOOP\r\n")?;
        lab::wait_until("the command to be sent again", TIMEOUT, || Ok(retransmitted() > before + 1))?;
        client.set_timeout(Duration::from_millis(50))?;
        assert!(client.reply().is_err());
        client.set_timeout(TIMEOUT)?;
        daemon.restart()?;
        client.expect(200)?;
        assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT);
        client.quit()
    });
}
