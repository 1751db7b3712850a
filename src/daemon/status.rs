//! The status that `pinhole status` shows.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

pub use super::history::{EventReport, SessionReport};
pub use super::open_metrics::Format;
use serde::{Deserialize, Serialize};

use crate::core::count::Count;
use crate::core::metrics::{EventCounters, Metric, Value, metrics};

metrics! {
    Counter
    /// What only the daemon counts.
    pub struct DaemonCounters {
        /// pinholes of an earlier run that this one adopted at its start
        pub adopted: u64,
        /// times the table or an accept rule was restored after another program changed the ruleset
        pub restored: u64,
        /// times a session gave up bytes, because `limits: buffered_bytes` or its client's share was used up
        pub buffer_overflows: u64,
        /// out-of-order packets that could not wait for the missing segment, because too many waited already
        pub not_kept: u64,
        /// errors of the packet queues
        pub queue_errors: u64,
        /// requests that the kernel refused
        pub kernel_errors: u64,
    }
}

metrics! {
    Gauge
    /// The present state, in numbers.
    pub struct Gauges {
        /// control connections that are followed now
        pub sessions: u64,
        /// pinholes that are open now, as far as the daemon knows
        pub open_pinholes: u64,
        /// pinholes in the kernel; a used one counts for a moment longer
        pub kernel_pinholes: Option<u64>,
        /// bytes that are kept now, because they are out of order or their line is not complete
        pub buffered_bytes: u64,
    }
}

/// All counts since the start.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counters {
    #[serde(flatten)]
    pub events: EventCounters,
    #[serde(flatten)]
    pub daemon: DaemonCounters,
}

impl Counters {
    /// Each counter with its value.
    pub fn values(&self) -> impl Iterator<Item = (&'static Metric, Value<'_>)> {
        self.events.values().chain(self.daemon.values())
    }
}

/// Which program runs since when, with which policy. Times are UTC, as RFC 3339 has it.
#[derive(Clone, Debug, Serialize)]
pub struct Service {
    pub version: &'static str,
    pub running_since: String,
    /// None for the embedded policy.
    pub policy_file: Option<String>,
    /// Changes with each reload that succeeds.
    pub policy_loaded: String,
}

impl Service {
    pub(super) fn start(policy_file: Option<&Path>) -> Self {
        let now = super::clock::time_of_day();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            running_since: now.clone(),
            policy_file: policy_file.map(|file| file.display().to_string()),
            policy_loaded: now,
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, running_since, policy_file, policy_loaded } = self;
        writeln!(f, "version {version}, running since {running_since}")?;
        match policy_file {
            Some(file) => writeln!(f, "policy {file}, loaded {policy_loaded}"),
            None => writeln!(f, "the embedded policy, loaded {policy_loaded}"),
        }
    }
}

/// A session that has not ended.
#[derive(Clone, Debug, Serialize)]
pub struct SessionStatus {
    pub session: u64,
    pub client: String,
    pub server: String,
    /// None before a login, or where it could not be read.
    pub user: Option<String>,
    pub rule: Option<String>,
    /// In seconds.
    pub age: f64,
    pub encrypted: bool,
    /// The client's latest command; with its path if it transfers something.
    pub command: Option<String>,
    pub transfer: Option<TransferStatus>,
}

/// A data connection that has not ended.
#[derive(Clone, Debug, Serialize)]
pub struct TransferStatus {
    pub from: String,
    pub to: String,
    /// In both directions, with headers. None unless conntrack counts (`net.netfilter.nf_conntrack_acct`).
    pub bytes: Option<u64>,
    /// Since conntrack reported it.
    pub seconds: f64,
}

/// An open pinhole.
#[derive(Clone, Debug, Serialize)]
pub struct PinholeStatus {
    /// None for an adopted pinhole, as is `announced_by`.
    pub session: Option<u64>,
    pub announced_by: Option<&'static str>,
    /// The name of the policy's rule for its session; none if no rule matches, or for an adopted pinhole.
    pub rule: Option<String>,
    pub from: String,
    pub to: String,
    /// The destination after DNAT.
    pub delivered_to: Option<String>,
    /// The source after SNAT.
    pub leaves_from: Option<String>,
    /// In seconds.
    pub age: f64,
    /// In seconds.
    pub expires_in: f64,
    /// Whether a SYN has come and was admitted. As long as the pinhole is listed, no connection has come of it. None if the
    /// kernel's pinholes could not be listed.
    pub syn_came: Option<bool>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Status {
    #[serde(flatten)]
    pub service: Service,
    pub mechanism: String,
    pub mechanism_reason: String,
    /// `nft_queue` or `nft_compat`.
    pub queued_by: &'static str,
    #[serde(flatten)]
    pub gauges: Gauges,
    /// The oldest ones, if there are very many.
    pub session_list: Vec<SessionStatus>,
    pub pinholes: Vec<PinholeStatus>,
    pub counters: Counters,
}

/// A request to the control socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    Status,
    /// The status as JSON.
    Json,
    Metrics(Format),
    Reload,
    /// The sessions between two hosts, as JSON.
    Explain {
        client: IpAddr,
        server: IpAddr,
    },
}

/// The answer to [`Request::Explain`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// None for the embedded policy.
    pub policy_file: Option<String>,
    /// Data connections are `related`, because conntrack expects them.
    pub is_related: bool,
    /// The latest session is the last one.
    pub sessions: Vec<SessionReport>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, mechanism, mechanism_reason, queued_by, gauges, session_list, pinholes, counters } = self;
        let Gauges { sessions, open_pinholes, kernel_pinholes, buffered_bytes } = *gauges;
        let unlisted = sessions.saturating_sub(session_list.len() as u64);
        let (sessions, open) = (Count(sessions, "session"), Count(open_pinholes, "pinhole"));
        writeln!(f, "{sessions}, {open}, {}", Count(buffered_bytes, "buffered byte"))?;
        write!(f, "{service}")?;
        writeln!(f, "mechanism {mechanism}, {mechanism_reason}")?;
        writeln!(f, "packets queued by {queued_by}")?;
        for session in session_list {
            writeln!(f, "  {session}")?;
        }
        if unlisted > 0 {
            writeln!(f, "  and {}", Count(unlisted, "younger session"))?;
        }
        for pinhole in pinholes {
            writeln!(f, "  {pinhole}")?;
        }
        match kernel_pinholes {
            None => writeln!(f, "the kernel's pinholes could not be listed; the log says why")?,
            Some(listed) if listed != open_pinholes => {
                writeln!(f, "the kernel lists {}; a used one is removed a moment later", Count(listed, "pinhole"))?;
            }
            Some(_) => {}
        }
        writeln!(f, "since the start:")?;
        let width = counters.values().map(|(metric, _)| metric.name.len()).max().unwrap_or(0);
        counters.values().try_for_each(|(metric, value)| writeln!(f, "  {:width$}  {value}", metric.name))
    }
}

impl fmt::Display for SessionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { session, client, server, user, rule, age, encrypted, command, transfer } = self;
        write!(f, "session {session}: {client} -> {server}")?;
        // Quoted: the client chose the name.
        user.as_ref().map_or(Ok(()), |user| write!(f, ", user {user:?}"))?;
        rule.as_ref().map_or(Ok(()), |rule| write!(f, ", rule {rule:?}"))?;
        write!(f, ", {age:.1} s old")?;
        match command {
            _ if *encrypted => f.write_str(", encrypted")?,
            Some(command) => write!(f, ", {command}")?,
            None => {}
        }
        transfer.as_ref().map_or(Ok(()), |transfer| write!(f, "; {transfer}"))
    }
}

impl fmt::Display for TransferStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, bytes, seconds } = self;
        write!(f, "data connection {from} -> {to}, {seconds:.1} s old")?;
        match bytes {
            #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
            Some(bytes) => write!(f, ", {}, {}/s", Bytes(*bytes as f64), Bytes(*bytes as f64 / seconds.max(0.001))),
            None => f.write_str(", bytes not counted (net.netfilter.nf_conntrack_acct is 0)"),
        }
    }
}

/// A number of bytes with a unit: `12 B`, `1.5 kB`, `12.3 MB`.
struct Bytes(f64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut units = ["B", "kB", "MB", "GB", "TB"].into_iter();
        let (mut number, mut unit) = (self.0, "B");
        for next in units.by_ref() {
            unit = next;
            if number < 1000.0 {
                break;
            }
            if next != "TB" {
                number /= 1000.0;
            }
        }
        let digits = usize::from(unit != "B");
        write!(f, "{number:.digits$} {unit}")
    }
}

impl fmt::Display for PinholeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { session, announced_by, rule, from, to, delivered_to, leaves_from, age, expires_in, syn_came } = self;
        write!(f, "{from} -> {to}")?;
        if let Some(to) = delivered_to {
            write!(f, ", delivered to {to}")?;
        }
        if let Some(from) = leaves_from {
            write!(f, ", leaves from {from}")?;
        }
        match (announced_by, session) {
            (Some(by), Some(session)) => write!(f, ", announced by {by} in session {session}")?,
            (None, Some(session)) => write!(f, ", for a SYN of session {session}")?,
            (_, None) => f.write_str(", adopted")?,
        }
        if let Some(rule) = rule {
            write!(f, ", rule {rule:?}")?;
        }
        write!(f, ", {age:.1} s old, expires in {expires_in:.1} s")?;
        match syn_came {
            Some(true) => f.write_str("; its SYN came and was admitted, but no connection came of it"),
            Some(false) | None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::daemon) fn status(open_pinholes: u64) -> Status {
        let pinhole = PinholeStatus {
            session: Some(1),
            announced_by: Some("227"),
            rule: Some("partners".to_owned()),
            from: "10.0.0.1".to_owned(),
            to: "10.0.0.2:50000".to_owned(),
            delivered_to: None,
            leaves_from: None,
            age: 0.7,
            expires_in: 4.3,
            syn_came: Some(false),
        };
        let transfer = TransferStatus {
            from: "10.0.0.1:5000".to_owned(),
            to: "10.0.0.2:50001".to_owned(),
            bytes: Some(21_616_252),
            seconds: 4.0,
        };
        let session = SessionStatus {
            session: 1,
            client: "10.0.0.1:4000".to_owned(),
            server: "10.0.0.2:21".to_owned(),
            user: Some("an\"na".to_owned()),
            rule: Some("partners".to_owned()),
            age: 12.34,
            encrypted: false,
            command: Some("RETR big.iso".to_owned()),
            transfer: Some(transfer),
        };
        Status {
            service: Service {
                version: "1.2.3",
                running_since: "2026-01-02T03:04:05Z".to_owned(),
                policy_file: Some("/etc/pinhole/policy.yaml".to_owned()),
                policy_loaded: "2026-01-03T03:04:05Z".to_owned(),
            },
            mechanism: "sets".to_owned(),
            mechanism_reason: "as the policy says".to_owned(),
            queued_by: "nft_queue",
            gauges: Gauges { sessions: 1, open_pinholes, kernel_pinholes: Some(1), buffered_bytes: 0 },
            session_list: vec![session],
            pinholes: vec![pinhole],
            counters: Counters::default(),
        }
    }

    #[test]
    fn status_text_shows_pinholes_and_every_counter() {
        let shown = status(1).to_string();
        let begin = "1 session, 1 pinhole, 0 buffered bytes\nversion 1.2.3, running since 2026-01-02T03:04:05Z\n\
                     policy /etc/pinhole/policy.yaml, loaded 2026-01-03T03:04:05Z\nmechanism sets, as the policy says\n\
                     packets queued by nft_queue\n  session 1: 10.0.0.1:4000 -> 10.0.0.2:21, user \"an\\\"na\", rule \
                     \"partners\", 12.3 s old, RETR big.iso; data connection 10.0.0.1:5000 -> 10.0.0.2:50001, 4.0 s old, \
                     21.6 MB, 5.4 MB/s\n  10.0.0.1 -> 10.0.0.2:50000, announced by 227 in session 1, \
                     rule \"partners\", 0.7 s old, expires in 4.3 s\nsince the start:\n  packets           0\n";
        assert!(shown.starts_with(begin), "{shown}");
        for metric in EventCounters::METRICS.iter().chain(DaemonCounters::METRICS) {
            assert!(shown.contains(&format!("\n  {:16}  0\n", metric.name)), "{} is not in {shown}", metric.name);
        }
    }

    #[test]
    fn bytes_have_a_unit() {
        let shown = |number| Bytes(number).to_string();
        assert_eq!([0.0, 999.0, 1000.0, 1.5e6].map(shown), ["0 B", "999 B", "1.0 kB", "1.5 MB"]);
        assert_eq!([12.34e9, 5e12, 5e15].map(shown), ["12.3 GB", "5.0 TB", "5000.0 TB"]);
    }

    #[test]
    fn status_text_says_how_many_sessions_it_leaves_out() {
        let mut status = status(1);
        status.gauges.sessions = 3;
        assert!(status.to_string().contains("\n  and 2 younger sessions\n"), "{status}");
    }

    #[test]
    fn encrypted_session_shows_no_command() {
        let mut status = status(1);
        status.session_list[0].encrypted = true;
        let shown = status.to_string();
        assert!(shown.contains("12.3 s old, encrypted; data") && !shown.contains("RETR"), "{shown}");
    }

    #[test]
    fn status_text_says_when_the_kernel_lists_more_pinholes() {
        assert!(status(0).to_string().contains("\nthe kernel lists 1 pinhole; "));
    }

    #[test]
    fn status_json_has_gauges_and_counters_by_their_names() {
        let json = serde_json::to_value(status(1)).expect("JSON");
        for metric in Gauges::METRICS {
            assert!(json[metric.name].is_u64(), "{} of {json}", metric.name);
        }
        let counters = json["counters"].as_object().expect("an object");
        assert_eq!(counters.len(), EventCounters::METRICS.len() + DaemonCounters::METRICS.len());
    }
}
