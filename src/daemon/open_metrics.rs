//! The status as text for Prometheus.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

use super::status::Status;
use crate::core::metrics::{Kind, Metric, Value};

/// The format of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    OpenMetrics,
    /// The older format, which is all that node_exporter reads from a file.
    Prometheus,
}

const NO_EXEMPLAR: Option<&Exemplar<[(&str, &str); 0], u64>> = None;

#[derive(Debug)]
struct StatusCollector(Status);

pub(super) fn encode(status: Status, format: Format) -> String {
    let mut registry = Registry::with_prefix("pinhole");
    registry.register_collector(Box::new(StatusCollector(status)));
    let mut encoded = String::new();
    match format {
        Format::OpenMetrics => text::encode(&mut encoded, &registry),
        Format::Prometheus => prometheus_text::encode(&mut encoded, &registry),
    }
    .expect("a string takes whatever is written");
    encoded
}

impl Collector for StatusCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(status) = self;
        // Gauges and no info metrics: node_exporter's collector of text files does not know these.
        let mut info = |name, help, label: &[(&str, &str)]| {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            metric.encode_family(&label)?.encode_gauge(&1_i64)
        };
        info("build_info", "the version", &[("version", status.service.version)])?;
        let mechanism = [("mechanism", &*status.mechanism), ("queued_by", status.queued_by)];
        info("mechanism_info", "how pinholes are kept in the kernel, and packets queued", &mechanism)?;
        for (metric, value) in status.gauges.values().chain(status.counters.values()) {
            encode_metric(&mut encoder, metric, value)?;
        }
        Ok(())
    }
}

fn encode_metric(encoder: &mut DescriptorEncoder<'_>, metric: &Metric, value: Value<'_>) -> fmt::Result {
    let kind = match metric.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
    };
    let mut family = encoder.encode_descriptor(name(metric), metric.help, None, kind)?;
    match (value, metric.kind) {
        (Value::Unknown, _) => Ok(()),
        (Value::Number(number), Kind::Counter) => family.encode_counter(&number, NO_EXEMPLAR),
        (Value::Number(number), Kind::Gauge) => family.encode_gauge(&number),
        (Value::ByReason(counts), _) => counts.iter().try_for_each(|(reason, count)| {
            family.encode_family(&[("reason", *reason)])?.encode_counter(count, NO_EXEMPLAR)
        }),
    }
}

/// The name behind the prefix, without the suffix `_total` of a counter. A gauge and a counter must not have the same.
const fn name(metric: &Metric) -> &'static str {
    match (metric.kind, metric.name.as_bytes()) {
        (Kind::Counter, b"sessions") => "sessions_begun",
        _ => metric.name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::metrics::EventCounters;
    use crate::daemon::status::{DaemonCounters, Gauges, tests::status};

    fn encoded(format: Format) -> String {
        let mut status = status(1);
        status.counters.events.refused.insert("low-port", 2);
        encode(status, format)
    }

    #[test]
    fn every_counter_and_gauge_is_a_metric_with_its_help() {
        for format in [Format::OpenMetrics, Format::Prometheus] {
            let text = encoded(format);
            for metric in EventCounters::METRICS.iter().chain(DaemonCounters::METRICS).chain(Gauges::METRICS) {
                let help = format!(" pinhole_{}", name(metric));
                let line = text.lines().find(|line| line.starts_with("# HELP") && line.contains(&help));
                assert!(line.is_some_and(|line| line.contains(metric.help)), "{}: {text}", metric.name);
            }
        }
    }

    #[test]
    fn values_are_encoded_with_their_labels() {
        let text = encoded(Format::OpenMetrics);
        for line in [
            "pinhole_build_info{version=\"1.2.3\"} 1",
            "pinhole_mechanism_info{mechanism=\"sets\",queued_by=\"nft_queue\"} 1",
            "pinhole_sessions 1",
            "pinhole_sessions_begun_total 0",
            "pinhole_refused_total{reason=\"low-port\"} 2",
        ] {
            for text in [&text, &encoded(Format::Prometheus)] {
                assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
            }
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn no_two_metrics_have_one_name() {
        let text = encoded(Format::OpenMetrics);
        let mut names: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let all = names.len();
        names.sort_unstable_by_key(|line| line.split(' ').nth(2));
        names.dedup_by_key(|line| line.split(' ').nth(2));
        assert_eq!(names.len(), all, "{text}");
    }

    #[test]
    fn unknown_value_is_left_out() {
        let mut status = status(1);
        status.gauges.kernel_pinholes = None;
        let text = encode(status, Format::OpenMetrics);
        assert!(!text.lines().any(|line| line.starts_with("pinhole_kernel_pinholes")), "{text}");
    }
}
