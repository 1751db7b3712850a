//! The time of each request to the kernel with the mechanism `sets`, compared with the program nft. Needs root, nft,
//! and a minute.
//!
//! Each round has new namespaces. Medians and percentiles are of all rounds together. Ratios are of the medians within
//! a round, and the median of these ratios is shown, so that other load on the machine affects both sides alike.
//! Nothing is asserted: the figures are for a person to read.
//!
//! | variable | means |
//! |---|---|
//! | `PINHOLE_BENCH_QUICK` | set to anything: two rounds, and fewer of everything |
//! | `PINHOLE_BENCH_ROUNDS` | how many rounds, 5 unless told |

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

#[path = "support/figures.rs"]
mod figures;
#[path = "../tests/support/firewall.rs"]
mod firewall;
#[path = "support/nft.rs"]
mod nft;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use figures::{percentile, timed};
use lab::{Family, Namespace, Result, Shape, Topology};
use pinhole::core::expectation::{Expectation, Mapping};
use pinhole::core::kernel::{Firewall as _, SessionProgress};
use pinhole::core::net::{Connection, Direction, Endpoint, Flow, Port, Seq};
use pinhole::core::policy::Policy;
use pinhole::core::seqadj::Adjustment;
use pinhole::core::time::Timestamp;
use pinhole::netfilter::backend::{KernelFirewall, sets};
use pinhole::netfilter::netlink::TableWatch;
use pinhole::netfilter::table::ruleset;

/// Only connections with NAT have sequence adjustment.
const MASQUERADE: &str = "table ip nat { chain postrouting { type nat hook postrouting priority srcnat; \
                          oifname \"servers\" masquerade; }; }\n";
const NOW: Timestamp = Timestamp::from_secs(1);
const LIFETIME: Duration = Duration::from_secs(60);
/// How many pinholes exist while others are opened and closed.
const EXISTING: usize = 4000;
/// The number of ports: more than there are pinholes at a time, so that a port is not reused too early.
const PORTS: usize = 50_000;
/// With how many pinholes the table is restored.
const RESTORED: [usize; 3] = [0, 10, 200];

const OPEN: &str = "open a pinhole";
const AGAIN: &str = "open one that is open already";
const CLOSE: &str = "close it";

/// How much of everything, in each round.
struct Plan {
    rounds: usize,
    /// Pinholes that come and go.
    pinholes: usize,
    /// Repetitions of the other fast requests.
    others: usize,
    /// Repetitions of requests that start a program.
    programs: usize,
    flushes: usize,
}

impl Plan {
    fn new() -> Self {
        let variable = |name: &str| std::env::var(format!("PINHOLE_BENCH_{name}")).ok();
        let quick = variable("QUICK").is_some();
        let of = |quickly, fully| if quick { quickly } else { fully };
        let rounds = variable("ROUNDS").and_then(|text| text.parse().ok()).unwrap_or(of(2, 5));
        Self {
            rounds: rounds.max(1),
            pinholes: of(5000, 40_000),
            others: of(1000, 10_000),
            programs: of(20, 100),
            flushes: of(5, 30),
        }
    }
}

/// A request, in microseconds, by rounds.
struct Row {
    what: String,
    /// Whose doing it is compared with: another row, where it is one of a peer.
    ours: Option<String>,
    reach: &'static str,
    rounds: Vec<Vec<f64>>,
}

/// All that was measured, in the order in which it came first.
#[derive(Default)]
struct Table(Vec<Row>);

impl Table {
    fn row(&mut self, what: &str) -> &mut Row {
        let place = self.0.iter().position(|row| row.what == what).unwrap_or_else(|| {
            self.0.push(Row { what: what.to_owned(), ours: None, reach: "", rounds: Vec::new() });
            self.0.len() - 1
        });
        &mut self.0[place]
    }

    fn add(&mut self, what: &str, times: Vec<f64>) {
        self.row(what).rounds.push(times);
    }

    /// The times of another program for the same as `ours`.
    fn add_peer(&mut self, peer: &str, ours: &str, times: Vec<f64>) {
        let row = self.row(&format!("… {peer}"));
        row.ours = Some(ours.to_owned());
        row.rounds.push(times);
    }

    fn print(&self) {
        println!("| {:<54} | median, µs | 99 %, µs | ratio to Pinhole | to reach |", "operation");
        println!("|---|--:|--:|--:|---|");
        for Row { what, ours, reach, rounds } in &self.0 {
            let ours = ours.as_ref().and_then(|ours| self.0.iter().find(|row| row.what == *ours));
            let ratio = ours.map_or_else(String::new, |ours| {
                let median = |times: &Vec<f64>| percentile(times.clone(), 50);
                let ratios = rounds.iter().zip(&ours.rounds).map(|(peer, own)| median(peer) / median(own));
                let ratio = percentile(ratios.collect(), 50);
                if ratio < 10.0 { format!("{ratio:.1}") } else { format!("{ratio:.0}") }
            });
            let [median, p99] = [50, 99].map(|part| percentile(rounds.concat(), part));
            println!("| {what:<54} | {median:>10.1} | {p99:>8.1} | {ratio:>10} | {reach} |");
        }
    }
}

fn address(host: u8) -> IpAddr {
    Ipv4Addr::new(10, 21, host, 10).into()
}

fn pinhole(index: usize) -> Expectation {
    let port = Port::new(10_000 + (index % PORTS) as u16).expect("from 10000 on");
    let to = Endpoint::new(address(2), port);
    Expectation { from: address(1), to, since: NOW, lifetime: LIFETIME, mapping: Mapping::NONE }
}

/// The same, led back to a client behind NAT.
fn mapped(index: usize) -> Expectation {
    let plain = pinhole(index);
    let mapping = Mapping { to: Some(Endpoint::new(address(3), plain.to.port)), from: Some(address(4)) };
    Expectation { mapping, ..plain }
}

/// A gateway that masquerades, with a control connection through it.
struct Gateway {
    firewall: Namespace,
    sets: KernelFirewall,
    connection: Connection,
    /// They last as long as they are held.
    _ends: [TcpStream; 2],
    _topology: Topology,
}

impl Gateway {
    fn new() -> Result<Self> {
        let topology = Topology::new(Shape::Gateway)?;
        let firewall = topology.firewall.clone();
        firewall.nft(MASQUERADE)?;
        let sets = install(&firewall)?;
        // After the rules: older connections are not prepared for sequence adjustment.
        let server = SocketAddr::new(topology.target.of(Family::V4), 21);
        let listener = topology.server.namespace.run(|| TcpListener::bind(server))?.expect("the port is free");
        let client = topology.client.namespace.run(|| TcpStream::connect(server))?.expect("nothing is filtered");
        let (accepted, _) = listener.accept().expect("the connection stands");
        let connection = Connection { original: flow_of(&client), reply: flow_of(&accepted) };
        Ok(Self { firewall, sets, connection, _ends: [client, accepted], _topology: topology })
    }
}

fn install(namespace: &Namespace) -> Result<KernelFirewall> {
    Ok(namespace.run(|| firewall::install(&Policy::embedded()))?.unwrap_or_else(|error| panic!("{error}")))
}

/// The addresses of a socket's packets.
fn flow_of(stream: &TcpStream) -> Flow {
    let end = |address: SocketAddr| Endpoint::new(address.ip(), Port::new(address.port()).expect("it is connected"));
    let [source, destination] = [stream.local_addr(), stream.peer_addr()].map(|it| end(it.expect("it is connected")));
    Flow { source, destination }
}

/// Opens and closes pinholes while some thousands exist. Returns the times of opening and of closing.
fn open_and_close(sets: &mut KernelFirewall, plan: &Plan, pinhole: fn(usize) -> Expectation) -> [Vec<f64>; 2] {
    let (mut opened, mut closed) = (Vec::new(), Vec::new());
    for index in 0..plan.pinholes + EXISTING {
        if index < plan.pinholes {
            let (taken, done) = timed(|| firewall::open(sets, &pinhole(index)));
            done.expect("the kernel takes it");
            opened.push(taken);
        }
        if let Some(earlier) = index.checked_sub(EXISTING).filter(|earlier| *earlier < plan.pinholes) {
            closed.push(timed(|| sets.close(&pinhole(earlier))).0);
        }
    }
    [opened, closed]
}

/// The same while another thread watches the ruleset; `ignoring` the changes that are made here, as the daemon does.
fn open_and_close_watched(sets: &mut KernelFirewall, plan: &Plan, ignoring: bool) -> [Vec<f64>; 2] {
    let mut watch = TableWatch::open().expect("root may");
    if ignoring {
        watch.ignore(sets.port_id().expect("its socket has one")).expect("the kernel filters");
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                watch.next(Duration::from_millis(50)).expect("it listens");
            }
        });
        let taken = open_and_close(sets, plan, pinhole);
        over.store(true, Ordering::Relaxed);
        taken
    })
}

/// Everything that is asked of a gateway's kernel.
fn requests(table: &mut Table, gateway: &mut Gateway, plan: &Plan) {
    let Gateway { sets, connection, .. } = gateway;
    let many = |work: &mut dyn FnMut(usize)| (0..plan.others).map(|index| timed(|| work(index)).0).collect::<Vec<_>>();

    let [open, close] = open_and_close(sets, plan, pinhole);
    table.add(OPEN, open);
    table.row(OPEN).reach = "99 % under 20 µs";
    peers_that_open(table, plan);
    firewall::open(sets, &pinhole(0)).expect("the kernel takes it");
    table.add(AGAIN, many(&mut |_| firewall::open(sets, &pinhole(0)).expect("the kernel takes it")));
    table.add_peer("`nft add element`, again", AGAIN, nft::times(plan.programs, |_| nft::add(&pinhole(1))));
    table.add(CLOSE, close);
    table.add_peer("`nft delete element`", CLOSE, nft::times(plan.programs, |index| nft::delete(&pinhole(index + 1))));
    table.add("close one that is gone", many(&mut |_| sets.close(&pinhole(1))));
    table.add("look one up", many(&mut |_| assert!(sets.mapping_of(address(1), pinhole(0).to).is_some())));
    // Removes the elements that nft has added, so that the next ones are new.
    (0..=2 * plan.programs).for_each(|index| sets.close(&pinhole(index)));
    for (watched, ignoring) in [("other events", true), ("this event", false)] {
        let [open, close] = open_and_close_watched(sets, plan, ignoring);
        table.add(&format!("open, while a thread watches {watched}"), open);
        table.add(&format!("close, while a thread watches {watched}"), close);
    }

    let found = |sets: &mut KernelFirewall| {
        sets.control_connection(&connection.reply).ok().flatten().map(|control| control.connection)
    };
    table.add("find a control connection", many(&mut |_| assert_eq!(found(sets), Some(*connection))));
    for (what, holds) in
        [("correct sequence numbers", false), ("correct them, and add the element for a rewritten segment", true)]
    {
        let mut adjust = |index: usize| {
            let place = Seq::new(20 * index as u32);
            let adjustment = Adjustment { position: place, before: 0, after: 1 };
            let held = if holds { &[place][..] } else { &[] };
            sets.adjust(connection, Direction::FromClient, &adjustment, held).expect("the connection is prepared");
        };
        table.add(what, many(&mut adjust));
    }
    let mut record = |index: usize| {
        let progress = if index.is_multiple_of(2) { SessionProgress::Ftp } else { SessionProgress::LoggedIn };
        sets.record(connection, progress);
    };
    table.add("record the progress of a session", many(&mut record));

    // Last: from now on, who opens one looks into the maps as well.
    let [open, close] = open_and_close(sets, plan, mapped);
    table.add("open one that NAT maps", open);
    table.add("close one that NAT maps", close);
    let troubles = sets.take_refused();
    assert_eq!(troubles.count, 0, "{:?}", troubles.latest);
}

/// The program nft puts elements into the same set. It leaves them there.
fn peers_that_open(table: &mut Table, plan: &Plan) {
    let each = nft::times(plan.programs, |index| nft::add(&pinhole(index + 1)));
    table.add_peer("`nft add element`, a process each", OPEN, each);
    let mut stays = nft::Interactive::start();
    let stays = nft::times(plan.programs, |index| stays.add(&pinhole(plan.programs + index + 1)));
    table.add_peer("the same by one `nft -i` that stays", OPEN, stays);
}

/// Restores the table after another program flushed the ruleset.
fn restoring(table: &mut Table, plan: &Plan) -> Result<()> {
    let host = Namespace::new("host")?;
    let mut sets = install(&host)?;
    let text = ruleset(&Policy::embedded(), sets.queueing(), sets::PROFILE.rules);
    for count in RESTORED {
        // Every third one is mapped.
        let one = |index: usize| if index.is_multiple_of(3) { mapped(index) } else { pinhole(index) };
        let pinholes: Vec<_> = (0..count).map(one).collect();
        let rules = nft::with_elements(&text, sets.queueing(), &pinholes);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        host.run(|| {
            for _ in 0..plan.flushes {
                nft::load("flush ruleset\n");
                let (taken, restored) = timed(|| sets.restore(NOW, pinholes.iter()));
                assert_eq!(restored.expect("it is restored").elements, count);
                ours.push(taken);
                nft::load("flush ruleset\n");
                theirs.push(timed(|| nft::load(&rules)).0);
            }
        })?;
        let what = format!("restore a flushed table, {count} pinholes");
        table.add(&what, ours);
        table.add_peer(&format!("`nft -f`, {count} pinholes"), &what, theirs);
    }
    let troubles = sets.take_refused();
    assert_eq!(troubles.count, 0, "{:?}", troubles.latest);
    Ok(())
}

fn round(table: &mut Table, plan: &Plan) -> Result<()> {
    let mut gateway = Gateway::new()?;
    let firewall = gateway.firewall.clone();
    firewall.run(|| requests(table, &mut gateway, plan))?;
    restoring(table, plan)
}

fn main() {
    if !rustix::process::geteuid().is_root() {
        println!("kernel: skipped, because it creates network namespaces: run it as root");
        return;
    }
    if !nft::is_installed() {
        println!("kernel: skipped, because the program nft was not found: install the package nftables");
        return;
    }
    let plan = Plan::new();
    let Plan { rounds, pinholes, programs, flushes, .. } = plan;
    println!("{rounds} rounds, each of {pinholes} pinholes, {programs} runs of nft, {flushes} flushes");
    let mut table = Table::default();
    for _ in 0..rounds {
        round(&mut table, &plan).unwrap_or_else(|error| panic!("{error}"));
    }
    table.print();
}
