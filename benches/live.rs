//! What FTP through a real firewall costs: the built program in a gateway of the lab, beside the kernel's own helper and
//! beside no helper at all. Needs root, the program nft, and a few minutes.
//!
//! Fresh namespaces for each side and each round, sides in turn, ratios within a round, medians of the ratios: what
//! else the machine does meanwhile hits all sides alike. Nothing is asserted; the ratios are for a person to read.
//!
//! | variable | means |
//! |---|---|
//! | `PINHOLE_BENCH_QUICK` | set to anything: three rounds, and fewer of everything |
//! | `PINHOLE_BENCH_ROUNDS` | how many rounds, 11 unless told |
//! | `PINHOLE_BENCH_SESSIONS` | how many sessions transfer at once, 8 unless told |
//! | `PINHOLE_BENCH_MODES` | the modes of the second load, in turn: `PASV,EPSV,PORT,EPRT` unless told |
//! | `PINHOLE_BENCH_NEW_PORTS` | set to anything: the server announces a new port for each passive transfer |
//! | `PINHOLE_BENCH_LOG` | the daemon's `RUST_LOG`, `info` unless told |

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

#[path = "support/live.rs"]
mod stand;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pinhole::expectation::{Expectation, Mapping};
use pinhole::firewall::Firewall as _;
use pinhole::firewall::sets::Sets;
use pinhole::ftp::Mode;
use pinhole::lab::Result;
use pinhole::net::Port;
use pinhole::packet::Endpoint;
use pinhole::policy;
use pinhole::time::Timestamp;
use stand::{Side, Stand, percentile};

/// How much of everything.
struct Plan {
    rounds: usize,
    sessions: usize,
    transfers: usize,
    round_trips: usize,
    bulk_megabytes: usize,
    inserts: usize,
    modes: Vec<Mode>,
}

impl Plan {
    fn new() -> Self {
        let variable = |name: &str| std::env::var(format!("PINHOLE_BENCH_{name}")).ok();
        let number = |name: &str, default| variable(name).and_then(|text| text.parse().ok()).unwrap_or(default);
        let modes = variable("MODES").unwrap_or_else(|| "PASV,EPSV,PORT,EPRT".to_owned());
        let mode = |name: &str| {
            let found = Mode::ALL.into_iter().find(|mode| mode.command().eq_ignore_ascii_case(name));
            found.unwrap_or_else(|| panic!("PINHOLE_BENCH_MODES: there is no mode {name}"))
        };
        let modes = modes.split(',').map(mode).collect();
        let quick = variable("QUICK").is_some();
        let of = |quickly, fully| if quick { quickly } else { fully };
        Self {
            rounds: number("ROUNDS", of(3, 11)).max(1),
            sessions: number("SESSIONS", 8).max(1),
            transfers: of(100, 500),
            round_trips: of(500, 2000),
            bulk_megabytes: of(64, 256),
            inserts: of(5_000, 50_000),
            modes,
        }
    }
}

/// What was measured of one side in one round.
#[derive(Clone, Copy)]
struct Measured {
    passive: f64,
    mixed: f64,
    round_trip: f64,
    bulk: f64,
}

fn measure(side: Side, plan: &Plan, large: &Arc<[u8]>) -> Result<Measured> {
    let stand = Stand::new(side)?;
    let _server = stand.serve(large)?;
    let Plan { sessions, transfers, round_trips, ref modes, .. } = *plan;
    let all = || {
        Ok(Measured {
            passive: stand.transfers(sessions, transfers, &[Mode::Pasv])?,
            mixed: stand.transfers(sessions, transfers, modes)?,
            round_trip: stand.round_trip(round_trips)?,
            bulk: stand.bulk()?,
        })
    };
    // What the daemon said is worth more than where a transfer failed.
    all().inspect_err(|_| println!("{}", stand.said()))
}

/// The rounds, each with what was measured of every side in the order of [`Side::ALL`].
fn rounds(plan: &Plan) -> Vec<[Measured; 4]> {
    let large: Arc<[u8]> = vec![b'x'; plan.bulk_megabytes << 20].into();
    let one = |round: usize| {
        let mut measured = [None; 4];
        for turn in 0..Side::ALL.len() {
            let index = (turn + round) % Side::ALL.len();
            let side = Side::ALL[index];
            let result = measure(side, plan, &large);
            measured[index] = Some(result.unwrap_or_else(|error| panic!("{side}: {error}")));
        }
        measured.map(|measured| measured.expect("each side had its turn"))
    };
    (0..plan.rounds).map(one).collect()
}

/// Prints a row of medians, and one of the medians of the ratios to another side.
fn rows(rounds: &[[Measured; 4]], what: &str, value: impl Fn(&Measured) -> f64, to: (Side, usize), reach: &str) {
    let median = |of: &dyn Fn(&[Measured; 4]) -> f64| percentile(rounds.iter().map(of).collect(), 50);
    let sides = 0..Side::ALL.len();
    let medians = sides.clone().map(|side| format!("{:>9.*} |", to.1, median(&|round| value(&round[side]))));
    println!("| {what:<36} | {} {:<28} |", medians.collect::<Vec<_>>().join(" "), "");
    let (other, _) = to;
    let base = Side::ALL.iter().position(|side| *side == other).expect("it is one of them");
    let ratio = |side: usize| median(&|round| value(&round[side]) / value(&round[base]));
    let ratios: Vec<_> = sides.map(|side| format!("{:>9.3} |", ratio(side))).collect();
    let what = if other == Side::Plain { "… against no helper" } else { "… against the kernel helper" };
    println!("| {what:<36} | {} {reach:<28} |", ratios.join(" "));
}

/// The median of many inserts of a pinhole, and their 99th percentile, in microseconds.
fn inserts(plan: &Plan) -> Result<(f64, f64)> {
    let stand = Stand::new(Side::Kernel)?;
    let text = Side::Dialogue.policy().expect("Pinhole has a policy");
    let policy = policy::parse("bench.yaml", &text).expect("the policy is good").policy;
    let pinhole = |index: usize| {
        let to = IpAddr::from(Ipv4Addr::new(10, 21, 2, 10));
        let port = Port::new(10_000 + (index % 50_000) as u16).expect("from 10000 on");
        Expectation {
            from: Ipv4Addr::new(10, 21, 1, 10).into(),
            to: Endpoint::new(to, port),
            since: Timestamp::from_secs(1),
            lifetime: Duration::from_secs(60),
            mapping: Mapping::NONE,
        }
    };
    stand.topology.firewall.run(|| {
        let mut firewall = Sets::install(&policy).unwrap_or_else(|error| panic!("{error}"));
        let mut one = |index| {
            let expectation = pinhole(index);
            let began = Instant::now();
            firewall.open(&expectation).expect("the kernel takes it");
            let taken = began.elapsed().as_nanos() as f64 / 1000.0;
            // A hundred stand at a time.
            if let Some(earlier) = index.checked_sub(100) {
                firewall.close(&pinhole(earlier));
            }
            taken
        };
        let taken: Vec<f64> = (0..plan.inserts).map(&mut one).collect();
        (percentile(taken.clone(), 50), percentile(taken, 99))
    })
}

fn memory() -> Result<String> {
    let sessions = 10_000;
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let files = rustix::process::Rlimit { current: most, maximum: most };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files).expect("what is allowed may be used");
    let stand = Stand::new(Side::Dialogue)?;
    let before = stand.resident();
    let held = stand.hold(sessions)?;
    let megabytes = |bytes: usize| bytes as f64 / 1e6;
    let during = stand.resident();
    Ok(format!("{:.1} MB with {} sessions, {:.1} MB with none", megabytes(during), held.len(), megabytes(before)))
}

fn main() {
    if !rustix::process::geteuid().is_root() {
        println!("live: left out, as it makes network namespaces: run it as root");
        return;
    }
    let plan = Plan::new();
    let Plan { rounds: count, sessions, transfers, .. } = plan;
    println!("{count} rounds; {sessions} sessions at once, {transfers} transfers of 1 KB each; a gateway, IPv4");
    let rounds = rounds(&plan);
    let sides: Vec<String> = Side::ALL.iter().map(|side| format!("{side:>9} |")).collect();
    println!("| {:<36} | {} {:<28} |", "", sides.join(" "), "to reach");
    println!("|---|--:|--:|--:|--:|---|");
    let kernel = Side::Kernel;
    rows(&rounds, "transfers/s, PASV", |m| m.passive, (kernel, 0), "1.0 announcements, 0.85 dialogue");
    let modes: Vec<_> = plan.modes.iter().map(|mode| mode.command()).collect();
    rows(&rounds, &format!("transfers/s, {}", modes.join(" ")), |m| m.mixed, (kernel, 0), "");
    rows(&rounds, "round trip of NOOP, µs", |m| m.round_trip, (kernel, 1), "1.0 announcements");
    rows(&rounds, "bulk, MB/s", |m| m.bulk, (Side::Plain, 0), "1.00");
    let (median, worst) = inserts(&plan).unwrap_or_else(|error| panic!("{error}"));
    println!();
    println!("a pinhole into its set: median {median:.1} µs, 99th percentile {worst:.1} µs (to reach: 20)");
    let memory = memory().unwrap_or_else(|error| panic!("{error}"));
    println!("resident memory: {memory} (to reach: 20)");
}
