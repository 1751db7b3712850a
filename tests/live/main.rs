//! Real servers and clients through the running program, with and without NAT, and through restarts; and the lab itself.

#[path = "../support/conntrackd.rs"]
mod conntrackd;
#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../support/daemon_substitute.rs"]
mod daemon_substitute;
#[path = "../support/disturbance.rs"]
mod disturbance;
#[path = "../support/document.rs"]
mod document;
#[path = "../support/filtered_topology.rs"]
mod filtered_topology;
#[path = "../support/helper.rs"]
mod helper;
#[path = "../support/real_transfers.rs"]
mod real_transfers;
#[path = "../support/recording.rs"]
mod recording;

mod abort;
mod bridges;
mod containers;
mod data_dropped;
mod flowtables;
mod ftps;
mod lab_cleanup;
mod lab_matrix;
mod lab_mini;
mod lab_parts;
mod live;
mod log_lines;
mod nat_crash_mid_rewrite;
mod nat_dialogues;
mod nat_edge_cases;
mod nat_killed;
mod nat_matrix;
mod repair;
mod restart;
mod session_status;
mod synproxy;
mod vrf;
mod watchdog;
mod zones;
