//! Pinhole with the kernel and the host: netlink, rulesets, queues, the sandbox, systemd, `pinhole check`.

#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../support/debian.rs"]
mod debian;
#[path = "../support/filtered_topology.rs"]
mod filtered_topology;
#[path = "../support/firewall.rs"]
mod firewall;
#[path = "../support/machine.rs"]
mod machine;

mod defaults;
mod deploy;
mod explain;
mod explain_faults;
mod host_check;
mod host_faults;
mod host_probe;
mod iptables;
mod log_flood;
mod managers;
mod netlink;
mod overflow;
mod queue;
mod ruleset;
mod ruleset_restore;
mod sandbox;
mod suricata;
mod systemd;
