//! Sessions that transfer while a test repeatedly disturbs the firewall.

#![allow(clippy::print_stdout, reason = "figures for whoever runs it by hand")]
#![allow(dead_code, reason = "each test takes what it needs")]

use crate::daemon::{Daemon, TIMEOUT};
use crate::filtered_topology::{CONTENT, FILE, FilteredTopology, SetOnDrop, random_below};

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use lab::mini::MiniClient;
use lab::{Family, Result};
use pinhole::core::ftp::Mode;

/// Counts disturbances of the firewall while sessions transfer.
#[derive(Default)]
pub(crate) struct Disturbance {
    /// Even between disturbances, odd during one.
    number: AtomicUsize,
    logged_in: AtomicUsize,
}

impl Disturbance {
    pub(crate) fn begins(&self) {
        assert_eq!(self.number.fetch_add(1, Ordering::SeqCst) % 2, 0);
    }

    pub(crate) fn is_over(&self) {
        assert_eq!(self.number.fetch_add(1, Ordering::SeqCst) % 2, 1);
    }

    /// Kills the daemon at random moments, and restarts it each time.
    pub(crate) fn kill_repeatedly(&self, daemon: &mut Daemon, kills: usize) {
        for _ in 0..kills {
            thread::sleep(Duration::from_micros(random_below(20_000)));
            self.begins();
            daemon.kill().expect("it can be killed");
            daemon.restart().expect("it comes back");
            self.is_over();
        }
    }

    pub(crate) fn now(&self) -> usize {
        self.number.load(Ordering::SeqCst)
    }

    /// Waits until so many sessions have logged in: a session whose login passes unread is not trusted.
    pub(crate) fn wait_for_logins(&self, sessions: usize) {
        let all = || Ok(self.logged_in.load(Ordering::SeqCst) >= sessions);
        lab::wait_until("the logins", TIMEOUT, all).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// The transfers of one disturbed session.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) transfers: usize,
    /// Transfers that were hit, and tried once more in the same session.
    pub(crate) hit: usize,
}

/// Transfers in one session until `is_over`. A transfer may only fail if it, or the one before it, was disturbed: bytes
/// may have passed unread, and then a line of each end has to be read before an announcement counts. The transfer is
/// repeated.
pub(crate) fn transfer_under(
    disturbance: &Disturbance,
    is_over: &AtomicBool,
    server: SocketAddr,
    mode: Mode,
) -> Result<Done> {
    let mut client = MiniClient::log_in(server, TIMEOUT)?;
    disturbance.logged_in.fetch_add(1, Ordering::SeqCst);
    let mut done = Done::default();
    let mut content = Vec::new();
    let command = format!("RETR {FILE}");
    // When the last transfer began, or when anything was sent after that.
    let mut read_at = disturbance.now();
    // Where the machine is slow, all may be over before the first.
    while !is_over.load(Ordering::SeqCst) || done.transfers == 0 {
        let before = disturbance.now();
        content.clear();
        match client.fetch(mode, &command, &mut content) {
            Ok(()) => {
                assert_eq!(content, CONTENT);
                done.transfers += 1;
                read_at = before;
                // The disturbing thread needs a processor, too.
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) if read_at.is_multiple_of(2) && disturbance.now() == read_at => {
                println!("{mode}, after {} transfers, of which {} were hit: {error}", done.transfers, done.hit);
                return Err(error);
            }
            Err(_) => {
                done.hit += 1;
                let is_over = || Ok(disturbance.now().is_multiple_of(2));
                lab::wait_until("the end of the disturbance", TIMEOUT, is_over)?;
                read_at = disturbance.now();
                // Pending replies come before this one.
                client.send(b"PWD\r\n")?;
                while client.reply()?.code != 257 {}
            }
        }
    }
    // Whatever happened before, it works now.
    client.command("NOOP", 200)?;
    assert_eq!(client.download(mode, FILE)?, CONTENT);
    client.quit()?;
    Ok(done)
}

/// Runs sessions of both families and all kinds while `disturb` runs, and checks that none breaks.
pub(crate) fn disturb_transfers(fixture: &FilteredTopology, disturb: impl FnOnce(&Disturbance)) {
    let (disturbance, is_over) = (Disturbance::default(), AtomicBool::new(false));
    // Many transfers a second use up the ports of a host, unless ports of closed connections may be reused.
    for host in [&fixture.topology.client, &fixture.topology.server] {
        for (name, value) in [("tcp_tw_reuse", "1"), ("ip_local_port_range", "1024 65535")] {
            host.namespace.set(&format!("net/ipv4/{name}"), value).expect("a parameter of the namespace");
        }
    }
    let servers = Family::ALL.map(|family| fixture.serve_many(family));
    let [v4, v6] = [servers[0].address(), servers[1].address()];
    let sessions = [(v4, Mode::Pasv), (v4, Mode::Port), (v6, Mode::Epsv), (v6, Mode::Eprt)];
    let (disturbance, is_over) = (&disturbance, &is_over);
    thread::scope(|scope| {
        let start = |(server, mode)| {
            let work = move || transfer_under(disturbance, is_over, server, mode);
            (mode, scope.spawn(move || fixture.topology.client.namespace.run(work).and_then(|result| result)))
        };
        let sessions: Vec<(Mode, ScopedJoinHandle<'_, _>)> = sessions.into_iter().map(start).collect();
        {
            let _ends = SetOnDrop(is_over);
            disturbance.wait_for_logins(sessions.len());
            disturb(disturbance);
        }
        for (mode, session) in sessions {
            let done = session.join().expect("no panic").unwrap_or_else(|error| panic!("{mode}: {error}"));
            println!("{mode}: {} transfers, {} hit", done.transfers, done.hit);
            assert!(done.transfers > 0, "{mode}");
        }
    });
}
