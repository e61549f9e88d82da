//! Rows that the stream passes over under load: slot dropped or moved, publication changed. The table has them.
//!
//! What the stream brought before the gap was seen stands in the topic before the rows of the gap: each row that is out of
//! order must be one that the relay announced as missed.

use tokio_postgres::Client;

use super::rig::{Rig, SOON, TRANSACTION_ROWS, WINDOW_ROWS, await_publishing, published};
use super::scene::Scene;
use crate::harness::kafka::Kafka;
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::relay::Relay;
use crate::harness::wait_until;

/// The relay's slot, by the database.
const SLOT: &str = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()";

const TERMINATE: &str = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
                         WHERE database = current_database() AND active";

/// Dropped while the relay reads it, then while none runs.
pub async fn slot_dropped(scene: &Scene) {
    // Its own server: a new slot waits for the transactions of every database.
    let postgres = Postgres::start(USUAL);
    let rig = Rig::new(scene.streamed(), &postgres, Kafka::shared().await).await;
    let client = rig.client().await;
    let load = rig.load().await;
    let mut relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    let drops = scene.pick(2, 6, 20);
    for number in 0..drops {
        rig.await_streaming(&client).await;
        if number % 2 == 1 {
            relay.kill9();
        }
        drop_slot(&client).await;
        scene.ran();
        load.progress(50, SOON).await;
        if number % 2 == 1 {
            relay.restart();
        }
        await_publishing(&relay, 0, SOON).await;
    }
    load.stop().await;
    rig.verdict(scene, drops * (WINDOW_ROWS + TRANSACTION_ROWS))
        .await;
}

/// The relay comes back at once, so that it may take many attempts.
async fn drop_slot(client: &Client) {
    wait_until("the slot is dropped", SOON, async || {
        let _ = client.query(TERMINATE, &[]).await;
        let drop = format!("SELECT pg_drop_replication_slot(slot_name) FROM ({SLOT}) slot");
        let dropped = client.query(&drop, &[]).await;
        dropped
            .map(std::mem::drop)
            .map_err(|error| format!("{error:?}"))
    })
    .await;
}

/// An administrator moves the slot past rows that nobody has read.
pub async fn slot_advanced(scene: &Scene) {
    let (rig, client) = swept(scene).await;
    let load = rig.load().await;
    let mut relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    let moves = scene.pick(1, 4, 20);
    for _ in 0..moves {
        rig.await_streaming(&client).await;
        relay.kill9();
        load.progress(50, SOON).await;
        wait_until("the slot is moved", SOON, async || {
            let advance = format!(
                "SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) FROM ({SLOT}) slot"
            );
            let moved = client.query(&advance, &[]).await;
            moved.map(std::mem::drop).map_err(|error| format!("{error:?}"))
        })
        .await;
        scene.ran();
        relay.restart();
        await_publishing(&relay, 0, SOON).await;
    }
    load.stop().await;
    judge(
        scene,
        &rig,
        &relay,
        moves * (WINDOW_ROWS + TRANSACTION_ROWS),
    )
    .await;
}

/// Dropped and created anew, and the table taken out and put back, with rows in between.
pub async fn publication_changed(scene: &Scene) {
    let (rig, client) = swept(scene).await;
    let load = rig.load().await;
    let relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    let publication = rig.config.name();
    for round in 0..scene.pick(1, 4, 20) {
        rig.await_streaming(&client).await;
        let (away, back) = match round % 2 {
            0 => (
                format!("ALTER PUBLICATION {publication} DROP TABLE outbox"),
                format!("ALTER PUBLICATION {publication} ADD TABLE outbox"),
            ),
            _ => (
                format!("DROP PUBLICATION {publication}"),
                format!(
                    "CREATE PUBLICATION {publication} FOR TABLE outbox WITH (publish = 'insert')"
                ),
            ),
        };
        client
            .batch_execute(&away)
            .await
            .expect("change the publication");
        scene.ran();
        load.progress(50, SOON).await;
        client.batch_execute(&back).await.expect("change it back");
        let before = published(&relay).await;
        await_publishing(&relay, before + 100, SOON).await;
    }
    load.stop().await;
    judge(scene, &rig, &relay, WINDOW_ROWS + TRANSACTION_ROWS).await;
}

/// What the relay logs of a gap, however it found it.
const ANNOUNCED: [&str; 3] = [
    "committed rows were missing from the replication stream",
    "the publication does not include all rows",
    "the stream cannot be decoded",
];

/// Nothing is lost, and where rows are out of order the gap was announced: by its rows, or by what made it.
async fn judge(scene: &Scene, rig: &Rig, relay: &Relay, duplicates_max: usize) {
    let mut oracle = rig.oracle().await;
    let mut verdict = oracle.verdict_when_drained(SOON).await;
    let late = std::mem::take(&mut verdict.out_of_order).len();
    let log = relay.log();
    let is_announced = ANNOUNCED.iter().any(|text| log.contains(text));
    scene.require(is_announced, || {
        format!("{late} rows are out of order and no gap was announced")
    });
    scene.remark(format!(
        "{late} rows of gaps, which were announced, stand after newer ones of their aggregate"
    ));
    scene.judged(&verdict, duplicates_max);
}

/// A relay that searches the table every two seconds.
async fn swept(scene: &Scene) -> (Rig, Client) {
    let mut rig = Rig::shared(scene.streamed()).await;
    rig.set("source.replication.sweep", "2s");
    let client = rig.client().await;
    (rig, client)
}
