//! What a topic may do under a relay that writes it: take less than a batch, and grow.

mod far;
mod made;
mod unknown;

use std::cell::Cell;
use std::collections::HashMap;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::Relay;
use crate::harness::{SOON, wait_until};
use crate::orders::Orders;

/// A refused batch is no fault of its rows. No right is needed to find out what the topic takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_takes_less_than_a_batch_gets_smaller_ones_and_no_row_is_blamed() {
    let kafka = Kafka::shared().await;
    let create = async |topic: &str| {
        let small = [("max.message.bytes", "20000")];
        kafka.create_topic(topic, 1, &small).await;
    };
    let postgres = Postgres::shared(USUAL).await;
    let orders = Orders::at(&kafka.brokers(), postgres, "small_batches", create).await;
    orders.config.migrate();
    let relay = Relay::start(&orders.config);
    let mut ids = orders.insert(1).await;
    orders.wait_for(&ids).await;
    for _ in 0..3 {
        let rows = orders
            .client
            .query(
                "INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
                 SELECT 'order', 'a', 'placed', json_build_object('text', repeat(md5(number::text), 30))
                 FROM generate_series(1, 1000) number RETURNING id",
                &[],
            )
            .await
            .unwrap();
        ids.extend(rows.iter().map(|row| row.get::<_, uuid::Uuid>(0)));
        orders.wait_for(&ids).await;
    }
    assert_eq!(orders.published(), ids);
    // Rows of another topic, beside more of this one.
    let others = orders.config.topic_of("invoice");
    kafka.create_topic(&others, 1, &[]).await;
    orders
        .run(
            "INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
             SELECT CASE number % 2 WHEN 0 THEN 'order' ELSE 'invoice' END, 'a', 'placed', to_json(repeat('x', 300))
             FROM generate_series(1, 2000) number",
        )
        .await;
    wait_until("both topics have their rows", SOON, async || {
        let (orders, others) = (orders.published().len(), kafka.read_topic(&others).len());
        match (orders, others) {
            (4001, 1000) => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await;
    let log = relay.log();
    let ended = log.matches("takes no batch of that size").count();
    assert!((1..=6).contains(&ended), "{log}");
    let status = relay.status().await;
    assert_eq!(status["held"].as_array().map(Vec::len), Some(0), "{status}");
}

/// Nothing reaches a partition of the new number before everything of the old one is acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_grows_is_told_of_and_each_aggregate_moves_once_and_in_order() {
    let kafka = Kafka::shared().await;
    let create = async |topic: &str| kafka.create_topic(topic, 3, &[]).await;
    let postgres = Postgres::shared(USUAL).await;
    let orders = Orders::at(&kafka.brokers(), postgres, "grown", create).await;
    orders.config.migrate();
    let relay = Relay::start(&orders.config);
    let topic = orders.config.topic_of("order");
    let stop = CancellationToken::new();
    let rows = Cell::new(0);
    let writer = async {
        while !stop.is_cancelled() {
            orders
                .run("INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
                      SELECT 'order', 'a' || number, 'placed', '{}' FROM generate_series(1, 20) number")
                .await;
            rows.set(rows.get() + 20);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let growth = async {
        relay.wait_for_log("publishing to topic", SOON).await;
        kafka.grow_topic(&topic, 6).await;
        // It is looked for every 30 s.
        relay
            .wait_for_log("the new producer has taken over", 2 * SOON)
            .await;
        let before = rows.get();
        wait_until("every aggregate has ten rows more", SOON, async || {
            match rows.get() - before {
                200.. => Ok(()),
                more => Err(format!("{more} in all")),
            }
        })
        .await;
        stop.cancel();
    };
    tokio::join!(writer, growth);
    assert!(
        relay
            .log()
            .contains("the topic's number of partitions has changed")
    );
    orders.wait_until_marked().await;
    let reads = kafka.read_topic(&topic);
    assert_eq!(reads.len(), rows.get());
    let seq_of: HashMap<String, i64> = orders
        .client
        .query("SELECT id::text, seq FROM outbox", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let mut partitions: HashMap<String, Vec<(i64, i32)>> = HashMap::new();
    for read in &reads {
        let seq = seq_of[read.header("id").unwrap()];
        let of_aggregate = partitions.entry(read.key_text().unwrap().to_owned());
        of_aggregate.or_default().push((seq, read.partition));
    }
    let mut moved = 0;
    for (aggregate, mut rows) in partitions {
        rows.sort_unstable();
        let changes = rows
            .windows(2)
            .filter(|pair| pair[0].1 != pair[1].1)
            .count();
        assert!(changes <= 1, "{aggregate}: {rows:?}");
        moved += changes;
    }
    assert!(moved > 0);
}
