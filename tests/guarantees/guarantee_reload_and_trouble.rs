//! Guarantee: reloads, status requests and failed starts are reported, and change nothing else.
//!
//! The built program on a real kernel, in namespaces of the lab, with the lab's own small server and client around it
//! and a filter that drops by default. Needs root and nft.

use crate::daemon;
use crate::daemon::{Daemon, PROGRAM, TIMEOUT};
use crate::filtered_topology::{CONTENT, FILE, FilteredTopology, filter, modes, policy, some_transfers};

use lab::mini::{MiniClient, MiniOptions, MiniServer};
use lab::{Family, Finished, Namespace, Shape};
use nix::sys::signal::Signal;
use pinhole::core::ftp::Mode;
use pinhole::core::kernel::SessionProgress;
use pinhole::core::net::{Endpoint, Flow, Port};
use pinhole::core::policy::Policy;
use pinhole::netfilter::netlink::Conntrack;
use std::net::SocketAddr;

#[test]
fn reload_keeps_sessions_and_applies_at_once() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let servers = [21, 2121].map(|port| fixture.serve_with(fixture.target(Family::V4, port), MiniOptions::default()));
    let [first, second] = servers.each_ref().map(MiniServer::address);
    for by_signal in [true, false] {
        let daemon = fixture.daemon("");
        let reload = || {
            if by_signal {
                let before = daemon.child.output().matches("reloaded the policy").count();
                daemon_signal(&daemon, Signal::SIGHUP);
                daemon.wait_for_log("reloaded the policy", before + 1);
            } else {
                let finished = daemon.program(&["reload"]).expect("it runs");
                let file = daemon.folder.join("policy.yaml").display().to_string();
                assert_eq!(
                    (finished.status.success(), &*finished.output()),
                    (true, &*format!("policy reloaded: {file}\n"))
                );
                let status = daemon.status();
                assert_eq!(status["policy_file"], file);
                assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
            }
        };
        fixture.as_client(|| {
            let mut client = MiniClient::log_in(first, TIMEOUT)?;
            let mut other = MiniClient::log_in(second, TIMEOUT)?;
            assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT);
            assert!(other.download(Mode::Pasv, FILE).is_err(), "2121 is no control port yet");
            let pending = client.passive(Mode::Pasv)?;
            daemon.write_policy(&policy(
                Shape::Gateway,
                "control_ports: [21, 2121]\ndefaults: { modes: [PASV, EPSV] }\n",
            ));
            reload();
            drop(client.connect_data(pending)?);
            assert!(other.download(Mode::Pasv, FILE).is_err(), "it went on before it was read");
            other.quit()?;
            let mut other = MiniClient::log_in(second, TIMEOUT)?;
            for client in [&mut client, &mut other] {
                assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT);
            }
            client.active(Mode::Port)?;
            client.command(&format!("RETR {FILE}"), 425)?;
            daemon.write_policy(&policy(Shape::Gateway, "control_ports: [2121]\n"));
            reload();
            assert!(client.download(Mode::Pasv, FILE).is_err(), "21 is no control port any more");
            assert_eq!(other.download(Mode::Port, FILE)?, CONTENT);
            client.quit()?;
            other.quit()
        });
        assert!(daemon.counted("sessions") <= 3);
    }
}

#[test]
fn packets_held_for_a_lost_segment_are_released_in_time() {
    let fixture = FilteredTopology::new(Shape::ClientHost);
    let server = fixture.serve(Family::V4);
    // The policy denies commands, so segments after a gap are held.
    let _daemon = fixture.daemon("defaults: { commands: { deny: [SITE] } }\n");
    let progress = Policy::embedded().mark.control_bits();
    let [logged_in, unread] = [SessionProgress::LoggedIn, SessionProgress::Unreadable].map(|known| progress.of(known));
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        let end = |address: SocketAddr| Endpoint::new(address.ip(), Port::new(address.port()).expect("a port"));
        let flow = Flow { source: end(client.local_address()?), destination: end(server.address()) };
        let mark = |bits| {
            let marked = fixture.firewall().run(|| Conntrack::open(TIMEOUT)?.mark(&flow, bits, progress.progress()));
            assert_eq!(marked.expect("root may enter"), Ok(true));
        };
        // As if the table had been gone for a moment.
        mark(unread);
        client.command("NOOP", 200)?;
        mark(logged_in);
        // A packet that waits in a queue of the sending host is not retransmitted.
        client.command("NOOP", 200)?;
        assert_eq!(client.download(Mode::Pasv, FILE)?, CONTENT);
        client.quit()
    });
}

fn daemon_signal(daemon: &Daemon, signal: Signal) {
    let id = i32::try_from(daemon.child.id()).expect("a process");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), signal).expect("it runs");
}

#[test]
fn reload_can_change_mark_and_when_down() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let server = fixture.serve(Family::V4);
    let daemon = fixture.daemon("");
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        for more in ["mark: 0x20000000\n", "capture: { when_down: closed }\nmark: 0x20000000\n", ""] {
            daemon.write_policy(&policy(Shape::Gateway, more));
            let finished = daemon.program(&["reload"])?;
            assert!(finished.status.success(), "{}", finished.output());
            for &mode in modes(Family::V4) {
                let content = client.download(mode, FILE).unwrap_or_else(|error| panic!("{more}{mode}: {error}"));
                assert_eq!(content, CONTENT, "{more}{mode}");
            }
        }
        client.quit()
    });
}

#[test]
fn status_says_when_the_policy_was_loaded() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let daemon = fixture.daemon("");
    let since = |status: &serde_json::Value| status["running_since"].as_str().map(str::to_owned);
    let loaded = |status: &serde_json::Value| status["policy_loaded"].as_str().map(str::to_owned);
    let first = daemon.status();
    // The times are in whole seconds.
    let moves = || {
        daemon.program(&["reload"])?;
        Ok(loaded(&daemon.status()) > loaded(&first))
    };
    lab::wait_until("a later time", TIMEOUT, moves).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(since(&daemon.status()), since(&first));
}

#[test]
fn bad_policy_is_refused_and_the_old_one_stays() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let server = fixture.serve(Family::V4);
    let daemon = fixture.daemon("");
    // Without elements: a used pinhole is removed a moment later. Without the deadline, which moves with the pinholes.
    let ruleset = || -> Vec<String> {
        let listed = fixture.firewall().nft_output(&["-s", "-t", "list", "ruleset"]).expect("nft lists");
        listed.lines().filter(|line| !line.contains("meta time")).map(str::to_owned).collect()
    };
    let before = ruleset();
    let policies = [
        ("defaults: { timeout: soon }\n".to_owned(), "timeout"),
        ("admit: [inet filter nowhere]\n".to_owned(), "no chain `inet filter nowhere`"),
        (policy(Shape::Gateway, "capture: { queue: 7 }\n"), "queue"),
        (policy(Shape::Gateway, "capture: { queues: 9 }\n"), "queue"),
    ];
    for (policy, problem) in policies {
        daemon.write_policy(&policy);
        let finished = daemon.program(&["reload"]).expect("it runs");
        assert_eq!(finished.status.code(), Some(2), "{policy}: {}", finished.output());
        let said = finished.output();
        assert!(said.contains("the old policy stays in force") && said.contains(problem), "{policy}: {said}");
        let told = daemon.child.output().matches("reload failed").count();
        daemon_signal(&daemon, Signal::SIGHUP);
        daemon.wait_for_log("reload failed", told + 1);
        assert_eq!(ruleset(), before, "{policy}");
        fixture.as_client(|| some_transfers(server.address(), Mode::Pasv));
    }
    std::fs::remove_file(daemon.folder.join("policy.yaml")).expect("it is there");
    let finished = daemon.program(&["reload"]).expect("it runs");
    assert!(finished.output().contains("cannot read"), "{}", finished.output());
}

#[test]
fn status_shows_sessions_and_pending_pinholes() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let server = fixture.serve(Family::V4);
    let daemon = fixture.daemon("");
    fixture.as_client(|| {
        let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
        assert_eq!(client.download(Mode::Port, FILE)?, CONTENT);
        let announced = client.passive(Mode::Pasv)?.to_string();
        let text = daemon.program(&["status"])?.output();
        assert!(text.starts_with("1 session, 1 pinhole, "), "{text}");
        assert!(
            text.contains(&format!("10.21.1.10 -> {announced}")) && text.contains("\n  opened            2\n"),
            "{text}"
        );
        let json = daemon.program(&["status", "--json"])?;
        let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
        assert_eq!((&json["sessions"], &json["kernel_pinholes"]), (&1.into(), &1.into()), "{json}");
        let pinhole = &json["pinholes"][0];
        assert_eq!((&pinhole["from"], &pinhole["to"]), (&"10.21.1.10".into(), &announced.into()), "{json}");
        let (age, remaining) = (pinhole["age"].as_f64().expect("seconds"), pinhole["expires_in"].as_f64());
        assert!((59.9..60.1).contains(&(age + remaining.expect("seconds"))), "{json}");
        client.quit()
    });
    let quiet = || Ok(daemon.status()["sessions"] == 0);
    lab::wait_until("the end of the session", TIMEOUT, quiet).expect("it ends");
}

/// Runs the service where it cannot run.
fn refused(namespace: &Namespace, policy: &str) -> Finished {
    let folder = daemon::new_folder();
    daemon::write_policy(&folder, policy);
    let finished = daemon::service(namespace, &folder, "info").spawn().expect("it starts").wait(TIMEOUT);
    let _ = std::fs::remove_dir_all(&folder);
    finished.expect("it ends")
}

#[track_caller]
fn assert_refused(finished: &Finished, status: i32, problem: &str) {
    let said = finished.output();
    assert_eq!(finished.status.code(), Some(status), "{said}");
    assert!(said.contains(problem) && !said.contains("panicked"), "{said}");
}

#[test]
fn second_instance_is_refused_and_the_first_undisturbed() {
    let fixture = FilteredTopology::new(Shape::ServerHost);
    let server = fixture.serve(Family::V4);
    let daemon = fixture.daemon("");
    // Without elements: a used pinhole is removed a moment later.
    let ruleset = || fixture.firewall().nft_output(&["-s", "-t", "list", "ruleset"]).expect("nft lists");
    let before = ruleset();
    let second = daemon::service(fixture.firewall(), &daemon.folder, "info").spawn().expect("it starts");
    assert_refused(&second.wait(TIMEOUT).expect("it ends"), 1, "another pinhole is running");
    // An instance that does not see the first one's socket finds its queue taken.
    let third = refused(fixture.firewall(), &policy(Shape::ServerHost, ""));
    assert_refused(&third, 1, "cannot read queue 0 of the kernel: it is read by ");
    assert_eq!(ruleset(), before);
    assert!(daemon.socket().exists());
    fixture.as_client(|| some_transfers(server.address(), Mode::Pasv));
}

#[test]
fn failed_start_is_explained_and_changes_nothing() {
    let namespace = Namespace::new("host").expect("a namespace");
    namespace.nft(&filter(Shape::ServerHost)).expect("the rules are right");
    let ruleset = || namespace.nft_output(&["list", "ruleset"]).expect("nft lists");
    let good = policy(Shape::ServerHost, "");
    let before = ruleset();

    let mut other = Daemon::start(&namespace, &good).expect("it is free");
    assert_refused(&refused(&namespace, &good), 1, &format!("read by pinhole (process {})", other.child.id()));
    other.end(Signal::SIGTERM).expect("it ends");
    assert_refused(&refused(&namespace, "admit: [inet filter nowhere]\n"), 1, "no chain `inet filter nowhere`");
    assert_refused(&refused(&namespace, "admit: [ip filter input]\n"), 1, "no chain `ip filter input`");
    assert_refused(&refused(&namespace, "contrl_ports: [21]\n"), 2, "error: unknown key contrl_ports");
    assert_eq!(ruleset(), before);

    namespace.nft("add table inet pinhole\nadd chain inet pinhole mine").expect("the rules are right");
    let with_foreign = ruleset();
    assert_refused(&refused(&namespace, &good), 1, "belongs to another program: it has a chain `mine`");
    assert_eq!(ruleset(), with_foreign);
    namespace.nft("delete table inet pinhole").expect("it is there");

    // A copy, as other users may not enter the folder of the build.
    let folder = daemon::new_folder();
    let copy = folder.join("pinhole");
    // Copied by another process: programs that tests start meanwhile would inherit the file, open for writing, and it
    // could not be executed.
    let copied = std::process::Command::new("cp").arg(PROGRAM).arg(&copy).status();
    assert!(copied.is_ok_and(|status| status.success()), "it can be copied");
    let run_as = |limits: &[&str]| {
        let mut command = namespace.command("setpriv");
        command.args(limits).arg(&copy).arg("run").env("PINHOLE_SOCKET", folder.join("control.sock"));
        command.spawn().expect("it starts").wait(TIMEOUT).expect("it ends")
    };
    assert_refused(&run_as(&["--reuid=65534", "--regid=65534", "--clear-groups"]), 2, "run it as root");
    assert_refused(&run_as(&["--bounding-set=-net_admin"]), 1, "not permitted");
    let _ = std::fs::remove_dir_all(&folder);
    assert_eq!(ruleset(), before);
    let mut daemon = Daemon::start(&namespace, &good).expect("now it runs");
    daemon.end(Signal::SIGTERM).expect("it ends");
    assert_eq!(ruleset(), before);
}
