//! Topics that do not exist: held until somebody creates them, or created by the relay.

use super::scene::{Pair, SOON, Scene, insert, insert_of, stop};
use crate::harness::oracle::Oracle;
use crate::harness::relay::Relay;
use crate::harness::wait_until;

/// Resumes by itself, in order, without a restart; other topics never wait.
pub async fn an_unknown_topic_is_held_until_it_is_created(pair: Pair) {
    let scene = Scene::new(pair).await;
    let mut relay = scene.start_steady().await;
    let unknown = scene.config.topic_of("invoice");
    write_both(&scene, 1..=30).await;
    scene.wait_for(&mut scene.reader(), 30).await;
    wait_until_shown(&relay, &unknown).await;
    assert!(relay.log().contains(&unknown));
    wait_until("the metric tells of its rows", SOON, async || {
        let rows = relay.metric("outboxd_held_rows").await;
        if rows == Some(30.0) {
            Ok(())
        } else {
            Err(format!("{rows:?}"))
        }
    })
    .await;
    write_both(&scene, 31..=60).await;
    scene.wait_for(&mut scene.reader(), 60).await;
    scene.create_topic(&unknown, &[]).await;
    write_both(&scene, 61..=90).await;
    judge_both(&scene, &unknown).await;
    scene.wait_until_marked().await;
    scene.wait_until_confirmed().await;
    stop(&mut relay);
}

pub async fn a_missing_topic_is_created_where_that_is_configured(pair: Pair) {
    let mut scene = Scene::new(pair).await;
    scene.config = scene
        .config
        .clone()
        .set("kafka.topics.create", true)
        .set("kafka.topics.partitions", 3)
        .set("kafka.topics.replication_factor", 1);
    let _relay = scene.start();
    write_both(&scene, 1..=30).await;
    let created = scene.config.topic_of("invoice");
    wait_until("the topic exists", SOON, async || {
        let consumer: rdkafka::consumer::BaseConsumer = scene
            .kafka
            .client()
            .create()
            .map_err(|error| error.to_string())?;
        let metadata = rdkafka::consumer::Consumer::fetch_metadata(&consumer, None, SOON)
            .map_err(|error| error.to_string())?;
        let topic = metadata
            .topics()
            .iter()
            .find(|topic| topic.name() == created);
        match topic.map(|topic| topic.partitions().len()) {
            Some(3) => Ok(()),
            partitions => Err(format!("{partitions:?} partitions")),
        }
    })
    .await;
    judge_both(&scene, &created).await;
}

/// Rows of two topics in turn: `order-1` and `order-2`, the second as an invoice.
async fn write_both(scene: &Scene, versions: std::ops::RangeInclusive<i64>) {
    for version in versions {
        insert(&scene.client, "order-1", version).await;
        insert_of(&scene.client, "invoice", "order-2", version).await;
    }
}

/// Without marks, the end of a session that releases rows, or replays them, repeats what went out of the open transaction.
async fn judge_both(scene: &Scene, other: &str) {
    let repeated = match scene.pair.mark {
        "none" => 2,
        _ => 0,
    };
    let reader = scene.kafka.reader(&[&scene.topic(), other]);
    let mut oracle = Oracle::new(scene.database.client().await, reader);
    oracle
        .verdict_when_drained(SOON)
        .await
        .assert_clean(repeated);
}

async fn wait_until_shown(relay: &Relay, topic: &str) {
    wait_until("the topic is shown as held", SOON, async || {
        let status = relay.try_status()?;
        let held = &status["held_topics"][0];
        if held["topic"] == topic
            && held["command"]
                .as_str()
                .is_some_and(|command| command.contains(topic))
        {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
}
