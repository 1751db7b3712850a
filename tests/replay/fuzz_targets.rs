//! The fuzz targets as ordinary tests: with the committed corpus, with mutated copies of it, and with random input.
//! They run on every machine; the fuzzer itself covers more.

#[path = "../../fuzz/targets.rs"]
pub mod targets;

use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;

/// The inputs that are kept for a target.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let inputs: Vec<_> = files
        .map(|file| std::fs::read(file.expect("a folder can be read").path()).expect("a seed can be read"))
        .collect();
    assert!(!inputs.is_empty(), "{} holds nothing", folder.display());
    inputs
}

/// A mutation of an input: a byte set, a piece removed, a piece repeated.
fn change() -> impl Strategy<Value = (Index, Index, u8, u8)> {
    (any::<Index>(), any::<Index>(), any::<u8>(), 0u8..3)
}

fn changed(mut input: Vec<u8>, changes: &[(Index, Index, u8, u8)]) -> Vec<u8> {
    for (one, other, byte, what) in changes {
        if input.is_empty() {
            input.push(*byte);
        }
        let (one, other) = (one.index(input.len()), other.index(input.len()));
        let piece = one.min(other)..one.max(other);
        match what {
            0 => input[one] = *byte,
            1 => drop(input.drain(piece)),
            _ => input.extend_from_within(piece),
        }
    }
    input
}

macro_rules! target {
    ($name:ident, $random:expr) => {
        mod $name {
            use super::*;

            #[test]
            fn targets_accept_their_corpus() {
                for input in corpus(stringify!($name)) {
                    targets::$name(&input);
                }
            }

            proptest! {
                #[test]
                fn targets_accept_mutated_corpus(
                    index: Index,
                    changes in proptest::collection::vec(change(), 1..6),
                ) {
                    let corpus = corpus(stringify!($name));
                    let input = changed(index.get(&corpus).clone(), &changes);
                    targets::$name(&input);
                }

                #[test]
                fn targets_accept_random_input(input in $random) {
                    targets::$name(&input);
                }
            }
        }
    };
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..2000)
}

fn any_text() -> impl Strategy<Value = Vec<u8>> {
    let text =
        proptest::string::string_regex("[A-Z0-9,|(){}:\\[\\]\\-=# \r\n\t]{0,600}").expect("a regular expression");
    text.prop_map(String::into_bytes)
}

target!(packets, any_bytes());
target!(lines, prop_oneof![any_bytes(), any_text()]);
target!(replies, prop_oneof![any_bytes(), any_text()]);
target!(policy, prop_oneof![any_bytes(), any_text()]);
target!(nat, any_bytes());
target!(replacement, any_bytes());
target!(netlink, any_bytes());
target!(captures, any_bytes());
target!(pickup, any_bytes());
target!(time, any_bytes());
