//! Warns of settings of a policy that are seldom intended, and of policy files that other users can change.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Finding, Rating};
use crate::core::policy::{Pickup, Policy, Terms, ThirdParty, Tls, WhenDown};

/// A larger port range is probably not the passive range of a server.
const MAX_RANGE: u32 = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFile {
    pub path: PathBuf,
    pub owner: u32,
    /// `st_mode`: permissions and file type.
    pub mode: u32,
}

impl PolicyFile {
    /// Reads owner and mode of the file and of its directory. Omits what does not exist, and special files.
    pub fn probe(path: &Path) -> Vec<Self> {
        let Ok(path) = fs::canonicalize(path) else { return Vec::new() };
        let directory = path.parent().map(Path::to_path_buf);
        let probe = |path: PathBuf| {
            let metadata = fs::metadata(&path).ok()?;
            let is_relevant = metadata.is_file() || metadata.is_dir();
            is_relevant.then(|| Self { path, owner: metadata.uid(), mode: metadata.mode() })
        };
        [Some(path), directory].into_iter().flatten().filter_map(probe).collect()
    }

    fn judge(&self) -> Option<Finding> {
        const WRITABLE_BY_OTHERS: u32 = 0o022;
        const STICKY: u32 = 0o1000;
        let Self { path, owner, mode } = self;
        let path = path.display();
        let is_writable = mode & WRITABLE_BY_OTHERS != 0;
        // In a sticky directory such as /tmp, users cannot replace files of other users.
        let is_sticky_directory = mode & 0o170_000 == 0o040_000 && mode & STICKY != 0;
        let (found, advice) = if is_writable && !is_sticky_directory {
            let found = format!("{path} is writable for others than its owner (mode {:04o})", mode & 0o7777);
            (found, format!("`chmod go-w {path}`"))
        } else if *owner != 0 {
            (format!("{path} belongs to user {owner}, not to root"), format!("`chown root {path}`"))
        } else {
            return None;
        };
        let found = format!("{found}; a user who can change the policy can open the firewall");
        Some(Finding::new(Rating::Warning, "policy file", found).advising(advice))
    }
}

/// Warns of what a policy allows, and of users who can change its files.
pub fn risks(policy: &Policy, files: &[PolicyFile]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = files.iter().filter_map(PolicyFile::judge).collect();
    let rules = policy.rules.iter().map(|rule| {
        let is_for_everyone = rule.clients.networks().is_empty();
        (format!("rule \"{}\"", rule.name), &rule.terms, is_for_everyone)
    });
    let mut like_defaults = None;
    for (place, terms, is_for_everyone) in [("defaults".to_owned(), &policy.defaults, true)].into_iter().chain(rules) {
        if terms.denies_all() {
            continue;
        }
        // Settings that a rule inherits are reported for the defaults only.
        let unlike = |same: fn(&Terms, &Terms) -> bool| like_defaults.is_none_or(|defaults| !same(terms, defaults));
        if unlike(|a, b| a.tls == b.tls && a.known_services == b.known_services) {
            findings.extend(tls_range(&place, terms));
        }
        if unlike(|a, b| a.tls == b.tls) {
            findings.extend(tls_deny(&place, terms));
        }
        if policy.capture.when_down == WhenDown::Open && unlike(|a, b| a.tls == b.tls && a.commands == b.commands) {
            findings.extend(denied_while_down(&place, terms));
        }
        if is_for_everyone && terms.third_party == ThirdParty::Allow && unlike(|a, b| a.third_party == b.third_party) {
            let found = format!("{place}: any client can have connections opened to any host (FTP bounce attack)");
            let advice = "allow it in a rule that names the `clients` and `servers` that need FXP";
            findings.push(Finding::new(Rating::Warning, "third_party: allow", found).advising(advice));
        }
        if like_defaults.is_none() {
            like_defaults = Some(terms);
        }
    }
    if policy.pickup == Pickup::Trust {
        let found = "a connection whose start was not read counts as logged in, and an attacker can make Pinhole miss \
                     the start of one";
        findings.push(
            Finding::new(Rating::Warning, "pickup: trust", found)
                .advising("`pickup: marked` continues the sessions that an earlier run has read"),
        );
    }
    findings.extend(shares(policy));
    findings
}

fn tls_range(place: &str, terms: &Terms) -> Option<Finding> {
    let Tls::Range(range) = terms.tls else { return None };
    let ports = u32::from(range.last().number() - range.first().number()) + 1;
    let why = if range.first().number() <= 1024 {
        format!("it begins at {} and includes all unprivileged ports up to {}", range.first(), range.last())
    } else if ports > MAX_RANGE {
        format!("it includes {ports} ports")
    } else if terms.known_services.overlaps(range) {
        "it includes ports of `known_services`".to_owned()
    } else {
        return None;
    };
    let found =
        format!("{place}: {range}: {why}, and a client reaches all of them without a login that Pinhole can verify");
    Some(
        Finding::new(Rating::Warning, "tls: range", found)
            .advising("give the server a passive range of a few hundred ports, and name only that"),
    )
}

/// Clients that try TLS and do not insist on it go on in clear.
fn tls_deny(place: &str, terms: &Terms) -> Option<Finding> {
    if terms.tls != Tls::Deny {
        return None;
    }
    let found = format!(
        "{place}: lftp, `curl --ssl` and other clients that use TLS where they can send the password in clear when AUTH is \
         refused"
    );
    let advice = "if the server offers TLS, `tls: range` with its passive range keeps passwords encrypted; or have clients \
                  insist on TLS (lftp: `set ftp:ssl-force yes`; curl: `--ssl-reqd`), which then fail";
    Some(Finding::new(Rating::Warning, "tls: deny", found).advising(advice))
}

fn denied_while_down(place: &str, terms: &Terms) -> Option<Finding> {
    let about = match (terms.tls == Tls::Deny, terms.commands.deny.is_empty()) {
        (true, _) => "tls: deny",
        (false, false) => "commands: deny",
        (false, true) => return None,
    };
    let found = format!("{place}: while the daemon is down, `when_down: open` lets denied commands pass (fail-open)");
    Some(
        Finding::new(Rating::Warning, about, found)
            .advising("deny them at the server as well, or fail closed: `capture: { when_down: closed }`"),
    )
}

fn shares(policy: &Policy) -> impl Iterator<Item = Finding> {
    let limits = policy.limits;
    let all = [
        ("sessions_per_client", limits.sessions_per_client, "sessions", limits.sessions),
        ("pinholes_per_client", limits.pinholes_per_client, "pinholes", limits.pinholes),
    ];
    all.into_iter().filter(|(_, share, _, whole)| share >= whole).map(|(key, share, of, whole)| {
        let found = format!("{share} is as much as `{of}` ({whole}): one client can use up the share of all others");
        Finding::new(Rating::Warning, format_args!("limits: {key}"), found)
            .advising(format_args!("lower it, for example to {}", (whole.get() / 16).max(1)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::policy;

    fn found(text: &str) -> Vec<String> {
        let policy = policy::parse("policy.yaml", text).expect("a good policy").policy;
        risks(&policy, &[]).iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn one(text: &str, parts: &[&str]) {
        let found = found(text);
        assert!(found.len() == 1 && parts.iter().all(|part| found[0].contains(part)), "{found:#?}");
    }

    #[test]
    fn policies_as_they_are_delivered_have_no_risks() {
        assert_eq!(found("{}"), [""; 0]);
        for text in [
            include_str!("../../deploy/policies/host.yaml"),
            include_str!("../../deploy/policies/gateway.yaml"),
            include_str!("../../deploy/policies/distribution.yaml"),
        ] {
            assert_eq!(found(text), [""; 0]);
        }
    }

    #[test]
    fn wide_tls_range_is_a_warning() {
        one("defaults: { tls: range 1024-65535 }", &["tls: range", "defaults", "begins at 1024", "passive range"]);
        one("defaults: { tls: range 40000-60000 }", &["it includes 20001 ports"]);
        one("rules: [{ name: x, tls: range 3300-3310 }]", &["rule \"x\"", "`known_services`"]);
        assert_eq!(found("defaults: { tls: range 50000-50100 }"), [""; 0]);
        // A rule that inherits the setting is not reported again.
        one(
            "defaults: { tls: range 1024-65535 }\nrules: [{ name: x, clients: [10.0.0.1], timeout: 5s }]",
            &["defaults"],
        );
    }

    #[test]
    fn denial_that_fails_open_is_a_warning() {
        let open = found("defaults: { tls: deny }");
        assert!(open.len() == 2 && open.iter().all(|one| one.contains("tls: deny")), "{open:#?}");
        assert!(open.iter().any(|one| one.contains("fail-open") && one.contains("when_down: closed")), "{open:#?}");
        one("rules: [{ name: x, commands: { deny: [SITE] } }]", &["commands: deny", "rule \"x\"", "fail-open"]);
        assert_eq!(found("capture: { when_down: closed }\ndefaults: { commands: { deny: [SITE] } }"), [""; 0]);
    }

    #[test]
    fn denied_tls_is_a_warning_because_clients_go_on_in_clear() {
        one(
            "capture: { when_down: closed }\ndefaults: { tls: deny }",
            &["tls: deny", "lftp", "password in clear", "`tls: range`", "ftp:ssl-force"],
        );
        // A rule that inherits the setting is not reported again.
        one(
            "capture: { when_down: closed }\ndefaults: { tls: deny }\nrules: [{ name: x, clients: [10.0.0.1], timeout: 5s }]",
            &["defaults"],
        );
    }

    #[test]
    fn third_parties_for_everyone_are_a_warning() {
        one("defaults: { third_party: allow }", &["third_party: allow", "FTP bounce", "`clients`"]);
        one("rules: [{ name: x, servers: [10.0.0.1], third_party: allow }]", &["rule \"x\""]);
        assert_eq!(found("rules: [{ name: x, clients: [10.0.0.1], third_party: allow }]"), [""; 0]);
    }

    #[test]
    fn trusted_pick_up_is_a_warning() {
        one("pickup: trust", &["pickup: trust", "counts as logged in", "`pickup: marked`"]);
        assert_eq!(found("pickup: never"), [""; 0]);
    }

    #[test]
    fn share_as_large_as_the_whole_is_a_warning() {
        one("limits: { sessions: 4000 }", &["limits: sessions_per_client", "4096", "250"]);
        one("limits: { pinholes_per_client: 16384 }", &["limits: pinholes_per_client", "1024"]);
    }

    #[test]
    fn policy_that_others_may_write_is_a_warning() {
        let judged = |owner, mode| {
            let file = PolicyFile { path: PathBuf::from("/etc/pinhole/policy.yaml"), owner, mode };
            file.judge().map(|finding| finding.to_string()).unwrap_or_default()
        };
        assert_eq!((judged(0, 0o100_644), judged(0, 0o040_755), judged(0, 0o041_777)), Default::default());
        assert!(judged(0, 0o100_666).contains("(mode 0666)") && judged(0, 0o100_666).contains("chmod go-w /etc"));
        assert!(judged(0, 0o100_664).contains("others than its owner") && judged(0, 0o040_777).contains("mode 0777"));
        assert!(judged(1000, 0o100_644).contains("user 1000, not to root"));
    }
}
