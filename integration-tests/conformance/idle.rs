//! What a polled table costs while nothing happens.

use std::time::Duration;

use super::scene::{Pair, Scene, count, insert};

/// A server's processes report what they did once a second, and up to ten seconds late when they fell idle.
const WINDOW_MS: u64 = 3_000;

/// Late reports can fill the first ones.
const WINDOWS: usize = 4;

const INTERVAL_MS: u64 = 100;

/// A pause is up to a tenth shorter than the interval.
const TURNS_MAX: u64 = WINDOW_MS * 10 / (INTERVAL_MS * 9);

/// A turn of an idle table is one statement; as many again are for everything else that a relay asks: a second brings one
/// renewal of the lease and one look for wishes about blocked rows, two transactions each.
const TRANSACTIONS_MAX: u64 = 2 * TURNS_MAX;

/// Shown by the server's count of transactions in the relay's database.
pub async fn an_idle_table_costs_next_to_nothing(pair: Pair) {
    let mut scene = Scene::new(pair).await;
    // As often as the table would be swept it is surveyed, too: seldom, unless tests hurry.
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
    let mut seen = Vec::new();
    while seen.last().is_none_or(|count| *count > TRANSACTIONS_MAX) {
        assert!(
            seen.len() < WINDOWS,
            "{seen:?} transactions in windows of {WINDOW_MS} ms, at most {TRANSACTIONS_MAX} are right"
        );
        seen.push(transactions_of_a_window(&scene).await);
    }
}

async fn transactions_of_a_window(scene: &Scene) -> u64 {
    let before = transactions(scene).await;
    tokio::time::sleep(Duration::from_millis(WINDOW_MS)).await;
    transactions(scene).await - before
}

async fn transactions(scene: &Scene) -> u64 {
    let sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    let transactions = count(&scene.client, sql).await;
    transactions.try_into().expect("no count is negative")
}
