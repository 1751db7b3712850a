//! `pinhole status` names who moves what.
//!
//! Needs root, nft, and the programs that `tests/setup test` fetches.

use std::io::Write;

use lab::mini::{MiniClient, MiniOptions};
use lab::{Family, Result, Shape};
use pinhole::core::ftp::Mode;
use serde_json::Value;

use crate::daemon::{Daemon, TIMEOUT};
use crate::filtered_topology::FilteredTopology;

const PIECE: &[u8] = &[b'x'; 50_000];

fn sessions(daemon: &Daemon) -> Vec<Value> {
    daemon.status()["session_list"].as_array().expect("a list").clone()
}

/// An upload that has begun and not ended, as the status has it.
fn upload(fixture: &FilteredTopology, daemon: &Daemon, mode: Mode) -> Result<Value> {
    let server = fixture.serve_with(fixture.target(Family::V4, 21), MiniOptions::default());
    let mut client = MiniClient::log_in(server.address(), TIMEOUT)?;
    let to = client.passive(mode)?;
    let mut data = client.connect_data(to)?;
    client.send(b"STOR big \x1bfile.iso\r\n")?;
    client.expect(150)?;
    data.write_all(PIECE).expect("it is open");
    let mut listed = Value::Null;
    lab::wait_until("the transfer in the status", TIMEOUT, || {
        listed = sessions(daemon).pop().unwrap_or_default();
        Ok(listed["transfer"]["bytes"].as_u64().is_none_or(|bytes| bytes >= PIECE.len() as u64)
            && !listed["transfer"].is_null())
    })?;
    drop(data);
    client.expect(226)?;
    lab::wait_until("the end of the transfer", TIMEOUT, || {
        Ok(sessions(daemon).pop().is_some_and(|listed| listed["transfer"].is_null()))
    })?;
    client.quit()?;
    lab::wait_until("the end of the session", TIMEOUT, || Ok(sessions(daemon).is_empty()))?;
    Ok(listed)
}

#[test]
fn status_lists_the_transfer_of_each_session() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let daemon = fixture.daemon("rules: [{ name: everybody }]\n");
    for (counts, mode) in [("1", Mode::Pasv), ("0", Mode::Epsv)] {
        fixture.firewall().set("net/netfilter/nf_conntrack_acct", counts).expect("root may set it");
        let listed = fixture.as_client(|| upload(&fixture, &daemon, mode));
        assert_eq!(listed["command"], "STOR big \\u{1b}file.iso", "{listed}");
        assert_eq!((&listed["rule"], &listed["encrypted"]), (&"everybody".into(), &false.into()), "{listed}");
        assert!(listed["user"].is_string() && listed["client"].is_string(), "{listed}");
        let is_counted = listed["transfer"]["bytes"].as_u64().is_some_and(|bytes| bytes >= PIECE.len() as u64);
        assert_eq!(is_counted, counts == "1", "{listed}");
    }
}

#[test]
fn metrics_have_the_values_of_the_status() {
    let fixture = FilteredTopology::new(Shape::Gateway);
    let daemon = fixture.daemon("");
    let server = fixture.serve(Family::V4);
    fixture.as_client(|| {
        let client = MiniClient::log_in(server.address(), TIMEOUT)?;
        for (format, last) in [("openmetrics", "# EOF\n"), ("prometheus", "\n")] {
            let printed = daemon.program(&["metrics", "--format", format]).expect("it ends");
            let text = String::from_utf8_lossy(&printed.stdout);
            let status = daemon.status();
            let packets = format!("pinhole_packets_total {}", status["counters"]["packets"]);
            for line in [&*packets, "pinhole_sessions 1", "pinhole_sessions_begun_total 1"] {
                assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
            }
            assert!(text.ends_with(last), "{text}");
        }
        client.quit()
    });
}
