//! What keeps rows from going out is said with its reason before anything else follows from it.

use serde_json::Value;

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::Relay;
use crate::orders::{ARRIVAL, Orders, wait_for_reason, wait_for_status};

/// A relay that reads the slot leaves it after 20 s; one that polls waits where it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_silent_is_said_to_be_so_and_nothing_is_said_to_be_published() {
    let mut kafka = Kafka::start();
    let orders = Orders::on(&kafka, Postgres::shared(USUAL).await, "silent").await;
    orders.config.migrate();
    let config = orders.config.clone().mode("polling");
    let mut relay = Relay::start(&config);
    orders.wait_for(&orders.insert(1).await).await;
    wait_for_status(&relay, "it publishes", publishes).await;
    kafka.freeze();
    let mut ids = orders.insert(5).await;
    let status = wait_for_reason(&relay, "leader", "Kafka has acknowledged nothing since").await;
    assert_eq!(status["state"], "waiting", "{status}");
    assert_eq!(status["kafka"]["is_up"], false, "{status}");
    let strict = relay.get("/readyz?strict").expect("it answers");
    assert_eq!(strict.0, 503, "{strict:?}");
    kafka.thaw();
    orders.wait_for(&ids).await;
    wait_for_status(&relay, "it publishes again", publishes).await;
    relay.wait_for_log("Kafka answers again", ARRIVAL).await;
    // Started without a broker it waits for the topic: nothing is in flight.
    relay.kill9();
    kafka.kill();
    ids.extend(orders.insert(5).await);
    relay.restart();
    let status = wait_for_reason(&relay, "leader", "Kafka has acknowledged nothing since").await;
    assert_eq!(status["state"], "waiting", "{status}");
    kafka.restart();
    orders.wait_for(&ids).await;
    wait_for_status(&relay, "it publishes at last", publishes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_can_not_be_renewed_is_said_by_a_relay_that_reads_on() {
    let orders = Orders::create(Postgres::shared(USUAL).await, "unrenewed", |config| config).await;
    let relay = Relay::start(&orders.config);
    orders.wait_for(&orders.insert(1).await).await;
    wait_for_status(&relay, "it publishes", publishes).await;
    orders
        .run("BEGIN; SELECT FROM outboxd.lease FOR UPDATE")
        .await;
    let status = wait_for_reason(&relay, "leader", "the lease can't be renewed").await;
    assert_eq!(status["state"], "waiting", "{status}");
    orders.run("COMMIT").await;
    wait_for_status(&relay, "it publishes again", publishes).await;
    orders.wait_for(&orders.insert(1).await).await;
    relay
        .wait_for_log("the lease is renewed again", ARRIVAL)
        .await;
    let suspended = relay.log().matches("publishing paused").count();
    assert_eq!(suspended, 1);
}

/// PostgreSQL waits for every transaction that wrote, in any database.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_waits_for_transactions_names_the_oldest() {
    let postgres = Postgres::start(USUAL);
    let orders = Orders::bare(&postgres, "slow_slot").await;
    orders.config.migrate();
    let slot = orders.config.name();
    orders
        .run(&format!("SELECT pg_drop_replication_slot('{slot}')"))
        .await;
    let elsewhere = postgres.client("postgres").await;
    let prepare = "BEGIN; SELECT txid_current(); PREPARE TRANSACTION 'forgotten'";
    elsewhere.batch_execute(prepare).await.expect("prepare");
    let idle = postgres.client("postgres").await;
    let begin = "BEGIN; SELECT txid_current()";
    idle.batch_execute(begin).await.expect("begin");
    let row = idle.query_one("SELECT pg_backend_pid()", &[]).await;
    let pid: i32 = row.expect("ask for its process").get(0);
    let relay = Relay::start(&orders.config);
    let status = wait_for_reason(&relay, "leader", &format!("creating slot `{slot}`")).await;
    let reason = status["reason"].as_str().unwrap_or_default();
    let prepared = "2, the oldest is prepared transaction 'forgotten' of database postgres, since";
    assert!(reason.contains(prepared), "{reason}");
    assert_eq!(status["state"], "waiting", "{status}");
    let commit = "ROLLBACK PREPARED 'forgotten'";
    elsewhere.batch_execute(commit).await.expect("roll back");
    let next = format!("1, the oldest is pid {pid} of database postgres, since");
    wait_for_reason(&relay, "leader", &next).await;
    idle.batch_execute("COMMIT").await.expect("commit");
    wait_for_status(&relay, "it publishes", publishes).await;
    orders.wait_for(&orders.insert(1).await).await;
    assert_eq!(relay.log().matches("creating the slot: ").count(), 1);
}

fn publishes(status: &Value) -> bool {
    status["state"] == "publishing" && status["reason"] == ""
}
