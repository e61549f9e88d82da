//! What the relay counts, in Prometheus's text format.
//!
//! Counters live here; gauges are set from the one report ([`Status`]) when they are asked for, so that metric
//! and report never disagree. Labels hold reasons and roles, never anything of a row.

use std::time::Duration;

#[cfg(target_os = "linux")]
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry,
    TextEncoder,
};

use crate::observe::status::{Role, Status, WalAlarm};
use crate::publish::Deliveries;

/// From a millisecond to a minute: PostgreSQL and Kafka on one machine, up to an outage.
const LATENCY_BUCKETS: [f64; 15] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];
const ROLES: [Role; 4] = [Role::Starting, Role::Standby, Role::Leader, Role::Halted];
const WAL_ALARMS: [WalAlarm; 3] = [WalAlarm::None, WalAlarm::Warning, WalAlarm::Critical];

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

/// What is set from the report.
struct Gauges {
    role: GaugeVec,
    publishes: Gauge,
    up: GaugeVec,
    lease_epoch: Gauge,
    in_flight_rows: Gauge,
    in_flight_bytes: Gauge,
    held_rows: GaugeVec,
    held_aggregates: GaugeVec,
    dead_letters: Gauge,
    table_rows: Gauge,
    table_bytes: Gauge,
    slot: SlotGauges,
    lag: LagGauges,
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

/// What is set from the report of the slot and its WAL.
struct SlotGauges {
    publication_drift: Gauge,
    slot_retained_bytes: Gauge,
    wal_budget_bytes: Gauge,
    wal_alarm: GaugeVec,
}

impl SlotGauges {
    fn new(registry: &Registry) -> Self {
        let gauge = |name, help| gauge(registry, name, help);
        Self {
            publication_drift: gauge(
                "outboxd_publication_drift",
                "Reasons why the publication does not include all rows.",
            ),
            slot_retained_bytes: gauge(
                "outboxd_slot_retained_bytes",
                "WAL that the slot keeps on the server.",
            ),
            wal_budget_bytes: gauge(
                "outboxd_wal_budget_bytes",
                "WAL that the slot may keep before it is an alarm.",
            ),
            wal_alarm: gauges(
                registry,
                "outboxd_wal_alarm",
                "1 for the alarm about the WAL that the slot keeps.",
                "alarm",
            ),
        }
    }
}

/// What is set from the report of the rows that were not sent.
struct LagGauges {
    lag_rows: Gauge,
    lag_bytes: Gauge,
    lag_seconds: Gauge,
    oldest_unsent_age_seconds: Gauge,
    holes_open: Gauge,
    sent_seq: Gauge,
}

impl LagGauges {
    fn new(registry: &Registry) -> Self {
        let gauge = |name, help| gauge(registry, name, help);
        Self {
            lag_rows: gauge("outboxd_lag_rows", "Rows in the table that were not sent."),
            lag_bytes: gauge(
                "outboxd_lag_bytes",
                "WAL behind which the confirmed position is.",
            ),
            lag_seconds: gauge(
                "outboxd_lag_seconds",
                "Age of the oldest row that was not sent and does not wait for a blocked aggregate or a paused topic.",
            ),
            oldest_unsent_age_seconds: gauge(
                "outboxd_oldest_unsent_age_seconds",
                "Age of the oldest row that was not sent, rows of blocked aggregates and paused topics included.",
            ),
            holes_open: gauge(
                "outboxd_holes_open",
                "Ranges of numbers whose rows may still appear.",
            ),
            sent_seq: gauge("outboxd_sent_seq", "The highest number that was sent."),
        }
    }
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Gauge {
    let opened = Gauge::new(name, help);
    add(registry, opened.expect("the name is valid"))
}

impl Gauges {
    fn new(registry: &Registry) -> Self {
        let gauge = |name, help| gauge(registry, name, help);
        Self {
            lag: LagGauges::new(registry),
            slot: SlotGauges::new(registry),
            role: gauges(
                registry,
                "outboxd_role",
                "1 for the role that the relay plays.",
                "role",
            ),
            publishes: gauge("outboxd_publishes", "1 while committed rows go out."),
            up: gauges(registry, "outboxd_up", "1 while the peer answers.", "peer"),
            lease_epoch: gauge(
                "outboxd_lease_epoch",
                "A number that grows each time the lease is taken.",
            ),
            in_flight_rows: gauge("outboxd_in_flight_rows", "Rows read and not yet marked."),
            in_flight_bytes: gauge("outboxd_in_flight_bytes", "Bytes of these rows."),
            held_rows: gauges(
                registry,
                "outboxd_held_rows",
                "Rows that wait now for a blocked aggregate or a paused topic.",
                "reason",
            ),
            held_aggregates: gauges(
                registry,
                "outboxd_held_aggregates",
                "Aggregates blocked now.",
                "reason",
            ),
            dead_letters: gauge(
                "outboxd_dead_letters",
                "Rows kept as dead letters, counted up to 100,000.",
            ),
            table_rows: gauge(
                "outboxd_table_rows",
                "Rows in the outbox table, sent or not, by the server's statistics.",
            ),
            table_bytes: gauge(
                "outboxd_table_bytes",
                "Bytes of the outbox table, its indexes included.",
            ),
        }
    }

    fn set(&self, status: &Status) {
        for role in ROLES {
            let plays = f64::from(u8::from(role == status.role));
            self.role.with_label_values(&[role.name()]).set(plays);
        }
        self.publishes.set(f64::from(u8::from(status.publishes())));
        for (name, peer) in [("postgres", &status.postgres), ("kafka", &status.kafka)] {
            let up = peer.is_up.map(|up| f64::from(u8::from(up)));
            self.up.with_label_values(&[name]).set(known(up));
        }
        let epoch = status.lease.as_ref().and_then(|lease| lease.epoch);
        self.lease_epoch.set(known(epoch.map(|epoch| epoch as f64)));
        self.in_flight_rows.set(status.in_flight.rows as f64);
        self.in_flight_bytes.set(status.in_flight.bytes as f64);
        let number = |number: Option<u64>| known(number.map(|number| number as f64));
        self.lag.lag_rows.set(number(status.lag.rows));
        self.lag.lag_bytes.set(number(status.lag.bytes));
        self.lag.lag_seconds.set(known(status.lag.seconds));
        let age = status.oldest_unsent_age_seconds;
        // Where rows are counted and there is none, nothing is old.
        let none = (status.lag.rows == Some(0)).then_some(0.0);
        self.lag.oldest_unsent_age_seconds.set(known(age.or(none)));
        self.table_rows
            .set(number(status.table_size.map(|kept| kept.rows)));
        self.table_bytes
            .set(number(status.table_size.map(|kept| kept.bytes)));
        self.lag.holes_open.set(number(status.holes_open));
        self.slot.publication_drift.set(status.drift.len() as f64);
        self.slot
            .slot_retained_bytes
            .set(number(status.slot_retained_bytes));
        self.slot
            .wal_budget_bytes
            .set(number(status.wal_budget.map(|budget| budget.bytes)));
        for alarm in WAL_ALARMS {
            let is_on = status
                .wal_budget
                .is_some_and(|budget| budget.alarm == alarm);
            self.slot
                .wal_alarm
                .with_label_values(&[alarm.name()])
                .set(f64::from(u8::from(is_on)));
        }
        let seq = status.position.sent_seq.map(|seq| seq as f64);
        self.lag.sent_seq.set(known(seq));
        self.set_held(status);
    }

    fn set_held(&self, status: &Status) {
        self.held_rows.reset();
        self.held_aggregates.reset();
        let topics = status.held_topic_rows.unwrap_or(0);
        let rows = status.blocked_rows.unwrap_or(0);
        self.held_rows
            .with_label_values(&["topic"])
            .set(topics as f64);
        self.held_rows
            .with_label_values(&["row_at_fault"])
            .set(rows as f64);
        self.held_aggregates
            .with_label_values(&["row_at_fault"])
            .set(status.blocked_aggregates.unwrap_or(0) as f64);
        let dead_letters = status.dead_letters.map(|count| count as f64);
        self.dead_letters.set(known(dead_letters));
    }
}

fn known(value: Option<f64>) -> f64 {
    value.unwrap_or(f64::NAN)
}

fn histogram(registry: &Registry, name: &str, help: &str) -> Histogram {
    let options = HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec());
    let opened = Histogram::with_opts(options);
    add(registry, opened.expect("name and buckets are valid"))
}

fn gauges(registry: &Registry, name: &str, help: &str, label: &str) -> GaugeVec {
    let opened = GaugeVec::new(Opts::new(name, help), &[label]);
    add(registry, opened.expect("the name is valid"))
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
