//! The guarantees, one module for each, and attacks on the running program. None of these tests is ever run a second time.

#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../support/disturbance.rs"]
mod disturbance;
#[path = "../support/filtered_topology.rs"]
mod filtered_topology;
#[path = "../support/raw_tcp.rs"]
mod raw_tcp;

mod attacks_live;
mod guarantee_any_segmentation;
mod guarantee_good_neighbour;
mod guarantee_kernel_is_the_database;
mod guarantee_narrowest_hole;
mod guarantee_open_before_release;
mod guarantee_reload_and_trouble;
mod guarantee_saved_ruleset;
mod guarantee_what_is_read;
