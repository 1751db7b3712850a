//! What it costs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pinhole::firewall::Firewall;
use pinhole::firewall::sets::{Queueing, Sets};
use pinhole::netlink::{Heard, TableWatch};
use pinhole::packet::Connection;
use pinhole::policy::Policy;

use crate::host::{Host, connects, expectation, flow_of, listens};

#[allow(clippy::print_stderr, reason = "it prints what was measured")]
fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    eprintln!("{what}: {} times, median {:?}, p99 {:?}, most {:?}", times.len(), at(50), at(99), at(100));
}

#[test]
#[ignore = "a measurement: run it with --release --ignored --nocapture"]
#[allow(clippy::print_stderr, reason = "it prints what it measured")]
fn measures_what_a_pinhole_costs() {
    let (client, host) = Host::pair();
    let mut sets = host.run(|| Sets::install(&Policy::embedded())).expect("installed");
    let _listener = listens(&host, "10.9.0.2:21");
    let control = flow_of(&connects(&client, "10.9.0.2:21").expect("it passes"));
    let connection = Connection::direct(control);
    let pinhole = |n: u32| expectation("10.9.0.1", "10.9.0.2", 1024 + (n % 16_000) as u16, 60);
    let measure = |what: &str, work: &mut dyn FnMut(u32)| {
        let start = Instant::now();
        let mut times = Vec::new();
        while times.len() < 100_000 && start.elapsed() < Duration::from_secs(5) {
            let begin = Instant::now();
            work(u32::try_from(times.len()).expect("not so many"));
            times.push(begin.elapsed());
        }
        report(what, times);
    };
    let pass = |sets: &mut Sets, watched: &str| {
        let mut open = Vec::with_capacity(100_000);
        let mut close = Vec::with_capacity(100_000);
        for n in 0..100_000 {
            let one = pinhole(n);
            let begin = Instant::now();
            sets.open(&one).expect("opened");
            open.push(begin.elapsed());
            // A few thousand stand at any time.
            if n >= 4000 {
                let begin = Instant::now();
                sets.close(&pinhole(n - 4000));
                close.push(begin.elapsed());
            }
        }
        report(&format!("open{watched}"), open);
        report(&format!("close{watched}"), close);
        for n in 96_000..100_000 {
            sets.close(&pinhole(n));
        }
    };
    pass(&mut sets, "");
    sets.open(&pinhole(0)).expect("opened");
    measure("close (it is not there)", &mut |_| sets.close(&pinhole(7)));
    measure("open again (it stands)", &mut |_| sets.open(&pinhole(0)).expect("opened"));
    measure("control_connection", &mut |_| assert!(sets.control_connection(&control).is_some()));
    measure("stop_reading", &mut |_| sets.stop_reading(&connection));
    let mut watch = host.run(TableWatch::open).expect("root");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut missed = 0;
            while !over.load(Ordering::Relaxed) {
                missed += u32::from(watch.next(Duration::from_millis(50)).expect("it listens") == Heard::Missed);
            }
            missed
        });
        pass(&mut sets, ", while a thread watches");
        over.store(true, Ordering::Relaxed);
        eprintln!("the watcher missed something {} times", watcher.join().expect("it does not panic"));
    });
    eprintln!("troubles: {:?}; queueing with {}", sets.take_troubles(), sets.queueing());
    assert!([Queueing::Statement, Queueing::CompatTarget].contains(&sets.queueing()));
}
