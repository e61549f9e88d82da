//! Slots that are read while nothing happens: beside a busy neighbour, and where the server takes idle ones.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::wait_until;
use crate::matrix::rig::{Rig, SOON, STREAMED, await_publishing};

/// PQ-03: no heartbeat table is needed, keepalives carry the position.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_outbox_beside_a_busy_database_keeps_no_wal() {
    let postgres = Postgres::shared(USUAL).await;
    let rig = Rig::shared(STREAMED).await;
    let client = rig.client().await;
    let relay = rig.relay();
    let load = rig.load().await;
    await_publishing(&relay, 0, SOON).await;
    rig.judge(load, 0).await;
    let neighbour = postgres.create_database("neighbour").await.client().await;
    neighbour
        .batch_execute("CREATE TABLE busy (filler text)")
        .await
        .expect("create a table");
    for _ in 0..3 {
        let busy = "INSERT INTO busy SELECT repeat('x', 1000) FROM generate_series(1, 10000)";
        neighbour.batch_execute(busy).await.expect("write");
        let row = neighbour
            .query_one("SELECT pg_current_wal_lsn()", &[])
            .await;
        let written: PgLsn = row.expect("ask for the position").get(0);
        wait_until("the slot follows the neighbour", SOON, async || {
            let sql = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE database = current_database()";
            let confirmed: PgLsn = client.query_one(sql, &[]).await.expect("look at the slot").get(0);
            match confirmed >= written {
                true => Ok(()),
                false => Err(format!("{confirmed} of {written}")),
            }
        })
        .await;
    }
    // What is written now still comes.
    let load = rig.load().await;
    load.progress(20, SOON).await;
    rig.judge(load, 0).await;
}

/// The relay parks after 20 s; without a touch now and then the slot would be gone 15 s later. What it keeps is told all
/// the while.
#[ignore = "takes a minute: see `make faults`"]
#[tokio::test(flavor = "multi_thread")]
async fn a_parked_relay_reads_its_slot_before_the_server_takes_it() {
    let (postgres, mut kafka) = (impatient(), Kafka::start());
    let rig = Rig::new(STREAMED, &postgres, &kafka).await;
    let client = rig.client().await;
    let relay = rig.relay();
    let load = rig.load().await;
    await_publishing(&relay, 0, SOON).await;
    rig.await_streaming(&client).await;
    let check = rig.config.outboxd(&["check"]);
    let check = crate::harness::relay::said(&check);
    assert!(check.contains("idle_replication_slot_timeout"), "{check}");
    kafka.freeze();
    let unread = watch_slot(&rig, &client, Duration::from_secs(42)).await;
    assert!(unread > 0, "the slot was never left");
    let kept = relay.status().await["slot_retained_bytes"].as_u64();
    assert!(
        kept.is_some(),
        "what a slot keeps that nobody reads was not told"
    );
    kafka.thaw();
    rig.judge(load, 0).await;
}

/// As long as Kafka is away the first rows of the table can't be published, and nobody reads the slot that stands since.
#[ignore = "takes half a minute: see `make faults`"]
#[tokio::test(flavor = "multi_thread")]
async fn a_parked_relay_that_has_the_table_to_read_first_keeps_its_slot() {
    let (postgres, mut kafka) = (impatient(), Kafka::start());
    let rig = Rig::new(STREAMED, &postgres, &kafka).await;
    let client = rig.client().await;
    let load = rig.load().await;
    load.progress(20, SOON).await;
    kafka.kill();
    let _relay = rig.relay();
    wait_until("there is a slot", SOON, async || {
        rig.is_slot_active(&client).await.ok_or("none")
    })
    .await;
    let unread = watch_slot(&rig, &client, Duration::from_secs(25)).await;
    assert!(unread > 0, "the slot was read all the while");
    kafka.restart();
    rig.judge(load, 0).await;
}

/// A server that takes a slot which nobody read for 15 s.
fn impatient() -> Postgres {
    Postgres::start_with(18, &[("idle_replication_slot_timeout", "15s")])
}

/// Says how often the slot was found unread, and panics once the server has taken it.
async fn watch_slot(rig: &Rig, client: &Client, within: Duration) -> usize {
    let began_at = Instant::now();
    let mut unread = 0;
    while began_at.elapsed() < within {
        // Slots are looked at by checkpoints.
        client
            .batch_execute("CHECKPOINT")
            .await
            .expect("checkpoint");
        let sql = "SELECT invalidation_reason FROM pg_replication_slots WHERE database = current_database()";
        let row = client.query_one(sql, &[]).await.expect("look at the slot");
        assert_eq!(row.get::<_, Option<String>>(0), None, "the slot is taken");
        unread += usize::from(rig.is_slot_active(client).await == Some(false));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    unread
}
