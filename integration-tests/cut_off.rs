//! A broker that closes the connection on a request for its size, as Azure Event Hubs does: no code ever comes.

mod away;

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::{Relay, said};
use crate::harness::{SOON, wait_until};
use crate::orders::{Orders, wait_for_status};

const ROW: &str = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload) \
                   VALUES ('order', $1, 'placed', to_json(repeat('x', $2::int4))) RETURNING id";

/// Rows of aggregates and their sizes, as they were committed.
struct Written(Vec<(String, Uuid)>);

impl Written {
    async fn write(&mut self, orders: &Orders, aggregate: &str, bytes: i32) -> Uuid {
        let row = orders.client.query_one(ROW, &[&aggregate, &bytes]).await;
        let id = row.expect("insert a row").get(0);
        self.0.push((aggregate.to_owned(), id));
        id
    }

    /// The rows of all other aggregates.
    fn but(&self, aggregate: &str) -> Vec<Uuid> {
        let others = self.0.iter().filter(|(own, _)| own != aggregate);
        others.map(|(_, id)| *id).collect()
    }

    fn ids(&self) -> Vec<Uuid> {
        self.0.iter().map(|(_, id)| *id).collect()
    }

    /// Each aggregate's rows stand in its order; a second record of one is no matter.
    fn assert_in_order(&self, orders: &Orders) {
        let mut firsts = Vec::new();
        for id in orders.published() {
            if !firsts.contains(&id) {
                firsts.push(id);
            }
        }
        let aggregates: HashMap<Uuid, &str> = self
            .0
            .iter()
            .map(|(aggregate, id)| (*id, aggregate.as_str()))
            .collect();
        for aggregate in aggregates.values() {
            let own = |id: &Uuid| aggregates[id] == *aggregate;
            let expected: Vec<Uuid> = self.ids().into_iter().filter(own).collect();
            let found: Vec<Uuid> = firsts.iter().copied().filter(own).collect();
            assert_eq!(found, expected, "{aggregate}");
        }
    }
}

/// An outbox whose topic takes large records, of three partitions.
async fn orders(kafka: &Kafka, prefix: &str) -> Orders {
    let create = async |topic: &str| {
        let large = [("max.message.bytes", "10485760")];
        kafka.create_topic(topic, 3, &large).await;
    };
    let postgres = Postgres::shared(USUAL).await;
    Orders::at(&kafka.brokers(), postgres, prefix, create).await
}

fn blocked(orders: &Orders) -> Vec<Value> {
    let list = || orders.config.outboxd(&["blocked", "list", "--json"]);
    let output = tokio::task::block_in_place(list);
    assert!(output.status.success(), "{}", said(&output));
    let list: Value = serde_json::from_slice(&output.stdout).expect("a list as JSON");
    list.as_array().expect("a list").clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_cut_off_alone_is_blocked_and_all_others_flow_by_replication() {
    a_row_that_is_cut_off("replication").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_cut_off_alone_is_blocked_and_all_others_flow_by_polling() {
    a_row_that_is_cut_off("polling").await;
}

async fn a_row_that_is_cut_off(mode: &str) {
    let kafka = Kafka::start_with(&[("socket.request.max.bytes", "1046528")]);
    let mut orders = orders(&kafka, "cut_off").await;
    orders.config = orders.config.clone().mode(mode);
    let others = orders.config.topic_of("invoice");
    kafka.create_topic(&others, 1, &[]).await;
    orders.config.migrate();
    let relay = Relay::start(&orders.config);
    let mut written = Written(Vec::new());
    written.write(&orders, "a", 10).await;
    orders.wait_for(&written.ids()).await;
    let large = written.write(&orders, "large", 2_000_000).await;
    for number in 0..30 {
        written.write(&orders, "large", 10).await;
        written
            .write(&orders, &format!("other-{number}"), 1_000)
            .await;
        let invoice = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload) \
                       VALUES ('invoice', 'i', 'placed', '{}')";
        orders.run(invoice).await;
    }
    wait_for_status(&relay, "what the broker does", |status| {
        status.to_string().contains("closes the connection")
    })
    .await;
    orders.wait_for(&written.but("large")).await;
    wait_until("the invoices are published", SOON, async || {
        match kafka.read_topic(&others).len() {
            30.. => Ok(()),
            records => Err(format!("{records} of 30")),
        }
    })
    .await;
    let status = wait_for_status(&relay, "that the row is held", |status| {
        status["held"][0]["event_id"] == large.to_string() && status["held"][0]["rows"] == 31
    })
    .await;
    for told in ["2000007 bytes", "`socket.request.max.bytes`", "smaller"] {
        let reason = status["held"][0]["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(told), "{told}: {reason}");
    }
    let list = blocked(&orders);
    assert_eq!(list.len(), 1, "{list:?}");
    assert!(
        !relay.log().contains("xxxx"),
        "a row's content is in the log"
    );
    assert!(!orders.published().contains(&large));

    let mend = format!("UPDATE outbox SET payload = '{{}}' WHERE id = '{large}'");
    orders.run(&mend).await;
    let retry = || orders.config.outboxd(&["blocked", "retry", "--all"]);
    let output = tokio::task::block_in_place(retry);
    assert!(output.status.success(), "{}", said(&output));
    orders.wait_for(&written.ids()).await;
    written.assert_in_order(&orders);
    orders.wait_until_marked().await;
}

/// Whatever the others of its size were found to be, each is blocked only when it is cut off alone.
#[tokio::test(flavor = "multi_thread")]
async fn many_rows_that_are_cut_off_are_blocked_one_after_the_other_and_all_others_flow() {
    let kafka = Kafka::start_with(&[("socket.request.max.bytes", "1046528")]);
    let orders = orders(&kafka, "cut_off").await;
    orders.config.migrate();
    let relay = Relay::start(&orders.config);
    let mut written = Written(Vec::new());
    written.write(&orders, "a", 10).await;
    orders.wait_for(&written.ids()).await;
    orders.run("BEGIN").await;
    for number in 0..6 {
        let large = format!(
            "INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
             VALUES ('order', 'large-{number}', 'placed', to_json(repeat('x', 2000000)))"
        );
        orders.run(&large).await;
    }
    for number in 0..6 {
        let aggregate = format!("order-{}", number % 3);
        written.write(&orders, &aggregate, 1_010_000).await;
    }
    orders.run("COMMIT").await;
    orders.wait_for(&written.ids()).await;
    wait_for_status(&relay, "that all of them are held", |status| {
        status["blocked_aggregates"] == 6
    })
    .await;
    written.assert_in_order(&orders);
}

/// Each row is small enough, what librdkafka makes of them is not.
#[tokio::test(flavor = "multi_thread")]
async fn batches_that_are_cut_off_become_smaller_and_no_row_is_blocked() {
    let kafka = Kafka::start_with(&[("socket.request.max.bytes", "524288")]);
    let orders = orders(&kafka, "cut_off").await;
    orders.config.migrate();
    let relay = Relay::start(&orders.config);
    let mut written = Written(Vec::new());
    written.write(&orders, "a", 10).await;
    orders.wait_for(&written.ids()).await;
    orders.run("BEGIN").await;
    for number in 0..40 {
        let aggregate = format!("order-{}", number % 4);
        written.write(&orders, &aggregate, 200_000).await;
    }
    orders.run("COMMIT").await;
    orders.wait_for(&written.ids()).await;
    written.assert_in_order(&orders);
    assert_eq!(blocked(&orders), [] as [Value; 0]);
    assert!(
        relay.log().contains("bytes at most from now on"),
        "{}",
        relay.log()
    );
    orders.wait_until_marked().await;
}

/// What is cut off for another reason than its size: nobody knows which, so everybody is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_row_that_is_cut_off_again_and_again_is_named_and_not_blocked() {
    let kafka = Kafka::start_with(&[("socket.request.max.bytes", "20000")]);
    let orders = orders(&kafka, "cut_off").await;
    orders.config.migrate();
    let relay = Relay::start(&orders.config);
    let mut written = Written(Vec::new());
    let small = written.write(&orders, "small", 30_000).await.to_string();
    wait_for_status(&relay, "which row it is", |status| {
        let reason = status["reason"].as_str().unwrap_or_default();
        reason.contains("again and again") && reason.contains(&small)
    })
    .await;
    assert_eq!(blocked(&orders), [] as [Value; 0]);
}

/// Waits so long, and that nothing is blamed meanwhile.
async fn assert_blames_nothing(orders: &Orders, relay: &Relay, lasts: Duration) {
    tokio::time::sleep(lasts).await;
    let log = relay.log();
    assert!(!log.contains("closes the connection"), "{log}");
    assert_eq!(blocked(orders), [] as [Value; 0]);
}
