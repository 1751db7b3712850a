//! The keys of a policy: one entry for each, with its name, type, default, kind and explanation.
//!
//! The entries make the structs that hold the settings, read and print them, and describe them in the JSON Schema and
//! in `docs/reference/policy.md`. `deploy/policy.yaml` has every key, too; `tests/cli/policy.rs` compares its values
//! with the defaults.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use super::hosts::Hosts;
use super::kinds::{
    BLOCK, Count, Keyword, Kind, List, Mapping, NAME, Number, OneOrList, PORT, Parsed, Ports, Time, VERB, WordOr,
};
use super::problem::Severity;
use super::reader::{Fields, YamlEntry, YamlReader};
use super::rules::{DeprecatedKey, Rules};
use super::services;
use super::settings::{CHAIN, Chain, ControlPorts, Mechanism, Pickup, WhenDown};
use super::terms::{Action, Login, PassiveAddress, PortRanges, PortSet, ThirdParty, Tls, Verbs};
use crate::core::ftp::mode::{Mode, Modes};
use crate::core::kernel::Mark;
use crate::core::net::{Network, Port, PortRange};

/// A key as the schema and the documents describe it.
pub(super) struct Row {
    pub(super) key: &'static str,
    #[cfg(test)]
    kind: String,
    #[cfg(test)]
    default: String,
    pub(super) help: String,
    schema: Json,
}

/// A mapping of the policy.
pub(super) trait Keys: Clone + Default + Check {
    /// The names of its keys.
    const NAMES: &'static [&'static str];
    /// Whether the key is accepted and has no effect any more.
    fn is_retired(key: &str) -> bool;
    /// Reads `fields`; where a key is missing or wrong, the value is that of `base`.
    fn read(reader: &mut YamlReader<'_>, fields: &Fields<'_>, base: &Self) -> Self;
    /// Each key with its value as YAML, without those that have the same value in `unlike`.
    fn shown(&self, unlike: Option<&Self>) -> Vec<(&'static str, String)>;
    /// Every key.
    fn rows() -> Vec<Row>;
}

/// Rules about several keys of a mapping.
pub(super) trait Check {
    /// Reports problems in `fields`, from which `self` was read.
    fn check(&mut self, _reader: &mut YamlReader<'_>, _fields: &Fields<'_>) {}
}

macro_rules! keys {
    ($(#[$about:meta])* $name:ident {
        $($(#[doc = $help:literal])* $key:ident: $type:ty = $default:expr, $kind:expr;)*
        $(=> $(#[$doc:meta])* $field:ident: $field_type:ty;)?
    }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[doc = $help])* pub $key: $type,)*
            $($(#[$doc])* pub $field: $field_type,)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* $($field: Default::default(),)? }
            }
        }

        impl Keys for $name {
            const NAMES: &'static [&'static str] = &[$(stringify!($key)),*];

            fn is_retired(key: &str) -> bool {
                [$((stringify!($key), Kind::<$type>::is_retired(&$kind))),*].contains(&(key, true))
            }

            fn read(reader: &mut YamlReader<'_>, fields: &Fields<'_>, base: &Self) -> Self {
                let mut all = base.clone();
                $(if let Some(value) = fields.get(stringify!($key)).and_then(|entry| $kind.read(reader, entry)) {
                    all.$key = value;
                })*
                all
            }

            fn shown(&self, unlike: Option<&Self>) -> Vec<(&'static str, String)> {
                let mut shown = Vec::new();
                $(if unlike.is_none_or(|unlike| unlike.$key != self.$key) {
                    shown.push((stringify!($key), Kind::<$type>::show(&$kind, &self.$key)));
                })*
                shown.retain(|(_, text)| !text.is_empty());
                shown
            }

            fn rows() -> Vec<Row> {
                #[cfg(test)]
                let defaults = Self::default();
                vec![$(Row {
                    key: stringify!($key),
                    #[cfg(test)]
                    kind: Kind::<$type>::describe(&$kind),
                    #[cfg(test)]
                    default: Kind::<$type>::show(&$kind, &defaults.$key),
                    help: concat!($($help),*).trim().to_owned(),
                    schema: Kind::<$type>::schema(&$kind),
                }),*]
            }
        }
    };
}

keys! {
    /// What the administrator allows. [`parse`](super::parse) reads it from text.
    Policy {
        /// The TCP ports of FTP control connections, to which clients connect.
        control_ports: ControlPorts = ControlPorts::default(),
            List { of: PORT, what: "ports such as [21]", least: 1, most: 64, repeated: Some(Severity::Error) };
        /// How pinholes are kept in the kernel. `native`: conntrack expectations, which `ct state related accept`
        /// admits. `sets`: elements of nftables sets. `auto`: `native` where a test at the start shows that it works,
        /// else `sets`. A reload cannot change the mechanism.
        mechanism: Mechanism = Mechanism::Auto, Keyword;
        /// How packets reach Pinhole.
        capture: Capture = Capture::default(), BLOCK;
        /// Which sessions that began before Pinhole read them may open data connections. `marked`: those that an
        /// earlier run of Pinhole read from their start, which their conntrack mark records. `never`: none; after a
        /// restart clients have to connect again. `trust`: all. With `trust`, an attacker who can cause packet loss, or
        /// can make a server echo text, can open ports that the server did not announce. Announcements of other
        /// sessions are refused: `picked-up`.
        pickup: Pickup = Pickup::Marked, Keyword;
        /// Chains of your own ruleset, each as `FAMILY TABLE CHAIN`, at whose top Pinhole keeps one rule that accepts
        /// the mark. Needed with `sets`, unless you write that rule yourself. The family is `ip`, `ip6` or `inet`. An
        /// accept in one chain does not override a drop in another, so every chain that drops needs the rule.
        admit: Vec<Chain> = Vec::new(),
            List { of: CHAIN, what: "chains such as [inet filter input]", least: 0, most: 64, repeated: Some(Severity::Error) };
        /// The bits that Pinhole sets in the conntrack mark of a data connection that it admits. At most 27 bits: five
        /// more are used for control connections and their packets: the next higher bits, and then the highest free
        /// bits. With 0x10000000 they are 0x20000000, 0x40000000, 0x80000000, 0x08000000 and 0x04000000. No other
        /// program may use any of these bits.
        mark: Mark = Mark::default(), Number(1, u32::MAX);
        /// How much is kept in memory.
        limits: Limits = Limits::default(), BLOCK;
        /// What applies between a client and a server unless a rule says otherwise.
        defaults: Terms = Terms::default(), Mapping { is_inline: false, except: "action" };
        /// What applies to particular clients and servers. The first rule that matches both decides.
        rules: Vec<Rule> = Vec::new(), Rules;
    }
}

keys! {
    /// How packets reach Pinhole.
    #[derive(Copy)]
    Capture {
        /// The number of the first NFQUEUE.
        queue: u16 = 0, Number(0, 65_535);
        /// How many queues, numbered from `queue` on, each read by a thread of its own; the last one may be 65535.
        /// `auto`: one for each processor, at most eight.
        queues: Option<NonZeroU16> = None, WordOr("auto", || None, Count);
        /// Has no effect any more: every line is read.
        inspect: DeprecatedKey = DeprecatedKey, DeprecatedKey;
        /// What happens to packets of control connections while no daemon has the queue bound. `open` (fail-open): they
        /// pass unread. `closed` (fail-closed): they are dropped, and their senders retransmit them. No new data
        /// connection is admitted either way. A full queue follows the same key with `sets`; with `native` it always
        /// drops.
        when_down: WhenDown = WhenDown::Open, Keyword;
        /// How long packets may wait for a daemon that hangs (SIGSTOP, a system call that does not return). Then the
        /// daemon is killed, and `when_down` holds. Raise it if the host is so busy that the daemon is killed without
        /// need, and for a debugger.
        watchdog: Duration = Duration::from_secs(5), Time(Duration::from_secs(2), HOUR);
    }
}

keys! {
    /// How much is kept in memory, and for how long.
    #[derive(Copy)]
    Limits {
        /// Pinhole forgets a session of the lowest rank. The connection continues; with its next packet, the session is
        /// picked up in the middle (`pickup`).
        sessions: NonZeroU32 = const { nonzero(65_536) }, Number(1, 4_194_304);
        /// One session of the same client is forgotten.
        sessions_per_client: NonZeroU32 = const { nonzero(4096) }, Number(1, 4_194_304);
        /// Open pinholes of all sessions. One more announcement is refused: `too-many`.
        pinholes: NonZeroU32 = const { nonzero(16_384) }, Number(1, 1_048_576);
        /// Open pinholes of one client. One more announcement in its sessions is refused: `too-many`.
        pinholes_per_client: NonZeroU32 = const { nonzero(1024) }, Number(1, 1_048_576);
        /// Only the beginning of a longer line is read. The line passes, but an announcement in it opens nothing:
        /// `bad-syntax`.
        line_bytes: NonZeroU32 = const { nonzero(1024) }, Number(128, 65_536);
        /// Bytes kept of each direction while an earlier segment is missing. A client's segment beyond that, or beyond
        /// 64 pieces, is dropped, and the client retransmits it. In a server's direction, Pinhole gives up the missing
        /// part.
        reorder_bytes: NonZeroU32 = const { nonzero(16_384) }, Number(1024, 1_048_576);
        /// Bytes out of order and unfinished lines, of all sessions. One client may have a sixteenth, all sessions
        /// before a login a quarter. Beyond that a session is treated as if `reorder_bytes` were reached, and only 128
        /// bytes of an unfinished line are kept; no announcement is longer.
        buffered_bytes: NonZeroU32 = const { nonzero(16 << 20) }, Number(65_536, 1 << 30);
        /// Pinhole forgets a session from which no packet was queued for this long. With an open `tls: range` it is
        /// five days.
        idle: Duration = HOUR, Time(Duration::from_secs(1), Duration::from_secs(168 * 3600));
    }
}

keys! {
    /// The terms on which two hosts may announce data connections.
    Terms {
        /// `deny`: every announcement is refused (`by-rule`), whatever the other keys say.
        action: Action = Action::Allow, Keyword;
        /// How an address may be announced. Others are refused: `mode-denied`.
        modes: Modes = [Mode::Port, Mode::Eprt, Mode::Pasv, Mode::Epsv].into_iter().collect(),
            List { of: Keyword, what: "of `PORT`, `EPRT`, `LPRT`, `PASV`, `EPSV` and `LPSV`", least: 1, most: 64,
                repeated: Some(Severity::Warning) };
        /// The ports that may be announced, by the server (227, 228, 229) and by the client (PORT, EPRT, LPRT) alike.
        /// The source port of the data connection does not matter. Others are refused: `port-not-allowed`, or
        /// `low-port` below 1024.
        data_ports: PortRanges = unprivileged().into(),
            OneOrList(List { of: Ports, what: "of them", least: 1, most: 64, repeated: Some(Severity::Warning) });
        /// Ports that may not be announced although they are within a range of `data_ports`: `known-service`. The
        /// `control_ports` are among them in any case. An entry of `data_ports` that is exactly one port allows that port
        /// again.
        known_services: PortSet = services::default_set(),
            WordOr("default", services::default_set, List {
                of: Ports, what: "ports and ranges such as [3306, 5900-5909]", least: 0, most: 256,
                repeated: None,
            });
        /// How long an announced data connection may take to arrive. Then its pinhole expires.
        timeout: Duration = Duration::from_secs(60), Time(Duration::from_millis(10), HOUR);
        /// How many pinholes one session may have open. One more is refused: `too-many`. With `native`, those beyond
        /// 255 need `admit`.
        pinholes_per_session: NonZeroU16 = const { NonZeroU16::new(8).expect("not zero") }, Number(1, 1024);
        /// Whether an end may announce an address other than its own (transfers between servers, FXP). With `deny`,
        /// such an announcement is refused: `third-party`.
        third_party: ThirdParty = ThirdParty::Deny, Keyword;
        /// What happens to a 227 or 228 of a server that announces a wrong address: 0.0.0.0, a private address, another
        /// host's. `keep`: the line stays as it is; 0.0.0.0 counts as the server's own address, and any other is refused
        /// (`third-party`). `repair`: Pinhole replaces it by the address to which the client connected, and opens the
        /// announced port at that address, never at another; `third_party: allow` does not apply to such a reply.
        passive_address: PassiveAddress = PassiveAddress::Keep, Keyword;
        /// `required`: announcements count after a login that Pinhole read; before that: `not-logged-in`. `optional`:
        /// they count at any time.
        login: Login = Login::Required, Keyword;
        /// What happens to a session with `AUTH TLS`, after which its announcements cannot be read. `pass`: it
        /// continues, and nothing opens for it. `deny`: AUTH does not reach the server. `service`: it continues, and a data
        /// connection to this host opens if the FTP service listens on its port at that moment. `range 50000-50100`: it
        /// continues, and the client may connect to those ports of the server.
        tls: Tls = Tls::Pass, Parsed("`pass`, `deny`, `service`, or a range such as `range 50000-50100`",
            r"^(pass|deny|range\s+[0-9]+\s*-\s*[0-9]+\s*|service(\s+(unit|cgroup|uid)\s+\S+\s*)?)$");
        /// Commands that do not reach the server.
        commands: Commands = Commands::default(), Mapping { is_inline: true, except: "" };
    }
}

keys! {
    /// Commands that are treated in a special way.
    Commands {
        /// Commands that do not reach the server.
        deny: Verbs = Verbs::default(),
            List { of: VERB, what: "commands such as [SITE, DELE]", least: 0, most: 64, repeated: Some(Severity::Warning) };
    }
}

keys! {
    /// A rule: the clients and servers to which it applies, and its terms.
    Rule {
        /// No two rules have the same name.
        name: Box<str> = Box::default(), NAME;
        /// The clients to which the rule applies, such as `10.0.0.5`, `192.0.2.0/24`, `2001:db8::/32`.
        clients: Hosts = Hosts::everyone(), NETWORKS;
        /// The servers to which the rule applies.
        servers: Hosts = Hosts::everyone(), NETWORKS;
        =>
        /// The terms between those hosts: the policy's defaults where the rule has no terms of its own.
        terms: Terms;
    }
}

const HOUR: Duration = Duration::from_secs(3600);

const NETWORKS: List<Parsed> = List {
    of: Parsed("an address or a network such as 192.0.2.0/24", "^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$"),
    what: "addresses or networks",
    least: 1,
    most: 1000,
    repeated: Some(Severity::Warning),
};

/// An element of a list of networks, in files of other kinds, too.
pub(crate) fn network(reader: &mut YamlReader<'_>, entry: YamlEntry<'_>) -> Option<Network> {
    NETWORKS.of.read(reader, entry)
}

const fn nonzero(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).expect("a default limit is not zero")
}

fn unprivileged() -> PortRange {
    let port = |number| Port::new(number).expect("not zero");
    PortRange::new(port(1024), port(65_535)).expect("1024 is below 65535")
}

/// The schema of a mapping with those keys.
pub(super) fn object(rows: Vec<Row>) -> Json {
    let mut properties = Map::new();
    for Row { key, mut schema, help, .. } in rows {
        schema["description"] = help.into();
        properties.insert(key.into(), schema);
    }
    json!({ "type": "object", "additionalProperties": false, "properties": properties })
}

/// The JSON Schema (draft 2020-12) of a policy file, for editors that complete and check it.
pub fn schema() -> String {
    let mut schema = object(Policy::rows());
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "Policy of Pinhole".into();
    format!("{schema:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_of_deploy_is_the_generated_one() {
        let file = include_str!("../../../deploy/policy.schema.json");
        assert!(file == schema(), "`pinhole schema > deploy/policy.schema.json` renews it");
    }

    #[test]
    fn documented_keys_are_those_of_the_table() {
        let page = include_str!("../../../docs/reference/policy.md");
        let (action, terms): (Vec<Row>, Vec<Row>) = Terms::rows().into_iter().partition(|row| row.key == "action");
        for rows in
            [Policy::rows(), Capture::rows(), Limits::rows(), terms, Rule::rows().into_iter().chain(action).collect()]
        {
            let mut table = String::from("| key | type | default | meaning |\n|---|---|---|---|\n");
            for Row { key, kind, default, help, .. } in rows.iter().filter(|row| !row.kind.is_empty()) {
                let default = match *key {
                    "name" => "required".into(),
                    "clients" | "servers" => "every host".into(),
                    _ if default.starts_with('\n') => String::new(),
                    _ => format!("`{default}`"),
                };
                table += &format!("| `{key}` | {kind} | {default} | {help} |\n");
            }
            assert!(page.contains(&table), "docs/reference/policy.md should have this table:\n{table}");
        }
    }
}
