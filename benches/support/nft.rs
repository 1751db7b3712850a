//! The program nft in the place of Pinhole: the same elements into the same sets, the same table restored.
//!
//! It runs in the namespace of the thread that calls.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use pinhole::core::expectation::Expectation;
use pinhole::netfilter::table::{QueueChain, Queueing};

use crate::figures::timed;

/// Whether there is such a program.
pub(crate) fn is_installed() -> bool {
    Command::new("nft").arg("--version").output().is_ok()
}

/// The times of so many calls, in microseconds.
pub(crate) fn times(count: usize, mut work: impl FnMut(usize)) -> Vec<f64> {
    (0..count).map(|index| timed(|| work(index)).0).collect()
}

fn key(pinhole: &Expectation) -> String {
    format!("{} . {} . {}", pinhole.from, pinhole.to.address, pinhole.to.port)
}

fn addition(pinhole: &Expectation) -> String {
    format!("add element inet pinhole pinholes4 {{ {} timeout {}s }}", key(pinhole), pinhole.lifetime.as_secs())
}

pub(crate) fn add(pinhole: &Expectation) {
    run(&[&addition(pinhole)], "");
}

pub(crate) fn delete(pinhole: &Expectation) {
    run(&[&format!("delete element inet pinhole pinholes4 {{ {} }}", key(pinhole))], "");
}

/// Loads rules, all or none of them.
pub(crate) fn load(rules: &str) {
    run(&["-f", "-"], rules);
}

fn run(arguments: &[&str], input: &str) {
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("nft is installed");
    child.stdin.take().expect("it is a pipe").write_all(input.as_bytes()).expect("nft reads to the end");
    let done = child.wait_with_output().expect("nft ends");
    assert!(done.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// One nft that reads command after command, so that its start is not counted. It confirms each command.
pub(crate) struct Interactive {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Interactive {
    pub(crate) fn start() -> Self {
        let mut command = Command::new("nft");
        let mut child = command
            .args(["--echo", "--interactive"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("nft is installed");
        let input = child.stdin.take().expect("it is a pipe");
        let output = BufReader::new(child.stdout.take().expect("it is a pipe"));
        Self { child, input, output }
    }

    pub(crate) fn add(&mut self, pinhole: &Expectation) {
        writeln!(self.input, "{}", addition(pinhole)).expect("nft reads");
        let mut line = String::new();
        while !line.starts_with("add element") {
            line.clear();
            let length = self.output.read_line(&mut line).expect("it says text");
            assert_ne!(length, 0, "nft has ended");
        }
    }
}

impl Drop for Interactive {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Pinhole's ruleset as one that nft can load alone, with these elements.
///
/// Replaces what nft cannot write by the closest equivalent: an object with one expectation instead of none, and a
/// chain that accepts instead of the compat target NFQUEUE.
pub(crate) fn with_elements(ruleset: &str, queueing: Queueing, pinholes: &[Expectation]) -> String {
    let mut text = String::new();
    let mut line =
        |line: std::fmt::Arguments<'_>| writeln!(text, "{line}").expect("a string takes whatever is written");
    for (number, family) in [(4, "ip"), (6, "ip6")] {
        line(format_args!(
            "table inet pinhole {{ ct expectation no_expectation{number} {{ protocol tcp; dport 65535; timeout 1s; size 1; \
             l3proto {family}; }}; }}"
        ));
    }
    if queueing == Queueing::CompatTarget {
        for chain in QueueChain::ALL {
            line(format_args!("table inet pinhole {{ chain {} {{ accept; }}; }}", chain.name()));
        }
    }
    line(format_args!("{ruleset}"));
    for pinhole in pinholes {
        line(format_args!("{}", addition(pinhole)));
        let (key, seconds) = (key(pinhole), pinhole.lifetime.as_secs() + 1);
        if let Some(to) = pinhole.mapping.to {
            let (address, port) = (to.address, to.port);
            line(format_args!("add element inet pinhole targets4 {{ {key} timeout {seconds}s : {address} . {port} }}"));
        }
        if let Some(from) = pinhole.mapping.from {
            line(format_args!("add element inet pinhole sources4 {{ {key} timeout {seconds}s : {from} }}"));
        }
    }
    text
}
