//! SYNPROXY on the control port: the kernel answers SYNs itself, and translates the sequence numbers of the server.
//!
//! Needs root, nft, and the programs that `tests/setup test` fetches.

use lab::nat::Nat;
use lab::{Family, Namespace, Shape};

use crate::filtered_topology::{FilteredTopology, modes, some_transfers};
use crate::real_transfers::{assert_nat_transfers, assert_transfers, daemon_on, daemons_on, gateway, load, nat};

/// Protects port 21, in nft's form.
fn protect(firewall: &Namespace, hook: &str) {
    load(
        firewall,
        &format!(
            "table inet protect {{
                chain prerouting {{
                    type filter hook prerouting priority raw;
                    tcp dport 21 tcp flags & (fin | syn | rst | ack) == syn notrack
                }}
                chain {hook} {{
                    type filter hook {hook} priority -5;
                    tcp dport 21 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm
                    ct state invalid drop
                }}
            }}"
        ),
    );
    firewall.set("net/netfilter/nf_conntrack_tcp_loose", "0").unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn transfers_work_behind_synproxy() {
    for family in Family::ALL {
        let running = gateway(family);
        protect(&running.topology.firewall, "forward");
        let _daemon = daemon_on(&running, "");
        assert_transfers(&running);
    }
}

#[test]
fn transfers_work_behind_synproxy_on_the_server_host() {
    for family in Family::ALL {
        let fixture = FilteredTopology::new(Shape::ServerHost);
        protect(fixture.firewall(), "input");
        // What SYNPROXY itself answers belongs to no connection.
        load(fixture.firewall(), "add rule inet filter output tcp sport 21 ct state invalid,untracked accept");
        let daemon = fixture.daemon("");
        let _server = fixture.serve(family);
        fixture.as_client(|| {
            for &mode in modes(family) {
                some_transfers(fixture.target(family, 21), mode)?;
            }
            Ok(())
        });
        assert!(daemon.counted("used") > 0);
    }
}

#[test]
fn transfers_work_behind_synproxy_and_masquerade() {
    let running = nat(Nat::Masquerade, Family::V4);
    protect(&running.topology.gateways[0].namespace, "forward");
    let _daemons = daemons_on(&running);
    assert_nat_transfers(&running);
}

/// An untracked SYN is not translated, so SYNPROXY answers it at the hook `input`; and what it sends to the server is
/// translated at the hook `output`.
#[test]
fn transfers_work_behind_synproxy_and_dnat() {
    let running = nat(Nat::Dnat, Family::V4);
    let gateway = &running.topology.gateways[0].namespace;
    protect(gateway, "input");
    let server = running.topology.server.addresses.v4;
    let output = format!("chain output {{ type nat hook output priority -100; tcp dport 21 dnat ip to {server}; }}");
    load(gateway, &format!("table inet protect {{ {output}; }}"));
    let _daemons = daemons_on(&running);
    assert_nat_transfers(&running);
}
