//! Topics that nobody has made, in numbers: a role that may only insert writes rows for each of them.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::Relay;
use crate::harness::{SOON, wait_until};
use crate::orders::Orders;

/// Aggregate types that have no topic.
const UNKNOWN: u64 = 20_000;
/// A busy machine may take so long; before, not one row of a known topic came through.
const LATE_MS: i64 = 5_000;

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_unknown_topics_keep_no_known_one_waiting_by_replication() {
    unknown_topics("replication").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_unknown_topics_keep_no_known_one_waiting_by_polling() {
    unknown_topics("polling").await;
}

async fn unknown_topics(mode: &str) {
    let (kafka, proxy) = Kafka::start_behind_proxy().await;
    let postgres = Postgres::shared(USUAL).await;
    let create = async |topic: &str| kafka.create_topic(topic, 1, &[]).await;
    let mut orders = Orders::at(&kafka.brokers(), postgres, "unknown_topics", create).await;
    let brokers = toml_edit::Array::from_iter([format!("127.0.0.1:{}", proxy.port)]);
    orders.config = orders.config.mode(mode).set("kafka.brokers", brokers);
    orders.config.migrate();
    let mut relay = Relay::start(&orders.config);
    let first = orders.insert(1).await;
    orders.wait_for(&first).await;
    let asked_before = (proxy.metadata_requests(), Instant::now());
    let stop = CancellationToken::new();
    let rows = Cell::new(1);
    let writer = async {
        while !stop.is_cancelled() {
            orders.insert(1).await;
            rows.set(rows.get() + 1);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let other = orders.database.client().await;
    let attack = async {
        let sql = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
                   SELECT 'unknown-' || number, 'a', 'placed', '{}' FROM generate_series(1, 20000) number";
        other.batch_execute(sql).await.expect("insert");
        wait_until_all_are_held(&relay).await;
        let before = rows.get();
        wait_until("more rows were written", SOON, async || {
            let more = rows.get() - before;
            if more > 100 { Ok(()) } else { Err(more) }
        })
        .await;
        stop.cancel();
    };
    tokio::join!(writer, attack);
    let (requests, since) = (
        proxy.metadata_requests() - asked_before.0,
        asked_before.1.elapsed(),
    );
    assert!(
        requests as f64 <= 2.0 * since.as_secs_f64() + 4.0,
        "{requests} requests for metadata in {since:?}"
    );
    let rss = relay.rss_bytes();
    assert!(rss <= 64 << 20, "{} MiB", rss >> 20);
    let status = relay.status().await.to_string();
    assert!(status.len() < 100_000, "{status}");
    let order = orders.config.topic_of("order");
    wait_until(
        "every row of the known topic is published",
        SOON,
        async || {
            let published = kafka.read_topic(&order).len();
            if published >= rows.get() {
                Ok(())
            } else {
                Err(published)
            }
        },
    )
    .await;
    assert_in_time(&orders, &kafka).await;
    the_rest(&orders, &kafka, &mut relay).await;
}

/// A restart takes up where it was, and a topic that somebody makes gets its row.
async fn the_rest(orders: &Orders, kafka: &Kafka, relay: &mut Relay) {
    relay.kill9();
    relay.restart();
    let ids = orders.insert(20).await;
    orders.wait_for(&ids).await;
    let made = orders.config.topic_of("unknown-19999");
    kafka.create_topic(&made, 1, &[]).await;
    wait_until(
        "the row of a topic that was made is published",
        3 * SOON,
        async || match kafka.read_topic(&made).len() {
            1 => Ok(()),
            rows => Err(rows),
        },
    )
    .await;
    let ids = orders.insert(20).await;
    orders.wait_for(&ids).await;
}

async fn wait_until_all_are_held(relay: &Relay) {
    wait_until("every unknown topic is held", 2 * SOON, async || {
        let status = relay.try_status()?;
        let named = status["held_topics"].as_array().map_or(0, Vec::len) as u64;
        let held = named + status["held_topics_left_out"].as_u64().unwrap_or(0);
        if held >= UNKNOWN {
            Ok(())
        } else {
            Err(format!("{held}"))
        }
    })
    .await;
}

/// Rows of the known topic went out within a moment of their commits.
async fn assert_in_time(orders: &Orders, kafka: &Kafka) {
    let reads = kafka.read_topic(&orders.config.topic_of("order"));
    let sql = "SELECT id::text, (extract(epoch FROM created_at) * 1000)::int8 FROM outbox WHERE aggregatetype = 'order'";
    let created: HashMap<String, i64> = orders
        .client
        .query(sql, &[])
        .await
        .expect("read the outbox")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let late = |read: &crate::harness::topic::Read| {
        let created = created[read.header("id").expect("an id")];
        read.timestamp_ms.expect("a time") - created
    };
    let mut waits: Vec<i64> = reads.iter().map(late).collect();
    waits.sort_unstable();
    let p99 = waits[waits.len() * 99 / 100];
    assert!(p99 <= LATE_MS, "p99 {p99} ms");
}
