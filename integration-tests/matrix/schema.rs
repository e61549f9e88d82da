//! What happens to the outbox table's shape, and other things that a database can hold.

use tokio_postgres::Client;

use super::rig::{Pair, Rig, SOON, WINDOW_ROWS, await_publishing, published};
use super::scene::{Scene, both, both_or_unmarked};
use crate::harness::load::write_rows;
use crate::harness::order_writer::Fate;
use crate::harness::relay::Relay;
use crate::harness::wait_until;
use crate::orders::wait_for_status;

/// Columns that the relay does not need come, change and go; then one that it needs is gone for a while.
pub async fn altered(scene: &Scene) {
    both_or_unmarked(scene, alter).await;
}

async fn alter(scene: &Scene, pair: Pair) {
    let rig = Rig::shared(pair).await;
    let client = rig.client().await;
    let load = rig.load().await;
    let mut relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    let changes = [
        "ALTER TABLE outbox ADD COLUMN tenant text",
        "ALTER TABLE outbox ADD COLUMN shard integer NOT NULL DEFAULT 7",
        "ALTER TABLE outbox RENAME COLUMN tenant TO customer",
        "ALTER TABLE outbox ALTER COLUMN shard TYPE bigint",
        "ALTER TABLE outbox DROP COLUMN customer",
        "ALTER TABLE outbox DROP COLUMN shard",
        "ALTER TABLE outbox RENAME TO outbox_away; ALTER TABLE outbox_away RENAME TO outbox",
    ];
    for change in changes {
        execute(&client, change).await;
        scene.ran();
        let before = published(&relay).await;
        await_publishing(&relay, before + 50, SOON).await;
    }
    load.stop().await;
    lose_a_column(&relay, &client).await;
    scene.ran();
    rig.show_log(scene, 0).await;
    scene.require(relay.is_running(), || "the relay has ended".into());
}

/// Nothing is published without a column that must be there, and the reason is shown, until it is back.
async fn lose_a_column(relay: &Relay, client: &Client) {
    execute(
        client,
        "ALTER TABLE outbox RENAME COLUMN aggregateid TO gone",
    )
    .await;
    // By replication only a row tells of it; nobody reads its topic.
    execute(
        client,
        "INSERT INTO outbox (aggregatetype, gone, type) VALUES ('untold', '1', 'Untold')",
    )
    .await;
    let says = |status: &serde_json::Value| {
        status["state"] != "publishing" && status.to_string().contains("aggregateid")
    };
    wait_for_status(relay, "it misses the column", says).await;
    execute(
        client,
        "ALTER TABLE outbox RENAME COLUMN gone TO aggregateid",
    )
    .await;
    write_rows(client, 0, 50, Fate::Commit)
        .await
        .expect("write rows");
    let before = published(relay).await;
    await_publishing(relay, before, SOON).await;
}

/// The payload becomes another type while rows are on their way: its bytes follow the documented rule of each type.
pub async fn payload_type_changed(scene: &Scene) {
    both(scene, async |scene, pair| {
        let rig = Rig::shared(pair).await;
        let client = rig.client().await;
        let load = rig.load().await;
        let mut relay = rig.relay();
        await_publishing(&relay, 0, SOON).await;
        // A column that a view shows can't change its type.
        execute(&client, "DROP VIEW outbox_status").await;
        for (kind, using) in [
            ("text", "payload::text"),
            ("jsonb", "payload::jsonb"),
            ("bytea", "convert_to(payload::text, 'UTF8')"),
            ("json", "convert_from(payload, 'UTF8')::json"),
        ] {
            execute(
                &client,
                // The view holds every column; the relay creates it again.
                &format!(
                    "BEGIN; DROP VIEW IF EXISTS outbox_status; \
                     ALTER TABLE outbox ALTER COLUMN payload TYPE {kind} USING {using}; COMMIT"
                ),
            )
            .await;
            scene.ran();
            let before = published(&relay).await;
            await_publishing(&relay, before + 50, SOON).await;
        }
        // Such a change writes every row anew: one that was read and not marked yet is another version then.
        let versions = match pair {
            Pair(_, "sent_at" | "delete") => 4 * WINDOW_ROWS,
            _ => 0,
        };
        rig.show(scene, load, versions).await;
        scene.require(relay.is_running(), || "the relay has ended".into());
    })
    .await;
}

/// Messages in the write-ahead log that are no rows.
pub async fn logical_messages(scene: &Scene) {
    let rig = Rig::shared(scene.streamed_or_unmarked()).await;
    let client = rig.client().await;
    let load = rig.load().await;
    let relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    for number in 0..scene.pick(20, 100, 1_000) {
        let is_transactional = number % 2 == 0;
        let sql =
            format!("SELECT pg_logical_emit_message({is_transactional}, 'outbox', 'a phantom')");
        execute(
            &client,
            &format!(
                "BEGIN; {sql}; {}",
                if number % 4 < 2 { "ROLLBACK" } else { "COMMIT" }
            ),
        )
        .await;
        scene.ran();
    }
    let before = published(&relay).await;
    await_publishing(&relay, before, SOON).await;
    rig.show(scene, load, 0).await;
}

/// By replication a row that was inserted is published, whatever happens to it in the table.
pub async fn unsent_rows_deleted(scene: &Scene) {
    let rig = Rig::shared(scene.streamed()).await;
    let client = rig.client().await;
    let mut relay = rig.relay();
    crate::harness::load::prepare(&client, 50).await;
    rig.await_streaming(&client).await;
    for round in 0..scene.pick(1, 3, 10) {
        assert!(relay.terminate().success());
        write_rows(&client, round, 50, Fate::Commit)
            .await
            .expect("write rows");
        execute(&client, "DELETE FROM outbox").await;
        scene.ran();
        relay.restart();
        await_publishing(&relay, 0, SOON).await;
    }
    rig.show_log(scene, 0).await;
    scene
        .remark("by polling, rows that others delete before they are sent are gone, as documented");
}

/// A slot that decodes with the least memory, so that transactions spill to disk.
pub async fn spilled(scene: &Scene) {
    use crate::harness::kafka::Kafka;
    use crate::harness::postgres::{Postgres, USUAL};
    let postgres = Postgres::start_with(USUAL, &[("logical_decoding_work_mem", "64kB")]);
    let rig = Rig::new(scene.streamed(), &postgres, Kafka::shared().await).await;
    let client = rig.client().await;
    let load = rig.load().await;
    let relay = rig.relay();
    await_publishing(&relay, 0, SOON).await;
    rig.await_streaming(&client).await;
    for round in 0..scene.pick(1, 3, 10) {
        write_rows(&client, round, 20_000, Fate::Commit)
            .await
            .expect("write rows");
        scene.ran();
    }
    rig.show(scene, load, 0).await;
    let sql = "SELECT coalesce(sum(spill_txns), 0)::bigint FROM pg_stat_replication_slots";
    let spills: i64 = client
        .query_one(sql, &[])
        .await
        .expect("ask for spills")
        .get(0);
    scene.require(spills > 0, || "nothing was spilled".into());
}

/// DDL waits its turn behind the writers, without making them wait for long.
async fn execute(client: &Client, sql: &str) {
    wait_until(sql, SOON, async || {
        let done = client
            .batch_execute(&format!("SET lock_timeout = '2s'; {sql}"))
            .await;
        if done.is_err() {
            let _ = client.batch_execute("ROLLBACK").await;
        }
        done.map_err(|error| format!("{error:?}"))
    })
    .await;
}
