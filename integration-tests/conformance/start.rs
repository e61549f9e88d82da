//! The first start on a table that holds rows of which nothing is known.

use super::scene::{Pair, SOON, Scene, count, execute, has, insert};
use crate::conformance::order::busy;
use crate::harness::wait_until;

/// How many rows stand in the table.
const ROWS: i64 = 60;

async fn with_rows(pair: Pair) -> Scene {
    let scene = Scene::bare(pair).await;
    scene.create_table("outbox", "json").await;
    for number in 0..ROWS {
        insert(
            &scene.client,
            &format!("order-{}", number % 6),
            number / 6 - 1_000,
        )
        .await;
    }
    scene
}

/// Writers go on while the relay starts; what they write comes behind the old rows of its aggregate.
pub async fn rows_before_the_first_start_come_first(pair: Pair) {
    let mut scene = with_rows(pair).await;
    scene.config = scene.config.clone().set("source.start", "all");
    let load = busy(150).start(&scene.database.url).await;
    load.progress(20, SOON).await;
    let mut relay = scene.start();
    load.join().await;
    scene.judge_to_the_end(&mut relay).await;
}

pub async fn now_skips_what_stands_in_the_table(pair: Pair) {
    let mut scene = with_rows(pair).await;
    // Without their truth the old rows would be phantoms.
    execute(&scene.client, "DELETE FROM truth").await;
    scene.config = scene.config.clone().set("source.start", "now");
    let mut relay = scene.start();
    wait_for_state(&relay, "publishing").await;
    for version in 1..=20 {
        insert(&scene.client, "order-1", version).await;
    }
    scene.judge().await;
    scene.wait_until_confirmed().await;
    // What `now` meant stays what it meant at the first start.
    relay.terminate();
    relay.restart();
    insert(&scene.client, "order-1", 21).await;
    scene.judge().await;
    let standing = count(&scene.client, "SELECT count(*) FROM outbox").await;
    assert!(standing >= ROWS, "skipped rows stay in the table");
}

pub async fn an_unclear_start_is_asked_for(pair: Pair) {
    let mut scene = with_rows(pair).await;
    let mut relay = scene.start();
    wait_for_state(&relay, "halted").await;
    let status = relay.status().await;
    let reason = status["reason"].as_str().unwrap_or_default();
    for part in [&ROWS.to_string(), "source.start", "all", "now"] {
        assert!(reason.contains(part), "`{part}` is not in `{reason}`");
    }
    assert!(relay.log().contains("source.start"));
    let new = insert(&scene.client, "order-1", 1).await;
    assert!(!has(scene.reader().read_to_end(), new));
    assert!(relay.terminate().success());
    scene.config = scene.config.clone().set("source.start", "all");
    let mut relay = scene.start();
    scene.judge_to_the_end(&mut relay).await;
}

pub async fn wait_for_state(relay: &crate::harness::relay::Relay, state: &str) {
    let what = format!("the relay is {state}");
    wait_until(&what, SOON, async || {
        let status = relay.try_status()?;
        if status["state"] == state {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
}
