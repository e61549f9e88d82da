//! Rows that a query does not return: their commit is flushed and not visible yet, somebody deleted them, or they are not
//! what they were when they were read.

use tokio_postgres::Client;

use super::scene::{Pair, SOON, Scene, count, execute, insert, insert_of, stop};
use crate::harness::postgres::{Postgres, USUAL};
use crate::harness::standby::FlushingStandby;
use crate::harness::wait_until;

/// A commit that waits for a standby to apply it is flushed and sent by the walsender, and visible to nobody. The relay
/// starts, is stopped and killed meanwhile: the row is published once, before what follows it, and marked when it is
/// visible. A mark gave up after 5 s once, and the sweep sent the row again.
pub async fn a_commit_that_nobody_sees_is_published_once(pair: Pair) {
    let mut postgres = Postgres::start(USUAL);
    let mut scene = Scene::on(&postgres, pair).await;
    scene.config = scene.config.clone().set("source.replication.sweep", "1s");
    scene.config.migrate();
    let mut relay = scene.start_steady().await;
    insert(&scene.client, "order-1", 1).await;
    scene.judge().await;
    stop(&mut relay);
    let standby = FlushingStandby::start(&mut postgres).await;
    let writer = scene.database.client().await;
    execute(&writer, "SET synchronous_commit = remote_apply").await;
    let waits = tokio::spawn(async move { insert(&writer, "order-1", 2).await });
    wait_until("the commit waits", SOON, async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        match count(&scene.client, sql).await {
            0 => Err("nobody waits"),
            _ => Ok(()),
        }
    })
    .await;
    let sql = "SELECT count(*) FROM outbox WHERE aggregateid = 'order-1'";
    let visible = count(&scene.client, sql).await;
    relay.restart();
    let mut reader = scene.reader();
    scene.wait_for(&mut reader, 2).await;
    assert_eq!(count(&scene.client, sql).await, visible, "it is invisible");
    others_flow(&scene, 7).await;
    stop(&mut relay);
    relay.restart();
    others_flow(&scene, 7).await;
    if pair.mark != "none" {
        relay.kill9();
        relay.restart();
        others_flow(&scene, 2).await;
    }
    standby.end(&mut postgres).await;
    waits.await.expect("the commit returns");
    insert(&scene.client, "order-1", 3).await;
    scene.judge_to_the_end(&mut relay).await;
}

/// Writes rows of another aggregate, one after the other, and waits until each is in Kafka; half a second lies between
/// them, so that the relay's timers have run.
async fn others_flow(scene: &Scene, rows: i64) {
    let sql = "SELECT coalesce(max(version), 0) FROM truth WHERE aggregate = 'order-2'";
    let before = count(&scene.client, sql).await;
    let mut reader = scene.reader();
    for version in before + 1..=before + rows {
        let id = insert(&scene.client, "order-2", version).await;
        scene.wait_for_row(&mut reader, id).await;
        execute(&scene.client, "SELECT pg_sleep(0.5)").await;
    }
}

/// By replication rows that the application deletes itself are sent all the same, in the transaction that inserts them
/// (Debezium's habit) or later, whether the relay is there or not; and once, when the stream comes again.
pub async fn rows_that_are_deleted_before_they_are_read_are_published(pair: Pair) {
    let scene = Scene::new(pair).await;
    let mut relay = scene.start_steady().await;
    insert(&scene.client, "order-1", 1).await;
    scene.judge().await;
    stop(&mut relay);
    let mut version = 1;
    for _ in 0..20 {
        version += 1;
        insert_and_delete(&scene.client, version).await;
    }
    for _ in 0..20 {
        version += 1;
        insert(&scene.client, "order-1", version).await;
    }
    execute(&scene.client, "DELETE FROM outbox").await;
    relay.restart();
    scene.judge().await;
    stop(&mut relay);
    relay.restart();
    insert(&scene.client, "order-1", version + 1).await;
    scene.judge_to_the_end(&mut relay).await;
}

async fn insert_and_delete(client: &Client, version: i64) {
    execute(client, "BEGIN").await;
    let id = insert(client, "order-1", version).await;
    let delete = "DELETE FROM outbox WHERE id = $1";
    client.execute(delete, &[&id]).await.expect("delete a row");
    execute(client, "COMMIT").await;
}

/// The same under load, with walsenders that are ended: six cuts lost 453 of 3,000 rows.
pub async fn cut_streams_lose_no_row_that_is_deleted(pair: Pair) {
    let scene = Scene::new(pair).await;
    let mut relay = scene.start_steady().await;
    let cuts = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
                WHERE database = current_database() AND active";
    for version in 1..=600 {
        insert_and_delete(&scene.client, version).await;
        if version % 100 == 0 {
            execute(&scene.client, cuts).await;
        }
    }
    // Without marks the slot is all that is known, and it moves by the batch: what a batch held may come again (S6), and
    // that may be every row between two cuts.
    let repeated = if pair.mark == "none" { 600 } else { 0 };
    scene.judge_to_the_end_with(&mut relay, repeated).await;
}

/// An outbox whose rows are coalesced: a row that was read changes before it is marked. The mark is for the version that
/// was read, so that the newest state is published, too. Nobody else waits for the lock on it.
pub async fn a_row_that_changes_before_its_mark_is_published_again(pair: Pair) {
    let scene = Scene::new(pair).await;
    let mut relay = scene.start_steady().await;
    insert(&scene.client, "order-1", 1).await;
    scene.judge_to_the_end(&mut relay).await;
    let other = scene.config.topic_of("other");
    scene.create_topic(&other, &[]).await;
    let id = insert_of(&scene.client, "other", "other-1", 1).await;
    let mut holder = scene.database.client().await;
    let lock = holder.transaction().await.expect("open a transaction");
    let sql = "SELECT FROM outbox WHERE id = $1 FOR UPDATE";
    lock.query_one(sql, &[&id]).await.expect("lock the row");
    relay.restart();
    let mut reader = scene.kafka.reader(&[&other]);
    scene.wait_for_row(&mut reader, id).await;
    others_flow(&scene, 4).await;
    let change = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) \
                  VALUES ($1, 'other', 'other-1', 'Changed', '{\"newest\":true}') \
                  ON CONFLICT (id) DO UPDATE SET payload = excluded.payload";
    lock.execute(change, &[&id]).await.expect("change the row");
    lock.commit().await.expect("commit");
    wait_until("the newest state is in Kafka", SOON, async || {
        let reads = tokio::task::block_in_place(|| reader.read_to_end());
        match reads.last().and_then(|read| read.value_text()) {
            Some(text) if text.contains("newest") => Ok(()),
            _ => Err(format!("{} records are", reads.len())),
        }
    })
    .await;
    scene.wait_until_marked().await;
    stop(&mut relay);
}
