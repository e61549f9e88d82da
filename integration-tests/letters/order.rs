//! Dead letters behind rows that a topic holds, of one aggregate: they are released together and go out in order.

use super::*;
use crate::conformance::scene::{execute, stop};
use crate::harness::relay::Relay;

const RECORD_BYTES_MAX: usize = 20_000;

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_wait_for_what_their_topic_held_by_replication() {
    released_together(STREAMED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_wait_for_what_their_topic_held_by_polling() {
    released_together(POLLED).await;
}

/// The dead letters' rows are marked in the table, the others are not.
#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_wait_for_what_their_topic_held_with_sent_at() {
    released_together(pair("replication", "sent_at")).await;
}

/// The rows that the topic held are read again, behind their aggregate's dead letters, and die after them.
#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_wait_for_what_their_topic_held_with_delete() {
    released_together(pair("polling", "delete")).await;
}

async fn released_together(pair: Pair) {
    let mut scene = Scene::new(pair).await;
    let wide = scene.config.clone().set("faults.policy", "dead_letter");
    let narrow = RECORD_BYTES_MAX.to_string();
    scene.config = wide.clone().kafka_property("message.max.bytes", &narrow);
    let (client, config) = (&scene.client, &scene.config);
    let mut relay = scene.start_steady().await;
    write_invoice(client, 1..=20).await;
    insert_just_too_large(client, 21).await;
    write_invoice(client, 22..=30).await;
    let letters = wait_for_letters(config, 10).await;
    assert_eq!(letters[0]["reason"], "too_large");
    stop(&mut relay);
    let mut relay = Relay::start(&wide);
    let other = write_others(client, 1..=20).await;
    scene.wait_for_row(&mut scene.reader(), other).await;
    // The relay learns of the topic first, and sees the request when it releases what the topic held.
    let request = "BEGIN; LOCK TABLE outboxd.blocked IN ACCESS EXCLUSIVE MODE;
        UPDATE outboxd.blocked SET state = 'retry' WHERE kind = 'aggregate'";
    let operator = scene.database.client().await;
    execute(&operator, request).await;
    scene.create_topic(&config.topic_of("invoice"), &[]).await;
    relay
        .wait_for_log("a paused topic can be written again", SOON)
        .await;
    write_invoice(client, 31..=40).await;
    execute(&operator, "COMMIT").await;
    judge_both(&scene, 0).await;
    scene.wait_until_marked().await;
    wait_for_letters(config, 0).await;
    stop(&mut relay);
}

/// Its payload is read, and its record has no room for key and headers: with a larger limit it is no longer at fault.
async fn insert_just_too_large(client: &Client, version: i64) {
    let row = Truth {
        event_id: Uuid::new_v4(),
        aggregate: "invoice-1".to_owned(),
        version,
    };
    let room = RECORD_BYTES_MAX - payload(&row, "").len();
    let sql = "WITH truth AS (INSERT INTO truth VALUES ($1, $2, $3))
               INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
               VALUES ($1, 'invoice', $2, 'Changed', $4::text::json)";
    let payload = payload(&row, &"x".repeat(room));
    client
        .execute(sql, &[&row.event_id, &row.aggregate, &version, &payload])
        .await
        .expect("insert a row that is just too large");
}
