//! Tables that call their columns by other names than outboxd: `source.columns` maps them, and `check` proposes how.

use std::time::{Duration, Instant};

use toml_edit::DocumentMut;
use uuid::Uuid;

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, RelayConfig, said};
use crate::orders::{ARRIVAL, Orders, wait_for_reason};

/// As a team writes it that never heard of Debezium.
const TABLE: &str = "CREATE TABLE domain_events (event_id uuid PRIMARY KEY DEFAULT gen_random_uuid(), \
    aggregate_type text NOT NULL, aggregate_id text NOT NULL, event_type text NOT NULL, data jsonb NOT NULL, \
    metadata jsonb, \"Correlation Id\" text, sequence_number bigint GENERATED ALWAYS AS IDENTITY UNIQUE, \
    occurred_at timestamptz NOT NULL DEFAULT clock_timestamp())";
const INSERT: &str = "INSERT INTO domain_events (aggregate_type, aggregate_id, event_type, data, metadata, \"Correlation Id\") \
    VALUES ('order', 'a', 'placed', '{}', '{\"tenant\": \"t\"}', 'c-1') RETURNING event_id";

async fn events(table: &str) -> Orders {
    let mut orders = Orders::bare(Postgres::shared(USUAL).await, "columns").await;
    orders.run(table).await;
    orders.config = orders.config.table("public.domain_events");
    orders
}

async fn insert(events: &Orders) -> Uuid {
    let row = events.client.query_one(INSERT, &[]).await.unwrap();
    row.get(0)
}

/// The configuration with what `check` proposes, pasted.
fn pasted(events: &Orders) -> RelayConfig {
    let checked = events.config.outboxd(&["check"]);
    let text = said(&checked);
    assert_eq!(checked.status.code(), Some(1), "{text}");
    let lines = text
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != "[source.columns]");
    let lines = lines.take_while(|line| line.starts_with('[') || line.contains(" = "));
    let proposed: DocumentMut = lines.collect::<Vec<_>>().join("\n").parse().expect(&text);
    let columns = proposed["source"]["columns"].as_table().expect("a section");
    columns
        .iter()
        .fold(events.config.clone(), |config, (ours, name)| {
            let name = name.as_str().expect("a name");
            config.set(&format!("source.columns.{ours}"), name)
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_check_proposes_is_pasted_and_works() {
    for mode in ["replication", "polling"] {
        let mut events = events(TABLE).await;
        events.config = pasted(&events).mode(mode).set("source.retention", "1s");
        let before = shape(&events).await;
        events.config.migrate();
        assert_eq!(
            shape(&events).await,
            before,
            "migrate changes no table of others"
        );
        let checked = events.config.outboxd(&["check"]);
        assert!(checked.status.success(), "{}", said(&checked));
        let mut ids = vec![insert(&events).await];
        let mut relay = Relay::start(&events.config);
        ids.push(insert(&events).await);
        events.wait_for(&ids).await;
        let topic = events.config.topic_of("order");
        let mut reader = Kafka::shared().await.reader(&[&topic]);
        let reads = reader.read_to_end();
        for (name, value) in [("tenant", "t"), ("correlationid", "c-1")] {
            assert_eq!(reads[0].header(name), Some(value), "{mode}");
        }
        let sent = "SELECT count(*) FROM domain_events_status WHERE sent AND event_id IS NOT NULL";
        wait_for_count(&events, sent, 2).await;
        // The highest stays.
        let old = "UPDATE domain_events SET occurred_at = occurred_at - interval '1 hour'";
        events.client.batch_execute(old).await.unwrap();
        wait_for_count(&events, "SELECT count(*) FROM domain_events", 1).await;
        assert!(relay.terminate().success());
        let third = insert(&events).await;
        let status = events.config.outboxd(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        assert_eq!(status["lag"]["rows"], 1, "{status}");
        assert!(status["oldest_unsent_age_seconds"].is_number(), "{status}");
        relay.restart();
        events.wait_for(&[third]).await;
    }
}

async fn shape(events: &Orders) -> String {
    let sql = "SELECT string_agg(attname || ' ' || atttypid, ',' ORDER BY attnum) FROM pg_attribute
               WHERE attrelid = 'domain_events'::regclass AND attnum > 0";
    events.client.query_one(sql, &[]).await.unwrap().get(0)
}

async fn wait_for_count(events: &Orders, sql: &str, wanted: i64) {
    let started_at = Instant::now();
    loop {
        let found: i64 = events.client.query_one(sql, &[]).await.unwrap().get(0);
        if found == wanted {
            return;
        }
        assert!(
            started_at.elapsed() < ARRIVAL,
            "{sql}: {found}, not {wanted}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The line of the file, the key, what the table has, and what may be meant.
#[tokio::test(flavor = "multi_thread")]
async fn a_mapped_column_that_is_not_there_is_refused_by_all_commands() {
    let events = events(TABLE).await;
    let config = pasted(&events).set("source.columns.id", "event_ID");
    let line = config
        .text()
        .lines()
        .position(|line| line.starts_with("id = "));
    let line = line.expect("the key stands in the file") + 1;
    let says = [
        format!(":{line}: `source.columns.id` names `event_ID` (did you mean \"event_id\"?)"),
        "its columns are `event_id`, `aggregate_type`".to_owned(),
    ];
    for command in ["check", "migrate"] {
        let done = config.outboxd(&[command]);
        assert_eq!(done.status.code(), Some(1), "{}", said(&done));
        for part in &says {
            assert!(said(&done).contains(part), "{command}: {}", said(&done));
        }
    }
    let relay = Relay::start(&config);
    let part = "`source.columns.id` names `event_ID` (did you mean \"event_id\"?)";
    wait_for_reason(&relay, "halted", part).await;
}

/// A wrong name of the table must not become an empty table.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_mapped_columns_is_never_created() {
    let events = events(TABLE).await;
    let config = pasted(&events).table("public.domain_event");
    for command in ["check", "migrate"] {
        let done = config.outboxd(&[command]);
        assert_eq!(done.status.code(), Some(1), "{}", said(&done));
        assert!(
            said(&done).contains("correct `source.table`"),
            "{}",
            said(&done)
        );
    }
    let sql = "SELECT to_regclass('public.domain_event') IS NULL";
    assert!(
        events
            .client
            .query_one(sql, &[])
            .await
            .unwrap()
            .get::<_, bool>(0)
    );
}

/// `migrate --print` knows nothing of the table but its mapping.
#[tokio::test(flavor = "multi_thread")]
async fn the_printed_script_of_a_mapped_table_is_all_that_check_asks_for() {
    for mark in ["ledger", "sent_at", "delete"] {
        let events = events(&format!(
            "{TABLE}; ALTER TABLE domain_events ADD \"Sent at\" timestamptz"
        ))
        .await;
        let config = pasted(&events)
            .mark(mark)
            .set("source.columns.sent_at", "Sent at");
        let printed = config.outboxd(&["migrate", "--print"]);
        assert!(printed.status.success(), "{}", said(&printed));
        let script = String::from_utf8(printed.stdout).unwrap();
        events.run(&script).await;
        let checked = config.outboxd(&["check"]);
        assert!(checked.status.success(), "{mark}: {}", said(&checked));
        let planned = said(&config.outboxd(&["migrate"]));
        let left = planned
            .lines()
            .find(|line| line.contains("creating") && !line.contains("the start"));
        assert_eq!(left, None, "{mark}");
    }
}
