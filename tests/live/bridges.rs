//! A bridge that filters: with br_netfilter, bridged packets pass the hooks of IP, and Pinhole serves them.
//!
//! Needs root, ip, nft, and the programs that `tests/setup test` fetches.

use std::net::SocketAddr;

use lab::{
    Addresses, ClientKind, End, Family, Host, Namespace, Result, Server, ServerKind, ServerOptions, Task, Visit, join,
    kernel_lacks,
};
use pinhole::core::ftp::Mode;

use crate::daemon::{Daemon, TIMEOUT};
use crate::filtered_topology::{CONTENT, FILE};
use crate::real_transfers::{assert_all_modes_work, load, run};

const POLICY: &str = "admit: [inet filter forward]\n";
/// Drops all but control connections.
const IP_FILTER: &str = "table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        meta l4proto ipv6-icmp accept
        tcp dport 21 ct state new accept
    }
}";

/// A client and a server, with a bridge between them.
struct Bridged {
    client: Host,
    bridge: Namespace,
    server: Host,
}

impl Bridged {
    fn new() -> Self {
        Self::build().unwrap_or_else(|error| panic!("{error}"))
    }

    fn build() -> Result<Self> {
        let host =
            |role: &str, number| Ok(Host { namespace: Namespace::new(role)?, addresses: Addresses::lab(1, number) });
        let (client, server): (Host, Host) = (host("client", 10)?, host("server", 20)?);
        let bridge = Namespace::new("bridge")?;
        for (host, port) in [(&client, "clients"), (&server, "servers")] {
            join(
                End { namespace: &host.namespace, interface: "net", addresses: &host.addresses.with_prefixes() },
                End { namespace: &bridge, interface: port, addresses: &[] },
            )?;
        }
        run(&bridge, "ip link add switch type bridge && ip link set switch up");
        for port in ["clients", "servers"] {
            run(&bridge, &format!("ip link set {port} master switch"));
        }
        Ok(Self { client, bridge, server })
    }

    /// Passes bridged packets to the hooks of IP. Returns whether this kernel can.
    fn call_ip_hooks(&self) -> bool {
        let _ = self.bridge.command("modprobe").args(["-q", "br_netfilter"]).output(TIMEOUT);
        let settings = ["iptables", "ip6tables"].map(|name| format!("net/bridge/bridge-nf-call-{name}"));
        let is_set = settings.iter().all(|setting| self.bridge.set(setting, "1").is_ok());
        if !is_set {
            kernel_lacks("br_netfilter");
        }
        is_set
    }

    fn serve(&self, family: Family) -> Server {
        let options = ServerOptions::on(self.server.addresses.of(family));
        let started = ServerKind::Vsftpd.start(&self.server.namespace, &options);
        let server = started.unwrap_or_else(|error| panic!("{error}"));
        server.place(FILE, CONTENT).expect("it takes it");
        server
    }

    fn download(&self, family: Family, client: ClientKind, mode: Mode) -> Result<()> {
        let server = SocketAddr::new(self.server.addresses.of(family), 21);
        let visit =
            Visit { namespace: &self.client.namespace, server, mode, announce: None, tls: None, timeout: TIMEOUT };
        let brought = client.visit(&visit, &[Task::Download(FILE)])?;
        assert_eq!(brought[0], CONTENT, "{mode}");
        Ok(())
    }
}

#[test]
fn transfers_work_through_a_bridge_with_br_netfilter() {
    for family in Family::ALL {
        let bridged = Bridged::new();
        if !bridged.call_ip_hooks() {
            return;
        }
        load(&bridged.bridge, IP_FILTER);
        let daemon = Daemon::start(&bridged.bridge, POLICY).unwrap_or_else(|error| panic!("{error}"));
        let _server = bridged.serve(family);
        assert_all_modes_work(family, |client, mode| bridged.download(family, client, mode));
        assert!(daemon.counted("used") > 0, "{family}");
        assert_eq!(daemon.counted("anomalies"), 0, "{family}");
    }
}

/// The rule that `pinhole check` advises for a chain of the family `bridge`.
#[test]
fn mark_is_matched_by_a_chain_of_the_bridge() {
    let bridged = Bridged::new();
    if !bridged.call_ip_hooks() {
        return;
    }
    load(&bridged.bridge, IP_FILTER);
    // This needs nf_conntrack_bridge.
    let is_loaded = bridged.bridge.nft(
        "table bridge filter {
            chain forward {
                type filter hook forward priority filter; policy drop;
                ether type arp accept
                meta l4proto ipv6-icmp accept
                ct state established,related accept
                ct mark & 0x10000000 == 0x10000000 accept
                tcp dport 21 accept
            }
        }",
    );
    if is_loaded.is_err() {
        kernel_lacks("connection tracking in the family bridge");
        return;
    }
    let _daemon = Daemon::start(&bridged.bridge, POLICY).unwrap_or_else(|error| panic!("{error}"));
    for family in Family::ALL {
        let _server = bridged.serve(family);
        assert_all_modes_work(family, |client, mode| bridged.download(family, client, mode));
    }
}
