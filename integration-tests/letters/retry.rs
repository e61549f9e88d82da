//! A blocked aggregate: kept across kills and takeovers, retried, skipped.

use super::*;
use crate::conformance::scene::{count, execute, has, stop};
use crate::harness::relay::Relay;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_blocked_survives_kills_and_takeovers_and_is_mended_by_replication() {
    survives_and_is_mended(STREAMED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_blocked_survives_kills_and_takeovers_and_is_mended_by_polling() {
    survives_and_is_mended(POLLED).await;
}

async fn survives_and_is_mended(pair: Pair) {
    let scene = Scene::new(pair).await;
    let (client, config) = (&scene.client, &scene.config);
    let mut leader = scene.start_steady().await;
    let mut standby = Relay::start(config);
    let mut reader = scene.reader();
    insert(client, "order-0", 1).await;
    let row = insert_at_fault(client, "order-0", 2).await;
    let follower = insert(client, "order-0", 3).await;
    let other = write_others(client, 1..=50).await;
    scene.wait_for_row(&mut reader, other).await;
    wait_until_blocked(config, 2).await;
    // The position passes what is blocked, so its WAL is freed.
    scene.wait_until_confirmed().await;
    leader.kill9();
    let other = write_others(client, 51..=100).await;
    insert(client, "order-0", 4).await;
    scene.wait_for_row(&mut reader, other).await;
    standby.kill9();
    standby.restart();
    let other = write_others(client, 101..=150).await;
    scene.wait_for_row(&mut reader, other).await;
    let entry = wait_until_blocked(config, 3).await;
    let reads = tokio::task::block_in_place(|| reader.read_to_end());
    assert!(
        !has(reads, row) && !has(reads, follower),
        "a held row was published"
    );
    assert_told(&standby, config, &entry, row).await;
    execute(client, "UPDATE outbox SET headers = NULL").await;
    // New rows of the aggregate come in while it is released.
    let writer = scene.database.client().await;
    let writing = tokio::spawn(async move {
        for version in 5..=120 {
            insert(&writer, "order-0", version).await;
        }
    });
    let id = id_of(&entry);
    let told = done(
        config,
        &[
            "blocked",
            "retry",
            &id,
            "--note",
            "headers removed",
            "--actor",
            "ada",
        ],
    );
    assert!(told.contains("released"), "{told}");
    writing.await.expect("the writer ends");
    scene.judge_to_the_end_with(&mut standby, 500).await;
    assert!(done(config, &["blocked", "list"]).contains("nothing is blocked"));
    let history = done(config, &["blocked", "list", "--all"]);
    assert!(
        history.contains("released") && history.contains("ada"),
        "{history}"
    );
}

/// Status, metric, `list` and `show` tell of the row, and what to do.
async fn assert_told(relay: &Relay, config: &RelayConfig, entry: &Value, row: Uuid) {
    assert_eq!(entry["aggregate_id"], "order-0");
    assert_eq!(entry["attempts"], 1);
    assert_eq!(entry["row_id"], row.to_string());
    wait_until("the metric tells of it", SOON, async || {
        match relay.metric("outboxd_held_aggregates").await {
            Some(1.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let status = done(relay.config(), &["status"]);
    assert!(
        status.contains("`outboxd blocked list --config "),
        "{status}"
    );
    let id = id_of(entry);
    let shown = done(config, &["blocked", "show", &id[..5]]);
    for part in [
        "header_reserved",
        "SELECT * FROM",
        &row.to_string(),
        "blocked retry",
    ] {
        assert!(shown.contains(part), "`{part}` is not in: {shown}");
    }
    exits(config, 1, &["blocked", "show", "no-such-id"]);
    let refused = exits(config, 2, &["blocked", "skip", &id, "--note", "n"]);
    assert!(refused.contains("--yes"), "{refused}");
    exits(config, 2, &["blocked", "skip", &id, "--yes"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_not_mended_blocks_again_and_is_skipped_by_replication() {
    blocks_again_and_is_skipped(STREAMED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_not_mended_blocks_again_and_is_skipped_by_polling() {
    blocks_again_and_is_skipped(POLLED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_not_mended_blocks_again_and_is_skipped_with_sent_at() {
    blocks_again_and_is_skipped(pair("polling", "sent_at")).await;
}

async fn blocks_again_and_is_skipped(pair: Pair) {
    let scene = Scene::new(pair).await;
    let (client, config) = (&scene.client, &scene.config);
    let mut relay = scene.start_steady().await;
    let row = insert_at_fault(client, "order-0", 1).await;
    insert(client, "order-0", 2).await;
    let entry = wait_until_blocked(config, 2).await;
    let id = id_of(&entry);
    let again = exits(config, 1, &["blocked", "retry", &id]);
    assert!(again.contains("header_reserved"), "{again}");
    let entry = wait_until_blocked(config, 2).await;
    assert_eq!(
        (&entry["attempts"], id_of(&entry)),
        (&Value::from(2), id.clone())
    );
    // A request without a relay is kept for the next start.
    stop(&mut relay);
    let told = done(
        config,
        &[
            "blocked",
            "skip",
            &id,
            "--yes",
            "--note",
            "sent by hand",
            "--actor",
            "grace",
        ],
    );
    assert!(told.contains("no relay is running"), "{told}");
    relay.restart();
    execute(
        client,
        &format!("DELETE FROM truth WHERE event_id = '{row}'"),
    )
    .await;
    scene.judge().await;
    stop(&mut relay);
    scene.judge().await;
    let sql = "SELECT count(*) FROM outboxd.kept WHERE state = 'discarded' AND actor = 'grace' AND note = 'sent by hand'";
    assert_eq!(count(client, sql).await, 1);
    forgets_after_a_month(&scene, &mut relay).await;
}

/// History goes, and what was given up stays so, though the table is read again.
async fn forgets_after_a_month(scene: &Scene, relay: &mut Relay) {
    let client = &scene.client;
    execute(
        client,
        "UPDATE outboxd.kept SET at = at - interval '31 days'; UPDATE outboxd.blocked SET at = at - interval '31 days';
         UPDATE outboxd.outbox SET caught_up = false",
    )
    .await;
    let sql = "SELECT (SELECT count(*) FROM outboxd.kept) + (SELECT count(*) FROM outboxd.blocked)";
    for _ in 0..2 {
        relay.restart();
        wait_until("history is forgotten", SOON, async || {
            match count(client, sql).await {
                0 => Ok(()),
                other => Err(other),
            }
        })
        .await;
        insert(
            client,
            "order-0",
            count(client, "SELECT max(version) + 1 FROM truth").await,
        )
        .await;
        scene.judge().await;
        stop(relay);
        execute(client, "UPDATE outboxd.outbox SET caught_up = false").await;
    }
}

/// Rows that were inserted and deleted at once, Debezium's habit, exist in the stream only: a copy is kept.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_deleted_at_once_are_copied_and_retried() {
    copies_are_retried(
        STREAMED,
        "BEGIN; ",
        "; DELETE FROM outbox WHERE aggregatetype = 'invoice'; COMMIT",
    )
    .await;
}

/// Nothing marks the table's rows: all that is held is copied.
#[tokio::test(flavor = "multi_thread")]
async fn without_marks_held_rows_are_copied_and_retried() {
    copies_are_retried(pair("replication", "none"), "", "").await;
}

async fn copies_are_retried(pair: Pair, before: &str, after: &str) {
    let scene = without_invoices(pair).await;
    let (client, config) = (&scene.client, &scene.config);
    let mut relay = scene.start_steady().await;
    for versions in [1..=10, 11..=20] {
        execute(client, before).await;
        write_invoice(client, versions).await;
        execute(client, after.trim_start_matches("; ")).await;
    }
    let other = write_others(client, 1..=20).await;
    scene.wait_for_row(&mut scene.reader(), other).await;
    let entry = wait_until_blocked(config, 20).await;
    assert_eq!(entry["copies"], 20, "{entry}");
    scene.wait_until_confirmed().await;
    let id = id_of(&entry);
    let again = exits(config, 1, &["blocked", "retry", &id]);
    assert!(again.contains("topic_not_allowed"), "{again}");
    let entry = wait_until_blocked(config, 20).await;
    assert_eq!(
        (&entry["attempts"], &entry["copies"]),
        (&Value::from(2), &Value::from(20))
    );
    stop(&mut relay);
    let mut relay = Relay::start(&allow_all(config));
    done(config, &["blocked", "retry", "--all"]);
    write_invoice(client, 21..=30).await;
    judge_both(&scene, 0).await;
    stop(&mut relay);
}

/// What stood in the table and was truncated is gone; what comes later is blocked, and released, as before.
#[tokio::test(flavor = "multi_thread")]
async fn new_numbers_after_a_truncate_leave_an_aggregate_blocked_by_polling() {
    truncates(POLLED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_numbers_after_a_truncate_leave_an_aggregate_blocked_by_replication() {
    truncates(STREAMED).await;
}

async fn truncates(pair: Pair) {
    let scene = Scene::new(pair).await;
    let (client, config) = (&scene.client, &scene.config);
    let mut relay = scene.start_steady().await;
    // Polling tells by the highest number, which what comes after must not reach at once.
    write_others(client, 1..=60).await;
    insert_at_fault(client, "order-0", 1).await;
    insert(client, "order-0", 2).await;
    wait_until_blocked(config, 2).await;
    let sql = "SELECT count(*) FROM outbox_status WHERE NOT sent";
    wait_until("all others are marked", SOON, async || {
        match count(client, sql).await {
            2 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    execute(client, "TRUNCATE outbox RESTART IDENTITY").await;
    execute(client, "DELETE FROM truth WHERE aggregate = 'order-0'").await;
    let other = write_others(client, 61..=80).await;
    scene.wait_for_row(&mut scene.reader(), other).await;
    let row = insert(client, "order-0", 3).await;
    let entry = wait_until_blocked(config, 1).await;
    assert!(!has(scene.reader().read_to_end(), row));
    done(config, &["blocked", "retry", &id_of(&entry)]);
    scene.judge_to_the_end(&mut relay).await;
}
