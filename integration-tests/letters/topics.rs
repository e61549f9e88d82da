//! Topics that can't be written: held durably, released without anybody acting.

use super::*;
use crate::conformance::scene::stop;

#[tokio::test(flavor = "multi_thread")]
async fn a_held_topic_survives_kills_and_is_released_in_order_by_replication() {
    held(STREAMED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_topic_survives_kills_and_is_released_in_order_by_polling() {
    held(POLLED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_topic_survives_kills_and_is_released_in_order_without_marks() {
    held(pair("replication", "none")).await;
}

/// Matrix row 62.
async fn held(pair: Pair) {
    let scene = Scene::new(pair).await;
    let (client, config) = (&scene.client, &scene.config);
    let mut relay = scene.start_steady().await;
    let mut reader = scene.reader();
    write_invoice(client, 1..=40).await;
    let other = write_others(client, 1..=20).await;
    scene.wait_for_row(&mut reader, other).await;
    let entry = wait_until_blocked(config, 40).await;
    assert_eq!(entry["topic"], scene.config.topic_of("invoice"));
    // The position passes rows whose topic is away.
    scene.wait_until_confirmed().await;
    relay.kill9();
    relay.restart();
    write_invoice(client, 41..=60).await;
    let other = write_others(client, 21..=40).await;
    scene.wait_for_row(&mut reader, other).await;
    let entry = wait_until_blocked(config, 60).await;
    let refused = exits(
        config,
        1,
        &["blocked", "skip", &id_of(&entry), "--yes", "--note", "n"],
    );
    assert!(refused.contains("is a topic"), "{refused}");
    scene.create_topic(&config.topic_of("invoice"), &[]).await;
    write_invoice(client, 61..=80).await;
    // A kill repeats what was sent and not marked; without marks, what was not confirmed.
    judge_both(&scene, 100).await;
    wait_until("nothing is held", SOON, async || {
        match list(config, "blocked") {
            list if list.is_empty() => Ok(()),
            list => Err(format!("{list:?}")),
        }
    })
    .await;
    scene.wait_until_marked().await;
    stop(&mut relay);
}
