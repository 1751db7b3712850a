//! The mechanism `native`. A program of its own: a machine has one list of helpers, so these tests run one at a time.

#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../support/helper_list.rs"]
mod helper_list;
#[path = "../support/stage.rs"]
mod stage;

mod native;
mod native_rules;
mod native_start;
