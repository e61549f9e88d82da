//! The gauges, set from the report.

use prometheus::{Gauge, GaugeVec, Opts, Registry};

use super::add;
use crate::observe::status::{Role, Status, WalAlarm};

const ROLES: [Role; 4] = [Role::Starting, Role::Standby, Role::Leader, Role::Halted];
const WAL_ALARMS: [WalAlarm; 3] = [WalAlarm::None, WalAlarm::Warning, WalAlarm::Critical];

/// What is set from the report.
pub(super) struct Gauges {
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
    pub(super) fn new(registry: &Registry) -> Self {
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

    pub(super) fn set(&self, status: &Status) {
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

pub(super) fn gauges(registry: &Registry, name: &str, help: &str, label: &str) -> GaugeVec {
    let opened = GaugeVec::new(Opts::new(name, help), &[label]);
    add(registry, opened.expect("the name is valid"))
}
