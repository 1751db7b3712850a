//! The command line, and what needs no network: arguments, messages, documents, the policy, the layout of the sources.

#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../support/program.rs"]
mod program;
#[path = "../support/mod.rs"]
mod support;

mod advisories;
mod architecture;
mod cli;
mod cli_input;
mod cli_nat;
mod cli_report;
mod demo;
mod documents;
mod messages;
mod policy;
mod retry;
