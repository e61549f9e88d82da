//! What a polled table costs while nothing happens.

use std::time::Duration;

use super::scene::{Pair, Scene, count, execute, insert};

/// A server's processes report what they did once a second, and up to ten seconds late when they fell idle.
const WINDOW_MS: u64 = 3_000;

/// Late reports can fill the first ones.
const WINDOWS: usize = 4;

const INTERVAL_MS: u64 = 100;

/// A pause is up to a tenth shorter than the interval.
const TURNS_MAX: u64 = WINDOW_MS * 10 / (INTERVAL_MS * 9);

/// A turn of an idle table is one statement; as many again are for everything else that a relay asks: a second brings one
/// renewal of the lease and one look for requests about blocked rows, two transactions each.
const TRANSACTIONS_MAX: u64 = 2 * TURNS_MAX;

const TRANSACTIONS: &str =
    "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";

/// Payloads stand apart from their rows.
const PAYLOAD_BLOCKS: &str =
    "SELECT coalesce(toast_blks_hit + toast_blks_read, 0) FROM pg_statio_user_tables
    WHERE relid = 'outbox'::regclass";

/// Shown by the server's count of transactions in the relay's database.
pub async fn an_idle_table_costs_next_to_nothing(pair: Pair) {
    let mut scene = Scene::new(pair).await;
    // As often as the table would be swept it is checked in the catalog, too: seldom, unless tests hurry.
    scene.config = scene
        .config
        .set("source.replication.sweep", "30s")
        .set("source.polling.interval", format!("{INTERVAL_MS}ms"));
    let _relay = scene.start();
    for version in 1..=50 {
        insert(&scene.client, "order-1", version).await;
    }
    scene.judge().await;
    scene.wait_until_marked().await;
    assert_windows(&scene, "transactions", TRANSACTIONS, TRANSACTIONS_MAX).await;
}

/// The row that was read last stands at the end of the table for ever; its payload is not read again and again.
pub async fn an_idle_table_with_a_large_row_is_not_read(pair: Pair) {
    let mut scene = Scene::new(pair).await;
    let interval = format!("{INTERVAL_MS}ms");
    scene.config = scene.config.set("source.polling.interval", interval);
    let apart = "ALTER TABLE outbox ALTER payload SET STORAGE EXTERNAL;
        INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
        VALUES ('order', 'order-1', 'Made', json_build_object('note', repeat('x', 100000)))";
    execute(&scene.client, apart).await;
    let _relay = scene.start();
    scene.wait_for(&mut scene.reader(), 1).await;
    scene.wait_until_marked().await;
    assert_windows(&scene, "reads of payload blocks", PAYLOAD_BLOCKS, 0).await;
}

/// Fails unless a count of the server grows by no more than this in a window.
async fn assert_windows(scene: &Scene, what: &str, query: &str, at_most: u64) {
    let mut seen = Vec::new();
    while seen.last().is_none_or(|count| *count > at_most) {
        assert!(
            seen.len() < WINDOWS,
            "{seen:?} {what} in windows of {WINDOW_MS} ms, at most {at_most} are right"
        );
        let before = counted(scene, query).await;
        tokio::time::sleep(Duration::from_millis(WINDOW_MS)).await;
        seen.push(counted(scene, query).await - before);
    }
}

async fn counted(scene: &Scene, query: &str) -> u64 {
    let count = count(&scene.client, query).await;
    count.try_into().expect("no count is negative")
}
