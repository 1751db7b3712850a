//! The cost of FTP through a real firewall: the daemon on a gateway of the lab, compared with the kernel's helper, with
//! no helper, and with a queue whose packets are accepted unread. Needs root, the program nft, and a few minutes.
//!
//! Each round of each side has new namespaces. Sides take turns, and ratios are taken within a round, so that other
//! load on the machine affects all sides alike. Nothing is asserted: the medians of the ratios are for a person to
//! read.
//!
//! | variable | means |
//! |---|---|
//! | `PINHOLE_BENCH_QUICK` | set to anything: three rounds, and fewer of everything |
//! | `PINHOLE_BENCH_ROUNDS` | how many rounds, 11 unless told |
//! | `PINHOLE_BENCH_SESSIONS` | how many sessions transfer at once, 8 unless told |
//! | `PINHOLE_BENCH_TRANSFERS` | how many each of them makes, 500 unless told |
//! | `PINHOLE_BENCH_SIDES` | only these columns, by number, the kernel helper's (1) in any case: `0,1,2,3,4` unless told |
//! | `PINHOLE_BENCH_MODES` | the modes of the third load, in turn: `PASV,EPSV,PORT,EPRT` unless told |
//! | `PINHOLE_BENCH_ONLY` | `masquerade`: nothing but what is measured of a masqueraded client |
//! | `PINHOLE_BENCH_QUEUES` | the policy's `queues`, `auto` unless told |
//! | `PINHOLE_BENCH_LOG` | the daemon's `RUST_LOG`, `info` unless told |
//! | `PINHOLE_BENCH_PROGRAM` | another build of the program, to compare with |

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

#[path = "support/figures.rs"]
mod figures;
#[path = "../tests/support/firewall.rs"]
mod firewall;
#[path = "support/live.rs"]
mod gateway;

use std::sync::Arc;

use figures::percentile;
use gateway::{Side, TestGateway, WARM_UP};
use lab::Result;
use pinhole::core::ftp::Mode;

/// How much of everything.
struct Plan {
    rounds: usize,
    sessions: usize,
    transfers: usize,
    sides: Vec<Side>,
    round_trips: usize,
    bulk_megabytes: usize,
    modes: Vec<Mode>,
    only_masquerade: bool,
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
        let sides = variable("SIDES").unwrap_or_else(|| "0,1,2,3,4".to_owned());
        let wanted = |index: &usize| *index == 1 || sides.split(',').any(|side| side == index.to_string());
        let sides = (0..Side::ALL.len()).filter(wanted).map(|index| Side::ALL[index]).collect();
        let quick = variable("QUICK").is_some();
        let of = |quickly, fully| if quick { quickly } else { fully };
        Self {
            rounds: number("ROUNDS", of(3, 11)).max(1),
            sessions: number("SESSIONS", 8).max(1),
            transfers: number("TRANSFERS", of(100, 500)).max(1),
            sides,
            round_trips: of(500, 2000),
            bulk_megabytes: of(64, 256),
            modes,
            only_masquerade: variable("ONLY").is_some_and(|only| only == "masquerade"),
        }
    }
}

/// The measurements of one side in one round.
#[derive(Clone, Copy)]
struct Measured {
    new_ports: f64,
    one_port: f64,
    /// Microseconds of the processor that a transfer to one port takes the reader of the queue.
    processor: f64,
    mixed: f64,
    round_trip: f64,
    bulk: f64,
}

fn measure(side: Side, plan: &Plan, large: &Arc<[u8]>) -> Result<Measured> {
    let gateway = TestGateway::new(side)?;
    let Plan { sessions, transfers, round_trips, ref modes, .. } = *plan;
    let all = || {
        let server = gateway.serve(large, false)?;
        let new_ports = gateway.transfers(sessions, transfers, &[Mode::Pasv])?;
        drop(server);
        let _server = gateway.serve(large, true)?;
        let before = gateway.processor();
        let one_port = gateway.transfers(sessions, transfers, &[Mode::Pasv])?;
        Ok(Measured {
            new_ports,
            one_port,
            processor: (gateway.processor() - before) / (sessions * (transfers + WARM_UP)) as f64,
            mixed: gateway.transfers(sessions, transfers, modes)?,
            round_trip: gateway.round_trip(round_trips)?,
            bulk: gateway.bulk()?,
        })
    };
    // The daemon's log explains more than the place where a transfer failed.
    all().inspect_err(|_| println!("{}", gateway.output()))
}

/// Transfers a second of a client that is masqueraded.
#[derive(Clone, Copy)]
struct Masqueraded {
    /// Where nothing has to be rewritten.
    passive: f64,
    /// Where every announcement has to be.
    active: f64,
}

fn measure_masqueraded(side: Side, plan: &Plan) -> Result<Masqueraded> {
    let gateway = TestGateway::masquerading(side)?;
    let Plan { sessions, transfers, .. } = *plan;
    let all = || {
        let _server = gateway.serve(&Arc::default(), true)?;
        Ok(Masqueraded {
            passive: gateway.transfers(sessions, transfers, &[Mode::Pasv])?,
            active: gateway.transfers(sessions, transfers, &[Mode::Port])?,
        })
    };
    all().inspect_err(|_| println!("{}", gateway.output()))
}

/// The sides that can rewrite.
fn that_rewrite(sides: &[Side]) -> Vec<Side> {
    let rewrites = |side: &Side| matches!(side, Side::Kernel | Side::Pinhole);
    sides.iter().copied().filter(rewrites).collect()
}

/// One round, with the measurements of these sides in their order. Each round begins with another side.
fn one_round<T: Clone>(round: usize, sides: &[Side], measure: impl Fn(Side) -> Result<T>) -> Vec<T> {
    let mut measured = vec![None; sides.len()];
    for turn in 0..sides.len() {
        let index = (turn + round) % sides.len();
        let side = sides[index];
        measured[index] = Some(measure(side).unwrap_or_else(|error| panic!("{side}: {error}")));
    }
    measured.into_iter().flatten().collect()
}

/// A measurement, and its format.
struct Row<'a, T> {
    what: &'a str,
    value: fn(&T) -> f64,
    decimals: usize,
    against: Side,
    reach: &'a str,
}

impl<T> Row<'_, T> {
    /// Prints a row of medians, and one of the medians of the ratios to another side, if that was measured.
    fn print(&self, sides: &[Side], rounds: &[Vec<T>]) {
        let Self { what, value, decimals, against, reach } = *self;
        let median = |of: &dyn Fn(&[T]) -> f64| percentile(rounds.iter().map(|round| of(round)).collect(), 50);
        let each = 0..sides.len();
        let medians = each.clone().map(|side| format!("{:>13.decimals$} |", median(&|round| value(&round[side]))));
        println!("| {what:<36} | {} {:<32} |", medians.collect::<Vec<_>>().join(" "), "");
        let Some(base) = sides.iter().position(|side| *side == against) else { return };
        let ratio = |side: usize| median(&|round| value(&round[side]) / value(&round[base]));
        let ratios: Vec<_> = each.map(|side| format!("{:>13.3} |", ratio(side))).collect();
        let what = format!("… against {}", if against == Side::Plain { "no helper" } else { "the kernel helper" });
        println!("| {what:<36} | {} {reach:<32} |", ratios.join(" "));
    }
}

fn memory() -> Result<String> {
    let sessions = 10_000;
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let files = rustix::process::Rlimit { current: most, maximum: most };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files).expect("what is allowed may be used");
    let gateway = TestGateway::new(Side::Pinhole)?;
    let before = gateway.resident();
    let held = gateway.hold(sessions)?;
    let megabytes = |bytes: usize| bytes as f64 / 1e6;
    let during = gateway.resident();
    Ok(format!("{:.1} MB with {} sessions, {:.1} MB with none", megabytes(during), held.len(), megabytes(before)))
}

fn main() {
    if !rustix::process::geteuid().is_root() {
        println!("live: skipped, because it creates network namespaces: run it as root");
        return;
    }
    let plan = Plan::new();
    let Plan { rounds: count, sessions, transfers, .. } = plan;
    println!("{count} rounds; {sessions} sessions at once, {transfers} transfers of 1 KB each; a gateway, IPv4");
    let large: Arc<[u8]> = vec![b'x'; plan.bulk_megabytes << 20].into();
    let rewriting = that_rewrite(&plan.sides);
    let (mut rounds, mut masqueraded) = (Vec::new(), Vec::new());
    for round in 0..count {
        if !plan.only_masquerade {
            rounds.push(one_round(round, &plan.sides, |side| measure(side, &plan, &large)));
        }
        masqueraded.push(one_round(round, &rewriting, |side| measure_masqueraded(side, &plan)));
    }
    if !plan.only_masquerade {
        print_rounds(&plan, &rounds);
    }
    println!();
    println!("The client is masqueraded:");
    print_head(&rewriting);
    for (what, value) in [
        ("transfers/s, PASV, one port per session", (|m| m.passive) as fn(&Masqueraded) -> f64),
        ("transfers/s, PORT, each rewritten", |m| m.active),
    ] {
        Row { what, value, decimals: 0, against: Side::Kernel, reach: "" }.print(&rewriting, &masqueraded);
    }
    if plan.only_masquerade {
        return;
    }
    let memory = memory().unwrap_or_else(|error| panic!("{error}"));
    println!();
    println!("resident memory: {memory} (to reach: 20)");
}

fn print_head(sides: &[Side]) {
    let names: Vec<String> = sides.iter().map(|side| format!("{side:>13} |")).collect();
    println!("| {:<36} | {} {:<32} |", "", names.join(" "), "to reach");
    println!("|---|{}---|", "--:|".repeat(names.len()));
}

fn print_rounds(plan: &Plan, rounds: &[Vec<Measured>]) {
    print_head(&plan.sides);
    let modes: Vec<_> = plan.modes.iter().map(|mode| mode.command()).collect();
    let mixed = format!("transfers/s, {}", modes.join(" "));
    let (kernel, plain) = (Side::Kernel, Side::Plain);
    for (what, value, decimals, against, reach) in [
        ("transfers/s, PASV, one port per session", (|m| m.one_port) as fn(&Measured) -> f64, 0, kernel, "0.72"),
        ("transfers/s, PASV, a new port for each", |m| m.new_ports, 0, kernel, "0.72"),
        ("µs of the queue's reader per transfer", |m| m.processor, 1, Side::Pinhole, ""),
        (&mixed, |m| m.mixed, 0, kernel, ""),
        ("round trip of NOOP, µs", |m| m.round_trip, 1, kernel, "1.0"),
        ("bulk, MB/s", |m| m.bulk, 0, plain, "1.00"),
    ] {
        Row { what, value, decimals, against, reach }.print(&plan.sides, rounds);
    }
}
