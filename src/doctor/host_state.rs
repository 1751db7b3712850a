//! Reads the state of the host. It changes nothing, except that it registers the helper for a moment to test whether
//! `native` works; and it rates nothing.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::listeners::{Listener, listeners};
use super::manager::Signs;
use super::probe::{Pair, Probes};
use super::ruleset::{Ruleset, kernel_family};
use crate::core::net::{Endpoint, Flow, Port};
use crate::core::policy::{Policy, WhenDown};
use crate::daemon::control;
use crate::netfilter::backend::{self, Choice, NotPossible, sets};
use crate::netfilter::netlink::{Conntrack, Family, Table, Tables};
use crate::netfilter::nft::{self, NftError};
use crate::netfilter::queue::Queue;
use crate::netfilter::readers::{Reader, readers};
use crate::netfilter::table::{IptablesTable, QueueChain, Queueing, TableOwner, iptables_tables, preparation, ruleset};

const TIMEOUT: Duration = Duration::from_secs(5);
const OWN_TABLE: Table<'static> = Table { family: Family::Inet, name: "pinhole" };

#[derive(Clone, Debug)]
pub struct HostState {
    pub privileges: Privileges,
    pub nft: Nft,
    pub daemon: DaemonState,
    /// None without CAP_NET_ADMIN.
    pub kernel: Option<KernelFeatures>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privileges {
    pub is_root: bool,
    pub may_administer: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nft {
    Missing,
    There { path: PathBuf, version: String },
    Broken { path: PathBuf, why: String },
}

/// Whether a daemon accepts connections to its control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DaemonState {
    NotRunning,
    /// The path of the control socket.
    Running(PathBuf),
}

/// The kernel's FTP helper, `nf_conntrack_ftp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Helper {
    /// Whether the module is loaded. Unknown if it is built in.
    pub is_loaded: bool,
    /// Whether it is assigned to connections without a rule. Only kernels up to 5.19 have this sysctl.
    pub is_automatic: bool,
}

/// What the kernel supports and has loaded. An error is the reason why a feature is missing.
#[derive(Clone, Debug)]
pub struct KernelFeatures {
    pub nf_tables: Result<(), String>,
    /// The statement that queues packets; none if the kernel has none.
    pub queueing: Result<Option<Queueing>, String>,
    /// Whether the daemon would prepare control connections for NAT or a flowtable of another table.
    pub needs_preparation: bool,
    /// Whether `nft --check` accepts the ruleset for the policy.
    pub takes_ruleset: Result<(), String>,
    /// The mechanism that the daemon would use, or why the mechanism of the policy does not work.
    pub mechanism: Result<Choice, NotPossible>,
    pub reads_queues: Result<(), String>,
    /// Whether conntrack answers over netlink.
    pub conntrack: Result<(), String>,
    pub readers: Vec<Reader>,
    /// The TCP sockets that listen.
    pub listeners: Vec<Listener>,
    /// The chains of the table `inet pinhole`; none if there is no such table.
    pub own_table: Option<Vec<String>>,
    pub ruleset: Result<Ruleset, String>,
    /// Loaded tables of iptables-legacy, which nft does not list.
    pub legacy: Vec<String>,
    pub forwards: bool,
    pub helper: Helper,
    pub probes: Probes,
}

impl HostState {
    /// Reads the state, and sends probes between these hosts, or if there are none, between those that are likely.
    pub fn probe(policy: &Policy, pairs: &[Pair]) -> Self {
        let privileges = Privileges::probe();
        let nft = nft::Nft::find();
        let kernel = privileges.may_administer.then(|| KernelFeatures::probe(policy, &nft, pairs));
        Self { privileges, nft: Nft::probe(nft.ok().as_ref()), daemon: DaemonState::probe(), kernel }
    }
}

impl Privileges {
    fn probe() -> Self {
        const NET_ADMIN: u32 = 12;
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
        Self { is_root: rustix::process::geteuid().is_root(), may_administer: bits >> NET_ADMIN & 1 == 1 }
    }
}

impl Nft {
    fn probe(program: Option<&nft::Nft>) -> Self {
        let Some(program) = program else { return Self::Missing };
        let path = program.path().to_owned();
        match program.version() {
            Ok(version) => Self::There { version, path },
            Err(error) => Self::Broken { path, why: error.reason() },
        }
    }
}

impl DaemonState {
    fn probe() -> Self {
        let path = control::path();
        if UnixStream::connect(&path).is_ok() { Self::Running(path) } else { Self::NotRunning }
    }
}

impl KernelFeatures {
    fn probe(policy: &Policy, nft: &Result<nft::Nft, NftError>, pairs: &[Pair]) -> Self {
        let opened = Tables::open(TIMEOUT).map_err(|error| error.to_string());
        let (nf_tables, queueing, needs_preparation, own_table, iptables) = match opened {
            Ok(mut tables) => (
                Ok(()),
                Queueing::of_kernel(&mut tables).map_err(|error| error.to_string()),
                preparation(&mut tables).map_or(true, |found| found.is_some()),
                own_table(&mut tables),
                iptables_tables(&mut tables).map_err(|error| error.to_string()),
            ),
            Err(why) => (Err(why.clone()), Err(why.clone()), true, None, Err(why)),
        };
        let nft = nft.as_ref().map_err(NftError::reason);
        let takes_ruleset = match &queueing {
            Ok(Some(queueing)) => nft.clone().and_then(|nft| check(nft, policy, *queueing)),
            _ => Ok(()),
        };
        let readers = readers();
        let listed = nft.and_then(|nft| nft.list_ruleset().map_err(|error| error.reason()));
        let ruleset = listed.and_then(|json| parse(&json, iptables));
        let listeners = listeners();
        let mechanism = backend::probe(policy);
        let probes = match (&ruleset, &mechanism) {
            (Ok(_), Ok(choice)) if choice.profile.is_related => {
                Probes::not_sent("probes are for the mechanism sets, and this host has native")
            }
            (Ok(ruleset), Ok(_)) => Probes::send(policy, ruleset, &listeners, pairs),
            _ => Probes::default(),
        };
        Self {
            nf_tables,
            queueing,
            needs_preparation,
            takes_ruleset,
            mechanism,
            reads_queues: reads_queues(readers.as_deref()),
            conntrack: conntrack(),
            readers: readers.unwrap_or_default(),
            listeners,
            own_table,
            ruleset,
            legacy: legacy(),
            forwards: forwards(),
            helper: Helper::probe(),
            probes,
        }
    }
}

/// What is around the daemon: rules, programs and settings that are not its own.
#[derive(Clone, Debug)]
pub struct Surroundings {
    pub(super) ruleset: Result<Ruleset, String>,
    pub(super) listeners: Vec<Listener>,
    pub(super) readers: Vec<Reader>,
    pub(super) legacy: Vec<String>,
    pub(super) forwards: bool,
    pub(super) helper: Helper,
}

impl Surroundings {
    /// Reads them. Changes nothing, and tries nothing.
    pub fn probe() -> Self {
        let iptables = Tables::open(TIMEOUT)
            .and_then(|mut tables| iptables_tables(&mut tables))
            .map_err(|error| error.to_string());
        let listed = nft::Nft::find().and_then(|nft| nft.list_ruleset()).map_err(|error| error.reason());
        Self {
            ruleset: listed.and_then(|json| parse(&json, iptables)),
            listeners: listeners(),
            readers: readers().unwrap_or_default(),
            legacy: legacy(),
            forwards: forwards(),
            helper: Helper::probe(),
        }
    }
}

impl Helper {
    fn probe() -> Self {
        Self {
            is_loaded: fs::read_to_string("/proc/modules")
                .is_ok_and(|modules| modules.lines().any(|line| line.starts_with("nf_conntrack_ftp "))),
            is_automatic: fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_helper")
                .is_ok_and(|value| value.trim() == "1"),
        }
    }
}

fn parse(json: &str, iptables: Result<Vec<IptablesTable>, String>) -> Result<Ruleset, String> {
    let ruleset = Ruleset::parse(json).map_err(|error| error.to_string())?;
    let signs = Signs::probe(owners(&ruleset));
    Ok(ruleset.with_iptables(&iptables?).with_signs(signs).with_bridged(sees_bridged()))
}

/// Whether br_netfilter is loaded and passes bridged packets to the hooks of IP.
fn sees_bridged() -> bool {
    let is_on =
        |name| fs::read_to_string(Path::new("/proc/sys/net/bridge").join(name)).is_ok_and(|on| on.trim() != "0");
    is_on("bridge-nf-call-iptables") || is_on("bridge-nf-call-ip6tables")
}

/// Whether this host forwards packets. A service that cannot read that takes it for a gateway.
fn forwards() -> bool {
    let settings = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"]
        .map(|name| fs::read_to_string(Path::new("/proc/sys/net").join(name)).ok());
    settings.iter().all(Option::is_none) || settings.iter().flatten().any(|value| value.trim() != "0")
}

fn own_table(tables: &mut Tables) -> Option<Vec<String>> {
    // Errors of nf_tables are reported in `nf_tables`.
    if !tables.has_table(OWN_TABLE).unwrap_or(false) {
        return None;
    }
    let chains = tables.chains(OWN_TABLE).unwrap_or_default();
    Some(chains.into_iter().map(|chain| chain.name.into_string()).collect())
}

/// The owners of tables that have one.
fn owners(ruleset: &Ruleset) -> Vec<TableOwner> {
    // Without nf_tables there is no ruleset.
    let Ok(mut tables) = Tables::open(TIMEOUT) else { return Vec::new() };
    ruleset
        .tables()
        .filter_map(|(number, name)| Some(Table { family: kernel_family(number)?, name }))
        .filter_map(|table| TableOwner::find(&mut tables, table).ok().flatten())
        .collect()
}

/// Checks the ruleset with `nft --check`, a transaction that is not committed. The table has another name, so that an
/// installed table does not matter.
fn check(nft: &nft::Nft, policy: &Policy, queueing: Queueing) -> Result<(), String> {
    const TRIAL: &str = "inet pinhole-check";
    let mut text = format!("add table {TRIAL}\n");
    if queueing == Queueing::CompatTarget {
        for chain in QueueChain::ALL {
            text.push_str(&format!("add chain {TRIAL} {}\n", chain.name()));
        }
    }
    // The daemon creates these two objects over netlink with size 0, which nft cannot. Size 1 is good enough for the check.
    for (name, network) in [("no_expectation4", "ip"), ("no_expectation6", "ip6")] {
        text.push_str(&format!(
            "add ct expectation {TRIAL} {name} {{ protocol tcp; dport 9; timeout 1s; size 1; l3proto {network}; }}\n"
        ));
    }
    text.push_str(&ruleset(policy, queueing, sets::PROFILE.rules).replace("inet pinhole", TRIAL));
    nft.check(&text).map_err(|error| error.reason())
}

/// Whether queues can be read. `/proc` lists them if the module is loaded. Otherwise opens and closes a queue that no rule
/// uses, so that the kernel loads the module.
fn reads_queues(readers: Option<&[Reader]>) -> Result<(), String> {
    match readers {
        Some(_) => Ok(()),
        None => Queue::open(u16::MAX, WhenDown::Open).map(drop).map_err(|error| error.to_string()),
    }
}

/// Queries conntrack for a connection that does not exist.
fn conntrack() -> Result<(), String> {
    let nobody = Endpoint::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), Port::FTP);
    let found = Conntrack::open(TIMEOUT)
        .and_then(|mut conntrack| conntrack.find(&Flow { source: nobody, destination: nobody }));
    found.map(drop).map_err(|error| error.to_string())
}

fn legacy() -> Vec<String> {
    let tables = |(program, path)| {
        let names = fs::read_to_string(path).unwrap_or_default();
        names.lines().map(|name| format!("{program} -t {name}")).collect::<Vec<_>>()
    };
    [("iptables-legacy", "/proc/net/ip_tables_names"), ("ip6tables-legacy", "/proc/net/ip6_tables_names")]
        .into_iter()
        .flat_map(tables)
        .collect()
}
