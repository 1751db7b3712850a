//! A hostile peer sends random segments through the reader to a real TCP socket, over IPv4 or IPv6. Both must read the
//! same bytes, or no more pinholes may open.
//!
//! Needs root, `ip` and /dev/net/tun. `PINHOLE_DIFFERENTIAL_CASES` sets the number of random sequences,
//! `PINHOLE_DIFFERENTIAL_SEED` the seed, `PINHOLE_DIFFERENTIAL_FAILURES` how many failures are minimised.
//! `PINHOLE_DIFFERENTIAL_EXPLAIN=Shut` (or `Tainted`) counts that outcome as a failure, and so shows which sequences
//! cost a session its data connections.

mod case;
mod known;
mod network;
mod packet;
mod reader;
mod run;

use std::collections::BTreeMap;

use case::{Case, cases};
use network::{Conntrack, Network};
use pinhole::core::policy::{self, Policy};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use run::{Outcome, explain, run};

fn number(variable: &str, otherwise: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, and is {text:?}")),
        Err(_) => otherwise,
    }
}

/// The embedded policy, but no session reaches a limit.
fn policy() -> Policy {
    policy::parse("policy.yaml", "defaults: { pinholes_per_session: 1000 }").expect("a good policy").policy
}

/// Random cases, which are the same for the same seed.
fn runner(seed: u64, index: u64) -> TestRunner {
    let seed = [seed.to_be_bytes(), index.to_be_bytes(), [0; 8], [0; 8]].concat();
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
}

/// The simplest case that fails in the same way as this one.
fn minimised(mut case: Case, fails: impl Fn(&Case) -> bool) -> Case {
    while let Some(simpler) = case.simpler().into_iter().find(|simpler| fails(simpler)) {
        case = simpler;
    }
    case
}

#[test]
fn reader_and_socket_read_the_same_in_random_sequences() {
    compare(Conntrack::Absent, 10_000);
}

#[test]
fn reader_and_socket_read_the_same_behind_strict_conntrack() {
    compare(Conntrack::Strict, 3000);
}

#[test]
fn reader_and_socket_read_the_same_behind_liberal_conntrack() {
    compare(Conntrack::Liberal, 3000);
}

fn compare(conntrack: Conntrack, count: u64) {
    let (count, seed) = (number("PINHOLE_DIFFERENTIAL_CASES", count), number("PINHOLE_DIFFERENTIAL_SEED", 1));
    let most = number("PINHOLE_DIFFERENTIAL_FAILURES", 3);
    let explained = std::env::var("PINHOLE_DIFFERENTIAL_EXPLAIN").ok();
    let policy = policy();
    let mut outcomes: BTreeMap<Outcome, u64> = BTreeMap::new();
    let mut failures = 0;
    // Of each kind of failure how often it was met, and one.
    let mut kinds: BTreeMap<String, (u64, String)> = BTreeMap::new();
    Network::with(conntrack, |network| {
        let strategy = cases();
        for index in 0..count {
            let case = strategy.new_tree(&mut runner(seed, index)).expect("a case").current();
            let class = match run(network, &policy, &case) {
                Ok(outcome) => {
                    *outcomes.entry(outcome).or_default() += 1;
                    if explained.as_deref() != Some(&format!("{outcome:?}")) {
                        continue;
                    }
                    outcome.name()
                }
                Err(failure) => failure.class,
            };
            failures += 1;
            if failures > most {
                continue;
            }
            let fails =
                |case: &Case| run(network, &policy, case).map_or_else(|failure| failure.class, Outcome::name) == class;
            let simplest = minimised(case, fails);
            let (result, log) = explain(network, &policy, &simplest);
            let message = result.map_or_else(|failure| failure.to_string(), |outcome| format!("{outcome:?}"));
            let text = format!("case {index} of seed {seed}: {message}\n{log}");
            let kind = kinds.entry(format!("{class}: {}", simplest.shape())).or_insert((0, text));
            kind.0 += 1;
        }
    });
    let kinds: Vec<_> = kinds.iter().map(|(kind, (count, text))| format!("{count} times {kind}\n{text}\n")).collect();
    assert!(failures == 0, "{failures} of {count} fail ({outcomes:?}):\n\n{}", kinds.join("\n"));
    // Else the comparison would say nothing.
    let open = outcomes.get(&Outcome::OpensNewPinhole).copied().unwrap_or_default();
    assert!(open >= count / 10, "what is announced after the sequence opens in {open} of {count}: {outcomes:?}");
}
