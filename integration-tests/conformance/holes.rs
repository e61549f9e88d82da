//! Numbers that are missing for a while: late commits and prepared transactions.

use super::scene::{Pair, Scene, execute, has, insert, stop};

/// The order of commits, not of numbers, is the order of an aggregate.
pub async fn a_hole_that_fills_late_is_published(pair: Pair) {
    let scene = Scene::new(pair).await;
    let mut relay = scene.start_steady().await;
    let mut reader = scene.reader();
    let (early, late) = (&scene.client, scene.database.client().await);
    execute(&late, "BEGIN").await;
    let first_number = insert(&late, "order-1", 2).await;
    let first_commit = insert(early, "order-1", 1).await;
    scene.wait_for_row(&mut reader, first_commit).await;
    for version in 1..=30 {
        insert(early, "order-2", version).await;
    }
    assert!(!has(reader.read_to_end(), first_number));
    execute(&late, "COMMIT").await;
    scene.wait_for_row(&mut reader, first_number).await;
    scene.judge_to_the_end(&mut relay).await;
}

/// The hole outlives a restart of the relay, and one that is rolled back is never filled.
pub async fn a_prepared_hole_is_published_when_it_is_committed(pair: Pair) {
    let scene = Scene::new(pair).await;
    let mut relay = scene.start_steady().await;
    let mut reader = scene.reader();
    let (client, name) = (&scene.client, &scene.database.name);
    execute(client, "BEGIN").await;
    let committed = insert(client, "order-1", 2).await;
    execute(client, &format!("PREPARE TRANSACTION '{name}-c'")).await;
    execute(client, "BEGIN").await;
    insert(client, "order-3", 1).await;
    execute(client, &format!("PREPARE TRANSACTION '{name}-r'")).await;
    let other = insert(client, "order-1", 1).await;
    scene.wait_for_row(&mut reader, other).await;
    stop(&mut relay);
    relay.restart();
    let other = insert(client, "order-2", 1).await;
    scene.wait_for_row(&mut reader, other).await;
    assert!(!has(reader.read_to_end(), committed));
    execute(client, &format!("COMMIT PREPARED '{name}-c'")).await;
    execute(client, &format!("ROLLBACK PREPARED '{name}-r'")).await;
    scene.wait_for_row(&mut reader, committed).await;
    insert(client, "order-3", 2).await;
    scene.judge_to_the_end(&mut relay).await;
}
