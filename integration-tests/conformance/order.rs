//! Order per aggregate, and nothing that was rolled back.

use std::time::Duration;

use super::scene::{Pair, Scene, execute, insert};
use crate::harness::load::Load;

/// Writers that roll back, commit late, copy and commit in two phases.
pub fn busy(transactions: u64) -> Load {
    Load {
        transactions: Some(transactions),
        aggregates: 20,
        two_phase: 0.05,
        copy: 0.05,
        late: 0.1,
        ..Load::default()
    }
}

pub async fn order_holds_under_load(pair: Pair) {
    let mut scene = Scene::new(pair).await;
    // Small, so that polling always has a backlog: it is read in another way.
    scene.config = scene.config.set("source.polling.batch_rows", 10);
    let mut relay = scene.start();
    busy(300).run(&scene.database.url).await;
    scene.judge_to_the_end(&mut relay).await;
}

pub async fn rolled_back_rows_are_never_published(pair: Pair) {
    let scene = Scene::new(pair).await;
    let mut relay = scene.start();
    let client = &scene.client;
    for version in 1..=20 {
        execute(client, "BEGIN").await;
        insert(client, "order-1", version).await;
        execute(client, "ROLLBACK").await;
        execute(client, "BEGIN").await;
        insert(client, "order-1", version * 2).await;
        execute(client, "SAVEPOINT halfway").await;
        insert(client, "order-2", version).await;
        execute(client, "ROLLBACK TO SAVEPOINT halfway").await;
        insert(client, "order-1", version * 2 + 1).await;
        execute(client, "COMMIT").await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    scene.judge_to_the_end(&mut relay).await;
}
