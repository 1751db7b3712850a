//! Guarantee: the packet with an announcement is released only after the kernel has acknowledged its pinhole.
//!
//! The built program on a real kernel, in namespaces of the lab, with the lab's own small server and client around it
//! and a filter that drops by default. Needs root and nft.

#![allow(clippy::print_stdout, reason = "figures for whoever runs it by hand")]

use crate::daemon::TIMEOUT;
use crate::filtered_topology::{CONTENT, FILE, FilteredTopology, sent_again};

use std::io::Read;
use std::thread;
use std::time::Instant;

use lab::mini::MiniClient;
use lab::{Family, Result, Shape};
use pinhole::core::ftp::Mode;

#[test]
fn immediate_data_connection_always_finds_its_pinhole() {
    const MODES: [Mode; 3] = [Mode::Pasv, Mode::Epsv, Mode::Port];
    let each = lab::share_of(10_000).div_ceil(MODES.len() * Shape::ALL.len());
    for shape in Shape::ALL {
        let fixture = FilteredTopology::new(shape);
        let _daemon = fixture.daemon_logging("", "warn");
        let server = fixture.serve_many(Family::V4);
        let begun = Instant::now();
        for mode in MODES {
            let follow = || {
                let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
                let mut content = Vec::new();
                for _ in 0..each {
                    content.clear();
                    if mode == Mode::Port {
                        // With its announcement the server gets the command that makes it connect.
                        let address = client.listen()?;
                        let line = client.announcement(mode, address)?;
                        client.send(format!("{line}\r\nRETR {FILE}\r\n").as_bytes())?;
                        client.expect(200)?;
                        client.expect(150)?;
                        client.accept()?.read_to_end(&mut content).expect("the server sends it all");
                        client.expect(226)?;
                    } else {
                        client.fetch(mode, &format!("RETR {FILE}"), &mut content)?;
                    }
                    assert_eq!(content, CONTENT);
                }
                client.quit()
            };
            fixture.as_client(follow);
        }
        println!("{shape}: {} data connections in {:?}", each * MODES.len(), begun.elapsed());
        assert_eq!(sent_again(&fixture), 0, "{shape}: a first packet was dropped");
    }
}

#[test]
fn two_hundred_concurrent_sessions_transfer() {
    const TRANSFERS: usize = 50;
    let sessions = lab::share_of(200);
    let fixture = FilteredTopology::new(Shape::Gateway);
    let daemon = fixture.daemon_logging("", "warn");
    let servers = Family::ALL.map(|family| fixture.serve_many(family));
    let [v4, v6] = [servers[0].address(), servers[1].address()];
    let kinds = [(v4, Mode::Pasv), (v4, Mode::Epsv), (v4, Mode::Port), (v6, Mode::Epsv), (v6, Mode::Eprt)];
    let begun = Instant::now();
    let session = |(server, mode)| -> Result<()> {
        let mut client = MiniClient::log_in(server, 3 * TIMEOUT)?;
        let mut content = Vec::new();
        for _ in 0..TRANSFERS {
            content.clear();
            client.fetch(mode, &format!("RETR {FILE}"), &mut content)?;
            assert_eq!(content, CONTENT);
        }
        client.quit()
    };
    fixture.as_client(|| {
        thread::scope(|scope| {
            let start = |number| scope.spawn(move || session(kinds[number % kinds.len()]));
            let all: Vec<_> = (0..sessions).map(start).collect();
            all.into_iter().try_for_each(|session| session.join().expect("no panic"))
        })
    });
    println!(
        "{} transfers in {:?}, {} first packets sent again",
        sessions * TRANSFERS,
        begun.elapsed(),
        sent_again(&fixture)
    );
    assert_eq!(daemon.counted("opened"), (sessions * TRANSFERS) as u64);
    assert_eq!(daemon.counted("sessions"), sessions as u64);
    assert_eq!(daemon.status()["counters"]["refused"], serde_json::json!({}));
    lab::wait_until("the news of all that were used", TIMEOUT, || {
        Ok(daemon.counted("used") == (sessions * TRANSFERS) as u64)
    })
    .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((fixture.pinholes(), sent_again(&fixture)), (0, 0));
}
