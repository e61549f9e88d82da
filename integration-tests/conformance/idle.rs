//! What a polled table costs while nothing happens.

use std::time::Duration;

use super::scene::{Pair, Scene, count, insert};
use crate::harness::relay::Relay;

const WATCHED: Duration = Duration::from_secs(3);

/// A turn of an idle table is a few statements each 100 ms, and next to no time of the processor.
pub async fn an_idle_table_costs_next_to_nothing(pair: Pair) {
    let scene = Scene::new(pair).await;
    let relay = scene.start();
    for version in 1..=50 {
        insert(&scene.client, "order-1", version).await;
    }
    scene.judge().await;
    scene.wait_until_marked().await;
    let (transactions, used) = (transactions(&scene).await, processor_time(&relay));
    tokio::time::sleep(WATCHED).await;
    let transactions = transactions_since(&scene, transactions).await;
    let used = processor_time(&relay) - used;
    println!("{pair:?}: {transactions} transactions, {used:?} in {WATCHED:?}");
    assert!(
        transactions <= 300,
        "{transactions} transactions in {WATCHED:?}"
    );
    assert!(
        used <= WATCHED / 10,
        "{used:?} of the processor in {WATCHED:?}"
    );
}

async fn transactions_since(scene: &Scene, before: i64) -> i64 {
    transactions(scene).await - before
}

async fn transactions(scene: &Scene) -> i64 {
    let sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    count(&scene.client, sql).await
}

/// User and system time so far, in ticks of 10 ms.
fn processor_time(relay: &Relay) -> Duration {
    let stat =
        std::fs::read_to_string(format!("/proc/{}/stat", relay.id())).expect("the relay runs");
    let (_, fields) = stat.rsplit_once(") ").expect("a process has a name");
    let ticks: u64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}
