//! What the relay counts, in Prometheus's text format.
//!
//! Counters live here; gauges are set from the one report ([`Status`]) when they are asked for, so that metric
//! and report never disagree. Labels hold reasons and roles, never anything of a row.

mod gauges;

use std::time::Duration;

#[cfg(target_os = "linux")]
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
};

use crate::observe::status::Status;
use crate::publish::Deliveries;
use gauges::{Gauges, gauges};

/// From a millisecond to a minute: PostgreSQL and Kafka on one machine, up to an outage.
const LATENCY_BUCKETS: [f64; 15] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// Every metric of one relay.
pub struct Metrics {
    rows: RowCounters,
    registry: Registry,
    slots_lost: IntCounter,
    blocked_aggregates_total: IntCounterVec,
    sessions: IntCounterVec,
    log_lines_dropped: IntCounter,
    delivery_seconds: Histogram,
    checkpoint_seconds: Histogram,
    gauges: Gauges,
}

/// Counters of rows on their way.
#[derive(Debug)]
struct RowCounters {
    read: IntCounter,
    published: IntCounter,
    published_bytes: IntCounter,
    marked: IntCounter,
    repeated: IntCounter,
    missed: IntCounter,
    removed: IntCounter,
    held: IntCounter,
}

impl RowCounters {
    fn new(registry: &Registry) -> Self {
        let counter = |name, help| counter(registry, name, help);
        Self {
            read: counter(
                "outboxd_read_rows_total",
                "Rows that came from the source, repeated ones included.",
            ),
            published: counter(
                "outboxd_published_rows_total",
                "Rows that a broker acknowledged.",
            ),
            published_bytes: counter(
                "outboxd_published_bytes_total",
                "Bytes of the keys and values that a broker acknowledged.",
            ),
            marked: counter("outboxd_marked_rows_total", "Rows recorded as sent."),
            repeated: counter(
                "outboxd_repeated_rows_total",
                "Rows that the source sent again and that were skipped: in flight or marked already.",
            ),
            missed: counter(
                "outboxd_missed_rows_total",
                "Committed rows that were missing from the replication stream: found in the table and published from there.",
            ),
            removed: counter(
                "outboxd_removed_rows_total",
                "Sent rows that retention removed from the table.",
            ),
            held: counter(
                "outboxd_held_rows_total",
                "Rows that had to wait because their topic is paused or their aggregate is blocked.",
            ),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        #[cfg(target_os = "linux")]
        registry
            .register(Box::new(ProcessCollector::for_self()))
            .expect("each name is registered once");
        let build = gauges(
            &registry,
            "outboxd_build_info",
            "The version that runs.",
            "version",
        );
        build
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1.0);
        Self {
            rows: RowCounters::new(&registry),
            slots_lost: counter(
                &registry,
                "outboxd_slots_lost_total",
                "Times that the slot was gone or invalid and the table was read instead.",
            ),
            blocked_aggregates_total: counters(
                &registry,
                "outboxd_blocked_aggregates_total",
                "Aggregates that were blocked by a rejected row.",
                "reason",
            ),
            sessions: counters(
                &registry,
                "outboxd_sessions_total",
                "Sessions that ended, by the reason.",
                "reason",
            ),
            log_lines_dropped: counter(
                &registry,
                "outboxd_log_lines_dropped_total",
                "Log lines that were dropped because the pipe was full.",
            ),
            delivery_seconds: histogram(
                &registry,
                "outboxd_delivery_duration_seconds",
                "From handing rows to the producer to the acknowledgement of all of them.",
            ),
            checkpoint_seconds: histogram(
                &registry,
                "outboxd_checkpoint_duration_seconds",
                "From the acknowledgement of a checkpoint's first row to its commit.",
            ),
            gauges: Gauges::new(&registry),
            registry,
        }
    }

    pub(crate) fn read(&self, rows: usize) {
        self.rows.read.inc_by(rows as u64);
    }

    pub(crate) fn delivered(&self, delivered: &Deliveries) {
        self.rows.published.inc_by(delivered.tickets.len() as u64);
        self.rows.published_bytes.inc_by(delivered.bytes);
    }

    /// Notes how long what was handed over together took until all of it was acknowledged.
    pub(crate) fn delivery(&self, elapsed: Duration) {
        self.delivery_seconds.observe(elapsed.as_secs_f64());
    }

    /// Notes a checkpoint: its rows, and how long it took.
    pub(crate) fn marked(&self, rows: usize, elapsed: Duration) {
        self.rows.marked.inc_by(rows as u64);
        self.checkpoint_seconds.observe(elapsed.as_secs_f64());
    }

    pub(crate) fn repeated(&self, rows: usize) {
        self.rows.repeated.inc_by(rows as u64);
    }

    pub(crate) fn missed(&self, rows: usize) {
        self.rows.missed.inc_by(rows as u64);
    }

    /// Notes rows that retention removed.
    pub(crate) fn removed(&self, rows: u64) {
        self.rows.removed.inc_by(rows);
    }

    /// Notes a slot that was lost and is made anew.
    pub(crate) fn slot_lost(&self) {
        self.slots_lost.inc();
    }

    pub(crate) fn held(&self) {
        self.rows.held.inc();
    }

    /// Notes a blocked aggregate; `reason` is one of a fixed set.
    pub(crate) fn blocked(&self, reason: &str) {
        self.blocked_aggregates_total
            .with_label_values(&[reason])
            .inc();
    }

    /// Notes the end of a session; `reason` is one of a fixed set.
    pub(crate) fn session_ended(&self, reason: &str) {
        self.sessions.with_label_values(&[reason]).inc();
    }

    /// Every metric as text, the gauges as the report says; what is not known reads `NaN`.
    pub(crate) fn render(&self, status: &Status) -> String {
        self.gauges.set(status);
        let dropped = crate::observe::telemetry::lines_dropped();
        let seen = self.log_lines_dropped.get();
        self.log_lines_dropped.inc_by(dropped.saturating_sub(seen));
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        encoded.expect("every metric has a name and writing to memory succeeds");
        String::from_utf8(text).expect("the text format is UTF-8")
    }
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    let opened = IntCounter::new(name, help);
    add(registry, opened.expect("the name is valid"))
}

fn counters(registry: &Registry, name: &str, help: &str, label: &str) -> IntCounterVec {
    let opened = IntCounterVec::new(Opts::new(name, help), &[label]);
    add(registry, opened.expect("the name is valid"))
}

fn histogram(registry: &Registry, name: &str, help: &str) -> Histogram {
    let options = HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec());
    let opened = Histogram::with_opts(options);
    add(registry, opened.expect("name and buckets are valid"))
}

fn add<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, metric: C) -> C {
    let added = registry.register(Box::new(metric.clone()));
    added.expect("each name is registered once");
    metric
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::Config;

    const FEWEST: &str =
        "[source]\nurl = \"postgres://u:p@h/d\"\n[kafka]\nbrokers = [\"k:9092\"]\n";
    const HEAD: &str = "# Metrics

<!-- Made by `OUTBOXD_BLESS=1 cargo test --lib is_fresh` from what /metrics answers. -->

`http://ADMIN.LISTEN/metrics` (port 9464 unless `admin.listen` says otherwise) answers in Prometheus's text format. Which of
these to alert on: [What to watch](operations.md#what-to-watch). Labels hold roles and reasons, never anything of a row. A
gauge whose value is not known reads `NaN`. `/status` has the same figures as JSON. Beside these stand Prometheus's usual
`process_…` metrics: CPU time, memory, file descriptors, start.

| metric | type | labels | meaning |
|---|---|---|---|
";

    /// Every metric once, with the names of its labels.
    fn reference() -> String {
        let metrics = Metrics::new();
        // A family without a member is left out of the answer.
        metrics.blocked("");
        metrics.session_ended("");
        let config = Config::parse("o.toml", FEWEST, []).unwrap();
        metrics.gauges.set(&Status::starting(&config.source));
        let mut page = HEAD.to_owned();
        let families = metrics.registry.gather();
        // What the process takes is told by the operating system, and differs between them.
        let is_ours =
            |family: &&prometheus::proto::MetricFamily| family.name().starts_with("outboxd_");
        for family in families.iter().filter(is_ours) {
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            let (name, labels, help) = (family.name(), labels(family), family.help());
            page.push_str(&format!("| `{name}` | {kind} | {labels} | {help} |\n"));
        }
        page
    }

    /// The labels by name, with the values that are always there.
    fn labels(family: &prometheus::proto::MetricFamily) -> String {
        let mut names = BTreeMap::<&str, Vec<&str>>::new();
        for label in family
            .get_metric()
            .iter()
            .flat_map(|metric| metric.get_label())
        {
            let values = names.entry(label.name()).or_default();
            if !label.value().is_empty() && label.name() != "version" {
                values.push(label.value());
            }
        }
        let named = names
            .into_iter()
            .map(|(name, values)| match values.is_empty() {
                true => format!("`{name}`"),
                false => format!("`{name}`: {}", values.join(", ")),
            });
        named.collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn the_metrics_reference_is_fresh() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        if std::env::var_os("OUTBOXD_BLESS").is_some() {
            std::fs::write(path, reference()).unwrap();
        }
        let text = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            text == reference(),
            "docs/metrics.md is stale: OUTBOXD_BLESS=1 cargo test --lib is_fresh"
        );
    }
}
