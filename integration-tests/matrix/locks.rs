//! What others do in the database: long transactions, locks, deadlocks.

use std::time::Duration;

use tokio_postgres::Client;

use super::rig::{POLLED, Pair, Rig, SOON, await_publishing, published};
use super::scene::{Scene, both_or_unmarked};
use crate::harness::load::{begin_rows, prepare};
use crate::harness::postgres::{Postgres, USUAL};

/// The relay gives up a lock that it can't have; the server's timeout, and a look.
const WAITS_FOR_A_LOCK_MAX: f64 = 6.0;

/// An aggregate that no writer of the load locks.
const OWN: u32 = 50;

/// Rows that are written and not committed for long, here and in another database: all others flow.
pub async fn long_transaction(scene: &Scene) {
    both_or_unmarked(scene, async |scene, pair| {
        let rig = Rig::shared(pair).await;
        let client = rig.client().await;
        prepare(&client, OWN + 1).await;
        let neighbour = Postgres::shared(USUAL).await.client("postgres").await;
        let load = rig.load().await;
        let relay = rig.relay();
        await_publishing(&relay, 0, SOON).await;
        begin_rows(&client, OWN, 20)
            .await
            .expect("begin a long transaction");
        let other = "BEGIN; SELECT pg_current_xact_id()";
        neighbour
            .batch_execute(other)
            .await
            .expect("begin another one");
        scene.ran();
        let pauses = scene.pick(2, 4, 60);
        for _ in 0..pauses {
            tokio::time::sleep(Duration::from_secs(scene.pick(3, 5, 10))).await;
            let before = published(&relay).await;
            await_publishing(&relay, before, SOON).await;
        }
        client.batch_execute("COMMIT").await.expect("commit");
        neighbour.batch_execute("COMMIT").await.expect("commit");
        rig.show(scene, load, 0).await;
    })
    .await;
}

/// A prepared transaction that nobody ends for long.
pub async fn prepared_and_forgotten(scene: &Scene) {
    both_or_unmarked(scene, async |scene, pair| {
        let rig = Rig::shared(pair).await;
        let client = rig.client().await;
        prepare(&client, OWN + 1).await;
        let load = rig.load().await;
        let relay = rig.relay();
        await_publishing(&relay, 0, SOON).await;
        begin_rows(&client, OWN, 20).await.expect("begin");
        let name = format!("forgotten-{}", rig.database.name);
        let prepare = format!("PREPARE TRANSACTION '{name}'");
        client.batch_execute(&prepare).await.expect("prepare");
        scene.ran();
        tokio::time::sleep(Duration::from_secs(scene.pick(5, 15, 120))).await;
        let before = published(&relay).await;
        await_publishing(&relay, before, SOON).await;
        // Who reads unsent rows looks for no holes.
        if pair == POLLED {
            let holes = relay.metric("outboxd_holes_open").await;
            scene.require(holes.unwrap_or_default() >= 1.0, || {
                format!("holes shown: {holes:?}")
            });
        }
        let commit = format!("COMMIT PREPARED '{name}'");
        client.batch_execute(&commit).await.expect("commit");
        rig.show(scene, load, 0).await;
    })
    .await;
}

/// An administrator holds the outbox exclusively; then VACUUM FULL.
pub async fn table_locked(scene: &Scene) {
    tokio::join!(
        lock_table(scene, scene.streamed()),
        lock_table(scene, scene.polled()),
        lock_table(scene, Pair("replication", "delete"))
    );
}

async fn lock_table(scene: &Scene, pair: Pair) {
    let rig = Rig::shared(pair).await;
    let (client, watcher) = (rig.client().await, rig.client().await);
    let load = rig.load().await;
    let mut relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    let lock = "BEGIN; LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE";
    client.batch_execute(lock).await.expect("lock the outbox");
    scene.ran();
    for _ in 0..scene.pick(10, 20, 60) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let waited = longest_wait(&watcher).await;
        scene.require(waited < WAITS_FOR_A_LOCK_MAX, || {
            format!("{pair:?}: waited {waited:.1} s for a lock")
        });
    }
    client
        .batch_execute("COMMIT")
        .await
        .expect("let the outbox go");
    let before = published(&relay).await;
    await_publishing(&relay, before, SOON).await;
    client
        .batch_execute("VACUUM FULL outbox")
        .await
        .expect("vacuum");
    scene.ran();
    let before = published(&relay).await;
    await_publishing(&relay, before, SOON).await;
    rig.show(scene, load, 0).await;
    scene.require(relay.is_running(), || "the relay has ended".into());
}

/// How long a session of the relay has waited for a lock, in seconds.
async fn longest_wait(client: &Client) -> f64 {
    let sql = "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - query_start)), 0)::float8
               FROM pg_stat_activity WHERE datname = current_database()
               AND application_name LIKE 'outboxd%' AND wait_event_type = 'Lock'";
    client
        .query_one(sql, &[])
        .await
        .expect("look at the waits")
        .get(0)
}

/// An administrator locks unsent and sent rows in the opposite order of the marks.
pub async fn rows_locked(scene: &Scene) {
    tokio::join!(
        lock_rows(scene, Pair("replication", "delete")),
        lock_rows(scene, Pair("polling", "sent_at"))
    );
}

async fn lock_rows(scene: &Scene, pair: Pair) {
    let rig = Rig::shared(pair).await;
    let client = rig.client().await;
    let load = rig.load().await;
    let relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    for _ in 0..scene.pick(20, 60, 300) {
        let sql = "BEGIN;
                   SELECT FROM outbox WHERE seq = (SELECT max(seq) FROM outbox) FOR UPDATE;
                   SELECT pg_sleep(0.1);
                   SELECT FROM (SELECT FROM outbox ORDER BY seq DESC LIMIT 200 FOR UPDATE) locked;
                   ROLLBACK";
        // It may be the one that the server ends.
        if client.batch_execute(sql).await.is_err() {
            let _ = client.batch_execute("ROLLBACK").await;
        }
        scene.ran();
    }
    let before = published(&relay).await;
    await_publishing(&relay, before, SOON).await;
    rig.show(scene, load, 0).await;
}
