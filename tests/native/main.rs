//! The mechanism `native`. A program of its own: a machine has one list of helpers, so these tests run one at a time.

#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../support/filtered_topology.rs"]
mod filtered_topology;
#[path = "../support/helper_list.rs"]
mod helper_list;

mod native;
mod native_rules;
mod native_start;
