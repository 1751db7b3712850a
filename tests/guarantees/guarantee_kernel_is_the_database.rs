//! Guarantee: whatever happens to the daemon, control connections and transfers continue, and nothing opens by itself.
//!
//! The built program on a real kernel, in namespaces of the lab, with the lab's own small server and client around it
//! and a filter that drops by default. Needs root and nft.

#![allow(clippy::print_stdout, reason = "figures for whoever runs it by hand")]

use crate::daemon::PATIENCE;
use crate::disturbance::disturb_transfers;
use crate::stage::{CONTENT, FILE, FOR_HOURS, Stage, assert_closed, kernel_counter, modes, random_below};

use std::thread;
use std::time::{Duration, Instant};

use lab::mini::MiniClient;
use lab::{Family, Shape};
use pinhole::core::ftp::Mode;

#[test]
fn kill_breaks_no_session_and_the_next_transfer_works() {
    let kills = lab::share_of(200);
    let stage = Stage::new(Shape::Gateway);
    let mut daemon = stage.daemon_logging("", "warn");
    let begun = Instant::now();
    disturb_transfers(&stage, |disturbance| {
        for _ in 0..kills {
            // The moment of the kill has to be random.
            thread::sleep(Duration::from_micros(random_below(20_000)));
            disturbance.begins();
            daemon.kill().expect("it can be killed");
            daemon.restart().expect("it comes back");
            disturbance.is_over();
        }
    });
    println!("{kills} kills in {:?}", begun.elapsed());
}

#[test]
fn fail_open_passes_control_and_opens_nothing() {
    for shape in Shape::ALL {
        let stage = Stage::new(shape);
        let mut daemon = stage.daemon(FOR_HOURS);
        let server = stage.serve(Family::V4);
        stage.as_client(|| {
            let mut client = MiniClient::log_in(server.address(), PATIENCE)?;
            assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT);
            let before = client.passive(Mode::Pasv)?;
            daemon.kill()?;
            client.command("NOOP", 200)?;
            // The existing pinhole still admits one connection; no new one opens.
            drop(client.connect_data(before)?);
            assert_closed(&stage.topology.client.namespace, before);
            // A used pinhole is listed until it is removed.
            let listed = stage.pinholes();
            let announced = client.passive(Mode::Pasv)?;
            assert_eq!(stage.pinholes(), listed);
            assert_closed(&stage.topology.client.namespace, announced);
            client.active(Mode::Port)?;
            client.command(&format!("RETR {FILE}"), 425)?;
            // New sessions are no better off, and no worse.
            let mut another = MiniClient::log_in(server.address(), PATIENCE)?;
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
            MiniClient::log_in(server.address(), PATIENCE)?.download(Mode::Pasv, FILE).map(drop)
        });
    }
}

#[test]
fn fail_closed_stops_control_without_the_daemon() {
    let stage = Stage::new(Shape::Gateway);
    let mut daemon = stage.daemon("capture: { when_down: closed }\n");
    let server = stage.serve(Family::V4);
    stage.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), PATIENCE)?;
        daemon.kill()?;
        let retransmitted = || kernel_counter(&stage.topology.client.namespace, "Tcp", "RetransSegs");
        let before = retransmitted();
        client.send(b"NOOP\r\n")?;
        lab::wait_until("the command to be sent again", PATIENCE, || Ok(retransmitted() > before + 1))?;
        client.be_patient_for(Duration::from_millis(50))?;
        assert!(client.reply().is_err());
        client.be_patient_for(PATIENCE)?;
        daemon.restart()?;
        client.expect(200)?;
        assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT);
        client.quit()
    });
}
