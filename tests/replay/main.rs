//! Captures, damaged files, segmentation and simulated NAT: packets in memory or in files, and no kernel.

#[path = "../support/program.rs"]
mod program;
#[path = "../support/recording.rs"]
mod recording;
#[path = "../support/mod.rs"]
mod support;

mod attack_packets;
mod attacks;
mod capture_files;
mod captures;
pub mod fuzz_targets;
mod port_choice;
mod published_captures;
mod replay_nat;
mod segmentation;
