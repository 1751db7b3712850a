//! Which program manages a chain of the host's firewall, and how an administrator adds the accept rule with it.

use std::path::Path;

use nftables::types::{NfFamily, NfHook};

use super::filter::Dropped;
use super::ruleset::{Chain, ChainName, Ruleset, family_name};
use crate::core::kernel::Mark;
use crate::netfilter::table::{TableOwner, own_iptables_rule, own_rule};

/// What shows which programs manage the firewall, besides the ruleset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// Of tables with the flag `owner`.
    pub owners: Vec<TableOwner>,
    /// netfilter-persistent loads the rules of iptables at boot.
    pub is_iptables_persistent: bool,
}

impl Signs {
    pub(super) fn probe(owners: Vec<TableOwner>) -> Self {
        let exists = |path: &str| Path::new(path).exists();
        Self {
            owners,
            is_iptables_persistent: exists("/etc/iptables/rules.v4") && exists("/usr/sbin/netfilter-persistent"),
        }
    }
}

/// The program that manages a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manager {
    Firewalld,
    Ufw,
    Docker,
    /// netfilter-persistent saves the rules of iptables.
    IptablesPersistent,
    Iptables,
    /// Its rules are loaded from a file, such as /etc/nftables.conf.
    Nft,
}

impl Manager {
    pub(super) fn of(ruleset: &Ruleset, chain: &Chain) -> Self {
        let has = |name: &str| ruleset.in_same_table(&chain.name, name).is_some();
        let is_forward = chain.base.as_ref().is_some_and(|base| base.hook == NfHook::Forward);
        match &*chain.name.table {
            "firewalld" => Self::Firewalld,
            _ if !chain.is_of_iptables => Self::Nft,
            "filter" if has("ufw-before-input") || has("ufw6-before-input") => Self::Ufw,
            "filter" if is_forward && has("DOCKER-USER") => Self::Docker,
            _ if ruleset.signs.is_iptables_persistent => Self::IptablesPersistent,
            _ => Self::Iptables,
        }
    }

    /// As the administrator calls it; none if it is not a program.
    const fn name(self) -> Option<&'static str> {
        match self {
            Self::Firewalld => Some("firewalld"),
            Self::Ufw => Some("ufw"),
            Self::Docker => Some("Docker"),
            Self::IptablesPersistent => Some("iptables-persistent"),
            Self::Iptables | Self::Nft => None,
        }
    }

    /// How to have a chain accept data connections by their mark.
    pub(super) fn advice(self, ruleset: &Ruleset, chain: &Chain, mark: Mark, dropped: Dropped) -> String {
        let ChainName { family, table, chain: name } = &chain.name;
        let admit = format!("`admit: [{}]`", chain.name);
        let pinhole_adds = format!("let Pinhole add it: {admit}");
        let iptables_rule = own_iptables_rule(mark);
        let insert = format!("`{} {iptables_rule}`", iptables_insert(&chain.name));
        match self {
            Self::Firewalld if ruleset.owner(&chain.name).is_some() => format!(
                "firewalld has no rule for a mark, and lets no other program add one: set `NftablesTableOwner=no` in \
                 /etc/firewalld/firewalld.conf, restart firewalld, and {pinhole_adds}; or see docs/howto/firewalld.md"
            ),
            Self::Firewalld => {
                format!("firewalld has no rule for a mark: {pinhole_adds}; see docs/howto/firewalld.md")
            }
            Self::Ufw => {
                let six = if *family == NfFamily::IP6 { "6" } else { "" };
                let hook = name.to_lowercase();
                format!(
                    "add `-A ufw{six}-before-{hook} {iptables_rule}` to /etc/ufw/before{six}.rules, below the line for \
                     RELATED,ESTABLISHED, and run `ufw reload`, or {pinhole_adds}; see docs/howto/ufw.md"
                )
            }
            Self::Docker => format!(
                "{} `admit: [{} {table} DOCKER-USER]`, or run `{} -I DOCKER-USER 1 {iptables_rule}`",
                "let Pinhole add a rule where Docker keeps those of others:",
                family_name(*family),
                iptables_program(*family),
            ),
            Self::IptablesPersistent => format!("run {insert} and `netfilter-persistent save`, or {pinhole_adds}"),
            Self::Iptables => format!("run {insert}, or {pinhole_adds}"),
            Self::Nft => {
                let place = if dropped == Dropped::ByPolicy { "to it" } else { "above that" };
                format!("add {place} `{}`, or {pinhole_adds}; see docs/howto/nftables.md", own_rule(mark))
            }
        }
    }

    /// How to have a chain accept control connections to a port.
    pub(super) fn port_advice(self, chain: &Chain, port: u16) -> String {
        let is_forward = chain.base.as_ref().is_some_and(|base| base.hook == NfHook::Forward);
        let iptables_rule = format!("-p tcp --dport {port} -j ACCEPT");
        match self {
            Self::Firewalld => format!("have firewalld accept port {port}/tcp; see docs/howto/firewalld.md"),
            Self::Ufw if is_forward => format!("run `ufw route allow proto tcp to any port {port}`"),
            Self::Ufw => format!("run `ufw allow {port}/tcp`"),
            Self::Docker => {
                format!("run `{} -I DOCKER-USER 1 {iptables_rule}`", iptables_program(chain.name.family))
            }
            Self::IptablesPersistent => {
                format!("run `{} {iptables_rule}` and `netfilter-persistent save`", iptables_insert(&chain.name))
            }
            Self::Iptables => format!("run `{} {iptables_rule}`", iptables_insert(&chain.name)),
            Self::Nft => format!("add `tcp dport {port} accept`, above every rule that drops"),
        }
    }

    /// The rule for data connections that conntrack expects, if one is enough.
    pub(super) fn related_rule(self, chain: &ChainName) -> Option<String> {
        match self {
            // Their rules accept `related` already.
            Self::Firewalld | Self::Ufw => None,
            Self::Nft => Some("`ct state related accept`".to_owned()),
            Self::Docker | Self::IptablesPersistent | Self::Iptables => {
                Some(format!("`{} -m conntrack --ctstate RELATED -j ACCEPT`", iptables_insert(chain)))
            }
        }
    }
}

/// The programs that manage this firewall, as `pinhole check` names them; none if it finds none.
pub(super) fn managers(ruleset: &Ruleset) -> Option<String> {
    let filters = || ruleset.filters().map(|(chain, _)| Manager::of(ruleset, chain));
    let mut names: Vec<&str> = filters().filter_map(Manager::name).collect();
    let has_bans = ruleset
        .chains
        .iter()
        .any(|chain| chain.name.table == "f2b-table" || (chain.is_of_iptables && chain.name.chain.starts_with("f2b-")));
    names.extend(has_bans.then_some("fail2ban"));
    names.sort_unstable();
    names.dedup();
    (!names.is_empty()).then(|| names.join(", "))
}

const fn iptables_program(family: NfFamily) -> &'static str {
    if matches!(family, NfFamily::IP6) { "ip6tables" } else { "iptables" }
}

/// The beginning of the command that inserts a rule at the top of a chain of iptables.
fn iptables_insert(ChainName { family, table, chain }: &ChainName) -> String {
    let table = if table == "filter" { String::new() } else { format!(" -t {table}") };
    format!("{}{table} -I {chain} 1", iptables_program(*family))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::netlink::{Family, Rule, XtParts};
    use crate::netfilter::table::IptablesTable;

    /// A ruleset with a base chain and others of the same table.
    fn ruleset(family: &str, table: &str, base: (&str, &str), others: &[&str]) -> Ruleset {
        let (name, hook) = base;
        let mut items = vec![format!(
            r#"{{"chain": {{"family": "{family}", "table": "{table}", "name": "{name}", "handle": 1, "type": "filter",
            "hook": "{hook}", "prio": 0, "policy": "drop"}}}}"#
        )];
        items.extend(others.iter().map(|name| {
            format!(r#"{{"chain": {{"family": "{family}", "table": "{table}", "name": "{name}", "handle": 2}}}}"#)
        }));
        Ruleset::parse(&format!(r#"{{"nftables": [{}]}}"#, items.join(", "))).expect("a ruleset")
    }

    fn of_iptables(base: (&str, &str), others: &[&str]) -> Ruleset {
        let rule = Rule {
            chain: "INPUT".into(),
            handle: 9,
            comment: None,
            is_readable_by_iptables: true,
            has_counter: true,
            xt: XtParts::default(),
        };
        let table = IptablesTable { family: Family::Ip, name: "filter", rules: vec![rule] };
        ruleset("ip", "filter", base, others).with_iptables(&[table])
    }

    fn advice(ruleset: &Ruleset) -> (Manager, String) {
        let (chain, _) = ruleset.filters().next().expect("a base chain");
        let manager = Manager::of(ruleset, chain);
        (manager, manager.advice(ruleset, chain, Mark::default(), Dropped::ByPolicy))
    }

    const RULE: &str = "-m conntrack --ctstate NEW,RELATED -m connmark --mark 0x10000000/0x10000000 -j ACCEPT";

    #[test]
    fn ufw_gets_a_line_for_its_own_file() {
        let input = of_iptables(("INPUT", "input"), &["ufw-before-input"]);
        let (manager, advice) = advice(&input);
        assert_eq!(manager, Manager::Ufw);
        assert!(advice.contains(&format!("`-A ufw-before-input {RULE}` to /etc/ufw/before.rules")), "{advice}");
        assert!(advice.contains("`ufw reload`") && advice.contains("`admit: [ip filter INPUT]`"), "{advice}");
        assert_eq!(managers(&input).as_deref(), Some("ufw"));
    }

    #[test]
    fn closed_control_port_is_opened_with_the_manager() {
        let advice = |ruleset: &Ruleset| {
            let (chain, _) = ruleset.filters().next().expect("a base chain");
            Manager::of(ruleset, chain).port_advice(chain, 21)
        };
        assert_eq!(advice(&of_iptables(("INPUT", "input"), &["ufw-before-input"])), "run `ufw allow 21/tcp`");
        let plain = advice(&of_iptables(("INPUT", "input"), &[]));
        assert_eq!(plain, "run `iptables -I INPUT 1 -p tcp --dport 21 -j ACCEPT`");
        let docker = advice(&of_iptables(("FORWARD", "forward"), &["DOCKER-USER"]));
        assert!(docker.contains("`iptables -I DOCKER-USER 1 -p tcp --dport 21 -j ACCEPT`"), "{docker}");
        let nft = advice(&ruleset("inet", "filter", ("input", "input"), &[]));
        assert!(nft.contains("`tcp dport 21 accept`"), "{nft}");
    }

    #[test]
    fn firewalld_that_owns_its_table_has_to_give_it_up() {
        let mut firewalld = ruleset("inet", "firewalld", ("filter_INPUT", "input"), &[]);
        let (manager, free) = advice(&firewalld);
        assert_eq!(manager, Manager::Firewalld);
        assert!(!free.contains("NftablesTableOwner") && free.contains("`admit: [inet firewalld filter_INPUT]`"));
        firewalld.signs.owners = vec![TableOwner { table: "inet firewalld".into(), process: None }];
        let (_, owned) = advice(&firewalld);
        for part in ["`NftablesTableOwner=no`", "`admit: [inet firewalld filter_INPUT]`", "firewalld.md"] {
            assert!(owned.contains(part), "{part} is not in {owned}");
        }
    }

    #[test]
    fn docker_gets_the_rule_in_its_chain_for_others() {
        let docker = of_iptables(("FORWARD", "forward"), &["DOCKER-USER"]);
        let (manager, advice) = advice(&docker);
        assert_eq!(manager, Manager::Docker);
        assert!(advice.contains("`admit: [ip filter DOCKER-USER]`"), "{advice}");
        assert!(advice.contains(&format!("`iptables -I DOCKER-USER 1 {RULE}`")), "{advice}");
        // For the host itself Docker does nothing.
        let host = of_iptables(("INPUT", "input"), &["DOCKER-USER"]);
        assert_eq!(self::advice(&host).0, Manager::Iptables);
    }

    #[test]
    fn saved_rules_have_to_be_saved_again() {
        let mut saved = of_iptables(("INPUT", "input"), &["f2b-vsftpd"]);
        assert_eq!(
            advice(&saved),
            (
                Manager::Iptables,
                format!("run `iptables -I INPUT 1 {RULE}`, or let Pinhole add it: `admit: [ip filter INPUT]`")
            )
        );
        assert_eq!(managers(&saved).as_deref(), Some("fail2ban"));
        saved.signs.is_iptables_persistent = true;
        let (manager, advice) = advice(&saved);
        assert_eq!(manager, Manager::IptablesPersistent);
        assert!(
            advice.contains(&format!("run `iptables -I INPUT 1 {RULE}` and `netfilter-persistent save`")),
            "{advice}"
        );
        assert_eq!(managers(&saved).as_deref(), Some("fail2ban, iptables-persistent"));
    }
}
