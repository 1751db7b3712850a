//! A gateway whose interfaces are in a VRF: each packet that arrives passes the hook `prerouting` twice, first with the interface
//! that it came by, then with that of the VRF.
//!
//! Needs root, ip, nft, and the programs that `tests/setup test` fetches.

use lab::nat::Nat;
use lab::{Family, Namespace, kernel_lacks};

use crate::real_transfers::{assert_nat_transfers, assert_transfers, daemon_on, daemons_on, gateway, load, nat, run};

/// Puts these interfaces into a VRF. Returns whether this kernel has VRFs.
fn enslave(namespace: &Namespace, interfaces: &[&str]) -> bool {
    let mut add = namespace.command("ip");
    let added = add.args(["link", "add", "red", "type", "vrf", "table", "100"]);
    if added.output(crate::daemon::TIMEOUT).is_err() {
        kernel_lacks("VRFs");
        return false;
    }
    run(namespace, "ip link set red up");
    for interface in interfaces {
        run(namespace, &format!("ip link set {interface} master red"));
    }
    true
}

/// At the hook `forward` the packets come from the VRF's interface.
const FORWARD_FROM_VRF: &str = "insert rule inet filter forward iifname red tcp dport 21 ct state new accept";

#[test]
fn transfers_work_in_a_vrf() {
    let running = gateway(Family::V4);
    let firewall = &running.topology.firewall;
    if !enslave(firewall, &["clients", "servers"]) {
        return;
    }
    load(firewall, FORWARD_FROM_VRF);
    let daemon = daemon_on(&running, "");
    assert_transfers(&running);
    assert_eq!(daemon.counted("anomalies"), 0);
}

#[test]
fn transfers_work_in_a_vrf_with_nat() {
    for kind in [Nat::Masquerade, Nat::Dnat] {
        let running = nat(kind, Family::V4);
        let gateway = &running.topology.gateways[0].namespace;
        if !enslave(gateway, &["inside", "outside"]) {
            return;
        }
        load(gateway, FORWARD_FROM_VRF);
        let daemons = daemons_on(&running);
        assert_nat_transfers(&running);
        assert_eq!(daemons[0].counted("anomalies"), 0, "{kind}");
    }
}
