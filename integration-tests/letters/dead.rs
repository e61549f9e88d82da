//! Dead letters: whole aggregates or single rows, replayed and discarded.

use super::*;
use crate::conformance::scene::{execute, has, stop};
use crate::harness::relay::Relay;

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_dead_letter_is_replayed_with_it_in_order_by_replication() {
    follow(STREAMED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_dead_letter_is_replayed_with_it_in_order_by_polling() {
    follow(POLLED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_dead_letter_is_replayed_with_it_in_order_with_delete() {
    follow(pair("polling", "delete")).await;
}

async fn follow(pair: Pair) {
    let mut scene = without_invoices(pair).await;
    scene.config = scene.config.clone().set("faults.policy", "dead_letter");
    let (client, config) = (&scene.client, &scene.config);
    let mut relay = scene.start_steady().await;
    let ids = write_invoice(client, 1..=5).await;
    let other = write_others(client, 1..=20).await;
    scene.wait_for_row(&mut scene.reader(), other).await;
    let letters = wait_for_letters(config, 5).await;
    let rows: Vec<_> = letters
        .iter()
        .map(|letter| letter["row_id"].clone())
        .collect();
    assert_eq!(
        rows,
        ids.iter()
            .map(|id| Value::from(id.to_string()))
            .collect::<Vec<_>>()
    );
    assert_eq!(letters[0]["reason"], "topic_not_allowed");
    assert_eq!(letters[1]["reason"], "follows");
    wait_until("the metric tells of them", SOON, async || {
        match relay.metric("outboxd_dead_letters").await {
            Some(5.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_shown(config, &letters);
    let later = exits(config, 1, &["dead-letters", "replay", &id_of(&letters[2])]);
    assert!(
        later.contains(&format!("letter {}", id_of(&letters[0]))),
        "{later}"
    );
    // Unmended they become dead letters again.
    let first = id_of(&letters[0]);
    let again = exits(config, 1, &["dead-letters", "replay", &first]);
    assert!(again.contains("topic_not_allowed"), "{again}");
    let letters = wait_for_letters(config, 5).await;
    assert_eq!(
        (id_of(&letters[0]), &letters[0]["attempts"]),
        (first, &Value::from(2))
    );
    stop(&mut relay);
    let mut relay = Relay::start(&allow_all(config));
    let writer = scene.database.client().await;
    let writing = tokio::spawn(async move { write_invoice(&writer, 6..=60).await });
    let replay = [
        "dead-letters",
        "replay",
        "--aggregate",
        "invoice",
        "invoice-1",
    ];
    done(
        config,
        &[&replay[..], &["--note", "allowed", "--actor", "ada"]].concat(),
    );
    writing.await.expect("the writer ends");
    judge_both(&scene, 0).await;
    scene.wait_until_marked().await;
    wait_for_letters(config, 0).await;
    let history = done(config, &["dead-letters", "list", "--all"]);
    assert!(history.contains("replayed"), "{history}");
    assert!(list(config, "blocked").is_empty());
    stop(&mut relay);
}

/// The content of a row is shown only where it was asked for.
fn assert_shown(config: &RelayConfig, letters: &[Value]) {
    let id = id_of(&letters[0]);
    let shown = done(config, &["dead-letters", "show", &id]);
    assert!(
        shown.contains("route.allow") && !shown.contains("sha256"),
        "{shown}"
    );
    assert!(
        shown.contains("insert a new row") && shown.contains(&format!("replay {id} --config")),
        "{shown}"
    );
    let opened = done(config, &["dead-letters", "show", &id, "--content"]);
    assert!(
        opened.contains("sha256") && opened.contains("invoice-1"),
        "{opened}"
    );
    let opened = config.outboxd(&["dead-letters", "show", &id, "--content", "--json"]);
    assert!(json(&opened)["content"].is_array());
    exits(config, 1, &["dead-letters", "show", "4711"]);
    exits(config, 2, &["dead-letters", "replay"]);
    let refused = exits(config, 2, &["dead-letters", "discard", &id]);
    assert!(refused.contains("--yes"), "{refused}");
}

/// Matrix row 73.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_killed_again_and_again_loses_nothing_by_replication() {
    killed(STREAMED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_killed_again_and_again_loses_nothing_by_polling() {
    killed(POLLED).await;
}

async fn killed(pair: Pair) {
    let mut scene = without_invoices(pair).await;
    scene.config = scene.config.clone().set("faults.policy", "dead_letter");
    let config = &scene.config;
    let mut relay = scene.start_steady().await;
    execute(&scene.client, "BEGIN").await;
    write_invoice(&scene.client, 1..=1_500).await;
    execute(&scene.client, "COMMIT").await;
    wait_until("all are dead", SOON, async || {
        match relay.metric("outboxd_dead_letters").await {
            Some(1500.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    stop(&mut relay);
    let window = 200;
    let config = allow_all(config).set("limits.in_flight_rows_max", window);
    let mut relay = Relay::start(&config);
    let writer = scene.database.client().await;
    let writing = tokio::spawn(async move { write_invoice(&writer, 1_501..=1_700).await });
    done(&config, &["dead-letters", "replay", "--all", "--no-wait"]);
    let mut reader = both_topics(&scene);
    let kills = 3;
    for kill in 0..kills {
        let reads = 300 * kill;
        wait_until(
            "the replay has come so far",
            SOON,
            async || match tokio::task::block_in_place(|| reader.read_to_end().len()) {
                found if found > reads => Ok(()),
                found => Err(found),
            },
        )
        .await;
        relay.kill9();
        relay.restart();
    }
    writing.await.expect("the writer ends");
    // What was sent and not marked is sent again: at most the window for each kill.
    let duplicates_max = kills * usize::try_from(window).expect("a small number");
    judge_both(&scene, duplicates_max).await;
    scene.wait_until_marked().await;
    stop(&mut relay);
}

/// A real broker refuses two rows; the aggregate goes on; one is replayed, the other given up.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_alone_lets_its_aggregate_go_on() {
    let mut scene = Scene::new(STREAMED).await;
    scene.limit_records("20000").await;
    scene.config = scene
        .config
        .clone()
        .set("faults.policy", "dead_letter")
        .set("faults.after_dead_letter", "continue");
    let (client, config) = (&scene.client, &scene.config);
    let mut relay = scene.start_steady().await;
    let mut reader = scene.reader();
    insert(client, "order-0", 1).await;
    let (replayed, discarded) = (
        insert_large(client, 2, 60_000).await,
        insert_large(client, 3, 60_000).await,
    );
    let last = insert(client, "order-0", 4).await;
    scene.wait_for_row(&mut reader, last).await;
    let letters = wait_for_letters(config, 2).await;
    assert_eq!(letters[0]["reason"], "refused");
    scene.limit_records("1000000").await;
    let told = done(
        config,
        &[
            "dead-letters",
            "discard",
            &id_of(&letters[1]),
            "--yes",
            "--actor",
            "grace",
        ],
    );
    assert!(told.contains("1 discarded"), "{told}");
    // The brokers take up the new limit when they do.
    wait_until("the letter is replayed", SOON, async || {
        let again = config.outboxd(&["dead-letters", "replay", &id_of(&letters[0])]);
        again.status.success().then_some(()).ok_or(said(&again))
    })
    .await;
    scene.wait_for_row(&mut reader, replayed).await;
    scene.wait_until_confirmed().await;
    stop(&mut relay);
    relay.restart();
    let last = insert(client, "order-0", 5).await;
    scene.wait_for_row(&mut reader, last).await;
    assert!(
        !has(reader.read_to_end(), discarded),
        "a discarded row was published"
    );
    exits(config, 1, &["dead-letters", "replay", &id_of(&letters[1])]);
    let history = done(config, &["dead-letters", "list", "--all"]);
    assert!(
        history.contains("discarded") && history.contains("by grace"),
        "{history}"
    );
}

async fn insert_large(client: &Client, version: i64, bytes: usize) -> Uuid {
    let id = Uuid::new_v4();
    let padding: String = (0..bytes).map(|_| fastrand::alphanumeric()).collect();
    let sql = "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
               VALUES ($1, 'order', 'order-0', 'Changed', json_build_object('version', $2::int8, 'padding', $3::text))";
    client
        .execute(sql, &[&id, &version, &padding])
        .await
        .expect("insert a large row");
    id
}

/// A value that no record can carry is not read, so it can't be kept: the row stays in the table and blocks.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_not_read_whole_is_never_a_dead_letter() {
    for pair in [pair("polling", "delete"), POLLED] {
        let mut scene = Scene::new(pair).await;
        let wide = scene.config.clone().set("faults.policy", "dead_letter");
        let wide = wide.kafka_property("message.max.bytes", "2000000");
        scene.limit_records("2000000").await;
        scene.config = wide.clone().kafka_property("message.max.bytes", "50000");
        let (client, config) = (&scene.client, &scene.config);
        let mut relay = scene.start_steady().await;
        let row = insert_large(client, 1, 1_000_000).await;
        let other = write_others(client, 1..=10).await;
        scene.wait_for_row(&mut scene.reader(), other).await;
        let entry = wait_until_blocked(config, 1).await;
        assert_eq!(
            (&entry["reason"], &entry["policy"]),
            (&Value::from("too_large"), &Value::from("block"))
        );
        stop(&mut relay);
        let mut relay = Relay::start(&wide);
        done(config, &["blocked", "retry", "--all"]);
        let mut reader = scene.reader();
        scene.wait_for_row(&mut reader, row).await;
        let id = row.to_string();
        let read = reader
            .reads()
            .iter()
            .find(|read| read.header("id") == Some(&id));
        assert!(read.is_some_and(|read| {
            read.value
                .as_ref()
                .is_some_and(|value| value.len() > 1_000_000)
        }));
        stop(&mut relay);
    }
}
