//! Kafka far away: each answer comes two seconds late.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::Relay;
use crate::orders::Orders;

/// Each way.
const LATENCY: Duration = Duration::from_secs(1);
const LOAD: Duration = Duration::from_secs(25);
/// Five round trips: a plain producer needs one, and another one while requests are in flight. Before, the oldest row
/// waited for 46 s, and longer with every second.
const WAIT_MAX_MS: i64 = 10_000;

/// A row that waits for long makes the relay ask for leaders; the producer must not wait for the answer.
#[tokio::test(flavor = "multi_thread")]
async fn rows_wait_no_longer_than_a_few_round_trips_for_a_cluster_that_is_far_away() {
    let (kafka, proxy) = Kafka::start_behind_proxy().await;
    let postgres = Postgres::shared(USUAL).await;
    let create = async |topic: &str| {
        let stamped = [("message.timestamp.type", "LogAppendTime")];
        kafka.create_topic(topic, 1, &stamped).await;
    };
    let mut orders = Orders::at(&kafka.brokers(), postgres, "far_kafka", create).await;
    let brokers = toml_edit::Array::from_iter([format!("127.0.0.1:{}", proxy.port)]);
    orders.config = orders.config.set("kafka.brokers", brokers);
    orders.config.migrate();
    let _relay = Relay::start(&orders.config);
    let mut ids = orders.insert(1).await;
    orders.wait_for(&ids).await;
    proxy.set(|weather| {
        weather.to_server.latency = LATENCY;
        weather.to_client.latency = LATENCY;
    });
    let began_at = Instant::now();
    while began_at.elapsed() < LOAD {
        ids.extend(orders.insert(20).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    orders.wait_for(&ids).await;
    assert_eq!(orders.published(), ids);
    let sql = "SELECT id::text, (extract(epoch FROM created_at) * 1000)::int8 FROM outbox";
    let created: HashMap<String, i64> = orders
        .client
        .query(sql, &[])
        .await
        .expect("read the outbox")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let reads = kafka.read_topic(&orders.config.topic_of("order"));
    let waits = reads.iter().map(|read| {
        let created = created[read.header("id").expect("an id")];
        read.timestamp_ms.expect("a time") - created
    });
    let longest = waits.max().expect("rows");
    assert!(longest <= WAIT_MAX_MS, "a row waited {longest} ms");
}
