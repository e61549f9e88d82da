//! The counters, under load and lost connections.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{PAIRS, Said, in_every_pair, scene, wait_until_said};
use crate::harness::kafka::Kafka;
use crate::harness::relay::Relay;
use crate::harness::wait_until;
use crate::orders::{ARRIVAL, INSERT, Orders};

const CUTS: usize = 50;

const BYTES: &str = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
    SELECT 'order', 'a' || number % 7, 'placed', json_build_object('text', repeat('x', number)) FROM generate_series(1, 40) number";

async fn write(orders: &Orders, stop: &CancellationToken) {
    while !stop.is_cancelled() {
        orders.run(BYTES).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Ends every connection of the relay but the one of the lease, again and again.
async fn cut(orders: &Orders) {
    let client = orders.database.client().await;
    // Nobody else's: the function is called behind the conditions.
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity \
        WHERE datname = current_database() AND application_name LIKE 'outboxd%' \
          AND application_name NOT LIKE '%lease%' OFFSET 0) AS relay";
    for _ in 0..CUTS {
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.query(sql, &[]).await.expect("cut connections");
    }
}

/// The records of the topic, and the bytes of their keys and values.
fn topic(kafka: &Kafka, name: &str) -> (f64, f64) {
    let reads = kafka.read_topic(name);
    let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
    let bytes: usize = reads
        .iter()
        .map(|read| length(&read.key) + length(&read.value))
        .sum();
    (reads.len() as f64, bytes as f64)
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_equal_what_topic_and_table_hold_after_fifty_lost_connections() {
    let kafka = Kafka::shared().await;
    in_every_pair(async |pair| {
        let orders = scene("counters", pair).await;
        let relay = Relay::start(&orders.config);
        orders.wait_for(&orders.insert(1).await).await;
        let stop = CancellationToken::new();
        let cuts = async {
            cut(&orders).await;
            stop.cancel();
        };
        tokio::join!(write(&orders, &stop), cuts);
        let name = orders.config.topic_of("order");
        let written = match pair.1 {
            "delete" => {
                "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox', 'seq')), 0)"
            }
            _ => "SELECT count(*) FROM outbox",
        };
        let written: i64 = orders.client.query_one(written, &[]).await.unwrap().get(0);
        wait_until("all is published and counted", ARRIVAL, async || {
            let (records, bytes) = topic(kafka, &name);
            let counted = [
                ("outboxd_published_rows_total", records),
                ("outboxd_published_bytes_total", bytes),
                ("outboxd_marked_rows_total", written as f64),
                ("outboxd_lag_rows", 0.0),
            ];
            for (metric, expected) in counted {
                let value = relay.metric(metric).await;
                if value != Some(expected) {
                    return Err(format!("{pair:?}: {metric} {value:?}, not {expected}"));
                }
            }
            match records >= written as f64 {
                true => Ok(()),
                false => Err(format!("{records} of {written}")),
            }
        })
        .await;
    })
    .await;
}

/// The wait of a checkpoint's first row counts, not the statement alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_lasts_from_its_first_row_on() {
    let orders = scene("checkpoints", PAIRS[0]).await;
    let relay = Relay::start(&orders.config);
    orders.wait_for(&orders.insert(1).await).await;
    wait_until_said(&relay, &Said::waiting(0, 0, 0)).await;
    // Marks wait for a lock.
    orders
        .run("BEGIN; LOCK TABLE outboxd.ledger IN SHARE MODE")
        .await;
    let client = orders.database.client().await;
    for _ in 0..2 {
        let row = client.query_one(INSERT, &[&1_i64]).await.expect("insert");
        orders.wait_for(&[row.get(0)]).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    orders.run("COMMIT").await;
    orders.wait_until_marked().await;
    wait_until("the checkpoint is counted", ARRIVAL, async || {
        let sum = relay
            .metric("outboxd_checkpoint_duration_seconds_sum")
            .await;
        match sum.is_some_and(|sum| sum > 1.5) {
            true => Ok(()),
            false => Err(format!("{sum:?}")),
        }
    })
    .await;
}
