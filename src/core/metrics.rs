//! Counters and gauges. Each is one field of a struct that `metrics!` declares; its doc comment is its help text. The
//! names, the values for `pinhole status` and its JSON, the summary of a replay and the tables of the reference all come
//! from that field.

use std::collections::BTreeMap;
use std::fmt;

use crate::core::tracker::SessionEvent;

/// A value that only grows, or one that may fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

/// The definition of a counter or gauge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    /// By what it is divided.
    pub label: Option<&'static str>,
}

/// One count for each reason that has occurred.
pub type ByReason = BTreeMap<&'static str, u64>;

/// The current value of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Number(u64),
    ByReason(&'a ByReason),
    /// It could not be determined.
    Unknown,
}

/// `5`, or `5 (low-port 2, third-party 3)`.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Unknown => f.write_str("unknown"),
            Self::ByReason(counts) => {
                write!(f, "{}", counts.values().sum::<u64>())?;
                for (index, (reason, count)) in counts.iter().enumerate() {
                    write!(f, "{}{reason} {count}", if index == 0 { " (" } else { ", " })?;
                }
                f.write_str(if counts.is_empty() { "" } else { ")" })
            }
        }
    }
}

/// The type of a metric's field.
pub trait Measured {
    const LABEL: Option<&'static str> = None;

    fn value(&self) -> Value<'_>;
}

impl Measured for u64 {
    fn value(&self) -> Value<'_> {
        Value::Number(*self)
    }
}

impl Measured for Option<u64> {
    fn value(&self) -> Value<'_> {
        self.map_or(Value::Unknown, Value::Number)
    }
}

impl Measured for ByReason {
    const LABEL: Option<&'static str> = Some("reason");

    fn value(&self) -> Value<'_> {
        Value::ByReason(self)
    }
}

/// Declares a struct of metrics, all of one [`Kind`]. Each field needs a doc comment of one line.
macro_rules! metrics {
    (
        $kind:ident
        $(#[$about:meta])*
        pub struct $Struct:ident { $(#[doc = $help:literal] pub $name:ident: $type:ty,)* }
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
        pub struct $Struct { $(#[doc = $help] pub $name: $type,)* }

        impl $Struct {
            pub const METRICS: &[$crate::core::metrics::Metric] = &[$($crate::core::metrics::Metric {
                name: stringify!($name),
                kind: $crate::core::metrics::Kind::$kind,
                help: $help.trim_ascii(),
                label: <$type as $crate::core::metrics::Measured>::LABEL,
            },)*];

            /// Each metric with its value, in the order of the fields.
            pub fn values(
                &self,
            ) -> impl Iterator<Item = (&'static $crate::core::metrics::Metric, $crate::core::metrics::Value<'_>)> {
                Self::METRICS.iter().zip([$($crate::core::metrics::Measured::value(&self.$name),)*])
            }
        }
    };
}
pub(crate) use metrics;

metrics! {
    Counter
    /// What the daemon and a replay both count.
    pub struct EventCounters {
        /// packets read from the queues, or from the captures of a replay
        pub packets: u64,
        /// control connections, read from their start or picked up
        pub sessions: u64,
        /// sessions forgotten to make room, although their connection continues
        pub evicted: ByReason,
        /// sessions in which the server accepted AUTH, or answered implicit TLS
        pub encrypted: u64,
        /// connections to a control port that do not speak FTP
        pub not_ftp: u64,
        /// commands that the policy denied
        pub denied: u64,
        /// pinholes opened for announced data connections
        pub opened: u64,
        /// data connections that used a pinhole or an open port range
        pub used: u64,
        /// pinholes whose data connection did not come in time
        pub expired: u64,
        /// pinholes whose SYN came and was admitted, and was dropped by a later chain or by routing
        pub dropped: u64,
        /// pinholes closed unused, because the session ended or the server refused the command
        pub closed: u64,
        /// announcements that opened nothing, and port ranges that were not opened
        pub refused: ByReason,
        /// encrypted sessions for which a port range was opened, or new connections are asked about
        pub ranges_opened: u64,
        /// IP fragments; they pass unread
        pub fragments: u64,
        /// packets with malformed headers, which pass unread, or with a wrong checksum, which the daemon drops
        pub damaged: u64,
        /// segments that differ from an earlier copy, are out of place or that the receiver would ignore; losses
        pub anomalies: u64,
    }
}

impl EventCounters {
    /// Counts an event of a session.
    pub fn count(&mut self, event: &SessionEvent<'_>) {
        let counter = match event {
            SessionEvent::Began { .. } => &mut self.sessions,
            SessionEvent::Denied { .. } => &mut self.denied,
            SessionEvent::Opened { .. } | SessionEvent::OpenedForSyn(_) => &mut self.opened,
            SessionEvent::Refused { why, .. }
            | SessionEvent::RangeRefused { why, .. }
            | SessionEvent::SynRefused { why, .. } => self.refused.entry(why.name()).or_default(),
            SessionEvent::Used { .. } => &mut self.used,
            SessionEvent::Expired(_) => &mut self.expired,
            SessionEvent::Dropped(_) => &mut self.dropped,
            SessionEvent::Closed { .. } => &mut self.closed,
            SessionEvent::Encrypted { .. } => &mut self.encrypted,
            SessionEvent::RangeOpened(_) => &mut self.ranges_opened,
            SessionEvent::NotFtp => &mut self.not_ftp,
            SessionEvent::Ended(how) if how.is_eviction() => self.evicted.entry(how.name()).or_default(),
            SessionEvent::Anomaly(_) => &mut self.anomalies,
            SessionEvent::Command { .. }
            | SessionEvent::LoggedIn { .. }
            | SessionEvent::RuleFound { .. }
            | SessionEvent::Ended(_) => return,
        };
        *counter += 1;
    }

    pub fn refused_in_all(&self) -> u64 {
        self.refused.values().sum()
    }

    pub fn evicted_in_all(&self) -> u64 {
        self.evicted.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::expectation::Refusal;
    use crate::core::policy::Policy;
    use crate::core::script::endpoint;

    #[test]
    fn help_text_is_the_doc_comment_of_the_field() {
        let find = |name| EventCounters::METRICS.iter().find(|metric| metric.name == name).copied();
        let help = "pinholes opened for announced data connections";
        assert_eq!(find("opened"), Some(Metric { name: "opened", kind: Kind::Counter, help, label: None }));
        assert_eq!(find("refused").and_then(|metric| metric.label), Some("reason"));
    }

    #[test]
    fn values_are_in_the_order_of_their_definitions() {
        let flow = crate::core::net::Flow { source: endpoint("10.0.0.1:4000"), destination: endpoint("10.0.0.2:21") };
        let (connection, terms) = (crate::core::net::Connection::direct(flow), Policy::embedded().defaults);
        let mut counters = EventCounters { sessions: 2, ..EventCounters::default() };
        for why in [Refusal::ThirdParty, Refusal::LowPort, Refusal::ThirdParty] {
            let mode = crate::core::ftp::Mode::Port;
            counters.count(&SessionEvent::Refused { mode, to: None, why, connection: &connection, terms: &terms });
        }
        let shown: Vec<String> = counters.values().map(|(metric, value)| format!("{} {value}", metric.name)).collect();
        assert_eq!(shown[..3], ["packets 0", "sessions 2", "evicted 0"]);
        assert_eq!(shown[11], "refused 3 (low-port 1, third-party 2)");
    }
}
